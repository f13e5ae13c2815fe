"""What the demo keeps of each browser's conversations, in memory, for as long as the command runs.

A page writes its own conversation and no other, so the pages of one browser cannot overwrite each other's
lists. A page that writes over a newer version than it has seen makes a copy.
"""

from __future__ import annotations

import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from edgevlm.demo import conversation
from edgevlm.demo.conversation import Turn
from edgevlm.errors import InputError

MAX_CONVERSATIONS = 200
"""Of one browser; the one that was not changed for longest goes first."""

MAX_BROWSERS = 100
"""The one that wrote nothing for longest goes first."""

MAX_TITLE_LENGTH = 100

UNDO_SECONDS = 600
"""How long a deleted conversation can be taken back."""


@dataclass(frozen=True)
class Opened:
    """Which conversation a page shows, and in which version."""

    id: str
    version: int


@dataclass(frozen=True)
class Saved:
    """A conversation that is kept."""

    id: str
    title: str
    turns: tuple[Turn, ...]
    changed: float
    """Seconds since 1970."""
    version: int = 1
    named: bool = False
    """Whether a person chose the title."""
    deleted: float | None = None
    """Seconds since 1970; None if it is not deleted."""

    @property
    def opened(self) -> Opened:
        return Opened(self.id, self.version)


@dataclass(frozen=True)
class Written:
    """What came of writing a conversation."""

    opened: Opened
    copied: bool = False
    """Another page had changed it: this is a copy, and both are kept."""
    dropped: Saved | None = None
    """It had to go for this one."""


@dataclass
class _Shelf:
    """Conversations of one browser."""

    saved: dict[str, Saved] = field(default_factory=dict)

    def newest_first(self) -> list[Saved]:
        return sorted(self.saved.values(), key=lambda saved: saved.changed, reverse=True)


