"""A mapping with a size limit that drops the least recently used entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """A mapping whose values together stay within a size limit. Not thread-safe.

    Args:
        max_size: limit of the sum of all sizes. A value that is larger by itself is not stored.
        size_of: returns the size of a value; by default each value has size 1.
    """

    def __init__(self, max_size: int, size_of: Callable[[Value], int] = lambda _: 1) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.size = 0
        """Sum of all sizes."""

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def keys(self) -> Iterable[Key]:
        """Return all keys, the least recently used first."""
        return self._values.keys()

    def items(self) -> Iterable[tuple[Key, Value]]:
        """Return all keys with their values, the least recently used first."""
        return self._values.items()

    def __getitem__(self, key: Key) -> Value:
        """Return a value and mark it as used."""
        value = self._values[key]
        self._values.move_to_end(key)
        return value

    def get(self, key: Key) -> Value | None:
        """Return a value without marking it as used; None if there is none."""
        return self._values.get(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        """Store a value as the most recently used one; drop older ones until all fit."""
        if key in self._values:
            self.pop(key)
        size = self._size_of(value)
        if size > self._max_size:
            return
        self._values[key] = value
        self.size += size
        while self.size > self._max_size:
            self.pop(next(iter(self._values)))

    def pop(self, key: Key) -> Value:
        """Remove a value and return it."""
        value = self._values.pop(key)
        self.size -= self._size_of(value)
        return value

    def clear(self) -> None:
        """Remove everything."""
        self._values.clear()
        self.size = 0
