"""Compare importance matrices, and mixed with uniform types, by answers about photographs.

    python -m benchmarks.precision.decoder CHECKPOINT OUT.json --photographs FOLDER
    python -m benchmarks.precision.decoder CHECKPOINT OUT.json --drawings 200

Matrices and sensitivities are measured on the photographs that come with edgevlm, everything reported here on
other images and questions: on a folder of photographs that no calibration uses, or on items of the built-in
test set of `edgevlm eval`, for a model of drawings. The reference is the exact pair: fp32 vision graph and
f16 decoder. Differences are paired over images, with 95 % bootstrap intervals of their mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from edgevlm.evaluation import test_set
from edgevlm.evaluation.report import write_json
from edgevlm.export import answers
from edgevlm.export.calibration import CalibrationImages, find_images
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.dependencies import versions
from edgevlm.export.importance import answer_questions, record_importance
from edgevlm.export.pipeline import build_manifest, write_unquantized, write_vision
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.quantize import Importance, bits_per_weight, quantize
from edgevlm.export.selection import VISION, measure_frontier, write_mixed
from edgevlm.export.sensitivity import AnswerProbe
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import user_message
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.manifest import Manifest
from edgevlm.runtimes import system

QUESTIONS = ("What is this?", "Tell me about this image.", "What is in the foreground?")
MATRIX_TYPES = ("q4_0", "q4_k_m", "q3_k_m", "iq4_xs")
UNIFORM_TYPES = (
    "q2_k",
    "iq3_xxs",
    "q3_k_m",
    "iq4_xs",
    "iq4_nl",
    "q4_0",
    "q4_k_m",
    "q4_1",
    "q5_0",
    "q5_k_m",
    "q6_k",
    "q8_0",
)
RESAMPLES = 10_000


def photographs(manifest: Manifest, folder: Path) -> list[answers.Scene]:
    """Return one question about each photograph of a folder."""
    files = find_images(folder)
    asked = [QUESTIONS[index % len(QUESTIONS)] for index in range(len(files))]
    return [
        make_scene(manifest, path.stem, load_image(path), question)
        for path, question in zip(files, asked, strict=True)
    ]


def drawings(manifest: Manifest, count: int) -> list[answers.Scene]:
    """Return items of the built-in test set that have one image and one turn."""
    per_task = -(-count // len(test_set.TASKS)) * 2
    items = [item for item in test_set.items(per_task) if len(item.images) == len(item.turns) == 1]
    chosen = items[:: max(1, len(items) // count)][:count]
    return [
        make_scene(manifest, item.images[0].name, np.asarray(item.images[0].load()), item.turns[0])
        for item in chosen
    ]


def make_scene(
    manifest: Manifest, name: str, image: NDArray[np.uint8], question: str
) -> answers.Scene:
    """Return a question about an image, which has the fewest tiles that the model allows."""
    processor = ImageProcessor(manifest.image, manifest.vision, manifest.decoder.positions)
    return answers.Scene(
        name, processor.process(image, ImageBudget("low")), [user_message(question, 1)]
    )


def difference(found: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean difference over images, with a 95 % bootstrap interval."""
    change = found - other
    rng = np.random.default_rng(0)
    means = change[rng.integers(0, len(change), (RESAMPLES, len(change)))].mean(axis=1)
    return {"mean": float(change.mean()), "interval": np.quantile(means, (0.025, 0.975)).tolist()}


