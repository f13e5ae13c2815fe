"""Tiny tokenizers with the structure of the real ones: Llama's SentencePiece BPE, and BPE over bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgevlm.export.pre_tokenizers import (
    DEEPSEEK_LLM_PATTERNS,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    QWEN35_PATTERN,
    TEKKEN_PATTERN,
)
from tests.support.checkpoints import corpus, smollm_splitting


def llama_tokenizer(added: Sequence[str] = ("<image>", "<pad>"), size: int = 700) -> Tokenizer:
    """Llama's and Vicuna's: spaces written ``▁``, one put before each text, ``<s>`` before the prompt."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex("\n+"), "isolated"),  # Llama merges no newline with text
        ]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # Newlines are bytes, as in Llama's vocabulary.
    lines = (line for paragraph in corpus() for line in paragraph.splitlines())
    tokenizer.train_from_iterator(lines, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["content"] in special
    ]
    described["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def qwen2_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Qwen 2's: composed characters, words by its regular expression, then bytes."""
    tokenizer = byte_level_tokenizer([QWEN2_PATTERN], added, size)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def tekken_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Mistral's newer one: words by its regular expression, whole words skip the merges, ``<s>`` first."""
    tokenizer = byte_level_tokenizer([TEKKEN_PATTERN], ["<s>", "</s>", *added], size)
    tokenizer.model.ignore_merges = True
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def qwen35_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Qwen 3.5's: as Qwen 2's, and marks belong to words."""
    tokenizer = byte_level_tokenizer([QWEN35_PATTERN], added, size)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def qwen_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Qwen's first one, converted from tiktoken: numbers of three digits, whole words skip the merges."""
    tokenizer = byte_level_tokenizer([LLAMA3_PATTERN], added, size)
    tokenizer.model.ignore_merges = True
    return tokenizer


def lfm2_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """LFM2's: Llama 3's regular expression and bytes, and a token before the prompt."""
    tokenizer = byte_level_tokenizer([LLAMA3_PATTERN], added, size)
    begin = "<|startoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def byte_level_tokenizer(
    patterns: Sequence[str], added: Sequence[str], size: int, digits: bool = False
) -> Tokenizer:
    """Split at patterns, then merge bytes; with the special tokens of ChatML.

    Args:
        digits: split numbers into digits, too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            *([pre_tokenizers.Digits(individual_digits=True)] if digits else []),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def deepseek_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """DeepSeek LLM's: split at newlines, words, scripts and digits, with a token before the prompt."""
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    tokenizer = byte_level_tokenizer(DEEPSEEK_LLM_PATTERNS, [begin, end, *added], size, digits=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def granite_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Granite 3's: digits one by one, GPT-2's words, then bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = smollm_splitting()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def opt_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """OPT's: GPT-2's words, then bytes, with ``</s>`` before a text as well as behind an answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "</s>"
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def bert_tokenizer() -> Tokenizer:
    """BERT's: lower case, words in pieces, ``[CLS]`` and ``[SEP]`` around a text."""
    written = " ".join(corpus()).lower()
    letters = sorted({letter for letter in written if not letter.isspace()})
    words = sorted({word for word in written.split() if word.isalpha() and len(word) > 1})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{one}" for one in letters)]
    vocabulary = {piece: row for row, piece in enumerate([*pieces, *words[:200]])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(text, vocabulary[text]) for text in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=around
    )
    tokenizer.add_special_tokens(pieces[:4])
    return tokenizer


def cohere_tokenizer(added: Sequence[str], size: int = 700) -> Tokenizer:
    """Cohere's: composed characters, then as Granite's, with a token before the prompt.

    As in the published ones, only the end of a turn is a special token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = smollm_splitting()
    tokenizer.decoder = decoders.ByteLevel()
    begin = "<BOS_TOKEN>"
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<PAD>", "<UNK>", begin],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("<|START_OF_TURN_TOKEN|>", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|END_OF_TURN_TOKEN|>", normalized=False)])
    turns = [f"<|{role}_TOKEN|>" for role in ("USER", "CHATBOT", "SYSTEM")]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*turns, *added)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer
