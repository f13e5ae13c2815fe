"""References for a bundle: a checkpoint in transformers in float32, or another bundle.

A reference gives its own greedy answer to the last turn of a conversation, and the logits at each position of
this answer. The answers between the turns are its own too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.evaluation.runner import MAX_TOKENS, Conversation
from edgevlm.export.dependencies import check_dependencies
from edgevlm.manifest import MANIFEST_NAME, FileEntry
from edgevlm.vlm import VLM


@dataclass(frozen=True)
class ReferenceAnswer:
    """The greedy answer of a reference to the last turn of a conversation."""

    text: str
    earlier: tuple[str, ...]
    """The reference's answers to the turns before."""
    tokens: tuple[int, ...]
    """The answer with the end token, if the reference ended it."""
    logits: NDArray[np.float32]
    """``[len(tokens), vocabulary]``; row i is what follows the prompt and ``tokens[:i]``."""


class Reference(Protocol):
    """A model whose answers and distributions a bundle is compared with."""

    description: str
    """Model and precisions, for the report."""

    def answer(self, conversation: Conversation) -> ReferenceAnswer:
        """Answer the last turn of a conversation, and the turns before."""

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Return the ids of the special tokens among `texts`."""

    def close(self) -> None:
        """Free the memory."""


def dialogue(conversation: Conversation, answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return the messages up to the turn after `answers`: a user's message, an answer, and so on."""
    messages: list[dict[str, Any]] = []
    for turn, text in enumerate(conversation.turns[: len(answers) + 1]):
        images = conversation.images if turn == 0 else []
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
        if turn < len(answers):
            content = [{"type": "text", "text": answers[turn]}]
            messages.append({"role": "assistant", "content": content})
    return messages


def open_reference(model: str, *, vision: str | None, decoder: str | None) -> Reference:
    """Load a reference.

    Args:
        model: the folder of a checkpoint, or a bundle as of `VLM.from_pretrained`.
        vision: precision of a bundle's vision graph; None: the most exact one that it has.
        decoder: type of a bundle's decoder; None: the most exact one that it has.

    Raises:
        InputError: there is no such precision, or a checkpoint is to have one.
        BundleError: there is no such model.
        ExportError: the checkpoint is none that edgevlm can export.
        MissingDependencyError: a checkpoint needs the extra ``export``.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / MANIFEST_NAME).is_file():
        if vision is not None or decoder is not None:
            raise InputError(
                f"{model} is a checkpoint, which runs in float32; leave out the precisions of the reference"
            )
        return CheckpointReference(folder)
    return BundleReference(model, vision, decoder)


class BundleReference:
    """A bundle on the CPU, which computes every precision as it is.

    Args:
        model: as of `VLM.from_pretrained`.
        vision: as of `open_reference`.
        decoder: as of `open_reference`.
    """

    def __init__(self, model: str, vision: str | None, decoder: str | None) -> None:
        manifest = Bundle.open(model).manifest
        vision = vision or _most_exact(manifest.vision.files)
        decoder = decoder or _most_exact(manifest.decoder.choices)
        self.description = f"{manifest.name}, vision {vision}, decoder {decoder}"
        self._vlm = VLM.from_pretrained(model, device="cpu", vision=vision, decoder=decoder)

    def answer(self, conversation: Conversation) -> ReferenceAnswer:
        """Answer the last turn of a conversation, and the turns before."""
        earlier: list[str] = []
        while True:
            messages = dialogue(conversation, earlier)
            answer = self._vlm.generate(messages, max_tokens=MAX_TOKENS, temperature=0.0)
            if len(earlier) + 1 == len(conversation.turns):
                break
            earlier.append(answer.text.strip())
        end = self._vlm.manifest.prompt.end_token_ids[:1] if answer.finish_reason == "stop" else ()
        tokens = (*answer.token_ids, *end)
        logits = self._vlm.logits(messages, tokens)
        return ReferenceAnswer(answer.text.strip(), tuple(earlier), tokens, logits)

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Return the ids of the special tokens among `texts`."""
        special = self._vlm.manifest.prompt.special_tokens
        return {token.text: token.id for token in special if token.text in texts}

    def close(self) -> None:
        """Free the memory."""
        self._vlm.close()


def _most_exact(files: Mapping[str, FileEntry]) -> str:
    """Return the precision of the largest file: it has the most bits for each weight."""
    return max(files, key=lambda name: files[name].size)


class CheckpointReference:
    """A checkpoint in transformers, float32, as an export compares its bundle with it.

    Args:
        folder: the checkpoint's folder.

    Raises:
        MissingDependencyError: the extra ``export`` is not installed.
        ExportError: the checkpoint is none that edgevlm can export.
    """

    def __init__(self, folder: Path) -> None:
        check_dependencies()
        from edgevlm.export.checkpoint import Checkpoint
        from edgevlm.export.plan import make_plan, quiet_transformers
        from edgevlm.export.reference import Reference as Model

        checkpoint = Checkpoint.open(folder)
        self._plan = make_plan(checkpoint)
        with quiet_transformers():
            self._model = Model(
                checkpoint, self._plan.family, self._plan.processor, self._plan.prompt
            )
        self.description = f"{folder}, transformers float32"

    def answer(self, conversation: Conversation) -> ReferenceAnswer:
        """Answer the last turn of a conversation, and the turns before."""
        earlier: list[str] = []
        while True:
            messages = dialogue(conversation, earlier)
            inputs = self._model.dialogue_inputs(messages, conversation.images)
            tokens, logits = self._model.answer(inputs, MAX_TOKENS)
            tokenizer = self._plan.processor.tokenizer
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            if len(earlier) + 1 == len(conversation.turns):
                return ReferenceAnswer(text, tuple(earlier), tokens, logits)
            earlier.append(text)

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Return the ids of the special tokens among `texts`."""
        special = self._plan.prompt.special_tokens
        return {token.text: token.id for token in special if token.text in texts}

    def close(self) -> None:
        """Free the memory."""
        del self._model
