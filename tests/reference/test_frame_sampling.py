"""The frames of a video file are those that transformers chooses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from edgevlm.inputs.frame_sampling import VideoLength, choose_frames
from edgevlm.manifest import SmartResizeTiling, VideoSpec

TORCHVISION = Path(sys.prefix) / "torchvision"
Rule = Literal["inset", "stride", "spread"]
MAX_FRAMES = 64


def video_spec(rule: Rule) -> VideoSpec:
    return VideoSpec(
        tiling=SmartResizeTiling(28, 28 * 28, 280 * 280, "bicubic"),
        frames_per_tile=1 if rule == "inset" else 2,
        area_of="frame",
        sampling=rule,
        fps=2.0,
        min_frames=4,
        max_frames=MAX_FRAMES,
        default_max_tokens=2048,
        spans="tiles",
    )


def draw_requests(rule: Rule) -> list[dict[str, Any]]:
    """Videos of 1 to 20,000 frames at usual rates, with a number of frames or a rate."""
    rng = random.Random(rule)
    requests: list[dict[str, Any]] = []
    for _ in range(600):
        total = int(10 ** rng.uniform(0, 4.3))
        fps = rng.choice([1, 5, 10, 15, 23.976023976023978, 25, 29.97002997002997, 30, 60])
        rate = rng.choice([0.1, 0.5, 1, 2, 3, 7.5])
        count = rng.randint(1, MAX_FRAMES)
        if rule == "inset":  # both are needed there
            options = {"num_frames": count, "fps": rate}
        else:
            limits = {"max_frames": MAX_FRAMES} if rule == "stride" else {}
            options = rng.choice([{"num_frames": count}, {"fps": rate, **limits}])
        requests.append({"rule": rule, "total": total, "fps": fps, "options": options})
    return requests


@pytest.mark.skipif(not TORCHVISION.is_dir(), reason="needs `make test`'s torchvision")
@pytest.mark.parametrize("rule", ["inset", "stride", "spread"])
def test_chosen_frames(rule: Rule, tmp_path: Path) -> None:
    requests = draw_requests(rule)
    files = [tmp_path / "requests.json", tmp_path / "found.json"]
    files[0].write_text(json.dumps(requests))
    script = Path(__file__).with_name("video_frames.py")
    subprocess.run(
        [sys.executable, str(script), *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(TORCHVISION)},
        check=True,
        capture_output=True,
    )
    compared = 0
    for request, expected in zip(requests, json.loads(files[1].read_text()), strict=True):
        options = request["options"]
        found = choose_frames(
            VideoLength(request["total"], request["fps"]),
            video_spec(rule),
            frames=options.get("num_frames"),
            fps=options.get("fps"),
        )
        assert found == sorted(set(found))
        assert found[0] >= 0
        assert found[-1] < request["total"]
        if isinstance(expected, str) or not expected:
            continue  # transformers refuses
        if rule == "spread" and len(expected) > MAX_FRAMES:
            continue  # its own limit is 768
        # Repeated where it asks for more frames than there are, and one beyond the end where it rounds up.
        expected = sorted(index for index in set(expected) if index < request["total"])
        assert len(found) == len(expected), request
        for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            # A whole number may be rounded down in PyTorch, which depends on the vectors of the CPU.
            whole = rule == "stride" and place * request["total"] % len(found) == 0
            assert ours == theirs or (whole and ours == theirs + 1), request
        compared += 1
    assert compared > 400
