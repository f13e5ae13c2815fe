"""Exported tokenizers give transformers' ids: on hard texts, and on whatever hypothesis thinks of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgevlm.errors import ExportError
from edgevlm.export import tokenizer as exported
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import write_decoder
from edgevlm.export.plan import make_plan
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support import checkpoints

TEXTS = [
    "What is in the picture?",
    "½ cup + ¾ cup",
    "2026-07-02 12:34:56.789 ²³¼ ١٢٣ 一二三 Ⅷ",
    "a\n\nb",
    "\n",
    "\n\n\n\n\n\n\n",
    " \n \n\t\n",
    "  two  three   four    spaces     ",
    " " * 70,
    "def f(x):\n    if x > 1:\n\t\treturn f(x - 1) * x  # comment\r\n",
    "naïve Żółć Ελληνικά русский עברית العربية हिन्दी ไทย 日本語 한국어",
    "é é",
    "🎈👩‍👩‍👧‍👦🏳️‍🌈\u200b\u00a0\u2028\ufeff",
    "it's we'll I'M YOU'RE 'tis o'clock",
    "https://example.org/?q=a%20b&c=[1,2]#x",
    "▁ ▁▁ a▁b",
    "<0x41> <row_7_col_7> <|unknown|>",
    "\x00\x01\x7f",
    "word" * 60,
    "",
]

LETTERS = st.characters(codec="utf-8")
PIECES = st.sampled_from(
    [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "1",
        "23",
        "½",
        "a",
        "the",
        " The",
        "'s",
        "é",
        "▁",
        "_",
        "🎈",
        "中",
        "-",
    ]
)
ANY_TEXT = st.one_of(
    st.text(LETTERS, max_size=60), st.lists(st.one_of(PIECES, LETTERS), max_size=40).map("".join)
)


class Both(NamedTuple):
    """One tokenizer, in tokenizers and in llama.cpp."""

    reference: Tokenizer
    decoder: LlamaCppDecoder


def load(folder: Path) -> Both:
    """Write a checkpoint's decoder and open it."""
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    path = folder / "decoder.gguf"
    write_decoder(checkpoint, plan.family, plan.vocabulary, path, progress=False)
    decoder = LlamaCppDecoder(path, context_length=64, threads=1)
    return Both(Tokenizer.from_file(str(folder / "tokenizer.json")), decoder)


def split_at(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Llama 3's and Qwen 2's form."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def smollm(folder: Path) -> Path:
    return checkpoints.smolvlm(folder)


def gpt2(folder: Path) -> Path:
    splitting = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return checkpoints.smolvlm(folder, tokenizer=checkpoints.byte_level_tokenizer(600, splitting))


def llama3(folder: Path) -> Path:
    tokenizer = checkpoints.byte_level_tokenizer(
        600, split_at(exported.LLAMA3_PATTERN), ignore_merges=True
    )
    return checkpoints.smolvlm(folder, tokenizer=tokenizer)


def qwen2(folder: Path) -> Path:
    tokenizer = checkpoints.byte_level_tokenizer(600, split_at(exported.QWEN2_PATTERN))
    return checkpoints.smolvlm(folder, tokenizer=tokenizer)


def gemma(folder: Path) -> Path:
    return checkpoints.paligemma(folder)


BUILDERS: list[Any] = [
    smollm,
    gpt2,
    llama3,
    qwen2,
    gemma,
    checkpoints.smolvlm_real_tokenizer,
]


@pytest.fixture(scope="module", params=BUILDERS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    build: Callable[[Path], Path] = request.param
    loaded = load(build(tmp_path_factory.mktemp("checkpoint") / "folder"))
    yield loaded
    loaded.decoder.close()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(both: Both, text: str) -> None:
    expected = both.reference.encode(text, add_special_tokens=False).ids
    assert both.decoder.tokenize(text) == expected


@given(text=ANY_TEXT)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ids_equal_transformers_on_any_text(both: Both, text: str) -> None:
    expected = both.reference.encode(text, add_special_tokens=False).ids
    # SmolLM2's vocabulary lacks some control bytes, such as 0x1d. Both drop them; transformers then merges
    # what stood on either side, llama.cpp does not.
    assume(both.reference.decode(expected, skip_special_tokens=False) == text)
    assert both.decoder.tokenize(text) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_spell_the_text(both: Both, text: str) -> None:
    pieces = [both.decoder.piece(token) for token in both.decoder.tokenize(text)]
    expected = both.reference.decode(both.reference.encode(text, add_special_tokens=False).ids)
    assert b"".join(pieces).decode("utf-8", "replace") == expected


def test_ids_known_from_the_real_smolvlm(tmp_path: Path) -> None:
    """Published outputs of SmolVLM's own tokenizer, not of a copy of it made here."""
    loaded = load(checkpoints.smolvlm_real_tokenizer(tmp_path / "folder"))
    assert loaded.decoder.tokenize("½ cup + ¾ cup") == [16738, 7118, 1232, 216, 43124, 7118]
    assert loaded.decoder.tokenize("2026-07-02") == [34, 32, 34, 38, 29, 32, 39, 29, 32, 34]
    assert loaded.decoder.tokenize("\n\n") == [1116]
    assert loaded.decoder.tokenize("a\n\nb") == [81, 198, 198, 82]
    assert loaded.reference.token_to_id("<image>") == 49190
    assert loaded.reference.token_to_id("<end_of_utterance>") == 49279
    loaded.decoder.close()


def vocabulary(
    change: Callable[[dict[str, Any]], None], *, tokenizer: Tokenizer, rows: int
) -> exported.Vocabulary:
    """Of a tokenizer.json that was changed."""
    described = json.loads(tokenizer.to_str())
    change(described)
    changed = Tokenizer.from_str(json.dumps(described))
    return exported.read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=changed), rows)


