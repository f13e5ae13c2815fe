"""The tab Live: one question, asked again and again about the newest frame of the camera.

The browser (`assets/live.js`) sends a frame, waits for its answer, and then sends the newest frame. So there
is never a backlog on the network. The browser also keeps the answers, for the list and the log; the server
keeps nothing of a frame after its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.demo.camera import camera
from edgevlm.demo.gradio_setup import LATEST, error_text, gr, session_of
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.errors import EdgeVLMError, ImageError, InputError
from edgevlm.inputs.data_uri import decode_data_uri
from edgevlm.inputs.images import load_image, read_image_size
from edgevlm.options import GenerationOptions
from edgevlm.results import Answer
from edgevlm.vlm import VLM
from edgevlm.watch import Watch

MAX_FRAME_BYTES = 4 * 2**20
"""Limit of the JPEG file of a frame."""

MAX_FRAME_PIXELS = 4096 * 2160

JPEG_URI = "data:image/jpeg;base64,"
"""Begin of the data URI of a frame."""

MAX_CHOICES = 50

QUESTION = "What is in the picture?"
"""Question at first."""

ANSWER_HTML = """\
<div class="edgevlm live">
  <div class="answer" aria-live="polite"></div>
  <div class="quiet age"></div>
  <div class="shares"></div>
</div>"""

HISTORY_HTML = """\
<section class="edgevlm live-history">
  <div class="live-head"><h2></h2><button type="button"></button></div>
  <p class="quiet"></p>
  <ol></ol>
