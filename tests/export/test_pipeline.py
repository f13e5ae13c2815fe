"""From checkpoint to bundle: what comes out, what is refused, and that nothing half-made is left."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgevlm.bundle import Bundle
from edgevlm.cli import main
from edgevlm.errors import DriftError, ExportError, MissingDependencyError
from edgevlm.export import dependencies, plan
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.output_folder import check_disk, staged
from edgevlm.export.pipeline import estimate_bytes, export
from edgevlm.export.plan import make_plan
from edgevlm.export.usage import USAGE_NAME
from edgevlm.local_bundles import exported_bundles
from edgevlm.manifest import (
    MANIFEST_NAME,
    BoxTokenFormat,
    GridTiling,
    JsonFormat,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
    Manifest,
    StretchTiling,
    Usage,
)
from tests.conftest import Export
from tests.families import llava
from tests.support import checkpoints

FAMILIES = ("smolvlm", "idefics3", "paligemma", "paligemma2")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_is_complete_and_agrees(exported: Export, family: str) -> None:
    bundle = Bundle.open(exported(family).bundle)
    bundle.check_hashes()
    manifest = bundle.manifest
    listed = {entry.name for entry in manifest.files()} | {MANIFEST_NAME, "README.md"}
    assert {path.name for path in bundle.folder.iterdir()} == listed
    for path in bundle.folder.iterdir():
        assert b"site-packages" not in path.read_bytes(), (
            f"{path.name} tells of the machine that made it"
        )
    last = max(bundle.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert last.name == MANIFEST_NAME
    parity = manifest.parity
    assert parity is not None and not parity.drift_allowed and parity.positions == 48
    assert parity.vision["fp32"].relative_error < 1e-5
    assert parity.vision["int8"].relative_error < 0.04
    assert parity.decoder["f16"].relative_error < 5e-3
    assert parity.decoder["q8_0"].relative_error < 0.05
    assert parity.decoder["f16"].top1_agreement == 1.0
    bits = {name: entry.bits_per_weight or 0 for name, entry in manifest.decoder.files.items()}
    assert 16 < bits["f16"] < 19 and 8.5 < bits["q8_0"] < 11  # small models: the vocabulary weighs
    assert manifest.source.repository == "checkpoint" and manifest.source.revision is None
    assert manifest.source.license == "apache-2.0"
    assert {"torch", "transformers", "gguf", "onnxruntime"} < manifest.created_with.keys()


def test_what_smolvlm_puts_into_the_manifest(exported: Export) -> None:
    manifest = Manifest.load(exported("smolvlm").bundle)
    assert manifest.image.tiling == GridTiling((64, 64), "lanczos", longest_edge=256)
    assert manifest.image.normalization.mean == (0.5, 0.5, 0.5)
    assert (manifest.vision.tokens_per_tile, manifest.vision.width) == (4, 64)
    assert manifest.prompt.end_token_ids == (511,)
    assert manifest.prompt.template_variables["bos_token"] == "<|im_start|>"
    special = {token.text: token.id for token in manifest.prompt.special_tokens}
    assert special["<end_of_utterance>"] == 511 and special["<|im_start|>"] == 1
    assert manifest.decoder.attention == "causal" and manifest.decoder.embedding_scale == 1.0
    assert manifest.decoder.architecture == "llama" and manifest.decoder.vocabulary_size == 520
    assert manifest.usage is not None and manifest.usage.images == "photographs"
    assert manifest.usage.questions("ru").keys() == {"describe", "count", "read"}


def test_what_a_checkpoint_says_it_is_for_comes_before_its_family(
    pristine: Path, tmp_path: Path
) -> None:
    assert make_plan(Checkpoint.open(pristine)).usage.images == "photographs"
    folder = shutil.copytree(pristine, tmp_path / "checkpoint")
    location_format = '{"kind": "list", "scale": 100}'
    (folder / USAGE_NAME).write_text(
        f'{{"images": "drawings", "location_format": {location_format}}}'
    )
    assert make_plan(Checkpoint.open(folder)).usage == Usage("drawings", ListFormat(100))


@pytest.mark.parametrize(
    ("family", "location_format", "points"),
    [
        ("qwen2_vl", BoxTokenFormat(1000), False),
        ("qwen2_5_vl", JsonFormat(("bbox_2d",), ("point_2d",), "label", None), True),
        ("qwen3_vl", JsonFormat(("bbox_2d",), ("point_2d",), "label", 1000), True),
        ("qwen3_5", JsonFormat(("bbox_2d",), ("point_2d",), "label", 1000), True),
        ("smolvlm", None, False),
    ],
)
def test_families_say_how_they_write_boxes(
    family: str, location_format: LocationFormat | None, points: bool
) -> None:
    usage = find_family(family).usage("owner/name")
    assert usage.location_format == location_format
    tasks = {"describe", "count", "read"}
    tasks |= {"detect"} if location_format else set()
    assert usage.questions("en").keys() == tasks | ({"point"} if points else set())
    for task in usage.tasks.values():
        task.check()


@pytest.mark.parametrize(
    ("repository", "tasks"),
    [
        ("google/paligemma-3b-mix-224", {"describe", "detect", "count", "read"}),
        ("paligemma2-3b-mix-448", {"describe", "detect", "count", "read"}),
        ("google/paligemma-3b-pt-224", set()),
        ("mixed", set()),
    ],
)
def test_only_mix_checkpoints_of_paligemma_have_tasks(repository: str, tasks: set[str]) -> None:
    usage = find_family("paligemma").usage(repository)
    assert usage.images == "photographs" and usage.location_format == LocTokenFormat(1024)
    assert usage.questions("en").keys() == tasks


def test_what_paligemma_puts_into_the_manifest(exported: Export) -> None:
    manifest = Manifest.load(exported("paligemma2").bundle)
    assert manifest.usage == Usage("photographs", LocTokenFormat(1024))
    assert manifest.image.tiling == StretchTiling((56, 56), "bicubic")
    assert manifest.decoder.attention == "prefix"
    assert manifest.decoder.embedding_scale == pytest.approx(1 / 8)
    assert manifest.decoder.architecture == "gemma2"
    assert manifest.decoder.context_length == 64  # the sliding window, which cuts a prefix


def test_without_splitting_a_picture_is_one_tile(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints.smolvlm(tmp_path / "checkpoint", splitting=False))
    tiling = make_plan(checkpoint).image.tiling
    assert tiling == StretchTiling((64, 64), "lanczos", longest_edge=256)


def test_the_golden_answer_is_transformers_greedy_one(exported: Export) -> None:
    """Asked again without the exporter's own code: processor, model and loop are written out here."""
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image
    from transformers import AutoTokenizer, Idefics3Processor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    made = exported("smolvlm")
    golden = Manifest.load(made.bundle).golden
    assert golden is not None
    processor = Idefics3Processor(
        SmolVLMImageProcessorPil.from_pretrained(made.checkpoint),
        AutoTokenizer.from_pretrained(made.checkpoint),
        image_seq_len=4,
    )
    text = f"<|im_start|>User:<image>{golden.question}<end_of_utterance>\nAssistant:"
    picture = Image.open(BytesIO(b64decode(golden.picture_png)))
    inputs = processor(text=text, images=[picture], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(made.checkpoint).eval()
    ids = inputs["input_ids"]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < 32 and 511 not in found:
            logits = model(
                input_ids=ids,
                pixel_values=inputs["pixel_values"],
                pixel_attention_mask=inputs["pixel_attention_mask"],
            ).logits
            found.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[found[-1]]])], dim=1)
    assert golden.token_ids == tuple(found)


