"""The decoder of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevlm.manifest.files import FileEntry
from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class OnnxDecoderSpec:
    """The decoder in ONNX graphs, with the vocabulary and the embeddings, which a GGUF file holds itself.

    `edgevlm.runtimes.onnx.decoder_graph` has the inputs and outputs of a graph.
    """

    files: dict[str, FileEntry]
    """The graph of each precision (``fp32``, ``fp16``, ``int8``, ``int4``), without weights; at least one."""
    weights: dict[str, FileEntry]
    """The file that each graph reads its weights from, as external data under this name."""
    tokenizer: FileEntry
    """The vocabulary, a ``tokenizer.json`` of Hugging Face's tokenizers, for pieces of plain text."""
    embeddings: FileEntry
    """The embedding table, a ``.npy`` file of float16 or float32 ``[vocabulary, width of the table]``."""
    window: int | None
    """Entries that layers with a sliding window see, the entry itself included; null without such layers."""
    layer_embeddings: FileEntry | None = None
    """What each layer adds to an entry by its token (Gemma 4), a ``.npy`` file of float16 or float32
    ``[vocabulary + 1, width of all layers]``. The last row is that of entries that are no tokens, such as
    images. null: the layers have no embeddings of their own."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.files), "files", self.files, "must not be empty")
        require(
            self.files.keys() == self.weights.keys(),
            "weights",
            sorted(self.weights),
            f"must have the precisions of files, {sorted(self.files)}",
        )
        require(
            self.window is None or self.window > 0,
            "window",
            self.window,
            "must be positive or null",
        )

    def entries(self) -> list[FileEntry]:
        """Return all files."""
        return [*self.files.values(), *self.weights.values(), *self.shared()]

    def shared(self) -> list[FileEntry]:
        """Return the files that all graphs need."""
        layers = [] if self.layer_embeddings is None else [self.layer_embeddings]
        return [self.tokenizer, self.embeddings, *layers]


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder, a language model in GGUF files that stock llama.cpp loads, in ONNX graphs, or both."""

    architecture: str
    """``general.architecture`` of a GGUF file; ``model_type`` in transformers if llama.cpp does not have the
    language model. For information only."""
    width: int
    """Number of values in one embedding; positive."""
    vocabulary_size: int
    """Number of tokens in the vocabulary; positive."""
    context_length: int
    """Number of positions that the checkpoint was trained for; positive."""
    attention: Literal["causal", "prefix", "images", "cross"]
    """``causal``: each position attends to the earlier ones. ``prefix``: all positions of the prompt, of
    images and text, attend to each other, and the answer is causal. ``images``: the positions of one span of
    an image attend to each other, too, and all else is causal. ``cross``: causal; images are not in the
    sequence, and layers with cross-attention look at them."""
    positions: Literal["sequential", "grid"]
    """Numbering of positions. ``sequential``: each entry takes the next number. With M-RoPE these are three
    equal numbers (MiniCPM-V 4.6). ``grid``: a position has three numbers (M-RoPE): time, line and
    column. Those of a text are equal. The embeddings of an image begin at the next number and count their
    lines and columns from there. So an image takes as many positions as the longer side of its grid, and the
    text after it goes on from there."""
    embedding_scale: float
    """Factor that the output of the vision graph is multiplied by before the decoder; positive. It is 1 for
    most families. Gemma's decoder in llama.cpp multiplies its input by sqrt(width), and images need the
    inverse."""
    text_embedding_scale: float | None
    """Factor for rows of the embedding table, for texts that are decoded as embeddings, together with images;
    null: texts must be decoded as tokens, since llama.cpp treats both differently (Gemma 3)."""
    files: dict[str, FileEntry]
    """The GGUF file of each llama.cpp type (``f16``, ``q8_0``, ``q4_0``, ``q4_k_m``, ...); empty only with
    `onnx`. ``mixed4``: the exporter chose a type for each matrix, with 4 to 5 bits per weight in all."""
    onnx: OnnxDecoderSpec | None = None
    """The decoder for ONNX Runtime; null: there is none. Embeddings have the same scale in both."""

    def check(self) -> None:
        """Check the values."""
        for name in ("width", "vocabulary_size", "context_length"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.embedding_scale > 0, "embedding_scale", self.embedding_scale, "must be positive"
        )
        require(
            self.text_embedding_scale is None or self.text_embedding_scale > 0,
            "text_embedding_scale",
            self.text_embedding_scale,
            "must be positive or null",
        )
        require(
            self.attention != "prefix" or self.text_embedding_scale is not None,
            "text_embedding_scale",
            self.text_embedding_scale,
            "must be a number for prefix attention, which decodes text as embeddings",
        )
        require(
            self.onnx is None
            or self.onnx.layer_embeddings is None
            or self.text_embedding_scale is None,
            "text_embedding_scale",
            self.text_embedding_scale,
            "must be null with onnx.layer_embeddings, which the tokens of a text choose",
        )
        require(
            self.attention != "cross" or not self.files,
            "files",
            sorted(self.files),
            "must be empty for cross-attention, which llama.cpp does not have",
        )
        require(
            not self.files.keys() & self.graphs.keys(),
            "onnx.files",
            sorted(self.graphs),
            "must have other names than decoder.files",
        )
        require(
            bool(self.files) or self.onnx is not None,
            "files",
            self.files,
            "must not be empty without decoder.onnx",
        )

    @property
    def graphs(self) -> dict[str, FileEntry]:
        """The ONNX graph of each precision; empty without `onnx`."""
        return {} if self.onnx is None else self.onnx.files

    @property
    def choices(self) -> dict[str, FileEntry]:
        """The GGUF file of each type, then the ONNX graph of each precision."""
        return self.files | self.graphs

    @property
    def weight_files(self) -> dict[str, FileEntry]:
        """The file with the weights of each of `choices`; that of a graph is beside the graph."""
        return self.files | ({} if self.onnx is None else self.onnx.weights)

    def needed(self, chosen: FileEntry) -> list[FileEntry]:
        """Return all files that one of `choices` needs, itself first."""
        if self.onnx is None or chosen not in self.onnx.files.values():
            return [chosen]
        precision = next(name for name, one in self.onnx.files.items() if one == chosen)
        return [chosen, self.onnx.weights[precision], *self.onnx.shared()]

    def entries(self) -> list[FileEntry]:
        """Return all files."""
        return [*self.files.values(), *(self.onnx.entries() if self.onnx else ())]
