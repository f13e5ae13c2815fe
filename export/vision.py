"""Export tower, connector and projector to one ONNX graph, in fp32 and fp16.

The graph takes uint8 tiles ``[n, height, width, 3]``, rescales and normalizes them, and returns
float32 rows ``[n, rows, width]``, the embeddings and learned rows of each tile; n is dynamic, 1 to 64.
Height and width are dynamic, too, where images keep their own size, and channels where two frames of a video
become one tile. If the export fixes the size of images, no axis is dynamic, n is 1, and all that follows from
the size is constant.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from edgevlm.errors import ExportError
from edgevlm.export import onnx_file
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.export.half_weights import halve_weights
from edgevlm.export.messages import one_line
from edgevlm.export.weights import TensorEntry
from edgevlm.manifest import CanvasTiling, ImageSpec, OwnSizeTiling, Tiling
from edgevlm.runtimes.system import return_freed_memory

PRECISIONS = ("fp32", "fp16", "int8", "int4")
CALIBRATED = ("int8", "int4")
"""Precisions that photographs are needed for."""
INPUT_NAME = "tiles"
QUESTION_NAME = "question"
OUTPUT_NAME = "embeddings"
MAX_TILES = 64
EXAMPLE_GRID = (2, 3)
"""Lines and columns of embeddings of the tile with which a graph is traced whose tiles differ in size."""
EXAMPLE_QUESTION = 3
"""Tokens of the question with which a graph is traced that reads one."""
EXAMPLE_SQUARES = (2, 2)
"""Lines and columns of squares of the canvas with which a graph is traced that splits it."""
EXAMPLE_TOKENS = EXAMPLE_GRID[0] * EXAMPLE_GRID[1]
MEAN_SQUARE = ("ReduceMean", "Add", "Sqrt", "Reciprocal")
"""What follows the square in an RMS norm."""
OPSET = 20
"""The first operator set with GELU, which ONNX Runtime computes in one pass over memory."""


class VisionGraph(nn.Module):
    """The exported module: uint8 tiles to rows."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vision: nn.Module, image: ImageSpec, frames: int = 1) -> None:
        super().__init__()
        self.vision = vision
        self.frames = frames
        settings = image.normalization
        self.rescale_factor = settings.rescale_factor
        self.register_buffer("mean", torch.tensor(settings.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(3, 1, 1), persistent=False)

    def forward(self, tiles: torch.Tensor, *question: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for uint8 tiles ``[n, height, width, 3 * frames]``.

        Some vision parts also take the tokens of the question, int64 ``[1, n]``.
        """
        pixels = tiles.permute(0, 3, 1, 2).to(torch.float32) * self.rescale_factor
        if self.frames > 1:  # the first and the last one, which are the same in a tile of one
            pixels = torch.stack([pixels[:, :3], pixels[:, -3:]], dim=1)
            pixels = ((pixels - self.mean) / self.std).flatten(1, 2)
        else:
            pixels = (pixels - self.mean) / self.std
        embeddings: torch.Tensor = self.vision(pixels, *question)
        return embeddings


def example_question(family: Family) -> tuple[torch.Tensor, ...]:
    """Return the tokens of a question for a vision part that reads one; else nothing."""
    if family.question_tokens is None:
        return ()
    return (torch.zeros(1, EXAMPLE_QUESTION, dtype=torch.int64),)


def plan_vision(checkpoint: Checkpoint, family: Family) -> tuple[nn.Module, dict[str, TensorEntry]]:
    """Return the vision module in float32 with parameters of no memory, and the tensors of its parameters.

    Raises:
        ExportError: tensors are missing, unknown or of other shapes, or transformers refuses the settings.
    """
    try:
        with no_init_weights():
            vision = family.vision(checkpoint.config)
    except ExportError:
        raise
    except (
        Exception
    ) as error:  # whatever a configuration of contradictions makes transformers raise
        raise ExportError(
            f"transformers cannot build the vision part of {checkpoint.folder / 'config.json'}: "
            f"{one_line(error)}"
        ) from error
    vision = without_values(vision).eval()
    expected = {name: parameter.shape for name, parameter in vision.state_dict().items()}
    sources: dict[str, TensorEntry] = {}
    for entry in checkpoint.tensors.values():
        name = family.canonical_name(entry.name)
        part, _, _ = name.partition(".")
        if part not in ("tower", "connector", "learned"):
            continue
        shape = expected.pop(name, None)
        if shape is None and part == "learned":
            continue  # transformers ignores vectors that the model does not use
        if shape is None:
            raise ExportError(
                f"the checkpoint's vision part has a tensor {entry.name} that transformers' model of this "
                f"configuration lacks; the configuration does not fit the weights"
            )
        if shape != entry.shape:
            raise ExportError(
                f"{entry.name} has shape {list(entry.shape)}, the configuration asks for {list(shape)}"
            )
        sources[name] = entry
    if expected:
        raise ExportError(
            f"the checkpoint lacks {len(expected)} tensors of its vision part, such as "
            f"{min(expected)}; fetch the whole checkpoint"
        )
    return vision, sources


def without_values(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replace the parameters by fake tensors of a type, which have a shape but take no memory.

    Buffers, which are computed and not read, stay as they are, in float32.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            fake = mode.from_tensor(parameter.detach()).to(dtype)
            setattr(part, name, nn.Parameter(fake, requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(part, name, buffer.to(torch.float32))
    return module


def example_size(tiling: Tiling) -> tuple[int, int]:
    """Return height and width in pixels of a tile; if tiles differ in size, of one with `EXAMPLE_GRID`."""
    if isinstance(tiling, CanvasTiling):
        return EXAMPLE_SQUARES[0] * tiling.factor, EXAMPLE_SQUARES[1] * tiling.factor
    if isinstance(tiling, OwnSizeTiling):
        return EXAMPLE_GRID[0] * tiling.factor, EXAMPLE_GRID[1] * tiling.factor
    return tiling.tile_size


def rows_of_tile(
    vision: nn.Module, tile_size: tuple[int, int], *question: torch.Tensor
) -> tuple[int, int]:
    """Return the number of rows of one tile and their width, by a run of the module.

    Args:
        vision: the module; its weights do not matter.
        tile_size: height and width in pixels.
        question: as of `example_question`.

    Raises:
        ExportError: the module does not take tiles of this size.
    """
    try:
        with torch.no_grad():
            found = vision(torch.zeros(1, 3, *tile_size), *question)
    except Exception as error:  # whatever a module raises for a shape that it was not made for
        raise ExportError(
            f"the image processor makes tiles of {tile_size[1]} x {tile_size[0]} pixels, which the vision "
            f"part does not take ({one_line(error)}); preprocessor_config.json and config.json must agree"
        ) from error
    _, rows, width = found.shape
    return int(rows), int(width)


def export_fp32(
    checkpoint: Checkpoint,
    family: Family,
    image: ImageSpec,
    path: Path,
    *,
    frames: int = 1,
    fixed_shapes: bool = False,
) -> None:
    """Write the graph in float32. onnxscript's optimizer folds constants and removes unused nodes.

    The module is traced without values, since PyTorch keeps what it traced in memory. Then the graph takes
    the weights from the checkpoint, one at a time.

    Args:
        image: how images become tiles.
        path: the file to write.
        frames: frames of a video that one tile may have, 1 or 2.
        fixed_shapes: no axis is dynamic; n is 1.

    Raises:
        ExportError: as of `plan_vision`, or a value is not finite.
    """
    vision, sources = plan_vision(checkpoint, family)
    buffers = dict(vision.named_buffers())
    for name, entry in in_file_order(sources):
        tensor = checkpoint.read(entry.name)
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"{entry.name} has values that are not finite; the checkpoint is damaged"
            )
        if name in buffers:
            buffers[name].copy_(tensor)
    # An axis of length 1 cannot be dynamic, so its example has two tiles.
    count = 1 if fixed_shapes else 2
    example = torch.zeros(count, *example_size(image.tiling), 3 * frames, dtype=torch.uint8)
    axes: dict[str, Any] = {"tiles": {} if fixed_shapes else dynamic_axes(image.tiling, frames)}
    question = example_question(family)
    names = [INPUT_NAME]
    if question:
        assert family.question_tokens is not None
        longest = family.question_tokens(checkpoint.config)
        axes["question"] = ({1: torch.export.Dim("tokens", min=1, max=longest)},)
        names.append(QUESTION_NAME)
    with quiet():
        program = torch.onnx.export(
            VisionGraph(vision, image, frames).eval(),
            (example, *question),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[OUTPUT_NAME],
            dynamic_shapes=axes,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        weights = program.model.graph.initializers
        for name, entry in sources.items():
            if name not in buffers and (value := weights.get(f"vision.{name}")):
                value.const_value = lazy_weight(checkpoint, entry)
        program.optimize()
        if fixed_shapes:
            fold_geometry(program.model)
        # Each node carries the source lines that it came from, with the paths of the exporting machine.
        ClearMetadataAndDocStringPass()(program.model)
    if 4 * sum(entry.parameters for entry in sources.values()) > onnx_file.PROTOBUF_LIMIT:
        halve_weights(program.model)
    onnx_file.write_model(program.model, path)
    del program
    return_freed_memory()  # as much as the weights take, in pieces


def fold_geometry(model: onnx_ir.Model) -> None:
    """Compute all nodes whose inputs are constant, such as those of the positions of patches.

    The optimizer does this for small tensors only.
    """
    unlimited = 2**62
    while True:
        onnxscript.optimizer.fold_constants(
            model, input_size_limit=unlimited, output_size_limit=unlimited
        )
        RemoveUnusedNodesPass()(model)
        if not split_constants(model.graph):
            return


def split_constants(graph: onnx_ir.Graph) -> bool:
    """Replace each ``Split`` of a constant by constants; onnxscript folds nodes of one result only.

    Returns:
        True if there was one.
    """
    found = False
    for node in list(graph):
        value = node.inputs[0].const_value if node.op_type == "Split" and node.inputs[0] else None
        if value is None:
            continue
        parts = np.array_split(value.numpy(), len(node.outputs), node.attributes["axis"].as_int())
        for output, part in zip(node.outputs, parts, strict=True):
            assert output.shape == part.shape and output.name is not None
            constant = onnx_ir.val(f"{output.name}_constant", const_value=onnx_ir.tensor(part))
            graph.register_initializer(constant)
            output.replace_all_uses_with(constant)
        graph.remove(node, safe=True)
        found = True
    return found


def dynamic_axes(tiling: Tiling, frames: int) -> dict[int, Any]:
    """Return the axes of the input that are dynamic, for `torch.export`.

    Args:
        frames: frames of a video that one tile may have.
    """
    axes: dict[int, Any] = {0: torch.export.Dim("n", min=1, max=MAX_TILES)}
    if isinstance(tiling, OwnSizeTiling):
        axes[1] = tiling.factor * torch.export.Dim("lines", min=1)
        axes[2] = tiling.factor * torch.export.Dim("columns", min=1)
    if frames > 1:
        axes[3] = 3 * torch.export.Dim("frames", min=1, max=frames)
    return axes


def in_file_order(sources: dict[str, TensorEntry]) -> list[tuple[str, TensorEntry]]:
    """Return names and tensors, file by file."""
    return sorted(sources.items(), key=lambda item: (item[1].file, item[0]))


def lazy_weight(checkpoint: Checkpoint, entry: TensorEntry) -> onnx_ir.LazyTensor:
    """Return a float32 weight of a graph that is read from the checkpoint when its values are needed."""
    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(checkpoint.read(entry.name).float().numpy()),
        dtype=onnx_ir.DataType.FLOAT,
        shape=onnx_ir.Shape(entry.shape),
    )


def convert_fp16(source: Path, path: Path) -> None:
    """Convert to float16; preparation, norms, softmax and the output stay in float32.

    Raises:
        ExportError: the weights of `source` are in a second file.
    """
    if onnx_file.weights_path(source).exists():
        raise ExportError(
            "the weights of the vision graph in fp32 take more than the 2 GB of one ONNX file, and the "
            "converter to fp16 needs them in one; leave fp16 out of --vision"
        )
    model = onnx.load(source)
    # The converter infers types itself; it would treat a weight that is listed here as a float16 value.
    model.graph.ClearField("value_info")
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=["LayerNormalization", "Softmax"],
        node_block_list=preparation_nodes(model) + mean_square_nodes(model),
    )
    join_float32(converted)
    onnx.save(converted, path)


def join_float32(model: onnx.ModelProto) -> None:
    """Let each node in float32 take what another one computes as it is.

    The converter rounds values between two such nodes to float16 and back.
    """
    sources = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and node.input[0].endswith("_cast_to_fp16")
    }
    exact = {
        node.output[0]: sources[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.output[0].endswith("_cast_to_fp32")
        and node.input[0] in sources
    }
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    while unused := find_unused_casts(model):
        for node in unused:
            model.graph.node.remove(node)


def find_unused_casts(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the conversions of types whose results nothing takes."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Cast" and not used.intersection(node.output)
    ]


def preparation_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes before the first convolution or matrix product."""
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            break
        names.append(node.name)
    return names


def mean_square_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that compute the reciprocal of a root mean square, for RMS norms.

    The square of a value above 255 is more than float16 holds.
    """
    names: list[str] = []
    inside: set[str] = set()
    for node in model.graph.node:
        starts = node.op_type == "Pow"
        if starts or (node.input[0] in inside and node.op_type in MEAN_SQUARE):
            names.append(node.name)
            inside.update(node.output)
    return names


def output_shape(path: Path) -> tuple[int | None, int]:
    """Return the rows of one tile, None if they follow from its size, and their width.

    Raises:
        ExportError: ONNX Runtime cannot load the file.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise ExportError(f"ONNX Runtime cannot load the exported graph: {error}") from error
    _, rows, width = session.get_outputs()[0].shape
    return rows if isinstance(rows, int) else None, int(width)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress, warnings and advice of the exporters, which are not about the model."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
