"""Choose the files of a bundle for a goal: a size, a small error, or speed.

All figures are measured on the machine that exports, over the answers about the photographs and drawings of
the parity report.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from gguf import GGMLQuantizationType as Type
from tqdm import tqdm

from edgevlm.errors import ExportError
from edgevlm.export.mixed import Choice, Frontier
from edgevlm.export.quantize import BLOCK_TYPES, Importance, bits_per_weight, quantize
from edgevlm.export.sensitivity import AnswerProbe, Matrix, decoder_divergences, list_matrices
from edgevlm.export.sizes import megabytes

Goal: TypeAlias = int | Literal["fast", "best"]
"""A size in bytes for vision graph and decoder together, or one of

- ``best``: the smallest pair of files whose answers diverge from the exact pair's by at most `BEST_SHARE` of
  what another image causes;
- ``fast``: the pair that answers first among those that diverge by at most `FAST_SHARE` of it.
"""
BEST_SHARE = 1 / 400
FAST_SHARE = 1 / 60
"""edgevlm-nano gives measurably fewer right answers from about 1/40 on: `benchmarks.precision.shares`."""
FAST_TYPES = ("q4_0", "iq4_nl", "q4_k_m", "q5_0", "q8_0")
"""Types whose speed is compared; llama.cpp has its fastest kernels for them."""
VISION = "vision"
"""Name of the vision graph among the parts."""
Pair: TypeAlias = "dict[str, Choice[str | Type]]"
"""The choice of each part: a vision precision and a type for each matrix."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The files that fit a goal."""

    vision: str
    """The precision."""
    decoder: str
    """A llama.cpp type, or ``mixed`` with its bits per weight, rounded down: ``mixed4``."""
    path: Path
    """The GGUF file."""


def select(
    goal: Goal,
    probe: AnswerProbe,
    vision: Mapping[str, Path],
    source: Path,
    importance: Importance,
    *,
    progress: bool,
) -> Selection:
    """Choose a vision precision, and write a decoder beside `source`.

    Args:
        vision: files of the precisions to choose from.
        source: the decoder in f16.

    Raises:
        ExportError: no pair is as small as the goal.
    """
    if goal == "fast":
        return select_fast(probe, vision, source, importance, progress=progress)
    if isinstance(goal, int):
        unmeasured = {matrix: dict.fromkeys(matrix.types, 0.0) for matrix in list_matrices(source)}
        make_frontier(dict.fromkeys(vision, 0.0), vision, unmeasured, source).within_size(goal)
    frontier = measure_frontier(probe, vision, source, importance, progress=progress)
    frontiers = [frontier.fixed_at(VISION, name) for name in vision]
    if isinstance(goal, int):
        chosen = closest_pair(
            [one.within_size(goal) for one in frontiers if one.smallest <= goal],
            probe,
            source,
            importance,
            progress=progress,
        )
    else:
        chosen = smallest_pair(frontiers, BEST_SHARE * probe.image_kl)
    precision, path = write_mixed(chosen, source, importance)
    selection = Selection(precision, f"mixed{int(bits_per_weight(path))}", path)
    size = vision[precision].stat().st_size + path.stat().st_size
    if isinstance(goal, int) and size > goal:
        raise ExportError(
            f"the chosen files have {megabytes(size)}, more than the budget of {megabytes(goal)}; "
            f"please report this"
        )
    return selection


def closest_pair(
    pairs: Sequence[Pair],
    probe: AnswerProbe,
    source: Path,
    importance: Importance,
    *,
    progress: bool,
) -> Pair:
    """Return the pair whose answers diverge the least, which is measured if there are several."""
    if len(pairs) == 1:
        return pairs[0]
    found = []
    for chosen in tqdm(pairs, "pairs", unit="pair", disable=not progress):
        precision, path = write_mixed(chosen, source, importance)
        found.append(probe.kl(vision=precision, decoder=path))
        _logger.info("%s with %s: KL %.3g nats", precision, path.name, found[-1])
        path.unlink()
    return pairs[found.index(min(found))]


