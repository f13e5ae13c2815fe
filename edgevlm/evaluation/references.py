"""References for a bundle: a checkpoint in transformers in float32, or another bundle.

A reference gives its own greedy answer to the last turn of a conversation, and the logits at each position of
this answer. The answers between the turns are its own too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.evaluation.runner import MAX_TOKENS, Conversation
from edgevlm.manifest import MANIFEST_NAME, FileEntry, PromptSpec
from edgevlm.vlm import VLM

if TYPE_CHECKING:
    from collections.abc import Mapping


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

    def answer(self, conversations: Sequence[Conversation]) -> list[ReferenceAnswer]:
        """Answer the last turn of each conversation; there are at most `BATCH_SIZE` of them."""

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Return the ids of the special tokens among `texts` that the model has."""

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


def open_reference(
    model: str, *, vision: str | None, decoder: str | None, prompt: PromptSpec
) -> Reference:
    """Load a reference.

    Args:
        model: the folder of a checkpoint, or a bundle as of `VLM.from_pretrained`.
        vision: precision of a bundle's vision graph; None: the most exact one that it has.
        decoder: type of a bundle's decoder; None: the most exact one that it has.
        prompt: chat template and end tokens of the bundle that is compared, for a checkpoint.

    Raises:
        InputError: there is no such precision, or transformers cannot load the checkpoint.
        BundleError: there is no such model.
        MissingDependencyError: a checkpoint needs torch and transformers.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / MANIFEST_NAME).is_file():
        if vision is not None or decoder is not None:
            raise InputError(
                f"{model} is a checkpoint, which runs in float32; leave out the precisions of the reference"
            )
        return CheckpointReference(folder, prompt)
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
        decoder = decoder or _most_exact(manifest.decoder.files)
        self.description = f"{manifest.name}, vision {vision}, decoder {decoder}"
        self._vlm = VLM.from_pretrained(model, device="cpu", vision=vision, decoder=decoder)

    def answer(self, conversations: Sequence[Conversation]) -> list[ReferenceAnswer]:
        """Answer one conversation after the other."""
        return [self._answer(conversation) for conversation in conversations]

    def _answer(self, conversation: Conversation) -> ReferenceAnswer:
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
    """A checkpoint in transformers, float32, several conversations in a batch.

    Args:
        folder: the checkpoint's folder.
        prompt: the chat template and the end tokens.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        InputError: the folder holds no checkpoint that transformers can load.
    """

    def __init__(self, folder: Path, prompt: PromptSpec) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise MissingDependencyError(
                f"running a checkpoint needs torch and transformers ({error}): "
                f"pip install 'edgevlm[export]'"
            ) from error
        try:
            # Never run a checkpoint's own code, and never open a pickle.
            self._processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            # config.json may name a kernel here, compiled code that transformers would fetch from the hub
            config._attn_implementation = None
            model = AutoModelForImageTextToText.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise InputError(f"transformers cannot load {str(folder)!r}: {error}") from error
        self._model: Any = model.eval()
        self._chat_template = prompt.chat_template
        self._end_token_ids = list(prompt.end_token_ids)
        self.description = f"{folder}, transformers float32"

    def answer(self, conversations: Sequence[Conversation]) -> list[ReferenceAnswer]:
        """Answer the conversations turn by turn, those with equally many images in one batch."""
        last: dict[int, ReferenceAnswer] = {}
        for turn in range(max(len(conversation.turns) for conversation in conversations)):
            groups = defaultdict(list)
            for index, conversation in enumerate(conversations):
                if turn < len(conversation.turns):
                    groups[len(conversation.images)].append(index)
            for group in groups.values():
                earlier = [(*last[i].earlier, last[i].text) if i in last else () for i in group]
                messages = [
                    dialogue(conversations[i], answers)
                    for i, answers in zip(group, earlier, strict=True)
                ]
                last |= zip(group, self._generate(messages, earlier), strict=True)
        return [last[index] for index in range(len(conversations))]

    def _generate(
        self, messages: list[list[dict[str, Any]]], earlier: Sequence[tuple[str, ...]]
    ) -> list[ReferenceAnswer]:
        inputs = self._processor.apply_chat_template(
            messages,
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        out = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            repetition_penalty=1.0,  # whatever the checkpoint sets: a greedy answer has none
            eos_token_id=self._end_token_ids,
            pad_token_id=self._end_token_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        generated = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        found = []
        for index, (answers, ids) in enumerate(zip(earlier, generated, strict=True)):
            ends = (at for at, token in enumerate(ids, 1) if token in self._end_token_ids)
            tokens = tuple(ids[: next(ends, len(ids))])
            text = self._processor.decode(tokens, skip_special_tokens=True).strip()
            steps = [step[index].float().numpy() for step in out.logits[: len(tokens)]]
            found.append(ReferenceAnswer(text, answers, tokens, np.stack(steps)))
        return found

    def token_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Return the ids of the special tokens among `texts`."""
        vocabulary = self._processor.tokenizer.get_vocab()
        return {text: vocabulary[text] for text in texts if text in vocabulary}

    def close(self) -> None:
        """Free the memory."""
        del self._model
