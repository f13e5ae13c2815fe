"""Export real shapes with random weights: ``python -m tests.families.real_shapes [--graphs] [NAME ...]``.

Takes minutes and gigabytes for each. The sizes are those of the smallest public checkpoint of the family;
layers are cut where transformers in float32 would not fit into 20 GB of memory, and the line says so. A line
has the time and the peak memory of writing the files, measured in a process of its own, the bound of that
memory, the time of the whole export with its comparison, and the errors that it found. ``--graphs`` measures
the decoder as ONNX graphs instead, in fp32, int8 and int4, and nothing else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from edgevlm.export.pipeline import export
from tests.families import (
    blip_2,
    gemma3,
    internvl,
    lfm2_vl,
    llava,
    llava_onevision,
    minicpmv4_6,
    mllama,
    ovis2,
    qwen3_vl,
)
from tests.support.checkpoints import scatter

BYTES_BESIDE_SHARD = 3e9
"""Memory that writing the files may take beside the largest file of the checkpoint."""
WRITE_FILES = """
import re, sys
from pathlib import Path
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.onnx_decoder_files import write_graphs
from edgevlm.export.pipeline import quantize_decoders, write_unquantized, write_vision
from edgevlm.export.plan import make_plan
plan = make_plan(Checkpoint.open(sys.argv[1]))
write_vision(plan, Path(sys.argv[2]), ["fp32", "int8"], CalibrationImages.open(), progress=False)
if sys.argv[3] == "f16":
    files = write_unquantized(plan, Path(sys.argv[2]), ["f16", "q4_0"], progress=False)
    quantize_decoders(files, ["q4_0"], {}, progress=False)
else:
    write_graphs(plan, Path(sys.argv[2]), ["fp32", "int8"], ["fp32"], progress=False)
# Unlike ru_maxrss this does not begin with the memory of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
WRITE_GRAPHS = """
import re, sys
from pathlib import Path
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.onnx_decoder_files import write_graphs
from edgevlm.export.plan import make_plan
plan = make_plan(Checkpoint.open(sys.argv[1]))
write_graphs(plan, Path(sys.argv[2]), ["fp32", "int8", "int4"], ["fp32"], progress=False)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
GRAPHS_HEAD = "| shape | graphs: time, peak memory (bound) |\n|---|---|"
HEAD = (
    "| shape | files: time, peak memory (bound) | whole export | embeddings fp32, int8 | "
    "logits f16, q4_0 (without llama.cpp: fp32, int8) |\n|---|---|---|---|---|"
)
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
QWEN2_05B = {
    "vocab_size": 152000,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
GEMMA3_4B = {
    "vocab_size": 262208,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
}
QWEN3_17B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
LFM2_350M = {
    "vocab_size": 65536,
    "hidden_size": 1024,
    "intermediate_size": 6656,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "block_auto_adjust_ff_dim": True,
    "layer_types": [
        "full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)
    ],
}
QWEN35_08B = {
    "vocab_size": 248094,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}
GRID = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


@dataclass(frozen=True)
class Shape:
    """A real shape of a family."""

    build: Callable[[Path], Path]
    """Writes a tiny checkpoint, whose configuration is then changed."""
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    size: Mapping[str, int] | None
    """Size of the image processor; None: it follows from further settings."""
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the image processor."""
    cut: str = ""
    """What was cut."""
    decoder: tuple[str, str] = ("f16", "q4_0")
    """Types of the decoder that are written."""


