"""A decoder given as GGUF: taken if it tokenizes and computes as the checkpoint, else refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgevlm import VLM
from edgevlm.errors import DriftError, ExportError
from edgevlm.export.bounds import decoder_bound
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.existing_gguf import ExistingDecoder, open_existing_decoder
from edgevlm.export.pipeline import export
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.pre_tokenizers import BYTES_ONLY, TEKKEN_PATTERN, split
from edgevlm.export.text_battery import check_tokenizer
from edgevlm.export.tokenizer import Vocabulary, read_vocabulary
from edgevlm.results import PromptText
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from tests.conftest import Export
from tests.families import pixtral
from tests.support import checkpoints, vocabularies
from tests.support.damage import rewrite_gguf

IMAGE, FIRST_PADDING = 510, 512


class Given(NamedTuple):
    """A checkpoint's plan and the decoder that edgevlm wrote of it."""

    plan: Plan
    file: Path

    def open(self, path: Path) -> ExistingDecoder:
        return open_existing_decoder(path, self.plan)

    def changed(self, folder: Path, **fields: Any) -> Path:
        """The file with values of ``tokenizer.ggml`` of these names."""
        changes = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
        return rewrite_gguf(self.file, folder / "changed.gguf", changes)

    def value(self, name: str) -> list[Any]:
        """A list of the file's ``tokenizer.ggml``."""
        value: list[Any] = gguf.GGUFReader(self.file).fields[f"tokenizer.ggml.{name}"].contents()
        return value


def given_of(exported: Export, family: str) -> Given:
    made = exported(family)
    return Given(make_plan(Checkpoint.open(made.checkpoint)), made.bundle / "decoder.f16.gguf")


@pytest.fixture(scope="module")
def smolvlm(exported: Export) -> Given:
    return given_of(exported, "smolvlm")


@pytest.fixture(scope="module")
def paligemma(exported: Export) -> Given:
    return given_of(exported, "paligemma")


def test_what_edgevlm_wrote_is_taken(smolvlm: Given, paligemma: Given, exported: Export) -> None:
    for found in (smolvlm, paligemma, given_of(exported, "idefics3")):
        opened = found.open(found.file)
        assert opened == ExistingDecoder(found.file, "f16", opened.texts)
        assert opened.texts >= 1800


def with_item(values: list[Any], index: int, value: Any) -> list[Any]:
    return [*values[:index], value, *values[index + 1 :]]


def swapped(merges: list[Any]) -> list[Any]:
    return [*merges[:100], merges[101], merges[100], *merges[102:]]


TOKENIZERS: dict[str, tuple[Callable[[Given], dict[str, Any]], str]] = {
    "a special token that users may write": (
        lambda file: {
            "token_type": with_item(file.value("token_type"), IMAGE, TokenType.USER_DEFINED)
        },
        r"special token 510, '<image>', of type USER_DEFINED: llama\.cpp would read it out of a user's text",
    ),
    "a special token as plain text": (
        lambda file: {"token_type": with_item(file.value("token_type"), IMAGE, TokenType.NORMAL)},
        r"special token 510, '<image>', of type NORMAL",
    ),
    "a token that users cannot write": (
        lambda file: {"token_type": with_item(file.value("token_type"), 300, TokenType.CONTROL)},
        r"token 300, .* of type CONTROL, the checkpoint's tokenizer makes it NORMAL",
    ),
    "a type that nobody knows": (
        lambda file: {"token_type": with_item(file.value("token_type"), 300, 77)},
        r"token 300, .* of type 77, the checkpoint's tokenizer makes it NORMAL",
    ),
    "no types": (lambda file: {"token_type": None}, r"no tokenizer\.ggml\.token_type"),
    "padding that users may write": (
        lambda file: {
            "token_type": with_item(file.value("token_type"), FIRST_PADDING, TokenType.USER_DEFINED)
        },
        r"'\[PAD512\]' of type USER_DEFINED as token 512",
    ),
    "padding by a token's name": (
        lambda file: {
            "tokens": with_item(file.value("tokens"), FIRST_PADDING, file.value("tokens")[300]),
        },
        r"has 2 tokens '",
    ),
    "another token": (
        lambda file: {"tokens": with_item(file.value("tokens"), 300, "something else")},
        r"'something else' as token 300, the checkpoint ",
    ),
    "merges in another order": (
        lambda file: {"merges": swapped(file.value("merges"))},
        r"as merge 100, the checkpoint ",
    ),
    "fewer merges": (lambda file: {"merges": file.value("merges")[:-1]}, r"\d+ merges, the check"),
    "no merges": (lambda file: {"merges": None}, r"no tokenizer\.ggml\.merges"),
    "another pre-tokenizer": (
        lambda file: {"pre": "gpt-2"},
        r"splits words as 'gpt-2', the checkpoint's tokenizer as 'smollm'",
    ),
    "no pre-tokenizer": (lambda file: {"pre": None}, r"no tokenizer\.ggml\.pre"),
    "another algorithm": (
        lambda file: {"model": "llama", "scores": [0.0] * 520},
        r"a vocabulary of kind 'llama'",
    ),
}


