"""Tokens that a JSON schema forces: the same answer, with fewer calls of the decoder."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm import VLM
from edgevlm.engine.answer_decoder import MAX_FORCED_TOKENS
from edgevlm.runtimes.json_schema.constraint import JsonConstraint
from tests.support.oracle import BUNDLES

GREY = np.full((32, 32, 3), 128, np.uint8)
QUESTION = "What is this?"
KEYS = [f"distance_to_{name}_in_centimetres" for name in ("mug", "box", "wall")]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "integer", "minimum": 0, "maximum": 300} for key in KEYS},
    "required": KEYS,
    "additionalProperties": False,
}
CONSTANT = {"const": "a long text that leaves no choice, " * 8}


@pytest.mark.parametrize("family", ["smolvlm", "paligemma"])
@pytest.mark.parametrize("schema", [SCHEMA, CONSTANT, {"type": "boolean"}, {"enum": [1]}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_one_token_at_a_time(
    family: str, schema: dict[str, Any], temperature: float
) -> None:
    """With ``top_logprobs`` each token is decoded alone, and chosen from its own logits."""
    options: dict[str, Any] = {"json_schema": schema, "temperature": temperature, "seed": 5}
    with VLM.from_pretrained(BUNDLES / family, threads=1) as vlm:
        batched = vlm.ask(GREY, QUESTION, **options)
        single = vlm.ask(GREY, QUESTION, top_logprobs=0, **options)
    assert batched.token_ids == single.token_ids
    assert (batched.text, batched.finish_reason) == (single.text, single.finish_reason)
    assert single.stats.forced_tokens == 0
    assert batched.stats.forced_tokens <= batched.stats.answer_tokens
    if schema is CONSTANT:
        assert json.loads(batched.text) == CONSTANT["const"]
        assert batched.stats.forced_tokens == batched.stats.answer_tokens > 2 * MAX_FORCED_TOKENS


def count_calls(vlm: VLM, patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of tokens of each call of the decoder."""
    sizes: list[int] = []
    decoder = vlm._engine._decoder
    decode = decoder.decode_tokens

    def counted(token_ids: Any, *arguments: Any, **options: Any) -> None:
        sizes.append(len(token_ids))
        decode(token_ids, *arguments, **options)

    patch.setattr(decoder, "decode_tokens", counted)
    return sizes


def test_forced_text_takes_one_call(smolvlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    smolvlm.ask(GREY, QUESTION, max_tokens=1)  # so that the prompt is in the KV cache
    sizes = count_calls(smolvlm, monkeypatch)
    answer = smolvlm.ask(GREY, QUESTION, json_schema=SCHEMA)
    assert json.loads(answer.text).keys() == set(KEYS)
    sampled = answer.stats.answer_tokens - answer.stats.forced_tokens
    assert answer.stats.forced_tokens > 3 * sampled
    # one for the end of the prompt, one for the forced text at the beginning, one after each token sampled
    assert len(sizes) <= sampled + 2
    assert max(sizes) > 10


@pytest.mark.parametrize("schema", [SCHEMA, CONSTANT])
def test_the_limit_ends_forced_text_too(smolvlm: VLM, schema: dict[str, Any]) -> None:
    whole = smolvlm.ask(GREY, QUESTION, json_schema=schema, max_tokens=None)
    assert whole.finish_reason == "stop"
    for limit in (1, 2, 9, 40, len(whole.token_ids) - 1):
        answer = smolvlm.ask(GREY, QUESTION, json_schema=schema, max_tokens=limit)
        assert answer.finish_reason == "length"
        assert answer.token_ids == whole.token_ids[:limit]


def test_a_stop_string_within_forced_text(smolvlm: VLM) -> None:
    answer = smolvlm.ask(GREY, QUESTION, json_schema=CONSTANT, stop="no choice")
    assert (answer.text, answer.finish_reason) == ('"a long text that leaves ', "stop")


def test_a_conversation_goes_on_after_forced_text(smolvlm: VLM) -> None:
    chat = smolvlm.chat()
    chat.send(QUESTION, GREY, json_schema=SCHEMA)
    second = chat.send("And now?", max_tokens=8)
    messages = chat.messages[:-1]
    messages[0]["content"][0]["image"] = GREY
    with VLM.from_pretrained(BUNDLES / "smolvlm", threads=1) as other:
        assert other.generate(messages, max_tokens=8).token_ids == second.token_ids


# The matcher ---------------------------------------------------------------------------------------

PIECES = [bytes([byte]) for byte in range(256)] + [
    b'{"',
    b'":',
    b'","',
    b"true",
    b"ab",
    b"abc",
    b"",
    b"",
]
ENDS = [len(PIECES) - 2, len(PIECES) - 1]


def tokenize(text: str) -> list[int]:
    data, tokens = text.encode(), []
    while data:
        length = next(size for size in (4, 3, 2, 1) if data[:size] in PIECES)
        tokens.append(PIECES.index(data[:length]))
        data = data[length:]
    return tokens


@pytest.fixture(scope="module")
def texts() -> JsonConstraint:
    return JsonConstraint(PIECES, ENDS, tokenize)


NAMES = st.text("abc", min_size=1, max_size=6)
VALUES = st.one_of(
    st.just({"type": "boolean"}),
    st.lists(NAMES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    NAMES.map(lambda value: {"const": value}),
    st.just({"type": "integer", "minimum": 0, "maximum": 120}),
    st.just({"type": "string", "maxLength": 3}),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(properties=st.dictionaries(NAMES, VALUES, max_size=4), seed=st.integers(0, 1000))
def test_forced_tokens_are_those_without_a_choice(
    texts: JsonConstraint, properties: dict[str, Any], seed: int
) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema |= {"required": list(properties), "additionalProperties": False}
    matcher, single = texts.matcher(schema), texts.matcher(schema)
    choose = random.Random(seed)
    while True:
        forced = matcher.accept_forced()
        for token in forced:
            allowed = list(single.allowed_tokens())
            assert allowed == (ENDS if token in ENDS else [token])
            single.accept(token)
        if forced and forced[-1] in ENDS:
            break
        allowed = list(matcher.allowed_tokens())
        assert allowed == list(single.allowed_tokens())
        token = int(choose.choice(allowed))
        if token in ENDS:
            break
        matcher.accept(token)
        single.accept(token)
