"""The stages of training, each a configuration of the trainer in `train.py`.

1. `look`, then `read` with more printed words and crowds: train tower and connector on dense labels.
2. `align-a`, `align-b`, `align-c`: train the connector, the connector and the decoder, or everything on
   captions. The next stage starts from `align-b`; the others are for comparison.
3. `instruct`: train on dialogues about one or two images or none, with a frozen vision tower.
4. `polish`: the same with everything trained, at a falling rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PARTS = ("vision", "connector", "decoder")

_LOOK_LAYOUTS = {
    "mosaic": 0.42,
    "page": 0.26,
    "text": 0.08,
    "single": 0.08,
    "mixed": 0.06,
    "crowd": 0.05,
    "nested": 0.05,
}
_READ_LAYOUTS = {
    "page": 0.42,
    "text": 0.14,
    "sign": 0.04,
    "mosaic": 0.12,
    "crowd": 0.20,
    "mixed": 0.05,
    "nested": 0.03,
}
_TALK_LAYOUTS = {
    "single": 0.06,
    "mixed": 0.15,
    "crowd": 0.31,
    "nested": 0.09,
    "text": 0.27,
    "sign": 0.05,
    "mosaic": 0.02,
    "page": 0.05,
}


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    after: str | None
    """Stage whose result this one starts from; None: initial weights."""
    images: int
    """Number of images in the whole stage."""
    batch: int
    """Images per process and forward pass."""
    rate: float
    """Largest learning rate."""
    last_rate: float
    """Learning rate at the end as a fraction of `rate`; it falls as a cosine."""
    dense: float = 0.0
    """Weight of the dense loss."""
    attention: float = 0.0
    """Weight of the losses of `attention.py`."""
    text_data: str = "none"
    """Training data of the decoder: `none`, `captions` or `dialogues`."""
    trained: tuple[str, ...] = PARTS
    tower: float = 1.0
    """Learning rate of vision tower and connector as a fraction of `rate`."""
    layouts: dict[str, float] = field(default_factory=lambda: dict(_TALK_LAYOUTS))
    """Share of each layout among the scenes."""
    pairs: float = 0.0
    """Share of the batches about two images."""
    accumulate: int = 1
    """Forward passes per step."""
    warm_up: int = 100
    """Steps over which the learning rate rises."""


_SEE: dict[str, Any] = {"dense": 1.0, "trained": PARTS[:2]}
_ALIGN: dict[str, Any] = {
    "after": "read",
    "images": 3_000,
    "batch": 12,
    "rate": 4e-3,
    "last_rate": 0.8,
    "tower": 0.08,
    "text_data": "captions",
    "attention": 1.0,
    "warm_up": 40,
}
_TALK: dict[str, Any] = {"text_data": "dialogues", "pairs": 0.14, "tower": 0.15}

STAGES = {
    stage.name: stage
    for stage in (
        Stage("look", None, 75_000, 40, 1.4e-3, 0.35, layouts=_LOOK_LAYOUTS, **_SEE),
        Stage("read", "look", 295_000, 40, 7e-4, 0.03, layouts=_READ_LAYOUTS, **_SEE),
        Stage("align-a", **_ALIGN, trained=("connector",)),
        Stage("align-b", **_ALIGN, trained=("connector", "decoder")),
        Stage("align-c", **_ALIGN, dense=0.15),
        Stage(
            "instruct",
            "align-b",
            70_000,
            12,
            4e-3,
            0.5,
            dense=0.15,
            attention=1.0,
            trained=PARTS[1:],
            **_TALK,
        ),
        Stage("polish", "instruct", 115_000, 16, 2e-3, 0.01, dense=0.2, attention=1.0, **_TALK),
    )
}
