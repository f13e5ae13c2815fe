"""Interleaved conversations are not prefilled again, and no stale cache entry is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgevlm import VLM
from edgevlm.engine.kv_cache import MIN_POSITIONS_WORTH_SAVING, KVCache
from edgevlm.engine.loading import load_decoder
from edgevlm.lru_cache import LruCache
from edgevlm.manifest import Manifest
from edgevlm.results import Stats
from edgevlm.runtimes.protocols import DecoderRuntime, Place
from tests.support.tiny_decoder import place

NANO = Path(__file__).resolve().parents[2] / "edgevlm" / "models" / "edgevlm-nano"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module", params=["q8_0", "int8"])
def decoder(request: pytest.FixtureRequest) -> Iterator[DecoderRuntime]:
    """The built-in model's decoder in llama.cpp, and in ONNX Runtime."""
    manifest = Manifest.load(NANO)
    path = NANO / manifest.decoder.choices[request.param].name
    decoder = load_decoder(manifest, path, context_length=512, threads=1)
    yield decoder
    decoder.close()


@pytest.fixture
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


def decode(decoder: DecoderRuntime, tokens: list[int], position: int) -> NDArray[np.float32]:
    at = np.arange(position, position + len(tokens), dtype=np.int32)
    decoder.decode_tokens(tokens, at, logits=True)
    return decoder.logits()


def prompt(conversation: int, length: int) -> list[int]:
    """Return the first tokens of a conversation; the first twenty are the same in all conversations."""
    rng = np.random.default_rng(conversation)
    own: list[int] = rng.integers(20, 2000, 200).tolist()
    return [7] * 20 + own[: max(0, length - 20)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(21, 220)), min_size=2, max_size=8),
    st.sampled_from([0, 300_000, 10**8]),
)
def test_what_is_reused_is_what_would_be_computed(
    decoder: DecoderRuntime, requests: list[tuple[int, int]], max_bytes: int
) -> None:
    """The cache is right for any order of conversations, and for little room for copies."""
    decoder.truncate(Place())
    cache = KVCache(decoder, max_bytes=max_bytes)
    for conversation, length in requests:
        items = prompt(conversation, length)
        shared = cache.reuse_prefix(items, expect_continuation=True)
        assert shared < len(items)
        logits = decode(decoder, items[shared:], shared)
        cache.extend(items[shared:])
        assert cache.held_positions == len(items)
        assert cache.saved_bytes <= max_bytes
        copy = decoder.save()
        decoder.truncate(Place())
        fresh = decode(decoder, items, 0)
        decoder.restore(copy, place(len(items)))
        assert np.abs(logits - fresh).max() < 0.05 * np.abs(fresh).max()


def test_conversations_that_take_turns_are_prefilled_once(decoder: DecoderRuntime) -> None:
    decoder.truncate(Place())
    cache = KVCache(decoder)
    reused = []
    for length in (100, 150, 200):
        for conversation in (0, 1, 2):
            items = prompt(conversation, length)
            shared = cache.reuse_prefix(items, expect_continuation=True)
            reused.append(shared)
            decode(decoder, items[shared:], shared)
            cache.extend(items[shared:])
    assert reused == [0, 20, 20, 100, 100, 100, 150, 150, 150]
    assert cache.saved == 2
    assert 0 < cache.saved_bytes < 10**7


def test_another_question_about_the_same_costs_no_copy(decoder: DecoderRuntime) -> None:
    decoder.truncate(Place())
    cache = KVCache(decoder)
    for question in range(5):
        items = prompt(0, 200) + [30 + question] * (MIN_POSITIONS_WORTH_SAVING + 1)
        shared = cache.reuse_prefix(items, expect_continuation=True)
        assert shared == (200 if question else 0)
        decode(decoder, items[shared:], shared)
        cache.extend(items[shared:])
    assert cache.saved == 0


def test_only_what_is_expected_to_go_on_is_copied(decoder: DecoderRuntime) -> None:
    decoder.truncate(Place())
    cache = KVCache(decoder)
    for conversation, continues, copies in (
        (0, False, 0),
        (1, True, 0),  # in the place of a single question
        (2, False, 1),
        (3, False, 1),
        (4, True, 1),
    ):
        items = prompt(conversation, 100)
        shared = cache.reuse_prefix(items, expect_continuation=continues)
        decode(decoder, items[shared:], shared)
        cache.extend(items[shared:])
        assert cache.saved == copies
    assert cache.reuse_prefix(prompt(1, 101), expect_continuation=True) == 100
    assert cache.reuse_prefix(prompt(4, 101), expect_continuation=True) == 100


def test_a_camera_pays_for_no_copy_and_conversations_keep_theirs(vlm: VLM) -> None:
    rng = np.random.default_rng(0)

    def frame() -> NDArray[np.uint8]:
        return rng.integers(0, 256, (120, 120, 3), np.uint8)

    for _ in range(3):
        vlm.ask(frame(), "What is in the picture?")
        vlm.score(frame(), "What color is it?", ["red", "blue"])
    assert vlm.cache_info().conversations == 0
    chat = vlm.chat()
    first = chat.send("What is in the picture?", frame())
    for _ in range(3):
        vlm.ask(frame(), "What is in the picture?")
    assert vlm.cache_info().conversations == 1
    assert chat.send("Again?").stats.cached_tokens >= first.stats.prompt_tokens
    vlm.close()


