"""Tell what changed: frames that stay the same cost nothing, and the model compares those that do not."""

from pathlib import Path

from edgevlm import VLM

folder = Path(__file__).parent
# A camera that looks at one place: nothing happens, something changes, nothing happens.
frames = [folder / name for name in ("scene.png", "scene.png", "changed.png", "changed.png")]

with (
    VLM.from_pretrained("edgevlm-nano") as vlm,
    vlm.watch(iter(frames), "What is in the picture?", min_change=0.0005, max_tokens=32) as watch,
):
    before = None
    for seen in watch:
        if before is not None:
            print("changed:", vlm.ask([before, seen.frame], "What changed?").text)
        else:
            print("at first:", seen.value)
        before = seen.frame
    print(f"{watch.stats.frames} frames, {watch.stats.unchanged} unchanged")
