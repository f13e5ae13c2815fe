"""Add an ONNX decoder to a bundle: ``python -m scripts.add_onnx_decoder CHECKPOINT BUNDLE [PRECISION ...]``.

The checkpoint is the one that the bundle was made of. Its other files stay as they are. All files are
measured again beside the checkpoint, and the manifest and the model card get the new report. Without
PRECISION it is int8.

    python -m scripts.add_onnx_decoder training/nano edgevlm/models/edgevlm-nano
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

from edgevlm.bundle import Bundle
from edgevlm.errors import ExportError
from edgevlm.export import parity
from edgevlm.export.answers import EXACT_DECODERS, EXACT_VISION, Files
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.card import write_card
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_module import check_language_model
from edgevlm.export.onnx_decoder import PRECISIONS
from edgevlm.export.onnx_decoder_files import TOKENIZER_FILE, describe_graphs, write_graphs
from edgevlm.export.pipeline import write_unquantized, write_vision
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.reference import Reference
from edgevlm.export.report import make_report
from edgevlm.export.text_battery import check_tokenizer_file
from edgevlm.manifest import MANIFEST_NAME, Manifest


def add_onnx_decoder(
    checkpoint: str | Path, folder: Path, precisions: list[str], *, progress: bool = True
) -> Manifest:
    """Write the graphs into the bundle, and return its new manifest.

    Raises:
        ExportError: the bundle has an ONNX decoder already, or the language model cannot be a graph.
        DriftError: the bundle does not answer as the checkpoint does. It stays as it was.
    """
    bundle = Bundle.open(folder)
    if bundle.manifest.decoder.onnx is not None:
        raise ExportError(f"{folder} has an ONNX decoder already; export it anew")
    source = Checkpoint.open(checkpoint)
    check_language_model(source.config)
    plan = make_plan(source)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        staged = Path(scratch)
        graphs = write_graphs(plan, staged, precisions, precisions, progress=progress)
        spec = describe_graphs(plan, graphs)
        assert spec is not None
        tokenizer = plan.processor.tokenizer
        texts = check_tokenizer_file(staged / TOKENIZER_FILE, plan.vocabulary, tokenizer)
        manifest = dataclasses.replace(
            bundle.manifest, decoder=dataclasses.replace(bundle.manifest.decoder, onnx=spec)
        )
        exact = write_vision(plan, staged, [], CalibrationImages.open(), progress=progress)
        decoders = {
            name: bundle.path(entry) for name, entry in bundle.manifest.decoder.files.items()
        }
        if not decoders.keys() & EXACT_DECODERS:
            decoders |= write_unquantized(plan, staged, EXACT_DECODERS[:1], progress=progress)
        visions = {name: bundle.path(entry) for name, entry in manifest.vision.files.items()}
        reference = Reference(source, plan.family, plan.processor, plan.prompt)
        cases, golden = parity.make_cases(reference, progress=progress)
        del reference
        report = make_report(
            cases,
            Files(
                manifest, folder, visions | {EXACT_VISION: exact[EXACT_VISION]}, decoders | graphs
            ),
            texts=texts,
            quick=False,
            allow_drift=False,
            progress=progress,
        )
        manifest = dataclasses.replace(manifest, parity=report, golden=golden)
        for entry in spec.entries():
            shutil.copyfile(staged / entry.name, folder / entry.name)
    (folder / "README.md").write_text(write_card(manifest), encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder).manifest


def main() -> None:
    """Add the decoder."""
    parser = argparse.ArgumentParser(description="Add an ONNX decoder to a bundle.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("precisions", metavar="PRECISION", nargs="*", choices=[*PRECISIONS, []])
    arguments = parser.parse_args()
    manifest = add_onnx_decoder(
        arguments.checkpoint, arguments.bundle, arguments.precisions or ["int8"]
    )
    assert manifest.parity is not None
    for precision, entry in manifest.decoder.weight_files.items():
        drift = manifest.parity.decoder[precision]
        print(f"{entry.name}: {entry.size:,} bytes, relative error {drift.relative_error:.1e}")


if __name__ == "__main__":
    main()
