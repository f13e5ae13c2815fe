"""The language model as an ONNX graph for ONNX Runtime, its weights written one after another.

`edgevlm.export.decoder_module` is traced without values. The graph is written alone; its weights are read
from the checkpoint and written part by part into a file beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from tqdm import tqdm
from transformers.initialization import no_init_weights

from edgevlm.errors import ExportError
from edgevlm.export.architectures import find_architecture
from edgevlm.export.block_quantization import BLOCK_LENGTH, quantize_rows
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_module import TRANSLATIONS, DecoderModule
from edgevlm.export.decoder_tensors import EMBEDDINGS, HEAD, vocabulary_tensors
from edgevlm.export.families import Family
from edgevlm.export.messages import one_line
from edgevlm.export.onnx_file import WeightsFile
from edgevlm.export.vision import OPSET, in_file_order, quiet, without_values
from edgevlm.export.weights import TensorEntry
from edgevlm.runtimes.system import return_freed_memory

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""Precisions of the decoder's graph."""
BITS = {"int8": 8, "int4": 4}
"""Bits of the weights of matrix products, in precisions that round them."""
DOMAIN = "com.microsoft"
"""Operators of ONNX Runtime."""
ACCURACY_LEVEL = 4
"""ONNX Runtime rounds activations to int8, with a scale for each block, as llama.cpp does."""
VALUES_AT_ONCE = 1 << 22
"""Values of a weight that are converted at once."""

CACHES = ("keys", "values")
"""What a layer keeps, in the names of inputs and outputs."""
EXAMPLE_ENTRIES, EXAMPLE_CELLS, EXAMPLE_WANTED = 3, 8, 2
"""Sizes with which the module is traced; all of them may differ when the graph runs."""


def write_onnx_decoder(
    checkpoint: Checkpoint, family: Family, path: Path, precision: str, *, progress: bool = True
) -> None:
    """Write the graph to `path`, and its weights into `weights_path` beside it.

    Args:
        checkpoint: the checkpoint.
        family: its family.
        path: the file to write.
        precision: one of `PRECISIONS`.
        progress: show a progress bar on stderr.

    Raises:
        ExportError: the language model cannot be a graph, or a value is not finite or outside the range of
            float16.
    """
    module = build_module(checkpoint, family)
    model = trace(module, torch.float16 if precision == "fp16" else torch.float32)
    bits = BITS.get(precision)
    matrices = replace_products(model.graph, bits)
    fuse_norms(model.graph)
    fix_shapes(model.graph)
    RemoveUnusedNodesPass()(model)
    # Each node carries the source lines that it came from, with the paths of the exporting machine.
    ClearMetadataAndDocStringPass()(model)
    if bits is not None or model.opset_imports.get(DOMAIN):
        model.graph.opset_imports[DOMAIN] = 1
    weights = model.graph.initializers
    for name, buffer in module.named_buffers():
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
    del model, module
    return_freed_memory()


def weights_path(path: Path) -> Path:
    """Return the file of the weights of a graph."""
    return path.with_name(f"{path.name}.data")


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


