"""Find the chat template that transformers uses, and check it before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import BundleError, ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.messages import one_line
from edgevlm.inputs.prompt import PromptBuilder
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import PromptSpec

NAMED = "additional_chat_templates"
"""Folder of further templates, each ``NAME.jinja``."""
QUESTION = "Which words are these?"


@dataclass(frozen=True)
class ChatTemplate:
    """Source of a Jinja template, and its file."""

    source: str
    file: Path


def find_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """Return the template of transformers' processor, else of its tokenizer; None if there is none.

    The order is that of transformers: processor_config.json, chat_template.json, chat_template.jinja with the
    folder `NAMED`, and then tokenizer_config.json. Of several named templates it is the one called
    ``default``.

    Raises:
        ExportError: no template is called ``default``, or the template has another form.
    """
    folder = checkpoint.folder
    named = {
        path.stem: (path, read_text(path)) for path in sorted((folder / NAMED).glob("*.jinja"))
    }
    if (folder / "chat_template.jinja").is_file():
        path = folder / "chat_template.jinja"
        named["default"] = (path, read_text(path))
    if found := in_json(checkpoint, "processor_config.json"):
        return found
    if legacy := in_json(checkpoint, "chat_template.json"):
        if (folder / NAMED).is_dir() and any((folder / NAMED).glob("*.jinja")):
            raise ExportError(
                f"{folder} has both chat_template.json and the folder {NAMED}, which transformers does not "
                f"take together; put the template into chat_template.jinja instead of the first"
            )
        return legacy
    if "default" in named:
        path, source = named["default"]
        return ChatTemplate(source, path)
    if named:
        raise no_default(folder / NAMED, list(named))
    return in_json(checkpoint, "tokenizer_config.json")


def in_json(checkpoint: Checkpoint, name: str) -> ChatTemplate | None:
    """Return ``chat_template`` of a JSON file, which is a text or several named texts.

    Raises:
        ExportError: it is neither, or no template is called ``default``.
    """
    value = checkpoint.json(name).get("chat_template")
    path = checkpoint.folder / name
    if value is None:
        return None
    if isinstance(value, str):
        return ChatTemplate(value, path)
    if isinstance(value, list):
        pairs: list[tuple[Any, Any]] = [
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            for entry in value
        ]
    else:
        pairs = list(value.items()) if isinstance(value, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(source, str) for key, source in pairs):
        raise ExportError(
            f"{path} has a chat_template that is neither a text nor a list of texts with names"
        )
    templates = dict(pairs)
    if "default" not in templates:
        raise no_default(path, list(templates))
    return ChatTemplate(templates["default"], path)


def no_default(path: Path, names: list[str]) -> ExportError:
    """Return the error for named templates without a default."""
    return ExportError(
        f"{path} has the chat templates {', '.join(names) or '(none)'}, and none called default; put the "
        f"one to use into chat_template.jinja"
    )


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        ExportError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read {path}: {one_line(error)}; save it as UTF-8") from error


def check_chat_template(spec: PromptSpec, file: Path, image: tuple[Layout, int]) -> None:
    """Check a template by one question about one image.

    Args:
        image: layout and number of spans of the image.

    Raises:
        ExportError: the template is not valid Jinja, fails, or leaves out the image or the question.
    """
    texts: list[str] = []

    def tokenize(text: str) -> list[int]:
        texts.append(text)
        return [0]

    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    whole = dataclasses.replace(spec, splitting=None)
    try:
        PromptBuilder(whole, tokenize).build([{"role": "user", "content": content}], [image])
    except BundleError as error:
        raise ExportError(
            f"the chat template in {file} is not valid Jinja: {one_line(error.__cause__ or error)}"
        ) from error
    except Exception as error:  # PromptError, or whatever a template makes Python raise
        raise ExportError(
            f"the chat template in {file} cannot write a question about an image: {one_line(error)}; a "
            f"template for text alone is not enough: use that of the model's family, which iterates over the "
            f"parts of a message's content and writes {spec.image_placeholder} for an image"
        ) from error
    if not any(QUESTION in text for text in texts):
        raise ExportError(
            f"the chat template in {file} leaves out the text of a question about an image; use that of "
            f"the model's family, which iterates over the parts of a message's content"
        )
