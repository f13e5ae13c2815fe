"""Bundles: find the folder of a model by name, path or hub repository, and check its files."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgevlm.choice_calibration import FILE_NAME as CHOICE_CALIBRATION_NAME
from edgevlm.choice_calibration import ChoiceCalibration
from edgevlm.errors import BundleError, InputError
from edgevlm.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgevlm.user_cache import user_cache, write_cached

BUILT_IN = Path(__file__).parent / "models"
"""Folder of the bundles that are in the package."""

DEFAULT_MODEL = "edgevlm-nano"
"""Name of the built-in model that is used if none is named."""

DECODER_PREFERENCE = ("q8_0", "q4_k_m", "q4_0", "f16", "int8", "int4", "fp32", "fp16")
"""Types of decoders in the order of preference: close to the checkpoint, and small. The names of llama.cpp's
come first, then those of ONNX graphs."""

DecoderRuntimeName = Literal["auto", "llama.cpp", "onnx"]
"""Runtime of the decoder. ``auto``: that of the type, or llama.cpp if the bundle has a file for it and it is
installed, or else ONNX Runtime."""


def built_in_models() -> list[str]:
    """Return the names of the bundles in the package."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{MANIFEST_NAME}"))


@dataclass(frozen=True)
class Bundle:
    """A folder with a checked manifest, whose files all exist and have the right size."""

    folder: Path
    """Folder of the bundle."""
    manifest: Manifest
    """Content of its ``manifest.json``."""
    choice_calibration: ChoiceCalibration = field(default_factory=ChoiceCalibration)
    """Content of its ``choice_calibration.json``; without this file, no temperatures."""

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Bundle:
        """Find a bundle and check that it is complete.

        Args:
            model: a built-in name, a folder, or a hub repository ``owner/name``, tried in this order.
            revision: branch, tag or commit of a hub repository; None: the default branch.
            cache_dir: folder for downloads; None: huggingface_hub's own.
            token: token for a private repository; None: the one that huggingface_hub has stored.
            local_files_only: use downloaded files only, never the network.

        Raises:
            InputError: `model` is not a text, or is empty.
            BundleError: there is no such model, the bundle is not complete, or its
                ``choice_calibration.json`` is damaged or of another bundle.
        """
        name = os.fspath(model)
        if not isinstance(name, str) or not name:
            raise InputError(f"model must be a name, folder or hub repository, is {model!r}")
        folder = BUILT_IN / name if name in built_in_models() else Path(name).expanduser()
        if not folder.exists():
            looks_like_repository = isinstance(model, str) and name.count("/") == 1
            if not looks_like_repository or name.startswith((".", "~", "/")):
                raise BundleError(
                    f"no model {name!r}: not built in ({', '.join(built_in_models())}), not a folder, "
                    f"not a hub repository (owner/name); make one with: edgevlm export CHECKPOINT OUT"
                )
            folder = _download(name, revision, cache_dir, token, local_files_only)
            if not (folder / MANIFEST_NAME).is_file():
                of = () if revision is None else ("--revision", revision)
                raise BundleError(
                    f"the hub repository {name!r} has no {MANIFEST_NAME}, so it is not a bundle; if it is a "
                    f"checkpoint, export it: {_export_command(name, './' + name.rpartition('/')[2], *of)}"
                )
        elif not (folder / MANIFEST_NAME).is_file():
            raise BundleError(_explain_no_bundle(folder))
        manifest = Manifest.load(folder)
        bundle = cls(folder, manifest, ChoiceCalibration.load(folder, manifest))
        for entry in bundle.manifest.files():
            path = bundle.path(entry)
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise BundleError(f"{path} is missing; the bundle is incomplete, export it again")
            if size != entry.size:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {entry.size}; the file is damaged or is "
                    f"not the one that was exported; copy or export the bundle again"
                )
        return bundle

    def path(self, entry: FileEntry) -> Path:
        """Return the path of a file of the bundle."""
        return self.folder / entry.name

    def vision_file(self, precision: str | None, preferred: Sequence[str]) -> FileEntry:
        """Return the vision graph of a precision, or of the first available one.

        Args:
            precision: such as ``int8``; None: the first of `preferred` that the bundle has, or else its
                first.
            preferred: precisions in the order of preference.

        Raises:
            InputError: the bundle has no such precision.
        """
        return _choose_file("vision graph", self.manifest.vision.files, precision, preferred)

    def decoder_file(
        self, precision: str | None, runtime: DecoderRuntimeName = "auto"
    ) -> FileEntry:
        """Return the decoder of a type: a GGUF file or an ONNX graph.

        Args:
            precision: such as ``q8_0`` (llama.cpp) or ``int8`` (ONNX); None: the first of
                `DECODER_PREFERENCE` that the bundle has, or else its first.
            runtime: the runtime that the decoder is for.

        Raises:
            InputError: the bundle has no such decoder, or there is no such runtime.
        """
        decoder = self.manifest.decoder
        choices = {"auto": decoder.choices, "llama.cpp": decoder.files, "onnx": decoder.graphs}
        if runtime not in choices:
            raise InputError(f"decoder_runtime must be auto, llama.cpp or onnx, is {runtime!r}")
        files = choices[runtime]
        if runtime == "auto" and precision is None:
            files = self.auto_decoders
        if not files:
            raise InputError(
                f"{self.manifest.name} has no decoder for {runtime}, only {', '.join(decoder.choices)}"
            )
        return _choose_file("decoder", files, precision, DECODER_PREFERENCE)

    @property
    def auto_decoders(self) -> dict[str, FileEntry]:
        """The decoders, by type, of the runtime that is taken if none is named."""
        decoder = self.manifest.decoder
        if decoder.files and (_has_llama_cpp() or not decoder.graphs):
            return decoder.files
        return decoder.graphs

    @property
    def usable_decoders(self) -> dict[str, FileEntry]:
        """The decoders whose runtime is installed, by type; all of them if none is."""
        decoder = self.manifest.decoder
        found = decoder.choices if _has_llama_cpp() else decoder.graphs
        return found or decoder.choices

    def digest(self) -> str:
        """Return the SHA-256 of the manifest, which holds those of all files.

        Raises:
            BundleError: the manifest cannot be read.
        """
        return sha256(self.folder / MANIFEST_NAME)

    def check_hashes(self, entries: Sequence[FileEntry] | None = None) -> None:
        """Compare the SHA-256 of files with the manifest.

        Args:
            entries: the files; None: all.

        Raises:
            BundleError: a file cannot be read or was altered.
        """
        entries = self.manifest.files() if entries is None else entries
        with ThreadPoolExecutor(max_workers=min(4, len(entries))) as pool:
            digests = list(pool.map(sha256, [self.path(entry) for entry in entries]))
        for entry, digest in zip(entries, digests, strict=True):
            if digest != entry.sha256:
                raise BundleError(
                    f"{self.path(entry)} was altered: its SHA-256 is {digest}, the manifest says "
                    f"{entry.sha256}; copy or export the bundle again"
                )

    def check_hashes_once(self, entries: Sequence[FileEntry]) -> None:
        """Do as `check_hashes`, but skip files that were checked before and not written since.

        To compute the SHA-256 of a file takes longer than to load it.

        Args:
            entries: the files.

        Raises:
            BundleError: as `check_hashes`.
        """
        markers = {entry.name: self._marker(entry) for entry in entries}
        unknown = [entry for entry in entries if not markers[entry.name].exists()]
        if not unknown:
            return
        self.check_hashes(unknown)
        for entry in unknown:
            write_cached(markers[entry.name], f"{self.path(entry)}\n")

    def _marker(self, entry: FileEntry) -> Path:
        """Return the file of the user's cache that exists if this file was checked since its last change."""
        path = self.path(entry)
        try:
            status = path.stat()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error}") from error
        # ctime, since no program can set it back
        state = (
            str(path.resolve()),
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        name = hashlib.sha256(repr((state, entry.sha256)).encode()).hexdigest()
        return user_cache("checked") / name


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error}") from error


