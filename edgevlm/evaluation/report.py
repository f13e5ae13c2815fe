"""From answers to numbers: shares with intervals, chance, grounding; as Markdown and as JSON.

Covered: a row's share of right answers, what another picture does to it, and its distance to that
of a checkpoint. Not covered: averages over rows, which would weigh skills against each other.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgevlm
from edgevlm.errors import InputError
from edgevlm.evaluation import metrics
from edgevlm.evaluation.dataset import Item, fields_of
from edgevlm.evaluation.runner import Answered
from edgevlm.versions import installed

_Z = 1.959964  # 97.5 % quantile of the normal distribution
_CANDIDATES = 300  # fixed answers that are tried for a family of boxes or lists


@dataclass(frozen=True)
class Share:
    """A share of right answers (0 to 1) with its 95 % interval."""

    share: float
    low: float
    high: float


def wilson(right: float, items: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `right` out of `items`.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22 (1927), 209-212. For partly right answers, scores between
    0 and 1, it is too wide rather than too narrow: their variance is at most that of scores of
    0 and 1 with the same mean.
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
    """The share right if all items of a family get one answer: of its right answers, the best.

    A family counts for no less than the mean of its items' own `chance`. For boxes and lists at
    most the 300 first right answers are tried. In a family of few items this is above true chance.
    """
    families: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        families[item.family, item.judge].append(item)
    right = 0.0
    for (_, judge), family in families.items():
        if judge == "words":
            said = Counter(a for item in family for a in set(map(metrics.normalized, item.answers)))
            fixed = float(max(said.values()))
        else:
            tried = list(dict.fromkeys(item.answers[0] for item in family))[:_CANDIDATES]
            fixed = max(
                sum(metrics.score(judge, answer, item.answers) for item in family)
                for answer in tried
            )
        right += max(fixed, sum(item.chance for item in family))
    return right / len(items)


@dataclass(frozen=True)
class Grounding:
    """What the pictures do for a row's answers, over those of its items that were swapped."""

    items: int
    right: Share
    right_with_other: Share
    right_with_grey: Share
    chance: float
    changed: float
    """Share of answers that are not the same about another picture."""

    @property
    def verdict(self) -> str:
        """ "grounded": above chance with the right picture, and not above it with others."""
        if self.right.low <= self.chance:
            return "not above chance"
        grounded = max(self.right_with_other.low, self.right_with_grey.low) <= self.chance
        return "grounded" if grounded else "not grounded"


@dataclass(frozen=True)
class Row:
    """One line of the report; `checkpoint` is the share that the checkpoint gets right."""

    name: str
    items: int
    right: Share
    checkpoint: Share | None
    grounding: Grounding | None

    @property
    def difference(self) -> float | None:
        """Of the bundle to the checkpoint, in percentage points."""
        return None if self.checkpoint is None else 100 * (self.right.share - self.checkpoint.share)


def _scores(answered: Sequence[Answered]) -> Share:
    return _share([one.score(one.said) for one in answered])


def _grounding(answered: Sequence[Answered]) -> Grounding | None:
    pairs = [(one, one.swapped) for one in answered if one.swapped is not None]
    if not pairs:
        return None
    changed = sum(
        metrics.normalized(one.said) != metrics.normalized(swapped.said) for one, swapped in pairs
    )
    return Grounding(
        items=len(pairs),
        right=_scores([one for one, _ in pairs]),
        right_with_other=_share([one.score(swapped.said) for one, swapped in pairs]),
        right_with_grey=_share([one.score(swapped.said_grey) for one, swapped in pairs]),
        chance=chance([one.item for one, _ in pairs]),
        changed=changed / len(pairs),
    )


def rows(answered: Sequence[Answered], checkpoint: Sequence[Answered] | None = None) -> list[Row]:
    """The rows in the order of the items; `checkpoint` has the same items in the same order."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(answered):
        found[one.item.row].append(index)
    return [
        Row(
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


def markdown(rows: Sequence[Row]) -> str:
    """Two tables and a verdict: what is right, and whether it comes from the picture."""
    compared = any(row.checkpoint for row in rows)
    head = ["row", "items", "right", "95 % interval"]
    lines = []
    for row in rows:
        interval = f"{100 * row.right.low:.1f} to {100 * row.right.high:.1f} %"
        line = [row.name, str(row.items), _percent(row.right.share), interval]
        if row.checkpoint is not None and row.difference is not None:
            line += [_percent(row.checkpoint.share), f"{row.difference:+.1f}"]
        lines.append(line)
    text = _table([*head, *(["checkpoint", "difference, points"] if compared else [])], lines)
    grounded = [(row.name, row.grounding) for row in rows if row.grounding is not None]
    if not grounded:
        return text + "\n\nGrounding is not measured: no row has two items with different pictures."
    text += "\n\n" + _table(
        (
            "row",
            "items",
            "right",
            "with another picture",
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
    text += f"\n\nGrounded: {len(passed)} of {len(grounded)} rows"
    return text + (f"; not: {'; '.join(failed)}." if failed else ".")


def as_dict(
    answered: Sequence[Answered], checkpoint: Sequence[Answered] | None = None
) -> dict[str, Any]:
    """Rows and every answer as JSON has them; shares are from 0 to 1, differences in points."""
    lines = []
    for row in rows(answered, checkpoint):
        line = asdict(row) | {"difference": row.difference}
        if row.grounding is not None:
            line["grounding"]["verdict"] = row.grounding.verdict
        lines.append(line)
    answers = []
    for index, one in enumerate(answered):
        entry = fields_of(one.item) | {"said": one.said, "score": one.score(one.said)}
        if one.swapped is not None:
            entry["other_images"] = [picture.name for picture in one.swapped.pictures]
            entry["said_with_other"] = one.swapped.said
            entry["said_with_grey"] = one.swapped.said_grey
        if checkpoint:
            entry["checkpoint_said"] = checkpoint[index].said
        answers.append(entry)
    return {"rows": lines, "answers": answers}


def versions() -> dict[str, str]:
    """What answers depend on, as far as it is installed: distribution to version."""
    names = ("onnxruntime", "onnxruntime-gpu", "openvino", "llama-cpp-python", "numpy")
    used = (*names, "pillow", "torch", "transformers")
    return {"edgevlm": edgevlm.__version__, "python": platform.python_version()} | installed(used)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write aside and rename, so that the file is whole or as it was.

    Raises:
        InputError: it cannot be written.
    """
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
