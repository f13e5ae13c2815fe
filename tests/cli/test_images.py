"""Images as a shell, a pipe and a terminal name them: every spelling that works for a path works there."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.cli.images import read_image_arguments, split_image_names
from edgevlm.errors import InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SQUARE = EXAMPLES / "square.png"
URI = "data:image/png;base64," + base64.b64encode(SQUARE.read_bytes()).decode()
posix = pytest.mark.skipif(os.name == "nt", reason="backslashes are Windows' own there")

NAMES = st.text(
    st.characters(exclude_characters="/\0\n\r", exclude_categories=["Cs", "Cc", "Z"]), min_size=1
) | st.sampled_from(["a b.png", "it's.png", 'a "b".png', "a\\b.png", "$HOME.png", "a#b.png", "~"])


@posix
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_what_a_shell_would_take_apart(names: list[str]) -> None:
    paths = [f"/no/such folder/{name}" for name in names]
    quoted = " ".join(map(shlex.quote, paths))
    escaped = "  ".join("".join("\\" + c if c in " '\"\\" else c for c in path) for path in paths)
    assert split_image_names(quoted + " ") == paths
    assert split_image_names(f"\t{escaped}") == paths
    assert split_image_names(
        f'"{paths[0]}"'.replace("\\", "\\\\") if '"' not in paths[0] else quoted
    )


@pytest.mark.parametrize("name", ["a b.png", "it's.png", "'quoted'.png", "a\\ b.png", "#1.png"])
def test_a_file_of_that_very_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if os.name == "nt" and "\\" in name:
        pytest.skip("no such name on Windows")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Path(name).touch()
    assert split_image_names(f" {name} ") == [name]
    assert split_image_names(f"~/{name}") == [f"~/{name}"]
    url = f"file://{tmp_path.as_posix()}/{name}"
    assert split_image_names(url) == [url]


def test_windows_paths_keep_their_backslashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.cli.images.os.name", "nt")
    assert split_image_names(r"C:\Users\me\a.png") == [r"C:\Users\me\a.png"]
    assert split_image_names(r'"C:\my photos\a.png" D:\b.png') == [
        r"C:\my photos\a.png",
        r"D:\b.png",
    ]


def test_other_texts() -> None:
    assert split_image_names("a.png  b.png") == ["a.png", "b.png"]
    assert split_image_names("it's gone.png") == ["it's gone.png"]
    assert split_image_names(f" {URI} ") == [URI]
    assert split_image_names("data:image/png;base64,AAAA BBBB") == [
        "data:image/png;base64,AAAA BBBB"
    ]
    assert split_image_names("x" * 100_000) == ["x" * 100_000]
    assert split_image_names("file:///a%20b.png file:///c.png") == [
        "file:///a%20b.png",
        "file:///c.png",
    ]
    with pytest.raises(InputError, match="/image needs the path"):
        split_image_names("  ")
    with pytest.raises(InputError, match="'-' cannot be an image here"):
        split_image_names("a.png -")


def test_arguments_are_left_to_the_shell() -> None:
    names = ["a b.png", "'a'.png", URI]
    assert read_image_arguments(names) == names
    with pytest.raises(InputError, match="read once"):
        read_image_arguments(["-", "a.png", "-"])


def edgevlm(*arguments: str, stdin: bytes = b"", home: Path | None = None) -> tuple[int, str, str]:
    """A command line's exit code, stdout and stderr."""
    environment = os.environ | ({"HOME": str(home), "USERPROFILE": str(home)} if home else {})
    done = subprocess.run(
        [sys.executable, "-m", "edgevlm", *arguments],
        input=stdin,
        capture_output=True,
        env=environment,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


QUESTION = "What color is it?"


@pytest.mark.parametrize("image", ["-", SQUARE.as_uri(), URI])
def test_ask(image: str) -> None:
    code, answer, _ = edgevlm("ask", QUESTION, image, stdin=SQUARE.read_bytes())
    assert (code, answer) == (0, "green\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", QUESTION, "-"], "standard input, which is empty"),
        (["ask", QUESTION, "-", "-"], "read once"),
        (["bench", "--image", "-"], "standard input, which is empty"),
        (["chat", "-"], "'-' cannot be an image here"),
        (["ask", QUESTION, "data:image/png;base64,no"], "cannot be read as an image"),
        (["ask", QUESTION, "x" * 5000], "too long for a path"),
        (["ask", QUESTION, "file://nas/a.png"], "machine 'nas'"),
    ],
)
def test_what_cannot_be_asked_about(arguments: list[str], words: str) -> None:
    code, answer, errors = edgevlm(*arguments)
    assert (code, answer) == (1, "")
    assert words in errors
    assert len(errors) < 600
    assert "Traceback" not in errors


