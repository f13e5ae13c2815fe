"""Measure the cost and the gain of KV cache copies: ``python -m benchmarks.camera FOLDER``.

A camera shows a new frame each time, and no question asks about the last one again, so a copy of its KV cache
has no use. The KV caches of interleaved conversations are copied out and back; otherwise they would be
prefilled again. `edgevlm.engine.kv_cache` has the rule that distinguishes the two. The model has the shape of
SmolVLM-256M and random weights. The result is in FOLDER/camera.json. Each figure is the median of the rounds;
each round measures all cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from statistics import median
from typing import Any

from benchmarks.files import THREADS, Files, environment, parse_arguments
from edgevlm import VLM
from edgevlm.evaluation.report import write_json
from edgevlm.results import Answer, Stats

ROUNDS = 20
FRAME = (640, 480)
QUESTION = "What is in the picture?"
TOKENS = 8


def frames(files: Files, vlm: VLM, rounds: int, seeds: Iterator[int]) -> dict[str, Any]:
    """Measure new frames as single questions, which are not copied, and in new chats, which are."""
    single: list[Stats] = []
    chats: list[Stats] = []
    for _ in range(rounds):
        for case in (single, chats):
            for _ in range(2):  # the second one replaces a request of the same kind
                frame = files.image(next(seeds), FRAME)
                if case is single:
                    answer = vlm.ask(frame, QUESTION, max_tokens=TOKENS, detail="high")
                else:
                    answer = vlm.chat().send(QUESTION, frame, max_tokens=TOKENS, detail="high")
            case.append(answer.stats)
    return {
        "positions": single[0].prompt_tokens,
        "single question, prefill ms": median(stats.prefill_ms for stats in single),
        "first turn of a chat, prefill ms": median(stats.prefill_ms for stats in chats),
        "copied MB": vlm.cache_info().conversation_bytes / 1e6,
    }


def conversations(files: Files, vlm: VLM, rounds: int, seeds: Iterator[int]) -> dict[str, Any]:
    """Measure the prefill of each turn of two interleaved conversations.

    They are chats, or requests as a server gets them: their first turns look like single questions.
    """

    def ask(messages: list[dict[str, Any]]) -> Answer:
        answer = vlm.generate(messages, max_tokens=TOKENS, detail="high")
        messages += [
            {"role": "assistant", "content": answer.text or "?"},
            {"role": "user", "content": "And what else?"},
        ]
        return answer

    found: dict[str, list[list[float]]] = {"chats": [], "requests": []}
    for _ in range(rounds):
        shown = [files.image(next(seeds), FRAME) for _ in range(2)]
        chats = [vlm.chat() for _ in shown]
        turns = [
            [
                chat.send(text, image, max_tokens=TOKENS, detail="high").stats.prefill_ms
                for chat, image in zip(chats, images, strict=True)
            ]
            for text, images in ((QUESTION, shown), ("And?", [None] * 2), ("More?", [None] * 2))
        ]
        found["chats"].append([turn[0] for turn in turns])
        shown = [files.image(next(seeds), FRAME) for _ in range(2)]
        asking: list[list[dict[str, Any]]] = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": QUESTION},
                    ],
                }
            ]
            for image in shown
        ]
        turns = [[ask(messages).stats.prefill_ms for messages in asking] for _ in range(3)]
        found["requests"].append([turn[0] for turn in turns])
    return {
        f"{case}, turn {turn + 1}, prefill ms": median(row[turn] for row in rows)
        for case, rows in found.items()
        for turn in range(3)
    }


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    seeds = count(10_000)
    with VLM.from_pretrained(
        files.bundle, threads=THREADS, vision="int8", decoder="q4_0", device="cpu"
    ) as vlm:
        vlm.ask(files.image(next(seeds), FRAME), QUESTION, max_tokens=1)
        result = {
            "frames": frames(files, vlm, rounds, seeds),
            "conversations": conversations(files, vlm, max(1, rounds // 4), seeds),
        }
    for part in result.values():
        for name, value in part.items():
            print(f"{name:40} {value:10.1f}")
    write_json(files.folder / "camera.json", environment(rounds) | result)


if __name__ == "__main__":
    main()
