"""Draw size against divergence, with every type: ``python -m benchmarks.precision.plots [FOLDER]``.

FOLDER has the results of `benchmarks.precision.decoder`; without it, those of the documentation. The figure
is written there as ``frontier.png``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parents[1] / "results" / "epyc"
FILES = {
    "edgevlm-nano (trained on drawings)": "decoder-nano.json",
    "SmolLM2-135M behind an untrained connector": "decoder-smollm2.json",
}


def frontier(axes: Axes, result: dict[str, Any], title: str) -> None:
    """Draw the uniform types as points with names, and the mixed types as a line."""
    uniform = result["frontier"]["uniform"]
    mixed = sorted(result["frontier"]["mixed"], key=lambda choice: choice["decoder_bytes"])
    axes.plot(
        [choice["decoder_bytes"] / 1e6 for choice in mixed],
        [choice["kl"] for choice in mixed],
        marker="o",
        color="#36a",
        label="types chosen for each matrix (--budget)",
    )
    axes.scatter(
        [choice["decoder_bytes"] / 1e6 for choice in uniform],
        [choice["kl"] for choice in uniform],
        marker="s",
        color="#c63",
        label="one type for all",
        zorder=3,
    )
    for choice in uniform:
        axes.annotate(
            choice["type"],
            (choice["decoder_bytes"] / 1e6, choice["kl"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_yscale("log")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("decoder, MB")
    axes.set_ylabel("KL from f16, nats")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def main() -> None:
    """Draw one panel for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=RESULTS)
    folder: Path = parser.parse_args().folder
    figure, panels = pyplot.subplots(1, len(FILES), figsize=(11, 4.2), layout="constrained")
    for axes, (title, name) in zip(panels, FILES.items(), strict=True):
        frontier(axes, json.loads((folder / name).read_text(encoding="utf-8")), title)
    figure.savefig(folder / "frontier.png", dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
