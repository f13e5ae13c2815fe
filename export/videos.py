"""Read how a checkpoint's processor in transformers prepares videos.

The classes of video processors need torchvision, so their defaults are repeated here (transformers 5.24).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transformers import PretrainedConfig

from edgevlm.errors import PromptError
from edgevlm.export.messages import one_line
from edgevlm.export.preparations import FILTERS
from edgevlm.inputs.prompt import PromptBuilder
from edgevlm.inputs.video_times import VideoTimes
from edgevlm.manifest import (
    ImageSpec,
    PromptSpec,
    Resample,
    SmartResizeTiling,
    StretchTiling,
    VideoSpec,
)

if TYPE_CHECKING:
    from edgevlm.export.checkpoint import Checkpoint

_logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 2048
"""Default limit of embeddings of a video: half of a context of 4096."""
FPS = 2.0
"""Frames in a second where a checkpoint says nothing, as in the ``qwen-vl-utils`` of Qwen's authors."""


@dataclass(frozen=True)
class FamilyVideo:
    """What a family says of videos."""

    placeholder: str
    """See `edgevlm.manifest.PromptSpec`."""
    template: str
    """See `edgevlm.manifest.PromptSpec`."""
    read: Callable[[Mapping[str, Any], PretrainedConfig, ImageSpec], VideoSpec]
    """Converts the settings of transformers' video processor; may raise ValueError, KeyError or TypeError."""
    chat_template: Callable[[str], str] = lambda source: source
    """Returns a chat template that writes videos, too, from that of the checkpoint."""


def read_qwen2(
    settings: Mapping[str, Any], config: PretrainedConfig, image: ImageSpec
) -> VideoSpec:
    """Read the settings of ``Qwen2VLVideoProcessor``, whose areas are those of a frame.

    Raises:
        ValueError: a setting has another form.
    """
    size = dict(settings.get("size") or {"shortest_edge": 128 * 28**2, "longest_edge": 768 * 28**2})
    size["shortest_edge"] = settings.get("min_pixels") or size["shortest_edge"]
    size["longest_edge"] = settings.get("max_pixels") or size["longest_edge"]
    return VideoSpec(
        tiling=_smart_resize({"patch_size": 14, **settings, "size": size}),
        frames_per_tile=_integer(settings, "temporal_patch_size", 2),
        area_of="frame",
        sampling="stride",
        fps=_rate(settings),
        min_frames=_integer(settings, "min_frames", 4),
        max_frames=_integer(settings, "max_frames", 768),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        spans="video",
        positions_per_second=getattr(config.vision_config, "tokens_per_second", None),
    )


def read_qwen3(
    settings: Mapping[str, Any], config: PretrainedConfig, image: ImageSpec
) -> VideoSpec:
    """Read the settings of ``Qwen3VLVideoProcessor``, whose areas are those of all frames together.

    Raises:
        ValueError: a setting has another form.
    """
    size = settings.get("size") or {"shortest_edge": 128 * 32**2, "longest_edge": 768 * 32**2}
    return VideoSpec(
        tiling=_smart_resize({"patch_size": 16, **settings, "size": size}),
        frames_per_tile=_integer(settings, "temporal_patch_size", 2),
        area_of="video",
        sampling="spread",
        fps=_rate(settings),
        min_frames=_integer(settings, "min_frames", 4),
        max_frames=_integer(settings, "max_frames", 768),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        spans="tiles",
    )


def read_smolvlm(
    settings: Mapping[str, Any], config: PretrainedConfig, image: ImageSpec
) -> VideoSpec:
    """Read the settings of ``SmolVLMVideoProcessor``, whose frames become one tile each.

    Raises:
        ValueError: a setting has another form.
    """
    chosen = settings.get("video_sampling") or {}
    size = settings.get("size") or chosen.get("video_size") or {"longest_edge": 4 * 364}
    side = (settings.get("max_image_size") or {"longest_edge": 364})["longest_edge"]
    if image.tile_size != (side, side):
        raise ValueError(f"max_image_size of a frame is {side}, that of an image {image.tile_size}")
    return VideoSpec(
        tiling=StretchTiling(
            (side, side), _filter(settings, 1), longest_edge=_integer(size, "longest_edge", 0)
        ),
        frames_per_tile=1,
        area_of="frame",
        sampling="inset",
        fps=float(chosen.get("fps") or settings.get("fps") or 1.0),
        min_frames=1,
        max_frames=_integer(chosen, "max_frames", 64),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        spans="tiles",
    )


def find_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the settings of the video processor, from the file that transformers takes."""
    nested = checkpoint.json("processor_config.json").get("video_processor")
    if isinstance(nested, Mapping):
        return nested
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if settings := checkpoint.json(name):
            return settings
    return {}


def plan_video(
    checkpoint: Checkpoint, video: FamilyVideo, image: ImageSpec, prompt: PromptSpec
) -> tuple[VideoSpec | None, PromptSpec]:
    """Return how videos are prepared, and the prompt with their templates.

    If the settings or the chat template are of a form that edgevlm does not know, the bundle takes no videos,
    and a warning says why.
    """
    written = dataclasses.replace(
        prompt,
        chat_template=video.chat_template(prompt.chat_template),
        video_placeholder=video.placeholder,
        video_template=video.template,
    )
    try:
        settings = find_settings(checkpoint)
        spec = video.read(settings, checkpoint.config, image)
        _check_normalization(settings, image)
        spec.check()
        _check_template(written, spec)
    except Exception as error:  # whatever settings of another form raise
        _logger.warning("the bundle will take no videos: %s", one_line(error))
        return None, prompt
    return spec, written


def _check_template(prompt: PromptSpec, spec: VideoSpec) -> None:
    """Check the templates by one question about a video.

    Raises:
        PromptError: they do not write it.
    """
    times = VideoTimes(seconds=1.0, frames=spec.frames_per_tile, times=(0.0,))
    content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    builder = PromptBuilder(dataclasses.replace(prompt, splitting=None), lambda text: [0])
    try:
        builder.build([{"role": "user", "content": content}], [(times, 1)])
    except PromptError as error:
        raise PromptError(
            f"the chat template cannot write a question about a video: {error}"
        ) from error


def _check_normalization(settings: Mapping[str, Any], image: ImageSpec) -> None:
    """Check that frames are normalized as images, which the vision graph does.

    Raises:
        ValueError: they are not.
    """
    for name, expected in (
        ("image_mean", image.normalization.mean),
        ("image_std", image.normalization.std),
    ):
        value = settings.get(name)
        if value is not None and tuple(value) != expected:
            raise ValueError(f"{name} of videos is {value}, that of images {expected}")


def _smart_resize(settings: Mapping[str, Any]) -> SmartResizeTiling:
    size = settings["size"]
    least, most = _integer(size, "shortest_edge", 0), _integer(size, "longest_edge", 0)
    factor = _integer(settings, "patch_size", 0) * _integer(settings, "merge_size", 2)
    return SmartResizeTiling(factor, least, most, _filter(settings, 3))


def _filter(settings: Mapping[str, Any], default: Literal[1, 3]) -> Resample:
    value = settings.get("resample", default)
    if value not in FILTERS:
        raise ValueError(f"resample of videos is {value!r}, it must be one of {list(FILTERS)}")
    return FILTERS[value]


def _integer(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} of videos is {value!r}, it must be a whole number from 1")
    return value


def _rate(settings: Mapping[str, Any]) -> float:
    value = settings.get("fps") or FPS
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"fps of videos is {value!r}, it must be a positive number")
    return float(value)
