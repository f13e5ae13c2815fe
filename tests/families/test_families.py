"""Each family against transformers: pixels, prompts, embeddings, logits, and the KV cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm import VLM
from edgevlm.cli import main
from edgevlm.inputs.images import load_image
from tests.families.row import IMAGE, Message, Reference, Row, conversations, picture, text

MODULES = ("llava",)
ROWS = [row for name in MODULES for row in importlib.import_module(f"tests.families.{name}").ROWS]
ANSWER_TOKENS = 6


class Case:
    """A checkpoint in transformers, and its bundle as the command line exports it."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        checkpoint = row.build(folder / "checkpoint")
        self.bundle = folder / "bundle"
        command = ["export", str(checkpoint), str(self.bundle), "--quiet"]
        assert main([*command, "--vision", "fp32", "--decoder", "f16"]) == 0
        self.reference = Reference(checkpoint, row)
        self.vlm = self.load()
        prompt = self.vlm.manifest.prompt
        self.special = {token.text: token.id for token in prompt.special_tokens}
        self.image_id = self.special[prompt.image_token]

    def load(self) -> VLM:
        """Load the bundle anew; nothing is in its caches."""
        return VLM.from_pretrained(self.bundle, vision="fp32", decoder="f16", threads=1)

    def images(self, count: int) -> list[Image.Image]:
        sizes = self.row.sizes
        return [picture(seed, sizes[seed % len(sizes)]) for seed in range(count)]

    def ids(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> list[int]:
        """Our prompt, with the image token in the places of embeddings."""
        engine = self.vlm._engine
        prepared = [engine.process_image(load_image(image)) for image in images]
        ids: list[int] = []
        for item in engine.tokenize(messages, prepared):
            ids += [item] if isinstance(item, int) else [self.image_id] * item.length
        return ids

    def conversations(self) -> Sequence[tuple[list[Message], int]]:
        return (self.row.messages or conversations)()


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    made = Case(request.param, tmp_path_factory.mktemp("family"))
    yield made
    made.vlm.close()


def test_pixels(case: Case) -> None:
    normalization = case.vlm.manifest.image.normalization
    for seed, size in enumerate(case.row.sizes):
        image = picture(seed, size)
        tiles = case.vlm._engine.process_image(load_image(image)).pixels
        expected = case.reference.pixels(image)
        assert tiles.shape == expected.shape
        scaled = expected * normalization.std + normalization.mean
        levels = scaled / normalization.rescale_factor
        assert np.abs(levels - np.rint(levels)).max() < 0.02, "transformers' pixels are no levels"
        np.testing.assert_array_equal(tiles, np.rint(levels).astype(np.uint8))


def test_prompts(case: Case) -> None:
    for messages, count in case.conversations():
        images = case.images(count)
        expected = case.reference.inputs(messages, images)["input_ids"][0].tolist()
        assert case.ids(messages, images) == expected


def test_special_tokens_of_a_user_stay_text(case: Case) -> None:
    prompt = case.vlm.manifest.prompt
    spelled = [*case.special, prompt.image_token, prompt.image_placeholder]
    written = " and ".join(dict.fromkeys(spelled)) + "?"
    messages = [{"role": "user", "content": [IMAGE, text(f"What is {written}")]}]
    plain = [{"role": "user", "content": [IMAGE, text("What is this?")]}]
    images = case.images(1)
    found, without = case.ids(messages, images), case.ids(plain, images)
    ids = set(case.special.values())
    assert [token for token in found if token in ids] == [
        token for token in without if token in ids
    ]
    tokenizer = case.reference.processor.tokenizer
    assert written in tokenizer.decode(found)


def test_embeddings(case: Case) -> None:
    for seed, size in enumerate(case.row.sizes):
        image = picture(seed, size)
        content = [IMAGE, text("What?")]
        inputs = case.reference.inputs([{"role": "user", "content": content}], [image])
        expected = case.reference.embeddings(inputs)
        found = case.vlm.encode_image(image) / case.vlm.manifest.decoder.embedding_scale
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4


def test_logits(case: Case) -> None:
    engine = case.vlm._engine
    for messages, count in case.conversations():
        images = case.images(count)
        inputs = case.reference.inputs(messages, images)
        ids, expected = case.reference.answer_and_logits(inputs, ANSWER_TOKENS)
        prepared = [engine.process_image(load_image(image)) for image in images]
        found = engine.logits(messages, prepared, ids)
        expected = expected[:, : found.shape[1]]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 5e-3, f"{case.row.name}: relative error {error:.1e}"


def answer(vlm: VLM, messages: Sequence[Message], images: Sequence[Image.Image]) -> Any:
    remaining = iter(images)
    placed = [
        {
            **message,
            "content": [
                {**part, "image": next(remaining)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    return vlm.generate(placed, max_tokens=ANSWER_TOKENS, temperature=0, top_logprobs=1)


def test_kv_cache(case: Case) -> None:
    """A second turn, a conversation that was copied out, and a shortened one answer as without a cache."""
    one, two = case.images(2)
    first = {"role": "user", "content": [IMAGE, text("What is this? Describe it well, please.")]}
    said = {"role": "assistant", "content": [text("A picture.")]}
    again = {"role": "user", "content": [text("Why?")]}
    other = {"role": "user", "content": [IMAGE, text("Something else, quite another thing?")]}
    asked: list[tuple[list[Message], list[Image.Image]]] = [
        ([first], [one]),
        ([first, said, again], [one]),  # goes on
        ([other, said, again], [two]),  # takes the place of the first
        ([first, said, again, said, again], [one]),  # copied back
        ([first], [one]),  # cut back
    ]
    with case.load() as vlm:
        found = [answer(vlm, *request) for request in asked]
    assert found[1].stats.cached_tokens > 0
    assert found[3].stats.cached_tokens > found[0].stats.prompt_tokens
    for request, cached in zip(asked, found, strict=True):
        with case.load() as vlm:
            fresh = answer(vlm, *request)
        assert cached.token_ids == fresh.token_ids
        for ours, theirs in zip(cached.logprobs, fresh.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=0.02)
