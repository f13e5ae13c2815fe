"""Rotary scaling (YaRN) and attention temperature of Ministral 3, as llama.cpp computes them."""

from __future__ import annotations

import gguf
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.text_settings import positive, rope_parameters

FIXED = {"mscale": 1, "mscale_all_dim": 1, "attention_factor": None, "truncate": True}
"""Settings of YaRN whose values llama.cpp fixes, or takes for granted."""
DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""What transformers takes for settings that are not there."""


def check_ministral3(text: PretrainedConfig) -> None:
    """Check the settings of YaRN that llama.cpp does not read.

    Raises:
        ExportError: a setting has another value.
    """
    rope = DEFAULTS | dict(rope_parameters(text))
    for name, value in FIXED.items():
        if rope.get(name) != value:
            raise ExportError(
                f"{name} in rope_parameters is {rope.get(name)!r}, llama.cpp computes Ministral 3 with "
                f"{value!r}"
            )


def write_ministral3(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Write the rotary scaling, and the temperature by which queries grow with their position."""
    rope = DEFAULTS | dict(rope_parameters(config.get_text_config()))

    def read(name: str) -> int | float:
        return positive(f"{name} in rope_parameters", rope.get(name))

    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(read("factor"))
    writer.add_rope_scaling_orig_ctx_len(int(read("original_max_position_embeddings")))
    writer.add_rope_scaling_yarn_beta_fast(read("beta_fast"))
    writer.add_rope_scaling_yarn_beta_slow(read("beta_slow"))
    writer.add_rope_scaling_yarn_log_mul(read("mscale_all_dim"))
    writer.add_attn_temperature_scale(read("llama_4_scaling_beta"))
