"""LLaVA 1.5 and Yi-VL as their authors published them, read as a checkpoint of transformers.

In this layout config.json is that of the language model, with more settings, such as ``mm_vision_tower``. The
projector is beside the language model (``model.mm_projector.0.weight``). The vision tower, with the settings
of its image processor, is a folder or a hub repository of its own. There is no chat template and no image
token: the authors' code writes the prompt, and puts embeddings between two tokenized texts. Here ``<unk>``,
which no text becomes, stands in these places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, LlamaConfig, LlavaConfig, PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.families import read_template
from edgevlm.export.messages import one_line
from edgevlm.export.weights import TensorEntry, read_entries, read_json

IMAGE_TOKEN = "<unk>"
PLACEHOLDER = "<image>"
"""What the chat templates write for an image. It need not be a token."""
OWN_TOWER = "model.vision_tower."
"""Start of the names of a tower that was trained and stands in the checkpoint itself."""
TOWER_TENSORS = re.compile(
    r"(?:vision_model\.)?(?:embeddings|encoder|pre_layrnorm|post_layernorm)\."
)
"""Tensors of the tower in its own folder, which may hold a whole CLIP."""
FEATURES = {"patch": "default", "cls_patch": "full"}
"""``mm_vision_select_feature`` to transformers' ``vision_feature_select_strategy``."""
SETTINGS = re.compile("mm_|tune_mm_|freeze_mm_|image_|use_mm_|model_type$|architectures$|auto_map$")
"""Settings that are not those of the language model."""

FAMILIES = {"mlp2x_gelu": "llava_llama", "mlp2x_gelu_Norm": "yi_vl"}
"""``mm_projector_type`` to the family."""
END_TOKENS = {"yi_vl": ("###", "▁###")}
"""Tokens that begin the next turn and so end an answer, if the vocabulary has them."""


@dataclass(frozen=True)
class Layout:
    """What a checkpoint of transformers would have."""

    config: PretrainedConfig
    files: dict[str, dict[str, Any]]
    """Content of JSON files, by their names, in place of those in the folder."""
    tower: Path
    """Folder of the vision tower."""


def is_original(settings: Mapping[str, Any]) -> bool:
    """Return True if config.json is of this layout."""
    return isinstance(settings.get("mm_vision_tower"), str)


def read_layout(folder: Path, settings: dict[str, Any]) -> Layout:
    """Read the settings of a checkpoint and of its vision tower.

    Args:
        folder: the folder of the checkpoint.
        settings: its config.json.

    Raises:
        ExportError: the tower is missing, or a setting is none that edgevlm can export.
    """
    family = FAMILIES[_choice(folder, settings, "mm_projector_type", FAMILIES)]
    feature = _choice(folder, settings, "mm_vision_select_feature", FEATURES, "patch")
    ratio = _choice(folder, settings, "image_aspect_ratio", ("pad", "square"), "square")
    _choice(folder, settings, "mm_patch_merge_type", ("flat",), "flat")
    _choice(folder, settings, "mm_use_im_start_end", (False,), False)
    tower = find_tower(folder, settings["mm_vision_tower"])
    layer = settings.get("mm_vision_select_layer")
    if type(layer) is not int:
        raise ExportError(
            f"{folder / 'config.json'} has mm_vision_select_layer {layer!r}; it must be a number"
        )
    config = LlavaConfig(
        vision_config=read_tower_config(tower),
        text_config=LlamaConfig(
            **{name: value for name, value in settings.items() if not SETTINGS.match(name)}
        ),
        image_token_index=_image_token_id(folder),
        vision_feature_layer=layer,
        vision_feature_select_strategy=FEATURES[feature],
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
    )
    config.model_type = family
    files = {
        "preprocessor_config.json": {
            **read_json(tower / "preprocessor_config.json"),
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": ratio == "pad",
        },
        "tokenizer_config.json": {
            "chat_template": read_template(family),
            **_read_optional(folder / "tokenizer_config.json"),
        },
        "generation_config.json": _add_end_tokens(folder, config),
    }
    return Layout(config, files, tower)


def read_tower(layout: Layout) -> dict[str, TensorEntry]:
    """Return the tensors of the tower's folder, by name.

    Raises:
        ExportError: as of `edgevlm.export.weights.read_entries`.
    """
    entries = read_entries(layout.tower)
    return {name: entry for name, entry in entries.items() if TOWER_TENSORS.match(name)}


def find_tower(folder: Path, named: str) -> Path:
    """Return the folder of the vision tower that config.json names.

    Looked for are the path inside the checkpoint, a folder of that name in or beside the checkpoint, and a
    repository of that name in the hub's cache. Nothing is fetched.

    Raises:
        ExportError: there is none.
    """
    path = PurePosixPath(named.removeprefix("/"))
    candidates = [folder / path.name, folder.resolve().parent / path.name]
    if ".." not in path.parts:
        candidates.insert(0, folder / path)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    try:
        return Path(huggingface_hub.snapshot_download(named, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        looked = ", ".join(str(candidate) for candidate in dict.fromkeys(candidates))
        raise ExportError(
            f"{folder / 'config.json'} names the vision tower {named} (mm_vision_tower), which is neither in "
            f"{looked} nor in the hub's cache; put its config.json, preprocessor_config.json and "
            f"model.safetensors into the last of these folders"
        ) from None


def read_tower_config(tower: Path) -> PretrainedConfig:
    """Return the configuration of a CLIP tower, which may be part of that of a whole CLIP.

    Raises:
        ExportError: it is another tower, or transformers cannot read it.
    """
    path = tower / "config.json"
    model_type = read_json(path).get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise ExportError(
            f"{path} is of model_type {model_type!r}; for this layout edgevlm can export towers of "
            f"model_type clip and clip_vision_model"
        )
    try:
        config = AutoConfig.from_pretrained(tower, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' own, validators', Python's: no class in common
        raise ExportError(f"transformers cannot read {path}: {one_line(error)}") from error
    vision: PretrainedConfig = getattr(config, "vision_config", config)
    return vision


def _choice(
    folder: Path,
    settings: Mapping[str, Any],
    name: str,
    known: Any,
    default: Any = None,
) -> Any:
    """Return a setting that must be one of `known`; a missing one is `default`.

    Raises:
        ExportError: it is none of them.
    """
    value = settings.get(name)
    value = default if value is None else value
    if value not in list(known):
        raise ExportError(
            f"{folder / 'config.json'} has {name} {value!r}; for this layout edgevlm can export "
            f"{', '.join(repr(choice) for choice in known)}; look for the model in transformers' own format"
        )
    return value


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _image_token_id(folder: Path) -> int:
    """Return the id of `IMAGE_TOKEN`; without tokenizer.json, which is refused later, 0.

    Raises:
        ExportError: the tokenizer has no such special token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    for token in read_json(path).get("added_tokens") or []:
        if token.get("content") == IMAGE_TOKEN and token.get("special"):
            return int(token["id"])
    raise ExportError(
        f"{path} has no special token {IMAGE_TOKEN}, which stands for images in prompts of this layout; take "
        f"the tokenizer of the checkpoint"
    )


def _add_end_tokens(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """Return generation_config.json with the end tokens of the family."""
    found = _read_optional(folder / "generation_config.json")
    tokens = END_TOKENS.get(config.model_type, ())
    if not tokens or not (folder / "tokenizer.json").is_file():
        return found
    ids = found.get("eos_token_id", config.get_text_config().eos_token_id)
    vocabulary = read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    more = [vocabulary[text] for text in tokens if text in vocabulary]
    return {**found, "eos_token_id": [*(ids if isinstance(ids, list) else [ids]), *more]}
