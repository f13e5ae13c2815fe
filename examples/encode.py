"""Two pictures as embeddings, and how alike they are."""

from pathlib import Path

import numpy as np

from edgevlm import VLM

folder = Path(__file__).parent

with VLM.from_pretrained("edgevlm-nano") as vlm:
    one, other = (
        vlm.encode_image(folder / name).mean(axis=0) for name in ("shapes.png", "square.png")
    )
    likeness = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    print(f"{likeness:.3f}")
