"""Peers of the comparison: edgevlm, llama.cpp with and without images, OpenVINO GenAI, transformers.

Each class runs in a `Worker` and imports its libraries there, so that its memory is its own. All times are in
seconds and are measured in the worker.
"""

from __future__ import annotations

import base64
import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm import Detail
from edgevlm.results import Stats
from edgevlm.runtimes import system

Message = tuple[str, Sequence[Path], str]
"""Role, image files and text."""


@dataclass(frozen=True)
class TimedAnswer:
    """An answer, and the time to its first token."""

    first_token: float
    """Seconds from the request, with the images in files, to the first token."""
    text: str
    stats: Stats | None = None
    """Time by phase; None if the peer does not report it."""
    processor: float = 0.0
    """Seconds of processor time of the whole answer, all threads together."""


class Memory:
    """A peer that reports the peak memory of its worker."""

    def peak_memory(self) -> int | None:
        return system.peak_memory()


class EdgeVLM(Memory):
    """This project."""

    def __init__(self, bundle: Path, threads: int, **options: Any) -> None:
        from edgevlm import VLM

        self._open = lambda: VLM.from_pretrained(bundle, threads=threads, **options)
        self._vlm = self._open()

    def load(self) -> float:
        """Seconds to open the model once more, its files in the page cache."""
        start = time.perf_counter()
        vlm = self._open()
        seconds = time.perf_counter() - start
        vlm.close()
        return seconds

    def device(self) -> str:
        return f"vision {self._vlm.vision_device}, decoder {self._vlm.decoder_device}"

    def embeddings(
        self, image: NDArray[np.uint8], detail: Detail = "low"
    ) -> tuple[float, NDArray[np.float32]]:
        """Return seconds for one image, and its embeddings ``[tokens, width]``.

        Args:
            image: uint8 ``[height, width, 3]``.
            detail: ``low``: one tile.
        """
        start = time.perf_counter()
        found = self._vlm.encode_image(image, detail=detail)
        return time.perf_counter() - start, found

    def answer(self, turns: Sequence[Message], tokens: int, **options: Any) -> TimedAnswer:
        messages = [
            {
                "role": role,
                "content": [
                    *({"type": "image", "image": str(image)} for image in images),
                    {"type": "text", "text": text},
                ],
            }
            for role, images, text in turns
        ]
        begun = time.process_time()
        answer = self._vlm.generate(messages, max_tokens=tokens, **options)
        processor = time.process_time() - begun
        stats = answer.stats
        return TimedAnswer(stats.first_token_ms / 1000, answer.text, stats, processor)


