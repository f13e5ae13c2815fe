"""Hold a conversation. The second turn encodes no image again and prefills only what is new."""

from pathlib import Path

from edgevlm import VLM

image = Path(__file__).parent / "square.png"

with VLM.from_pretrained("edgevlm-nano") as vlm:
    chat = vlm.chat()
    first = chat.send("What shape is it?", images=image)
    second = chat.send("What color is it?")
    print(first.text, second.text)
    print(f"tiles encoded: {first.stats.encoded_tiles}, then {second.stats.encoded_tiles}")
    print(f"of {second.stats.prompt_tokens} positions, {second.stats.cached_tokens} were cached")
