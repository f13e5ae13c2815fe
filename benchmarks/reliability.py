"""Are the probabilities of choices right, before and after calibration? Measure and draw it.

    python -m benchmarks.reliability FOLDER [--items N]

The built-in model scores the choices of the built-in test set: on sharp images, and on the same images out of
focus. For each, one temperature is fitted, as `edgevlm calibrate` does it. FOLDER gets ``reliability.json``
and the figure ``reliability.png``. Printed is also what the temperature of the sharp images does to the
others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from PIL import Image, ImageFilter

from edgevlm import VLM
from edgevlm.choice_calibration import scale_logprobs
from edgevlm.cli.progress import print_progress
from edgevlm.evaluation import calibration, calibration_report, test_set
from edgevlm.evaluation.calibration import CalibrationResult
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.evaluation.intervals import Mean
from edgevlm.evaluation.report import versions, with_interval
from edgevlm.runtimes import system

ITEMS = 120
BLUR = 0.02
"""Standard deviation of the blur, as a share of the shorter side of the image."""
MIN_SHOWN = 10
"""Bins of fewer questions are in the tables, but not in the figure."""
BEFORE_COLOR, AFTER_COLOR = "#c55", "#36a"


def sharp(image: Image.Image) -> Image.Image:
    return image


def out_of_focus(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


CAMERAS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sharp": sharp,
    "out of focus": out_of_focus,
}


def seen_by(item: Item, camera: Callable[[Image.Image], Image.Image]) -> Item:
    """Return an item whose images went through a camera."""

    def load(image: LazyImage) -> Image.Image:
        return camera(image.load())

    images = tuple(LazyImage(image.name, partial(load, image)) for image in item.images)
    return replace(item, images=images)


def table(measured: Mapping[str, Any]) -> str:
    """Return the table of the documents; `measured` is the content of reliability.json."""
    lines = [
        "| images | right | temperature | | calibration error | negative log-likelihood | Brier score |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in measured["cameras"].items():
        for when in ("before", "after"):
            scores = [
                one[when][key] for key in ("calibration_error", "negative_log_likelihood", "brier")
            ]
            cells = [with_interval(Mean(**score), 1, ".3f") for score in scores]
            temperature = f"{one['temperature']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            first = (
                [name, f"{100 * one['right']:.1f} %", temperature] if when == "before" else [""] * 3
            )
            lines.append("| " + " | ".join([*first, when, *cells]) + " |")
    return "\n".join(lines)


def draw(results: Mapping[str, CalibrationResult], path: Path) -> None:
    """Draw a reliability diagram for each camera; the area of a dot is the number of questions."""
    figure, panels = pyplot.subplots(
        1, len(results), figsize=(4.2 * len(results), 4.4), layout="constrained", squeeze=False
    )
    for axes, (name, result) in zip(panels[0], results.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#999", linewidth=1, label="perfect")
        for scores, color, label in (
            (result.before, BEFORE_COLOR, "temperature 1"),
            (result.after, AFTER_COLOR, f"temperature {result.temperature:.2f}"),
        ):
            shown = [one for one in scores.bins if one.questions >= MIN_SHOWN]
            confidence = [one.confidence for one in shown]
            right = [one.right for one in shown]
            areas = [4 + 400 * one.questions / result.questions for one in shown]
            axes.plot(confidence, right, color=color, linewidth=1, alpha=0.6)
            error = scores.calibration_error.mean
            axes.scatter(
                confidence,
                right,
                areas,
                color=color,
                alpha=0.7,
                label=f"{label}, error {error:.3f}",
            )
        axes.set_title(f"{name} ({100 * result.right:.0f} % right)", fontsize=10)
        axes.set_xlabel("mean confidence")
        axes.set_ylabel("share of right choices")
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
        legend = axes.legend(fontsize=8, loc="upper left")
        for handle in legend.legend_handles[1:]:
            handle.set_sizes([30])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(64)
    small.save(path, optimize=True)  # a third of the size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=ITEMS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    items = [item for item in test_set.items(arguments.items) if item.choices]
    results = {}
    sharp_temperature = 1.0
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        for name, camera in CAMERAS.items():
            seen = [seen_by(item, camera) for item in items]
            scored = calibration.score_choices(vlm, seen, print_progress(name, len(seen)))
            results[name] = calibration.calibrate(scored)
            print(f"\n{name}: {calibration_report.markdown(results[name])}", flush=True)
            if camera is sharp:
                sharp_temperature = results[name].temperature
                continue
            scaled = scale_logprobs(scored.logprobs, sharp_temperature)
            error = calibration.calibration_scores(scaled, scored).calibration_error
            print(
                f"\nexpected calibration error with the temperature {sharp_temperature:.2f} of sharp images: "
                f"{with_interval(error, 1, '.3f')}"
            )
    about: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": system.cpu_model(),
        "versions": versions(),
        "items": arguments.items,
        "blur": BLUR,
        "cameras": {name: calibration_report.as_dict(one) for name, one in results.items()},
    }
    text = json.dumps(about, indent=1) + "\n"
    (arguments.folder / "reliability.json").write_text(text, encoding="utf-8")
    draw(results, arguments.folder / "reliability.png")


if __name__ == "__main__":
    main()
