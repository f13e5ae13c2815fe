"""Images between texts in Qwen's M-RoPE models: llama.cpp computes transformers' logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRTextModel

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import (
    CancelledError,
    ContextError,
    ExportError,
    InferenceError,
    InputError,
)
from edgevlm.export.architectures import find_architecture
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import hyperparameters, write_decoder
from edgevlm.export.existing_gguf import check_hyperparameters, open_existing_decoder
from edgevlm.export.mrope import DEFAULT_SECTIONS, input_width, mrope_sections
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import make_plan
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place
from tests.export.test_architectures import QWEN35
from tests.families.qwen2_vl import qwen2_vl
from tests.support import text_models
from tests.support.text_models import IMAGE, IMAGE_END, IMAGE_START
from tests.support.tiny_decoder import ExactDecoder

Grid: TypeAlias = tuple[int, int]
BEFORE, BETWEEN, AFTER = [5, 10, 11, IMAGE_START], [IMAGE_END, 12, IMAGE_START], [IMAGE_END, 13, 14]
GRIDS: tuple[Grid, Grid] = (3, 5), (4, 2)
"""Lines and columns of two images."""
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl_text", 0, {"mrope_section": [2, 3, 3]}),
    "qwen2_5_vl": ("qwen2_5_vl_text", 0, {"mrope_section": [4, 2, 2]}),
    "qwen3_vl": ("qwen3_vl_text", 3, {"mrope_section": [3, 3, 2]}),
    "qwen3_5": ("qwen3_5_text", 0, {"mrope_section": [3, 3, 2], "partial_rotary_factor": 0.5}),
}
"""Text model, deepstack layers, settings of the rotary embeddings."""
HEADS = {"qwen3_vl": {"head_dim": 16}, "qwen3_5": QWEN35}


class Part(NamedTuple):
    """A text or an image of the prompt."""

    entries: list[int] | NDArray[np.float32]
    """Token ids, or embeddings ``[n, width]``."""
    positions: NDArray[np.int32]
    """``[n]`` of a text, ``[3, n]`` of an image."""


class Case(NamedTuple):
    """A model with a prompt of two images and what transformers computes for it."""

    model: PreTrainedModel
    folder: Path
    parts: list[Part]
    expected: NDArray[np.float32]
    """Logits ``[n, vocabulary]`` of all entries."""
    places: list[Place]
    """The places at the borders of the parts, from the beginning to the end."""

    def path(self, file_type: str) -> Path:
        path = self.folder / f"decoder.{file_type}.gguf"
        if not path.exists():
            text_models.write_text_model(self.model, self.folder, file_type=file_type)
        return path


def make_case(row: str, folder: Path) -> Case:
    model_type, deepstack, rope = MODELS[row]
    parameters = {"rope_type": "default", "rope_theta": 1e4, **rope}
    settings = {"num_hidden_layers": 4, **HEADS.get(row, {}), "rope_parameters": parameters}
    text = text_models.text_config(model_type, **settings)
    model = text_models.vision_language_model(text, deepstack)
    sizes = [lines * columns for lines, columns in GRIDS]
    ids = [*BEFORE, *[IMAGE] * sizes[0], *BETWEEN, *[IMAGE] * sizes[1], *AFTER]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([[int(token == IMAGE) for token in ids]]),
    }
    grids = torch.tensor([[1, 2 * lines, 2 * columns] for lines, columns in GRIDS])
    pixels = torch.randn(4 * sum(sizes), 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(**inputs, pixel_values=pixels, image_grid_thw=grids).logits[0].numpy()
        features = model.model.get_image_features(pixels, grids, return_dict=True)
        # transformers' own numbers; each part takes its columns
        numbers, _ = model.model.get_rope_index(**inputs, image_grid_thw=grids)
    images = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
    rows = torch.cat([torch.cat(list(one)) for one in images], -1).numpy()
    assert rows.shape == (sum(sizes), input_width(model.config))
    entries: list[list[int] | NDArray[np.float32]]
    entries = [BEFORE, rows[: sizes[0]], BETWEEN, rows[sizes[0] :], AFTER]
    parts, places, start = [], [Place()], 0
    for part in entries:
        columns = numbers[:, 0, start : start + len(part)].numpy().astype(np.int32)
        parts.append(Part(part, columns[0] if isinstance(part, list) else columns))
        start += len(part)
        places.append(Place(start, int(columns.max()) + 1))
    return Case(model, folder, parts, logits, places)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    cases: dict[str, Case] = {}

    def case(row: str) -> Case:
        if row not in cases:
            cases[row] = make_case(row, tmp_path_factory.mktemp(row))
        return cases[row]

    return case


class Opened(NamedTuple):
    case: Case
    decoder: LlamaCppDecoder
    bound: float


@pytest.fixture(
    scope="module", params=[(row, kind) for row in MODELS for kind in ("f32", "f16")], ids=str
)
def opened(made: Callable[[str], Case], request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Each model in f32 without flash attention, and in f16 with it."""
    row, kind = request.param
    case = made(row)
    open_as = ExactDecoder if kind == "f32" else LlamaCppDecoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "is_intel", lambda: False)
        decoder = open_as(case.path(kind), context_length=256, threads=1)
    rounded = 1e-2 if row == "qwen3_5" else 5e-3  # norms of small sums; 5.0e-3 was measured
    yield Opened(case, decoder, 1e-4 if kind == "f32" else rounded)
    decoder.close()


