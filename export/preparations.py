"""Settings of transformers' image processors in the words of the manifest.

One table: the class of the image processor to the function that reads its settings. A setting that changes
pixels is read, or refused with its value. ``do_convert_rgb`` is not read: images are RGB before the split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformers.image_processing_backends import PilBackend
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import (
    DeepseekVLImageProcessorPil,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.export.cohere2_images import Cohere2VisionImageProcessorPil
from edgevlm.export.lfm2_images import Lfm2VlImageProcessorPil
from edgevlm.manifest import (
    AnyResolutionTiling,
    AspectGridTiling,
    CanvasTiling,
    CoveringGridTiling,
    CropTiling,
    FitTiling,
    FloorResizeTiling,
    GridTiling,
    ImageSpec,
    LongestEdgeTiling,
    Normalization,
    OwnSizeGridTiling,
    PanAndScanTiling,
    Resample,
    ScaledGridTiling,
    SliceTiling,
    SmartResizeTiling,
    StretchTiling,
    Tiling,
)

LONGEST_EDGE = 1 << 14
"""Longest side in pixels that a setting may ask for; a larger one is a mistake and would fill the memory."""
FILTERS: Mapping[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by their numbers."""
OWN_SIZE_MAX_TOKENS = 1024
"""Default limit of embeddings of an image that keeps its own size. Checkpoints allow 16384, but a context has
4096 positions by default, and the time of attention grows with the square."""


def read_image_spec(processor: PilBackend) -> ImageSpec:
    """Return how an image processor prepares images.

    Raises:
        ValueError: as of `read_tiling` and `normalization`.
    """
    spec = ImageSpec(read_tiling(processor), normalization(processor))
    # A canvas takes one entry in the prompt, so there is nothing to limit.
    if spec.tile_size is not None or spec.splits or isinstance(spec.tiling, CanvasTiling):
        return spec
    return dataclasses.replace(spec, default_max_tokens=OWN_SIZE_MAX_TOKENS)


def read_tiling(processor: PilBackend) -> Tiling:
    """Return how an image processor splits images.

    Raises:
        ValueError: edgevlm does not know the class of the image processor, or a setting has another form or
            cannot be reproduced; the message has the value.
    """
    name = type(processor).__name__.removesuffix("Pil")
    if name not in IMAGE_PROCESSORS:
        raise ValueError(
            f"the image processor is {name}; edgevlm can export {', '.join(IMAGE_PROCESSORS)}"
        )
    return _READERS[IMAGE_PROCESSORS[name]](processor)


def _read_one_tile(processor: Any) -> Tiling:
    """Read ``_preprocess`` of ``PilBackend``, or that of LLaVA, which pads to a square first."""
    _require(processor, "do_resize", True)
    pad_color = None
    if isinstance(processor, LlavaImageProcessorPil):
        pad_color = _mean_color(processor, (0, 0, 0)) if processor.do_pad else None
    elif processor.do_pad and processor.pad_size is not None:
        raise ValueError(f"pad_size is {_lengths(processor.pad_size)!r}, it must be left out")
    fixed = _keys(processor, "size") == {"height", "width"}
    crop = _read_size(processor, "crop_size") if processor.do_center_crop else None
    if fixed:
        size = _read_size(processor, "size")
        if crop not in (None, size):
            raise ValueError(f"crop_size is {crop}, it must equal size {size} or be left out")
        if pad_color is None:
            return StretchTiling(size, resample(processor))
        edge = _square(size, "size")
    else:
        edge = _read_shortest_edge(processor)
    if crop is None:
        if pad_color is None:
            raise ValueError(
                f"do_center_crop is {processor.do_center_crop!r} and size has only shortest_edge, so tiles "
                f"would differ in size; do_center_crop must be true"
            )
        crop = edge, edge
    return CropTiling(crop, resample(processor), edge, pad_color)


def _read_fit(processor: Any) -> FitTiling:
    """Read the settings of DeepSeek-VL and Janus."""
    _require(processor, "do_resize", True)
    _require(processor, "do_pad", True)
    side = _square(_read_size(processor, "size"), "size")
    min_side = _positive(processor, "min_size")
    if min_side > side:
        raise ValueError(f"min_size is {min_side}, it must not exceed the side {side} of size")
    color = _mean_color(processor, (127, 127, 127))
    return FitTiling((side, side), resample(processor), min_side, color)


