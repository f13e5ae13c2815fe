"""A checkpoint's files, each damaged in turn: one line names the right one, and nothing is left."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgevlm.cli import main
from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.front_matter import base_model, front_matter, read_license
from edgevlm.export.parity import check_preparation
from edgevlm.export.plan import load_image_processor, make_plan
from tests.families import llava
from tests.support import checkpoints
from tests.support.damage import change_json, change_weights

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.smolvlm(tmp_path_factory.mktemp("pristine") / "checkpoint")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, pristine: Path) -> Path:
    """The same weights in two files."""
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("sharded") / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {SHARDS[0]: names[::2], SHARDS[1]: names[1::2]}
    for shard, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / shard, {"format": "pt"})
    index = {name: shard for shard, part in parts.items() for name in part}
    change_json(folder / INDEX, metadata={}, weight_map=index)
    return folder


def refused(folder: Path, damage: Damage, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, with exit code 1, in one line, and without a trace."""
    damage(folder)
    assert main(["export", str(folder), str(folder.parent / "out"), "--quiet"]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("edgevlm: error:")]
    assert captured.out == "" and len(lines) == 1 and captured.err.endswith(lines[0] + "\n")
    with pytest.raises(ExportError, match=message):
        raise ExportError(lines[0])
    assert {path.name for path in folder.parent.iterdir()} == {"checkpoint"}


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def values(name: str, **changes: Any) -> Damage:
    return lambda folder: change_json(folder / name, **changes)


def rename(name: str, other: str) -> Damage:
    return lambda folder: (folder / name).rename(folder / other)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    return lambda folder: change_weights(folder, change)


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:512].clone()


FILES: dict[str, tuple[Damage, str]] = {
    "a list for a configuration": (
        text("config.json", "[]"),
        r"config\.json must hold a JSON object",
    ),
    "an empty configuration": (text("config.json", ""), r"config\.json is not JSON"),
    "no model type": (text("config.json", "{}"), r"config\.json has no model_type"),
    "a wrong type inside": (
        values("config.json", text_config=7),
        r"transformers cannot read .*config\.json",
    ),
    "a fraction of a layer": (
        values("config.json", scale_factor="2"),
        r"transformers cannot read .*config\.json",
    ),
    "weights that transformers reads elsewhere": (
        values("config.json", transformers_weights="other.safetensors"),
        r"config\.json names other\.safetensors as the weights \(transformers_weights\)",
    ),
    "no sizes": (
        values("config.json", scale_factor=0),
        r"proj\.weight has shape \[64, 256\], the configuration asks for \[64, 0\]",
    ),
    "another image token": (
        values("config.json", image_token_id=3),
        r"config\.json says that the image token is 3, in tokenizer\.json <image> is 510",
    ),
    "weights of another shape": (weights(narrow), r"lm_head\.weight has shape \[512, 64\], config"),
    "weights of nothing": (
        text("model.safetensors", ""),
        r"model\.safetensors is not a complete safetensors file",
    ),
    "a pointer for weights": (
        text("model.safetensors", POINTER),
        r"model\.safetensors is not a complete safetensors file.*Git LFS pointer: git lfs pull",
    ),
    "weights under another name": (
        rename("model.safetensors", "consolidated.safetensors"),
        r"under the names that transformers reads .* but consolidated\.safetensors",
    ),
    "a GGUF file for weights": (
        rename("model.safetensors", "model.gguf"),
        r"only model\.gguf; a GGUF file alone has no vision part",
    ),
    "an empty tokenizer": (text("tokenizer.json", ""), r"tokenizer\.json is not JSON"),
    "a pointer for a tokenizer": (
        text("tokenizer.json", POINTER),
        r"tokenizer\.json is .* LFS pointer",
    ),
    "half a tokenizer": (
        values("tokenizer.json", model=None),
        r"transformers cannot .*tokenizer\.json",
    ),
    "a tokenizer's settings": (
        text("tokenizer_config.json", "[]"),
        r"tokenizer_config\.json must hold a JSON object",
    ),
    "no token for images": (
        lambda folder: change_json(
            folder / "tokenizer.json",
            added_tokens=[
                added
                for added in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
                if added["content"] != "<image>"
            ],
        ),
        r"says that the image token is 510, in tokenizer\.json <image> is 511",
    ),
    "an end of nothing": (
        values("generation_config.json", eos_token_id="<end>"),
        r"generation_config\.json has eos_token_id '<end>'",
    ),
    "an end beyond the vocabulary": (
        values("generation_config.json", eos_token_id=[2, 520]),
        r"generation_config\.json has eos_token_id \[2, 520\]; it must be token ids below 520",
    ),
    "settings of generation": (
        text("generation_config.json", "{"),
        r"generation_config\.json is not",
    ),
    "no image processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"has no preprocessor_config\.json",
    ),
    "an image processor of nothing": (
        text("preprocessor_config.json", "x"),
        r"preprocessor_config\.json",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES.keys())
