"""The subcommand ``edgevlm demo``."""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    port_number,
)
from edgevlm.demo.uploads import upload_folder

HELP = """\
Serve a page in the browser, on 127.0.0.1 only: talk about pictures, watch a camera, look inside and compare
models. Conversations are kept in memory, uploaded pictures in a folder that only you can read; both are
deleted when the command ends. If it is killed, the next start deletes the folder."""

EXAMPLES = """\
  edgevlm demo
  edgevlm demo --model ./smolvlm-256m --port 8080"""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that end the command; Windows does not have the last one."""

MEMORY_ARENAS = 2
"""Each thread of the server would otherwise keep freed memory in an arena of its own."""

CLOSE_SECONDS = 5
"""Time for open requests after a signal; a second signal ends it."""

SIGNAL_SECONDS = 0.5
"""Interval in which the main thread handles signals that did not wake it."""

Event = BaseException | signal.Signals | None
"""An exception, a signal, or None: a task is finished."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--port",
        type=port_number,
        metavar="P",
        help="port of the page (default: the first free one from 7860)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives, then end the process with the exit code 128 + signal.

    This thread only waits: Python runs no signal handler while a native library works in the main thread.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with _signals(events):
        with upload_folder() as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it when the page is built
            server = _Server(arguments)
            _start(server.open, events)
            event = _next(events)
            if isinstance(event, BaseException):
                raise event
            _start(server.close, events, done=True)
            with suppress(queue.Empty):
                events.get(timeout=CLOSE_SECONDS)
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        # Do not wait for answers or native libraries. Exit while the handlers are still set: a third signal
        # would otherwise raise KeyboardInterrupt and keep the process waiting.
        os._exit(128 + (event or signal.SIGINT))


class _Server:
    """The server of the page; `close` does nothing before `open`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.close: Callable[[], object] = lambda: None

    def open(self) -> None:
        """Load the model and start to serve.

        Raises:
            EdgeVLMError: the model cannot be loaded, or the port is in use.
        """
        from edgevlm.demo.app import build, launch
        from edgevlm.demo.model_pool import ModelPool
        from edgevlm.runtimes import system

        system.limit_memory_arenas(MEMORY_ARENAS)
        arguments = self._arguments
        models = ModelPool(
            arguments.model or DEFAULT_MODEL, device=arguments.device, threads=arguments.threads
        )
        with models.acquire(None):
            pass  # if the model cannot be loaded, the command ends with an error
        page = build(models, generation_options(arguments))
        self.close = lambda: page.close(verbose=False)
        address = launch(page, arguments.port)
        print(f"edgevlm: {address} shows the page, Ctrl-C ends it", file=sys.stderr)


def _next(events: queue.SimpleQueue[Event]) -> Event:
    """Wait for an event. A signal that another thread receives does not wake this one, so look regularly."""
    while True:
        with suppress(queue.Empty):
            return events.get(timeout=SIGNAL_SECONDS)


def _start(
    work: Callable[[], object], events: queue.SimpleQueue[Event], done: bool = False
) -> None:
    """Run a function in another thread. An exception is an event; so is the end if `done` is True."""

    def run_and_report() -> None:
        try:
            work()
        except BaseException as error:
            events.put(error)
        else:
            if done:
                events.put(None)

    threading.Thread(target=run_and_report, daemon=True).start()


@contextmanager
def _signals(events: queue.SimpleQueue[Event]) -> Iterator[None]:
    """Turn signals into events. Signals that the parent process ignores stay ignored."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in handled:
        # SimpleQueue.put is reentrant, so a signal handler may call it.
        signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
