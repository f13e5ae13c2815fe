"""The tab Live: one question, asked again about whatever the camera shows.

A frame that arrives while another is being looked at replaces the one that waits: there is never a backlog.
Work goes on in a thread that ends when no frame waits; what a page shows is what is known when its next
frame arrives.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.demo import markup
from edgevlm.demo.models import Models
from edgevlm.demo.toolkit import (
    DOWNLOAD,
    INTERNAL,
    downloadable,
    gr,
    refusal,
    session_of,
)
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.generation import GenerationOptions
from edgevlm.results import ChoiceScore

SECONDS_PER_FRAME = 0.2
"""How often a browser sends one."""

CAMERA = {
    "facingMode": {"ideal": "environment"},  # a phone's camera that looks away from the person
    "width": {"ideal": 640},
    "height": {"ideal": 480},
}
"""What the browser is asked for; more pixels would cost time and be thrown away."""

MOST_LOGGED = 10_000
"""Answers that a page's log holds; the oldest go first."""


@dataclass(frozen=True)
class Frame:
    """A frame and what is asked about it."""

    pixels: NDArray[np.uint8]
    question: str
    choices: tuple[str, ...]
    label: str | None
    """Of the model."""
    arrived: float = field(default_factory=time.monotonic)
    """Seconds."""
    time: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()
    )


@dataclass(frozen=True)
class Seen:
    """What was said about a frame, perhaps not to its end."""

    frame: Frame
    text: str = ""
    scores: tuple[ChoiceScore, ...] = ()
    finished: float | None = None
    """Seconds, on the clock of `Frame.arrived`."""
    problem: str | None = None


