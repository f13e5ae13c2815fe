"""Where the bytes of an image file come from: a path, a URI, bytes in memory, or an open file."""

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
from edgevlm.inputs.data_uri import decode_data_uri, is_data_uri, shortened

MAX_BYTES = 2**28
"""Of what is read into memory as a whole: pipes and file objects."""


@contextmanager
def opened(source: Any) -> Iterator[tuple[BinaryIO, str]]:
    """A seekable file at its beginning, and its name for messages.

    Args:
        source: a path, a data URI or a file URL, bytes, or a binary file object. The last is read from its
            current position to its end, and left open.

    Raises:
        ImageError: another type, or nothing that can be read there.
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        name = shortened(text)
        if not (isinstance(source, str) and is_data_uri(source)):
            path = _named_path(source, name) if isinstance(source, str) else _expanded(text)
            with _open_path(path, name) as file:
                yield file, name
            return
        data, name = decode_data_uri(source), "the data URI"
    elif holds_bytes(source):
        data = source if isinstance(source, bytes) else memoryview(source).tobytes()
        name = f"the picture of {len(data)} bytes"
        if not data:
            raise ImageError("the picture's bytes are empty; pass a whole PNG, JPEG, WebP ... file")
    elif is_file(source):
        name = _file_name(source)
        data = read_all(source, name)
        if not data:
            raise ImageError(
                f"{name} is empty, or at its end already; file.seek(0) goes back to its start"
            )
    else:
        raise ImageError(
            f"a picture must be a path, a data URI, bytes, a binary file, a Pillow image or an array "
            f"[height, width, 3], is {type_name(source)}"
        )
    yield BytesIO(data), name


def is_url(text: str) -> bool:
    """Whether a text is an address that can be read without a network."""
    return is_data_uri(text) or text[:5].lower() == "file:"


def exists(text: str) -> bool:
    """Whether a text names something in the file system."""
    try:
        return os.path.lexists(_named_path(text, ""))
    except (ImageError, OSError, ValueError):
        return False


def holds_bytes(source: object) -> bool:
    """Whether an object is bytes or a buffer of them, such as a bytearray or a memory map."""
    try:
        with memoryview(source) as view:  # type: ignore[arg-type]  # it says what it does not take
            return view.format in ("B", "b", "c")
    except (TypeError, ValueError, BufferError):
        return False


def is_file(source: object) -> bool:
    """Whether an object is read like a file."""
    return callable(getattr(source, "read", None))


def type_name(source: object) -> str:
    """The name of an object's type, for messages."""
    kind = type(source)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _named_path(text: str, name: str) -> str | bytes:
    """The path that a text names, which may be a file URL."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise ImageError(f"{name} is a web address and edgevlm fetches nothing; download it first")
    return _path_of_url(text, name) if is_url(text) else _expanded(text)


def _expanded(path: str | bytes) -> str | bytes:
    """A path with the home folder for ``~``, unless there is a file of that very name."""
    try:
        return path if os.path.lexists(path) else os.path.expanduser(path)
    except (ValueError, OSError):  # what is wrong is said where it is opened
        return path


def _path_of_url(url: str, name: str) -> str | bytes:
    """The path of a file URL: ``file:///a%20b.png``, ``file://localhost/a.png`` or ``file:/a.png``."""
    rest = url[5:]
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.lower() not in ("", "localhost"):
        raise ImageError(
            f"{name} is a file of the machine {shortened(host)}; only this one's can be read"
        )
    if not rest.startswith("/"):
        raise ImageError(f"{name} has no absolute path; it must be file:///folder/name.png")
    if os.name == "nt":
        from urllib.request import url2pathname

        return url2pathname(rest)
    return unquote_to_bytes(rest.encode("utf-8", "surrogateescape"))


@contextmanager
def _open_path(path: str | bytes, name: str) -> Iterator[BinaryIO]:
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError
        if stat.S_ISSOCK(kind):
            raise OSError(errno.ENXIO, "a socket")
        file = open(path, "rb")  # noqa: SIM115  (what goes wrong while it is read is not caught here)
    except (OSError, ValueError) as error:
        raise ImageError(f"no picture at {name}: {_reason(error, path)}") from error
    with file:
        if stat.S_ISREG(kind):
            if os.fstat(file.fileno()).st_size == 0:
                raise ImageError(f"{name} is an empty file")
            yield file
        else:  # a pipe or a device, which cannot be read twice
            data = read_all(file, name)
            if not data:
                raise ImageError(f"{name} is empty")
            yield BytesIO(data)


def _reason(error: OSError | ValueError, path: str | bytes) -> str:
    if isinstance(error, UnicodeError):
        return "it has a lone surrogate, which is no character"
    if isinstance(error, ValueError):
        return "it has a null character"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "a link to a file that is not there"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if error.errno == errno.ENAMETOOLONG:
        return "longer than a path may be; a picture in base64 must begin with 'data:image/png;base64,'"
    return (error.strerror or type(error).__name__).lower()


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return f"the file {shortened(name)}" if isinstance(name, str | bytes) else "the file object"


def read_all(file: Any, name: str) -> bytes:
    """What a binary file holds from its current position on.

    Raises:
        ImageError: it cannot be read, is text, or has more than `MAX_BYTES`.
    """
    data = bytearray()
    while len(data) <= MAX_BYTES:
        try:
            piece = file.read(2**20)  # may be less, also before the end
        except Exception as error:  # whatever the object's own read raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ImageError(f"{name} cannot be read: {reason}") from error
        if isinstance(piece, str):
            raise ImageError(f"{name} is open as text; open it with mode 'rb'")
        if not isinstance(piece, bytes | bytearray | memoryview):
            if hasattr(piece, "close"):  # a coroutine, which is not awaited
                piece.close()
            raise ImageError(f"{name} cannot be read: read() returns {type_name(piece)}, not bytes")
        if not piece:
            return bytes(data)
        data += piece
    raise ImageError(
        f"{name} has more than {MAX_BYTES:,} bytes; save it as a file and pass its path"
    )
