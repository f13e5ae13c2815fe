"""The public face: what a public method takes or returns can be imported from `edgevlm`."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import pytest

import edgevlm

INTERNAL = {"ChoiceCalibration", "ImageBudget", "Sampling", "Value"}
"""What only `VLM.choose` and the engine read of `Bundle` and `Generation`, and a type variable."""


def annotations_of(source: str) -> Iterator[ast.expr]:
    """Annotations of public methods and fields of a class, constructors left out."""
    (definition,) = ast.parse(source).body
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            yield from (one.annotation for one in arguments if one and one.annotation)
            if node.returns:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def own_names(annotation: ast.expr, module: str) -> set[str]:
    """Names in an annotation that this package defines."""
    found = set()
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            value = getattr(importlib.import_module(module), node.id, None)
            home = getattr(value, "__module__", "")
            if home.startswith("edgevlm") or node.id in ("Detail", "FinishReason", "Overflow"):
                found.add(node.id)
    return found


@pytest.mark.parametrize("name", sorted(set(edgevlm.__all__) - {"__version__"}))
def test_types_of_public_members_are_public(name: str) -> None:
    public = getattr(edgevlm, name)
    if not inspect.isclass(public):
        return
    source = inspect.cleandoc("\n" + inspect.getsource(public))
    used = set[str]().union(*(own_names(one, public.__module__) for one in annotations_of(source)))
    if name == "Manifest":  # its sections are the bundle format, documented as a whole
        used = {one for one in used if not issubclass(getattr(edgevlm.manifest, one), object)}
    assert used - INTERNAL <= set(edgevlm.__all__)


def test_all_is_what_can_be_imported() -> None:
    for name in edgevlm.__all__:
        assert getattr(edgevlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = edgevlm.Nonsense
