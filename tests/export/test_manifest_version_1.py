"""Today's exports have the manifests that version 1 had: `tests/manifests/version-1` in today's words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgevlm.export.pipeline import export
from edgevlm.manifest import Manifest
from tests.core.test_manifest_version_1 import golden
from tests.support.make_bundles import make_checkpoint
from tests.support.oracle import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_says_what_version_1_said(family: str, tmp_path: Path) -> None:
    """All but hashes, versions, and measured errors with their bounds, which have changed since."""
    bundle = tmp_path / "bundle"
    checkpoint = make_checkpoint(family, tmp_path / f"tiny-{family}")
    export(checkpoint, bundle, vision=("fp32",), decoder=("f16",), quick=True, progress=False)
    found = Manifest.load(bundle)
    assert json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 2
    data = golden(family)
    prompt = data["prompt"]
    # A message of PaliGemma's template was worded anew since.
    prompt["chat_template"] = prompt["chat_template"].replace("its pictures", "its images")
    if family == "paligemma":  # version 1 did not know how it writes boxes
        data["usage"] = {
            "images": "photographs",
            "location_format": {"kind": "loc-tokens", "bins": 1024},
        }
    found = without_videos(found, prompt["chat_template"])
    assert without_measurements(found) == without_measurements(Manifest.from_dict(data))


def without_videos(manifest: Manifest, chat_template: str) -> Manifest:
    """Return a manifest without what version 1 could not say; its chat template holds the older one."""
    if manifest.video is None:
        return manifest
    assert chat_template in manifest.prompt.chat_template
    prompt = dataclasses.replace(
        manifest.prompt, chat_template=chat_template, video_placeholder=None, video_template=None
    )
    return dataclasses.replace(manifest, prompt=prompt, video=None)


def without_measurements(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON without measurements, hashes and versions."""
    data: dict[str, Any] = json.loads(manifest.to_json())
    for part in ("vision", "decoder"):
        for entry in data[part]["files"].values():
            del entry["size"], entry["sha256"], entry["bits_per_weight"]
        for drift in data["parity"][part].values():
            del drift["relative_error"], drift["bound"]
    del data["created_with"], data["parity"]["texts"]
    return data
