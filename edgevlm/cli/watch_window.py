"""The window of ``edgevlm watch --show``: the frame that the model saw last, and its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from edgevlm.drawing import draw_locations
from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.results import Answer

try:
    import tkinter

    from PIL import ImageTk
except ImportError as error:
    raise MissingDependencyError(
        f"--show needs tkinter ({error}): apt-get install python3-tk; or omit --show"
    ) from error

if TYPE_CHECKING:
    from edgevlm.watch import Seen, Watch

SIZE = "800x700"
"""Of the window at first, in pixels."""

STEP_SECONDS = 0.03
"""Time between two looks for values and for events of the window."""


class WatchWindow:
    """A window. `show` and `tell` may be called from any thread, the other methods from the main thread.

    Raises:
        InputError: there is no display.
    """

    def __init__(self) -> None:
        try:
            self.root = tkinter.Tk()
        except tkinter.TclError as error:
            raise InputError(
                f"--show needs a display ({error}): run it on a desktop, set DISPLAY, or omit --show"
            ) from error
        self.root.title("edgevlm watch")
        self.root.geometry(SIZE)
        self.root.configure(background="black")
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        self.root.bind("<Escape>", lambda event: self.close())
        self._text = tkinter.Label(
            self.root, background="black", foreground="white", font=("TkDefaultFont", 20)
        )
        self._text.pack(side="bottom", fill="x", pady=8)
        self._picture = tkinter.Label(self.root, background="black", borderwidth=0)
        self._picture.pack(expand=True, fill="both")
        self._photo: ImageTk.PhotoImage | None = None
        """Tk keeps no reference to it."""
        self._newest: tuple[Seen, str] | None = None
        self._drawn: tuple[Seen, tuple[int, int]] | None = None
        """What the picture shows, and its size."""
        self._problem = ""
        self._closed = False

    def show(self, seen: Seen, text: str) -> None:
        """Show a frame with its answer from now on."""
        self._newest, self._problem = (seen, text), ""

    def tell(self, problem: str) -> None:
        """Show what went wrong in place of the answer, until the next one."""
        self._problem = problem

    def close(self) -> None:
        """End `run`."""
        self._closed = True

    def run(self, watch: Watch, loop: Callable[[], int]) -> int:
        """Run a loop over a watch in a thread until it ends or the window is closed; return its value."""
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(loop)
            try:
                while not running.done() and not self._closed:
                    self._draw()
                    self.root.update()
                    time.sleep(STEP_SECONDS)
            finally:
                watch.close()
                self.root.destroy()
        return running.result()

    def _draw(self) -> None:
        text = self._problem
        if self._newest is not None:
            seen, answer = self._newest
            text = text or f"{answer}\n{seen.age:.1f} s ago"
            self._draw_frame(seen)
        self._text.configure(text=text, wraplength=self.root.winfo_width())

    def _draw_frame(self, seen: Seen) -> None:
        size = self._picture.winfo_width(), self._picture.winfo_height()
        if self._drawn is not None and self._drawn[0] is seen and self._drawn[1] == size:
            return
        self._drawn = seen, size
        image = ImageOps.contain(Image.fromarray(seen.frame), size)
        if isinstance(seen.answer, Answer):
            image = draw_locations(image, [*seen.answer.boxes, *seen.answer.points])
        self._photo = ImageTk.PhotoImage(image)
        self._picture.configure(image=self._photo)