def _read_any_resolution(processor: Any) -> AnyResolutionTiling:
    """Read the settings of LLaVA-NeXT and LLaVA-OneVision.

    ``do_pad`` is about batches of several images. Tiles have their size before ``do_resize`` and
    ``do_center_crop``.
    """
    if _keys(processor, "size") == {"height", "width"}:
        side = _square(_read_size(processor, "size"), "size")
    else:
        side = _read_shortest_edge(processor)
    if processor.crop_size is not None and _read_size(processor, "crop_size") != (side, side):
        raise ValueError(
            f"crop_size is {_read_size(processor, 'crop_size')}, it must equal size ({side}, {side})"
        )
    resolutions = processor.image_grid_pinpoints
    valid = isinstance(resolutions, list) and all(
        isinstance(resolution, (list, tuple))
        and len(resolution) == 2
        and all(
            type(length) is int and 0 < length <= LONGEST_EDGE and length % side == 0
            for length in resolution
        )
        for resolution in resolutions
    )
    if not resolutions or not valid:
        raise ValueError(
            f"image_grid_pinpoints is {resolutions!r}, it must be a list of heights and widths that are "
            f"multiples of {side}, up to {LONGEST_EDGE}"
        )
    pairs = tuple((height, width) for height, width in resolutions)
    return AnyResolutionTiling((side, side), resample(processor), pairs)


def _read_aspect_grid(processor: Any) -> StretchTiling | AspectGridTiling:
    """Read the settings of GOT-OCR 2, which InternVL uses, too."""
    size = _read_size(processor, "size")
    if not processor.crop_to_patches or _positive(processor, "max_patches") == 1:
        _require(processor, "do_resize", True)
        return StretchTiling(size, resample(processor))
    min_tiles, max_tiles = (_positive(processor, name) for name in ("min_patches", "max_patches"))
    if min_tiles > max_tiles:
        raise ValueError(f"min_patches is {min_tiles}, it must not exceed max_patches {max_tiles}")
    return AspectGridTiling(size, resample(processor), min_tiles, max_tiles)


def _read_covering_grid(processor: Any) -> StretchTiling | CoveringGridTiling:
    """Read the settings of Ovis2. Its ``min_patches`` counts only without ``use_covering_area_grid``."""
    size = _read_size(processor, "size")
    if processor.do_center_crop:
        crop = _read_size(processor, "crop_size")
        if crop != size:
            raise ValueError(f"crop_size is {crop}, it must equal size {size} or be left out")
    if not processor.crop_to_patches or _positive(processor, "max_patches") == 1:
        _require(processor, "do_resize", True)
        return StretchTiling(size, resample(processor))
    _require(processor, "use_covering_area_grid", True)
    _square(size, "size")
    return CoveringGridTiling(size, resample(processor), _positive(processor, "max_patches"))


def _read_scaled_grid(processor: Any) -> StretchTiling | ScaledGridTiling:
    """Read the settings of Command A Vision."""
    _require(processor, "do_resize", True)
    size = _read_size(processor, "size")
    _square(size, "size")
    for name in ("max_patches", "patch_size"):
        _positive(processor, name)
    return processor.tiling(size, resample(processor))


def _read_pan_and_scan(processor: Any) -> StretchTiling | PanAndScanTiling:
    """Read the settings of Gemma 3."""
    _require(processor, "do_resize", True)
    size = _read_size(processor, "size")
    if not processor.do_pan_and_scan:
        return StretchTiling(size, resample(processor))
    ratio = processor.pan_and_scan_min_ratio_to_activate
    if type(ratio) not in (int, float) or not ratio >= 1:
        raise ValueError(
            f"pan_and_scan_min_ratio_to_activate is {ratio!r}, it must be a number from 1"
        )
    return PanAndScanTiling(
        size,
        resample(processor),
        min_crop_size=_positive(processor, "pan_and_scan_min_crop_size"),
        max_crops=_positive(processor, "pan_and_scan_max_num_crops"),
        min_ratio=float(ratio),
    )


def _read_grid(processor: Any) -> StretchTiling | GridTiling:
    """Read the settings of Idefics3 and SmolVLM: a grid, or one tile without ``do_image_splitting``."""
    side = side_length(processor, "max_image_size", "longest_edge")
    edge = side_length(processor, "size", "longest_edge") if processor.do_resize else None
    kind = GridTiling if processor.do_image_splitting else StretchTiling
    return kind((side, side), resample(processor), longest_edge=edge)


