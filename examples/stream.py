"""An answer while it is being made."""

from pathlib import Path

from edgevlm import VLM

picture = Path(__file__).parent / "shapes.png"

with VLM.from_pretrained("edgevlm-nano") as vlm:
    for chunk in vlm.stream(picture, "What is in the picture?", max_tokens=60):
        print(chunk.text, end="", flush=True)
    print()
