"""Messages of a request: texts, and images in all forms of the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import (
    BeforeValidator,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edgevlm import Detail
from edgevlm.server.validation import RequestModel, UnsupportedField, parse_text

MAX_ITEMS = 4096
"""Limit of messages, and of content parts in one message; more than any context holds."""

NO_FUNCTIONS = "this is the older form of tools"
TEXT_ONLY = "this server answers with text"

PART_TYPE: Any = Field(description="'text', 'image_url', 'input_image' or 'file'")
URL = (
    "a data URI such as 'data:image/png;base64,...' or, if the server fetches images, an http(s) "
    "address"
)
DETAIL = (
    "'low' (one tile), 'high' (split as in training) or 'auto' (as many tiles as its pixels fill)"
)
FILE_ID = "the id of an image that was sent to /v1/files, a text"


class ImageReference(NamedTuple):
    """A reference to an image in a request: a URL or the id of an uploaded file."""

    url: str | None
    """``http(s)`` URL or data URI; None if `file_id` is given."""
    file_id: str | None
    detail: Detail | None
    field: str
    """Name of the field in the content part, such as ``image_url.url``."""


class ContentPart(RequestModel):
    """A content part of a message."""

    expected = 'an object such as {"type": "text", "text": "What is this?"}'
    ignored = frozenset({"prompt_cache_breakpoint"})


class TextPart(ContentPart):
    """A text."""

    type: Literal["text", "input_text", "output_text"] = PART_TYPE
    text: str = Field(description="a text")


class RefusalPart(ContentPart):
    """A refusal of the assistant, which is part of the prompt as a text is."""

    type: Literal["refusal"] = PART_TYPE
    refusal: str = Field(description="a text")

    @property
    def text(self) -> str:
        """The refusal."""
        return self.refusal


class ImageUrl(RequestModel):
    """The URL of an image."""

    url: str = Field(description=URL)
    detail: Detail | None = Field(None, description=DETAIL)


ImageUrlField: TypeAlias = Annotated[
    ImageUrl,
    BeforeValidator(
        lambda value: {"url": value} if isinstance(value, str) else value,
        json_schema_input_type=ImageUrl | str,
    ),
]
"""An object with a URL, or the URL alone as a text."""

IMAGE_URL = 'an object such as {"url": "data:image/png;base64,..."}'


class ImagePart(ContentPart):
    """An image, as in OpenAI's chat completions."""

    type: Literal["image_url"] = PART_TYPE
    image_url: ImageUrlField = Field(description=IMAGE_URL)

    @property
    def source(self) -> ImageReference:
        """The reference to the image."""
        return ImageReference(self.image_url.url, None, self.image_url.detail, "image_url.url")


class InputImagePart(ContentPart):
    """An image, as in OpenAI's responses API."""

    type: Literal["input_image"] = PART_TYPE
    image_url: ImageUrlField | None = Field(None, description=IMAGE_URL)
    file_id: str | None = Field(None, description=FILE_ID)
    detail: Detail | None = Field(None, description=DETAIL)

    @model_validator(mode="after")
    def _check_one_source(self) -> InputImagePart:
        if (self.image_url is None) == (self.file_id is None):
            raise PydanticCustomError("refused", "must have one of image_url and file_id")
        return self

    @property
    def source(self) -> ImageReference:
        """The reference to the image."""
        if self.image_url is None:
            return ImageReference(None, self.file_id, self.detail, "file_id")
        detail = self.detail or self.image_url.detail
        return ImageReference(self.image_url.url, None, detail, "image_url")


class FileReference(RequestModel):
    """An image file: the id of an uploaded one, or its data."""

    file_id: str | None = Field(None, description=FILE_ID)
    file_data: str | None = Field(None, description="an image as a data URI")

    ignored = frozenset({"filename"})

    @model_validator(mode="after")
    def _check_one_source(self) -> FileReference:
        if (self.file_id is None) == (self.file_data is None):
            raise PydanticCustomError("refused", "must have one of file_id and file_data")
        return self


class FilePart(ContentPart):
    """An image as a file."""

    type: Literal["file"] = PART_TYPE
    file: FileReference = Field(description='an object such as {"file_id": "file-..."}')

    @property
    def source(self) -> ImageReference:
        """The reference to the image."""
        field = "file.file_data" if self.file.file_id is None else "file.file_id"
        return ImageReference(self.file.file_data, self.file.file_id, None, field)


Part: TypeAlias = Annotated[
    TextPart | RefusalPart | ImagePart | InputImagePart | FilePart, Field(discriminator="type")
]
Parts: TypeAlias = Annotated[list[Part], Field(max_length=MAX_ITEMS)]


def _to_parts(content: Any) -> Any:
    """Convert a text to a list of one content part, and null to an empty list."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class CalledFunction(RequestModel):
    """A tool and its arguments."""

    name: str = Field(description="a text")
    arguments: dict[str, Any] = Field(description="the text of a JSON object")

    @field_validator("arguments", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return parse_text(value) if isinstance(value, str) else value


class AssistantCall(RequestModel):
    """A call of a tool in an earlier answer."""

    ignored = frozenset({"index"})

    id: str | None = Field(None, description="a text")
    type: Literal["function"] = Field("function", description="'function'")
    function: CalledFunction = Field(
        description='an object such as {"name": "look", "arguments": "{}"}'
    )


class Message(RequestModel):
    """A message of a conversation."""

    expected = 'an object such as {"role": "user", "content": "What is this?"}'
    unsupported: ClassVar[Mapping[str, UnsupportedField]] = {
        "function_call": UnsupportedField((None,), NO_FUNCTIONS),
        "audio": UnsupportedField((None,), TEXT_ONLY),
    }
    ignored = frozenset({"name", "annotations", "parsed"})

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="'system', 'developer', 'user', 'assistant' or 'tool'"
    )
    tool_calls: Annotated[list[AssistantCall], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="a list of calls, in a message of the assistant"
    )
    tool_call_id: str | None = Field(None, description="the id of a call, in a message of a tool")
    content: Annotated[
        list[Part],
        FailFast(),
        BeforeValidator(_to_parts, json_schema_input_type=str | Parts | None),
    ] = Field(
        default_factory=list,
        max_length=MAX_ITEMS,
        validate_default=True,
        description=f'a text, or a list of parts such as [{{"type": "text", "text": "What is this?"}}], '
        f"at most {MAX_ITEMS}",
    )
    refusal: str | None = Field(None, description="a text or null")

    @field_validator("content")
    @classmethod
    def _not_empty(cls, content: list[Part], info: ValidationInfo) -> list[Part]:
        """Refuse empty content, except of an assistant."""
        if not content and info.data.get("role", "assistant") != "assistant":
            raise ValueError
        return content

    @model_validator(mode="after")
    def _check_calls(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("refused", "may have tool_calls only if role is 'assistant'")
        return self

    @property
    def parts(self) -> list[Part]:
        """All content parts, a refusal included; an empty text if there are none, and no calls."""
        parts = list(self.content)
        if self.refusal:
            parts.append(RefusalPart(type="refusal", refusal=self.refusal))
        if self.tool_calls:
            return [part for part in parts if not (isinstance(part, TextPart) and not part.text)]
        return parts or [TextPart(type="text", text="")]
