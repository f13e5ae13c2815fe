"""The public API as a user's strictly checked program writes it; type checkers read this, nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from edgevlm import (
    VLM,
    Answer,
    AsyncChunkStream,
    BackendError,
    BusyError,
    CacheInfo,
    Chat,
    Choice,
    ChoiceScore,
    Chunk,
    ChunkStream,
    EdgeVLMError,
    FinishReason,
    GenerationOptions,
    ImageSource,
    IncompleteAnswerError,
    InputError,
    Manifest,
    Prompt,
    PromptText,
    PromptTile,
    Stats,
    TokenLogprob,
    Video,
)


def load(folder: Path) -> VLM:
    vlm = VLM.from_pretrained(folder, device="cpu", threads=2, context_length=1024)
    assert_type(vlm.manifest, Manifest)
    assert_type(vlm.vision_device, str)
    assert_type(vlm.decoder_device, str)
    return vlm


def ask(vlm: VLM, frame: NDArray[np.uint8]) -> str | None:
    sources: Sequence[ImageSource] = ["a.png", Path("b.png"), b"...", frame]
    answer = vlm.ask(sources, "What is it?", max_tokens=8, detail="low", stop=["."])
    assert_type(answer, Answer)
    assert_type(answer.text, str)
    assert_type(answer.finish_reason, FinishReason)
    assert_type(answer.stats, Stats)
    assert_type(answer.logprobs, tuple[TokenLogprob, ...])
    vlm.ask(None, "A question without an image?")
    return answer.text


def stream(vlm: VLM) -> Iterator[str]:
    chunks = vlm.stream("a.png", "What is it?")
    assert_type(chunks, ChunkStream)
    with chunks:
        for chunk in chunks:
            assert_type(chunk, Chunk)
            yield chunk.text


async def stream_in_asyncio(vlm: VLM) -> AsyncIterator[str]:
    assert_type(await vlm.aask("a.png", "What is it?", max_tokens=8), Answer)
    assert_type(await vlm.chat().asend("What is it?", "a.png"), Answer)
    chunks = vlm.astream(["a.png"], "What is it?", system="Be brief.")
    assert_type(chunks, AsyncChunkStream)
    async with chunks:
        async for chunk in chunks:
            assert_type(chunk, Chunk)
            yield chunk.text
    async for chunk in vlm.chat().astream("And?", temperature=0.5):
        yield chunk.text


def options(vlm: VLM) -> Answer:
    chosen: GenerationOptions = {"temperature": 0.5, "top_k": 20, "seed": 1}
    messages = [{"role": "user", "content": "What is it?"}]
    for chunk in vlm.stream_generate(messages, **chosen):
        assert_type(chunk.stats, Stats | None)
    return vlm.generate(messages, **chosen)


def chat(vlm: VLM) -> Answer:
    conversation = vlm.chat(system="Be brief.", overflow="drop_images")
    conversation.save(Path("talk.zip"))
    conversation = vlm.load_chat("talk.zip")
    assert_type(conversation, Chat)
    conversation.send("What is it?", images=["a.png"])
    return conversation.send("What color is it?")


def look_inside(vlm: VLM, frame: NDArray[np.uint8]) -> int:
    assert_type(vlm.encode_image(frame), NDArray[np.float32])
    scores = vlm.score(frame, "What color is it?", ["red", "green"])
    assert_type(scores, list[ChoiceScore])
    assert_type(scores[0].probability, float)
    assert_type(vlm.cache_info(), CacheInfo)
    prompt = vlm.prompt([{"role": "user", "content": "What is it?"}])
    assert_type(prompt, Prompt)
    tokens = 0
    for part in prompt.parts:
        if isinstance(part, PromptTile):
            tokens += part.tokens
        else:
            assert_type(part, PromptText)
            tokens += len(part.token_ids)
    return tokens


@dataclass
class Size:
    width: int


def values(vlm: VLM, frame: NDArray[np.uint8]) -> float:
    assert_type(vlm.extract(frame, "How wide is it?", Size, max_tokens=32), Size)
    assert_type(vlm.extract(frame, "Is it red?", bool), bool)
    vlm.extract(frame, "Where is it?", Literal["left", "right"])
    vlm.extract(frame, "Where is it?", {"enum": ["left", "right"]})
    choice = vlm.choose(Video("a.mp4", frames=8), "Is it open?", ["yes", "no"])
    assert_type(choice, Choice)
    assert_type(choice.label, str)
    assert_type(choice.calibrated, bool)
    return choice.margin + choice.probabilities["yes"]


def errors(vlm: VLM) -> str:
    try:
        vlm.ask(None, "What?")
    except IncompleteAnswerError as error:
        return error.text
    except BusyError as error:
        return str(error)
    except (InputError, BackendError) as error:
        assert_type(error, InputError | BackendError)
        raise
    except EdgeVLMError:
        raise
    return ""
