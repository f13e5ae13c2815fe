"""Each supported language model computes transformers' logits in llama.cpp, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from edgevlm.errors import ExportError
from edgevlm.export import quantize
from edgevlm.export.architectures import ARCHITECTURES, context_length, find_architecture
from edgevlm.export.bounds import decoder_bound
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import hyperparameters, write_decoder
from edgevlm.export.existing_gguf import open_existing_decoder
from edgevlm.export.lfm2 import CONVOLUTION
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.qwen35 import DELTA_NET
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place
from tests.support import checkpoints, text_models
from tests.support.damage import rewrite_gguf

LENGTH = 60
WINDOW = 12
"""Sliding window of the rows that have one: an image and a short question are longer."""
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.35,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
GEMMA2 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3: dict[str, Any] = {
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "num_hidden_layers": 7,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
MINISTRAL_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Ministral 3's scaling. The temperature of queries grows at each eighth position."""
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
SLIDING, FULL = "sliding_attention", "full_attention"
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
QWEN35: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": [DELTA_NET, FULL, DELTA_NET],
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]},
}
LFM2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": [CONVOLUTION, FULL, CONVOLUTION],
    "block_multiple_of": 8,
}
COHERE2: dict[str, Any] = {"num_hidden_layers": 5, "sliding_window": WINDOW}
"""Four layers slide and one has no rotary embeddings."""
GEMMA4: dict[str, Any] = {
    "head_dim": 24,
    "global_head_dim": 32,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": text_models.VOCABULARY,
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "sliding_window": WINDOW,
    "final_logit_softcapping": 10.0,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
"""As E2B: the last two layers take keys and values of the two before, and are twice as wide."""
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral, llama3 scaling": ("mistral", {"sliding_window": None, "rope_parameters": LLAMA3}),
    "ministral3": ("ministral3", {"head_dim": 24, "rope_parameters": MINISTRAL_YARN}),
    "ministral3, tied, other bounds": (
        "ministral3",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **MINISTRAL_YARN,
                "factor": 4.0,
                "beta_fast": 4.0,
                "beta_slow": 1.2,
            },
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, linear scaling": (
        "qwen2",
        {"tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen2_vl": ("qwen2_vl_text", {"rope_parameters": {**PLAIN, "mrope_section": [2, 3, 3]}}),
    "qwen2_5_vl, tied, linear scaling": (
        "qwen2_5_vl_text",
        {"tie_word_embeddings": True, "rope_parameters": {**LINEAR, "mrope_section": [4, 2, 2]}},
    ),
    "qwen3_vl": (
        "qwen3_vl_text",
        {"head_dim": 32, "rope_parameters": {**PLAIN, "mrope_section": [6, 5, 5]}},
    ),
    "paddleocr_vl, untied": (
        "paddleocr_vl_text",
        {
            "head_dim": 32,
            "tie_word_embeddings": False,
            "rope_parameters": {**PLAIN, "mrope_section": [6, 5, 5]},
        },
    ),
    "qwen3_5": ("qwen3_5_text", QWEN35),
    "qwen3_5, tied, as many heads of values as of keys": (
        "qwen3_5_text",
        {
            **QWEN35,
            "tie_word_embeddings": True,
            "num_hidden_layers": 2,
            "layer_types": [DELTA_NET, FULL],
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
        },
    ),
    "lfm2": ("lfm2", LFM2),
    "lfm2, untied, other layers, longer convolution": (
        "lfm2",
        {
            **LFM2,
            "tie_word_embeddings": False,
            "layer_types": [FULL, CONVOLUTION, CONVOLUTION],
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "granite": ("granite", GRANITE),
    "granite, biases, llama3 scaling": (
        "granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "cohere2": ("cohere2", COHERE2),
    "cohere2, other layers slide, linear scaling": (
        "cohere2",
        {
            **COHERE2,
            "layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING],
            "layer_norm_eps": 1e-3,
            "rope_parameters": LINEAR,
        },
    ),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2, other layers slide": ("gemma2", {**GEMMA2, "layer_types": [FULL, SLIDING]}),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3_text, other layers slide": (
        "gemma3_text",
        {**GEMMA3, "layer_types": [FULL, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING]},
    ),
    "gemma3_text, no layer slides, untied": (
        "gemma3_text",
        {**GEMMA3, "layer_types": [FULL] * 7, "tie_word_embeddings": False},
    ),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "gemma4_text, no layer shares, whole heads rotate more slowly, untied": (
        "gemma4_text",
        {
            **GEMMA4,
            "layer_types": [FULL, SLIDING, FULL, FULL],
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 0,
            "num_key_value_heads": 2,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "rope_parameters": {
                FULL: {**PROPORTIONAL, "partial_rotary_factor": 1.0, "factor": 8.0},
                SLIDING: PLAIN,
            },
        },
    ),
    "phi3": ("phi3", {}),
}
HYBRIDS = ("lfm2", "qwen3_5")
SCALED = ("gemma", "gemma2")
"""Language models whose embeddings llama.cpp multiplies by the root of the width."""


class Written(NamedTuple):
    """A model in transformers and the GGUF file of it."""

    model: PreTrainedModel
    path: Path

    def open(self, **options: Any) -> LlamaCppDecoder:
        return LlamaCppDecoder(self.path, **{"context_length": 256, "threads": 1, **options})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    made: dict[str, Written] = {}

    def write(row: str) -> Written:
        if row not in made:
            model_type, settings = ROWS[row]
            model = text_models.text_model(model_type, **settings)
            folder = tmp_path_factory.mktemp("model")
            made[row] = Written(model, text_models.write_text_model(model, folder))
        return made[row]

    return write


def some_ids(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(3, 500, count).tolist()
    return ids


def positions(start: int, stop: int) -> NDArray[np.int32]:
    return np.arange(start, stop, dtype=np.int32)


def step(decoder: LlamaCppDecoder, ids: list[int], start: int) -> NDArray[np.float32]:
    """Logits ``[n, vocabulary]`` after each token, one at a time."""
    rows = []
    for position, token in enumerate(ids, start):
        decoder.decode_tokens([token], positions(position, position + 1), logits=True)
        rows.append(decoder.logits())
    return np.stack(rows)


def test_every_language_model_has_a_row() -> None:
    """Those that llama.cpp has; `test_opt.py` and `tests/families/mllama.py` have the others."""
    known = {name for name, one in ARCHITECTURES.items() if one.gguf is not None}
    assert {model_type for model_type, _ in ROWS.values()} == known
    assert set(ARCHITECTURES) - known == {"opt", "mllama_text_model"}


@pytest.mark.parametrize("row", ROWS)
def test_logits_of_tokens(written: Callable[[str], Written], row: str) -> None:
    given = written(row)
    ids = some_ids(LENGTH)
    with torch.no_grad():
        expected = given.model(torch.tensor([ids])).logits[0].numpy()
    decoder = given.open()
    found = step(decoder, ids, 0)
    assert relative_error(found, expected) < 5e-3
    chosen = np.take_along_axis(expected, found.argmax(-1)[:, None], -1)[:, 0]
    assert (expected.max(-1) - chosen < 0.02).all(), "the best tokens, or near ties"
    decoder.truncate(Place())
    decoder.decode_tokens(ids, positions(0, LENGTH), logits=True)
    assert relative_error(decoder.logits(), expected[-1]) < 5e-3
    decoder.close()


@pytest.mark.parametrize("row", ROWS)
def test_logits_of_embeddings(written: Callable[[str], Written], row: str) -> None:
    """An image between texts: embeddings that no token has, longer than a sliding window."""
    given = written(row)
    width = given.model.config.get_text_config().hidden_size
    scale = np.float32(width**-0.5 if given.model.config.model_type in SCALED else 1.0)
    ids = some_ids(LENGTH)
    image = 0.5 * torch.randn(16, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = given.model.get_input_embeddings()(torch.tensor(ids))
        inputs = torch.cat([text[:5], image, text[5:]])
        more: dict[str, Any] = {}
        if given.model.config.model_type == "gemma4_text":  # as transformers does with an image
            padded = torch.tensor([[*ids[:5], *[0] * len(image), *ids[5:]]])
            more["per_layer_inputs"] = given.model.model.get_per_layer_inputs(padded)
        expected = given.model(inputs_embeds=inputs[None], **more).logits[0].numpy()
    decoder = given.open()
    decoder.decode_tokens(ids[:5], positions(0, 5), logits=False)
    decoder.decode_embeddings(scale * image.numpy(), positions(5, 21), logits=True)
    rows = [decoder.logits(), *step(decoder, ids[5:], 21)]
    assert relative_error(np.stack(rows), expected[20:]) < 5e-3
    decoder.close()


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith(HYBRIDS)])
def test_a_cache_that_is_cut_or_restored_equals_a_fresh_one(
    written: Callable[[str], Written], row: str
) -> None:
    """Also where a sliding layer sees entries again that it no longer saw when the copy was made.

    Hybrids cannot be cut; `test_hybrids.py` has their tests.
    """
    check_cuts(written(row).open(), 1e-3)


@pytest.mark.parametrize("row", ["gemma3_text", "llama"])
def test_a_cache_is_whole_after_branches(written: Callable[[str], Written], row: str) -> None:
    """A branch that is longer than the sliding window takes no entries away from the held sequence."""
    decoder = written(row).open()
    first, then = some_ids(LENGTH), some_ids(8, 2)
    decoder.decode_tokens(first, positions(0, LENGTH), logits=False)
    branches = [decoder.branch(), decoder.branch()]
    for _ in range(2 * WINDOW):
        logits = decoder.decode_branches(branches, [5, 6]).copy()
    for branch in branches:
        decoder.drop(branch)
    for token, row_of_branch in zip((5, 6), logits, strict=True):
        decoder.truncate(Place(LENGTH, LENGTH))
        expected = step(decoder, [token] * 2 * WINDOW, LENGTH)[-1]
        assert relative_error(row_of_branch, expected) < 1e-3
    for cut in (LENGTH - WINDOW, 20, 1):
        decoder.truncate(Place(cut, cut))
        found = step(decoder, then, cut)
        decoder.truncate(Place())
        decoder.decode_tokens(first[:cut], positions(0, cut), logits=False)
        assert relative_error(found, step(decoder, then, cut)) < 1e-3
        decoder.truncate(Place())
        decoder.decode_tokens(first, positions(0, LENGTH), logits=False)
    decoder.close()


SLIDE = {"gemma2": GEMMA2, "gemma3_text": GEMMA3, "gemma4_text": {**GEMMA4, "global_head_dim": 64}}


@pytest.mark.parametrize("model_type", SLIDE)
def test_so_does_a_quantized_cache(model_type: str, tmp_path: Path) -> None:
    """Each entry is quantized alone, so nothing depends on what came after it."""
    heads_of_32 = {**SLIDE[model_type], "head_dim": 32, "query_pre_attn_scalar": 32}
    model = text_models.text_model(model_type, **heads_of_32)
    found = Written(model, text_models.write_text_model(model, tmp_path))
    decoder = found.open(kv="q8_0")
    ids = some_ids(LENGTH)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    error = relative_error(step(decoder, ids, 0), expected)
    assert 5e-4 < error < 3e-2
    check_cuts(decoder, 2e-2)


def check_cuts(decoder: LlamaCppDecoder, bound: float) -> None:
    """Cut, copy and restore the cache at several positions; compare with a cache that is decoded anew."""
    first, other, then = some_ids(LENGTH), some_ids(LENGTH, 1), some_ids(8, 2)

    def decode_afresh(ids: list[int]) -> None:
        decoder.truncate(Place())
        decoder.decode_tokens(ids, positions(0, len(ids)), logits=False)

    cuts = (1, 20, LENGTH - WINDOW, LENGTH - 1, LENGTH)
    expected = []
    for cut in cuts:
        decode_afresh(first[:cut])
        expected.append(step(decoder, then, cut))
    decode_afresh(first)
    copy = decoder.save()
    for cut, fresh in zip(cuts, expected, strict=True):
        decode_afresh(first)
        decoder.truncate(Place(cut, cut))
        assert relative_error(step(decoder, then, cut), fresh) < bound
        decode_afresh(other)
        decoder.restore(copy, Place(LENGTH, LENGTH))
        decoder.truncate(Place(cut, cut))
        assert relative_error(step(decoder, then, cut), fresh) < bound
    decoder.close()


@pytest.mark.parametrize("row", ["qwen3", "gemma3_text", "gemma4_text"])
def test_the_size_of_a_cache_counts_its_heads(written: Callable[[str], Written], row: str) -> None:
    """Heads whose sizes do not add up to the width, and sliding layers, which keep everything.

    Sliding layers may have heads of another size, and layers may share a cache.
    """
    decoder = written(row).open()
    sizes = []
    for count in (10, 50):
        decoder.truncate(Place())
        decoder.decode_tokens(some_ids(count), positions(0, count), logits=False)
        sizes.append(decoder.save().nbytes)
    growth, computed = sizes[1] - sizes[0], 40 * 2 * decoder._model.kv_values
    decoder.close()
    assert computed <= growth < computed + 40 * 64  # two caches note a position for each entry


def gemma3_with_images(folder: Path) -> tuple[Gemma3ForConditionalGeneration, Path]:
    """A whole Gemma 3 whose images are longer than its sliding window, and its decoder."""
    config = Gemma3Config(
        text_config=text_models.text_config("gemma3_text", **GEMMA3).to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
            "vision_use_head": False,
        },
        mm_tokens_per_image=SPAN,
        image_token_index=5,
        boi_token_index=7,
        eoi_token_index=8,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    checkpoints.scatter(model, 0)
    return model, text_models.write_text_model(model, folder)


SPAN = 16


@pytest.mark.parametrize("flash", [True, False])
def test_images_longer_than_the_sliding_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flash: bool
) -> None:
    """Each of two images attends to itself both ways; text is causal, and goes in as tokens."""
    monkeypatch.setattr(LlamaCppDecoder, "_use_flash_attention", lambda self: flash)
    model, path = gemma3_with_images(tmp_path)
    before, between, after = [2, 10, 11, 7], [8, 12, 7], [8, 13, 14, 15]
    ids = torch.tensor([[*before, *[5] * SPAN, *between, *[5] * SPAN, *after]])
    pixels = 2 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 1
    with torch.no_grad():
        expected = (
            model(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == 5).long())
            .logits[0]
            .numpy()
        )
        images = model.get_image_features(pixels, return_dict=True).pooler_output.numpy()

    def prompt(decoder: LlamaCppDecoder, *, bidirectional: bool) -> NDArray[np.float32]:
        decoder.truncate(Place())
        rows, start = [], 0
        for part in (before, images[0], between, images[1], after):
            if isinstance(part, list):
                rows += [*step(decoder, part, start)]
            else:
                decoder.decode_embeddings(
                    part,
                    positions(start, start + SPAN),
                    logits=True,
                    bidirectional=bidirectional,
                )
                rows.append(decoder.logits())
            start += len(part)
        return np.stack(rows)

    shown = [*range(4), 4 + SPAN - 1, *range(20, 23), 23 + SPAN - 1, *range(39, 43)]
    decoder = LlamaCppDecoder(path, context_length=64, threads=1, bidirectional=SPAN)
    found = prompt(decoder, bidirectional=True)
    assert relative_error(found, expected[shown]) < 5e-3
    causal = prompt(decoder, bidirectional=False)
    assert relative_error(causal[4:], expected[shown][4:]) > 0.1
    decoder.close()


WIDE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "granite": GRANITE,
    "cohere2": COHERE2,
    "gemma3_text": {**GEMMA3, "head_dim": 64, "query_pre_attn_scalar": 64, "num_hidden_layers": 2},
    "gemma4_text": {
        **GEMMA4,
        "head_dim": 64,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 256,
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
    },
    "phi3": {},
}


@pytest.mark.parametrize("model_type", WIDE)
def test_quantized_files(tmp_path: Path, model_type: str) -> None:
    model = text_models.text_model(model_type, width=256, **WIDE[model_type])
    source = text_models.write_text_model(model, tmp_path)
    ids = some_ids(20)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    for file_type in ("q8_0", "q4_k_m"):
        path = tmp_path / f"decoder.{file_type}.gguf"
        quantize.quantize(source, path, file_type)
        assert not quantize.inspect(path, file_type).fallback
        decoder = LlamaCppDecoder(path, context_length=64, threads=1)
        assert 0 < relative_error(step(decoder, ids, 0), expected) < decoder_bound(file_type)
        decoder.close()


# --- what llama.cpp computes otherwise ------------------------------------------------------------

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LOCAL_LINEAR = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 512,
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "ministral3, another scale": (
        "ministral3",
        {"rope_parameters": {**MINISTRAL_YARN, "mscale": 0.7}},
        "mscale in rope_parameters is 0.7, llama.cpp computes Ministral 3 with 1",
    ),
    "ministral3, bounds that are not rounded": (
        "ministral3",
        {"rope_parameters": {**MINISTRAL_YARN, "truncate": False}},
        "truncate in rope_parameters is False, .* with True",
    ),
    "ministral3 without a temperature": (
        "ministral3",
        {"rope_parameters": {**MINISTRAL_YARN, "llama_4_scaling_beta": None}},
        "llama_4_scaling_beta in rope_parameters is None",
    ),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}, r"type 'yarn'.*default, linear for qwen2"),
    "qwen2, llama3": ("qwen2", {"rope_parameters": LLAMA3}, r"type 'llama3'.*for qwen2"),
    "qwen2, other heads": ("qwen2", {"head_dim": 32}, r"4 heads of 32.*hidden_size 64"),
    "qwen2, other layers": (
        "qwen2",
        {"layer_types": ["full_attention", "chunked_attention"]},
        r"layers of type 'chunked_attention'",
    ),
    "qwen3, activation": ("qwen3", {"hidden_act": "gelu"}, r"activation is 'gelu'.*'silu'"),
    "qwen3, biases": ("qwen3", {"attention_bias": True}, r"attention_bias is true.*qwen3"),
    "gemma, biases": ("gemma", {"attention_bias": True}, r"attention_bias is true.*gemma"),
    "gemma, llama3": ("gemma", {"rope_parameters": LLAMA3}, r"type 'llama3'.*for gemma"),
    "mistral, dynamic": (
        "mistral",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        r"type 'dynamic'",
    ),
    "llama, a part of each head": (
        "llama",
        {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
        r"partial_rotary_factor is 0\.5",
    ),
    "granite, no residual": (
        "granite",
        {**GRANITE, "residual_multiplier": 0.0},
        r"residual_multiplier is 0\.0 .*positive",
    ),
    "granite, no logits": (
        "granite",
        {**GRANITE, "logits_scaling": 0},
        r"logits_scaling is 0 .*positive",
    ),
    "cohere2, no logits": (
        "cohere2",
        {**COHERE2, "logit_scale": 0.0},
        r"logit_scale is 0\.0 .*positive",
    ),
    "cohere2, no layer slides": (
        "cohere2",
        {**COHERE2, "layer_types": [FULL] * 5},
        r"no layer with a sliding window",
    ),
    "cohere2, biases": ("cohere2", {**COHERE2, "attention_bias": True}, r"attention_bias is true"),
    "gemma2, query scale": ("gemma2", {**GEMMA2, "query_pre_attn_scalar": 16}, r"is 16,.* 24"),
    "gemma3, query scale": ("gemma3_text", {**GEMMA3, "query_pre_attn_scalar": 16}, r"is 16,.* 24"),
    "gemma3, softcap": (
        "gemma3_text",
        {**GEMMA3, "final_logit_softcapping": 30.0},
        r"final_logit_softcapping is 30\.0",
    ),
    "gemma3, encoder": (
        "gemma3_text",
        {**GEMMA3, "use_bidirectional_attention": True},
        r"use_bidirectional_attention is true",
    ),
    "gemma3, scaled sliding layers": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": LOCAL_LINEAR},
        r"sliding layers have rotary scaling of type 'linear'",
    ),
    "gemma3, biases": (
        "gemma3_text",
        {**GEMMA3, "attention_bias": True},
        r"attention_bias is true",
    ),
    "gemma4, experts": (
        "gemma4_text",
        {**GEMMA4, "enable_moe_block": True, "num_experts": 2, "moe_intermediate_size": 8},
        r"enable_moe_block is True.*without experts",
    ),
    "gemma4, images attend both ways": (
        "gemma4_text",
        {**GEMMA4, "use_bidirectional_attention": "vision"},
        r"use_bidirectional_attention is 'vision'.*images are causal",
    ),
    "gemma4, keys are values": (
        "gemma4_text",
        {**GEMMA4, "attention_k_eq_v": True},
        r"attention_k_eq_v is True",
    ),
    "gemma4 without embeddings for layers": (
        "gemma4_text",
        {**GEMMA4, "hidden_size_per_layer_input": 0},
        r"hidden_size_per_layer_input is 0",
    ),
    "gemma4, fewer embeddings for layers": (
        "gemma4_text",
        {**GEMMA4, "vocab_size_per_layer_input": 500},
        r"vocab_size_per_layer_input is 500, llama\.cpp computes with 512",
    ),
    "gemma4, padding": (
        "gemma4_text",
        {**GEMMA4, "pad_token_id": 3},
        r"pad_token_id is 3, llama\.cpp computes with 0",
    ),
    "gemma4, other shared layers": (
        "gemma4_text",
        {**GEMMA4, "layer_types": [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL]},
        r"num_kv_shared_layers is 2, .*'sliding_attention', 'sliding_attention'",
    ),
    "gemma4, no layer slides": (
        "gemma4_text",
        {**GEMMA4, "layer_types": [FULL] * 6},
        r"no layer of type 'sliding_attention'",
    ),
    "gemma4, full layers": (
        "gemma4_text",
        {**GEMMA4, "rope_parameters": {FULL: PLAIN, SLIDING: PLAIN}},
        r"type 'default' cannot be exported; edgevlm exports proportional",
    ),
    "gemma4, scaled sliding layers": (
        "gemma4_text",
        {
            **GEMMA4,
            "rope_parameters": {**LOCAL_LINEAR, FULL: PROPORTIONAL},
        },
        r"sliding layers have rotary scaling of type 'linear'",
    ),
    "gemma4, biases": (
        "gemma4_text",
        {**GEMMA4, "attention_bias": True},
        r"attention_bias is true",
    ),
    "gemma4, layers of one type differ": (
        "gemma4_text",
        {**GEMMA4, "per_layer_config": {3: {"head_dim": 32}}},
        r"per_layer_config.*full_attention layers are alike",
    ),
    "phi3, longrope": ("phi3", {"rope_parameters": LONG}, r"type 'longrope'.*default for phi3"),
    "another": ("gpt2", {}, r"type 'gpt2' cannot be exported; edgevlm exports llama, mistral,"),
}


