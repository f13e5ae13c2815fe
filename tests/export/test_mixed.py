"""Types of single matrices are the best for a size or an error, and the bundle keeps to them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from edgevlm import VLM
from edgevlm.errors import ExportError
from edgevlm.export import selection, sensitivity
from edgevlm.export.mixed import Choice, Frontier, convex_choices
from edgevlm.export.pipeline import export
from edgevlm.export.quantize import Importance, quantize
from edgevlm.export.sizes import parse_size
from edgevlm.manifest import Manifest
from tests.export.test_importance import write_files
from tests.support import checkpoints

RANDOM = np.random.default_rng(3)
PARTS = {
    f"part {number}": [
        Choice(index, int(RANDOM.integers(1, 100)), float(RANDOM.exponential()))
        for index in range(4)
    ]
    for number in range(5)
}


def every_pair() -> list[tuple[int, float]]:
    """Size and divergence of each combination."""
    return [
        (sum(choice.size for choice in chosen), sum(choice.kl for choice in chosen))
        for chosen in itertools.product(*PARTS.values())
    ]


def test_no_combination_of_the_same_size_is_better() -> None:
    """Where a step of the frontier ends, it is the best of all combinations of its size."""
    frontier = Frontier(PARTS, fixed=1000)
    pairs = every_pair()
    assert frontier.smallest == 1000 + min(size for size, _ in pairs)
    bounds = np.linspace(frontier.largest_kl, min(kl for _, kl in pairs), 30)
    for bound in bounds:
        chosen = frontier.within_kl(bound + 1e-9).values()
        size, kl = sum(choice.size for choice in chosen), sum(choice.kl for choice in chosen)
        assert kl <= bound + 1e-9
        assert kl == pytest.approx(min(other for bytes_, other in pairs if bytes_ <= size))
        again = frontier.within_size(1000 + size).values()
        assert sum(choice.kl for choice in again) == pytest.approx(kl)


def test_a_budget_is_kept() -> None:
    frontier = Frontier(PARTS, fixed=1000)
    pairs = every_pair()
    for budget in range(frontier.smallest, 1000 + max(size for size, _ in pairs), 7):
        chosen = frontier.within_size(budget).values()
        kl = sum(choice.kl for choice in chosen)
        assert 1000 + sum(choice.size for choice in chosen) <= budget
        assert kl <= frontier.largest_kl
    with pytest.raises(ExportError, match=r"the budget is 0\.0 MB; raise --budget"):
        frontier.within_size(frontier.smallest - 1)


def test_choices_that_never_pay_are_left_out() -> None:
    choices = [
        Choice("a", 10, 4.0),
        Choice("b", 20, 3.9),
        Choice("c", 30, 1.0),
        Choice("d", 40, 1.5),
    ]
    assert [choice.key for choice in convex_choices(choices)] == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("150MB", 150_000_000), ("1.5 GiB", 3 << 29), ("700", 700), ("2kb", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "150 apples", "0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_errors_of_sampled_rows_are_those_of_the_matrix(tmp_path: Path) -> None:
    """The output layer has 520 rows, of which a part is sampled."""
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", width=256, num_hidden_layers=1)
    decoder = write_files(folder)[3]
    matrices = sensitivity.list_matrices(decoder)
    importance = {
        matrix.name: RANDOM.exponential(size=matrix.columns).astype(np.float32)
        for matrix in matrices
    }
    found = sensitivity.rounding_errors(decoder, matrices, importance, tmp_path)
    exact = {tensor.name: sensitivity.values(tensor) for tensor in gguf.GGUFReader(decoder).tensors}
    for kind in (Type.Q4_0, Type.IQ3_S, Type.Q6_K):
        path = tmp_path / "whole.gguf"
        types = {matrix.name: kind for matrix in matrices}
        quantize(decoder, path, "q8_0", importance=importance, tensor_types=types)
        for tensor in gguf.GGUFReader(path).tensors:
            if tensor.name in types:
                weights = exact[tensor.name]
                lost = (sensitivity.values(tensor) - weights) ** 2 @ importance[tensor.name]
                expected = lost.sum() / (weights**2 @ importance[tensor.name]).sum()
                assert found[tensor.name][kind] == pytest.approx(expected, rel=0.1), tensor.name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "checkpoint"
    return checkpoints.smolvlm(folder, width=256, num_hidden_layers=2, splitting=False)


def test_a_bundle_within_a_budget(checkpoint: Path, tmp_path: Path) -> None:
    """Types differ, the files have the size, and the bundle loads as any other."""
    budget = 1_100_000
    manifest = export(checkpoint, tmp_path / "small", goal=budget, allow_drift=True, progress=False)
    (precision,) = manifest.vision.files
    (name,) = manifest.decoder.files
    size = manifest.vision.files[precision].size + manifest.decoder.files[name].size
    assert 0.9 * budget < size <= budget
    bits = manifest.decoder.files[name].bits_per_weight
    assert bits is not None
    assert name == f"mixed{int(bits)}"
    path = tmp_path / "small" / manifest.decoder.files[name].name
    assert len({tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}) > 2
    with VLM.from_pretrained(tmp_path / "small") as model:
        assert model.ask([], "What is this?", max_tokens=3).token_ids
    described = json.loads((tmp_path / "small" / "manifest.json").read_text())
    assert list(described["decoder"]["files"]) == [name]
    # 4 bits of the vision graph leave more for the decoder, which needs it more at this size
    assert precision == "int4"
    other = export(
        checkpoint,
        tmp_path / "int8",
        vision=["fp32", "int8"],
        goal=budget,
        allow_drift=True,
        progress=False,
    )
    assert list(other.vision.files) == ["int8"]
    assert divergence_of(manifest) < divergence_of(other)


def divergence_of(manifest: Manifest) -> float:
    """The divergence of the pair that a CPU loads, in nats."""
    assert manifest.parity is not None
    report = manifest.parity.answers
    assert report is not None
    return next(pair.kl for pair in report.pairs if report.is_automatic(pair))


class FakeProbe:
    """Measures a given divergence of each vision precision."""

    def __init__(self, divergences: dict[str, float]) -> None:
        self._divergences = divergences

    def kl(self, *, vision: str, decoder: Path) -> float:
        return self._divergences[vision]


def test_the_measured_divergence_of_a_pair_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that add up to less, by measurements of each alone, may diverge more together."""

    def write(chosen: selection.Pair, source: Path, importance: Importance) -> tuple[str, Path]:
        path = tmp_path / "decoder.gguf"
        path.touch()
        return str(chosen[selection.VISION].key), path

    monkeypatch.setattr(selection, "write_mixed", write)
    pairs: list[selection.Pair] = [
        {selection.VISION: Choice("int8", 10, 0.1)},
        {selection.VISION: Choice("int4", 5, 0.2)},
    ]
    for measured, expected in ((0.05, pairs[1]), (0.3, pairs[0])):
        probe: Any = FakeProbe({"int8": 0.1, "int4": measured})
        found = selection.closest_pair(pairs, probe, tmp_path, {}, progress=False)
        assert found is expected
    assert not list(tmp_path.iterdir())


