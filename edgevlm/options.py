"""How an answer is generated: the settings of one request, and text that grows from token pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from edgevlm.errors import InputError
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.runtimes.protocols import Sampling
from edgevlm.validation import check_integer


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `VLM.ask` and its relatives; see `Generation` for meaning and defaults."""

    max_tokens: int | None
    cap_max_tokens: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    detail: Detail | None
    max_image_tokens: int | None
    cache_images: bool
    stop: str | tuple[str, ...] | list[str] | None
    json_schema: Mapping[str, Any] | None
    top_logprobs: int | None


DEFAULT_MAX_TOKENS = 256

MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Generation:
    """Settings of one request.

    Raises:
        InputError: a setting of the wrong type or outside its range.
    """

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """Longest answer in tokens; prompt and answer must fit the context together. None: what the context
    leaves."""
    cap_max_tokens: bool = False
    """Lower `max_tokens` to what the context leaves, instead of raising ContextError."""
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int = 0
    """The same seed gives the same answer."""
    detail: Detail | None = None
    """How finely this request's pictures are split; see `edgevlm.inputs.tiling.ImageBudget`."""
    max_image_tokens: int | None = None
    """At most so many positions for each of them."""
    cache_images: bool = True
    """Keep their embeddings for later requests. False suits a camera, whose frames never come again."""
    stop: str | tuple[str, ...] | list[str] | None = ()
    """The answer ends before the first of these strings; None and none at all mean no such string."""
    json_schema: Mapping[str, Any] | None = None
    """The answer is a JSON text of this schema, unless ``max_tokens`` cuts it short; see
    `edgevlm.runtimes.protocols.Sampling`."""
    top_logprobs: int | None = None
    """Say how likely each token was, and so many alternatives to it, at most `MOST_LOGPROBS`."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        for name in ("cap_max_tokens", "cache_images"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, is {value!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if not isinstance(stop, tuple | list) or not all(
            isinstance(text, str) and text for text in stop
        ):
            raise InputError(
                f"stop must be one or several texts that are not empty, is {self.stop!r}"
            )
        stop = tuple(stop)
        object.__setattr__(self, "stop", stop)
        if self.top_logprobs is not None:
            check_integer("top_logprobs", self.top_logprobs, 0, MOST_LOGPROBS)
        _ = self.sampling, self.image_budget  # check the rest

    @property
    def image_budget(self) -> ImageBudget:
        """What the preparation of pictures needs to know."""
        return ImageBudget(self.detail, self.max_image_tokens)

    @property
    def draftable(self) -> bool:
        """Each token is the most likely one, whatever came before, and nothing else is asked about it."""
        plain = self.json_schema is None and self.top_logprobs is None
        return plain and self.temperature == 0 and self.repetition_penalty == 1

    @property
    def sampling(self) -> Sampling:
        """What the decoder needs to know."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            json_schema=self.json_schema,
        )