def test_the_card_says_what_is_in_the_bundle(exported: Export) -> None:
    bundle = exported("smolvlm").bundle
    card = (bundle / "README.md").read_text(encoding="utf-8")
    manifest = Manifest.load(bundle)
    for entry in manifest.files():
        assert f"`{entry.name}`" in card and f"{entry.size:,}" in card
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: checkpoint\n")
    assert "None" not in card and "A bound was exceeded" not in card


def test_optimum_cli_exports_from_the_hubs_cache_the_same_bytes(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, another command, a cached repository: hashes equal those of the first export."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = exported("smolvlm")
    repository = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(made.checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    command: list[str | Path] = [
        *(Path(sysconfig.get_path("scripts")) / "optimum-cli", "export", "edgevlm"),
        *("somebody/tiny", tmp_path / "bundle", "--local-files-only", "--quiet", "--quick"),
        *("--vision", "fp32,int8", "--decoder", "f16,q8_0"),
    ]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'bundle'}\n"
    assert exported_bundles() == [tmp_path / "bundle"], "it is listed for who looks for models"
    first, second = Manifest.load(made.bundle), Manifest.load(tmp_path / "bundle")
    assert second.name == "tiny"
    assert second.source == dataclasses.replace(
        first.source, repository="somebody/tiny", revision=COMMIT
    )
    assert second.vision == first.vision
    assert second.golden == first.golden
    # a GGUF carries the repository's name, so that its hash differs though its tensors do not
    assert second.parity == first.parity


def test_a_killed_export_leaves_no_bundle(tmp_path: Path) -> None:
    checkpoint = checkpoints.smolvlm(tmp_path / "checkpoint")
    parent = tmp_path / "out"
    parent.mkdir()
    code = "import sys; from edgevlm.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "export", checkpoint, parent / "bundle", "--quiet"],
        stderr=subprocess.DEVNULL,
    )
    while not list(parent.glob(".bundle.*.partial/vision.int8.onnx")):
        assert process.poll() is None, "the export ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (parent / "bundle").exists()
    assert not list(parent.rglob(MANIFEST_NAME))


