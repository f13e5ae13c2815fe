"""Uploaded images: kept in memory while the server runs; requests refer to them by id."""

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
from edgevlm.server.validation import RequestModel, UnsupportedField, validate

MAX_LISTED = 10_000
"""Limit of files in one response, as OpenAI's."""

UPLOAD_HINT = "send the image as multipart/form-data, in the field 'file'"

Purpose = Literal["vision", "user_data", "assistants"]
"""Values of the field ``purpose`` that are accepted."""


class UploadFields(RequestModel):
    """The fields of an upload, except the file."""

    unsupported: ClassVar[Mapping[str, UnsupportedField]] = {
        "expires_after[anchor]": UnsupportedField((), "files are kept until they are deleted"),
        "expires_after[seconds]": UnsupportedField((), "files are kept until they are deleted"),
    }

    purpose: Purpose = Field("vision", description="'vision', 'user_data' or 'assistants'")


def _parse_number(value: Any) -> Any:
    """Convert digits to an integer, since all values of a query are texts."""
    is_number = isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value)
    return int(value) if is_number else value


class ListParameters(RequestModel):
    """The parameters of a request for a list of files."""

    limit: Annotated[int, BeforeValidator(_parse_number)] = Field(
        MAX_LISTED, ge=1, le=MAX_LISTED, description=f"an integer from 1 to {MAX_LISTED}"
    )
    after: str = Field("", description="the id of a file; the list begins after it")
    order: Literal["asc", "desc"] = Field(
        "desc", description="'asc' (the oldest first) or 'desc' (the newest first)"
    )
    purpose: str = Field("", description="a text; only files of this purpose are listed")


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file."""

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
    """Uploaded files by id. A full store refuses new files and never deletes one by itself."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> None:
        """Store a file.

        Raises:
            RequestError: the store is full.
        """
        used = sum(len(other.data) for other in self._files.values())
        if (
            used + len(file.data) > self._limits.stored_bytes
            or len(self._files) >= self._limits.stored_files
        ):
            raise RequestError(
                413,
                f"the {len(self._files)} uploaded files have {used} bytes; the limit is "
                f"{self._limits.stored_files} files and {self._limits.stored_bytes} bytes; delete some",
                code="storage_full",
            )
        self._files[file.id] = file

    def get(self, identifier: str) -> StoredFile:
        """Return a file.

        Raises:
            RequestError: there is no such file.
        """
        try:
            return self._files[identifier]
        except KeyError:
            raise RequestError(
                404, f"no file {identifier[:80]!r}; upload it to /v1/files", code="file_not_found"
            ) from None

    def remove(self, identifier: str) -> None:
        """Delete a file.

        Raises:
            RequestError: there is no such file.
        """
        self.get(identifier)
        del self._files[identifier]

    def page(self, parameters: ListParameters) -> Page:
        """Return a part of the list.

        Raises:
            RequestError: the file of ``after`` does not exist.
        """
        files = list(self._files.values())  # the oldest first
        if parameters.order == "desc":
            files.reverse()
        if parameters.after:
            files = files[files.index(self.get(parameters.after)) + 1 :]
        if parameters.purpose:
            files = [file for file in files if file.purpose == parameters.purpose]
        return Page(files[: parameters.limit], len(files) > parameters.limit)


async def read_upload(
    request: Request, limits: Limits, *, strict: bool
) -> tuple[StoredFile, list[str]]:
    """Read the upload of a request.

    Args:
        request: the request.
        limits: the limits of the server.
        strict: refuse unknown fields.

    Returns:
        The file, and the names of unknown fields.

    Raises:
        RequestError: the body is not a form, the form has no file, or a value of a field is not supported.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = f"the body is {kind or 'of no type'}; {UPLOAD_HINT}"
        raise RequestError(400, message, code="invalid_form")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=20)
    parser.spool_max_size = limits.body_bytes  # never write to disk: there may be no folder for it
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(
            400, f"the form cannot be read: {error.message}; {UPLOAD_HINT}", code="invalid_form"
        ) from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            found = ", ".join(repr(name[:40]) for name in list(form)[:5]) or "no field"
            raise RequestError(
                400,
                f"file is missing, the form has {found}; {UPLOAD_HINT}",
                code="invalid_form",
                parameter="file",
            )
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        upload, unknown = validate(UploadFields, fields, strict=strict)
        data = await file.read()
    finally:
        await form.close()
    return StoredFile(file.filename or "image", upload.purpose, data), unknown
