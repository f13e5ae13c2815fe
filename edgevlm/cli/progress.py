"""Progress of long commands on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def print_progress(name: str, items: int) -> Callable[[int], None]:
    """Return a function that prints the progress to stderr every 10 seconds and at the end.

    Args:
        name: what is asked, such as the name of the model.
        items: number of all items; the function gets the number of those that are done.
    """
    start = last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 or done == items:
            last = now
            seconds = f"{now - start:.0f} s"
            print(f"edgevlm: {name}: {done} of {items} items, {seconds}", file=sys.stderr)

    return show
