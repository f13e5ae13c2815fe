"""Rows of a GGUF's embedding table, in every type that llama.cpp quantizes to."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.runtimes.llama_cpp.embedding_table import EmbeddingTable
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.llama_cpp.probe import UncheckedDecoder, write_model
from edgevlm.runtimes.protocols import Place
from tests.support.tiny_decoder import decoded, positions, relative_error


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, which every type takes."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    write_model(path)
    return path


TYPES = [
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
]


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_the_embedding_table(wide_model: Path, tmp_path: Path, kind: str) -> None:
    """llama.cpp computes the same from our rows as from its own look-up of the tokens."""
    llama = load_llama_cpp()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_F16
    parameters.token_embedding_type = int(gguf.GGMLQuantizationType[kind])
    path = tmp_path / "quantized.gguf"
    status = llama.llama_model_quantize(bytes(wide_model), bytes(path), parameters)
    assert status == 0
    assert EmbeddingTable(path).type.name == kind
    decoder = UncheckedDecoder(path, context_length=64, threads=1)
    tokens = [0, 255, 7, 7, 128]
    rows = decoder.embed(tokens)
    assert rows.shape == (5, 256) and rows.dtype == np.float32 and np.array_equal(rows[2], rows[3])
    by_token = decoded(decoder, tokens)
    decoder.truncate(Place())
    decoder.decode_embeddings(rows, positions(0, 5), logits=True)
    assert relative_error(decoder.logits(), by_token) < 1e-6
