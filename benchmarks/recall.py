"""What does a model recall with ``memory`` of `VLM.watch`? ``python -m benchmarks.recall BUNDLE``.

An endless stream shows colored shapes, and the model is asked which color was shown some frames ago. It
answers with an endless memory of eight frames, with a new prompt about the same eight frames, and from the
newest frame alone. Frames are independent of each other, so the newest one says nothing about the others.

The built-in model has not learned this; ``python -m training.several_frames`` makes a checkpoint that has.
The result is a table in Markdown, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgevlm import VLM
from edgevlm.evaluation.intervals import Share, share_of
from edgevlm.scenes import composition
from training.frame_stream import CHOICES, MEMORY, color_of, recall_question, stream_scenes

SEED = 9_100_000
"""No stream of training has it."""
PROMPTED_EVERY = 8
"""New prompts are asked after every eighth frame: each decodes eight frames."""


@dataclass(frozen=True)
class Recalled:
    """Right answers about the frame so many frames ago."""

    ago: int
    endless: Share
    """With an endless memory."""
    compared: Share
    """The same, after every eighth frame alone, as the others."""
    anew: Share
    """Of new prompts about the frames of the memory."""
    alone: Share
    """Of new prompts about the newest frame."""
    same: Share
    """New prompts about the frames of the memory whose answer was that with an endless memory."""


@dataclass(frozen=True)
class Stream:
    """Frames, and the color that each shows."""

    frames: list[NDArray[np.uint8]]
    colors: list[str]


def draw_stream(count: int) -> Stream:
    """Return a stream of so many frames."""
    scenes = list(islice(stream_scenes([SEED]), count))
    frames = [np.asarray(composition.draw(scene)) for scene in scenes]
    return Stream(frames, [color_of(scene) for scene in scenes])


def marks(labels: Mapping[int, str], colors: Sequence[str], ago: int) -> list[float]:
    """Return 1 for each label that is the color shown `ago` frames before, else 0.

    The first label that counts is that after which the memory has forgotten a frame.

    Args:
        labels: labels by the number of the newest frame.
        colors: the color of each frame.
        ago: number of frames.
    """
    return [float(label == colors[at - ago]) for at, label in labels.items() if at >= MEMORY]


def watched(vlm: VLM, stream: Stream, ago: int) -> list[str]:
    """Return the label after each frame, with an endless memory."""
    question = recall_question(ago)
    with vlm.watch(iter(stream.frames), question, choices=CHOICES, memory=MEMORY) as watch:
        return [seen.value for seen in watch]


def prompted(vlm: VLM, stream: Stream, frames: int) -> list[dict[int, str]]:
    """Return the labels of new prompts about so many newest frames.

    Returns:
        For each question a dict from the number of the newest frame to the label.
    """
    labels: list[dict[int, str]] = [{} for _ in range(MEMORY)]
    shown: deque[NDArray[np.uint8]] = deque(maxlen=frames)
    for at, frame in enumerate(stream.frames):
        shown.append(frame)
        if at >= MEMORY and (at - MEMORY) % PROMPTED_EVERY == 0:
            for ago, found in enumerate(labels):  # after the first one, only the text is decoded
                found[at] = vlm.choose(shown, recall_question(ago), CHOICES).label
    return labels


def measure(vlm: VLM, count: int) -> Iterator[Recalled]:
    """Yield what is recalled of the newest frame, of the one before, and so on.

    Args:
        vlm: the model.
        count: number of frames, more than `MEMORY`.
    """
    stream = draw_stream(count)
    asked = zip(prompted(vlm, stream, MEMORY), prompted(vlm, stream, 1), strict=True)
    for ago, (anew, alone) in enumerate(asked):
        endless = dict(enumerate(watched(vlm, stream, ago)))
        there = {at: endless[at] for at in anew}
        ways = [endless, there, anew, alone]
        all_frames, compared, fresh, newest = (
            share_of(marks(one, stream.colors, ago)) for one in ways
        )
        same = share_of([float(there[at] == label) for at, label in anew.items()])
        yield Recalled(ago, all_frames, compared, fresh, newest, same)


def line(cells: Sequence[object]) -> str:
    """Return a line of a table; shares are in percent with their interval."""
    texts = [
        f"{100 * one.share:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
        if isinstance(one, Share)
        else str(one)
        for one in cells
    ]
    return f"| {' | '.join(texts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--frames", type=int, default=1000 + MEMORY)
    arguments = parser.parse_args()
    if arguments.frames <= MEMORY:
        parser.error(f"--frames must be more than {MEMORY}, is {arguments.frames}")
    every = f"every {PROMPTED_EVERY}th frame"
    head = [
        "frames ago",
        "endless memory",
        f"{every}: endless memory",
        "new prompt",
        "newest frame alone",
        "answers of endless memory and new prompt that are equal",
    ]
    print(line(head), line(["---"] * len(head)), sep="\n", flush=True)
    with VLM.from_pretrained(arguments.bundle, threads=1) as vlm:
        for one in measure(vlm, arguments.frames):
            cells = (one.ago, one.endless, one.compared, one.anew, one.alone, one.same)
            print(line(cells), flush=True)


if __name__ == "__main__":
    main()