@pytest.fixture
def fresh(opened: Opened) -> Opened:
    assert opened.decoder.truncate(Place())
    return opened


def decode(decoder: LlamaCppDecoder, part: Part, size: int = 1) -> list[NDArray[np.float32]]:
    """Decode a part in calls of `size` entries; return the logits after each call."""
    found = []
    for first in range(0, len(part.entries), size):
        positions = part.positions[..., first : first + size]
        entries = part.entries[first : first + size]
        if isinstance(entries, list):
            decoder.decode_tokens(entries, positions, logits=True)
        else:
            decoder.decode_embeddings(entries, positions, logits=True)
        found.append(decoder.logits())
    return found


def check(opened: Opened, found: list[NDArray[np.float32]], wanted: Any) -> None:
    expected = opened.case.expected[wanted]
    ours = np.stack(found)
    assert relative_error(ours, expected) < opened.bound
    assert np.array_equal(ours.argmax(-1), expected.argmax(-1))


def ends(case: Case, first: int = 0) -> list[int]:
    """Indexes of the last entries of the parts from `first` on."""
    return [place.entries - 1 for place in case.places[first + 1 :]]


# --- logits -------------------------------------------------------------------------------------


def test_a_call_for_each_part(fresh: Opened) -> None:
    found = [decode(fresh.decoder, part, len(part.entries))[-1] for part in fresh.case.parts]
    check(fresh, found, ends(fresh.case))


def test_a_call_for_each_entry(fresh: Opened) -> None:
    """Images come in many calls. The logits inside an image show that no row sees a later one."""
    found = [one for part in fresh.case.parts for one in decode(fresh.decoder, part)]
    check(fresh, found, slice(None))


