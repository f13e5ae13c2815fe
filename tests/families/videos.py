"""Videos in transformers, and ours beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.images import load_image
from tests.families.case import Case
from tests.families.row import Message, picture, text

TORCHVISION = Path(sys.prefix) / "torchvision"
VIDEO = {"type": "video"}
IMAGE = {"type": "image"}


@dataclass(frozen=True)
class Request:
    """Messages with videos and images of random pixels."""

    messages: list[Message]
    videos: tuple[tuple[int, int, int], ...]
    """Frames, width and height of each video."""
    images: tuple[tuple[int, int], ...] = ()
    """Width and height of each image."""
    fps: float = 2.0


def ask(*parts: dict[str, str]) -> list[Message]:
    return [{"role": "user", "content": [*parts, text("What happens?")]}]


TURNS = [
    *ask(VIDEO),
    {"role": "assistant", "content": [text("A thing moves.")]},
    *ask(VIDEO),
]
REQUESTS = (
    Request(ask(VIDEO), ((5, 140, 84),), fps=3.0),
    Request(ask(VIDEO), ((8, 100, 230),)),
    Request(ask(VIDEO), ((2, 64, 96),)),
    Request(ask(VIDEO, IMAGE), ((4, 90, 60),), ((130, 80),), fps=0.5),
    Request(TURNS, ((3, 60, 60), (3, 90, 40)), fps=4.0),
)
"""Odd and even numbers of frames, an image beside a video, two videos in two turns."""


def frames(name: str, count: int, width: int, height: int) -> NDArray[np.uint8]:
    """Smooth noise, ``[count, height, width, 3]``."""
    seed = sum(map(ord, name))
    return np.stack([np.asarray(picture(seed + i, (width, height))) for i in range(count)])


def make_videos(request: Request, index: int) -> dict[str, NDArray[np.uint8]]:
    made = {
        f"{index} video {place}": frames(f"{index} {place}", *size)
        for place, size in enumerate(request.videos)
    }
    for place, (width, height) in enumerate(request.images):
        made[f"{index} image {place}"] = frames(f"{index} image", 1, width, height)
    return made


def reference_inputs(
    checkpoint: Path, requests: Sequence[Request], folder: Path
) -> list[dict[str, NDArray[Any]]]:
    """Return what transformers' processor makes of each request."""
    videos: dict[str, Any] = {}
    described = []
    for index, request in enumerate(requests):
        made = make_videos(request, index)
        videos |= made
        described.append(
            {
                "messages": request.messages,
                "videos": [name for name in made if "video" in name],
                "images": [name for name in made if "image" in name],
                "fps": request.fps,
            }
        )
    np.savez(folder / "videos.npz", **videos)
    (folder / "requests.json").write_text(json.dumps(described))
    script = Path(__file__).parents[1] / "reference" / "video_inputs.py"
    files = [str(folder / name) for name in ("videos.npz", "requests.json", "inputs.npz")]
    subprocess.run(
        [sys.executable, str(script), str(checkpoint), *files],
        env={**os.environ, "PYTHONPATH": str(TORCHVISION)},
        check=True,
        capture_output=True,
    )
    found: list[dict[str, NDArray[Any]]] = [{} for _ in requests]
    with np.load(folder / "inputs.npz") as inputs:
        for name in inputs.files:
            number, _, key = name.partition(" ")
            found[int(number)][key] = inputs[name]
    return found


def process(case: Case, request: Request, index: int) -> list[ProcessedImage]:
    """Return the videos and images of a request as our engine takes them, in the order of the messages."""
    made = make_videos(request, index)
    kinds = [
        part["type"]
        for message in request.messages
        for part in message["content"]
        if part["type"] != "text"
    ]
    places = {"video": iter(range(len(kinds))), "image": iter(range(len(kinds)))}
    engine = case.vlm._engine
    return [
        engine.process_video(made[f"{index} video {next(places[kind])}"], fps=request.fps)
        if kind == "video"
        else engine.process_image(load_image(made[f"{index} image {next(places[kind])}"][0]))
        for kind in kinds
    ]


def frames_of(processed: Sequence[ProcessedImage]) -> list[NDArray[np.uint8]]:
    """Return the frames of all videos, uint8 ``[height, width, 3]``, also repeated ones."""
    return [
        frame
        for video in processed
        if video.times
        for tile in video.pixels
        for frame in np.split(tile, tile.shape[-1] // 3, axis=-1)
    ]


def our_ids(case: Case, request: Request, processed: Sequence[ProcessedImage]) -> list[int]:
    """Return our prompt, with -1 in the places of embeddings."""
    ids: list[int] = []
    for item in case.vlm._engine.tokenize(request.messages, processed):
        ids += [item] if isinstance(item, int) else [-1] * item.length
    return ids


def reference_logits(
    case: Case, inputs: dict[str, NDArray[Any]], tokens: int
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the greedy answer of transformers, and the logits of each of its tokens."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    return case.reference.answer_and_logits(tensors, tokens)


def gray_levels(case: Case, normalized: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return gray levels of normalized pixels ``[..., 3]``."""
    normalization = case.vlm.manifest.image.normalization
    scaled = normalized.astype(np.float64) * normalization.std + normalization.mean
    return scaled / normalization.rescale_factor


def reference_tiles(inputs: dict[str, NDArray[Any]], patch: int) -> list[NDArray[np.float32]]:
    """Return normalized frames of transformers, float32 ``[height, width, 3]``, also repeated ones."""
    if "video_grid_thw" not in inputs:
        videos = inputs["pixel_values"]
        return list(np.moveaxis(videos.reshape(-1, *videos.shape[-3:]), 1, -1))
    found = []
    rows = iter(
        np.split(inputs["pixel_values_videos"], np.cumsum(inputs["video_grid_thw"].prod(-1)))
    )
    for (tiles, lines, columns), pixels in zip(inputs["video_grid_thw"], rows, strict=False):
        grid = pixels.reshape(tiles, lines // 2, columns // 2, 2, 2, 3, 2, patch, patch)
        pairs = grid.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        found += list(pairs.reshape(2 * tiles, lines * patch, columns * patch, 3))
    return found
