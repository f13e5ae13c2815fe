"""Comparison of a bundle's next-token distributions with those of a reference.

The reference answers each item greedily. The bundle gets the same conversation and the same answer, token by
token, so that both give a distribution at each position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.divergence import Divergence, divergence, same_start
from edgevlm.errors import InputError
from edgevlm.evaluation import metrics
from edgevlm.evaluation.dataset import Item
from edgevlm.evaluation.intervals import Mean, bootstrap
from edgevlm.evaluation.references import Reference, dialogue
from edgevlm.evaluation.runner import Conversation, load_images
from edgevlm.vlm import VLM


@dataclass(frozen=True)
class Compared:
    """An item, the answer of the reference, and how far the bundle is from it at each position."""

    item: Item
    answer: str
    """The answer of the reference."""
    divergence: Divergence
    """Over the positions of this answer."""
    same_start: int
    """Tokens before the first that the bundle would answer otherwise; all positions: the same answer."""

    @property
    def positions(self) -> int:
        """The number of positions: the tokens of the answer, with the end token."""
        return len(self.divergence.kl)

    def score(self) -> float:
        """Return the score of the reference's answer, from 0 to 1."""
        return metrics.score(self.item.metric, self.answer, self.item.answers)


@dataclass(frozen=True)
class DivergenceResult:
    """Divergence over the answers to several items, with 95 % intervals."""

    answers: int
    positions: int
    kl: Mean
    """Kullback-Leibler divergence in nats, mean over the positions."""
    max_kl: float
    """Of the worst position."""
    top1_agreement: Mean
    """Share of the positions where both have the same most likely token."""
    same_start: Mean
    """Share of a greedy answer before the first other token, mean over the answers."""


def compare(
    vlm: VLM,
    reference: Reference,
    items: Sequence[Item],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Compared]:
    """Ask the reference all items, and force its answers on the bundle.

    Args:
        vlm: the bundle.
        reference: the reference.
        items: the items to ask.
        progress: called after each item with the number of items that are done.

    Returns:
        The comparisons, in the order of the items.

    Raises:
        InputError: the two models have different vocabularies.
    """
    _check_special_tokens(vlm, reference)
    compared: list[Compared] = []
    for item in items:
        compared.append(_compare(vlm, reference, item))
        progress(len(compared))
    return compared


def _compare(vlm: VLM, reference: Reference, item: Item) -> Compared:
    conversation = Conversation(load_images(item.images), item.turns)
    expected = reference.answer(conversation)
    found = vlm.logits(dialogue(conversation, expected.earlier), expected.tokens)
    if found.shape != expected.logits.shape:
        raise InputError(
            f"the bundle has a vocabulary of {found.shape[1]} tokens, the reference one of "
            f"{expected.logits.shape[1]}; distributions can be compared over the same tokens only"
        )
    # Under forcing, all tokens up to the first other one are those of the bundle's own greedy answer.
    start = same_start(*(tuple(rows.argmax(-1).tolist()) for rows in (expected.logits, found)))
    return Compared(item, expected.text, divergence(expected.logits, found), start)


def _check_special_tokens(vlm: VLM, reference: Reference) -> None:
    """Check that both models give the same ids to the special tokens that both have.

    Raises:
        InputError: they do not, so that their tokens mean different things.
    """
    ours = {token.text: token.id for token in vlm.manifest.prompt.special_tokens}
    for text, token in reference.token_ids(ours).items():
        if ours[text] != token:
            raise InputError(
                f"the token {text!r} is {ours[text]} in the bundle and {token} in the reference; "
                f"distributions can be compared over the same tokens only"
            )


def divergence_result(compared: Sequence[Compared]) -> DivergenceResult:
    """Return the divergence over all positions of several answers, at least one."""
    positions = [one.positions for one in compared]
    return DivergenceResult(
        answers=len(compared),
        positions=sum(positions),
        kl=bootstrap([float(one.divergence.kl.sum()) for one in compared], positions),
        max_kl=max(float(one.divergence.kl.max()) for one in compared),
        top1_agreement=bootstrap(
            [float(np.count_nonzero(one.divergence.same_top)) for one in compared], positions
        ),
        same_start=bootstrap([one.same_start / one.positions for one in compared]),
    )