@pytest.mark.parametrize(("change", "message"), TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_another_vocabulary_is_refused(
    smolvlm: Given,
    tmp_path: Path,
    change: Callable[[Given], dict[str, Any]],
    message: str,
) -> None:
    path = smolvlm.changed(tmp_path, **change(smolvlm))
    with pytest.raises(ExportError, match=message) as error:
        smolvlm.open(path)
    assert "leave out --decoder-gguf" in str(error.value) and "\n" not in str(error.value)


def test_what_changes_no_tokenization_is_taken(smolvlm: Given, tmp_path: Path) -> None:
    """Rows without a token under another name, and ids of special tokens, which edgevlm has elsewhere."""
    tokens = with_item(smolvlm.value("tokens"), FIRST_PADDING, "<reserved>")
    types = with_item(smolvlm.value("token_type"), FIRST_PADDING, TokenType.CONTROL)
    path = smolvlm.changed(
        tmp_path, tokens=tokens, token_type=types, eos_token_id=2, add_bos_token=True
    )
    assert smolvlm.open(path).file_type == "f16"


def sentence_piece(
    vocabulary: Vocabulary, *, prefix: bool = True, shuffle: bool = False
) -> dict[str, Any]:
    """Metadata of a vocabulary as llama.cpp's converter writes it: SentencePiece's, scores by rank."""
    ranks = {
        merge.replace(" ", ""): rank for rank, merge in reversed([*enumerate(vocabulary.merges)])
    }
    if shuffle:
        ranks = {text: -rank for text, rank in ranks.items()}
    return {
        "model": "llama",
        "pre": "default",
        "merges": None,
        "scores": [float(-ranks.get(text, 0)) for text in vocabulary.tokens],
        "add_space_prefix": prefix,
    }


def converted(paligemma: Given, path: Path, **options: bool) -> Path:
    """A Gemma as llama.cpp's converter writes it."""
    fields = sentence_piece(paligemma.plan.vocabulary, **options)
    changes = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return rewrite_gguf(paligemma.file, path, changes)


def test_gemma_as_llama_cpp_converts_it_is_taken(paligemma: Given, tmp_path: Path) -> None:
    for prefix in (False, True):  # edgevlm lets llama.cpp add no space
        path = converted(paligemma, tmp_path / f"{prefix}.gguf", prefix=prefix)
        assert paligemma.open(path).file_type == "f16"
    with pytest.raises(ExportError, match=r"makes the tokens \[.*\] of '"):  # only texts can tell
        paligemma.open(converted(paligemma, tmp_path / "c.gguf", shuffle=True))


@pytest.mark.parametrize("rule", ["prepend", "always", "first"])
def test_llama_as_llama_cpp_converts_it_makes_the_same_tokens(tmp_path: Path, rule: str) -> None:
    """Its files ask for a space before each text, which is edgevlm's part: on every text of the battery."""
    replace: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": rule, "split": False}
    prepend: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}, replace]
    tokenizer = vocabularies.space_marked(
        prepend if rule == "prepend" else [], [] if rule == "prepend" else [metaspace]
    )
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    ours = vocabularies.write_vocabulary(tmp_path / "ours.gguf", vocabulary)
    theirs = rewrite_gguf(
        ours,
        tmp_path / "theirs.gguf",
        {f"tokenizer.ggml.{name}": value for name, value in sentence_piece(vocabulary).items()},
    )
    assert check_tokenizer(theirs, vocabulary, tokenizer) > 1800
    models = [
        LlamaCppModel(path, gpu_layers=0, extra_buffer_types=False, vocabulary_only=True)
        for path in (ours, theirs)
    ]
    for token in range(len(tokenizer)):
        assert models[0].piece(token) == models[1].piece(token)
    for model in models:
        model.close()


