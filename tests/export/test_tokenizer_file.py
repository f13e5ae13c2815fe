"""The tokenizer file of decoders without llama.cpp: its tokens are transformers', its pieces llama.cpp's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import DriftError, ExportError
from edgevlm.export.pre_tokenizers import BYTE_LEVEL, NFC, SPACE_RULES
from edgevlm.export.text_battery import can_equal, check_tokenizer_file, make_texts
from edgevlm.export.tokenizer import read_vocabulary
from edgevlm.export.tokenizer_file import write_tokenizer_file
from edgevlm.inputs.plain_text import PlainText
from edgevlm.inputs.splitting import split_tekken
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.onnx.vocabulary import Vocabulary
from tests.families import tokenizers as families
from tests.support import checkpoints, vocabularies

STEPS = {name: steps for name, steps, _ in BYTE_LEVEL}
IMAGE = ["<image>"]


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS: dict[str, Callable[[], TokenizersBackend]] = {
    # with merges across every border
    **{
        f"{name}{' nfc' if normalizers else ''}": lambda name=name, normalizers=normalizers: (  # type: ignore[misc]
            vocabularies.byte_level(
                STEPS[name],
                normalizers=normalizers,
                ignore_merges=name == "llama-bpe",
                unreachable=100 if name == "llama-bpe" else 0,
                numbers_apart=name == "deepseek-llm",
            )
        )
        for name, normalizers in (
            *((name, ()) for name in STEPS),
            ("smollm", (NFC,)),
            ("qwen35", (NFC,)),
        )
    },
    **{
        f"{number} {prefix}": lambda normalizers=normalizers, steps=steps: (  # type: ignore[misc]
            vocabularies.space_marked(normalizers, steps)
        )
        for number, (normalizers, steps, prefix) in enumerate(SPACE_RULES)
    },
    # as families' own; those of the others have the steps above
    "SmolVLM": lambda: fast(checkpoints.smolvlm_tokenizer()),
    "Gemma": lambda: fast(checkpoints.gemma_tokenizer(700)),
    "Llama": lambda: fast(families.llama_tokenizer()),
    "LFM2": lambda: fast(families.lfm2_tokenizer(["<|startoftext|>", *IMAGE])),
    "DeepSeek": lambda: fast(families.deepseek_tokenizer(IMAGE)),
    "Cohere": lambda: fast(families.cohere_tokenizer(IMAGE)),
    "Tekken": lambda: fast(families.tekken_tokenizer(IMAGE)),
}


class Exported:
    """A tokenizer in transformers, in its tokenizer file and in llama.cpp."""

    def __init__(self, tokenizer: TokenizersBackend, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 5)
        self.path = folder / "tokenizer.json"
        write_tokenizer_file(self.path, tokenizer, self.vocabulary)
        self.ours = Vocabulary(self.path)
        self.llama_cpp = LlamaCppModel(
            vocabularies.write_vocabulary(folder / "vocabulary.gguf", self.vocabulary),
            gpu_layers=0,
            extra_buffer_types=False,
            vocabulary_only=True,
            splits_text=self.vocabulary.splitting is None,
        )
        self.plain_text = PlainText(
            self.ours.tokenize,
            normalization=self.vocabulary.normalization,
            space_prefix=self.vocabulary.space_prefix,
            added_tokens=self.vocabulary.added_tokens,
            splitting=self.vocabulary.splitting,
        )
        self.comparable = can_equal(self.vocabulary)

    def parts(self, text: str) -> list[str]:
        """Return what a runtime is given of a text."""
        return [text] if self.vocabulary.splitting is None else split_tekken(text)


@pytest.fixture(scope="module", params=TOKENIZERS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    found = Exported(TOKENIZERS[request.param](), tmp_path_factory.mktemp("vocabulary"))
    yield found
    found.llama_cpp.close()


def test_ids_equal_transformers(exported: Exported) -> None:
    """Through all that a prompt goes through; special tokens that a text spells are text."""
    assert check_tokenizer_file(exported.path, exported.vocabulary, exported.tokenizer) >= 1800


def test_ids_equal_llama_cpp(exported: Exported) -> None:
    """Of the same pieces of text: Tekken's are words."""
    for text in filter(exported.comparable, make_texts()[::5]):
        for part in exported.parts(text):
            assert exported.ours.tokenize(part) == exported.llama_cpp.tokenize(part), part


def test_pieces_equal_llama_cpp(exported: Exported) -> None:
    assert exported.ours.size == exported.llama_cpp.vocabulary_size
    for token in range(exported.ours.size):
        assert exported.ours.piece(token) == exported.llama_cpp.piece(token), (
            exported.vocabulary.tokens[token]
        )


@given(
    text=st.lists(
        st.sampled_from(
            [" ", "\n", "▁", "<image>", "</s>", "<unk>", "<0x41>", "é", "e\u0301", "12"]
        )
        | st.text(st.characters(codec="utf-8"), max_size=8)
    ).map("".join)
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_of_any_text(exported: Exported, text: str) -> None:
    expected = exported.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    assert exported.plain_text.tokenize(text, at_start=True) == expected["input_ids"]
    if exported.comparable(text):
        for part in exported.parts(text):
            assert exported.ours.tokenize(part) == exported.llama_cpp.tokenize(part)


def keep_normalizers(described: dict[str, Any], original: dict[str, Any]) -> None:
    described["normalizer"] = original["normalizer"]


def keep_pre_tokenizers(described: dict[str, Any], original: dict[str, Any]) -> None:
    described["pre_tokenizer"] = original["pre_tokenizer"]


def read_special_tokens(described: dict[str, Any], original: dict[str, Any]) -> None:
    described["added_tokens"] = [{**token, "special": False} for token in described["added_tokens"]]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("3 prepend", keep_normalizers),
        ("4 prepend", keep_normalizers),
        ("6 metaspace-first", keep_pre_tokenizers),
        ("smollm", read_special_tokens),
        ("0 never", read_special_tokens),
    ],
)
def test_a_wrong_file_is_found(
    name: str, damage: Callable[[dict[str, Any], dict[str, Any]], None], tmp_path: Path
) -> None:
    tokenizer = TOKENIZERS[name]()
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    path = tmp_path / "tokenizer.json"
    write_tokenizer_file(path, tokenizer, vocabulary)
    described = json.loads(path.read_text(encoding="utf-8"))
    damage(described, json.loads(tokenizer.backend_tokenizer.to_str()))
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(DriftError, match=r"tokenizer.json makes the tokens \[.*\] of "):
        check_tokenizer_file(path, vocabulary, tokenizer)


def test_padding_has_no_text(tmp_path: Path) -> None:
    found = Exported(fast(checkpoints.gemma_tokenizer(700)), tmp_path)
    assert found.vocabulary.types[-1] == TokenType.UNUSED
    assert found.ours.piece(found.ours.size - 1) == b""
    padding = found.vocabulary.tokens[-1]
    assert found.ours.size - 1 not in found.ours.tokenize(f"a {padding} b")
    found.llama_cpp.close()


def test_a_gap_between_ids_is_refused(tmp_path: Path) -> None:
    """The library counts tokens; a gap would move all that follow."""
    tokenizer = fast(checkpoints.byte_level_tokenizer(512))
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"]["moved"] = 520
    moved = fast(Tokenizer.from_str(json.dumps(described)))
    vocabulary = read_vocabulary(moved, 530)
    with pytest.raises(ExportError, match=r"as token \d+, the checkpoint"):
        write_tokenizer_file(tmp_path / "tokenizer.json", moved, vocabulary)
    assert not any(tmp_path.iterdir())