@posix
def test_ask_about_a_pipe_and_without_standard_input() -> None:
    program = f"{shlex.quote(sys.executable)} -m edgevlm"
    square, question = shlex.quote(str(SQUARE)), shlex.quote(QUESTION)
    for command, code, words in (
        (f"{program} ask {question} <(cat {square})", 0, "green"),
        (f"cat {square} | {program} ask {question} /dev/stdin", 0, "green"),
        (f"{program} ask {question} - <&-", 1, "which is empty"),
    ):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_chat_shows_what_a_terminal_writes_when_a_file_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()
    path = folder / "it's a square.png"
    path.write_bytes(SQUARE.read_bytes())
    spellings = [
        shlex.quote(str(path)),
        path.as_uri(),
        f"{path}  ",
        "~/my photos/it's a square.png",
    ]
    spellings += [URI, f"{path.as_uri()} {SQUARE.as_uri()}"]
    if os.name != "nt":
        spellings.append("".join("\\" + c if c in " '" else c for c in str(path)))
    turns = "".join(f"/image {spelling}\n{QUESTION}\n/new\n" for spelling in spellings)
    code, answers, errors = edgevlm("chat", stdin=turns.encode(), home=tmp_path)
    assert "error" not in errors
    assert code == 0
    assert len(answers.splitlines()) == len(spellings)
    assert answers.splitlines().count("green") >= len(spellings) - 1  # one is about two squares


@pytest.mark.parametrize(
    "bad",
    [
        "/image missing.png",
        "/image",
        "/image -",
        "/image data:image/png;base64,%%%",
        "/image " + "A" * 200_000,
        f"/image {SQUARE} missing.png",
        f"/image {SQUARE}\n/image missing.png",
        "/image \udcff.png",
    ],
    ids=lambda text: text[:40].encode("ascii", "replace").decode(),
)
def test_a_question_in_a_pipe_is_not_answered_without_its_image(bad: str) -> None:
    turns = f"{bad}\n{QUESTION}\nWhat shape is it?\n/image {SQUARE}\n{QUESTION}\n"
    code, answers, errors = edgevlm("chat", stdin=turns.encode("utf-8", "surrogateescape"))
    assert (code, answers.splitlines()) == (1, ["green"])
    assert f"'{QUESTION}' is not answered: its /image failed" in errors
    assert errors.count("is not answered") == 2
    assert all(len(line) < 400 for line in errors.splitlines())
    assert "Traceback" not in errors


def test_new_forgets_an_image_that_failed() -> None:
    turns = f"/image missing.png\n/new\n{QUESTION}\n"
    code, answers, errors = edgevlm("chat", stdin=turns.encode())
    assert code == 1
    assert len(answers.splitlines()) == 1
    assert "is not answered" not in errors


@posix
def test_chat_without_standard_input_ends() -> None:
    command = f"{shlex.quote(sys.executable)} -m edgevlm chat <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


@posix
def test_a_person_at_a_terminal_decides_what_a_failed_image_means() -> None:
    import pty

    terminal, program_side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "edgevlm", "chat"],
        stdin=program_side,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(program_side)
        os.write(terminal, f"/image missing.png\n{QUESTION}\n/quit\n".encode())
        answers, errors = process.communicate()
        os.close(terminal)
    assert process.returncode == 0
    assert b"missing.png" in errors
    assert b"is not answered" not in errors
    assert len(answers.splitlines()) == 1
