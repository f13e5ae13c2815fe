"""Add an ONNX decoder to a bundle: ``python -m scripts.add_onnx_decoder CHECKPOINT BUNDLE [--type int8]``.

The other files of the bundle stay as they are. The new one is compared with the checkpoint, as in an export,
and its difference goes into the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

from edgevlm.export.pipeline import export
from edgevlm.manifest import MANIFEST_NAME, Manifest


def add(checkpoint: str, bundle: Path, precision: str) -> None:
    """Add the graph of one precision to a bundle of the checkpoint."""
    manifest = Manifest.load(bundle)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        made = export(checkpoint, folder, vision=("fp32",), decoder=(precision,), quick=True)
        assert made.decoder.onnx is not None and made.parity is not None
        for entry in made.decoder.onnx.entries():
            shutil.copyfile(folder / entry.name, bundle / entry.name)
    parity = manifest.parity
    if parity is not None:
        measured = {precision: made.parity.decoder[precision]}
        parity = dataclasses.replace(parity, decoder=parity.decoder | measured)
    decoder = dataclasses.replace(manifest.decoder, onnx=made.decoder.onnx)
    manifest = dataclasses.replace(manifest, decoder=decoder, parity=parity)
    (bundle / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--type", default="int8", choices=("fp32", "fp16", "int8", "int4"))
    arguments = parser.parse_args()
    add(arguments.checkpoint, arguments.bundle, arguments.type)


if __name__ == "__main__":
    main()