def test_the_right_file_is_blamed(
    pristine: Path,
    tmp_path: Path,
    damage: Damage,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(Path(shutil.copytree(pristine, tmp_path / "checkpoint")), damage, message, capsys)


def test_image_token_that_the_tokenizer_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' processor of LLaVA, unlike that of SmolVLM, adds no token."""

    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokens = json.loads(path.read_text())["added_tokens"]
        change_json(path, added_tokens=[token for token in tokens if token["content"] != "<image>"])
        change_json(folder / "tokenizer_config.json", image_token=None)

    message = r"tokenizer\.json has no token <image>, which stands for the embeddings"
    refused(llava.clip_llama(tmp_path / "checkpoint"), damage, message, capsys)


def mapped(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        change_json(folder / INDEX, weight_map={**index, **changes})

    return damage


def twice(folder: Path) -> None:
    first, second = (load_file(folder / shard) for shard in SHARDS)
    name = min(first)
    save_file({**second, name: first[name]}, folder / SHARDS[1], {"format": "pt"})


INDICES: dict[str, tuple[Damage, str]] = {
    "not JSON": (text(INDEX, "{"), r"index\.json is not JSON"),
    "no map": (text(INDEX, "{}"), r"index\.json has no weight_map"),
    "an empty map": (text(INDEX, '{"weight_map": {}}'), r"index\.json has no weight_map"),
    "a list for a map": (text(INDEX, '{"weight_map": ["x"]}'), r"index\.json has no weight_map"),
    "a number for a file": (mapped(extra=7), r"names 7, which is not a file of its folder"),
    "a file outside": (
        mapped(extra="../../secret.safetensors"),
        r"names '\.\./.* not a file of its folder",
    ),
    "a file from the root": (
        mapped(extra="/etc/x.safetensors"),
        r"names '/etc.* not a file of its folder",
    ),
    "a pickle": (mapped(extra="model.bin"), r"names 'model\.bin', which is not a safetensors file"),
    "a tensor that is not there": (mapped(extra=SHARDS[0]), r"says that extra is in model-00001"),
    "a tensor in the other shard": (
        mapped(**{"lm_head.weight": SHARDS[1]}),
        r"says that lm_head\.weight is in model-00002.*, which does not hold it",
    ),
    "a missing shard": (
        lambda folder: (folder / SHARDS[1]).unlink(),
        r"index\.json names model-00002-of-00002\.safetensors, which .* lacks",
    ),
    "an empty shard": (
        text(SHARDS[1], ""),
        r"model-00002-of-00002\.safetensors is not a complete",
    ),
    "a tensor twice": (twice, r"is in both model-00001-of-00002\.safetensors and model-00002"),
    "no index": (lambda folder: (folder / INDEX).unlink(), r"under the names .* but model-00001"),
}


@pytest.mark.parametrize(("damage", "message"), INDICES.values(), ids=INDICES.keys())
def test_shards_that_contradict_their_index(
    sharded: Path,
    tmp_path: Path,
    damage: Damage,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(Path(shutil.copytree(sharded, tmp_path / "checkpoint")), damage, message, capsys)


def test_one_file_is_read_before_an_index(pristine: Path, sharded: Path, tmp_path: Path) -> None:
    """As transformers does; the index may be a leftover."""
    make_plan(Checkpoint.open(sharded))
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    (folder / INDEX).write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    assert {entry.file.name for entry in Checkpoint.open(folder).tensors.values()} == {
        "model.safetensors"
    }


@pytest.mark.parametrize("value", [[2, 511], [511, 511, 2], 511])
def test_ends_of_an_answer(pristine: Path, tmp_path: Path, value: Any) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    change_json(folder / "generation_config.json", eos_token_id=value)
    expected = tuple(dict.fromkeys(value)) if isinstance(value, list) else (value,)
    assert make_plan(Checkpoint.open(folder)).prompt.end_token_ids == expected
    for nothing in ('{"eos_token_id": null}', '{"eos_token_id": []}', "{}"):
        (folder / "generation_config.json").write_text(nothing)
        assert Checkpoint.open(folder).end_token_ids() == (2,)  # the language model's own


PREPARATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "size as a number": (
        {"size": 512},
        r"size is \{'height': 512, 'width': 512\}, it must have longest",
    ),
    "size as a list": ({"size": [64, 64]}, r"size is \{'height': 64"),
    "the shortest edge": ({"size": {"shortest_edge": 256}}, r"size is \{'shortest_edge': 256\}"),
    "size as a text": ({"size": {"longest_edge": "256"}}, r"longest_edge': '256'\}, it must have"),
    "size beyond reason": ({"size": {"longest_edge": 10**9}}, r"whole number of 1 to 16384"),
    "a tile as a number": (
        {"max_image_size": 64},
        r"max_image_size is 64, it must have longest_edge",
    ),
    "a tile of two sides": (
        {"max_image_size": {"height": 64, "width": 64}},
        r"max_image_size is \{",
    ),
    "a filter's name": (
        {"resample": "lanczos"},
        r"resample is 'lanczos', it must be one of .* 1 \(lan",
    ),
    "a filter that nobody has": (
        {"resample": "magic"},
        r"resample is 'magic', it must be one of",
    ),
    "a filter that edgevlm lacks": ({"resample": 4}, r"resample is 4, it must be one of"),
    "two means": (
        {"image_mean": [0.5, 0.5]},
        r"image_mean is \(0\.5, 0\.5\), it must be one number",
    ),
    "no deviation": ({"image_std": 0}, r"image_std is 0, it must be one number or three"),
    "a factor as a text": (
        {"rescale_factor": "1/255"},
        r"rescale_factor is '1/255', it must be a num",
    ),
}


@pytest.mark.parametrize(("changes", "message"), PREPARATIONS.values(), ids=PREPARATIONS.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_settings_that_cannot_be_computed(
    pristine: Path, tmp_path: Path, changes: dict[str, Any], message: str, nested: bool
) -> None:
    """The file that holds them is named: transformers takes those inside processor_config.json first."""
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    name = "preprocessor_config.json"
    change_json(folder / name, **changes)
    if nested:
        inner = json.loads((folder / name).read_text())
        (folder / name).unlink()
        name = "processor_config.json"
        change_json(folder / name, image_processor=inner)
    with pytest.raises(ExportError, match=message) as error:
        make_plan(Checkpoint.open(folder))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"do_resize": False}, "lanczos"),
        ({"crop_size": 64, "do_center_crop": True, "nobody_knows": {"a": [1]}}, "lanczos"),
        ({"image_mean": 0.5, "image_std": 0.5, "resample": 1}, "lanczos"),
        ({"resample": 3}, "bicubic"),
        ({"resample": 2}, "bilinear"),
    ],
)
def test_settings_in_other_forms(
    pristine: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """Taken if they make transformers' pixels, which the export compares."""
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    change_json(folder / "preprocessor_config.json", **changes)
    image = make_plan(Checkpoint.open(folder)).image
    assert image.tiling.resample == expected
    assert image.normalization.mean == image.normalization.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 56}, r"size has only shortest_edge, .*do_center_crop must be true"),
        ({"size": {"height": 56}}, r"transformers cannot read|it must have width"),
        (
            {"crop_size": 50, "do_center_crop": True},
            r"crop_size is \(50, 50\), it must equal size \(56, 56\) or be left out",
        ),
        ({"do_resize": False}, r"do_resize is False, it must be true"),
    ],
)
def test_settings_of_another_family(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = checkpoints.paligemma(tmp_path / "checkpoint")
    change_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(ExportError, match=message):
        make_plan(Checkpoint.open(folder))


def test_other_pixels_are_found_before_the_work(pristine: Path) -> None:
    """What transformers makes of an image is compared with what edgevlm makes, whatever the settings say."""
    checkpoint = Checkpoint.open(pristine)
    plan = make_plan(checkpoint)
    file = pristine / "preprocessor_config.json"
    processor = load_image_processor(checkpoint, plan.family)
    check_preparation(processor, plan.image, file)
    tiling = dataclasses.replace(plan.image.tiling, resample="bicubic")
    normalization = dataclasses.replace(plan.image.normalization, mean=(0.5, 0.4, 0.5))
    for other in (
        dataclasses.replace(plan.image, tiling=tiling),
        dataclasses.replace(plan.image, normalization=normalization),
    ):
        with pytest.raises(
            ExportError, match="makes other pixels than edgevlm of an image of 128 x 32"
        ):
            check_preparation(processor, other, file)


CARDS: dict[str, tuple[bytes, str]] = {
    "a licence": (b"---\nlicense: mit\n---\n# A model", "mit"),
    "a name for another": (b"---\nlicense: other\nlicense_name: our own\n---\n", "our own"),
    "another without a name": (b"---\nlicense: other\n---\n", "other"),
    "several": (b"---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
    "none": (b"---\ntags: [x]\n---\n", "unknown"),
    "no front matter": (b"# A model\nlicense: mit\n", "unknown"),
    "nothing": (b"", "unknown"),
    "broken YAML": (b"---\nlicense: mit\nx: [1, {\n---\n", "unknown"),
    "a list": (b"---\n- license\n---\n", "unknown"),
    "a text": (b"---\nlicense\n---\n", "unknown"),
    "no end": (b"---\nlicense: mit\n", "unknown"),
    "a number": (b"---\nlicense: 3\n---\n", "unknown"),
    "a dictionary": (b"---\nlicense: {mit: 1}\n---\n", "unknown"),
    "null": (b"---\nlicense:\n---\n", "unknown"),
    "several lines": (b"---\nlicense: |\n  one\n  two\n---\n", "one two"),
    "a mark at the start": (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
    "UTF-16": ("---\nlicense: mit\n---\n".encode("utf-16"), "mit"),
    "Latin-1": (b"---\nlicense: mit\nauthor: Andr\xe9\n---\nna\xefve", "mit"),
    "lines of Windows": (b"---\r\nlicense: mit\r\n---\r\n", "mit"),
    "bytes": (bytes(range(256)) * 20, "unknown"),
    "a day that is none": (b"---\nlicense: mit\nday: 2026-02-31\n---\n", "unknown"),
    "code": (b"---\nlicense: !!python/object/apply:os.getcwd []\n---\n", "unknown"),
    "depth": (b"---\nlicense: " + b"[" * 5000 + b"\n---\n", "unknown"),
}


@pytest.mark.parametrize(("content", "expected"), CARDS.values(), ids=CARDS.keys())
def test_a_licence_is_all_that_is_wanted_of_a_readme(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "README.md").write_bytes(content)
    assert read_license(tmp_path) == expected


@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_readme_fails(tmp_path: Path, content: bytes) -> None:
    for start in (b"", b"---\n"):
        (tmp_path / "README.md").write_bytes(start + content + b"\n---\n")
        assert isinstance(front_matter(tmp_path), dict)
        license_ = read_license(tmp_path)
        assert license_ and "\n" not in license_
        assert base_model(tmp_path) is None or isinstance(base_model(tmp_path), str)


def test_a_readme_that_is_a_folder_or_missing(tmp_path: Path) -> None:
    assert read_license(tmp_path) == "unknown"
    (tmp_path / "README.md").mkdir()
    assert read_license(tmp_path) == "unknown"


def test_settings_of_wrong_types_never_end_in_another_error(pristine: Path, tmp_path: Path) -> None:
    """Each value of the configuration replaced by others: the plan is made, or an `ExportError` says why."""
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    original = json.loads((folder / "config.json").read_text())
    wrong: list[Any] = [None, -1, 10**9, "x", [1], {}]
    places = [
        (part, name)
        for part in (None, "text_config", "vision_config")
        for name in (original if part is None else original[part])
        if name not in ("transformers_version", "architectures", "dtype")
    ]
    refusals = 0
    for number, (part, name) in enumerate(places):
        value = wrong[number % len(wrong)]
        changed = json.loads(json.dumps(original))
        (changed if part is None else changed[part])[name] = value
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            make_plan(Checkpoint.open(folder))
        except ExportError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > len(places) / 3
