"""Saved conversations, their files and settings in Chromium."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import browser
from tests.support.demo import MARKS, SCENE, SHAPES, SQUARE, picture_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from edgevlm.demo.model_pool import ModelPool

pytestmark = MARKS


def open_list(page: Page) -> None:
    page.locator("#conversations > button").click()
    page.locator("#conversation-search").wait_for()


def new(page: Page) -> None:
    page.get_by_role("button", name="New conversation").click()
    browser.answers(page).first.wait_for(state="detached")


def rows(page: Page) -> Locator:
    return page.locator("#conversation-list li:not(.deleted)")


def titles(page: Page) -> list[str]:
    return page.locator("#conversation-list li:not(.deleted) .title").all_inner_texts()


def press(page: Page, title: str, button: str) -> None:
    page.get_by_role("button", name=f"{button}: {title}").click()


def show(page: Page, title: str) -> None:
    """Open a conversation."""
    page.locator("#conversation-list .open", has_text=title).click()
    page.locator("#conversation-list li.shown", has_text=title).wait_for()


def another_tab(page: Page) -> Page:
    """Open another page of the same browser; its errors are ignored."""
    address = page.url
    other = page.context.new_page()
    other.goto(address)
    other.locator("#question textarea").wait_for()
    return other


def test_a_conversation_is_kept_over_a_reload(page: Page) -> None:
    open_list(page)
    page.get_by_text("Nothing is kept yet").wait_for()
    picture_of(page, "conversations-empty")
    browser.ask(page, "What color is it?", [SQUARE])
    page.locator("#conversation-list li.shown", has_text="What color is it? green").wait_for()
    new(page)
    browser.ask(page, "How many shapes are there?", [SHAPES])
    page.reload()
    page.locator("#question textarea").wait_for()
    open_list(page)
    rows(page).nth(1).wait_for()
    assert [title.split("?")[0] for title in titles(page)] == [
        "How many shapes are there",
        "What color is it",
    ], "the newest first"
    picture_of(page, "conversations")
    show(page, "What color is it? green")
    browser.answers(page).get_by_text("green").first.wait_for()
    assert browser.ask(page, "What shape is it?") == "square"
    page.locator("#conversation-list li.shown", has_text="What color is it?").wait_for()
    assert titles(page)[0].startswith("What color is it?")
    assert len(titles(page)) == 2


def test_what_was_asked_is_kept_when_it_is_left_before_its_answer(page: Page) -> None:
    """Even if it is left immediately."""
    open_list(page)
    browser.send(page, "What is in the picture?", [SCENE])
    page.locator("#conversation .user.message").first.wait_for()
    page.get_by_role("button", name="New conversation").click()
    page.locator("#conversation .user.message").first.wait_for(state="detached")
    page.locator("#conversation-list .open", has_text="What is in the picture?").wait_for()


def test_two_tabs_at_once(page: Page) -> None:
    other = another_tab(page)
    for tab in (page, other):
        open_list(tab)
    browser.send(page, "What color is it?", [SQUARE])
    browser.send(other, "How many shapes are there?", [SHAPES])
    for tab in (page, other):
        browser.answers(tab).first.wait_for()
        browser.idle(tab)
    for tab in (page, other):
        tab.bring_to_front()
        tab.evaluate("window.dispatchEvent(new Event('focus'))")  # headless tabs all have it
        rows(tab).nth(1).wait_for()
        assert sorted(title.split("?")[0] for title in titles(tab)) == [
            "How many shapes are there",
            "What color is it",
        ]


def test_one_conversation_in_two_tabs_loses_no_turn(page: Page) -> None:
    open_list(page)
    browser.ask(page, "What color is it?", [SQUARE])
    other = another_tab(page)
    open_list(other)
    show(other, "What color is it? green")
    browser.answers(other).first.wait_for()
    browser.send(page, "What shape is it?")
    browser.send(other, "What is in the picture?")
    for tab in (page, other):
        browser.answers(tab).nth(1).wait_for()
        browser.idle(tab)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    rows(page).nth(1).wait_for()
    told = [tab.get_by_text("is kept as a copy").count() for tab in (page, other)]
    assert sorted(told) == [0, 1]
    said = []
    for at in range(2):
        rows(page).nth(at).locator(".open").click()
        page.locator("#conversation-list li.shown").nth(0).wait_for()
        page.wait_for_function(
            "at => document.querySelectorAll('#conversation-list li')[at].classList.contains('shown')",
            arg=at,
        )
        browser.answers(page).nth(1).wait_for()
        said.append(page.locator("#conversation .user.message").last.inner_text().strip())
    assert sorted(said) == ["What is in the picture?", "What shape is it?"]


def test_what_another_tab_deleted_cannot_be_opened(page: Page) -> None:
    browser.ask(page, "What color is it?", [SQUARE])
    new(page)
    open_list(page)
    title = "What color is it? green"
    page.locator("#conversation-list .open", has_text=title).wait_for()
    other = another_tab(page)
    open_list(other)
    press(other, title, "Delete")
    other.locator("#conversation-list .deleted").wait_for()
    browser.send(page, "How many shapes are there?", [SHAPES])  # no list is made in this moment
    browser.answers(page).first.wait_for()
    browser.idle(page)
    page.locator("#conversation-list .deleted").wait_for()
    other.close()


def test_rename_search_delete_and_take_back(page: Page) -> None:
    for question, picture in (("What color is it?", SQUARE), ("Where is the key?", SCENE)):
        browser.ask(page, question, [picture])
        new(page)
    open_list(page)
    press(page, "What color is it? green", "Rename")
    field = page.locator("#conversation-list input.rename")
    assert field.input_value() == "What color is it? green"
    field.fill("nothing")
    field.press("Escape")
    field.wait_for(state="detached")
    press(page, "What color is it? green", "Rename")
    field.fill("Ёлка <b>${1}</b> {{2}}")
    field.press("Enter")
    page.locator("#conversation-list .title", has_text="Ёлка <b>${1}</b> {{2}}").wait_for()
    picture_of(page, "conversations-renamed")

    search = page.get_by_role("textbox", name="Search")
    for text, expected in (
        ("елка", "Ёлка <b>${1}</b> {{2}}"),
        ("GREEN", "Ёлка <b>${1}</b> {{2}}"),
        ("the KEY", "Where is the key? [62, 57, 87, 90]"),
    ):
        search.fill(text)
        page.wait_for_function("document.querySelectorAll('#conversation-list li').length === 1")
        page.locator("#conversation-list .title", has_text=expected).wait_for()
    search.fill("nowhere")
    page.get_by_text("No conversation has this").wait_for()
    search.fill("")
    rows(page).nth(1).wait_for()

    page.get_by_role("button", name="Delete: Ёлка <b>${1}</b> {{2}}").focus()
    page.keyboard.press("Enter")
    page.locator("#conversation-list .deleted").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "Take back"
    picture_of(page, "conversations-deleted")
    assert titles(page) == ["Where is the key? [62, 57, 87, 90]"]
    press(page, "Ёлка <b>${1}</b> {{2}}", "Take back")
    rows(page).nth(1).wait_for()
    show(page, "Ёлка <b>${1}</b> {{2}}")
    browser.answers(page).get_by_text("green").first.wait_for()

    press(page, "Ёлка <b>${1}</b> {{2}}", "Delete")  # the one that is shown
    browser.answers(page).first.wait_for(state="detached")
    assert browser.ask(page, "What shape is it?", [SQUARE]) == "square"
    assert sorted(titles(page))[0].startswith("What shape is it?")


def test_times_are_as_the_owner_of_the_browser_writes_them(chromium: Browser, address: str) -> None:
    context = chromium.new_context(locale="ru-RU", timezone_id="Asia/Vladivostok")
    page = context.new_page()
    page.goto(address)
    page.locator("#question textarea").wait_for()
    browser.ask(page, "What color is it?", [SQUARE])
    page.locator("#conversations > button").click()
    time = page.locator("#conversation-list local-time")
    time.wait_for()
    expected = page.evaluate(
        "time => new Date(time).toLocaleString('ru-RU', {timeStyle: 'short', timeZone: 'Asia/Vladivostok'})",
        time.get_attribute("datetime"),
    )
    assert time.inner_text() == expected
    page.get_by_role("button", name="Переименовать").wait_for()
    for text in ("Разговоры", "Новый разговор", "Сохранить в файл", "Открыть файл"):
        page.get_by_text(text, exact=True).first.wait_for()
    picture_of(page, "conversations-russian")
    context.close()


def save(page: Page, button: str = "Save as a file") -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return Path(download.value.path())


def give(page: Page, path: Path) -> None:
    page.locator("#conversations input[type=file]").set_input_files(path)


def test_a_saved_file_is_opened_again_in_another_browser(
    page: Page, chromium: Browser, address: str, tmp_path: Path
) -> None:
    open_list(page)
    odd = "**user** ![picture](data:,) <b> &lt; \\n # no title"
    browser.ask(page, odd, [SCENE, SHAPES, SQUARE, SQUARE])
    browser.ask(page, "What color is it?")
    press(page, page.locator("#conversation-list .title").first.inner_text(), "Rename")
    page.locator("#conversation-list input.rename").fill("Mine")
    page.keyboard.press("Enter")
    page.locator("#conversation-list .title", has_text="Mine").wait_for()
    saved = tmp_path / "saved.json"
    shutil.copy(save(page), saved)
    markdown = save(page, "Save as Markdown").read_text(encoding="utf-8")
    assert odd in markdown and markdown.count("data:image/") == 4
    with browser.visit(chromium, address) as other:
        open_list(other)
        give(other, saved)
        other.locator("#conversation-list li.shown", has_text="Mine").wait_for()
        browser.answers(other).nth(1).wait_for()
        assert odd in other.locator("#conversation .user.message").first.inner_text()
        assert other.locator("#conversation .user img").count() == 4
        again = save(other).read_bytes()
        assert again == saved.read_bytes()
        assert browser.ask(other, "What shape is it?")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ('{"format": "another"}', "no conversation that edgevlm saved"),
        (
            json.dumps(
                {
                    "format": "edgevlm conversation",
                    "version": 1,
                    "title": "",
                    "turns": [{"role": "user", "content": [{"image": "AAAA"}]}],
                }
            ),
            "a picture of turn 1 in bad.json cannot be read",
        ),
    ],
)
def test_a_bad_file_is_refused_and_the_page_is_unharmed(
    page: Page, tmp_path: Path, content: str, reason: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    open_list(page)
    browser.ask(page, "What color is it?", [SQUARE])
    page.locator("#question textarea").fill("half a question")
    give(page, bad)
    page.get_by_text(reason).first.wait_for()
    assert browser.answers(page).count() == 1
    assert page.locator("#question textarea").input_value() == "half a question"
    assert browser.ask(page, "What shape is it?") == "square"
    assert len(titles(page)) == 1
    for button in ("Save as a file", "Save as Markdown"):
        save(page, button)


def test_nothing_to_save_is_said(page: Page) -> None:
    open_list(page)
    for button in ("Save as a file", "Save as Markdown"):
        page.get_by_role("button", name=button).click()
        notice = page.get_by_text("The conversation is empty; there is nothing to save.")
        notice.first.wait_for()
        page.get_by_role("button", name="Close").or_(page.locator(".toast-close")).first.click()
        notice.first.wait_for(state="detached")


def number(page: Page, name: str) -> Locator:
    return page.get_by_label(f"{name}: number")


def test_settings_are_kept_over_a_reload_and_can_be_reset(page: Page) -> None:
    def values() -> list[Any]:
        return [
            number(page, "Temperature").input_value(),
            number(page, "Longest answer").input_value(),
            page.get_by_role("radio", name="low", exact=True).is_checked(),
            page.get_by_role("textbox", name="System prompt").input_value(),
            page.get_by_role("checkbox", name=re.compile("how likely")).is_checked(),
        ]

    def opened() -> None:
        page.locator("#question textarea").wait_for()
        page.get_by_role("button", name="Settings").click()
        number(page, "Temperature").wait_for()

    opened()
    built = values()
    number(page, "Temperature").fill("0.5")
    number(page, "Longest answer").fill("7")
    page.keyboard.press("Tab")
    page.get_by_role("radio", name="low", exact=True).check()
    page.get_by_role("textbox", name="System prompt").fill("Be short.")
    page.get_by_role("checkbox", name=re.compile("how likely")).uncheck()
    changed = ["0.5", "7", True, "Be short.", False]
    assert values() == changed != built
    page.wait_for_function("localStorage.getItem('edgevlm-settings')")
    page.reload()
    opened()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some((box) => box.value === 'Be short.')"
    )
    assert values() == changed
    page.get_by_role("button", name="Reset the settings").click()
    page.wait_for_function(
        "![...document.querySelectorAll('textarea')].some((box) => box.value === 'Be short.')"
    )
    assert values() == built
    page.reload()
    opened()
    page.wait_for_timeout(1000)  # milliseconds in which others could come
    assert values() == built


def test_the_chosen_model_is_kept_over_a_reload(
    page: Page, models: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.open_tab(page, "Models")
    browser.choose(page, "#model-choice", "copied")
    page.get_by_role("button", name="Load and use").click()
    page.locator("#head").get_by_text("copied").wait_for()
    page.wait_for_function("localStorage.getItem('edgevlm-model')")
    page.reload()
    page.locator("#head").get_by_text("copied").wait_for()
    browser.open_tab(page, "Chat")
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"
    first = models.entries()[:1]
    monkeypatch.setattr(models, "entries", lambda: first)
    page.reload()
    page.get_by_text("The model copied that was chosen here is gone or broken").wait_for()
    page.locator("#head").get_by_text(first[0].label).wait_for()
    browser.open_tab(page, "Chat")
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"
