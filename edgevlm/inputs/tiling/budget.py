"""How many tiles an image may become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgevlm.errors import InputError
from edgevlm.validation import check_integer

Detail = Literal["low", "high", "auto"]
"""How finely an image is split. ``low``: one tile. ``high``: as the checkpoint's processor splits. ``auto``:
into as many tiles as the pixels of the image fill, so that no image is enlarged."""


@dataclass(frozen=True)
class ImageBudget:
    """Limits the tiles of an image. Models that never split images always use one tile.

    Raises:
        InputError: a setting of the wrong type or outside its range.
    """

    detail: Detail | None = None
    """``low``: one tile. ``high``: split as the checkpoint's processor splits. ``auto``: split into as
    many tiles as the pixels of the image fill, so that no image is enlarged. None: the
    checkpoint's own setting, which is ``high`` for models that split images."""
    max_tokens: int | None = None
    """Limit of embeddings (tokens) for an image; None for no limit."""

    def __post_init__(self) -> None:
        if self.detail is not None and self.detail not in get_args(Detail):
            raise InputError(f"detail must be low, high, auto or None, is {self.detail!r}")
        if self.max_tokens is not None:
            check_integer("max_image_tokens", self.max_tokens, 1, 2**31 - 1)

    def max_tiles(self, tokens_per_tile: int) -> int | None:
        """Return the number of tiles that `max_tokens` allows; None for no limit.

        Args:
            tokens_per_tile: most positions that one tile takes in a prompt.

        Raises:
            InputError: `max_tokens` is less than one tile.
        """
        if self.max_tokens is None:
            return None
        if self.max_tokens < tokens_per_tile:
            raise InputError(
                f"max_image_tokens is {self.max_tokens}, but an image of this model takes at least "
                f"{tokens_per_tile}"
            )
        return self.max_tokens // tokens_per_tile


CHECKPOINT_BUDGET = ImageBudget()
"""Images are split as the checkpoint's processor splits them."""