SQUARE_384 = {"height": 384, "width": 384}
SHAPES = {
    "LLaVA-Interleave-Qwen 0.5B": Shape(
        llava.siglip_qwen2, {**SO400M, "image_size": 384}, QWEN2_05B, SQUARE_384
    ),
    "LLaVA-OneVision 0.5B": Shape(
        llava_onevision.build,
        {**SO400M, "image_size": 384},
        QWEN2_05B,
        SQUARE_384,
        {"image_grid_pinpoints": GRID},
        {"image_grid_pinpoints": GRID},
    ),
    "InternVL3 1B": Shape(
        internvl.qwen2,
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
        {**QWEN2_05B, "vocab_size": 151674, "tie_word_embeddings": False},
        {"height": 448, "width": 448},
        {"image_seq_length": 256},
    ),
    "Ovis2 1B": Shape(
        ovis2.small,
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "image_size": 448,
            "patch_size": 14,
            "vocab_size": 65536,
        },
        {**QWEN2_05B, "vocab_size": 151936, "num_hidden_layers": 4},
        {"height": 448, "width": 448},
        {"hidden_size": 896, "vocab_size": 151936},
        cut="4 of 24 layers of the decoder",
    ),
    "Gemma 3 4B": Shape(
        gemma3.gemma3,
        {**SO400M, "image_size": 896},
        GEMMA3_4B,
        {"height": 896, "width": 896},
        {"mm_tokens_per_image": 256},
        cut="8 of 34 layers of the decoder",
    ),
    "Qwen3-VL 2B": Shape(
        qwen3_vl.qwen3_vl,
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        QWEN3_17B,
        {"shortest_edge": 65536, "longest_edge": 16777216},
        cut="4 of 28 layers of the decoder",
    ),
    "LFM2-VL 450M": Shape(
        lfm2_vl.lfm2_vl,
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_patches": 256,
            "patch_size": 16,
        },
        LFM2_350M,
        None,
        {"projector_hidden_size": 2560},
        {
            "encoder_patch_size": 16,
            "max_image_tokens": 256,
            "min_image_tokens": 64,
            "max_tiles": 10,
            "tile_size": 512,
        },
    ),
    "MiniCPM-V 4.6": Shape(
        minicpmv4_6.minicpmv4_6,
        {**SO400M, "image_size": 980},
        QWEN35_08B,
        None,
        {"insert_layer_id": 6},
        {"max_slice_nums": 9, "patch_size": 14, "scale_resolution": 448},
        cut="8 of 24 layers of the decoder",
    ),
    "BLIP-2 OPT 2.7B": Shape(
        blip_2.blip_2,
        {
            "hidden_size": 1408,
            "intermediate_size": 6144,
            "num_hidden_layers": 39,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
        {
            "vocab_size": 50304,
            "hidden_size": 2560,
            "word_embed_proj_dim": 2560,
            "ffn_dim": 10240,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
        },
        {"height": 224, "width": 224},
        {
            "num_query_tokens": 32,
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "encoder_hidden_size": 1408,
                "cross_attention_frequency": 2,
                "vocab_size": 30522,
            },
        },
        cut="4 of 32 layers of the decoder",
        decoder=("fp32", "int8"),
    ),
    "Llama 3.2 Vision 11B": Shape(
        mllama.mllama,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 4,
            "num_global_layers": 1,
            "attention_heads": 16,
            "image_size": 560,
            "patch_size": 14,
            "intermediate_layers_indices": [0, 1, 2, 3],
            "vision_output_dim": 6400,
        },
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "cross_attention_layers": [3],
        },
        {"height": 560, "width": 560},
        cut="4 of 40 layers of the decoder, 4 of 32 and 1 of 8 of the ViT",
        decoder=("fp32", "int8"),
    ),
}


def build(shape: Shape, folder: Path) -> Path:
    """Write a checkpoint in bfloat16, as they are published."""
    tiny = shape.build(folder / "tiny")
    described = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    for name in ("layer_types", "max_window_layers"):  # follow from the number of layers
        described["text_config"].pop(name, None)
    described["vision_config"] |= shape.vision
    described["text_config"] |= shape.text
    described |= shape.config
    if "tie_word_embeddings" in shape.text:
        described["tie_word_embeddings"] = shape.text["tie_word_embeddings"]
    (tiny / "config.json").write_text(json.dumps(described), encoding="utf-8")
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.from_pretrained(tiny), dtype=torch.bfloat16
    )
    model.generation_config = GenerationConfig.from_pretrained(tiny)
    scatter(model, seed=0)
    checkpoint = folder / "checkpoint"
    shutil.copytree(tiny, checkpoint, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(checkpoint)
    path = checkpoint / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    size = {} if shape.size is None else {"size": shape.size}
    for name in ("min_pixels", "max_pixels"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings | size | shape.settings), encoding="utf-8")
    return checkpoint


def measure(name: str) -> str:
    """Return the line of a shape."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = build(shape, Path(scratch))
        files = write_parts(WRITE_FILES, checkpoint, Path(scratch) / "parts", *shape.decoder)
        start = time.perf_counter()
        manifest = export(
            checkpoint,
            Path(scratch) / "bundle",
            decoder=list(shape.decoder),
            quick=True,
            allow_drift=True,  # the line shows it
            progress=False,
        )
        whole = time.perf_counter() - start
    parity = manifest.parity
    assert parity is not None
    errors = [
        ", ".join(f"{drift.relative_error:.0e}" for drift in drifts.values())
        for drifts in (parity.vision, parity.decoder)
    ]
    return f"| {title(name)} | {files} | {whole:.0f} s | {errors[0]} | {errors[1]} |"


def measure_graphs(name: str) -> str:
    """Return the line of a shape in the table of decoders as ONNX graphs."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = build(SHAPES[name], Path(scratch))
        files = write_parts(WRITE_GRAPHS, checkpoint, Path(scratch) / "parts")
    return f"| {title(name)} | {files} |"


def title(name: str) -> str:
    """Return the name of a shape, with what was cut."""
    cut = SHAPES[name].cut
    return f"{name} ({cut})" if cut else name


def write_parts(code: str, checkpoint: Path, folder: Path, *arguments: str) -> str:
    """Run code that writes parts of a bundle in a process of its own; return time and memory as text."""
    bound = max(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    bound += int(BYTES_BESIDE_SHARD)
    folder.mkdir()
    start = time.perf_counter()
    command: list[str | Path] = [sys.executable, "-c", code, checkpoint, folder, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = time.perf_counter() - start, int(output.split()[-1])
    shutil.rmtree(folder)
    kept = "" if peak <= bound else ", exceeded"
    return f"{seconds:.0f} s, {peak / 1e9:.1f} GB ({bound / 1e9:.1f} GB{kept})"


def main() -> None:
    """Print the table."""
    names = sys.argv[1:]
    graphs = names[:1] == ["--graphs"]
    print(GRAPHS_HEAD if graphs else HEAD, flush=True)
    for name in names[graphs:] or SHAPES:
        print(measure_graphs(name) if graphs else measure(name), flush=True)


if __name__ == "__main__":
    main()
