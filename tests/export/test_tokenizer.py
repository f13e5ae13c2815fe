"""Exported tokenizers give transformers' ids: on hard texts, and on whatever hypothesis thinks of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from edgevlm.engine.detokenizer import Detokenizer
from edgevlm.errors import ExportError
from edgevlm.export.pre_tokenizers import BYTE_LEVEL, NFC, SPACE_RULES, split
from edgevlm.export.text_battery import can_equal
from edgevlm.export.tokenizer import Vocabulary, read_vocabulary
from edgevlm.inputs.plain_text import PlainText
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from tests.support import checkpoints
from tests.support.vocabularies import byte_level as trained
from tests.support.vocabularies import space_marked, write_vocabulary

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


class Exported:
    """A tokenizer in transformers, and in llama.cpp after an export."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self.reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.vocabulary = read_vocabulary(self.reference, tokenizer.get_vocab_size() + 5)
        self.model = LlamaCppModel(
            write_vocabulary(folder / "vocabulary.gguf", self.vocabulary),
            gpu_layers=0,
            extra_buffer_types=False,
            vocabulary_only=True,
        )
        self.plain_text = PlainText(
            self.model.tokenize,
            normalization=self.vocabulary.normalization,
            space_prefix=self.vocabulary.space_prefix,
            added_tokens=self.vocabulary.added_tokens,
            splitting=self.vocabulary.splitting,
        )

    def tokenize(self, text: str) -> list[int]:
        return self.plain_text.tokenize(text, at_start=True)

    def expected(self, text: str) -> list[int]:
        ids: list[int] = self.reference(text, add_special_tokens=False)["input_ids"]
        return ids


def byte_level(name: str, *, ignore_merges: bool = False, nfc: bool = False) -> Tokenizer:
    steps = next(steps for known, steps, _ in BYTE_LEVEL if known == name)
    tokenizer = checkpoints.byte_level_tokenizer(600, ignore_merges=ignore_merges)
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {**step, **({"trim_offsets": True} if step["type"] == "ByteLevel" else {})}
            for step in steps
        ],
    }
    if nfc:
        described["normalizer"] = NFC
    return Tokenizer.from_str(json.dumps(described))


def gemma() -> Tokenizer:
    return checkpoints.gemma_tokenizer(700)


def llama(space_prefix: str) -> Tokenizer:
    normalizers, steps, _ = next(rule for rule in SPACE_RULES if rule[2] == space_prefix)
    found: Tokenizer = space_marked(normalizers, steps).backend_tokenizer
    return found


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "smollm": lambda: byte_level("smollm"),
    "llama-bpe": lambda: byte_level("llama-bpe", ignore_merges=True),
    "qwen2": lambda: byte_level("qwen2", nfc=True),
    "gemma": gemma,
    "prepend": lambda: llama("prepend"),
    "metaspace-always": lambda: llama("metaspace-always"),
    "metaspace-first": lambda: llama("metaspace-first"),
    "SmolVLM's own": checkpoints.smolvlm_tokenizer,
}


