"""The last step of an export: compare the bundle with the checkpoint in transformers, in float32.

Compared are: image preparation and vision graph in every precision, by the embeddings of all images; prompt
token ids, which must be identical; the decoder in every type after the fp32 vision graph, by the logits of
each position of a forced answer.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm
from transformers.image_processing_backends import PilBackend

from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_decoder, load_vision
from edgevlm.errors import DriftError, ExportError
from edgevlm.export.messages import one_line
from edgevlm.export.reference import Reference
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.packing import plan_spans
from edgevlm.inputs.prompt import Message
from edgevlm.inputs.tiling import split_image
from edgevlm.manifest import Drift, Golden, ImageSpec, Manifest, ParityReport
from edgevlm.runtimes.protocols import DecoderRuntime, VisionRuntime

VISION_BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1, "int8-static": 0.1, "int4": 0.3}
DECODER_BOUNDS = {"f32": 5e-3, "f16": 5e-3, "bf16": 5e-2, "8": 0.1, "6": 0.15, "5": 0.25, "4": 0.5}
DECODER_BOUNDS |= {"3": 0.75, "2": 1.0, "1": 1.0}
"""Limits of the relative error; for quantized decoders by the bits in the name of the type.

They are two to five times the errors that were measured on random weights (fp16 7e-4, int8 0.02 to 0.04; f16
1e-3, q8_0 0.03, q4_0 0.28); trained weights stay below. A wrong graph, such as a norm without its offset,
gives errors around 1. f32 has the limit of f16, since llama.cpp's KV cache is f16 in both cases.
"""

FORCED_TOKENS = 24
"""Tokens of each forced answer."""
GOLDEN_TOKENS = 32
QUESTIONS = ("What is in the picture?", "How many shapes are there, and which is the largest one?")
ROUNDING = 2
"""Largest difference of prepared pixels, in grey levels."""
SIZES = ((128, 32), (24, 96))
"""Width and height of the images: a wide and a tall one, so that grids have few tiles and none is square."""


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
    rows, columns = settings.tiling.tile_size
    scaling = settings.normalization
    step = scaling.rescale_factor / min(scaling.std)
    for size in SIZES:
        image = draw_shapes(*size)
        try:
            found = image_processor(images=[image], return_tensors="np")["pixel_values"]
        except Exception as error:  # whatever settings of a wrong type make transformers raise
            raise ExportError(
                f"transformers cannot prepare an image by the settings in {path}: {one_line(error)}"
            ) from error
        tiles = split_image(np.asarray(image), settings.tiling).pixels.astype(np.float32)
        ours = (tiles * scaling.rescale_factor - scaling.mean) / scaling.std
        theirs = np.moveaxis(np.asarray(found), -3, -1)
        if theirs.shape[-3:] != (rows, columns, 3) or theirs.size != ours.size:
            raise ExportError(
                f"by the settings in {path} transformers makes of an image of {size[0]} x {size[1]} pixels "
                f"{list(theirs.shape[:-1])} pixels, edgevlm {list(ours.shape[:-1])}; edgevlm can export the "
                f"settings of the model's family only"
            )
        if not np.abs(theirs.reshape(ours.shape) - ours).max() <= ROUNDING * step:
            raise ExportError(
                f"by the settings in {path} transformers makes other pixels than edgevlm of an image of "
                f"{size[0]} x {size[1]} pixels; edgevlm can export the settings of the model's family only"
            )


def make_cases(reference: Reference, *, progress: bool) -> tuple[list[Case], Golden]:
    """Compute the results of transformers. The golden answer is that of the first image."""
    cases = []
    golden = None
    asked = list(zip(SIZES, QUESTIONS, strict=True))
    for size, question in tqdm(asked, "parity: transformers", disable=not progress):
        image = draw_shapes(*size)
        inputs = reference.inputs(question, [image])
        answer = reference.answer(inputs, GOLDEN_TOKENS)
        if golden is None:
            golden = Golden(encode_png(image), question, answer)
        words = tuple(inputs["input_ids"][0, -8:].tolist())
        forced = (answer + words * FORCED_TOKENS)[:FORCED_TOKENS]
        cases.append(
            Case(
                image,
                question,
                reference.embeddings(image, question),
                tuple(inputs["input_ids"][0].tolist()),
                forced,
                reference.logits(inputs, forced),
            )
        )
    assert golden is not None
    return cases, golden


def measure(
    cases: list[Case],
    manifest: Manifest,
    vision_files: dict[str, Path],
    decoder_files: dict[str, Path],
    *,
    allow_drift: bool,
    progress: bool,
) -> ParityReport:
    """Compare every file of a bundle.

    Args:
        vision_files: all precisions of the bundle, and always fp32.

    Raises:
        DriftError: prompt token ids differ, or an error is over its limit and `allow_drift` is False.
    """
    expected = np.concatenate([case.embeddings for case in cases])
    vision = {}
    for precision in tqdm(manifest.vision.files, "parity: vision", disable=not progress):
        runtime = load_vision(manifest, vision_files[precision])
        found = np.concatenate([encode(runtime, manifest, case.image) for case in cases])
        runtime.close()
        if found.shape != expected.shape:
            raise DriftError(
                f"the images have {len(found)} embeddings, in transformers {len(expected)}"
            )
        error = relative_error(found, expected)
        vision[precision] = Drift(error, VISION_BOUNDS[precision])
    decoder = {}
    exact = CachingVision(load_vision(manifest, vision_files["fp32"]))
    for file_type in tqdm(manifest.decoder.files, "parity: decoder", disable=not progress):
        found = forced_logits(cases, manifest, exact, decoder_files[file_type])
        theirs = np.concatenate([case.logits for case in cases])
        decoder[file_type] = Drift(
            relative_error(found, theirs),
            decoder_bound(file_type),
            float(np.mean(found.argmax(-1) == theirs.argmax(-1))),
        )
    drifted = [
        f"{name}: relative error {drift.relative_error:.2g}, at most {drift.bound:g}"
        for name, drift in [*vision.items(), *decoder.items()]
        if not drift.relative_error <= drift.bound
    ]
    if drifted and not allow_drift:
        raise DriftError(
            f"the bundle does not answer as the checkpoint does ({'; '.join(drifted)}); export other "
            f"precisions, or accept it with --allow-drift"
        )
    return ParityReport(
        pictures=len(cases),
        prompts=len(cases),
        positions=sum(len(case.forced) for case in cases),
        vision=vision,
        decoder=decoder,
        drift_allowed=bool(drifted),
    )


def encode(runtime: VisionRuntime, manifest: Manifest, image: Image.Image) -> NDArray[np.float32]:
    """Return the embeddings of an image as they stand in the prompt, float32 ``[tokens, width]``."""
    tiles = split_image(np.asarray(image), manifest.image.tiling)
    rows = np.concatenate([runtime.encode(tile[None]) for tile in tiles.pixels])
    plans = plan_spans(tiles.layout, manifest.vision)
    return np.concatenate([plan.pack([rows[tile] for tile in plan.tiles]) for plan in plans])


def forced_logits(
    cases: list[Case], manifest: Manifest, vision: VisionRuntime, decoder: Path
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
        for case in cases:
            image = engine.process_image(np.asarray(case.image))
            content = [{"type": "image"}, {"type": "text", "text": case.question}]
            messages: list[Message] = [{"role": "user", "content": content}]
            check_prompt(engine, runtime, manifest, messages, image, case)
            rows.append(engine.logits(messages, [image], case.forced))
        return np.concatenate(rows)
    finally:
        engine.close()


class CachingVision:
    """A `VisionRuntime` that computes each tile once, for several decoders."""

    def __init__(self, runtime: VisionRuntime) -> None:
        self.device, self.on_cpu = runtime.device, runtime.on_cpu
        self._runtime = runtime
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``."""
        for tile in tiles:
            if tile.tobytes() not in self._known:
                self._known[tile.tobytes()] = self._runtime.encode(tile[None])[0]
        return np.stack([self._known[tile.tobytes()] for tile in tiles])

    def close(self) -> None:
        """Do nothing: the engine of the next decoder uses it again."""


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


def decoder_bound(file_type: str) -> float:
    """Return the limit of a type, by its name or the bits in it: ``q4_k_m``, ``iq4_nl``, ``mxfp4_moe``.

    Raises:
        ExportError: the type has no limit.
    """
    bits = re.search(r"\d", file_type)
    for key in (file_type, bits[0] if bits else ""):
        if key in DECODER_BOUNDS:
            return DECODER_BOUNDS[key]
    raise ExportError(
        f"a decoder of type {file_type} cannot be compared with its checkpoint: edgevlm knows no bound for "
        f"it; quantize it to another type"
    )


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return ``|found - expected| / |expected|`` (L2)."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def encode_png(image: Image.Image) -> str:
    """Return an image as PNG in base64."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
