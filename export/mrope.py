"""M-RoPE and deepstack of Qwen's vision-language models, as llama.cpp computes them.

With M-RoPE a position has three numbers: time, line and column. Each pair of dimensions of a head is rotated
by one of them. With deepstack the first layers of the language model add further features of an image to
their output.
"""

from __future__ import annotations

from gguf import GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.text_settings import positive, rope_parameters, rotary_size

DEFAULT_SECTIONS = {
    "paddleocr_vl_text": [16, 24, 24],
    "qwen2_vl_text": [16, 24, 24],
    "qwen2_5_vl_text": [16, 24, 24],
    "qwen3_vl_text": [24, 20, 20],
    "qwen3_5_text": [11, 11, 10],
}
"""What transformers takes for a missing ``mrope_section``, by the ``model_type`` of the language model."""
MAX_UNROTATED_ANGLE = 0.5
"""Largest angle of a pair that llama.cpp does not rotate, in radians over the context; 0.11 in Qwen3-VL."""


def mrope_sections(text: PretrainedConfig) -> list[int]:
    """Return how many pairs of each head are rotated by time, by line and by column.

    Raises:
        ExportError: the configuration has no three numbers that sum to all pairs of a head.
    """
    default = DEFAULT_SECTIONS.get(text.model_type)
    sections = rope_parameters(text).get("mrope_section", default)
    pairs = rotary_size(text) // 2
    sizes = list(sections) if isinstance(sections, (list, tuple)) else []
    natural = all(type(size) is int and size >= 0 for size in sizes)
    if len(sizes) != 3 or not natural or sum(sizes) != pairs:
        raise ExportError(
            f"mrope_section is {sections!r} in config.json; it must be three numbers that sum to {pairs}, "
            f"half of the dimensions of a head that are rotated"
        )
    return sizes


def check_interleaved(text: PretrainedConfig) -> None:
    """Check M-RoPE's sections, whose pairs alternate: time, line, column, time.

    Where a section has no pair left, transformers rotates by time, and llama.cpp does not rotate.
    """
    sections = mrope_sections(text)
    pairs = sum(sections)
    unrotated = [pair for pair in range(pairs) if pair >= 3 * sections[pair % 3]]
    if not unrotated:
        return
    theta = positive("rope_theta", rope_parameters(text).get("rope_theta"))
    angle = text.max_position_embeddings * theta ** (-unrotated[0] / pairs)
    if angle > MAX_UNROTATED_ANGLE:
        raise ExportError(
            f"mrope_section is {sections}: llama.cpp does not rotate pair {unrotated[0]} of each head, "
            f"transformers rotates it by up to {angle:.3g} radians; edgevlm exports models with at most "
            f"{MAX_UNROTATED_ANGLE}"
        )


def write_mrope(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write M-RoPE's sections. The fourth one is for vision encoders."""
    writer.add_rope_dimension_sections([*mrope_sections(config.get_text_config()), 0])


def write_qwen3vl(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write M-RoPE's sections and the number of layers that deepstack features are added to.

    Raises:
        ExportError: the last layer is one of them; llama.cpp adds to layers before the last.
    """
    write_mrope(writer, config)
    layers, count = config.get_text_config().num_hidden_layers, deepstack_layers(config)
    if count >= layers:
        raise ExportError(
            f"deepstack_visual_indexes has {count} entries, the language model {layers} layers; llama.cpp "
            f"adds deepstack features to layers before the last"
        )
    writer.add_num_deepstack_layers(count)


def deepstack_layers(config: PretrainedConfig) -> int:
    """Return how many layers of the language model add features of the vision tower to their output."""
    vision = getattr(config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def input_width(config: PretrainedConfig) -> int:
    """Return the width of llama.cpp's input embeddings: a feature, and one for each deepstack layer."""
    return int(config.get_text_config().hidden_size) * (1 + deepstack_layers(config))
