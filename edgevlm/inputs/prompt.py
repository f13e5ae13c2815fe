"""Messages to segments: token ids, and places for the spans of images.

Token ids equal those of transformers' processor for the whole rendered prompt, and text of a message never
becomes a special token. Both follow from the order of the steps:

1. in the messages' text, the first character of every spelling of a special token is replaced by a mark,
   a character that occurs nowhere in the messages;
2. the checkpoint's own chat template is rendered (jinja2's sandbox), and the image template takes the place
   of each image, with a hole for each span;
3. the result is split at the special tokens, which now all come from the template; the plain text between
   two of them, the template's joined with the user's, gets the marked characters back and is tokenized in
   one piece, since merges cross the border between both.

Messages are transformers': ``{"role": "user", "content": [{"type": "image"}, {"type": "text", "text":
"What is this?"}]}``. A content that is a string is one text part.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from edgevlm.errors import BundleError, ContextError, PromptError
from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.message_checks import (
    NO_TOOLS,
    SHORTEN,
    check_length,
    check_message,
    map_texts,
    texts_in,
)
from edgevlm.inputs.plain_text import PlainText
from edgevlm.inputs.tiling import Layout
from edgevlm.inputs.video_times import VideoTimes
from edgevlm.manifest import PromptSpec

Message: TypeAlias = Mapping[str, Any]

PromptItem: TypeAlias = "int | Span"
"""An item of a prompt: a token id, or a span of embeddings of an image."""

TEMPLATE_ERRORS = (TypeError, ValueError, KeyError, IndexError, ArithmeticError)
"""What Python raises inside a template that does not fit its variables."""


@dataclass(frozen=True)
class TextSegment:
    """Consecutive tokens of a prompt."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class SpanSegment:
    """The place of one span of one image; both count from 0, images in the order of the messages."""

    image: int
    span: int


Segment: TypeAlias = TextSegment | SpanSegment


