"""The README of a bundle, a model card for the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edgevlm.inputs.packing import max_image_tokens
from edgevlm.manifest import AnswerReport, CrossPacking, Drift, FileEntry, Manifest, ParityReport

CARD = """\
---
license: {license}
base_model: {repository}
library_name: edgevlm
pipeline_tag: image-text-to-text
---

# {name}

`{repository}`{revision} ({family}) as a bundle for [edgevlm](https://github.com/edgevlm/edgevlm): the
vision tower as ONNX, the language model as {decoders}, and a manifest that says how the two work together.

```console
$ edgevlm ask "What is in the picture?" photo.jpg --model {name}
```

```python
from edgevlm import VLM

answer = VLM.from_pretrained("{name}").ask("photo.jpg", "What is in the picture?")
print(answer.text)
```

## Files

| file | content | bytes | bits per weight |
|---|---|---|---|
{files}
{calibration}
{tiles}

The parts work without edgevlm, too: `vision.*.onnx` in ONNX Runtime, input `{input_name}` (uint8
`{input_shape}`, unchanged pixels), output `{output_name}` (float32
`{output_shape}`){decoder_use}.

## Parity

{parity}
{drift}
Made with {created_with}.
"""

EXACT_PARITY = """\
The *exact pair* is the {exact_vision} vision graph with the {exact_decoder} language model. It was compared
with transformers in float32, on {pictures} drawings with {prompts} prompts and {positions} positions of
forced answers. Every other file was compared with the exact pair, on {images} images: photographs that come
with edgevlm, and the drawings. The error is `|ours - theirs| / |theirs|`, of the embeddings for the vision
graph, of the logits for the language model. The tokenizer gives the token ids of transformers for {texts}
texts.

| part | precision | compared with | relative error | bound | same most likely token |
|---|---|---|---|---|---|
{rows}
{answers}"""

CENTERED = """
Embeddings of all images have a part in common, which hides errors. Without this mean the error is:

| vision graph | all images | worst image | worst token |
|---|---|---|---|
{rows}
"""

ANSWERS = """
## Answers

The exact pair answered a question about each image, {positions} tokens in all. Each other pair of files was
given these answers token by token. KL is the mean divergence of its next-token distributions from those of
the exact pair, in nats; 0 means the same distributions. To compare: **another image** gives the exact pair a
KL of {image_kl}, and the same most likely token at {image_agreement} of the tokens.

| vision | language model | KL | KL of the worst image | bound | same top token | bound | same beginning |
|---|---|---|---|---|---|---|---|
{rows}

**Bold** is what `device="auto"` loads on a CPU: {auto_vision} vision with the {auto_decoder} language model.
*Same beginning* is the part of an answer before the first other token, on average.
"""

SHORT_PARITY = """\
**Short form** (`--quick`): every file was compared with transformers in float32, on {pictures} drawings with
{prompts} prompts and {positions} positions of forced answers. Answers about photographs were not measured.
The error is `|ours - theirs| / |theirs|`, of the embeddings for the vision graph, of the logits for the
language model. The tokenizer gives the token ids of transformers for {texts} texts.

| part | precision | relative error | bound | same most likely token |
|---|---|---|---|---|
{rows}
"""

CALIBRATION = """
The quantized vision graphs were fitted to {images}.
"""

DRIFT_ALLOWED = """
**A bound was exceeded**, and the person who exported this bundle allowed it.
"""


def write_card(manifest: Manifest) -> str:
    """Return the README for a manifest, which must have a parity report."""
    parity = manifest.parity
    assert parity is not None
    revision = manifest.source.revision
    count = 1 if manifest.vision.fixed_by_export else "n"
    height, width = manifest.image.tile_size or ("height", "width")
    return CARD.format(
        license=scalar(manifest.source.license),
        repository=manifest.source.repository,
        revision=f" at revision `{revision}`" if revision else "",
        family=manifest.source.family,
        name=manifest.name,
        files="\n".join(
            [
                *file_rows("vision", manifest.vision.files),
                *file_rows("weights of vision", manifest.vision.weights),
                *file_rows("language model", manifest.decoder.weight_files),
                *graph_rows(manifest),
            ]
        ),
        calibration=(
            CALIBRATION.format(images=manifest.vision.calibration)
            if manifest.vision.calibration
            else ""
        ),
        tiles=describe_tiles(manifest),
        input_shape=f"[{count}, {height}, {width}, 3]",
        output_shape=f"[{count}, {manifest.vision.tokens_per_tile or 'tokens'}, {manifest.vision.width}]",
        input_name=manifest.vision.input_name,
        output_name=manifest.vision.output_name,
        decoders=" and ".join(decoder_formats(manifest)),
        decoder_use=describe_use(manifest),
        parity=describe_parity(parity).rstrip(),
        drift=DRIFT_ALLOWED if parity.drift_allowed else "",
        created_with=", ".join(
            f"{package} {version}" for package, version in manifest.created_with.items()
        ),
    )


def scalar(text: str) -> str:
    """Return a text as a YAML value, quoted if YAML would read it as something else."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*(?:,? [\w.+-]+)*", text) else json.dumps(text)


