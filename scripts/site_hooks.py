"""Hooks of the documentation site: generated parts, and links that leave the docs folder.

mkdocs calls `on_page_markdown` for each page (`hooks` in mkdocs.yml). A page names a generated part by a
comment, such as ``<!-- generated: command line -->``. So the part is made from the code at each build and
cannot become stale.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from mkdocs.structure.files import File

from edgevlm import cli, errors, manifest
from scripts.draw_layers import PACKAGE, draw, find_imports

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = "https://github.com/edgevlm/edgevlm/blob/main/"
"""Address of a file of the repository."""
IMAGE_SUFFIXES = {".png", ".svg", ".jpg"}

_LINK = re.compile(r"(?<=\]\()(\.\./[^)\s#]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_GENERATED = re.compile(r"^<!-- generated: ([\w ]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the generated parts of a page and redirect its links that leave the docs folder."""
    folder = PurePosixPath(page.file.src_uri).parent

    def redirect(match: re.Match[str]) -> str:
        path = resolve(PurePosixPath("docs") / folder, match[1])
        if path.parts[0] == "docs":
            return match[1]
        if path.suffix not in IMAGE_SUFFIXES:
            return f"{SOURCE}{path}"
        uri = f"images/{path.name}"
        if uri not in files.src_uris:
            content = (REPOSITORY / path).read_bytes()
            files.append(File.generated(config, uri, content=content))
        return "/".join([*[".."] * len(folder.parts), uri])

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(redirect, part) for part in parts[::2]]
    return _GENERATED.sub(lambda match: GENERATED[match[1]](), "".join(parts))


def resolve(folder: PurePosixPath, link: str) -> PurePosixPath:
    """Return the path in the repository of a relative link that a page in `folder` has."""
    parts = list(folder.parts)
    for part in PurePosixPath(link).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def command_line() -> str:
    """Return every subcommand's arguments as Markdown, from the parsers themselves."""
    return "\n\n".join(_command(name) for name in cli.COMMANDS)


def _command(name: str) -> str:
    module = importlib.import_module(cli.COMMANDS[name].module)
    parser = cli.command_parser(name)
    formatter = parser._get_formatter()
    lines = [f"## edgevlm {name}", module.HELP, "```bash", inspect.cleandoc(module.EXAMPLES), "```"]
    for group in parser._action_groups:
        rows = [
            f"| {_invocation(action)} | {_cell(formatter._expand_help(action) if action.help else '')} |"
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction)
        ]
        if rows:
            title = {"positional arguments": "arguments"}.get(group.title or "", group.title)
            lines += ["", f"| {title} | meaning |", "|---|---|", *rows]
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    """Return a paragraph of a help text; indented lines keep their form."""
    return f"```text\n{inspect.cleandoc(text)}\n```\n" if text.startswith("  ") else f"{text}\n"


def _invocation(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    ending = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{ending}`" for option in action.option_strings)


def bundle_format() -> str:
    """Return the manifest's objects as Markdown: fields, JSON types and meanings, from the dataclasses."""
    parts = []
    for kind in _objects(manifest.Manifest):
        hints, meanings = typing.get_type_hints(kind), _field_meanings(kind)
        lines = [f"## {kind.__name__}", inspect.getdoc(kind) or "", ""]
        lines += ["| field | JSON | meaning |", "|---|---|---|"]
        # A field that a dataclass sets itself is ``kind``, which tells the members of a union apart.
        for field in sorted(dataclasses.fields(kind), key=lambda field: field.init):
            required = field.default is field.default_factory is dataclasses.MISSING
            json_type = _json_type(hints[field.name])
            json_type += "" if required or not field.init else "; may be left out"
            meaning = (
                meanings.get(field.name, "") if field.init else "Which kind of object this is."
            )
            lines.append(f"| `{field.name}` | {json_type} | {_cell(meaning)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _objects(kind: Any) -> Iterator[Any]:
    """Yield a dataclass and those in its fields, each once, and each before those in its own fields."""
    waiting, met = [kind], set()
    while waiting:
        kind = waiting.pop(0)
        if kind in met:
            continue
        met.add(kind)
        yield kind
        waiting[:0] = [
            inner for hint in typing.get_type_hints(kind).values() for inner in _inner(hint)
        ]


def _inner(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [inner for argument in typing.get_args(hint) for inner in _inner(argument)]


def _json_type(hint: Any) -> str:
    """Return what a field of this annotation is in JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        name = hint.__name__  # type: ignore[union-attr]  # a class
        return f"[{name}](#{name.lower()})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_json_type(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"list{length}: {_json_type(arguments[0])}"
    if origin is dict:
        return f"object: {_json_type(arguments[1])} by name"
    return {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}[
        hint
    ]


def _field_meanings(kind: type) -> dict[str, str]:
    """Return the string below each field of a dataclass, of its base classes' fields, too."""
    found = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        (definition,) = ast.parse(inspect.getsource(base)).body
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _cell(text: str) -> str:
    """Return a text as the cell of a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def error_tree() -> str:
    """Return the classes of errors as an indented list."""

    def lines(kind: type[Exception], depth: int) -> Iterator[str]:
        purpose = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        yield f"{'    ' * depth}- [`{kind.__name__}`](#edgevlm.{kind.__name__}): {_cell(purpose)}"
        for below in kind.__subclasses__():
            yield from lines(below, depth + 1)

    return "\n".join(lines(errors.EdgeVLMError, 0))


def layers() -> str:
    """Return the picture of the packages, drawn from the imports in the code."""
    return f'<figure class="layers">{draw(find_imports(REPOSITORY))}</figure>'


def modules() -> str:
    """Return tables of the modules with the first lines of their docstrings, one for each package."""
    root = REPOSITORY / PACKAGE
    parts = []
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if name != "__pycache__")
        path = Path(folder).relative_to(root)
        title = "/".join([PACKAGE, *path.parts])
        rows = [
            f"| `{name}` | {_cell(_first_line(Path(folder) / name))} |"
            for name in sorted(files)
            if name.endswith(".py") and name != "__init__.py"
        ]
        if rows:
            purpose = _first_line(Path(folder) / "__init__.py")
            parts.append(
                "\n".join([f"## {title}", purpose, "", "| module | |", "|---|---|", *rows])
            )
    return "\n\n".join(parts)


def _first_line(path: Path) -> str:
    """Return the first line of a module's docstring, empty if there is none."""
    docstring = (
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ""
    )
    return (docstring or "").partition("\n\n")[0].replace("\n", " ")


def llava_family() -> str:
    """Return a short family module as a block of code."""
    source = (REPOSITORY / "export" / "families" / "llava.py").read_text(encoding="utf-8")
    return f"```python\n{source}```"


GENERATED: Mapping[str, Callable[[], str]] = {
    "command line": command_line,
    "bundle format": bundle_format,
    "error tree": error_tree,
    "layers": layers,
    "modules": modules,
    "llava family": llava_family,
}
"""The name in a page's comment to what makes the part."""
