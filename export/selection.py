"""Choose the files of a bundle for a goal: a size, a small error, or speed.

All figures are measured on the machine that exports, over the answers about the photographs and drawings of
the parity report.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from gguf import GGMLQuantizationType as Type
from tqdm import tqdm

from edgevlm.errors import ExportError
from edgevlm.export.mixed import Choice, Frontier
from edgevlm.export.quantize import BLOCK_TYPES, Importance, bits_per_weight, quantize
from edgevlm.export.sensitivity import AnswerProbe, decoder_divergences
from edgevlm.export.sizes import megabytes

Goal: TypeAlias = int | Literal["fast", "best"]
"""A size in bytes for vision graph and decoder together, or one of

- ``best``: the smallest pair of files whose answers diverge from the exact pair's by at most `BEST_SHARE` of
  what another image causes;
- ``fast``: the pair that answers first among those that diverge by at most `FAST_SHARE` of it.
"""
BEST_SHARE = 1 / 200
FAST_SHARE = 1 / 10
FAST_TYPES = ("q4_0", "iq4_nl", "q4_k_m", "q5_0", "q8_0")
"""Types whose speed is compared; llama.cpp has its fastest kernels for them."""
VISION = "vision"
"""Name of the vision graph among the parts."""

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
    frontier = measure_frontier(probe, vision, source, importance, progress=progress)
    if isinstance(goal, int):
        chosen = frontier.within_size(goal)
    else:
        chosen = frontier.within_kl(BEST_SHARE * probe.image_kl)
    precision, path = write_mixed(chosen, source, importance)
    selection = Selection(precision, f"mixed{int(bits_per_weight(path))}", path)
    size = vision[precision].stat().st_size + path.stat().st_size
    if isinstance(goal, int) and size > goal:
        raise ExportError(
            f"the chosen files have {megabytes(size)}, more than the budget of {megabytes(goal)}; "
            f"please report this"
        )
    return selection


def measure_frontier(
    probe: AnswerProbe,
    vision: Mapping[str, Path],
    source: Path,
    importance: Importance,
    *,
    progress: bool,
) -> Frontier[str | Type]:
    """Measure the choices of the vision graph and of each matrix; arguments as of `select`."""
    divergences = decoder_divergences(probe, source, importance, source.parent, progress=progress)
    parts: dict[str, list[Choice[str | Type]]] = {
        VISION: [
            Choice(name, path.stat().st_size, probe.kl(vision=name))
            for name, path in vision.items()
        ]
    }
    for matrix, by_type in divergences.items():
        parts[matrix.name] = [Choice(kind, matrix.size(kind), kl) for kind, kl in by_type.items()]
    matrices = sum(matrix.size(Type.F16) for matrix in divergences)
    return Frontier(parts, source.stat().st_size - matrices)


def write_mixed(
    chosen: Mapping[str, Choice[str | Type]], source: Path, importance: Importance
) -> tuple[str, Path]:
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
