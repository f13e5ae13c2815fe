"""Changes of checkpoints and GGUF files for the tests of exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file


def change_json(path: Path, **changes: Any) -> None:
    """Change top-level values of a JSON file; None removes a value."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = {key: value for key, value in (data | changes).items() if value is not None}
    path.write_text(json.dumps(data), encoding="utf-8")


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]
) -> None:
    """Change tensors of ``model.safetensors``: `change` changes them in place, or returns others."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(dict(change(weights) or weights), path, {"format": "pt"})


def rewrite_gguf(
    source: Path,
    path: Path,
    fields: Mapping[str, Any] | None = None,
    *,
    drop: tuple[str, ...] = (),
    architecture: str | None = None,
) -> Path:
    """Write a GGUF file with other metadata; None removes a key, `drop` removes tensors."""
    reader = gguf.GGUFReader(source)
    changes = dict(fields or {})
    writer = gguf.GGUFWriter(path, architecture or reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.pop(name, field.contents())
        if value is not None:
            kinds = field.types
            writer.add_key_value(
                name, value, kinds[0], kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            )
    for name, value in changes.items():
        if value is not None:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
