"""Embeddings that serve as the output layer too: decided as transformers decides when it loads them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import write_decoder
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import make_plan
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support import checkpoints
from tests.support.damage import change_json, change_weights

IDS = [7, 300, 41, 42, 260, 9]
EMBEDDINGS = "model.text_model.embed_tokens.weight"
HEAD = "lm_head.weight"


def written(folder: Path) -> Path:
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    path = folder / "decoder.gguf"
    write_decoder(checkpoint, plan.family, plan.vocabulary, path, file_type="f32", progress=False)
    return path


def answers_as_transformers(folder: Path, *, own_head: bool) -> None:
    path = written(folder)
    names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in names) == own_head
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0, -1].numpy()
    runtime = LlamaCppDecoder(path, context_length=64, threads=1)
    runtime.decode_tokens(IDS, np.arange(len(IDS), dtype=np.int32), logits=True)
    found = runtime.logits()
    runtime.close()
    assert relative_error(found, expected) < 5e-3


def say(folder: Path, *, top: bool, text: bool) -> None:
    """What config.json says at its top, which counts, and of the language model, which does not."""
    settings = Checkpoint.open(folder).json("config.json")["text_config"]
    change_json(
        folder / "config.json",
        tie_word_embeddings=top,
        text_config={**settings, "tie_word_embeddings": text},
    )


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_of_its_own_is_used(tmp_path: Path, tied: bool, text: bool) -> None:
    """Also if the configuration says that there is none."""
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", tied=False)
    say(folder, top=tied, text=text)
    answers_as_transformers(folder, own_head=True)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_equal_to_the_embeddings_is_left_out(tmp_path: Path, tied: bool) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", tied=False)

    def equal(weights: dict[str, torch.Tensor]) -> None:
        weights[HEAD] = weights[EMBEDDINGS].clone()

    change_weights(folder, equal)
    say(folder, top=tied, text=tied)
    answers_as_transformers(folder, own_head=False)


def test_one_of_the_two_is_enough_if_they_are_tied(tmp_path: Path) -> None:
    folder = checkpoints.smolvlm(tmp_path / "embeddings", tied=True)
    answers_as_transformers(folder, own_head=False)
    folder = checkpoints.smolvlm(tmp_path / "head", tied=True)

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights[HEAD] = weights.pop(EMBEDDINGS)

    change_weights(folder, rename)
    answers_as_transformers(folder, own_head=False)


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", tied=False)
    weights: dict[str, torch.Tensor] = {}

    def drop(found: dict[str, torch.Tensor]) -> None:
        weights[HEAD] = found.pop(HEAD)

    change_weights(folder, drop)
    with pytest.raises(
        ExportError, match=r"lacks its output layer \(lm_head\.weight\), and tie_word"
    ):
        make_plan(Checkpoint.open(folder))

    def other(found: dict[str, torch.Tensor]) -> None:
        found.update(weights)
        del found[EMBEDDINGS]

    change_weights(folder, other)
    with pytest.raises(ExportError, match=r"lacks 1 tensors .* decoder\.embed_tokens\.weight"):
        make_plan(Checkpoint.open(folder))


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_gemma_has_no_output_layer_in_llama_cpp(tmp_path: Path, family: str, tied: bool) -> None:
    """One of other values is refused, whatever the configuration says, and one of the same is left out."""
    folder = getattr(checkpoints, family)(tmp_path / "checkpoint")
    change_json(folder / "config.json", tie_word_embeddings=tied)
    embeddings = next(name for name in Checkpoint.open(folder).tensors if "embed_tokens" in name)

    def same(weights: dict[str, torch.Tensor]) -> None:
        weights[HEAD] = weights[embeddings].clone()

    def different(weights: dict[str, torch.Tensor]) -> None:
        weights[HEAD] = weights[embeddings] * 2

    change_weights(folder, same)
    tensors = gguf.GGUFReader(written(folder)).tensors
    assert "output.weight" not in {tensor.name for tensor in tensors}
    change_weights(folder, different)
    with pytest.raises(ExportError, match=r"an output layer of its own \(lm_head\.weight differs"):
        make_plan(Checkpoint.open(folder))
