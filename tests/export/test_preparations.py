"""Settings of image processors are read, or refused with their value; none is ignored silently."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgevlm.export.parity import find_tiles
from edgevlm.export.preparations import IMAGE_PROCESSORS, normalization, read_tiling
from edgevlm.inputs.tiling import split_image
from edgevlm.manifest import (
    AnyResolutionTiling,
    AspectGridTiling,
    CanvasTiling,
    CoveringGridTiling,
    CropTiling,
    FitTiling,
    FloorResizeTiling,
    GridTiling,
    LongestEdgeTiling,
    PanAndScanTiling,
    ScaledGridTiling,
    SliceTiling,
    SmartResizeTiling,
    StretchTiling,
)

SIDE = {"height": 12, "width": 12}
PINPOINTS = [[12, 24], [24, 12], [24, 24]]
SETTINGS: dict[str, dict[str, Any]] = {
    "BlipImageProcessor": {"size": SIDE},
    "CLIPImageProcessor": {"size": {"shortest_edge": 12}, "crop_size": SIDE},
    "SiglipImageProcessor": {"size": SIDE},
    "LlavaImageProcessor": {"size": {"shortest_edge": 12}, "crop_size": SIDE, "do_pad": True},
    "LlavaNextImageProcessor": {
        "size": {"shortest_edge": 12},
        "crop_size": SIDE,
        "image_grid_pinpoints": PINPOINTS,
    },
    "LlavaOnevisionImageProcessor": {"size": SIDE, "image_grid_pinpoints": PINPOINTS},
    "GotOcr2ImageProcessor": {"size": SIDE, "crop_to_patches": True, "max_patches": 6},
    "Ovis2ImageProcessor": {"size": SIDE, "crop_to_patches": True, "max_patches": 6},
    "Cohere2VisionImageProcessor": {"size": SIDE, "max_patches": 6, "patch_size": 4},
    "Gemma3ImageProcessor": {
        "size": SIDE,
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 8,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    },
    "Gemma4ImageProcessor": {"max_soft_tokens": 70, "patch_size": 3},
    "DeepseekVLImageProcessor": {"size": SIDE, "min_size": 3},
    "JanusImageProcessor": {"size": SIDE, "min_size": 3},
    "Idefics3ImageProcessor": {
        "size": {"longest_edge": 48},
        "max_image_size": {"longest_edge": 12},
    },
    "SmolVLMImageProcessor": {
        "size": {"longest_edge": 48},
        "max_image_size": {"longest_edge": 12},
    },
    "MiniCPMV4_6ImageProcessor": {
        "max_slice_nums": 4,
        "patch_size": 2,
        "scale_resolution": 20,
    },
    "MllamaImageProcessor": {"size": SIDE, "max_image_tiles": 4},
    "PaddleOCRVLImageProcessor": {
        "size": {"shortest_edge": 100, "longest_edge": 400},
        "patch_size": 3,
    },
    "PixtralImageProcessor": {"size": {"longest_edge": 36}, "patch_size": SIDE},
    "Qwen2VLImageProcessor": {
        "size": {"shortest_edge": 100, "longest_edge": 400},
        "patch_size": 3,
    },
}
"""Settings that edgevlm reads, small."""

OTHER_SETTINGS: dict[str, list[Any]] = {
    "do_resize": [False, None],
    "do_center_crop": [True, False, None],
    "do_pad": [True, False, None],
    "do_convert_rgb": [True, False, None],
    "resample": [0, 1, 2, 3],
    "size": [
        SIDE,
        {"height": 12, "width": 10},
        {"shortest_edge": 12},
        {"shortest_edge": 15},
        {"shortest_edge": 12, "longest_edge": 20},
        {"max_height": 12, "max_width": 12},
        {"longest_edge": 36},
        {"shortest_edge": 500, "longest_edge": 600},
        {"shortest_edge": 600, "longest_edge": 500},
    ],
    "crop_size": [None, SIDE, {"height": 10, "width": 14}, {"height": 16, "width": 16}],
    "pad_size": [{"height": 20, "width": 20}],
    "default_to_square": [True, False],
    "image_mean": [[0.1, 0.6, 0.9], None],
    "image_grid_pinpoints": [[[24, 24]], [[20, 24]], []],
    "crop_to_patches": [False, None],
    "min_patches": [2, 9],
    "max_patches": [1, 3],
    "use_covering_area_grid": [False, None],
    "do_pan_and_scan": [False, None],
    "pan_and_scan_min_crop_size": [None, 20],
    "pan_and_scan_max_num_crops": [2],
    "pan_and_scan_min_ratio_to_activate": [2, 0.5],
    "max_soft_tokens": [140],
    "pooling_kernel_size": [1, 2],
    "min_size": [1, 10, 30],
    "do_image_splitting": [False, None],
    "min_pixels": [None, 300],
    "max_pixels": [None, 200],
    "patch_size": [2, 5],
    "merge_size": [1, 3],
    "temporal_patch_size": [1, 3],
    "max_slice_nums": [1, 9, None],
    "scale_resolution": [9, 30, "30"],
    "slice_mode": [False, None],
    "downsample_mode": ["4x", "8x"],
    "use_image_id": [False],
    "max_image_tiles": [1, 6, 0, "4", None],
}
SIZES = [(30, 19), (19, 30), (7, 50), (12, 12)]


def make(name: str, **settings: Any) -> Any:
    # A copy, since some processors write into what they get.
    processor = IMAGE_PROCESSORS[name](**copy.deepcopy(SETTINGS[name] | settings))
    processor.do_rescale = processor.do_normalize = False
    return processor


def compare(name: str, changes: dict[str, Any]) -> bool:
    """Compare the tiles, and return True, unless transformers or edgevlm refuses the settings."""
    try:
        processor = make(name, **changes)
        expected = [reference_tiles(processor, image(*size)) for size in SIZES]
        tiling = read_tiling(processor)
    except (AttributeError, TypeError, ValueError):
        return False
    for size, tiles in zip(SIZES, expected, strict=True):
        ours = split_image(image(*size), tiling).pixels
        for tile, reference in zip(ours, tiles, strict=True):
            np.testing.assert_array_equal(tile, reference, str(changes))
    return True


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference_tiles(processor: Any, pixels: np.ndarray) -> list[np.ndarray]:
    """Gray levels ``[height, width, 3]`` of each tile."""
    return find_tiles(processor([Image.fromarray(pixels)], return_tensors="np"), processor)


def test_all_image_processors_are_tried() -> None:
    """transformers has LFM2-VL's for torchvision only: `tests/reference/test_own_size_grid.py`."""
    assert set(SETTINGS) == set(IMAGE_PROCESSORS) - {"Lfm2VlImageProcessor"}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_is_ignored(name: str) -> None:
    """What is read gives the pixels of transformers, for each two settings of the table together."""
    known = IMAGE_PROCESSORS[name].valid_kwargs.__annotations__ | vars(make(name))
    choices = [
        [(setting, value) for value in values]
        for setting, values in OTHER_SETTINGS.items()
        if setting in known
    ]
    read = int(compare(name, {}))
    for first, second in itertools.combinations(choices, 2):
        read += sum(compare(name, dict(pair)) for pair in itertools.product(first, second))
    assert read > 40


