"""Make the committed bundles of `tests/bundles` and their oracle: ``python -m tests.support.make_bundles``.

Needs what `make test` installs. Weights come from fixed seeds and the bundles from the real exporter, so a
second run changes nothing unless a library or the exporter changed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

from edgevlm.export.pipeline import export
from tests.support import checkpoints
from tests.support.oracle import (
    BUNDLES,
    CONVERSATIONS,
    FAMILIES,
    ORACLE_NAME,
    Expected,
    save_oracle,
)
from tests.support.reference import Reference

LIBRARIES = ("numpy", "pillow", "tokenizers", "torch", "transformers")

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def make_checkpoint(family: str, folder: Path) -> Path:
    """Write the smallest checkpoint of a family that still has all its parts."""
    if family == "paligemma":
        return checkpoints.paligemma(
            folder,
            tokenizer=checkpoints.gemma_tokenizer(380),
            vision_config=VISION_CONFIG | {"image_size": 28, "patch_size": 7},
            **TEXT_CONFIG | {"head_dim": 8},
        )
    tokenizer = checkpoints.byte_level_tokenizer(348)
    if family == "smolvlm":
        text_config = {name: value for name, value in TEXT_CONFIG.items() if name != "hidden_size"}
        return checkpoints.smolvlm(
            folder, tokenizer=tokenizer, width=16, vision_config=VISION_CONFIG, **text_config
        )
    return checkpoints.idefics3(
        folder,
        seed=1,  # with 0 the greedy answer has an image token, which transformers cannot read
        tokenizer=tokenizer,
        tile=40,
        vision_config=VISION_CONFIG,
        **TEXT_CONFIG,
    )


def compute_oracle(family: str, checkpoint: Path) -> list[Expected]:
    """Ask transformers all of the family's conversations."""
    reference = Reference(checkpoint, family)
    return [reference.expected(conversation) for conversation in CONVERSATIONS[family]]


def main() -> None:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for family in FAMILIES:
        target = BUNDLES / family
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = make_checkpoint(family, Path(scratch) / f"tiny-{family}")
            bundle = Path(scratch) / "bundle"
            export(
                checkpoint, bundle, vision=("fp32",), decoder=("f16",), quick=True, progress=False
            )
            save_oracle(bundle / ORACLE_NAME, compute_oracle(family, checkpoint), versions)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(bundle, target)
        print(target, sum(path.stat().st_size for path in target.iterdir()), "bytes")


if __name__ == "__main__":
    main()
