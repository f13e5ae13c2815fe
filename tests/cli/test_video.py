"""``edgevlm ask --video`` and videos in messages, with the committed SmolVLM bundle, told of videos."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from edgevlm import VLM, InputError, PromptTile
from edgevlm.cli import main
from edgevlm.manifest import Manifest, StretchTiling, VideoSpec
from tests.support.oracle import BUNDLES

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'video' %}<video>{% elif part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<end_of_utterance>{% endfor %}Assistant:"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "smolvlm"
    shutil.copytree(BUNDLES / "smolvlm", folder)
    manifest = Manifest.load(folder)
    assert manifest.image.tile_size is not None
    changed = dataclasses.replace(
        manifest,
        prompt=dataclasses.replace(
            manifest.prompt,
            chat_template=CHAT_TEMPLATE,
            video_placeholder="<video>",
            video_template="{{ frames }} of {{ seconds }}:{% for time in times %}{{ time }} {{ image }}"
            "{% endfor %}",
        ),
        video=VideoSpec(
            tiling=StretchTiling(manifest.image.tile_size, "lanczos"),
            frames_per_tile=1,
            area_of="frame",
            sampling="inset",
            fps=2.0,
            min_frames=1,
            max_frames=64,
            default_max_tokens=2048,
            spans="tiles",
        ),
    )
    (folder / "manifest.json").write_text(changed.to_json())
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of 10 frames each."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(30):
            pixels = np.full((48, 64, 3), 8 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(file.getvalue())
    return path


def ask(bundle: Path, *arguments: str) -> int:
    return main(["ask", "What happens?", *arguments, "--model", str(bundle), "--max-tokens", "4"])


def test_ask(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(bundle, "--video", str(clip), "--json") == 0
    assert json.loads(capsys.readouterr().out)["stats"]["encoded_tiles"] == 6, "two in a second"
    assert ask(bundle, "--video", str(clip), "--json", "--frames", "4") == 0
    assert json.loads(capsys.readouterr().out)["stats"]["encoded_tiles"] == 4
    assert ask(bundle, "--video", str(clip), "--json", "--fps", "1") == 0
    assert json.loads(capsys.readouterr().out)["stats"]["encoded_tiles"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "3"], "--frames and --fps are about a video; add --video FILE"),
        (["b.png", "--video", "a.mp4"], "leave out one of them"),
        (["--video", "a.mp4"], "no video at 'a.mp4': no such file"),
        (["--video", __file__], "cannot be decoded as a video"),
    ],
)
def test_wrong_arguments(
    bundle: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(bundle, *arguments) != 0
    assert message in capsys.readouterr().err


def test_a_model_without_videos(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(BUNDLES / "smolvlm", "--video", str(clip)) != 0
    assert "this model takes no video" in capsys.readouterr().err


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    assert "2 frames in a second, 1 in a tile" in capsys.readouterr().out


def test_a_video_in_messages(bundle: Path, clip: Path) -> None:
    """It may stand beside images, and its text is the template's."""
    video = {"type": "video", "path": str(clip), "frames": 3}
    image = {"type": "image", "image": np.full((9, 9, 3), 50, np.uint8), "detail": "low"}
    content = [video, image, {"type": "text", "text": "<video> What?"}]
    with VLM.from_pretrained(bundle) as vlm:
        prompt = vlm.prompt([{"role": "user", "content": content}])
        tiles = [part for part in prompt.parts if isinstance(part, PromptTile)]
        assert [tile.image for tile in tiles] == [0, 0, 0, 1]
        levels = [float(tile.pixels.mean()) for tile in tiles]
        assert levels == pytest.approx([0, 8 * 14, 8 * 29, 50], abs=6)
        texts = [part.text for part in prompt.parts if not isinstance(part, PromptTile)]
        assert texts[0].endswith("3 of 3.0:0.0 ")
        assert "<video> What?" in texts[-1], "a user cannot spell a video"
        answer = vlm.generate([{"role": "user", "content": content}], max_tokens=2)
        assert answer.stats.encoded_tiles == 4
        with pytest.raises(InputError, match="frames must be an integer"):
            vlm.generate([{"role": "user", "content": [{**video, "frames": "3"}]}])
        with pytest.raises(InputError, match="needs its video under 'video', 'path' or 'url'"):
            vlm.generate([{"role": "user", "content": [{"type": "video"}]}])
