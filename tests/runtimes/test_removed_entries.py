"""`DecoderRuntime.remove`: entries in the middle go, and those after them move, as their keys say.

In a decoder of one layer, keys and values depend on a token and its position alone. So the logits after a
removal are those of a fresh prompt without the part; in deeper ones the moved entries have seen it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place
from tests.support.tiny_decoder import (
    EXACT,
    ROUNDED,
    ExactDecoder,
    TinyLlama,
    reference_model,
    write_decoder,
)

CONTEXT = 300


class OneLayer(TinyLlama):
    """Keys and values are those of a token at a position."""

    LAYERS = 1


def tokens(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 256, count).tolist()
    return ids


def decode(decoder: LlamaCppDecoder, ids: list[int], first: int) -> NDArray[np.float32]:
    positions = np.arange(first, first + len(ids), dtype=np.int32)
    decoder.decode_tokens(ids, positions, logits=True)
    return decoder.logits()


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module", params=[(ExactDecoder, EXACT), (LlamaCppDecoder, ROUNDED)])
def one_layer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LlamaCppDecoder, TinyLlama, float]:
    kind, bound = request.param
    model = reference_model(OneLayer)
    path = write_decoder(tmp_path_factory.mktemp("one") / "one.gguf", model)
    return kind(path, context_length=CONTEXT, threads=1), model, bound


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_rest_is_as_if_the_part_had_never_been_there(
    one_layer: tuple[LlamaCppDecoder, TinyLlama, float], data: st.DataObject
) -> None:
    decoder, model, bound = one_layer
    decoder.truncate(Place())
    held = tokens(data.draw(st.integers(20, 120)))
    decode(decoder, held, 0)
    for seed in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(held)))
        end = data.draw(st.integers(start, len(held)))
        decoder.remove(Place(start, start), Place(end, end))
        held = held[:start] + held[end:]
        more = tokens(data.draw(st.integers(1, 20)), seed + 1)
        found = decode(decoder, more, len(held))
        held += more
        expected = model.logits(model.embed(held))[-1]
        assert error(found, expected) < bound


def test_a_window_that_slides_a_thousand_times_stays_right(
    one_layer: tuple[LlamaCppDecoder, TinyLlama, float],
) -> None:
    """The rounding of the moved keys does not add up beyond that of 16 bits."""
    decoder, model, bound = one_layer
    decoder.truncate(Place())
    first, frame, window = 5, 8, 12
    held = tokens(first + frame * window)
    decode(decoder, held, 0)
    for step in range(1000):
        decoder.remove(Place(first, first), Place(first + frame, first + frame))
        held = held[:first] + held[first + frame :]
        more = tokens(frame, step)
        found = decode(decoder, more, len(held))
        held += more
    assert error(found, model.logits(model.embed(held))[-1]) < 2 * bound


def test_what_is_refused(one_layer: tuple[LlamaCppDecoder, TinyLlama, float]) -> None:
    decoder, _, _ = one_layer
    decoder.truncate(Place())
    decode(decoder, tokens(10), 0)
    with pytest.raises(InputError, match="has no entries from 5 to 11"):
        decoder.remove(Place(5, 5), Place(11, 11))
    with pytest.raises(InputError, match="no entries from 6 to 5"):
        decoder.remove(Place(6, 6), Place(5, 5))
    branch = decoder.branch()
    with pytest.raises(InputError, match="while branches are open"):
        decoder.remove(Place(2, 2), Place(5, 5))
    decoder.drop(branch)
    decoder.remove(Place(2, 2), Place(5, 5))
    with pytest.raises(InputError, match="there are no logits"):
        decoder.logits()


def test_deeper_models_keep_what_the_rest_has_seen(tmp_path: Path) -> None:
    model = reference_model()
    decoder = ExactDecoder(write_decoder(tmp_path / "two.gguf", model), context_length=CONTEXT)
    held, more = tokens(60), tokens(4, 1)
    decode(decoder, held, 0)
    decoder.remove(Place(10, 10), Place(30, 30))
    found = decode(decoder, more, 40)
    fresh = model.logits(model.embed(held[:10] + held[30:] + more))[-1]
    assert error(found, fresh) > EXACT
    decoder.close()
