"""The tabs Models, Compare and Inside in Chromium, with right and wrong use."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from edgevlm import VLM, Bundle
from edgevlm.local_bundles import remember
from tests.support import browser
from tests.support.demo import MARKS, SCENE, SQUARE, picture_of
from tests.support.streams import as_stream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from edgevlm.demo.model_pool import ModelPool

pytestmark = MARKS


def compare_about(page: Page, picture: Path, question: str) -> None:
    """Fill in the tab Compare, and ask."""
    browser.open_tab(page, "Compare")
    page.locator("#compare-picture input[type=file]").set_input_files(picture)
    page.locator("#compare-picture img").wait_for()
    page.wait_for_function("document.querySelector('#right-model input').value !== ''")
    page.locator("#compare-question").get_by_role("textbox").fill(question)
    page.locator("#compare-start").click()


def compared(page: Page) -> None:
    """Wait until both sides have answered."""
    page.locator("#compared td", has_text=re.compile(r"[0-9] ms")).nth(5).wait_for()
    page.locator("#compare-start:enabled").wait_for()


def loaded_size(page: Page, selector: str) -> int:
    """Return the width of an image as the browser decoded it; 0 if it cannot."""
    width: int = page.locator(selector).evaluate(
        "(img) => img.decode().then(() => img.naturalWidth)"
    )
    return width


@pytest.fixture
def fragile(models: ModelPool, tmp_path: Path) -> Iterator[Path]:
    """Export one more bundle, which a test may break or delete."""
    folder = tmp_path / "fragile"
    shutil.copytree(Bundle.open("edgevlm-nano").folder, folder)
    remember(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make answers wait after each chunk until this event is set."""
    go_on = threading.Event()
    generate = VLM.stream_generate

    @as_stream
    def generated(vlm: VLM, *arguments: Any, **options: Any) -> Iterator[Any]:
        with closing(generate(vlm, *arguments, **options)) as chunks:
            for chunk in chunks:
                yield chunk
                if chunk.text:
                    go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(VLM, "stream_generate", generated)
        yield go_on
    go_on.set()


def test_inside(page: Page, nano: VLM) -> None:
    browser.open_tab(page, "Inside")
    page.get_by_text("Nothing was answered in this browser yet").wait_for()
    browser.open_tab(page, "Chat")
    answer = browser.ask(page, "Where is the key?", [SCENE])
    browser.open_tab(page, "Inside")
    page.locator("#inside-answer").get_by_text(answer).wait_for()
    expected = nano.ask(SCENE, "Where is the key?", max_tokens=40, top_logprobs=5)
    page.locator("#tokens .token").first.wait_for()
    shown = page.locator("#tokens .token")
    assert shown.count() == len(expected.token_ids)
    shown.first.hover()
    alternatives = shown.first.locator(".others")
    assert alternatives.is_visible()
    assert alternatives.locator("tr").count() == 5
    likely = f"{2.718281828459045 ** expected.logprobs[0].logprob:.2%}"
    assert likely in alternatives.inner_text()
    assert page.locator("#time tr").count() == 5
    message = {
        "role": "user",
        "content": [
            {"type": "image", "image": SCENE},
            {"type": "text", "text": "Where is the key?"},
        ],
    }
    prompt = nano.prompt([message])
    assert f"{prompt.tokens}, " in page.locator("#costs").inner_text()
    assert page.locator("#tiles img").count() == len(
        [part for part in prompt.parts if hasattr(part, "pixels")]
    )
    assert page.locator("#pointed img").first.is_visible()
    assert page.locator("#prompt .tile").count() == 1
    picture_of(page, "inside")
    page.mouse.wheel(0, 2000)
    page.locator("#prompt").scroll_into_view_if_needed()
    picture_of(page, "inside-below")


