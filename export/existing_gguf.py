"""Use a decoder that the user already has as GGUF, after a comparison with the checkpoint.

`edgevlm.export.parity` compares numbers later. This module checks what a few short prompts would not show:
sizes, scalings, limits, vocabulary, and that the file is complete.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import LlamaFileType
from numpy.typing import DTypeLike, NDArray

from edgevlm.errors import ExportError
from edgevlm.export.architectures import Architecture, find_architecture
from edgevlm.export.bounds import decoder_bound
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import hyperparameters, rope_factors
from edgevlm.export.decoder_tensors import gguf_names, gguf_shape
from edgevlm.export.existing_vocabulary import check_tokenization, check_vocabulary
from edgevlm.export.families import Family
from edgevlm.export.messages import one_line
from edgevlm.export.plan import Plan

INSTEAD = "leave out --decoder-gguf, and edgevlm writes the decoder (--decoder q4_k_m)"
"""Advice for a file that is not the language model of the checkpoint."""
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "deepstack_mapping": (),
}
"""Values of further keys that do not change the computation in llama.cpp."""
PERIODS: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "cohere2": 4}
"""llama.cpp's default of ``attention.sliding_window_pattern``: all layers slide but each of this number."""
VOCABULARY_TENSORS = ("token_embd.weight", "output.weight")
"""Tensors with a row for each token."""
REASONS: Mapping[str, str] = {
    "logit_scale": "transformers does not scale the logits of this vision-language model"
}
"""Why a value may differ although the weights are those of the checkpoint."""


class Reader(gguf.GGUFReader):
    """A reader that raises EOFError for lengths of a damaged header that reach beyond the file."""

    def _get(
        self, offset: int, dtype: DTypeLike, count: int = 1, override_order: Any = None
    ) -> NDArray[Any]:
        if isinstance(self.data, np.memmap):  # whose slices take three times as long
            self.data = self.data.view(np.ndarray)  # type: ignore[assignment]
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise EOFError(f"it has {len(self.data):,} bytes, and needs {end:,} or more")
        values: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        return values


@dataclass(frozen=True)
class ExistingDecoder:
    """A GGUF file with the language model of the checkpoint."""

    path: Path
    file_type: str
    """Type in llama.cpp, such as ``q4_k_m`` or ``f16``."""
    texts: int
    """Number of texts whose token ids are those of the checkpoint's tokenizer."""

    def copy(self, folder: Path) -> Path:
        """Copy the file into a bundle and return the path of the copy."""
        copy = folder / f"decoder.{self.file_type}.gguf"
        shutil.copyfile(self.path, copy)
        return copy


def open_existing_decoder(path: Path, plan: Plan) -> ExistingDecoder:
    """Check that a GGUF file is the language model of the checkpoint and tokenizes as the checkpoint does.

    Raises:
        ExportError: the file is not a complete GGUF file, or it holds another model or vocabulary.
    """
    check_file(path)
    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except EOFError as error:
        raise ExportError(f"{path} is cut off: {error}; fetch it again") from error
    except Exception as error:  # gguf's, NumPy's, Python's: no class in common
        raise ExportError(
            f"{path} is not a GGUF file: {one_line(error)}; fetch it again"
        ) from error
    checkpoint = plan.checkpoint
    architecture = find_architecture(checkpoint.config)
    converted = architecture.converted
    if converted and fields.get("general.architecture") == gguf.MODEL_ARCH_NAMES[converted]:
        architecture = replace(architecture, gguf=converted)
    check_kind(path, fields, architecture.gguf_name)
    file_type = find_file_type(path, fields)
    check_hyperparameters(path, fields, hyperparameters(architecture, checkpoint.config))
    check_tensors(path, reader, checkpoint, plan.family, architecture)
    check_vocabulary(path, fields, plan.vocabulary, plan.prompt.chat_template)
    texts = check_tokenization(path, plan.vocabulary, plan.processor.tokenizer)
    return ExistingDecoder(path, file_type, texts)


def check_file(path: Path) -> None:
    """Check what can be seen without the header.

    Raises:
        ExportError: it is a folder, missing, empty, of another format, or big-endian.
    """
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.gguf"))
        choice = f" of it: {', '.join(found)}" if found else ""
        raise ExportError(f"{path} is a folder; give one GGUF file{choice}")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    if head[:4] != b"GGUF":
        begins = f"it begins with {head[:4]!r}" if head else "it is empty"
        raise ExportError(f"{path} is not a GGUF file: {begins}; fetch it again")
    if len(head) == 8 and int.from_bytes(head[4:], "little") & 0xFFFF == 0:
        raise ExportError(
            f"{path} is a big-endian GGUF file; convert it with gguf-convert-endian {path} little"
        )


def check_kind(path: Path, fields: Mapping[str, Any], architecture: str) -> None:
    """Check that a file holds a whole language model of this architecture.

    Raises:
        ExportError: it is a part of a model, or another model.
    """
    count = fields.get("split.count", 1)
    if count != 1 or re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ExportError(
            f"{path} is one of several parts; join them with llama-gguf-split --merge FIRST_PART OUT.gguf "
            f"and give the result"
        )
    found = fields.get("general.architecture")
    kind = fields.get("general.type", "model")
    if kind == "mmproj" or found == "clip":
        raise ExportError(
            f"{path} is a vision part for llama.cpp (mmproj); give the GGUF file of the language model"
        )
    if kind == "adapter":
        raise ExportError(
            f"{path} is an adapter; join it with its model by llama-export-lora and give the result"
        )
    if found != architecture:
        raise ExportError(
            f"{path} holds a model of architecture {found!r}, the checkpoint's language model is "
            f"{architecture!r}; {INSTEAD}"
        )


