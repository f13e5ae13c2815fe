"""Sources of an image file: a path, a URI, bytes in memory, or an open file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from edgevlm.errors import ImageError
from edgevlm.inputs.data_uri import decode_data_uri, is_data_uri, shorten

MAX_BYTES = 2**28
"""Limit of bytes that are read into memory from a pipe or a file object."""


@contextmanager
def open_source(source: Any, kind: str = "image") -> Iterator[tuple[BinaryIO, str]]:
    """Open a source as a seekable file at its beginning.

    Args:
        source: a path, a data URI or a file URL, bytes, or a binary file object. A file object is read from
            its current position to its end, and stays open.
        kind: ``image`` or ``video``, for messages.

    Yields:
        The file, and its name for error messages.

    Raises:
        ImageError: the type is not supported, or the source cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        name = shorten(text)
        if not (isinstance(source, str) and is_data_uri(source)):
            path = _resolve_path(source, name) if isinstance(source, str) else _expand_home(text)
            with _open_path(path, name, kind) as file:
                yield file, name
            return
        data, name = decode_data_uri(source), "the data URI"
    elif is_bytes_like(source):
        data = source if isinstance(source, bytes) else memoryview(source).tobytes()
        name = f"the {kind} of {len(data)} bytes"
        if not data:
            raise ImageError(f"the {kind}'s bytes are empty; pass those of a whole file")
    elif is_file_object(source):
        name = _file_name(source)
        data = read_all(source, name)
        if not data:
            raise ImageError(
                f"{name} is empty or already at its end; file.seek(0) goes back to its start"
            )
    else:
        raise ImageError(
            f"an image must be a path, a data URI, bytes, a binary file, a Pillow image or an array "
            f"[height, width, 3], is {type_name(source)}"
        )
    yield BytesIO(data), name


def is_url(text: str) -> bool:
    """Return True if a text is a data URI or a ``file:`` URL, which need no network."""
    return is_data_uri(text) or text[:5].lower() == "file:"


def path_exists(text: str) -> bool:
    """Return True if a path or a ``file:`` URL exists in the file system."""
    try:
        return os.path.lexists(_resolve_path(text, ""))
    except (ImageError, OSError, ValueError):
        return False


def is_bytes_like(source: object) -> bool:
    """Return True for bytes and buffers of bytes, such as a bytearray or a memory map."""
    try:
        with memoryview(source) as view:  # type: ignore[arg-type]  # it raises for other types
            return view.format in ("B", "b", "c")
    except (TypeError, ValueError, BufferError):
        return False


def is_file_object(source: object) -> bool:
    """Return True if an object has the method ``read``."""
    return callable(getattr(source, "read", None))


def type_name(source: object) -> str:
    """Return the name of an object's type for messages."""
    kind = type(source)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _resolve_path(text: str, name: str) -> str | bytes:
    """Return the path of a text that is a path or a file URL."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise ImageError(f"{name} is a web address and edgevlm fetches nothing; download it first")
    return _path_of_url(text, name) if is_url(text) else _expand_home(text)


def _expand_home(path: str | bytes) -> str | bytes:
    """Replace ``~`` with the home folder, unless there is a file of exactly this name."""
    try:
        return path if os.path.lexists(path) else os.path.expanduser(path)
    except (ValueError, OSError):  # opening the file reports the error
        return path


def _path_of_url(url: str, name: str) -> str | bytes:
    """Return the path of ``file:///a%20b.png``, ``file://localhost/a.png`` or ``file:/a.png``."""
    rest = url[5:]
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.lower() not in ("", "localhost"):
        raise ImageError(
            f"{name} is a file of the machine {shorten(host)}; only files of this machine can be read"
        )
    if not rest.startswith("/"):
        raise ImageError(f"{name} has no absolute path; it must be file:///folder/name.png")
    if os.name == "nt":
        from urllib.request import url2pathname

        return url2pathname(rest)
    return unquote_to_bytes(rest.encode("utf-8", "surrogateescape"))


@contextmanager
def _open_path(path: str | bytes, name: str, kind: str) -> Iterator[BinaryIO]:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, "a socket")
        file = open(path, "rb")  # noqa: SIM115  (errors while it is read are not caught here)
    except (OSError, ValueError) as error:
        raise ImageError(f"no {kind} at {name}: {_reason(error, path)}") from error
    with file:
        if stat.S_ISREG(mode):
            if os.fstat(file.fileno()).st_size == 0:
                raise ImageError(f"{name} is an empty file")
            yield file
        else:  # a pipe or a device cannot be read twice
            data = read_all(file, name)
            if not data:
                raise ImageError(f"{name} is empty")
            yield BytesIO(data)


def _reason(error: OSError | ValueError, path: str | bytes) -> str:
    if isinstance(error, UnicodeError):
        return "it has a lone surrogate, which is not a character"
    if isinstance(error, ValueError):
        return "it has a null character"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "a link to a file that does not exist"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if error.errno == errno.ENAMETOOLONG:
        return "too long for a path; an image in base64 must begin with 'data:image/png;base64,'"
    return (error.strerror or type(error).__name__).lower()


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return f"the file {shorten(name)}" if isinstance(name, str | bytes) else "the file object"


def read_all(file: Any, name: str) -> bytes:
    """Read a binary file from its current position to its end.

    Args:
        file: an object with the method ``read``.
        name: the name of the file in error messages.

    Raises:
        ImageError: the file cannot be read, is open as text, or has more than `MAX_BYTES`.
    """
    data = bytearray()
    while len(data) <= MAX_BYTES:
        try:
            block = file.read(2**20)  # may return less, also before the end
        except Exception as error:  # any type: the object's read is not ours
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ImageError(f"{name} cannot be read: {reason}") from error
        if isinstance(block, str):
            raise ImageError(f"{name} is open as text; open it with mode 'rb'")
        if not isinstance(block, bytes | bytearray | memoryview):
            if hasattr(block, "close"):  # a coroutine, which is not awaited
                block.close()
            raise ImageError(f"{name} cannot be read: read() returns {type_name(block)}, not bytes")
        if not block:
            return bytes(data)
        data += block
    raise ImageError(
        f"{name} has more than {MAX_BYTES:,} bytes; save it as a file and pass its path"
    )
