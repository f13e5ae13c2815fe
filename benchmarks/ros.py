"""The ROS 2 node with a camera of 30 images a second for a minute; then the camera is killed.

    python scripts/install_robots.py
    python -m benchmarks.ros [SECONDS [FACTOR]]

Camera, node and listener are processes of their own. Images are RGB, 320 x 240
unless another factor of 160 x 120 is given. The node runs twice: with the
built-in model, and with a model that takes a third of a second longer.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.robots.ros_processes import (
    NEXT_DOMAIN,
    PYTHON,
    REPOSITORY,
    Process,
    start_node,
    start_peer,
)

TOPIC = "/camera/image"
MAX_AGE = 1.0
OPTIONS: dict[str, Any] = {
    "question": "What color is it?",
    "choices": ["red", "green", "blue"],
    "image_topic": TOPIC,
    "max_age": MAX_AGE,
    "threads": 1,
}


def memory(process: Process) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{process.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure(name: str, seconds: float, factor: int, script: Path | None) -> None:
    """Print figures of one node."""
    domain = next(NEXT_DOMAIN)
    with (
        start_node(domain, script=script, **OPTIONS) as node,
        start_peer("listener", domain) as listener,
        start_peer("camera", domain) as camera,
    ):
        camera.send(camera={"topic": TOPIC, "rate": 30, "size": factor})
        for _ in range(5):
            listener.wait(lambda line: "answer" in line)
        before, begin = memory(node), time.time()
        listener.lines.clear()
        end = begin + seconds
        while time.time() < end:
            listener.wait(lambda line: "answer" in line)
        after = memory(node)
        found = [line for line in listener.lines if "answer" in line]
        camera.end(signal.SIGKILL)
        told = listener.wait(lambda line: line.get("level") == 2)
        code = node.end(signal.SIGINT)
    images = {round(line["published"], 6): line for line in camera.drain() if "published" in line}
    wrong = sum(
        line["answer"]["value"] != images[round(line["answer"]["frame_time"], 6)]["color"]
        for line in found
    )
    last = max(images)
    shown = sum(begin <= stamp <= end for stamp in images)
    received = len(found) + sum(line["answer"]["dropped"] for line in found[1:])
    ages = np.percentile(
        [line["at"] - line["answer"]["frame_time"] for line in found], [50, 95, 100]
    )
    dropped = [line["answer"]["dropped"] for line in found]
    print(f"{name}, {seconds:g} s, {160 * factor} x {120 * factor}")
    print(f"  images published              {shown}, {received} of them received")
    print(f"  answers                       {len(found)}, {wrong} of them wrong")
    print(f"  images dropped for an answer  mean {np.mean(dropped):.1f}, at most {max(dropped)}")
    print(
        f"  age at the listener           p50 {ages[0]:.3f} s, p95 {ages[1]:.3f} s, max {ages[2]:.3f} s"
    )
    print(f"  memory of the node            {before:.1f} MB, at the end {after:.1f} MB")
    print(
        f"  killed camera told            {told['at'] - last:.2f} s after its last image "
        f"(max_age {MAX_AGE:g} s)"
    )
    print(f"  exit code after SIGINT        {code}", flush=True)


def main() -> None:
    if not PYTHON.is_file():
        sys.exit("needs ROS 2: python scripts/install_robots.py")
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    factor = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    measure("built-in model", seconds, factor, None)
    measure("slow model", seconds, factor, REPOSITORY / "tests" / "robots" / "slow_node.py")


if __name__ == "__main__":
    main()
