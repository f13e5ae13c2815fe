"""The page: Gradio's chat over `VLM.generate`.

Gradio keeps the conversation and hands all of it over with each turn; what a turn shares with the
one before comes out of the decoder's KV cache, and no picture is encoded twice. Turns of several
browsers are answered one after another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from edgevlm.errors import EdgeVLMError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from edgevlm.generation import GenerationOptions
    from edgevlm.vlm import VLM

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise MissingDependencyError("the demo needs Gradio: pip install 'edgevlm[demo]'") from error


def build(vlm: VLM, options: GenerationOptions) -> gr.Blocks:
    """The page for a loaded model; `options` hold for every answer."""

    def answer(message: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        turn = {
            "role": "user",
            "content": [*({"path": path} for path in message["files"]), message["text"]],
        }
        messages = [as_message(entry) for entry in [*history, turn]]
        text = ""
        try:
            with closing(vlm.generate(messages, **options)) as chunks:
                for chunk in chunks:
                    text += chunk.text
                    yield text
        except EdgeVLMError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return gr.ChatInterface(
        answer,
        multimodal=True,
        textbox=gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            placeholder="Add a picture and ask about it",
        ),
        title=f"edgevlm: {vlm.manifest.name}",
        description=f"Runs on this machine: {vlm.device}.",
        api_name="chat",
        analytics_enabled=False,
        concurrency_limit=1,
    )


def launch(page: gr.Blocks, port: int | None = None) -> str:
    """Serve the page on 127.0.0.1 from another thread.

    Args:
        port: None for the first free one from 7860.

    Returns:
        The page's address.

    Raises:
        InputError: the port is not free.
    """
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error}; name another") from error
    return str(address)


def as_message(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A turn of Gradio's history as a message of `VLM.generate`.

    Gradio spells a turn in two ways: a text and ``{"path": ...}`` as they were sent, or, once a
    browser has shown them, ``{"text": ..., "type": ...}`` and ``{"file": {"path": ...}, ...}``.
    """
    content = entry["content"]
    parts: list[dict[str, str]] = []
    for part in content if isinstance(content, list) else [content]:
        text = part if isinstance(part, str) else part.get("text")
        if text is None:
            parts.append({"type": "image", "image": part.get("path") or part["file"]["path"]})
        elif text:
            parts.append({"type": "text", "text": text})
    return {"role": entry["role"], "content": parts}
