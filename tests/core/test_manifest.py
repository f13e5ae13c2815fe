"""The manifest survives a round trip, and every damage to it is an error that names the field.

`tests/core/test_manifest_version_1.py` has the older format.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from edgevlm.errors import BundleError
from edgevlm.manifest import (
    AnswerDrift,
    AnswerReport,
    AnyResolutionTiling,
    AspectGridTiling,
    BoxTokenFormat,
    CanvasTiling,
    CoveringGridTiling,
    CropTiling,
    CrossPacking,
    DecoderSpec,
    Drift,
    FileEntry,
    FitTiling,
    FloorResizeTiling,
    FramePacking,
    Golden,
    GridTiling,
    ImageSpec,
    JsonFormat,
    LinesPacking,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
    LongestEdgeTiling,
    Manifest,
    Normalization,
    OnnxDecoderSpec,
    OwnSizeGridTiling,
    OwnSizeTiling,
    Packing,
    PanAndScanTiling,
    ParityReport,
    PromptSpec,
    ScaledGridTiling,
    SliceTiling,
    SmartResizeTiling,
    Source,
    SpecialToken,
    StretchTiling,
    Tasks,
    TextInput,
    TiledPacking,
    Tiling,
    UnpadPacking,
    Usage,
    VisionSpec,
)

EXAMPLE = Manifest(
    schema_version=2,
    name="example",
    source=Source("owner/name", "0123abcd", "smolvlm", "apache-2.0"),
    image=ImageSpec(
        GridTiling((64, 64), "lanczos", longest_edge=256),
        Normalization((0.5,) * 3, (0.5,) * 3, 1 / 255),
    ),
    vision=VisionSpec(
        "tiles",
        "embeddings",
        4,
        0,
        32,
        TiledPacking(),
        {"fp32": FileEntry("vision.fp32.onnx", 7, "0" * 64)},
    ),
    prompt=PromptSpec(
        chat_template="{{ messages }}",
        template_variables={"bos_token": "<s>"},
        image_placeholder="<start_of_image>",
        image_template="<start_of_image>{{ image }}",
        image_token="<image>",
        special_tokens=(SpecialToken("<image>", 3), SpecialToken("<end>", 4, strip_left=True)),
        end_token_ids=(4,),
        begin_token_ids=(1,),
        normalization="nfc",
        space_prefix="metaspace-first",
        added_tokens=("<loc0000>",),
        splitting="tekken",
    ),
    decoder=DecoderSpec(
        "llama",
        32,
        100,
        512,
        "causal",
        "sequential",
        1.0,
        None,
        {"f16": FileEntry("decoder.f16.gguf", 9, "a" * 64, 16.0)},
    ),
    parity=ParityReport(
        2,
        3,
        40,
        {
            "fp32": Drift(1e-6, 1e-4),
            "int8": Drift(
                0.02,
                None,
                centered_error=0.03,
                max_token_error=0.1,
                centered_error_by_image=(0.02, 0.04),
            ),
        },
        {"f16": Drift(1e-3, 5e-3, 1.0)},
        False,
        texts=5000,
        answers=AnswerReport(
            exact_vision="fp32",
            exact_decoder="f16",
            auto_vision="int8",
            auto_decoder="f16",
            images=("cat", "room"),
            positions=40,
            image_kl=1.5,
            image_agreement=0.4,
            context_kl=2.0,
            context_agreement=0.1,
            pairs=(
                AnswerDrift(
                    vision="int8",
                    decoder="f16",
                    kl=0.01,
                    max_kl=0.5,
                    kl_by_image=(0.005, 0.015),
                    kl_bound=0.02,
                    top1_agreement=0.95,
                    agreement_bound=0.8,
                    same_start=0.7,
                ),
            ),
        ),
    ),
    golden=Golden("AAAA", "What?", (5, 4)),
    created_with={"edgevlm": "0.1.0"},
    usage=Usage(
        "photographs",
        ListFormat(100),
        {"en": Tasks("Describe it.", "Where is {thing}?", "Point to {thing}.")},
    ),
)


def test_round_trip() -> None:
    assert Manifest.from_json(EXAMPLE.to_json()) == EXAMPLE


def test_files_of_a_vision_graph() -> None:
    graph, weights = EXAMPLE.vision.files["fp32"], FileEntry("vision.data", 9, "1" * 64)
    tokenizer = FileEntry("vision.tokenizer.json", 3, "2" * 64)
    vision = dataclasses.replace(
        EXAMPLE.vision,
        weights={"fp32": weights},
        text_input=TextInput("question", tokenizer, 12),
    )
    example = dataclasses.replace(EXAMPLE, vision=vision)
    assert Manifest.from_json(example.to_json()) == example
    assert EXAMPLE.vision.needed(graph) == [graph]
    assert vision.needed(graph) == [graph, weights, tokenizer]
    assert vision.weight_files == {"fp32": weights}
    assert example.files()[:3] == [graph, weights, tokenizer]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("vision", "weights"),
            {"int8": 1},
            r"vision\.weights: must have precisions of files, \['fp32'\]",
        ),
        (
            ("vision", "text_input", "max_tokens"),
            0,
            r"vision\.text_input\.max_tokens: must be positive",
        ),
    ],
)
def test_files_that_do_not_fit(path: tuple[str, ...], value: Any, message: str) -> None:
    entry = FileEntry("vision.tokenizer.json", 3, "2" * 64)
    vision = dataclasses.replace(EXAMPLE.vision, text_input=TextInput("question", entry, 12))
    if path[-1] == "weights":
        value = {"int8": dataclasses.asdict(entry)}
    with pytest.raises(BundleError, match=message):
        Manifest.from_dict(replaced(path, value, dataclasses.replace(EXAMPLE, vision=vision)))


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested objects and lists."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def named(path: tuple[Any, ...]) -> str:
    return "manifest" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def json_format(**changed: object) -> dict[str, object]:
    known = {"kind": "json", "box_keys": ["a"], "point_keys": [], "label_key": None, "scale": 1000}
    return {**known, **changed}


PATHS = list(paths(json.loads(EXAMPLE.to_json())))
OPTIONAL = {
    (name,)
    for name in (
        "added_tokens",
        "onnx",
        "layer_embeddings",
        "splitting",
        "text_input",
        "weights",
        "answers",
        "centered_error",
        "centered_error_by_image",
        "max_token_error",
        "texts",
        "strip_left",
        "strip_right",
        "bits_per_weight",
        "top1_agreement",
        "longest_edge",
        "usage",
        "video",
        "tool_calls",
        "video_placeholder",
        "video_template",
        "images",
        "location_format",
        "calibration",
        "default_max_tokens",
        "pixels_per_token",
        "tasks",
        "describe",
        "detect",
        "point",
        "count",
        "read",
    )
}
FREE_KEYS = {"files", "vision", "decoder", "template_variables", "created_with", "tasks"}


def without(path: tuple[Any, ...], example: Manifest = EXAMPLE) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(example.to_json())
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


def replaced(path: tuple[Any, ...], value: object, example: Manifest = EXAMPLE) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(example.to_json())
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = copy.deepcopy(value)
    return data


FIELDS = [
    path
    for path in PATHS
    if isinstance(path[-1], str)
    and (path[-1],) not in OPTIONAL
    and not (len(path) > 1 and path[-2] in FREE_KEYS and path[0] in ("parity", "created_with"))
    and not (len(path) > 1 and path[-2] in ("files", "template_variables", "tasks"))
]


@pytest.mark.parametrize("path", FIELDS, ids=named)
def test_a_missing_field_is_named(path: tuple[Any, ...]) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(without(path))
    assert str(caught.value) == f"{named(path)}: missing"


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_a_wrong_type_is_named(path: tuple[Any, ...]) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(replaced(path, object()))
    assert named(path) in str(caught.value)


@pytest.mark.parametrize("version", [0, 3, "1", "2", None, 1.5, 1.0, True])
def test_an_unknown_schema_version_says_what_to_do(version: object) -> None:
    with pytest.raises(
        BundleError, match=r"manifest\.schema_version.*install the edgevlm that made"
    ):
        Manifest.from_dict(replaced(("schema_version",), version))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vision", "width"), 33, "must equal decoder.width 32"),
        (("vision", "files"), {}, "must not be empty"),
        (("vision", "files", "fp32", "name"), "../../etc/passwd", "plain file name"),
        (("vision", "files", "fp32", "name"), "decoder.f16.gguf", "one file twice"),
        (("vision", "files", "fp32", "sha256"), "xyz", "64 lower-case"),
        (("vision", "tokens_per_tile"), True, "must be int"),
        (("vision", "learned_rows"), -1, "manifest.vision.learned_rows: must not be negative"),
        (
            ("vision", "packing", "kind"),
            "tile",
            "must be one of tiles, unpad, lines, frame, cross, is 'tile'",
        ),
        (("image", "tiling", "tile_size"), [64, 32], "must be square"),
        (("image", "tiling", "tile_size"), [64], "must have 2 entries"),
        (("image", "tiling", "kind"), "magic", "one of stretch, grid, crop, fit, any-resolution, "),
        (("image", "tiling", "kind"), "magic", "newer edgevlm made the bundle, install it"),
        (("image", "tiling", "resample"), "cubic", "must be one of"),
        (("prompt", "image_placeholder"), "", "manifest.prompt.image_placeholder: must not be"),
        (("prompt", "image_template"), "", "manifest.prompt.image_template: must not be empty"),
        (("prompt", "image_token"), "", "manifest.prompt.image_token: must not be empty"),
        (("prompt", "begin_token_ids"), [1, -1], "must not be negative"),
        (("prompt", "normalization"), "nfkc", "must be one of nfc, is 'nfkc'"),
        (("prompt", "splitting"), "gpt-4o", "must be one of tekken, is 'gpt-4o'"),
        (("prompt", "space_prefix"), "always", "one of never, prepend, metaspace-always, "),
        (("prompt", "end_token_ids"), [], "must not be empty"),
        (("decoder", "embedding_scale"), 0, "must be positive"),
        (("decoder", "attention"), "sideways", "one of causal, prefix, images"),
        (("decoder", "attention"), "prefix", "text_embedding_scale: must be a number for prefix"),
        (("decoder", "text_embedding_scale"), 0, "must be positive or null"),
        (("surplus",), 1, "manifest.surplus: unknown field"),
        (("usage", "images"), "sketches", "one of drawings, photographs, is 'sketches'"),
        (
            ("usage", "location_format"),
            {"kind": "list", "scale": 0},
            "scale: must be positive, is 0",
        ),
        (
            ("usage", "location_format"),
            {"kind": "loc-tokens", "bins": 0},
            "bins: must be from 1 to 10000",
        ),
        (
            ("usage", "location_format"),
            {"kind": "box-tokens", "scale": -1},
            "scale: must be positive",
        ),
        (("usage", "location_format"), json_format(box_keys=["a", "b"]), "must be one key or four"),
        (
            ("usage", "location_format"),
            json_format(point_keys=["x"] * 3),
            "must be no key, one or two",
        ),
        (("usage", "location_format"), json_format(scale=0), "scale: must be positive or null"),
        (
            ("usage", "location_format"),
            "percent",
            "manifest.usage.location_format: must be an object",
        ),
        (("usage", "boxes"), "pixels", "manifest.usage.boxes: unknown field"),
        (("usage", "tasks"), {"English": {}}, "two lower-case letters"),
        (("usage", "tasks", "en", "sing"), "Sing.", "manifest.usage.tasks.en.sing: unknown field"),
        (("usage", "tasks", "en", "detect"), "Where is it?", "must contain {thing}"),
        (("usage", "tasks", "en", "count"), "How many {things}?", "no other braces"),
        (("usage", "tasks", "en", "point"), "{thing} or {thing}?", "{thing} once"),
        (("usage", "tasks", "en", "read"), " ", "must not be empty"),
    ],
)
def test_a_value_out_of_range_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(replaced(path, value))
    assert message in str(caught.value)


SIZE = (64, 64)
ANY_RESOLUTION = AnyResolutionTiling(SIZE, "bicubic", ((64, 128), SIZE))
MEMBERS: dict[str, tuple[str, str, Tiling | Packing | LocationFormat]] = {
    "stretch": ("image", "tiling", StretchTiling(SIZE, "bicubic", longest_edge=7)),
    "grid": ("image", "tiling", GridTiling(SIZE, "lanczos")),
    "crop": ("image", "tiling", CropTiling(SIZE, "bicubic", 64, (1, 2, 3))),
    "fit": ("image", "tiling", FitTiling(SIZE, "bicubic", 14, (0, 127, 255))),
    "any-resolution": ("image", "tiling", ANY_RESOLUTION),
    "aspect-grid": ("image", "tiling", AspectGridTiling(SIZE, "bicubic", 1, 12)),
    "covering-grid": ("image", "tiling", CoveringGridTiling(SIZE, "bicubic", 12)),
    "scaled-grid": ("image", "tiling", ScaledGridTiling(SIZE, "bicubic", 12)),
    "pan-and-scan": ("image", "tiling", PanAndScanTiling(SIZE, "bilinear", 256, 4, 1.2)),
    "smart-resize": ("image", "tiling", SmartResizeTiling(28, 784, 7840, "bicubic")),
    "floor-resize": ("image", "tiling", FloorResizeTiling(48, 645120, 645120, "bicubic")),
    "own-size-grid": (
        "image",
        "tiling",
        OwnSizeGridTiling(32, 65536, 262144, "bilinear", 512, 2, 10, 2.0, overview=True),
    ),
    "longest-edge": ("image", "tiling", LongestEdgeTiling(28, 1540, "bicubic")),
    "slices": ("image", "tiling", SliceTiling(56, 448, 9, "bicubic")),
    "canvas": ("image", "tiling", CanvasTiling(560, 4, "bilinear")),
    "tiles": ("vision", "packing", TiledPacking()),
    "lines": ("vision", "packing", LinesPacking()),
    "unpad": ("vision", "packing", UnpadPacking(9)),
    "frame": ("vision", "packing", FramePacking()),
    "cross": ("vision", "packing", CrossPacking(1601)),
    "list": ("usage", "location_format", ListFormat(1)),
    "loc-tokens": ("usage", "location_format", LocTokenFormat(1024)),
    "box-tokens": ("usage", "location_format", BoxTokenFormat(1000)),
    "json": ("usage", "location_format", JsonFormat(("bbox_2d",), ("point_2d",), "label", 1000)),
}
"""Each member of the unions by its kind, and the field that holds it."""
OWN_SIZE: dict[str, Any] = {"tokens_per_tile": None, "pixels_per_token": 28}
"""Fields of a vision graph whose tiles differ in size."""
GRAPHS = OnnxDecoderSpec(
    files={"int8": FileEntry("decoder.int8.onnx", 7, "0" * 64)},
    weights={"int8": FileEntry("decoder.int8.onnx.data", 7, "0" * 64)},
    tokenizer=FileEntry("decoder.tokenizer.json", 7, "0" * 64),
    embeddings=FileEntry("decoder.embeddings.npy", 7, "0" * 64),
    window=None,
)


def manifest_with(kind: str) -> tuple[tuple[str, str], Manifest]:
    """Return the path of a union's field, and a manifest that has the member with this kind there."""
    section, name, member = MEMBERS[kind]
    assert member.kind == kind
    inner = getattr(EXAMPLE, section)
    further: dict[str, Any] = {}
    if isinstance(member, UnpadPacking | FramePacking):
        further = {"learned_rows": member.learned_rows}
    if isinstance(member, LinesPacking):
        further = OWN_SIZE
    changed = dataclasses.replace(inner, **{name: member}, **further)
    changes = {section: changed}
    if isinstance(member, UnpadPacking):
        changes["image"] = dataclasses.replace(EXAMPLE.image, tiling=ANY_RESOLUTION)
    if isinstance(member, FramePacking):
        tiling = CoveringGridTiling(SIZE, "bicubic", 12)
        changes["image"] = dataclasses.replace(EXAMPLE.image, tiling=tiling)
    if isinstance(member, OwnSizeTiling):
        changes["vision"] = dataclasses.replace(EXAMPLE.vision, **OWN_SIZE)
    if isinstance(member, LinesPacking):
        own_size = LongestEdgeTiling(28, 1540, "bicubic")
        changes["image"] = dataclasses.replace(EXAMPLE.image, tiling=own_size)
    if isinstance(member, CanvasTiling | CrossPacking):
        canvas = CanvasTiling(560, 4, "bilinear")
        changes["image"] = dataclasses.replace(EXAMPLE.image, tiling=canvas)
        changes["vision"] = dataclasses.replace(
            EXAMPLE.vision, packing=CrossPacking(1601), **OWN_SIZE
        )
        changes["decoder"] = dataclasses.replace(
            EXAMPLE.decoder, attention="cross", files={}, onnx=GRAPHS
        )
    return (section, name), dataclasses.replace(EXAMPLE, **changes)


