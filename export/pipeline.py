"""All steps from a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import gguf
from tokenizers import Tokenizer
from tqdm import tqdm

from edgevlm.bundle import DecoderRuntimeName
from edgevlm.errors import ExportError
from edgevlm.export import decoder as decoder_export
from edgevlm.export import onnx_decoder, parity, quantize
from edgevlm.export import vision as vision_export
from edgevlm.export.answers import EXACT_DECODERS, Files
from edgevlm.export.architectures import check_llama_cpp, context_length, find_architecture
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.card import write_card
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_module import check_language_model
from edgevlm.export.decoder_tensors import LAYER_EMBEDDINGS
from edgevlm.export.dependencies import versions
from edgevlm.export.existing_gguf import ExistingDecoder, open_existing_decoder
from edgevlm.export.importance import measure_importance
from edgevlm.export.onnx_decoder_files import TOKENIZER_FILE, describe_graphs, write_graphs
from edgevlm.export.onnx_file import weights_path
from edgevlm.export.output_folder import check_disk, check_out, file_entry, staged
from edgevlm.export.plan import Plan, make_plan, quiet_transformers
from edgevlm.export.products import Activation, measure_activations
from edgevlm.export.reference import Reference
from edgevlm.export.report import make_report
from edgevlm.export.selection import Goal, select
from edgevlm.export.sensitivity import AnswerProbe
from edgevlm.export.text_battery import check_tokenizer, check_tokenizer_file
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    CanvasTiling,
    CrossPacking,
    DecoderSpec,
    FileEntry,
    ImageSpec,
    Manifest,
    Source,
    TextInput,
    VisionSpec,
)

_logger = logging.getLogger(__name__)

DEFAULT_VISION = ("fp32", "int8")
"""fp32 is exact on every device, int8 is twice as fast on a CPU; fp16 is for GPUs, where fp32 runs, too."""
SMALL_VISION = ("fp32", "fp16", "int8", "int4")
"""What the files for a size or a small error are chosen from."""
DEFAULT_DECODER = {"llama.cpp": ("q8_0",), "onnx": ("int8",)}
"""For each runtime a type of about a quarter of float32's size, with an error that changes few answers."""
GGUF_TYPES = (*decoder_export.UNQUANTIZED, *quantize.BLOCK_TYPES)
DECODER_TYPES = (*GGUF_TYPES, *onnx_decoder.PRECISIONS)
"""llama.cpp's types, and the precisions of ONNX graphs."""

GOAL_TYPES = ("f16", "bf16", "q8_0")
"""As large as what is written while types are chosen: f16, a file of the same size to measure, the result."""

