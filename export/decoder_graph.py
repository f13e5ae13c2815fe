"""The graph of a language model, traced without its weights, and the few changes that PyTorch's export needs.

ONNX Runtime optimizes a graph as it loads it. These are what it does not find: products with rounded weights,
RMS norms, and shapes that are computed although they are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

from edgevlm.export.block_quantization import BLOCK_LENGTH
from edgevlm.export.decoder_module import TRANSLATIONS, DecoderModule, Layout
from edgevlm.export.vision import OPSET, quiet, without_values
from edgevlm.runtimes.onnx.decoder_graph import CROSS_INPUTS, LAYER_EMBEDDINGS

DOMAIN = "com.microsoft"
"""Operators of ONNX Runtime."""
ACCURACY_LEVEL = 4
"""ONNX Runtime rounds activations to int8, with a scale for each block, as llama.cpp does."""
NORMS = (
    ("ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul"),
    ("ReduceMean", "Add", "Pow", "Mul"),
)
"""Nodes of an RMS norm after the square, by which transformers' models write it."""
NOWHERE = "nowhere"
"""File of the weights of a graph that has none yet."""
EXAMPLE_ENTRIES, EXAMPLE_CELLS, EXAMPLE_WANTED = 3, 8, 2
EXAMPLE_STATES, EXAMPLE_CROSS_CELLS = 5, 9
"""Sizes with which the module is traced; all of them may differ when the graph runs."""


def finish_graph(traced: onnx.ModelProto, bits: int | None) -> tuple[onnx_ir.Model, set[str]]:
    """Return the graph of a precision, whose weights have types and shapes, but no values.

    Args:
        traced: what `trace` returns; it stays as it is.
        bits: bits of the weights of linear layers; None: they are floats, too.

    Returns:
        The graph, and the names of the weights of linear layers.
    """
    model = onnx_ir.from_proto(traced)
    matrices = replace_products(model.graph, bits)
    fuse_norms(model.graph)
    fix_shapes(model.graph)
    RemoveUnusedNodesPass()(model)
    # Each node carries the source lines that it came from, with the paths of the exporting machine.
    ClearMetadataAndDocStringPass()(model)
    if bits is not None:
        model.graph.opset_imports[DOMAIN] = 1
    return model, matrices


