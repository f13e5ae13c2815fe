"""Find out whether this process was forked from one whose native libraries had started threads.

Threads do not live on in a forked child. llama.cpp and ONNX Runtime would wait for theirs for ever: when they
compute, and when what the parent had opened is freed.
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
    """Remember that native threads run in this process from now on.

    Args:
        owner: an object of ours; held weakly.
        attribute: its attribute that holds the native object, which a forked child must not free.
    """
    global _started
    _started = True
    _owners[owner] = attribute


def is_forked() -> bool:
    """Whether this process was forked from one that had used a model."""
    return _forked


def check_not_forked() -> None:
    """Refuse to compute in a forked child.

    Raises:
        ClosedError: `is_forked`.
    """
    if _forked:
        raise ClosedError(
            "this process was forked from one that had used a model, whose native threads do not live on "
            "here; start processes with 'spawn' instead (multiprocessing.get_context('spawn'), gunicorn "
            "without --preload, celery with --pool=solo or threads), or load the first model after the fork"
        )


def _mark_child() -> None:
    global _forked
    _forked = _forked or _started
    for owner, attribute in list(_owners.items()):
        # Nothing but a reference for good keeps Python from freeing it when the child ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(owner, attribute)))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)