VISION_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.5, "int4": 1.0}
"""Bytes per weight, rounded up, to estimate the disk space."""


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    vision: Sequence[str] | None = None,
    decoder: Sequence[str] | None = None,
    decoder_runtime: DecoderRuntimeName | None = None,
    decoder_gguf: str | Path | None = None,
    goal: Goal | None = None,
    image_size: tuple[int, int] | None = None,
    calibration: str | Path | None = None,
    name: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    quick: bool = False,
    allow_drift: bool = False,
    progress: bool = True,
) -> Manifest:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: folder or hub repository.
        out: the output folder; it must not exist.
        vision: any of `edgevlm.export.vision.PRECISIONS`; with `goal`, those to choose from. None:
            `SMALL_VISION` for a size and ``best``, else `DEFAULT_VISION`.
        decoder: any of `DECODER_TYPES`: GGUF files of llama.cpp's types, and ONNX graphs. None: what
            `DEFAULT_DECODER` has for the runtime.
        decoder_runtime: ``llama.cpp`` or ``onnx``, for the default of `decoder`. None: llama.cpp, if it has
            the language model.
        decoder_gguf: an existing GGUF file, used unchanged instead of `decoder`.
        goal: choose one precision of `vision`, and types of the decoder instead of `decoder`: for a size in
            bytes, ``fast`` or ``best``; see `edgevlm.export.selection`.
        image_size: width and height in pixels that all images are resized to, for checkpoints that take
            images of any size; the vision graph then has fixed shapes. None: images keep about their own
            size.
        calibration: folder with images like those that the model will see, for quantized vision precisions
            and importance matrices; None: the photographs that come with edgevlm. See `CalibrationImages`.
        name: name of the bundle; None: that of the checkpoint.
        revision, local_files_only: see `Checkpoint.open`.
        quick: measure the short form of parity: relative errors on drawings, no answers about photographs.
            Quantize without importance matrices, except for types that need one.
        allow_drift: accept a difference beyond its bound, see `edgevlm.export.bounds`.
        progress: show progress bars on stderr.

    Raises:
        ExportError: a step failed; there is no output folder then.
        DriftError: the bundle does not answer as the checkpoint does.
    """
    out = Path(out).expanduser()
    if vision is None:
        vision = DEFAULT_VISION if goal in (None, "fast") else SMALL_VISION
    check_choice("vision precision", vision, vision_export.PRECISIONS)
    if decoder_runtime is not None:
        check_choice("decoder runtime", [decoder_runtime], tuple(DEFAULT_DECODER))
    if (goal is not None or decoder_gguf is not None) and decoder_runtime == "onnx":
        raise ExportError(
            "a goal and --decoder-gguf are about GGUF files, which llama.cpp runs: leave out "
            "--decoder-runtime onnx"
        )
    if decoder is not None:
        check_choice("decoder type", decoder, DECODER_TYPES)
    check_out(out)
    if goal is not None and (decoder_gguf is not None or quick):
        raise ExportError(
            "files are chosen for a goal by their answers: leave out "
            + ("--decoder-gguf" if decoder_gguf is not None else "--quick")
        )
    images = find_calibration_images(calibration, vision, decoder or (), goal)
    source = Checkpoint.open(checkpoint, revision=revision, local_files_only=local_files_only)
    plan = make_plan(source, image_size)
    if decoder is None:
        decoder = DEFAULT_DECODER[decoder_runtime or find_runtime(source)]
    if goal is not None or decoder_gguf is not None or set(decoder) & set(GGUF_TYPES):
        check_llama_cpp(source.config)
    existing = None
    if decoder_gguf is not None:
        existing = open_existing_decoder(Path(decoder_gguf).expanduser(), plan)
    types = tuple(name for name in decoder if name in GGUF_TYPES) if goal is None else ("f16",)
    precisions: tuple[str, ...] = ()
    if goal is None and existing is None:
        precisions = tuple(name for name in decoder if name not in GGUF_TYPES)
    if precisions:
        check_language_model(source.config)
    written = types
    if existing:
        types = (existing.file_type,)
        # a quantized file is compared with one that is not, which is not part of the bundle
        written = () if quick or existing.file_type in EXACT_DECODERS else EXACT_DECODERS[:1]
    # so are rounded graphs, if no GGUF file serves for that
    graphs = precisions
    if precisions and not (types or quick or onnx_decoder.EXACT in precisions):
        graphs = (onnx_decoder.EXACT, *precisions)
    check_disk(
        out.parent,
        estimate_bytes(plan, vision, written if goal is None else GOAL_TYPES, graphs)
        + (existing.path.stat().st_size if existing else 0),
    )
    with staged(out) as folder, quiet_transformers():
        decoder_files = write_unquantized(plan, folder, written, progress=progress)
        graph_files = write_graphs(plan, folder, graphs, precisions, progress=progress)
        texts = check_vocabulary(plan, folder, existing, decoder_files, graph_files)
        if existing:
            decoder_files[existing.file_type] = existing.copy(folder)
        vision_files = write_vision(plan, folder, vision, images, progress=progress)
        manifest = build_manifest(
            plan,
            name or source.repository.rpartition("/")[2],
            vision_files,
            decoder_files,
            graph_files,
        )
        if goal is not None or needs_importance(written, quick=quick):
            importance = measure_importance(
                manifest,
                vision_files["fp32"],
                decoder_files["f16"],
                images.load(),
                progress=progress,
            )
        else:
            importance = {}
        if goal is not None:
            probe = AnswerProbe(manifest, vision_files, decoder_files["f16"])
            choices = {name: vision_files[name] for name in vision}
            selection = select(
                goal, probe, choices, decoder_files["f16"], importance, progress=progress
            )
            vision, types = (selection.vision,), (selection.decoder,)
            decoder_files[selection.decoder] = selection.path
        else:
            quantize_decoders(decoder_files, written, importance, progress=progress)
        manifest = dataclasses.replace(
            manifest,
            vision=dataclasses.replace(
                select_files(manifest.vision, vision),
                calibration=images.description
                if set(vision) & set(vision_export.CALIBRATED)
                else None,
            ),
            decoder=dataclasses.replace(
                manifest.decoder,
                files=decoder_entries({name: decoder_files[name] for name in types}),
                onnx=describe_graphs(plan, {name: graph_files[name] for name in precisions}),
            ),
        )
        reference = Reference(
            source,
            plan.family,
            plan.processor,
            plan.prompt,
            plan.image.tiling if plan.vision.fixed_by_export else None,
        )
        cases, golden = parity.make_cases(reference, progress=progress)
        del reference
        report = make_report(
            cases,
            Files(manifest, folder, vision_files, decoder_files | graph_files),
            texts=texts,
            quick=quick,
            allow_drift=allow_drift,
            progress=progress,
        )
        manifest = dataclasses.replace(manifest, parity=report, golden=golden)
        listed = {entry.name for entry in manifest.files()}
        for path in folder.iterdir():
            if path.name not in listed:
                path.unlink()
        (folder / "README.md").write_text(write_card(manifest), encoding="utf-8")
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        Manifest.load(folder)
    return manifest


def find_runtime(checkpoint: Checkpoint) -> DecoderRuntimeName:
    """Return llama.cpp, or ONNX Runtime for a language model that llama.cpp does not have."""
    return "llama.cpp" if find_architecture(checkpoint.config).gguf else "onnx"


def find_calibration_images(
    folder: str | Path | None, precisions: Sequence[str], types: Sequence[str], goal: Goal | None
) -> CalibrationImages:
    """Find the calibration images.

    Raises:
        ExportError: there is a folder but nothing that is calibrated, or the folder cannot be used.
    """
    calibrated = bool(set(precisions) & set(vision_export.CALIBRATED))
    used = calibrated or goal is not None or needs_importance(types, quick=False)
    if folder is not None and not used:
        raise ExportError(
            f"calibration images ({folder}) are for {', '.join(vision_export.CALIBRATED)} and for decoders "
            f"below 8 bits; the vision precisions are {', '.join(precisions)}, the decoder types "
            f"{', '.join(types) or 'the default'}; leave the folder out"
        )
    return CalibrationImages.open(None if folder is None else Path(folder).expanduser())


def needs_importance(types: Sequence[str], *, quick: bool) -> bool:
    """Return True if a type is quantized with an importance matrix."""
    wanted = quantize.NEED_IMPORTANCE if quick else quantize.USE_IMPORTANCE
    return any(name in wanted for name in types)


def write_vision(
    plan: Plan,
    folder: Path,
    precisions: Sequence[str],
    calibration: CalibrationImages,
    *,
    progress: bool,
) -> dict[str, Path]:
    """Write all precisions that were asked for, and fp32, which the others and parity need."""
    files = {"fp32": folder / "vision.fp32.onnx"}
    tiles = calibration.tiles(plan.image.tiling)

    @functools.cache
    def activations() -> dict[str, Activation]:
        return measure_activations(files["fp32"], tiles, plan.example_question())

    convert: dict[str, Callable[[Path, Path], None]] = {
        "fp16": vision_export.convert_fp16,
        "int8": lambda source, path: convert_int8(source, path, activations()),
        "int4": lambda source, path: convert_int4(source, path, activations()),
    }
    steps = ["fp32", *(precision for precision in convert if precision in precisions)]
    for precision in (bar := tqdm(steps, "vision", unit="graph", disable=not progress)):
        bar.set_postfix_str(precision)
        if precision == "fp32":
            vision_export.export_fp32(
                plan.checkpoint,
                plan.family,
                plan.image,
                files["fp32"],
                frames=plan.video.frames_per_tile if plan.video else 1,
                fixed_shapes=plan.vision.fixed_by_export,
            )
        else:
            files[precision] = folder / f"vision.{precision}.onnx"
            convert[precision](files["fp32"], files[precision])
    return files


def write_unquantized(
    plan: Plan, folder: Path, types: Sequence[str], *, progress: bool
) -> dict[str, Path]:
    """Write the types that are not quantized, and f16 if a type is quantized from it."""
    files = {}
    unquantized = [name for name in decoder_export.UNQUANTIZED if name in types]
    if set(types) - set(unquantized) and "f16" not in unquantized:
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
    return files


def quantize_decoders(
    files: dict[str, Path], types: Sequence[str], importance: quantize.Importance, *, progress: bool
) -> None:
    """Write the quantized types beside f16, and add them to `files`."""
    quantized = [name for name in types if name not in decoder_export.UNQUANTIZED]
    for name in tqdm(quantized, "quantize", unit="type", disable=not progress or not quantized):
        files[name] = files["f16"].with_name(f"decoder.{name}.gguf")
        quantize.quantize(files["f16"], files[name], name, importance=importance)
        warn_of_fallback(quantize.inspect(files[name], name), name)


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


def check_vocabulary(
    plan: Plan,
    folder: Path,
    existing: ExistingDecoder | None,
    decoder_files: Mapping[str, Path],
    graph_files: Mapping[str, Path],
) -> int:
    """Compare the vocabulary of each runtime with transformers; errors as of `check_tokenizer`.

    Args:
        existing: a GGUF file of the user, which was compared before.
        decoder_files: GGUF files.
        graph_files: ONNX graphs.

    Returns:
        The number of texts.
    """
    texts = 0 if existing is None else existing.texts
    if decoder_files and existing is None:
        path = next(iter(decoder_files.values()))
        texts = check_tokenizer(path, plan.vocabulary, plan.processor.tokenizer)
    if graph_files:
        path = folder / TOKENIZER_FILE
        texts = check_tokenizer_file(path, plan.vocabulary, plan.processor.tokenizer)
    return texts


def build_manifest(
    plan: Plan,
    name: str,
    vision_files: dict[str, Path],
    decoder_files: dict[str, Path],
    graph_files: Mapping[str, Path] | None = None,
) -> Manifest:
    """Build the manifest, without the parity report.

    Args:
        decoder_files: GGUF files.
        graph_files: ONNX graphs of the decoder.

    Raises:
        ExportError: the vision graph does not fit the language model.
    """
    config = plan.checkpoint.config
    text = config.get_text_config()
    found = vision_export.output_shape(vision_files["fp32"])
    expected = rows_of_graph(plan.image, plan.vision), plan.vision.width
    if found != expected:
        raise ExportError(
            f"the vision graph returns {list(found)} for a tile, its module in PyTorch {list(expected)} "
            f"(None: any number); the exporter of this PyTorch changed the graph"
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
            plan.vision,
            text_input=write_question_tokenizer(plan, vision_files["fp32"].parent),
            files={key: file_entry(path) for key, path in vision_files.items()},
            weights={
                key: file_entry(weights_path(path))
                for key, path in vision_files.items()
                if weights_path(path).exists()
            },
        ),
        prompt=plan.prompt,
        decoder=DecoderSpec(
            architecture=architecture.gguf_name if architecture.gguf else text.model_type,
            width=plan.vision.width,
            vocabulary_size=text.vocab_size,
            context_length=context_length(config, plan.family.attention),
            attention=plan.family.attention,
            positions=plan.family.positions,
            embedding_scale=plan.family.embedding_scale(config),
            text_embedding_scale=plan.family.text_embedding_scale,
            files=decoder_entries(decoder_files),
            onnx=describe_graphs(plan, graph_files or {}),
        ),
        parity=None,
        golden=None,
        created_with=versions(),
        usage=plan.usage,
        video=plan.video,
    )


def rows_of_graph(image: ImageSpec, vision: VisionSpec) -> int | None:
    """Return the rows that the vision graph makes of a tile; None: it depends on the size of the tile."""
    if isinstance(vision.packing, CrossPacking) and isinstance(image.tiling, CanvasTiling):
        return vision.packing.rows_per_square * image.tiling.max_tiles
    if vision.tokens_per_tile is None:
        return None
    return vision.tokens_per_tile + vision.learned_rows


def write_question_tokenizer(plan: Plan, folder: Path) -> TextInput | None:
    """Write the tokenizer of the question, and return its part of the manifest; None if there is none."""
    if plan.question_tokenizer is None:
        return None
    assert plan.family.question_tokens is not None
    path = folder / "vision.tokenizer.json"
    tokenizer = Tokenizer.from_str(plan.question_tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(path), pretty=False)
    longest = plan.family.question_tokens(plan.checkpoint.config)
    return TextInput(vision_export.QUESTION_NAME, file_entry(path), longest)


def decoder_entries(files: Mapping[str, Path]) -> dict[str, FileEntry]:
    """Return the entries of finished decoders."""
    return {name: file_entry(path, quantize.bits_per_weight(path)) for name, path in files.items()}


def select_files(spec: VisionSpec, names: Iterable[str]) -> VisionSpec:
    """Return `spec` with the files that were asked for, in that order."""
    files = {name: spec.files[name] for name in names}
    weights = {name: entry for name, entry in spec.weights.items() if name in files}
    return dataclasses.replace(spec, files=files, weights=weights)


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


def estimate_bytes(
    plan: Plan, vision: Sequence[str], decoder: Sequence[str], graphs: Sequence[str] = ()
) -> int:
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
    if graphs:
        table = plan.vision.width * plan.checkpoint.config.get_text_config().vocab_size
        head = 0 if parts["head"] else table  # tied to the embeddings, and written again
        bytes_per_weight = sum(onnx_decoder.BYTES[precision] for precision in graphs)
        # The embeddings of the layers are in a table, too, and not in the graphs.
        layers = sum(
            entry.parameters
            for entry in plan.checkpoint.tensors.values()
            if plan.family.canonical_name(entry.name) == LAYER_EMBEDDINGS
        )
        weights = parts["decoder"] - layers + parts["head"] + head
        total += weights * bytes_per_weight + 4 * (table + layers)
    return int(total)
