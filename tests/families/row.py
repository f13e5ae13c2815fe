"""One row of the table of families: a tiny checkpoint of transformers' own classes, and its reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.mllama.image_processing_pil_mllama import (
    get_all_supported_aspect_ratios,
)

from tests.support.checkpoints import scatter

Message = dict[str, Any]

SIZES = (
    "image_sizes",
    "image_grid_thw",
    "spatial_shapes",
    "pixel_attention_mask",
    "image_position_ids",
    "target_sizes",
    "qformer_input_ids",
    "qformer_attention_mask",
    "aspect_ratio_ids",
    "aspect_ratio_mask",
)
"""What a model takes beside the pixels, by the names of its inputs."""


def load_processor(checkpoint: Path) -> Any:
    """transformers' own processor, with its image processors for Pillow."""
    return AutoProcessor.from_pretrained(checkpoint, backend="pil")


def load_model(checkpoint: Path) -> Any:
    """transformers' own model, in float32."""
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()


def load_without_video(kind: type[ProcessorMixin]) -> Callable[[Path], Any]:
    """Return a function like `load_processor` for a class whose part for video needs torchvision."""

    class ImagesOnly(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    def load(checkpoint: Path) -> Any:
        settings = json.loads((checkpoint / "processor_config.json").read_text())
        del settings["processor_class"]
        return ImagesOnly(
            AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
            AutoTokenizer.from_pretrained(checkpoint),
            chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
            **settings,
        )

    return load


@dataclass(frozen=True)
class Row:
    """A family, or a variant of one with other parts."""

    name: str
    build: Callable[[Path], Path]
    """Writes the checkpoint, as a hub repository has it."""
    works: str
    """For the table in the docs: what of the family works."""
    missing: str = ""
    """For the table in the docs: what does not."""
    processor: Callable[[Path], Any] = load_processor
    model: Callable[[Path], Any] = load_model
    sizes: Sequence[tuple[int, int]] = ((150, 100), (60, 130), (40, 40))
    """Width and height of the images."""
    messages: Callable[[], Sequence[tuple[list[Message], int]]] | None = None
    """Conversations and their numbers of images; None: `conversations`."""
    single_question: bool = False
    """The model answers one question and has no turns."""
    decoder: str = "f16"
    """Type of the decoder that is compared. Rounding to f16 grows in the state of some random decoders."""
    learned_tokens: Sequence[str] = ()
    """Tokens of an image whose embeddings transformers overwrites with learned rows."""
    processor_images: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the processor for images."""
    videos: bool = False
    """The checkpoint has the settings of a video processor, and videos are compared, too."""
    image_size: tuple[int, int] | None = None
    """Width and height to which the export fixes all images; transformers gets images of this size."""


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


IMAGE = {"type": "image"}


def conversations() -> list[tuple[list[Message], int]]:
    """No image, one, two, one between texts, and several turns; each with its number of images."""
    first = {"role": "user", "content": [IMAGE, text("What is this?\nSay it in one word.")]}
    answer = {"role": "assistant", "content": [text("A picture.")]}
    return [
        ([{"role": "user", "content": [text("Hello, who are you?")]}], 0),
        ([first], 1),
        ([{"role": "user", "content": [IMAGE, IMAGE, text("  Which is larger? ")]}], 2),
        (
            [
                {
                    "role": "user",
                    "content": [text("Look at "), IMAGE, text(" and tell me: 12 or 345?")],
                }
            ],
            1,
        ),
        ([first, answer, {"role": "user", "content": [text("Why? Çà и 字 e\u0301 😀")]}], 1),
        ([first, answer, {"role": "user", "content": [IMAGE, text("And this?")]}], 2),
    ]


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


class Reference:
    """Model and processor in transformers, in float32."""

    def __init__(self, checkpoint: Path, row: Row) -> None:
        self.model = row.model(checkpoint)
        self.processor = row.processor(checkpoint)
        self._image_arguments = dict(row.processor_images)
        tokenizer = self.processor.tokenizer
        self._learned_ids = tokenizer.convert_tokens_to_ids(list(row.learned_tokens))
        self._image_size = row.image_size

    def inputs(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Any:
        """Return what the model takes."""
        begin = self.processor.tokenizer.bos_token
        if self.processor.chat_template is None:  # the processor writes the prompt itself
            (message,) = messages
            *places, question = message["content"]
            rendered = "<image>" * len(places) + question["text"]
        else:
            rendered = self.processor.apply_chat_template(
                list(messages), add_generation_prompt=True
            )
        inputs = self.processor(
            text=[rendered],
            images=[self.resize(image) for image in images] or None,
            return_tensors="pt",
            add_special_tokens=begin is None or not rendered.startswith(begin),
            **self._image_arguments,
        )
        inputs.pop("labels", None)
        return inputs

    def prompt_ids(self, inputs: Any, image_id: int) -> list[int]:
        """Return the token ids of a prompt, with the image token in the places of learned rows."""
        ids = inputs["input_ids"][0].tolist()
        return [image_id if token in self._learned_ids else token for token in ids]

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the image in the size that the export fixed, by the filter of the checkpoint."""
        if self._image_size is None:
            return image
        return image.resize(self._image_size, self.processor.image_processor.resample)

    def pixels(self, image: Image.Image) -> list[NDArray[np.float32]]:
        """Return normalized tiles, float32 ``[height, width, 3]``."""
        processor = self.processor.image_processor
        images = [self.resize(image)]
        found = processor(images=images, return_tensors="np", **self._image_arguments)
        pixels = np.asarray(found["pixel_values"])
        if "spatial_shapes" in found:
            side = processor.encoder_patch_size
            tiles = []
            for values, (lines, columns) in zip(pixels, found["spatial_shapes"], strict=True):
                grid = values[: lines * columns].reshape(lines, columns, side, side, 3)
                tile = grid.transpose(0, 2, 1, 3, 4)
                tiles.append(tile.reshape(lines * side, columns * side, 3))
            return tiles
        if "target_sizes" in found:
            side = processor.patch_size
            tiles, start = [], 0
            for lines, columns in found["target_sizes"]:
                end = start + lines * columns * side
                patches = pixels[0, :, :, start:end].reshape(3, side, lines, columns, side)
                tile = patches.transpose(2, 1, 3, 4, 0)
                tiles.append(tile.reshape(lines * side, columns * side, 3))
                start = end
            return tiles
        if "image_position_ids" in found:
            side = processor.patch_size
            (places,) = np.asarray(found["image_position_ids"])
            columns, lines = places.max(0) + 1
            tile = np.empty((lines * side, columns * side, 3), np.float32)
            for values, (column, line) in zip(pixels[0], places, strict=True):
                if line >= 0:
                    top, left = line * side, column * side
                    patch = values.reshape(side, side, 3)
                    tile[top : top + side, left : left + side] = patch
            return [tile]
        if "aspect_ratio_ids" in found:
            lines, columns = get_all_supported_aspect_ratios(processor.max_image_tiles)[
                found["aspect_ratio_ids"].item() - 1
            ]
            squares = pixels[0, 0, : lines * columns].reshape(lines, columns, *pixels.shape[-3:])
            canvas = squares.transpose(0, 3, 1, 4, 2)
            return [canvas.reshape(lines * pixels.shape[-2], columns * pixels.shape[-1], 3)]
        if "image_grid_thw" not in found:
            return list(np.moveaxis(pixels.reshape(-1, *pixels.shape[-3:]), 1, -1))
        ((_, lines, columns),) = found["image_grid_thw"]
        patch, merge = processor.patch_size, processor.merge_size
        if pixels.ndim == 4:
            rows = [np.concatenate(list(line), axis=2) for line in np.split(pixels, lines)]
            return [np.moveaxis(np.concatenate(rows, axis=1), 0, -1)]
        tile = np.empty((lines * patch, columns * patch, 3), np.float32)
        grid = np.ndindex(lines // merge, columns // merge, merge, merge)
        for values, (row, column, down, right) in zip(pixels, grid, strict=True):
            top, left = (row * merge + down) * patch, (column * merge + right) * patch
            first, second = values.reshape(3, 2, patch, patch).transpose(1, 2, 3, 0)
            np.testing.assert_array_equal(first, second)
            tile[top : top + patch, left : left + patch] = first
        return [tile]

    @torch.no_grad()
    def embeddings(self, inputs: Any) -> NDArray[np.float32]:
        """Return the embeddings of all images of a prompt, ``[tokens, width]``."""
        if self._learned_ids:
            return self._decoder_input(inputs)
        sizes = {name: inputs[name] for name in SIZES if name in inputs}
        found = self.model.base_model.get_image_features(
            pixel_values=inputs["pixel_values"], **sizes, return_dict=True
        )
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
        joined = torch.cat(
            [torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in layer]) for layer in layers], 1
        )
        return joined.float().numpy()

    def _decoder_input(self, inputs: Any) -> NDArray[np.float32]:
        """Return what the decoder gets in the places of images, with the learned rows."""
        seen: list[torch.Tensor] = []
        hook = self.model.base_model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
        )
        self.model(**inputs)
        hook.remove()
        image_id = self.model.config.image_token_id
        found: NDArray[np.float32] = seen[0][
            torch.tensor(self.prompt_ids(inputs, image_id)) == image_id
        ].numpy()
        return found

    @torch.no_grad()
    def answer_and_logits(self, inputs: Any, length: int) -> tuple[list[int], NDArray[np.float32]]:
        """Return `length` greedy tokens, and float32 logits ``[length, vocabulary]`` before each."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.stack(output.logits)[:, 0].numpy()


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    image_processor: dict[str, Any],
    *,
    special: Mapping[str, Any],
    template: str,
    end: str,
    seed: int = 0,
    processor: dict[str, Any] | None = None,
) -> Path:
    """Write what a hub repository of such a model holds, with random weights.

    Args:
        image_processor: ``preprocessor_config.json``.
        special: arguments of the tokenizer, such as ``bos_token``.
        end: the token that ends an answer.
        processor: ``processor_config.json``.
    """
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.token_to_id(end))
    scatter(model, seed)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2))
    if processor is not None:
        (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Random weights\n")
    return folder