@pytest.mark.parametrize(("model_type", "settings", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_computes_otherwise_is_refused(
    model_type: str, settings: dict[str, Any], named: str
) -> None:
    config = text_models.text_config(model_type, **settings)
    with pytest.raises(ExportError, match=named):
        hyperparameters(find_architecture(config), config)


WINDOWS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "llama": ("llama", {}, "causal", 1024),
    "mistral without window": ("mistral", {"sliding_window": None}, "causal", 1024),
    "mistral": ("mistral", {"sliding_window": 100}, "causal", 100),
    "a window beyond the context": ("mistral", {"sliding_window": 4096}, "causal", 1024),
    "phi3": ("phi3", {"sliding_window": 100}, "images", 100),
    "qwen2, switched off": ("qwen2", {"sliding_window": 100}, "causal", 1024),
    "qwen2, no layer slides": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 2},
        "causal",
        1024,
    ),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
        "causal",
        100,
    ),
    "gemma2, prefix": ("gemma2", GEMMA2, "prefix", WINDOW),
    "gemma2, causal": ("gemma2", GEMMA2, "causal", 1024),
    "gemma3": ("gemma3_text", GEMMA3, "images", 1024),
    "cohere2": ("cohere2", COHERE2, "causal", 1024),
    "gemma3, prefix": ("gemma3_text", GEMMA3, "prefix", WINDOW),
    "gemma4": ("gemma4_text", GEMMA4, "causal", 1024),
}


