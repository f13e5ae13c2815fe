"""Write the tiny bundle of each row into a folder: ``python -m tests.families.bundles FOLDER``.

To check every family on a GPU: ``python -m scripts.check_gpu FOLDER/NAME --only images``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from edgevlm.export.pipeline import export
from tests.families.case import ROWS


def main() -> None:
    """Export all rows that the folder lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    for row in ROWS:
        bundle = folder / re.sub("[^a-z0-9_]+", "-", row.name.lower())
        if not bundle.exists():
            with tempfile.TemporaryDirectory() as scratch:
                checkpoint = row.build(Path(scratch) / "checkpoint")
                export(
                    checkpoint,
                    bundle,
                    vision=["fp32"],
                    decoder=["f16"],
                    quick=True,
                    progress=False,
                )
        print(bundle, flush=True)


if __name__ == "__main__":
    main()
