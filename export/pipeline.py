"""All steps from a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import gguf
from tqdm import tqdm

from edgevlm.bundle import sha256
from edgevlm.errors import ExportError
from edgevlm.export import decoder as decoder_export
from edgevlm.export import parity, quantize
from edgevlm.export import vision as vision_export
from edgevlm.export.architectures import context_length, find_architecture
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.card import write_card
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.dependencies import versions
from edgevlm.export.existing_gguf import open_existing_decoder
from edgevlm.export.int8_static import convert_int8_static
from edgevlm.export.output_folder import check_disk, check_out, staged
from edgevlm.export.plan import Plan, make_plan, quiet_transformers
from edgevlm.export.products import Activation, measure_activations
from edgevlm.export.reference import Reference
from edgevlm.export.text_battery import check_tokenizer
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    DecoderSpec,
    FileEntry,
    Manifest,
    Source,
    VisionSpec,
)

_logger = logging.getLogger(__name__)

DEFAULT_VISION = ("fp32", "int8")
"""fp32 is exact on every device, int8 is twice as fast on a CPU; fp16 is for GPUs, where fp32 runs, too."""
DEFAULT_DECODER = ("q8_0",)
"""Half the size of f16, with an error that changes few answers."""
DECODER_TYPES = (*decoder_export.UNQUANTIZED, *quantize.BLOCK_TYPES)

VISION_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.5, "int8-static": 1.5, "int4": 1.0}
"""Bytes per weight, rounded up, to estimate the disk space."""


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    vision: Sequence[str] = DEFAULT_VISION,
    decoder: Sequence[str] = DEFAULT_DECODER,
    decoder_gguf: str | Path | None = None,
    calibration: str | Path | None = None,
    name: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_drift: bool = False,
    progress: bool = True,
) -> Manifest:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: folder or hub repository.
        out: the output folder; it must not exist.
        vision: any of `edgevlm.export.vision.PRECISIONS`.
        decoder: any of `DECODER_TYPES`.
        decoder_gguf: an existing GGUF file, used unchanged instead of `decoder`.
        calibration: folder with images like those that the model will see, for the quantized vision
            precisions; None: the photographs that come with edgevlm. See `CalibrationImages`.
        name: name of the bundle; None: that of the checkpoint.
        revision, local_files_only: see `Checkpoint.open`.
        allow_drift: accept a difference from the checkpoint that `parity` does not allow.
        progress: show progress bars on stderr.

    Raises:
        ExportError: a step failed; there is no output folder then.
        DriftError: the bundle does not answer as the checkpoint does.
    """
    out = Path(out).expanduser()
    check_choice("vision precision", vision, vision_export.PRECISIONS)
    check_choice("decoder type", decoder, DECODER_TYPES)
    check_out(out)
    images = find_calibration_images(calibration, vision)
    source = Checkpoint.open(checkpoint, revision=revision, local_files_only=local_files_only)
    plan = make_plan(source)
    existing = None
    if decoder_gguf is not None:
        existing = open_existing_decoder(Path(decoder_gguf).expanduser(), plan)
    types = () if existing else tuple(decoder)
    check_disk(
        out.parent,
        estimate_bytes(plan, vision, types) + (existing.path.stat().st_size if existing else 0),
    )
    with staged(out) as folder, quiet_transformers():
        if existing:
            decoder_files = {existing.file_type: existing.copy(folder)}
            texts = existing.texts
        else:
            decoder_files = write_decoders(plan, folder, types, progress=progress)
            texts = check_tokenizer(
                next(iter(decoder_files.values())), plan.vocabulary, plan.processor.tokenizer
            )
        vision_files = write_vision(plan, folder, vision, images, progress=progress)
        manifest = build_manifest(
            plan, name or source.repository.rpartition("/")[2], vision_files, decoder_files
        )
        manifest = dataclasses.replace(
            manifest,
            vision=dataclasses.replace(
                select_files(manifest.vision, vision),
                calibration=images.description if images else None,
            ),
            decoder=select_files(manifest.decoder, types or decoder_files),
        )
        reference = Reference(source, plan.family, plan.processor, plan.prompt)
        cases, golden = parity.make_cases(reference, progress=progress)
        del reference
        report = parity.measure(
            cases,
            manifest,
            vision_files,
            decoder_files,
            allow_drift=allow_drift,
            progress=progress,
        )
        report = dataclasses.replace(report, texts=texts)
        manifest = dataclasses.replace(manifest, parity=report, golden=golden)
        listed = {entry.name for entry in manifest.files()}
        for path in folder.iterdir():
            if path.name not in listed:
                path.unlink()
        (folder / "README.md").write_text(write_card(manifest), encoding="utf-8")
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        Manifest.load(folder)
    return manifest