@pytest.mark.parametrize(
    ("model_type", "settings", "attention", "expected"), WINDOWS.values(), ids=WINDOWS.keys()
)
def test_a_window_that_llama_cpp_does_not_have_limits_the_context(
    model_type: str, settings: dict[str, Any], attention: str, expected: int
) -> None:
    config = text_models.text_config(model_type, **settings)
    find_architecture(config)
    assert context_length(config, attention) == expected


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "phi3"])
def test_a_context_as_long_as_the_window_is_exact(tmp_path: Path, model_type: str) -> None:
    window = {"use_sliding_window": True, "max_window_layers": 0} if model_type == "qwen2" else {}
    model = text_models.text_model(model_type, sliding_window=WINDOW, **window)
    ids = some_ids(WINDOW + 8)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    decoder = LlamaCppDecoder(
        text_models.write_text_model(model, tmp_path), context_length=64, threads=1
    )
    found = step(decoder, ids, 0)
    decoder.close()
    limit = context_length(model.config, "causal")
    assert relative_error(found[:limit], expected[:limit]) < 5e-3
    assert (
        relative_error(found[limit + 1 :], expected[limit + 1 :]) > 0.05
    )  # llama.cpp does not slide


def test_tensors_that_transformers_does_not_have_are_refused(tmp_path: Path) -> None:
    """llama.cpp would add them, or not load the file."""
    model = text_models.text_model("qwen2")
    layer = model.model.layers[1].self_attn
    layer.o_proj.bias = torch.nn.Parameter(torch.ones(64))
    with pytest.raises(
        ExportError, match=r"has no tensor model\.layers\.1\.self_attn\.o_proj\.bias"
    ):
        text_models.write_text_model(model, tmp_path / "more")
    layer.o_proj.bias = None
    layer.k_proj.bias = None
    with pytest.raises(ExportError, match=r"lacks 1 tensors.*layers\.1\.self_attn\.k_proj\.bias"):
        text_models.write_text_model(model, tmp_path / "less")
    layer.k_proj.bias = torch.nn.Parameter(torch.ones(64))
    with pytest.raises(ExportError, match=r"k_proj\.bias has shape \[64\], .* asks for \[32\]"):
        text_models.write_text_model(model, tmp_path / "other")


