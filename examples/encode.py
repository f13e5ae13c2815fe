"""Compare two images by their embeddings."""

from pathlib import Path

import numpy as np

from edgevlm import VLM

folder = Path(__file__).parent

with VLM.from_pretrained("edgevlm-nano") as vlm:
    one, other = (
        vlm.encode_image(folder / name).mean(axis=0) for name in ("shapes.png", "square.png")
    )
    similarity = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    print(f"{similarity:.3f}")
