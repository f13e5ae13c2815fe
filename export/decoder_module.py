"""The language model as a module that `edgevlm.export.onnx_decoder` traces: one graph for prompt and answer.

There is no batch. Inputs, where n entries are decoded and the KV cache has a number of cells:

- ``embeddings``: float32 ``[n, width]``, in the scale of `edgevlm.manifest.DecoderSpec`. Features for the
  first layers (deepstack) follow in each row.
- ``layer_embeddings``: float32 ``[n, layer width]``, if the layers have embeddings of their own: the rows of
  the entries in a second table, for all layers.
- ``positions``: int64 ``[n]``, or ``[3, n]`` with M-RoPE: time, line and column.
- ``mask``: ``[n, cells]``, added to the scores of attention: 0 or -inf, and 0 at least once in each row.
- ``window_mask``: the same for layers with a sliding window, if there are any; then `mask` is there for
  others only.
- ``cells``: int64 ``[n]``, the cells that the entries are written to.
- If layers have short convolutions of some length, ``before``: int64 ``[n, length - 1]``, the cells of the
  entries before each one in its sequence, the nearest last; they may be among ``cells``. In place of entries
  that are not there stands a cell that is zero.
- ``wanted``: int64 ``[m]``, the entries of n whose logits are computed; m may be 0.
- ``past_keys.I`` and ``past_values.I``: ``[heads, cells, head size]`` of each layer I with attention. The
  last layers have none if they take those of layers before.
- ``past_inputs.I``: ``[1, cells, hidden size]`` of each layer I with a short convolution, its inputs.
- If layers have cross-attention to images, ``cross_states``: float32 ``[s, hidden size]``, features of new
  images; ``cross_cells``: int64 ``[s]``, the cells that they are written to; ``cross_mask``:
  ``[n, cross cells]``, as `mask`; ``cross_rows``: ``[n]``, factor of the feed-forward part of these layers.
  The cache of these layers has cells of its own.

Outputs:

- ``logits``: float32 ``[m, vocabulary]``;
- ``keys.I``, ``values.I`` and ``inputs.I``: the cache with the new entries. ONNX Runtime writes them in place
  if input and output are one buffer. So the cost of an entry does not grow with the cells, but for attention.

``mask``, ``window_mask`` and the cache are float32, or float16 in the precision fp16. The masks alone decide
which entries see each other.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnxscript import opset20
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import AttentionInterface
from transformers.models.mllama.modeling_mllama import MllamaTextModel
from transformers.models.opt.modeling_opt import OPTDecoder
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRTextModel

from edgevlm.errors import ExportError
from edgevlm.export.architectures import ARCHITECTURES
from edgevlm.export.decoder_cache import Cells, inputs_name, key_value_names, scatter
from edgevlm.export.families import Family
from edgevlm.export.lfm2 import CONVOLUTION
from edgevlm.export.mrope import deepstack_layers, input_width
from edgevlm.export.short_convolution import replace_short_convolutions
from edgevlm.export.text_settings import first_sharing_layer

REFUSED: Mapping[str, str] = {
    "qwen3_5_text": "its gated delta nets keep a state that is no cache of keys and values",
}
"""``model_type`` of text configurations that llama.cpp computes and these graphs do not, and why."""
OWN_CLASSES: Mapping[str, type[PreTrainedModel]] = {
    "mllama_text_model": MllamaTextModel,
    "opt": OPTDecoder,
    "paddleocr_vl_text": PaddleOCRTextModel,
}
"""Classes of language models that transformers' `AutoModel` does not find, or wraps in another one."""
ATTENTION = "edgevlm"
"""The name of our attention in transformers."""


