"""Compare the files of a bundle with the checkpoint in transformers, in float32.

Compared are: image preparation and vision graphs, by the embeddings of two drawings; prompt token ids, which
must be identical; decoders after the fp32 vision graph, by the logits of each position of a forced answer.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm
from transformers.image_processing_backends import PilBackend
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios

from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_decoder
from edgevlm.errors import DriftError, ExportError, ImageError
from edgevlm.export.bounds import VISION_BOUNDS, decoder_bound
from edgevlm.export.messages import one_line
from edgevlm.export.reference import Reference
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor, ProcessedImage
from edgevlm.inputs.prompt import Message, user_message
from edgevlm.inputs.tiling import CHECKPOINT_BUDGET, split_image
from edgevlm.manifest import Drift, Golden, ImageSpec, Manifest
from edgevlm.runtimes.protocols import DecoderRuntime

FORCED_TOKENS = 24
"""Tokens of each forced answer."""
GOLDEN_TOKENS = 32
QUESTIONS = ("What is in the picture?", "How many shapes are there, and which is the largest one?")
ROUNDING = 2
"""Largest difference of prepared pixels, in grey levels."""
SIZES = ((128, 32), (24, 96))
"""Width and height of the images: a wide and a tall one, so that grids have few tiles and none is square."""
OWN_SIZES = (*SIZES, (57, 211), (300, 40), (9, 700), (640, 480))
"""More of them for images that keep their own size, small and large, with sides that are no multiples."""


@dataclass(frozen=True)
class Case:
    """An image with a question, and the results of transformers."""

    image: Image.Image
    question: str
    embeddings: NDArray[np.float32]
    prompt_ids: tuple[int, ...]
    forced: tuple[int, ...]
    """The greedy answer, extended with tokens of the question."""
    logits: NDArray[np.float32]


def draw_shapes(width: int, height: int) -> Image.Image:
    """Draw shapes on a gradient, with the same pixels on every machine."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    gradient = np.stack([rows / height, columns / width, 1 - rows / height], axis=-1)
    image = Image.fromarray((80 + 120 * gradient).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    unit = height / 8
    draw.rectangle((unit, unit, 4 * unit, 4 * unit), fill=(200, 30, 40))
    draw.rectangle((width - 3 * unit, 4 * unit, width - unit, 7 * unit), fill=(20, 90, 200))
    draw.polygon(
        [(width / 2, unit), (width / 2 - 2 * unit, 6 * unit), (width / 2, 7 * unit)], (250, 220, 40)
    )
    return image


def check_preparation(image_processor: PilBackend, settings: ImageSpec, path: Path) -> None:
    """Compare prepared images with transformers, before any work.

    Args:
        image_processor: the image processor in transformers.
        settings: ours.
        path: the file with the settings, for messages.

    Raises:
        ExportError: transformers cannot use the settings, or the tiles differ.
    """
    scaling = settings.normalization
    step = scaling.rescale_factor / min(scaling.std)
    for size in SIZES if settings.tile_size else OWN_SIZES:
        image = draw_shapes(*size)
        try:
            tiles = split_image(np.asarray(image), settings.tiling).pixels
        except ImageError:  # the model does not take this shape
            continue
        try:
            found = image_processor(images=[image], return_tensors="np")
        except Exception as error:  # whatever settings of a wrong type make transformers raise
            raise ExportError(
                f"transformers cannot prepare an image by the settings in {path}: {one_line(error)}"
            ) from error
        theirs = find_tiles(found, image_processor)
        if [tile.shape for tile in theirs] != [tile.shape for tile in tiles]:
            raise ExportError(
                f"by the settings in {path} transformers makes of an image of {size[0]} x {size[1]} pixels "
                f"{describe_sizes(theirs)}, edgevlm {describe_sizes(tiles)}; edgevlm can export the settings "
                f"of the model's family only"
            )
        for tile, expected in zip(tiles, theirs, strict=True):
            ours = (tile.astype(np.float32) * scaling.rescale_factor - scaling.mean) / scaling.std
            if not np.abs(expected - ours).max() <= ROUNDING * step:
                raise ExportError(
                    f"by the settings in {path} transformers makes other pixels than edgevlm of an image "
                    f"of {size[0]} x {size[1]} pixels; edgevlm can export the settings of the model's "
                    f"family only"
                )


def find_tiles(processed: Mapping[str, Any], image_processor: Any) -> list[NDArray[np.float32]]:
    """Return the tiles of one image from what transformers' image processor returns.

    Args:
        processed: ``pixel_values``, and, if they are patches, the sizes of tiles in patches:
            ``image_grid_thw``, ``spatial_shapes`` or ``target_sizes``, or ``image_position_ids``. If they are
            the squares of a canvas, ``aspect_ratio_ids``.
        image_processor: the image processor, for the sizes of patches and the shapes of canvases.

    Returns:
        Tiles, float32 ``[height, width, channels]``.
    """
    pixels = np.asarray(processed["pixel_values"])
    if "spatial_shapes" in processed:
        side = image_processor.encoder_patch_size
        shapes = [(int(lines), int(columns)) for lines, columns in processed["spatial_shapes"]]
        grids = [
            values[: lines * columns].reshape(lines, columns, side, side, 3)
            for values, (lines, columns) in zip(pixels, shapes, strict=True)
        ]
        return [
            grid.transpose(0, 2, 1, 3, 4).reshape(grid.shape[0] * side, grid.shape[1] * side, 3)
            for grid in grids
        ]
    if (
        "target_sizes" in processed
    ):  # a row of all patches of all tiles, [1, 3, side, patches * side]
        side = image_processor.patch_size
        found, start = [], 0
        for lines, columns in processed["target_sizes"]:
            end = start + int(lines * columns) * side
            patches = pixels[0, :, :, start:end].reshape(3, side, lines, columns, side)
            found.append(patches.transpose(2, 1, 3, 4, 0).reshape(lines * side, columns * side, 3))
            start = end
        return found
    if "image_position_ids" in processed:  # line by line of patches, and then padding
        side = image_processor.patch_size
        columns, lines = (int(last) + 1 for last in processed["image_position_ids"][0].max(0))
        grid = pixels[0, : lines * columns].reshape(lines, columns, side, side, 3)
        return [grid.transpose(0, 2, 1, 3, 4).reshape(lines * side, columns * side, 3)]
    if "aspect_ratio_ids" in processed:  # row by row of squares, and then padding
        shapes = get_all_supported_aspect_ratios(image_processor.max_image_tiles)
        rows, columns = shapes[int(processed["aspect_ratio_ids"][0][0]) - 1]  # 0 is no image
        squares = pixels[0, 0, : rows * columns]
        side = squares.shape[-1]
        grid = squares.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
        return [grid.reshape(rows * side, columns * side, 3)]
    if "image_grid_thw" not in processed:
        tiles = np.moveaxis(pixels, -3, -1)
        return list(tiles.reshape(-1, *tiles.shape[-3:]))
    patch, merge = image_processor.patch_size, image_processor.merge_size
    ((_, lines, columns),) = processed["image_grid_thw"]
    if pixels.ndim == 4:  # line by line of patches
        grid = pixels.reshape(lines, columns, 3, patch, patch).transpose(0, 3, 1, 4, 2)
        return [grid.reshape(lines * patch, columns * patch, 3)]
    # Line by line of blocks of patches; a patch has its channels, and each of those two equal frames.
    blocks = pixels.reshape(lines // merge, columns // merge, merge, merge, 3, -1, patch, patch)
    tile = blocks[..., 0, :, :].transpose(0, 2, 5, 1, 3, 6, 4)
    return [tile.reshape(lines * patch, columns * patch, 3)]


def describe_sizes(tiles: Sequence[NDArray[Any]]) -> str:
    """Return the number and the sizes of tiles in words."""
    sizes = {f"{tile.shape[1]} x {tile.shape[0]}" for tile in tiles}
    return f"{len(tiles)} tiles of {' and '.join(sorted(sizes))} pixels"


def make_cases(reference: Reference, *, progress: bool) -> tuple[list[Case], Golden]:
    """Compute the results of transformers. The golden answer is that of the first image."""
    cases = []
    golden = None
    asked = list(zip(SIZES, QUESTIONS, strict=True))
    for size, question in tqdm(asked, "parity: transformers", disable=not progress):
        image = draw_shapes(*size)
        inputs = reference.inputs(question, [image])
        answer, logits = reference.answer(inputs, GOLDEN_TOKENS)
        if golden is None:
            golden = Golden(encode_png(image), question, answer)
        words = tuple(inputs["input_ids"][0, -8:].tolist())
        forced = (answer + words * FORCED_TOKENS)[:FORCED_TOKENS]
        if len(answer) < FORCED_TOKENS:
            logits = reference.logits(inputs, forced)
        cases.append(
            Case(
                image,
                question,
                reference.embeddings(image, question),
                reference.prompt_ids(inputs),
                forced,
                logits[:FORCED_TOKENS],
            )
        )
    assert golden is not None
    return cases, golden


def compare(
    cases: Sequence[Case],
    manifest: Manifest,
    vision_files: Mapping[str, Path],
    decoder_files: Mapping[str, Path],
    *,
    progress: bool,
) -> tuple[dict[str, Drift], dict[str, Drift]]:
    """Compare vision graphs and decoders with the checkpoint.

    Args:
        vision_files: the graph of each precision, fp32 among them.
        decoder_files: the GGUF file or ONNX graph of each type.

    Returns:
        The drift of each vision graph and of each decoder.

    Raises:
        DriftError: prompt token ids or the number of embeddings differ.
    """
    processor = ImageProcessor(manifest.image, manifest.vision, manifest.decoder.positions)
    images = [processor.process(np.asarray(case.image), CHECKPOINT_BUDGET) for case in cases]
    if manifest.vision.text_input is not None:
        images = [image.asked(case.question) for image, case in zip(images, cases, strict=True)]
    expected = np.concatenate([case.embeddings for case in cases])
    vision: dict[str, Drift] = {}
    stored: dict[str, StoredVision] = {}
    for precision, path in tqdm(vision_files.items(), "parity: vision", disable=not progress):
        stored[precision] = StoredVision(manifest, path, images)
        found = np.concatenate([stored[precision].embeddings(image) for image in images])
        if found.shape != expected.shape:
            raise DriftError(
                f"the images have {len(found)} embeddings, in transformers {len(expected)}"
            )
        vision[precision] = Drift(relative_error(found, expected), VISION_BOUNDS[precision])
    decoder = {}
    for file_type, path in tqdm(decoder_files.items(), "parity: decoder", disable=not progress):
        found = forced_logits(cases, images, manifest, stored["fp32"], path)
        theirs = np.concatenate([case.logits for case in cases])
        decoder[file_type] = Drift(
            relative_error(found, theirs),
            decoder_bound(file_type),
            float(np.mean(found.argmax(-1) == theirs.argmax(-1))),
        )
    return vision, decoder


def forced_logits(
    cases: Sequence[Case],
    images: Sequence[ProcessedImage],
    manifest: Manifest,
    vision: StoredVision,
    decoder: Path,
) -> NDArray[np.float32]:
    """Return the logits of the engine for all cases, float32 ``[positions, vocabulary]``.

    Raises:
        DriftError: prompt token ids differ from those of transformers.
    """
    longest = max(len(case.prompt_ids) for case in cases) + FORCED_TOKENS
    runtime = load_decoder(manifest, decoder, context_length=longest)
    engine = Engine(manifest, vision, runtime)
    try:
        rows = []
        for case, image in zip(cases, images, strict=True):
            messages: list[Message] = [user_message(case.question, 1)]
            check_prompt(engine, runtime, manifest, messages, image, case)
            rows.append(engine.logits(messages, [image], case.forced))
        return np.concatenate(rows)
    finally:
        engine.close()


def check_prompt(
    engine: Engine,
    decoder: DecoderRuntime,
    manifest: Manifest,
    messages: Sequence[Message],
    image: ProcessedImage,
    case: Case,
) -> None:
    """Compare the token ids of a prompt with transformers.

    Raises:
        DriftError: they differ.
    """
    image_id = next(
        token.id
        for token in manifest.prompt.special_tokens
        if token.text == manifest.prompt.image_token
    )
    ids: list[int] = []
    for item in engine.tokenize(messages, [image]):
        ids += [item] if isinstance(item, int) else [image_id] * item.length
    if tuple(ids) != case.prompt_ids:
        same = next(
            (
                i
                for i, (ours, theirs) in enumerate(zip(ids, case.prompt_ids, strict=False))
                if ours != theirs
            ),
            min(len(ids), len(case.prompt_ids)),
        )
        special = {token.id: token.text for token in manifest.prompt.special_tokens}

        def describe(part: Sequence[int]) -> str:
            pieces = [special.get(token, "").encode() or decoder.piece(token) for token in part]
            return f"{b''.join(pieces).decode(errors='replace')!r} {list(part)}"

        raise DriftError(
            f"the prompt of {case.question!r} becomes other tokens than in transformers: from position "
            f"{same} on {describe(ids[same : same + 8])}, there {describe(case.prompt_ids[same : same + 8])}"
        )


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return ``|found - expected| / |expected|`` (L2)."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def encode_png(image: Image.Image) -> str:
    """Return an image as PNG in base64."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
