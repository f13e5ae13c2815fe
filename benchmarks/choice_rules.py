"""Compare rules for choices of several lengths: ``python -m benchmarks.choice_rules [ITEMS]``.

The built-in model names a drawing among six things, whose names have one to several tokens. Each rule makes
probabilities of the log-probabilities of the choices. The columns are: share of right choices; the same where
the right name has more tokens than the median of its choices, and where it has not; expected calibration
error.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgevlm import VLM
from edgevlm.choice_calibration import scale_logprobs
from edgevlm.evaluation import calibration, test_set
from edgevlm.evaluation.dataset import Item
from edgevlm.evaluation.temperature_scaling import ScoredChoices

TASKS = ("name", "name, style never trained on")
CHOICES = 6
ITEMS = 150


def choices_of(item: Item, names: list[str], rng: np.random.Generator) -> list[str]:
    """Return the right name first, and others after it."""
    others = [name for name in names if name not in item.answers]
    return [item.answers[0], *rng.choice(others, CHOICES - 1, replace=False).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("items", type=int, nargs="?", default=ITEMS)
    count = parser.parse_args().items
    items = [item for item in test_set.items(count) if item.task in TASKS]
    names = sorted({item.answers[0] for item in items})
    rng = np.random.default_rng(0)
    logprobs: dict[str, list[NDArray[np.float64]]] = {}
    longer = []
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        tokenize = vlm._engine._decoder.tokenize
        for item in items:
            choices = choices_of(item, names, rng)
            question = item.turns[-1]
            images = [image.load() for image in item.images]
            scores = np.array([one.logprob for one in vlm.score(images, question, choices)])
            blind = np.array([one.logprob for one in vlm.score(None, question, choices)])
            tokens = np.array([len(tokenize(" " + choice)) + 1 for choice in choices])
            longer.append(tokens[0] > median(tokens))
            for rule, values in {
                "sum": scores,
                "mean per token": scores / tokens,
                "less the sum without image": scores - blind,
            }.items():
                logprobs.setdefault(rule, []).append(scale_logprobs(values, 1.0))
    long = np.array(longer)
    print(f"{len(items)} items, {long.sum()} with a long right name, {CHOICES} choices")
    for rule, rows in logprobs.items():
        found = np.array(rows)
        right = found.argmax(axis=1) == 0
        scored = ScoredChoices(found, np.zeros(len(items), np.int64), np.arange(len(items)))
        error = calibration.calibration_scores(found, scored).calibration_error.mean
        print(
            f"{rule:28} {right.mean():.3f} {right[long].mean():.3f} {right[~long].mean():.3f} {error:.3f}"
        )


if __name__ == "__main__":
    main()
