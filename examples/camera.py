"""Ask one question about the newest frame of a camera; two images stand for the camera."""

from itertools import cycle, islice
from pathlib import Path

from edgevlm import VLM, LatestFrame

folder = Path(__file__).parent
frames = cycle([folder / "square.png", folder / "scene.png"])

with (
    VLM.from_pretrained("edgevlm-nano") as vlm,
    LatestFrame(vlm, "How many things are there?", max_tokens=8) as latest,
):
    for frame in islice(frames, 6):
        latest.put(frame)
        result = latest.get()
        print(
            f"{Path(str(result.frame)).name}: {result.answer.text}, {result.age * 1000:.0f} ms ago"
        )
