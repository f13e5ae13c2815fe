"""Report of an evaluation: scores with intervals, chance, grounding and divergence, as Markdown and as JSON.

For each task it gives the share of right answers and the share with wrong images. If there is a reference, it
gives the difference from its share and the divergence of the distributions. Scores have no average over
tasks: that would weigh skills against each other.
"""

from __future__ import annotations

import json
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
from edgevlm.evaluation.comparison import Compared, DivergenceResult, divergence_result
from edgevlm.evaluation.dataset import Item, to_json
from edgevlm.evaluation.intervals import Mean, Share, bootstrap, share_of
from edgevlm.evaluation.runner import Answered
from edgevlm.versions import installed_versions

_CANDIDATES = 300  # fixed answers that are tried for a question type


def chance(items: Sequence[Item]) -> float:
    """Return the score of the best fixed answer: one answer for all items of a question type.

    A question type counts for no less than the mean `chance` of its items. But for the metric "exact", only
    the first 300 right answers are tried. For few items the result is above true chance.
    """
    question_types: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        question_types[item.question_type, item.metric].append(item)
    right = 0.0
    for (_, metric), group in question_types.items():
        if metric == "exact":
            counts = Counter(a for one in group for a in set(map(metrics.normalized, one.answers)))
            fixed = float(max(counts.values()))
        else:
            right_answers = dict.fromkeys(answer for item in group for answer in item.answers)
            tried = list(right_answers)[:_CANDIDATES]
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
    grounding: Grounding | None
    reference: Share | None
    """Share of right answers of the reference; None if there is no reference."""
    difference: Mean | None
    """Bundle minus reference, in percentage points."""
    divergence: DivergenceResult | None
    """Divergence of the bundle from the reference."""


def _scores(answered: Sequence[Answered]) -> Share:
    return share_of([one.score(one.answer) for one in answered])


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
        right_with_other=share_of([one.score(control.answer) for one, control in pairs]),
        right_with_grey=share_of([one.score(control.grey_answer) for one, control in pairs]),
        chance=chance([one.item for one, _ in pairs]),
        changed=changed / len(pairs),
    )


def task_results(
    answered: Sequence[Answered], compared: Sequence[Compared] | None = None
) -> list[TaskResult]:
    """Return the result of each task, in the order of the items.

    Args:
        answered: the bundle's answers.
        compared: the comparisons with a reference over the same items in the same order, or None.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(answered):
        found[one.item.task].append(index)
    results = []
    for name, indices in found.items():
        ours = [answered[i].score(answered[i].answer) for i in indices]
        theirs = [compared[i].score() for i in indices] if compared else []
        points = [100 * (one - other) for one, other in zip(ours, theirs, strict=bool(theirs))]
        results.append(
            TaskResult(
                name=name,
                items=len(indices),
                right=share_of(ours),
                grounding=_grounding([answered[i] for i in indices]),
                reference=share_of(theirs) if theirs else None,
                difference=bootstrap(points) if points else None,
                divergence=divergence_result([compared[i] for i in indices]) if compared else None,
            )
        )
    return results


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are padded to one width."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = [" | ".join(map(str.ljust, line, widths)) for line in cells]
    rule = " | ".join("---".ljust(width, "-") for width in widths)
    return "\n".join(f"| {text} |" for text in (texts[0], rule, *texts[1:]))


def with_interval(mean: Mean, scale: float, digits: str) -> str:
    """Return a mean with its interval, such as ``97.1 (95.2 to 98.8)``."""
    text = f"{scale * mean.mean:{digits}}"
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({scale * mean.low:{digits}} to {scale * mean.high:{digits}})"


def markdown(answered: Sequence[Answered], compared: Sequence[Compared] | None = None) -> str:
    """Return the results as Markdown tables: scores, grounding and, with a reference, divergence."""
    results = task_results(answered, compared)
    parts = [_scores_table(results), _grounding_table(results)]
    if compared:
        parts.append(_divergence_table(results, divergence_result(compared)))
    return "\n\n".join(parts)


def _scores_table(results: Sequence[TaskResult]) -> str:
    head = ["task", "items", "right", "95 % interval"]
    if any(task.reference for task in results):
        head += ["reference", "difference, points (95 % interval)"]
    lines = []
    for task in results:
        interval = f"{100 * task.right.low:.1f} to {100 * task.right.high:.1f} %"
        line = [task.name, str(task.items), _percent(task.right.share), interval]
        if task.reference is not None and task.difference is not None:
            line += [_percent(task.reference.share), with_interval(task.difference, 1, "+.1f")]
        lines.append(line)
    return table(head, lines)


def _grounding_table(results: Sequence[TaskResult]) -> str:
    grounded = [(task.name, task.grounding) for task in results if task.grounding is not None]
    if not grounded:
        return "Grounding is not measured: no task has two items with different images."
    text = table(
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


def _divergence_table(results: Sequence[TaskResult], total: DivergenceResult) -> str:
    """Return the divergence of each task and over all answers."""
    rows = [(task.name, task.divergence) for task in results if task.divergence is not None]
    if len(rows) > 1:
        rows.append(("all", total))
    return table(
        (
            "task",
            "answers",
            "positions",
            "KL divergence, nats (95 % interval)",
            "maximum",
            "top-1 agreement, % (95 % interval)",
            "same start, % (95 % interval)",
        ),
        [
            [
                name,
                str(one.answers),
                str(one.positions),
                with_interval(one.kl, 1, ".2g"),
                f"{one.max_kl:.2g}",
                with_interval(one.top1_agreement, 100, ".1f"),
                with_interval(one.same_start, 100, ".1f"),
            ]
            for name, one in rows
        ],
    )


def as_dict(
    answered: Sequence[Answered], compared: Sequence[Compared] | None = None
) -> dict[str, Any]:
    """Return the results and all answers for JSON.

    Shares are from 0 to 1, differences in percentage points, divergences in nats.
    """
    lines = []
    for task in task_results(answered, compared):
        line = asdict(task)
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
        if compared:
            entry["reference_said"] = compared[index].answer
            entry["kl"] = [float(f"{kl:.3g}") for kl in compared[index].divergence.kl]
            entry["same_top"] = compared[index].divergence.same_top.tolist()
            entry["same_start"] = compared[index].same_start
        answers.append(entry)
    total = asdict(divergence_result(compared)) if compared else None
    return {"tasks": lines, "divergence": total, "answers": answers}


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
