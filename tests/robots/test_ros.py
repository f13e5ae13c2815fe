"""The ROS 2 node between processes: a camera, the node and a listener, with ROS 2 of PyPI."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.robots.ros_processes import (
    NEXT_DOMAIN,
    PACKAGE,
    PYTHON,
    REPOSITORY,
    Process,
    start_node,
    start_peer,
)

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(),
    reason="needs ROS 2 of PyPI: python scripts/install_robots.py (Linux on x86-64, Python 3.11)",
)

TOPIC = "/camera/image"
QUESTION = "What color is it?"
COLORS = ["red", "green", "blue"]
ENCODINGS = [
    ("rgb8", False),
    ("bgr8", False),
    ("rgba8", False),
    ("bgra8", False),
    ("8UC3", False),
    ("8UC4", False),
    ("rgb16", False),
    ("rgb16", True),
    ("bgr16", False),
    ("bgra16", True),
    ("mono8", False),
    ("mono16", True),
    ("8UC1", False),
    ("yuv422", False),
    ("uyvy", False),
    ("yuv422_yuy2", False),
    ("yuyv", False),
    ("bayer_rggb8", False),
    ("bayer_bggr8", False),
    ("bayer_gbrg8", False),
    ("bayer_grbg8", False),
]
"""Encodings, and whether their bytes are big-endian."""


class Transition:
    """Numbers of ``lifecycle_msgs/Transition``."""

    CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


class Graph(NamedTuple):
    """Processes of one ROS domain."""

    domain: int
    node: Process
    listener: Process


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    """The node without a limit of colors, and a listener."""
    domain = next(NEXT_DOMAIN)
    options: dict[str, Any] = {"question": QUESTION, "max_tokens": 8, "max_age": 2.0, "threads": 1}
    with (
        start_node(domain, image_topic=TOPIC, **options) as node,
        start_peer("listener", domain) as listener,
    ):
        line = listener.wait(lambda line: "level" in line)
        assert line["level"] > 0 and line["values"]["frames"] == "0"
        yield Graph(domain, node, listener)
        # Ctrl-C: no traceback, and success.
        assert node.end(signal.SIGINT) == 0, node.stderr
        assert "Traceback" not in node.stderr


def published(camera: Process, drain: bool = False) -> dict[float, dict[str, Any]]:
    """Return what a camera has told, by the stamps of its images; with `drain`, after its end, all."""
    lines = camera.drain() if drain else camera.lines
    return {round(line["published"], 6): line for line in lines if "published" in line}


def answers(listener: Process) -> list[dict[str, Any]]:
    return [line["answer"] for line in listener.lines if "answer" in line]


def start_camera(camera: Process, listener: Process, rate: float = 30, size: int = 1) -> None:
    """Let a camera publish, and wait for an answer about one of its images, not about those of another."""
    camera.send(camera={"topic": TOPIC, "rate": rate, "size": size})
    first = camera.wait(lambda line: "published" in line)["published"]
    listener.wait(lambda line: line.get("answer", {}).get("frame_time", 0) >= first)


def test_answers_are_about_the_newest_image(graph: Graph) -> None:
    with start_peer("camera", graph.domain) as camera:
        start_camera(camera, graph.listener)
        graph.listener.lines.clear()
        for _ in range(30):
            last = graph.listener.wait(lambda line: "answer" in line)
        camera.wait(lambda line: line.get("published", 0) > last["answer"]["frame_time"])
        camera.send(camera={"topic": TOPIC, "rate": 0})
        images = published(camera)
    found = answers(graph.listener)
    shown = [images[round(one["frame_time"], 6)] for one in found]
    assert [one["value"] for one in found] == [one["color"] for one in shown]
    for (before, _), (after, answer) in itertools.pairwise(zip(shown, found, strict=True)):
        # Those that the transport lost are not counted.
        assert 0 <= answer["dropped"] <= after["index"] - before["index"] - 1
        assert answer["age"] < 2


def test_large_images_arrive_with_the_profile(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, some of 0.9 MB are lost even at this rate."""
    profile = PACKAGE / "config" / "large_images.xml"
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
    with start_peer("camera", graph.domain) as camera:
        start_camera(camera, graph.listener, rate=5, size=4)
        graph.listener.lines.clear()
        for _ in range(10):
            last = graph.listener.wait(lambda line: "answer" in line)
        camera.wait(lambda line: line.get("published", 0) > last["answer"]["frame_time"])
        images = published(camera)
    found = answers(graph.listener)
    indices = [images[round(one["frame_time"], 6)]["index"] for one in found]
    lost = [
        after - before - 1 - answer["dropped"]
        for (before, after), answer in zip(itertools.pairwise(indices), found[1:], strict=True)
    ]
    assert lost == [0] * 9


