"""The tiny Llama as an ONNX graph for the decoder runtime, written node by node, without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from tests.support.tiny_decoder import (
    END,
    IMAGE,
    MERGES,
    TOKENS,
    USER_DEFINED,
    TinyLlama,
    reference_model,
)


class GraphWriter:
    """Nodes and weights of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant, and return its name."""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def __call__(
        self, op: str, *inputs: str | NDArray[Any], output: str = "", **attributes: Any
    ) -> str:
        """Add a node, and return the name of its output."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def write_graph(path: Path, model: TinyLlama, window: int | None = None) -> Path:
    """Write the layers of a model; with a window the last one has a sliding window."""
    add = GraphWriter()
    size = model.WIDTH // model.HEADS
    half = size // 2
    frequencies = model.ROPE_THETA ** -(np.arange(half) / half)
    turns = add("Unsqueeze", add("Cast", "positions", to=TensorProto.DOUBLE), ints(1))
    angles = add("Mul", turns, frequencies[None])
    cos, sin = (add("Cast", add(op, angles), to=TensorProto.FLOAT) for op in ("Cos", "Sin"))

    def norm(x: str, name: str) -> str:
        mean = add("ReduceMean", add("Mul", x, x), ints(-1), keepdims=1)
        root = add("Sqrt", add("Add", mean, np.array(model.EPSILON, np.float32)))
        return add("Mul", add("Div", x, root), model.weights[name])

    def project(x: str, layer: int, name: str) -> str:
        return add("MatMul", x, model.weights[f"model.layers.{layer}.{name}.weight"].T.copy())

    def heads(x: str, count: int) -> str:
        return add("Transpose", add("Reshape", x, ints(-1, count, size)), perm=[1, 0, 2])

    def rotate(x: str) -> str:
        first = add("Slice", x, ints(0), ints(half), ints(2))
        second = add("Slice", x, ints(half), ints(size), ints(2))
        return add(
            "Concat",
            add("Sub", add("Mul", first, cos), add("Mul", second, sin)),
            add("Add", add("Mul", second, cos), add("Mul", first, sin)),
            axis=2,
        )

    # indices [heads, n, 2] of the cells
    column = add("Reshape", "cells", ints(1, -1, 1))
    shape = add("Concat", ints(model.KV_HEADS), add("Shape", "cells"), ints(1), axis=0)
    rows = add("Expand", np.arange(model.KV_HEADS).reshape(-1, 1, 1), shape)
    index = add("Concat", rows, add("Expand", column, shape), axis=2)

    x = "embeddings"
    for layer in range(model.LAYERS):
        inner = norm(x, f"model.layers.{layer}.input_layernorm.weight")
        q = rotate(heads(project(inner, layer, "self_attn.q_proj"), model.HEADS))
        k = rotate(heads(project(inner, layer, "self_attn.k_proj"), model.KV_HEADS))
        v = heads(project(inner, layer, "self_attn.v_proj"), model.KV_HEADS)
        k = add("ScatterND", f"past_keys.{layer}", index, k, output=f"keys.{layer}")
        v = add("ScatterND", f"past_values.{layer}", index, v, output=f"values.{layer}")
        grouped = add("Reshape", q, ints(model.KV_HEADS, model.HEADS // model.KV_HEADS, -1, size))
        keys = add("Unsqueeze", add("Transpose", k, perm=[0, 2, 1]), ints(1))
        scores = add("Div", add("MatMul", grouped, keys), np.array(size**0.5, np.float32))
        mask = "window_mask" if window and layer == model.LAYERS - 1 else "mask"
        shares = add("Softmax", add("Add", scores, mask), axis=-1)
        seen = add("MatMul", shares, add("Unsqueeze", v, ints(1)))
        seen = add("Reshape", seen, ints(model.HEADS, -1, size))
        joined = add("Reshape", add("Transpose", seen, perm=[1, 0, 2]), ints(-1, model.WIDTH))
        x = add("Add", x, project(joined, layer, "self_attn.o_proj"))
        inner = norm(x, f"model.layers.{layer}.post_attention_layernorm.weight")
        gate = project(inner, layer, "mlp.gate_proj")
        gate = add("Mul", gate, add("Sigmoid", gate))
        product = add("Mul", gate, project(inner, layer, "mlp.up_proj"))
        x = add("Add", x, project(product, layer, "mlp.down_proj"))
    x = norm(add("Gather", x, "wanted"), "model.norm.weight")
    add("MatMul", x, model.weights["lm_head.weight"].T.copy(), output="logits")

    def value(name: str, kind: int, *dimensions: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dimensions)

    masks = ["mask"] + ["window_mask"] * bool(window)
    pairs = [(part, layer) for layer in range(model.LAYERS) for part in ("keys", "values")]
    cache = model.KV_HEADS, "cells", size
    graph = helper.make_graph(
        add.nodes,
        "decoder",
        [
            value("embeddings", TensorProto.FLOAT, "n", model.WIDTH),
            value("positions", TensorProto.INT64, "n"),
            *(value(name, TensorProto.FLOAT, "n", "cells") for name in masks),
            value("cells", TensorProto.INT64, "n"),
            value("wanted", TensorProto.INT64, "m"),
            *(value(f"past_{part}.{layer}", TensorProto.FLOAT, *cache) for part, layer in pairs),
        ],
        [
            value("logits", TensorProto.FLOAT, "m", len(TOKENS)),
            *(value(f"{part}.{layer}", TensorProto.FLOAT, *cache) for part, layer in pairs),
        ],
        add.weights,
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def write_tokenizer(path: Path) -> Path:
    """Write the byte-level vocabulary as a tokenizer file."""
    added = [
        {
            "id": token,
            "content": TOKENS[token],
            "special": token != USER_DEFINED,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token in (END, IMAGE, USER_DEFINED)
    ]
    split = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, split],
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: token for token, piece in enumerate(TOKENS)},
            "merges": MERGES,
        },
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def load_onnx_decoder(
    folder: Path, model: TinyLlama | None = None, **arguments: Any
) -> OnnxDecoder:
    """Write a decoder into a folder and load it; arguments as of `OnnxDecoder`."""
    model = model or reference_model()
    folder.mkdir(exist_ok=True)
    table = folder / "embeddings.npy"
    np.save(table, model.weights["model.embed_tokens.weight"])
    settings = {"context_length": 64, "threads": 1, "device": "cpu", **arguments}
    return OnnxDecoder(
        write_graph(folder / "decoder.onnx", model, settings.get("window")),
        tokenizer=write_tokenizer(folder / "tokenizer.json"),
        embeddings=table,
        **settings,
    )
