"""Detect a process that was forked after native libraries had started threads.

A forked child has none of its parent's threads. There llama.cpp and ONNX Runtime would wait for theirs for
ever: when they compute, and when they free what the parent had opened.
"""

from __future__ import annotations

import ctypes
import os
import weakref

from edgevlm.errors import ClosedError

_owners: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
_started = False
_forked = False


def mark_started(owner: object, attribute: str) -> None:
    """Record that native threads run in this process from now on.

    Args:
        owner: the Python object that holds the native object; a weak reference to it is kept.
        attribute: name of the attribute with the native object, which a forked child must not free.
    """
    global _started
    _started = True
    _owners[owner] = attribute


def is_forked() -> bool:
    """Return True if this process was forked from one that had used a model."""
    return _forked


def check_not_forked() -> None:
    """Raise an error if this process was forked from one that had used a model.

    Raises:
        ClosedError: the process is such a fork.
    """
    if _forked:
        raise ClosedError(
            "this process was forked from one that had used a model, whose native threads a fork does not "
            "have; start processes with 'spawn' instead (multiprocessing.get_context('spawn'), gunicorn "
            "without --preload, celery with --pool=solo or threads), or load the first model after the fork"
        )


def _mark_child() -> None:
    global _forked
    _forked = _forked or _started
    for owner, attribute in list(_owners.items()):
        # Without this extra reference Python would free the native object when the child ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(owner, attribute)))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)