def test_keys_and_values_of_layers_that_share_others_are_left_out(tmp_path: Path) -> None:
    """Published files of Gemma 4 have them, and nothing reads them."""
    model = text_models.text_model("gemma4_text", **GEMMA4)
    plain = gguf.GGUFReader(text_models.write_text_model(model, tmp_path / "plain"))
    attention = model.model.layers[5].self_attn
    attention.k_proj, attention.v_proj = (torch.nn.Linear(64, 32, bias=False) for _ in "kv")
    attention.k_norm = torch.nn.LayerNorm(32, bias=False)
    path = text_models.write_text_model(model, tmp_path / "published")
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert names == [tensor.name for tensor in plain.tensors]
    assert "blk.3.attn_k.weight" in names and "blk.5.attn_k.weight" not in names


@pytest.mark.parametrize(("model_type", "settings"), [("granite", GRANITE), ("cohere2", COHERE2)])
def test_scaled_logits_with_a_vision_part(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    """Language models alone scale their logits; transformers' vision-language models do not."""
    folder = checkpoints.smolvlm(
        tmp_path / "checkpoint", model_type=model_type, tied=model_type == "cohere2", **settings
    )
    ids = some_ids(20)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    plan = make_plan(Checkpoint.open(folder))
    path = tmp_path / "decoder.gguf"
    write_decoder(plan.checkpoint, plan.family, plan.vocabulary, path, progress=False)
    decoder = LlamaCppDecoder(path, context_length=64, threads=1)
    assert relative_error(step(decoder, ids, 0), expected) < 5e-3
    decoder.close()


def test_the_name_of_a_checkpoint_changes_no_tokenization(tmp_path: Path) -> None:
    """llama.cpp lets added tokens of models named Phi 3 swallow the spaces behind them."""
    model = text_models.text_model("llama")
    found = []
    for name in ("llava", "llava-phi-3-mini"):
        path = text_models.write_text_model(model, tmp_path / name)
        decoder = LlamaCppDecoder(path, context_length=64, threads=1)
        found.append(decoder.tokenize("<user>  two spaces <end_of_utterance> one"))
        decoder.close()
    assert found[0] == found[1]


# --- a GGUF file that the user has ------------------------------------------------------------------

LEFT_OUT = ("vocab_size", "rope.dimension_count", "rope.scaling.finetuned")
"""What llama.cpp's converter does not write for most of these models, since llama.cpp knows it."""
HEADS_ADD_UP = ("attention.key_length", "attention.value_length")
EXISTING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mistral": ({"sliding_window": None}, HEADS_ADD_UP),
    "qwen2": ({}, HEADS_ADD_UP),
    "qwen3": ({"head_dim": 32}, ()),
    "granite": (GRANITE, HEADS_ADD_UP),
    "cohere2": (COHERE2, (*HEADS_ADD_UP, "attention.sliding_window_pattern")),
    "gemma3_text": (
        {**GEMMA3, "hidden_activation": "gelu_pytorch_tanh"},
        ("attention.sliding_window_pattern",),
    ),
    "gemma4_text": (
        {
            **GEMMA4,
            "hidden_activation": "gelu_pytorch_tanh",
            "vocab_size_per_layer_input": 520,
            "rope_parameters": {FULL: PROPORTIONAL, SLIDING: PLAIN},
        },
        (),
    ),
    "phi3": ({"sliding_window": 2047}, HEADS_ADD_UP),
}


