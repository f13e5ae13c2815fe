"""The checkpoint in transformers in float32, the reference for a bundle."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optimum.exporters.tasks import TasksManager
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.initialization import no_init_weights

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.export.messages import one_line
from edgevlm.inputs.tiling import split_image
from edgevlm.manifest import PromptSpec, Tiling

PARTS = {
    "tower": "model.vision_tower",
    "connector": "model.multi_modal_projector",
    "decoder": "model.language_model",
    "head": "lm_head",
}
"""Names of a model's parts, in edgevlm and in transformers' LLaVA."""


class Reference:
    """The model and its processor.

    Args:
        processor: transformers' processor for the checkpoint.
        prompt: the chat template and the end tokens.
        fixed_size: how images are brought to the size that the export fixed, before the processor gets them;
            None: the processor gets them as they are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        processor: ProcessorMixin,
        prompt: PromptSpec,
        fixed_size: Tiling | None = None,
    ) -> None:
        self._fixed_size = fixed_size
        self._processor = processor
        self._chat_template = prompt.chat_template
        self._end_token_ids = list(prompt.end_token_ids)
        ids = {token.text: token.id for token in prompt.special_tokens}
        self._image_id = ids[prompt.image_token]
        self._image_features = family.image_features
        self._learned_ids = [ids[token] for token in family.learned_tokens]
        if family.model is not None:
            self._model: Any = load_model(checkpoint, family)
            return
        auto_class = TasksManager.get_model_class_for_task(
            "image-text-to-text", model_type=checkpoint.family
        )
        with named("load the checkpoint"):
            self._model = auto_class.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            ).eval()

    def inputs(self, question: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the model's inputs for one user message with images before the question."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        return self.dialogue_inputs([{"role": "user", "content": content}], images)

    def dialogue_inputs(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
    ) -> dict[str, torch.Tensor]:
        """Return the model's inputs for messages of transformers, with an image for each of their places."""
        with named("render the chat template"):
            text = self._processor.apply_chat_template(
                list(messages),
                chat_template=self._chat_template,
                add_generation_prompt=True,
            )
        if self._fixed_size is not None:
            tiles = [split_image(np.asarray(image), self._fixed_size).pixels for image in images]
            images = [Image.fromarray(tile) for (tile,) in tiles]
        bos = self._processor.tokenizer.bos_token
        with named(f"prepare the prompt {text!r}"):
            processed = self._processor(
                text=text,
                images=list(images) or None,
                return_tensors="pt",
                add_special_tokens=bos is None or not text.startswith(bos),
            )
        processed.pop("labels", None)
        return dict(processed)

    def prompt_ids(self, inputs: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
        """Return the token ids of a prompt, with the image token in the places of all embeddings."""
        ids = inputs["input_ids"][0].tolist()
        return tuple(self._image_id if token in self._learned_ids else token for token in ids)

    @torch.no_grad()
    def embeddings(self, image: Image.Image, question: str) -> NDArray[np.float32]:
        """Return the embeddings of an image as llama.cpp takes them, float32 ``[tokens, width]``.

        Features for its first layers (``deepstack``) follow each embedding.
        """
        inputs = self.inputs(question, [image])
        model = self._model.base_model
        if self._learned_ids:
            with named("encode an image"):
                return self._decoder_input(inputs)
        if self._image_features is not None:
            with named("encode an image"):
                rows: NDArray[np.float32] = self._image_features(model, inputs).float().numpy()
            return rows
        accepted = inspect.signature(model.get_image_features).parameters
        with named("encode an image"):
            found = model.get_image_features(
                **{name: value for name, value in inputs.items() if name in accepted},
                return_dict=True,
            )
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
        joined = torch.cat([torch.cat(list(layer)) for layer in layers], dim=-1).float().numpy()
        return joined.reshape(-1, joined.shape[-1])

    def _decoder_input(self, inputs: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        """Return what the decoder gets in the places of an image, with the learned rows."""
        seen: list[torch.Tensor] = []
        decoder = self._model.base_model.language_model
        hook = decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
        )
        try:
            self._model(**inputs)
        finally:
            hook.remove()
        of_image = torch.tensor(self.prompt_ids(inputs)) == self._image_id
        rows: NDArray[np.float32] = seen[0][of_image].float().numpy()
        return rows

    @torch.no_grad()
    def answer(
        self, inputs: dict[str, torch.Tensor], max_tokens: int
    ) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """Return the greedy answer.

        Returns:
            Token ids, with the end token if it has one; logits float32 ``[tokens, vocabulary]``, where row i
            is what follows the prompt and the first i tokens.
        """
        with named("answer a question"):
            generated = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=self._end_token_ids,
                pad_token_id=self._end_token_ids[0],
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return tuple(tokens), torch.cat(generated.logits).float().numpy()

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor], answer: Sequence[int]) -> NDArray[np.float32]:
        """Return logits under teacher forcing, float32 ``[len(answer), vocabulary]``.

        Row i is what follows the prompt and ``answer[:i]``.
        """
        forced = list(answer)
        start = inputs["input_ids"].shape[1]

        def force(batch: int, ids: torch.Tensor) -> list[int]:
            return [forced[len(ids) - start]]

        with named("compute logits"):
            # `generate` knows what each model needs beside the tokens, such as positions and masks.
            output = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=len(forced),
                min_new_tokens=len(forced),
                eos_token_id=None,
                pad_token_id=self._end_token_ids[0],
                prefix_allowed_tokens_fn=force,  # Janus ignores other processors of logits
                output_logits=True,
                return_dict_in_generate=True,
            )
        return torch.cat(output.logits).float().numpy()


def load_model(checkpoint: Checkpoint, family: Family) -> PreTrainedModel:
    """Return the model of a family for a layout that transformers does not read, in float32.

    Raises:
        ExportError: transformers cannot build it.
    """
    assert family.model is not None
    with named("build the model"), no_init_weights():
        model = family.model(checkpoint.config).to(torch.float32).eval()
    values = model.state_dict()
    for name in checkpoint.tensors:
        part, _, rest = family.canonical_name(name).partition(".")
        values[f"{PARTS[part]}.{rest}"].copy_(checkpoint.read(name))
    return model


@contextmanager
def named(work: str) -> Iterator[None]:
    """Turn any error of transformers into an ExportError that names the work.

    Raises:
        ExportError: transformers raised an error, which may be of any class.
    """
    try:
        yield
    except Exception as error:
        raise ExportError(f"transformers cannot {work}: {one_line(error)}") from error
