"""Messages and processed images as prompt items, and how long an answer to them may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.engine.spelling import Spelling
from edgevlm.errors import ContextError
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.message_checks import SHORTEN
from edgevlm.inputs.prompt import (
    Message,
    PromptBuilder,
    PromptItem,
    Segment,
    TextSegment,
    question_text,
)
from edgevlm.manifest import Manifest
from edgevlm.options import Generation
from edgevlm.results import Prompt, PromptText, PromptTile
from edgevlm.runtimes.protocols import DecoderRuntime


class PromptTokenizer:
    """Tokenizes prompts with the vocabulary of a decoder, which must stay open.

    Args:
        manifest: the manifest of the model.
        decoder: its decoder.
        spelling: the spelling of its tokens.
    """

    def __init__(self, manifest: Manifest, decoder: DecoderRuntime, spelling: Spelling) -> None:
        self._prompts = PromptBuilder(manifest.prompt, decoder.tokenize)
        self._spelling = spelling
        self._context_length = decoder.context_length
        self._reads_question = manifest.vision.text_input is not None
        self._rows_per_tile = (manifest.vision.tokens_per_tile or 0) + manifest.vision.learned_rows

    def tokenize_text(self, text: str) -> list[int]:
        """Tokenize a text as it stands in an answer."""
        return self._prompts.tokenize(text)

    def tokenize(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[PromptItem]:
        """Return the prompt for messages as token ids and spans.

        Args:
            messages: the conversation.
            images: one for each image part of the messages, in their order.
            tools: functions that the model may call.

        Raises:
            PromptError: the chat template of the model does not accept the messages.
            ContextError: the texts are longer than the context.
        """
        items: list[PromptItem] = []
        segments = self._segments(messages, images, tools)
        if self._reads_question:
            question = question_text(messages)
            images = [image.asked(question) for image in images]
        for segment in segments:
            if isinstance(segment, TextSegment):
                items += segment.token_ids
            else:
                items.append(images[segment.image].spans[segment.span])
        return items

    def describe(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Return the prompt for messages as texts and tiles; arguments and errors as of `tokenize`."""
        parts: list[PromptText | PromptTile] = []
        for segment in self._segments(messages, images, tools):
            if isinstance(segment, TextSegment):
                text = self._spelling.text(segment.token_ids)
                parts.append(PromptText(text, segment.token_ids))
                continue
            span = images[segment.image].spans[segment.span]
            counts = span.plan.tokens_of_tiles(self._rows_per_tile)
            for tile, tokens in zip(span.tiles, counts, strict=True):
                row, column = images[segment.image].layout.place(tile.index) or (-1, -1)
                parts.append(
                    PromptTile(
                        image=segment.image,
                        tile=tile.index,
                        row=row + 1,
                        column=column + 1,
                        pixels=tile.pixels,
                        tokens=tokens,
                    )
                )
        return Prompt(tuple(parts))

    def _segments(
        self,
        messages: Sequence[Message],
        images: Sequence[ProcessedImage],
        tools: Sequence[Mapping[str, Any]],
    ) -> list[Segment]:
        described = [(image.times or image.layout, len(image.plans)) for image in images]
        return self._prompts.build(
            messages, described, max_positions=self._context_length, tools=tools
        )

    def limit_answer(self, generation: Generation, prompt_tokens: int) -> int:
        """Return the token limit of the answer.

        Raises:
            ContextError: the answer does not fit the context after the prompt.
        """
        left = self._context_length - prompt_tokens
        if left < 1:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions, which leaves no room for an answer in a context "
                f"of {self._context_length}; {SHORTEN}"
            )
        wanted = left if generation.max_tokens is None else generation.max_tokens
        if wanted > left and not generation.cap_max_tokens:
            raise ContextError(
                f"the prompt has {prompt_tokens} positions and max_tokens is {wanted}, together "
                f"{prompt_tokens + wanted}, but the context has {self._context_length}; lower max_tokens, "
                f"{SHORTEN}"
            )
        return min(wanted, left)
