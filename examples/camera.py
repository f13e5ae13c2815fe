"""Ask one question about the newest frame that a camera pushes; two images stand for the camera."""

import threading
from itertools import cycle, islice
from pathlib import Path

from edgevlm import VLM, FrameSlot

folder = Path(__file__).parent
slot = FrameSlot("the front camera")
answered = threading.Event()


def camera() -> None:
    for name in islice(cycle(["square.png", "scene.png"]), 6):
        answered.clear()
        slot.put(folder / name)
        answered.wait()  # a real camera does not wait: its frames replace each other
    slot.close()


with (
    VLM.from_pretrained("edgevlm-nano") as vlm,
    vlm.watch(slot, "How many things are there?", max_tokens=8) as watch,
):
    threading.Thread(target=camera, daemon=True).start()
    for seen in watch:
        print(f"{seen.value}, {seen.age * 1000:.0f} ms ago, {seen.dropped} frames dropped")
        answered.set()
