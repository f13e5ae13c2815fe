"""Packed rows equal separate chats, and the tokenizer spells printed words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Idefics3Processor, LlamaConfig, LlamaForCausalLM

from edgevlm.scenes import composition, drawings, pairs
from training.dialogues import NO_IMAGE, Packer, attention_mask, stack_rows
from training.model import TILE, TOKENS, VOCABULARY
from training.tokenizer import build_processor, build_tokenizer

CHATS: list[tuple[list[tuple[str, str]], int]] = [
    ([("What is in the picture?", "There is a red circle, a cat and a blue star.")], 1),
    ([("Прочитай слово.", '"HOUSE"'), ("Где оно?", "[12, 30, 45, 61]")], 1),
    ([("How many cats are there?", "3"), ("And dogs?", "0"), ("thanks", "You are welcome!")], 1),
    ([("Hello", "Hello!"), ("What color is the cat?", NO_IMAGE["en"])], 0),
    ([("Что изменилось?", "Здесь красный круг.")], 2),
    ([("Which picture has more cats?", "the first"), ("How many?", "3")], 2),
]


@pytest.fixture(scope="module")
def processor() -> Idefics3Processor:
    return build_processor()


@pytest.fixture(scope="module")
def packer(processor: Idefics3Processor) -> Packer:
    return Packer(processor.tokenizer)


def rendered(processor: Any, turns: list[tuple[str, str]], images: int) -> list[int]:
    """Return the ids of the chat by template and processor, up to the end of the last answer."""
    messages = []
    for i, (question, answer) in enumerate(turns):
        shown = [{"type": "image"}] * (0 if i else images)
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        content = [{"type": "text", "text": answer}]
        messages.append({"role": "assistant", "content": content})
    text = processor.apply_chat_template(messages)
    tiles = torch.zeros(images, 3, TILE, TILE, dtype=torch.uint8).unbind() if images else None
    ids: list[int] = processor(text=text, images=tiles)["input_ids"][0]
    assert processor.tokenizer.decode(ids[-1:]) == "\n"
    return list(ids[:-1])


@pytest.mark.parametrize("images", [1, 2])
def test_a_packed_row_equals_separate_chats(
    processor: Idefics3Processor, packer: Packer, images: int
) -> None:
    chats = [chat for chat in CHATS if chat[1] in (0, images)]
    segments = [packer.segment(*chat) for chat in chats]
    longer = packer.row([*segments, segments[0]])
    row = stack_rows([packer.row(segments), longer])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        packed = model(
            row["ids"], attention_mask=attention_mask(row["owner"]), position_ids=row["positions"]
        ).logits[0]
        for number, (turns, seen) in enumerate(chats, 1):
            ids = rendered(processor, turns, seen)
            owner = row["owner"][0]
            mine = (owner == number) | (owner == 0) if seen else owner == -number
            assert row["ids"][0][mine].tolist() == ids
            alone = model(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(packed[mine], alone, rtol=1e-3, atol=1e-4)
            targets = row["targets"][0][mine]
            learnt = targets[targets >= 0].tolist()
            answers = "".join(f" {answer}<end_of_utterance>" for _, answer in turns)
            assert processor.tokenizer.decode(learnt) == answers
            following = torch.tensor([*ids[1:], 0])
            assert torch.equal(targets[targets >= 0], following[targets >= 0])


def test_the_images_are_at_the_positions_of_the_packer(packer: Packer) -> None:
    image = packer._ids("<image>")[0]
    for images in (1, 2):
        opening = packer.opening(images)
        places = [i + k for i in packer.image_positions(images) for k in range(TOKENS)]
        assert [i for i, token in enumerate(opening) if token == image] == places
    assert packer.opening(0) == packer.image_positions(0) == []


def test_a_row_has_one_number_of_images(packer: Packer) -> None:
    with pytest.raises(ValueError, match="same images"):
        packer.row([packer.segment(*CHATS[0]), packer.segment(*CHATS[4])])


@pytest.mark.parametrize("layout", [*composition.LAYOUTS, "mosaic", "page"])
def test_every_scene_gets_dialogues_and_captions(packer: Packer, layout: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(8):
        scene = composition.sample(rng, layout, styles=("noto",))
        dialogues, captions = packer.dialogues(scene, rng), packer.captions(scene, rng)
        assert 1 <= len(dialogues) <= 9
        assert 1 <= len(captions) <= 2
        assert {segment.images for segment in dialogues} <= {0, 1}
        for segments in (dialogues, captions):
            assert len({tuple(segment.ids) for segment in segments}) == len(segments)
            row = packer.row(segments)
            assert len({len(values) for values in row.values()}) == 1
            assert int((row["targets"] >= 0).sum()) == sum(sum(s.is_answer) for s in segments)


def test_a_pair_gets_different_questions(packer: Packer) -> None:
    rng = np.random.default_rng(8)
    for _ in range(8):
        segments = packer.pair_dialogues(pairs.sample_pair(rng, styles=("noto",)), rng)
        assert 1 <= len(segments) <= 5
        assert {segment.images for segment in segments} == {2}
        assert len({tuple(segment.ids) for segment in segments}) == len(segments)


def test_printed_words_are_spelt_and_nouns_are_not(processor: Idefics3Processor) -> None:
    tokenizer = processor.tokenizer
    for word in (*drawings.words(False)[::50], "cat", "strawberry"):
        for printed in (word, word.upper(), *([] if word[0] in "ahiuw" else [word.capitalize()])):
            assert tokenizer.tokenize(f' "{printed}"')[1:-1] == list(printed)
    for noun in drawings.nouns().values():
        words = noun.name.split()
        assert tokenizer.tokenize(f" {noun.name}") == [f"\u0120{word}" for word in words]
        assert all(len(tokenizer.tokenize(f" {word}")) <= 3 for word in noun.russian.split())
    for letter in "абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ":
        assert len(tokenizer.tokenize(f"1{letter}")) == 2
    for text in ('Здесь красный круг и "Qwerty".', "naïve — 日本 [1, 20]\n  ok"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_is_the_same_on_every_run(processor: Idefics3Processor) -> None:
    again = build_tokenizer().backend_tokenizer.to_str()
    assert again == processor.tokenizer.backend_tokenizer.to_str()
