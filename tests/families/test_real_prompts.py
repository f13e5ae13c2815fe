"""Prompts of published checkpoints about a photograph of 960 x 686 pixels, id by id.

The ids are those of transformers with the published tokenizers and image processors, as recorded in the
goldens of onnxruntime/mobius (MIT licence). The vocabularies here have the same pieces at the same ids; the
other ids are fillers, and the weights are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from edgevlm import VLM
from edgevlm.cli import main
from tests.families import gemma3, llava
from tests.families.row import save

SIZE = (960, 686)
LLAVA = (
    "1 3148 1001 29901 29871 32000x576 29871 13 5618 338 4318 297 445 1967 29973 "
    "319 1799 9047 13566 29901"
)
GEMMA3 = "2 105 2364 109 255999 262144x256 256000 108 82858 672 2471 528 8052 236761 106 107 105 4368 107"
"""Recorded with two begin tokens, of the template and of the tokenizer; transformers now writes one."""


def parse(layout: str) -> list[int]:
    """Return ids; ``AxN`` is N times the id A."""
    ids: list[int] = []
    for part in layout.split():
        token, _, count = part.partition("x")
        ids += [int(token)] * int(count or 1)
    return ids


def vocabulary(
    pieces: Mapping[str, int], rows: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary with these pieces at these ids, and merges that make each from left to right."""
    merges: list[tuple[str, str]] = []
    needed: list[str] = []
    for piece in pieces:
        if piece.startswith("<") or "\n" in piece:
            continue
        needed += piece
        for end in range(2, len(piece) + 1):
            merges.append((piece[: end - 1], piece[end - 1]))
            needed.append(piece[:end])
    found = dict(pieces)
    free = iter(sorted(set(range(rows)) - set(pieces.values())))
    for piece in dict.fromkeys(needed):
        if piece not in found:
            found[piece] = next(free)
    for row in free:
        found[f"filler{row}"] = row
    return found, list(dict.fromkeys(merges))


def space_marked(pieces: Mapping[str, int], rows: int, first_byte: int) -> Tokenizer:
    """Return a SentencePiece BPE with byte fallback."""
    held = {f"<0x{byte:02X}>": first_byte + byte for byte in range(256)} | dict(pieces)
    found, merges = vocabulary(held, rows)
    tokenizer = Tokenizer(
        models.BPE(found, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def build_llava(folder: Path) -> Path:
    """LLaVA 1.5 7B's tokenizer and image processor."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁US": 3148, "ER": 1001, ":": 29901, "▁": 29871}
    pieces |= {"What": 5618, "▁is": 338, "▁shown": 4318, "▁in": 297, "▁this": 445, "▁image": 1967}
    pieces |= {"?": 29973, "▁A": 319, "SS": 1799, "IST": 9047, "ANT": 13566}
    tokenizer = space_marked(pieces, 32000, first_byte=3)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False)
            for token in ("<unk>", "<s>", "</s>", "<image>", "<pad>")
        ]
    )
    config = LlavaConfig(
        vision_config={**llava.CLIP, "hidden_size": 16, "num_hidden_layers": 2, "image_size": 336},
        text_config=llava.text_config("llama", tokenizer, hidden_size=16, intermediate_size=16),
        image_token_index=32000,
    )
    sides = {"height": 336, "width": 336}
    return save(
        folder,
        LlavaForConditionalGeneration(config),
        tokenizer,
        {**llava.CLIP_PROCESSOR, "crop_size": sides, "size": {"shortest_edge": 336}},
        special=llava.LLAMA_SPECIAL,
        template=llava.VICUNA_TEMPLATE,
        end="</s>",
    )


def build_gemma3(folder: Path) -> Path:
    """Gemma 3 4B's tokenizer and image processor."""
    pieces = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105}
    pieces |= {"<end_of_turn>": 106, "\n": 107, "\n\n": 108, "\n\n\n": 109, "user": 2364}
    pieces |= {"model": 4368, "Describe": 82858, "▁this": 672, "▁image": 2471, "▁in": 528}
    pieces |= {"▁detail": 8052, ".": 236761, "<start_of_image>": 255999, "<end_of_image>": 256000}
    tokenizer = space_marked(pieces, 262144, first_byte=238)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *gemma3.SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("\n" * length, normalized=False) for length in (1, 2, 3)])
    config = Gemma3Config(
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "vocab_size": 262208,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 1024,
        },
        image_token_index=262144,
    )
    return save(
        folder,
        Gemma3ForConditionalGeneration(config),
        tokenizer,
        {**gemma3.IMAGE_PROCESSOR, "size": {"height": 896, "width": 896}},
        special=gemma3.SPECIAL_NAMES,
        template=gemma3.TEMPLATE,
        end="<end_of_turn>",
    )


@pytest.mark.parametrize(
    "build, question, expected",
    [
        (build_llava, "What is shown in this image?", LLAVA),
        (build_gemma3, "Describe this image in detail.", GEMMA3),
    ],
)
def test_ids(build: Any, question: str, expected: str, tmp_path: Path) -> None:
    checkpoint, bundle = build(tmp_path / "checkpoint"), tmp_path / "bundle"
    command = ["export", str(checkpoint), str(bundle), "--quiet", "--quick"]
    assert main([*command, "--vision", "fp32", "--decoder", "f16"]) == 0
    ids = parse(expected)
    with VLM.from_pretrained(bundle, threads=1) as vlm:
        prompt = vlm.manifest.prompt
        image_id = next(
            token.id for token in prompt.special_tokens if token.text == prompt.image_token
        )
        content: Any = [
            {"type": "image", "image": Image.new("RGB", SIZE, (9, 99, 199))},
            {"type": "text", "text": question},
        ]
        found: list[int] = []
        for part in vlm.prompt([{"role": "user", "content": content}]).parts:
            found += part.token_ids if hasattr(part, "token_ids") else [image_id] * part.tokens
    assert found == ids
