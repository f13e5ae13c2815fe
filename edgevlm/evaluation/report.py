"""Report of an evaluation: scores with intervals, chance and grounding, as Markdown and as JSON.

For each task it gives the share of right answers, the share with wrong images, and the difference from
the checkpoint. It gives no average over tasks: that would weigh skills against each other.
"""

from __future__ import annotations

import json
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgevlm
from edgevlm.atomic_file import atomic_write
from edgevlm.errors import InputError
from edgevlm.evaluation import metrics
from edgevlm.evaluation.dataset import Item, to_json
from edgevlm.evaluation.runner import Answered
from edgevlm.versions import installed_versions

_Z = 1.959964  # 97.5 % quantile of the normal distribution
_CANDIDATES = 300  # fixed answers that are tried for a question type with boxes or lists


@dataclass(frozen=True)
class Share:
    """A share of right answers (0 to 1) with its 95 % interval."""

    share: float
    low: float
    high: float


def wilson(right: float, items: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `right` out of `items`.

    The method is that of E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22 (1927), 209-212. For scores between
    0 and 1 the interval is too wide rather than too narrow: their variance is at most that of scores
    of 0 and 1 with the same mean.
    """
    share, square = right / items, _Z * _Z
    middle = (share + square / (2 * items)) / (1 + square / items)
    spread = math.sqrt(share * (1 - share) / items + square / (4 * items * items))
    reach = _Z * spread / (1 + square / items)
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))  # rounding


def _share(scores: Sequence[float]) -> Share:
    right = sum(scores)
    return Share(right / len(scores), *wilson(right, len(scores)))


def chance(items: Sequence[Item]) -> float:
    """Return the score of the best fixed answer: one answer for all items of a question type.

    A question type counts for no less than the mean `chance` of its items. For boxes and lists only
    the first 300 right answers are tried. For few items the result is above true chance.
    """
    question_types: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        question_types[item.question_type, item.metric].append(item)
    right = 0.0
    for (_, metric), group in question_types.items():
        if metric == "words":
            counts = Counter(a for one in group for a in set(map(metrics.normalized, one.answers)))
            fixed = float(max(counts.values()))
        else:
            tried = list(dict.fromkeys(item.answers[0] for item in group))[:_CANDIDATES]
            fixed = max(
                sum(metrics.score(metric, answer, item.answers) for item in group)
                for answer in tried
            )
        right += max(fixed, sum(item.chance for item in group))
    return right / len(items)


@dataclass(frozen=True)
class Grounding:
    """Shares of right answers with the right images and with wrong ones.

    They are over the items of a task that were also asked about wrong images.
    """

    items: int
    right: Share
    right_with_other: Share
    """With the images of another item."""
    right_with_grey: Share
    chance: float
    changed: float
    """Share of the answers that differ when the images are those of another item, from 0 to 1."""

    @property
    def verdict(self) -> str:
        """Name of the result: "grounded", "not grounded" or "not above chance".

        Grounded means: above chance with the right images, and not above chance with wrong ones.
        """
        if self.right.low <= self.chance:
            return "not above chance"
        grounded = max(self.right_with_other.low, self.right_with_grey.low) <= self.chance
        return "grounded" if grounded else "not grounded"


@dataclass(frozen=True)
class TaskResult:
    """Result of one task: one line of the report."""

    name: str
    items: int
    right: Share
    checkpoint: Share | None
    """Share of right answers of the checkpoint; None if it was not asked."""
    grounding: Grounding | None

    @property
    def difference(self) -> float | None:
        """Bundle minus checkpoint, in percentage points; None if the checkpoint was not asked."""
        return None if self.checkpoint is None else 100 * (self.right.share - self.checkpoint.share)


def _scores(answered: Sequence[Answered]) -> Share:
    return _share([one.score(one.answer) for one in answered])


def _grounding(answered: Sequence[Answered]) -> Grounding | None:
    pairs = [(one, one.control) for one in answered if one.control is not None]
    if not pairs:
        return None
    changed = sum(
        metrics.normalized(one.answer) != metrics.normalized(control.answer)
        for one, control in pairs
    )
    return Grounding(
        items=len(pairs),
        right=_scores([one for one, _ in pairs]),
        right_with_other=_share([one.score(control.answer) for one, control in pairs]),
        right_with_grey=_share([one.score(control.grey_answer) for one, control in pairs]),
        chance=chance([one.item for one, _ in pairs]),
        changed=changed / len(pairs),
    )


def task_results(
    answered: Sequence[Answered], checkpoint: Sequence[Answered] | None = None
) -> list[TaskResult]:
    """Return the result of each task, in the order of the items.

    Args:
        answered: the bundle's answers.
        checkpoint: the checkpoint's answers to the same items in the same order, or None.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(answered):
        found[one.item.task].append(index)
    return [
        TaskResult(
            name=name,
            items=len(indices),
            right=_scores([answered[i] for i in indices]),
            checkpoint=_scores([checkpoint[i] for i in indices]) if checkpoint else None,
            grounding=_grounding([answered[i] for i in indices]),
        )
        for name, indices in found.items()
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = [" | ".join(map(str.ljust, line, widths)) for line in cells]
    rule = " | ".join("---".ljust(width, "-") for width in widths)
    return "\n".join(f"| {text} |" for text in (texts[0], rule, *texts[1:]))


def markdown(results: Sequence[TaskResult]) -> str:
    """Return the results as two Markdown tables, scores and grounding, and a summary."""
    compared = any(task.checkpoint for task in results)
    head = ["task", "items", "right", "95 % interval"]
    lines = []
    for task in results:
        interval = f"{100 * task.right.low:.1f} to {100 * task.right.high:.1f} %"
        line = [task.name, str(task.items), _percent(task.right.share), interval]
        if task.checkpoint is not None and task.difference is not None:
            line += [_percent(task.checkpoint.share), f"{task.difference:+.1f}"]
        lines.append(line)
    text = _table([*head, *(["checkpoint", "difference, points"] if compared else [])], lines)
    grounded = [(task.name, task.grounding) for task in results if task.grounding is not None]
    if not grounded:
        return text + "\n\nGrounding is not measured: no task has two items with different images."
    text += "\n\n" + _table(
        (
            "task",
            "items",
            "right",
            "with another image",
            "with grey",
            "chance",
            "changed",
            "verdict",
        ),
        [
            [
                name,
                str(one.items),
                _percent(one.right.share),
                _percent(one.right_with_other.share),
                _percent(one.right_with_grey.share),
                _percent(one.chance),
                _percent(one.changed),
                one.verdict,
            ]
            for name, one in grounded
        ],
    )
    passed = [name for name, one in grounded if one.verdict == "grounded"]
    failed = [name for name, one in grounded if one.verdict != "grounded"]
    text += f"\n\nGrounded: {len(passed)} of {len(grounded)} tasks"
    return text + (f"; not: {'; '.join(failed)}." if failed else ".")


def as_dict(
    answered: Sequence[Answered], checkpoint: Sequence[Answered] | None = None
) -> dict[str, Any]:
    """Return the results and all answers for JSON.

    Shares are from 0 to 1, differences in percentage points.
    """
    lines = []
    for task in task_results(answered, checkpoint):
        line = asdict(task) | {"difference": task.difference}
        if task.grounding is not None:
            line["grounding"]["verdict"] = task.grounding.verdict
        lines.append(line)
    answers = []
    for index, one in enumerate(answered):
        entry = to_json(one.item) | {"said": one.answer, "score": one.score(one.answer)}
        if one.control is not None:
            entry["other_images"] = [image.name for image in one.control.images]
            entry["said_with_other"] = one.control.answer
            entry["said_with_grey"] = one.control.grey_answer
        if checkpoint:
            entry["checkpoint_said"] = checkpoint[index].answer
        answers.append(entry)
    return {"rows": lines, "answers": answers}


def versions() -> dict[str, str]:
    """Return the versions of the installed distributions on which answers depend, by name."""
    names = ("onnxruntime", "onnxruntime-gpu", "openvino", "llama-cpp-python", "numpy")
    used = (*names, "pillow", "torch", "transformers")
    return {
        "edgevlm": edgevlm.__version__,
        "python": platform.python_version(),
    } | installed_versions(used)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a JSON file atomically: after a failure the old file is unchanged.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        atomic_write(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
