"""Refuse adapters (LoRA and others) that are not merged into their base model, and say how to merge them.

A bundle without the adapter would not answer as the trained model does.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from edgevlm.errors import ExportError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TENSORS = re.compile(
    r"(?:^|\.)(?:lora_|base_layer\.|hada_w|lokr_w|ia3_l|oft_[rR]|vera_lambda|modules_to_save\."
    r"|original_module\.)|^base_model\.model\."
)
"""Names that peft gives to tensors of an adapter, or of a layer that an adapter wraps."""
MERGE = (
    "from peft import PeftModel; from transformers import AutoModelForImageTextToText as Model; "
    "PeftModel.from_pretrained(Model.from_pretrained({base!r}), {adapter!r})"
    ".merge_and_unload().save_pretrained({merged!r})"
)


def check_no_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter, alone or beside its base model's weights.

    transformers loads an adapter beside the weights only if peft is installed.

    Raises:
        ExportError: there is an adapter; the message has the command that merges it.
    """
    present = [name for name in (CONFIG, *WEIGHTS) if (folder / name).is_file()]
    if not present:
        return
    base = base_of(folder)
    alone = not (folder / "config.json").is_file()
    raise ExportError(
        f"{folder} holds an adapter ({', '.join(present)})"
        f"{'' if alone else ' beside the weights'} of {base or 'a base model that it does not name'}; "
        f"merge it and export the result: {merge_command(base or 'BASE', str(folder), 'MERGED')} && "
        f"edgevlm export MERGED OUT, with the base model's tokenizer, processor and chat template files "
        f"copied into MERGED in between"
        f"{'' if alone else '; if these weights are merged already, remove ' + ' and '.join(present)}"
    )


def check_merged(names: Iterable[str], file: Path) -> None:
    """Refuse weights that hold tensors of an adapter.

    Raises:
        ExportError: they do.
    """
    found = sorted(name for name in names if TENSORS.search(name))
    if found:
        raise ExportError(
            f"{file} holds {len(found)} tensors of an adapter that is not merged, such as {found[0]}; "
            f"load the model with peft as it was trained, and save what merge_and_unload() returns with "
            f"save_pretrained"
        )


def base_of(folder: Path) -> str | None:
    """Return ``base_model_name_or_path`` of the adapter's configuration; None if it cannot be read."""
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return base if isinstance(base, str) and base else None


def merge_command(base: str, adapter: str, merged: str) -> str:
    """Return the shell command that merges an adapter."""
    code = MERGE.format(base=base, adapter=adapter, merged=merged)
    return f"pip install peft && python -c {shlex.quote(code)}"
