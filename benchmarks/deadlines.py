"""Measure how often an answer is late, and how often it is right: ``python -m benchmarks.deadlines FOLDER``.

Two other processes keep the cores busy. The built-in model answers drawn questions of its test set: with
several deadlines (``within``), and without one but with a fixed limit of tokens. An answer is late if the
call returns after the deadline, whatever it returns, and only an answer in time can be right. A model of
SmolVLM-256M's shape with random weights shows how detail follows the deadline. The result is in
FOLDER/deadlines.json.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cancelling import IMAGE, QUESTION, models
from benchmarks.cores import BusyCores
from benchmarks.files import THREADS, Files, environment, parse_arguments
from edgevlm import VLM, Answer, DeadlineError
from edgevlm.evaluation import metrics, test_set
from edgevlm.evaluation.dataset import Item
from edgevlm.evaluation.report import write_json
from edgevlm.inputs.images import load_image

ROUNDS = 300
SECONDS = (0.1, 0.3, 1.0)
MAX_TOKENS = 64
FIXED_TOKENS = (2, 4, 8, 16, 32, MAX_TOKENS)
"""Limits of tokens for answers without a deadline."""


@dataclass
class Outcome:
    """What a call returned, and after how many seconds."""

    seconds: float
    answer: Answer | None = None
    """None: there was no answer in time."""
    score: float = 0.0


def ask(vlm: VLM, images: list[NDArray[np.uint8]], question: str, within: float) -> Outcome:
    """Ask a question with a deadline."""
    start = time.perf_counter()
    answer = None
    with contextlib.suppress(DeadlineError):
        answer = vlm.ask(images, question, within=within, max_tokens=MAX_TOKENS, cache_images=False)
    return Outcome(time.perf_counter() - start, answer)


def ask_fixed(vlm: VLM, images: list[NDArray[np.uint8]], item: Item) -> dict[int, Outcome]:
    """Ask a question without a deadline; return what each of `FIXED_TOKENS` would have given."""
    start = time.perf_counter()
    text, tokens = "", 0
    found: dict[int, Outcome] = {}
    for chunk in vlm.stream(images, item.turns[0], max_tokens=MAX_TOKENS, cache_images=False):
        text += chunk.text
        tokens += len(chunk.token_ids)
        if chunk.finish_reason is None and tokens not in FIXED_TOKENS:
            continue
        outcome = Outcome(time.perf_counter() - start, score=score(item, text))
        if chunk.finish_reason is None:
            found[tokens] = outcome
        else:
            found |= {limit: outcome for limit in FIXED_TOKENS if limit not in found}
    return found


def score(item: Item, text: str) -> float:
    """Return the score of an answer, from 0 to 1."""
    return metrics.score(item.metric, text.strip(), item.answers)


def drawn_items(count: int) -> Iterator[Item]:
    """Yield items with one question about one image, from all tasks of the test set in turn."""
    per_task = -(-2 * count // len(test_set.TASKS))
    items = list(test_set.items(per_task))
    in_turn = (
        items[first + i * per_task] for first in range(per_task) for i in range(len(test_set.TASKS))
    )
    fitting = (item for item in in_turn if len(item.images) == len(item.turns) == 1)
    return itertools.islice(fitting, count)


def figures(outcomes: list[Outcome], within: float) -> dict[str, float]:
    """Return shares of all calls, and how many milliseconds after the deadline the latest one returned."""
    seconds = np.array([outcome.seconds for outcome in outcomes])
    scores = np.array([outcome.score for outcome in outcomes])
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    tiles = [answer.stats.encoded_tiles for answer in answers]
    return {
        "late": float((seconds > within).mean()),
        "latest ms": float((seconds.max() - within) * 1000),
        "right in time": float((scores * (seconds <= within)).mean()),
        "cut": sum(answer.finish_reason == "deadline" for answer in answers) / len(outcomes),
        "no answer": 1 - len(answers) / len(outcomes),
        "tiles": float(np.mean(tiles)) if tiles else 0.0,
    }


def measure_nano(rounds: int) -> dict[str, Any]:
    """Compare deadlines with fixed limits of tokens, question by question."""
    within: defaultdict[float, list[Outcome]] = defaultdict(list)
    fixed: defaultdict[int, list[Outcome]] = defaultdict(list)
    # One thread is the faster fixed setting on busy cores.
    with (
        VLM.from_pretrained("edgevlm-nano", threads=THREADS, device="cpu") as vlm,
        VLM.from_pretrained("edgevlm-nano", threads=1, device="cpu") as one_thread,
    ):
        for item in drawn_items(rounds):
            image = np.array(item.images[0].load().convert("RGB"))
            for seconds in SECONDS:
                image -= image > 0  # looks the same, and no cache holds it
                outcome = ask(vlm, [image], item.turns[0], seconds)
                if outcome.answer is not None:
                    outcome.score = score(item, outcome.answer.text)
                within[seconds].append(outcome)
            for limit, outcome in ask_fixed(one_thread, [image], item).items():
                fixed[limit].append(outcome)
    return {
        f"{seconds} s": {
            "within": figures(within[seconds], seconds),
            **{
                f"{limit} tokens": {
                    name: value
                    for name, value in figures(fixed[limit], seconds).items()
                    if name in ("late", "latest ms", "right in time")
                }
                for limit in FIXED_TOKENS
            },
        }
        for seconds in SECONDS
    }


def measure_threads(rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a token without a deadline, by the number of threads."""
    ms: defaultdict[int, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        vlms = {
            threads: stack.enter_context(
                VLM.from_pretrained("edgevlm-nano", threads=threads, device="cpu")
            )
            for threads in (1, THREADS)
        }
        for item in drawn_items(rounds):
            image = np.asarray(item.images[0].load().convert("RGB"))
            for threads, vlm in vlms.items():
                stats = vlm.ask([image], item.turns[0], max_tokens=MAX_TOKENS).stats
                ms[threads].append(stats.decode_ms / stats.answer_tokens)
    return {f"{threads} threads": float(np.median(found)) for threads, found in ms.items()}


def measure_detail(files: Files, rounds: int) -> dict[str, Any]:
    """Ask the model of SmolVLM-256M's shape about images that are new each time."""
    random = np.random.default_rng(0)
    image = load_image(files.image(20_000, IMAGE))
    result: dict[str, Any] = {}
    name = "SmolVLM-256M's shape"
    with VLM.from_pretrained(**models(files)[name], threads=THREADS, device="cpu") as vlm:
        vlm.ask([image], QUESTION, max_tokens=16)
        for seconds in SECONDS:
            outcomes = []
            for _ in range(rounds):
                shifted = np.roll(image, random.integers(1, IMAGE[0]), axis=1)
                frame = shifted ^ np.uint8(random.integers(256))
                outcomes.append(ask(vlm, [frame], QUESTION, seconds))
            result[f"{seconds} s"] = {"within": figures(outcomes, seconds)}
            del result[f"{seconds} s"]["within"]["right in time"]  # the weights are random
    return result


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    with BusyCores(THREADS) as busy:
        token_ms = measure_threads(-(-rounds // 20))
        result = {
            "edgevlm-nano": measure_nano(rounds),
            "SmolVLM-256M's shape": measure_detail(files, -(-rounds // 3)),
        }
        others = busy.others_share()
    for model, budgets in result.items():
        for seconds, settings in budgets.items():
            for setting, values in settings.items():
                shown = (f"{key} {value:.3g}" for key, value in values.items())
                print(f"{model:22} {seconds:6} {setting:10}", *shown)
    print("milliseconds of a token:", token_ms)
    print(f"other programs took {others:.0%} of the cores")
    write_json(
        files.folder / "deadlines.json",
        environment(rounds) | {"others": others, "token ms": token_ms} | result,
    )


if __name__ == "__main__":
    main()
