"""A gate that lets a robot go after a fresh answer alone, and stops it when answers are late or missing."""

import threading
from pathlib import Path

from edgevlm import VLM, EdgeVLMError, FrameSlot

folder = Path(__file__).parent
MAX_AGE = 2.0  # seconds; for a robot that moves, less than the time in which it reaches an obstacle


class Gate:
    """Says whether the robot may go."""

    def __init__(self) -> None:
        self.reason = "no answer yet"

    def go(self) -> None:
        self.reason = ""
        print("go")

    def stop(self, reason: str) -> None:
        self.reason = reason
        print("stop:", reason)


def camera(slot: FrameSlot) -> None:
    """Deliver three frames, then nothing more, as a camera that was unplugged."""
    for name in ("square.png", "scene.png", "square.png"):
        answered.clear()
        slot.put(folder / name)
        answered.wait()


answered = threading.Event()
gate = Gate()
slot = FrameSlot("the front camera")
with (
    VLM.from_pretrained("edgevlm-nano") as vlm,
    vlm.watch(slot, "Is there a cat?", choices=["yes", "no"], max_age=MAX_AGE) as watch,
):
    threading.Thread(target=camera, args=[slot], daemon=True).start()
    while True:
        try:
            seen = next(watch)
        except EdgeVLMError as error:
            # A late answer (DeadlineError), a camera that stalls (StalledError), a broken frame.
            gate.stop(f"{type(error).__name__}: {error}")
            break  # a robot goes on with the loop: the gate opens again after a fresh answer
        if seen.value == "no":
            gate.go()
        else:
            gate.stop("there may be a cat")
        answered.set()
