"""How messages become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class SpecialToken:
    """A token that only the chat template can produce; the same text from a user stays plain text."""

    text: str
    """Text of the token; not empty."""
    id: int
    """Id of the token."""
    strip_left: bool = False
    """True: remove white space before the token (``lstrip`` in the tokenizer of the checkpoint)."""
    strip_right: bool = False
    """True: remove white space after the token (``rstrip``)."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.text), "text", self.text, "must not be empty")
        require(self.id >= 0, "id", self.id, "must not be negative")


@dataclass(frozen=True)
class ToolCallFormat:
    """How an answer calls a tool: `begin`, a JSON object with ``name`` and ``arguments``, and `end`.

    The JSON has a space after each comma and colon, as Python's ``json.dumps`` writes it. Of Hermes and Qwen:
    ``<tool_call>``, a line break, the object, a line break and ``</tool_call>``.
    """

    begin: str
    """Text before the object; not empty, without special tokens."""
    end: str
    """Text after it; not empty, without special tokens."""
    separator: str
    """Text between two calls."""

    def check(self) -> None:
        """Check the values."""
        for name in ("begin", "end"):
            require(bool(getattr(self, name)), name, getattr(self, name), "must not be empty")


@dataclass(frozen=True)
class PromptSpec:
    """How messages become tokens; implemented in `edgevlm.inputs.prompt`."""

    chat_template: str
    """Jinja2 source, rendered as transformers does, with ``messages`` and ``add_generation_prompt``."""
    template_variables: dict[str, str]
    """Values of further variables of the template, such as ``bos_token``."""
    image_placeholder: str
    """Text that the template writes in place of an image; a text of the user cannot produce it."""
    image_template: str
    """Jinja2 source of the text that replaces `image_placeholder`. ``{{ image }}`` is the place of the next
    embeddings of the image, once for each span of its packing. Variables: ``index``, the number of
    the image in the prompt, from 0, ``rows`` and ``columns`` of the grid of tiles, both 0 without a grid,
    ``tiles``, the number of all tiles, and ``spans``, the number of spans."""
    image_token: str
    """Text of the token that stands for embeddings in the tokenizer of the checkpoint; what ``{{ image }}``
    writes. A text of the user cannot produce it."""
    special_tokens: tuple[SpecialToken, ...]
    """All special tokens of the tokenizer."""
    end_token_ids: tuple[int, ...]
    """Ids of the tokens that end an answer; at least one."""
    begin_token_ids: tuple[int, ...]
    """Ids of the tokens that the tokenizer of the checkpoint puts before a text; added to each prompt that
    does not begin with them."""
    normalization: Literal["nfc"] | None
    """Unicode normalization of the text between two special tokens; null: none."""
    space_prefix: Literal["never", "prepend", "metaspace-always", "metaspace-first"]
    """When a space is put before the text between two special tokens, as SentencePiece does. ``prepend``:
    always. ``metaspace-always``: unless the text begins with a space or ``▁``. ``metaspace-first``: the same,
    at the beginning of the prompt only."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that are not special, and that the tokenizer of the checkpoint finds before it normalizes a
    text, puts a space before it or splits it by `splitting`. Empty if it does none of these."""
    splitting: Literal["tekken"] | None = None
    """Rule by which plain text is split before its bytes are merged, where llama.cpp lacks the rule of the
    checkpoint's tokenizer; null: llama.cpp splits the text."""

    video_placeholder: str | None = None
    """Text that the template writes in place of a video; a text of the user cannot produce it. Null: the
    model takes no video."""
    video_template: str | None = None
    """Jinja2 source of the text that replaces `video_placeholder`, as `image_template`. Variables:
    ``frames``, the number of frames that the model sees; ``seconds``, the length of the video; ``times``,
    the time of each span in seconds; and ``spans``, the number of spans."""

    tool_calls: ToolCallFormat | None = None
    """How an answer calls a tool. The template takes ``tools``, messages with ``tool_calls``, and messages of
    the role ``tool``. Null: the model has no tools, or the bundle is of an older edgevlm."""

    def check(self) -> None:
        """Check the values."""
        require(
            (self.video_placeholder is None) == (self.video_template is None),
            "video_template",
            self.video_template,
            "must be null if video_placeholder is, and only then",
        )
        require(bool(self.chat_template), "chat_template", self.chat_template, "must not be empty")
        require(bool(self.end_token_ids), "end_token_ids", self.end_token_ids, "must not be empty")
        for name in ("image_placeholder", "image_template", "image_token"):
            require(bool(getattr(self, name)), name, getattr(self, name), "must not be empty")
        for name in ("video_placeholder", "video_template"):
            require(getattr(self, name) != "", name, "", "must not be empty")
        require(
            all(token >= 0 for token in self.begin_token_ids),
            "begin_token_ids",
            self.begin_token_ids,
            "must not be negative",
        )
