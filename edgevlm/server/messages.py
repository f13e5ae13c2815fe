"""Messages of a conversation as clients send them: texts, and images in every form that OpenAI has."""

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

from edgevlm.inputs.tiling import Detail
from edgevlm.server.validation import Neutral, RequestModel

MAX_ITEMS = 4096
"""Of messages, and of parts in one: more than any context holds."""

NO_TOOLS = "this server has no tools"
TEXT_ONLY = "this server answers with text"

PART_TYPE: Any = Field(description="'text', 'image_url', 'input_image' or 'file'")
URL = (
    "a data URI such as 'data:image/png;base64,...' or, if the server fetches images, an http(s) "
    "address"
)
DETAIL = "'low' (one tile), 'high' (split as in training) or 'auto' (as far as its pixels go)"
FILE_ID = "the id of an image that was sent to /v1/files, a text"


class Source(NamedTuple):
    """Where an image of a request comes from: one of `url` and `file_id`."""

    url: str | None
    file_id: str | None
    detail: Detail | None
    field: str
    """Of the part, such as ``image_url.url``."""


class ContentPart(RequestModel):
    expected = 'an object such as {"type": "text", "text": "What is this?"}'
    unused = frozenset({"prompt_cache_breakpoint"})


class TextPart(ContentPart):
    type: Literal["text", "input_text", "output_text"] = PART_TYPE
    text: str = Field(description="a text")


class RefusalPart(ContentPart):
    type: Literal["refusal"] = PART_TYPE
    refusal: str = Field(description="a text")

    @property
    def text(self) -> str:
        """An assistant that refuses says so."""
        return self.refusal


class ImageUrl(RequestModel):
    url: str = Field(description=URL)
    detail: Detail | None = Field(None, description=DETAIL)


ImageUrlField: TypeAlias = Annotated[
    ImageUrl,
    BeforeValidator(
        lambda value: {"url": value} if isinstance(value, str) else value,
        json_schema_input_type=ImageUrl | str,
    ),
]
"""A plain text is the url."""

IMAGE_URL = 'an object such as {"url": "data:image/png;base64,..."}'


class ImagePart(ContentPart):
    """An image, as chat completions have it."""

    type: Literal["image_url"] = PART_TYPE
    image_url: ImageUrlField = Field(description=IMAGE_URL)

    @property
    def source(self) -> Source:
        return Source(self.image_url.url, None, self.image_url.detail, "image_url.url")


class InputImagePart(ContentPart):
    """An image, as OpenAI's responses have it."""

    type: Literal["input_image"] = PART_TYPE
    image_url: ImageUrlField | None = Field(None, description=IMAGE_URL)
    file_id: str | None = Field(None, description=FILE_ID)
    detail: Detail | None = Field(None, description=DETAIL)

    @model_validator(mode="after")
    def _one(self) -> InputImagePart:
        if (self.image_url is None) == (self.file_id is None):
            raise PydanticCustomError("refused", "must have one of image_url and file_id")
        return self

    @property
    def source(self) -> Source:
        if self.image_url is None:
            return Source(None, self.file_id, self.detail, "file_id")
        return Source(self.image_url.url, None, self.detail or self.image_url.detail, "image_url")


class FileReference(RequestModel):
    file_id: str | None = Field(None, description=FILE_ID)
    file_data: str | None = Field(None, description="an image as a data URI")

    unused = frozenset({"filename"})

    @model_validator(mode="after")
    def _one(self) -> FileReference:
        if (self.file_id is None) == (self.file_data is None):
            raise PydanticCustomError("refused", "must have one of file_id and file_data")
        return self


class FilePart(ContentPart):
    """An image that was sent to /v1/files."""

    type: Literal["file"] = PART_TYPE
    file: FileReference = Field(description='an object such as {"file_id": "file-..."}')

    @property
    def source(self) -> Source:
        field = "file.file_data" if self.file.file_id is None else "file.file_id"
        return Source(self.file.file_data, self.file.file_id, None, field)


Part: TypeAlias = Annotated[
    TextPart | RefusalPart | ImagePart | InputImagePart | FilePart, Field(discriminator="type")
]
Parts: TypeAlias = Annotated[list[Part], Field(max_length=MAX_ITEMS)]


def _parts(content: Any) -> Any:
    """A content's one form: a text is one part, and null none."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(RequestModel):
    expected = 'an object such as {"role": "user", "content": "What is this?"}'
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "tool_calls": Neutral((None, []), NO_TOOLS),
        "tool_call_id": Neutral((None,), NO_TOOLS),
        "function_call": Neutral((None,), NO_TOOLS),
        "audio": Neutral((None,), TEXT_ONLY),
    }
    unused = frozenset({"name", "annotations", "parsed"})

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description=f"'system', 'developer', 'user' or 'assistant' ({NO_TOOLS})"
    )
    content: Annotated[
        list[Part],
        FailFast(),
        BeforeValidator(_parts, json_schema_input_type=str | Parts | None),
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
        """Only an assistant may have said nothing."""
        if not content and info.data.get("role", "assistant") != "assistant":
            raise ValueError
        return content

    @property
    def parts(self) -> list[Part]:
        """What was said, a refusal included; an assistant that said nothing has an empty text."""
        said = list(self.content)
        if self.refusal:
            said.append(RefusalPart(type="refusal", refusal=self.refusal))
        return said or [TextPart(type="text", text="")]