def _read_smart_resize(processor: Any) -> SmartResizeTiling:
    """Read the settings of Qwen2-VL, which its descendants use, too."""
    _require(processor, "do_resize", True)
    if _keys(processor, "size") != {"shortest_edge", "longest_edge"}:
        raise ValueError(
            f"size is {_lengths(processor.size)!r}, it must have shortest_edge and longest_edge, which are "
            f"areas in pixels"
        )
    areas = _lengths(processor.size)
    least, most = areas["shortest_edge"], areas["longest_edge"]
    factor = _positive(processor, "patch_size") * _positive(processor, "merge_size")
    if not all(type(area) is int for area in areas.values()) or not 0 < least <= most:
        raise ValueError(
            f"size is {areas!r}, it must have whole numbers from 1, and shortest_edge at most longest_edge"
        )
    if most > LONGEST_EDGE**2 or not factor**2 <= most:
        raise ValueError(
            f"longest_edge of size is {most}, it must be an area of {factor**2} to {LONGEST_EDGE**2} pixels"
        )
    min_side = factor if isinstance(processor, PaddleOCRVLImageProcessorPil) else 1
    return SmartResizeTiling(factor, least, most, resample(processor), min_side=min_side)


def _read_floor_resize(processor: Any) -> FloorResizeTiling:
    """Read the settings of Gemma 4, which gives each image about as many embeddings as it may have."""
    _require(processor, "do_resize", True)
    factor = _positive(processor, "patch_size") * _positive(processor, "pooling_kernel_size")
    area = _positive(processor, "max_soft_tokens") * factor**2
    if area > LONGEST_EDGE**2:
        raise ValueError(
            f"patch_size is {processor.patch_size} and pooling_kernel_size {processor.pooling_kernel_size}, "
            f"so images have {area} pixels; edgevlm takes at most {LONGEST_EDGE**2}"
        )
    return FloorResizeTiling(factor, area, area, resample(processor))


def _read_longest_edge(processor: Any) -> LongestEdgeTiling:
    """Read the settings of Pixtral, whose size may be one length or two equal ones.

    ``do_pad`` is about batches of several images.
    """
    _require(processor, "do_resize", True)
    _require(processor, "do_center_crop", False)
    if _keys(processor, "size") == {"height", "width"}:
        edge = _square(_read_size(processor, "size"), "size")
    else:
        edge = side_length(processor, "size", "longest_edge")
    factor = _square(_read_size(processor, "patch_size"), "patch_size")
    return LongestEdgeTiling(factor, edge, resample(processor))


def _read_slices(processor: Any) -> SliceTiling:
    """Read the settings of MiniCPM-V 4.6."""
    _require(processor, "do_resize", True)
    _require(processor, "use_image_id", True)  # the image template writes it
    mode = processor.downsample_mode
    if mode not in ("4x", "16x"):
        raise ValueError(f"downsample_mode is {mode!r}, it must be '4x' or '16x'")
    factor = _positive(processor, "patch_size") * (2 if mode == "4x" else 4)
    side = _positive(processor, "scale_resolution")
    if side > LONGEST_EDGE:
        raise ValueError(f"scale_resolution is {side}, it must be at most {LONGEST_EDGE}")
    slices = _positive(processor, "max_slice_nums") if processor.slice_mode else 1
    return SliceTiling(factor, side, slices, resample(processor))


def _read_canvas(processor: Any) -> CanvasTiling:
    """Read the settings of Llama 3.2 Vision. transformers itself refuses not to resize or not to pad."""
    side = _square(_read_size(processor, "size"), "size")
    squares = _positive(processor, "max_image_tiles")
    if side * squares > LONGEST_EDGE:
        raise ValueError(
            f"max_image_tiles is {squares}, so a canvas may have a side of {side * squares} pixels; edgevlm "
            f"takes at most {LONGEST_EDGE}"
        )
    return CanvasTiling(side, squares, resample(processor))


def _read_own_size_grid(processor: Any) -> OwnSizeGridTiling:
    """Read the settings of LFM2-VL."""
    return processor.tiling(resample(processor))


_READERS: Mapping[type[PilBackend], Callable[[Any], Tiling]] = {
    BlipImageProcessorPil: _read_one_tile,
    CLIPImageProcessorPil: _read_one_tile,
    SiglipImageProcessorPil: _read_one_tile,
    LlavaImageProcessorPil: _read_one_tile,
    LlavaNextImageProcessorPil: _read_any_resolution,
    LlavaOnevisionImageProcessorPil: _read_any_resolution,
    GotOcr2ImageProcessorPil: _read_aspect_grid,
    Ovis2ImageProcessorPil: _read_covering_grid,
    Cohere2VisionImageProcessorPil: _read_scaled_grid,
    Gemma3ImageProcessorPil: _read_pan_and_scan,
    Gemma4ImageProcessorPil: _read_floor_resize,
    DeepseekVLImageProcessorPil: _read_fit,
    JanusImageProcessorPil: _read_fit,
    Idefics3ImageProcessorPil: _read_grid,
    SmolVLMImageProcessorPil: _read_grid,
    Qwen2VLImageProcessorPil: _read_smart_resize,
    PaddleOCRVLImageProcessorPil: _read_smart_resize,
    PixtralImageProcessorPil: _read_longest_edge,
    Lfm2VlImageProcessorPil: _read_own_size_grid,
    MiniCPMV4_6ImageProcessorPil: _read_slices,
    MllamaImageProcessorPil: _read_canvas,
}

