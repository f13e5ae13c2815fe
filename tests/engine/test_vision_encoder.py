"""Encoding ahead of the decoder gives the same embeddings, and errors are raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm import VLM
from edgevlm.cancellation import CancelSignal
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK, VisionEncoder
from edgevlm.errors import InferenceError
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.tiling import Layout, Tiles
from tests.conftest import picture

WIDE = {"width": 256, "height": 256}
"""Size of an image of 17 tiles, in pixels."""


def encoder(vlm: VLM) -> VisionEncoder:
    return vlm._engine._encoder


@pytest.fixture
def ahead(fresh: Callable[..., VLM]) -> VLM:
    """A model that encodes ahead, as with a decoder on another device."""
    vlm = fresh()
    encoder(vlm).ahead = True
    return vlm


def test_both_halves_on_the_cpu_take_turns(fresh: Callable[..., VLM]) -> None:
    assert not encoder(fresh()).ahead


def test_answers_are_the_same(ahead: VLM, fresh: Callable[..., VLM]) -> None:
    expected = fresh()
    for pictures in ([picture(1, **WIDE)], [picture(1, **WIDE), picture(2, **WIDE), picture(3)]):
        messages = [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "image": one} for one in pictures),
                    {"type": "text", "text": "What?"},
                ],
            }
        ]
        found, wanted = (
            list(vlm.stream_generate(messages, max_tokens=12)) for vlm in (ahead, expected)
        )
        assert [c.token_ids for c in found if c.token_ids] == [
            c.token_ids for c in wanted if c.token_ids
        ]
        stats, plain = found[-1].stats, wanted[-1].stats
        assert stats is not None and plain is not None
        assert (stats.encoded_tiles, stats.cached_tiles) == (
            plain.encoded_tiles,
            plain.cached_tiles,
        )
        assert stats.encode_ms > 0 and stats.prefill_ms > 0
    assert np.array_equal(ahead.encode_image(picture(3)), expected.encode_image(picture(3)))


def test_the_decoder_works_while_tiles_are_encoded(
    ahead: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch of tiles waits until the decoder has decoded a tile of the first batch."""
    tile_decoded = threading.Event()
    decoder, vision = ahead._engine._decoder, encoder(ahead)._vision
    decode, encode = decoder.decode_embeddings, vision.encode
    batches: list[int] = []

    def tell(*arguments: Any, **named: Any) -> None:
        decode(*arguments, **named)
        tile_decoded.set()

    def wait(tiles: NDArray[np.uint8], **named: Any) -> NDArray[np.float32]:
        assert not batches or tile_decoded.wait(60), "the decoder waits for all tiles"
        batches.append(len(tiles))
        return encode(tiles, **named)

    monkeypatch.setattr(decoder, "decode_embeddings", tell)
    monkeypatch.setattr(vision, "encode", wait)
    assert ahead.ask(picture(4, **WIDE), "What?", max_tokens=2).text
    assert batches == [TILES_PER_CHUNK] * 4 + [1]


def test_a_failure_in_the_middle_is_told_and_nothing_wrong_is_kept(
    ahead: VLM, fresh: Callable[..., VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = encoder(ahead)._vision
    encode = vision.encode
    count = 0

    def fail(tiles: NDArray[np.uint8], **named: Any) -> NDArray[np.float32]:
        nonlocal count
        count += 1
        if count == 3:
            raise InferenceError("out of memory")
        return encode(tiles, **named)

    with monkeypatch.context() as patch:
        patch.setattr(vision, "encode", fail)
        with pytest.raises(InferenceError, match="out of memory"):
            ahead.ask(picture(5, **WIDE), "What?", max_tokens=4)
    assert not any(thread.name.startswith("edgevlm-vision") for thread in threading.enumerate())
    found = ahead.ask(picture(5, **WIDE), "What?", max_tokens=12)
    assert found.text == fresh().ask(picture(5, **WIDE), "What?", max_tokens=12).text


def test_waiting_and_working_add_up(ahead: VLM) -> None:
    watch = Stopwatch()
    pixels = np.stack([np.full((64, 64, 3), i, np.uint8) for i in range(6)])
    keys = tuple(bytes([i]) for i in range(6))
    layout = Layout(128, 192, 2, 3)
    tiles = ProcessedImage(keys, layout, (), lambda: Tiles(tuple(pixels), layout)).tiles
    with encoder(ahead).encode_ahead(tiles, watch, cancel=CancelSignal()) as embeddings:
        rows = [embeddings(tile) for tile in tiles]
    watch.lap("prefill")
    assert watch.total_ms == pytest.approx(watch.ms("encode") + watch.ms("prefill"))
    encoded = encoder(ahead).encode(tiles, cancel=CancelSignal())
    assert np.array_equal(np.stack(rows), np.stack(list(encoded.values())))


@pytest.mark.parametrize("kind", ["ahead", "fresh"])
def test_a_request_can_be_given_up_while_its_prompt_is_tile_decoded(
    kind: str, ahead: VLM, fresh: Callable[..., VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = ahead if kind == "ahead" else fresh()
    vision = encoder(vlm)._vision
    encode = vision.encode
    batches: list[int] = []

    def count(tiles: NDArray[np.uint8], **named: Any) -> NDArray[np.float32]:
        batches.append(len(tiles))
        return encode(tiles, **named)

    with monkeypatch.context() as patch:
        patch.setattr(vision, "encode", count)
        stream = vlm.stream(picture(6, **WIDE), "What?", max_tokens=4)
        first = next(stream)
        assert first.text == "" and first.token_ids == ()
        stream.close()
    if kind == "fresh":
        assert batches == [TILES_PER_CHUNK]
    found = vlm.ask(picture(6, **WIDE), "What?", max_tokens=12)
    assert found.text == fresh().ask(picture(6, **WIDE), "What?", max_tokens=12).text
