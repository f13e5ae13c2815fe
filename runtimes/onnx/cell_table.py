"""Which cells of a decoder's memory hold the entries of each sequence, and what an entry sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HELD = 0
"""Number of the held sequence; branches have others."""
BLANK = 0
"""A cell that stays zero. In a memory that needs one, nothing is written to it."""


class CellTable:
    """The cells of each sequence, in the order of its entries. Sequences may share cells.

    Args:
        has_blank: no sequence gets the cell `BLANK`.
    """

    def __init__(self, *, has_blank: bool = False) -> None:
        self._first = BLANK + 1 if has_blank else 0
        self._sequences: dict[int, NDArray[np.int64]] = {HELD: np.empty(0, np.int64)}

    def cells(self, sequence: int) -> NDArray[np.int64]:
        """Return the cells int64 ``[entries]`` of a sequence."""
        return self._sequences[sequence]

    def set(self, sequence: int, cells: NDArray[np.int64]) -> None:
        """Let a sequence have these cells."""
        self._sequences[sequence] = cells

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        del self._sequences[sequence]

    @property
    def end(self) -> int:
        """One more than the last cell that is taken, `BLANK` among them; 0 if none is."""
        return max(
            (int(cells.max()) + 1 for cells in self._sequences.values() if len(cells)),
            default=self._first,
        )

    def free(self, count: int) -> NDArray[np.int64]:
        """Return the first cells int64 ``[count]`` that no sequence has, in ascending order."""
        end = self.end
        taken = np.zeros(end + count, np.bool_)
        taken[: self._first] = True
        for cells in self._sequences.values():
            taken[cells] = True
        return np.flatnonzero(~taken)[:count]

    def before(
        self, sequences: Sequence[int], new: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """Return the cells of the entries before each of the next ones in its sequence.

        Args:
            sequences: ``[n]``, the sequence of each entry.
            new: int64 ``[n]``, the cells of the entries.
            count: how many before each.

        Returns:
            int64 ``[n, count]``, the nearest last; `BLANK` in place of entries that are not there.
        """
        found = np.empty((len(sequences), count), np.int64)
        if not count:
            return found
        for sequence in dict.fromkeys(sequences):
            rows = np.flatnonzero(np.asarray(sequences) == sequence)
            held = self._sequences[sequence]
            cells = np.concatenate(
                [np.full(count, BLANK, np.int64), held[max(0, len(held) - count) :], new[rows]]
            )
            first = len(cells) - len(rows) - count
            found[rows] = cells[first + np.arange(len(rows))[:, None] + np.arange(count)]
        return found

    def mask(
        self,
        sequences: Sequence[int],
        new: NDArray[np.int64],
        total: int,
        *,
        window: int | None = None,
        bidirectional: bool = False,
    ) -> NDArray[np.bool_]:
        """Return which cells the next entries see: those of their sequence before them, and their own.

        Args:
            sequences: ``[n]``, the sequence of each entry.
            new: int64 ``[n]``, the cells of the entries.
            total: number of cells.
            window: entries that an entry sees, itself included; None: all.
            bidirectional: the entries, all of one sequence, see each other, also later ones.

        Returns:
            bool ``[n, total]``.
        """
        seen = np.zeros((len(sequences), total), np.bool_)
        for sequence in dict.fromkeys(sequences):
            rows = np.flatnonzero(np.asarray(sequences) == sequence)
            cells = np.concatenate([self._sequences[sequence], new[rows]])
            before = len(cells) - len(rows)
            for index, row in enumerate(rows):
                end = before + (len(rows) if bidirectional else index + 1)
                start = 0 if window is None else max(0, before + index + 1 - window)
                seen[row, cells[start:end]] = True
        return seen