IMAGE_PROCESSORS: Mapping[str, type[PilBackend]] = {
    kind.__name__.removesuffix("Pil"): kind for kind in _READERS
}
"""The image processors that edgevlm reproduces, by the ``image_processor_type`` of a checkpoint, without
``Fast`` at its end."""


def normalization(processor: Any) -> Normalization:
    """Return the normalization, neutral if the image processor does not use it.

    Raises:
        ValueError: a setting has another form.
    """
    normalize = processor.do_normalize
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if not isinstance(factor, (int, float)):
        raise ValueError(f"rescale_factor is {factor!r}, it must be a number")
    return Normalization(
        mean=channels(processor, "image_mean") if normalize else (0.0, 0.0, 0.0),
        std=channels(processor, "image_std") if normalize else (1.0, 1.0, 1.0),
        rescale_factor=float(factor),
    )


def channels(processor: Any, setting: str) -> tuple[float, float, float]:
    """Return a number for red, green and blue; the setting may be one number for all three.

    Raises:
        ValueError: it is neither one number nor three, or a standard deviation is 0.
    """
    value: Any = getattr(processor, setting, None)
    found: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if (
        len(found) != 3
        or not all(isinstance(number, (int, float)) for number in found)
        or (setting == "image_std" and not all(number > 0 for number in found))
    ):
        raise ValueError(f"{setting} is {value!r}, it must be one number or three")
    red, green, blue = found
    return float(red), float(green), float(blue)


def resample(processor: Any) -> Resample:
    """Return the name of the filter of Pillow; transformers would read any name as bilinear.

    Raises:
        ValueError: the setting is not a number, or edgevlm does not support this filter.
    """
    value = processor.resample
    if not isinstance(value, int) or isinstance(value, bool) or value not in FILTERS:
        known = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
        raise ValueError(f"resample is {value!r}, it must be one of the numbers {known}")
    return FILTERS[value]


def side_length(processor: Any, setting: str, key: str) -> int:
    """Return a length in pixels from the settings of an image processor.

    Raises:
        ValueError: the setting has another form.
    """
    value = getattr(processor, setting, None)
    found = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    if type(found) is not int or not 0 < found <= LONGEST_EDGE:
        raise ValueError(
            f"{setting} is {_lengths(value)!r}, it must have {key} as a whole number of 1 to {LONGEST_EDGE}"
        )
    return found


def _read_size(processor: Any, setting: str) -> tuple[int, int]:
    """Return height and width; no other length may be set."""
    size = side_length(processor, setting, "height"), side_length(processor, setting, "width")
    if _keys(processor, setting) != {"height", "width"}:
        raise ValueError(
            f"{setting} is {_lengths(getattr(processor, setting))!r}, it must have only height and width"
        )
    return size


def _read_shortest_edge(processor: Any) -> int:
    """Return the shortest edge of ``size``; no other length may be set."""
    edge = side_length(processor, "size", "shortest_edge")
    if _keys(processor, "size") != {"shortest_edge"}:
        raise ValueError(f"size is {_lengths(processor.size)!r}, it must have only shortest_edge")
    return edge


def _lengths(value: Any) -> Any:
    """Return the lengths that are set in a size of transformers; another value as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        return value
    return {name: length for name, length in value.items() if length is not None}


def _keys(processor: Any, setting: str) -> set[str]:
    lengths = _lengths(getattr(processor, setting, None))
    return set(lengths) if isinstance(lengths, dict) else set()


def _square(size: tuple[int, int], setting: str) -> int:
    if size[0] != size[1]:
        raise ValueError(f"{setting} is {size}, height and width must be equal")
    return size[0]


def _positive(processor: Any, setting: str) -> int:
    value = getattr(processor, setting, None)
    if type(value) is not int or value < 1:
        raise ValueError(f"{setting} is {value!r}, it must be a whole number from 1")
    return value


def _require(processor: Any, setting: str, needed: bool) -> None:
    value = getattr(processor, setting, None)
    if bool(value) != needed:
        raise ValueError(f"{setting} is {value!r}, it must be {str(needed).lower()}")


def _mean_color(processor: Any, default: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the color of ``image_mean``, rounded down as transformers does, for padding."""
    if processor.image_mean is None:
        return default
    red, green, blue = (int(level * 255) for level in channels(processor, "image_mean"))
    return red, green, blue