class Watch:
    """What one browser's camera sees; safe to use from many threads.

    Args:
        options: of every answer; unused where there are choices.
    """

    def __init__(self, models: Models, options: GenerationOptions) -> None:
        self._models = models
        self._options = options
        self._lock = threading.Lock()
        self._waiting: Frame | None = None
        self._thread: threading.Thread | None = None
        self._shown: Seen | None = None
        self._log: deque[dict[str, Any]] = deque(maxlen=MOST_LOGGED)
        self.skipped = 0
        """Frames that a newer one replaced."""
        self.paused = False

    @property
    def shown(self) -> Seen | None:
        """The newest answer."""
        with self._lock:
            return self._shown

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every finished answer, the oldest first."""
        with self._lock:
            return list(self._log)

    def show(self, frame: Frame) -> None:
        """Look at this frame next, and at none that waited; not while paused."""
        with self._lock:
            if self.paused:
                return
            self.skipped += self._waiting is not None
            self._waiting = frame
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def pause(self) -> None:
        """Drop what waits, and look at nothing until `resume`; what is shown stays."""
        with self._lock:
            self.paused, self._waiting = True, None

    def resume(self) -> None:
        with self._lock:
            self.paused = False

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no frame is looked at; whether that came."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._lock:
                frame, self._waiting = self._waiting, None
                if frame is None:
                    self._thread = None
                    return
            try:
                self._look(frame)
            except EdgeVLMError as error:
                self._tell(Seen(frame, problem=str(error), finished=time.monotonic()))
            except Exception as error:
                self._tell(Seen(frame, problem=repr(error), finished=time.monotonic()))

    def _look(self, frame: Frame) -> None:
        with self._models.lease(frame.label) as loaded:
            if frame.choices:
                detail = self._options.get("detail")
                scores = tuple(
                    loaded.vlm.score(frame.pixels, frame.question, frame.choices, detail=detail)
                )
                text = max(scores, key=lambda score: score.logprob).text
                self._tell(Seen(frame, text, scores, time.monotonic()))
                return
            text = ""
            stream = loaded.vlm.stream(frame.pixels, frame.question, **self._options)
            with closing(stream) as chunks:
                for chunk in chunks:
                    text += chunk.text
                    finished = time.monotonic() if chunk.finish_reason else None
                    if text or finished is not None:  # until then the last answer stays
                        self._tell(Seen(frame, text, finished=finished))

    def _tell(self, seen: Seen) -> None:
        with self._lock:
            self._shown = seen
            if seen.finished is not None and seen.problem is None:
                self._log.append(_logged(seen))


def view(watch: Watch) -> str:
    """The answer, its age and its bars as HTML."""
    seen = watch.shown
    if seen is None:
        return markup.block('<div class="answer quiet">no frame yet</div>')
    if seen.problem is not None:
        return markup.problem(seen.problem)
    age = time.monotonic() - seen.frame.arrived
    state = [f"its frame is {age:.1f} s old"]
    if seen.finished is not None:
        state.append(
            f"answered {(seen.finished - seen.frame.arrived) * 1000:,.0f} ms after it came"
        )
    state.append(f"{len(watch.log)} answers, {watch.skipped} frames passed over")
    if watch.paused:
        state.append("paused")
    return markup.block(
        f'<div class="answer">{markup.escaped(seen.text)}</div>',
        f'<div class="quiet age">{"; ".join(state)}</div>',
        markup.bars([(score.text, score.share) for score in seen.scores]) if seen.scores else "",
    )


def choices_of(text: str) -> tuple[str, ...]:
    """What stands between the commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def build(page: gr.Blocks, models: Models, chosen: gr.State, defaults: GenerationOptions) -> None:
    """Lay out the tab and connect it; arguments as in `edgevlm.demo.chat.build`."""
    watches: dict[str, Watch] = {}

    def watch_of(request: gr.Request) -> Watch:
        return watches.setdefault(session_of(request), Watch(models, defaults))

    with gr.Row():
        with gr.Column():
            camera = gr.Image(
                sources=["webcam"],
                streaming=True,
                type="numpy",
                label="Camera",
                height=320,
                webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": CAMERA}),
                elem_id="live-camera",
            )
        with gr.Column():
            question = gr.Textbox("What is in the picture?", label="Standing question")
            choices = gr.Textbox(
                label="Choices",
                placeholder="none; or: red, green, blue",
                info="separated by commas: each with its probability, by the model's own",
            )
            shown = gr.HTML(
                markup.block('<div class="answer quiet">start the camera</div>'), elem_id="live"
            )
            with gr.Row():
                pause = gr.Button("Pause", size="md", min_width=100)
                save = gr.Button("Save the log", size="md", min_width=100)
                file = gr.DownloadButton("file", visible="hidden", elem_id="live-file")

    def see(
        frame: NDArray[np.uint8] | None,
        question: str,
        choices: str,
        label: str | None,
        request: gr.Request,
    ) -> str:
        watch = watch_of(request)
        if frame is not None:
            watch.show(Frame(frame, question, choices_of(choices), label))
        return view(watch)

    def toggled(request: gr.Request) -> tuple[Any, str]:
        watch = watch_of(request)
        if watch.paused:
            watch.resume()
        else:
            watch.pause()
        return gr.update(value="Go on" if watch.paused else "Pause"), view(watch)

    def logged(request: gr.Request) -> str:
        log = watch_of(request).log
        if not log:
            raise refusal(InputError("nothing was answered yet; there is nothing to save"))
        return downloadable("live.jsonl", _lines(log))

    def left(request: gr.Request) -> None:
        watch = watches.pop(session_of(request), None)
        if watch is not None:
            watch.pause()

    camera.stream(
        see,
        [camera, question, choices, chosen],
        [shown],
        stream_every=SECONDS_PER_FRAME,
        time_limit=None,
        concurrency_limit=None,
        **INTERNAL,
    )
    pause.click(toggled, None, [pause, shown], **INTERNAL)
    save.click(logged, None, [file], **INTERNAL).success(
        None, None, None, js=f"() => ({DOWNLOAD})('live-file')", **INTERNAL
    )
    page.unload(left)


def _logged(seen: Seen) -> dict[str, Any]:
    frame = seen.frame
    entry: dict[str, Any] = {
        "time": frame.time,
        "model": frame.label,
        "question": frame.question,
        "answer": seen.text,
        "milliseconds": round(((seen.finished or frame.arrived) - frame.arrived) * 1000, 1),
    }
    if seen.scores:
        entry["choices"] = {score.text: round(score.share, 6) for score in seen.scores}
    return entry


def _lines(log: Sequence[dict[str, Any]]) -> str:
    """JSON, a line for each answer."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in log)