def test_a_killed_camera_is_told_and_may_come_back(graph: Graph) -> None:
    with start_peer("camera", graph.domain) as camera:
        start_camera(camera, graph.listener)
        camera.end(signal.SIGKILL)
        last = max(published(camera, drain=True))
    told = graph.listener.wait(lambda line: line.get("level") == 2 and line["at"] > last + 2.0)
    assert f"{TOPIC}, has given no frame for" in told["message"]
    assert int(told["values"]["stalls"]) >= 1
    with start_peer("camera", graph.domain) as camera:
        start_camera(camera, graph.listener)
        graph.listener.wait(lambda line: line.get("level") == 0)


def test_a_question_by_topic(graph: Graph) -> None:
    with start_peer("camera", graph.domain) as camera:
        camera.send(camera={"topic": TOPIC, "rate": 10})
        graph.listener.send(question="What shape is it?")
        line = graph.listener.wait(
            lambda line: line.get("answer", {}).get("question") == "What shape is it?"
        )
        assert line["answer"]["value"] == "square"
        graph.listener.send(question=" ")
        graph.listener.send(question=QUESTION)
        line = graph.listener.wait(lambda line: line.get("answer", {}).get("question") == QUESTION)
        assert line["answer"]["value"] in COLORS
    assert "the question ' ' is not asked" in graph.node.stderr


def ask_about(camera: Process, listener: Process, **image: Any) -> dict[str, Any]:
    """Publish an image until it is answered, since best effort may lose it; return the answer."""
    stamps: list[float] = []
    for _ in range(30):
        camera.send(image=image)
        stamps.append(camera.wait(lambda line: "published" in line)["published"])
        line = listener.look_for(
            lambda line: any(
                abs(line.get("answer", {}).get("frame_time", 0) - stamp) < 1e-6 for stamp in stamps
            ),
            seconds=2,
        )
        if line is not None:
            answer: dict[str, Any] = line["answer"]
            return answer
    pytest.fail(f"none of 30 images was answered: {listener.lines[-5:]}")


def test_all_encodings_come_through(graph: Graph) -> None:
    with start_peer("camera", graph.domain) as camera:
        for encoding, big in ENCODINGS:
            answer = ask_about(camera, graph.listener, topic=TOPIC, encoding=encoding, big=big)
            gray = encoding.startswith("mono") or encoding == "8UC1"
            assert (answer["value"] == "green") is not gray, (encoding, answer)


def test_compressed_images() -> None:
    domain = next(NEXT_DOMAIN)
    with (
        start_node(
            domain,
            image_topic=f"{TOPIC}/compressed",
            compressed=True,
            question=QUESTION,
            choices=COLORS,
        ) as node,
        start_peer("listener", domain) as listener,
        start_peer("camera", domain) as camera,
    ):
        for encoding in ("jpeg", "png"):
            answer = ask_about(camera, listener, topic=f"{TOPIC}/compressed", encoding=encoding)
            assert answer["value"] == "green"
        assert node.end(signal.SIGTERM) == 0, node.stderr
    assert "Traceback" not in node.stderr


