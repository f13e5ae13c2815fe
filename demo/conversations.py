"""The list of conversations in the tab Chat, with buttons to save and open files."""

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
    OpenConversation,
    SavedConversation,
)
from edgevlm.demo.gradio_setup import (
    DOWNLOAD,
    INTERNAL,
    LATEST,
    gr,
    notify,
    page_error,
    session_of,
    write_download,
)
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.errors import EdgeVLMError, InputError

LISTENER = "element.addEventListener('conversation', (event) => trigger(event.detail.action, event.detail))"
"""JavaScript: turns actions of `assets/conversations.js` into events of the list."""

Turns = list[dict[str, Any]]

SCROLL_TO_WINDOW = (
    "() => document.querySelector('#conversation').scrollIntoView({block: 'nearest'})"
)
"""JavaScript: scroll to the conversation. On a phone the list fills the screen."""


class ConversationList:
    """The list; `connect` adds its events.

    Args:
        current: state with the `OpenConversation` of a page; None for a conversation that is not stored yet.
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

    def keep(
        self, turns: Turns, opened: OpenConversation | None, request: gr.Request
    ) -> OpenConversation | None:
        """Store the conversation that a page shows. Return the new state of the page."""
        if not turns:
            return opened
        written = self._store.write(browser_of(request), turns, opened)
        self._store.show(session_of(request), written.opened.id)
        if written.copied:
            notify(
                translate(
                    request,
                    "This conversation went on in another tab. What was said here is kept as a copy.",
                )
            )
        if written.dropped is not None:
            notify(
                translate(
                    request,
                    "{count} conversations are kept at most; the oldest is gone: {title}",
                    count=MAX_CONVERSATIONS,
                    title=written.dropped.title,
                )
            )
        return written.opened

    def listed(self, search: str, opened: OpenConversation | None, request: gr.Request) -> str:
        """Return the list as HTML."""
        found = self._store.search(browser_of(request), search or "")
        return view(found, opened, bool(search), request)

    def connect(
        self,
        page: gr.Blocks,
        models: ModelPool,
        chosen: gr.State,
        window: gr.Chatbot,
        emptied: Callable[[], list[Any]],
        freed: Callable[[], list[Any]],
        outputs: Sequence[Any],
        leave: Callable[[Any], Any],
    ) -> None:
        """Connect the events.

        Args:
            page: the page; its ``load`` and ``unload`` are used.
            models: the models that the page offers.
            chosen: state with the label of the model that this browser uses.
            window: shows the conversation.
            emptied: returns values of `outputs` for another conversation; the first is the conversation.
            freed: returns the same where the page's script has emptied the box: text that was written
                after that is kept.
            outputs: the window and the other components of a conversation.
            leave: connects an event that stores the conversation and stops its answer; returns the
                dependency.
        """
        store, current = self._store, self._current
        pending = gr.State(None)
        listing: dict[str, Any] = {
            "fn": self.listed,
            "inputs": [self.search, current],
            "outputs": [self.shown],
            **INTERNAL,
        }

        def choose(event: gr.EventData, request: gr.Request) -> str:
            try:
                return store.find(browser_of(request), event._data.get("id")).id
            except InputError as error:
                raise page_error(error) from error

        def open_file(path: str, request: gr.Request) -> str:
            folder = Path(gr.utils.get_upload_folder())
            try:
                title, turns = conversation_file.from_json(Path(path), folder)
            except EdgeVLMError as error:
                raise page_error(error) from error
            return store.write(browser_of(request), turns, title=title).opened.id

        def open_conversation(id: str, request: gr.Request) -> list[Any]:
            values = emptied()
            try:
                saved = store.find(browser_of(request), id)
            except InputError as error:  # deleted in another tab a moment ago
                raise page_error(error) from error
            store.show(session_of(request), saved.id)
            return [list(saved.turns), *values[1:], saved.opened]

        def start_new(request: gr.Request) -> list[Any]:
            store.show(session_of(request), None)
            return [*freed(), None]

        def rename(event: gr.EventData, request: gr.Request) -> None:
            id, title = event._data.get("id"), event._data.get("title", "")
            self._apply(lambda: store.rename(browser_of(request), id, title))

        def delete_shown(current: OpenConversation | None, request: gr.Request) -> list[Any]:
            """Delete the conversation that the page shows. The list may be older than the page."""
            if current is not None:
                with suppress(InputError):  # already deleted in another tab
                    store.delete(browser_of(request), current.id)
            return start_new(request)

        def delete(event: gr.EventData, request: gr.Request) -> None:
            self._apply(lambda: store.delete(browser_of(request), event._data.get("id")))

        def restore(event: gr.EventData, request: gr.Request) -> None:
            self._apply(lambda: store.restore(browser_of(request), event._data.get("id")))

        def save_file(history: Turns, current: OpenConversation | None, request: gr.Request) -> str:
            _check_not_empty(history, request)
            try:
                title = store.find(browser_of(request), current.id if current else None).title
            except InputError:
                title = conversation.title(history)
            try:
                text = conversation_file.as_json(title, history)
            except EdgeVLMError as error:
                raise page_error(error) from error
            return write_download("conversation.json", text)

        def save_markdown(history: Turns, label: str | None, request: gr.Request) -> str:
            _check_not_empty(history, request)
            try:
                name = models.find(label).label
            except EdgeVLMError as error:
                raise page_error(error) from error
            return write_download("conversation.md", conversation.as_markdown(name, history))

        def unload(request: gr.Request) -> None:
            store.show(session_of(request), None)

        for choosing in (
            self.shown.select(choose, None, [pending], **INTERNAL),
            self._upload.upload(open_file, [self._upload], [pending], **INTERNAL),
        ):
            shown = leave(choosing.success).success(
                open_conversation, [pending], [*outputs, current], **INTERNAL
            )
            shown.success(None, None, None, js=SCROLL_TO_WINDOW, **INTERNAL)
            shown.then(**listing)
            choosing.failure(**listing)
        leave(self.new.click).then(start_new, None, [*outputs, current], **INTERNAL).then(**listing)
        leave(self.shown.clear).then(delete_shown, [current], [*outputs, current], **INTERNAL).then(
            **listing
        )
        for event, change in (
            (self.shown.edit, rename),
            (self.shown.delete, delete),
            (self.shown.undo, restore),
        ):
            event(change, None, None, **INTERNAL).then(**listing)
        gr.on(
            [page.load, self.shown.focus, self._frame.expand, self.search.change, current.change],
            **{**listing, **LATEST},
        )
        page.load(_note, None, [self._note], **INTERNAL)
        page.unload(unload)
        for saving in (
            self._save.click(save_file, [window, current], [self._file], **INTERNAL),
            self._markdown.click(save_markdown, [window, chosen], [self._file], **INTERNAL),
        ):
            saving.success(
                None, None, None, js=f"() => ({DOWNLOAD})('conversation-file')", **INTERNAL
            )

    def _apply(self, change: Callable[[], object]) -> None:
        try:
            change()
        except InputError as error:
            raise page_error(error) from error


def view(
    saved: Sequence[SavedConversation],
    opened: OpenConversation | None,
    searched: bool,
    request: gr.Request,
) -> str:
    """Return conversations as a list with buttons; `assets/conversations.js` makes them work."""
    if not saved:
        message = (
            translate(request, "No conversation has this in its title or text.")
            if searched
            else translate(request, "Nothing is kept yet. Ask something, and it will be.")
        )
        return markup.block(f'<div class="quiet empty">{markup.escaped(message)}</div>')
    rows = (_row(entry, opened is not None and entry.id == opened.id, request) for entry in saved)
    return markup.block(f"<ul>{''.join(rows)}</ul>")


def _row(saved: SavedConversation, shown: bool, request: gr.Request) -> str:
    """Return an item of the list. Its last button keeps the focus when Gradio changes the item in place."""
    title = markup.escaped(saved.title or translate(request, "without words"))
    attributes = f'data-id="{markup.escaped(saved.id)}" data-title="{title}"'
    if saved.deleted is not None:
        back = _button("undo", translate(request, "Take back"), saved, request)
        said = markup.escaped(translate(request, "deleted"))
        return (
            f'<li class="deleted" {attributes}><span class="gone title">{title}</span>'
            f'<span class="quiet said">{said}</span>{back}</li>'
        )
    moment = datetime.datetime.fromtimestamp(saved.changed, datetime.timezone.utc)
    time = moment.isoformat(timespec="seconds")
    rename = _button("edit", translate(request, "Rename"), saved, request)
    delete = _button("clear" if shown else "delete", translate(request, "Delete"), saved, request)
    mark = ' class="shown"' if shown else ""
    current = ' aria-current="true"' if shown else ""
    return (
        f"<li{mark} {attributes}>"
        f'<button type="button" class="open" data-action="select"{current}>'
        f'<span class="title">{title}</span><local-time datetime="{time}">{time}</local-time></button>'
        f"{rename}{delete}</li>"
    )


def _button(action: str, text: str, saved: SavedConversation, request: gr.Request) -> str:
    name = f"{text}: {saved.title}"
    return (
        f'<button type="button" class="small" data-action="{action}" '
        f'aria-label="{markup.escaped(name)}">{markup.escaped(text)}</button>'
    )


def _note(request: gr.Request) -> str:
    text = translate(
        request,
        "The newest {count} are kept until edgevlm demo ends. Save those as files that you want for longer.",
        count=MAX_CONVERSATIONS,
    )
    return markup.block(f'<div class="quiet">{markup.escaped(text)}</div>')


def _check_not_empty(history: Turns, request: gr.Request) -> None:
    if not history:
        raise page_error(translate(request, "The conversation is empty; there is nothing to save."))