class ConversationStore:
    """Conversations of all browsers; safe to use from many threads."""

    def __init__(self) -> None:
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()
        self._shown: dict[str, str] = {}
        self._released: dict[str, float] = {}
        self._lock = threading.Lock()

    def write(
        self,
        browser: str,
        turns: Sequence[Turn],
        opened: Opened | None = None,
        title: str | None = None,
    ) -> Written:
        """Keep a conversation.

        Args:
            browser: as `edgevlm.demo.browsers.browser_of` names it.
            opened: what the page had opened; None, or one that was deleted meanwhile, makes a new one.
            title: None for the conversation's first words.
        """
        with self._lock:
            copied = False
            shelf = self._shelves.setdefault(browser, _Shelf())
            self._shelves.move_to_end(browser)
            if len(self._shelves) > MAX_BROWSERS:
                _, left = self._shelves.popitem(last=False)
                self._release(left.saved.values())
            known = None if opened is None else shelf.saved.get(opened.id)
            if known is None or known.deleted is not None or opened is None:
                saved = Saved(_new_id(), conversation.title(turns), tuple(turns), time.time())
                if title:
                    saved = replace(saved, title=_cut(title), named=True)
            else:
                newer = known.version != opened.version  # than what the page has seen
                if newer and _begins(known.turns, turns):
                    return Written(opened)  # the page wrote nothing of its own
                copied = newer and not _begins(turns, known.turns)
                saved = replace(known, turns=tuple(turns))
                if copied:
                    saved = replace(saved, id=_new_id(), version=1)
                if len(turns) != len(known.turns) or not _begins(turns, known.turns):
                    saved = replace(saved, changed=time.time(), version=saved.version + 1)
                if not known.named:
                    saved = replace(saved, title=conversation.title(turns))
            shelf.saved[saved.id] = saved
            kept = [other for other in shelf.newest_first() if other.deleted is None]
            dropped = kept[-1] if len(kept) > MAX_CONVERSATIONS else None
            if dropped is not None:
                self._release([shelf.saved.pop(dropped.id)])
            return Written(saved.opened, copied, dropped)

    def find(self, browser: str, id: str | None) -> Saved:
        """A conversation of this browser.

        Raises:
            InputError: it has none of this id, or no longer.
        """
        with self._lock:
            return self._find(browser, id)

    def search(self, browser: str, text: str = "") -> list[Saved]:
        """Conversations with this text in their titles or turns, the newest first; "" finds all.

        Those that were deleted and can be taken back are among them.
        """
        with self._lock:
            shelf = self._shelves.get(browser, _Shelf())
            found = shelf.newest_first()
        now = time.time()
        wanted = _comparable([text])
        return [
            saved
            for saved in found
            if (saved.deleted is None or now - saved.deleted < UNDO_SECONDS)
            and wanted
            in _comparable([saved.title, *(conversation.text_of(turn) for turn in saved.turns)])
        ]

    def rename(self, browser: str, id: str, title: str) -> Saved:
        """Give a conversation another title.

        Raises:
            InputError: the title is empty, or there is no such conversation.
        """
        if not title.strip():
            raise InputError("the title is empty; write one")
        return self._change(browser, id, title=_cut(title), named=True)

    def delete(self, browser: str, id: str) -> Saved:
        """Let a conversation go; `restore` takes it back within `UNDO_SECONDS`.

        Raises:
            InputError: there is no such conversation.
        """
        return self._change(browser, id, deleted=time.time())

    def restore(self, browser: str, id: str) -> Saved:
        """Take a deletion back.

        Raises:
            InputError: the conversation is gone.
        """
        with self._lock:
            shelf = self._shelves.get(browser, _Shelf())
            saved = shelf.saved.get(id)
            if saved is None:
                raise InputError("this conversation was deleted for good")
            shelf.saved[id] = replace(saved, deleted=None)
            return shelf.saved[id]

    def show(self, page: str, id: str | None) -> None:
        """Note which conversation a page shows: its pictures stay as long as it does."""
        with self._lock:
            if id is None:
                self._shown.pop(page, None)
            else:
                self._shown[page] = id

    def files(self, now: float | None = None) -> tuple[set[str], dict[str, float]]:
        """Paths that are needed, and when those that deleted conversations alone needed were given up.

        Deleted conversations whose time is over are gone after this.
        """
        now = time.time() if now is None else now
        with self._lock:
            shown = set(self._shown.values())
            for shelf in self._shelves.values():
                over = [
                    saved
                    for saved in shelf.saved.values()
                    if saved.deleted is not None
                    and now - saved.deleted >= UNDO_SECONDS
                    and saved.id not in shown
                ]
                for saved in over:
                    del shelf.saved[saved.id]
                self._release(over)
            needed = {
                path
                for shelf in self._shelves.values()
                for saved in shelf.saved.values()
                for path in _files(saved)
            }
            for path in needed:
                self._released.pop(path, None)
            released, self._released = self._released, {}
            return needed, released

    def _find(self, browser: str, id: str | None) -> Saved:
        shelf = self._shelves.get(browser, _Shelf())
        saved = None if id is None else shelf.saved.get(id)
        if saved is None or saved.deleted is not None:
            raise InputError("this conversation is no longer there; choose another")
        return saved

    def _change(self, browser: str, id: str, **changes: object) -> Saved:
        with self._lock:
            saved = replace(self._find(browser, id), **changes)  # type: ignore[arg-type]  # by name
            self._shelves[browser].saved[id] = saved
            return saved

    def _release(self, gone: Iterable[Saved]) -> None:
        for saved in gone:
            for path in _files(saved):
                self._released[path] = saved.deleted or time.time()


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _files(saved: Saved) -> list[str]:
    return [path for turn in saved.turns for path in conversation.files_of(turn)]


def _begins(turns: Sequence[Turn], beginning: Sequence[Turn]) -> bool:
    """Whether `turns` begins with these turns; Gradio spells the same turn in several ways."""
    if len(turns) < len(beginning):
        return False
    pairs = zip(turns, beginning, strict=False)
    return all(
        conversation.as_message(one) == conversation.as_message(other) for one, other in pairs
    )


def _cut(title: str) -> str:
    words = " ".join(title.split())
    return words if len(words) <= MAX_TITLE_LENGTH else words[: MAX_TITLE_LENGTH - 1] + "…"


def _comparable(texts: Iterable[str]) -> str:
    """Texts without what a search looks over: case, spaces, forms of one letter."""
    text = unicodedata.normalize("NFKC", "\n".join(texts)).casefold().replace("ё", "е")
    return " ".join(text.split())
