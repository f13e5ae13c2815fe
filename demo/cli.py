"""``edgevlm demo``: the page of `edgevlm.demo.app` as a subcommand."""

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
Talk about pictures in the browser, watch a camera, look inside and compare models: a page on this machine,
127.0.0.1, and nowhere else. Conversations are kept in memory, uploaded pictures in a folder that only you may
enter; both are gone when the command ends. If it is killed, the next start deletes the folder."""

EXAMPLES = """\
  edgevlm demo
  edgevlm demo --model ./smolvlm-256m --port 8080"""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Those that end the command; Windows lacks the last one."""

MEMORY_ARENAS = 2

CLOSE_SECONDS = 5
"""How long requests may still take after a signal; a second one cuts that short."""

SIGNAL_SECONDS = 0.5
"""How often the waiting thread looks for a signal that did not wake it."""

Event = BaseException | signal.Signals | None
"""What ends a wait: a failure, a signal, or that something is done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--port",
        type=port_number,
        metavar="P",
        help="port of the page (default: the first free one from 7860)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes. The process ends here then: its exit code is 128 and the signal's number.

    This thread only waits, since Python runs no handler while a library works in it.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with _signals(events):
        with upload_folder() as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when the page is built
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
        # Without the wait for an answer that is being made, or for what a library is at, and before the
        # handlers are taken away: a third signal would raise KeyboardInterrupt and keep the process waiting.
        os._exit(128 + (event or signal.SIGINT))


class _Server:
    """The page, once it is there."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.close: Callable[[], object] = lambda: None

    def open(self) -> None:
        """Load the model and serve.

        Raises:
            EdgeVLMError: the model cannot be loaded, or the port is taken.
        """
        from edgevlm.demo.app import build, launch
        from edgevlm.demo.model_pool import Models
        from edgevlm.runtimes import system

        # Answers are made in many threads of the web server, of which each would keep its own freed memory.
        system.limit_memory_arenas(MEMORY_ARENAS)
        arguments = self._arguments
        models = Models(
            arguments.model or DEFAULT_MODEL, device=arguments.device, threads=arguments.threads
        )
        with models.lease(None):
            pass  # a model that was asked for by name and cannot be loaded ends the command
        page = build(models, generation_options(arguments))
        self.close = lambda: page.close(verbose=False)
        address = launch(page, arguments.port)
        print(f"edgevlm: {address} shows the page, Ctrl-C ends it", file=sys.stderr)


def _next(events: queue.SimpleQueue[Event]) -> Event:
    """Wait for an event. Another thread may receive the signal; it does not wake a thread that waits."""
    while True:
        with suppress(queue.Empty):
            return events.get(timeout=SIGNAL_SECONDS)


def _start(
    work: Callable[[], object], events: queue.SimpleQueue[Event], done: bool = False
) -> None:
    """Work in another thread; a failure is an event, and its end, too, if `done`."""

    def worked() -> None:
        try:
            work()
        except BaseException as error:
            events.put(error)
        else:
            if done:
                events.put(None)

    threading.Thread(target=worked, daemon=True).start()


@contextmanager
def _signals(events: queue.SimpleQueue[Event]) -> Iterator[None]:
    """Signals that end the command are events; those that the parent process ignores stay ignored."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heard:
        # A SimpleQueue may be written to whatever the interrupted thread is at.
        signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