@pytest.fixture(scope="module", params=BUILDERS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    found = Exported(BUILDERS[request.param](), tmp_path_factory.mktemp("vocabulary"))
    yield found
    found.model.close()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(exported: Exported, text: str) -> None:
    assert exported.tokenize(text) == exported.expected(text)


@given(text=ANY_TEXT)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ids_equal_transformers_on_any_text(exported: Exported, text: str) -> None:
    # SmolLM2's vocabulary lacks some control bytes, such as 0x1d.
    assume(can_equal(exported.vocabulary)(text))
    assert exported.tokenize(text) == exported.expected(text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_an_answer_equals_transformers(exported: Exported, text: str) -> None:
    """What puts a space before a text removes it from an answer; edgevlm removes all spaces there."""
    ids = [exported.vocabulary.special_tokens[0].id, *exported.expected(text)]
    answer = Detokenizer(())
    found = "".join([*(answer.push(exported.model.piece(token)) for token in ids), answer.finish()])
    decoded = exported.reference.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert found == decoded.lstrip()


def test_ids_known_from_the_real_smolvlm(tmp_path: Path) -> None:
    """Published outputs of SmolVLM's own tokenizer, not of a copy of it made here."""
    found = Exported(checkpoints.smolvlm_tokenizer(), tmp_path)
    assert found.tokenize("½ cup + ¾ cup") == [16738, 7118, 1232, 216, 43124, 7118]
    assert found.tokenize("2026-07-02") == [34, 32, 34, 38, 29, 32, 39, 29, 32, 34]
    assert found.tokenize("\n\n") == [1116]
    assert found.tokenize("a\n\nb") == [81, 198, 198, 82]
    assert found.reference.convert_tokens_to_ids("<image>") == 49190
    assert found.reference.convert_tokens_to_ids("<end_of_utterance>") == 49279
    found.model.close()


CONVERSATIONS = [
    "USER: <image>\nWhat is shown in this image? ASSISTANT:",
    "<s>USER: <image>\nWhat? ASSISTANT: It is a cat.</s>USER: <image> and<image>this? ASSISTANT:",
    " <image> <s>  two spaces</s>\n<image>▁mark<image>\n\nUSER: é e\u0301\u0338 <tool_call>\u0338 x",
]


@pytest.mark.parametrize("rule", SPACE_RULES, ids=[rule[2] for rule in SPACE_RULES])
@pytest.mark.parametrize("prompt", CONVERSATIONS)
def test_the_text_between_images(rule: Any, prompt: str, tmp_path: Path) -> None:
    """As LLaVA 1.5's real prompt has them: 29871, a space, before and after the image."""
    found = Exported(space_marked(rule[0], rule[1]).backend_tokenizer, tmp_path)
    special = {token.text: token.id for token in found.vocabulary.special_tokens}
    ids: list[int] = []
    start = 0
    for part in re.split(f"({'|'.join(special)})", prompt):
        if part in special:
            ids.append(special[part])
        elif part:
            ids += found.plain_text.tokenize(part, at_start=start == 0)
        start += len(part)
    found.model.close()
    assert ids == found.expected(prompt)
    if rule[2] == "prepend" and prompt == CONVERSATIONS[0]:
        image = ids.index(special["<image>"])
        space = found.reference.convert_tokens_to_ids("▁")
        assert ids[image - 1 : image + 3] == [
            space,
            special["<image>"],
            space,
            found.reference.convert_tokens_to_ids("<0x0A>"),
        ]


def with_processor(single: str) -> PreTrainedTokenizerFast:
    """SmolVLM's, with tokens around a text."""
    tokenizer = checkpoints.byte_level_tokenizer(512)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[
            (name, tokenizer.token_to_id(name)) for name in ("<|im_start|>", "<|im_end|>")
        ],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_begin_tokens() -> None:
    tokenizer = with_processor("<|im_start|> $A")
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert read_vocabulary(tokenizer, 512).begin_token_ids == (begin,)
    plain = PreTrainedTokenizerFast(tokenizer_object=checkpoints.byte_level_tokenizer(512))
    assert read_vocabulary(plain, 512).begin_token_ids == ()
    with pytest.raises(ExportError, match=r"'<\|im_end\|>'\] of 'a', with tokens behind the text"):
        read_vocabulary(with_processor("<|im_start|> $A <|im_end|>"), 512)


TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}"
)
"""The beginning of it."""


def vocabulary(
    change: Callable[[dict[str, Any]], None], *, tokenizer: Tokenizer, rows: int
) -> Vocabulary:
    """Of a tokenizer.json that was changed."""
    described = json.loads(tokenizer.to_str())
    change(described)
    changed = Tokenizer.from_str(json.dumps(described))
    return read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=changed), rows)


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
    described["normalizer"] = {"type": "NFKC"}


def refuse_tekken(described: dict[str, Any]) -> None:
    described["pre_tokenizer"]["pretokenizers"][0] = split(TEKKEN_PATTERN)


def refuse_rule(described: dict[str, Any]) -> None:
    described["added_tokens"][-1].update(special=False, lstrip=True)


def refuse_dropout(described: dict[str, Any]) -> None:
    described["model"]["dropout"] = 0.1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (refuse_unigram, "Unigram"),
        (refuse_pre_tokenizer, "Whitespace"),
        (refuse_normalizer, "NFKC"),
        (refuse_tekken, r"\\\\p\{Lu\}\\\\p\{Lt\}"),
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


def test_two_tokens_of_one_id_are_refused() -> None:
    def leave_out(described: dict[str, Any]) -> None:
        """tokenizers counts the tokens, and gives the next number to the first added one."""
        del described["model"]["vocab"]["ÿ"]

    with pytest.raises(ExportError, match=r"has the id \d+ for '.*' and for '<global-img>'"):
        vocabulary(leave_out, tokenizer=checkpoints.byte_level_tokenizer(512), rows=512)


def test_tokens_that_no_merge_makes_are_refused() -> None:
    """llama.cpp has one answer under each name to whether whole words skip the merges."""
    steps = next(steps for name, steps, _ in BYTE_LEVEL if name == "qwen2")
    tokenizer = trained(steps, ignore_merges=True, unreachable=1)
    with pytest.raises(ExportError, match=r"ignore_merges True, and its merges make \["):
        read_vocabulary(tokenizer, len(tokenizer))


def test_merges_of_numbers_are_refused_where_llama_cpp_does_not_split_them() -> None:
    steps = next(steps for name, steps, _ in BYTE_LEVEL if name == "deepseek-llm")
    tokenizer = trained(steps)
    with pytest.raises(ExportError, match="the bytes of two numbers"):
        read_vocabulary(tokenizer, len(tokenizer))


def test_a_token_that_the_normalizer_changes_is_refused() -> None:
    """In transformers ``</s>`` is then found after a space only."""

    def normalize(described: dict[str, Any]) -> None:
        for added in described["added_tokens"]:
            added["normalized"] = added["content"] == "</s>"

    for normalizers, steps, prefix in SPACE_RULES:
        tokenizer = space_marked(normalizers, steps, change=normalize)
        if prefix == "prepend":
            with pytest.raises(ExportError, match=r"searches the token '</s>' after normalization"):
                read_vocabulary(tokenizer, len(tokenizer))
        else:
            read_vocabulary(tokenizer, len(tokenizer))
