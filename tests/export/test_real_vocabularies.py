"""Published vocabularies, which this repository does not hold. They lie in llama.cpp's sources.

``LLAMA_CPP_VOCABULARIES=llama.cpp/models pytest tests/export/test_real_vocabularies.py`` runs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from edgevlm.export.pre_tokenizers import (
    BYTE_LEVEL,
    BYTES_ONLY,
    NFC,
    SPACE_RULES,
    SPLIT_AT_SPACES,
)
from edgevlm.export.text_battery import check_tokenizer
from edgevlm.export.tokenizer import read_vocabulary
from edgevlm.inputs.plain_text import PlainText
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from tests.support.vocabularies import write_vocabulary

FOLDER = os.environ.get("LLAMA_CPP_VOCABULARIES", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="LLAMA_CPP_VOCABULARIES names no folder"),
]

BYTE_LEVEL_FILES = [
    ("gpt-2", "gpt-2", []),
    ("starcoder", "smollm", []),
    ("refact", "smollm", []),
    ("command-r", "smollm", [NFC]),
    ("llama-bpe", "llama-bpe", []),
    ("qwen2", "qwen2", [NFC]),
    ("qwen35", "qwen35", [NFC]),
    ("deepseek-llm", "deepseek-llm", []),
]
LLAVA_QUESTION = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
LLAVA_IDS = [
    *(1, 3148, 1001, 29901, 29871, 32000, 29871, 13, 5618, 338, 4318, 297, 445, 1967, 29973),
    *(319, 1799, 9047, 13566, 29901),
]
"""The real prompt of LLaVA 1.5, with one image token instead of 576."""


def read(name: str, normalizers: list[Any], steps: list[Any], **model: Any) -> Tokenizer:
    """Return the tokenizer of a file with these text rules."""
    reader = gguf.GGUFReader(Path(FOLDER) / f"ggml-vocab-{name}.gguf")
    fields = {key.rpartition(".")[2]: field.contents() for key, field in reader.fields.items()}
    tokens, types = fields["tokens"], fields["token_type"]
    # llama.cpp's converter shows some of Gemma 4's special tokens in answers.
    shown = {TokenType.USER_DEFINED} if name == "gemma-4" else set()
    special = [
        number
        for number, kind in enumerate(types)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, *shown)
    ]
    plain = [
        number
        for number, kind in enumerate(types)
        if kind == TokenType.USER_DEFINED
        and number not in special
        and not tokens[number].startswith("[PAD")
    ]
    # Those behind all other tokens are no part of the vocabulary; Cohere's stand among special ones.
    others = {*range(len(tokens))} - {*plain}
    behind = {number for number in plain if number > max(others)}
    spelled = "scores" in fields
    merges = fields.get("merges") or list(merges_by_score(tokens, types, fields["scores"]))
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": number in plain,
                "special": number in special,
            }
            for number in sorted([*special, *plain])
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**step, "trim_offsets": True} for step in steps]
            if not spelled
            else steps,
        },
        "post_processor": None,
        "decoder": None if spelled else {**BYTES_ONLY, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if spelled else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": spelled,
            "byte_fallback": spelled,
            "ignore_merges": name == "llama-bpe",
            "vocab": {
                token: number
                for number, token in enumerate(tokens)
                if spelled or number not in behind
            },
            "merges": merges,
        },
    }
    return Tokenizer.from_str(json.dumps(described))


def merges_by_score(
    tokens: list[str], types: list[int], scores: list[float]
) -> Iterator[list[str]]:
    """Yield the merges of a SentencePiece vocabulary, best first, as transformers makes them."""
    ids = {
        token: number for number, token in enumerate(tokens) if types[number] == TokenType.NORMAL
    }
    ranked = [
        (-scores[number], number, ids[token[:size]], ids[token[size:]], size)
        for token, number in ids.items()
        for size in range(1, len(token))
        if token[:size] in ids and token[size:] in ids
    ]
    for _, number, _, _, size in sorted(ranked):
        yield [tokens[number][:size], tokens[number][size:]]


@pytest.mark.parametrize(("name", "rule", "normalizers"), BYTE_LEVEL_FILES)
def test_byte_level(name: str, rule: str, normalizers: list[Any], tmp_path: Path) -> None:
    steps = next(steps for known, steps, _ in BYTE_LEVEL if known == rule)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=read(name, normalizers, steps))
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.pre_tokenizer == rule
    path = write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary)
    assert check_tokenizer(path, vocabulary, tokenizer) >= 1800


@pytest.mark.parametrize("rule", SPACE_RULES, ids=[rule[2] for rule in SPACE_RULES])
def test_llama(rule: Any, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=read("llama-spm", rule[0], rule[1]))
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.space_prefix == rule[2]
    path = write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary)
    assert check_tokenizer(path, vocabulary, tokenizer) >= 1800


def test_gemma4(tmp_path: Path) -> None:
    """Its merges join newlines, which llama.cpp splits from other text."""
    normalizers, steps, _ = next(rule for rule in SPACE_RULES if SPLIT_AT_SPACES in rule[1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=read("gemma-4", normalizers, steps))
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    path = write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary)
    assert check_tokenizer(path, vocabulary, tokenizer) >= 1800


def test_the_real_prompt_of_llava(tmp_path: Path) -> None:
    normalizers, steps, _ = next(rule for rule in SPACE_RULES if rule[2] == "prepend")
    read_tokenizer = read("llama-spm", normalizers, steps)
    read_tokenizer.add_special_tokens([AddedToken("<image>", normalized=False)])
    read_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=read_tokenizer)
    assert tokenizer(LLAVA_QUESTION)["input_ids"] == LLAVA_IDS
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    path = write_vocabulary(tmp_path / "vocabulary.gguf", vocabulary)
    model = LlamaCppModel(path, gpu_layers=0, extra_buffer_types=False, vocabulary_only=True)
    plain_text = PlainText(model.tokenize, space_prefix=vocabulary.space_prefix)
    before, after = LLAVA_QUESTION.split("<image>")
    assert [
        *vocabulary.begin_token_ids,
        *plain_text.tokenize(before, at_start=True),
        tokenizer.convert_tokens_to_ids("<image>"),
        *plain_text.tokenize(after, at_start=False),
    ] == LLAVA_IDS
    model.close()