def test_inside_after_a_reload(page: Page) -> None:
    answer = browser.ask(page, "Where is the key?", [SCENE])
    browser.open_tab(page, "Inside")
    page.locator("#inside-answer").get_by_text(answer).wait_for()
    page.reload()
    page.locator("#inside-answer").get_by_text(answer).wait_for()
    page.locator("#tokens .token").first.wait_for()
    assert loaded_size(page, "#pointed img") > 0 and loaded_size(page, "#tiles img") == 160


def test_inside_of_an_answer_that_was_stopped(page: Page, held: threading.Event) -> None:
    browser.send(page, "What is in the picture?", [SCENE])
    browser.answers(page).first.wait_for()
    page.locator("#question .stop-button").click()
    browser.idle(page)
    held.set()
    browser.open_tab(page, "Inside")
    page.locator("#time").get_by_text("stopped before its end").wait_for()
    page.locator("#prompt .tile").wait_for()


def test_inside_of_an_answer_whose_model_is_gone(
    page: Page, models: ModelPool, fragile: Path
) -> None:
    browser.open_tab(page, "Models")
    browser.choose(page, "#model-choice", "fragile")
    page.get_by_role("button", name="Load and use").click()
    page.locator("#head").get_by_text("fragile").wait_for()
    browser.open_tab(page, "Chat")
    answer = browser.ask(page, "What color is it?", [SQUARE])
    shutil.rmtree(fragile)
    with models.acquire("edgevlm-nano"), models.acquire("copied"):
        pass  # others are loaded in its place
    assert not models.is_loaded("fragile")
    browser.open_tab(page, "Inside")
    page.locator("#inside-answer").get_by_text(answer).wait_for()
    page.locator("#tokens .token").first.wait_for()
    page.locator("#prompt .problem").get_by_text(
        "no model 'fragile' is offered any more"
    ).wait_for()


def test_one_model_is_compared_without_any_choice(page: Page, nano: VLM) -> None:
    """The first choice works, and no broken bundle can be chosen."""
    compare_about(page, SCENE, "Where is the key?")
    compared(page)
    expected = nano.ask(SCENE, "Where is the key?", max_tokens=40).text
    page.locator("#left .answer").get_by_text(expected).wait_for()
    assert loaded_size(page, "#left img") > 0
    temperatures = page.locator("#compared tr", has_text="temperature").locator("td")
    assert temperatures.all_inner_texts() == ["0.00", "0.70"]
    for side in ("left", "right"):
        page.locator(f"#{side}-model input").click()
        names = page.locator(f"#{side}-model").get_by_role("option").all_inner_texts()
        assert "copied" in "".join(names) and "broken" not in "".join(names)
        page.keyboard.press("Escape")
        page.get_by_role("listbox").wait_for(state="detached")
    picture_of(page, "compare")


def test_no_difference_is_refused_in_words(page: Page) -> None:
    browser.open_tab(page, "Compare")
    page.wait_for_function("document.querySelector('#right-model input').value !== ''")
    page.locator("#right-temperature input[type=number]").fill("0")
    page.locator("#compare-start").click()
    page.get_by_text("both sides would give the same answer").wait_for()
    page.locator("#compare-start:enabled").wait_for()
    page.locator("#right-model").get_by_role("combobox").wait_for()
    browser.choose(page, "#right-model", "copied")
    page.locator("#compare-start").click()
    compared(page)


def test_an_empty_question_is_refused_in_words(page: Page) -> None:
    browser.open_tab(page, "Compare")
    page.wait_for_function("document.querySelector('#right-model input').value !== ''")
    page.locator("#compare-question").get_by_role("textbox").fill(" ")
    page.locator("#compare-start").click()
    page.get_by_text("the question is empty").wait_for()


