"""The command line, run as a shell runs it: exit codes, what goes to which stream, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from edgevlm import VLM, Bundle, __version__
from edgevlm.cli import COMMANDS
from tests.support.oracle import BUNDLES

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPES = str(REPOSITORY / "examples" / "shapes.png")
SCENE = str(REPOSITORY / "examples" / "scene.png")
SQUARE = str(REPOSITORY / "examples" / "square.png")
TINY = str(BUNDLES / "smolvlm")
PROGRAM = [sys.executable, "-m", "edgevlm"]


def edgevlm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("edgevlm")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"edgevlm {__version__}\n"


def test_help_lists_every_command() -> None:
    done = edgevlm("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name, command in COMMANDS.items():
        assert name in done.stdout
        assert command.summary in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples(command: str) -> None:
    done = edgevlm(command, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"usage: edgevlm {command}" in done.stdout
    assert f"\n  edgevlm {command}" in done.stdout.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "a command is missing"),
        (["--verbose"], "'--verbose'"),
        (["look"], "no command 'look'"),
        (["ask"], "QUESTION"),
        (["ask", ""], "argument QUESTION: must not be empty"),
        (["ask", "  "], "argument QUESTION: must not be empty"),
        (["ask", "Q", "--max-tokens", "0"], "max_tokens must be from 1 to"),
        (["ask", "Q", "--max-tokens", "many"], "must be an integer, is 'many'"),
        (["ask", "Q", "--max-tokens", "99999999999999999999"], "max_tokens must be from 1 to"),
        (["ask", "Q", "--temperature", "-1"], "temperature must be from 0"),
        (["ask", "Q", "--temperature", "nan"], "temperature must be a number, is nan"),
        (["ask", "Q", "--seed", "-1"], "seed must be from 0 to"),
        (["ask", "Q", "--threads", "0"], "must be a positive integer, is 0"),
        (["ask", "Q", "--device", "abacus"], "invalid choice: 'abacus'"),
        (["ask", "Q", "--kv", "q4_0"], "invalid choice: 'q4_0'"),
        (["ask", "Q", "--model"], "--model"),
        (["ask", "Q", "--max", "3"], "--max"),
        (["chat", "--json"], "--json"),
        (["inspect"], "BUNDLE"),
        (["demo", "--port", "0"], "must be from 1 to 65535, is 0"),
        (["verify", "one", "two"], "two"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], complaint: str) -> None:
    done = edgevlm(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ask", "Q", "missing.png"], "no image at 'missing.png'"),
        (["ask", "Q", __file__], "cannot be read as an image"),
        (["ask", "Q", "--model", "no-such-model"], "no model 'no-such-model'"),
        (["ask", "Q", "--model", "."], "is not a bundle"),
        (["ask", "Q", "--max-tokens", "1000000"], "1000000"),
        (["detect", "key", SQUARE, "--point"], "no question for the task point"),
        (["detect", "key", SQUARE, "--draw", "found.foo"], "no image format has this ending"),
        (["chat", "missing.png"], "no image at 'missing.png'"),
        (["inspect", "no-such-model"], "no model 'no-such-model'"),
        (["verify", "no-such-model"], "no model 'no-such-model'"),
    ],
)
def test_failure_exits_1_with_one_message(arguments: list[str], complaint: str) -> None:
    done = edgevlm(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.splitlines()[-1].startswith("edgevlm: error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Q", "--model", TINY],
        ["chat", "--model", TINY],
        ["serve", "--port", "0", "--model", TINY],
        ["eval", TINY, "--items", "1"],
        ["bench", TINY, "--device", "cpu", "--rounds", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_loads_a_model_takes_the_type_of_its_kv_cache(
    arguments: list[str],
) -> None:
    """The heads of this model are too small for q8_0, which shows that the option arrives."""
    done = edgevlm(*arguments, "--kv", "q8_0")
    assert done.returncode == 1
    assert "a KV cache in q8_0 needs heads whose size is a multiple of 32" in done.stderr


def test_ask_answers_on_stdout_and_names_the_default_model_on_stderr() -> None:
    done = edgevlm("ask", "What color is the shape at the top left?", SHAPES)
    assert done.returncode == 0
    assert done.stdout == "red\n"
    assert done.stderr.count("edgevlm-nano") == 1
    assert len(done.stderr.splitlines()) == 1


def test_ask_about_another_image_gives_another_answer() -> None:
    answers = [edgevlm("ask", "What is in the picture?", path).stdout for path in (SHAPES, SQUARE)]
    assert "" not in answers
    assert answers[0] != answers[1]


def test_ask_with_a_named_model_says_nothing_else() -> None:
    done = edgevlm("ask", "What color is it?", SQUARE, "--model", "edgevlm-nano")
    assert (done.returncode, done.stderr) == (0, "")


def test_ask_stats_go_to_stderr() -> None:
    done = edgevlm("ask", "What color is it?", SQUARE, "--stats")
    assert done.stdout.count("\n") == 1
    for step in ("load", "prepare", "encode", "prefill", "decode", "total", "memory"):
        assert f"\n{step} " in done.stderr


def test_ask_json_is_one_object() -> None:
    streamed = edgevlm("ask", "What is in the picture?", SHAPES)
    done = edgevlm("ask", "What is in the picture?", SHAPES, "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "finish_reason", "stats", "model"}
    assert answer["text"] + "\n" == streamed.stdout
    assert answer["finish_reason"] == "stop"
    assert answer["model"] == "edgevlm-nano"
    assert answer["stats"]["encoded_tiles"] == 1
    assert answer["stats"]["tokens_per_second"] > 0


def test_ask_within_a_time() -> None:
    done = edgevlm("ask", "What is in the picture?", SQUARE, "--within", "600", "--json")
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "stop"
    assert answer["stats"]["deadline"]["within"] == 600
    late = edgevlm("ask", "What is in the picture?", SQUARE, "--within", "0.001")
    assert (late.returncode, late.stdout) == (1, "")
    assert "0.001 s of this request" in late.stderr


def test_detect_prints_boxes_as_the_library_finds_them(tmp_path: Path) -> None:
    with VLM.from_pretrained() as vlm:
        (box,) = vlm.detect(SCENE, "key")
    done = edgevlm("detect", "key", SCENE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{' '.join(map(str, box.pixels()))} {box.probability:.2f} key\n"
    drawn = tmp_path / "found.png"
    found = json.loads(edgevlm("detect", "key", SCENE, "--json", "--draw", str(drawn)).stdout)
    assert found["points"] == [] and found["model"] == "edgevlm-nano"
    assert found["boxes"][0]["pixels"] == list(box.pixels())
    with Image.open(SCENE) as before, Image.open(drawn) as after:
        assert before.size == after.size
        changed = ImageChops.difference(before.convert("RGB"), after).getbbox()
    assert changed is not None
    left, top, right, bottom = box.pixels()
    assert changed[0] <= left <= changed[0] + 8 and changed[2] - 8 <= right <= changed[2]
    assert changed[1] <= top <= changed[1] + 8 and changed[3] - 8 <= bottom <= changed[3]


def test_detect_that_finds_nothing_prints_nothing() -> None:
    done = edgevlm("detect", "house", SCENE)
    assert (done.returncode, done.stdout) == (0, "")


def test_ask_stops_at_max_tokens() -> None:
    done = edgevlm("ask", "What is in the picture?", SHAPES, "--json", "--max-tokens", "2")
    assert json.loads(done.stdout)["finish_reason"] == "length"


def test_ask_about_two_images_and_about_none() -> None:
    for images, tiles in (([SHAPES, SQUARE], 2), ([], 0)):
        done = edgevlm("ask", "What color is it?", *images, "--json", "--max-tokens", "3")
        assert json.loads(done.stdout)["stats"]["encoded_tiles"] == tiles


@pytest.mark.slow
def test_ask_samples_by_its_seed() -> None:
    # Random weights, which are unsure of every token.
    model = ("--model", str(BUNDLES / "smolvlm"), "--max-tokens", "12")

    def sampled(seed: str) -> str:
        options = (*model, "--temperature", "50", "--seed", seed)
        return edgevlm("ask", "What is in the picture?", SQUARE, *options).stdout

    assert sampled("1") == sampled("1")
    assert len({sampled(seed) for seed in "1234"}) > 1


def test_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [*PROGRAM, "inspect", "edgevlm-nano", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_interrupt_exits_130_without_a_traceback() -> None:
    with subprocess.Popen(
        [*PROGRAM, "chat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell has what it runs in the background ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"What is this?\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130


def test_chat_takes_turns_from_a_pipe() -> None:
    turns = ("What color is it?", "What shape is it?")
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        chat = vlm.chat()
        answers = [chat.send(turns[0], images=[SQUARE]).text, chat.send(turns[1]).text]
    done = edgevlm("chat", SQUARE, stdin="\n\n".join(turns) + "\n/quit\nMore?\n")
    assert (done.returncode, done.stdout.splitlines()) == (0, answers)
    assert answers[0] == "green"
    assert len(done.stderr.splitlines()) == 1


def test_chat_commands() -> None:
    turns = (
        f"/image {SHAPES}\nHow many shapes are there?\n/new\n/image {SQUARE}\nWhat color is it?\n"
    )
    done = edgevlm("chat", stdin=turns)
    assert (done.returncode, done.stdout) == (0, "3\ngreen\n")


def test_chat_saves_and_resumes(tmp_path: Path) -> None:
    saved, missing = tmp_path / "a talk.zip", tmp_path / "missing" / "talk.zip"
    turns = f"What color is it?\n/save\n/save {missing}\n/save {saved}\n"
    done = edgevlm("chat", SQUARE, stdin=turns)
    assert (done.returncode, done.stdout) == (1, "green\n")
    assert "/save needs the name of a file" in done.stderr
    assert f"cannot write {missing}" in done.stderr
    resumed = edgevlm("chat", "--resume", str(saved), stdin="What shape is it?\n")
    assert (resumed.returncode, resumed.stdout) == (0, "square\n")
    refused = edgevlm("chat", "--resume", str(missing), stdin="What shape is it?\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"cannot read {missing}" in refused.stderr


def test_chat_goes_on_after_an_error() -> None:
    turns = f"/image missing.png\n/paint\n/image {SQUARE}\nWhat color is it?\n"
    done = edgevlm("chat", stdin=turns)
    assert (done.returncode, done.stdout) == (1, "green\n")
    assert "no image at 'missing.png'" in done.stderr
    assert "no command /paint" in done.stderr


def test_terminal_without_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Bündel"
    shutil.copytree(Bundle.open("edgevlm-nano").folder, folder)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = edgevlm("inspect", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "B?ndel" in done.stdout


def test_inspect() -> None:
    text = edgevlm("inspect", "edgevlm-nano")
    assert text.returncode == 0
    assert "decoder.q8_0.gguf" in text.stdout
    manifest = json.loads(edgevlm("inspect", "edgevlm-nano", "--json").stdout)
    assert manifest["name"] == "edgevlm-nano"


def test_verify_accepts_the_built_in_model() -> None:
    done = edgevlm("verify", "edgevlm-nano")
    assert (done.returncode, done.stderr) == (0, "")
    assert "golden tokens" in done.stdout
    assert "WRONG" not in done.stdout


def test_verify_finds_an_altered_file(tmp_path: Path) -> None:
    source = json.loads(edgevlm("inspect", "edgevlm-nano", "--json").stdout)
    folder = tmp_path / "bundle"
    shutil.copytree(Bundle.open("edgevlm-nano").folder, folder)
    entry = next(iter(source["decoder"]["files"].values()))
    path = folder / entry["name"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = edgevlm("verify", str(folder))
    assert done.returncode == 1
    assert f"{entry['name']} was altered" in done.stderr


@pytest.mark.parametrize(
    ("redirections", "code", "out", "said"),
    [
        ("<&-", 0, "green\n", ""),
        ("2>&-", 0, "green\n", ""),
        (">&-", 1, "", "edgevlm: error: cannot write the output: Bad file descriptor\n"),
        (">/dev/full", 1, "", "edgevlm: error: cannot write the output: No space left on device\n"),
        ("<&- 2>&-", 0, "green\n", ""),
        (">&- 2>&- <&-", 1, "", ""),
    ],
)
def test_closed_and_full_streams(redirections: str, code: int, out: str, said: str) -> None:
    command = f"{sys.executable} -m edgevlm ask 'What color is it?' {SQUARE} --model edgevlm-nano"
    done = subprocess.run(
        ["sh", "-c", f"{command} {redirections}"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, said)


def test_chat_without_an_input_ends(tmp_path: Path) -> None:
    command = f"{sys.executable} -m edgevlm chat --model edgevlm-nano <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_chat_drops_its_oldest_turns_if_asked_to() -> None:
    turns = "".join(f"{'What color is it? ' * 20}\n" for _ in range(20))
    arguments = ("chat", SQUARE, "--model", "edgevlm-nano", "--max-tokens", "4")
    refused = edgevlm(*arguments, stdin=turns)
    assert refused.returncode == 1
    assert "larger context_length" in refused.stderr
    done = edgevlm(*arguments, "--overflow", "drop_images", stdin=turns)
    assert done.returncode == 0
    assert re.search(r"edgevlm: dropped the oldest: \d+ turns, 1 images", done.stderr)