def trace(module: DecoderModule, floats: torch.dtype) -> onnx.ModelProto:
    """Return the graph of a module. Its weights are names of external data that is nowhere.

    Args:
        module: the module; its parameters get the type `floats`.
        floats: type of the weights, masks and caches.
    """
    layout = module.layout
    without_values(module, floats)
    n, cells, cross_cells = EXAMPLE_ENTRIES, EXAMPLE_CELLS, EXAMPLE_CROSS_CELLS
    free = torch.export.Dim.DYNAMIC
    arguments: dict[str, Any] = {
        "embeddings": torch.zeros(n, layout.width),
        "positions": torch.zeros((3, n) if layout.grid else (n,), dtype=torch.int64),
        "masks": [torch.zeros(n, cells, dtype=floats) for _ in layout.masks],
        "cells": torch.arange(n),
        "before": [torch.zeros(n, layout.before, dtype=torch.int64)] * bool(layout.before),
        "wanted": torch.arange(EXAMPLE_WANTED),
        "cross": [],
        "past": [
            torch.zeros(
                heads, cross_cells if name in layout.cross_caches else cells, size, dtype=floats
            )
            for name, (heads, size) in layout.caches.items()
        ],
    }
    dynamic: dict[str, Any] = {
        "embeddings": {0: free},
        "positions": {1 if layout.grid else 0: free},
        "masks": [{0: free, 1: free} for _ in layout.masks],
        "cells": {0: free},
        "before": [{0: free}] * bool(layout.before),
        "wanted": {0: free},
        "cross": [],
        "past": [{1: free}] * len(layout.caches),
    }
    if layout.cross:
        arguments["cross"] = [
            torch.zeros(EXAMPLE_STATES, layout.width),
            torch.arange(EXAMPLE_STATES),
            torch.zeros(n, cross_cells, dtype=floats),
            torch.ones(n, dtype=floats),
        ]
        dynamic["cross"] = [{0: free}, {0: free}, {0: free, 1: free}, {0: free}]
    if layout.layer_width:
        arguments[LAYER_EMBEDDINGS] = torch.zeros(n, layout.layer_width)
        dynamic[LAYER_EMBEDDINGS] = {0: free}
    with quiet():
        program = torch.onnx.export(
            module,
            (),
            kwargs=arguments,
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=dict(TRANSLATIONS),
            input_names=["embeddings", "positions", *layout.masks, "cells"]
            + ["before"] * bool(layout.before)
            + ["wanted", *(CROSS_INPUTS if layout.cross else ())]
            + [f"past_{name}" for name in layout.caches]
            + [LAYER_EMBEDDINGS] * bool(layout.layer_width),
            output_names=["logits", *layout.caches],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    for name, value in model.graph.initializers.items():
        assert value.dtype is not None and value.shape is not None
        shape = onnx_ir.Shape(value.shape.numpy())
        value.const_value = onnx_ir.ExternalTensor(
            NOWHERE, None, None, value.dtype, shape=shape, name=name
        )
    name_axes(model.graph, layout)
    return onnx_ir.to_proto(model)


def name_axes(graph: onnx_ir.Graph, layout: Layout) -> None:
    """Name the dynamic axes of inputs and outputs."""
    axes: dict[str, tuple[str | int, ...]] = {
        "embeddings": ("n", 1),
        LAYER_EMBEDDINGS: ("n", 1),
        "cells": ("n",),
        "before": ("n", 1),
        "wanted": ("m",),
        "logits": ("m", 1),
        "cross_states": ("s", 1),
        "cross_cells": ("s",),
        "cross_mask": ("n", "cross cells"),
        "cross_rows": ("n",),
    }
    axes |= dict.fromkeys(("mask", "window_mask"), ("n", "cells"))
    crossed = dict.fromkeys(layout.cross_caches, ("heads", "cross cells", "size"))
    axes |= crossed | {f"past_{name}": named for name, named in crossed.items()}
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None and value.name is not None
        named = axes.get(value.name, ("heads", "cells", "size"))
        if value.name == "positions":
            named = ("axes", "n")[-value.shape.rank() :]
        value.shape = onnx_ir.Shape(
            length if isinstance(length, int) else name
            for length, name in zip(value.shape, named, strict=True)
        )


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
            weight.shape, weight.const_value = onnx_ir.Shape([inputs, outputs]), None
            node.replace_input_with(1, weight)
            continue
        count = -(-inputs // BLOCK_LENGTH)
        weight.const_value = None
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
    chain = next(filter(None, (followers(square, kinds) for kinds in NORMS)), None)
    if chain is None:
        return
    values, epsilon, scaled = square.inputs[0], chain[1].inputs[1], chain[-1]
    if values not in scaled.inputs or values is None or epsilon is None:
        return
    if chain[2].op_type == "Pow" and constant(chain[2].inputs[1]) != -0.5:
        return
    number = constant(epsilon)
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
        attributes={"axis": -1, "epsilon": number, "stash_type": 1},
    )
    put_in_place(graph, last, fused)


def followers(node: onnx_ir.Node, kinds: Sequence[str]) -> list[onnx_ir.Node] | None:
    """Return the nodes of these kinds after a node, each the only user of the one before it; else None."""
    found: list[onnx_ir.Node] = []
    for kind in kinds:
        following = only_user((found or [node])[-1].outputs[0])
        if following is None or following.op_type != kind:
            return None
        found.append(following)
    return found


def constant(value: onnx_ir.Value | None) -> float | None:
    """Return a number that a node takes; None if it is not known."""
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None else float(tensor.numpy())


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