@pytest.mark.parametrize("name", ["tekken", "pixtral", "superbpe"])
def test_tekken_is_split_by_edgevlm_whatever_the_file_names(tmp_path: Path, name: str) -> None:
    """On every text of the battery. By llama.cpp's rules of these names tokens differ."""
    tokenizer = vocabularies.byte_level([split(TEKKEN_PATTERN), BYTES_ONLY])
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    ours = vocabularies.write_vocabulary(tmp_path / "ours.gguf", vocabulary)
    theirs = rewrite_gguf(ours, tmp_path / "theirs.gguf", {"tokenizer.ggml.pre": name})
    assert check_tokenizer(theirs, vocabulary, tokenizer) > 1800
    with pytest.raises(DriftError, match=r"theirs.gguf makes the tokens"):
        check_tokenizer(theirs, dataclasses.replace(vocabulary, splitting=None), tokenizer)


def test_a_decoder_of_mistral_as_llama_cpp_converts_it(tmp_path: Path) -> None:
    checkpoint = pixtral.mistral3(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, vision=["fp32"], decoder=["f16"], quick=True, progress=False)
    made = Given(make_plan(Checkpoint.open(checkpoint)), bundle / "decoder.f16.gguf")
    pre = gguf.GGUFReader(made.file).fields["tokenizer.ggml.pre"].contents()
    assert pre == "tekken"
    assert made.open(made.changed(tmp_path, pre="pixtral")).texts > 1800
    with pytest.raises(ExportError, match=r"splits words as 'llama-bpe', .* as 'tekken'"):
        made.open(made.changed(tmp_path, pre="llama-bpe"))


def test_tokens_that_look_special_may_be_control(tmp_path: Path) -> None:
    """llama.cpp's converter makes such tokens CONTROL, whatever tokenizer.json says; but a place is not one
    of them, and a template may need one."""
    tokenizer = checkpoints.byte_level_tokenizer(512)
    described = json.loads(tokenizer.to_str())
    names = {"<global-img>": "<|plain|>", "<row_1_col_1>": "<loc0001>"}
    for added in described["added_tokens"]:
        if added["content"] in names:
            added.update(content=names[added["content"]], special=False)
    changed = Tokenizer.from_str(json.dumps(described))
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", tokenizer=changed)
    plan = make_plan(Checkpoint.open(folder))
    kinds = dict(zip(plan.vocabulary.tokens, plan.vocabulary.types, strict=True))
    assert kinds["<|plain|>"] == kinds["<loc0001>"] == TokenType.USER_DEFINED
    bundle = tmp_path / "bundle"
    export(folder, bundle, vision=["fp32"], decoder=["f16"], quick=True, progress=False)
    made = Given(plan, tmp_path / "bundle" / "decoder.f16.gguf")

    def control(text: str) -> Path:
        index = plan.vocabulary.tokens.index(text)
        types = with_item(made.value("token_type"), index, TokenType.CONTROL)
        return made.changed(tmp_path, token_type=types)

    assert made.open(control("<|plain|>")).file_type == "f16"
    with pytest.raises(ExportError, match=r"'<loc0001>', of type CONTROL"):
        made.open(control("<loc0001>"))
    template = folder / "chat_template.jinja"
    template.write_text("<|plain|>" + template.read_text())
    made = Given(make_plan(Checkpoint.open(folder)), made.file)
    with pytest.raises(ExportError, match=r"'<\|plain\|>', of type CONTROL"):
        made.open(control("<|plain|>"))


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"llama.attention.head_count": 8}, r"head_count 8, the .* has 4"),
    "key heads": ({"llama.attention.head_count_kv": None}, r"has no .*head_count_kv, the .* has 2"),
    "layers": ({"llama.block_count": 3}, r"block_count 3, the .* has 2"),
    "width": ({"llama.embedding_length": 32}, r"embedding_length 32, the .* has 64"),
    "context": ({"llama.context_length": 512}, r"context_length 512, the .* has 2048"),
    "frequencies": ({"llama.rope.freq_base": 10000.0}, r"freq_base 10000\.0, the .* has 100000\.0"),
    "scaling": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
        r"rope\.scaling\.type yarn, the .* has none",
    ),
    "experts": ({"llama.expert_count": 8}, r"expert_count 8, the .* has none"),
    "attention": ({"llama.attention.causal": False}, r"attention\.causal False"),
    "an unknown type": (
        {"general.file_type": 999},
        r"general\.file_type 999, a type that gguf does",
    ),
    "no type": ({"general.file_type": None}, r"general\.file_type None"),
    "a guessed type": ({"general.file_type": 1024}, r"type guessed cannot be compared"),
    "a vision part": ({"general.type": "mmproj"}, r"is a vision part for llama\.cpp \(mmproj\)"),
    "an adapter": ({"general.type": "adapter"}, r"is an adapter; join it .* llama-export-lora"),
    "a part of several": ({"split.count": 3}, r"one of several parts; .* --merge"),
}


