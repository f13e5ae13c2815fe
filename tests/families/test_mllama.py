"""The KV cache with cross-attention: what stands before an image has seen all images of its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgevlm import VLM, Detail
from edgevlm.errors import InferenceError
from tests.families.case import ROWS, Case, answer, relative_error
from tests.families.row import IMAGE, picture, text

EXACT = 1e-5


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLM]:
    row = next(row for row in ROWS if row.name == "mllama")
    case = Case(row, tmp_path_factory.mktemp("mllama"))
    yield case.vlm
    case.vlm.close()


def ask(vlm: VLM, images: list[Image.Image], question: str = "What is this?") -> Any:
    content = [*[IMAGE] * len(images), text(question)]
    return answer(vlm, [{"role": "user", "content": content}], images)


def forget(vlm: VLM) -> None:
    """Empty the KV cache, and drop all copies of it."""
    vlm._engine._kv_cache.reset()
    vlm._engine._kv_cache._saved.clear()


def logits(vlm: VLM) -> NDArray[np.float32]:
    return vlm._engine._decoder.logits()


PICTURES = [picture(seed, (90, 60 + 40 * seed)) for seed in range(3)]
PROMPTS: list[list[Image.Image]] = [
    [],
    PICTURES[:1],
    PICTURES[:2],
    PICTURES[1::-1],
    PICTURES[2:],
]


def test_prompts_after_prompts_with_other_images(vlm: VLM) -> None:
    """Each answer is that of a model whose KV cache is empty."""
    fresh = []
    for images in PROMPTS:
        forget(vlm)
        fresh.append((ask(vlm, images).token_ids, logits(vlm)))
    for first, second in itertools.permutations(range(len(PROMPTS)), 2):
        ask(vlm, PROMPTS[first])
        found = ask(vlm, PROMPTS[second])
        assert found.token_ids == fresh[second][0]
        assert relative_error(logits(vlm), fresh[second][1]) < EXACT


def test_the_next_question_about_an_image_looks_at_it_again(vlm: VLM) -> None:
    """It neither encodes it nor decodes what is the same."""
    ask(vlm, PICTURES[:2], "Who is there?")
    found = ask(vlm, PICTURES[:2], "Who was there?")
    assert found.stats.encoded_tiles == 0
    assert found.stats.cached_tokens > 5
    again = logits(vlm)
    forget(vlm)
    assert ask(vlm, PICTURES[:2], "Who was there?").token_ids == found.token_ids
    assert relative_error(logits(vlm), again) < EXACT


@pytest.mark.parametrize("method", ["set_images", "decode_tokens"])
def test_after_a_failure(vlm: VLM, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A prompt that failed after its images were set leaves nothing to the next one."""
    forget(vlm)
    expected, before = ask(vlm, []).token_ids, logits(vlm)
    decoder = vlm._engine._decoder
    whole = getattr(decoder, method)

    def fail(*args: Any, **settings: Any) -> None:
        whole(*args, **settings)
        raise InferenceError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(decoder, method, fail)
        with pytest.raises(InferenceError, match="no memory"):
            ask(vlm, PICTURES[:1])
    assert ask(vlm, []).token_ids == expected
    assert relative_error(logits(vlm), before) < EXACT


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
def test_an_image_of_any_detail_is_one_token(vlm: VLM, detail: Detail) -> None:
    found = vlm.ask(PICTURES[0], "What?", max_tokens=2, detail=detail)
    plain = vlm.ask([], "What?", max_tokens=2)
    assert found.stats.prompt_tokens == plain.stats.prompt_tokens + 1
