"""The dataflow of dora: camera, model and sink, with dora of PyPI."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.robots.ros_processes import LIMIT, PYTHON, REPOSITORY

DORA = PYTHON.with_name("dora")
DATAFLOW = REPOSITORY / "demo" / "dora"

pytestmark = pytest.mark.skipif(
    not DORA.is_file(),
    reason="needs dora of PyPI: python scripts/install_robots.py (Linux on x86-64, Python 3.11)",
)


def test_the_dataflow(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(REPOSITORY / "examples" / "square.png", images)
    for path in DATAFLOW.glob("*.*"):
        shutil.copy(path, tmp_path)
    text = (DATAFLOW / "dataflow.yml").read_text(encoding="utf-8")
    for old, new in (("../../examples", "images"), ("MAX_AGE: 2", "MAX_AGE: 60")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "dataflow.yml").write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{DORA.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    output: queue.Queue[str | None] = queue.Queue()
    with subprocess.Popen(
        [DORA, "run", "dataflow.yml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        stdout = process.stdout
        assert stdout is not None

        def read() -> None:
            for line in stdout:
                output.put(line)
            output.put(None)

        thread = threading.Thread(target=read)
        thread.start()
        answers: list[dict[str, Any]] = []
        lines: list[str] = []
        try:
            while len(answers) < 5:
                line = output.get(timeout=LIMIT)
                assert line is not None, "".join(lines)
                lines.append(line)
                if found := re.search(r"stdout\W+sink: (\{.*\})", line):
                    answers.append(json.loads(found[1]))
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 0, "".join(lines)
        finally:
            process.kill()
            thread.join()
    assert {(one["question"], one["value"]) for one in answers} == {("What color is it?", "green")}
    times = [one["frame_time"] for one in answers]
    assert times == sorted(set(times))
    assert all(one["probabilities"]["green"] > 0.9 and one["age"] > 0 for one in answers)
    while (line := output.get(timeout=LIMIT)) is not None:
        lines.append(line)
    assert "Traceback" not in "".join(lines)
