"""Each kind of tokenizer through llama.cpp itself, and that the battery finds every wrong rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from transformers import PreTrainedTokenizerFast

from edgevlm.errors import DriftError
from edgevlm.export.pre_tokenizers import BYTE_LEVEL, NFC, SPACE_RULES
from edgevlm.export.text_battery import check_tokenizer, make_texts
from edgevlm.export.tokenizer import Vocabulary, read_vocabulary
from tests.support import vocabularies

STEPS = {name: steps for name, steps, _ in BYTE_LEVEL}
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt-2": lambda: vocabularies.byte_level(STEPS["gpt-2"]),
    "smollm": lambda: vocabularies.byte_level(STEPS["smollm"]),
    "smollm nfc": lambda: vocabularies.byte_level(STEPS["smollm"], normalizers=[NFC]),
    "llama-bpe": lambda: vocabularies.byte_level(
        STEPS["llama-bpe"], ignore_merges=True, unreachable=100
    ),
    "dbrx": lambda: vocabularies.byte_level(STEPS["dbrx"], unreachable=100),
    "qwen2 nfc": lambda: vocabularies.byte_level(STEPS["qwen2"], normalizers=[NFC]),
    "qwen2": lambda: vocabularies.byte_level(STEPS["qwen2"], ignore_merges=True),
    "qwen35 nfc": lambda: vocabularies.byte_level(STEPS["qwen35"], normalizers=[NFC]),
    "deepseek-llm": lambda: vocabularies.byte_level(STEPS["deepseek-llm"], numbers_apart=True),
    **{
        f"{number} {prefix}": lambda normalizers=normalizers, steps=steps: (  # type: ignore[misc]
            vocabularies.space_marked(normalizers, steps)
        )
        for number, (normalizers, steps, prefix) in enumerate(SPACE_RULES)
    },
}


class Exported:
    """A tokenizer and what was read from it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 3)

    def check(self, path: Path, **changes: Any) -> int:
        """Compare a file with some values of the vocabulary changed."""
        changed: Vocabulary = dataclasses.replace(self.vocabulary, **changes)
        vocabularies.write_vocabulary(path, changed)
        return check_tokenizer(path, changed, self.tokenizer)


@pytest.fixture(scope="module")
def exported() -> Callable[[str], Exported]:
    known: dict[str, Exported] = {}

    def find(name: str) -> Exported:
        if name not in known:
            known[name] = Exported(TOKENIZERS[name]())
        return known[name]

    return find


def test_texts_are_many_and_the_same() -> None:
    texts = make_texts()
    assert len(texts) == len(set(texts)) >= 1800
    assert texts == make_texts()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_equal_transformers(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    found = exported(name)
    assert found.check(tmp_path / "v.gguf") >= 1800
    rule = name.split(" ")[0]
    if rule.isdigit():
        assert found.vocabulary.space_prefix == name.split(" ")[1]
    else:
        assert found.vocabulary.pre_tokenizer == rule
    assert found.vocabulary.normalization == ("nfc" if name.endswith("nfc") else None)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("gpt-2", {"pre_tokenizer": "smollm"}),
    ("smollm", {"pre_tokenizer": "gpt-2"}),
    ("llama-bpe", {"pre_tokenizer": "qwen2"}),
    ("llama-bpe", {"pre_tokenizer": "dbrx"}),
    ("dbrx", {"pre_tokenizer": "llama-bpe"}),
    ("qwen2", {"pre_tokenizer": "qwen35"}),
    ("qwen2", {"pre_tokenizer": "dbrx"}),
    ("qwen35 nfc", {"pre_tokenizer": "qwen2"}),
    ("deepseek-llm", {"pre_tokenizer": "deepseek-coder"}),
    ("qwen2 nfc", {"normalization": None}),
    ("qwen2", {"normalization": "nfc"}),
    ("qwen2 nfc", {"added_tokens": ()}),
    ("0 never", {"space_prefix": "metaspace-first"}),
    ("3 prepend", {"space_prefix": "metaspace-always"}),
    ("3 prepend", {"added_tokens": ()}),
    ("5 metaspace-always", {"space_prefix": "prepend"}),
    ("5 metaspace-always", {"space_prefix": "metaspace-first"}),
    ("6 metaspace-first", {"space_prefix": "metaspace-always"}),
    ("6 metaspace-first", {"space_prefix": "never"}),
]


@pytest.mark.parametrize(("name", "changes"), WRONG, ids=[f"{n} {c}" for n, c in WRONG])
def test_a_wrong_rule_is_found(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(DriftError, match=r"makes the tokens \[.*\] of .*tokenizer \["):
        exported(name).check(tmp_path / "v.gguf", **changes)


@pytest.mark.parametrize("name", ["smollm", "3 prepend"])
def test_a_special_token_that_a_user_can_write_is_found(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    vocabulary = exported(name).vocabulary
    types = list(vocabulary.types)
    types[vocabulary.tokens.index("<image>")] = TokenType.USER_DEFINED
    with pytest.raises(DriftError, match="<image>"):
        exported(name).check(tmp_path / "v.gguf", types=tuple(types))