def test_two_precisions_are_compared(page: Page, models: ModelPool) -> None:
    """Words that differ are marked on both sides; sizes are those of the files."""
    browser.open_tab(page, "Compare")
    page.locator("#compare-picture input[type=file]").set_input_files(SCENE)
    page.locator("#compare-picture img").wait_for()
    labels = {"left": "copied: int8, q8_0", "right": "copied: int8, q4_0"}
    with models.acquire(labels["left"]) as left, models.acquire(labels["right"]) as right:
        sides = {"left": left, "right": right}
        sizes = {side: f"{loaded.disk / 1e6:.1f} MB" for side, loaded in sides.items()}
        for question in ("Where is the cat?", "Describe the picture.", "What is in the picture?"):
            answers = {
                side: loaded.vlm.ask(SCENE, question, max_tokens=40).text
                for side, loaded in sides.items()
            }
            if answers["left"] != answers["right"]:  # which depends on the processor's rounding
                break
    assert sizes["left"] != sizes["right"] and answers["left"] != answers["right"]
    page.get_by_role("textbox", name="Question", exact=True).fill(question)
    for side, label in labels.items():
        browser.choose(page, f"#{side}-model", label)
    page.locator("#right-temperature input[type=number]").fill("0")
    page.get_by_role("button", name="Ask both").click()
    page.locator("#compared").get_by_text("tokens per second").wait_for()
    for side in sides:
        page.locator("#compared").get_by_text(sizes[side], exact=True).wait_for()
        page.locator(f"#{side} .answer", has_text=answers[side]).wait_for()
        page.locator(f"#{side} mark").first.wait_for()
    picture_of(page, "compare-precisions")


