"""What `edgevlm.runtimes.llama_cpp.guard` runs in a child process: it may crash, and that is the answer.

::

    python -m edgevlm.runtimes.llama_cpp.probe library extra-bufts|no-extra-bufts
    python -m edgevlm.runtimes.llama_cpp.probe gpu all-layers
    python -m edgevlm.runtimes.llama_cpp.probe file PATH

``library`` decodes with a tiny random Llama of each kind of weights (f16, q8_0, q4_0, q4_k), whose rows are
wide enough for the AMX and the repacked kernels; ``gpu`` does so with all layers on the GPU; ``file`` loads
a GGUF file, tokenizes and decodes one token.
Exit status 0 is well, `guard.REFUSED` an error with its message on stderr, anything else a crash.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from edgevlm.errors import EdgeVLMError, LoadError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.guard import REFUSED
from edgevlm.runtimes.llama_cpp.library import library
from edgevlm.runtimes.protocols import Sampling

WIDTH = 256
"""Smallest row that k-quants take; a multiple of what AMX's and the repacked kernels need."""

PROMPT_LENGTH = 40
"""More than 32 entries, so that batched kernels run, and a rest that is no multiple of their blocks."""

SAMPLE = "".join(
    map(chr, [*range(1, 128), *range(0x80, 0x800, 0x41), *range(0x800, 0x110000, 0x4321)])
)
"""Text with each lead byte of UTF-8, so that a vocabulary without some byte shows it."""


class UnguardedDecoder(LlamaCppDecoder):
    """Loads without asking the guard, whose question is being answered here."""

    extra_buffer_types = True

    def _ask_guard(self) -> bool:
        return self.extra_buffer_types

    def _ask_guard_of_gpu(self) -> None:
        pass


class PlainDecoder(UnguardedDecoder):
    extra_buffer_types = False


def try_library(decoder_class: type[UnguardedDecoder], folder: Path, gpu_layers: int = 0) -> None:
    """Decode a batch and single tokens with each kind of weights.

    Args:
        folder: where models are written; they stay in memory if it cannot be written to (Linux only).
        gpu_layers: as of `LlamaCppDecoder`.
    """
    llama = library()
    source = _new_file(folder, "probe-f16.gguf")
    write_model(source)
    paths = [source]
    for name in ("Q8_0", "Q4_0", "Q4_K_M"):
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{name}")
        parameters.nthread = 1
        paths.append(_new_file(folder, f"probe-{name}.gguf"))
        status = llama.llama_model_quantize(
            str(source).encode(), str(paths[-1]).encode(), parameters
        )
        if status:
            raise LoadError(f"llama.cpp cannot quantize to {name} (status {status})")
    for path in paths:
        decoder = decoder_class(
            path, context_length=2 * PROMPT_LENGTH, threads=1, gpu_layers=gpu_layers
        )
        prompt = np.arange(PROMPT_LENGTH, dtype=np.int32)
        decoder.decode_tokens(prompt.tolist(), prompt, logits=True)
        sampler = decoder.sampler(Sampling())
        for position in range(PROMPT_LENGTH, PROMPT_LENGTH + 3):
            decoder.decode_tokens([sampler.sample()], np.array([position], np.int32), logits=True)
        sampler.close()
        decoder.close()


def _new_file(folder: Path, name: str) -> Path:
    if os.access(folder, os.W_OK):
        return folder / name
    return Path(f"/proc/self/fd/{os.memfd_create(name)}")


def try_file(path: Path) -> None:
    """Load, tokenize and decode one token."""
    decoder = PlainDecoder(path, context_length=1, threads=1)
    decoder.tokenize(SAMPLE)
    decoder.decode_tokens([0], np.zeros(1, np.int32), logits=True)
    decoder.close()


def write_model(path: Path) -> None:
    """A random Llama of one layer with byte tokens, f16, 1.2 MB."""
    import gguf

    generator = np.random.default_rng(0)
    heads, vocabulary = 4, WIDTH
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<0x{byte:02X}>" for byte in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([int(gguf.TokenType.BYTE)] * vocabulary)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in ("token_embd", "output", *(f"blk.0.{name}" for name in layer)):
        weights = generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    subject, detail = arguments
    try:
        if subject == "gpu":
            try_library(UnguardedDecoder, Path.cwd(), gpu_layers=-1)
        elif subject == "library":
            plain = detail == "no-extra-bufts"
            try_library(PlainDecoder if plain else UnguardedDecoder, Path.cwd())
        else:
            try_file(Path(detail))
    except EdgeVLMError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