def test_embeddings_of_layers() -> None:
    """A graph needs their table, and texts are decoded as tokens then. Older bundles have no such field."""
    table = FileEntry("decoder.layer_embeddings.npy", 7, "0" * 64)
    graphs = dataclasses.replace(GRAPHS, layer_embeddings=table)
    decoder = dataclasses.replace(EXAMPLE.decoder, onnx=graphs, text_embedding_scale=None)
    manifest = dataclasses.replace(EXAMPLE, decoder=decoder)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert table in manifest.files()
    assert table in decoder.needed(graphs.files["int8"])
    scaled = replaced(("decoder", "text_embedding_scale"), 1.0, manifest)
    with pytest.raises(BundleError, match=r"must be null with onnx\.layer_embeddings"):
        Manifest.from_dict(scaled)
    older = Manifest.from_dict(without(("decoder", "onnx", "layer_embeddings"), manifest))
    assert older.decoder.onnx == GRAPHS


def test_all_members_of_unions_are_tried() -> None:
    assert {type(member) for *_, member in MEMBERS.values()} == {
        *get_args(Tiling),
        *get_args(Packing),
        *get_args(LocationFormat),
    }


@pytest.mark.parametrize("kind", MEMBERS)
def test_each_kind_survives_a_round_trip(kind: str) -> None:
    _, example = manifest_with(kind)
    assert Manifest.from_json(example.to_json()) == example


