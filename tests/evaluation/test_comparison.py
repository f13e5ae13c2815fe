"""Tests of references and of the divergence from them, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgevlm import VLM, InputError
from edgevlm.divergence import Divergence, log_probabilities
from edgevlm.evaluation import report
from edgevlm.evaluation.comparison import Compared, compare, divergence_result
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.evaluation.references import (
    BundleReference,
    ReferenceAnswer,
    dialogue,
    open_reference,
)
from edgevlm.evaluation.runner import Answered, Conversation
from tests.conftest import picture
from tests.support.oracle import BUNDLES

SMOLVLM = str(BUNDLES / "smolvlm")


def item(*seeds: int, turns: tuple[str, ...] = ("What is this?",), task: str = "all") -> Item:
    images = tuple(LazyImage(str(seed), lambda seed=seed: picture(seed)) for seed in seeds)  # type: ignore[misc]
    return Item(task, images, turns, ("x",), "exact", task)


ITEMS = [
    item(0),
    item(1, 2, task="two"),
    item(task="none"),
    item(3, turns=("What is this?", "And its color?", "Why?"), task="turns"),
]


NEAR_TIE = 0.05
"""Difference of two logits below which rounding may choose the other token."""


@pytest.fixture(scope="module")
def smolvlm() -> Iterator[VLM]:
    """As many threads as the reference has: llama.cpp adds in another order with another number."""
    with VLM.from_pretrained(SMOLVLM, device="cpu") as vlm:
        yield vlm


@pytest.fixture(scope="module")
def reference() -> Iterator[BundleReference]:
    found = BundleReference(SMOLVLM, None, None)
    yield found
    found.close()


def test_a_bundle_does_not_diverge_from_itself(smolvlm: VLM, reference: BundleReference) -> None:
    compared = compare(smolvlm, reference, ITEMS)
    for one in compared:
        assert one.positions == one.same_start > 0
        assert (one.divergence.kl == 0).all() and one.divergence.same_top.all()
    found = divergence_result(compared)
    assert (found.kl.mean, found.kl.high, found.max_kl) == (0, 0, 0)
    assert found.top1_agreement.mean == found.same_start.mean == 1


def test_logits_are_those_that_answers_come_from(smolvlm: VLM) -> None:
    """The log-probabilities of an answer, which another part of the engine computes."""
    messages = dialogue(Conversation([picture(0)], ("What is this?",)), ())
    answer = smolvlm.generate(messages, max_tokens=9, temperature=0.0, top_logprobs=0)
    logits = smolvlm.logits(messages, answer.token_ids)
    assert logits.shape == (len(answer.token_ids), smolvlm.manifest.decoder.vocabulary_size)
    assert tuple(logits.argmax(-1).tolist()) == answer.token_ids
    ours = log_probabilities(logits)[np.arange(len(logits)), list(answer.token_ids)]
    assert ours == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)


def test_logits_need_a_token(smolvlm: VLM) -> None:
    messages = dialogue(Conversation([], ("What?",)), ())
    with pytest.raises(InputError, match="at least one token id"):
        smolvlm.logits(messages, [])
    with pytest.raises(InputError, match="outside the vocabulary"):
        smolvlm.logits(messages, [10**6, 1])


def test_an_answer_has_its_end_token_and_those_of_earlier_turns(
    smolvlm: VLM, reference: BundleReference
) -> None:
    conversation = Conversation([picture(3)], ("What is this?", "And its color?", "Why?"))
    found = reference.answer(conversation)
    chat = smolvlm.chat()
    images = conversation.images
    for index, turn in enumerate(conversation.turns):
        said = chat.send(turn, images, max_tokens=60, temperature=0.0)
        images = []
        if index < 2:
            assert said.text.strip() == found.earlier[index]
    assert len(found.logits) == len(found.tokens)
    pairs = enumerate(zip(said.token_ids, found.tokens, strict=False))
    other = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    if other is not None:
        # The chat holds the image from its first turn, and rounds in another way than one prompt.
        second, first = np.sort(found.logits[other])[-2:]
        assert other > 10 and first - second < NEAR_TIE
        return
    assert said.text.strip() == found.text
    ended = said.finish_reason == "stop"
    assert len(found.tokens) == len(said.token_ids) + ended


class Fixed:
    """A reference with answers and logits that the test chooses."""

    description = "fixed"

    def __init__(self, tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        self.tokens, self.logits = tokens, logits

    def answer(self, conversation: Conversation) -> ReferenceAnswer:
        return ReferenceAnswer("said", (), self.tokens, self.logits)

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def test_the_divergence_is_that_of_the_definition(smolvlm: VLM) -> None:
    """With probabilities as floats of the softmax, from logits that were asked for apart."""
    tokens = (5, 9, 7)
    messages = dialogue(Conversation([picture(0)], ("What is this?",)), ())
    ours = smolvlm.logits(messages, tokens).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 0.3, ours.shape)
    theirs = ours + noise
    theirs[1, int(ours[1].argmin())] = ours[1].max() + 9  # another most likely token
    (one,) = compare(smolvlm, Fixed(tokens, theirs.astype(np.float32)), [item(0)])
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (theirs, ours))
    assert one.divergence.kl == pytest.approx((p * np.log(p / q)).sum(-1), rel=1e-4)
    same = theirs.argmax(-1) == ours.argmax(-1)
    assert not same[1]
    assert one.divergence.same_top.tolist() == same.tolist()
    assert one.same_start == (1 if same[0] else 0)
    assert one.answer == "said" and one.score() == 0


def test_other_vocabularies_are_refused(smolvlm: VLM) -> None:
    with pytest.raises(InputError, match=r"a vocabulary of .* tokens, the reference one of 7"):
        compare(smolvlm, Fixed((1,), np.zeros((1, 7), np.float32)), [item(0)])
    other = BundleReference("edgevlm-nano", None, None)
    with pytest.raises(InputError, match=r"in the bundle and .* in the reference"):
        compare(smolvlm, other, [item(0)])
    other.close()


def test_the_most_exact_files_are_the_reference(tmp_path: Path) -> None:
    """The largest file; a copy of the bundle that has a small and a large decoder."""
    folder = Path(shutil.copytree(SMOLVLM, tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    files = manifest["decoder"]["files"]
    files["q8_0"] = {**files["f16"], "name": "decoder.small.gguf", "size": 1}
    (folder / "decoder.small.gguf").write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    found = open_reference(str(folder), vision=None, decoder=None)
    assert found.description == "tiny-smolvlm, vision fp32, decoder f16"
    found.close()
    with pytest.raises(InputError, match="no vision graph in 'int8'"):
        open_reference(str(folder), vision="int8", decoder=None)
    shutil.copy(folder / "manifest.json", folder / "config.json")
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="is a checkpoint, which runs in float32"):
        open_reference(str(folder), vision="int8", decoder=None)


def made(task: str, kl: Sequence[float], same: Sequence[bool], start: int) -> Compared:
    one = dataclasses.replace(item(0, task=task), answers=("red",))
    return Compared(one, "red", Divergence(np.array(kl), np.array(same)), start)


def test_the_report_weighs_positions_and_adds_up_tasks() -> None:
    compared = [
        made("a", [0.1, 0.2, 0.3], [True, True, False], 2),
        made("a", [0.0], [True], 1),
        made("b|c", [0.5, 0.5], [False, True], 0),
    ]
    answered = [
        Answered(one.item, said) for one, said in zip(compared, ("red", "x", "x"), strict=True)
    ]
    total = divergence_result(compared)
    assert (total.answers, total.positions, total.max_kl) == (3, 6, 0.5)
    assert total.kl.mean == pytest.approx(1.6 / 6)
    assert total.top1_agreement.mean == pytest.approx(4 / 6)
    assert total.same_start.mean == pytest.approx((2 / 3 + 1 + 0) / 3)
    rows = report.task_results(answered, compared)
    assert [(row.name, row.difference and row.difference.mean) for row in rows] == [
        ("a", -50),
        ("b|c", -100),
    ]
    text = report.markdown(answered, compared)
    assert "| a " in text and "b\\|c" in text
    lines = text.splitlines()
    (head,) = (number for number, line in enumerate(lines) if "KL divergence" in line)
    assert [line.split("|")[1].strip() for line in lines[head + 2 :] if "b\\|c" not in line] == [
        "a",
        "all",
    ]
    assert "0.15 (0" in lines[head + 2]
    assert len({line.replace("\\|", "").count("|") for line in lines[head:]}) == 1
    result = json.loads(json.dumps(report.as_dict(answered, compared)))
    assert [row["divergence"]["positions"] for row in result["tasks"]] == [4, 2]
    assert result["divergence"]["kl"]["mean"] == pytest.approx(1.6 / 6)
    assert result["answers"][0]["kl"] == [0.1, 0.2, 0.3]
    assert result["answers"][0]["same_start"] == 2
    assert result["answers"][1]["reference_said"] == "red"


def test_one_task_needs_no_sum() -> None:
    compared = [made("a", [0.1], [True], 1)] * 2
    text = report.markdown([Answered(one.item, "red") for one in compared], compared)
    assert "| all" not in text


def test_an_image_is_drawn_once_for_both_models(smolvlm: VLM, reference: BundleReference) -> None:
    drawn: list[int] = []

    def draw() -> Image.Image:
        drawn.append(1)
        return picture(0)

    asked = dataclasses.replace(item(), images=(LazyImage("a", draw),))
    done: list[int] = []
    compare(smolvlm, reference, [asked] * 3, progress=done.append)
    assert (len(drawn), done) == (3, [1, 2, 3])
