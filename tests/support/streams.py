"""Streams that tests write as generators, in the place of a model's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from edgevlm import CancelledError, Chunk


class GeneratedStream(Iterator[Chunk]):
    """The chunks of a generator; behaves as `edgevlm.ChunkStream`, except that a step is not interrupted."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._cancelled = False

    def __next__(self) -> Chunk:
        if self._cancelled:
            raise CancelledError("cancelled")
        chunk: Chunk = next(self._chunks)
        return chunk

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self._chunks.close()


def as_stream(generate: Callable[..., Iterator[Chunk]]) -> Callable[..., GeneratedStream]:
    """Make a function that returns a generator return a stream."""

    @functools.wraps(generate)
    def stream(*arguments: Any, **options: Any) -> GeneratedStream:
        return GeneratedStream(generate(*arguments, **options))

    return stream