def find_calibration_images(
    folder: str | Path | None, precisions: Sequence[str]
) -> CalibrationImages | None:
    """Find the calibration images; None if no precision needs them.

    Raises:
        ExportError: there is a folder that no precision needs, or the folder cannot be used.
    """
    if set(precisions) & set(vision_export.CALIBRATED):
        return CalibrationImages.open(None if folder is None else Path(folder).expanduser())
    if folder is not None:
        raise ExportError(
            f"calibration images ({folder}) are for {', '.join(vision_export.CALIBRATED)}, and the vision "
            f"precisions are {', '.join(precisions)}; add one of those, or leave the folder out"
        )
    return None


def write_vision(
    plan: Plan,
    folder: Path,
    precisions: Sequence[str],
    calibration: CalibrationImages | None,
    *,
    progress: bool,
) -> dict[str, Path]:
    """Write all precisions that were asked for, and fp32, which the others and parity need."""
    files = {"fp32": folder / "vision.fp32.onnx"}
    tiles = calibration.tiles(plan.image.tiling) if calibration is not None else []

    @functools.cache
    def activations() -> dict[str, Activation]:
        return measure_activations(files["fp32"], tiles)

    convert: dict[str, Callable[[Path, Path], None]] = {
        "fp16": vision_export.convert_fp16,
        "int8": lambda source, path: convert_int8(source, path, activations()),
        "int8-static": functools.partial(convert_int8_static, tiles=tiles, progress=progress),
        "int4": lambda source, path: convert_int4(source, path, activations()),
    }
    steps = ["fp32", *(precision for precision in convert if precision in precisions)]
    for precision in (bar := tqdm(steps, "vision", unit="graph", disable=not progress)):
        bar.set_postfix_str(precision)
        if precision == "fp32":
            vision_export.export_fp32(plan.checkpoint, plan.family, plan.image, files["fp32"])
        else:
            files[precision] = folder / f"vision.{precision}.onnx"
            convert[precision](files["fp32"], files[precision])
    return files


def write_decoders(
    plan: Plan, folder: Path, types: Sequence[str], *, progress: bool
) -> dict[str, Path]:
    """Write all types that were asked for, and f16 if a type is quantized from it."""
    files = {}
    unquantized = [name for name in decoder_export.UNQUANTIZED if name in types]
    quantized = [name for name in types if name not in decoder_export.UNQUANTIZED]
    if quantized and "f16" not in unquantized:
        unquantized.append("f16")
    for name in unquantized:
        files[name] = folder / f"decoder.{name}.gguf"
        decoder_export.write_decoder(
            plan.checkpoint,
            plan.family,
            plan.vocabulary,
            files[name],
            file_type=name,
            chat_template=plan.prompt.chat_template,
            progress=progress,
        )
    for name in tqdm(quantized, "quantize", unit="type", disable=not progress or not quantized):
        files[name] = folder / f"decoder.{name}.gguf"
        quantize.quantize(files["f16"], files[name], name)
        warn_of_fallback(quantize.inspect(files[name], name), name)
    return files