def linear(values: Any, weight: Any, bias: Any = None) -> Any:
    """Translate a linear layer to ONNX: a product, also where PyTorch would write a ``Gemm``."""
    product = opset20.MatMul(values, opset20.Transpose(weight, perm=[1, 0]))
    return product if bias is None else opset20.Add(product, bias)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.linear.default: linear,
    torch.ops.edgevlm.write_cells.default: scatter,
}
"""For the argument ``custom_translation_table`` of `torch.onnx.export`."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of one layer, ``[1, n, query heads, size]``.

    Queries that share a head of keys are multiplied with it together, so that no key is copied.

    Args:
        module: the layer's attention.
        query: ``[1, query heads, n, size]``.
        key: keys of all cells, ``[heads, cells, size]``.
        value: values of all cells, ``[heads, cells, size]``.
        attention_mask: ``[1, 1, n, cells]``.
        scaling: factor of the scores.
        softcap: the scores are kept below it by a tanh; None: they are not.
        settings: what transformers passes beside that.
    """
    _, query_heads, n, size = query.shape
    heads, cells, _ = key.shape  # no -1 below, as n may be 0
    shared = query_heads // heads
    scores = torch.matmul(query.reshape(heads, shared * n, size) * scaling, key.transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.reshape(heads, shared, n, cells) + attention_mask.squeeze(0)
    shares = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    attended = torch.matmul(shares.reshape(heads, shared * n, cells), value)
    attended = attended.reshape(1, query_heads, n, value.shape[-1])
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


@dataclass(frozen=True)
class Layout:
    """What follows from the configuration for inputs and outputs."""

    width: int
    """Width of a row of ``embeddings``."""
    grid: bool
    """A position has three numbers."""
    slides: tuple[bool, ...]
    """For each layer, whether it has a sliding window."""
    window: int | None
    """Entries that a layer with a sliding window sees; None: there is no such layer."""
    caches: Mapping[str, tuple[int, int]]
    """Heads and size of each part of the cache, by the name of its output. Layers that take those of layers
    before have none."""
    before: int
    """Entries before each one that short convolutions read; 0: there are none."""
    cross: frozenset[int]
    """Layers with cross-attention to images."""
    layer_width: int
    """Width of a row of the layers' own embeddings; 0: they have none."""

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the masks."""
        names = {False: "mask", True: "window_mask"}
        return tuple(names[slides] for slides in sorted({*self.slides}))

    @property
    def cross_caches(self) -> frozenset[str]:
        """Names of the parts of the cache that hold images."""
        return frozenset(name for layer in self.cross for name in key_value_names(layer))


class DecoderModule(nn.Module):
    """The language model and its output layer.

    Its parameters have the names of `Family.canonical_name`.

    Args:
        config: the configuration of the whole model.
        family: the family.

    Raises:
        ExportError: the language model keeps a state that has no cells.
    """

    def __init__(self, config: PretrainedConfig, family: Family) -> None:
        super().__init__()
        text = config.get_text_config()
        check_language_model(config)
        text = copy.deepcopy(text)  # the attention of the reference stays its own
        kind = OWN_CLASSES.get(text.model_type)
        self.decoder: Any = kind._from_config(text) if kind else AutoModel.from_config(text)
        self.decoder.set_attn_implementation(ATTENTION)
        replace_short_convolutions(self.decoder.layers)
        self.head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.layout = plan_layout(config, family)
        self.hidden, self.layers = int(text.hidden_size), int(text.num_hidden_layers)
        # The bundle's factor for images lets all inputs have the scale that llama.cpp expects.
        self.factor = 1 / family.embedding_scale(config)
        # transformers multiplies rows of the table, and the bundle multiplies them by a factor of its own.
        own = row_scale(self.decoder.get_input_embeddings())
        self.table_scale = own / self.factor / (family.text_embedding_scale or 1.0)
        self.layer_table_scale = row_scale(getattr(self.decoder, "embed_tokens_per_layer", None))
        self.softcap = getattr(text, "final_logit_softcapping", None)
        names = inspect.signature(self.decoder.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self._rows = torch.empty(0)
        self._wanted: torch.Tensor | None = None
        """The entries that are wanted, while there are others."""
        if first_sharing_layer(text) < self.layers:
            # where transformers goes on with the entries alone whose logits it computes
            self.decoder._maybe_slice_kv_shared_inputs = self._narrow
        for index in range(deepstack_layers(config)):
            self.decoder.layers[index].register_forward_hook(self._adder(index))
        for layer, slides in zip(self.decoder.layers, self.layout.slides, strict=True):
            layer.register_forward_pre_hook(self._chooser(slides), with_kwargs=True)
        self._masks: dict[bool, torch.Tensor] = {}

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        masks: list[torch.Tensor],
        cells: torch.Tensor,
        before: list[torch.Tensor],
        wanted: torch.Tensor,
        cross: list[torch.Tensor],
        past: list[torch.Tensor],
        layer_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return logits, and all parts of the cache; see the documentation of this module."""
        rows = embeddings * self.factor if self.factor != 1 else embeddings
        rows = rows.to(self.head.weight.dtype)[None]
        first = rows[..., : self.hidden]
        self._rows, self._wanted = rows, wanted
        kinds = sorted({*self.layout.slides})
        self._masks = {kind: mask[None, None] for kind, mask in zip(kinds, masks, strict=True)}
        settings: dict[str, Any] = {}
        crossed: dict[int, torch.Tensor] = {}
        if cross:
            states, cross_cells, mask, factors = cross
            crossed = dict.fromkeys(self.layout.cross, cross_cells)
            settings = {
                "cross_attention_states": states.to(first.dtype)[None],
                "cross_attention_mask": mask[None, None],
                "full_text_row_masked_out_mask": factors[None, None, :, None],
            }
        if layer_embeddings is not None:
            of_layers = layer_embeddings.to(first.dtype).unflatten(1, (self.layers, -1))
            settings["per_layer_inputs"] = of_layers[None]
        parts = dict(zip(self.layout.caches, past, strict=True))
        cache = Cells(parts, cells, before[0] if before else None, crossed)
        found = self.decoder(
            inputs_embeds=first,
            attention_mask=next(iter(self._masks.values())),
            position_ids=positions[:, None] if self.layout.grid else positions[None],
            use_cache=True,
            **{self.cache_name: cache},
            **settings,
        )
        hidden = found.last_hidden_state
        if self._wanted is not None:
            hidden = hidden.index_select(1, wanted)
        logits = self.head(hidden).squeeze(0)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return (logits.float(), *cache.written.values())

    def _chooser(self, slides: bool) -> Callable[..., Any]:
        def choose(layer: nn.Module, inputs: Any, settings: dict[str, Any]) -> Any:
            return inputs, settings | {"attention_mask": self._masks[slides]}

        return choose

    def _narrow(
        self,
        hidden: torch.Tensor,
        layer_inputs: torch.Tensor,
        rotations: dict[str, tuple[torch.Tensor, torch.Tensor]],
        masks: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Leave the entries that are wanted, as no later layer keeps anything of the others."""
        wanted = self._wanted
        assert wanted is not None
        self._wanted = None
        self._masks = {kind: mask.index_select(2, wanted) for kind, mask in self._masks.items()}
        rotations = {
            kind: (cos.index_select(1, wanted), sin.index_select(1, wanted))
            for kind, (cos, sin) in rotations.items()
        }
        return (
            hidden.index_select(1, wanted),
            layer_inputs.index_select(1, wanted),
            rotations,
            masks,
        )

    def _adder(self, index: int) -> Callable[..., Any]:
        start = (1 + index) * self.hidden

        def add(layer: nn.Module, inputs: Any, output: Any) -> Any:
            return output + self._rows[..., start : start + self.hidden]

        return add


def row_scale(table: nn.Module | None) -> float:
    """Return the factor that transformers multiplies rows of a table by."""
    return float(getattr(table, "scalar_embed_scale", 1.0))


def check_language_model(config: PretrainedConfig) -> None:
    """Check that the language model keeps nothing but what has a cell for each entry.

    Raises:
        ExportError: it does.
    """
    kind = config.get_text_config().model_type
    if kind in REFUSED:
        raise ExportError(
            f"the language model {kind!r} cannot be exported for ONNX Runtime: {REFUSED[kind]}; take a type "
            f"of llama.cpp, such as --decoder q8_0"
        )


def plan_layout(config: PretrainedConfig, family: Family) -> Layout:
    """Return the layout of inputs and outputs.

    Where the context is no longer than the window, no layer slides; see
    `edgevlm.export.architectures.context_length`.
    """
    text = config.get_text_config()
    architecture = ARCHITECTURES[text.model_type]
    slides = [False] * text.num_hidden_layers
    window = None
    if architecture.window and architecture.llama_cpp_slides and family.attention != "prefix":
        window = architecture.window(text)
    if window is not None:
        slides = [kind == "sliding_attention" for kind in text.layer_types]
    caches: dict[str, tuple[int, int]] = {}
    before = 0
    for number, layer in enumerate(list(text.per_layer_config)[: first_sharing_layer(text)]):
        if getattr(text, "layer_types", None) and text.layer_types[number] == CONVOLUTION:
            caches[inputs_name(number)] = (1, int(text.hidden_size))
            before = int(text.conv_L_cache) - 1
            continue
        size = getattr(layer, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(layer, "num_key_value_heads", text.num_attention_heads)
        caches |= dict.fromkeys(key_value_names(number), (int(heads), int(size)))
    return Layout(
        width=input_width(config),
        grid=family.positions == "grid",
        slides=tuple(slides),
        window=window,
        caches=caches,
        before=before,
        cross=frozenset(getattr(text, "cross_attention_layers", ())),
        layer_width=text.num_hidden_layers * (getattr(text, "hidden_size_per_layer_input", 0) or 0),
    )