@pytest.mark.parametrize(
    ("name", "tiling"),
    [
        ("CLIPImageProcessor", CropTiling((12, 12), "bicubic", 12, None)),
        ("SiglipImageProcessor", StretchTiling((12, 12), "bicubic")),
        ("LlavaImageProcessor", CropTiling((12, 12), "bicubic", 12, (122, 116, 104))),
        (
            "LlavaNextImageProcessor",
            AnyResolutionTiling((12, 12), "bicubic", ((12, 24), (24, 12), (24, 24))),
        ),
        ("GotOcr2ImageProcessor", AspectGridTiling((12, 12), "bicubic", 1, 6)),
        ("Ovis2ImageProcessor", CoveringGridTiling((12, 12), "bicubic", 6)),
        ("Cohere2VisionImageProcessor", ScaledGridTiling((12, 12), "bicubic", 6)),
        ("Gemma3ImageProcessor", PanAndScanTiling((12, 12), "bilinear", 8, 4, 1.2)),
        ("Gemma4ImageProcessor", FloorResizeTiling(9, 70 * 81, 70 * 81, "bicubic")),
        ("JanusImageProcessor", FitTiling((12, 12), "bicubic", 3, (122, 116, 104))),
        ("SmolVLMImageProcessor", GridTiling((12, 12), "lanczos", longest_edge=48)),
        ("MiniCPMV4_6ImageProcessor", SliceTiling(8, 20, 4, "bicubic")),
        ("MllamaImageProcessor", CanvasTiling(12, 4, "bilinear")),
        ("PixtralImageProcessor", LongestEdgeTiling(12, 36, "bicubic")),
        ("Qwen2VLImageProcessor", SmartResizeTiling(6, 100, 400, "bicubic")),
    ],
)
def test_tilings(name: str, tiling: Any) -> None:
    assert read_tiling(make(name)) == tiling


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("CLIPImageProcessor", {"do_resize": False}, "do_resize is False, it must be true"),
        (
            "CLIPImageProcessor",
            {"do_center_crop": False},
            "do_center_crop is False .* must be true",
        ),
        (
            "CLIPImageProcessor",
            {"size": SIDE, "crop_size": 10},
            r"crop_size is \(10, 10\), .* equal",
        ),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 12, "longest_edge": 20}},
            "size is {'longest_edge': 20, 'shortest_edge': 12}, it must have only shortest_edge",
        ),
        (
            "SiglipImageProcessor",
            {"do_pad": True, "pad_size": {"height": 20, "width": 20}},
            "pad_size is {'height': 20, 'width': 20}, it must be left out",
        ),
        ("LlavaNextImageProcessor", {"crop_size": 10}, r"crop_size is \(10, 10\), .* \(12, 12\)"),
        (
            "LlavaNextImageProcessor",
            {"image_grid_pinpoints": [[12, 25]]},
            r"image_grid_pinpoints is \[\[12, 25\]\], .* multiples of 12",
        ),
        ("LlavaOnevisionImageProcessor", {"image_grid_pinpoints": []}, "image_grid_pinpoints is"),
        ("GotOcr2ImageProcessor", {"min_patches": 9}, "min_patches is 9, .* max_patches 6"),
        ("GotOcr2ImageProcessor", {"min_patches": 0}, "min_patches is 0, .* whole number from 1"),
        (
            "Gemma3ImageProcessor",
            {"pan_and_scan_min_ratio_to_activate": None},
            "pan_and_scan_min_ratio_to_activate is None, it must be a number from 1",
        ),
        (
            "Ovis2ImageProcessor",
            {"use_covering_area_grid": False},
            "use_covering_area_grid is False, it must be true",
        ),
        ("Gemma4ImageProcessor", {"do_resize": False}, "do_resize is False, it must be true"),
        (
            "Gemma4ImageProcessor",
            {"patch_size": 1000},
            "patch_size is 1000 and pooling_kernel_size 3, so images have 630000000 pixels",
        ),
        ("DeepseekVLImageProcessor", {"do_pad": False}, "do_pad is False, it must be true"),
        ("JanusImageProcessor", {"min_size": 13}, "min_size is 13, it must not exceed the side 12"),
        (
            "JanusImageProcessor",
            {"size": {"height": 12, "width": 10}},
            r"size is \(12, 10\), height and width must be equal",
        ),
        (
            "PixtralImageProcessor",
            {"patch_size": {"height": 12, "width": 10}},
            r"patch_size is \(12, 10\), height and width must be equal",
        ),
        (
            "PixtralImageProcessor",
            {"do_center_crop": True},
            "do_center_crop is True, it must be false",
        ),
        ("Qwen2VLImageProcessor", {"do_resize": False}, "do_resize is False, it must be true"),
        ("Qwen2VLImageProcessor", {"size": {"longest_edge": 9}}, "size is .* shortest_edge and"),
        (
            "Qwen2VLImageProcessor",
            {"size": {"shortest_edge": 500, "longest_edge": 400}},
            "shortest_edge at most longest_edge",
        ),
        (
            "Qwen2VLImageProcessor",
            {"size": {"shortest_edge": 20, "longest_edge": 30}},
            "longest_edge of size is 30, it must be an area of 36",
        ),
        ("Qwen2VLImageProcessor", {"merge_size": 0}, "merge_size is 0, .* whole number from 1"),
        ("MiniCPMV4_6ImageProcessor", {"use_image_id": False}, "use_image_id is False, it must be"),
        ("MiniCPMV4_6ImageProcessor", {"downsample_mode": "8x"}, "is '8x', it must be '4x' or"),
        ("MiniCPMV4_6ImageProcessor", {"scale_resolution": 1 << 15}, "must be at most 16384"),
        ("MllamaImageProcessor", {"do_resize": False}, "support `do_resize=False`"),
        ("MllamaImageProcessor", {"do_pad": False}, "support `do_pad=False`"),
        (
            "MllamaImageProcessor",
            {"max_image_tiles": 2.0},
            "max_image_tiles is 2.0, it must be a whole number from 1",
        ),
        (
            "MllamaImageProcessor",
            {"max_image_tiles": 1366},
            "max_image_tiles is 1366, .* a side of 16392 pixels; edgevlm takes at most 16384",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_tiling(make(name, **changes))


def test_an_unknown_image_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="is ViTImageProcessor; edgevlm can export BlipImage"):
        read_tiling(ViTImageProcessorPil())


def test_normalization() -> None:
    processor = IMAGE_PROCESSORS["CLIPImageProcessor"]()
    found = normalization(processor)
    assert found.mean == tuple(processor.image_mean) and found.std == tuple(processor.image_std)
    assert math.isclose(found.rescale_factor, 1 / 255)