class PromptBuilder:
    """Renders and tokenizes prompts for one model.

    Args:
        tokenize: plain text to token ids, recognising no special token.

    Raises:
        BundleError: the chat template or the image template is not valid Jinja.
    """

    def __init__(self, spec: PromptSpec, tokenize: Callable[[str], list[int]]) -> None:
        self._spec = spec
        self._plain_text = PlainText(
            tokenize,
            normalization=spec.normalization,
            space_prefix=spec.space_prefix,
            added_tokens=spec.added_tokens,
            splitting=spec.splitting,
        )
        self._answer_text = PlainText(
            tokenize,
            normalization=spec.normalization,
            added_tokens=spec.added_tokens,
            splitting=spec.splitting,
        )
        self._special = {token.text: token for token in spec.special_tokens}
        self._pattern = _pattern({*self._special, spec.image_token})
        placeholders = {spec.image_placeholder: "image"}
        if spec.video_placeholder is not None:
            placeholders[spec.video_placeholder] = "video"
        self._placeholders = placeholders
        self._placeholder_pattern = _pattern(placeholders)
        # What a user may not write: special tokens and what stands for an image or a video.
        self._reserved = {*self._special, spec.image_token, *placeholders}
        self._reserved_pattern = _pattern(self._reserved)
        self._template = _compile(
            _environment(), spec.chat_template, "manifest.prompt.chat_template"
        )
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(keep_trailing_newline=True)
        self._media_templates = {
            name: _compile(environment, source, f"manifest.prompt.{name}_template")
            for name, source in (("image", spec.image_template), ("video", spec.video_template))
            if source is not None
        }

    def build(
        self,
        messages: Sequence[Message],
        images: Sequence[tuple[Layout | VideoTimes, int]],
        *,
        add_generation_prompt: bool = True,
        max_positions: int | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Segment]:
        """Build the prompt for `messages`, in time linear in their length.

        Args:
            images: layout and number of spans of each image; of a video, its times instead of the layout.
            max_positions: positions of the context; None for no limit. Messages that cannot fit are refused
                before the work.
            tools: functions that the model may call, for a template that takes them.

        Raises:
            PromptError: messages of another form, or that the template refuses.
            ContextError: the prompt is longer than ``max_positions``.
        """
        check_messages(messages)
        if max_positions is not None:
            check_length(messages, max_positions, tools)
        checked = [check_message(message, index) for index, message in enumerate(messages)]
        places = [
            part["type"]
            for message in checked
            for part in message["content"]
            if part["type"] != "text"
        ]
        kinds = [_kind(described) for described, _ in images]
        if places != kinds:
            raise PromptError(
                f"the messages have places for {_count(places)}, but {_count(kinds)} were passed"
            )
        if "video" in kinds and self._spec.video_placeholder is None:
            raise PromptError("this model takes no video; pass frames as several images")
        self._check_tool_use(checked, tools)
        texts = [
            part["text"]
            for message in checked
            for part in message["content"]
            if part["type"] == "text"
        ]
        calls = [message["tool_calls"] for message in checked if "tool_calls" in message]
        marks = self._marks([*texts, *texts_in([calls, tools])])
        mark = functools.partial(self._mark_special, marks=marks)
        for message in checked:
            for part in message["content"]:
                if part["type"] == "text":
                    part["text"] = mark(part["text"])
            if "tool_calls" in message:
                message["tool_calls"] = map_texts(message["tool_calls"], mark)
        rendered = self.render(
            checked, add_generation_prompt=add_generation_prompt, tools=map_texts(tools, mark)
        )
        found = [self._placeholders[text] for text in self._placeholder_pattern.findall(rendered)]
        if found != kinds:
            raise PromptError(
                f"the model's chat template wrote {_count(found)} of {_count(kinds)}; it does not support "
                f"them in this place"
            )
        parts = self._placeholder_pattern.split(rendered)
        written = [parts[0]]
        spans: list[SpanSegment] = []
        for index, ((described, count), text) in enumerate(zip(images, parts[1:], strict=True)):
            written += [self._media_text(kinds[:index].count(kinds[index]), described, count), text]
            spans += [SpanSegment(index, span) for span in range(count)]
        return self._tokenize_split("".join(written), marks, spans, max_positions)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text as they stand in an answer, without a space put before it."""
        return self._answer_text.tokenize(text, at_start=False)

    def _media_text(self, index: int, described: Layout | VideoTimes, spans: int) -> str:
        """Return the text that stands for an image or a video, with one `image_token` for each span.

        Args:
            index: number of the image among the images, or of the video among the videos, from 0.

        Raises:
            BundleError: the template fails, or has not one place for each span.
        """
        kind = _kind(described)
        if isinstance(described, Layout):
            variables: dict[str, Any] = {
                "rows": described.rows,
                "columns": described.columns,
                "tiles": described.tiles,
            }
        else:
            variables = {
                "frames": described.frames,
                "seconds": described.seconds,
                "times": described.times,
            }
        try:
            text = self._media_templates[kind].render(
                image=self._spec.image_token, index=index, spans=spans, **variables
            )
        except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
            raise BundleError(
                f"manifest.prompt.{kind}_template: fails for {described}: {error!r}"
            ) from error
        places = text.count(self._spec.image_token)
        if places != spans:
            raise BundleError(
                f"manifest.prompt.{kind}_template: writes {places} places for embeddings of {described}, "
                f"the packing makes {spans}"
            )
        return text

    def _marks(self, texts: Sequence[str]) -> dict[str, str]:
        """Map the first character of each special token to a private-use character that is in no text."""
        for text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise PromptError(
                    f"a text has a lone surrogate, which is no character: {error}"
                ) from error
        used = set().union(*texts)
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
        marks = dict(zip(sorted({text[0] for text in self._reserved}), unused, strict=False))
        if len(marks) < len({text[0] for text in self._reserved}):
            raise PromptError("the messages use every character of Unicode's plane 15")
        return marks

    def _mark_special(self, text: str, marks: Mapping[str, str]) -> str:
        """Replace the first character of each special token by its mark.

        A mark is part of no special token, so no special token is left.
        """
        marked: list[str] = []
        start = 0
        while match := self._reserved_pattern.search(text, start):
            first = match.start()
            marked += text[start:first], marks[text[first]]
            start = first + 1
        return "".join([*marked, text[start:]])

    def _check_tool_use(self, messages: Sequence[Message], tools: object) -> None:
        """Check that the template takes tools, if there are any.

        Raises:
            PromptError: it does not.
        """
        used = any(message["role"] == "tool" or "tool_calls" in message for message in messages)
        if (tools or used) and self._spec.tool_calls is None:
            raise PromptError(NO_TOOLS)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return what the chat template writes for checked messages.

        Raises:
            PromptError: the template refuses the messages, or fails.
        """
        try:
            return self._template.render(
                **self._spec.template_variables,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools or None,
            )
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the model's chat template refuses these messages: {error}"
            ) from error
        except TEMPLATE_ERRORS as error:
            raise PromptError(
                f"the model's chat template fails on these messages: {error!r}"
            ) from error

    def _tokenize_split(
        self,
        prompt: str,
        marks: Mapping[str, str],
        spans: Sequence[SpanSegment],
        max_positions: int | None,
    ) -> list[Segment]:
        unmark = str.maketrans({mark: character for character, mark in marks.items()})
        segments: list[Segment] = []
        token_ids: list[int] = []
        remaining = iter(spans)
        strip_left = False
        start = 0
        for match in [*self._pattern.finditer(prompt), None]:
            plain = prompt[start : match.start() if match else len(prompt)]
            token = self._special.get(match.group()) if match else None
            if strip_left:
                plain = plain.lstrip()
            if token is not None and token.strip_left:
                plain = plain.rstrip()
            if plain:
                token_ids += self._plain_text.tokenize(plain.translate(unmark), at_start=start == 0)
                if max_positions is not None and len(token_ids) > max_positions:
                    raise ContextError(
                        f"the prompt has more than {len(token_ids)} positions, but the context has "
                        f"{max_positions}; {SHORTEN}"
                    )
            if match is None:
                break
            start, strip_left = match.end(), token is not None and token.strip_right
            if match.group() == self._spec.image_token:
                if token_ids:
                    segments.append(TextSegment(tuple(token_ids)))
                    token_ids = []
                span = next(remaining, None)
                if span is None:
                    raise BundleError(
                        f"manifest.prompt.chat_template: writes {self._spec.image_token!r}, which only "
                        f"the image template may write"
                    )
                segments.append(span)
            elif token is not None:
                token_ids.append(token.id)
        if token_ids:
            segments.append(TextSegment(tuple(token_ids)))
        return self._begin(segments)

    def _begin(self, segments: list[Segment]) -> list[Segment]:
        """Put the begin tokens before a prompt that does not begin with them."""
        begin = self._spec.begin_token_ids
        first = segments[0] if segments else None
        held = first.token_ids if isinstance(first, TextSegment) else ()
        if not begin or held[: len(begin)] == begin:
            return segments
        return [TextSegment(begin + held), *segments[isinstance(first, TextSegment) :]]


