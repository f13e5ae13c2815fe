"""A checkpoint: a folder, or a hub repository, with its configuration, and its tensors read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from edgevlm.errors import ExportError

INDEX = "model.safetensors.index.json"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.model", "README.md", "LICENSE*"]
"""What is fetched of a hub repository: no other weight formats."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the checkpoint, still on disk."""

    name: str
    shape: tuple[int, ...]
    file: Path

    @property
    def parameters(self) -> int:
        return torch.Size(self.shape).numel()


class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        folder: where its files are.
        repository: hub repository, or the folder's name.
        revision: the commit, for a hub repository.
        config: transformers' configuration.
        tensors: every tensor by its name in the files.
    """

    def __init__(self, folder: Path, repository: str, revision: str | None) -> None:
        self.folder = folder
        self.repository = repository
        self.revision = revision
        self.config = self._config()
        self.tensors = {entry.name: entry for entry in self._entries()}

    @classmethod
    def open(
        cls, source: str | Path, *, revision: str | None = None, local_files_only: bool = False
    ) -> Checkpoint:
        """Open a folder, or fetch a hub repository into huggingface_hub's cache.

        Args:
            source: folder or ``owner/name``.
            revision: branch, tag or commit of a hub repository.
            local_files_only: use what the cache holds and never the network.

        Raises:
            ExportError: no such folder or repository, no configuration that transformers knows, or no
                safetensors weights.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            if revision is not None:
                raise ExportError(
                    f"{folder} is a folder and has no revision {revision!r}; leave it out"
                )
            return cls(folder, folder.resolve().name, None)
        if folder.exists():
            raise ExportError(f"{folder} is a file; give the folder of a checkpoint")
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
                f"there is a network, or give a folder ({error})"
            ) from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ExportError(f"cannot fetch {repository} from the hub: {error}") from error
        commit = Path(fetched).name
        return cls(Path(fetched), repository, commit)

    @property
    def family(self) -> str:
        """``model_type`` of the configuration."""
        return str(self.config.model_type)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as stored."""
        entry = self.tensors[name]
        with safe_open(entry.file, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def by_shard(self, names: Callable[[str], bool]) -> Iterator[TensorEntry]:
        """The tensors that `names` accepts, shard by shard."""
        for entry in sorted(self.tensors.values(), key=lambda entry: (entry.file, entry.name)):
            if names(entry.name):
                yield entry

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint; empty if it has none of that name.

        Raises:
            ExportError: not a JSON object.
        """
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ExportError(f"{path} is not JSON: {error}; fetch the checkpoint again") from error
        if not isinstance(data, dict):
            raise ExportError(f"{path} must hold a JSON object, holds {type(data).__name__}")
        return data

    def chat_template(self) -> str | None:
        """Jinja source from the first of the places where transformers looks; None if it has none."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = self.json(name).get("chat_template")
            if isinstance(template, str):
                return template
        return None

    def license(self) -> str:
        """The model card's ``license``; ``unknown`` if it does not say."""
        card = self.folder / "README.md"
        if card.is_file():
            data = huggingface_hub.ModelCard.load(card).data
            named = data.get("license_name") if data.license == "other" else data.license
            if named:
                return str(named)
        return "unknown"

    def end_token_ids(self) -> tuple[int, ...]:
        """Where transformers' ``generate`` stops: ``eos_token_id`` of generation_config.json, else of
        the configuration.

        Raises:
            ExportError: neither has one.
        """
        for ids in (
            self.json("generation_config.json").get("eos_token_id"),
            getattr(self.config, "eos_token_id", None),
            self.config.get_text_config().eos_token_id,
        ):
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (int(ids),)
        raise ExportError(
            f"{self.repository} names no end token: add eos_token_id to its generation_config.json"
        )

    def _config(self) -> PretrainedConfig:
        if not (self.folder / "config.json").is_file():
            raise ExportError(f"{self.folder} has no config.json; give the folder of a checkpoint")
        model_type = self.json("config.json").get("model_type")
        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ExportError(
                f"transformers cannot read {self.folder / 'config.json'} (model_type {model_type!r}): {error}"
            ) from error

    def _entries(self) -> Iterator[TensorEntry]:
        for path in self._shards():
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118  (a method, no mapping)
                        yield TensorEntry(name, tuple(file.get_slice(name).get_shape()), path)
            except (SafetensorError, OSError) as error:
                raise ExportError(
                    f"{path} is no safetensors file: {error}; fetch the checkpoint again"
                ) from error

    def _shards(self) -> list[Path]:
        weight_map = self.json(INDEX).get("weight_map", {})
        shards = [self.folder / name for name in sorted(set(weight_map.values()))]
        if not shards and (self.folder / "model.safetensors").is_file():
            shards = [self.folder / "model.safetensors"]
        for shard in shards:
            if not shard.is_file():
                raise ExportError(
                    f"{INDEX} names {shard.name}, which {self.folder} lacks; fetch it"
                )
        if not shards:
            pickled = sorted(path.name for path in self.folder.glob("*.bin"))
            reason = f", only pickled ones ({', '.join(pickled)})" if pickled else ""
            raise ExportError(
                f"{self.folder} has no safetensors weights{reason}; fetch the whole checkpoint, or save "
                f"it again with transformers' save_pretrained"
            )
        return shards
