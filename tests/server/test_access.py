"""Who may ask: names of the server, web pages of other origins, and the port."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgevlm.cli import main
from edgevlm.cli.serve import _trusted_hosts
from edgevlm.errors import InputError
from edgevlm.server.access import host_name, parse_origin
from edgevlm.server.http_server import base_url, bind
from edgevlm.server.limits import Limits
from tests.support.browser import chromium, missing
from tests.support.serving import MODEL, SECONDS, data_uri, serving

PAGE = "http://localhost:5173"
OTHER = "https://other.test"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(allowed_origins=(PAGE, "null"), trusted_hosts=("127.0.0.1",)) as address:
        yield address


def allowing(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("access-control-") or name == "vary"
    }


def asked(origin: str | None, **headers: str) -> dict[str, str]:
    return headers if origin is None else {"Origin": origin, **headers}


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_a_page_of_an_allowed_origin_reads_answers_and_errors(address: str) -> None:
    hello = {"messages": [{"role": "user", "content": "Hello"}]}
    for page in (PAGE, "null"):
        answers = [
            httpx.post(
                f"{address}/v1/chat/completions", json=sent, headers=asked(page), timeout=SECONDS
            )
            for sent in (hello, hello | {"stream": True}, {})
        ]
        answers += [
            httpx.get(f"{address}{path}", headers=asked(page))
            for path in ("/v1/models", "/nothing", "/health")
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 404, 200]
        for answer in answers:
            assert allowing(answer) == {
                "access-control-allow-origin": page,
                "access-control-expose-headers": "Retry-After",
                "vary": "Origin",
            }


def test_preflight(address: str) -> None:
    wants = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = httpx.options(f"{address}/v1/chat/completions", headers=asked(PAGE, **wants))
    assert answer.status_code == 204
    found = allowing(answer)
    assert found["access-control-allow-origin"] == PAGE
    assert "POST" in found["access-control-allow-methods"]
    assert found["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-private-network" not in found
    wants["Access-Control-Request-Private-Network"] = "true"
    answer = httpx.options(f"{address}/v1/chat/completions", headers=asked(PAGE, **wants))
    assert allowing(answer)["access-control-allow-private-network"] == "true"
    refused = httpx.options(f"{address}/v1/chat/completions", headers=asked(OTHER, **wants))
    assert refused.status_code == 403 and allowing(refused) == {}


@pytest.mark.parametrize(
    "page",
    [
        "https://one.test",
        "http://localhost",
        "http://localhost:51730",
        "https://localhost:5173",
        "file://",
    ],
)
def test_a_page_of_another_origin_may_not_even_ask(
    address: str, page: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A browser would send what needs no preflight, and only keep the answer from the page."""
    hello = b'{"messages": [{"role": "user", "content": "Hello"}]}'
    for _ in range(2):
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            content=hello,
            headers=asked(page, **{"Content-Type": "text/plain"}),
        )
        assert answer.status_code == 403 and allowing(answer) == {}
        assert error(answer)["message"] == (
            f"web pages of the origin {page!r} are not allowed; to allow them, start the server with "
            f"--allow-origin {page}"
        )
    assert error(answer)["code"] == "origin_not_allowed"
    said = [record.getMessage() for record in caplog.records]
    assert said == [error(answer)["message"]]


def test_no_headers_without_an_origin(address: str) -> None:
    assert allowing(httpx.get(f"{address}/v1/models")) == {}


def test_a_page_that_the_server_or_a_proxy_before_it_shows(address: str) -> None:
    for page in (address, address.replace("http", "https")):
        answer = httpx.get(f"{address}/v1/models", headers=asked(page))
        assert answer.status_code == 200 and allowing(answer) == {}


