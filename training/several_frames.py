"""Teach edgevlm-nano to recall frames: ``python -m training.several_frames CHECKPOINT OUT [--bf16]``.

The decoder learns to say what color was shown some frames ago, in streams as `VLM.watch` with a ``memory``
decodes them. Each row is one stream: a frame attends to the frames that were in the memory when it came, and
a question to those that are in it. So the keys of older frames have seen frames that are gone, as they have
at run time.

The tower is at rest; its tokens of a set of frames are computed once. Every third step repeats the dialogues
of the stages before, so that they are not forgotten.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from training import labels
from training.attention import SAY
from training.data import Batches, draw_tiles, normalize
from training.decoding import decode
from training.dialogues import Packer
from training.frame_stream import CHOICES, MEMORY, color_of, recall_question, stream_scenes
from training.model import GRID, TOKENS, encode_images, save_model
from training.optimizer import MuonAdamW
from training.stages import STAGES
from training.train import average_gradients, language_loss

SEED = 31
VALIDATION_SEED = 32
FRAMES = 16
"""Frames of a row: the memory is full after half of them, and slides then."""
QUESTIONS_PER_FRAME = 3
REPEATED = 3
"""One step of so many repeats the dialogues of the stages before."""
REPEATED_SCENES = 6
RATE, LAST_RATE, WARM_UP = 1.2e-3, 0.03, 50
LOOK = 0.5
"""Weight of the loss that tells a head of the decoder where to look."""
VALIDATION_FRAMES, VALIDATION_ROWS = 256, 12
REPORT_SECONDS = 90


@dataclass(frozen=True)
class Asked:
    """A question after a frame."""

    frame: int
    """The newest frame, counted from the first of the stream."""
    ago: int
    question: str
    answer: str


@dataclass(frozen=True)
class StreamRow:
    """A stream as one row of tokens."""

    ids: NDArray[np.int64]
    """``[length]``, with the image token at the frames."""
    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    """``[length, length]``, True where a token attends to another one."""
    images: NDArray[np.int64]
    """``[frames, TOKENS]``, where the tokens of each frame are."""
    targets: NDArray[np.int64]
    """``[length]``, the next token where an answer is said, else -100."""
    says: NDArray[np.int64]
    """``[questions]``, where the first token of each answer is said."""


class StreamPacker:
    """Builds rows of streams with one tokenizer.

    Args:
        memory: frames that are in the memory.
    """

    def __init__(self, packer: Packer, memory: int = MEMORY) -> None:
        self._packer, self._memory = packer, memory
        ids = packer.opening(2)
        first, second = packer.image_positions(2)
        self._head = ids[:first]
        """What is before the first frame."""
        self._between = ids[first + TOKENS : second]
        self._after = packer.opening(1)[first + TOKENS :]
        """The part of it that belongs to the frame before."""
        self._image = ids[first]

    def row(self, frames: int, asked: Sequence[Asked]) -> StreamRow:
        """Return the row of a stream of so many frames.

        A frame has its place in the order of the stream. Once frames have been forgotten, the head is as many
        positions before the oldest frame as at run time, so later frames have a copy of it.
        """
        ids: list[int] = []
        positions: list[int] = []
        kinds: list[tuple[str, int]] = []  # and the number of the frame or of the question
        stride = TOKENS + len(self._between)
        starts = [len(self._head) + stride * frame for frame in range(frames)]

        def add(tokens: Sequence[int], start: int, kind: str, number: int) -> None:
            ids.extend(tokens)
            positions.extend(range(start, start + len(tokens)))
            kinds.extend([(kind, number)] * len(tokens))

        add(self._head, 0, "head", self._memory - 1)
        header = self._between[len(self._after) :]
        for frame, start in enumerate(starts):
            if frame >= self._memory:
                oldest = starts[frame - self._memory + 1]
                add(self._head, oldest - len(self._head), "head", frame)
            if frame:
                add(header, start - len(header), "header", frame)
            add([*[self._image] * TOKENS, *self._after], start, "body", frame)
        targets = [-100] * len(ids)
        says = []
        for number, one in enumerate(asked):
            segment = self._packer.segment([(one.question, one.answer)], 1)
            says.append(len(ids) + segment.is_answer.index(True) - 1)
            following = zip(segment.ids[1:], segment.is_answer[1:], strict=True)
            targets += [*(i if answer else -100 for i, answer in following), -100]
            start = starts[one.frame] + TOKENS + len(self._after)
            add(segment.ids, start, "question", number)
        mask = self._mask(kinds, [one.frame for one in asked])
        bodies = [kinds.index(("body", frame)) for frame in range(frames)]
        images = np.array(bodies)[:, None] + np.arange(TOKENS)
        return StreamRow(
            np.array(ids), np.array(positions), mask, images, np.array(targets), np.array(says)
        )

    def _mask(self, kinds: Sequence[tuple[str, int]], asked: Sequence[int]) -> NDArray[np.bool_]:
        """Return which tokens attend to which, from the kind of each and the frames of the questions."""
        names = np.array([kind for kind, _ in kinds])
        numbers = np.array([number for _, number in kinds])
        is_question, is_head = names == "question", names == "head"
        newest = numbers.copy()  # the newest frame when the token was decoded
        if len(asked):
            newest[is_question] = np.array(asked)[numbers[is_question]]
        oldest = np.maximum(newest - self._memory + 1, 0)
        frame, now, first = numbers[None], newest[:, None], oldest[:, None]
        of_head = is_head[None] & (frame == np.maximum(now, self._memory - 1))
        of_body = (names == "body")[None] & (frame >= first) & (frame <= now)
        # The header of the oldest frame is forgotten with the frame before it.
        of_header = (names == "header")[None] & (frame > first) & (frame <= now)
        of_question = is_question[None] & is_question[:, None] & (frame == numbers[:, None])
        seen = np.where(is_head[:, None], of_head, of_head | of_body | of_header | of_question)
        past: NDArray[np.bool_] = seen & np.tri(len(names), dtype=bool)
        return past


class FramePool:
    """Frames with their tokens, from which streams are put together.

    Args:
        seed: of the scenes.
        count: number of frames.
    """

    def __init__(self, model: SmolVLMForConditionalGeneration, seed: list[int], count: int) -> None:
        scenes = list(itertools.islice(stream_scenes(seed), count))
        self.colors = [color_of(scene) for scene in scenes]
        self.cells = torch.from_numpy(
            np.stack([labels.label(scene, GRID).thing > 0 for scene in scenes])
        )
        parts = []
        with torch.no_grad():
            for start in range(0, count, 64):
                tiles = draw_tiles(scenes[start : start + 64])["tiles"]
                parts.append(encode_images(model, normalize(tiles))["tokens"])
        self.tokens: Tensor = torch.cat(parts)

    def stream(
        self, rng: np.random.Generator, frames: int, questions: int
    ) -> tuple[NDArray[np.int64], list[Asked]]:
        """Return the numbers of random frames, and random questions after each of them."""
        shown = rng.integers(len(self.colors), size=frames)
        asked = []
        for frame in range(frames):
            most = min(frame + 1, MEMORY)
            for ago in rng.choice(most, min(questions, most), replace=False).tolist():
                answer = self.colors[int(shown[frame - ago])]
                asked.append(Asked(frame, ago, recall_question(ago), answer))
        return shown, asked


def decode_stream(
    model: SmolVLMForConditionalGeneration, row: StreamRow, tokens: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """Return transformers' output of the decoder with hidden states, the mask and the rotary embeddings.

    Args:
        model: the model.
        row: a stream.
        tokens: those of its frames, ``[frames, TOKENS, width]``.
    """
    text: Any = model.model.text_model
    words = text.embed_tokens(torch.from_numpy(row.ids))
    at = torch.from_numpy(row.images.ravel())
    words = words.index_copy(0, at, tokens.reshape(-1, tokens.shape[-1]).to(words.dtype))[None]
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(row.mask.shape).masked_fill(torch.from_numpy(~row.mask), lowest)[None, None]
    positions = torch.from_numpy(row.positions)[None]
    out = text(
        inputs_embeds=words,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    return out, mask, text.rotary_emb(words, positions)


def look_loss(
    model: SmolVLMForConditionalGeneration,
    row: StreamRow,
    decoded: tuple[Any, Tensor, Tensor],
    wanted: Tensor,
) -> Tensor:
    """Return how little the head `SAY` looks at the shapes that are asked for.

    Args:
        model: the model.
        row: a stream.
        decoded: what `decode_stream` returned.
        wanted: ``[questions, length]``, True at the tokens that the shape covers.
    """
    out, mask, (cos, sin) = decoded
    number, head = SAY
    layer: Any = model.model.text_model.layers[number]
    attend = layer.self_attn
    size, shared = attend.head_dim, head // attend.num_key_value_groups
    hidden = layer.input_layernorm(out.hidden_states[number])
    queries, keys = apply_rotary_pos_emb(
        functional.linear(hidden, attend.q_proj.weight[head * size : (head + 1) * size])[:, None],
        functional.linear(hidden, attend.k_proj.weight[shared * size : (shared + 1) * size])[
            :, None
        ],
        cos,
        sin,
    )
    at = torch.from_numpy(row.says)
    scores = (queries[0, 0, at] @ keys[0, 0].T).float() * attend.scaling + mask[0, 0, at]
    looked = torch.log_softmax(scores, -1)
    return -looked.masked_fill(~wanted, -torch.inf).logsumexp(1).mean()


def covered(
    pool: FramePool, row: StreamRow, shown: Sequence[int], asked: Sequence[Asked]
) -> Tensor:
    """Return where the shapes are that the questions ask for, bool ``[questions, length]``."""
    wanted = torch.zeros(len(asked), len(row.ids), dtype=torch.bool)
    for number, one in enumerate(asked):
        frame = one.frame - one.ago
        wanted[number, torch.from_numpy(row.images[frame])] = pool.cells[shown[frame]]
    return wanted


class Recall:
    """What the model recalls in streams that training never shows."""

    def __init__(
        self,
        model: SmolVLMForConditionalGeneration,
        packer: StreamPacker,
        tokenizer: Any,
    ) -> None:
        self._pool = FramePool(model, [VALIDATION_SEED], VALIDATION_FRAMES)
        rng = np.random.default_rng(VALIDATION_SEED)
        self._rows = []
        for _ in range(VALIDATION_ROWS):
            shown, asked = self._pool.stream(rng, FRAMES, QUESTIONS_PER_FRAME)
            self._rows.append((packer.row(FRAMES, asked), shown, asked))
        self._choices = torch.tensor(
            [tokenizer.encode(f" {c}", add_special_tokens=False)[0] for c in CHOICES]
        )

    @torch.no_grad()
    def run(self, model: SmolVLMForConditionalGeneration) -> dict[str, float]:
        """Return the share of right answers for each number of frames ago."""
        right: dict[int, list[bool]] = {ago: [] for ago in range(MEMORY)}
        for row, shown, asked in self._rows:
            out, _, _ = decode_stream(model, row, self._pool.tokens[shown])
            logits = model.lm_head(out.last_hidden_state[0, row.says])[:, self._choices]
            for one, chosen in zip(asked, logits.argmax(1).tolist(), strict=True):
                right[one.ago].append(CHOICES[chosen] == one.answer)
        return {str(ago): round(float(np.mean(r)), 3) for ago, r in right.items() if r}


def train(checkpoint: Path, out: Path, steps: int, frames: int, bf16: bool) -> None:
    """Train for so many steps on so many different frames.

    Log figures to OUT.jsonl and write the checkpoint regularly, so that training can be stopped at any time.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model = SmolVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    packer = Packer(tokenizer)
    streams = StreamPacker(packer)
    pool = FramePool(model, [SEED], frames)
    recall = Recall(model, streams, tokenizer)
    model.requires_grad_(False)
    learning = nn.ModuleList([model.model.text_model, model.lm_head]).requires_grad_(True)
    learnt = list(learning.parameters())
    optimizer = MuonAdamW([(learning, 1.0)], RATE)
    repeated = Batches([SEED, 1], STAGES["polish"], packer, size=REPEATED_SCENES)
    rng = np.random.default_rng(SEED)
    out.parent.mkdir(parents=True, exist_ok=True)
    started = reported = time.monotonic()
    figures: dict[str, list[float]] = defaultdict(list)
    for step in range(steps + 1):
        now, done = time.monotonic(), step / steps
        if now - reported > REPORT_SECONDS or step == steps:
            line: dict[str, Any] = {"step": step, "seconds": round(now - started)}
            line |= {name: round(float(np.mean(values)), 3) for name, values in figures.items()}
            text = json.dumps(line | {"recall": recall.run(model)})
            print(text, flush=True)
            with out.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
                log.write(text + "\n")
            save_model(model, checkpoint, out)
            (out / "README.md").unlink()  # it describes the checkpoint before
            figures.clear()
            reported = time.monotonic()
        if step == steps:
            break
        fall = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * RATE * fall * min(1.0, (step + 1) / WARM_UP)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if step % REPEATED == REPEATED - 1:
                loss, found = repeated_loss(model, packer, repeated.next())
            else:
                shown, asked = pool.stream(rng, FRAMES, QUESTIONS_PER_FRAME)
                row = streams.row(FRAMES, asked)
                decoded = decode_stream(model, row, pool.tokens[shown])
                targets = torch.from_numpy(row.targets)[None]
                loss, found = language_loss(model, decoded[0].last_hidden_state, targets)
                look = look_loss(model, row, decoded, covered(pool, row, shown.tolist(), asked))
                found["look"] = float(look.detach())
                loss = loss + LOOK * look
        loss.backward()
        average_gradients(learnt)
        optimizer.step()
        for name, value in found.items():
            figures[name].append(value)


def repeated_loss(
    model: SmolVLMForConditionalGeneration, packer: Packer, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return loss and figures of a batch of the stages before."""
    with torch.no_grad():
        tokens = encode_images(model, normalize(batch["tiles"]))["tokens"]
    at = packer.image_positions(len(tokens) // len(batch["ids"]))
    hidden = decode(model, tokens, batch, at).last_hidden_state
    loss, found = language_loss(model, hidden, batch["targets"])
    return loss, {f"repeated_{name}": value for name, value in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint to start from")
    parser.add_argument("out", type=Path, help="folder for the result")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--frames", type=int, default=2000, help="different frames to train on")
    parser.add_argument("--bf16", action="store_true", help="for CPUs that are fast at it (AMX)")
    train(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
