"""A checkpoint: a folder or a hub repository, with its configuration; tensors are read one at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export import adapter, original_llava, quantized
from edgevlm.export.families import MODULES, find_family
from edgevlm.export.front_matter import read_license
from edgevlm.export.messages import one_line
from edgevlm.export.model_types import find_alternative
from edgevlm.export.weights import FILE, TensorEntry, read_entries, read_json
from edgevlm.manifest import MANIFEST_NAME

_logger = logging.getLogger(__name__)

PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.model", "README.md", "LICENSE*"]
"""Files that are fetched from a hub repository: no other weight formats, and no code."""
SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files whose ``auto_map`` may name code of the checkpoint."""


class Checkpoint:
    """A checkpoint on this machine. Its code is never run, and its pickle files are never opened.

    Attributes:
        folder: the folder with its files.
        repository: the hub repository, or the name of the folder.
        revision: the commit of a hub repository; None for a folder.
        config: the configuration in transformers.
        tensors: all tensors by their names in the files.

    A checkpoint in its authors' layout looks as one of transformers; see `edgevlm.export.original_llava`.
    """

    def __init__(self, folder: Path, repository: str, revision: str | None) -> None:
        self.folder = folder
        self.repository = repository
        self.revision = revision
        self._layout: original_llava.Layout | None = None
        self.config = self._config()
        self.tensors = read_entries(folder)
        if self._layout and not any(
            name.startswith(original_llava.OWN_TOWER) for name in self.tensors
        ):
            self.tensors |= original_llava.read_tower(self._layout)

    @classmethod
    def open(
        cls, source: str | Path, *, revision: str | None = None, local_files_only: bool = False
    ) -> Checkpoint:
        """Open a folder, or fetch a hub repository into huggingface_hub's cache.

        Args:
            source: folder or ``owner/name``.
            revision: branch, tag or commit of a hub repository.
            local_files_only: use the cache only, never the network.

        Raises:
            ExportError: there is no such folder or repository, transformers does not know the configuration,
                or there are no safetensors weights.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            if revision is not None:
                raise ExportError(
                    f"{folder} is a folder and has no revision {revision!r}; leave it out"
                )
            return cls(folder, folder.resolve().name, None)
        if folder.exists():
            hint = f" and --decoder-gguf {folder}" if folder.suffix == ".gguf" else ""
            raise ExportError(f"{folder} is a file; give the folder of a checkpoint{hint}")
        repository = str(source)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or repository.startswith((".", "/")):
            raise ExportError(
                f"{repository} is neither a folder nor a hub repository such as "
                f"HuggingFaceTB/SmolVLM-256M-Instruct"
            )
        try:
            fetched = huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=PATTERNS,
            )
        except LocalEntryNotFoundError as error:
            raise ExportError(
                f"{repository} is not in the hub's cache and could not be fetched; download it where "
                f"there is a network, or give a folder ({one_line(error)})"
            ) from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ExportError(
                f"cannot fetch {repository} from the hub: {one_line(error)}"
            ) from error
        commit = Path(fetched).name
        return cls(Path(fetched), repository, commit)

    @property
    def family(self) -> str:
        """``model_type`` of the configuration."""
        return str(self.config.model_type)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored type."""
        entry = self.tensors[name]
        with safe_open(entry.file, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def by_shard(self, names: Callable[[str], bool]) -> Iterator[TensorEntry]:
        """Yield the tensors that `names` accepts, shard by shard."""
        for entry in sorted(self.tensors.values(), key=lambda entry: (entry.file, entry.name)):
            if names(entry.name):
                yield entry

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the checkpoint; empty if there is no such file.

        Raises:
            ExportError: it is not a JSON object.
        """
        if self._layout and name in self._layout.files:
            return self._layout.files[name]
        path = self.folder / name
        return read_json(path) if path.is_file() else {}

    def license(self) -> str:
        """Return the ``license`` of the model card; ``unknown`` if there is none."""
        return read_license(self.folder)

    def end_token_ids(self) -> tuple[int, ...]:
        """Return the tokens at which ``generate`` of transformers stops.

        This is ``eos_token_id`` of generation_config.json, else of the configuration.

        Raises:
            ExportError: neither has one, or it is not a token id.
        """
        text = self.config.get_text_config()
        for file, ids in (
            ("generation_config.json", self.json("generation_config.json").get("eos_token_id")),
            ("config.json", getattr(self.config, "eos_token_id", None)),
            ("config.json", getattr(text, "eos_token_id", None)),  # not every one has the setting
        ):
            if ids is None or ids == []:
                continue
            found = ids if isinstance(ids, list) else [ids]
            for token in found:
                if type(token) is not int or not 0 <= token < text.vocab_size:
                    raise ExportError(
                        f"{self.folder / file} has eos_token_id {ids!r}; it must be token ids below "
                        f"{text.vocab_size}"
                    )
            return tuple(dict.fromkeys(found))
        raise ExportError(
            f"{self.repository} names no end token: add eos_token_id to its generation_config.json"
        )

    def _config(self) -> PretrainedConfig:
        """Read the configuration, and check that such a checkpoint can be exported.

        Raises:
            ExportError: the folder or config.json cannot be exported.
        """
        path = self.folder / "config.json"
        adapter.check_no_adapter(self.folder)
        if not path.is_file():
            made = (self.folder / MANIFEST_NAME).is_file()
            raise ExportError(
                f"{self.folder} is a bundle already; use it with --model {self.folder}"
                if made
                else f"{self.folder} has no config.json; give the folder of a checkpoint"
            )
        data = read_json(path)
        self._check_model_type(data, path)
        quantized.check_config(data, path)
        if data.get("transformers_weights") not in (None, FILE):
            raise ExportError(
                f"{path} names {data['transformers_weights']} as the weights (transformers_weights); save "
                f"the checkpoint again with transformers' save_pretrained, or call the file {FILE}"
            )
        if original_llava.is_original(data):
            self._layout = original_llava.read_layout(self.folder, data)
            return self._layout.config
        try:
            config = AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            # config.json may name a kernel here, compiled code that transformers would fetch from the hub
            config._attn_implementation = None
            return config
        except Exception as error:  # transformers' own, validators', Python's: no class in common
            raise ExportError(f"transformers cannot read {path}: {one_line(error)}") from error

    def _check_model_type(self, data: dict[str, Any], path: Path) -> None:
        """Check that the family is supported, before transformers sees the checkpoint.

        Raises:
            ExportError: ``model_type`` is missing or not supported.
        """
        own_code = [name for name in SETTINGS if self.json(name).get("auto_map")]
        model_type = data.get("model_type")
        if model_type in MODULES:
            if own_code:
                _logger.warning(
                    "%s brings code of its own (auto_map in %s), which edgevlm never runs; transformers' "
                    "classes for %s are taken, as transformers does if it is not told otherwise",
                    self.repository,
                    ", ".join(own_code),
                    model_type,
                )
            return
        known = f"edgevlm exports checkpoints of transformers: {', '.join(MODULES)}"
        if own_code:
            raise ExportError(
                f"{self.repository} (model_type {model_type!r}) needs code of its own (auto_map in "
                f"{', '.join(own_code)}), and edgevlm never runs a checkpoint's code; "
                f"{known if model_type is None else find_alternative(str(model_type), MODULES)}"
            )
        if model_type is None:
            raise ExportError(f"{path} has no model_type; {known}")
        find_family(str(model_type))