def trace(module: DecoderModule, floats: torch.dtype) -> onnx_ir.Model:
    """Return the graph of a module, whose weights have no values.

    Args:
        module: the module; its parameters get the type `floats`.
        floats: type of the weights, masks and caches.
    """
    layout = module.layout
    without_values(module, floats)
    n, cells, free = EXAMPLE_ENTRIES, EXAMPLE_CELLS, torch.export.Dim.DYNAMIC
    count = len(layout.caches)
    arguments = {
        "embeddings": torch.zeros(n, layout.width),
        "positions": torch.zeros((3, n) if layout.grid else (n,), dtype=torch.int64),
        "masks": [torch.zeros(n, cells, dtype=floats) for _ in layout.masks],
        "cells": torch.arange(n),
        "wanted": torch.arange(EXAMPLE_WANTED),
        "past": [
            torch.zeros(heads, cells, size, dtype=floats)
            for heads, size in layout.caches
            for _ in CACHES
        ],
    }
    dynamic = {
        "embeddings": {0: free},
        "positions": {1 if layout.grid else 0: free},
        "masks": [{0: free, 1: free} for _ in layout.masks],
        "cells": {0: free},
        "wanted": {0: free},
        "past": [{1: free}] * (2 * count),
    }
    caches = [f"{kind}.{layer}" for layer in range(count) for kind in CACHES]
    with quiet():
        program = torch.onnx.export(
            module,
            (),
            kwargs=arguments,
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=dict(TRANSLATIONS),
            input_names=["embeddings", "positions", *layout.masks, "cells", "wanted"]
            + [f"past_{name}" for name in caches],
            output_names=["logits", *caches],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    for value in model.graph.initializers.values():
        value.const_value = None
    name_axes(model.graph)
    return model


def name_axes(graph: onnx_ir.Graph) -> None:
    """Name the dynamic axes of inputs and outputs."""
    axes = {"embeddings": ("n", 1), "cells": ("n",), "wanted": ("m",), "logits": ("m", 1)}
    axes |= dict.fromkeys(("mask", "window_mask"), ("n", "cells"))
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None and value.name is not None
        named: tuple[str | int, ...] = axes.get(value.name, ("heads", "cells", "size"))
        if value.name == "positions":
            named = ("axes", "n")[-value.shape.rank() :]
        value.shape = onnx_ir.Shape(
            length if isinstance(length, int) else name
            for length, name in zip(value.shape, named, strict=True)
        )


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
    embeddings, head = vocabulary_tensors(checkpoint, canonical, architecture)
    sources = {name: checkpoint.tensors[source] for source, name in canonical.items()}
    sources[EMBEDDINGS] = checkpoint.tensors[embeddings]
    sources[HEAD] = checkpoint.tensors[head or embeddings]
    return sources


def scales_name(name: str) -> str:
    """Return the name of the scales of a rounded weight."""
    return f"{name}.scales"


def replace_products(graph: onnx_ir.Graph, bits: int | None) -> set[str]:
    """Let products read their weights as they are stored, instead of a transpose of the checkpoint's.

    Args:
        graph: its linear layers become products of a weight ``[in, out]``, or of rounded blocks.
        bits: bits of the rounded weights; None: they stay floats.

    Returns:
        The names of the weights of all linear layers.
    """
    found = set()
    for node in list(graph):
        factor = node.inputs[1] if node.op_type == "MatMul" else None
        transpose = factor.producer() if factor is not None else None
        weight = transpose.inputs[0] if transpose and transpose.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer():
            continue
        assert weight.name is not None and weight.shape is not None
        outputs, inputs = (int(length) for length in weight.shape.numpy())
        found.add(weight.name)
        if bits is None:
            weight.shape = onnx_ir.Shape([inputs, outputs])
            node.replace_input_with(1, weight)
            continue
        count = -(-inputs // BLOCK_LENGTH)
        weight.shape = onnx_ir.Shape([outputs, count, BLOCK_LENGTH * bits // 8])
        weight.type = onnx_ir.TensorType(onnx_ir.DataType.UINT8)
        scales = onnx_ir.Value(
            name=scales_name(weight.name),
            shape=onnx_ir.Shape([outputs, count]),
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
        )
        graph.initializers.add(scales)
        product = onnx_ir.node(
            "MatMulNBits",
            [node.inputs[0], weight, scales],
            domain=DOMAIN,
            attributes={
                "K": inputs,
                "N": outputs,
                "bits": bits,
                "block_size": BLOCK_LENGTH,
                "accuracy_level": ACCURACY_LEVEL,
            },
        )
        put_in_place(graph, node, product)
    return found


def put_in_place(graph: onnx_ir.Graph, old: onnx_ir.Node, new: onnx_ir.Node) -> None:
    """Replace the last of some nodes, `old`, by one with the same result."""
    before, after = old.outputs[0], new.outputs[0]
    name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(old, new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name


def fuse_norms(graph: onnx_ir.Graph) -> None:
    """Replace the nodes of each RMS norm by one of ONNX Runtime's, which it does not find by itself here."""
    for node in list(graph):
        if node.op_type == "Pow" and node.graph is graph:
            fuse_norm(graph, node)


def fuse_norm(graph: onnx_ir.Graph, square: onnx_ir.Node) -> None:
    """Replace an RMS norm that begins with this square, if its nodes are those that PyTorch writes."""
    chain = [square]
    for kind in ("ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul"):
        following = only_user(chain[-1].outputs[0])
        if following is None or following.op_type != kind:
            return
        chain.append(following)
    values, epsilon, scaled = square.inputs[0], chain[2].inputs[1], chain[-1]
    if values not in scaled.inputs or values is None or epsilon is None:
        return
    number = onnx_ir.convenience.get_const_tensor(epsilon)
    last = only_user(scaled.outputs[0])
    cast = last if last is not None and last.op_type == "Cast" else None
    if cast is not None:
        last = only_user(cast.outputs[0])
    if number is None or last is None or last.op_type != "Mul":
        return
    normed = cast.outputs[0] if cast is not None else scaled.outputs[0]
    weight = last.inputs[1 - last.inputs.index(normed)]
    if weight is None or weight.shape is None or weight.shape.rank() != 1:
        return
    source = values
    if cast is not None:  # the node computes in float32 by itself
        before = values.producer()
        if before is None or before.op_type != "Cast" or before.inputs[0] is None:
            return
        source = before.inputs[0]
    fused = onnx_ir.node(
        "SimplifiedLayerNormalization",
        [source, weight],
        attributes={"axis": -1, "epsilon": float(number.numpy()), "stash_type": 1},
    )
    put_in_place(graph, last, fused)


def only_user(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """Return the only node that takes a value; None if there are more or it is a result of the graph."""
    users = value.consumers()
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def fix_shapes(graph: onnx_ir.Graph) -> None:
    """Give each ``Reshape`` with one axis of unknown length a constant shape.

    PyTorch computes the shape by nodes of their own, which cost more than small products.
    """
    for node in graph:
        if node.op_type != "Reshape":
            continue
        shape = node.outputs[0].shape
        if shape is None:
            continue
        lengths = [length if isinstance(length, int) else -1 for length in shape]
        if lengths.count(-1) != 1 or 0 in lengths:
            continue
        constant = onnx_ir.node(
            "Constant", [], attributes={"value_ints": onnx_ir.AttrInt64s("value_ints", lengths)}
        )
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])


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
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": entry.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in split_rows(checkpoint.read(entry.name), entry.name):
            with np.errstate(over="ignore"):
                stored = (rows * np.float32(scale)).astype(dtype)
            if not np.isfinite(stored).all():
                raise ExportError(
                    f"{entry.name} has values beyond float16's range; add fp32 to --decoder, which stores "
                    f"the embeddings in float32"
                )
            file.write(stored.tobytes())
