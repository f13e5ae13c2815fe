"""Ask one question about one image."""

from pathlib import Path

from edgevlm import VLM

image = Path(__file__).parent / "shapes.png"

with VLM.from_pretrained("edgevlm-nano") as vlm:
    answer = vlm.ask(image, "What color is the shape at the top left?")
    print(answer.text)
    print(f"first token after {answer.stats.first_token_ms:.0f} ms")
