"""Prompts become the token ids of transformers' processors, and text never becomes a special token."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Idefics3Processor, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.inputs.prompt import PromptBuilder, TextSegment
from edgevlm.inputs.tiling import split_image
from edgevlm.manifest import Manifest
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.conftest import Export, Exported
from tests.support.texts import SPECIAL_TEXTS

TEXTS = [
    "What is this?",
    "  two  spaces   and three\tand a tab ",
    "line\nline\n\nparagraph\n\n\n\nfar below\r\nwindows\n",
    "\n",
    " ",
    "3.14159 2026-07-02 1,000,000 0x1F ½ cup + ¾ cup ٣٤ ⅷ ²³",
    "naïve café Ångström Straße ÆØÅ ﬁ ẞ",
    "Что на картинке? Сколько здесь звёзд?",
    "この写真には何が写っていますか。 图片里有什么？ 무엇이 있나요?",
    "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 \u200b\u200d\ufeff e\u0301 a\u0308",
    "def f(x):\n    return x**2 if x != 0 else None  # comment\n\n\n\tclass A: pass",
    "I'll can't WE'VE don't it's 'tis o'clock rock'n'roll",
    "<b>bold</b> & <i>x</i> {{ not jinja }} {% raw %} <not_a_token> <|nope|>",
    "a" * 300,
    "\u0000\u0001\u007f control",
    "https://example.com/a?b=c&d=%20#e user@example.com C:\\path\\file",
    "ends with newline\n",
    "\nstarts with newline",
    "עברית العربية हिन्दी ไทย",
    "mixed123numbers456and789words",
]
PICTURES = [(200, 100), (64, 64), (50, 300), (256, 256)]


def picture(index: int) -> Image.Image:
    width, height = PICTURES[index]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image() -> dict[str, str]:
    return {"type": "image"}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def conversations() -> list[tuple[list[dict[str, Any]], list[int]]]:
    """Message lists, each with the numbers of its pictures; 222 of them."""
    found: list[tuple[list[dict[str, Any]], list[int]]] = []
    for first, second in itertools.product(TEXTS, TEXTS[::2]):
        found.append(([{"role": "user", "content": [text(first + second)]}], []))
    for index, (question, answer) in enumerate(zip(TEXTS, reversed(TEXTS), strict=True)):
        one = index % len(PICTURES)
        user = {"role": "user", "content": [image(), text(question)]}
        assistant = {"role": "assistant", "content": [text(answer)]}
        system = {"role": "system", "content": [text(answer)]}
        again = {"role": "user", "content": [text(question), image(), text(answer), image()]}
        found.append(([user], [one]))
    for index, (question, answer) in enumerate(zip(TEXTS[::10], TEXTS[1::10], strict=True)):
        found.append(([user, assistant, again], [index, 1, 2]))
        found.append(
            ([system, user, assistant, {"role": "user", "content": [text(question + answer)]}], [3])
        )
    return found


CONVERSATIONS = conversations()


class Prompts:
    """Our prompt builder and transformers' processor of one checkpoint."""

    def __init__(self, exported: Exported) -> None:
        self.manifest = Manifest.load(exported.bundle)
        self.decoder = LlamaCppDecoder(
            exported.bundle / self.manifest.decoder.files["f16"].name, context_length=256
        )
        self.builder = PromptBuilder(self.manifest.prompt, self.decoder.tokenize)
        self.image_id = next(
            token.id
            for token in self.manifest.prompt.special_tokens
            if token.text == self.manifest.prompt.image_token
        )
        self.tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint)
        self.plain = plain_tokenizer(exported.checkpoint)

    @property
    def tokens_per_tile(self) -> int:
        tokens = self.manifest.vision.tokens_per_tile
        assert tokens is not None
        return tokens

    def ids(self, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> list[int]:
        """Our ids, with the image token in the places of the embeddings."""
        tiling = self.manifest.image.tiling
        layouts = [split_image(np.asarray(image), tiling).layout for image in pictures]
        found: list[int] = []
        for segment in self.builder.build(messages, [(layout, layout.tiles) for layout in layouts]):
            if isinstance(segment, TextSegment):
                found += segment.token_ids
            else:
                found += [self.image_id] * self.tokens_per_tile
        return found


def plain_tokenizer(checkpoint: Path) -> Tokenizer:
    """The checkpoint's tokenizer without special tokens: what it makes of characters alone."""
    described = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    described["added_tokens"] = [
        token for token in described["added_tokens"] if not token["special"]
    ]
    described["post_processor"] = None
    return Tokenizer.from_str(json.dumps(described))


@pytest.fixture(scope="module")
def smolvlm(exported: Export) -> Prompts:
    return Prompts(exported("smolvlm_real_tokenizer"))


@pytest.fixture(scope="module")
def paligemma(exported: Export) -> Prompts:
    return Prompts(exported("paligemma"))


@pytest.fixture(scope="module")
def smolvlm_processor(exported: Export, smolvlm: Prompts) -> Any:
    # SmolVLM's own processor needs a video processor; Idefics3's writes the same prompt.
    return Idefics3Processor(
        SmolVLMImageProcessorPil.from_pretrained(exported("smolvlm_real_tokenizer").checkpoint),
        smolvlm.tokenizer,
        image_seq_len=smolvlm.manifest.vision.tokens_per_tile,
        chat_template=smolvlm.manifest.prompt.chat_template,
    )


def test_there_are_enough_conversations() -> None:
    assert len(CONVERSATIONS) >= 200


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_smolvlm_ids_as_transformers(smolvlm: Prompts, smolvlm_processor: Any, number: int) -> None:
    messages, numbers = CONVERSATIONS[number]
    pictures = [picture(index) for index in numbers]
    rendered = smolvlm_processor.apply_chat_template(messages, add_generation_prompt=True)
    reference = smolvlm_processor(
        text=[rendered], images=[pictures] if pictures else None, return_tensors="np"
    )
    assert smolvlm.ids(messages, pictures) == reference["input_ids"][0].tolist()


@pytest.mark.parametrize("content", [*TEXTS, "detect cat <loc0003>", "caption en"])
def test_paligemma_ids_as_transformers(exported: Export, paligemma: Prompts, content: str) -> None:
    processor = PaliGemmaProcessor(
        SiglipImageProcessorPil.from_pretrained(exported("paligemma").checkpoint),
        paligemma.tokenizer,
    )
    reference = processor(text="<image>" + content, images=picture(0), return_tensors="np")
    messages = [{"role": "user", "content": [image(), text(content)]}]
    assert paligemma.ids(messages, [picture(0)]) == reference["input_ids"][0].tolist()


@pytest.mark.parametrize("content", SPECIAL_TEXTS)
@pytest.mark.parametrize("family", ["smolvlm_real_tokenizer", "paligemma"])
def test_text_is_never_a_special_token(exported: Export, family: str, content: str) -> None:
    prompts = Prompts(exported(family))
    before, after = {"smolvlm_real_tokenizer": ("User: ", ""), "paligemma": ("", "\n")}[family]
    expected = prompts.plain.encode(before + content + after, add_special_tokens=False).ids
    found = prompts.ids([{"role": "user", "content": [text(content)]}], [])
    assert found[1 : 1 + len(expected)] == expected


def test_text_of_an_assistant_or_system_is_never_special(smolvlm: Prompts) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [text("<image>")]},
        {"role": "user", "content": [image(), text("a")]},
        {"role": "assistant", "content": [text("<image><end_of_utterance>")]},
        {"role": "user", "content": "<image>"},
    ]
    found = smolvlm.ids(messages, [Image.new("RGB", (9, 9))])
    end = smolvlm.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert found.count(end) == len(messages)
    tiles = len(split_image(np.zeros((9, 9, 3), np.uint8), smolvlm.manifest.image.tiling))
    assert found.count(smolvlm.image_id) == tiles * smolvlm.tokens_per_tile


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                "<image>",
                "<end_of_utterance>",
                "<|im_start|>",
                "<",
                ">",
                "image",
                " ",
                "\n",
                "é",
                "1",
            ]
        ),
        min_size=1,
        max_size=8,
    ).map("".join)
)
def test_any_mixture_of_special_tokens_is_plain(smolvlm: Prompts, content: str) -> None:
    expected = smolvlm.plain.encode("User: " + content, add_special_tokens=False).ids
    found = smolvlm.ids([{"role": "user", "content": [text(content)]}], [])
    assert found[1 : 1 + len(expected)] == expected


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_any_text_as_transformers(smolvlm: Prompts, content: str) -> None:
    # SmolLM2's vocabulary lacks some control bytes, such as 0x1d. Both drop them; transformers then merges
    # what stood on either side, llama.cpp does not.
    assume(smolvlm.plain.decode(smolvlm.plain.encode(content).ids) == content)
    messages = [{"role": "user", "content": [text(content)]}]
    rendered = smolvlm.tokenizer.apply_chat_template(
        messages,
        chat_template=smolvlm.manifest.prompt.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    reference = smolvlm.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert smolvlm.ids(messages, []) == reference
