"""The manifest survives a round trip, and every damage to it is an error that names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import BundleError
from edgevlm.manifest import (
    DecoderSpec,
    Drift,
    FileEntry,
    Golden,
    ImagePreparation,
    ImageTemplate,
    Manifest,
    ParityReport,
    PromptSpec,
    Source,
    SpecialToken,
    Tasks,
    Usage,
    VisionSpec,
)

EXAMPLE = Manifest(
    schema_version=1,
    name="example",
    source=Source("owner/name", "0123abcd", "smolvlm", "apache-2.0"),
    image=ImagePreparation("grid", (64, 64), "lanczos", 256, (0.5,) * 3, (0.5,) * 3, 1 / 255),
    vision=VisionSpec(
        "tiles", "embeddings", 4, 32, {"fp32": FileEntry("vision.fp32.onnx", 7, "0" * 64)}
    ),
    prompt=PromptSpec(
        chat_template="{{ messages }}",
        template_variables={"bos_token": "<s>"},
        image_token="<image>",
        image_spelling=ImageTemplate("{image}", "<row_{row}_col_{column}>{image}", "\n", "{image}"),
        special_tokens=(SpecialToken("<image>", 3), SpecialToken("<end>", 4, strip_left=True)),
        end_token_ids=(4,),
    ),
    decoder=DecoderSpec(
        "llama",
        32,
        100,
        512,
        "causal",
        "sequential",
        1.0,
        {"f16": FileEntry("decoder.f16.gguf", 9, "a" * 64, 16.0)},
    ),
    parity=ParityReport(
        2, 3, 40, {"fp32": Drift(1e-6, 1e-4)}, {"f16": Drift(1e-3, 5e-3, 1.0)}, False
    ),
    golden=Golden("AAAA", "What?", (5, 4)),
    created_with={"edgevlm": "0.1.0"},
    usage=Usage("photographs", "percent", {"en": Tasks("Describe it.", "Where is {thing}?")}),
)


def test_round_trip() -> None:
    assert Manifest.from_json(EXAMPLE.to_json()) == EXAMPLE


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


PATHS = list(paths(json.loads(EXAMPLE.to_json())))
OPTIONAL = {
    (name,)
    for name in (
        "strip_left",
        "strip_right",
        "bits_per_weight",
        "top1_agreement",
        "tile",
        "row_end",
        "overview",
        "usage",
        "images",
        "boxes",
        "calibration",
        "tasks",
        "describe",
        "find",
        "count",
        "read",
    )
}
FREE_KEYS = {"files", "vision", "decoder", "template_variables", "created_with", "tasks"}


def without(path: tuple[Any, ...]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(EXAMPLE.to_json())
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


def replaced(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(EXAMPLE.to_json())
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


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
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
        (("image", "tile_size"), [64, 32], "must be square"),
        (("image", "tile_size"), [64], "must have 2 entries"),
        (("image", "strategy"), "magic", "one of stretch, grid, is 'magic'"),
        (("image", "resample"), "cubic", "must be one of"),
        (("prompt", "image_spelling", "whole"), "none", "{image} once"),
        (("prompt", "image_token"), "<other>", "must be one of special_tokens"),
        (("prompt", "end_token_ids"), [], "must not be empty"),
        (("decoder", "embedding_scale"), 0, "must be positive"),
        (("decoder", "attention"), "sideways", "one of causal, prefix"),
        (("surplus",), 1, "manifest.surplus: unknown field"),
        (("usage", "images"), "sketches", "one of drawings, photographs, is 'sketches'"),
        (("usage", "boxes"), "pixels", "must be one of percent"),
        (("usage", "tasks"), {"English": {}}, "two lower-case letters"),
        (("usage", "tasks", "en", "sing"), "Sing.", "manifest.usage.tasks.en.sing: unknown field"),
        (("usage", "tasks", "en", "find"), "Where is it?", "must contain {thing}"),
        (("usage", "tasks", "en", "count"), "How many {things}?", "no other braces"),
        (("usage", "tasks", "en", "find"), "{thing} or {thing}?", "{thing} once"),
        (("usage", "tasks", "en", "read"), " ", "must not be empty"),
    ],
)
def test_a_value_out_of_range_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(replaced(path, value))
    assert message in str(caught.value)


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