class Multimodal(Memory):
    """llama.cpp's own multimodal stack, through llama-cpp-python's chat handler.

    Args:
        decoder: the GGUF file of the language model.
        projector: the mmproj file.
        threads: number of threads.
        context_length: positions of the context.
        flash_attention: flash attention in both. llama-cpp-python leaves it off unless asked.
    """

    def __init__(
        self,
        decoder: Path,
        projector: Path,
        threads: int,
        context_length: int,
        flash_attention: bool = False,
    ) -> None:
        self._open = lambda: self._make(
            projector,
            model_path=str(decoder),
            n_ctx=context_length,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attention,
        )
        self._llama, self._handler = self._open()

    def _make(self, projector: Path, **options: Any) -> tuple[Any, Any]:
        import llama_cpp
        from llama_cpp import mtmd_cpp
        from llama_cpp.llama_chat_format import MTMDChatHandler

        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        for set_log in (mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
            set_log(self._quiet, ctypes.c_void_p(0))
        handler = MTMDChatHandler(clip_model_path=str(projector), verbose=False, use_gpu=False)
        llama = llama_cpp.Llama(chat_handler=handler, verbose=False, **options)
        handler._init_mtmd_context(llama)  # otherwise the first question does it
        return llama, handler

    def load(self) -> float:
        """Seconds to open the model once more, its files in the page cache."""
        start = time.perf_counter()
        llama, _ = self._open()
        seconds = time.perf_counter() - start
        llama.close()  # and the handler's context with it
        return seconds

    def embeddings(self, image: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Return seconds for the last slice of an image, which is the whole image, and its embeddings."""
        import llama_cpp
        from llama_cpp import mtmd_cpp as mtmd

        context = self._handler.mtmd_ctx
        height, width, _ = image.shape
        pixels = np.ascontiguousarray(image)
        bitmap = mtmd.mtmd_bitmap_init(
            width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        )
        spelled = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text()
        text.text, text.text_len, text.add_special, text.parse_special = (
            spelled,
            len(spelled),
            False,
            True,
        )
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        failed = mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1)
        if failed:
            raise RuntimeError(f"mtmd_tokenize: {failed}")
        count = mtmd.mtmd_input_chunks_size(chunks)
        every = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(count)]
        whole = [
            chunk
            for chunk in every
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        ][-1]
        start = time.perf_counter()
        failed = mtmd.mtmd_encode_chunk(context, whole)
        seconds = time.perf_counter() - start
        if failed:
            raise RuntimeError(f"mtmd_encode_chunk: {failed}")
        tokens = mtmd.mtmd_input_chunk_get_n_tokens(whole)
        # With features of inner layers (deepstack) wider than the decoder.
        wide = llama_cpp.llama_model_n_embd_inp(self._llama.model)
        out = mtmd.mtmd_get_output_embd(context)
        found = np.ctypeslib.as_array(out, shape=(tokens * wide,)).reshape(tokens, wide).copy()
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return seconds, found

    def answer(self, turns: Sequence[Message], tokens: int) -> TimedAnswer:
        start, begun = time.perf_counter(), time.process_time()
        messages = [
            {
                "role": role,
                "content": [
                    *({"type": "image_url", "image_url": _data_uri(file)} for file in images),
                    {"type": "text", "text": text},
                ],
            }
            for role, images, text in turns
        ]
        stream = self._llama.create_chat_completion(
            messages, max_tokens=tokens, temperature=0.0, repeat_penalty=1.0, stream=True
        )
        deltas = (chunk["choices"][0]["delta"] for chunk in stream)
        first_token, text = 0.0, ""
        for delta in deltas:
            if delta.get("content"):
                first_token = first_token or time.perf_counter() - start
                text += delta["content"]
        first_token = first_token or time.perf_counter() - start
        return TimedAnswer(first_token, text, processor=time.process_time() - begun)


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


class BareLoop(Memory):
    """`llama_decode` alone, without sampling, with the given settings of llama.cpp.

    Args:
        decoder: the GGUF file.
        threads: number of threads.
        context_length: positions of the context.
        flash_attention: ``AUTO``, ``ENABLED`` or ``DISABLED``.
        cache_type: type of keys and values, ``F16`` or ``Q8_0``.
        batch_length: tokens per batch.
    """

    def __init__(
        self,
        decoder: Path,
        threads: int,
        context_length: int,
        flash_attention: str,
        cache_type: str = "F16",
        batch_length: int = 512,
    ) -> None:
        import llama_cpp

        self._llama = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self._quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(decoder).encode(), llama_cpp.llama_model_default_params()
        )
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context_length
        parameters.n_batch = parameters.n_ubatch = batch_length
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{flash_attention}")
        cache = getattr(llama_cpp, f"GGML_TYPE_{cache_type}")
        parameters.type_k = parameters.type_v = cache
        self._batch_length = batch_length
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"no context with {flash_attention} and {cache_type}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._tokens = np.random.default_rng(0).integers(
            3, llama_cpp.llama_vocab_n_tokens(vocabulary) - 3, context_length, np.int32
        )

    def rates(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Return positions per second of a prefill of `prompt` tokens, and tokens per second after it."""
        llama = self._llama
        memory = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, True)
        start = time.perf_counter()
        for at in range(0, prompt, self._batch_length):
            self._decode(self._tokens[at : min(at + self._batch_length, prompt)])
        prefilled = time.perf_counter()
        for at in range(prompt, prompt + tokens):
            self._decode(self._tokens[at : at + 1])
        end = time.perf_counter()
        return prompt / (prefilled - start), tokens / (end - prefilled)

    def embedding_rate(self, count: int) -> float:
        """Positions per second of a prefill of so many embeddings."""
        llama = self._llama
        width = llama.llama_model_n_embd(self._model)
        rows = np.random.default_rng(0).standard_normal((count, width), np.float32)
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        batch = llama.llama_batch_init(self._batch_length, width, 1)
        start = time.perf_counter()
        for at in range(0, count, self._batch_length):
            part = rows[at : at + self._batch_length]
            ctypes.memmove(batch.embd, part.ctypes.data, part.nbytes)
            batch.n_tokens = len(part)
            for i in range(len(part)):
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = at + i, 1, 0
                batch.logits[i] = at + i == count - 1
            if llama.llama_decode(self._context, batch):
                raise RuntimeError("llama_decode failed")
            llama.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        llama.llama_batch_free(batch)
        return count / seconds

    def _decode(self, tokens: NDArray[np.int32]) -> None:
        pointer = np.ascontiguousarray(tokens).ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch = self._llama.llama_batch_get_one(pointer, len(tokens))
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        self._llama.llama_synchronize(self._context)


class OurDecoder(Memory):
    """edgevlm's decoder alone, with greedy sampling."""

    def __init__(self, decoder: Path, threads: int, context_length: int) -> None:
        from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder

        self._decoder = LlamaCppDecoder(decoder, context_length=context_length, threads=threads)

    def rates(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Return rates as `BareLoop.rates` does; each token is chosen from the logits."""
        from edgevlm.benchmark import decoder_rates

        return decoder_rates(self._decoder, prompt, tokens)

    def embedding_rate(self, count: int) -> float:
        """Positions per second of a prefill of so many embeddings."""
        from edgevlm.runtimes.protocols import Place

        decoder = self._decoder
        decoder.truncate(Place())
        rows = np.random.default_rng(0).standard_normal((count, decoder.width), np.float32)
        start = time.perf_counter()
        decoder.decode_embeddings(rows, np.arange(count, dtype=np.int32), logits=True)
        return count / (time.perf_counter() - start)


class OpenVinoGenAI(Memory):
    """OpenVINO GenAI with the same GGUF file."""

    def __init__(self, decoder: Path, threads: int) -> None:
        import openvino
        import openvino_genai

        self._genai, self._openvino = openvino_genai, openvino
        self._pipeline = openvino_genai.LLMPipeline(
            str(decoder), "CPU", {"INFERENCE_NUM_THREADS": threads}
        )

    def rates(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Return rates as `BareLoop.rates` does."""
        ids = np.random.default_rng(0).integers(3, 40_000, (1, prompt), np.int64)
        config = self._genai.GenerationConfig(
            max_new_tokens=tokens, ignore_eos=True, do_sample=False
        )
        inputs = self._genai.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids))
        )
        measured = self._pipeline.generate(inputs, config).perf_metrics
        prefill = prompt / (measured.get_ttft().mean / 1000)
        return prefill, 1000 / measured.get_tpot().mean


class Transformers(Memory):
    """The checkpoint in transformers, on the CPU.

    Args:
        checkpoint: the checkpoint's folder.
        threads: number of threads.
        dtype: ``float32`` or ``bfloat16``.
    """

    def __init__(self, checkpoint: Path, threads: int, dtype: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype)
        ).eval()

    def embeddings(self, tile: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Return seconds for one tile, and its embeddings ``[tokens, width]``."""
        torch = self._torch
        pixels = torch.from_numpy(tile).permute(2, 0, 1)[None, None].float() / 127.5 - 1
        start = time.perf_counter()
        with torch.inference_mode():
            found = self._model.model.get_image_features(pixels.to(self._model.dtype))
        seconds = time.perf_counter() - start
        rows = torch.cat(list(found.pooler_output)).float()
        return seconds, rows.reshape(-1, rows.shape[-1]).numpy()