@pytest.mark.parametrize("kind", MEMBERS)
def test_every_damage_to_each_kind_is_named(kind: str) -> None:
    """A field is missing, unknown or of a wrong type."""
    path, example = manifest_with(kind)
    inner = json.loads(example.to_json())[path[0]][path[1]]
    required = {
        entry.name
        for entry in dataclasses.fields(MEMBERS[kind][2])
        if entry.name == "kind" or entry.default is dataclasses.MISSING
    }
    damages = [
        *(
            (without((*path, name), example), f"{named((*path, name))}: missing")
            for name in required
        ),
        *(
            (replaced((*path, *deeper), object(), example), named((*path, *deeper)))
            for deeper in paths(inner)
        ),
        (replaced((*path, "surplus"), 1, example), f"{named((*path, 'surplus'))}: unknown field"),
        (replaced(path, [kind], example), f"{named(path)}: must be an object"),
        (replaced((*path, "kind"), "magic", example), f"{named((*path, 'kind'))}: must be one of"),
        (replaced((*path, "kind"), None, example), f"{named((*path, 'kind'))}: must be one of"),
        (replaced((*path, "kind"), [kind], example), f"{named((*path, 'kind'))}: must be one of"),
    ]
    if not isinstance(MEMBERS[kind][2], LocationFormat):
        message = f"{named(path)}: must be an object, is None"
        damages.append((replaced(path, None, example), message))
    for damaged, message in damages:
        with pytest.raises(BundleError) as caught:
            Manifest.from_dict(damaged)
        assert message in str(caught.value)


