"""Pick a thing or skip it: a choice with a probability, so that a doubtful thing is left for a person."""

from pathlib import Path

from edgevlm import VLM

folder = Path(__file__).parent
LEAST = 0.9  # a choice that is less probable is doubtful

with VLM.from_pretrained("edgevlm-nano") as vlm:
    for name in ("square.png", "scene.png", "shapes.png"):
        choice = vlm.choose(folder / name, "Is there a square?", ["yes", "no"])
        action = {"yes": "pick", "no": "skip"}[choice.label]
        if choice.probabilities[choice.label] < LEAST:
            action = "ask a person"
        print(f"{name}: {action} ({choice.label} {choice.probabilities[choice.label]:.2f})")
