"""Import of the libraries that runtimes use, with errors that say what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgevlm.errors import LoadError, MissingDependencyError


def import_library(
    module: str, name: str, purpose: str, install_hint: str, reinstall_hint: str
) -> ModuleType:
    """Import a library and return its module.

    Args:
        module: name of the Python module.
        name: name of the library, for messages.
        purpose: what needs the library, such as ``the decoder``.
        install_hint: command that installs the library.
        reinstall_hint: command that repairs a library which does not load.

    Raises:
        MissingDependencyError: the library is not installed.
        LoadError: the library is installed but cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{purpose} needs {name}; {install_hint}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"{name} is installed but cannot be loaded ({error}); install it again: {reinstall_hint}"
        ) from error
