"""The built-in model's checkpoint in transformers, and its export."""

from __future__ import annotations

import json
from pathlib import Path

from edgevlm import VLM
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.evaluation import runner, test_set
from edgevlm.evaluation.comparison import compare, divergence_result
from edgevlm.evaluation.references import open_reference
from edgevlm.export.pipeline import export
from edgevlm.export.usage import USAGE_NAME
from edgevlm.manifest import Usage
from training.usage import USAGE

CHECKPOINT = Path(__file__).resolve().parents[2] / "training" / "nano"
SEED = 90_002
"""Neither training's nor that of `edgevlm eval`."""


def test_trainer_checkpoint_and_bundle_agree_on_its_use() -> None:
    assert Usage.from_dict(json.loads((CHECKPOINT / USAGE_NAME).read_text("utf-8"))) == USAGE
    assert Bundle.open(DEFAULT_MODEL).manifest.usage == USAGE


def test_the_exported_text_is_the_checkpoints(tmp_path: Path) -> None:
    """Greedy text and distributions of the fp32 and f16 bundle, on 50 items, are those of transformers."""
    bundle = tmp_path / "nano"
    export(CHECKPOINT, bundle, vision=("fp32",), decoder=("f16",), quick=True, progress=False)
    asked = list(test_set.items(per_task=2, seed=SEED))
    assert len(asked) >= 50
    with VLM.from_pretrained(bundle) as vlm:
        reference = open_reference(str(CHECKPOINT), vision=None, decoder=None)
        ours = runner.run(runner.BundleAnswerer(vlm), asked, controls_per_task=0)
        compared = compare(vlm, reference, asked)
    assert [one.answer for one in ours] == [one.answer for one in compared]
    assert all(one.same_start == one.positions for one in compared)
    assert divergence_result(compared).max_kl < 1e-4