</section>"""


@dataclass(frozen=True)
class Frame:
    """A frame with its question."""

    pixels: NDArray[np.uint8]
    """RGB, ``[height, width, 3]``."""
    question: str
    choices: tuple[str, ...]
    model: str | None
    """Label of the model; None: the first one."""


@dataclass
class ActiveFrame:
    """A frame whose answer is under way."""

    model: str | None
    """Label of the model; None: the first one."""
    stopped: threading.Event = field(default_factory=threading.Event)
    watch: Watch | None = None
    """None until the model is loaded, and for choices."""

    @property
    def text(self) -> str:
        """The answer so far."""
        return "" if self.watch is None else self.watch.text

    def stop(self) -> None:
        """Stop. `LiveAnswers.answer` returns at once; the model stops at its next step."""
        self.stopped.set()
        if self.watch is not None:
            self.watch.close()


class LiveAnswers:
    """Answers about frames, at most one at a time for each page. All methods are thread-safe.

    Args:
        options: options of every answer; not used for choices.
    """

    def __init__(self, models: ModelPool, options: GenerationOptions) -> None:
        self._models = models
        self._options: GenerationOptions = {**options, "cache_images": False}
        self._active: dict[str, ActiveFrame] = {}
        self._lock = threading.Lock()

    def answer(self, page: str, frame: Frame) -> dict[str, Any] | None:
        """Answer the question about a frame. Stop an earlier frame of the same page.

        Returns:
            ``answer``: the text; ``choices``: each with its probability, 0 to 1; ``boxes`` and ``points`` of
            the answer, each with the fields of `edgevlm.boxes`. None if the frame was stopped.

        Raises:
            EdgeVLMError: the model cannot be loaded or cannot answer.
        """
        active = ActiveFrame(frame.model)
        with self._lock:
            earlier = self._active.get(page)
            self._active[page] = active
        if earlier is not None:
            earlier.stop()
        try:
            return self._answer(frame, active)
        finally:
            with self._lock:
                if self._active.get(page) is active:
                    del self._active[page]

    def active_frame(self, page: str) -> ActiveFrame | None:
        """Return the frame of this page whose answer is under way."""
        with self._lock:
            return self._active.get(page)

    def stop(self, page: str) -> None:
        """Stop the answer for a page; do nothing if there is none."""
        active = self.active_frame(page)
        if active is not None:
            active.stop()

    def _answer(self, frame: Frame, active: ActiveFrame) -> dict[str, Any] | None:
        with self._models.acquire(frame.model) as loaded:
            if frame.choices:
                return None if active.stopped.is_set() else self._score(loaded.vlm, frame)
            frames = iter([frame.pixels])
            with loaded.vlm.watch(frames, frame.question, **self._options) as watch:
                active.watch = watch
                if active.stopped.is_set():
                    return None
                seen = next(watch, None)
            if seen is None:
                return None
            answer = seen.answer
            assert isinstance(answer, Answer)
            return {
                "answer": answer.text,
                "choices": [],
                "boxes": [asdict(box) for box in answer.boxes],
                "points": [asdict(point) for point in answer.points],
            }

    def _score(self, vlm: VLM, frame: Frame) -> dict[str, Any]:
        scores = vlm.score(
            frame.pixels,
            frame.question,
            frame.choices,
            detail=self._options.get("detail"),
            cache_images=False,
        )
        likeliest = max(scores, key=lambda score: score.logprob)
        probabilities = [[score.text, score.probability] for score in scores]
        return {"answer": likeliest.text, "choices": probabilities, "boxes": [], "points": []}


def parse_frame(sent: Mapping[str, Any], request: gr.Request | None = None) -> Frame:
    """Check a frame as the browser sends it.

    Args:
        sent: ``image``, a JPEG file as a data URI; ``question``; ``choices``, separated by commas; ``model``,
            its label.
        request: the page's request; error messages are in its language.

    Raises:
        InputError: there is no question; there is one choice, there are too many, or one occurs twice.
        ImageError: the frame is no JPEG file, too large, or broken.
    """
    question, listed, image = (_text(sent, name) for name in ("question", "choices", "image"))
    if not question.strip():
        raise InputError(translate(request, "The question is empty. Write one."))
    choices = parse_choices(listed)
    twice = next((choice for choice in choices if choices.count(choice) > 1), None)
    if twice is not None:
        raise InputError(
            translate(
                request, "“{choice}” is there twice among the choices. Remove one.", choice=twice
            )
        )
    if len(choices) == 1:
        raise InputError(
            translate(
                request, "One choice is none. Add others after a comma, or leave the field empty."
            )
        )
    if len(choices) > MAX_CHOICES:
        raise InputError(
            translate(
                request,
                "There are {count} choices, more than {limit}. Remove some.",
                count=len(choices),
                limit=MAX_CHOICES,
            )
        )
    return Frame(_pixels(image, request), question, choices, _text(sent, "model") or None)


def _text(sent: Mapping[str, Any], name: str) -> str:
    """Return a field; empty if it is missing or no text."""
    value = sent.get(name)
    return value if isinstance(value, str) else ""


def _pixels(image: str, request: gr.Request | None) -> NDArray[np.uint8]:
    if len(image) > MAX_FRAME_BYTES * 4 / 3 + 100:  # base64
        raise ImageError(
            translate(
                request,
                "The frame has more than {limit} MB. Choose a lower resolution.",
                limit=MAX_FRAME_BYTES // 2**20,
            )
        )
    data = decode_data_uri(image) if image.startswith(JPEG_URI) else b""
    if not data.startswith(b"\xff\xd8\xff"):
        raise ImageError(translate(request, "The frame is not a JPEG picture."))
    width, height = read_image_size(data)
    if width * height > MAX_FRAME_PIXELS:
        raise ImageError(
            translate(
                request,
                "The frame has {width} × {height} pixels, more than {limit} million. "
                "Choose a lower resolution.",
                width=width,
                height=height,
                limit=MAX_FRAME_PIXELS // 10**6,
            )
        )
    return load_image(data)


def parse_choices(text: str) -> tuple[str, ...]:
    """Split a text at commas; leave out empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def build(
    page: gr.Blocks, models: ModelPool, chosen: gr.State, options: GenerationOptions
) -> list[Any]:
    """Lay out the tab and connect its events; arguments as for `edgevlm.demo.chat.build`.

    Returns:
        The controls, for `edgevlm.demo.settings.remember`.
    """
    answers = LiveAnswers(models, options)

    # `assets/live.js` calls the next three by their names.
    def answer(sent: Any, request: gr.Request) -> dict[str, Any]:
        """Return the answer, or ``problem`` with its text, or ``stopped``."""
        try:
            found = answers.answer(str(sent.get("page")), parse_frame(sent, request))
        except EdgeVLMError as error:
            return {"problem": error_text(error)}
        except Exception as error:  # the page shows the problem, and the camera goes on
            return {"problem": error_text(repr(error))}
        return found or {"stopped": True}

    def progress(name: Any) -> dict[str, Any]:
        """Return the answer so far, and whether the model is still loading."""
        active = answers.active_frame(str(name))
        if active is None:
            return {"text": "", "loading": False}
        loaded = active.model is None or models.is_loaded(active.model)
        return {"text": active.text, "loading": not loaded}

    def leave(name: Any) -> None:
        answers.stop(str(name))

    def page_state(model: str | None, request: gr.Request) -> dict[str, Any]:
        return {"page": session_of(request), "model": model}

    def unload(request: gr.Request) -> None:
        answers.stop(session_of(request))

    with gr.Row():
        with gr.Column(min_width=300):
            view = camera("live-camera", "live", (answer, progress, leave))
            gr.HTML(html_template=ANSWER_HTML, js_on_load=None, elem_id="live")
        with gr.Column(min_width=300):
            question = gr.Textbox(QUESTION, label=label("Question"), elem_id="live-question")
            choices = gr.Textbox(
                "",
                label=label("Choices (optional)"),
                placeholder=label("for example: red, green, blue"),
                info=label(
                    "Separate them with commas. The model then says how likely each of them is."
                ),
                elem_id="live-choices",
            )
            changes = gr.Checkbox(
                False, label=label("Look only when the picture changes"), elem_id="live-changes"
            )
            gr.HTML(html_template=HISTORY_HTML, js_on_load=None, elem_id="live-history")
    gr.on([page.load, chosen.change], page_state, [chosen], [view], **LATEST)
    page.unload(unload)
    return [question, choices, changes]
