"""The tab Chat in Chromium with wrong use: nothing is lost, and a message tells why."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from edgevlm import VLM, Chunk, ContextError
from tests.support import browser
from tests.support.demo import CHANGED, MARKS, SCENE, SHAPES, SQUARE, picture_of
from tests.support.streams import as_stream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from edgevlm.demo.model_pool import ModelPool

pytestmark = MARKS

NASTY = '  <b>&amp; "src="/file" \'x\'\n\t*star* `code` ${1} {{2}} <img src=x onerror=alert(1)>\n\n  end '


def box(page: Page) -> Locator:
    return page.locator("#question textarea")


def thumbnails(page: Page) -> Locator:
    return page.locator("#question .thumbnail-item")


def attach(page: Page, *pictures: Path) -> None:
    page.locator("#question input[type=file]").set_input_files(list(pictures))


def notice(page: Page, text: str) -> None:
    page.locator(".toast-body").filter(has_text=text).first.wait_for()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def close_notices(page: Page) -> None:
    page.keyboard.press("Escape")
    page.locator(".toast-body").first.wait_for(state="detached")


def questions(page: Page) -> Locator:
    return page.locator("#conversation .user .said")


def whole(page: Page) -> None:
    """No component is covered by an error, and a question can be sent."""
    browser.idle(page)
    assert page.locator("#tab-chat .error:visible").count() == 0


@dataclass
class Scripted:
    """Replace the answers of `VLM.stream_generate`."""

    answer: str = ""
    error: Exception | None = None
    wait: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    script = Scripted()
    generate = VLM.stream_generate

    @as_stream
    def generated(vlm: VLM, *arguments: Any, **options: Any) -> Iterator[Chunk]:
        script.begun.set()
        if script.wait:
            script.go_on.wait()
        if script.error is not None:
            raise script.error
        with closing(generate(vlm, *arguments, **options)) as chunks:
            last = list(chunks)[-1]
        for line in script.answer.splitlines(keepends=True):
            yield Chunk(line, ())
        yield last

    monkeypatch.setattr(VLM, "stream_generate", generated)
    yield script
    script.go_on.set()


# ---- Refusals --------------------------------------------------------------------------------------------


def test_what_is_refused_is_said_and_harms_nothing(page: Page) -> None:
    page.locator("#question .submit-button").click()
    notice(page, "The question is empty")
    whole(page)
    for name, words in (
        ("Edit the last question", "There is no question yet"),
        ("Copy the conversation", "Nothing was said yet"),
    ):
        button(page, name).click()
        notice(page, words)
        whole(page)
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"
    close_notices(page)
    box(page).fill("   \n ")
    box(page).press("Enter")
    notice(page, "The question is empty")
    whole(page)
    assert browser.answers(page).all_inner_texts() == ["green"]
    assert browser.ask(page, "What shape is it?") == "square"


BAD = {
    "short.png": lambda path: path.write_bytes(SQUARE.read_bytes()[:200]),
    "empty.png": lambda path: path.touch(),
    "text.png": lambda path: path.write_text("no picture"),
    "notes.txt": lambda path: path.write_text("no picture"),
    "huge.png": lambda path: Image.new("1", (20_000, 20_000)).save(path),
}


def test_pictures_that_cannot_be_read_keep_the_question_here(page: Page, tmp_path: Path) -> None:
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"
    for count, (name, make) in enumerate(BAD.items(), 2):
        make(tmp_path / name)
        attach(page, tmp_path / name)
        thumbnails(page).nth(count - 2).wait_for()
    attach(page, SCENE)
    thumbnails(page).nth(len(BAD)).wait_for()
    box(page).fill("Where is the key?")
    box(page).press("Enter")
    for name in BAD:
        notice(page, name)
    whole(page)
    picture_of(page, "chat-refused-pictures")
    assert box(page).input_value() == "Where is the key?"
    assert thumbnails(page).count() == len(BAD) + 1
    assert questions(page).count() == 1
    for _ in BAD:
        page.locator("#question .delete-button").first.click()
    assert browser.ask(page, "Where is the key?").startswith("[")
    assert questions(page).count() == 2


def test_a_large_file_is_a_picture_like_others(page: Page, nano: VLM, tmp_path: Path) -> None:
    """A BMP file of 80 MB becomes a PNG file."""
    path = tmp_path / "large.bmp"
    with Image.open(SCENE) as scene:
        scene.convert("RGB").resize((5200, 5200)).save(path)
    assert path.stat().st_size > 80e6
    expected = nano.ask(path, "Where is the key?", max_tokens=40).text
    assert browser.ask(page, "Where is the key?", [path]) == expected


@pytest.mark.parametrize("kind", ["tif", "gif"])
def test_formats_that_browsers_do_not_show(
    page: Page, nano: VLM, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"scene.{kind}"
    with Image.open(SCENE) as scene, Image.open(SHAPES) as shapes:
        options: dict[str, Any] = {
            "save_all": True,
            "append_images": [shapes.convert("RGB").resize(scene.size)],
        }
        scene.convert("RGB").save(path, **(options if kind == "gif" else {}))
    expected = nano.ask(path, "Where is the key?", max_tokens=40).text
    attach(page, path)
    thumbnails(page).first.wait_for()
    if kind == "tif":
        page.locator('#question [data-kind="tif"]').wait_for()
    assert browser.ask(page, "Where is the key?") == expected
    if kind == "gif":
        notice(page, "The model sees the first one")
    shown = page.locator("#conversation .user img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert str(shown.get_attribute("src")).endswith(".png")


def test_a_question_that_fails_goes_back_into_the_box(page: Page, scripted: Scripted) -> None:
    """With its images, before the text written meanwhile; also if it is stopped at once."""
    scripted.error, scripted.wait = ContextError("too much for the context"), True
    browser.send(page, "What changed?", [SCENE, CHANGED])
    page.locator("#question .stop-button").wait_for()
    assert scripted.begun.wait(30)
    thumbnails(page).first.wait_for(state="detached")
    assert box(page).input_value() == ""
    box(page).fill("And then?")
    box(page).press("Enter")  # one question at a time
    assert box(page).input_value() == "And then?"
    scripted.go_on.set()
    notice(page, "too much for the context")
    whole(page)
    assert box(page).input_value() == "What changed?\nAnd then?"
    assert thumbnails(page).count() == 2
    assert page.locator("#conversation .message-row").count() == 0

    close_notices(page)
    scripted.go_on.clear()
    scripted.begun.clear()
    box(page).fill("What is new?")
    box(page).press("Enter")
    assert scripted.begun.wait(30)
    page.keyboard.press("Escape")
    whole(page)
    assert box(page).input_value() == "What is new?"
    assert thumbnails(page).count() == 2
    assert page.locator("#conversation .message-row").count() == 0


def test_faults_of_all_kinds_give_the_question_back(page: Page, scripted: Scripted) -> None:
    for error in (RuntimeError("a fault"), MemoryError("no memory")):
        scripted.error = error
        browser.send(page, "What is it?")
        notice(page, str(error))
        whole(page)
        assert box(page).input_value() == "What is it?"
    scripted.error = None  # and the model answers nothing
    browser.send(page, "What is it?")
    notice(page, "answered nothing")
    whole(page)
    assert box(page).input_value() == "What is it?"


def test_answering_again_that_fails_leaves_the_answer(page: Page, scripted: Scripted) -> None:
    scripted.answer = "first"
    assert browser.ask(page, "What is it?", [SQUARE]) == "first"
    scripted.error = ContextError("not again")
    button(page, "Retry").click()
    notice(page, "not again")
    whole(page)
    assert browser.answers(page).all_inner_texts() == ["first"]
    assert box(page).input_value() == "" and thumbnails(page).count() == 0


DELAY = """() => {
  const fetched = window.fetch;
  window.uploads = [];
  window.fetch = (...request) => {
    if (!/\\/upload(\\?|$)/.test(String(request[0]?.url ?? request[0]))) return fetched(...request);
    return new Promise((resolve, reject) =>
      window.uploads.push({
        go: () => resolve(fetched(...request)),
        fail: () => reject(new TypeError("lost")),
      }));
  };
}"""


@pytest.fixture
def delayed(page: Page) -> Page:
    """Open another page of the browser; its uploads wait in `window.uploads`."""
    other = page.context.new_page()
    other.add_init_script(f"({DELAY})()")
    other.goto(page.url)
    other.locator("#tasks button").first.wait_for()
    return other


def test_a_question_waits_for_its_pictures(delayed: Page, nano: VLM) -> None:
    """Also for the first of two images that arrive in the other order."""
    page = delayed
    attach(page, SCENE)
    page.wait_for_function("window.uploads.length === 1")
    attach(page, CHANGED)
    page.wait_for_function("window.uploads.length === 2")
    box(page).fill("What changed?")
    box(page).press("Enter")
    box(page).press("Enter")
    page.locator("#question[data-waiting]").wait_for()
    page.evaluate("window.uploads[1].go()")
    thumbnails(page).first.wait_for()
    page.wait_for_timeout(500)  # milliseconds in which it could go off
    assert questions(page).count() == 0
    page.evaluate("window.uploads[0].go()")
    browser.answers(page).first.wait_for()
    browser.idle(page)
    assert page.locator("#conversation .user img").count() == 2
    expected = nano.ask([CHANGED, SCENE], "What changed?", max_tokens=40).text
    assert browser.answers(page).all_inner_texts() == [expected]


def test_a_question_does_not_go_off_without_a_lost_picture(delayed: Page) -> None:
    page = delayed
    attach(page, SCENE)
    page.wait_for_function("window.uploads.length === 1")
    box(page).fill("Where is the key?")
    box(page).press("Enter")
    page.locator("#question[data-waiting]").wait_for()
    page.evaluate("window.uploads[0].fail()")
    notice(page, "did not get to the server")
    whole(page)
    assert box(page).input_value() == "Where is the key?"
    assert questions(page).count() == 0
    attach(page, CHANGED)
    page.wait_for_function("window.uploads.length === 2")
    page.evaluate("window.uploads[1].go()")
    thumbnails(page).first.wait_for()
    assert browser.ask(page, "Where is the key?").startswith("[")


def test_thirty_pictures(page: Page, tmp_path: Path) -> None:
    pictures = []
    for number in range(30):
        pictures.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 40), (number * 8, 0, 0)).save(pictures[-1])
    attach(page, *pictures)
    thumbnails(page).nth(29).wait_for()
    box(page).fill("What is there?")
    picture_of(page, "chat-thirty")
    assert page.locator("#question .submit-button").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box(page).press("Enter")
    answer = browser.answers(page).first
    answer.or_(page.locator(".toast-body").first).wait_for()
    whole(page)
    kept = thumbnails(page).count() + page.locator("#conversation .user img").count()
    assert kept == 30


# ---- A new start -----------------------------------------------------------------------------------------


def test_a_new_conversation_has_an_empty_box(page: Page) -> None:
    browser.ask(page, "What color is it?", [SQUARE])
    attach(page, SCENE)
    thumbnails(page).first.wait_for()
    box(page).fill("left over")
    button(page, "New conversation").click()
    box(page).press_sequentially("new")  # at once
    browser.idle(page)
    questions(page).first.wait_for(state="detached")
    assert box(page).input_value() == "new" and thumbnails(page).count() == 0


def test_editing_keeps_what_is_in_the_box(page: Page) -> None:
    browser.ask(page, "What color is it?", [SQUARE])
    attach(page, SCENE)
    thumbnails(page).first.wait_for()
    box(page).fill("more")
    button(page, "Edit the last question").click()
    questions(page).first.wait_for(state="detached")
    browser.idle(page)
    assert box(page).input_value() == "What color is it?\nmore"
    assert thumbnails(page).count() == 2


# ---- Texts -----------------------------------------------------------------------------------------------


def copied(page: Page) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_texts_are_shown_and_copied_letter_for_letter(page: Page, scripted: Scripted) -> None:
    scripted.answer = NASTY
    browser.ask(page, NASTY, [SQUARE])
    assert questions(page).inner_text() == NASTY.replace("\t", "\t")
    copies = button(page, "Copy")
    for number in range(2):
        copies.nth(number).click()
        button(page, "Copied").first.wait_for()
        assert copied(page) == NASTY
    page.get_by_role("button", name="Copy the conversation").click()
    page.wait_for_function(
        "navigator.clipboard.readText().then((text) => text.startsWith('You: '))"
    )
    assert copied(page) == f"You: {NASTY}\n\nModel: {NASTY}"
    assert "First token" in page.locator("#conversation .note").inner_text()


ANSWER = """\
**Bold** and a [link](https://example.com/a), [dead](javascript:alert(1)), ![image](https://example.com/b.png).

- one
- two

| a | b |
|---|---|
| 1 | `x<y` |

```
<script>alert(1)</script>
```
<b>raw</b> <img src="https://example.com/c.png" onerror="alert(1)"> costs $5 and $6, $$x$$
"""


def test_markdown_of_an_answer_is_safe(page: Page, scripted: Scripted) -> None:
    """`visit` fails for requests to other hosts and for errors in the console."""
    scripted.answer = ANSWER
    browser.ask(page, "What is it?", [SQUARE])
    answer = browser.answers(page).first
    assert answer.locator("strong").inner_text() == "Bold"
    assert answer.locator("li").all_inner_texts() == ["one", "two"]
    assert answer.locator("td").all_inner_texts() == ["1", "x<y"]
    assert answer.locator("pre").inner_text().strip() == "<script>alert(1)</script>"
    assert answer.locator("img, script, b, .katex").count() == 0
    for link in answer.locator("a").all():
        assert str(link.get_attribute("href")).startswith("https://example.com/")
        assert link.get_attribute("target") == "_blank"
        assert "noopener" in str(link.get_attribute("rel"))
    text = answer.inner_text()
    assert "[dead](javascript:alert(1))" in text and "$5 and $6, $$x$$" in text
    assert '<b>raw</b> <img src="' in text
    picture_of(page, "chat-markdown")


# ---- Pictures and boxes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_stand_side_by_side_and_grow(chromium: Browser, address: str, width: int) -> None:
    with browser.visit(chromium, address, width=width) as page:
        browser.ask(page, "What changed?", [SCENE, CHANGED])
        images = page.locator("#conversation .user img")
        images.first.scroll_into_view_if_needed()
        one, other = (images.nth(number).bounding_box() for number in range(2))
        assert one is not None and other is not None
        assert abs(one["y"] - other["y"]) < 2 and one["x"] + one["width"] <= other["x"]
        assert min(one["width"], other["width"]) > 80
        images.last.click()
        large = page.locator("dialog.enlarged img")
        assert large.get_attribute("src") == images.last.get_attribute("src")
        picture_of(page, f"chat-enlarged-{width}")
        page.keyboard.press("Escape")
        large.wait_for(state="detached")
        images.first.locator("xpath=ancestor::button").focus()
        page.keyboard.press("Enter")
        large.wait_for()
        page.locator("dialog.enlarged").get_by_role("button", name="Close").click()
        large.wait_for(state="detached")


def test_a_pointing_answer_has_its_box_on_the_last_picture(page: Page, nano: VLM) -> None:
    chat = nano.chat()
    question = "Where is the key?"
    expected = chat.send(question, images=[CHANGED, SCENE], max_tokens=40).text
    assert browser.ask(page, question, [CHANGED, SCENE]) == expected
    drawn = page.locator("#conversation .bot img")
    drawn.wait_for()
    size = drawn.evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    with Image.open(SCENE) as scene:
        assert tuple(size) == scene.size
    assert "the boxes are on the last picture" in page.locator("#conversation .note").inner_text()
    picture_of(page, "chat-box")
    # What is drawn is not what the model is asked about next.
    following = "What is in the picture?"
    assert browser.ask(page, following) == chat.send(following, max_tokens=40).text
    browser.open_tab(page, "Inside")
    page.locator("#tiles img").nth(1).wait_for()
    assert page.locator("#tiles img").count() == 2


# ---- Keys, focus, paste and drop -------------------------------------------------------------------------


def test_keys_and_focus(page: Page, scripted: Scripted) -> None:
    scripted.answer, scripted.wait = "a\nb", True
    box(page).fill("one")
    box(page).press("Shift+Enter")
    box(page).press_sequentially("two")
    assert box(page).input_value() == "one\ntwo"
    page.locator("#question .submit-button").click()
    stop = page.locator("#question .stop-button")
    stop.wait_for()
    assert stop.get_attribute("title") == "Stop (Escape)"
    assert box(page).evaluate("area => document.activeElement === area")
    scripted.go_on.set()
    browser.idle(page)
    assert questions(page).inner_text() == "one\ntwo"


GIVE = """([kind, where, encoded, folder]) => {
  const given = new DataTransfer();
  if (encoded) {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    given.items.add(new File([bytes], "given.png", {type: "image/png"}));
  } else {
    given.setData("text/plain", "dropped words");
  }
  if (folder) DataTransferItem.prototype.webkitGetAsEntry = () => ({isDirectory: true, name: folder});
  const target = where ? document.querySelector(where) : document.body;
  if (kind === "paste") {
    const event = {clipboardData: given, bubbles: true, cancelable: true};
    target.dispatchEvent(new ClipboardEvent("paste", event));
  } else {
    for (const step of ["dragenter", "dragover", "drop"]) {
      target.dispatchEvent(new DragEvent(step, {dataTransfer: given, bubbles: true, cancelable: true}));
    }
  }
}"""


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("paste", ""),
        ("paste", "#question textarea"),
        ("drop", "#conversation .bot"),
        ("drop", "#question"),
    ],
)
def test_pictures_come_from_anywhere(page: Page, kind: str, where: str) -> None:
    browser.ask(page, "What is in the picture?", [SCENE])
    page.evaluate(GIVE, [kind, where, base64.b64encode(SQUARE.read_bytes()).decode(), ""])
    thumbnails(page).first.wait_for()
    page.wait_for_timeout(300)  # milliseconds in which it could come twice
    assert thumbnails(page).count() == 1
    assert browser.ask(page, "What color is it?") == "green"


def test_text_and_folders_dropped(page: Page) -> None:
    page.evaluate(GIVE, ["drop", "#conversation", "", ""])
    assert box(page).input_value() == "dropped words"
    page.evaluate(GIVE, ["drop", "#conversation", base64.b64encode(b"x").decode(), "holidays"])
    notice(page, "holidays is a folder")
    assert thumbnails(page).count() == 0
    whole(page)


# ---- The model -------------------------------------------------------------------------------------------


def test_the_model_is_chosen_here_and_under_models(page: Page) -> None:
    page.locator("#chat-about").get_by_text("drawings only").wait_for()
    page.locator("#chat-model input").click()
    options = page.locator("#chat-model").get_by_role("option")
    options.first.wait_for()
    names = [name.strip().removeprefix("✓").strip() for name in options.all_inner_texts()]
    assert "broken" not in names and {"edgevlm-nano", "copied"} <= set(names)
    options.filter(has_text="copied").first.click()
    page.locator("#head").get_by_text("copied").wait_for()
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"


def test_a_model_that_is_gone_leaves_the_one_in_use(
    page: Page, models: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*arguments: Any, **options: Any) -> Any:
        raise ContextError("no such model any more")

    page.locator("#chat-about").get_by_text("drawings only").wait_for()
    with monkeypatch.context() as patch:
        patch.setattr(type(models), "acquire", acquire)
        browser.choose(page, "#chat-model", "copied")
        notice(page, "no such model any more")
    page.wait_for_function("document.querySelector('#chat-model input').value === 'edgevlm-nano'")
    assert "edgevlm-nano" in page.locator("#head").inner_text()
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"


def test_tasks_write_the_question(page: Page, nano: VLM) -> None:
    tasks = page.locator("#tasks button")
    tasks.nth(3).wait_for()
    assert tasks.all_inner_texts() == ["Describe", "Find", "Count", "Read"]
    attach(page, SCENE)
    thumbnails(page).first.wait_for()
    button(page, "Find").click()
    assert box(page).input_value() == "Where is the thing?"
    page.keyboard.type("key")  # in the place of "thing"
    assert box(page).input_value() == "Where is the key?"
    box(page).press("Enter")
    expected = nano.ask(SCENE, "Where is the key?", max_tokens=40).text
    browser.answers(page).get_by_text(expected).wait_for()
    browser.idle(page)
    box(page).fill("mine")
    button(page, "Describe").click()
    assert box(page).input_value() == "Describe the picture."
    page.keyboard.press("Control+z")
    assert box(page).input_value() == "mine", "what was written can be taken back"


# ---- In Russian ------------------------------------------------------------------------------------------

VISIBLE = """() => {
  const words = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) {
      if (node.parentElement.checkVisibility?.({visibilityProperty: true})) words.push(node.textContent);
      return;
    }
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    if (node.matches(".said, .answered, .source, script, style")) return;
    if (!node.checkVisibility({visibilityProperty: true})) return;
    for (const name of ["title", "placeholder", "aria-label"]) words.push(node.getAttribute(name) ?? "");
    node.childNodes.forEach(walk);
  };
  walk([...document.querySelectorAll('#tabs [role=tabpanel]')].find((panel) => panel.checkVisibility()));
  return words.join(" ");
}"""


def test_russian(chromium: Browser, address: str) -> None:
    with browser.visit(chromium, address, locale="ru-RU") as page:
        page.locator("#tasks button").first.wait_for()
        page.get_by_text("Что изменилось?").wait_for()
        picture_of(page, "chat-russian-empty")
        page.locator("#question .submit-button").click()
        notice(page, "Вопрос пуст")
        browser.ask(page, "Где ключ?", [SCENE])
        for accordion in page.locator("#tabs .label-wrap:visible").all():
            accordion.click()
        page.locator("#conversation .note").get_by_text("Первый токен").wait_for()
        picture_of(page, "chat-russian")
        words = page.evaluate(VISIBLE)
    allowed = {"edgevlm", "nano", "demo", "Markdown", "Enter", "Shift", "Escape", "UTC"}
    found = {word for word in _latin(words) if word not in allowed}
    assert found == set()


def _latin(text: str) -> list[str]:
    import re

    return re.findall(r"[A-Za-z]{3,}", text)