def test_usage_of_older_bundles_is_read_in_the_words_of_today() -> None:
    tasks = {"en": {"describe": "Describe it.", "find": "Where is {thing}?"}}
    old = {"images": "drawings", "boxes": "percent", "tasks": tasks}
    new = Usage("drawings", ListFormat(100), {"en": Tasks("Describe it.", "Where is {thing}?")})
    assert Usage.from_dict(old) == Manifest.from_dict(replaced(("usage",), old)).usage == new
    assert Usage.from_dict({"boxes": None}) == Usage()
    assert Usage.from_dict(json.loads(json.dumps(dataclasses.asdict(new)))) == new
    for damage, message in (
        ({**old, "location_format": None}, "usage.boxes: unknown field"),
        ({"boxes": ["percent"]}, "usage.boxes: unknown field"),
        ({"tasks": {"en": {"find": "{thing}", "detect": "{thing}"}}}, "en.find: unknown field"),
        ({"tasks": {"en": []}}, "usage.tasks.en: must be an object"),
        ([], "usage: must be an object"),
    ):
        with pytest.raises(BundleError, match=message):
            Usage.from_dict(damage)


def test_a_field_of_another_kind_is_unknown() -> None:
    _, example = manifest_with("stretch")
    with pytest.raises(BundleError, match=r"manifest\.image\.tiling\.longest_edge: unknown field"):
        Manifest.from_dict(replaced(("image", "tiling", "kind"), "crop", example))


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("stretch", "tile_size", [0, 64], "tile_size: must be positive"),
        ("stretch", "longest_edge", 0, "longest_edge: must be positive or null"),
        ("grid", "longest_edge", -1, "longest_edge: must be positive or null"),
        ("crop", "tile_size", [64, -1], "tile_size: must be positive"),
        ("crop", "shortest_edge", 0, "shortest_edge: must be positive"),
        ("crop", "pad_color", [0, 0, 256], "pad_color: must be from 0 to 255"),
        ("crop", "pad_color", [0, 0], "pad_color: must have 3 entries"),
        ("fit", "min_side", 0, "min_side: must be positive and not exceed the tile"),
        ("fit", "min_side", 65, "min_side: must be positive and not exceed the tile"),
        ("fit", "tile_size", [64, 32], "tile_size: must be square"),
        ("fit", "pad_color", [-1, 0, 0], "pad_color: must be from 0 to 255"),
        ("any-resolution", "resolutions", [], "resolutions: must not be empty"),
        (
            "any-resolution",
            "resolutions",
            [[64, 96]],
            "resolutions: must be multiples of the tile_",
        ),
        ("any-resolution", "resolutions", [[0, 64]], "resolutions: must be multiples of the tile_"),
        ("aspect-grid", "min_tiles", 0, "min_tiles: must be positive"),
        ("aspect-grid", "max_tiles", 0, "max_tiles: must be at least min_tiles 1"),
        ("covering-grid", "max_tiles", 0, "max_tiles: must be positive"),
        ("covering-grid", "tile_size", [64, 32], "tile_size: must be square for the covering-grid"),
        ("scaled-grid", "max_tiles", 0, "max_tiles: must be positive"),
        ("scaled-grid", "tile_size", [64, 32], "tile_size: must be square for the scaled-grid"),
        ("pan-and-scan", "min_crop_size", 0, "min_crop_size: must be positive"),
        ("pan-and-scan", "max_crops", 0, "max_crops: must be positive"),
        ("pan-and-scan", "min_ratio", 0.9, "min_ratio: must be at least 1"),
        ("smart-resize", "factor", 0, "factor: must be positive"),
        ("smart-resize", "min_pixels", 0, "min_pixels: must be positive"),
        ("smart-resize", "max_pixels", 783, "max_pixels: must be at least min_pixels 784"),
        ("smart-resize", "min_side", 0, "min_side: must be positive"),
        ("own-size-grid", "tile_side", 500, "tile_side: must be a positive multiple of factor 32"),
        ("own-size-grid", "min_tiles", 0, "min_tiles: must be positive"),
        ("own-size-grid", "max_tiles", 1, "max_tiles: must be at least min_tiles 2"),
        ("own-size-grid", "max_area_ratio", 0, "max_area_ratio: must be positive"),
        ("longest-edge", "factor", 0, "factor: must be positive"),
        ("longest-edge", "longest_edge", 0, "longest_edge: must be positive"),
        ("slices", "factor", 0, "factor: must be positive"),
        ("slices", "tile_side", 0, "tile_side: must be positive"),
        ("slices", "max_tiles", 0, "max_tiles: must be positive"),
        ("canvas", "factor", 0, "factor: must be positive"),
        ("canvas", "max_tiles", 0, "max_tiles: must be positive"),
        ("unpad", "max_tiles", 0, "max_tiles: must be positive or null"),
        ("cross", "rows_per_square", 0, "rows_per_square: must be positive"),
    ],
)
def test_a_value_of_a_kind_out_of_range_is_named(
    kind: str, name: str, value: object, message: str
) -> None:
    path, example = manifest_with(kind)
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(replaced((*path, name), value, example))
    assert f"{named(path)}.{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens_per_tile", 5, "tokens_per_tile: must be a square number for the unpad packing"),
        ("learned_rows", 0, "learned_rows: must be 1 for the unpad packing"),
    ],
)
def test_what_unpadding_needs(name: str, value: int, message: str) -> None:
    _, example = manifest_with("unpad")
    with pytest.raises(BundleError, match=message):
        Manifest.from_dict(replaced(("vision", name), value, example))


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        (
            "smart-resize",
            ("vision", "pixels_per_token"),
            None,
            "vision.pixels_per_token: must be a number if tokens_per_tile is null",
        ),
        (
            "smart-resize",
            ("vision", "tokens_per_tile"),
            4,
            'vision.tokens_per_tile: must be null for the tiles of "smart-resize"',
        ),
        ("smart-resize", ("vision", "pixels_per_token"), 0, "must be positive or null, is 0"),
        ("smart-resize", ("decoder", "attention"), "images", "only with tiles of one size"),
        (
            "stretch",
            ("decoder", "positions"),
            "grid",
            '"grid" only with a number for vision.pixels',
        ),
        ("lines", ("decoder", "positions"), "grid", 'pixels_per_token and the packing "tiles"'),
        ("lines", ("decoder", "attention"), "images", 'only with the packing "tiles"'),
        ("stretch", ("vision", "packing"), {"kind": "lines"}, "a number for the lines packing"),
        ("stretch", ("decoder", "positions"), "cube", "must be one of sequential, grid"),
        ("stretch", ("image", "default_max_tokens"), 0, "must be positive or null, is 0"),
    ],
)
def test_what_tiles_of_any_size_need(
    kind: str, path: tuple[str, str], value: object, message: str
) -> None:
    _, example = manifest_with(kind)
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(replaced(path, value, example))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("decoder", "attention"),
            "causal",
            'vision.packing: must be "cross" if decoder.attention',
        ),
        (("vision", "pixels_per_token"), None, "pixels_per_token: must be a number"),
        (("prompt", "image_token"), "<other>", "prompt.image_token: must be one of special_tokens"),
        (("image", "tiling", "kind"), "slices", 'vision.packing: must be "cross" if image.tiling'),
        (
            ("decoder", "files"),
            {"f16": dataclasses.asdict(FileEntry("decoder.f16.gguf", 7, "0" * 64))},
            "decoder.files: must be empty for cross-attention",
        ),
    ],
)
def test_what_cross_attention_needs(path: tuple[str, ...], value: object, message: str) -> None:
    _, example = manifest_with("cross")
    data = replaced(path, value, example)
    if value == "slices":
        data["image"]["tiling"]["tile_side"] = 448
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(data)
    assert message in str(caught.value)


