"""Log-probabilities of continuations, beside those of a Llama in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.scoring import open_branches, score_continuations
from edgevlm.runtimes.protocols import Place
from tests.support.decoders import load_tiny
from tests.support.tiny_decoder import (
    END,
    TinyLlama,
    decoded,
    reference_logits,
    reference_model,
    some_tokens,
)

CONTEXT = 80
PROMPT = some_tokens(50)
ENDS = [5, END]
LENGTHS = (1, 20, 3, 2, 2, 9, 1, 1, 4, 1, 30, 12, 0)
"""More than there are branches; longer than the most logits of a batch; together longer than the context."""
CONTINUATIONS = [some_tokens(length, seed=seed) for seed, length in enumerate(LENGTHS)]


def expected(model: TinyLlama, tokens: list[int]) -> float:
    """Return log P(tokens, then one of ENDS) after PROMPT."""
    logits = reference_logits(model, [*PROMPT, *tokens])[len(PROMPT) - 1 :].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    steps = [logprobs[at, token] for at, token in enumerate(tokens)]
    return float(sum(steps) + np.logaddexp.reduce(logprobs[-1, ENDS]))


@pytest.mark.parametrize("kind", ["llama.cpp", "ONNX Runtime"])
@pytest.mark.parametrize("branches", [1, 3, 8])
def test_scores(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, branches: int
) -> None:
    """One after another, and several in one batch."""
    decoder = load_tiny(kind, tiny_file, tmp_path, context_length=CONTEXT)
    monkeypatch.setattr(decoder, "max_branches", branches)
    model = reference_model()
    sizes: list[int] = []
    decode = decoder.decode_branches

    def counted(numbers: list[int], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(set(numbers)))
        return decode(numbers, *arguments, **options)

    monkeypatch.setattr(decoder, "decode_branches", counted)
    decoded(decoder, PROMPT)
    found = score_continuations(decoder, CONTINUATIONS, ENDS, CONTEXT - len(PROMPT), CancelSignal())
    np.testing.assert_allclose(found, [expected(model, each) for each in CONTINUATIONS], atol=1e-3)
    assert max(sizes) == min(branches, 5)
    assert decoder.room(0) == CONTEXT
    assert decoder.truncate(Place(50, 50))
    decoder.close()


@pytest.mark.parametrize("kind", ["llama.cpp", "ONNX Runtime"])
def test_branches_are_dropped_after_a_failure(tiny_file: Path, tmp_path: Path, kind: str) -> None:
    decoder = load_tiny(kind, tiny_file, tmp_path, context_length=CONTEXT)
    decoded(decoder, PROMPT)
    with pytest.raises(KeyboardInterrupt), open_branches(decoder, 3) as branches:
        decoder.decode_branches(branches, [1, 2, 3])
        raise KeyboardInterrupt
    assert decoder.room(0) == CONTEXT
    assert len({decoder.branch() for _ in range(decoder.max_branches)}) == decoder.max_branches
    decoder.close()
