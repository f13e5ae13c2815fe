"""The report on answers: recomputed with PyTorch and NumPy, and what it says of planted damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from edgevlm import VLM
from edgevlm.cli.inspect import format_manifest
from edgevlm.divergence import same_start
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_decoder
from edgevlm.engine.teacher_forcing import FORCED_TOKENS_PER_CALL
from edgevlm.errors import DriftError
from edgevlm.export import answers, bounds, parity
from edgevlm.export.answers import Files, Scene, measure_answers
from edgevlm.export.bounds import Scale, answer_bounds
from edgevlm.export.calibration import PHOTOGRAPHS
from edgevlm.export.card import write_card
from edgevlm.export.cli import summary
from edgevlm.export.pipeline import export
from edgevlm.export.report import describe, within_bounds
from edgevlm.export.stored_vision import StoredVision
from edgevlm.manifest import AnswerReport, Manifest
from tests.conftest import Export, Exported
from tests.core.test_manifest_version_1 import golden
from tests.support import checkpoints
from tests.support.reference import Reference


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Decode with one thread: these models are too small for more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            answers,
            "load_decoder",
            lambda *arguments, **options: load_decoder(*arguments, **options, threads=1),
        )
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("answers")
    checkpoint = checkpoints.smolvlm(folder / "checkpoint")
    export(checkpoint, folder / "bundle", decoder=["q8_0", "f16"], progress=False)
    return Exported(checkpoint, folder / "bundle")


def report_of(manifest: Manifest) -> AnswerReport:
    assert manifest.parity is not None and manifest.parity.answers is not None
    return manifest.parity.answers


def files_of(bundle: Path) -> Files:
    manifest = Manifest.load(bundle)
    return Files(
        manifest,
        bundle,
        {name: bundle / entry.name for name, entry in manifest.vision.files.items()},
        {name: bundle / entry.name for name, entry in manifest.decoder.files.items()},
    )


def test_a_report_recomputed_with_pytorch(made: Exported) -> None:
    """Pixels, prompts, language model and greedy answers of transformers, graphs in ONNX Runtime alone."""
    manifest = Manifest.load(made.bundle)
    report = report_of(manifest)
    reference = Reference(made.checkpoint, "smolvlm")
    reference.processor.image_processor.size = {"longest_edge": 64}  # one tile
    model = reference.model
    images = {
        f"drawing of {width} x {height}": parity.draw_shapes(width, height)
        for width, height in parity.SIZES
    }
    images |= {path.stem: Image.open(path).convert("RGB") for path in PHOTOGRAPHS.glob("*.jpg")}
    assert len(images) == 14 and set(images) == set(report.images)
    graphs = {
        name: onnxruntime.InferenceSession(made.bundle / f"vision.{name}.onnx")
        for name in ("fp32", "int8")
    }
    prompts = []
    embeddings: dict[str, list[NDArray[np.float32]]] = {"fp32": [], "int8": []}
    for index, name in enumerate(report.images):
        inputs = reference.question(images[name], parity.QUESTIONS[index % 2])
        prompts.append(inputs["input_ids"][0])
        pixels = inputs["pixel_values"].reshape(-1, 3, 64, 64).permute(0, 2, 3, 1).numpy()
        tile = np.rint((pixels * 0.5 + 0.5) * 255).astype(np.uint8)
        for precision, graph in graphs.items():
            (rows,) = graph.run(None, {"tiles": tile})
            embeddings[precision].append(rows.reshape(-1, rows.shape[-1]))

    @torch.no_grad()
    def logits(prompt: torch.Tensor, rows: NDArray[np.float32], answer: list[int]) -> torch.Tensor:
        embedded = model.get_input_embeddings()(torch.cat([prompt, torch.tensor(answer).long()]))
        embedded[: len(prompt)][prompt == model.config.image_token_id] = torch.from_numpy(rows)
        hidden = model.model.text_model(inputs_embeds=embedded[None]).last_hidden_state
        return model.lm_head(hidden)[0, len(prompt) - 1 :].double().log_softmax(-1)

    exact, other, int8 = [], [], []
    for index, (prompt, rows) in enumerate(zip(prompts, embeddings["fp32"], strict=True)):
        answer: list[int] = []
        while len(answer) < 24 and answer[-1:] != [511]:
            answer.append(int(logits(prompt, rows, answer)[-1].argmax()))
        exact.append(logits(prompt, rows, answer[:-1]))
        another = embeddings["fp32"][(index + 1) % len(prompts)]
        other.append(logits(prompt, another, answer[:-1]))
        int8.append(logits(prompt, embeddings["int8"][index], answer[:-1]))

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p.exp() * (p - q)).sum(-1)

    p, q = torch.cat(exact), torch.cat(int8)
    assert report.positions == len(p)
    assert report.image_kl == pytest.approx(float(kl(p, torch.cat(other)).mean()), rel=0.02)
    mean = p.exp().mean(0).log()
    assert report.context_kl == pytest.approx(float(kl(p, mean).mean()), rel=0.02)
    pair = next(pair for pair in report.pairs if (pair.vision, pair.decoder) == ("int8", "f16"))
    # llama.cpp rounds to f16, which is a tenth of so small a divergence.
    assert pair.kl == pytest.approx(float(kl(p, q).mean()), rel=0.2)
    assert pair.max_kl == pytest.approx(float(kl(p, q).max()), rel=0.2)
    by_image = [float(kl(ours, theirs).mean()) for ours, theirs in zip(exact, int8, strict=True)]
    assert pair.kl_by_image == pytest.approx(by_image, rel=0.3)
    agreement = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert pair.top1_agreement == pytest.approx(agreement, abs=0.01)

    assert manifest.parity is not None
    drift = manifest.parity.vision["int8"]
    theirs, ours = np.stack(embeddings["fp32"]), np.stack(embeddings["int8"])
    varying = theirs - theirs.mean((0, 1))
    error = np.linalg.norm(ours - theirs)
    assert drift.relative_error == pytest.approx(error / np.linalg.norm(theirs), rel=1e-3)
    assert drift.centered_error == pytest.approx(error / np.linalg.norm(varying), rel=1e-3)
    errors = [
        np.linalg.norm(a - b) / np.linalg.norm(c)
        for a, b, c in zip(ours, theirs, varying, strict=True)
    ]
    assert drift.centered_error_by_image == pytest.approx(errors, rel=1e-3)
    distances = np.linalg.norm(varying, axis=2)
    distances = np.maximum(distances, np.sqrt(np.mean(distances**2)))
    worst = (np.linalg.norm(ours - theirs, axis=2) / distances).max()
    assert drift.max_token_error == pytest.approx(worst, rel=1e-3)


def test_the_start_of_an_answer_needs_no_second_answer(made: Exported) -> None:
    """What a pair answers by itself differs from the exact answer where the forced answer says."""
    files = files_of(made.bundle)
    scenes = answers.make_scenes(files.manifest)
    starts = []
    with (
        closing(load(files, scenes, "fp32", "f16")) as exact,
        closing(load(files, scenes, "int8", "q8_0")) as pair,
    ):
        for scene in scenes:
            tokens, logits = exact.greedy_answer(scene.messages, [scene.image], 24)
            assert logits.argmax(axis=1).tolist() == list(tokens)
            again = exact.logits(
                scene.messages, [scene.image], tokens, tokens_per_call=FORCED_TOKENS_PER_CALL
            )
            np.testing.assert_array_equal(logits, again)
            own, _ = pair.greedy_answer(scene.messages, [scene.image], 24)
            starts.append(same_start(tokens, own) / len(tokens))
    assert 0.1 < np.mean(starts) < 1
    report = report_of(files.manifest)
    found = next(pair for pair in report.pairs if report.is_automatic(pair))
    assert (found.vision, found.decoder) == ("int8", "q8_0")
    assert found.same_start == pytest.approx(np.mean(starts))


def load(files: Files, scenes: list[Scene], vision: str, decoder: str) -> Engine:
    images = [scene.image for scene in scenes]
    stored = StoredVision(files.manifest, files.vision[vision], images)
    return answers.load_engine(files.manifest, stored, files.decoder[decoder], scenes)


def test_the_report_has_every_file_and_the_pair_that_is_loaded(made: Exported) -> None:
    manifest = Manifest.load(made.bundle)
    report = report_of(manifest)
    assert (report.exact_vision, report.exact_decoder) == ("fp32", "f16")
    pairs = [(pair.vision, pair.decoder) for pair in report.pairs]
    assert pairs == [("int8", "f16"), ("fp32", "q8_0"), ("int8", "q8_0")]
    assert all(map(within_bounds, report.pairs))
    with VLM.from_pretrained(made.bundle, device="cpu", threads=1) as vlm:
        loaded = vlm.vision_file, vlm.decoder_file
    assert loaded == (
        manifest.vision.files[report.auto_vision],
        manifest.decoder.files[report.auto_decoder],
    )
    assert manifest.parity is not None
    bounded = {
        name for name, drift in manifest.parity.vision.items() if drift.bound is not None
    } | {name for name, drift in manifest.parity.decoder.items() if drift.bound is not None}
    assert bounded == {"fp32", "f16"}, "the exact pair is compared with transformers"
    card = (made.bundle / "README.md").read_text(encoding="utf-8")
    assert card == write_card(manifest)
    assert "| **int8** | **q8_0** |" in card and "Short form" not in card and "None" not in card
    text = format_manifest(manifest)
    assert "int8        q8_0     KL " in text and "loaded on a CPU" in text
    assert "short form" not in text
    assert any("int8 with q8_0: KL" in line for line in summary(manifest))


def test_the_exact_pair_alone_has_nothing_to_compare(made: Exported, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(made.checkpoint, out, vision=["fp32"], decoder=["f16"], progress=False)
    report = report_of(Manifest.load(out))
    assert report.pairs == () and report.image_kl > 0
    assert "## Answers" not in (out / "README.md").read_text(encoding="utf-8")


def test_the_short_form_says_so(exported: Export) -> None:
    bundle = exported("smolvlm").bundle
    manifest = Manifest.load(bundle)
    assert manifest.parity is not None and manifest.parity.answers is None
    assert "**Short form**" in (bundle / "README.md").read_text(encoding="utf-8")
    assert "short form" in format_manifest(manifest) and "short form" in summary(manifest)[-1]
    old = Manifest.from_dict(golden("smolvlm"))
    assert "short form" in format_manifest(old)


def test_an_existing_gguf_is_compared_with_the_checkpoints_own(
    made: Exported, tmp_path: Path
) -> None:
    """The bundle has the quantized file alone; a damaged one is refused with its figures."""
    out = tmp_path / "bundle"
    file = made.bundle / "decoder.q8_0.gguf"
    manifest = export(made.checkpoint, out, vision=["fp32"], decoder_gguf=file, progress=False)
    report = report_of(manifest)
    assert (report.exact_decoder, [pair.decoder for pair in report.pairs]) == ("f16", ["q8_0"])
    assert [path.name for path in out.glob("*.gguf")] == ["decoder.q8_0.gguf"]
    first = report_of(Manifest.load(made.bundle))
    assert report.pairs[0] in first.pairs

    damaged = damage_decoder(file, tmp_path / "q8_0.gguf")
    message = r"fp32 vision with q8_0 decoder, beside fp32 with f16: KL .* nats, .* --allow-drift"
    with pytest.raises(DriftError, match=message):
        export(
            made.checkpoint,
            tmp_path / "other",
            vision=["fp32"],
            decoder_gguf=damaged,
            progress=False,
        )


def damage_decoder(source: Path, path: Path) -> Path:
    """Switch the attention of the second layer off."""
    path.write_bytes(source.read_bytes())
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name == "blk.1.attn_norm.weight":
            tensor.data[:] = 0
    return path


def test_an_outlier_in_one_photograph_is_found(made: Exported, tmp_path: Path) -> None:
    """A graph that is wrong about one photograph alone: neither the drawings nor the mean show it."""
    files = files_of(made.bundle)
    scenes = answers.make_scenes(files.manifest)
    stored = StoredVision(files.manifest, files.vision["fp32"], [scene.image for scene in scenes])
    rows = np.stack([stored.embeddings(scene.image) for scene in scenes])
    chosen = [scene.name for scene in scenes].index("rocket")
    others = np.delete(rows, chosen, 0).reshape(-1, rows.shape[-1])
    direction, threshold = separate(rows[chosen], others)
    model = onnx.load(files.vision["int8"])
    plant_outlier(model, direction, threshold)
    path = tmp_path / "vision.int8.onnx"
    onnx.save(model, path)
    vision = {**files.vision, "int8": path}
    report, embeddings, _ = measure_answers(
        dataclasses.replace(files, vision=vision), progress=False
    )
    errors = embeddings["int8"].centered_error_by_image
    assert errors is not None and report.worst_image(errors) == "rocket"
    assert 0.1 < max(errors) < 0.13 and np.median(errors) < 0.03
    pair = report.pairs[0]
    assert report.worst_image(pair.kl_by_image) == "rocket"
    assert not within_bounds(pair)
    assert pair.kl < pair.kl_bound, "the mean over all images hides it"
    assert "about rocket, at most" in describe(pair, report)
    assert files.manifest.parity is not None
    before = files.manifest.parity.vision["int8"].centered_error_by_image
    assert before is not None and errors[:2] == pytest.approx(before[:2], rel=1e-3)


def separate(
    rows: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.float32], float]:
    """Return a direction and a threshold that only some of `rows` exceed."""
    mean = others.mean(axis=0)
    covariance = np.cov(others.T) + 0.1 * np.eye(others.shape[1])
    directions = np.linalg.solve(covariance, (rows - mean).T).T
    gaps = [(rows @ d).max() - (others @ d).max() for d in directions]
    best = directions[int(np.argmax(gaps))] / max(gaps)
    assert max(gaps) > 0
    return best.astype(np.float32), float((others @ best).max() + 0.3)


def plant_outlier(model: onnx.ModelProto, direction: NDArray[np.float32], threshold: float) -> None:
    """Add ``relu(rows @ direction - threshold)`` to all values of the rows."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "rows"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(direction[:, None], "direction"),
            numpy_helper.from_array(np.array(threshold, np.float32), "threshold"),
            numpy_helper.from_array(np.array(0.3, np.float32), "gain"),
        ]
    )
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("MatMul", ["rows", "direction"], ["along"]),
            make("Sub", ["along", "threshold"], ["above"]),
            make("Relu", ["above"], ["fired"]),
            make("Mul", ["fired", "gain"], ["added"]),
            make("Add", ["rows", "added"], [output]),
        ]
    )


