"""Write a file so that a reader sees its old content or its new content, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, rename the file there to `path`.

    If the block raises an error or writes nothing, `path` stays as it is. The temporary path is in a folder
    of its own beside `path`, which is removed in any case.

    Args:
        path: the file to write. Its folder must exist.

    Raises:
        OSError: the folder cannot be written to.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder, path.name)
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `staged_file` does.

    Raises:
        OSError: the folder cannot be written to.
        UnicodeEncodeError: the text holds lone surrogates.
    """
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
