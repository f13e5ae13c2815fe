"""The tab Live: one question, asked again about whatever the camera shows.

The browser (``assets/live.js``) sends a frame, waits for its answer, and sends the newest frame then: there
is never a backlog, and no more is sent than the model can answer. It also keeps the answers, for the list
and the log; the server keeps nothing of a frame once it is answered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.demo.boxes import boxes
from edgevlm.demo.camera import camera
from edgevlm.demo.gradio_setup import LATEST, gr, readable, session_of
from edgevlm.demo.language import label, say
from edgevlm.demo.model_pool import Models
from edgevlm.errors import EdgeVLMError, ImageError, InputError
from edgevlm.inputs.data_uri import decode_data_uri
from edgevlm.inputs.images import load_image, read_image_size
from edgevlm.options import GenerationOptions

MAX_FRAME_BYTES = 4 * 2**20
"""Of a frame's JPEG file."""

MAX_FRAME_PIXELS = 4096 * 2160

JPEG = "data:image/jpeg;base64,"
"""How a frame begins as it is sent."""

MAX_CHOICES = 50

QUESTION = "What is in the picture?"

ANSWER = """\
<div class="edgevlm live">
  <div class="answer" aria-live="polite"></div>
  <div class="quiet age"></div>
  <div class="shares"></div>
</div>"""

HISTORY = """\
<section class="edgevlm live-history">
  <div class="live-head"><h2></h2><button type="button"></button></div>
  <p class="quiet"></p>
  <ol></ol>
</section>"""


@dataclass(frozen=True)
class Frame:
    """A frame and what is asked about it."""

    pixels: NDArray[np.uint8]
    """``[height, width, 3]``, RGB."""
    question: str
    choices: tuple[str, ...]
    model: str | None
    """Its label; None for the first one."""


@dataclass
class Look:
    """A frame that is being answered."""

    model: str | None
    text: str = ""
    """So much of the answer as there is."""
    stopped: threading.Event = field(default_factory=threading.Event)


class Watch:
    """Answers about the frames of all pages, at most one at a time for each; for use from many threads.

    Args:
        options: of every answer; unused where there are choices.
    """

    def __init__(self, models: Models, options: GenerationOptions) -> None:
        self._models = models
        self._options: GenerationOptions = {**options, "cache_images": False}
        self._looks: dict[str, Look] = {}
        self._lock = threading.Lock()

    def answer(self, page: str, frame: Frame) -> dict[str, Any] | None:
        """What the model says of a frame; None if it was stopped before.

        Returns:
            ``answer``: its text; ``choices``: each with its share, from 0 to 1; ``boxes`` that the answer
            points at, each as the fields of `edgevlm.demo.boxes.Box`.

        Raises:
            EdgeVLMError: whatever the model says against it.
        """
        look = Look(frame.model)
        with self._lock:
            earlier = self._looks.get(page)
            self._looks[page] = look
        if earlier is not None:
            earlier.stopped.set()
        try:
            return self._answer(frame, look)
        finally:
            with self._lock:
                if self._looks.get(page) is look:
                    del self._looks[page]

    def look_of(self, page: str) -> Look | None:
        """The frame of this page that is being answered."""
        with self._lock:
            return self._looks.get(page)

    def stop(self, page: str) -> None:
        """End the answer that is being made for a page, within a token; do nothing if there is none."""
        look = self.look_of(page)
        if look is not None:
            look.stopped.set()

    def _answer(self, frame: Frame, look: Look) -> dict[str, Any] | None:
        with self._models.lease(frame.model) as loaded:
            if look.stopped.is_set():
                return None
            if frame.choices:
                scores = loaded.vlm.score(
                    frame.pixels,
                    frame.question,
                    frame.choices,
                    detail=self._options.get("detail"),
                    cache_images=False,
                )
                likeliest = max(scores, key=lambda score: score.logprob)
                shares = [[score.text, score.probability] for score in scores]
                return {"answer": likeliest.text, "choices": shares, "boxes": []}
            stream = loaded.vlm.stream(frame.pixels, frame.question, **self._options)
            with closing(stream) as chunks:
                for chunk in chunks:
                    look.text += chunk.text
                    if look.stopped.is_set():
                        return None
            usage = loaded.vlm.manifest.usage
            found = boxes(look.text, usage.boxes if usage else None)
            return {"answer": look.text, "choices": [], "boxes": [asdict(box) for box in found]}


