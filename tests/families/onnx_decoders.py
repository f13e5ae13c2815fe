"""Compare decoders in ONNX Runtime with transformers: ``python -m tests.families.onnx_decoders [NAME]``.

Exports the rows whose name contains NAME, without it all rows, with the graphs fp32 and int8 of the decoder.
Prints a line for each: the largest relative error of the logits of an answer, teacher-forced, for the images
and prompts of the table of families.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig

from edgevlm import VLM
from edgevlm.export.decoder_module import REFUSED
from tests.families.case import ROWS, Case
from tests.families.row import Row

HEAD = "| `model_type` and variant | error of logits, fp32 | int8 |\n|---|---|---|"


class GraphCase(Case):
    """A bundle whose parts both run in ONNX Runtime; OpenVINO may encode images in bfloat16."""

    def load(self, context_length: int | None = None) -> VLM:
        """Load the bundle anew; nothing is in its caches."""
        return VLM.from_pretrained(
            self.bundle,
            device="cpu",
            vision="fp32",
            decoder=self.row.decoder,
            threads=1,
            context_length=context_length,
        )


def measure(row: Row) -> str:
    """Return the line of a row; of a decoder that cannot be a graph, the reason."""
    errors = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = row.build(Path(scratch) / "checkpoint")
        kind = AutoConfig.from_pretrained(checkpoint).get_text_config().model_type
        if kind in REFUSED:
            return f"| {row.name} | – | {REFUSED[kind]} |"
        for precision in ("fp32", "int8"):
            folder = Path(scratch) / precision
            folder.mkdir()
            case = GraphCase(
                dataclasses.replace(row, decoder=precision, build=lambda folder: checkpoint),
                folder,
            )
            errors.append(f"{case.logits_error():.0e}")
            case.vlm.close()
    return f"| {row.name} | {' | '.join(errors)} |"


def main() -> None:
    """Print the table."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    print(HEAD, flush=True)
    for row in ROWS:
        if name in row.name:
            print(measure(row), flush=True)


if __name__ == "__main__":
    main()