def find_file_type(path: Path, fields: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the type of most matrices.

    Raises:
        ExportError: the file has no type, or an unknown one.
    """
    number: Any = fields.get("general.file_type")
    try:
        name = LlamaFileType(number).name.lower()
    except ValueError:
        raise ExportError(
            f"{path} has general.file_type {number!r}, a type that gguf does not know; quantize it again, or "
            f"pip install --upgrade gguf"
        ) from None
    name = name.removeprefix("mostly_").removeprefix("all_")
    try:
        decoder_bound(name)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    return name


def check_hyperparameters(
    path: Path, fields: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Compare with the values that edgevlm would write for the checkpoint.

    Raises:
        ExportError: a value would change the computation in llama.cpp; the first one is named.
    """
    architecture = next(iter(expected)).partition(".")[0]
    prefix = f"{architecture}."
    values = {name.removeprefix(prefix): value for name, value in expected.items()}
    found = {
        name.removeprefix(prefix): value
        for name, value in fields.items()
        if name.startswith(prefix)
    }
    heads = found.get("attention.head_count")
    width = found.get("embedding_length")
    head = width // heads if isinstance(heads, int) and isinstance(width, int) and heads else None
    defaults = {  # of llama.cpp, for files without the key
        "vocab_size": values["vocab_size"],  # it counts the tokens, which are compared
        "attention.head_count_kv": heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": found.get("attention.key_length", head),
        "rope.freq_base": 10000.0,
        "rope.freq_base_swa": 10000.0,
        "rope.scaling.finetuned": True,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "attention.sliding_window_pattern": PERIODS.get(architecture),
    }
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if f"{name}_swa" in found:  # of sliding layers
            values.setdefault(f"{name}_swa", values[name])
    for name, value in values.items():
        given = found.get(name, defaults.get(name))
        if name == "attention.sliding_window_pattern":
            given = sliding_layers(given, len(value))
        if not same(given, value):
            raise other(path, prefix + name, given, value)
    for name, given in found.items():
        neutral = NEUTRAL.get(name, ())
        if name not in values and name in NEUTRAL and not any(same(given, one) for one in neutral):
            raise other(path, prefix + name, given, "none")


def sliding_layers(pattern: object, layers: int) -> object:
    """Return which layers slide: a list of bool for a period as llama.cpp reads it, else the pattern."""
    if type(pattern) is not int:
        return pattern
    return [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]


def same(given: object, value: object) -> bool:
    """Return True if two values are equal in 32-bit floats."""
    if isinstance(value, float) and isinstance(given, (int, float)):
        return bool(np.isclose(given, value, rtol=1e-6, atol=0.0))
    return given == value


def other(path: Path, name: str, given: object, value: object) -> ExportError:
    """Return the error for a value that differs."""
    has = "has no" if given is None else "has"
    shown = "" if given is None else f" {given}"
    reason = REASONS.get(name.partition(".")[2], "it is another model")
    return ExportError(
        f"{path} {has} {name}{shown}, the checkpoint's language model has {value}; {reason}: {INSTEAD}"
    )


def check_rows(
    path: Path, name: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None
) -> None:
    """Explain an embedding table or output layer that only lacks rows.

    Raises:
        ExportError: it does.
    """
    if name not in VOCABULARY_TENSORS or found is None or expected is None:
        return
    if found[1:] == expected[1:] and found[0] < expected[0]:
        raise ExportError(
            f"{path} has {found[0]} rows in {name}, the checkpoint {expected[0]}: llama.cpp's converter cuts "
            f"off rows without a token for some models, and edgevlm needs all; {INSTEAD}"
        )


def check_tensors(
    path: Path,
    reader: gguf.GGUFReader,
    checkpoint: Checkpoint,
    family: Family,
    architecture: Architecture,
) -> None:
    """Compare names and shapes of tensors, and the divisors of rotary frequencies.

    Raises:
        ExportError: one differs; the first one is named.
    """
    names = gguf_names(checkpoint, family, architecture)
    expected = {
        target: gguf_shape(checkpoint.tensors[source].shape) for source, target in names.items()
    }
    factors = rope_factors(checkpoint.config.get_text_config())
    if factors:
        expected["rope_freqs.weight"] = (len(factors),)
    found = {
        tensor.name: tuple(reversed([int(side) for side in tensor.shape]))
        for tensor in reader.tensors
    }
    # A copy of tied embeddings as the output layer is allowed; parity compares its numbers.
    optional = {"output.weight"} if architecture.untied else set()
    for name in [*sorted(expected), *sorted(found)]:
        if name not in expected and name in optional:
            continue
        if found.get(name) != expected.get(name):
            check_rows(path, name, found.get(name), expected.get(name))
            shapes = [
                f"in shape {list(side[name])}" if name in side else "not at all"
                for side in (found, expected)
            ]
            raise ExportError(
                f"{path} has the tensor {name} {shapes[0]}, the checkpoint's language model {shapes[1]}; it "
                f"is another model: {INSTEAD}"
            )
    if factors:
        given = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        if not np.allclose(given.data, factors, rtol=1e-4):
            raise ExportError(
                f"{path} has other rope_freqs.weight than the checkpoint's rope_parameters; it is another "
                f"model: {INSTEAD}"
            )
