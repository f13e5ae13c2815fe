"""Calibrated probabilities of choices: a temperature for each vision graph with a decoder.

The log-probabilities of the choices are divided by the temperature before they are normalized. A temperature
above 1 makes a model less sure, and the order of the choices stays. The method is temperature scaling: C. Guo
et al., "On Calibration of Modern Neural Networks", ICML 2017.

`edgevlm calibrate` measures the temperature and stores it in the bundle, in ``choice_calibration.json``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.atomic_file import atomic_write
from edgevlm.errors import BundleError, InputError
from edgevlm.manifest import FileEntry, Manifest
from edgevlm.manifest.parsing import parse, require

FILE_NAME = "choice_calibration.json"
"""File name in the bundle folder."""

SCHEMA_VERSION = 1
"""Version of the format."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Temperatures outside of these say that the questions do not determine one."""


def scale_logprobs(logprobs: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Divide log-probabilities of choices by a temperature and normalize them.

    Args:
        logprobs: natural logarithms, float64 ``[..., choices]``; minus infinity: there is no such choice.
        temperature: a positive number.

    Returns:
        Log-probabilities of the same shape; over each last axis the probabilities add up to 1.
    """
    scaled = logprobs / temperature
    normalized: NDArray[np.float64] = scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)
    return normalized


@dataclass(frozen=True)
class MeasuredTemperature:
    """The temperature of one vision graph with one decoder, and how it was measured."""

    vision: str
    """SHA-256 of the vision graph."""
    decoder: str
    """SHA-256 of the decoder."""
    temperature: float
    questions: int
    """Number of the questions."""
    questions_file: str
    """SHA-256 of the question file."""
    error_before: float
    """Expected calibration error without the temperature, 0 to 1."""
    error_after: float
    """Expected calibration error on held-out questions, 0 to 1."""
    device: str
    """The devices, as `VLM` names them. For information: a temperature is used on each device."""
    date: str
    """Date and time in UTC, ISO 8601."""

    def check(self) -> None:
        """Check the values."""
        for name in ("vision", "decoder", "questions_file"):
            value = getattr(self, name)
            valid = re.fullmatch(r"[0-9a-f]{64}", value) is not None
            require(valid, name, value, "must be 64 lower-case hexadecimal digits")
        require(
            MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE,
            "temperature",
            self.temperature,
            f"must be from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}",
        )
        require(self.questions > 0, "questions", self.questions, "must be positive")
        for name in ("error_before", "error_after"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "must be from 0 to 1")


@dataclass(frozen=True)
class ChoiceCalibration:
    """The content of ``choice_calibration.json``."""

    schema_version: int = SCHEMA_VERSION
    temperatures: tuple[MeasuredTemperature, ...] = ()
    """At most one for each pair of files."""

    def check(self) -> None:
        """Check the values."""
        require(
            self.schema_version == SCHEMA_VERSION,
            "schema_version",
            self.schema_version,
            f"must be {SCHEMA_VERSION}; if a newer edgevlm wrote the file, install it",
        )
        pairs = [(one.vision, one.decoder) for one in self.temperatures]
        require(
            len(set(pairs)) == len(pairs),
            "temperatures",
            pairs,
            "must not name a pair of files twice",
        )

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> ChoiceCalibration:
        """Read and check the file of a bundle.

        Args:
            folder: the bundle.
            manifest: its manifest, which names the files that a temperature may belong to.

        Returns:
            The temperatures; none if there is no such file.

        Raises:
            BundleError: the file is damaged, or it is of files that the bundle does not have.
        """
        path = folder / FILE_NAME
        remedy = f"delete {path} and run 'edgevlm calibrate' again"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read ({error}); {remedy}") from error
        try:
            found: ChoiceCalibration = parse(cls, data, "choice_calibration")
        except BundleError as error:
            raise BundleError(f"{error}; {remedy}") from error
        for kind, files in (
            ("vision", manifest.vision.files),
            ("decoder", manifest.decoder.choices),
        ):
            known = {entry.sha256 for entry in files.values()}
            for one in found.temperatures:
                if getattr(one, kind) not in known:
                    raise BundleError(
                        f"{path} is not of this bundle: it has a temperature for a {kind} file with the "
                        f"SHA-256 {getattr(one, kind)}, which {manifest.name} does not have; {remedy}"
                    )
        return found

    def find(self, vision: FileEntry, decoder: FileEntry) -> MeasuredTemperature | None:
        """Return the temperature of a vision graph with a decoder; None: it was not measured."""
        for one in self.temperatures:
            if (one.vision, one.decoder) == (vision.sha256, decoder.sha256):
                return one
        return None

    def with_temperature(self, measured: MeasuredTemperature) -> ChoiceCalibration:
        """Return a copy with one temperature added; it replaces that of the same files."""
        pair = measured.vision, measured.decoder
        others = [one for one in self.temperatures if (one.vision, one.decoder) != pair]
        return dataclasses.replace(self, temperatures=(*others, measured))

    def save(self, folder: Path) -> None:
        """Write the file of a bundle. A reader sees the old content or the new content, never a part.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = folder / FILE_NAME
        try:
            atomic_write(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error}") from error
