"""Convert the vision part of a checkpoint for llama.cpp's multimodal library, for comparisons.

edgevlm itself does not use such files. Names and settings are those that llama.cpp's own conversion writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Precision = Literal["f16", "q8_0"]
ENDINGS = (".weight", ".bias")
MATRIX_TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
MAX_LAYERS = 128
Array = NDArray[np.float32]


class Family:
    """What is special about the vision part of a family.

    Args:
        config: the checkpoint's ``config.json``.
        preparation: the checkpoint's ``preprocessor_config.json``.

    Raises:
        ValueError: llama.cpp fixes a setting in its code, and the checkpoint has another one.
    """

    projector: ClassVar[str]
    prefixes: ClassVar[tuple[str, ...]]
    """Beginnings of the names of tower and projector in the checkpoint."""

    def __init__(self, config: Mapping[str, Any], preparation: Mapping[str, Any]) -> None:
        self.config, self.preparation = config, preparation
        self.vision: Mapping[str, Any] = config["vision_config"]
        # The map numbers the layers of projectors, too, so its count is a limit only.
        self._names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, MAX_LAYERS)

    @property
    def layers(self) -> int:
        count: int = self.vision["num_hidden_layers"]
        return count

    @property
    def heads(self) -> int:
        count: int = self.vision["num_attention_heads"]
        return count

    @property
    def image_size(self) -> int:
        """Side in pixels of the square image that the table of positions is for."""
        side: int = self.vision["image_size"]
        return side

    def add_settings(self, writer: gguf.GGUFWriter) -> None:
        """Add the settings that other families do not have."""
        raise NotImplementedError

    def convert(self, name: str, tensor: Array) -> Iterator[tuple[str, Array]]:
        """Yield the file's tensors for one of the checkpoint, with their names there."""
        yield self.file_name(name), tensor

    def file_name(self, name: str) -> str:
        """Return llama.cpp's name of a tensor.

        Raises:
            ValueError: llama.cpp has no name for it.
        """
        found: str | None = self._names.get_name(name, ENDINGS)
        if found is None:
            raise ValueError(f"llama.cpp has no tensor name for {name}")
        return found


class SmolVLM(Family):
    projector = gguf.VisionProjectorType.IDEFICS3
    prefixes = "model.vision_model.", "model.connector."

    def add_settings(self, writer: gguf.GGUFWriter) -> None:
        writer.add_vision_preproc_image_size(self.preparation["size"]["longest_edge"])
        writer.add_vision_projector_scale_factor(self.config["scale_factor"])


class Lfm2VL(Family):
    projector = gguf.VisionProjectorType.LFM2
    prefixes = "model.vision_tower.", "model.multi_modal_projector."
    fixed: ClassVar[Mapping[str, Any]] = {
        "min_image_tokens": 64,
        "max_image_tokens": 256,
        "max_tiles": 10,
        "min_tiles": 2,
        "max_pixels_tolerance": 2.0,
        "tile_size": 512,
    }
    """Settings of the image processor that are constants in llama.cpp."""

    def __init__(self, config: Mapping[str, Any], preparation: Mapping[str, Any]) -> None:
        super().__init__(config, preparation)
        found = {name: preparation[name] for name in self.fixed}
        if found != self.fixed:
            raise ValueError(f"llama.cpp prepares images with {self.fixed}, not with {found}")

    @property
    def image_size(self) -> int:
        side: int = math.isqrt(self.vision["num_patches"]) * self.vision["patch_size"]
        return side

    def add_settings(self, writer: gguf.GGUFWriter) -> None:
        writer.add_vision_projector_scale_factor(self.config["downsample_factor"])

    def convert(self, name: str, tensor: Array) -> Iterator[tuple[str, Array]]:
        if name.endswith(
            "patch_embedding.weight"
        ):  # of a linear layer over [height, width, channel]
            side = self.vision["patch_size"]
            tensor = tensor.reshape(len(tensor), side, side, -1).transpose(0, 3, 1, 2)
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        yield self.file_name(name.removeprefix("model.")), tensor


class Qwen3VL(Family):
    projector = gguf.VisionProjectorType.QWEN3VL
    prefixes = ("model.visual.",)
    merger: ClassVar[Mapping[str, str]] = {
        "norm": "v.post_ln",
        "linear_fc1": "mm.0",
        "linear_fc2": "mm.2",
    }

    @property
    def layers(self) -> int:
        count: int = self.vision["depth"]
        return count

    @property
    def heads(self) -> int:
        count: int = self.vision["num_heads"]
        return count

    @property
    def image_size(self) -> int:
        side: int = math.isqrt(self.vision["num_position_embeddings"]) * self.vision["patch_size"]
        return side

    def add_settings(self, writer: gguf.GGUFWriter) -> None:
        deepstack = self.vision["deepstack_visual_indexes"]
        writer.add_vision_is_deepstack_layers([layer in deepstack for layer in range(self.layers)])
        writer.add_vision_spatial_merge_size(self.vision["spatial_merge_size"])

    def convert(self, name: str, tensor: Array) -> Iterator[tuple[str, Array]]:
        name = name.removeprefix("model.")
        part, *rest = name.split(".")[1:]
        if part == "deepstack_merger_list":
            index, layer, ending = rest
            layer = layer.removeprefix("linear_")
            number = self.vision["deepstack_visual_indexes"][int(index)]
            yield f"v.deepstack.{number}.{layer}.{ending}", tensor
        elif part == "merger":
            layer, ending = rest
            yield f"{self.merger[layer]}.{ending}", tensor
        elif tensor.ndim == 5:  # filters over two frames; an image is both
            yield self.file_name(name), tensor[:, :, 0]
            yield f"{self.file_name(name)}.1", tensor[:, :, 1]
        else:
            yield self.file_name(name), tensor


FAMILIES: Mapping[str, type[Family]] = {
    "smolvlm": SmolVLM,
    "lfm2_vl": Lfm2VL,
    "qwen3_vl": Qwen3VL,
}
"""By ``model_type`` of the checkpoint."""


def write_mmproj(checkpoint: Path, path: Path, precision: Precision = "f16") -> None:
    """Write tower and projector, with norms, biases and positions in float32.

    Args:
        checkpoint: a folder with ``config.json``, ``preprocessor_config.json`` and safetensors.
        path: the GGUF file to write.
        precision: type of the matrices; filters of convolutions are float16.

    Raises:
        ValueError: this module or llama.cpp does not know the family, or a tensor or a setting of it.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    preparation = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in FAMILIES:
        raise ValueError(f"model_type is {config['model_type']!r}, not one of {list(FAMILIES)}")
    family = FAMILIES[config["model_type"]](config, preparation)
    vision = family.vision
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(family.projector)
    writer.add_vision_image_size(family.image_size)
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_block_count(family.layers)
    writer.add_vision_head_count(family.heads)
    writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-6))
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(preparation["image_mean"])
    writer.add_vision_image_std(preparation["image_std"])
    family.add_settings(writer)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                if name.startswith(family.prefixes):
                    tensor = tensors.get_tensor(name).float().numpy()
                    for written, array in family.convert(name, tensor):
                        _add(writer, written, array, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, array: Array, precision: Precision) -> None:
    kind = gguf.GGMLQuantizationType.F32
    if array.ndim > 1 and "position" not in name:
        kind = MATRIX_TYPES[precision if array.ndim == 2 else "f16"]
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
