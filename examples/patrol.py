"""A patrol: one line of JSON about each place that a robot stops at; two images stand for the places."""

import json
from pathlib import Path

from edgevlm import VLM

folder = Path(__file__).parent
places = {"the door": folder / "scene.png", "the shelf": folder / "square.png"}

with (
    VLM.from_pretrained("edgevlm-nano") as vlm,
    vlm.watch(iter(places.values()), "What is in the picture?", max_tokens=32) as watch,
):
    for place, seen in zip(places, watch, strict=True):
        # Append the line to a file, so that nothing is lost when the battery is empty.
        print(json.dumps({"place": place, **seen.to_dict()}), flush=True)