def frame_of(sent: Mapping[str, Any], request: gr.Request | None = None) -> Frame:
    """A frame as a browser sends it, checked.

    Args:
        sent: ``image``, a JPEG as a data URI; ``question``; ``choices``, separated by commas; ``model``, its
            label.
        request: has the language of what is said against it.

    Raises:
        InputError: no question; a single choice, too many, or one that is there twice.
        ImageError: not a JPEG, too large, or broken.
    """
    question, listed, image = (_text(sent, name) for name in ("question", "choices", "image"))
    if not question.strip():
        raise InputError(say(request, "The question is empty. Write one."))
    choices = choices_of(listed)
    twice = next((choice for choice in choices if choices.count(choice) > 1), None)
    if twice is not None:
        raise InputError(
            say(request, "“{choice}” is there twice among the choices. Remove one.", choice=twice)
        )
    if len(choices) == 1:
        raise InputError(
            say(request, "One choice is none. Add others after a comma, or leave the field empty.")
        )
    if len(choices) > MAX_CHOICES:
        raise InputError(
            say(
                request,
                "There are {count} choices, more than {limit}. Remove some.",
                count=len(choices),
                limit=MAX_CHOICES,
            )
        )
    return Frame(_pixels(image, request), question, choices, _text(sent, "model") or None)


def _text(sent: Mapping[str, Any], name: str) -> str:
    """A field, empty if it is missing or no text."""
    value = sent.get(name)
    return value if isinstance(value, str) else ""


def _pixels(image: str, request: gr.Request | None) -> NDArray[np.uint8]:
    if len(image) > MAX_FRAME_BYTES * 4 / 3 + 100:  # base64
        raise ImageError(
            say(
                request,
                "The frame has more than {limit} MB. Choose a lower resolution.",
                limit=MAX_FRAME_BYTES // 2**20,
            )
        )
    data = decode_data_uri(image) if image.startswith(JPEG) else b""
    if not data.startswith(b"\xff\xd8\xff"):
        raise ImageError(say(request, "The frame is not a JPEG picture."))
    width, height = read_image_size(data)
    if width * height > MAX_FRAME_PIXELS:
        raise ImageError(
            say(
                request,
                "The frame has {width} × {height} pixels, more than {limit} million. "
                "Choose a lower resolution.",
                width=width,
                height=height,
                limit=MAX_FRAME_PIXELS // 10**6,
            )
        )
    return load_image(data)


def choices_of(text: str) -> tuple[str, ...]:
    """What stands between the commas, without what is empty."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def build(
    page: gr.Blocks, models: Models, chosen: gr.State, options: GenerationOptions
) -> list[Any]:
    """Lay out the tab and connect it; arguments as in `edgevlm.demo.chat.build`.

    Returns:
        What a person sets, for `edgevlm.demo.settings.remember`.
    """
    watch = Watch(models, options)

    def look(sent: Any, request: gr.Request) -> dict[str, Any]:
        """The answer, or ``problem`` in words, or ``stopped``."""
        try:
            answer = watch.answer(str(sent.get("page")), frame_of(sent, request))
        except EdgeVLMError as error:
            return {"problem": readable(error)}
        except Exception as error:  # the page is told what is wrong, and the camera goes on
            return {"problem": readable(repr(error))}
        return answer or {"stopped": True}

    def progress(name: Any) -> dict[str, Any]:
        """Of the answer that is being made: its text, and whether its model is still loaded."""
        found = watch.look_of(str(name))
        if found is None:
            return {"text": "", "loading": False}
        loaded = found.model is None or models.is_loaded(found.model)
        return {"text": found.text, "loading": not loaded}

    def leave(name: Any) -> None:
        watch.stop(str(name))

    def of_this_page(model: str | None, request: gr.Request) -> dict[str, Any]:
        return {"page": session_of(request), "model": model}

    def left(request: gr.Request) -> None:
        watch.stop(session_of(request))

    with gr.Row():
        with gr.Column(min_width=300):
            view = camera("live-camera", "live", (look, progress, leave))
            gr.HTML(html_template=ANSWER, js_on_load=None, elem_id="live")
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
            gr.HTML(html_template=HISTORY, js_on_load=None, elem_id="live-history")
    gr.on([page.load, chosen.change], of_this_page, [chosen], [view], **LATEST)
    page.unload(left)
    return [question, choices, changes]
