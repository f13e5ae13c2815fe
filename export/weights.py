"""Read the names, shapes and types of all tensors in the safetensors files of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgevlm.errors import ExportError
from edgevlm.export import adapter, quantized
from edgevlm.export.messages import one_line

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Formats that may run code when they are opened. edgevlm never opens them."""
BUFFERS = ("rotary_emb.inv_freq", "position_ids")
"""Endings of tensors that older releases of transformers stored and newer ones compute."""
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Type in safetensors, such as ``BF16``."""
    file: Path

    @property
    def parameters(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """Return all tensors by their names in the files, without buffers.

    Raises:
        ExportError: files are missing, damaged or contradict each other, or hold quantized weights or an
            adapter.
    """
    index = read_index(folder)
    shards = sorted({folder / name for name in index.values()}) or [single_file(folder)]
    found: dict[str, TensorEntry] = {}
    for shard in shards:
        entries = list(read_shard(shard))
        adapter.check_merged((entry.name for entry in entries), shard)
        quantized.check_tensors(((entry.name, entry.dtype) for entry in entries), shard)
        for entry in entries:
            if entry.name in found:
                raise ExportError(
                    f"{entry.name} is in both {found[entry.name].file.name} and {shard.name} of {folder}; "
                    f"fetch the checkpoint again, or save it again with transformers' save_pretrained"
                )
            found[entry.name] = entry
    for name, file in index.items():
        if not name.endswith(BUFFERS) and (
            name not in found or found[name].file.name != Path(file).name
        ):
            raise ExportError(
                f"{folder / INDEX} says that {name} is in {file}, which does not hold it; fetch both again"
            )
    return found


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor names to files; empty if there is a single file, which transformers prefers.

    Raises:
        ExportError: the index has another form, or names a file that is missing or not a safetensors file of
            the folder.
    """
    path = folder / INDEX
    if (folder / FILE).is_file() or not path.is_file():
        return {}
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ExportError(f"{path} has no weight_map of tensors to files; fetch it again")
    for name in index.values():
        parts = PurePosixPath(name).parts if isinstance(name, str) else ()
        if not parts or "\\" in name or ".." in parts or name.startswith("/"):
            raise ExportError(
                f"{path} names {name!r}, which is not a file of its folder; fetch it again"
            )
        if not name.endswith(".safetensors"):
            raise ExportError(
                f"{path} names {name!r}, which is not a safetensors file; edgevlm opens no other format: "
                f"save the checkpoint again with transformers' save_pretrained"
            )
    missing = sorted({name for name in index.values() if not (folder / name).is_file()})
    if missing:
        raise ExportError(
            f"{INDEX} names {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which "
            f"{folder} lacks; fetch the whole checkpoint"
        )
    return index


def single_file(folder: Path) -> Path:
    """Return the single file with all weights.

    Raises:
        ExportError: there is none; the message says what the folder has instead.
    """
    path = folder / FILE
    if path.is_file():
        return path
    names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.removesuffix(".index.json").endswith(PICKLED)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    reason, advice = "", "fetch the whole checkpoint"
    if shards:
        reason = (
            f" under the names that transformers reads ({FILE}, or {INDEX} with its shards), but "
            f"{', '.join(shards[:3])}"
        )
    elif pickled:
        reason = f", only pickled ones ({', '.join(pickled[:3])}), which can run code and are never opened"
        advice = "convert them (https://huggingface.co/docs/safetensors/convert-weights)"
    elif ggufs:
        reason = f", only {', '.join(ggufs[:3])}; a GGUF file alone has no vision part"
    raise ExportError(
        f"{folder} has no safetensors weights{reason}; {advice}, or save it again with transformers' "
        f"save_pretrained"
    )


def read_shard(path: Path) -> Iterator[TensorEntry]:
    """Yield the tensors of one file, without buffers.

    Raises:
        ExportError: it is not a complete safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (a method, no mapping)
                part = file.get_slice(name)
                if not name.endswith(BUFFERS):
                    yield TensorEntry(name, tuple(part.get_shape()), str(part.get_dtype()), path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(
            f"{path} is not a complete safetensors file: {one_line(error)}{pointer(path)}; fetch the "
            f"checkpoint again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ExportError: the file cannot be read, or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f"{path} is not JSON: {one_line(error)}{pointer(path)}; fetch the checkpoint again"
        ) from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} must hold a JSON object, holds {type(data).__name__}")
    return data


def pointer(path: Path) -> str:
    """Return a remark if a file is a pointer of Git LFS, else an empty text."""
    with path.open("rb") as file:
        found = file.read(len(LFS)) == LFS
    return " (it is a Git LFS pointer: git lfs pull fetches the file)" if found else ""
