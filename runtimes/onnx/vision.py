"""The vision graph in ONNX Runtime."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import ClosedError, InferenceError
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.onnx import execution_providers
from edgevlm.runtimes.onnx.execution_providers import Provider
from edgevlm.runtimes.onnx.session import SessionOpener, load_onnxruntime
from edgevlm.runtimes.questions import QuestionInput, QuestionTokenizer
from edgevlm.runtimes.vision_checks import (
    TensorSpec,
    check_fixed_shapes,
    check_graph,
    check_tiles,
)


class OnnxVision:
    """A vision graph in ONNX Runtime; implements `VisionRuntime`.

    Args:
        path: the ONNX file, from uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n may be
            fixed to 1.
        input_name: the graph's input for tiles.
        output_name: the output that holds the embeddings.
        device: ``auto`` (CUDA, else CPU) or one of `ONNX_DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        threads: CPU threads; None takes one per physical core that this process may use.
        question: the graph's input for the question; None: there is none.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: the file is not such a graph, or a provider is not available.
        ClosedError: this process was forked from one that had used a model.
        MissingDependencyError: ONNX Runtime is not installed, or tokenizers for a question.
    """

    BATCH_SIZE = 1
    """Tiles per run. On a CPU a larger batch costs memory and saves no time (`benchmarks/settings.py`). On a
    GPU a batch of 8 takes two thirds of the time and four times the memory, and each change of the batch
    size, which almost every image brings, costs 20 ms (docs/gpu.md)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        input_name: str,
        output_name: str,
        device: str = "auto",
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        question: QuestionInput | None = None,
    ) -> None:
        check_not_forked()
        self._path = Path(path)
        self._session: Any = None
        opener = SessionOpener(device, providers, threads)
        mark_started(self, "_session")
        session = opener.open(self._path)
        self.device: str = session.get_providers()[0]
        self.on_cpu = self.device == execution_providers.CPU_PROVIDER
        self._input_name, self._output_name = input_name, output_name
        self._tile_shape = check_graph(
            self._path,
            _tensor_specs(session.get_inputs()),
            _tensor_specs(session.get_outputs()),
            input_name,
            output_name,
            None if question is None else question.name,
        )
        self._questions = None if question is None else QuestionTokenizer(question)
        if opener.fixed_shapes:
            check_fixed_shapes(self._path, self._tile_shape, device)
        self._session = session

    def encode(
        self,
        tiles: NDArray[np.uint8],
        *,
        question: str = "",
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Encode tiles.

        Args:
            tiles: uint8 ``[n, height, width, 3]``, n >= 1.
            question: what a graph with an input for it reads; others do not.
            cancel: stops this call from another thread, between two nodes of the graph; None: nothing does.

        Returns:
            float32 ``[n, tokens, width]``.

        Raises:
            InputError: the dtype or the shape is not the graph's, or the question is too long.
            CancelledError: `cancel` stopped it. The next call is not affected.
            ClosedError: the vision graph is closed.
            InferenceError: ONNX Runtime failed (memory, device).
        """
        check_not_forked()
        if self._session is None:
            raise ClosedError(f"the vision graph {self._path} is closed; create a new one")
        check_tiles(tiles, self._tile_shape)
        cancel = cancel or CancelSignal()
        inputs: dict[str, NDArray[np.generic]] = {}
        if self._questions is not None:
            inputs[self._questions.name] = self._questions.tokenize(question)
        runs = []
        for start in range(0, len(tiles), self.BATCH_SIZE):
            inputs[self._input_name] = tiles[start : start + self.BATCH_SIZE]
            runs.append(self._run(inputs, cancel))
        return np.concatenate(runs)

    def _run(
        self, inputs: dict[str, NDArray[np.generic]], cancel: CancelSignal
    ) -> NDArray[np.float32]:
        options = (
            load_onnxruntime().RunOptions()
        )  # of this run alone, so `terminate` stops no other
        with cancel.interrupting(functools.partial(setattr, options, "terminate", True)):
            try:
                embeddings: NDArray[np.float32]
                (embeddings,) = self._session.run([self._output_name], inputs, options)
            except Exception as error:  # see _create_session
                cancel.check()
                raise InferenceError(f"ONNX Runtime failed in {self._path}: {error}") from error
        return embeddings

    def close(self) -> None:
        """Free the session. A second call does nothing; every other later call raises ClosedError."""
        self._session = None


def _tensor_specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    """Return types and shapes of a graph's inputs or outputs, by name."""
    kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    specs: dict[str, TensorSpec] = {}
    for value in values:
        shape = [side if isinstance(side, int) else None for side in value.shape]
        specs[value.name] = kinds.get(value.type, value.type), shape
    return specs