def test_types_of_tokens() -> None:
    tokenizer = checkpoints.gemma_tokenizer(700)
    rows = tokenizer.get_vocab_size() + 2
    found = vocabulary(lambda described: None, tokenizer=tokenizer, rows=rows)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert kinds["<bos>"] == kinds["<image>"] == TokenType.CONTROL
    assert kinds["<unk>"] == TokenType.UNKNOWN
    assert kinds["<0x0A>"] == TokenType.BYTE
    assert kinds["\n\n"] == kinds["<loc0001>"] == TokenType.USER_DEFINED
    assert kinds["the"] == TokenType.NORMAL
    assert kinds[f"[PAD{rows - 1}]"] == TokenType.UNUSED
    assert [token.text for token in found.special_tokens] == [*checkpoints.GEMMA_SPECIAL, "<image>"]


def test_flags_of_special_tokens() -> None:
    def strip(described: dict[str, Any]) -> None:
        described["added_tokens"][1].update(lstrip=True, rstrip=True)

    tokenizer = checkpoints.byte_level_tokenizer(512)
    found = vocabulary(strip, tokenizer=tokenizer, rows=512)
    assert [(token.strip_left, token.strip_right) for token in found.special_tokens[:2]] == [
        (False, False),
        (True, True),
    ]


def refuse_unigram(described: dict[str, Any]) -> None:
    described["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}


def refuse_pre_tokenizer(described: dict[str, Any]) -> None:
    described["pre_tokenizer"] = {"type": "Whitespace"}


def refuse_normalizer(described: dict[str, Any]) -> None:
    described["normalizer"] = {"type": "NFC"}


def refuse_rule(described: dict[str, Any]) -> None:
    described["added_tokens"][-1].update(special=False, lstrip=True)


def refuse_dropout(described: dict[str, Any]) -> None:
    described["model"]["dropout"] = 0.1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (refuse_unigram, "Unigram"),
        (refuse_pre_tokenizer, "Whitespace"),
        (refuse_normalizer, "NFC"),
        (refuse_rule, "lstrip"),
        (refuse_dropout, "dropout"),
    ],
)
def test_unknown_structures_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], named: str
) -> None:
    with pytest.raises(ExportError, match=named):
        vocabulary(change, tokenizer=checkpoints.byte_level_tokenizer(512), rows=512)


def test_tokens_beyond_the_embeddings_are_refused() -> None:
    with pytest.raises(ExportError, match="the embedding table has 500 rows"):
        vocabulary(
            lambda described: None, tokenizer=checkpoints.byte_level_tokenizer(512), rows=500
        )


def test_newlines_merged_with_text_are_refused() -> None:
    def merge(described: dict[str, Any]) -> None:
        described["model"]["vocab"]["a\n"] = 1852
        described["model"]["merges"].append(["a", "\n"])

    with pytest.raises(ExportError, match="newline"):
        vocabulary(merge, tokenizer=checkpoints.gemma_tokenizer(700), rows=1856)
