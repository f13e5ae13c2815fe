"""Answers as values: the part of `VLM` that returns typed values, choices, boxes and points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from edgevlm.boxes import Box, Point
from edgevlm.bundle import Bundle
from edgevlm.cancellation import CancelSignal
from edgevlm.choice_calibration import scale_logprobs
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import InputError
from edgevlm.inputs.images import ImageSource
from edgevlm.inputs.tiling import Detail
from edgevlm.inputs.videos import Video
from edgevlm.locations import location_question
from edgevlm.manifest import FileEntry
from edgevlm.options import ExtractOptions, Generation, GenerationOptions
from edgevlm.results import Answer, Choice, ChoiceScore

if TYPE_CHECKING:
    from typing_extensions import Unpack
from edgevlm.questions import Questions

LOCATE_MAX_TOKENS = 1024
"""Limit of an answer of `VLM.detect` and `VLM.point` in tokens, or less where the context is shorter."""

Value = TypeVar("Value")


class Values(Questions):
    """The methods of `VLM` that answer with values."""

    _bundle: Bundle
    _vision_file: FileEntry
    _decoder_file: FileEntry

    @overload
    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: type[Value],
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Value: ...

    @overload
    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: Any,
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Any: ...

    def extract(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        answer_type: Any,
        *,
        system: str | None = None,
        **options: Unpack[ExtractOptions],
    ) -> Any:
        """Answer a question with a value of a type.

        The answer is a JSON text that keeps to the JSON schema of the type. The model sees the question, and
        the names of fields as it writes them; it does not see the schema.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            answer_type: a pydantic model, dataclass, TypedDict, Enum, Literal or any other type that
                pydantic's ``TypeAdapter`` takes; or a JSON schema as a mapping.
            system: as in `ask`.
            options: fields of `Generation`, without ``json_schema``, ``stop`` and ``top_logprobs``.

        Returns:
            A value of the type; for a JSON schema what ``json.loads`` returns.

        Raises:
            InputError: the type has no JSON schema that an answer can be kept to. The message names the place
                in the schema. No image was loaded.
            IncompleteAnswerError: ``max_tokens`` or ``within`` ended the answer.
            DeadlineError: the time that ``within`` allows is over before the first token.
            AnswerError: a validator of the type refuses the value.
            ImageError, PromptError, ContextError: as `ask`.
            MissingDependencyError: the extra ``typed`` is not installed.
        """
        from edgevlm.typed_answers import answer_format

        unknown = ", ".join(options.keys() - ExtractOptions.__annotations__.keys())
        if unknown:
            raise InputError(f"extract takes no {unknown}; use ask with json_schema")
        wanted = answer_format(answer_type)
        answer = self.ask(images, question, system=system, json_schema=wanted.schema, **options)
        return wanted.value(answer)

    def detect(
        self,
        image: ImageSource,
        thing: str,
        *,
        language: str = "en",
        **options: Unpack[GenerationOptions],
    ) -> list[Box]:
        """Find the boxes of a thing on an image.

        The question is that of the task ``detect`` in the manifest (`edgevlm inspect` shows it), and the
        answer is that of `ask`, at most `LOCATE_MAX_TOKENS` tokens long.

        Args:
            image: an `ImageSource`.
            thing: the name of the thing without an article, such as ``red key``.
            language: language of the name, such as ``en``.
            options: fields of `Generation`.

        Returns:
            The boxes in the order of the answer, each with its probability and with a label: that of the
            model, or else `thing`. Empty if the model finds none.

        Raises:
            InputError: the model writes no boxes, or has no question in this language.
            ImageError, PromptError, ContextError: as `ask`.
        """
        answer = self._locate("detect", image, thing, language, options)
        return [dataclasses.replace(box, label=box.label or thing) for box in answer.boxes]

    def point(
        self,
        image: ImageSource,
        thing: str,
        *,
        language: str = "en",
        **options: Unpack[GenerationOptions],
    ) -> list[Point]:
        """Find points on a thing on an image; arguments as of `detect`.

        Returns:
            The points in the order of the answer, with probability and label as of `detect`.

        Raises:
            InputError: the model writes no points, or has no question in this language. Of a model that
                writes boxes, take `Box.center`.
            ImageError, PromptError, ContextError: as `ask`.
        """
        answer = self._locate("point", image, thing, language, options)
        return [dataclasses.replace(point, label=point.label or thing) for point in answer.points]

    def _locate(
        self,
        task: Literal["detect", "point"],
        image: ImageSource,
        thing: str,
        language: str,
        options: GenerationOptions,
    ) -> Answer:
        """Ask for boxes or points, with the probabilities of the tokens."""
        question = location_question(task, self._bundle.manifest.usage, thing, language)
        all_options: GenerationOptions = {
            "max_tokens": LOCATE_MAX_TOKENS,
            "cap_max_tokens": True,
            "top_logprobs": 0,
            **options,
        }
        return self.ask([image], question, **all_options)

    def score(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        choices: Sequence[str],
        *,
        system: str | None = None,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
        cache_images: bool = True,
        within: float | None = None,
    ) -> list[ChoiceScore]:
        """Return the probability that the model gives to each of several answers.

        The probability of a choice is the product of the probabilities of its tokens and of the end of the
        answer, at temperature 1 and without filters. Those with and without a space before the choice are
        added. The tokens are those of the model's own tokenizer; other spellings do not count.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            system: as in `ask`.
            detail: as in `Generation`.
            max_image_tokens: as in `Generation`.
            cache_images: as in `Generation`.
            within: seconds that the call may take, as in `Generation`; there are no scores of some choices.
            choices: at least one text; each is not empty and occurs once.

        Returns:
            One score for each choice, in the same order.

        Raises:
            InputError: there is no choice, or a choice is empty or occurs twice.
            ImageError, PromptError: as `ask`.
            ContextError: the prompt and the longest choice together are longer than the context.
            DeadlineError: the time that ``within`` allows is over before all choices have their score.
        """
        generation = Generation(
            detail=detail,
            max_image_tokens=max_image_tokens,
            cache_images=cache_images,
            within=within,
        )
        return self._score(images, question, choices, system, generation)

    def _score(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        choices: Sequence[str],
        system: str | None,
        generation: Generation,
        cancel: CancelSignal | None = None,
    ) -> list[ChoiceScore]:
        """Score answers; arguments and errors as of `score`, and `cancel` stops it."""
        watch = Stopwatch()
        check_choices(choices)
        messages, processed, generation = self._read_request(
            images, question, system, generation, watch, decodes=False
        )
        return self._engine.score(messages, processed, choices, generation, watch, cancel=cancel)

    def choose(
        self,
        images: ImageSource | Iterable[ImageSource] | Video | None,
        question: str,
        choices: Sequence[str],
        *,
        system: str | None = None,
        detail: Detail | None = None,
        max_image_tokens: int | None = None,
        cache_images: bool = True,
        within: float | None = None,
    ) -> Choice:
        """Choose one of several answers, with the probability of each.

        The probability of a choice is that of `score`, given that the model answers with one of the choices:
        the product over the tokens of the choice and the end of the answer, divided by the sum over all
        choices. There is no other correction for length. A longer choice loses nothing for tokens that are
        certain after those before them. If `edgevlm calibrate` measured a temperature for the loaded files,
        the log-probabilities are divided by it first.

        Args:
            images: as in `ask`.
            question: as in `ask`.
            choices: at least two texts, worded as the model would answer; they differ in more than white
                space around them.
            system: as in `ask`.
            detail: as in `Generation`.
            max_image_tokens: as in `Generation`.
            cache_images: as in `Generation`.
            within: as in `score`.

        Raises:
            InputError, ImageError, PromptError, ContextError, DeadlineError: as `score`.
        """
        if not isinstance(choices, str) and len(choices) == 1:
            raise InputError(f"choices must be at least two texts, is {choices!r}")
        scores = self.score(
            images,
            question,
            choices,
            system=system,
            detail=detail,
            max_image_tokens=max_image_tokens,
            cache_images=cache_images,
            within=within,
        )
        return self._choice(scores)

    def _choice(self, scores: Sequence[ChoiceScore]) -> Choice:
        """Return the most probable of several answers."""
        measured = self._bundle.choice_calibration.find(self._vision_file, self._decoder_file)
        temperature = 1.0 if measured is None else measured.temperature
        logprobs = np.array([score.logprob for score in scores])
        probabilities = np.exp(scale_logprobs(logprobs, temperature)).tolist()
        best, second = sorted(range(len(scores)), key=lambda index: -probabilities[index])[:2]
        return Choice(
            label=scores[best].text,
            probabilities={
                score.text: probability
                for score, probability in zip(scores, probabilities, strict=True)
            },
            margin=probabilities[best] - probabilities[second],
            calibrated=measured is not None,
        )


def check_choices(choices: Sequence[str]) -> None:
    """Check texts of which one is chosen.

    Raises:
        InputError: there is none, one is empty, or two differ only in white space around them.
    """
    if (
        isinstance(choices, str)
        or not choices
        or not all(isinstance(text, str) and text.strip() for text in choices)
    ):
        raise InputError(f"choices must be several texts, none of them empty, is {choices!r}")
    if len({text.strip() for text in choices}) < len(choices):
        raise InputError(
            f"choices must differ in more than white space around them, are {choices!r}"
        )
