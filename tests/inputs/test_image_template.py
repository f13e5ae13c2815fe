"""Images in prompts: placeholder, image template, image token and begin tokens.

A character is a token here, so that prompts can be read.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgevlm.errors import BundleError
from edgevlm.inputs.prompt import PromptBuilder, TextSegment
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import PromptSpec, SpecialToken

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}<end>"
)
SPECIAL = {"<bos>": 1, "<end>": 2, "<start_of_image>": 3, "<end_of_image>": 4, "<soft>": 5}
GEMMA_3 = PromptSpec(
    chat_template=TEMPLATE,
    template_variables={"bos_token": "<bos>"},
    image_placeholder="<start_of_image>",
    image_template="\n<start_of_image>{{ image }}<end_of_image>\n",
    image_token="<soft>",
    special_tokens=tuple(SpecialToken(text, token) for text, token in SPECIAL.items()),
    end_token_ids=(2,),
    begin_token_ids=(),
    normalization=None,
    space_prefix="never",
)
"""The placeholder is no image token, as in Gemma 3."""
ONE_TILE = (Layout(9, 9), 1)


def changed(**fields: Any) -> PromptSpec:
    return PromptSpec(**{**vars(GEMMA_3), **fields})


def tokenize(text: str) -> list[int]:
    return [1000 + ord(character) for character in text]


def shown(token: int) -> str:
    names = {number: name for name, number in SPECIAL.items()}
    return names[token] if token in names else f"#{token}" if token < 1000 else chr(token - 1000)


def written(spec: PromptSpec, *parts: str | tuple[Layout, int], **settings: Any) -> str:
    """Return a prompt as text, with ``[image.span]`` in the place of each span."""
    images = [part for part in parts if not isinstance(part, str)]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    segments = PromptBuilder(spec, tokenize).build(
        [{"role": "user", "content": content}], images, **settings
    )
    return "".join(
        "".join(map(shown, segment.token_ids))
        if isinstance(segment, TextSegment)
        else f"[{segment.image}.{segment.span}]"
        for segment in segments
    )


def test_the_image_template_takes_the_place_of_the_placeholder() -> None:
    image = "\n<start_of_image>[0.0]<end_of_image>\n"
    assert written(GEMMA_3, ONE_TILE, "What?") == f"<bos>{image}What?<end>"
    assert written(GEMMA_3, "See ", ONE_TILE, ": what?") == f"<bos>See {image}: what?<end>"
    other = image.replace("0.0", "1.0")
    assert written(GEMMA_3, ONE_TILE, ONE_TILE, "?") == f"<bos>{image}{other}?<end>"
    assert written(GEMMA_3, "What?") == "<bos>What?<end>"


@pytest.mark.parametrize(
    "text", [*SPECIAL, "<<soft>soft>", "<start_of_image><soft>", "{{ image }}"]
)
def test_a_user_can_write_neither_placeholder_nor_image_token(text: str) -> None:
    """Each character of the text is a token of its own."""
    builder = PromptBuilder(GEMMA_3, tokenize)
    message = {"role": "user", "content": text}
    (segment,) = builder.build([message], [])
    assert segment == TextSegment((1, *tokenize(text), 2))
    found = written(GEMMA_3, text, ONE_TILE, text)
    assert found == f"<bos>{text}\n<start_of_image>[0.0]<end_of_image>\n{text}<end>"


@pytest.mark.parametrize(
    "text", ["IMAGE", "<hole>", "IMAGE<hole>IMAGE", "<<hole>hole>", "IMAIMAGEGE"]
)
def test_placeholder_and_image_token_need_be_no_special_tokens(text: str) -> None:
    spec = changed(
        chat_template=TEMPLATE.replace("<start_of_image>", "IMAGE"),
        image_placeholder="IMAGE",
        image_template="({{ image }})",
        image_token="<hole>",
    )
    assert written(spec, ONE_TILE, text) == f"<bos>([0.0]){text}<end>"
    assert written(spec, text, ONE_TILE) == f"<bos>{text}([0.0])<end>"
    (segment,) = PromptBuilder(spec, tokenize).build([{"role": "user", "content": text}], [])
    assert segment == TextSegment((1, *tokenize(text), 2))


def test_the_image_template_knows_the_layout() -> None:
    spec = changed(
        image_template="{{ rows }}x{{ columns }}={{ tiles }}"
        "{% for tile in range(tiles) %} {{ tile }}{{ image }}{% endfor %}"
    )
    grid = Layout(9, 9, 1, 2, overview=0), 3
    assert written(spec, grid) == "<bos>1x2=3 0[0.0] 1[0.1] 2[0.2]<end>"
    assert written(spec, ONE_TILE, grid) == "<bos>0x0=1 0[0.0]1x2=3 0[1.0] 1[1.1] 2[1.2]<end>"


def test_the_image_template_knows_the_number_of_the_image() -> None:
    spec = changed(image_template="{{ index }}{{ image }}")
    assert written(spec, ONE_TILE, "What?", ONE_TILE) == "<bos>0[0.0]What?1[1.0]<end>"


def test_spaces_and_line_ends_of_the_image_template_are_kept() -> None:
    text = "\n {% if tiles %}\n{{ image }} \n{% endif %}\n\n"
    found = written(changed(image_template=text), ONE_TILE)
    assert found == "<bos>\n \n[0.0] \n\n\n<end>"


@pytest.mark.parametrize(
    ("template", "image", "message"),
    [
        ("<start_of_image>", ONE_TILE, "writes 0 places for embeddings of .*, the packing makes 1"),
        ("{{ imgae }}", ONE_TILE, "writes 0 places"),
        ("{{ image }}{{ image }}", ONE_TILE, "writes 2 places"),
        ("{{ image }}", (Layout(9, 9, 1, 2), 2), "writes 1 places .*, the packing makes 2"),
        ("{{ image }}<soft>", ONE_TILE, "writes 2 places"),
        ("{{ image }}{{ 1 / rows }}", ONE_TILE, "fails for Layout.*ZeroDivisionError"),
        ("{{ image }}{{ image.nothing.at_all }}", ONE_TILE, "fails for Layout.*UndefinedError"),
        ("{{ image }}{{ image + 1 }}", ONE_TILE, "fails for Layout.*TypeError"),
        ("{{ image }}{{ range(10 ** 12) }}", ONE_TILE, "fails for Layout.*OverflowError"),
        ("{{ image }}{{ image.__class__.__mro__ }}", ONE_TILE, "fails for Layout.*SecurityError"),
    ],
)
def test_an_image_template_that_does_not_fit_is_named(
    template: str, image: tuple[Layout, int], message: str
) -> None:
    with pytest.raises(BundleError, match=f"manifest.prompt.image_template: {message}"):
        written(changed(image_template=template), image)


@pytest.mark.parametrize(
    "template", ["{{ image", "{% for %}", "{% if tiles %}", "{{ image | magic }}"]
)
@pytest.mark.parametrize("field", ["image_template", "chat_template"])
def test_what_is_no_template_is_named(template: str, field: str) -> None:
    with pytest.raises(BundleError, match=f"manifest.prompt.{field}: not a valid template"):
        PromptBuilder(changed(**{field: template}), tokenize)


def test_a_chat_template_that_writes_the_image_token_is_named() -> None:
    spec = changed(chat_template="<soft>" + TEMPLATE)
    with pytest.raises(BundleError, match=r"manifest.prompt.chat_template: .*'<soft>'"):
        written(spec, "What?")
    with pytest.raises(BundleError, match=r"manifest.prompt.chat_template: .*'<soft>'"):
        written(spec, ONE_TILE, "What?")


# --- begin tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "template", "expected"),
    [
        ((1,), TEMPLATE, "<bos>What?<end>"),
        ((1,), TEMPLATE.replace("{{ bos_token }}", ""), "<bos>What?<end>"),
        ((1,), "{{ bos_token }}" + TEMPLATE, "<bos><bos>What?<end>"),  # the template's own
        ((1, 9), TEMPLATE, "<bos>#9<bos>What?<end>"),
        ((9, 1), TEMPLATE, "#9<bos><bos>What?<end>"),
        ((), TEMPLATE.replace("{{ bos_token }}", ""), "What?<end>"),
    ],
)
def test_begin_tokens_are_added_once(begin: tuple[int, ...], template: str, expected: str) -> None:
    assert written(changed(chat_template=template, begin_token_ids=begin), "What?") == expected


def test_begin_tokens_stand_before_an_image() -> None:
    spec = changed(
        chat_template=TEMPLATE.replace("{{ bos_token }}", ""),
        image_template="{{ image }}",
        begin_token_ids=(1,),
    )
    assert written(spec, ONE_TILE, "What?") == "<bos>[0.0]What?<end>"
    assert written(spec, ONE_TILE, ONE_TILE) == "<bos>[0.0][1.0]<end>"


def test_a_text_like_the_begin_token_is_no_begin_token() -> None:
    spec = changed(chat_template=TEMPLATE.replace("{{ bos_token }}", ""), begin_token_ids=(1,))
    (segment,) = PromptBuilder(spec, tokenize).build([{"role": "user", "content": "<bos>a"}], [])
    assert segment == TextSegment((1, *tokenize("<bos>a"), 2))
