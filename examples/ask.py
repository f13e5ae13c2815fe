"""One question about one picture."""

from pathlib import Path

from edgevlm import VLM

picture = Path(__file__).parent / "shapes.png"

with VLM.from_pretrained("edgevlm-nano") as vlm:
    answer = vlm.ask(picture, "What color is the shape at the top left?")
    print(answer.text)
    print(f"first token after {answer.stats.first_token_ms:.0f} ms")
