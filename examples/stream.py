"""Print an answer while the model makes it."""

from pathlib import Path

from edgevlm import VLM

image = Path(__file__).parent / "shapes.png"

with VLM.from_pretrained("edgevlm-nano") as vlm:
    for chunk in vlm.stream(image, "What is in the picture?", max_tokens=60):
        print(chunk.text, end="", flush=True)
    print()
