"""The decoder's model: its file, and text to tokens and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest

from edgevlm.errors import InputError, LoadError
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.text_checks import MAX_TEXT_BYTES
from tests.support.tiny_decoder import END, IMAGE, TOKENS, USER_DEFINED, write_tokenizer


def load(path: Path) -> LlamaCppModel:
    return LlamaCppModel(path, gpu_layers=0, extra_buffer_types=True)


@pytest.fixture(scope="module")
def model(tiny_file: Path) -> Iterator[LlamaCppModel]:
    loaded = load(tiny_file)
    yield loaded
    loaded.close()


def test_text_becomes_plain_tokens(model: LlamaCppModel) -> None:
    assert model.tokenize("the") == [TOKENS.index("the")]
    assert model.tokenize("") == []
    assert END not in model.tokenize("a<|end|>b")
    assert IMAGE not in model.tokenize("<image>")
    assert USER_DEFINED in model.tokenize("a<user>b")


def test_a_vocabulary_needs_no_weights(model: LlamaCppModel, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_vocab_size(len(TOKENS))
    write_tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocabulary = LlamaCppModel(
        tmp_path / "vocabulary.gguf",
        gpu_layers=0,
        extra_buffer_types=False,
        vocabulary_only=True,
    )
    text = "the thin<user> line<|end|>"
    assert vocabulary.tokenize(text) == model.tokenize(text)
    assert vocabulary.piece(USER_DEFINED) == b"<user>"
    assert vocabulary.vocabulary_size == len(TOKENS)
    vocabulary.close()


@pytest.mark.parametrize(
    "text",
    [
        "the thin line in the inn",
        "a\0b\0",
        "\0",
        "½ cup + ¾ cup",
        "漢字かな\U0001f600\u200d",
        "<|end|><image> \r\n\t  <user>",
        "\ufeff\uffff\U0010ffff",
        "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)])),
    ],
    ids=range(8),
)
def test_pieces_of_tokens_are_the_text(model: LlamaCppModel, text: str) -> None:
    tokens = model.tokenize(text)
    assert b"".join(map(model.piece, tokens)) == text.encode()


def test_pieces(model: LlamaCppModel) -> None:
    assert model.piece(END) == model.piece(IMAGE) == b""
    assert model.piece(USER_DEFINED) == b"<user>"
    assert model.piece(ord("a") - ord("!")) == b"a"
    for token in (-1, len(TOKENS), 2**40):
        with pytest.raises(InputError, match="token must be from 0"):
            model.piece(token)
    with pytest.raises(InputError, match="must be an integer"):
        model.piece(cast(Any, "a"))


def test_text_that_is_none(model: LlamaCppModel) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        model.tokenize("caf\udce9")
    wrong: list[Any] = [b"bytes", None, 3]
    for text in wrong:
        with pytest.raises(InputError, match="must be a string"):
            model.tokenize(text)
    with pytest.raises(InputError, match="shorten"):
        model.tokenize("a" * (MAX_TEXT_BYTES + 1))


def test_long_runs_of_text(model: LlamaCppModel) -> None:
    limit = MAX_TEXT_BYTES
    pieces = [model.piece(token) for token in range(len(TOKENS))]
    for character in ("a", " ", "7", "\n", "é", "!"):
        text = character * (limit // len(character.encode()))
        assert b"".join(pieces[token] for token in model.tokenize(text)) == text.encode()


def test_long_runs_do_not_overflow_the_stack(tiny_file: Path, tmp_path: Path) -> None:
    """With a vocabulary for which llama.cpp uses `std::regex`, which recurses, on a small stack."""
    content = tiny_file.read_bytes()
    key = b"tokenizer.ggml.pre" + np.uint32(gguf.GGUFValueType.STRING).tobytes()
    old = key + np.uint64(6).tobytes() + b"smollm"
    assert content.count(old) == 1
    deep = tmp_path / "deep.gguf"
    deep.write_bytes(content.replace(old, old[:-6] + b"falcon"))
    script = (
        "import sys, threading\n"
        "from edgevlm.runtimes.llama_cpp.model import MAX_SHORT_TEXT_BYTES\n"
        "from edgevlm.runtimes.text_checks import MAX_TEXT_BYTES\n"
        "from edgevlm.runtimes.llama_cpp.probe import BasicKernelsDecoder\n"
        "decoder = BasicKernelsDecoder(sys.argv[1], context_length=1, threads=1)\n"
        "def tokenize():\n"
        "    for length in (MAX_SHORT_TEXT_BYTES, MAX_TEXT_BYTES):\n"
        "        assert len(decoder.tokenize('!' * length)) == length\n"
        "    print('tokenized')\n"
        "threading.stack_size(128 * 1024)\n"
        "thread = threading.Thread(target=tokenize); thread.start(); thread.join()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(deep)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "tokenized\n"), ended.stderr


def test_files_that_are_no_decoder(tiny_file: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + np.random.default_rng(0).bytes(10000))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_file.read_bytes()[:-5000])
    for wrong in (garbage, cut, tmp_path / "missing.gguf"):
        with pytest.raises(LoadError, match=str(wrong)):
            load(wrong)


@pytest.mark.parametrize("architecture", ["bert", "mamba"])
def test_other_kinds_of_models_are_refused(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadError, match="cannot load"):
        load(path)
