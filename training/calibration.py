"""Draw calibration images for edgevlm-nano: python -m training.calibration FOLDER

The exporter fits quantized vision graphs to photographs. edgevlm-nano sees drawings:
`edgevlm export training/nano OUT --vision int8 --calibration FOLDER`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgevlm.scenes import composition

LAYOUTS = ("single", "mixed", "crowd", "nested", "text", "mosaic", "page", "sign")
IMAGES_PER_LAYOUT = 2


def draw_calibration_images(folder: Path) -> None:
    """Draw the same scenes on each call: some of every layout, in styles that training uses.

    Args:
        folder: to write the PNG files into; made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for layout in LAYOUTS:
        for number in range(IMAGES_PER_LAYOUT):
            image = composition.draw(composition.sample(random, layout))
            image.save(folder / f"{layout}-{number}.png")


def main() -> None:
    """Write the images into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Draw calibration images for edgevlm-nano.")
    parser.add_argument("folder", type=Path)
    draw_calibration_images(parser.parse_args().folder)


if __name__ == "__main__":
    main()