def test_a_slow_model_drops_images_and_never_queues() -> None:
    domain = next(NEXT_DOMAIN)
    slow = REPOSITORY / "tests" / "robots" / "slow_node.py"
    options: dict[str, Any] = {"question": QUESTION, "choices": COLORS, "image_topic": TOPIC}
    with (
        start_node(domain, script=slow, **options) as node,
        start_peer("listener", domain) as listener,
        start_peer("camera", domain) as camera,
    ):
        camera.send(camera={"topic": TOPIC, "rate": 30})
        for _ in range(6):
            listener.wait(lambda line: "answer" in line)
        camera.send(camera={"topic": TOPIC, "rate": 0})
        camera.send(question="of which nothing is heard")  # after the last image
        listener.wait(lambda line: "of which" in line.get("answer", {}).get("question", ""))
        node.end(signal.SIGINT)
        camera.send(image={"topic": "/elsewhere", "encoding": "rgb8"})
    found = answers(listener)
    assert "Traceback" not in node.stderr
    assert all(one["dropped"] >= 1 for one in found[1:6])
    # Six answers, one that was begun, and one about the newest image for the new question.
    assert len(found) <= 8
    times = [one["frame_time"] for one in found]
    assert times == sorted(times)


def test_states_of_the_lifecycle_and_a_schema(tmp_path: Path) -> None:
    domain = next(NEXT_DOMAIN)
    file = tmp_path / "parameters.yaml"
    example = (PACKAGE / "config" / "path_is_clear.yaml").read_text(encoding="utf-8")
    schema = 'schema: \'{"enum": ["red", "green"]}\''
    file.write_text(example.replace('choices: ["yes", "no"]', schema), encoding="utf-8")
    assert schema in file.read_text(encoding="utf-8")
    topic = "/camera/image_raw"

    def change(listener: Process, *transitions: int) -> None:
        for transition in transitions:
            listener.send(state=transition)
            assert listener.wait(lambda line: "changed" in line)["changed"] is True

    with (
        start_node(domain, file=file, autostart=False, max_age=20.0) as node,
        start_peer("listener", domain) as listener,
        start_peer("camera", domain) as camera,
    ):
        change(listener, Transition.CONFIGURE, Transition.ACTIVATE)
        answer = ask_about(camera, listener, topic=topic, encoding="rgb8")
        assert answer["question"] == "Is the path clear?"
        assert answer["value"] in ("red", "green") and answer["finish_reason"] == "stop"
        change(listener, Transition.DEACTIVATE, Transition.ACTIVATE)
        ask_about(camera, listener, topic=topic, encoding="rgb8")
        change(listener, Transition.DEACTIVATE, Transition.CLEANUP, Transition.CONFIGURE)
        assert node.end(signal.SIGINT) == 0, node.stderr
    assert "Traceback" not in node.stderr


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"model": "/no/such/bundle"}, "the model cannot be loaded"),
        ({"max_age": -1.0}, "max_age"),
        ({"schema": "{"}, "the parameter schema is not JSON"),
        ({"choices": ["a", "a"]}, "choices must differ"),
        ({"choices": [True, False]}, "quote them"),
    ],
)
def test_wrong_parameters_end_the_node(parameters: dict[str, Any], match: str) -> None:
    with start_node(next(NEXT_DOMAIN), **parameters) as node:
        assert node.process.wait(120) == 1
        node.end(signal.SIGKILL)
    assert match in node.stderr
    assert "Traceback" not in node.stderr


def test_the_package_installs_as_ament_expects(tmp_path: Path) -> None:
    """Colcon installs it with the same setup.py; colcon itself is not run."""
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    command[3:3] = ["egg_info", "--egg-base", str(tmp_path), "build", "-b", str(tmp_path / "build")]
    subprocess.run(command, cwd=PACKAGE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shared = [name.partition("/data/")[2] for name in names if "/data/" in name]
    assert sorted(shared) == [
        "share/ament_index/resource_index/packages/edgevlm_ros",
        "share/edgevlm_ros/config/large_images.xml",
        "share/edgevlm_ros/config/path_is_clear.yaml",
        "share/edgevlm_ros/package.xml",
    ]
    assert {"edgevlm_ros/node.py", "edgevlm_ros/frame_watcher.py"} <= set(names)
