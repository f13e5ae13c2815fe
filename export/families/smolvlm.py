"""SmolVLM2: the design of Idefics3 under its own ``model_type``, and videos."""

from __future__ import annotations

import dataclasses
import functools

from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMVisionEmbeddings,
    SmolVLMVisionTransformer,
)

from edgevlm.export.families import idefics3
from edgevlm.export.videos import FamilyVideo, read_smolvlm
from edgevlm.export.vision_parts import BucketedPositions

NUMBERS = (
    "{% set small = 'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen'.split() %}"
    "{% set tens = '- - twenty thirty forty fifty sixty seventy eighty ninety'.split() %}"
    "{% macro words(n) %}{% if n < 20 %}{{ small[n] }}"
    "{% elif n < 100 %}{{ tens[n // 10] }}{% if n % 10 %}-{{ small[n % 10] }}{% endif %}"
    "{% elif n < 1000 %}{{ small[n // 100] }} hundred{% if n % 100 %} and {{ words(n % 100) }}{% endif %}"
    "{% else %}{{ words(n // 1000) }} thousand{% if n % 1000 %}"
    "{{ ' and ' if n % 1000 < 100 else ', ' }}{{ words(n % 1000) }}{% endif %}{% endif %}{% endmacro %}"
)
"""English number words up to a million, as of num2words."""
VIDEO_TEMPLATE = (
    f"{NUMBERS}You are provided the following series of {{{{ words(frames) }}}} frames from a "
    "{% set whole = seconds | int %}{% set days = whole // 86400 %}"
    "{% if days %}{{ days }} day{{ 's' if days > 1 }}, {% endif %}"
    "{{ '%d:%02d:%02d' | format(whole // 3600 % 24, whole // 60 % 60, whole % 60) }} [H:MM:SS] video.\n"
    "{% for time in times %}\nFrame from {{ '%02d:%02d' | format(time // 60, time % 60) }}:"
    f"{idefics3.WHOLE}{{% endfor %}}\n\n"
)
"""``replace_video_token`` of ``processing_smolvlm.py``."""
VIDEO_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content is string %}{{ ': ' + message.content }}{% else %}"
    "{{ ':' if message.content[0].type == 'image' else ': ' }}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}{{ '<image>' }}"
    "{% elif part.type == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What transformers renders in place of the checkpoint's own template if there is a video."""


def with_videos(template: str) -> str:
    """Return a template that renders `VIDEO_CHAT_TEMPLATE` if there is a video, else the checkpoint's own."""
    return (
        "{% set found = namespace(video=false) %}{% for message in messages %}"
        "{% if message.content is not string %}{% for part in message.content %}"
        "{% if part.type == 'video' %}{% set found.video = true %}{% endif %}{% endfor %}{% endif %}"
        f"{{% endfor %}}{{% if found.video %}}{VIDEO_CHAT_TEMPLATE}{{% else %}}{template}{{% endif %}}"
    )


# SmolVLMProcessor adds video to Idefics3Processor and needs torchvision. For images both do the same, so the
# reference is Idefics3's.
FAMILY = dataclasses.replace(
    idefics3.FAMILY,
    vision=functools.partial(
        BucketedPositions,
        tower=SmolVLMVisionTransformer,
        embeddings=SmolVLMVisionEmbeddings,
        connector=SmolVLMConnector,
    ),
    image_processor="SmolVLMImageProcessor",
    video=FamilyVideo("<video>", VIDEO_TEMPLATE, read_smolvlm, with_videos),
)