def _has_llama_cpp() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def _choose_file(
    kind: str, files: Mapping[str, FileEntry], precision: str | None, preferred: Sequence[str]
) -> FileEntry:
    if precision is None:
        precision = next((name for name in preferred if name in files), next(iter(files)))
    if precision not in files:
        raise InputError(f"the bundle has no {kind} in {precision!r}; it has {', '.join(files)}")
    return files[precision]


def _explain_no_bundle(path: Path) -> str:
    """Say what a path is instead of a bundle, and which command makes a bundle."""
    expected = f"a bundle is a folder with {MANIFEST_NAME}"
    name = path.resolve().name if not path.name else path.stem if path.is_file() else path.name
    out = str(
        path.with_name(f"{name}-bundle") if path.name else path.resolve().parent / f"{name}-bundle"
    )
    if path.is_file() and path.suffix == ".gguf":
        return (
            f"{path} is a GGUF file, which holds the decoder alone; {expected}, made from the checkpoint "
            f"of this file: {_export_command('CHECKPOINT', out, '--decoder-gguf', str(path))}"
        )
    if path.is_file() and path.suffix in (".onnx", ".safetensors", ".bin", ".pt", ".pth"):
        return f"{path} is one file of a model; {expected}: {_export_command('CHECKPOINT', out)}"
    if not path.is_dir():
        return f"{path} is not a folder; {expected}"
    if (path / "adapter_config.json").is_file():
        return (
            f"{path} is an adapter, not a bundle; {_export_command(str(path), out)} says how to merge it "
            f"into its base model; then export the result: {_export_command('MERGED', out)}"
        )
    if (path / "config.json").is_file():
        return f"{path} is a checkpoint, not a bundle; export it: {_export_command(str(path), out)}"
    return (
        f"{path} is not a bundle, since it has no {MANIFEST_NAME}; make one: "
        f"{_export_command('CHECKPOINT', 'OUT')}"
    )


def _export_command(*arguments: str) -> str:
    return f"edgevlm export {shlex.join(arguments)}"


def _download(
    repository: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[
                    MANIFEST_NAME,
                    CHOICE_CALIBRATION_NAME,
                    "vision*",
                    "decoder*",
                    "README.md",
                ],
            )
        )
    except Exception as error:
        # huggingface_hub raises its own errors, those of requests and OSError; all mean: no bundle.
        raise BundleError(
            f"cannot get the hub repository {repository!r}: {' '.join(str(error).split())}; "
            f"is the name right, and is there a network?"
        ) from error
