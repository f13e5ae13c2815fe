"""The vision runtimes on small graphs, compared with NumPy."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import CancelledError, ClosedError, InputError, LoadError
from edgevlm.runtimes import devices, system
from edgevlm.runtimes.onnx import execution_providers
from edgevlm.runtimes.onnx import session as onnx_runtime
from edgevlm.runtimes.onnx.session import available_devices, first_provider
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.openvino import OpenVinoVision
from edgevlm.runtimes.protocols import VisionRuntime

Load = Callable[..., VisionRuntime]

SIDE, TOKENS, WIDTH = 8, 4, 5
TILE_VALUES = SIDE * SIDE * 3 // TOKENS


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((TILE_VALUES, WIDTH)).astype(np.float32)


def reference(tiles: NDArray[np.uint8], *, magnitude: bool = False) -> NDArray[np.float32]:
    """Return what the graph of `write_graph` computes, or the sum of magnitudes."""
    patches = tiles.reshape(len(tiles), TOKENS, TILE_VALUES).astype(np.float32)
    matrix = np.abs(weights()) if magnitude else weights()
    embeddings: NDArray[np.float32] = patches @ matrix / np.float32(255)
    return embeddings


def write_graph(
    path: Path,
    *,
    input_name: str = "tiles",
    output_name: str = "embeddings",
    input_type: int = TensorProto.UINT8,
    tiles_shape: tuple[str | int, ...] = ("n", SIDE, SIDE, 3),
) -> Path:
    """Tiles divided by 255, cut into tokens and multiplied by `weights`."""
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["patches"]),
        helper.make_node("MatMul", ["patches", "weights"], [output_name]),
    ]
    matrix = weights()
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info(input_name, input_type, tiles_shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["n", TOKENS, WIDTH])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [255.0]),
            helper.make_tensor("shape", TensorProto.INT64, [3], [-1, TOKENS, TILE_VALUES]),
            helper.make_tensor("weights", TensorProto.FLOAT, matrix.shape, matrix.ravel()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "vision.onnx")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[OnnxVision, OpenVinoVision], ids=["onnx", "openvino"])
def load(request: pytest.FixtureRequest) -> Callable[..., VisionRuntime]:
    """A function that opens a graph in one of the runtimes."""
    return functools.partial(request.param, input_name="tiles", output_name="embeddings")


def load_onnx(path: Path, **arguments: Any) -> OnnxVision:
    return OnnxVision(path, input_name="tiles", output_name="embeddings", **arguments)


def load_openvino(path: Path, **arguments: Any) -> OpenVinoVision:
    return OpenVinoVision(path, input_name="tiles", output_name="embeddings", **arguments)


def some_tiles(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def assert_encodes(vision: VisionRuntime, tiles: NDArray[np.uint8]) -> None:
    """Compare with NumPy, up to rounding: bfloat16 rounds tiles, scale, weights and result by up to 2**-9
    of each."""
    embeddings, expected = vision.encode(tiles), reference(tiles)
    assert embeddings.dtype == np.float32 and embeddings.shape == (len(tiles), TOKENS, WIDTH)
    if "bf16" not in vision.device:
        np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-5)
    else:
        assert (np.abs(embeddings - expected) <= 4 * 2**-9 * reference(tiles, magnitude=True)).all()


def test_encodes_any_number_of_tiles_as_numpy_does(graph: Path, load: Load) -> None:
    vision = load(graph)
    for count in [*range(1, 66), 130]:
        assert_encodes(vision, some_tiles(count))


def test_takes_tiles_that_are_not_contiguous(graph: Path, load: Load) -> None:
    tiles = some_tiles(6)[::-1, :, ::-1]
    assert not tiles.flags.c_contiguous
    assert_encodes(load(graph), tiles)


@pytest.mark.parametrize(
    "tiles",
    [
        some_tiles(2).astype(np.float32),
        some_tiles(2).astype(np.int8),
        some_tiles(2)[0],
        some_tiles(2)[:0],
        some_tiles(2)[:, :4],
        some_tiles(2).transpose(0, 3, 1, 2),
        some_tiles(2).tolist(),
        None,
    ],
    ids=["float", "int8", "one tile", "no tile", "too low", "channels first", "list", "None"],
)
def test_refuses_other_tiles(graph: Path, load: Load, tiles: NDArray[np.uint8]) -> None:
    vision = load(graph)
    with pytest.raises(InputError, match="tiles must"):
        vision.encode(tiles)
    assert_encodes(vision, some_tiles(1))


def test_refuses_files_that_are_no_graph(graph: Path, load: Load, tmp_path: Path) -> None:
    good = graph.read_bytes()
    contents = {
        "empty": b"",
        "text": b"this is no graph\n" * 50,
        "random": np.random.default_rng(0).bytes(5000),
        **{f"cut at {share}": good[: int(len(good) * share)] for share in (0.1, 0.3, 0.6, 0.9)},
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(LoadError, match="cannot load"):
            load(path)
    with pytest.raises(LoadError, match="no such file"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(LoadError, match="no such file"):
        load(tmp_path)


def test_refuses_graphs_with_other_inputs_and_outputs(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "vision.onnx"
    with pytest.raises(LoadError, match=r"'pixel_values'"):
        load(write_graph(path, input_name="pixel_values"))
    with pytest.raises(LoadError, match=r"'features'"):
        load(write_graph(path, output_name="features"))
    with pytest.raises(LoadError, match=r"must be uint8 .*is float32"):
        load(write_graph(path, input_type=TensorProto.FLOAT))
    with pytest.raises(LoadError, match="n dynamic or 1"):
        load(write_graph(path, tiles_shape=(4, SIDE, SIDE, 3)))
    with pytest.raises(LoadError, match="height and width both dynamic or both fixed"):
        load(write_graph(path, tiles_shape=("n", SIDE, "width", 3)))


def test_a_graph_for_one_tile_encodes_several(load: Load, tmp_path: Path) -> None:
    vision = load(write_graph(tmp_path / "vision.onnx", tiles_shape=(1, SIDE, SIDE, 3)))
    for count in (1, 2, 9):
        assert_encodes(vision, some_tiles(count))


def write_free_graph(path: Path) -> Path:
    """Tiles of any size: a row for each square of 2 x 2 pixels, with the sum of its red values."""
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["squares"], strides=[2, 2]),
        helper.make_node("Reshape", ["squares", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["embeddings"], perm=[0, 2, 1]),
    ]
    kernel = np.zeros((1, 3, 2, 2), np.float32)
    kernel[0, 0] = 1
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", "rows", 1])],
        [
            helper.make_tensor("kernel", TensorProto.FLOAT, kernel.shape, kernel.ravel()),
            helper.make_tensor("shape", TensorProto.INT64, [3], [0, 1, -1]),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def test_tiles_of_any_size(load: Load, tmp_path: Path) -> None:
    runtime = load(write_free_graph(tmp_path / "vision.onnx"))
    rng = np.random.default_rng(0)
    for height, width, count in ((2, 2, 1), (6, 4, 2), (2, 10, 1), (6, 4, 1)):
        tiles = rng.integers(0, 256, (count, height, width, 3), np.uint8)
        red = tiles[..., 0].reshape(count, height // 2, 2, width // 2, 2).sum((2, 4), np.float32)
        expected = red.reshape(count, -1, 1)
        # OpenVINO computes in bfloat16 where the CPU has it.
        np.testing.assert_allclose(runtime.encode(tiles), expected, rtol=2e-2)
    for shape in ((1, 4, 4, 1), (1, 0, 4, 3), (4, 4, 3)):
        with pytest.raises(InputError, match=r"must have shape \[\?, \?, \?, 3\]"):
            runtime.encode(np.zeros(shape, np.uint8))


def write_endless_graph(path: Path) -> Path:
    """Tiles to their first value, after one turn of a loop; after 10**12 turns if this value is not zero."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["before"], ["kept"]),
            helper.make_node("Add", ["sum", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("before", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("kept", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [0.0])],
    )
    nodes = [
        helper.make_node("Cast", ["tiles"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["values"]),
        helper.make_node("Gather", ["values", "zero"], ["first"]),
        helper.make_node("Mul", ["first", "many"], ["product"]),
        helper.make_node("Max", ["product", "single"], ["turns"]),
        helper.make_node("Cast", ["first"], ["start"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["start", "flat"], ["starts"]),
        helper.make_node("Loop", ["turns", "", "starts"], ["end"], body=body),
        helper.make_node("Reshape", ["end", "shape"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, 1, 1])],
        [
            helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("single", TensorProto.INT64, [], [1]),
            helper.make_tensor("many", TensorProto.INT64, [], [10**12]),
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, 1, 1]),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def test_a_run_that_would_never_end_is_cancelled(tmp_path: Path) -> None:
    """The session is as good as new then."""
    vision = load_onnx(write_endless_graph(tmp_path / "vision.onnx"), threads=1)
    tile = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    for _ in range(3):
        cancel = CancelSignal()
        timer = threading.Timer(0.02, cancel.cancel)
        timer.start()
        with pytest.raises(CancelledError, match="cancelled before its end"):
            vision.encode(tile + 1, cancel=cancel)
        timer.join()
        assert vision.encode(tile).tolist() == [[[0.0]]]


class Late(CancelSignal):
    """A signal that is cancelled right after its n-th check."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._checks = checks

    def check(self) -> None:
        super().check()
        self._checks -= 1
        if self._checks == 0:
            thread = threading.Thread(target=self.cancel)
            thread.start()
            thread.join()


def test_a_cancelled_graph_goes_on_as_before(graph: Path, load: Load) -> None:
    """The signal comes before the run, when it begins, or while it runs."""
    vision = load(graph, threads=1)
    cancelled = CancelSignal()
    cancelled.cancel()
    for _ in range(20):
        for cancel in (cancelled, Late(1), Late(2), Late(4)):
            with pytest.raises(CancelledError, match="cancelled before its end"):
                vision.encode(some_tiles(9), cancel=cancel)
            assert_encodes(vision, some_tiles(3))


def write_long_graph(path: Path, layers: int = 400, width: int = 256) -> Path:
    """Tiles of one row and `width` columns, through a chain of layers."""
    random = np.random.default_rng(0)
    matrix = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["x0"]),
    ]
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"x{layer}", "matrix"], [f"y{layer}"]),
            helper.make_node("Tanh", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    nodes.append(helper.make_node("Identity", [f"x{layers}"], ["embeddings"]))
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, [1, width, width, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, 3 * width, width])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, -1, width]),
            helper.make_tensor("matrix", TensorProto.FLOAT, matrix.shape, matrix.ravel()),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def test_openvino_stops_in_the_middle_of_a_graph(tmp_path: Path) -> None:
    """The signal comes after the last check in Python, so OpenVINO alone can see it."""
    vision = load_openvino(write_long_graph(tmp_path / "vision.onnx"), threads=1)
    tile = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), np.uint8)
    expected = vision.encode(tile)
    for _ in range(3):
        with pytest.raises(CancelledError):
            vision.encode(tile, cancel=Late(2))
        np.testing.assert_array_equal(vision.encode(tile), expected)


def test_says_what_it_runs_on(graph: Path) -> None:
    for arguments in ({}, {"device": "cpu"}, {"providers": ["CPUExecutionProvider"]}):
        assert load_onnx(graph, **arguments).device == "CPUExecutionProvider"
    options = ("CPUExecutionProvider", {"use_arena": "0"})
    assert load_onnx(graph, providers=[options]).device == "CPUExecutionProvider"
    assert "cpu" in available_devices()
    assert first_provider("cpu", None) == "CPUExecutionProvider"


def test_refuses_devices_that_are_not_there(graph: Path) -> None:
    missing = {"cuda", "tensorrt", "coreml", "qnn"} - set(available_devices())
    assert missing, "this test needs an ONNX Runtime that lacks some provider"
    for device in missing:
        with pytest.raises(LoadError, match="pip install"):
            load_onnx(graph, device=device)
        with pytest.raises(LoadError, match="pip install"):
            first_provider(device, None)
    absent = next(
        name
        for name in onnxruntime.get_all_providers()
        if name not in onnxruntime.get_available_providers()
    )
    with pytest.raises(LoadError, match=absent):
        load_onnx(graph, providers=[absent, "CPUExecutionProvider"])
    with pytest.raises(LoadError, match="NoSuchExecutionProvider"):
        load_onnx(graph, providers=["NoSuchExecutionProvider"])


def first_of(device: str) -> tuple[str, dict[str, Any]]:
    """Return the first provider of a device, as if ONNX Runtime had all providers."""
    provider = execution_providers.select_providers(
        device, None, onnxruntime.get_all_providers()
    ).providers[0]
    return provider if isinstance(provider, tuple) else (provider, {})


def test_what_a_provider_compiles_is_kept_for_the_user(own_cache: Path) -> None:
    """The options are as on ONNX Runtime's pages; no machine of the authors has these providers."""
    name, options = first_of("tensorrt")
    folder = own_cache / "edgevlm" / "tensorrt"
    assert name == "TensorrtExecutionProvider" and folder.is_dir()
    assert options["trt_engine_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == str(folder)
    _, options = first_of("coreml")
    assert options["ModelCacheDirectory"] == str(own_cache / "edgevlm" / "coreml")
    assert first_of("cuda") == ("CUDAExecutionProvider", {})


def test_operators_that_a_device_lacks_run_beside_it() -> None:
    every = onnxruntime.get_all_providers()
    cuda = execution_providers.select_providers("cuda", None, every)
    tensorrt = execution_providers.select_providers("tensorrt", None, every)
    assert cuda.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert (
        tensorrt.providers[1:] == cuda.providers and tensorrt.fixed_shapes and not cuda.fixed_shapes
    )


def test_providers_do_without_a_cache(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_cache.write_text("no folder")
    plain = {"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"}
    assert first_of("coreml") == ("CoreMLExecutionProvider", plain)
    assert "no cache for coreml" in caplog.text


def test_a_compiled_graph_is_opened_in_the_place_of_its_source(
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The CPU's provider writes no compiled graph, so the test writes one in its place."""
    keeping = replace(execution_providers.ONNX_DEVICES["cpu"], ep_context=True)
    monkeypatch.setitem(execution_providers.ONNX_DEVICES, "cpu", keeping)
    graph = write_graph(tmp_path / "vision.onnx")
    folder = own_cache / "edgevlm" / "cpu"
    tiles = some_tiles(2)
    vision = load_onnx(graph, device="cpu")
    expected = vision.encode(tiles)
    assert list(folder.iterdir()) == [], "no incomplete file"
    compiled = onnx.load(graph)
    compiled.graph.initializer[0].float_data[:] = [2 * 255.0]
    compiled_path = folder / f"{onnx_runtime._identity(graph)}.onnx"
    onnx.save(compiled, compiled_path)
    halved = load_onnx(graph, device="cpu").encode(tiles)
    np.testing.assert_allclose(halved, expected / 2, rtol=1e-5)
    compiled_path.write_bytes(b"damaged")
    np.testing.assert_array_equal(load_onnx(graph, device="cpu").encode(tiles), expected)
    assert "compiles the graph again" in caplog.text
    onnx.save(compiled, compiled_path)
    os.utime(graph, ns=(0, 0))  # another graph than the one that was compiled
    np.testing.assert_array_equal(load_onnx(graph, device="cpu").encode(tiles), expected)


def test_a_batch_of_one_for_devices_that_need_known_shapes(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = replace(execution_providers.ONNX_DEVICES["cpu"], fixed_shapes=True)
    monkeypatch.setitem(execution_providers.ONNX_DEVICES, "cpu", fixed)
    one = write_graph(tmp_path / "one.onnx", tiles_shape=(1, SIDE, SIDE, 3))
    for path in (graph, one):
        vision = load_onnx(path, device="cpu")
        assert vision._session.get_inputs()[0].shape == [1, SIDE, SIDE, 3]
        assert_encodes(vision, some_tiles(5))
    with pytest.raises(LoadError, match=r"device cpu needs .* of fixed shapes.*--image-size"):
        load_onnx(write_free_graph(tmp_path / "free.onnx"), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda"),
        ({"providers": []}, "providers must be a list"),
        ({"providers": "CPUExecutionProvider"}, "providers must be a list"),
        ({"threads": 0}, "threads must be"),
        ({"threads": True}, "threads must be"),
        ({"threads": 2.0}, "threads must be"),
    ],
)
def test_refuses_wrong_arguments(graph: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_onnx(graph, **arguments)


def test_closed(graph: Path, load: Load) -> None:
    vision = load(graph)
    vision.close()
    vision.close()
    with pytest.raises(ClosedError, match="closed"):
        vision.encode(some_tiles(1))


def test_is_quiet(
    graph: Path, load: Load, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(graph).encode(some_tiles(1))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# --- OpenVINO -----------------------------------------------------------------------------------


def test_openvino_keeps_what_it_compiled(graph: Path, own_cache: Path) -> None:
    tiles = some_tiles(3)
    load_openvino(graph)
    compiled = list((own_cache / "edgevlm/openvino").glob("*.blob"))
    assert compiled
    vision = load_openvino(graph)
    assert_encodes(vision, tiles)
    for file in compiled:
        file.write_bytes(file.read_bytes()[:100])
    vision = load_openvino(graph)
    assert_encodes(vision, tiles)


def test_openvino_does_without_a_cache(graph: Path, own_cache: Path) -> None:
    own_cache.write_bytes(b"a file where the folder should be")
    tiles = some_tiles(2)
    vision = load_openvino(graph)
    assert_encodes(vision, tiles)


def test_openvino_says_what_it_runs_on(graph: Path) -> None:
    flags = system.cpu_flags()
    computed = "bf16" if "avx512_bf16" in flags and "amx_bf16" not in flags else "f32"
    assert load_openvino(graph).device == f"OpenVINO CPU {computed}"
    with pytest.raises(LoadError, match=r"openvino:npu was asked for.*CPU"):
        load_openvino(graph, device="openvino:npu")


@pytest.mark.parametrize("threads", [0, True, 2.0])
def test_openvino_refuses_wrong_threads(graph: Path, threads: object) -> None:
    with pytest.raises(InputError, match="threads must be"):
        load_openvino(graph, threads=threads)


@pytest.mark.parametrize(
    ("flags", "device", "precisions", "taken", "best"),
    [
        ({"amx_bf16"}, "auto", ("int8", "fp32"), "openvino", "fp16"),
        ({"amx_bf16"}, "auto", ("int8",), "auto", "int8"),
        ({"amx_bf16"}, "cpu", ("int8", "fp32"), "cpu", "int8"),
        ({"avx512_vnni"}, "auto", ("int8", "fp32"), "auto", "int8"),
        # int8-static: in bundles of earlier versions
        ({"avx512_vnni"}, "auto", ("int8", "int8-static"), "openvino", "int8-static"),
        ({"avx2"}, "auto", ("int8", "int8-static"), "auto", "int8"),
        ({"avx512_vnni"}, "openvino", ("int8", "fp32"), "openvino", "int8-static"),
        ({"amx_bf16"}, "openvino", ("int8", "fp32"), "openvino", "fp16"),
    ],
)
def test_the_processor_decides_between_the_runtimes(
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    device: str,
    precisions: tuple[str, ...],
    taken: str,
    best: str,
) -> None:
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset(flags))
    backend = devices.select_backend(device, None, precisions)
    assert (backend.device, backend.precisions[0]) == (taken, best)
    assert backend.allow_fallback == (device == "auto" and taken == "openvino")


def test_only_auto_goes_on_without_openvino(graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = devices.VisionBackend("openvino:npu", None, devices.FP16_FIRST)
    names: dict[str, Any] = {"input_name": "tiles", "output_name": "embeddings"}
    with pytest.raises(LoadError, match="openvino:npu was asked for"):
        backend.load(graph, threads=1, **names)
    runtime = replace(backend, allow_fallback=True).load(graph, threads=1, **names)
    assert runtime.device == "CPUExecutionProvider"
    assert "openvino:npu was asked for" in caplog.text


def test_named_devices_must_exist() -> None:
    with pytest.raises(InputError, match=r"auto, cpu, cuda.*openvino:npu, is 'openvino:tpu'"):
        devices.select_backend("openvino:tpu", None, ("fp32",))


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "CPUExecutionProvider"])
def test_cuda_as_pip_installs_it_is_loaded_before_a_session_that_needs_it(
    graph: Path,
    provider: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Messages about missing libraries go to stderr, not between the answers."""
    monkeypatch.setattr(onnx_runtime, "_load_cuda", onnx_runtime._load_cuda.__wrapped__)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("no libcudnn"), raising=False)
    with contextlib.suppress(LoadError):  # where this ONNX Runtime has no CUDA
        onnx_runtime.SessionOpener("auto", None, None)._create_session(
            graph, [provider], onnxruntime.SessionOptions(), allow_fallback=False
        )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("no libcudnn" in shown.err) == (provider == "CUDAExecutionProvider")