def test_a_decoder_of_other_weights_is_drift(exported: Export, tmp_path: Path) -> None:
    """The same shapes and tokens, another seed: only parity can tell."""
    checkpoint = checkpoints.smolvlm(tmp_path / "checkpoint", seed=1)
    gguf = exported("smolvlm").bundle / "decoder.q8_0.gguf"
    out = tmp_path / "bundle"
    with pytest.raises(DriftError, match=r"q8_0: relative error 1.*--allow-drift"):
        export(checkpoint, out, vision=["fp32"], decoder_gguf=gguf, quick=True, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}

    manifest = export(
        checkpoint, out, vision=["fp32"], decoder_gguf=gguf, allow_drift=True, progress=False
    )
    assert manifest == Manifest.load(out)
    assert manifest.parity is not None and manifest.parity.drift_allowed
    assert list(manifest.decoder.files) == ["q8_0"]
    assert (out / "decoder.q8_0.gguf").read_bytes() == gguf.read_bytes()
    assert "A bound was exceeded" in (out / "README.md").read_text(encoding="utf-8")


def test_prompt_drift_is_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = dataclasses.replace(find_family("llava"), image_template="{{ image }}!")
    monkeypatch.setattr(plan, "find_family", lambda model_type, tower: family)
    checkpoint = llava.clip_llama(tmp_path / "checkpoint")
    message = r"from position \d+ on '!\\n.*' \[\d+, .*\], there '\\n.*' \["
    with pytest.raises(DriftError, match=message):
        export(checkpoint, tmp_path / "out", vision=["fp32"], decoder=["f16"], progress=False)


def test_a_decoder_of_another_model_is_refused(exported: Export, tmp_path: Path) -> None:
    checkpoint = exported("smolvlm").checkpoint
    other = exported("paligemma").bundle / "decoder.f16.gguf"
    with pytest.raises(
        ExportError, match="architecture 'gemma', the checkpoint's language model is 'llama'"
    ):
        export(checkpoint, tmp_path / "out", decoder_gguf=other, vision=["fp32"], progress=False)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExportError, match=r"garbage\.gguf is a big-endian GGUF file"):
        export(checkpoint, tmp_path / "out", decoder_gguf=garbage, vision=["fp32"], progress=False)
    assert not (tmp_path / "out").exists()


Damage = Callable[[Path], object]


def write_json(name: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}'
    )


