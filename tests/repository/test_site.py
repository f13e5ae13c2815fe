"""The documentation site builds without warnings, loads nothing from other hosts and has no dead link."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import pytest

from edgevlm import cli, manifest
from tests.support import browser

pytest.importorskip("mkdocstrings", reason="the group docs is not installed")
pytest.importorskip("material", reason="the group docs is not installed")

from scripts import site_hooks

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements to the attribute that a browser loads at once."""

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The addresses and anchors of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if address := values.get(LOADED.get(tag, "")):
            self.loaded.append(address)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(folder),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 20
    outside = {
        address for page in pages.values() for address in page.loaded if urlsplit(address).netloc
    }
    assert outside == set()
    for style in site.rglob("*.css"):
        assert not re.findall(
            r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")
        )


def test_links_lead_to_pages_and_anchors(site: Path, pages: dict[str, Page]) -> None:
    dead = defaultdict(set)
    for name, page in pages.items():
        if name == "404.html":  # its links begin at the root of a host
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            folder = PurePosixPath(name).parent
            path = os.path.normpath(folder / unquote(parts.path)) if parts.path else name
            anchors = pages[path].anchors | {""} if path in pages else {parts.fragment}
            if not (site / path).exists() or unquote(parts.fragment) not in anchors:
                dead[name].add(link)
    assert dead == {}


def test_command_line_page_has_every_option(site: Path) -> None:
    text = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f'id="edgevlm-{name}"' in text
        for action in cli.command_parser(name)._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"<code>{option}" in text, f"{name} {option}"


def test_bundle_page_has_every_field(site: Path) -> None:
    text = site_hooks.bundle_format()
    example = manifest.Manifest.load(REPOSITORY / "edgevlm" / "models" / "edgevlm-nano")
    fields = set(re.findall(r'^ +"(\w+)":', example.to_json(), re.MULTILINE))
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    keys = {*example.vision.files, *example.decoder.files, *example.created_with, "en", "ru"}
    assert fields - named - keys - set(example.prompt.template_variables) == set()
    assert re.findall(r"^\| `(\w+)` \| [^|]* \| +\|$", text, re.MULTILINE) == []
    for kind in get_args(manifest.Tiling) + get_args(manifest.Packing):
        section = text.partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
        names = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert names[0] == "kind" and f'`"{kind.kind}"`' in section
        assert set(names) == {field.name for field in dataclasses.fields(kind)}


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_a_window(address: str, pages: dict[str, Page], width: int) -> None:
    """Nothing is wider than the window, nothing is asked of other hosts, and no script fails."""
    if (reason := browser.missing()) is not None:
        pytest.skip(reason)
    found = SimpleNamespace(elsewhere=[], errors=[], wide=[])

    def request(asked: Any) -> None:
        if not asked.url.startswith((address, "data:", "blob:")):
            found.elsewhere.append(asked.url)

    with browser.chromium() as chromium:
        context = chromium.new_context(viewport={"width": width, "height": 900})
        page = context.new_page()
        page.on("request", request)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        for name in pages:
            page.goto(f"{address}{name}")
            inner = page.evaluate("document.documentElement.scrollWidth")
            if inner > width:
                found.wide.append(f"{name}: {inner}")
        context.close()
    assert (found.elsewhere, found.errors, found.wide) == ([], [], [])
