"""Draw the figures of the files in a folder: ``python -m benchmarks.plots FOLDER``.

The files are results.json, growth.json, and those that `benchmarks.memory` wrote, as memory-MODEL.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

PHASE_COLORS = {"prepare": "#9ab", "encode": "#36a", "prefill": "#e93", "wait": "#ccc"}
OUR_COLOR, PEER_COLOR = "#36a", "#bbb"
SIZE = (9.0, 4.0)


def first_tokens(result: dict[str, Any], path: Path) -> None:
    """Draw the time to the first token by phase, beside the peer's whole time."""
    rows = [row for row in result["rows"] if row["work"] in result["phases"]]
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for i, row in enumerate(rows):
        axes.barh(
            i - 0.2, row["theirs"], 0.38, color=PEER_COLOR, label=row["peer"] if not i else None
        )
        start = 0.0
        for phase, seconds in result["phases"][row["work"]].items():
            axes.barh(
                i + 0.2,
                seconds,
                0.38,
                left=start,
                color=PHASE_COLORS[phase],
                label=f"edgevlm: {phase}" if not i else None,
            )
            start += seconds
        axes.text(start, i + 0.2, f" {start:.2g} s", va="center", fontsize=8)
        axes.text(row["theirs"], i - 0.2, f" {row['theirs']:.2g} s", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["work"].replace(": ", ":\n") for row in rows])
    axes.set_xlabel("seconds to the first token")
    axes.margins(x=0.08)
    axes.legend(fontsize=8)
    _finish(axes, path, figure)


def ratios(results: dict[str, Any], path: Path) -> None:
    """Draw the ratio of each row, and the required one."""
    rows = [row for part in results.values() for row in part["rows"] if row["at_least"] is not None]
    figure, axes = pyplot.subplots(figsize=(SIZE[0], 0.35 * len(rows) + 1), layout="constrained")
    for i, row in enumerate(rows):
        axes.barh(i, row["ratio"], color=OUR_COLOR if row["reached"] else "#c55")
        axes.plot([row["at_least"]] * 2, [i - 0.4, i + 0.4], color="black")
        axes.text(row["ratio"], i, f" {row['ratio']:.3g}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 2 * max(row["ratio"] for row in rows))  # room for the figures
    axes.set_yticks(range(len(rows)), [f"{row['work']} / {row['peer']}" for row in rows])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("times as good as the peer; mark: required")
    axes.invert_yaxis()
    _finish(axes, path, figure)


def growth(result: dict[str, Any], path: Path) -> None:
    """Draw cost over tiles, images, context and answer."""
    figure, panels = pyplot.subplots(2, 2, figsize=(SIZE[0], 6.5), layout="constrained")
    (tiles, images), (context, answer) = panels
    for axes, name, counted in ((tiles, "tiles", "tiles"), (images, "pictures", "tiles")):
        costs = result[name]
        counts = [cost[counted] for cost in costs]
        for phase in ("encode", "prefill"):
            axes.plot(
                counts,
                [cost[phase] for cost in costs],
                marker="o",
                color=PHASE_COLORS[phase],
                label=phase,
            )
        axes.plot(
            counts, [cost["first_token"] for cost in costs], color="black", label="first token"
        )
        axes.set_xlabel("tiles of the images" if name == "tiles" else "images of one tile")
        axes.set_ylabel("seconds")
        axes.legend(fontsize=8)
    for i, (name, rates) in enumerate(result["context"].items()):
        lengths = [int(length) for length in rates]
        context.plot(
            lengths,
            [decode for _, decode in rates.values()],
            marker="o",
            color=PEER_COLOR if i else OUR_COLOR,
            label=name,
        )
    context.set_xlabel("positions in the context")
    context.set_ylabel("decoded tokens per second")
    context.set_ylim(bottom=0)
    context.legend(fontsize=8)
    answer.plot(
        [int(length) for length in result["answer"]], list(result["answer"].values()), marker="o"
    )
    answer.set_xlabel("tokens of the answer")
    answer.set_ylabel("seconds")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    _finish(tiles, path, figure)


def memory(files: Sequence[Path], path: Path) -> None:
    """Draw the processor time of a step and the memory of the process over the frames of a stream."""
    figure, panels = pyplot.subplots(
        len(files), 2, figsize=(7.0, 2.0 * len(files)), layout="constrained", squeeze=False
    )
    for file, row in zip(files, panels, strict=True):
        with file.open(encoding="utf-8", newline="") as lines:
            samples = [[float(value) for value in line] for line in [*csv.reader(lines)][1:]]
        counts, _, times, resident = zip(*samples, strict=True)
        for axes, values, label in zip(
            row, (times, resident), ("step, ms of processor", "process, MB"), strict=True
        ):
            axes.plot(counts, values, color=OUR_COLOR)
            axes.set_ylim(bottom=0, top=1.3 * max(values))
            axes.set_xlim(left=0)
            axes.set_xlabel("frames")
            axes.set_ylabel(label)
            axes.set_title(file.stem.removeprefix("memory-"), fontsize=9)
            axes.grid(alpha=0.3)
    _finish(panels[0, 0], path, figure)


def _finish(axes: Axes, path: Path, figure: Any) -> None:
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    compared, grown = folder / "results.json", folder / "growth.json"
    if compared.exists():
        results = json.loads(compared.read_text(encoding="utf-8"))
        first_tokens(results["answers"], folder / "first_tokens.png")
        ratios(results, folder / "ratios.png")
    if grown.exists():
        growth(json.loads(grown.read_text(encoding="utf-8")), folder / "growth.png")
    if samples := sorted(folder.glob("memory-*.csv")):
        memory(samples, folder / "memory.png")


if __name__ == "__main__":
    main()
