"""The built-in model: it answers as its checkpoint does, and it looks at the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm import VLM
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.evaluation import evaluate, report, test_set
from edgevlm.export.pipeline import export

CHECKPOINT = Path(__file__).parent.parent / "training" / "nano"
SEED = 90_001
"""Neither training's nor that of `edgevlm eval`."""


@pytest.fixture(scope="module")
def nano() -> Iterator[VLM]:
    with VLM.from_pretrained() as vlm:
        yield vlm


def test_it_ships_small_and_whole() -> None:
    bundle = Bundle.open(DEFAULT_MODEL)
    bundle.check_hashes()
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < 20e6
    assert list(bundle.manifest.vision.files) == ["int8"]
    assert list(bundle.manifest.decoder.files) == ["q8_0"]
    assert bundle.manifest.parity is not None and not bundle.manifest.parity.drift_allowed


def test_it_sees_what_it_has_never_seen(nano: VLM) -> None:
    """40 fresh items of each row, the files that ship: the measured level, less chance in the draw."""
    asked = list(test_set.items(per_row=40, seed=SEED))
    answered = evaluate.run(evaluate.BundleAnswerer(nano), asked)
    rows = {row.name: row for row in report.rows(answered)}
    low = {name: row.right for name, row in rows.items() if row.right.high < LEVEL[name]}
    assert not low
    blind = [n for n, r in rows.items() if r.grounding and r.grounding.verdict != "grounded"]
    assert set(blind) <= MAY_BE_BLIND


def test_the_exported_text_is_the_checkpoints(tmp_path: Path) -> None:
    """Greedy text of transformers in float32 and of the fp32 and f16 bundle, on 50 items."""
    export(CHECKPOINT, tmp_path / "nano", vision=("fp32",), decoder=("f16",), progress=False)
    asked = list(test_set.items(per_row=2, seed=SEED + 1))
    assert len(asked) >= 50
    theirs = evaluate.run(evaluate.CheckpointAnswerer(CHECKPOINT), asked, grounding=False)
    with VLM.from_pretrained(tmp_path / "nano") as vlm:
        ours = evaluate.run(evaluate.BundleAnswerer(vlm), asked, grounding=False)
    assert [one.said for one in ours] == [one.said for one in theirs]