def test_the_smallest_pair_keeps_to_the_bound() -> None:
    """A vision precision that is beyond the bound alone is left out, however small it is."""
    vision: list[Choice[str | Type]] = [
        Choice("int4", 5, 0.3),
        Choice("int8", 90, 0.05),
        Choice("fp32", 400, 0.0),
    ]
    matrix: list[Choice[str | Type]] = [
        Choice(Type.Q4_0, 100, 0.4),
        Choice(Type.Q8_0, 200, 0.1),
        Choice(Type.F16, 400, 0.0),
    ]
    frontier = Frontier({"matrix": matrix, "vision": vision}, fixed=0)
    frontiers = [frontier.fixed_at("vision", choice.key) for choice in vision]
    for bound, expected in (
        (0.75, ["int4", Type.Q4_0]),
        (0.42, ["int4", Type.Q8_0]),
        (0.2, ["int8", Type.Q8_0]),
        (0.06, ["int8", Type.F16]),
        (0.01, ["fp32", Type.F16]),
    ):
        chosen = selection.smallest_pair(frontiers, bound)
        assert [chosen["vision"].key, chosen["matrix"].key] == expected
    with pytest.raises(ExportError, match=r"within a divergence of 0\.01 nats, .* add fp32 to"):
        selection.smallest_pair(frontiers[:2], 0.01)


def test_goals_that_cannot_be_met(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the budget is 0\.1 MB; raise --budget"):
        export(checkpoint, tmp_path / "out", goal=100_000, progress=False)
    with pytest.raises(ExportError, match="leave out --quick"):
        export(checkpoint, tmp_path / "out", goal="best", quick=True, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("goal", ["best", "fast"])
def test_goals_of_error_and_speed(checkpoint: Path, tmp_path: Path, goal: str) -> None:
    out = tmp_path / goal
    manifest = export(checkpoint, out, goal=goal, allow_drift=True, progress=False)  # type: ignore[arg-type]
    assert len(manifest.vision.files) == len(manifest.decoder.files) == 1
    assert next(iter(manifest.decoder.files)).startswith(("mixed", "q", "iq"))
    assert sorted(
        path.name for path in out.iterdir() if path.suffix in (".gguf", ".onnx")
    ) == sorted(entry.name for entry in manifest.files())
