"""End-to-end tests with real runtimes; the references are models without caches."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm import (
    VLM,
    Answer,
    Bundle,
    Chat,
    ClosedError,
    ContextError,
    InputError,
    LoadError,
)
from edgevlm.chat import Overflow
from edgevlm.engine.loading import bidirectional_entries, default_context_length, load_decoder
from edgevlm.inputs.images import load_image
from edgevlm.manifest import GridTiling, Manifest, StretchTiling, Tiling
from tests.conftest import picture
from tests.support.oracle import BUNDLES


def test_every_way_of_asking_takes_a_budget_for_pictures(smolvlm: VLM) -> None:
    image, per_tile = picture(6, 300, 200), smolvlm.manifest.vision.tokens_per_tile
    assert per_tile is not None
    full = smolvlm.ask(image, "What?", max_tokens=2).stats.prompt_tokens
    one = smolvlm.ask(image, "What?", max_tokens=2, detail="low").stats.prompt_tokens
    assert one < full - 3 * per_tile
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": image},
        {"type": "text", "text": "What?"},
    ]
    message = [{"role": "user", "content": parts}]
    chunks = list(smolvlm.stream_generate(message, max_tokens=2, max_image_tokens=per_tile))
    assert chunks[-1].stats is not None
    assert chunks[-1].stats.prompt_tokens == one
    budgets: list[tuple[str | None, Any, int]] = [
        ("low", None, one),
        ("high", "low", full),
        (None, "low", one),
    ]
    for own, asked, expected in budgets:
        parts[0]["detail"] = own  # which the picture's own has the last word on
        *_, last = smolvlm.stream_generate(message, max_tokens=2, detail=asked)
        assert last.stats is not None and last.stats.prompt_tokens == expected
    parts[0]["detail"] = ""
    with pytest.raises(InputError, match="detail"):
        smolvlm.stream_generate(message)
    chat = smolvlm.chat().send("What?", images=image, max_tokens=2, detail="low")
    assert chat.stats.prompt_tokens == one
    assert len(smolvlm.encode_image(image, detail="low")) == per_tile
    with pytest.raises(InputError, match="max_image_tokens is 1, but"):
        smolvlm.ask(image, "What?", max_image_tokens=1)


def test_ask_stream_and_chat_agree(smolvlm: VLM) -> None:
    image = picture(0)
    answer = smolvlm.ask(image, "What is this?", max_tokens=12)
    chunks = list(smolvlm.stream(image, "What is this?", max_tokens=12))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert smolvlm.chat().send("What is this?", images=[image], max_tokens=12).text == answer.text
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    streamed = smolvlm.stream_generate([{"role": "user", "content": parts}], max_tokens=12)
    assert "".join(chunk.text for chunk in streamed) == answer.text


def test_every_kind_of_picture_gives_the_same_answer(smolvlm: VLM, tmp_path: Path) -> None:
    image = picture(1)
    image.save(tmp_path / "a.png")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    sources: list[Any] = [
        image,
        np.asarray(image),
        buffer.getvalue(),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        [image],
    ]
    assert len({smolvlm.ask(source, "What?", max_tokens=8).token_ids for source in sources}) == 1


def test_pictures_matter_and_so_does_their_order(smolvlm: VLM) -> None:
    first, second = picture(0), picture(1)
    asked = [None, first, second, [first, second], [second, first]]
    answers = [smolvlm.ask(images, "What?", max_tokens=12).token_ids for images in asked]
    assert len(set(answers)) == len(answers)


def test_a_second_turn_encodes_nothing_and_prefills_what_is_new(fresh: Callable[[], VLM]) -> None:
    chat = fresh().chat(system="Be brief.")
    first = chat.send("What is this?", images=[picture(0), picture(1)], max_tokens=8)
    assert first.stats.encoded_tiles > 0 and first.stats.cached_tokens == 0
    second = chat.send("And its colour?", max_tokens=8)
    assert second.stats.encoded_tiles == 0
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
    third = chat.send("A new one.", images=[picture(2)], max_tokens=8)
    assert 0 < third.stats.encoded_tiles <= 16 + 1
    assert third.stats.cached_tokens >= second.stats.prompt_tokens


def test_the_caches_change_no_answer(fresh: Callable[[], VLM]) -> None:
    """A conversation answers as one big prompt in a model that has cached nothing."""
    chat = fresh().chat()
    chat.send("What is this?", images=[picture(0)], max_tokens=8)
    chat.send("And this?", images=[picture(1)], max_tokens=8)
    messages = chat.messages
    last = chat.send("Which is larger?", max_tokens=8)
    pictures = iter([picture(0), picture(1)])
    for message in messages:
        message["content"] = [
            {**part, "image": next(pictures)} if part["type"] == "image" else part
            for part in message["content"]
        ]
    messages.append({"role": "user", "content": [{"type": "text", "text": "Which is larger?"}]})
    assert (
        "".join(chunk.text for chunk in fresh().stream_generate(messages, max_tokens=8))
        == last.text
    )


def test_never_a_stale_picture(fresh: Callable[[], VLM]) -> None:
    """Two pictures of equal size and one prompt, alternating, from threads."""
    vlm = fresh()
    pictures = [picture(0), picture(1)]
    expected = [fresh().ask(image, "What?", max_tokens=8).token_ids for image in pictures]
    assert expected[0] != expected[1]

    def ask(number: int) -> bool:
        return (
            vlm.ask(pictures[number % 2], "What?", max_tokens=8).token_ids == expected[number % 2]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(24)))


def test_two_conversations_do_not_mix(fresh: Callable[[], VLM]) -> None:
    def run(vlms: list[VLM]) -> list[str]:
        chats = [vlm.chat() for vlm in vlms]
        texts = []
        for turn in range(3):
            for number, chat in enumerate(chats):
                images = [picture(number)] if turn == 0 else None
                texts.append(chat.send(f"Turn {turn}?", images=images, max_tokens=6).text)
        return texts

    shared = fresh()
    assert run([shared, shared]) == run([fresh(), fresh()])


ONE_TILE = StretchTiling((64, 64), "bicubic")
SEVENTEEN_TILES = GridTiling((64, 64), "lanczos", longest_edge=256)


@pytest.mark.parametrize(
    ("attention", "tiling", "tokens", "trained", "context", "bidirectional"),
    [
        ("causal", ONE_TILE, 64, 8192, 4096, 0),
        ("causal", ONE_TILE, 64, 2048, 2048, 0),
        ("causal", SEVENTEEN_TILES, 64, 8192, 4096, 0),
        ("causal", SEVENTEEN_TILES, 256, 8192, 17 * 256 + 1024, 0),
        ("images", ONE_TILE, 256, 8192, 4096, 256),
        ("images", ONE_TILE, 256, 200, 200, 200),
        ("prefix", ONE_TILE, 256, 8192, 1280, 1280),
        ("prefix", ONE_TILE, 4096, 8192, 5120, 5120),
        ("prefix", ONE_TILE, 4096, 4500, 4500, 4500),
    ],
)
def test_the_default_context_has_room_for_an_image(
    smolvlm: VLM,
    attention: Any,
    tiling: Tiling,
    tokens: int,
    trained: int,
    context: int,
    bidirectional: int,
) -> None:
    manifest = smolvlm.manifest
    manifest = dataclasses.replace(
        manifest,
        image=dataclasses.replace(manifest.image, tiling=tiling),
        vision=dataclasses.replace(manifest.vision, tokens_per_tile=tokens),
        decoder=dataclasses.replace(manifest.decoder, attention=attention, context_length=trained),
    )
    assert default_context_length(manifest) == context
    assert bidirectional_entries(manifest, context) == bidirectional


def test_a_stopped_turn_keeps_what_was_said(fresh: Callable[..., VLM]) -> None:
    chat = fresh().chat()
    stream = chat.stream("What?", images=[picture(0)], max_tokens=50)
    said = ""
    while not said:
        said += next(stream).text
    stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": [{"type": "text", "text": said}]}
    chat.send("Go on.", max_tokens=4)


def test_requests_wait_for_an_open_stream(smolvlm: VLM) -> None:
    stream = smolvlm.stream(None, "What?", max_tokens=30)
    next(stream)
    answers: list[Any] = []
    other = threading.Thread(target=lambda: answers.append(smolvlm.ask(None, "Hm?", max_tokens=2)))
    other.start()
    other.join(0.3)
    assert other.is_alive() and not answers
    stream.close()
    other.join(30)
    assert len(answers) == 1


def test_closing_under_way_ends_in_a_clear_error(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    vlm.ask(None, "What?", max_tokens=2)

    def ask() -> bool:
        try:
            while True:
                vlm.ask(None, "What? " * 50, max_tokens=2)
        except ClosedError as error:
            return "closed" in str(error)

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        vlm.close()
        assert all(future.result(timeout=60) for future in asked)


def test_an_abandoned_stream_frees_the_model(smolvlm: VLM) -> None:
    next(smolvlm.stream(None, "What?", max_tokens=30))
    smolvlm.ask(None, "What?", max_tokens=2)


def test_limits_and_stops(smolvlm: VLM) -> None:
    answer = smolvlm.ask(None, "What?", max_tokens=20)
    assert (
        answer.finish_reason == "length"
        and len(answer.token_ids) == answer.stats.answer_tokens == 20
    )
    middle = answer.text[3:6]
    stopped = smolvlm.ask(None, "What?", max_tokens=20, stop=middle)
    assert stopped.finish_reason == "stop"
    assert stopped.text == answer.text[: answer.text.find(middle)]
    assert smolvlm.ask(None, "What?", max_tokens=20, stop=["never there"]).text == answer.text


def test_sampling_is_reproducible(smolvlm: VLM) -> None:
    def texts(seed: int) -> str:
        return smolvlm.ask(None, "What?", max_tokens=16, temperature=1.5, top_k=0, seed=seed).text

    assert texts(1) == texts(1)
    assert len({texts(seed) for seed in range(4)}) > 1


def test_openvino_gives_the_same_embeddings(
    fresh: Callable[..., VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vlm = fresh(device="openvino", vision="fp32")
    expected = fresh(device="cpu", vision="fp32").encode_image(picture(0))
    error = np.linalg.norm(vlm.encode_image(picture(0)) - expected) / np.linalg.norm(expected)
    assert error < (2e-2 if "bf16" in vlm.vision_device else 1e-5)
    assert vlm.vision_device.startswith("OpenVINO CPU ") and vlm.decoder_device == "cpu"
    assert vlm.ask(picture(0), "What?", max_tokens=4).stats.answer_tokens > 0


def test_the_golden_picture_can_be_read() -> None:
    golden = Bundle.open(BUNDLES / "smolvlm").manifest.golden
    assert golden is not None
    assert load_image(base64.b64decode(golden.picture_png)).shape[2] == 3


def test_an_answer_may_take_what_the_context_leaves(fresh: Callable[..., VLM]) -> None:
    vlm = fresh(context_length=64)
    prompt = vlm.ask(None, "What?", max_tokens=1).stats.prompt_tokens
    for options in ({"max_tokens": None}, {"max_tokens": 500, "cap_max_tokens": True}):
        answer = vlm.ask(None, "What?", **options)
        assert answer.finish_reason == "length"
        assert len(answer.token_ids) == 64 - prompt
    with pytest.raises(ContextError, match="max_tokens is 500"):
        vlm.ask(None, "What?", max_tokens=500)
    full = fresh(context_length=prompt)
    for none_left in ({"max_tokens": None}, {"max_tokens": 1, "cap_max_tokens": True}):
        with pytest.raises(ContextError, match="no room for an answer"):
            full.ask(None, "What?", **none_left)


def conversation(vlm: VLM, overflow: Overflow, turns: int) -> tuple[Chat, list[Answer]]:
    """A chat that shows an image in its first turns, and its answers."""
    chat = vlm.chat(system="Be brief.", overflow=overflow)
    answers = []
    for turn in range(turns):
        images = [picture(turn, 300, 200)] if turn < 3 else None
        answers.append(chat.send(f"Turn number {turn}?", images, max_tokens=6))
    return chat, answers


@pytest.mark.parametrize("overflow", ["drop_turns", "drop_images"])
def test_a_chat_drops_its_oldest_turns(fresh: Callable[..., VLM], overflow: Overflow) -> None:
    context, turns = 512, 20
    chat, answers = conversation(fresh(context_length=context), overflow, turns)
    dropped_turns = sum(answer.stats.dropped_turns for answer in answers)
    dropped_images = sum(answer.stats.dropped_images for answer in answers)
    first = next(answer.stats for answer in answers if answer.stats.dropped_images)
    assert (first.dropped_turns > 0) == (overflow == "drop_turns")
    system, *rest = chat.messages
    assert system["content"][0]["text"] == "Be brief."
    assert len(rest) == 2 * (turns - dropped_turns)
    assert rest[-2]["content"][-1]["text"] == f"Turn number {turns - 1}?"
    # A quarter of the context is free afterwards, so the turns that follow drop nothing.
    after = [
        each.stats for each in answers if each.stats.dropped_turns or each.stats.dropped_images
    ]
    assert all(stats.prompt_tokens + 6 <= 3 * context // 4 for stats in after)
    assert 0 < len(after) < 5
    # What is left answers as a conversation that never had the rest.
    kept = iter([picture(number, 300, 200) for number in range(3)][dropped_images:])
    messages = [
        {**message, "content": [with_image(part, kept) for part in message["content"]]}
        for message in chat.messages[:-1]
    ]
    assert next(kept, None) is None
    alone = fresh(context_length=context).stream_generate(messages, max_tokens=6)
    assert "".join(chunk.text for chunk in alone) == answers[-1].text


def with_image(part: dict[str, Any], images: Iterator[Image.Image]) -> dict[str, Any]:
    return part if part["type"] != "image" else {**part, "image": next(images)}


def test_a_chat_that_may_not_drop_anything_says_that_it_is_full(fresh: Callable[..., VLM]) -> None:
    with pytest.raises(ContextError):
        conversation(fresh(context_length=256), "error", 8)
    chat = fresh(context_length=256).chat(overflow="drop_turns")
    chat.send("What?", max_tokens=4)
    before = chat.messages
    with pytest.raises(ContextError):  # whatever is dropped
        chat.send("word " * 300, max_tokens=4)
    assert chat.messages == before
    with pytest.raises(InputError, match="overflow must be one of error, drop_images, drop_turns"):
        fresh().chat(overflow="drop")  # type: ignore[arg-type]  # what a user might write


def test_a_turn_that_was_stopped_drops_nothing_more(fresh: Callable[..., VLM]) -> None:
    chat, _ = conversation(fresh(context_length=256), "drop_turns", 8)
    kept = chat.messages
    chat.stream("What?", max_tokens=6).close()
    assert chat.messages == kept


def test_positions_must_be_those_of_the_decoder() -> None:
    folder = BUNDLES / "smolvlm"
    manifest = Manifest.load(folder)
    name = manifest.decoder.files["f16"].name
    wrong = dataclasses.replace(
        manifest, decoder=dataclasses.replace(manifest.decoder, positions="grid")
    )
    with pytest.raises(
        LoadError, match=r"positions is 'grid', but a position of .* has one number"
    ):
        load_decoder(wrong, folder / name, context_length=64, threads=1)
    load_decoder(manifest, folder / name, context_length=64, threads=1).close()