def test_origins_with_a_key() -> None:
    wants = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    with serving(allowed_origins=(PAGE,), api_key="secret") as address:
        for path in ("/v1/models", "/v1/files"):
            assert httpx.options(address + path, headers=asked(PAGE, **wants)).status_code == 204
            refused = httpx.get(address + path, headers=asked(PAGE))
            assert refused.status_code == 401
            assert allowing(refused)["access-control-allow-origin"] == PAGE
            known = httpx.get(address + path, headers=asked(PAGE, Authorization="Bearer secret"))
            assert known.status_code == 200


def test_any_origin_only_if_said_so() -> None:
    with serving(allowed_origins=("*",)) as address:
        for page in (PAGE, OTHER, "null"):
            answer = httpx.get(f"{address}/v1/models", headers=asked(page))
            assert allowing(answer)["access-control-allow-origin"] == "*"
    with serving() as address:
        assert httpx.get(f"{address}/v1/models", headers=asked(PAGE)).status_code == 403


def test_body_that_is_too_large_is_told_to_the_page() -> None:
    with serving(allowed_origins=(PAGE,), limits=Limits(body_bytes=100)) as address:
        answer = httpx.post(
            f"{address}/v1/chat/completions", content=b"x" * 200, headers=asked(PAGE)
        )
        assert answer.status_code == 413
        assert allowing(answer)["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://localhost:5173", "http://localhost:5173"),
        ("HTTP://LocalHost:5173/", "http://localhost:5173"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80", "http://example.org"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_as_browsers_write_them(text: str, expected: str) -> None:
    assert parse_origin(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:5173",
        "localhost",
        "http://",
        "http://a/path",
        "http://a:b",
        "*.example.org",
        "http://a?b",
        "http://[::1",
    ],
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(InputError, match="origin"):
        parse_origin(text)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8080", "localhost"),
        ("LocalHost", "localhost"),
        ("localhost.:80", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:8080", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ],
)
def test_names_in_host_headers(header: str, name: str) -> None:
    assert host_name(header) == name


def test_another_name_is_refused_with_the_way_to_allow_it(address: str) -> None:
    for header, name in (("evil.test", "evil.test"), ("Box.Local:8080", "box.local")):
        answer = httpx.get(f"{address}/health", headers={"Host": header})
        assert answer.status_code == 400
        assert error(answer)["message"] == (
            f"the host name {name!r} is not allowed; to allow it, start the server with --allow-host {name}"
        )
        assert error(answer)["code"] == "host_not_allowed"
    with serving(trusted_hosts=("127.0.0.1", "box.local")) as named:
        assert httpx.get(f"{named}/health", headers={"Host": "Box.Local:1"}).status_code == 200


def test_request_without_a_host(address: str) -> None:
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 400 " in answer and b"has no Host header" in answer


def test_names_that_a_server_answers_to() -> None:
    assert _trusted_hosts("127.0.0.1", []) == ("127.0.0.1", "localhost", "[::1]", "127.0.0.1")
    assert "[::1]" in (_trusted_hosts("::1", []) or ())
    assert "box" in (_trusted_hosts("localhost", ["box"]) or ())
    assert _trusted_hosts("0.0.0.0", []) is None
    assert set(_trusted_hosts("0.0.0.0", ["box"]) or ()) >= {"box", "localhost"}


def test_addresses_that_are_not_there(address: str) -> None:
    for method, path in (("GET", "/"), ("POST", "/v1/responses"), ("POST", "/v1/completions")):
        answer = httpx.request(method, address + path)
        assert answer.status_code == 404
        told = error(answer)
        assert told["message"].startswith(f"the path {path} does not exist; use one of ")
        assert "/v1/chat/completions" in told["message"] and told["code"] == "not_found"
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/files", "POST"),
        ("POST", "/health", "GET"),
    ):
        answer = httpx.request(method, address + path)
        assert answer.status_code == 405
        assert error(answer)["message"].startswith(
            f"the method {method} is not allowed for {path}; use "
        )
        assert allowed in answer.headers["Allow"]


