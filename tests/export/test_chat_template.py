"""Which of several chat templates is taken, that it renders as in transformers, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Idefics3Processor, SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.errors import ExportError
from edgevlm.export.chat_template import find_chat_template
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.plan import make_plan
from edgevlm.inputs.prompt import PromptBuilder, TextSegment
from edgevlm.inputs.tiling import Layout
from tests.support import checkpoints
from tests.support.damage import change_json

JINJA = "chat_template.jinja"
NAMED = "additional_chat_templates"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.smolvlm(tmp_path_factory.mktemp("pristine") / "checkpoint")
    (folder / JINJA).unlink()
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


def put(folder: Path, place: str, source: Any) -> None:
    """A template in one of the places where one may stand."""
    if place.endswith(".json"):
        change_json(folder / place, chat_template=source)
    else:
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(source, encoding="utf-8")


def transformers_template(folder: Path) -> str | None:
    """What transformers renders messages with: its processor's template, else its tokenizer's."""
    settings, _ = Idefics3Processor.get_processor_dict(folder)
    processor = Idefics3Processor(
        SmolVLMImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder, config=SmolVLMConfig()),
        chat_template=settings.get("chat_template"),
    )
    if processor.chat_template is not None:
        return processor._resolve_chat_template(None)  # type: ignore[no-any-return]  # untyped
    try:
        return processor.tokenizer.get_chat_template()  # type: ignore[no-any-return]  # untyped
    except ValueError:
        return None


LISTED = [
    {"name": "tool_use", "template": "tools"},
    {"name": "default", "template": "listed"},
]
PLACES: dict[str, dict[str, Any]] = {
    "a file": {JINJA: "file"},
    "the old file": {"chat_template.json": "old"},
    "the processor": {"processor_config.json": "processor"},
    "the tokenizer": {"tokenizer_config.json": "tokenizer"},
    "a list": {"tokenizer_config.json": LISTED},
    "names": {"processor_config.json": {"default": "named", "rag": "rag"}},
    "the old file with names": {"chat_template.json": {"default": "named", "rag": "rag"}},
    "a folder beside the file": {JINJA: "file", f"{NAMED}/tool_use.jinja": "tools"},
    "the default in the folder": {f"{NAMED}/default.jinja": "inside"},
    "the default in both": {JINJA: "file", f"{NAMED}/default.jinja": "inside"},
    "file and tokenizer": {JINJA: "file", "tokenizer_config.json": "tokenizer"},
    "file and list": {JINJA: "file", "tokenizer_config.json": LISTED},
    "file and old file": {JINJA: "file", "chat_template.json": "old"},
    "file and processor": {JINJA: "file", "processor_config.json": "processor"},
    "old file and processor": {"chat_template.json": "old", "processor_config.json": "processor"},
    "old file and tokenizer": {"chat_template.json": "old", "tokenizer_config.json": "tokenizer"},
    "all": {
        JINJA: "file",
        "chat_template.json": "old",
        "processor_config.json": "processor",
        "tokenizer_config.json": "tokenizer",
    },
    "nothing": {},
}


# transformers leaves the files in the folder of templates open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_transformers_choice(folder: Path, places: dict[str, Any]) -> None:
    for place, source in places.items():
        put(folder, place, source)
    found = find_chat_template(Checkpoint.open(folder))
    assert (found.source if found else None) == transformers_template(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no default in a list": ({"tokenizer_config.json": LISTED[:1]}, "templates tool_use, and none"),
    "no default in a folder": (
        {f"{NAMED}/rag.jinja": "x"},
        "templates rag, and none called default",
    ),
    "an empty list": (
        {"tokenizer_config.json": []},
        r"templates \(none\), and none called default",
    ),
    "a number": ({"tokenizer_config.json": 7}, "neither a text nor a list of texts with names"),
    "a list of texts": ({"tokenizer_config.json": ["x"]}, "neither a text nor a list of texts"),
    "a list without texts": ({"processor_config.json": [{"name": "default"}]}, "neither a text"),
    "the old file and a folder": (
        {"chat_template.json": "old", f"{NAMED}/rag.jinja": "x"},
        "which transformers does not take together",
    ),
}


@pytest.mark.parametrize(("places", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_choice_that_transformers_cannot_make(
    folder: Path, places: dict[str, Any], message: str
) -> None:
    for place, source in places.items():
        put(folder, place, source)
    with pytest.raises(ExportError, match=message):
        make_plan(Checkpoint.open(folder))


def test_another_encoding_is_named(folder: Path) -> None:
    (folder / JINJA).write_bytes("é".encode("latin-1"))
    with pytest.raises(
        ExportError, match=r"cannot read .*chat_template\.jinja: .*; save it as UTF-8"
    ):
        make_plan(Checkpoint.open(folder))


LOOP = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TEXT_ONLY = {
    "joined": "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}",
    "written": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "trimmed": "{% for message in messages %}{{ message.content | trim }}{% endfor %}",
    "called": "{% for message in messages %}{{ message.content.strip() }}{% endfor %}",
    "tested": (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}{{ raise_exception('text only') }}{% endif %}{% endfor %}"
    ),
    "cut": "{% for message in messages %}{{ message.content.split('</think>')[-1] }}{% endfor %}",
    "parts of text": (
        "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}"
        "{% endfor %}"
    ),
    "divided": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("source", TEXT_ONLY.values(), ids=TEXT_ONLY.keys())
def test_a_template_for_text_alone_is_refused(folder: Path, source: str) -> None:
    put(folder, "tokenizer_config.json", source)
    with pytest.raises(ExportError, match="cannot write a question about an image") as error:
        make_plan(Checkpoint.open(folder))
    message = str(error.value)
    assert "tokenizer_config.json" in message and "writes <image> for an image" in message
    assert "\n" not in message


def test_a_template_that_loses_the_question_is_refused(folder: Path) -> None:
    put(folder, JINJA, "{% for message in messages %}<image>{% endfor %}")
    with pytest.raises(ExportError, match="leaves out the text of a question"):
        make_plan(Checkpoint.open(folder))


def test_what_is_no_template_is_refused(folder: Path) -> None:
    put(folder, JINJA, "{% for message in %}")
    with pytest.raises(
        ExportError, match=r"chat_template\.jinja is not valid Jinja: Expected an expr"
    ):
        make_plan(Checkpoint.open(folder))


ANSWER = "{% generation %}" + LOOP + "<end_of_utterance>{% endgeneration %}"
RENDERED = {
    "generation": (
        "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}\n"
        "    {%- generation -%}\n"
        + LOOP
        + "{%- endgeneration -%}{% else %}"
        + LOOP
        + "{% endif %}\n"
        "{% endfor %}"
    ),
    "generation on lines of its own": (
        "{% for message in messages %}\n{{ message['role'] }}\n{% if message['role'] == 'assistant' %}\n"
        "{% generation %}\n"
        + LOOP
        + "\n{% endgeneration %}\n{% else %}\n"
        + LOOP
        + "\n{% endif %}\n"
        "{% endfor %}"
    ),
    "names inside generation": (
        "{% set seen = 'before' %}{% for message in messages %}" + LOOP + "{% generation %}"
        "{% set seen = 'inside' %}{{ seen }}{{ loop.index }}{% endgeneration %}{{ seen }}{% endfor %}"
    ),
    "generation in a namespace": (
        "{% set all = namespace(n=0) %}{% for message in messages %}{% generation %}"
        + LOOP
        + "{% set all.n = all.n + 1 %}{% endgeneration %}{% endfor %}{{ all.n }}"
    ),
    "no tools": (
        "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}"
        "{% for message in messages %}" + LOOP + "{% endfor %}{{ tools is defined }}"
    ),
    "JSON": (
        "{% for message in messages %}" + LOOP + "{% endfor %}"
        "{{ {'b': 'é<', 'a': [1]} | tojson(sort_keys=true, separators=(',', ':')) }}"
        "{{ {'b': 'é'} | tojson(ensure_ascii=true, indent=2) }}"
    ),
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat, perhaps."}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]


@pytest.mark.parametrize("source", RENDERED.values(), ids=RENDERED.keys())
def test_rendered_as_in_transformers(folder: Path, source: str) -> None:
    """The tokens of the whole conversation, by transformers' processor and here."""
    put(folder, JINJA, source)
    plan = make_plan(Checkpoint.open(folder))
    expected = plan.processor.apply_chat_template(
        MESSAGES, chat_template=source, add_generation_prompt=True
    )
    texts: list[str] = []

    def tokenize(text: str) -> list[int]:
        texts.append(text)
        ids: list[int] = plan.processor.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    segments = PromptBuilder(plan.prompt, tokenize).build(MESSAGES, [(Layout(64, 64), 1)])
    before, after = expected.split("<image>")
    start, end = "<fake_token_around_image><global-img>", "<fake_token_around_image>"
    ids = [
        token
        for segment in segments
        if isinstance(segment, TextSegment)
        for token in segment.token_ids
    ]
    wanted = plan.processor.tokenizer(
        [before + start, end + after], add_special_tokens=False
    ).input_ids
    assert ids == wanted[0] + wanted[1]
    assert json.dumps(expected)  # a text, not transformers' batch
