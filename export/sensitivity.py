"""How far the decoder's answers move if one of its matrices gets another type.

Two measurements are multiplied. Each matrix is rounded to each type, which gives the relative error of its
products. And each group of matrices alone is rounded to a small type, which gives the divergence that this
causes in the answers about the scenes of the parity report. Small independent errors add up in the
divergence, and each contributes by its square: so the divergence of a group is shared among its matrices, and
scaled to their other types, by squared relative errors.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tqdm import tqdm

from edgevlm.divergence import divergence
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_decoder
from edgevlm.engine.teacher_forcing import FORCED_TOKENS_PER_CALL
from edgevlm.export.answers import (
    EXACT_VISION,
    ExactAnswer,
    Scene,
    answer_exactly,
    make_scenes,
)
from edgevlm.export.importance import context_length
from edgevlm.export.quantize import Importance, list_tensors, quantize
from edgevlm.export.stored_vision import StoredVision
from edgevlm.manifest import Manifest

TYPES = (
    Type.IQ2_S,
    Type.IQ3_XXS,
    Type.IQ3_S,
    Type.IQ4_XS,
    Type.IQ4_NL,
    Type.Q4_0,
    Type.Q4_K,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_K,
    Type.Q5_1,
    Type.Q6_K,
    Type.Q8_0,
    Type.F16,
)
"""Types of single matrices, by their bits per weight."""
TABLE_TYPES = tuple(kind for kind in TYPES if not kind.name.startswith("IQ2"))
PROBE_TYPES = (Type.IQ3_S, Type.Q4_0)
"""The type to which a group is rounded alone: the first that its rows fit."""
BANDS = 3
"""Groups of layers: matrices of one kind in neighbouring layers are one group."""
TIMED_ROUNDS = 5
SAMPLED_ROWS = 128
"""Rows of each matrix from which its rounding error is computed."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the decoder."""

    name: str
    group: str
    rows: int
    columns: int

    def fits(self, kind: Type) -> bool:
        """Return True if rows are a multiple of the type's block."""
        return self.columns % gguf.GGML_QUANT_SIZES[kind][0] == 0

    @property
    def types(self) -> tuple[Type, ...]:
        """Types that its rows fit and that llama.cpp rounds it to well."""
        return tuple(kind for kind in TYPES if self.fits(kind) and allowed(self, kind))

    def size(self, kind: Type) -> int:
        """Return the bytes in a file, which pads each tensor."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return -(-self.rows * self.columns // block * size // 32) * 32


def list_matrices(path: Path) -> list[Matrix]:
    """Return the matrices of a GGUF file with a decoder."""
    tensors = [tensor for tensor in list_tensors(path) if len(tensor.shape) > 1]
    layers = 1 + max(int(t.name.split(".")[1]) for t in tensors if t.name.startswith("blk."))
    found = []
    for tensor in tensors:
        part = tensor.name.split(".")
        group = part[0]
        if group == "blk":
            group = f"{part[2]}, layers in part {int(part[1]) * BANDS // layers + 1} of {BANDS}"
        columns, rows = tensor.shape
        found.append(Matrix(tensor.name, group, rows, columns))
    return found


def rounding_errors(
    source: Path, matrices: Sequence[Matrix], importance: Importance, scratch: Path
) -> dict[str, dict[Type, float]]:
    """Return the squared relative error of the products of each matrix in each type that its rows fit.

    Args:
        source: the decoder in f16.
        scratch: folder for temporary files.
    """
    sample, rounded = scratch / "sample.gguf", scratch / "rounded.gguf"
    write_sample(source, sample)
    weights = {tensor.name: values(tensor) for tensor in gguf.GGUFReader(sample).tensors}
    errors: dict[str, dict[Type, float]] = {matrix.name: {Type.F16: 0.0} for matrix in matrices}
    for kind in TYPES:
        chosen = {m.name: kind for m in matrices if kind in m.types}
        if kind == Type.F16 or not chosen:
            continue
        others = {m.name: Type.F16 for m in matrices if m.name not in chosen}
        types = {**others, **chosen}
        quantize(sample, rounded, "q8_0", importance=importance, tensor_types=types)
        for tensor in gguf.GGUFReader(rounded).tensors:
            if tensor.name in chosen:
                exact = weights[tensor.name]
                weight = importance.get(tensor.name, np.ones(exact.shape[1], np.float32))
                lost = ((values(tensor) - exact) ** 2 @ weight).sum()
                errors[tensor.name][kind] = float(lost / (exact**2 @ weight).sum())
    sample.unlink()
    rounded.unlink()
    return errors


def allowed(matrix: Matrix, kind: Type) -> bool:
    """Return True if llama.cpp rounds the matrix to this type well."""
    return matrix.group not in ("token_embd", "output") or kind in TABLE_TYPES


def values(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    """Return the values of a matrix, float32 ``[rows, columns]``."""
    found: NDArray[np.float32] = gguf.dequantize(tensor.data, tensor.tensor_type)
    return found.astype(np.float32)


def write_sample(source: Path, path: Path) -> None:
    """Write a GGUF file with evenly spaced rows of each matrix, enough for llama.cpp's quantizer."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if key.startswith(f"{architecture}."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            step = max(1, len(tensor.data) // SAMPLED_ROWS)
            writer.add_tensor(tensor.name, tensor.data[::step].copy(), raw_dtype=tensor.tensor_type)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


