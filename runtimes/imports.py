"""Imports the libraries that runtimes stand on, with errors that say what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgevlm.errors import LoadError, MissingDependencyError


def import_library(module: str, name: str, purpose: str, install: str, mend: str) -> ModuleType:
    """The module of a library.

    Args:
        name: the library's own, for messages.
        purpose: what needs it, such as ``the decoder``.
        install, mend: commands for a library that is missing, and for one that does not load.

    Raises:
        MissingDependencyError: not installed.
        LoadError: its shared library cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{purpose} needs {name}; {install}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"{name} is installed but cannot be loaded ({error}); install it again: {mend}"
        ) from error
