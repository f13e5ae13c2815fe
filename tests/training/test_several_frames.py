"""Rows of streams are what `VLM.watch` with a memory decodes, and a decoder learns from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

from edgevlm import VLM, Choice
from edgevlm.engine.kv_cache import SpanKey
from edgevlm.scenes import composition
from training import several_frames
from training.dialogues import Packer
from training.frame_stream import CHOICES, recall_question, stream_scenes
from training.several_frames import Asked, StreamPacker, decode_stream

NANO = Path(__file__).resolve().parents[2] / "training" / "nano"
COUNT, MEMORY, AGO = 7, 3, 2


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    scenes = itertools.islice(stream_scenes([3]), COUNT)
    return [np.asarray(composition.draw(scene)) for scene in scenes]


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def watched(vlm: VLM, frames: list[NDArray[np.uint8]]) -> list[tuple[list[Any], Choice]]:
    """What the KV cache held after each frame, and the choice."""
    found = []
    question = recall_question(AGO)
    with vlm.watch(iter(frames), question, choices=CHOICES, memory=MEMORY) as watch:
        for seen in watch:
            assert isinstance(seen.answer, Choice)
            found.append((list(vlm._engine._kv_cache.held), seen.answer))
    return found


def test_a_question_sees_the_tokens_of_watch(
    tokenizer: Any, watched: list[tuple[list[Any], Choice]]
) -> None:
    asked = [Asked(at, AGO, recall_question(AGO), "red") for at in range(COUNT)]
    row = StreamPacker(Packer(tokenizer), MEMORY).row(COUNT, asked)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for at, (held, _) in enumerate(watched):
        expected: list[int] = []
        for item in held:
            expected += [image] * item.length if isinstance(item, SpanKey) else [item]
        seen = np.flatnonzero(row.mask[row.says[at]])
        seen = seen[np.argsort(row.positions[seen])]
        assert row.ids[seen].tolist() == expected
        assert set(np.diff(row.positions[seen])) == {1}


def test_a_row_has_the_probabilities_of_watch(
    vlm: VLM,
    tokenizer: Any,
    frames: list[NDArray[np.uint8]],
    watched: list[tuple[list[Any], Choice]],
) -> None:
    """Also after frames are forgotten: what is left has seen them, and a new prompt's has not."""
    question = recall_question(AGO)
    asked = [Asked(at, AGO, question, color) for at in range(COUNT) for color in CHOICES]
    row = StreamPacker(Packer(tokenizer), MEMORY).row(COUNT, asked)
    engine = vlm._engine
    tokens = np.stack([engine.encode_image(engine.process_image(frame)) for frame in frames])
    model = SmolVLMForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32)
    with torch.no_grad():
        out, _, _ = decode_stream(model, row, torch.from_numpy(tokens))
        logprobs = torch.log_softmax(model.lm_head(out.last_hidden_state[0]), -1)
    first = torch.from_numpy(row.says)  # a color is one token, then the answer ends
    targets = torch.from_numpy(row.targets)
    whole = logprobs[first, targets[first]] + logprobs[first + 1, targets[first + 1]]
    expected = torch.softmax(whole.view(COUNT, len(CHOICES)), 1).tolist()
    anew = 0.0
    for at, (_, choice) in enumerate(watched):
        found = [choice.probabilities[color] for color in CHOICES]
        assert found == pytest.approx(expected[at], abs=0.05), at  # q8_0
        fresh = vlm.choose(frames[max(0, at - MEMORY + 1) : at + 1], question, CHOICES)
        anew = max(
            anew, *(abs(fresh.probabilities[c] - p) for c, p in zip(CHOICES, found, strict=True))
        )
    assert anew > 0.2


def test_the_decoder_learns_from_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single frame is easy to learn by heart."""
    settings = {"FRAMES": 3, "VALIDATION_FRAMES": 4, "VALIDATION_ROWS": 1, "REPORT_SECONDS": -1}
    settings |= {"WARM_UP": 1, "REPEATED": 5, "REPEATED_SCENES": 2}
    for name, value in settings.items():
        monkeypatch.setattr(several_frames, name, value)
    several_frames.main([str(NANO), str(tmp_path / "out"), "--steps", "5", "--frames", "1"])
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [one["step"] for one in lines] == list(range(6))
    losses = [one["language"] for one in lines if "language" in one]
    looks = [one["look"] for one in lines if "look" in one]
    assert losses[-1] < losses[0] / 2 and looks[-1] < looks[0]
    assert "repeated_language" in lines[-1] and set(lines[-1]["recall"]) == {"0", "1", "2"}
    before, after = (
        SmolVLMForConditionalGeneration.from_pretrained(one, dtype=torch.float32).state_dict()
        for one in (NANO, tmp_path / "out")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("text_model" in name or "lm_head" in name for name in changed)
    assert not (tmp_path / "out" / "README.md").exists()
