"""The vocabulary by the library tokenizers against llama.cpp's of the built-in model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm.errors import InputError, LoadError
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.onnx.vocabulary import Vocabulary
from edgevlm.runtimes.text_checks import MAX_TEXT_BYTES

REPOSITORY = Path(__file__).resolve().parents[2]
NANO = REPOSITORY / "edgevlm" / "models" / "edgevlm-nano"
TOKENIZER = REPOSITORY / "training" / "nano" / "tokenizer.json"
"""It normalizes nothing and puts no space before a text, so it is what an export writes."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENIZER)


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCppModel]:
    model = LlamaCppModel(
        next(NANO.glob("*.gguf")), gpu_layers=0, extra_buffer_types=False, vocabulary_only=True
    )
    yield model
    model.close()


@given(
    text=st.lists(
        st.sampled_from(["<|im_start|>", "<image>", " ", "\n", "is", " the", "12", "é", "красный"])
        | st.text(st.characters(codec="utf-8"), max_size=10)
    ).map("".join)
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(vocabulary: Vocabulary, llama_cpp: LlamaCppModel, text: str) -> None:
    ids = vocabulary.tokenize(text)
    assert ids == llama_cpp.tokenize(text)
    assert b"".join(map(vocabulary.piece, ids)) == text.encode()


def test_pieces(vocabulary: Vocabulary, llama_cpp: LlamaCppModel) -> None:
    assert vocabulary.size == llama_cpp.vocabulary_size
    for token in range(vocabulary.size):
        assert vocabulary.piece(token) == llama_cpp.piece(token)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (5, "text must be a string, is int"),
        ("a\ud800", "the lone surrogate '\\\\ud800' at character 1"),
        ("a" * (MAX_TEXT_BYTES + 1), f"{MAX_TEXT_BYTES + 1} bytes long"),
    ],
)
def test_refuses_texts(vocabulary: Vocabulary, text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary.tokenize(text)


def test_the_longest_text(vocabulary: Vocabulary) -> None:
    for character in "1! a":
        text = character * MAX_TEXT_BYTES
        assert b"".join(map(vocabulary.piece, vocabulary.tokenize(text))) == text.encode()


@pytest.mark.parametrize("token", [-1, 10**6, 1.5, True, "1"])
def test_refuses_tokens(vocabulary: Vocabulary, token: Any) -> None:
    with pytest.raises(InputError, match="token must be"):
        vocabulary.piece(token)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"model": 5}', "\xff"])
def test_refuses_files(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(LoadError, match=r"tokenizer\.json is no tokenizer file that can be read"):
        Vocabulary(path)


def test_needs_no_llama_cpp() -> None:
    script = (
        "import json, sys; from pathlib import Path\n"
        "sys.modules['llama_cpp'] = None\n"
        "from edgevlm.runtimes.onnx.vocabulary import Vocabulary\n"
        "from edgevlm.runtimes.sampler import NumpySampler\n"
        "from edgevlm.runtimes.constraints import Constraints\n"
        "from edgevlm.runtimes.protocols import Sampling\n"
        "import numpy as np\n"
        "vocabulary = Vocabulary(Path(sys.argv[1]))\n"
        "constraints = Constraints(vocabulary.size, vocabulary.piece, vocabulary.tokenize)\n"
        "sampling = Sampling(json_schema={'enum': ['red', 'blue']})\n"
        "logits = np.zeros(vocabulary.size, np.float32)\n"
        "logits[vocabulary.tokenize('blue')] = 1\n"
        "sampler = NumpySampler(\n"
        "    len(logits), sampling, lambda: logits, constraints.matcher(sampling, [0])\n"
        ")\n"
        "tokens = []\n"
        "while 0 not in tokens:\n"
        "    tokens.append(sampler.sample())\n"
        "print(b''.join(map(vocabulary.piece, tokens)).decode())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(TOKENIZER)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == "blue"
