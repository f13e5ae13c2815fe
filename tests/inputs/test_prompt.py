"""Prompts: what is refused, and that text never becomes a special token.

`tests/core/test_committed_bundles.py` and `tests/reference/test_prompt.py` compare ids with transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgevlm.errors import ContextError, InputError, PromptError
from edgevlm.inputs.message_checks import MAX_TOKEN_LENGTH
from edgevlm.inputs.prompt import PromptBuilder, TextSegment
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import Manifest
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support.oracle import BUNDLES
from tests.support.texts import SPECIAL_TEXTS

ONE_TILE = (Layout(64, 64), 1)
"""Layout and number of spans of an image of one tile."""


class Builder:
    """The prompt builder of a committed bundle, and the parts that it needs."""

    def __init__(self, family: str) -> None:
        self.manifest = Manifest.load(BUNDLES / family)
        self.decoder = LlamaCppDecoder(
            BUNDLES / family / self.manifest.decoder.files["f16"].name, context_length=256
        )
        self.prompts = PromptBuilder(self.manifest.prompt, self.decoder.tokenize)

    def special_ids(self, content: str) -> list[int]:
        """Return the special tokens of a prompt whose one message is `content`."""
        special = {token.id for token in self.manifest.prompt.special_tokens}
        segments = self.prompts.build([{"role": "user", "content": content}], [])
        ids = [
            token
            for segment in segments
            if isinstance(segment, TextSegment)
            for token in segment.token_ids
        ]
        return [token for token in ids if token in special]


@pytest.fixture(scope="module")
def smolvlm() -> Iterator[Builder]:
    builder = Builder("smolvlm")
    yield builder
    builder.decoder.close()


@pytest.fixture(scope="module")
def paligemma() -> Iterator[Builder]:
    builder = Builder("paligemma")
    yield builder
    builder.decoder.close()


def image() -> dict[str, str]:
    return {"type": "image"}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


@pytest.mark.parametrize("content", SPECIAL_TEXTS)
@pytest.mark.parametrize("family", ["smolvlm", "paligemma"])
def test_text_brings_no_special_token(
    smolvlm: Builder, paligemma: Builder, family: str, content: str
) -> None:
    builder = smolvlm if family == "smolvlm" else paligemma
    of_template = builder.special_ids("x")
    assert of_template
    assert builder.special_ids(content) == of_template


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "hi"}], "role must be one of"),
        ([{"content": "hi"}], "role and content"),
        (["hi"], "role and content"),
        ([{"role": "user", "content": 7}], "text or a list of parts"),
        ([{"role": "user", "content": []}], "text or a list of parts"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "must be an image, a video or a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be an image, a video or a text"),
        ([{"role": "user", "content": [{"type": "video"}]}], "0 images and 1 videos, but 0 images"),
        ([{"role": "user", "content": [{"type": "image"}]}], "places for 1 images, but 0 images"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_messages_of_another_form_are_refused(
    smolvlm: Builder, messages: list[Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        smolvlm.prompts.build(messages, [])


def test_errors_do_not_repeat_what_is_long(smolvlm: Builder) -> None:
    uri = "data:image/png;base64," + "A" * 400_000
    for message in (
        {"role": "user", "content": [{"type": "image_url", "image_url": uri}]},
        {"role": uri, "content": "a"},
        {"content": uri},
        {"role": "user", "content": {"a": uri}},
    ):
        with pytest.raises(PromptError) as caught:
            smolvlm.prompts.build([message], [])
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ("hi", "is str"),
        ({"role": "user", "content": "hi"}, "is dict"),
        (None, "is NoneType"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(smolvlm: Builder, messages: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        smolvlm.prompts.build(messages, [])


@pytest.mark.parametrize(
    "piece", ["<image>", "<image", "<|im_end|>", "<<image>", "<", "<row_1_col_1>"]
)
def test_text_of_special_tokens_takes_linear_time(smolvlm: Builder, piece: str) -> None:
    """Megabytes, which would take hours if each token cost a copy of the text."""
    content = piece * (6_000_000 // len(piece))
    with pytest.raises(InputError, match="can be tokenized"):
        smolvlm.prompts.build([{"role": "user", "content": content}], [])


def test_what_cannot_fit_is_refused_before_the_work(smolvlm: Builder) -> None:
    def tokenize(text: str) -> list[int]:
        raise AssertionError("there is no need to tokenize")

    builder = PromptBuilder(smolvlm.manifest.prompt, tokenize)
    longer = "a" * (10 * MAX_TOKEN_LENGTH + 1)
    for messages in (
        [{"role": "user", "content": longer}],
        [{"role": "user", "content": [text(longer[:700]), image(), text(longer[700:])]}],
        [{"role": "user", "content": longer[:600]}, {"role": "assistant", "content": longer[600:]}],
        [{"role": "user", "content": "a"}] * 11,
    ):
        with pytest.raises(ContextError, match="a context of 10 positions"):
            builder.build(messages, [], max_positions=10)


def test_tokenizing_ends_where_the_context_does(smolvlm: Builder) -> None:
    """A conversation of many long texts costs no more than the one that passes the limit."""
    tokenized: list[str] = []

    def tokenize(text: str) -> list[int]:
        tokenized.append(text)
        return smolvlm.decoder.tokenize(text)

    builder = PromptBuilder(smolvlm.manifest.prompt, tokenize)
    messages = [{"role": "user", "content": "word " * 25}] * 50
    with pytest.raises(ContextError, match="more than"):
        builder.build(messages, [], max_positions=250)
    assert 0 < sum(map(len, tokenized)) < 2000
    builder.build(messages[:2], [], max_positions=250)


def test_what_paligemma_cannot_express_is_refused(paligemma: Builder) -> None:
    user = {"role": "user", "content": [image(), text("caption en")]}
    answer = {"role": "assistant", "content": [text("a cat")]}
    refused = [
        ([{"role": "system", "content": [text("be brief")]}, user], [ONE_TILE]),
        ([user, answer, user], [ONE_TILE, ONE_TILE]),
        ([{"role": "user", "content": [text("a"), image()]}], [ONE_TILE]),
    ]
    for messages, images in refused:
        with pytest.raises(PromptError, match="chat template refuses"):
            paligemma.prompts.build(messages, images)