@pytest.mark.parametrize(("fields", "message"), MODELS.values(), ids=MODELS.keys())
def test_another_model_is_refused(
    smolvlm: Given, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = rewrite_gguf(smolvlm.file, tmp_path / "other.gguf", fields)
    if (
        fields.get("llama.attention.head_count_kv", 0) is None
    ):  # llama.cpp takes that of the queries
        message = r"head_count_kv 4, the .* has 2|has no .*head_count_kv"
    with pytest.raises(ExportError, match=message) as error:
        smolvlm.open(path)
    assert "\n" not in str(error.value)


def test_values_that_llama_cpp_takes_by_default_may_be_left_out(
    smolvlm: Given, paligemma: Given, tmp_path: Path
) -> None:
    """As its converter leaves them out."""
    left_out = dict.fromkeys(
        f"llama.{name}" for name in ("vocab_size", "attention.key_length", "attention.value_length")
    )
    path = rewrite_gguf(
        smolvlm.file,
        tmp_path / "a.gguf",
        {**left_out, "llama.rope.dimension_count": None, "llama.rope.scaling.type": "none"},
    )
    assert smolvlm.open(path).file_type == "f16"
    fields = {"gemma.rope.freq_base": None, "gemma.rope.dimension_count": None}
    path = rewrite_gguf(paligemma.file, tmp_path / "b.gguf", fields)
    assert paligemma.open(path).file_type == "f16"


def test_other_tensors_are_refused(smolvlm: Given, tmp_path: Path, exported: Export) -> None:
    path = rewrite_gguf(smolvlm.file, tmp_path / "a.gguf", drop=("blk.1.ffn_up.weight",))
    with pytest.raises(ExportError, match=r"tensor blk\.1\.ffn_up\.weight not at all, the check"):
        smolvlm.open(path)
    path = rewrite_gguf(smolvlm.file, tmp_path / "b.gguf", drop=("output.weight",))
    with pytest.raises(ExportError, match=r"tensor output\.weight not at all"):
        smolvlm.open(path)
    scaled = given_of(exported, "idefics3")
    path = rewrite_gguf(scaled.file, tmp_path / "c.gguf", drop=("rope_freqs.weight",))
    with pytest.raises(ExportError, match=r"tensor rope_freqs\.weight not at all"):
        scaled.open(path)
    with pytest.raises(ExportError, match="architecture 'gemma2', the checkpoint's"):
        smolvlm.open(given_of(exported, "paligemma2").file)


def test_parts_of_a_file_are_refused(smolvlm: Given, tmp_path: Path) -> None:
    whole = smolvlm.file.read_bytes()
    path = tmp_path / "part.gguf"
    for kept in (len(whole) - 1, len(whole) // 2, 30_000, 5000, 500, 40, 9, 6, 4):
        path.write_bytes(whole[:kept])
        with pytest.raises(ExportError, match=rf"is cut off: it has {kept:,} bytes, and needs"):
            smolvlm.open(path)


def test_what_is_no_gguf_file_is_refused(smolvlm: Given, tmp_path: Path) -> None:
    path = tmp_path / "decoder.gguf"
    with pytest.raises(ExportError, match=r"cannot read .*decoder\.gguf: No such file"):
        smolvlm.open(path)
    for content, message in (
        (b"", "is not a GGUF file: it is empty"),
        (b"PK\x03\x04zip", r"is not a GGUF file: it begins with b'PK\\x03\\x04'"),
        (b"GGUF\x00\x00\x00\x03", "is a big-endian GGUF file; .* gguf-convert-endian"),
        (b"GGUF\x09\x00\x00\x00" + bytes(100), r"version 9 which we cannot handle"),
    ):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=message):
            smolvlm.open(path)
    with pytest.raises(ExportError, match=r"is a folder; give one GGUF file of it: decoder\.gguf"):
        smolvlm.open(tmp_path)
    part = tmp_path / "model-00001-of-00003.gguf"
    os.link(smolvlm.file, part)
    with pytest.raises(ExportError, match="is one of several parts"):
        smolvlm.open(part)


@given(place=st.integers(0, 20_000), value=st.integers(0, 255), width=st.sampled_from([1, 4, 8]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_header_is_refused_or_harmless(
    smolvlm: Given, tmp_path: Path, place: int, value: int, width: int
) -> None:
    """Never another error, and never without an end."""
    content = bytearray(smolvlm.file.read_bytes())
    content[place : place + width] = bytes([value]) * width
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        smolvlm.open(path)
    except ExportError as error:
        assert "\n" not in str(error)


def test_every_type_of_llama_cpp_has_a_bound_or_a_reason() -> None:
    for kind in gguf.LlamaFileType:
        name = kind.name.lower().removeprefix("mostly_").removeprefix("all_")
        if name == "guessed":
            continue
        assert 0 < decoder_bound(name) <= 1.0, name
    assert decoder_bound("iq4_nl") == decoder_bound("mxfp4_moe") == decoder_bound("q4_k_m") == 0.7
    assert decoder_bound("tq1_0") == decoder_bound("iq2_xxs") == 1.0
    assert decoder_bound("bf16") == 5e-2 and decoder_bound("q8_0") == 0.1
    assert decoder_bound("mixed9") == decoder_bound("mixed12") == decoder_bound("q8_0")


def test_a_type_that_edgevlm_does_not_write_is_measured_and_used(
    exported: Export, tmp_path: Path
) -> None:
    """Another name for q8_0: its bits and its bound are found, and users write no special token in it."""
    made = exported("smolvlm")
    fields = {"general.file_type": int(gguf.LlamaFileType.MOSTLY_IQ3_M)}
    file = rewrite_gguf(made.bundle / "decoder.q8_0.gguf", tmp_path / "iq3_m.gguf", fields)
    out = tmp_path / "bundle"
    manifest = export(
        made.checkpoint, out, vision=["fp32"], decoder_gguf=file, quick=True, progress=False
    )
    entry = manifest.decoder.files["iq3_m"]
    assert entry.name == "decoder.iq3_m.gguf" and entry.bits_per_weight is not None
    assert manifest.parity is not None and manifest.parity.decoder["iq3_m"].bound == 0.9
    assert np.isclose(entry.bits_per_weight, 8.5, atol=2.5)
    with VLM.from_pretrained(out, threads=1) as vlm:
        found = vlm.prompt([{"role": "user", "content": "<image> is what?"}])
    texts = [part for part in found.parts if isinstance(part, PromptText)]
    assert not any(IMAGE in part.token_ids for part in texts)
    assert "<image> is what?" in "".join(part.text for part in texts)
