"""What transformers computes for the committed bundles, stored so that tests need neither it nor PyTorch.

`tests/bundles/FAMILY` holds a bundle of a tiny checkpoint with random weights, and in ``oracle.npz`` for
each conversation of `CONVERSATIONS`: prompt token ids, the first tokens of the greedy answer, the logits
before each of them, hashes of the image tiles. ``python -m tests.support.make_bundles`` writes all of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
FAMILIES = ("smolvlm", "idefics3", "paligemma")
ORACLE_NAME = "oracle.npz"
ANSWER_TOKENS = 2
REBUILD = "run 'python -m tests.support.make_bundles' and commit what it writes"

TEXT = "Wie heißt das?  2 spaces,\nnext line: 😀 1234 <b>"

Size = tuple[int, int]
"""Width and height of an image, pixels."""


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them; ``{"type": "image"}`` stands for the next of `sizes`."""

    messages: tuple[dict[str, Any], ...]
    sizes: tuple[Size, ...] = ()

    def images(self) -> list[NDArray[np.uint8]]:
        """Return the images: uint8 ``[height, width, 3]``."""
        return [oracle_image(number, *size) for number, size in enumerate(self.sizes)]

    def with_images(self) -> list[dict[str, Any]]:
        """Return the messages as `VLM.prompt` takes them."""
        images = iter(self.images())
        return [
            {**message, "content": [with_image(part, images) for part in message["content"]]}
            for message in self.messages
        ]


def with_image(part: dict[str, Any], images: Any) -> dict[str, Any]:
    return {**part, "image": next(images)} if part["type"] == "image" else part


def oracle_image(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return an image that integer arithmetic draws, so that it has the same bytes everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 5 + number * 40, columns * 3 + rows, (rows // 9 + columns // 7) % 2 * 150]
    return np.stack(channels, axis=-1).astype(np.uint8)


def message(role: str, text: str, images: int = 0) -> dict[str, Any]:
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


_WIDE, _TALL, _SMALL, _LARGE = (128, 32), (24, 96), (9, 7), (150, 100)
_ONE_TURN = (
    Conversation((message("user", "What is this?", 1),), (_WIDE,)),
    Conversation((message("user", TEXT, 1),), (_TALL,)),
    Conversation((message("user", "Describe it.\n", 1),), (_SMALL,)),
    Conversation((message("user", "What changed?", 2),), (_LARGE, _TALL)),
)
CONVERSATIONS: dict[str, tuple[Conversation, ...]] = {
    "smolvlm": (
        *_ONE_TURN,
        Conversation((message("user", TEXT),)),
        Conversation(
            (message("system", "Answer in one word."), message("user", "Which?", 1)), (_LARGE,)
        ),
        Conversation(
            (
                message("user", "What is this?", 1),
                message("assistant", "A red circle."),
                message("user", "And this?", 1),
            ),
            (_SMALL, _WIDE),
        ),
    ),
    "paligemma": _ONE_TURN,  # its processor knows no other roles
}
CONVERSATIONS["idefics3"] = CONVERSATIONS["smolvlm"]


@dataclass(frozen=True)
class Expected:
    """What transformers computes for one conversation."""

    prompt_ids: tuple[int, ...]
    """With the image token in the place of each embedding."""
    answer_ids: tuple[int, ...]
    """The first `ANSWER_TOKENS` of the greedy answer; the end is not allowed among them."""
    logits: NDArray[np.float32]
    """``[ANSWER_TOKENS, vocabulary]``: before each token of the answer."""
    tile_hashes: tuple[str, ...]
    """`tile_hash` of each tile, in the order of the prompt."""


def tile_hash(tile: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a uint8 tile ``[height, width, 3]``."""
    return hashlib.sha256(tile.tobytes()).hexdigest()


def save_oracle(path: Path, expected: list[Expected], versions: dict[str, str]) -> None:
    arrays: dict[str, Any] = {
        "versions": np.array([f"{name} {version}" for name, version in versions.items()])
    }
    for number, one in enumerate(expected):
        arrays[f"{number}.prompt_ids"] = np.array(one.prompt_ids, np.int32)
        arrays[f"{number}.answer_ids"] = np.array(one.answer_ids, np.int32)
        arrays[f"{number}.logits"] = one.logits
        arrays[f"{number}.tile_hashes"] = np.array(one.tile_hashes, dtype="U64")
    np.savez_compressed(path, **arrays)


def load_oracle(family: str) -> list[Expected]:
    """Return one `Expected` for each conversation of the family."""
    with np.load(BUNDLES / family / ORACLE_NAME) as arrays:
        return [
            Expected(
                tuple(arrays[f"{number}.prompt_ids"].tolist()),
                tuple(arrays[f"{number}.answer_ids"].tolist()),
                arrays[f"{number}.logits"],
                tuple(arrays[f"{number}.tile_hashes"].tolist()),
            )
            for number in range(len(CONVERSATIONS[family]))
        ]
