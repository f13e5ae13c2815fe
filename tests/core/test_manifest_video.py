"""What a manifest says about videos."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from edgevlm.errors import BundleError
from edgevlm.manifest import Manifest, SmartResizeTiling, StretchTiling, VideoSpec
from tests.core.test_manifest import EXAMPLE, OWN_SIZE

VIDEO = VideoSpec(
    tiling=StretchTiling((64, 64), "lanczos", longest_edge=256),
    frames_per_tile=1,
    area_of="frame",
    sampling="inset",
    fps=1.0,
    min_frames=1,
    max_frames=64,
    default_max_tokens=2048,
    spans="tiles",
)
PROMPT = dataclasses.replace(
    EXAMPLE.prompt,
    video_placeholder="<video>",
    video_template="{% for time in times %}{{ time }} {{ image }}{% endfor %}",
)
STRETCHED = dataclasses.replace(EXAMPLE, prompt=PROMPT, video=VIDEO)
SMART_RESIZE = SmartResizeTiling(28, 784, 7840, "bicubic")
OF_OWN_SIZE = dataclasses.replace(
    STRETCHED,
    image=dataclasses.replace(EXAMPLE.image, tiling=SMART_RESIZE),
    vision=dataclasses.replace(EXAMPLE.vision, **OWN_SIZE),
    decoder=dataclasses.replace(EXAMPLE.decoder, positions="grid"),
    video=dataclasses.replace(
        VIDEO,
        tiling=SMART_RESIZE,
        frames_per_tile=2,
        area_of="video",
        sampling="stride",
        spans="video",
        positions_per_second=2.0,
    ),
)


def changed(example: Manifest, section: str, **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(example.to_json())
    data[section] = {**data[section], **fields}
    return data


@pytest.mark.parametrize("example", [STRETCHED, OF_OWN_SIZE], ids=["one size", "own size"])
def test_round_trip(example: Manifest) -> None:
    assert Manifest.from_json(example.to_json()) == example


def test_a_bundle_without_videos_stays_valid() -> None:
    data = json.loads(EXAMPLE.to_json())
    for name in ("video_placeholder", "video_template"):
        del data["prompt"][name]
    del data["video"]
    assert Manifest.from_dict(data).video is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames_per_tile", 3, "must be 1 or 2"),
        ("fps", 0, "must be positive"),
        ("min_frames", 0, "must be positive"),
        ("max_frames", 0, "must be at least min_frames 1"),
        ("default_max_tokens", -1, "must be positive"),
        ("area_of", "tile", "must be one of frame, video"),
        ("area_of", "video", 'can be "video" only for a smart-resize tiling'),
        ("sampling", "random", "must be one of inset, spread, stride"),
        ("spans", "frames", "must be one of tiles, video"),
        ("spans", "video", 'can be "video" only if decoder.positions is "grid"'),
        ("positions_per_second", 0, "must be positive or null"),
        ("tiling", {"kind": "crop"}, "must be one of stretch, smart-resize"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=rf"manifest\.video\.{name}.*{message}"):
        Manifest.from_dict(changed(STRETCHED, "video", **{name: value}))


def test_the_parts_fit_together() -> None:
    tile = {**dataclasses.asdict(VIDEO.tiling), "tile_size": [32, 32]}
    with pytest.raises(BundleError, match=r"video\.tiling: must make tiles of the size of image"):
        Manifest.from_dict(changed(STRETCHED, "video", tiling=tile))
    smart = dataclasses.asdict(SMART_RESIZE)
    with pytest.raises(BundleError, match=r"video\.tiling: must make tiles of the size of image"):
        Manifest.from_dict(changed(STRETCHED, "video", tiling=smart))
    without = {"video_placeholder": None, "video_template": None}
    with pytest.raises(BundleError, match=r"prompt\.video_template: must be a text"):
        Manifest.from_dict(changed(STRETCHED, "prompt", **without))
    with pytest.raises(BundleError, match=r"prompt\.video_template: must be null if"):
        Manifest.from_dict(changed(STRETCHED, "prompt", video_placeholder=None))
    with pytest.raises(BundleError, match=r"prompt\.video_template: must not be empty"):
        Manifest.from_dict(changed(STRETCHED, "prompt", video_template=""))