def smallest_pair(frontiers: Sequence[Frontier[str | Type]], bound: float) -> Pair:
    """Return the smallest pair whose parts diverge by at most `bound` nats together.

    Raises:
        ExportError: there is none.
    """
    pairs = [one.within_kl(bound) for one in frontiers if one.smallest_kl <= bound]
    if not pairs:
        raise ExportError(
            f"no vision precision that is chosen from answers within a divergence of {bound:.2g} nats, "
            f"1/{1 / BEST_SHARE:.0f} of what another image causes; add fp32 to --vision"
        )
    return min(pairs, key=lambda pair: sum(choice.size for choice in pair.values()))


def measure_frontier(
    probe: AnswerProbe,
    vision: Mapping[str, Path],
    source: Path,
    importance: Importance,
    *,
    progress: bool,
) -> Frontier[str | Type]:
    """Measure the choices of the vision graph and of each matrix; arguments as of `select`."""
    precisions = {name: probe.kl(vision=name) for name in vision}
    divergences = decoder_divergences(probe, source, importance, source.parent, progress=progress)
    return make_frontier(precisions, vision, divergences, source)


def make_frontier(
    precisions: Mapping[str, float],
    vision: Mapping[str, Path],
    divergences: Mapping[Matrix, Mapping[Type, float]],
    source: Path,
) -> Frontier[str | Type]:
    """Return the frontier of the divergences of vision precisions and of matrices in each type."""
    parts: dict[str, list[Choice[str | Type]]] = {
        VISION: [Choice(name, vision[name].stat().st_size, kl) for name, kl in precisions.items()]
    }
    for matrix, by_type in divergences.items():
        parts[matrix.name] = [Choice(kind, matrix.size(kind), kl) for kind, kl in by_type.items()]
    matrices = sum(matrix.size(Type.F16) for matrix in divergences)
    return Frontier(parts, source.stat().st_size - matrices)


def write_mixed(chosen: Pair, source: Path, importance: Importance) -> tuple[str, Path]:
    """Write a decoder with the chosen types beside `source`.

    Returns:
        The chosen vision precision, and the file.
    """
    types = {name: choice.key for name, choice in chosen.items() if isinstance(choice.key, Type)}
    sizes: Counter[Type] = Counter()
    for name, kind in types.items():
        sizes[kind] += chosen[name].size
    named = {Type[block]: name for name, block in reversed(BLOCK_TYPES.items())}
    most = next((kind for kind, _ in sizes.most_common() if kind in named), Type.Q8_0)
    path = source.with_name("decoder.mixed.gguf")
    quantize(source, path, named[most], importance=importance, tensor_types=types)
    mixed = path.rename(path.with_name(f"decoder.mixed{int(bits_per_weight(path))}.gguf"))
    _logger.info(
        "%s: %s", mixed.name, ", ".join(f"{kind.name} {size:,}" for kind, size in sizes.items())
    )
    return str(chosen[VISION].key), mixed


def select_fast(
    probe: AnswerProbe,
    vision: Mapping[str, Path],
    source: Path,
    importance: Importance,
    *,
    progress: bool,
) -> Selection:
    """Choose the fastest pair within the bound; arguments and errors as of `select`."""
    decoders = {name: source.with_name(f"decoder.{name}.gguf") for name in FAST_TYPES}
    for name in tqdm(decoders, "quantize", unit="type", disable=not progress):
        quantize(source, decoders[name], name, importance=importance)
    precisions = {name: probe.kl(vision=name) for name in vision}
    types = {name: probe.kl(decoder=path) for name, path in decoders.items()}
    bound = FAST_SHARE * probe.image_kl
    pairs = [
        (vision_name, name)
        for vision_name, vision_kl in precisions.items()
        for name, kl in types.items()
        if vision_kl + kl <= bound
    ]
    if not pairs:
        raise ExportError(
            f"no pair of {', '.join(precisions)} and {', '.join(types)} answers within a divergence of "
            f"{bound:.2g} nats, 1/{1 / FAST_SHARE:.0f} of what another image causes; export with --best"
        )
    seconds = probe.seconds(decoders)
    precision, name = min(pairs, key=lambda pair: probe.vision_seconds[pair[0]] + seconds[pair[1]])
    return Selection(precision, name, decoders[name])