def describe_tiles(manifest: Manifest) -> str:
    """Return what an image becomes, and how many positions it takes."""
    context = f"the {manifest.decoder.context_length} positions of the language model."
    if isinstance(manifest.vision.packing, CrossPacking):
        side = manifest.vision.pixels_per_token
        return (
            f"An image is put on a canvas of squares of {side} x {side} pixels. It takes one of\n{context} "
            f"Layers of cross-attention look at it."
        )
    if manifest.image.tile_size is None:
        side = manifest.vision.pixels_per_token
        return (
            f"An image keeps about its own size. Each square of {side} x {side} pixels takes one of\n"
            f"{context} An image takes up to {max_image_tokens(manifest.image, manifest.vision)} unless "
            f"you set a limit."
        )
    height, width = manifest.image.tile_size
    if manifest.vision.fixed_by_export:
        return (
            f"Every image is resized to {width} pixels in width and {height} in height, whatever its aspect "
            f"ratio is.\nThis size was chosen for the export, the checkpoint takes images of any size. An "
            f"image takes\n{manifest.vision.tokens_per_tile} of {context}"
        )
    return (
        f"An image becomes tiles of {height} x {width} pixels; each takes\n"
        f"{manifest.vision.tokens_per_tile} of {context}"
    )


def file_rows(part: str, files: Mapping[str, FileEntry]) -> list[str]:
    """Return a table row for each file."""
    return [
        f"| `{entry.name}` | {part}, {precision} | {entry.size:,} | "
        f"{'' if entry.bits_per_weight is None else f'{entry.bits_per_weight:.2f}'} |"
        for precision, entry in files.items()
    ]


def graph_rows(manifest: Manifest) -> list[str]:
    """Return a table row for each file that graphs of the language model need beside their weights."""
    spec = manifest.decoder.onnx
    if spec is None:
        return []
    shared = {"tokenizer": spec.tokenizer, "embeddings": spec.embeddings}
    if spec.layer_embeddings is not None:
        shared["embeddings of the layers"] = spec.layer_embeddings
    return file_rows("graph of the language model", spec.files) + file_rows(
        "language model", shared
    )


def decoder_formats(manifest: Manifest) -> list[str]:
    """Return the file formats of the language model."""
    decoder = manifest.decoder
    return [*(["GGUF"] if decoder.files else []), *(["ONNX"] if decoder.graphs else [])]


def describe_use(manifest: Manifest) -> str:
    """Return how GGUF files are used without edgevlm; empty without such files."""
    if not manifest.decoder.files:
        return ""
    file = next(iter(manifest.decoder.files.values())).name
    return f"; `decoder.*.gguf` in llama.cpp, for text alone with\n`llama-cli -m {file}`"


def describe_parity(parity: ParityReport) -> str:
    """Return the tables of a parity report."""
    answers = parity.answers
    figures = {
        "pictures": parity.pictures,
        "prompts": parity.prompts,
        "positions": parity.positions,
        "texts": parity.texts,
    }
    parts = [("vision", parity.vision), ("language model", parity.decoder)]
    if answers is None:
        rows = [
            f"| {part} | {precision} | {drift.relative_error:.1e} | {drift.bound:g} | "
            f"{percent(drift.top1_agreement)} |"
            for part, drifts in parts
            for precision, drift in drifts.items()
        ]
        return SHORT_PARITY.format(rows="\n".join(rows), **figures)
    rows = [
        f"| {part} | {precision} | {'exact pair' if drift.bound is None else 'transformers'} | "
        f"{drift.relative_error:.1e} | {'' if drift.bound is None else f'{drift.bound:g}'} | "
        f"{percent(drift.top1_agreement)} |"
        for part, drifts in parts
        for precision, drift in drifts.items()
    ]
    return EXACT_PARITY.format(
        exact_vision=answers.exact_vision,
        exact_decoder=answers.exact_decoder,
        images=len(answers.images),
        rows="\n".join(rows),
        answers=describe_centered(parity.vision, answers) + describe_answers(answers),
        **figures,
    )


def describe_centered(vision: Mapping[str, Drift], answers: AnswerReport) -> str:
    """Return the table of centered errors; empty if only the exact graph is in the bundle."""
    rows = []
    for precision, drift in vision.items():
        if (errors := drift.centered_error_by_image) is not None:
            rows.append(
                f"| {precision} | {percent(drift.centered_error)} | {percent(max(errors))} "
                f"({answers.worst_image(errors)}) | {percent(drift.max_token_error)} |"
            )
    return CENTERED.format(rows="\n".join(rows)) if rows else ""


def describe_answers(answers: AnswerReport) -> str:
    """Return the table of pairs; empty if only the exact pair is in the bundle."""
    rows = []
    for pair in answers.pairs:
        bold = "**" if answers.is_automatic(pair) else ""
        rows.append(
            f"| {bold}{pair.vision}{bold} | {bold}{pair.decoder}{bold} | {pair.kl:.2g} | "
            f"{max(pair.kl_by_image):.2g} ({answers.worst_image(pair.kl_by_image)}) | "
            f"{pair.kl_bound:.2g} | {percent(pair.top1_agreement)} | "
            f"{percent(pair.agreement_bound)} | {percent(pair.same_start)} |"
        )
    if not rows:
        return ""
    return ANSWERS.format(
        positions=answers.positions,
        image_kl=f"{answers.image_kl:.2g}",
        image_agreement=percent(answers.image_agreement),
        rows="\n".join(rows),
        auto_vision=answers.auto_vision,
        auto_decoder=answers.auto_decoder,
    )


def percent(fraction: float | None) -> str:
    """Return a fraction in percent; empty for None."""
    return "" if fraction is None else f"{fraction:.1%}"
