"""The list of a browser's conversations in the tab Chat, and their files."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from edgevlm.demo import conversation, conversation_file, markup
from edgevlm.demo.browsers import browser_of
from edgevlm.demo.conversation_store import (
    MAX_CONVERSATIONS,
    ConversationStore,
    Opened,
    Saved,
)
from edgevlm.demo.gradio_setup import (
    DOWNLOAD,
    INTERNAL,
    LATEST,
    downloadable,
    gr,
    refusal,
    session_of,
    tell,
)
from edgevlm.demo.language import label, say
from edgevlm.demo.model_pool import Models
from edgevlm.errors import EdgeVLMError, InputError

LISTENER = "element.addEventListener('conversation', (event) => trigger(event.detail.action, event.detail))"
"""What `assets/conversations.js` tells becomes an event of the list."""

Turns = list[dict[str, Any]]

SHOW = "() => document.querySelector('#conversation').scrollIntoView({block: 'nearest'})"
"""JavaScript: on a phone the list fills the screen."""


class ConversationList:
    """The list's components; `connect` says what they do.

    Args:
        current: state of a page; takes an `Opened`, or None for a conversation that is not kept yet.
    """

    def __init__(self, store: ConversationStore, current: gr.State) -> None:
        self._store = store
        self._current = current
        with gr.Row(elem_id="conversations-row"):
            self.new = gr.Button(label("New conversation"), size="md", scale=0, min_width=180)
            with gr.Accordion(
                label("Conversations"), open=False, elem_id="conversations"
            ) as self._frame:
                self._note = gr.HTML(elem_id="conversations-note")
                self.search = gr.Textbox(
                    label=label("Search"),
                    placeholder=label("Search in titles and texts"),
                    show_label=False,
                    container=False,
                    elem_id="conversation-search",
                )
                self.shown = gr.HTML(
                    elem_id="conversation-list", js_on_load=LISTENER, apply_default_css=False
                )
                with gr.Row():
                    self._save = gr.Button(label("Save as a file"), size="md", min_width=140)
                    self._markdown = gr.Button(label("Save as Markdown"), size="md", min_width=140)
                    self._upload = gr.UploadButton(
                        cast("str", label("Open a file")),
                        file_types=[".json"],
                        size="md",
                        min_width=140,
                        elem_id="conversation-upload",
                    )
        self._file = gr.DownloadButton("file", visible="hidden", elem_id="conversation-file")

    def keep(self, turns: Turns, opened: Opened | None, request: gr.Request) -> Opened | None:
        """Keep what a page shows; what the page has opened from then on."""
        if not turns:
            return opened
        written = self._store.write(browser_of(request), turns, opened)
        self._store.show(session_of(request), written.opened.id)
        if written.copied:
            tell(
                say(
                    request,
                    "This conversation went on in another tab. What was said here is kept as a copy.",
                )
            )
        if written.dropped is not None:
            tell(
                say(
                    request,
                    "{count} conversations are kept at most; the oldest is gone: {title}",
                    count=MAX_CONVERSATIONS,
                    title=written.dropped.title,
                )
            )
        return written.opened

    def listed(self, search: str, opened: Opened | None, request: gr.Request) -> str:
        """The list as HTML."""
        found = self._store.search(browser_of(request), search or "")
        return view(found, opened, bool(search), request)

    def connect(
        self,
        page: gr.Blocks,
        models: Models,
        chosen: gr.State,
        window: gr.Chatbot,
        emptied: Callable[[], list[Any]],
        freed: Callable[[], list[Any]],
        places: Sequence[Any],
        leave: Callable[[Any], Any],
    ) -> None:
        """Say what the list's parts do.

        Args:
            window: shows the conversation.
            emptied: values of `places` for a new conversation; the first one is the conversation.
            freed: the same, where the page has emptied the rest by itself already: what a person has
                written since then stays.
            places: the window and what else belongs to the conversation that a page shows.
            leave: makes an event keep the page's conversation and end its answer; returns the dependency.
        """
        store, current = self._store, self._current
        pending = gr.State(None)
        listing: dict[str, Any] = {
            "fn": self.listed,
            "inputs": [self.search, current],
            "outputs": [self.shown],
            **INTERNAL,
        }

        def chosen_one(event: gr.EventData, request: gr.Request) -> str:
            try:
                return store.find(browser_of(request), event._data.get("id")).id
            except InputError as error:
                raise refusal(error) from error

        def read(path: str, request: gr.Request) -> str:
            folder = Path(gr.utils.get_upload_folder())
            try:
                title, turns = conversation_file.from_json(Path(path), folder)
            except EdgeVLMError as error:
                raise refusal(error) from error
            return store.write(browser_of(request), turns, title=title).opened.id

        def opened(id: str, request: gr.Request) -> list[Any]:
            values = emptied()
            try:
                saved = store.find(browser_of(request), id)
            except InputError as error:  # deleted in another tab within this moment
                raise refusal(error) from error
            store.show(session_of(request), saved.id)
            return [list(saved.turns), *values[1:], saved.opened]

        def fresh(request: gr.Request) -> list[Any]:
            store.show(session_of(request), None)
            return [*freed(), None]

        def renamed(event: gr.EventData, request: gr.Request) -> None:
            id, title = event._data.get("id"), event._data.get("title", "")
            self._changed(lambda: store.rename(browser_of(request), id, title))

        def cleared(current: Opened | None, request: gr.Request) -> list[Any]:
            """Delete the conversation that the page shows; what the list shows may be older."""
            if current is not None:
                with suppress(InputError):  # deleted in another tab before
                    store.delete(browser_of(request), current.id)
            return fresh(request)

        def deleted(event: gr.EventData, request: gr.Request) -> None:
            self._changed(lambda: store.delete(browser_of(request), event._data.get("id")))

        def restored(event: gr.EventData, request: gr.Request) -> None:
            self._changed(lambda: store.restore(browser_of(request), event._data.get("id")))

        def saved_file(history: Turns, current: Opened | None, request: gr.Request) -> str:
            _check_something(history, request)
            try:
                title = store.find(browser_of(request), current.id if current else None).title
            except InputError:
                title = conversation.title(history)
            try:
                text = conversation_file.as_json(title, history)
            except EdgeVLMError as error:
                raise refusal(error) from error
            return downloadable("conversation.json", text)

        def saved_markdown(history: Turns, label: str | None, request: gr.Request) -> str:
            _check_something(history, request)
            try:
                name = models.find(label).label
            except EdgeVLMError as error:
                raise refusal(error) from error
            return downloadable("conversation.md", conversation.as_markdown(name, history))

        def left(request: gr.Request) -> None:
            store.show(session_of(request), None)

        for choosing in (
            self.shown.select(chosen_one, None, [pending], **INTERNAL),
            self._upload.upload(read, [self._upload], [pending], **INTERNAL),
        ):
            shown = leave(choosing.success).success(
                opened, [pending], [*places, current], **INTERNAL
            )
            shown.success(None, None, None, js=SHOW, **INTERNAL)
            shown.then(**listing)
            choosing.failure(**listing)
        leave(self.new.click).then(fresh, None, [*places, current], **INTERNAL).then(**listing)
        leave(self.shown.clear).then(cleared, [current], [*places, current], **INTERNAL).then(
            **listing
        )
        for event, change in (
            (self.shown.edit, renamed),
            (self.shown.delete, deleted),
            (self.shown.undo, restored),
        ):
            event(change, None, None, **INTERNAL).then(**listing)
        gr.on(
            [page.load, self.shown.focus, self._frame.expand, self.search.change, current.change],
            **{**listing, **LATEST},
        )
        page.load(_note, None, [self._note], **INTERNAL)
        page.unload(left)
        for saving in (
            self._save.click(saved_file, [window, current], [self._file], **INTERNAL),
            self._markdown.click(saved_markdown, [window, chosen], [self._file], **INTERNAL),
        ):
            saving.success(
                None, None, None, js=f"() => ({DOWNLOAD})('conversation-file')", **INTERNAL
            )

    def _changed(self, change: Callable[[], object]) -> None:
        try:
            change()
        except InputError as error:
            raise refusal(error) from error


def view(saved: Sequence[Saved], opened: Opened | None, searched: bool, request: gr.Request) -> str:
    """Conversations as a list with buttons, which `assets/conversations.js` makes work."""
    if not saved:
        nothing = (
            say(request, "No conversation has this in its title or text.")
            if searched
            else say(request, "Nothing is kept yet. Ask something, and it will be.")
        )
        return markup.block(f'<div class="quiet empty">{markup.escaped(nothing)}</div>')
    rows = (_row(entry, opened is not None and entry.id == opened.id, request) for entry in saved)
    return markup.block(f"<ul>{''.join(rows)}</ul>")


def _row(saved: Saved, shown: bool, request: gr.Request) -> str:
    """An item of the list; its last button keeps the keyboard's focus when Gradio changes it in place."""
    title = markup.escaped(saved.title or say(request, "without words"))
    attributes = f'data-id="{markup.escaped(saved.id)}" data-title="{title}"'
    if saved.deleted is not None:
        back = _button("undo", say(request, "Take back"), saved, request)
        said = markup.escaped(say(request, "deleted"))
        return (
            f'<li class="deleted" {attributes}><span class="gone title">{title}</span>'
            f'<span class="quiet said">{said}</span>{back}</li>'
        )
    moment = datetime.datetime.fromtimestamp(saved.changed, datetime.timezone.utc)
    time = moment.isoformat(timespec="seconds")
    rename = _button("edit", say(request, "Rename"), saved, request)
    delete = _button("clear" if shown else "delete", say(request, "Delete"), saved, request)
    mark = ' class="shown"' if shown else ""
    current = ' aria-current="true"' if shown else ""
    return (
        f"<li{mark} {attributes}>"
        f'<button type="button" class="open" data-action="select"{current}>'
        f'<span class="title">{title}</span><local-time datetime="{time}">{time}</local-time></button>'
        f"{rename}{delete}</li>"
    )


def _button(action: str, text: str, saved: Saved, request: gr.Request) -> str:
    name = f"{text}: {saved.title}"
    return (
        f'<button type="button" class="small" data-action="{action}" '
        f'aria-label="{markup.escaped(name)}">{markup.escaped(text)}</button>'
    )


def _note(request: gr.Request) -> str:
    text = say(
        request,
        "The newest {count} are kept until edgevlm demo ends. Save those as files that you want for longer.",
        count=MAX_CONVERSATIONS,
    )
    return markup.block(f'<div class="quiet">{markup.escaped(text)}</div>')


def _check_something(history: Turns, request: gr.Request) -> None:
    if not history:
        raise refusal(say(request, "The conversation is empty; there is nothing to save."))
