"""The program that `edgevlm.runtimes.llama_cpp.guard` runs in a child process. A crash is a valid result.

::

    python -m edgevlm.runtimes.llama_cpp.probe library extra-bufts|no-extra-bufts
    python -m edgevlm.runtimes.llama_cpp.probe gpu all-layers
    python -m edgevlm.runtimes.llama_cpp.probe file PATH

``library`` decodes with a tiny random Llama in each type of weights (f16, q8_0, q4_0, q4_k). Its rows are
wide enough for the AMX and the repacked kernels. ``gpu`` does the same with all layers on the GPU. ``file``
loads a GGUF file, tokenizes a text and decodes one token.

Exit status 0 means success, `guard.EXIT_REFUSED` an error with its message on stderr, anything else a crash.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from edgevlm.errors import EdgeVLMError, LoadError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.guard import EXIT_REFUSED
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.protocols import Sampling

WIDTH = 256
"""Width of an embedding: the block of k-quants, and a multiple of what the AMX and repacked kernels need."""

PROMPT_LENGTH = 40
"""Tokens of the prompt: over 32, so that batched kernels run, and no multiple of their blocks."""

SAMPLE = "".join(
    map(chr, [*range(1, 128), *range(0x80, 0x800, 0x41), *range(0x800, 0x110000, 0x4321)])
)
"""Text with each lead byte of UTF-8. A vocabulary that lacks one of them fails on it."""


class UncheckedDecoder(LlamaCppDecoder):
    """A decoder that does not start a child process to check this build first."""

    extra_buffer_types = True
    """Result of the check that is left out."""

    def _check_build(self) -> bool:
        return self.extra_buffer_types

    def _check_gpu(self) -> None:
        pass


class BasicKernelsDecoder(UncheckedDecoder):
    """A decoder without llama.cpp's repacked and AMX kernels."""

    extra_buffer_types = False


def try_library(decoder_class: type[UncheckedDecoder], folder: Path, gpu_layers: int = 0) -> None:
    """Decode a batch and single tokens with each type of weights.

    Args:
        decoder_class: the decoder to try.
        folder: folder for the models. If it cannot be written to, they stay in memory (Linux only).
        gpu_layers: as of `LlamaCppDecoder`.

    Raises:
        LoadError: llama.cpp cannot quantize or load a model.
    """
    llama = load_llama_cpp()
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
    """Load a GGUF file, tokenize a text and decode one token."""
    decoder = BasicKernelsDecoder(path, context_length=1, threads=1)
    decoder.tokenize(SAMPLE)
    decoder.decode_tokens([0], np.zeros(1, np.int32), logits=True)
    decoder.close()


def write_model(path: Path) -> None:
    """Write a random Llama of one layer with byte tokens, in f16, 1.2 MB."""
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
    """Run the probe as the module's docstring says, and return the exit status."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    subject, detail = arguments
    try:
        if subject == "gpu":
            try_library(UncheckedDecoder, Path.cwd(), gpu_layers=-1)
        elif subject == "library":
            basic = detail == "no-extra-bufts"
            try_library(BasicKernelsDecoder if basic else UncheckedDecoder, Path.cwd())
        else:
            try_file(Path(detail))
    except EdgeVLMError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
