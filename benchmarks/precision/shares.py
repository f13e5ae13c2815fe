"""Show which divergence costs right answers: ``python -m benchmarks.precision.shares CHECKPOINT OUT.json``.

The limits of ``--best`` and ``--fast`` are shares of what another image does to the next-token distributions.
This program exports a checkpoint of a model of drawings in many types, and asks each pair of files the
questions of the built-in test set that have one image and one turn. A table goes to stdout: the divergence
from the exact pair as such a share, the answers that differ from the exact pair's, and the right answers.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm import VLM
from edgevlm.divergence import divergence
from edgevlm.evaluation import metrics, test_set
from edgevlm.evaluation.dataset import Item
from edgevlm.evaluation.intervals import bootstrap
from edgevlm.evaluation.references import BundleReference, dialogue
from edgevlm.evaluation.report import versions, write_json
from edgevlm.evaluation.runner import MAX_TOKENS, Conversation, load_images
from edgevlm.export.pipeline import export
from edgevlm.runtimes import system

EXACT = ("fp32", "f16")
PAIRS = (
    ("fp32", "q8_0"),
    ("int8", "q8_0"),
    ("fp32", "q5_k_m"),
    ("fp32", "q4_k_m"),
    ("int8", "q4_k_m"),
    ("fp32", "q3_k_m"),
    ("int4", "f16"),
    ("fp32", "iq3_xxs"),
    ("fp32", "q2_k"),
    ("int4", "q2_k"),
)


def measure(bundle: Path, items: list[Item]) -> tuple[float, list[dict[str, Any]]]:
    """Return the divergence of another image in nats, and the figures of each pair of files."""
    asked = [Conversation(load_images(item.images), item.turns) for item in items]
    messages = [dialogue(conversation, []) for conversation in asked]
    with closing(BundleReference(str(bundle), *EXACT)) as reference:
        exact = [reference.answer(conversation) for conversation in asked]
    right = [
        metrics.score(item.metric, answer.text, item.answers)
        for item, answer in zip(items, exact, strict=True)
    ]
    with VLM.from_pretrained(bundle, device="cpu", vision=EXACT[0], decoder=EXACT[1]) as vlm:
        others = [
            dialogue(Conversation(other.images, one.turns), [])
            for one, other in zip(asked, [*asked[1:], asked[0]], strict=True)
        ]
        image_kl = np.concatenate(
            [
                divergence(answer.logits, vlm.logits(other, answer.tokens)).kl
                for answer, other in zip(exact, others, strict=True)
            ]
        ).mean()
    found = []
    for vision, decoder in PAIRS:
        kls, scores, changed = [], [], 0
        with VLM.from_pretrained(bundle, device="cpu", vision=vision, decoder=decoder) as vlm:
            for item, message, answer in zip(items, messages, exact, strict=True):
                difference = divergence(answer.logits, vlm.logits(message, answer.tokens))
                kls.append(difference.kl)
                text = answer.text
                if not difference.same_top.all():  # else its own greedy answer is the same
                    own = vlm.generate(message, max_tokens=MAX_TOKENS, temperature=0.0)
                    text = own.text.strip()
                    changed += metrics.normalized(text) != metrics.normalized(answer.text)
                scores.append(metrics.score(item.metric, text, item.answers))
        points = [100 * (one - other) for one, other in zip(scores, right, strict=True)]
        lost = bootstrap(points)
        kl = float(np.concatenate(kls).mean())
        found.append(
            {
                "vision": vision,
                "decoder": decoder,
                "kl": kl,
                "image_share": kl / float(image_kl),
                "changed": changed / len(items),
                "right": float(np.mean(scores)),
                "difference": vars(lost),
            }
        )
        print(
            f"| {vision}, {decoder} | {kl:.5f} | 1/{image_kl / kl:.0f} | {changed / len(items):.1%} "
            f"| {np.mean(scores):.1%} | {lost.mean:+.1f} ({lost.low:+.1f} to {lost.high:+.1f}) |",
            flush=True,
        )
    return float(image_kl), found


def main() -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description="Show which divergence costs right answers.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT.json", type=Path)
    parser.add_argument("--items", type=int, default=12, help="of each task (default: 12)")
    arguments = parser.parse_args()
    items = [
        item for item in test_set.items(arguments.items) if len(item.images) == len(item.turns) == 1
    ]
    visions, decoders = (list(dict.fromkeys(names)) for names in zip(EXACT, *PAIRS, strict=True))
    print(
        "| pair | KL, nats | of another image's | answers changed | right | less the exact pair |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        export(
            arguments.checkpoint,
            bundle,
            vision=visions,
            decoder=decoders,
            allow_drift=True,
            progress=False,
        )
        image_kl, pairs = measure(bundle, items)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": system.cpu_model(),
        "versions": versions(),
        "checkpoint": Path(arguments.checkpoint).name,
        "items": len(items),
        "image_kl": image_kl,
        "pairs": pairs,
    }
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
