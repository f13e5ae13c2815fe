"""The positions of the entries that a KV cache holds, and the checks of those that come next.

With M-RoPE a position has three numbers: time, line and column. Those of a text are equal. The embeddings of
an image all have the next position as their time, and count lines and columns from there. So an image takes
fewer positions than entries. Those of a video count the time on with each image. llama.cpp cuts a KV cache by
the time alone, so before or after an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ContextError, InputError
from edgevlm.runtimes.protocols import Place
from edgevlm.validation import check_integer

NO_GRID = -1, 0
"""No image or video was decoded last."""


class CachePositions:
    """The positions of one sequence in a KV cache, in the order of its entries.

    Args:
        context_length: entries that the KV cache holds.
        mrope: a position has three numbers.
    """

    def __init__(self, context_length: int, *, mrope: bool) -> None:
        self.place = Place()
        """How far the sequence is."""
        self._mrope = mrope
        self._grid = (
            NO_GRID  # first position, and entries so far, of the image or video decoded last
        )
        self._times = np.empty(context_length, np.int32)  # the first number of each position
        self._serials = np.empty(context_length, np.int64)
        self._next_serial = 0

    @property
    def serials(self) -> NDArray[np.int64]:
        """Serial numbers int64 ``[entries]``: no other entry of this KV cache ever had the same."""
        return self._serials[: self.place.entries]

    def check(
        self, positions: NDArray[np.int32], count: int, *, embeddings: bool, taken: int
    ) -> NDArray[np.int32]:
        """Check that positions continue the sequence.

        Those of a text do so without a gap. Those of an image or a video may come in several calls, so the
        first time may be that of the last entry; no time is earlier.

        Args:
            positions: ``[n]``; for embeddings of an M-RoPE model also ``[3, n]``.
            count: n, the number of entries.
            embeddings: the entries are embeddings.
            taken: entries that this sequence and its branches take.

        Returns:
            int32, in the same shape.

        Raises:
            InputError: the type or the shape is wrong, or they do not continue the sequence.
            ContextError: the entries do not fit.
        """
        array = np.asarray(positions)
        shapes = [(count,), (3, count)] if self._mrope and embeddings else [(count,)]
        if array.shape not in shapes or not np.issubdtype(array.dtype, np.integer):
            shape = " or ".join(str(list(shape)) for shape in shapes)
            raise InputError(
                f"positions must be integers of shape {shape}, are {array.dtype} {list(array.shape)}"
            )
        numbers = array.astype(np.int64)
        if numbers.ndim == 1:
            self._check_counts_up(numbers)
        else:
            self._follow_grid(numbers)
        self.check_fits(count, taken)
        return numbers.astype(np.int32)

    def check_fits(self, count: int, taken: int) -> None:
        """Check that further entries fit.

        Args:
            count: their number.
            taken: as of `check`.

        Raises:
            ContextError: they do not.
        """
        if taken + count > len(self._times):
            raise ContextError(
                f"{count} entries after {taken} cached ones do not fit into a context of "
                f"{len(self._times)}"
            )

    def _check_counts_up(self, positions: NDArray[np.int64]) -> None:
        start = self.place.position
        if (positions != np.arange(start, start + len(positions))).any():
            raise InputError(
                f"positions must count up by one from {start}, the next position of the KV cache; they go "
                f"from {positions[0]} to {positions[-1]}"
            )

    def _follow_grid(self, positions: NDArray[np.integer[Any]]) -> tuple[int, int]:
        """Check positions of images and videos, and return what `_grid` is after them.

        Args:
            positions: ``[3, n]``.

        Raises:
            InputError: they do not continue the sequence.
        """
        (start, held), following = self._grid, self.place.position
        last = int(self._times[self.place.entries - 1]) if held else -1
        for index, (time, line, column) in enumerate(positions.T.tolist()):
            # A later image of a video may have the next time, too, but begins with lines before it.
            begins = time == following and min(line, column) >= time
            if begins:
                start, held = time, 0
            offsets = line - start, column - start
            continues = bool(held) and time >= last
            # No entry takes more than one line or column.
            if not (begins or continues) or not 0 <= min(offsets) <= max(offsets) <= held:
                raise InputError(
                    f"positions must have the next time, that of the entry before, or in a video a later "
                    f"one, and lines and columns that count from the first time; entry {index} has "
                    f"{[time, line, column]}, the time before it is {last}, the next one {following}"
                )
            last, held = time, held + 1
            following = max(following, time + 1, line + 1, column + 1)
        return start, held

    def extend(self, positions: NDArray[np.int32]) -> None:
        """Add checked positions, int32 ``[n]`` or ``[3, n]``."""
        grid = NO_GRID if positions.ndim == 1 else self._follow_grid(positions)
        times = positions if positions.ndim == 1 else positions[0]
        entries = self.place.entries + len(times)
        self._times[self.place.entries : entries] = times
        self._number(self.place.entries, entries)
        self.place = Place(entries, max(self.place.position, int(positions.max()) + 1))
        self._grid = grid

    def new_serials(self, count: int) -> NDArray[np.int64]:
        """Return serial numbers int64 ``[count]`` that no entry has had."""
        first = self._next_serial
        self._next_serial += count
        return np.arange(first, first + count)

    def _number(self, first: int, last: int) -> None:
        """Give new serial numbers to the entries from `first` to before `last`."""
        self._serials[first:last] = self.new_serials(last - first)

    def cut(self, time: int) -> None:
        """Drop all entries from this time on."""
        entries = int(np.searchsorted(self._times[: self.place.entries], time))
        if entries < self.place.entries:
            self.place = Place(entries, time)
            self._grid = NO_GRID

    def remove(self, start: Place, end: Place) -> None:
        """Drop the entries between two places that the sequence has reached, and move those after them."""
        moved = self._times[end.entries : self.place.entries] - (end.position - start.position)
        entries = start.entries + len(moved)
        self._times[start.entries : entries] = moved
        self._number(start.entries, entries)  # they do not follow the same entries any more
        self.place = Place(entries, self.place.position - (end.position - start.position))
        self._grid = NO_GRID

    def reaches(self, place: Place) -> bool:
        """Return True if the sequence has come to a place, or has come further.

        Raises:
            InputError: the numbers are negative or no integers, or the place is inside an image.
        """
        position = check_integer("position", place.position, 0, 2**31 - 1)
        entries = check_integer("entries", place.entries, 0, 2**31 - 1)
        end = self.place
        if entries >= end.entries and position >= end.position:
            return place == end
        before = self._times[entries - 1] if entries else -1
        if entries >= end.entries or not before < position == self._times[entries]:
            raise InputError(
                f"the KV cache of {end.entries} entries and {end.position} positions cannot be cut after "
                f"{entries} entries and {position} positions; cut before or after an image"
            )
        return True

    def numbers(self) -> NDArray[np.int32]:
        """Return the times of all entries and the next position, int32 ``[entries + 1]``, for `restore`."""
        times = self._times[: self.place.entries]
        return np.append(times, np.int32(self.place.position))

    def restore(self, numbers: NDArray[np.int32], place: Place) -> None:
        """Replace the sequence with one of which `numbers` were kept at `place`."""
        self._times[: place.entries] = numbers[:-1]
        self._number(0, place.entries)
        self.place = place
        self._grid = NO_GRID


def belong_together(numbers: NDArray[np.int32], place: Place, last: int) -> bool:
    """Return True if a sequence has the numbers that were kept of it.

    Args:
        numbers: as `CachePositions.numbers` returned them.
        place: how far the sequence was.
        last: time of its last entry; -1 without entries.
    """
    times = numbers[:-1]
    if len(times) != place.entries or numbers[-1] != place.position:
        return False
    return last == (times[-1] if place.entries else -1)
