"""The embedding tables of a decoder in ONNX Runtime, which are mapped into memory and never loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import LoadError


class EmbeddingTables:
    """The embeddings of tokens, and those that the layers themselves add, if there are any.

    Args:
        embeddings: a ``.npy`` file of floats ``[vocabulary, width]``.
        layer_embeddings: a ``.npy`` file of floats ``[vocabulary + 1, layer width]``, whose last row is that
            of entries that are no tokens; None: the layers add none.

    Raises:
        LoadError: a file is no ``.npy`` file of floats in two dimensions.
    """

    def __init__(self, embeddings: Path, layer_embeddings: Path | None) -> None:
        self._table = _open_table(embeddings)
        self._layers = None if layer_embeddings is None else _open_table(layer_embeddings)
        self.vocabulary_size, self.width = self._table.shape

    @property
    def layer_shape(self) -> tuple[int, ...] | None:
        """Shape of the table of the layers; None without one."""
        return None if self._layers is None else self._layers.shape

    def rows(self, token_ids: NDArray[np.int32], width: int) -> NDArray[np.float32]:
        """Return float32 ``[n, width]``, the embeddings of tokens, with zeros behind those of the table."""
        rows = np.zeros((len(token_ids), width), np.float32)
        rows[:, : self.width] = self._table[token_ids]
        return rows

    def layer_rows(self, token_ids: Sequence[int] | None, count: int) -> NDArray[np.float32] | None:
        """Return float32 ``[count, layer width]``, what the layers add; None without such a table.

        Args:
            token_ids: the tokens; None: the entries are no tokens.
            count: number of entries.
        """
        if self._layers is None:
            return None
        ids = [len(self._layers) - 1] * count if token_ids is None else list(token_ids)
        return np.asarray(self._layers[ids], np.float32)


def _open_table(path: Path) -> NDArray[Any]:
    """Map a table into memory.

    Raises:
        LoadError: it is no ``.npy`` file of floats in two dimensions.
    """
    try:
        table: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LoadError(
            f"cannot read the embedding table {path}: {error}; get the bundle again"
        ) from error
    if table.ndim != 2 or table.dtype not in (np.float16, np.float32):
        raise LoadError(
            f"{path} is no embedding table: it has {table.dtype} {list(table.shape)}; get the bundle again"
        )
    return table
