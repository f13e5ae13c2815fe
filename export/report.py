"""The parity report: the exact pair beside the checkpoint, all other files beside the exact pair."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.errors import DriftError
from edgevlm.export import parity
from edgevlm.export.answers import EXACT_VISION, Files, measure_answers
from edgevlm.manifest import AnswerDrift, AnswerReport, ParityReport


def make_report(
    cases: Sequence[parity.Case],
    files: Files,
    *,
    texts: int,
    quick: bool,
    allow_drift: bool,
    progress: bool,
) -> ParityReport:
    """Measure all files of a bundle.

    Args:
        cases: results of transformers.
        texts: number of texts that the tokenizer was compared with.
        quick: make the short form, which compares every file with transformers and no answers about
            photographs.
        allow_drift: accept a difference beyond its bound.

    Raises:
        DriftError: prompt token ids differ, or a difference is beyond its bound and `allow_drift` is False.
    """
    precisions = list(files.manifest.vision.files) if quick else []
    types = list(files.manifest.decoder.choices) if quick else [files.exact_decoder]
    vision, decoder = parity.compare(
        cases,
        files.manifest,
        {name: files.vision[name] for name in dict.fromkeys([*precisions, EXACT_VISION])},
        {name: files.decoder[name] for name in types},
        progress=progress,
    )
    answers = None
    if not quick:
        answers, embeddings, logits = measure_answers(files, progress=progress)
        vision |= embeddings
        decoder |= logits
    exceeded = [
        f"{name}: relative error {drift.relative_error:.2g}, at most {drift.bound:g}"
        for name, drift in [*vision.items(), *decoder.items()]
        if drift.bound is not None and not drift.relative_error <= drift.bound
    ]
    if answers is not None:
        exceeded += [describe(pair, answers) for pair in answers.pairs if not within_bounds(pair)]
    if exceeded and not allow_drift:
        raise DriftError(
            f"the bundle does not answer as the checkpoint does ({'; '.join(exceeded)}); export other "
            f"precisions with --vision or --decoder, or accept it with --allow-drift"
        )
    return ParityReport(
        pictures=len(cases),
        prompts=len(cases),
        positions=sum(len(case.forced) for case in cases),
        vision=vision,
        decoder=decoder,
        drift_allowed=bool(exceeded),
        texts=texts,
        answers=answers,
    )


def within_bounds(pair: AnswerDrift) -> bool:
    """Return True if divergence and agreement are within their bounds; False also for NaN."""
    agrees = pair.top1_agreement >= pair.agreement_bound
    return agrees and all(kl <= pair.kl_bound for kl in pair.kl_by_image)


def describe(pair: AnswerDrift, report: AnswerReport) -> str:
    """Return the figures of a pair that is beyond its bounds."""
    return (
        f"{pair.vision} vision with {pair.decoder} decoder, beside {report.exact_vision} with "
        f"{report.exact_decoder}: KL {pair.kl:.2g} nats, {max(pair.kl_by_image):.2g} about "
        f"{report.worst_image(pair.kl_by_image)}, at most {pair.kl_bound:.2g} about each image (another "
        f"image causes {report.image_kl:.2g}); same top token {pair.top1_agreement:.1%}, at least "
        f"{pair.agreement_bound:.1%}"
    )
