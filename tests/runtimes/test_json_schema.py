"""Answers that follow a JSON schema, and the probabilities of their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm import VLM, InputError
from edgevlm.engine.engine import Engine
from edgevlm.inputs.images import load_image

SCENE = Path(__file__).resolve().parents[2] / "examples" / "scene.png"
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        yield vlm


NAMES = st.text('abcdé_ "\\\n', min_size=1, max_size=4)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-1000, 1000),
        st.integers(0, 50),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(NAMES, min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, st.one_of(NAMES, st.integers(), st.booleans())),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5)),
)


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, most: {"type": "array", "items": items, "maxItems": most},
        inner,
        st.integers(0, 3),
    )
    objects = st.builds(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
        st.dictionaries(NAMES, inner, max_size=3),
    )
    return arrays | objects | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)


SCHEMAS = st.recursive(LEAVES, _nested, max_leaves=4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_answers_keep_to_their_schema(vlm: VLM, schema: dict[str, Any], seed: int) -> None:
    answer = vlm.ask(
        SCENE, QUESTION, json_schema=schema, temperature=2.0, top_p=1.0, seed=seed, max_tokens=200
    )
    if answer.finish_reason == "stop":
        jsonschema.validate(json.loads(answer.text), schema)
    else:
        assert len(answer.token_ids) == 200


def test_a_schema_lets_the_model_choose(vlm: VLM) -> None:
    colors = {"type": "object", "properties": {"color": {"enum": ["red", "green", "blue"]}}}
    schema = colors | {"required": ["color"], "additionalProperties": False}
    square = SCENE.with_name("square.png")
    answer = vlm.ask(square, "What color is it?", json_schema={"enum": ["red", "green", "blue"]})
    assert json.loads(answer.text) in ("red", "green", "blue")
    assert set(json.loads(vlm.ask(square, QUESTION, json_schema=schema).text)) == {"color"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "https://example.org/schema.json"},
        {"not": {}},
        {"type": "string", "pattern": "(?=a)b"},
        {"description": "x" * 100_000},
        {"enum": [float("nan")]},
        {"enum": [object()]},
        ["no mapping"],
    ],
)
def test_schema_that_cannot_be_kept_to(vlm: VLM, schema: Any) -> None:
    with pytest.raises(InputError, match="json_schema"):
        vlm.stream(SCENE, QUESTION, json_schema=schema)
    assert vlm.ask(SCENE, QUESTION, max_tokens=3).text


def engine_of(vlm: VLM) -> Engine:
    return vlm._engine


def test_logprobs_are_those_of_the_logits(vlm: VLM) -> None:
    answer = vlm.ask(SCENE, QUESTION, top_logprobs=5)
    assert answer.text == vlm.ask(SCENE, QUESTION).text
    engine = engine_of(vlm)
    image = engine.process_image(load_image(SCENE))
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    logits = engine.logits([message], [image], answer.token_ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert [token.token_id for token in answer.logprobs] == list(answer.token_ids)
    for token, row in zip(answer.logprobs, expected, strict=True):
        ids = np.argsort(-row)[:5]
        assert [top.token_id for top in token.top] == ids.tolist()
        # the prompt's batches differ, and with them the last digits
        np.testing.assert_allclose([top.logprob for top in token.top], row[ids], atol=0.02)
        assert token.logprob == token.top[0].logprob
    assert b"".join(token.piece for token in answer.logprobs).decode().strip() == answer.text


def test_logprobs_do_not_depend_on_temperature(vlm: VLM) -> None:
    for temperature in (0.0, 1.5):
        answer = vlm.ask(SCENE, QUESTION, top_logprobs=0, temperature=temperature, max_tokens=1)
        (token,) = answer.logprobs
        assert token.top == () and token.logprob <= 0
    with pytest.raises(InputError, match="top_logprobs"):
        vlm.ask(SCENE, QUESTION, top_logprobs=21)
    assert vlm.ask(SCENE, QUESTION).logprobs == ()
