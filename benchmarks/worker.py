"""A peer in its own process: its memory is its own, and it sleeps while another one is measured."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """Creates an object in a child process and calls its methods there.

    Args:
        make: a class that can be pickled.
        arguments: keyword arguments for `make`.
    """

    def __init__(self, make: type, **arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
        self._process.start()
        there.close()
        self._receive()

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the result of a method.

        Raises:
            RuntimeError: the method raised an exception, or the process died.
        """
        self._here.send((method, arguments, named))
        return self._receive()

    def _receive(self) -> Any:
        try:
            error, result = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process ended with {self._process.exitcode}") from None
        if error:
            raise RuntimeError(error)
        return result

    def close(self) -> None:
        self._here.close()
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Connection, make: type, arguments: dict[str, Any]) -> None:
    served: Any = None
    request: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
    while True:
        try:
            if request is None:
                served, result = make(**arguments), None
            else:
                method, positional, named = request
                result = getattr(served, method)(*positional, **named)
            pipe.send(("", result))
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {error}", None))
        try:
            request = pipe.recv()
        except EOFError:
            return
