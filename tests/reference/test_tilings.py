"""Tiles and packed embeddings are those of transformers, for every size of a sweep: no gray level differs.

Tiles are small, so that thousands of sizes take seconds; the published settings run once each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import (
    DeepseekVLImageProcessorPil,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_all_supported_aspect_ratios,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgevlm.export.preparations import read_tiling
from edgevlm.inputs.packing import max_image_tokens, max_tokens_per_tile, plan_spans
from edgevlm.inputs.tiling import Detail, Layout, Tiles, crop, split_image
from edgevlm.manifest import (
    AnyResolutionTiling,
    ImageSpec,
    Normalization,
    TiledPacking,
    UnpadPacking,
    VisionSpec,
)

# Without rescaling and normalizing, transformers returns gray levels.
GRAY_LEVELS = {"do_rescale": False, "do_normalize": False}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
PAN_AND_SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def scaled(pinpoints: list[list[int]], tile: int) -> list[list[int]]:
    smallest = min(min(pair) for pair in pinpoints)
    return [[side * tile // smallest for side in pair] for pair in pinpoints]


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def next_processor(tile: int = 6, **settings: Any) -> LlavaNextImageProcessorPil:
    sizes = {"size": {"shortest_edge": tile}, "crop_size": square(tile)}
    pinpoints = {"image_grid_pinpoints": scaled(NEXT_PINPOINTS, tile)}
    return LlavaNextImageProcessorPil(**sizes | pinpoints | settings, **GRAY_LEVELS)


def onevision_processor(tile: int = 6, **settings: Any) -> LlavaOnevisionImageProcessorPil:
    pinpoints = {"image_grid_pinpoints": scaled(ONEVISION_PINPOINTS, tile)}
    return LlavaOnevisionImageProcessorPil(size=square(tile), **pinpoints | settings, **GRAY_LEVELS)


def grid_processor(**settings: Any) -> GotOcr2ImageProcessorPil:
    own = {"size": {"height": 6, "width": 4}, "crop_to_patches": True}
    return GotOcr2ImageProcessorPil(**own | settings, **GRAY_LEVELS)


def covering_processor(**settings: Any) -> Ovis2ImageProcessorPil:
    own = {"size": square(6), "crop_to_patches": True}
    return Ovis2ImageProcessorPil(**own | settings, **GRAY_LEVELS)


def pan_and_scan_processor(**settings: Any) -> Gemma3ImageProcessorPil:
    own = {"size": {"height": 7, "width": 5}, **PAN_AND_SCAN, "pan_and_scan_min_crop_size": 12}
    return Gemma3ImageProcessorPil(**own | settings, **GRAY_LEVELS)


PROCESSORS: dict[str, Callable[..., Any]] = {
    "clip": lambda **settings: CLIPImageProcessorPil(
        **{"size": {"shortest_edge": 14}, "crop_size": square(14)} | settings, **GRAY_LEVELS
    ),
    "clip, crop smaller than the edge": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 17}, crop_size={"height": 10, "width": 13}, **GRAY_LEVELS
    ),
    "clip, crop larger than the edge": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 9}, crop_size={"height": 14, "width": 21}, **GRAY_LEVELS
    ),
    "clip, fixed size": lambda: CLIPImageProcessorPil(
        size={"height": 14, "width": 11}, crop_size={"height": 14, "width": 11}, **GRAY_LEVELS
    ),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 9, "width": 14}, **GRAY_LEVELS),
    "llava": lambda: LlavaImageProcessorPil(
        size={"shortest_edge": 14}, crop_size=square(14), do_pad=True, **GRAY_LEVELS
    ),
    "llava, without crop": lambda: LlavaImageProcessorPil(
        size=square(14), do_center_crop=False, do_pad=True, **GRAY_LEVELS
    ),
    "deepseek": lambda: DeepseekVLImageProcessorPil(size=square(24), min_size=5, **GRAY_LEVELS),
    "janus": lambda: JanusImageProcessorPil(size=square(15), min_size=2, **GRAY_LEVELS),
    "gemma": lambda: Gemma3ImageProcessorPil(size=square(14), **GRAY_LEVELS),
    "got": lambda: GotOcr2ImageProcessorPil(size=square(14), **GRAY_LEVELS),
}


@functools.cache
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


def image_of(height: int, width: int) -> np.ndarray:
    if max(height, width) <= 400:
        return noise()[:height, :width]
    return np.resize(noise(), (height, width, 3))


def reference_tiles(processor: Any, image: np.ndarray) -> np.ndarray:
    """Gray levels ``[n, height, width, 3]``."""
    pixels = np.asarray(processor([Image.fromarray(image)])["pixel_values"])
    return pixels.reshape(-1, *pixels.shape[-3:]).transpose(0, 2, 3, 1)


def assert_same(ours: Tiles, processor: Any, image: np.ndarray) -> None:
    theirs = reference_tiles(processor, image)
    assert ours.layout.tiles == len(ours) == len(theirs), image.shape
    assert (ours.layout.height, ours.layout.width) == image.shape[:2]
    pixels = np.stack(ours.pixels)
    if pixels.shape != theirs.shape or (pixels != theirs).any():
        raise AssertionError(f"image of {image.shape}: {pixels.shape} is not {theirs.shape}")


def sweep(processor: Any, sizes: Iterator[tuple[int, int]]) -> set[tuple[int, int]]:
    """Compare the tiles of all sizes; return the grids."""
    tiling = read_tiling(processor)
    grids = set()
    for height, width in sizes:
        image = image_of(height, width)
        tiles = split_image(image, tiling)
        assert_same(tiles, processor, image)
        grids.add((tiles.layout.rows, tiles.layout.columns))
    return grids


def all_sizes(longest: int, step: int = 1) -> Iterator[tuple[int, int]]:
    sides = range(1, longest + 1, step)
    return ((height, width) for height in sides for width in sides)


@pytest.mark.parametrize("name", PROCESSORS)
def test_one_tile_of_every_size(name: str) -> None:
    assert sweep(PROCESSORS[name](), all_sizes(60)) == {(0, 0)}
    sweep(PROCESSORS[name](), iter([(1, 300), (300, 1), (2, 399), (397, 3), (400, 399)]))


@pytest.mark.parametrize("resample", range(4))
@pytest.mark.parametrize("name", ["clip", "next", "onevision", "grid", "covering", "pan and scan"])
def test_every_filter(name: str, resample: int) -> None:
    makers = PROCESSORS | {
        "next": next_processor,
        "onevision": onevision_processor,
        "grid": grid_processor,
        "covering": covering_processor,
        "pan and scan": pan_and_scan_processor,
    }
    sweep(makers[name](resample=resample), all_sizes(61, 7))


@pytest.mark.parametrize(
    ("min_patches", "max_patches"),
    [(1, 12), (1, 6), (2, 6), (2, 2), (4, 4), (4, 9), (7, 7), (1, 1)],
)
def test_all_aspect_grids(min_patches: int, max_patches: int) -> None:
    processor = grid_processor(min_patches=min_patches, max_patches=max_patches)
    grids = sweep(processor, all_sizes(80))
    possible = {
        (rows, columns)
        for columns, rows in get_all_supported_aspect_ratios(min_patches, max_patches)
    }
    assert grids - {(0, 0)} == possible - {(1, 1)}


@pytest.mark.parametrize("max_patches", [1, 2, 6, 9, 12])
def test_all_covering_grids(max_patches: int) -> None:
    grids = sweep(covering_processor(max_patches=max_patches), all_sizes(80))
    most = {(rows, max_patches // rows) for rows in range(1, max_patches + 1)}
    assert (0, 0) in grids and (max_patches == 1 or len(grids & most) > 1)


@pytest.mark.parametrize(
    "processor",
    [
        next_processor(),
        onevision_processor(),
        onevision_processor(image_grid_pinpoints=scaled(ONEVISION_PINPOINTS, 6)[::-1]),
    ],
    ids=["next", "onevision", "reversed"],
)
def test_all_pinpoints(processor: Any) -> None:
    grids = sweep(processor, all_sizes(72))
    assert grids == {(tall // 6, wide // 6) for tall, wide in processor.image_grid_pinpoints}


@pytest.mark.parametrize("crops", [1, 2, 4, 7])
def test_all_pans_and_scans(crops: int) -> None:
    grids = sweep(pan_and_scan_processor(pan_and_scan_max_num_crops=crops), all_sizes(100))
    counts = range(min(2, crops), crops + 1)
    assert grids == {(0, 0)} | {(1, n) for n in counts} | {(n, 1) for n in counts}


def test_empty_crops() -> None:
    """A crop may begin beyond the edge of an image of few pixels."""
    processor = pan_and_scan_processor(pan_and_scan_min_crop_size=1)
    grids = sweep(processor, all_sizes(30))
    assert {(1, 4), (4, 1)} <= grids
    assert not split_image(image_of(1, 5), read_tiling(processor)).pixels[-1].any()


@pytest.mark.parametrize("limit", range(1, 14))
def test_max_tiles_restricts_the_candidates(limit: int) -> None:
    grid, pinpoints = grid_processor(), onevision_processor()
    allowed = [pair for pair in pinpoints.image_grid_pinpoints if pair[0] * pair[1] // 36 < limit]
    references = [
        (grid, grid_processor(max_patches=max(1, limit - 1))),
        (covering_processor(), covering_processor(max_patches=max(1, limit - 1))),
        (pinpoints, onevision_processor(image_grid_pinpoints=allowed) if allowed else None),
        (
            pan_and_scan_processor(pan_and_scan_max_num_crops=7),
            pan_and_scan_processor(
                pan_and_scan_max_num_crops=max(1, min(7, limit - 1)), do_pan_and_scan=limit > 2
            ),
        ),
    ]
    for own, restricted in references:
        tiling = read_tiling(own)
        for height, width in all_sizes(80, 9):
            image = image_of(height, width)
            tiles = split_image(image, tiling, max_tiles=limit)
            assert len(tiles) <= limit
            if restricted is None:
                np.testing.assert_array_equal(tiles.pixels, reference_tiles(own, image)[:1])
            else:
                assert_same(tiles, restricted, image)


@pytest.mark.parametrize("detail", [None, "high"])
def test_high_detail_is_the_processor(detail: Detail | None) -> None:
    for processor in (
        next_processor(),
        grid_processor(),
        covering_processor(),
        pan_and_scan_processor(),
    ):
        for height, width in all_sizes(80, 13):
            image = image_of(height, width)
            assert_same(split_image(image, read_tiling(processor), detail), processor, image)


PUBLISHED: dict[str, tuple[Any, int]] = {
    "LLaVA 1.5": (
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square(336), **GRAY_LEVELS),
        1,
    ),
    "LLaVA interleave": (SiglipImageProcessorPil(size=square(384), **GRAY_LEVELS), 1),
    "LLaVA-NeXT": (next_processor(336), 5),
    "LLaVA-OneVision": (onevision_processor(384), 7),
    "InternVL 3": (grid_processor(size=square(448)), 13),
    "Ovis2": (covering_processor(size=square(448)), 7),
    "GOT-OCR 2": (GotOcr2ImageProcessorPil(size=square(1024), **GRAY_LEVELS), 1),
    "Gemma 3": (Gemma3ImageProcessorPil(size=square(896), **GRAY_LEVELS), 1),
    "Gemma 3, pan and scan": (
        Gemma3ImageProcessorPil(size=square(896), **PAN_AND_SCAN, **GRAY_LEVELS),
        3,
    ),
    "DeepSeek-VL": (DeepseekVLImageProcessorPil(**GRAY_LEVELS), 1),
    "Janus": (JanusImageProcessorPil(**GRAY_LEVELS), 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    processor, tiles = PUBLISHED[name]
    tiling = read_tiling(processor)
    for height, width in ((686, 960), (960, 686), (333, 1000), (41, 30)):
        image = image_of(height, width)
        ours = split_image(image, tiling)
        assert_same(ours, processor, image)
        if (height, width) == (686, 960):
            assert len(ours) == tiles


@pytest.mark.parametrize(
    ("name", "tokens"), [("LLaVA 1.5", (336 // 14) ** 2), ("Gemma 3", (896 // 14 // 4) ** 2)]
)
def test_tokens_of_a_photograph(name: str, tokens: int) -> None:
    """576 and 256, as published prompts about an image of 960 x 686 pixels have."""
    layout = split_image(image_of(686, 960), read_tiling(PUBLISHED[name][0])).layout
    spans = plan_spans(layout, vision(tokens, TiledPacking()), "sequential")
    assert [span.length for span in spans] == [tokens] == [{"LLaVA 1.5": 576}.get(name, 256)]


# What transformers needs gigabytes for.


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 30 + x / 40 + channel) for channel in range(3)]
    return (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


@pytest.mark.parametrize("size", [(20, 400), (400, 20), (13, 399), (397, 7), (60, 601)])
@pytest.mark.parametrize("name", ["clip", "clip, crop larger than the edge", "llava"])
def test_very_long_images_differ_little(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop, "MAX_TEMPORARY_PIXELS", 300**2 if name == "llava" else 1000)
    image = smooth(*size)
    processor = PROCESSORS[name]()
    ours = np.stack(split_image(image, read_tiling(processor)).pixels).astype(int)
    difference = np.abs(ours - reference_tiles(processor, image))
    assert difference.mean() < 5  # a shift of half a pixel of the tile


# Packing.


def vision(tokens: int, packing: Any) -> VisionSpec:
    return VisionSpec("tiles", "rows", tokens, packing.learned_rows, 3, packing, {})


def model_config(side: int, tile: int, pinpoints: list[list[int]]) -> SimpleNamespace:
    """The settings that ``pack_image_features`` reads."""
    return SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=tile, patch_size=tile // side),
            image_grid_pinpoints=pinpoints,
        )
    )


MODELS = ("next", "onevision")


def reference_pack(
    model: str, owner: SimpleNamespace, features: torch.Tensor, size: tuple[int, int], newline: Any
) -> np.ndarray:
    """``pack_image_features`` of the model itself, for one image."""
    sizes = torch.tensor([size])
    if model == "next":
        packed, _ = LlavaNextModel.pack_image_features(owner, [features], sizes, "full", newline)
    else:
        packed, _ = LlavaOnevisionModel.pack_image_features(
            owner, [features], sizes, newline, "anyres_max_9"
        )
    return packed[0].numpy()


def reference_length(
    model: str, side: int, tile: int, size: tuple[int, int], pinpoints: list[list[int]]
) -> int:
    """Number of image tokens that the processor writes into the prompt."""
    owner = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        patch_size=tile // side,
        num_additional_image_tokens=0,
        num_image_tokens=side * side,
        vision_aspect_ratio="anyres_max_9",
    )
    kind = LlavaNextProcessor if model == "next" else LlavaOnevisionProcessor
    owner._get_unpadded_features = functools.partial(kind._get_unpadded_features, owner)
    return kind._get_number_of_features(owner, *size, tile, tile)


def compare_packing(
    model: str, side: int, sizes: Iterator[tuple[int, int]], pinpoints: list[list[int]], tile: int
) -> tuple[int, float]:
    """Compare lengths and embeddings; return the number of shrunk images and the largest error of one."""
    tokens = side * side
    spec = vision(tokens, UnpadPacking(None if model == "next" else 9))
    tiling = AnyResolutionTiling((tile, tile), "bicubic", tuple((h, w) for h, w in pinpoints))
    bound = max_image_tokens(ImageSpec(tiling, Normalization((0, 0, 0), (1, 1, 1), 1 / 255)), spec)
    assert bound is not None
    owner = model_config(side, tile, pinpoints)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(37, tokens, 3, generator=random)
    newline = torch.randn(3, generator=random)
    rows = torch.cat([features, newline.expand(37, 1, 3)], dim=1).numpy()
    shrunk, worst = 0, 0.0
    for size in sizes:
        layout = layout_of(size, tiling)
        (span,) = plan_spans(layout, spec, "sequential")
        theirs = reference_pack(model, owner, features[: layout.tiles], size, newline)
        ours = span.pack(list(rows[: layout.tiles]))
        assert span.length == len(theirs) == len(ours), size
        assert span.length == reference_length(model, side, tile, size, pinpoints), size
        assert span.length <= min(bound, layout.tiles * max_tokens_per_tile(spec))
        assert sum(span.tokens_of_tiles(tokens + 1)) == span.length
        if span.weights is None:
            assert (ours == theirs).all(), size
        else:
            shrunk += 1
            worst = max(worst, float(np.abs(ours - theirs).max()))
    return shrunk, worst


def layout_of(size: tuple[int, int], tiling: AnyResolutionTiling) -> Layout:
    """The layout without the pixels; `test_all_pinpoints` compares those."""
    from edgevlm.inputs.tiling.any_resolution import _choose_resolution

    height, width = size
    chosen = _choose_resolution((width, height), tiling, None, None)
    assert chosen is not None
    tall, wide = tiling.tile_size
    return Layout(height, width, chosen[0] // tall, chosen[1] // wide, overview=0)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_packing_at_every_rounding_edge(model: str, side: int) -> None:
    """All sizes from 1 x 1: each step of one pixel crosses the edges of unpadding somewhere."""
    tile = 12
    pinpoints = scaled(NEXT_PINPOINTS if model == "next" else ONEVISION_PINPOINTS, tile)
    shrunk, worst = compare_packing(model, side, all_sizes(90), pinpoints, tile)
    assert worst < 1e-5
    assert (shrunk > 100) == (model == "onevision")


@pytest.mark.parametrize("model", MODELS)
def test_packing_with_published_settings(model: str) -> None:
    """24 x 24 embeddings of 336 pixels, and 27 x 27 of 384."""
    side, tile = (24, 336) if model == "next" else (27, 384)
    pinpoints = NEXT_PINPOINTS if model == "next" else ONEVISION_PINPOINTS
    sizes = [(686, 960), (960, 686), (1, 4000), (4000, 1), (10, 4000), (1, 1), (3000, 4000)]
    # Where the division is not exact, and the sides are an embedding longer without the rounding.
    sizes += [(55, 176), (88, 55), (110, 352), (352, 110), (47, 423), (423, 94), (188, 423)]
    sizes += [(672, width) for width in range(640, 720)] + [(h, 1500) for h in range(30, 2500, 31)]
    _, worst = compare_packing(model, side, iter(sizes), pinpoints, tile)
    assert worst < 1e-4  # 5e-7 on CPUs where PyTorch's positions are rounded once, 2e-5 on others


@pytest.mark.parametrize("model", MODELS)
def test_one_tile_ends_with_the_newline(model: str) -> None:
    features, newline = torch.randn(1, 4, 3), torch.randn(3)
    owner = model_config(2, 28, scaled(NEXT_PINPOINTS, 28))
    theirs = reference_pack(model, owner, features, (5, 5), newline)
    (span,) = plan_spans(Layout(5, 5), vision(4, UnpadPacking()), "sequential")
    ours = span.pack([torch.cat([features[0], newline[None]]).numpy()])
    assert span.length == len(theirs) == 5
    assert (ours == theirs).all()
