"""What a whole answer has beside its text: places on the image, tool calls, and statistics."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.boxes import Box, Point
from edgevlm.engine.answer_text import AnswerText
from edgevlm.engine.prefill import PrefillStats
from edgevlm.engine.request import Request
from edgevlm.engine.spelling import Spelling
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.locations import locate
from edgevlm.manifest import Manifest
from edgevlm.options import Generation
from edgevlm.results import Chunk, Deadline, Stats, TokenLogprob
from edgevlm.runtimes import system
from edgevlm.tool_calls import ToolCall, parse_calls


class AnswerReport:
    """Makes the last chunk of answers.

    Args:
        manifest: the manifest of the model.
        spelling: the spelling of its tokens.
        load_ms: time that loading took.
    """

    def __init__(self, manifest: Manifest, spelling: Spelling, load_ms: float) -> None:
        self._manifest = manifest
        self._spelling = spelling
        self._load_ms = load_ms

    def last_chunk(
        self, request: Request, answer: AnswerText, prefill: PrefillStats, prompt_tokens: int
    ) -> Chunk:
        """Return the chunk after the last token: the rest of the text, and what the whole answer has."""
        watch, generation = request.watch, request.generation
        text = answer.rest()
        boxes, points = self._locate(answer.token_ids, answer.logprobs, request.image)
        watch.lap("decode")
        stats = Stats(
            load_ms=self._load_ms,
            wait_ms=watch.ms("wait"),
            prepare_ms=watch.ms("prepare"),
            encode_ms=watch.ms("encode"),
            prefill_ms=watch.ms("prefill"),
            decode_ms=watch.ms("decode"),
            first_token_ms=answer.first_token_ms,
            total_ms=watch.total_ms,
            prompt_tokens=prompt_tokens,
            cached_tokens=prefill.cached_positions,
            encoded_tiles=prefill.encoded_tiles,
            cached_tiles=prefill.cached_tiles,
            answer_tokens=len(answer.token_ids),
            accepted_draft_tokens=answer.accepted_draft_tokens,
            peak_memory=system.peak_memory(),
            forced_tokens=answer.forced_tokens,
            deadline=None
            if generation.within is None
            else Deadline(
                generation.within,
                generation.detail,
                generation.max_image_tokens,
                cut=answer.finish_reason == "deadline",
            ),
        )
        return Chunk(
            text,
            (),
            finish_reason=answer.finish_reason,
            stats=stats,
            boxes=boxes,
            points=points,
            tool_calls=self._tool_calls(answer.token_ids, generation),
        )

    def _tool_calls(self, tokens: Sequence[int], generation: Generation) -> tuple[ToolCall, ...]:
        """Return the complete calls in an answer."""
        tool_format = self._manifest.prompt.tool_calls
        if not generation.callable_tools or tool_format is None:
            return ()
        return parse_calls(self._spelling.text(tokens), tool_format)

    def _locate(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], image: ProcessedImage | None
    ) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
        """Return the boxes and points in an answer, on the last image of its messages."""
        usage = self._manifest.usage
        if image is None or usage is None or usage.location_format is None:
            return (), ()
        return locate(
            [self._spelling.spell(token) for token in tokens],
            [one.logprob for one in logprobs],
            usage.location_format,
            image.layout,
            self._manifest.image.tile_size,
        )