def test_a_damaged_layer_is_found(made: Exported, tmp_path: Path) -> None:
    files = files_of(made.bundle)
    damaged = damage_decoder(files.decoder["q8_0"], tmp_path / "decoder.q8_0.gguf")
    decoder = {**files.decoder, "q8_0": damaged}
    report, _, logits = measure_answers(dataclasses.replace(files, decoder=decoder), progress=False)
    passed = {(pair.vision, pair.decoder): within_bounds(pair) for pair in report.pairs}
    assert passed == {("int8", "f16"): True, ("fp32", "q8_0"): False, ("int8", "q8_0"): False}
    assert logits["q8_0"].relative_error > 0.1
    with pytest.raises(DriftError, match=r"vision graph in int8 makes embeddings of drawing"):
        not_finite(files, tmp_path)


def not_finite(files: Files, folder: Path) -> None:
    """Measure with a vision graph whose output is not finite."""
    model = onnx.load(files.vision["int8"])
    plant_outlier(model, np.full(files.manifest.vision.width, np.inf, np.float32), -1.0)
    path = folder / "vision.int8.onnx"
    onnx.save(model, path)
    vision = {**files.vision, "int8": path}
    measure_answers(dataclasses.replace(files, vision=vision), progress=False)


def test_bounds_grow_with_the_scale_and_the_error() -> None:
    image, context = Scale(2.0, 0.4), Scale(1.0, 0.1)

    def limits(vision: str, decoder: str) -> Scale:
        return answer_bounds(vision, decoder, image, context, 1000)

    assert limits("int8", "f16").kl == pytest.approx(0.07**2 * 2 + 1e-2**2)
    assert limits("fp32", "q8_0").kl == pytest.approx(0.1**2, rel=1e-3)
    assert limits("int8", "q8_0").kl == pytest.approx(0.07**2 * 2 + 0.1**2)
    assert limits("int8", "q8_0").agreement == pytest.approx(0.998 - 0.14 * 0.6 - 0.2 * 0.9)
    assert limits("fp32", "q2_k").agreement == 0
    constant = answer_bounds("fp32", "q8_0", image, Scale(0.0, 1.0), 1000)
    assert constant.kl == pytest.approx(bounds.MIN_CONTEXT_KL * 0.1**2, rel=1e-3)
