"""A checkpoint's chat template: the one of several that transformers takes, tried before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import BundleError, ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.messages import one_line
from edgevlm.inputs.prompt import PromptBuilder
from edgevlm.manifest import PromptSpec

NAMED = "additional_chat_templates"
"""Folder of templates beside the default one, each ``NAME.jinja``."""
QUESTION = "Which words are these?"


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja source, and where it stands."""

    source: str
    file: Path


def find_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The template that transformers' processor takes, else the one of its tokenizer; None without one.

    The order is transformers': processor_config.json, chat_template.json, chat_template.jinja with the
    folder `NAMED`, and for the tokenizer tokenizer_config.json after these. Of several with names it is the
    one called ``default``.

    Raises:
        ExportError: several templates of which none is the default, or of another form.
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
    """The value ``chat_template`` of a JSON file: a text, or several with names.

    Raises:
        ExportError: none of these, or no default among them.
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
    """Of several templates transformers takes the one that is called default."""
    return ExportError(
        f"{path} has the chat templates {', '.join(names) or '(none)'}, and none called default; put the "
        f"one to use into chat_template.jinja"
    )


def read_text(path: Path) -> str:
    """Raises:
    ExportError: unreadable, or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read {path}: {one_line(error)}; save it as UTF-8") from error


def check_chat_template(spec: PromptSpec, file: Path) -> None:
    """Render one question about one image, as messages will be.

    Raises:
        ExportError: the template is no Jinja, fails, or leaves out the image or the question.
    """
    texts: list[str] = []

    def tokenize(text: str) -> list[int]:
        texts.append(text)
        return [0]

    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        PromptBuilder(spec, tokenize).build([{"role": "user", "content": content}], [(0, 0)])
    except BundleError as error:
        raise ExportError(
            f"the chat template in {file} is no Jinja template: {one_line(error.__cause__ or error)}"
        ) from error
    except Exception as error:  # PromptError, or whatever a template makes Python raise
        raise ExportError(
            f"the chat template in {file} cannot write a question about an image: {one_line(error)}; a "
            f"template for text alone does not do: take that of the model's family, which walks over the "
            f"parts of a message's content and writes {spec.image_token} for an image"
        ) from error
    if not any(QUESTION in text for text in texts):
        raise ExportError(
            f"the chat template in {file} leaves out the text of a question about an image; take that of "
            f"the model's family, which walks over the parts of a message's content"
        )
