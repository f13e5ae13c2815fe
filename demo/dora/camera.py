"""A dora node that publishes the images of a folder over and over, one at each tick."""

import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow
from dora import Node
from PIL import Image


def main() -> None:
    """Publish ``image``: a flat uint8 array, and its size, encoding and Unix time as metadata."""
    files = sorted(Path(sys.argv[1]).glob("*.png"))
    if not files:
        sys.exit(f"{sys.argv[1]} has no PNG images")
    images = cycle([np.asarray(Image.open(path).convert("RGB")) for path in files])
    node = Node()
    for event in node:
        if event["type"] == "INPUT":
            image = next(images)
            metadata = {
                "encoding": "rgb8",
                "width": image.shape[1],
                "height": image.shape[0],
                "time": time.time(),
            }
            node.send_output("image", pyarrow.array(image.ravel()), metadata)


if __name__ == "__main__":
    main()
