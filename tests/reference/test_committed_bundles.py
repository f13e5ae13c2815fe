"""The oracle of the committed bundles is what transformers computes today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.make_bundles import compute_oracle, make_checkpoint
from tests.support.oracle import FAMILIES, REBUILD, load_oracle


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_committed_oracle(tmp_path: Path, family: str) -> None:
    """The checkpoint is made again from its seed; the last digits of logits depend on the processor."""
    computed = compute_oracle(family, make_checkpoint(family, tmp_path / "checkpoint"))
    committed = load_oracle(family)
    assert len(computed) == len(committed), REBUILD
    for ours, theirs in zip(computed, committed, strict=True):
        assert ours.prompt_ids == theirs.prompt_ids, REBUILD
        assert ours.answer_ids == theirs.answer_ids, REBUILD
        assert ours.tile_hashes == theirs.tile_hashes, REBUILD
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=1e-3, err_msg=REBUILD)
