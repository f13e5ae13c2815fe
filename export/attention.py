"""Attention of a vision graph as one operator of ONNX Runtime.

Written as two products and a softmax, attention writes its scores to memory, 50 MB for 1024 tokens and 12
heads, and reads them twice. ``MultiHeadAttention`` keeps a block of them in the cache.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

HEADS_FIRST = [0, 2, 1, 3]
"""The order of axes that makes ``[n, heads, tokens, width]`` of ``[n, tokens, heads, width]``, and back."""


def fuse_attention(model: onnx_ir.Model) -> int:
    """Replace each attention without mask by ``MultiHeadAttention``, and return their number.

    Others, such as those with positions that rotate or a bias of the scores, stay as they are.
    """
    fused = sum(_fuse(node, model.graph) for node in list(model.graph) if node.op_type == "Softmax")
    if fused:
        RemoveUnusedNodesPass()(model)
    return fused


def _fuse(softmax: onnx_ir.Node, graph: onnx_ir.Graph) -> bool:
    """Replace the attention around one softmax; return False if it has another form."""
    scores = _producer(softmax.inputs[0], "MatMul")
    weighted = _only_user(softmax.outputs[0], "MatMul")
    transpose = weighted and _only_user(weighted.outputs[0], "Transpose")
    reshape = transpose and _only_user(transpose.outputs[0], "Reshape")
    if not (scores and weighted and transpose and reshape) or _order(transpose) != HEADS_FIRST:
        return False
    if weighted.inputs[0] is not softmax.outputs[0]:
        return False
    query, query_factor = _without_factor(scores.inputs[0])
    key, key_factor = _without_factor(scores.inputs[1])
    found = [
        _split_heads(query),
        _split_heads(_before_transpose(key)),
        _split_heads(weighted.inputs[1]),
    ]
    if any(part is None for part in found):
        return False
    heads = {part[1] for part in found if part is not None}
    if len(heads) != 1:
        return False
    node = onnx_ir.node(
        "MultiHeadAttention",
        [part[0] for part in found if part is not None],
        domain="com.microsoft",
        attributes={"num_heads": heads.pop(), "scale": query_factor * key_factor},
    )
    graph.insert_before(softmax, node)
    attended, old = node.outputs[0], reshape.outputs[0]
    attended.shape = old.shape
    if old.dtype is not None:
        attended.dtype = old.dtype
    old.replace_all_uses_with(attended, replace_graph_outputs=True)
    attended.name, old.name = old.name, None
    return True


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


def _before_transpose(keys: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """Return keys ``[n, heads, tokens, width]`` from which ``[n, heads, width, tokens]`` were made.

    PyTorch's exporter exchanges the last two axes of three-dimensional keys, between two reshapes.
    """
    node = _producer(keys, "Reshape")
    if node is None:
        node = _producer(keys, "Transpose")
        return node.inputs[0] if node is not None and _order(node) == [0, 1, 3, 2] else None
    node = _producer(node.inputs[0], "Transpose")
    if node is None or _order(node) != [0, 2, 1]:
        return None
    node = _producer(node.inputs[0], "Reshape")
    return node.inputs[0] if node is not None else None


def _split_heads(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, int] | None:
    """Return ``[n, tokens, heads * width]`` from which a value with heads first was made, and the heads."""
    transpose = _producer(value, "Transpose")
    if transpose is None or _order(transpose) != HEADS_FIRST:
        return None
    reshape = _producer(transpose.inputs[0], "Reshape")
    if reshape is None or reshape.inputs[0] is None or reshape.inputs[1] is None:
        return None
    shape = reshape.inputs[1].const_value
    if shape is None or shape.size != 4 or reshape.inputs[0].shape is None:
        return None
    if reshape.inputs[0].shape.rank() != 3:
        return None
    _, _, heads, head_width = (int(length) for length in shape.numpy())
    if heads == -1:  # what is left; `view(n, tokens, -1, head_width)` in transformers
        width = reshape.inputs[0].shape[2]
        if not isinstance(width, int):
            return None
        heads = width // head_width
    return reshape.inputs[0], heads
