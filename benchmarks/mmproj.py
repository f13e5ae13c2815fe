"""Convert a SmolVLM checkpoint's vision model for llama.cpp's multimodal library, for comparisons.

edgevlm itself does not use such files.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

VISION = "model.vision_model.", "model.connector."
ENDINGS = (".weight", ".bias")


def write_mmproj(checkpoint: Path, path: Path) -> None:
    """Write tower and connector in float16, with norms, biases and positions in float32.

    Args:
        checkpoint: a folder with ``config.json``, ``preprocessor_config.json`` and safetensors.
        path: the GGUF file to write.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    preparation = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    vision = config["vision_config"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_preproc_image_size(preparation["size"]["longest_edge"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-6))
    writer.add_vision_projector_scale_factor(config["scale_factor"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(preparation["image_mean"])
    writer.add_vision_image_std(preparation["image_std"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["num_hidden_layers"])
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                if not name.startswith(VISION):
                    continue
                mapped = names.get_name(name, ENDINGS)
                if mapped is None:
                    raise ValueError(f"llama.cpp has no tensor name for {name}")
                tensor = tensors.get_tensor(name).float().numpy()
                matrix = tensor.ndim > 1 and "position" not in name
                writer.add_tensor(mapped, tensor.astype(np.float16) if matrix else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