def warn_of_fallback(quantized: quantize.Quantized, file_type: str) -> None:
    """Log a warning if a type does not fit the shapes of the model."""
    if quantized.fallback:
        others = ", ".join(sorted(set(quantized.fallback.values())))
        _logger.warning(
            "%s does not fit the rows of %d of %d matrices, which became %s: %.2f bits per weight",
            file_type,
            len(quantized.fallback),
            quantized.tensors,
            others,
            quantized.bits_per_weight,
        )


def build_manifest(
    plan: Plan, name: str, vision_files: dict[str, Path], decoder_files: dict[str, Path]
) -> Manifest:
    """Build the manifest, without the parity report.

    Raises:
        ExportError: the vision graph does not fit the language model.
    """
    config = plan.checkpoint.config
    text = config.get_text_config()
    found = vision_export.output_shape(vision_files["fp32"])
    expected = plan.vision.tokens_per_tile + plan.vision.learned_rows, plan.vision.width
    if found != expected:
        raise ExportError(
            f"the vision graph returns {list(found)} for a tile, its module in PyTorch {list(expected)}; the "
            f"exporter of this PyTorch changed the graph"
        )
    architecture = find_architecture(config)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        source=Source(
            repository=plan.checkpoint.repository,
            revision=plan.checkpoint.revision,
            family=plan.checkpoint.family,
            license=plan.checkpoint.license(),
        ),
        image=plan.image,
        vision=dataclasses.replace(
            plan.vision, files={key: file_entry(path) for key, path in vision_files.items()}
        ),
        prompt=plan.prompt,
        decoder=DecoderSpec(
            architecture=gguf.MODEL_ARCH_NAMES[architecture.gguf],
            width=plan.vision.width,
            vocabulary_size=text.vocab_size,
            context_length=context_length(config, plan.family.attention),
            attention=plan.family.attention,
            positions="sequential",
            embedding_scale=plan.family.embedding_scale(config),
            text_embedding_scale=plan.family.text_embedding_scale,
            files={
                key: file_entry(path, quantize.bits_per_weight(path))
                for key, path in decoder_files.items()
            },
        ),
        parity=None,
        golden=None,
        created_with=versions(),
        usage=plan.usage,
    )


Spec = TypeVar("Spec", VisionSpec, DecoderSpec)


def select_files(spec: Spec, names: Iterable[str]) -> Spec:
    """Return `spec` with the files that were asked for, in that order."""
    return dataclasses.replace(spec, files={name: spec.files[name] for name in names})


def file_entry(path: Path, bits_per_weight: float | None = None) -> FileEntry:
    """Return the entry of a finished file, with its size and hash."""
    return FileEntry(path.name, path.stat().st_size, sha256(path), bits_per_weight)


def check_choice(name: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    """Check a list of choices.

    Raises:
        ExportError: the list is empty, or a choice is unknown or occurs twice.
    """
    unknown = [choice for choice in chosen if choice not in known]
    if unknown:
        raise ExportError(f"unknown {name} {unknown[0]!r}; edgevlm knows {', '.join(known)}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ExportError(
            f"choose each {name} once, and at least one; got {', '.join(chosen) or 'none'}"
        )


def estimate_bytes(plan: Plan, vision: Sequence[str], decoder: Sequence[str]) -> int:
    """Return the disk space in bytes that the export needs, a little more than the real value."""
    parts: Counter[str] = Counter()
    for entry in plan.checkpoint.tensors.values():
        parts[plan.family.canonical_name(entry.name).partition(".")[0]] += entry.parameters
    vision_weights = parts["tower"] + parts["connector"] + parts["learned"]
    total = vision_weights * sum(VISION_BYTES[precision] for precision in {"fp32", *vision})
    for name in {"f16", *decoder} if decoder else ():
        block_type = gguf.GGMLQuantizationType[quantize.BLOCK_TYPES.get(name, name.upper())]
        block, size = gguf.GGML_QUANT_SIZES[block_type]
        total += (parts["decoder"] + parts["head"]) * size / block * 1.3
    return int(total)