class Measurement:
    """The files of a checkpoint in a scratch folder, and what was measured of them."""

    def __init__(
        self,
        checkpoint: str,
        make_scenes: Callable[[Manifest], list[answers.Scene]],
        scratch: Path,
    ) -> None:
        self.scratch = scratch
        with quiet_transformers():
            plan = make_plan(Checkpoint.open(checkpoint))
            self.source = write_unquantized(plan, scratch, ["f16"], progress=False)["f16"]
            images = CalibrationImages.open()
            self.vision = write_vision(plan, scratch, ("fp32",), images, progress=False)
            self.manifest = build_manifest(
                plan, Path(checkpoint).name, self.vision, {"f16": self.source}
            )
        self.images = images.load()
        self.scenes = make_scenes(self.manifest)
        self.probe = AnswerProbe(self.manifest, self.vision, self.source, self.scenes)

    def kl(self, decoder: Path | None, vision: str = "fp32") -> NDArray[np.float64]:
        """Return the mean divergence of each photograph."""
        found = self.probe.kl_by_image(vision=vision, decoder=decoder)
        return np.array([part.mean() for part in found])

    def importances(self) -> tuple[dict[str, Importance], dict[str, Any]]:
        """Return no matrix, one from text alone and one from images, and what the latter took."""
        processor = ImageProcessor(
            self.manifest.image, self.manifest.vision, self.manifest.decoder.positions
        )
        images = [processor.process(image, ImageBudget("low")) for image in self.images]
        stored = StoredVision(self.manifest, self.vision["fp32"], images)
        start = time.perf_counter()
        dialogues = answer_questions(self.manifest, stored, self.source, images, progress=False)
        picture = record_importance(self.manifest, stored, self.source, dialogues, progress=False)
        seconds = time.perf_counter() - start
        texts = [dataclasses.replace(dialogue, images=()) for dialogue in dialogues]
        text = record_importance(self.manifest, stored, self.source, texts, progress=False)
        return {"none": {}, "text": text, "images": picture}, {
            "seconds": seconds,
            "dialogues": len(dialogues),
            "image_positions": sum(
                span.length for dialogue in dialogues for span in dialogue.images[0].spans
            ),
            "answer_positions": sum(len(dialogue.answer) for dialogue in dialogues),
        }

    def compare_matrices(self, importances: Mapping[str, Importance]) -> dict[str, Any]:
        """Return the divergence of each type with each matrix, at the same types of all matrices."""
        found: dict[str, Any] = {}
        path = self.scratch / "compared.gguf"
        for file_type in MATRIX_TYPES:
            quantize(self.source, path, file_type, importance=importances["images"])
            types = {
                tensor.name: Type(tensor.tensor_type)
                for tensor in gguf.GGUFReader(path).tensors
                if len(tensor.shape) > 1
            }
            rows: dict[str, NDArray[np.float64]] = {}
            for name, importance in importances.items():
                quantize(self.source, path, file_type, importance=importance, tensor_types=types)
                rows[name] = self.kl(path)
            found[file_type] = {
                "bytes": path.stat().st_size,
                "kl": {name: float(row.mean()) for name, row in rows.items()},
                "images_less_none": difference(rows["images"], rows["none"]),
                "images_less_text": difference(rows["images"], rows["text"]),
            }
            print(file_type, json.dumps(found[file_type]), flush=True)
        path.unlink()
        return found

    def frontier(self, importance: Importance) -> dict[str, Any]:
        """Return size and divergence of uniform types, and of mixed ones of the same sizes."""
        start = time.perf_counter()
        calibration = AnswerProbe(self.manifest, self.vision, self.source)
        frontier = measure_frontier(
            calibration, self.vision, self.source, importance, progress=False
        )
        frontier = frontier.fixed_at(
            VISION, "fp32"
        )  # uniform and mixed differ in the decoder alone
        seconds = time.perf_counter() - start
        path = self.scratch / "uniform.gguf"
        uniform, rows, seen = [], [], set()
        for file_type in UNIFORM_TYPES:
            quantize(self.source, path, file_type, importance=importance)
            types = tuple(tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors)
            if types in seen:  # falls back to the same as another type
                continue
            seen.add(types)
            row = self.kl(path)
            rows.append((path.stat().st_size, row))
            uniform.append({"type": file_type, **self.point(path, "fp32", row)})
            print(json.dumps(uniform[-1]), flush=True)
        path.unlink()
        mixed = []
        fp32 = self.vision["fp32"].stat().st_size
        for size in sorted(size for size, _ in rows):
            chosen = frontier.within_size(size + fp32)
            _, decoder = write_mixed(chosen, self.source, importance)
            found = self.kl(decoder)
            best = min((other for bytes_, other in rows if bytes_ <= size), key=np.mean)
            mixed.append(
                {
                    "budget": size + fp32,
                    **self.point(decoder, "fp32", found),
                    "predicted_kl": sum(choice.kl for choice in chosen.values()),
                    "less_best_uniform": difference(found, best),
                }
            )
            print(json.dumps(mixed[-1]), flush=True)
            decoder.unlink()
        return {"seconds": seconds, "uniform": uniform, "mixed": mixed}

    def point(self, decoder: Path, vision: str, row: NDArray[np.float64]) -> dict[str, Any]:
        """Return size and divergence of a pair."""
        return {
            "vision": vision,
            "decoder_bytes": decoder.stat().st_size,
            "bytes": decoder.stat().st_size + self.vision[vision].stat().st_size,
            "bits_per_weight": bits_per_weight(decoder),
            "kl": float(row.mean()),
            "median_kl": float(np.median(row)),
        }


def main() -> None:
    """Measure, print on the way and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--photographs", type=Path, metavar="FOLDER")
    images.add_argument("--drawings", type=int, metavar="COUNT")
    arguments = parser.parse_args()

    def make_scenes(manifest: Manifest) -> list[answers.Scene]:
        if arguments.photographs:
            return photographs(manifest, arguments.photographs)
        return drawings(manifest, arguments.drawings)

    with tempfile.TemporaryDirectory() as scratch:
        measurement = Measurement(arguments.checkpoint, make_scenes, Path(scratch))
        importances, gathering = measurement.importances()
        result: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cpu": system.cpu_model(),
            "versions": versions(),
            "checkpoint": Path(arguments.checkpoint).name,
            "images": [scene.name for scene in measurement.scenes],
            "positions": sum(len(answer.tokens) for answer in measurement.probe.answers),
            "image_kl": measurement.probe.image_kl,
            "gathering": gathering,
        }
        print(json.dumps(result), flush=True)
        result["matrices"] = measurement.compare_matrices(importances)
        write_json(arguments.out, result)
        result["frontier"] = measurement.frontier(importances["images"])
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
