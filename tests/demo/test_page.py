"""What the server sends to every browser: cookie and policy, and which hosts it accepts."""

from __future__ import annotations

from collections.abc import Iterator
from http.cookies import SimpleCookie

import httpx
import pytest

from edgevlm.demo.app import build, launch
from edgevlm.demo.browsers import COOKIE, POLICY
from edgevlm.demo.model_pool import ModelPool


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    page = build(ModelPool(threads=1), {})
    yield launch(page).rstrip("/")
    page.close(verbose=False)


def name_in(response: httpx.Response) -> str | None:
    cookie = SimpleCookie(response.headers.get("set-cookie", "")).get(COOKIE)
    return None if cookie is None else cookie.value


def test_a_browser_gets_a_name_that_scripts_and_other_sites_do_not_get(address: str) -> None:
    first, second = httpx.get(address + "/"), httpx.get(address + "/")
    assert name_in(first) and name_in(second) and name_in(first) != name_in(second)
    flags = {part.strip().lower() for part in first.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags


def test_a_browser_keeps_its_name(address: str) -> None:
    again = httpx.get(address + "/", cookies={COOKIE: "known"})
    assert name_in(again) is None
    assert name_in(httpx.get(address + "/config")) is None


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/missing"])
def test_pages_load_nothing_from_elsewhere(address: str, path: str) -> None:
    assert httpx.get(address + path).headers["content-security-policy"] == POLICY


def test_a_name_of_another_site_does_not_reach_the_page(address: str) -> None:
    """As in DNS rebinding, where a foreign name leads to 127.0.0.1."""
    port = address.rpartition(":")[2]
    for host in (f"example.com:{port}", "example.com", f"127.0.0.1.example.com:{port}"):
        assert httpx.get(address + "/config", headers={"host": host}).status_code == 400
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert httpx.get(address + "/config", headers={"host": host}).status_code == 200
