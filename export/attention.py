"""Attention of a vision graph as one operator of ONNX Runtime.

Written as two products and a softmax, attention writes its scores to memory, 50 MB for 1024 tokens and 12
heads, and reads them twice. ``MultiHeadAttention`` keeps a block of them in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

HEADS_FIRST = [0, 2, 1, 3]
"""The order of axes that makes ``[n, heads, tokens, width]`` of ``[n, tokens, heads, width]``, and back."""
KEYS_LAST = [0, 2, 3, 1]
"""The order of axes that makes ``[n, heads, width, tokens]`` of ``[n, tokens, heads, width]``."""


@dataclass(frozen=True)
class Part:
    """The attention of some heads: what its two products read."""

    query: onnx_ir.Value
    """``[n, heads, tokens, width]``."""
    key: onnx_ir.Value
    """``[n, heads, width, tokens]``."""
    value: onnx_ir.Value
    """``[n, heads, tokens, width]``."""
    scale: float
    """Constant factor of the scores that is in none of them."""


def fuse_attention(model: onnx_ir.Model) -> int:
    """Replace each attention without mask by ``MultiHeadAttention``, and return their number.

    The heads may be computed in several parts. Attention with a bias of the scores stays as it is.
    """
    nodes = [node for node in model.graph if node.op_type == "Transpose"]
    fused = sum(_fuse(node, model.graph) for node in nodes)
    if fused:
        RemoveUnusedNodesPass()(model)
    return fused


def _fuse(transpose: onnx_ir.Node, graph: onnx_ir.Graph) -> bool:
    """Replace the attention whose heads a transpose puts last; return False if it has another form."""
    reshape = _only_user(transpose.outputs[0], "Reshape")
    if reshape is None or _order(transpose) != HEADS_FIRST:
        return False
    found = [_part(value) for value in _concatenated(transpose.inputs[0])]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found) or len({part.scale for part in parts}) > 1:
        return False
    inputs = [
        _transposed(_split([part.query for part in parts]), HEADS_FIRST),
        _before_key_transpose(_split([part.key for part in parts])),
        _transposed(_split([part.value for part in parts]), HEADS_FIRST),
    ]
    shapes = {_heads_and_width(value) for value in inputs}
    if len(shapes) != 1 or None in shapes:
        return False
    heads, width = next(shape for shape in shapes if shape is not None)
    node = onnx_ir.node(
        "MultiHeadAttention",
        [
            _join_heads(value, heads * width, reshape, graph)
            for value in inputs
            if value is not None
        ],
        domain="com.microsoft",
        attributes={"num_heads": heads, "scale": parts[0].scale},
    )
    graph.insert_before(reshape, node)
    attended, old = node.outputs[0], reshape.outputs[0]
    attended.shape = old.shape
    if old.dtype is not None:
        attended.dtype = old.dtype
    old.replace_all_uses_with(attended, replace_graph_outputs=True)
    attended.name, old.name = old.name, None
    return True


def _concatenated(value: onnx_ir.Value | None) -> Sequence[onnx_ir.Value | None]:
    """Return the parts of the heads that a value ``[n, heads, tokens, width]`` consists of."""
    reshape = _producer(value, "Reshape")
    if reshape is not None and reshape.inputs[0] is not None and value is not None:
        before = reshape.inputs[0]
        if before.shape is not None and before.shape == value.shape:  # it changes nothing
            value = before
    concat = _producer(value, "Concat")
    if concat is not None and concat.attributes["axis"].as_int() == 1:
        return concat.inputs
    return [value]


def _part(attended: onnx_ir.Value | None) -> Part | None:
    """Return the attention of which a value is the result."""
    weighted = _producer(attended, "MatMul")
    softmax = weighted and _producer(weighted.inputs[0], "Softmax")
    scores = softmax and _producer(softmax.inputs[0], "MatMul")
    if not (weighted and softmax and scores):
        return None
    query, query_factor = _without_factor(scores.inputs[0])
    key, key_factor = _without_factor(scores.inputs[1])
    value = weighted.inputs[1]
    if query is None or key is None or value is None:
        return None
    return Part(query, key, value, query_factor * key_factor)


def _split(values: Sequence[onnx_ir.Value]) -> onnx_ir.Value | None:
    """Return the value that was split into these along the heads; None if it was not so."""
    if len(values) == 1:
        return values[0]
    split = _producer(values[0], "Split")
    if split is None or list(split.outputs) != list(values):
        return None
    return split.inputs[0] if split.attributes["axis"].as_int() == 1 else None


def _producer(value: onnx_ir.Value | None, operator: str) -> onnx_ir.Node | None:
    """Return the node that makes a value if it is such an operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _only_user(value: onnx_ir.Value, operator: str) -> onnx_ir.Node | None:
    """Return the only node that reads a value if it is such an operator."""
    users = list(value.consumers())
    return users[0] if len(users) == 1 and users[0].op_type == operator else None


def _order(transpose: onnx_ir.Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints())


def _transposed(value: onnx_ir.Value | None, order: list[int]) -> onnx_ir.Value | None:
    """Return the value of which this one is a transpose with such an order of axes."""
    node = _producer(value, "Transpose")
    return node.inputs[0] if node is not None and _order(node) == order else None


def _without_factor(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, float]:
    """Return what a value is a constant multiple of, and the factor."""
    node = _producer(value, "Mul")
    if node is not None:
        for first, second in (node.inputs, node.inputs[::-1]):
            if (
                second is not None
                and second.const_value is not None
                and second.const_value.size == 1
            ):
                return first, float(second.const_value.numpy().item())
    return value, 1.0


def _before_key_transpose(keys: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """Return keys ``[n, tokens, heads, width]`` from which ``[n, heads, width, tokens]`` were made.

    PyTorch's exporter writes one transpose or two, the second perhaps of three dimensions between reshapes.
    """
    node = _producer(keys, "Reshape")
    if node is None:
        found = _transposed(keys, KEYS_LAST)
        return found or _transposed(_transposed(keys, [0, 1, 3, 2]), HEADS_FIRST)
    node = _producer(_transposed(node.inputs[0], [0, 2, 1]), "Reshape")
    return _transposed(node.inputs[0], HEADS_FIRST) if node is not None else None


def _heads_and_width(value: onnx_ir.Value | None) -> tuple[int, int] | None:
    """Return heads, and numbers of a head, of a value ``[n, tokens, heads, width]``; None if not known."""
    if value is None or value.shape is None or value.shape.rank() != 4:
        return None
    heads, width = value.shape[2], value.shape[3]
    return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None


def _join_heads(
    value: onnx_ir.Value, width: int, place: onnx_ir.Node, graph: onnx_ir.Graph
) -> onnx_ir.Value:
    """Return ``[n, tokens, heads * width]`` of a value ``[n, tokens, heads, width]``.

    Args:
        value: the value.
        width: numbers of all heads together.
        place: new nodes come before this one.
        graph: the graph.
    """
    split = _producer(value, "Reshape")
    if split is not None and split.inputs[0] is not None:
        joined = split.inputs[0]
        if joined.shape is not None and joined.shape.rank() == 3 and joined.shape[2] == width:
            return joined
    length = onnx_ir.node(
        "Constant", [], attributes={"value_ints": onnx_ir.AttrInt64s("value_ints", [0, 0, width])}
    )
    reshape = onnx_ir.node("Reshape", [value, length.outputs[0]])
    graph.insert_before(place, [length, reshape])
    return reshape.outputs[0]
