"""Small tokenizers whose merges cross every border, so that each difference in splitting changes ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from edgevlm.export.pre_tokenizers import SPACE, Step, byte_token
from edgevlm.export.text_battery import make_texts
from edgevlm.export.tokenizer import Vocabulary

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
PLAIN_ADDED = ["<tool_call>", "</tool_call>"]
"""Added tokens that are not special: a user may write them."""
BYTE_LEVEL_SIZE = 4000
NUMBERS_APART = re.compile(r"(\d?[\x00-/:-\x7f\u00c0-\u04ff\u4e00-\u9fff]*)?")
"""Texts with one digit at most, and of few scripts."""
SPACE_MARKED_SIZE = 2500


def byte_level(
    steps: Sequence[Step],
    *,
    normalizers: Sequence[Step] = (),
    ignore_merges: bool = False,
    numbers_apart: bool = False,
    unreachable: int = 0,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE.

    Args:
        steps: its pre-tokenizers.
        numbers_apart: learn no merge that could join the bytes of two numbers.
        unreachable: merges to leave out, so that as many tokens are whole words only.
        change: a change of its ``tokenizer.json``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = make_texts()
    if numbers_apart:
        texts = [text for text in texts if NUMBERS_APART.fullmatch(text)]
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_SIZE,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    described = json.loads(tokenizer.to_str())
    described["model"]["ignore_merges"] = ignore_merges
    described["model"]["merges"] = described["model"]["merges"][: -unreachable or None]
    return finish(described, normalizers, steps, change)


def space_marked(
    normalizers: Sequence[Step],
    steps: Sequence[Step],
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> PreTrainedTokenizerFast:
    """Return a BPE with byte fallback, as SentencePiece's; arguments as of `byte_level`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer = trainers.BpeTrainer(
        vocab_size=SPACE_MARKED_SIZE,
        special_tokens=[*SPECIAL[:3], *map(byte_token, range(256))],
        limit_alphabet=150,
        show_progress=False,
    )
    lines = (line.replace(" ", SPACE) for text in make_texts() for line in text.split("\n"))
    tokenizer.train_from_iterator(lines, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = []
    steps_of_decoder: list[Any] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if not any(step.get("prepend_scheme") == "never" for step in steps) and (
        any(step["type"] in ("Prepend", "Metaspace") for step in (*normalizers, *steps))
    ):
        steps_of_decoder.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps_of_decoder)
    described["decoder"] = json.loads(tokenizer.to_str())["decoder"]
    return finish(described, normalizers, steps, change)


def finish(
    described: dict[str, Any],
    normalizers: Sequence[Step],
    steps: Sequence[Step],
    change: Callable[[dict[str, Any]], None] | None,
) -> PreTrainedTokenizerFast:
    """Return transformers' tokenizer with these text rules, and with tokens added."""
    described["normalizer"] = {"type": "Sequence", "normalizers": list(normalizers)}
    described["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {**step, **({"trim_offsets": True} if step["type"] == "ByteLevel" else {})}
            for step in steps
        ],
    }
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_ADDED])
    if change is not None:
        described = json.loads(tokenizer.to_str())
        change(described)
        tokenizer = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> Path:
    """Write a GGUF file without weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(vocabulary.tokens))
    vocabulary.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