def test_frames_that_never_come_again_are_not_kept(vlm: VLM) -> None:
    """Other conversations are kept, and a frame that is still in the KV cache is used."""
    rng = np.random.default_rng(0)
    square = EXAMPLES / "square.png"
    vlm.ask(square, "What color is it?")
    kept = vlm.cache_info()
    assert kept.tiles > 0
    for _ in range(3):
        frame = rng.integers(0, 256, (120, 120, 3), np.uint8)
        vlm.ask(frame, "What is in the picture?", cache_images=False)
        again = vlm.ask(frame, "What is in the picture?", cache_images=False)
        vlm.score(frame, "What color is it?", ["red", "blue"], cache_images=False)
        assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    held = vlm.cache_info()
    assert (held.tiles, held.tile_bytes) == (kept.tiles, kept.tile_bytes)
    assert vlm.ask(square, "What color is it?").stats.encoded_tiles == 0
    vlm.close()


def test_a_server_copies_conversations_from_their_second_turn_on(vlm: VLM) -> None:
    """A server gets whole conversations; the answer in one shows that it continues."""

    def turn(messages: list[dict[str, Any]]) -> Stats:
        *_, last = vlm.stream_generate(messages, max_tokens=4)
        messages += [
            {"role": "assistant", "content": "green"},
            {"role": "user", "content": "What shape is it?"},
        ]
        assert last.stats is not None
        return last.stats

    question = {"type": "text", "text": "What color is it?"}
    asked: list[list[dict[str, Any]]] = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": EXAMPLES / name}, question],
            }
        ]
        for name in ("square.png", "shapes.png")
    ]
    copies = []
    for _ in range(3):
        for messages in asked:
            last = turn(messages)
            copies.append(vlm.cache_info().conversations)
    assert copies == [0, 0, 0, 1, 1, 1]
    assert last.cached_tokens > last.prompt_tokens // 2


def test_what_was_used_longest_ago_goes_first(decoder: DecoderRuntime) -> None:
    decoder.truncate(Place())
    decode(decoder, prompt(0, 100), 0)
    size = decoder.save().nbytes
    decoder.truncate(Place())
    cache = KVCache(decoder, max_bytes=int(2.5 * size))
    for conversation in (0, 1, 2, 3):
        items = prompt(conversation, 100)
        shared = cache.reuse_prefix(items, expect_continuation=True)
        decode(decoder, items[shared:], shared)
        cache.extend(items[shared:])
    assert cache.saved == 2
    assert cache.reuse_prefix(prompt(0, 101), expect_continuation=True) == 20  # gone
    assert cache.reuse_prefix(prompt(2, 101), expect_continuation=True) == 100


def test_embeddings_are_bounded_by_bytes() -> None:
    cache: LruCache[bytes, NDArray[np.float32]] = LruCache(3000, lambda rows: rows.nbytes)
    rows = {bytes([i]): np.full((10, 25), i, np.float32) for i in range(4)}  # 1000 bytes each
    for key in list(rows)[:3]:
        cache[key] = rows[key]
    assert len(cache) == 3
    assert cache.size == 3000
    assert cache[b"\0"][0, 0] == 0  # used just now
    cache[b"\3"] = rows[b"\3"]
    assert [bytes([i]) in cache for i in range(4)] == [True, False, True, True]
    cache[b"\3"] = rows[b"\3"]
    assert cache.size == 3000


def test_two_conversations_about_pictures_take_turns(vlm: VLM) -> None:
    chats = [vlm.chat(), vlm.chat()]
    pictures = [EXAMPLES / "shapes.png", EXAMPLES / "square.png"]
    answers = [
        [chat.send("What is in the picture?", p) for chat, p in zip(chats, pictures, strict=True)]
    ]
    answers.append([chat.send("How many shapes are there?") for chat in chats])
    for first, second in zip(*answers, strict=True):
        assert second.stats.encoded_tiles == 0
        assert second.stats.cached_tokens >= first.stats.prompt_tokens
    info = vlm.cache_info()
    assert info.conversations == 1
    assert info.tiles == info.encoded_tiles == 2
    assert info.reused_tiles == 2
    for index, picture in enumerate(pictures):
        with VLM.from_pretrained(threads=1) as alone:
            chat = alone.chat()
            assert chat.send("What is in the picture?", picture).text == answers[0][index].text
            assert chat.send("How many shapes are there?").text == answers[1][index].text


def test_pictures_of_equal_size_are_never_mixed_up(vlm: VLM) -> None:
    """The same question about two images of one size, alternating, from four threads."""
    rng = np.random.default_rng(5)
    pictures = {}
    for color, rgb in (("red", (220, 30, 30)), ("blue", (30, 60, 220))):
        pixels = np.full((120, 120, 3), 255, np.uint8)
        pixels[30:90, 30:90] = rgb
        pictures[color] = Image.fromarray(pixels)
    wrong = []

    def ask(order: list[str]) -> None:
        for color in order:
            said = vlm.ask(pictures[color], "What color is it?").text
            if said != color:
                wrong.append((color, said))

    orders = [rng.permutation(["red", "blue"] * 5).tolist() for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert vlm.cache_info().encoded_tiles == 2
