"""The cost of a JSON schema: a child process tries it and is ended when it exceeds a limit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevlm import VLM, InputError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.json_schema import process as process_module
from edgevlm.runtimes.json_schema.constraint import (
    MAX_REMEMBERED_SCHEMAS,
    JsonConstraint,
    JsonMatcher,
)

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "examples" / "scene.png"
PIECES = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b'","', b"12", b"true", b""]
END = len(PIECES) - 1

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

COSTLY = {"anyOf": [{"type": "integer", "multipleOf": number} for number in range(9000, 9200)]}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def texts() -> Iterator[JsonConstraint]:
    yield JsonConstraint(PIECES, [END], lambda text: list(text.encode()))


def process(texts: JsonConstraint) -> subprocess.Popen[bytes]:
    assert texts._helper is not None
    return texts._helper._process


def go_on(matcher: JsonMatcher, choose: random.Random, tokens: int) -> list[int]:
    found = []
    for _ in range(tokens):
        found.append(int(choose.choice(matcher.allowed_tokens())))
        matcher.accept(found[-1])
        if found[-1] == END:
            break
    return found


@POSIX
def test_what_costs_too_much_is_refused_and_remembered(texts: JsonConstraint) -> None:
    before = system.resident_memory(os.getpid())
    with pytest.raises(InputError, match="json_schema: #: costs too much: more than"):
        texts.matcher(COSTLY)
    assert process(texts).returncode in (-signal.SIGXCPU, -signal.SIGABRT, -signal.SIGKILL, 1)
    ended = process(texts).pid
    with pytest.raises(InputError, match="costs too much"):
        texts.matcher(COSTLY)
    assert process(texts).pid == ended  # nothing was tried again
    after = system.resident_memory(os.getpid())
    assert before is None or after is None or after - before < 50e6
    assert go_on(texts.matcher({"const": 12}), random.Random(0), 9)[-1] == END


@POSIX
def test_time_is_bounded_where_memory_is_not(
    texts: JsonConstraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "CPU_SECONDS", 1)
    monkeypatch.setattr(process_module, "MEMORY_BYTES", 2**40)
    texts = JsonConstraint(PIECES, [END], lambda text: list(text.encode()))
    with pytest.raises(InputError, match="more than 1 seconds of CPU time"):
        texts.matcher(COSTLY)


def test_the_clock_on_the_wall_bounds_the_rest(
    texts: JsonConstraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts.matcher({"type": "null"})
    monkeypatch.setattr(process_module, "WALL_SECONDS", 0.0)
    with pytest.raises(InputError, match="costs too much: more than 0 seconds"):
        texts.matcher(COSTLY)
    assert process(texts).returncode is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(.*a.{20})$"},
        {"type": "string", "pattern": "^([a-z]{1,100} ){1,1000}$"},
        {"type": "string", "pattern": r"^(\p{L}|\p{N}|\w){5,5000}$"},
        {"type": "string", "minLength": 10**6, "maxLength": 10**9},
        {"type": "array", "items": {"type": "array", "minItems": 1000}, "minItems": 10**6},
        {"anyOf": [{"type": "integer", "minimum": n * 7919} for n in range(500)]},
        {"type": "number", "multipleOf": 0.9973},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
    ],
)
def test_what_is_not_refused_stays_small_while_it_grows(
    texts: JsonConstraint, schema: dict[str, Any]
) -> None:
    before = system.resident_memory(os.getpid())
    go_on(texts.matcher(schema), random.Random(1), 1000)
    after = system.resident_memory(os.getpid())
    assert before is None or after is None or after - before < 200e6


def test_a_schema_is_tried_once(texts: JsonConstraint) -> None:
    expected = go_on(texts.matcher(PERSON), random.Random(5), 60)
    process(texts).kill()
    process(texts).wait()
    assert go_on(texts.matcher(PERSON), random.Random(5), 60) == expected
    assert texts._helper is not None and not texts._helper.alive
    for index in range(MAX_REMEMBERED_SCHEMAS):
        texts.matcher({"const": index})  # in a new process
    assert texts._helper.alive and len(texts._messages) == MAX_REMEMBERED_SCHEMAS


def test_texts_at_once(texts: JsonConstraint) -> None:
    expected = [go_on(texts.matcher(PERSON), random.Random(seed), 80) for seed in range(4)]
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        found[seed] = go_on(texts.matcher(PERSON), random.Random(seed), 80)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


def test_the_process_ends_with_the_model() -> None:
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        assert vlm.ask(SCENE, "?", json_schema={"const": "x"}).text == '"x"'
        decoder: Any = vlm._engine._decoder  # the protocol has no such parts
        (texts,) = decoder._constraints._made.values()
        child = process(texts)
        assert child.poll() is None
        del texts
    assert child.returncode is not None


ORPHAN = """
import os, sys
from edgevlm.runtimes.json_schema.constraint import JsonConstraint
texts = JsonConstraint([bytes([n]) for n in range(256)] + [b""], [256], lambda text: list(text.encode()))
texts.matcher({"const": 1}).allowed_tokens()
child = texts._helper._process
print(child.pid, flush=True)
os._exit(7)
"""


@LINUX
def test_the_process_ends_with_its_parent_and_opens_no_socket(texts: JsonConstraint) -> None:
    texts.matcher({"const": 1})
    descriptors = Path(f"/proc/{process(texts).pid}/fd")
    kinds = [os.readlink(one) for one in descriptors.iterdir()]
    assert kinds and not [kind for kind in kinds if kind.startswith("socket")]
    ended = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == 7
    # The pipe to it is closed: its stdin has ended. Somebody else is its parent and may not collect it.
    status = Path(f"/proc/{int(ended.stdout)}/stat")
    for _ in range(500):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX":
            break
        threading.Event().wait(0.02)
    else:
        pytest.fail("it runs on")


@POSIX
def test_signals_to_the_whole_group_do_not_end_it(texts: JsonConstraint) -> None:
    texts.matcher(PERSON)
    child = process(texts)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child.send_signal(number)
        texts.matcher({"const": str(number)})
    assert child.poll() is None and process(texts) is child


def test_a_read_only_or_missing_working_directory_does_not_matter(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        f"import os, sys; sys.path = [p for p in sys.path if p]; os.rmdir({str(gone)!r});"
        + ORPHAN.replace("os._exit(7)", "print('well')")
        .strip()
        .replace("\n", ";")
        .replace("import os, sys;", "")
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=gone,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.stdout.endswith(b"well\n")


def test_where_no_process_can_be_started(
    texts: JsonConstraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "COMMAND", ("/nowhere/python",))
    with pytest.raises(LoadError, match="child process, and none can be started"):
        texts.matcher({"const": 1})
    monkeypatch.setattr(process_module, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(LoadError, match="does not start"):
        texts.matcher({"const": 1})
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(LoadError, match="no Python interpreter"):
        texts.matcher({"const": 1})


class Panic(BaseException):
    """A panic of Rust as it arrives in Python."""


def test_a_panic_while_an_answer_is_written_is_an_error_of_the_request(
    texts: JsonConstraint,
) -> None:
    class Matcher:
        def compute_bitmask(self) -> bytes:
            raise Panic("called `Option::unwrap()` on a `None` value in /home/somebody/src/lib.rs")

        consume_token = is_error = compute_bitmask

    with pytest.raises(InputError, match=r"llguidance fails on it \(Panic\)$"):
        JsonMatcher(Matcher(), END + 1, END).allowed_tokens()
    with pytest.raises(InputError, match="cannot continue the text"):
        texts.matcher({"const": 1}).accept(PIECES.index(b"x"))
