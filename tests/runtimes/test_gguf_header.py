"""The header of a GGUF file, as llama.cpp's own package `gguf` reads it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.runtimes.llama_cpp.gguf_header import GgufHeader, TensorInfo
from tests.support.oracle import BUNDLES


def read(path: Path) -> list[TensorInfo]:
    return GgufHeader(np.memmap(path, np.uint8, mode="r").data).tensors()


def expected(path: Path) -> list[TensorInfo]:
    return [
        TensorInfo(
            tensor.name,
            tuple(int(side) for side in tensor.shape),
            int(tensor.tensor_type),
            int(tensor.data_offset),
        )
        for tensor in gguf.GGUFReader(path).tensors
    ]


@pytest.mark.parametrize("path", sorted(BUNDLES.rglob("*.gguf")), ids=lambda path: path.parent.name)
def test_tensors_of_decoders(path: Path) -> None:
    assert read(path) == expected(path)


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_tensors_of_any_rank_and_alignment(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_token_list(["a", "bc", "字"])
    writer.add_array("numbers", [1, 2, 3])
    for rank in range(1, 5):
        writer.add_tensor(f"rank {rank}", np.ones((3, 2, 1, 4)[:rank], np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read(path) == expected(path)
    assert [len(tensor.shape) for tensor in read(path)] == [1, 2, 3, 4]
