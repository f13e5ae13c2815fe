"""Settings of one request, and the types of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from edgevlm.errors import InputError
from edgevlm.inputs.tiling import Detail, ImageBudget
from edgevlm.runtimes.protocols import Sampling
from edgevlm.tool_calls import check_tools
from edgevlm.validation import check_integer, check_number

KVType = Literal["f16", "q8_0"]
"""Type of the decoder's KV cache; see `VLM.from_pretrained`."""

KV_TYPES: tuple[KVType, ...] = get_args(KVType)


class ExtractOptions(TypedDict, total=False):
    """Keyword arguments of `VLM.extract`; see `Generation` for defaults."""

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


class GenerationOptions(ExtractOptions, total=False):
    """Keyword arguments of `VLM.ask` and the other methods that answer; see `Generation` for defaults."""

    stop: str | tuple[str, ...] | list[str] | None
    json_schema: Mapping[str, Any] | None
    top_logprobs: int | None
    within: float | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str
    parallel_tool_calls: bool


DEFAULT_MAX_TOKENS = 256

MAX_LOGPROBS = 20

MIN_WITHIN, MAX_WITHIN = 1e-3, 1e6
"""Shortest and longest ``within`` in seconds, except None."""


@dataclass(frozen=True)
class Generation:
    """Settings of one request.

    Raises:
        InputError: a setting has the wrong type or is outside its range.
    """

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """Limit of the answer in tokens. Prompt and answer must fit the context together. None: no limit but the
    context."""
    cap_max_tokens: bool = False
    """Lower `max_tokens` to what the context has room for, instead of raising ContextError."""
    temperature: float = 0.0
    """0 always takes the most likely token."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all. Only above temperature 0, as the next two."""
    top_p: float = 0.95
    """Keep the most likely tokens whose probabilities add up to this."""
    min_p: float = 0.05
    """Keep tokens with at least this share of the probability of the most likely one."""
    repetition_penalty: float = 1.0
    """Penalty for the last 64 tokens of the answer; 1 is off."""
    seed: int = 0
    """The same seed gives the same answer."""
    detail: Detail | None = None
    """How finely images are split: ``low``, ``high``, ``auto``; see `edgevlm.inputs.tiling.ImageBudget`."""
    max_image_tokens: int | None = None
    """Limit of positions for each image; None for no limit."""
    cache_images: bool = True
    """Keep embeddings of images for later requests. False suits a camera, whose frames never come again."""
    stop: str | tuple[str, ...] | list[str] | None = ()
    """The answer ends before the first of these strings."""
    json_schema: Mapping[str, Any] | None = None
    """The answer is a JSON text that follows this schema, unless ``max_tokens`` ends it early."""
    top_logprobs: int | None = None
    """Return the log-probability of each token and of this many alternatives, at most `MAX_LOGPROBS`."""
    within: float | None = None
    """Seconds that the answer may take from the call to its end. It is cut then, with ``finish_reason``
    ``deadline``; before its first token DeadlineError is raised. None for no limit."""

    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the answer may call, in OpenAI's form: ``{"type": "function", "function": {"name": ...,
    "description": ..., "parameters": JSON schema}}``. The calls are in `Answer.tool_calls`."""
    tool_choice: str = "auto"
    """``auto``: the model may call tools; ``required``: it calls at least one; ``none``: it sees no tools; or
    the name of the one that it calls."""
    parallel_tool_calls: bool = True
    """False: at most one call in an answer."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        for name in ("cap_max_tokens", "cache_images", "parallel_tool_calls"):
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
            check_integer("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        if self.within is not None:
            check_number("within", self.within, MIN_WITHIN, MAX_WITHIN)
        check_tools(self.tools or (), self.tool_choice)
        if self.callable_tools and self.json_schema is not None:
            raise InputError("json_schema and tools exclude each other; leave out one of them")
        _ = self.sampling, self.image_budget  # check the rest

    @property
    def image_budget(self) -> ImageBudget:
        """Limits for splitting images."""
        return ImageBudget(self.detail, self.max_image_tokens)

    @property
    def callable_tools(self) -> Sequence[Mapping[str, Any]]:
        """The tools that the model sees; none with ``tool_choice`` ``none``."""
        return () if self.tools is None or self.tool_choice == "none" else self.tools

    @property
    def draftable(self) -> bool:
        """True if drafts are possible: each token is the most likely one, and nothing else is asked for."""
        plain = self.json_schema is None and not self.callable_tools and self.top_logprobs is None
        return plain and self.temperature == 0 and self.repetition_penalty == 1

    @property
    def sampling(self) -> Sampling:
        """Settings of the sampler."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            json_schema=self.json_schema,
        )