def existing(tmp_path: Path, model_type: str) -> tuple[Plan, Path, str]:
    """A plan, the GGUF file that edgevlm writes for it, and the prefix of its keys."""
    settings, _ = EXISTING[model_type]
    folder = checkpoints.smolvlm(
        tmp_path / "checkpoint", model_type=model_type, tied=model_type == "cohere2", **settings
    )
    plan = make_plan(Checkpoint.open(folder))
    path = tmp_path / "decoder.gguf"
    write_decoder(plan.checkpoint, plan.family, plan.vocabulary, path, progress=False)
    return plan, path, str(gguf.GGUFReader(path).fields["general.architecture"].contents())


@pytest.mark.parametrize("model_type", EXISTING)
def test_a_file_of_llama_cpps_converter_is_taken(tmp_path: Path, model_type: str) -> None:
    plan, path, name = existing(tmp_path, model_type)
    assert open_existing_decoder(path, plan).file_type == "f16"
    left_out = (*LEFT_OUT, *EXISTING[model_type][1])
    changes = {f"{name}.{key}": None for key in left_out}
    converted = rewrite_gguf(path, tmp_path / "converted.gguf", changes)
    assert open_existing_decoder(converted, plan).file_type == "f16"


OTHERS: dict[str, tuple[str, str, Any, str]] = {
    "granite without rotation": ("granite", "rope.scaling.finetuned", False, "finetuned False"),
    "granite's logits": ("granite", "logit_scale", 8.0, r"logit_scale 8\.0.*does not scale"),
    "cohere2's logits": ("cohere2", "logit_scale", 0.25, r"logit_scale 0\.25.*does not scale"),
    "cohere2's layers": ("cohere2", "attention.sliding_window_pattern", 2, r"pattern \[True, F"),
    "granite's embeddings": (
        "granite",
        "embedding_scale",
        None,
        r"no granite\.embedding_scale|1\.0",
    ),
    "gemma3's softcap": (
        "gemma3_text",
        "final_logit_softcapping",
        30.0,
        r"softcapping 30\.0.*none",
    ),
    "gemma3's layers": ("gemma3_text", "attention.sliding_window_pattern", 2, r"pattern \[True, F"),
    "gemma3's window": ("gemma3_text", "attention.sliding_window", 13, r"window 13, .* has 12"),
    "gemma3's frequencies": ("gemma3_text", "rope.freq_base_swa", 1e5, r"freq_base_swa 100000\.0"),
    "gemma3's heads": ("gemma3_text", "attention.key_length_swa", 16, r"key_length_swa 16, .* 24"),
    "qwen2's window": ("qwen2", "attention.sliding_window", 64, r"sliding_window 64, .* none"),
}