def _kind(described: Layout | VideoTimes) -> str:
    """Return ``image`` or ``video``, as in the ``type`` of a part."""
    return "image" if isinstance(described, Layout) else "video"


def _count(kinds: Sequence[str]) -> str:
    """Return the number of images and videos in words."""
    videos = kinds.count("video")
    images = f"{len(kinds) - videos} images"
    return f"{images} and {videos} videos" if videos else images


def system_messages(system: str | None) -> list[dict[str, Any]]:
    """Return the system message as a list of one message, or an empty list.

    Raises:
        PromptError: the text is empty or not a string.
    """
    if system is None:
        return []
    return [{"role": "system", "content": [{"type": "text", "text": _text("system", system)}]}]


def user_message(text: str, images: int, *, videos: int = 0) -> dict[str, Any]:
    """Return a message with places for images and videos, and then the text.

    Raises:
        PromptError: the text is empty or not a string.
    """
    parts: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*parts, {"type": "text", "text": _text("question", text)}]}


def question_text(messages: Sequence[Message]) -> str:
    """Return the texts of checked messages, for a vision graph that reads the question."""
    parts = [
        part
        for index, message in enumerate(messages)
        for part in check_message(message, index)["content"]
    ]
    return "".join(part["text"] for part in parts if part["type"] == "text")


def _text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise PromptError(f"{name} must be a text, is {type(text).__name__}")
    if not text.strip():
        raise PromptError(f"{name} is empty")
    return text


def check_messages(messages: object) -> None:
    """Check that messages are a list with at least one item. Items are checked later.

    Raises:
        PromptError: they are not.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages must be a list of mappings with role and content, is {type(messages).__name__}"
        )
    if not messages:
        raise PromptError("messages is empty; it needs at least one message of the user")


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``: marks an answer for training, and writes its content as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own form)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches each of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _compile(environment: jinja2.Environment, source: str, field: str) -> jinja2.Template:
    """Compile a template.

    Raises:
        BundleError: it is not valid Jinja.
    """
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BundleError(f"{field}: not a valid template: {error}") from error


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Return an environment with the names and settings that transformers gives to chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, tools=None, documents=None
    )
    environment.filters["tojson"] = tojson
    return environment
