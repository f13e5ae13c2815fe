"""The sequences that branched off the one that a decoder holds: their places, and the entries they take.

A branch shares the entries that the held sequence had when it branched off. An entry stays in the KV cache
until no sequence has it. So each entry has a serial number; what is taken is the number of different ones.

Entries of a dropped branch stay, too, until all branches are dropped or their room is needed. Else the next
entries would take their cells, before older entries of the same branch. llama.cpp adds up attention in the
order of the cells, so the sums would be rounded differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InferenceError, InputError
from edgevlm.runtimes.protocols import Place
from edgevlm.validation import check_integer


@dataclass
class _Branch:
    shared: NDArray[np.int64]
    """Serial numbers of the entries that the held sequence had."""
    start: Place
    own: int = 0
    """Tokens that were decoded since."""


class Branches:
    """The open branches of a decoder, by their number.

    Args:
        count: most branches that can be open.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._open: dict[int, _Branch] = {}
        self._dropped: list[_Branch] = []
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, shared: NDArray[np.int64], place: Place) -> int:
        """Open a branch and return its number, from 1 to `count`.

        Args:
            shared: serial numbers int64 ``[entries]`` of the entries of the held sequence.
            place: the place after them.

        Raises:
            InferenceError: all branches are open.
        """
        free = [number for number in range(1, self._count + 1) if number not in self._open]
        if not free:
            raise InferenceError(
                f"all {self._count} branches of this decoder are open; drop one first"
            )
        self._set(free[0], _Branch(shared.copy(), place))
        return free[0]

    def share(self, branch: int) -> tuple[NDArray[np.int64], Place]:
        """Return what `add` needs for a branch of a branch that has no tokens of its own.

        Raises:
            InputError: there is no such branch, or it has tokens of its own.
        """
        found = self._find(branch)
        if found.own:
            raise InputError(
                f"branch {branch} has {found.own} tokens of its own; branch off before"
            )
        return found.shared, found.start

    def place(self, branch: int) -> Place:
        """Return how far a branch is.

        Raises:
            InputError: there is no such branch.
        """
        found = self._find(branch)
        return found.start.after(found.own)

    def next_positions(self, branches: Sequence[int]) -> NDArray[np.int32]:
        """Return the positions int32 ``[n]`` of further tokens of these branches; errors as of `place`."""
        ahead: dict[int, int] = {}
        positions = np.empty(len(branches), np.int32)
        for index, branch in enumerate(branches):
            position = ahead.get(branch) or self.place(branch).position
            positions[index] = position
            ahead[branch] = position + 1
        return positions

    def check_batch(
        self,
        branches: Sequence[int],
        size: int,
        logits: NDArray[np.bool_] | None,
        *,
        max_tokens: int,
        max_logits: int,
    ) -> NDArray[np.bool_]:
        """Check arguments of `DecoderRuntime.decode_branches`, and return which logits are wanted.

        Args:
            size: number of tokens.
            max_tokens, max_logits: limits of the decoder.

        Raises:
            InputError: a shape or type is wrong, or the batch is too long.
        """
        wanted = np.ones(size, np.bool_) if logits is None else logits
        if len(branches) != size or wanted.shape != (size,) or wanted.dtype != np.bool_:
            raise InputError(
                f"{size} tokens need as many branches and bools for their logits; there are {len(branches)} "
                f"and {wanted.dtype} {list(wanted.shape)}"
            )
        if size > max_tokens or wanted.sum() > max_logits:
            raise InputError(
                f"a batch of branches may have up to {max_tokens} tokens and {max_logits} "
                f"logits, has {size} and {wanted.sum()}; split it"
            )
        return wanted

    def extend(self, branches: Sequence[int]) -> None:
        """Count one more token for each of these branches."""
        for branch in branches:
            self._open[branch].own += 1

    def cut(self, branch: int, tokens: int) -> None:
        """Forget the last tokens of a branch.

        Raises:
            InputError: there is no such branch, or it has fewer tokens of its own.
        """
        found = self._find(branch)
        found.own -= check_integer("tokens", tokens, 0, found.own)

    def empty(self, branch: int) -> None:
        """Forget the entries of a branch, which stays open."""
        self._set(branch, _Branch(np.empty(0, np.int64), Place()))

    def drop(self, branch: int, *, keep: bool) -> None:
        """Close a branch; its entries stay if `keep` is True. Errors as of `place`."""
        found = self._find(branch)
        if keep:
            self._dropped.append(found)
        self._set(branch, None)

    def free_dropped(self) -> bool:
        """Forget the entries of dropped branches; return False if there are none."""
        found = bool(self._dropped)
        self._dropped.clear()
        self._counts.clear()
        return found

    def count_entries(self, held: NDArray[np.int64]) -> int:
        """Count the entries that the held sequence and all branches take, dropped ones not included.

        Args:
            held: serial numbers int64 ``[entries]`` of the entries of the held sequence.
        """
        if not self._open:
            return len(held)
        last = int(held[-1]) if len(held) else -1  # the entries before an entry are always the same
        if last not in self._counts:
            serials = [held, *(branch.shared for branch in self._open.values())]
            self._counts[last] = len(np.unique(np.concatenate(serials)))
        return self._counts[last] + sum(branch.own for branch in self._open.values())

    def count_all(self, held: NDArray[np.int64]) -> int:
        """Count as `count_entries` does, with the entries of dropped branches."""
        if not self._dropped:
            return self.count_entries(held)
        every = [*self._open.values(), *self._dropped]
        shared = np.unique(np.concatenate([held, *(branch.shared for branch in every)]))
        return len(shared) + sum(branch.own for branch in every)

    def _set(self, number: int, branch: _Branch | None) -> None:
        self._counts.clear()
        if branch is None:
            del self._open[number]
        else:
            self._open[number] = branch

    def _find(self, branch: int) -> _Branch:
        if branch not in self._open:
            raise InputError(f"there is no branch {branch!r}, or it was dropped")
        return self._open[branch]
