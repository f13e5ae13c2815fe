"""The language model as ONNX graphs for ONNX Runtime, with weights that are written one after another.

A graph is traced without values. Its weights are read from the checkpoint, and written part by part into a
file beside it. Beside the graphs stand the embedding table and the tokenizer file, which they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers.initialization import no_init_weights

from edgevlm.errors import ExportError
from edgevlm.export.architectures import find_architecture
from edgevlm.export.block_quantization import quantize_rows
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_graph import finish_graph, scales_name, trace
from edgevlm.export.decoder_module import DecoderModule
from edgevlm.export.decoder_tensors import (
    EMBEDDINGS,
    HEAD,
    LAYER_EMBEDDINGS,
    unused_tensors,
    vocabulary_tensors,
)
from edgevlm.export.families import Family
from edgevlm.export.messages import one_line
from edgevlm.export.onnx_file import WeightsFile, weights_path
from edgevlm.export.vision import in_file_order
from edgevlm.export.weights import TensorEntry
from edgevlm.runtimes.system import return_freed_memory

BITS = {"int8": 8, "int4": 4}
"""Bits of the weights of linear layers, in precisions that round them."""
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.125, "int4": 0.625}
"""Bytes of a weight of a linear layer, with its share of a scale."""
PRECISIONS = tuple(BYTES)
"""Precisions of the decoder's graph."""
EXACT = "fp32"
"""The precision that others are compared with."""
VALUES_AT_ONCE = 1 << 22
"""Values of a weight that are converted at once."""


def write_onnx_decoders(
    checkpoint: Checkpoint, family: Family, files: Mapping[str, Path], *, progress: bool = True
) -> None:
    """Write graphs, and the weights of each into `weights_path` beside it.

    Args:
        checkpoint: the checkpoint.
        family: its family.
        files: one of `PRECISIONS` to the file to write.
        progress: show progress bars on stderr.

    Raises:
        ExportError: the language model cannot be a graph, or a value is not finite or outside the range of
            float16.
    """
    traced: dict[torch.dtype, Traced] = {}
    for precision, path in files.items():
        floats = torch.float16 if precision == "fp16" else torch.float32
        if floats not in traced:
            module = build_module(checkpoint, family)
            traced[floats] = Traced(trace(module, floats), dict(module.named_buffers()))
        write_onnx_decoder(checkpoint, family, traced[floats], path, precision, progress=progress)
    return_freed_memory()


@dataclass(frozen=True)
class Traced:
    """A graph that several precisions have in common."""

    graph: onnx.ModelProto
    buffers: Mapping[str, torch.Tensor]
    """Values that are computed, and not read from the checkpoint."""


def write_onnx_decoder(
    checkpoint: Checkpoint,
    family: Family,
    traced: Traced,
    path: Path,
    precision: str,
    *,
    progress: bool,
) -> None:
    """Write one graph; arguments and errors as of `write_onnx_decoders`."""
    bits = BITS.get(precision)
    model, matrices = finish_graph(traced.graph, bits)
    weights = model.graph.initializers
    for name, buffer in traced.buffers.items():
        if name in weights:
            weights[name].const_value = onnx_ir.tensor(buffer.numpy(), name=name)
    sources = find_sources(checkpoint, family)
    names = [name for name, _ in in_file_order(sources) if name in weights]
    with WeightsFile(weights_path(path)) as file:
        for name in tqdm(names, f"decoder {precision}", unit="tensor", disable=not progress):
            tensor, value = checkpoint.read(sources[name].name), weights[name]
            if name not in matrices:
                value.const_value = file.write(value, parts(tensor, value, name))
            elif bits is None:
                value.const_value = file.write(value, parts(tensor.T, value, name))
            else:
                scales: list[NDArray[np.float32]] = []
                value.const_value = file.write(value, blocks(tensor, bits, name, scales))
                beside = weights[scales_name(name)]
                beside.const_value = file.write(beside, iter(scales))
    onnx_ir.save(model, path)


def build_module(checkpoint: Checkpoint, family: Family) -> DecoderModule:
    """Return the module, whose parameters have no values yet.

    Raises:
        ExportError: the language model cannot be a graph, or transformers cannot build it.
    """
    try:
        with no_init_weights():
            return DecoderModule(checkpoint.config, family).eval()
    except ExportError:
        raise
    except Exception as error:  # whatever a configuration makes transformers raise
        raise ExportError(
            f"transformers cannot build the language model of {checkpoint.folder / 'config.json'}: "
            f"{one_line(error)}"
        ) from error


def find_sources(checkpoint: Checkpoint, family: Family) -> dict[str, TensorEntry]:
    """Return the tensors of the language model by the names of the module's parameters.

    Raises:
        ExportError: the embeddings or the output layer are missing.
    """
    canonical = {source: family.canonical_name(source) for source in checkpoint.tensors}
    canonical = {
        source: name for source, name in canonical.items() if name.startswith(("decoder.", "head."))
    }
    architecture = find_architecture(checkpoint.config)
    unused = unused_tensors(architecture, checkpoint.config.get_text_config())
    canonical = {source: name for source, name in canonical.items() if name not in unused}
    embeddings, head = vocabulary_tensors(checkpoint, canonical, architecture)
    sources = {name: checkpoint.tensors[source] for source, name in canonical.items()}
    sources[EMBEDDINGS] = checkpoint.tensors[embeddings]
    sources[HEAD] = checkpoint.tensors[head or embeddings]
    return sources


