"""The README of a bundle, a model card for the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edgevlm.manifest import Drift, FileEntry, Manifest

CARD = """\
---
license: {license}
base_model: {repository}
library_name: edgevlm
pipeline_tag: image-text-to-text
---

# {name}

`{repository}`{revision} ({family}) as a bundle for [edgevlm](https://github.com/edgevlm/edgevlm): the
vision tower as ONNX, the language model as GGUF, and a manifest that says how the two work together.

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
An image becomes tiles of {tile_height} x {tile_width} pixels; each takes {tokens} of the {context} positions
of the language model.

The parts work without edgevlm, too: `vision.*.onnx` in ONNX Runtime, input `{input_name}` (uint8
`[n, {tile_height}, {tile_width}, 3]`, unchanged pixels), output `{output_name}` (float32
`[n, {tokens}, {width}]`); `decoder.*.gguf` in llama.cpp, for text alone with
`llama-cli -m {decoder_file}`.

## Parity

Compared with transformers in float32, on {pictures} images with {prompts} prompts and {positions} positions
of forced answers. The error is `|ours - theirs| / |theirs|`, of the embeddings for the vision graph, of the
logits for the language model. The tokenizer gives the token ids of transformers for {texts} texts.

| part | precision | relative error | bound | same most likely token |
|---|---|---|---|---|
{parity}
{drift}
Made with {created_with}.
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
    return CARD.format(
        license=scalar(manifest.source.license),
        repository=manifest.source.repository,
        revision=f" at revision `{revision}`" if revision else "",
        family=manifest.source.family,
        name=manifest.name,
        files="\n".join(
            [
                *file_rows("vision", manifest.vision.files),
                *file_rows("language model", manifest.decoder.files),
            ]
        ),
        calibration=(
            CALIBRATION.format(images=manifest.vision.calibration)
            if manifest.vision.calibration
            else ""
        ),
        tile_height=manifest.image.tiling.tile_size[0],
        tile_width=manifest.image.tiling.tile_size[1],
        tokens=manifest.vision.tokens_per_tile,
        width=manifest.vision.width,
        context=manifest.decoder.context_length,
        input_name=manifest.vision.input_name,
        output_name=manifest.vision.output_name,
        decoder_file=next(iter(manifest.decoder.files.values())).name,
        pictures=parity.pictures,
        prompts=parity.prompts,
        positions=parity.positions,
        texts=parity.texts,
        parity="\n".join(
            [
                *drift_rows("vision", parity.vision),
                *drift_rows("language model", parity.decoder),
            ]
        ),
        drift=DRIFT_ALLOWED if parity.drift_allowed else "",
        created_with=", ".join(
            f"{package} {version}" for package, version in manifest.created_with.items()
        ),
    )


def scalar(text: str) -> str:
    """Return a text as a YAML value, quoted if YAML would read it as something else."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*(?:,? [\w.+-]+)*", text) else json.dumps(text)


def file_rows(part: str, files: Mapping[str, FileEntry]) -> list[str]:
    """Return a table row for each file."""
    return [
        f"| `{entry.name}` | {part}, {precision} | {entry.size:,} | "
        f"{'' if entry.bits_per_weight is None else f'{entry.bits_per_weight:.2f}'} |"
        for precision, entry in files.items()
    ]


def drift_rows(part: str, drifts: Mapping[str, Drift]) -> list[str]:
    """Return a table row for each precision."""
    return [
        f"| {part} | {precision} | {drift.relative_error:.1e} | {drift.bound:g} | "
        f"{'' if drift.top1_agreement is None else f'{drift.top1_agreement:.1%}'} |"
        for precision, drift in drifts.items()
    ]
