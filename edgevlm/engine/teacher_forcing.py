"""Decode given answers, to compare the logits of two models or of a model with its reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import KVCache, place_after
from edgevlm.engine.prefill import Prefill, tiles_of
from edgevlm.engine.scoring import open_branches
from edgevlm.engine.vision_encoder import VisionEncoder
from edgevlm.inputs.prompt import PromptItem
from edgevlm.runtimes.protocols import DecoderRuntime, Place

FORCED_TOKENS_PER_CALL = 16
"""Tokens of a forced answer that are decoded at once where two decoders are compared: one batch costs little
more than one token. llama.cpp's CPU kernels round such batches more after a long prompt: with random weights
the logits differ by 1e-3 after 100 positions and by 3e-2 after 3,300 from those of single tokens."""


class TeacherForcing:
    """Decodes prompts without anything of earlier ones, and answers whose tokens are given.

    Args:
        end_tokens: tokens that end an answer.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        encoder: VisionEncoder,
        prefill: Prefill,
        kv_cache: KVCache,
        end_tokens: Collection[int],
    ) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._prefill = prefill
        self._kv_cache = kv_cache
        self._end_tokens = end_tokens

    def logits(
        self,
        items: Sequence[PromptItem],
        answer: Sequence[int],
        tokens_per_call: int,
        cancel: CancelSignal,
    ) -> NDArray[np.float32]:
        """Return logits before each token of an answer.

        Args:
            answer: token ids, at least one.
            tokens_per_call: tokens of the answer that are decoded at once.
            cancel: stops the work.

        Returns:
            float32 ``[len(answer), vocabulary]``.
        """
        place = self._decode_prompt(items, cancel)
        return self._force(answer, place, tokens_per_call, cancel, self._decoder.logits())

    def greedy_answer(
        self, items: Sequence[PromptItem], max_tokens: int, cancel: CancelSignal
    ) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """Return the greedy answer, with its logits as of `logits` with `FORCED_TOKENS_PER_CALL`."""
        place = self._decode_prompt(items, cancel)
        first = self._decoder.logits()
        tokens = [int(first.argmax())]
        with open_branches(self._decoder, 1) as branch:
            while len(tokens) < max_tokens and tokens[-1] not in self._end_tokens:
                (logits,) = self._decoder.decode_branches(branch, tokens[-1:], cancel=cancel)
                tokens.append(int(logits.argmax()))
        return tuple(tokens), self._force(tokens, place, FORCED_TOKENS_PER_CALL, cancel, first)

    def _decode_prompt(self, items: Sequence[PromptItem], cancel: CancelSignal) -> Place:
        """Decode a prompt with nothing from the KV cache, and return the place after it."""
        encoded = self._encoder.encode(list(tiles_of(items)), cancel=cancel)
        self._kv_cache.reset()
        for _ in self._prefill.decode(items, encoded.__getitem__, Place(), cancel=cancel):
            pass
        return place_after(items)

    def _force(
        self,
        answer: Sequence[int],
        place: Place,
        tokens_per_call: int,
        cancel: CancelSignal,
        first: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Decode an answer in batches and return its logits, ``[len(answer), vocabulary]``.

        Args:
            place: the place after the prompt, which the decoder holds.
            first: logits after the prompt.
        """
        logits = [first[None]]
        forced = answer[:-1]
        for start in range(0, len(forced), tokens_per_call):
            part = forced[start : start + tokens_per_call]
            position = place.after(start).position
            positions = np.arange(position, position + len(part), dtype=np.int32)
            logits.append(self._decoder.decode_draft(part, positions, cancel=cancel).copy())
            self._kv_cache.extend(part)
        return np.concatenate(logits)