@pytest.mark.parametrize(
    ("model_type", "key", "value", "message"), OTHERS.values(), ids=OTHERS.keys()
)
def test_another_file_is_refused(
    tmp_path: Path, model_type: str, key: str, value: Any, message: str
) -> None:
    plan, path, name = existing(tmp_path, model_type)
    without = rewrite_gguf(path, tmp_path / "without.gguf", {f"{name}.{key}": None})
    changed = rewrite_gguf(without, tmp_path / "changed.gguf", {f"{name}.{key}": value})
    with pytest.raises(ExportError, match=message):
        open_existing_decoder(changed, plan)


def test_a_file_without_the_last_rows_is_refused(tmp_path: Path) -> None:
    """As llama.cpp's converter writes Gemma 3."""
    plan, path, _ = existing(tmp_path, "gemma3_text")
    cut = tmp_path / "cut.gguf"
    source = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(cut, "gemma3")
    for name, field in source.fields.items():
        if name.startswith(("general.file", "gemma3.")) and name != "gemma3.vocab_size":
            kinds = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kinds[0], inner)
    for tensor in source.tensors:
        data = tensor.data[:-8] if tensor.name == "token_embd.weight" else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=r"512 rows in token_embd\.weight, the checkpoint 520:"):
        open_existing_decoder(cut, plan)