@pytest.mark.parametrize("size", [4, 7])
def test_an_image_in_several_batches(
    fresh: Opened, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(fresh.decoder, "batch_length", size)
    test_a_call_for_each_part(fresh)


def mixed(case: Case, decoder: LlamaCppDecoder) -> Part:
    """The whole prompt as embeddings: rows of the table for texts."""
    rows = [
        decoder.embed(part.entries) if isinstance(part.entries, list) else part.entries
        for part in case.parts
    ]
    numbers = [np.broadcast_to(part.positions, (3, len(part.entries))) for part in case.parts]
    return Part(np.concatenate(rows), np.concatenate(numbers, axis=1))


@pytest.mark.parametrize("size", [64, 6])
def test_texts_and_images_in_one_call(fresh: Opened, size: int) -> None:
    """One call; and calls with borders inside texts and images."""
    whole = mixed(fresh.case, fresh.decoder)
    count = len(whole.entries)
    found = decode(fresh.decoder, whole, size)
    check(fresh, found, [min(end, count) - 1 for end in range(size, count + size, size)])


def test_texts_as_embeddings_take_one_number(fresh: Opened) -> None:
    """``[n]`` means three equal numbers."""
    text = fresh.case.parts[0]
    rows = fresh.decoder.embed(BEFORE)
    assert not rows[:, fresh.case.model.config.get_text_config().hidden_size :].any()
    fresh.decoder.decode_embeddings(rows, text.positions, logits=True)
    check(fresh, [fresh.decoder.logits()], [len(BEFORE) - 1])


def test_branches_after_an_image(fresh: Opened) -> None:
    """They go on at the next position, which is not the number of entries."""
    case, decoder = fresh.case, fresh.decoder
    for part in case.parts[:-1]:
        decode(decoder, part, len(part.entries))
    one, two = decoder.branch(), decoder.branch()
    tokens = case.parts[-1].entries
    assert isinstance(tokens, list)
    order = [branch for _ in tokens for branch in (one, two)]
    logits = decoder.decode_branches(order, [token for token in tokens for _ in range(2)])
    last = slice(-len(tokens), None)
    for found in (logits[::2], logits[1::2]):
        check(fresh, list(found), last)
    decoder.drop(one)
    decoder.drop(two)
    check(fresh, decode(decoder, case.parts[-1]), last)


@pytest.mark.parametrize("border", range(5))
def test_a_cache_that_is_cut_at_a_border(fresh: Opened, border: int) -> None:
    case, decoder = fresh.case, fresh.decoder
    for part in case.parts:
        decode(decoder, part, len(part.entries))
    if not decoder.truncate(case.places[border]):
        assert border and not decoder.max_removable
        return  # `test_hybrids.py` shows that nothing has changed
    assert not decoder.truncate(case.places[-1])  # it ends before
    found = [decode(decoder, part, len(part.entries))[-1] for part in case.parts[border:]]
    check(fresh, found, ends(case, border))


@pytest.mark.parametrize("border", range(1, 6))
def test_a_cache_that_is_restored(fresh: Opened, border: int) -> None:
    """Also one that ends in an image, and so before its next position; and it can be cut."""
    case, decoder = fresh.case, fresh.decoder
    for part in case.parts[:border]:
        decode(decoder, part, len(part.entries))
    copy = decoder.save()
    decoder.truncate(Place())
    decode(decoder, Part([7] * 50, np.arange(50, dtype=np.int32)), 50)
    for cut in range(border, 0, -1):
        decoder.restore(copy, case.places[border])
        if not decoder.truncate(case.places[cut]):
            assert not decoder.max_removable
            break
        found = [decode(decoder, part, len(part.entries))[-1] for part in case.parts[cut:]]
        if found:
            check(fresh, found, ends(case, cut))


def test_a_copy_belongs_to_its_place(fresh: Opened) -> None:
    case, decoder = fresh.case, fresh.decoder
    for part in case.parts[:2]:
        decode(decoder, part, len(part.entries))
    copy, place = decoder.save(), case.places[2]
    for wrong in (
        Place(place.entries - 1, place.position),
        Place(place.entries, place.position - 1),
        Place(place.entries, place.entries),
    ):
        with pytest.raises(InferenceError, match="could not restore"):
            decoder.restore(copy, wrong)
        decode(decoder, Part([1], np.zeros(1, np.int32)))  # it is empty
    with pytest.raises(InputError, match="position must be from 0 to"):
        decoder.restore(copy, Place(place.entries, place.entries + 1))
    decoder.restore(copy, place)


# --- wrong use ----------------------------------------------------------------------------------


def test_the_context_counts_entries(made: Callable[[str], Case]) -> None:
    case = made("qwen2_vl")
    (grid, *_), rows = GRIDS, case.parts[1]
    decoder = LlamaCppDecoder(case.path("f16"), context_length=grid[0] * grid[1] + 4, threads=1)
    decode(decoder, case.parts[0], 4)
    decode(decoder, rows, 15)
    assert decoder.context_length == 19 > case.places[2].position
    with pytest.raises(ContextError, match=r"1 entries after 19 cached ones .* context of 19"):
        decode(decoder, case.parts[2], 1)
    decoder.close()


@pytest.mark.parametrize("part", [1, 3])
def test_no_cut_inside_an_image(fresh: Opened, part: int) -> None:
    case, decoder = fresh.case, fresh.decoder
    for one in case.parts:
        decode(decoder, one, len(one.entries))
    before, after = case.places[part : part + 2]
    inside = [
        Place(entries, position)
        for entries in range(before.entries, after.entries + 1)
        for position in range(before.position, after.position + 1)
        if Place(entries, position) not in (before, after)
    ]
    for place in inside:
        with pytest.raises(InputError, match="cut before or after an image"):
            decoder.truncate(place)
    assert decoder.truncate(after) == bool(decoder.max_removable)


@pytest.mark.parametrize(
    "wrong",
    [
        [[2], [2], [2]],  # before the last time
        [[5], [5], [5]],  # beyond the next one
        [[4], [3], [4]],  # a line before the image
        [[4], [4], [3]],
        [[4], [4], [5]],  # more positions than entries
        [[4, 3], [4, 4], [4, 5]],  # decreasing
        [[4, 6], [4, 6], [4, 6]],  # a gap
        [[4, 5, 5], [4, 6, 6], [4, 5, 6], [0, 0, 0]],
        [[4, 4], [4, 4]],
        [4, 6],
        [3, 4],
        [4.0],
        [[2**40], [2**40], [2**40]],
        [[-1], [-1], [-1]],
        [],
    ],
    ids=str,
)
def test_refuses_wrong_positions(fresh: Opened, wrong: Any) -> None:
    case, decoder = fresh.case, fresh.decoder
    decode(decoder, case.parts[0], 4)
    positions = np.array(wrong)
    rows = np.zeros((positions.shape[-1] or 1, decoder.width), np.float32) + 1
    with pytest.raises(InputError, match="positions must"):
        decoder.decode_embeddings(rows, positions, logits=True)
    check(fresh, decode(decoder, case.parts[1], 15), [18])


def test_tokens_take_one_number(fresh: Opened) -> None:
    with pytest.raises(InputError, match=r"shape \[2\], are int32 \[3, 2\]"):
        fresh.decoder.decode_tokens([1, 2], np.zeros((3, 2), np.int32), logits=True)


@pytest.mark.parametrize("failure", ["interrupted", "cancelled"])
def test_a_failed_call_takes_the_whole_image(
    fresh: Opened, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """llama.cpp cannot drop the second part of an image alone."""
    case, decoder = fresh.case, fresh.decoder
    decode(decoder, case.parts[0], 4)
    image = case.parts[1]
    decode(decoder, Part(image.entries[:6], image.positions[:, :6]), 6)

    run, cancel = decoder._llama.llama_decode, CancelSignal()

    def fail(*arguments: Any) -> int:
        if failure == "interrupted":
            raise KeyboardInterrupt
        cancel.cancel()  # after the last check in Python
        status: int = run(*arguments)
        return status

    monkeypatch.setattr(decoder._llama, "llama_decode", fail)
    with pytest.raises((KeyboardInterrupt, CancelledError)):
        decoder.decode_embeddings(
            np.asarray(image.entries[6:], np.float32),
            image.positions[:, 6:],
            logits=True,
            cancel=cancel,
        )
    assert cancel.cancelled == (failure == "cancelled")
    monkeypatch.undo()
    left = 1 if decoder.max_removable else 0  # a hybrid loses everything
    assert decoder._held.place == case.places[left]
    check(fresh, [decode(decoder, part, 15)[-1] for part in case.parts[left:]], ends(case, left))


def test_what_is_accepted_never_fails(made: Callable[[str], Case]) -> None:
    """Random calls, whole images and parts, cuts and copies; the result equals a cache that is made anew."""
    case, random = made("qwen3_vl"), np.random.default_rng(0)
    decoder, again = (
        ExactDecoder(case.path("f32"), context_length=256, threads=1) for _ in range(2)
    )
    noise = random.standard_normal((400, decoder.width)).astype(np.float32)
    for _ in range(15):
        held: list[tuple[Part, Place]] = []  # each with the place after it
        copies: list[tuple[NDArray[np.uint8], int]] = []
        decoder.truncate(Place())
        while len(held) < 12:
            place = held[-1][1] if held else Place()
            choice = random.integers(6)
            if choice == 0 and held:
                cut = int(random.integers(len(held)))
                held, copies = held[:cut], [one for one in copies if one[1] <= cut]
                assert decoder.truncate(held[-1][1] if held else Place())
            elif choice == 1 and held:
                copies.append((decoder.save(), len(held)))
            elif choice == 2 and copies:
                copy, count = copies[int(random.integers(len(copies)))]
                decoder.restore(copy, held[count - 1][1])
                held = held[:count]
                copies = [one for one in copies if one[1] <= count]
            elif choice == 3:
                count = int(random.integers(1, 6))
                text = Part(
                    random.integers(3, 500, count).tolist(),
                    np.arange(place.position, place.position + count, dtype=np.int32),
                )
                decode(decoder, text, count)
                held.append((text, place.after(count)))
            else:
                lines, columns = map(int, random.integers(1, 6, 2))
                index = np.arange(lines * columns)
                offsets = np.stack([0 * index, index // columns, index % columns])
                image = Part(noise[index], (place.position + offsets).astype(np.int32))
                decode(decoder, image, int(random.integers(1, len(index) + 1)))
                entries = place.entries + len(index)
                held.append((image, Place(entries, place.position + max(lines, columns))))
            assert decoder._held.place == (held[-1][1] if held else Place())
        again.truncate(Place())
        for part, _ in held:
            decode(again, part, len(part.entries))
        last = Part([9], np.array([held[-1][1].position], np.int32))
        assert relative_error(decode(decoder, last)[0], decode(again, last)[0]) < 1e-5
    decoder.close()
    again.close()


# --- configurations -------------------------------------------------------------------------------


def config(row: str, deepstack: int | None = None, **settings: Any) -> Any:
    model_type, layers, rope = MODELS[row]
    parameters = {"rope_type": "default", "rope_theta": 1e4, **rope, **settings.pop("rope", {})}
    text = text_models.text_config(model_type, rope_parameters=parameters, **settings)
    return text_models.vision_language_model(
        text, layers if deepstack is None else deepstack
    ).config


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sections missing": ("qwen2_vl", {"rope": {"mrope_section": None}}, r"mrope_section is None"),
    "sections of another head": (
        "qwen2_vl",
        {"rope": {"mrope_section": [16, 24, 24]}},
        r"mrope_section is \[16, 24, 24\] .*sum to 8",
    ),
    "four sections": (
        "qwen3_vl",
        {"head_dim": 16, "rope": {"mrope_section": [2, 2, 2, 2]}},
        "three",
    ),
    "few columns": (
        "qwen3_vl",
        {"head_dim": 16, "rope": {"mrope_section": [4, 3, 1]}},
        r"\[4, 3, 1\]: llama.cpp does not rotate pair 5 of each head",
    ),
    "deepstack in the last layer": (
        "qwen3_vl",
        {"head_dim": 16, "deepstack": 2},
        r"2 entries, the language model 2 layers",
    ),
    "yarn": (
        "qwen2_5_vl",
        {"rope": {"rope_type": "yarn", "factor": 4.0}},
        r"'yarn'.*default, linear",
    ),
}


@pytest.mark.parametrize(("row", "settings", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_computes_otherwise_is_refused(
    row: str, settings: dict[str, Any], named: str
) -> None:
    given = config(row, **settings)
    with pytest.raises(ExportError, match=named):
        hyperparameters(find_architecture(given), given)


@pytest.mark.parametrize("model_type", DEFAULT_SECTIONS)
def test_missing_sections_are_those_of_transformers(model_type: str) -> None:
    """MiniCPM-V 4.6 is published without them."""
    head = {**QWEN35, "head_dim": 256} if model_type == "qwen3_5_text" else {"head_dim": 128}
    share = 0.25 if model_type == "qwen3_5_text" else 1.0
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": share}
    text = text_models.text_config(model_type, **{**head, "rope_parameters": rope})
    build = PaddleOCRTextModel if model_type.startswith("paddle") else AutoModel.from_config
    rotary = build(text).rotary_emb
    assert mrope_sections(text) == list(rotary.mrope_section)


def test_the_keys_of_llama_cpps_converter() -> None:
    given = config("qwen3_vl", num_hidden_layers=4, head_dim=16)
    written = hyperparameters(find_architecture(given), given)
    assert written["qwen3vl.rope.dimension_sections"] == [3, 3, 2, 0]
    assert written["qwen3vl.n_deepstack_layers"] == 3
    converted = dict(written)
    for key in ("vocab_size", "rope.dimension_count"):  # it leaves out what llama.cpp knows
        del converted[f"qwen3vl.{key}"]
    check_hyperparameters(Path("decoder.gguf"), converted, written)
    for key, value in (("rope.dimension_sections", [2, 3, 3, 0]), ("n_deepstack_layers", 2)):
        other = {**converted, f"qwen3vl.{key}": value}
        with pytest.raises(ExportError, match=rf"{key} .*another model"):
            check_hyperparameters(Path("decoder.gguf"), other, written)


def test_a_large_epsilon_of_small_embeddings(tmp_path: Path) -> None:
    """llama.cpp's own Qwen2-VL computes norms without epsilon."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = text_models.text_config("qwen2_vl_text", rms_norm_eps=1e-4, rope_parameters=rope)
    model = text_models.vision_language_model(text)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.04)
        expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1].numpy()
    path = text_models.write_text_model(model, tmp_path, file_type="f32")
    decoder = ExactDecoder(path, context_length=64, threads=1)
    decoder.decode_tokens([5, 6, 7], np.arange(3, dtype=np.int32), logits=True)
    assert relative_error(decoder.logits(), expected) < 1e-4
    decoder.close()


def test_a_file_of_llama_cpps_converter_is_taken(tmp_path: Path) -> None:
    """It is a QWEN2VL; edgevlm writes a PADDLEOCR, which llama.cpp computes with the epsilon."""
    plan = make_plan(Checkpoint.open(qwen2_vl(tmp_path / "checkpoint")))
    path, converted = tmp_path / "decoder.gguf", tmp_path / "converted.gguf"
    write_decoder(plan.checkpoint, plan.family, plan.vocabulary, path, progress=False)
    assert open_existing_decoder(path, plan).file_type == "f16"
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(converted, "qwen2vl")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kinds = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            name = name.replace("paddleocr.", "qwen2vl.")
            writer.add_key_value(name, field.contents(), kinds[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert open_existing_decoder(converted, plan).file_type == "f16"


def test_qwen3_vls_sections_are_near_enough() -> None:
    """llama.cpp does not rotate pairs 61 and 62 of Qwen3-VL, which hardly rotate at all."""
    given = config(
        "qwen3_vl",
        deepstack=1,
        head_dim=128,
        max_position_embeddings=262144,
        rope={"rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    )
    find_architecture(given)