DAMAGE: dict[str, tuple[Damage, str]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no safetensors weights",
    ),
    "pickled weights": (pickle_instead, r"only pickled ones \(pytorch_model\.bin\)"),
    "truncated weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        "not a complete safetensors file",
    ),
    "a missing shard": (index_instead, "names model-00002-of-00002"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
    "garbage for a configuration": (
        lambda folder: (folder / "config.json").write_text("{"),
        "not JSON",
    ),
    "unknown family": (write_json("config.json", model_type="fuyu"), "'fuyu' cannot be exported"),
    "unknown to transformers": (write_json("config.json", model_type="nope"), "model_type 'nope'"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "no chat template": (lambda folder: (folder / "chat_template.jinja").unlink(), "chat template"),
    "no image processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"no preprocessor_config\.json",
    ),
    "tiles of another size": (
        write_json("preprocessor_config.json", max_image_size={"longest_edge": 32}),
        r"tiles of 32 x 32 pixels, which the vision part does not take",
    ),
    "a usage of another form": (
        lambda folder: (folder / USAGE_NAME).write_text('{"images": "films"}'),
        r"edgevlm_usage\.json: usage\.images: must be one of drawings, photographs",
    ),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.smolvlm(tmp_path_factory.mktemp("pristine") / "checkpoint")


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused(
    pristine: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    folder = shutil.copytree(pristine, tmp_path / "checkpoint")
    damage(folder)
    with pytest.raises(ExportError, match=message):
        export(folder, tmp_path / "out", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_arguments_that_cannot_work_are_refused(pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="unknown vision precision 'int3'; edgevlm knows fp32, "):
        export(pristine, out, vision=["int3"])
    with pytest.raises(ExportError, match="unknown decoder type 'Q9'"):
        export(pristine, out, decoder=["Q9"])
    with pytest.raises(ExportError, match="once"):
        export(pristine, out, vision=["fp32", "fp32"])
    with pytest.raises(ExportError, match="at least one"):
        export(pristine, out, vision=[])
    with pytest.raises(ExportError, match="is a folder and has no revision"):
        export(pristine, out, revision="main")
    with pytest.raises(ExportError, match="neither a folder nor a hub repository"):
        export(tmp_path / "nothing", out)
    with pytest.raises(ExportError, match="is not in the hub's cache"):
        export("nobody/nothing", out, local_files_only=True)
    with pytest.raises(ExportError, match="make it first"):
        export(pristine, out / "deeper")
    with pytest.raises(ExportError, match="cannot write beside"), staged(Path("/proc/bundle")):
        pass
    out.mkdir()
    with pytest.raises(ExportError, match="out exists; give another folder or remove it"):
        export(pristine, out)
    assert list(out.iterdir()) == []


def test_too_little_disk_is_known_before_the_work(exported: Export, tmp_path: Path) -> None:
    made = exported("smolvlm")
    plan = make_plan(Checkpoint.open(made.checkpoint))
    needed = estimate_bytes(plan, ["fp32", "int8"], ["f16", "q8_0"])
    written = sum(entry.size for entry in Manifest.load(made.bundle).files())
    assert 0.8 * written < needed < 2 * written
    check_disk(tmp_path, needed)
    with pytest.raises(ExportError, match=r"the export needs about 1000000000\.0 GB"):
        check_disk(tmp_path, 10**18)


def test_the_command_reports_an_error_on_stderr(
    pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(pristine), str(tmp_path), "--decoder", "q8_0"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and f"{tmp_path} exists" in captured.err
    with pytest.raises(SystemExit) as exit_code:
        main(["export", str(pristine), "out", "--decoder", "f16", "--decoder-gguf", "x.gguf"])
    assert exit_code.value.code == 2


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    dependencies.check_dependencies()
    needed = (*dependencies.DISTRIBUTIONS, ("edgevlm-not-a-distribution",))
    monkeypatch.setattr(dependencies, "DISTRIBUTIONS", needed)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgevlm\[export\]'"):
        dependencies.check_dependencies()


@pytest.mark.slow
def test_smolvlm_256m_in_its_real_shape(tmp_path: Path) -> None:
    """Real configuration, random weights; the export alone keeps to its memory, measured from outside."""
    checkpoint = checkpoints.smolvlm_256m(tmp_path / "checkpoint")
    shard = max(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    code = """
import resource, sys
from pathlib import Path
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.pipeline import quantize_decoders, write_unquantized, write_vision
from edgevlm.export.plan import make_plan
plan = make_plan(Checkpoint.open(sys.argv[1]))
write_vision(plan, Path(sys.argv[2]), ["fp32", "fp16", "int8"], CalibrationImages.open(), progress=False)
files = write_unquantized(plan, Path(sys.argv[2]), ["f16", "q4_0"], progress=False)
quantize_decoders(files, ["q4_0"], {}, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    parts = tmp_path / "parts"
    parts.mkdir()
    command: list[str | Path] = [sys.executable, "-c", code, checkpoint, parts]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < shard + 3e9
    shutil.rmtree(parts)

    manifest = export(checkpoint, tmp_path / "bundle", decoder=["f16", "q8_0"], progress=False)
    parity = manifest.parity
    assert parity is not None
    assert parity.vision["fp32"].relative_error < 1e-4
    assert parity.vision["int8"].relative_error < 0.05
    assert parity.decoder["f16"].relative_error < 5e-3
    assert manifest.vision.tokens_per_tile == 64
    sizes = {name: entry.size for name, entry in manifest.decoder.files.items()}
    assert np.isclose(sizes["f16"], 328e6, rtol=0.02)  # untied: 57 MB more than tied
