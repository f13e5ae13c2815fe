"""Images that clients uploaded, to be asked about by their ids; in memory, as long as the server runs."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from fastapi import Request
from pydantic import BeforeValidator, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from edgevlm.server.errors import RequestError
from edgevlm.server.limits import Limits
from edgevlm.server.validation import Neutral, RequestModel, check

MAX_LISTED = 10_000
"""Files in one answer, as OpenAI has it."""

FORM = "send the image as multipart/form-data, in the field 'file'"

Purpose = Literal["vision", "user_data", "assistants"]


class UploadFields(RequestModel):
    """The fields of an upload beside the file."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "expires_after[anchor]": Neutral((), "files are kept until they are deleted"),
        "expires_after[seconds]": Neutral((), "files are kept until they are deleted"),
    }

    purpose: Purpose = Field("vision", description="'vision', 'user_data' or 'assistants'")


def _number(value: Any) -> Any:
    """Everything in a query is text."""
    is_number = isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value)
    return int(value) if is_number else value


class ListParameters(RequestModel):
    """What a client says of the list that it wants."""

    limit: Annotated[int, BeforeValidator(_number)] = Field(
        MAX_LISTED, ge=1, le=MAX_LISTED, description=f"an integer from 1 to {MAX_LISTED}"
    )
    after: str = Field("", description="the id of a file; the list begins behind it")
    order: Literal["asc", "desc"] = Field(
        "desc", description="'asc' (the oldest first) or 'desc' (the newest first)"
    )
    purpose: str = Field("", description="a text; only files of this purpose are listed")


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    name: str
    purpose: str
    data: bytes
    id: str = field(default_factory=lambda: f"file-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


class Page(NamedTuple):
    """A part of the list of files."""

    files: list[StoredFile]
    has_more: bool


class FileStore:
    """Uploads by id. What is full refuses more: nothing that a client still counts on is thrown away."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> None:
        """Raises RequestError if it does not fit."""
        used = sum(len(other.data) for other in self._files.values())
        if (
            used + len(file.data) > self._limits.stored_bytes
            or len(self._files) >= self._limits.stored_files
        ):
            raise RequestError(
                413,
                f"the {len(self._files)} uploaded files have {used} bytes, at most "
                f"{self._limits.stored_files} files and {self._limits.stored_bytes} bytes are kept; "
                f"delete some",
                code="storage_full",
            )
        self._files[file.id] = file

    def get(self, identifier: str) -> StoredFile:
        """Raises RequestError if there is no such file."""
        try:
            return self._files[identifier]
        except KeyError:
            raise RequestError(
                404, f"no file {identifier[:80]!r}; upload it to /v1/files", code="file_not_found"
            ) from None

    def remove(self, identifier: str) -> None:
        """Raises RequestError if there is no such file."""
        self.get(identifier)
        del self._files[identifier]

    def page(self, wanted: ListParameters) -> Page:
        """A part of the list; raises RequestError if there is no file to begin behind."""
        files = list(self._files.values())  # the oldest first
        if wanted.order == "desc":
            files.reverse()
        if wanted.after:
            files = files[files.index(self.get(wanted.after)) + 1 :]
        if wanted.purpose:
            files = [file for file in files if file.purpose == wanted.purpose]
        return Page(files[: wanted.limit], len(files) > wanted.limit)


async def read_upload(
    request: Request, limits: Limits, *, strict: bool
) -> tuple[StoredFile, list[str]]:
    """The file that a request brings, and the names of the fields that the server does not know.

    Raises:
        RequestError: no form, no file in it, or a field with a value that cannot be honoured.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(400, f"the body is {kind or 'of no type'}; {FORM}", code="invalid_form")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=20)
    parser.spool_max_size = limits.body_bytes  # in memory: there may be no folder for it
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(
            400, f"the form cannot be read: {error.message}; {FORM}", code="invalid_form"
        ) from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            found = ", ".join(repr(name[:40]) for name in list(form)[:5]) or "no field"
            raise RequestError(
                400,
                f"file is missing, the form has {found}; {FORM}",
                code="invalid_form",
                parameter="file",
            )
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        checked, unknown = check(UploadFields, fields, strict=strict)
        data = await file.read()
    finally:
        await form.close()
    return StoredFile(file.filename or "image", checked.purpose, data), unknown