@pytest.mark.parametrize("content", [b"no picture", b"", SQUARE.read_bytes()[:200]])
def test_a_broken_picture_is_refused_at_once(page: Page, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    browser.open_tab(page, "Compare")
    page.locator("#compare-picture input[type=file]").set_input_files(tmp_path / "odd.png")
    page.locator(".toast-body").get_by_text("odd.png").wait_for()
    page.locator("#compare-picture img").wait_for(state="detached")
    compare_about(page, SCENE, "Where is the key?")
    compared(page)


def test_pictures_that_browsers_do_not_show(page: Page, tmp_path: Path, nano: VLM) -> None:
    """Of a TIFF file and an animation the page shows what the model sees, and tells it."""
    with Image.open(SCENE) as scene, Image.open(SQUARE) as square:
        scene.convert("CMYK").save(tmp_path / "scene.tiff")
        frames = [square.convert("RGB"), scene.convert("RGB").resize(square.size)]
        frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    compare_about(page, tmp_path / "scene.tiff", "Where is the key?")
    compared(page)
    assert loaded_size(page, "#compare-picture img") > 0
    expected = nano.ask(tmp_path / "scene.tiff", "Where is the key?", max_tokens=40).text
    page.locator("#left .answer").get_by_text(expected).wait_for()
    page.locator("#compare-picture input[type=file]").set_input_files(tmp_path / "moving.png")
    page.locator(".toast-body").get_by_text("moving.png has 2 frames").wait_for()


def test_stop_ends_both_sides(page: Page, held: threading.Event) -> None:
    compare_about(page, SCENE, "Describe the picture.")
    page.locator("#left .answer", has_text=re.compile(".")).wait_for()
    page.locator("#compare-stop").click()
    for side in ("left", "right"):
        page.locator(f"#{side}").get_by_text("stopped").wait_for()
    page.locator("#compare-start:enabled").wait_for()
    held.set()
    compare_about(page, SCENE, "Where is the key?")
    compared(page)


def test_a_side_that_fails_leaves_the_other(page: Page, fragile: Path, nano: VLM) -> None:
    browser.open_tab(page, "Compare")
    browser.choose(page, "#right-model", "fragile")
    damage(fragile)
    compare_about(page, SCENE, "Where is the key?")
    page.locator("#right .problem").get_by_text("was altered").wait_for()
    expected = nano.ask(SCENE, "Where is the key?", max_tokens=40).text
    page.locator("#left .answer").get_by_text(expected).wait_for()
    page.locator("#compare-start:enabled").wait_for()
    picture_of(page, "compare-one-side-fails")


def damage(folder: Path) -> None:
    """Change one byte of a bundle."""
    entry = Bundle.open(folder).manifest.files()[0]
    content = bytearray((folder / entry.name).read_bytes())
    content[-1] ^= 1
    (folder / entry.name).write_bytes(content)


def state(page: Page, model: str) -> Any:
    """Return the cell with the state of a model."""
    name = page.get_by_role("rowheader", name=re.compile(rf"^{model}\b(?!:)"))
    return page.locator("#models tr", has=name).locator("td.state")


def test_models(page: Page) -> None:
    browser.open_tab(page, "Models")
    state(page, "copied").get_by_text(re.compile("loaded|ready")).wait_for()
    state(page, "edgevlm-nano").get_by_text("in use").wait_for()
    state(page, "broken").get_by_text("broken").wait_for()
    page.locator("#models .why").get_by_text("was altered").wait_for()
    page.locator("#models .why").get_by_text("delete its folder").wait_for()
    page.get_by_text("edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct").wait_for()
    browser.choose(page, "#model-choice", "copied")
    page.get_by_role("button", name="Load and use").click()
    page.locator("#model-state").get_by_text("drawings only").wait_for()
    page.locator("#head").get_by_text("copied").wait_for()
    state(page, "copied").get_by_text("in use").wait_for()
    state(page, "edgevlm-nano").get_by_text(re.compile("loaded|ready")).wait_for()
    page.locator("#model-choice input").click()
    names = page.locator("#model-choice").get_by_role("option").all_inner_texts()
    assert not any("broken" in name for name in names)
    page.keyboard.press("Escape")
    picture_of(page, "models")
    browser.open_tab(page, "Chat")
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"


def test_a_load_that_fails_leaves_the_model_in_use(page: Page, fragile: Path) -> None:
    """The bundle changes after it was listed as ready."""
    browser.open_tab(page, "Models")
    state(page, "fragile").get_by_text("ready").wait_for()
    browser.choose(page, "#model-choice", "fragile")
    damage(fragile)
    page.get_by_role("button", name="Load and use").click()
    failed = page.locator("#model-state .problem")
    failed.get_by_text("fragile cannot be loaded, so edgevlm-nano stays in use").wait_for()
    assert "was altered" in failed.inner_text()
    assert "edgevlm-nano" in page.locator("#head").inner_text()
    state(page, "fragile").get_by_text("broken").wait_for()
    picture_of(page, "models-broken")
    shutil.rmtree(fragile)
    page.get_by_role("button", name="Refresh the list").click()
    state(page, "fragile").wait_for(state="detached")


def test_a_deleted_model_cannot_be_loaded(page: Page, fragile: Path) -> None:
    browser.open_tab(page, "Models")
    state(page, "fragile").wait_for()
    browser.choose(page, "#model-choice", "fragile")
    shutil.rmtree(fragile)
    page.get_by_role("button", name="Load and use").click()
    page.locator("#model-state .problem").get_by_text("is offered any more").wait_for()
    state(page, "fragile").wait_for(state="detached")


def hold_checks(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Stop the check of the files of `fragile` until this event is set."""
    go_on = threading.Event()
    check = Bundle.check_hashes_once

    def held(bundle: Bundle, entries: Any) -> None:
        if bundle.folder.name == "fragile":
            go_on.wait(60)
        check(bundle, entries)

    monkeypatch.setattr(Bundle, "check_hashes_once", held)
    return go_on


def test_loading_is_told_in_words(
    page: Page, fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.open_tab(page, "Models")
    state(page, "fragile").get_by_text("ready").wait_for()
    go_on = hold_checks(monkeypatch)
    browser.choose(page, "#model-choice", "fragile")
    page.get_by_role("button", name="Load and use").click()
    page.locator("#model-state").get_by_text("Loading fragile: checking its files").wait_for()
    browser.open_tab(page, "Chat")
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green", "the page goes on"
    go_on.set()
    page.locator("#head").get_by_text("fragile").wait_for()


def test_files_are_checked_while_the_page_goes_on(
    page: Page, fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = hold_checks(monkeypatch)
    for file in fragile.iterdir():
        file.touch()  # so that it has to be checked again
    browser.open_tab(page, "Models")
    state(page, "fragile").get_by_text("being checked").wait_for()
    go_on.set()
    state(page, "fragile").get_by_text("ready").wait_for()


def test_a_model_is_loaded_by_keyboard(page: Page) -> None:
    browser.open_tab(page, "Models")
    state(page, "copied").wait_for()
    page.wait_for_function("document.querySelector('#model-choice input').value !== ''")
    field = page.locator("#model-choice input")
    active = "document.querySelector('#model-choice [role=option].active')?.ariaLabel"
    while field.input_value() != "copied":  # a list that comes meanwhile closes the open one
        field.blur()
        field.focus()
        page.locator("#model-choice").get_by_role("listbox").wait_for()
        for _ in range(10):
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(200)  # milliseconds until the next one is marked
            if page.evaluate(active) == "copied":
                page.keyboard.press("Enter")
                break
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Load and use"
    page.keyboard.press("Enter")
    page.locator("#head").get_by_text("copied").wait_for()


@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
def test_tables_fit_a_phone(chromium: Browser, address: str, fragile: Path, locale: str) -> None:
    """Nothing is cut, also with long names."""
    odd = fragile.with_name("a-name-of-" + "many-" * 20 + "parts")
    fragile.rename(odd)
    remember(odd)
    try:
        with browser.visit(chromium, address, width=390, height=844, locale=locale) as page:
            browser.ask(page, "Where is the key?", [SCENE])
            for tab, table in (("Inside", "#parts"), ("Models", "#models"), ("Inside", "#time")):
                browser.open_tab(page, tab)
                page.locator(f"{table} table").wait_for()
                cells = page.locator(f"{table} :is(th, td)").all()
                assert cells
                for cell in cells:
                    box = cell.bounding_box()
                    assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 390)
                    assert cell.evaluate("(it) => it.scrollWidth <= it.clientWidth + 1"), (
                        cell.inner_text()
                    )
                assert browser.page_width(page) <= 390
    finally:
        shutil.rmtree(odd)


ENGLISH = re.compile(r"\b(?:the|model|picture|answer|loaded|token|settings|memory|size)\b", re.I)


def test_these_tabs_in_russian(chromium: Browser, address: str) -> None:
    with browser.visit(chromium, address, locale="ru-RU") as page:
        browser.open_tab(page, "Inside")
        page.locator("#inside-answer").get_by_text("ещё ничего не отвечали").wait_for()
        browser.open_tab(page, "Chat")
        browser.ask(page, "Где ключ?", [SCENE])
        browser.open_tab(page, "Inside")
        page.locator("#tokens .token").first.wait_for()
        compare_about(page, SCENE, "Где ключ?")
        page.locator("#compared td", has_text=re.compile(r"[0-9] мс")).nth(5).wait_for()
        for side in ("left", "right"):
            page.locator(f"#{side}-settings button").first.click()
        browser.open_tab(page, "Models")
        state(page, "edgevlm-nano").get_by_text("используется").wait_for()
        page.locator("#model-use").click()
        page.locator("#model-state").get_by_text("только рисунки").wait_for()
        for tab in ("Inside", "Compare", "Models"):
            browser.open_tab(page, tab)
            text = page.locator(f"#tab-{tab.lower()}").inner_text()
            for quoted in page.locator(f"#tab-{tab.lower()} :is(.why, pre, .prompt, #parts)").all():
                text = text.replace(quoted.inner_text(), "")
            assert not ENGLISH.findall(text), ENGLISH.findall(text)