def check_tensors(checkpoint: Checkpoint, family: Family) -> None:
    """Check that the checkpoint has all tensors of the module, and no other ones.

    Raises:
        ExportError: one is missing, unknown or of another shape, or as of `build_module`.
    """
    module = build_module(checkpoint, family)
    expected = {name: parameter.shape for name, parameter in module.named_parameters()}
    sources = find_sources(checkpoint, family)
    for name, entry in sources.items():
        if name not in expected:
            raise ExportError(
                f"the checkpoint's language model has a tensor {entry.name} that transformers' model of this "
                f"configuration lacks; config.json does not fit the weights"
            )
        if entry.shape != expected[name]:
            raise ExportError(
                f"{entry.name} has shape {list(entry.shape)}, config.json asks for {list(expected[name])}; "
                f"they are not of one checkpoint"
            )
    if missing := sorted(expected.keys() - sources):
        raise ExportError(
            f"the checkpoint lacks {len(missing)} tensors of its language model, such as {missing[0]}; "
            f"fetch the whole checkpoint"
        )


def parts(tensor: torch.Tensor, value: onnx_ir.Value, name: str) -> Iterator[NDArray[np.generic]]:
    """Yield the rows of a tensor, some at a time, in the type of a weight of the graph.

    Raises:
        ExportError: a value is not finite, or outside the range of the type.
    """
    assert value.dtype is not None
    kind = value.dtype.numpy()
    for rows in split_rows(tensor, name):
        if kind == np.float16 and np.abs(rows).max(initial=0) > np.finfo(np.float16).max:
            raise ExportError(
                f"{name} has values beyond float16's range; export with another --decoder"
            )
        yield rows.astype(kind, copy=False)


def blocks(
    tensor: torch.Tensor, bits: int, name: str, scales: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the rounded rows of a matrix, some at a time, and append their scales to `scales`.

    Raises:
        ExportError: a value is not finite.
    """
    for rows in split_rows(tensor, name):
        values, found = quantize_rows(rows, bits)
        scales.append(found)
        yield values


def split_rows(tensor: torch.Tensor, name: str) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of a tensor in float32, as many at a time as take little memory.

    Raises:
        ExportError: a value is not finite.
    """
    step = max(1, VALUES_AT_ONCE * len(tensor) // max(1, tensor.numel()))
    for start in range(0, len(tensor), step):
        rows = tensor[start : start + step].float().contiguous()
        if not torch.isfinite(rows).all():
            raise ExportError(f"{name} has values that are not finite; the checkpoint is damaged")
        yield rows.numpy()


def write_embeddings(
    checkpoint: Checkpoint, family: Family, path: Path, dtype: type[np.floating]
) -> None:
    """Write the embedding table as a ``.npy`` file, in the scale that the bundle says.

    Args:
        checkpoint: the checkpoint.
        family: its family.
        path: the file to write.
        dtype: float16 or float32.

    Raises:
        ExportError: a value is not finite or outside the range of the type.
    """
    scale = build_module(checkpoint, family).table_scale
    entry = find_sources(checkpoint, family)[EMBEDDINGS]
    write_table(checkpoint, entry, scale, path, dtype)


def write_layer_embeddings(
    checkpoint: Checkpoint, family: Family, path: Path, dtype: type[np.floating]
) -> bool:
    """Write the embeddings of the layers themselves as a ``.npy`` file, in transformers' scale.

    The row of padding, which transformers takes for images, is written once more at the end.

    Args:
        checkpoint, family, path, dtype: as of `write_embeddings`.

    Returns:
        False if the layers have no embeddings; nothing is written then.

    Raises:
        ExportError: as of `write_embeddings`.
    """
    entry = find_sources(checkpoint, family).get(LAYER_EMBEDDINGS)
    if entry is None:
        return False
    scale = build_module(checkpoint, family).layer_table_scale
    padding = checkpoint.config.get_text_config().pad_token_id
    write_table(checkpoint, entry, scale, path, dtype, repeated=(padding,))
    return True


def write_table(
    checkpoint: Checkpoint,
    entry: TensorEntry,
    scale: float,
    path: Path,
    dtype: type[np.floating],
    repeated: Sequence[int] = (),
) -> None:
    """Write the rows of a tensor as a ``.npy`` file, part by part.

    Args:
        checkpoint: the checkpoint.
        entry: the tensor, a matrix.
        scale: factor of all values.
        path: the file to write.
        dtype: float16 or float32.
        repeated: rows that are written once more after the last one.

    Raises:
        ExportError: a value is not finite or outside the range of the type.
    """
    tensor = checkpoint.read(entry.name)
    rows, width = entry.shape
    with path.open("wb") as file:
        shape = rows + len(repeated), width
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in (tensor, *(tensor[row : row + 1] for row in repeated)):
            for values in split_rows(part, entry.name):
                with np.errstate(over="ignore"):
                    stored = (values * np.float32(scale)).astype(dtype)
                if not np.isfinite(stored).all():
                    raise ExportError(
                        f"{entry.name} has values beyond float16's range; add fp32 to --decoder, which "
                        f"stores the embeddings in float32"
                    )
                file.write(stored.data)