class AnswerProbe:
    """Measures how far files move the answers of the exact pair.

    Args:
        vision: files of vision precisions, with fp32.
        decoder: the decoder in f16.
        scenes: what is asked; None: the scenes of the parity report.
    """

    def __init__(
        self,
        manifest: Manifest,
        vision: Mapping[str, Path],
        decoder: Path,
        scenes: Sequence[Scene] | None = None,
    ) -> None:
        self._manifest = manifest
        self._decoder = decoder
        self._scenes = make_scenes(manifest) if scenes is None else scenes
        images = [scene.image for scene in self._scenes]
        self._vision: dict[str, StoredVision] = {}
        self.vision_seconds: dict[str, float] = {}
        """Seconds per image of each precision."""
        for name, path in vision.items():
            start = time.perf_counter()
            self._vision[name] = StoredVision(manifest, path, images)
            self.vision_seconds[name] = (time.perf_counter() - start) / len(images)
        self._context_length = context_length(manifest, images)
        with closing(self._load(EXACT_VISION, decoder)) as engine:
            self.answers: list[ExactAnswer] = [
                answer_exactly(engine, scene) for scene in self._scenes
            ]
            """Greedy answers of the exact pair."""
            others = [*self._scenes[1:], self._scenes[0]]
            found = [
                engine.logits(
                    scene.messages,
                    [other.image],
                    answer.tokens,
                    tokens_per_call=FORCED_TOKENS_PER_CALL,
                )
                for scene, other, answer in zip(self._scenes, others, self.answers, strict=True)
            ]
        self.image_kl = float(np.concatenate(self._divergences(found)).mean())
        """Mean divergence in nats that another image causes."""

    def kl_by_image(
        self, *, vision: str = EXACT_VISION, decoder: Path | None = None
    ) -> list[NDArray[np.float64]]:
        """Return the divergence in nats of a pair from the exact pair, of each image ``[positions]``.

        Args:
            decoder: the GGUF file; None: f16.
        """
        with closing(self._load(vision, decoder or self._decoder)) as engine:
            return self._divergences(
                [
                    engine.logits(
                        scene.messages,
                        [scene.image],
                        answer.tokens,
                        tokens_per_call=FORCED_TOKENS_PER_CALL,
                    )
                    for scene, answer in zip(self._scenes, self.answers, strict=True)
                ]
            )

    def kl(self, *, vision: str = EXACT_VISION, decoder: Path | None = None) -> float:
        """Return the mean over all positions of `kl_by_image`."""
        return float(np.concatenate(self.kl_by_image(vision=vision, decoder=decoder)).mean())

    def _load(self, vision: str, decoder: Path) -> Engine:
        runtime = load_decoder(
            self._manifest, decoder, context_length=self._context_length, try_file=False
        )
        return Engine(self._manifest, self._vision[vision], runtime)

    def _divergences(self, found: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
        return [
            divergence(answer.logits, logits).kl
            for answer, logits in zip(self.answers, found, strict=True)
        ]

    def seconds(self, decoders: Mapping[str, Path]) -> dict[str, float]:
        """Return the seconds from the embeddings of an image to the end of an answer, by decoder.

        The decoders take turns, and the median of `TIMED_ROUNDS` counts.
        """
        scene, answer = self._scenes[0], self.answers[0]
        engines = {name: self._load(EXACT_VISION, path) for name, path in decoders.items()}
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(TIMED_ROUNDS):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.greedy_answer(scene.messages, [scene.image], len(answer.tokens))
                taken[name].append(time.perf_counter() - start)
        for engine in engines.values():
            engine.close()
        return {name: median(times) for name, times in taken.items()}


def decoder_divergences(
    probe: AnswerProbe, source: Path, importance: Importance, scratch: Path, *, progress: bool
) -> dict[Matrix, dict[Type, float]]:
    """Return the divergence in nats that each matrix causes in each type that its rows fit.

    Args:
        source: the decoder in f16.
        scratch: folder for temporary files.
    """
    matrices = list_matrices(source)
    errors = rounding_errors(source, matrices, importance, scratch)
    groups: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in matrices:
        groups[matrix.group].append(matrix)
    found: dict[Matrix, dict[Type, float]] = {}
    path = scratch / "probe.gguf"
    for members in tqdm(groups.values(), "sensitivity", unit="group", disable=not progress):
        kind = next((kind for kind in PROBE_TYPES if all(m.fits(kind) for m in members)), None)
        if kind is None:
            found.update({matrix: {Type.F16: 0.0} for matrix in members})
            continue
        types = {matrix.name: Type.F16 for matrix in matrices}
        types.update({matrix.name: kind for matrix in members})
        quantize(source, path, "q8_0", importance=importance, tensor_types=types)
        scale = probe.kl(decoder=path) / sum(errors[matrix.name][kind] for matrix in members)
        for matrix in members:
            found[matrix] = {kind: scale * error for kind, error in errors[matrix.name].items()}
    path.unlink(missing_ok=True)
    return found
