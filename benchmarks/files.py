"""Files for benchmarks: a checkpoint of SmolVLM-256M's shape, its bundle, a projector and images."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.mmproj import write_mmproj
from edgevlm.bundle import Bundle
from edgevlm.evaluation.report import versions
from edgevlm.manifest import Manifest
from edgevlm.runtimes import system

THREADS = 2


class Files:
    """Checkpoint, bundle, projector and images in a folder; missing ones are created."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.bundle = folder / "bundle"
        self.projector = folder / "mmproj.f16.gguf"

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            run_python("-m", "tests.support.checkpoints", "smolvlm_256m", str(self.checkpoint))
        if not self.bundle.exists():
            precisions = ["--vision", "fp32,int8", "--decoder", "q8_0,q4_0"]
            run_python(
                "-m",
                "edgevlm",
                "export",
                str(self.checkpoint),
                str(self.bundle),
                "--quick",
                *precisions,
            )
        if not self.projector.exists():
            write_mmproj(self.checkpoint, self.projector)

    @property
    def manifest(self) -> Manifest:
        return Bundle.open(self.bundle).manifest

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        tile_size = self.manifest.image.tile_size
        assert tile_size is not None, "benchmarks compare models with tiles of one size"
        return tile_size

    def decoder(self, name: str) -> Path:
        return self.bundle / f"decoder.{name}.gguf"

    def image(self, seed: int, size: tuple[int, int]) -> Path:
        """Return a PNG file of smooth noise; each seed gives another image."""
        path = self.folder / f"image-{size[0]}x{size[1]}-{seed}.png"
        if not path.exists():
            small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
        return path


def run_python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def environment(rounds: int) -> dict[str, Any]:
    """Return date, CPU, threads, rounds and versions for a result file."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": system.cpu_model(),
        "threads": THREADS,
        "rounds": rounds,
        "versions": versions(),
    }


def parse_arguments(documentation: str | None, rounds: int) -> tuple[Files, int]:
    """Parse the command line of a benchmark and create the files that its folder lacks.

    Args:
        documentation: docstring of the benchmark's module.
        rounds: default number of rounds.

    Returns:
        The files, and the number of rounds.
    """
    parser = argparse.ArgumentParser(description=(documentation or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=rounds)
    options = parser.parse_args()
    files = Files(options.folder)
    files.make()
    return files, options.rounds
