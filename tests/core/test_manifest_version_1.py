"""Manifests of schema version 1 stay readable: as the same bundle in the words of version 2.

`tests/manifests/version-1` has manifests that the exporter wrote in version 1, of the checkpoints of
`tests/bundles`. `tests/export/test_manifest_version_1.py` compares them with today's exports.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.errors import BundleError
from edgevlm.inputs.prompt import PromptBuilder, SpanSegment
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import GridTiling, Manifest, StretchTiling, TiledPacking
from tests.support.oracle import BUNDLES, FAMILIES

GOLDEN = Path(__file__).resolve().parents[1] / "manifests" / "version-1"


def golden(family: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / f"{family}.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    return data


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_manifests_are_those_of_the_bundles(family: str) -> None:
    manifest = Manifest.from_dict(golden(family))
    assert manifest.schema_version == 2
    assert manifest == Manifest.load(BUNDLES / family)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_parser_changes_no_input() -> None:
    data = golden("smolvlm")
    Manifest.from_dict(data)
    assert data == golden("smolvlm")


def test_each_field_of_version_1_is_kept() -> None:
    data = golden("smolvlm")
    manifest = Manifest.from_dict(data)
    image, prompt = data["image"], data["prompt"]
    assert manifest.image.tiling == GridTiling(
        tuple(image["tile_size"]), image["resample"], longest_edge=image["longest_edge"]
    )
    scaling = manifest.image.normalization
    assert list(scaling.mean) == image["mean"] and list(scaling.std) == image["std"]
    assert scaling.rescale_factor == image["rescale_factor"]
    assert manifest.vision.packing == TiledPacking() and manifest.vision.learned_rows == 0
    assert manifest.prompt.image_placeholder == prompt["image_token"]
    assert manifest.prompt.image_token == prompt["image_token"]
    assert manifest.prompt.begin_token_ids == ()
    assert manifest.prompt.normalization is None and manifest.prompt.space_prefix == "never"
    assert manifest.decoder.text_embedding_scale == 1
    stretch = Manifest.from_dict(golden("paligemma")).image.tiling
    assert isinstance(stretch, StretchTiling)


def test_the_built_in_model_loads_whatever_its_version() -> None:
    manifest = Bundle.open(DEFAULT_MODEL).manifest
    assert manifest.schema_version == 2
    assert Manifest.from_json(manifest.to_json()) == manifest


# --- damage -------------------------------------------------------------------------------------

OPTIONAL = {
    "strip_left",
    "strip_right",
    "bits_per_weight",
    "top1_agreement",
    "tile",
    "row_end",
    "overview",
    "usage",
    "calibration",
}
FREE_KEYS = {"files", "template_variables", "tasks", "usage", "en", "ru", "created_with"}
"""Objects whose keys, or some of them, can be missing."""


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the places in nested objects, and over the first two entries of each list."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data[:2])
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def named(path: tuple[Any, ...]) -> str:
    return "manifest" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


PATHS = list(paths(golden("smolvlm")))
FIELDS = [
    path
    for path in PATHS
    if isinstance(path[-1], str)
    and path[-1] not in OPTIONAL
    and not (len(path) > 1 and path[-2] in FREE_KEYS)
    and not (path[0] == "parity" and len(path) > 1 and path[-2] in ("vision", "decoder"))
]


def changed(path: tuple[Any, ...], *value: object) -> dict[str, Any]:
    """Return a golden manifest with another value in a place, or without it."""
    data = golden("smolvlm")
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if value:
        inner[path[-1]] = copy.deepcopy(value[0])
    else:
        del inner[path[-1]]
    return data


@pytest.mark.parametrize("path", FIELDS, ids=named)
def test_a_missing_field_is_named_as_in_version_1(path: tuple[Any, ...]) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(changed(path))
    assert str(caught.value) == f"{named(path)}: missing"


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_a_wrong_type_is_named_as_in_version_1(path: tuple[Any, ...]) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(changed(path, object()))
    assert named(path) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("image", "strategy"),
            "magic",
            "image.strategy: must be one of stretch, grid, is 'magic'",
        ),
        (("image", "strategy"), "crop", "image.strategy: must be one of stretch, grid, is 'crop'"),
        (("image", "tile_size"), [64], "manifest.image.tile_size: must have 2 entries"),
        (("image", "tile_size"), [64, 32], "tile_size: must be square"),
        (("image", "longest_edge"), 0, "longest_edge: must be positive or null"),
        (("image", "tiling"), {}, "manifest.image.tiling: unknown field"),
        (("vision", "packing"), {"kind": "tiles"}, "manifest.vision.packing: unknown field"),
        (("vision", "learned_rows"), 0, "manifest.vision.learned_rows: unknown field"),
        (("vision", "width"), 33, "must equal decoder.width"),
        (("prompt", "image_token"), "<other>", "must be one of special_tokens"),
        (("prompt", "image_template"), "{{ image }}", "prompt.image_template: unknown field"),
        (("prompt", "image_spelling", "whole"), "none", "whole: must contain {image} once"),
        (("prompt", "image_spelling", "whole"), "", "whole: must contain {image} once"),
        (("prompt", "image_spelling", "tile"), "{image}{image}", "must contain {image} once"),
        (("prompt", "image_spelling", "overview"), "none", "must contain {image} once"),
        (("prompt", "image_spelling", "other"), "", "image_spelling.other: unknown field"),
        (("decoder", "text_embedding_scale"), 1.0, "text_embedding_scale: unknown field"),
        (("decoder", "attention"), "sideways", "must be one of causal, prefix"),
        (("surplus",), 1, "manifest.surplus: unknown field"),
    ],
)
def test_a_wrong_value_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(changed(path, value))
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FAMILIES), st.data())
def test_any_json_anywhere_is_read_or_refused(family: str, data: st.DataObject) -> None:
    manifest = golden(family)
    path = data.draw(st.sampled_from(list(paths(manifest))))
    inner: Any = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(JSON)
    try:
        found = Manifest.from_dict(manifest)
    except BundleError as error:
        assert str(error).startswith("manifest")
    else:
        assert Manifest.from_json(found.to_json()) == found


# --- the texts of an image ----------------------------------------------------------------------


def spell_image(
    spelling: dict[str, str], image_token: str, rows: int, columns: int
) -> tuple[str, int]:
    """Return what edgevlm wrote for an image while version 1 was the newest, and its number of tiles."""
    if rows == 0 and columns == 0:
        return spelling["whole"].replace("{image}", image_token), 1
    written = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            tile = spelling["tile"].replace("{row}", str(row)).replace("{column}", str(column))
            written.append(tile.replace("{image}", image_token))
        written.append(spelling["row_end"])
    written.append(spelling["overview"].replace("{image}", image_token))
    return "".join(written), rows * columns + 1


PIECES = st.sampled_from(
    [
        *("{", "}", "{{", "}}", "{%", "%}", "{#", "#}", "%", "#", "-", "\\", "\\n", '"', "'"),
        *("\n", "\r", "\r\n", " ", "\t", "\x00", "\x85", "\u2028", "é", "字", "😀", "\ufeff"),
        *("{row}", "{column}", "{rows}", "{tiles}", "{{ row }}", "{% raw %}", "{% endraw %}"),
        *(
            "{% if x %}",
            "{{ image }}",
            "{im",
            "age}",
            "{ image }",
            "<row_",
            "_col_",
            "text",
            "${x}",
        ),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join)


def with_image(before: str, after: str) -> str:
    return f"{before}{{image}}{after}"


WITH_IMAGE = st.builds(with_image, TEXTS, TEXTS).filter(lambda text: text.count("{image}") == 1)


@settings(max_examples=150, deadline=None)
@given(
    whole=WITH_IMAGE,
    tile=WITH_IMAGE,
    row_end=TEXTS,
    overview=WITH_IMAGE,
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.just((0, 0)),
)
def test_the_image_template_writes_what_the_texts_wrote(
    whole: str, tile: str, row_end: str, overview: str, grid: tuple[int, int]
) -> None:
    """The template is rendered as `PromptBuilder` renders it."""
    spelling = {"whole": whole, "tile": tile, "row_end": row_end, "overview": overview}
    check_spelling(spelling, *grid)


@settings(max_examples=50, deadline=None)
@given(whole=WITH_IMAGE)
def test_a_model_that_never_splits_needs_one_text(whole: str) -> None:
    check_spelling({"whole": whole, "tile": "", "row_end": "", "overview": ""}, 0, 0)


def check_spelling(spelling: dict[str, str], rows: int, columns: int) -> None:
    data = golden("smolvlm")
    data["prompt"]["image_spelling"] = spelling
    spec = Manifest.from_dict(data).prompt
    layout = Layout(9, 9, rows, columns, rows * columns if rows else None)
    expected, tiles = spell_image(spelling, spec.image_token, rows, columns)
    assert layout.tiles == tiles
    builder = PromptBuilder(spec, lambda text: [])
    places = expected.count(spec.image_token)
    assert builder._media_text(0, layout, places) == expected


@pytest.mark.parametrize("grid", [(0, 0), (1, 1), (2, 3), (4, 4)])
def test_the_golden_prompts_have_a_place_for_each_tile(grid: tuple[int, int]) -> None:
    spec = Manifest.from_dict(golden("smolvlm")).prompt
    rows, columns = grid
    layout = Layout(9, 9, rows, columns, rows * columns if rows else None)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    segments = PromptBuilder(spec, lambda text: [9]).build([message], [(layout, layout.tiles)])
    spans = [segment for segment in segments if isinstance(segment, SpanSegment)]
    assert spans == [SpanSegment(0, span) for span in range(layout.tiles)]
