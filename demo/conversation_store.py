"""The conversations of each browser, in memory until the command ends.

A page writes only the conversation that it shows, so the pages of a browser cannot overwrite each other's
lists. If another page wrote a newer version of it meanwhile, the page writes a copy.
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
"""Limit for one browser; the least recently changed conversation is dropped first."""

MAX_BROWSERS = 100
"""Limit of browsers; the one that wrote least recently is dropped first."""

MAX_TITLE_LENGTH = 100

UNDO_SECONDS = 600
"""Time in which a deleted conversation can be restored."""


@dataclass(frozen=True)
class OpenConversation:
    """The conversation that a page shows, and its version."""

    id: str
    version: int


@dataclass(frozen=True)
class SavedConversation:
    """A conversation in the store."""

    id: str
    title: str
    turns: tuple[Turn, ...]
    changed: float
    """Time of the last change, in seconds since 1970."""
    version: int = 1
    named: bool = False
    """True if a person chose the title."""
    deleted: float | None = None
    """Time of the deletion, in seconds since 1970; None if it is not deleted."""

    @property
    def opened(self) -> OpenConversation:
        """The state of a page that shows this conversation."""
        return OpenConversation(self.id, self.version)


@dataclass(frozen=True)
class WriteResult:
    """Result of `ConversationStore.write`."""

    opened: OpenConversation
    copied: bool = False
    """True if another page had changed the conversation. Then this is a copy, and both are kept."""
    dropped: SavedConversation | None = None
    """A conversation that was dropped because of `MAX_CONVERSATIONS`."""


@dataclass
class _BrowserConversations:
    """The conversations of one browser, by id."""

    saved: dict[str, SavedConversation] = field(default_factory=dict)

    def newest_first(self) -> list[SavedConversation]:
        return sorted(self.saved.values(), key=lambda saved: saved.changed, reverse=True)


class ConversationStore:
    """The conversations of all browsers. All methods are thread-safe."""

    def __init__(self) -> None:
        self._browsers: OrderedDict[str, _BrowserConversations] = OrderedDict()
        self._shown: dict[str, str] = {}
        """Id of the conversation that each page shows."""
        self._released: dict[str, float] = {}
        """Paths of images of deleted conversations, with the time of the deletion."""
        self._lock = threading.Lock()

    def write(
        self,
        browser: str,
        turns: Sequence[Turn],
        opened: OpenConversation | None = None,
        title: str | None = None,
    ) -> WriteResult:
        """Write the conversation that a page shows.

        Args:
            browser: id of the browser (`edgevlm.demo.browsers.browser_of`).
            turns: the turns that the page shows.
            opened: the conversation that the page had opened. None, or one that was deleted, makes a new one.
            title: title of a new conversation; None: its first words.
        """
        with self._lock:
            copied = False
            conversations = self._browsers.setdefault(browser, _BrowserConversations())
            self._browsers.move_to_end(browser)
            if len(self._browsers) > MAX_BROWSERS:
                _, dropped_browser = self._browsers.popitem(last=False)
                self._release(dropped_browser.saved.values())
            known = None if opened is None else conversations.saved.get(opened.id)
            if known is None or known.deleted is not None or opened is None:
                saved = SavedConversation(
                    _new_id(), conversation.title(turns), tuple(turns), time.time()
                )
                if title:
                    saved = replace(saved, title=_shorten(title), named=True)
            else:
                newer = known.version != opened.version  # than the version of the page
                if newer and _starts_with(known.turns, turns):
                    return WriteResult(opened)  # the page has nothing new
                copied = newer and not _starts_with(turns, known.turns)
                saved = replace(known, turns=tuple(turns))
                if copied:
                    saved = replace(saved, id=_new_id(), version=1)
                if len(turns) != len(known.turns) or not _starts_with(turns, known.turns):
                    saved = replace(saved, changed=time.time(), version=saved.version + 1)
                if not known.named:
                    saved = replace(saved, title=conversation.title(turns))
            conversations.saved[saved.id] = saved
            kept = [other for other in conversations.newest_first() if other.deleted is None]
            dropped = kept[-1] if len(kept) > MAX_CONVERSATIONS else None
            if dropped is not None:
                self._release([conversations.saved.pop(dropped.id)])
            return WriteResult(saved.opened, copied, dropped)

    def find(self, browser: str, id: str | None) -> SavedConversation:
        """Return a conversation of this browser.

        Raises:
            InputError: there is no conversation with this id, or it was deleted.
        """
        with self._lock:
            return self._find(browser, id)

    def search(self, browser: str, text: str = "") -> list[SavedConversation]:
        """Return conversations with this text in title or turns, the newest first; "" finds all.

        Deleted conversations that can be restored are included.
        """
        with self._lock:
            conversations = self._browsers.get(browser, _BrowserConversations())
            found = conversations.newest_first()
        now = time.time()
        wanted = _normalize([text])
        return [
            saved
            for saved in found
            if (saved.deleted is None or now - saved.deleted < UNDO_SECONDS)
            and wanted
            in _normalize([saved.title, *(conversation.text_of(turn) for turn in saved.turns)])
        ]

    def rename(self, browser: str, id: str, title: str) -> SavedConversation:
        """Change the title of a conversation.

        Raises:
            InputError: the title is empty, or there is no such conversation.
        """
        if not title.strip():
            raise InputError("the title is empty; write one")
        return self._change(browser, id, title=_shorten(title), named=True)

    def delete(self, browser: str, id: str) -> SavedConversation:
        """Delete a conversation. `restore` works within `UNDO_SECONDS`.

        Raises:
            InputError: there is no such conversation.
        """
        return self._change(browser, id, deleted=time.time())

    def restore(self, browser: str, id: str) -> SavedConversation:
        """Restore a deleted conversation.

        Raises:
            InputError: the time for it is over.
        """
        with self._lock:
            conversations = self._browsers.get(browser, _BrowserConversations())
            saved = conversations.saved.get(id)
            if saved is None:
                raise InputError("this conversation was deleted for good")
            conversations.saved[id] = replace(saved, deleted=None)
            return conversations.saved[id]

    def show(self, page: str, id: str | None) -> None:
        """Remember which conversation a page shows. Its images are kept as long as a page shows it."""
        with self._lock:
            if id is None:
                self._shown.pop(page, None)
            else:
                self._shown[page] = id

    def files(self, now: float | None = None) -> tuple[set[str], dict[str, float]]:
        """Forget deleted conversations whose time is over, and tell which files are needed.

        Args:
            now: seconds since 1970; None: the present.

        Returns:
            The paths of images that are needed, and those of images that only deleted conversations had,
            with the time of the deletion.
        """
        now = time.time() if now is None else now
        with self._lock:
            shown = set(self._shown.values())
            for conversations in self._browsers.values():
                expired = [
                    saved
                    for saved in conversations.saved.values()
                    if saved.deleted is not None
                    and now - saved.deleted >= UNDO_SECONDS
                    and saved.id not in shown
                ]
                for saved in expired:
                    del conversations.saved[saved.id]
                self._release(expired)
            needed = {
                path
                for conversations in self._browsers.values()
                for saved in conversations.saved.values()
                for path in _files(saved)
            }
            for path in needed:
                self._released.pop(path, None)
            released, self._released = self._released, {}
            return needed, released

    def _find(self, browser: str, id: str | None) -> SavedConversation:
        conversations = self._browsers.get(browser, _BrowserConversations())
        saved = None if id is None else conversations.saved.get(id)
        if saved is None or saved.deleted is not None:
            raise InputError("this conversation is no longer there; choose another")
        return saved

    def _change(self, browser: str, id: str, **changes: object) -> SavedConversation:
        with self._lock:
            saved = replace(self._find(browser, id), **changes)  # type: ignore[arg-type]  # by name
            self._browsers[browser].saved[id] = saved
            return saved

    def _release(self, dropped: Iterable[SavedConversation]) -> None:
        for saved in dropped:
            for path in _files(saved):
                self._released[path] = saved.deleted or time.time()


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _files(saved: SavedConversation) -> list[str]:
    return [path for turn in saved.turns for path in conversation.files_of(turn)]


def _starts_with(turns: Sequence[Turn], beginning: Sequence[Turn]) -> bool:
    """Return True if `turns` starts with `beginning`. Gradio has several forms of the same turn."""
    if len(turns) < len(beginning):
        return False
    pairs = zip(turns, beginning, strict=False)
    return all(
        conversation.as_message(one) == conversation.as_message(other) for one, other in pairs
    )


def _shorten(title: str) -> str:
    words = " ".join(title.split())
    return words if len(words) <= MAX_TITLE_LENGTH else words[: MAX_TITLE_LENGTH - 1] + "…"


def _normalize(texts: Iterable[str]) -> str:
    """Return texts for a search: without differences of case, spaces and forms of a letter."""
    text = unicodedata.normalize("NFKC", "\n".join(texts)).casefold().replace("ё", "е")
    return " ".join(text.split())