def test_taken_port_is_said_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"edgevlm: error: port {port} of 127.0.0.1 is in use by another program; end that program, or use "
        "another --port\n"
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "\ud800", "a" * 300])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(InputError, match="is not an address of this machine"):
        bind(host, 0)


@contextlib.contextmanager
def command(*options: str) -> Iterator[tuple[str, str]]:
    """`edgevlm serve` as a process: its first line, and the address that stands there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevlm", "serve", "--port", "0", "--model", MODEL, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield line, line.partition(" at ")[2].partition(",")[0]
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")],
)
def test_printed_address_is_where_the_server_is(host: str, name: str) -> None:
    """From the first line on that says where it is, it answers there; port 0 is a free one."""
    with command("--host", host) as (line, address):
        assert line.startswith(f"edgevlm: {MODEL} at http://{name}:"), line
        assert line.endswith("/v1, Ctrl-C ends it\n")
        assert httpx.get(f"{address}/models").json()["data"][0]["id"] == MODEL


def test_options_of_the_command() -> None:
    options = ("--allow-origin", f"{PAGE}/", "--allow-origin", "null", "--allow-host", "box.local")
    with command(*options, "--strict") as (_, address):
        for page in (PAGE, "null"):
            answer = httpx.get(f"{address}/models", headers=asked(page, Host="box.local"))
            assert allowing(answer)["access-control-allow-origin"] == page
        assert httpx.get(f"{address}/models", headers=asked(OTHER)).status_code == 403
        assert httpx.get(f"{address}/models", headers={"Host": "evil.test"}).status_code == 400
        sent = {"messages": [{"role": "user", "content": "Hello"}], "keep_alive": "5m"}
        strict = httpx.post(f"{address}/chat/completions", json=sent)
        assert error(strict)["param"] == "keep_alive"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--allow-origin", "localhost:5173"),
            "an origin is a scheme, a host and optionally a port",
        ),
        (("--allow-host", "http://box"), "--allow-host must be a name such as box.local"),
        (
            ("--host", "192.0.2.1", "--without-key"),
            "--host 192.0.2.1 is not an address of this machine",
        ),
    ],
)
def test_options_that_cannot_be_used(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 1
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and told.out == ""


def test_two_servers_that_start_at_once() -> None:
    with (
        contextlib.closing(bind("127.0.0.1", 0)) as first,
        pytest.raises(InputError, match="in use"),
    ):
        bind("127.0.0.1", first.getsockname()[1])
    with contextlib.closing(bind("::1", 0)) as sixth:
        assert base_url(sixth, "::1").startswith("http://[::1]:")


REALTIME_PAGE = """<!doctype html><meta charset="utf-8"><script>
async function ask(base, image) {
  const answer = await fetch(`${base}/v1/chat/completions`, {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({
      max_tokens: 100,
      messages: [{role: "user", content: [
        {type: "text", text: "What color is it?"},
        {type: "image_url", image_url: {url: image}},
      ]}],
    }),
  });
  return [answer.status, await answer.json()];
}
</script>"""
"""Asks as the well-known page with a camera does: no model, no key, from another origin."""


@pytest.fixture
def page_folder(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    (tmp_path / "index.html").write_text(REALTIME_PAGE)
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "index.html"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_real_browser(page_folder: tuple[str, Path]) -> None:
    site, file = page_folder
    expected = "green"
    with chromium() as browser, serving(allowed_origins=(site, "null")) as address:
        for where in (site, file.as_uri()):
            page = browser.new_page()
            page.goto(where)
            status, answer = page.evaluate(
                "([base, image]) => ask(base, image)", [address, data_uri("square.png")]
            )
            assert (status, answer["choices"][0]["message"]["content"]) == (200, expected)
        with serving() as closed:
            refused = page.evaluate(
                "([base, image]) => ask(base, image).catch(error => 'refused')", [closed, ""]
            )
            assert refused == "refused"
