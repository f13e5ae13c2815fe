"""The stages of training, each a configuration of the one trainer in `train.py`.

1. `look`, then `read` with more printed words and crowds: tower and connector alone, from dense labels.
2. `align-a`, `align-b`, `align-c`: captions, with the connector, the connector and the decoder, or
   everything in training. The next stage goes on from `align-b`; the others are there to compare.
3. `instruct`: dialogues about one or two pictures and without any, the vision tower at rest.
4. `polish`: the same with everything in training, at a falling rate.
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
    """One stretch of training; the learning rate rises over `warm_up` steps, falls as a cosine.

    `batch` is in pictures per process and forward pass, `accumulate` in forward passes per step;
    `after` names the stage whose result this one starts from; `dense` weighs the dense loss,
    `attention` that of what the decoder's heads look at (see `attention.py`); `talk` is what the
    decoder learns from (`none`, `captions` or `dialogues`); `pairs` is the share of batches about
    two pictures.
    """

    name: str
    after: str | None
    pictures: int
    batch: int
    rate: float
    last_rate: float  # as a share of `rate`
    dense: float = 0.0
    attention: float = 0.0
    talk: str = "none"
    trained: tuple[str, ...] = PARTS
    tower: float = 1.0  # share of the learning rate that vision tower and connector get
    layouts: dict[str, float] = field(default_factory=lambda: dict(_TALK_LAYOUTS))
    pairs: float = 0.0
    accumulate: int = 1
    warm_up: int = 100


_SEE: dict[str, Any] = {"dense": 1.0, "trained": PARTS[:2]}
_ALIGN: dict[str, Any] = {
    "after": "read",
    "pictures": 3_000,
    "batch": 12,
    "rate": 4e-3,
    "last_rate": 0.8,
    "tower": 0.08,
    "talk": "captions",
    "attention": 1.0,
    "warm_up": 40,
}
_TALK: dict[str, Any] = {"talk": "dialogues", "pairs": 0.14, "tower": 0.15}

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