def test_the_number_of_embeddings_fits_the_tiles() -> None:
    _, example = manifest_with("smart-resize")
    data = replaced(("vision", "tokens_per_tile"), 4, example)
    data["vision"]["pixels_per_token"] = None
    with pytest.raises(BundleError, match=r'tokens_per_tile: must be null for .* "smart-resize"'):
        Manifest.from_dict(data)


FIXED: Manifest = dataclasses.replace(
    EXAMPLE,
    image=dataclasses.replace(EXAMPLE.image, tiling=StretchTiling((56, 84), "bicubic")),
    vision=dataclasses.replace(EXAMPLE.vision, tokens_per_tile=6, pixels_per_token=28),
)
"""Of a checkpoint that takes images of any size, exported with one size."""


@pytest.mark.parametrize("packing", [TiledPacking(), LinesPacking()], ids=lambda one: one.kind)
@pytest.mark.parametrize("positions", ["sequential", "grid"])
def test_an_image_size_that_the_export_fixed(packing: Packing, positions: Any) -> None:
    example = dataclasses.replace(
        FIXED,
        vision=dataclasses.replace(FIXED.vision, packing=packing),
        decoder=dataclasses.replace(FIXED.decoder, positions=positions),
    )
    if isinstance(packing, LinesPacking) and positions == "grid":
        with pytest.raises(BundleError, match='and the packing "tiles"'):
            Manifest.from_json(example.to_json())
        return
    found = Manifest.from_json(example.to_json())
    assert found == example and found.vision.fixed_by_export
    assert not EXAMPLE.vision.fixed_by_export


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vision", "tokens_per_tile"), 5, "vision.tokens_per_tile: must be the number of squares"),
        (("vision", "pixels_per_token"), 14, "of 14 x 14 pixels in a tile of 84 x 56, is 6"),
        (("image", "tiling", "tile_size"), [56, 83], "in a tile of 83 x 56, is 6"),
        (("image", "tiling", "kind"), "grid", 'image.tiling: must be "stretch" if'),
    ],
)
def test_what_a_fixed_image_size_needs(path: tuple[str, ...], value: object, message: str) -> None:
    data = replaced(path, value, FIXED)
    if value == "grid":
        data["image"]["tiling"]["tile_size"] = [56, 56]
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(data)
    assert message in str(caught.value)


def test_unpadding_needs_tiles_of_any_resolution() -> None:
    _, example = manifest_with("unpad")
    other = json.loads(EXAMPLE.to_json())["image"]
    with pytest.raises(BundleError, match=r"manifest\.vision\.packing: .*any-resolution"):
        Manifest.from_dict(replaced(("image",), other, example))


def test_a_bundle_without_usage_stays_valid() -> None:
    assert Manifest.from_dict(without(("usage",))).usage is None
    assert Manifest.from_dict(replaced(("usage",), None)).usage is None
    assert Manifest.from_dict(replaced(("usage",), {})).usage == Usage()


def test_questions_are_in_the_language_or_in_english() -> None:
    usage = Usage(tasks={"en": Tasks(read="ocr"), "ru": Tasks(describe="Опиши.")})
    assert usage.questions("ru") == {"describe": "Опиши."}
    assert usage.questions("fr") == {"read": "ocr"}
    assert Usage().questions("en") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", '"text"'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="manifest"):
        Manifest.from_json(text)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="is not a bundle"):
        Manifest.load(tmp_path)
