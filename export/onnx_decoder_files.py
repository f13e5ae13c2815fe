"""All files of a decoder for ONNX Runtime: graphs, their weights, embedding table and tokenizer file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgevlm.export.decoder_module import plan_layout
from edgevlm.export.decoder_tensors import EMBEDDINGS, LAYER_EMBEDDINGS
from edgevlm.export.onnx_decoder import (
    EXACT,
    find_sources,
    write_embeddings,
    write_layer_embeddings,
    write_onnx_decoders,
)
from edgevlm.export.onnx_file import weights_path
from edgevlm.export.output_folder import file_entry
from edgevlm.export.plan import Plan
from edgevlm.export.tokenizer_file import write_tokenizer_file
from edgevlm.manifest import OnnxDecoderSpec

EMBEDDINGS_FILE = "decoder.embeddings.npy"
LAYER_EMBEDDINGS_FILE = "decoder.layer_embeddings.npy"
TOKENIZER_FILE = "decoder.tokenizer.json"


def write_graphs(
    plan: Plan, folder: Path, written: Sequence[str], chosen: Sequence[str], *, progress: bool
) -> dict[str, Path]:
    """Write graphs, and the files that they share.

    Args:
        plan: the export.
        folder: the folder of the bundle.
        written: precisions to write; without any, nothing is written.
        chosen: those of the bundle; with fp32 among them the embedding tables are float32.
        progress: show progress bars on stderr.

    Returns:
        The graph of each precision.

    Raises:
        ExportError: as of `write_onnx_decoders` and `write_embeddings`, or tokens have other numbers.
    """
    files = {precision: folder / f"decoder.{precision}.onnx" for precision in written}
    write_onnx_decoders(plan.checkpoint, plan.family, files, progress=progress)
    if files:
        dtype = np.float32 if EXACT in chosen else np.float16
        write_embeddings(plan.checkpoint, plan.family, folder / EMBEDDINGS_FILE, dtype)
        write_layer_embeddings(plan.checkpoint, plan.family, folder / LAYER_EMBEDDINGS_FILE, dtype)
        write_tokenizer_file(folder / TOKENIZER_FILE, plan.processor.tokenizer, plan.vocabulary)
    return files


def describe_graphs(plan: Plan, files: Mapping[str, Path]) -> OnnxDecoderSpec | None:
    """Return the part of the manifest about written graphs; None if there are none."""
    if not files:
        return None
    folder = next(iter(files.values())).parent
    sources = find_sources(plan.checkpoint, plan.family)
    tables = EMBEDDINGS, LAYER_EMBEDDINGS
    parameters = sum(entry.parameters for name, entry in sources.items() if name not in tables)
    weights = {}
    for precision, path in files.items():
        data = weights_path(path)
        weights[precision] = file_entry(data, data.stat().st_size * 8 / parameters)
    return OnnxDecoderSpec(
        files={precision: file_entry(path) for precision, path in files.items()},
        weights=weights,
        tokenizer=file_entry(folder / TOKENIZER_FILE),
        embeddings=file_entry(folder / EMBEDDINGS_FILE),
        window=plan_layout(plan.checkpoint.config, plan.family).window,
        layer_embeddings=file_entry(folder / LAYER_EMBEDDINGS_FILE)
        if LAYER_EMBEDDINGS in sources
        else None,
    )
