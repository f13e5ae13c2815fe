"""A bundle: a name, folder or hub repository becomes a folder whose files are what its manifest says."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import BundleError, InputError
from edgevlm.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgevlm.user_cache import user_cache, write_cached

BUILT_IN = Path(__file__).parent / "models"
"""Bundles that ship inside the package, a folder each."""

DEFAULT_MODEL = "edgevlm-nano"

DECODER = ("q8_0", "q4_k_m", "q4_0", "f16")
"""Types in the order of preference when the caller names none: nearest to the checkpoint, yet small."""


def built_in_models() -> list[str]:
    """Names that `Bundle.open` knows without a folder or a network."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{MANIFEST_NAME}"))


@dataclass(frozen=True)
class Bundle:
    """A folder with a checked manifest, all of whose files are there with the right size."""

    folder: Path
    manifest: Manifest

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
            BundleError: nothing is found there, or what is there is no complete bundle.
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
                    f"the hub repository {name!r} has no {MANIFEST_NAME}, so it is no bundle; if it is a "
                    f"checkpoint, make one of it: {_export(name, './' + name.rpartition('/')[2], *of)}"
                )
        elif not (folder / MANIFEST_NAME).is_file():
            raise BundleError(_no_bundle(folder))
        bundle = cls(folder, Manifest.load(folder))
        for entry in bundle.manifest.files():
            path = bundle.path(entry)
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise BundleError(f"{path} is missing; the bundle is incomplete, export it again")
            if size != entry.size:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {entry.size}; it is damaged or not the "
                    f"file that was exported, copy or export the bundle again"
                )
        return bundle

    def path(self, entry: FileEntry) -> Path:
        return self.folder / entry.name

    def vision_file(self, precision: str | None, preferred: Sequence[str]) -> FileEntry:
        """The vision graph of a precision, or the first of those preferred that the bundle has.

        Raises:
            InputError: the bundle has no such precision.
        """
        return _choose("vision", self.manifest.vision.files, precision, preferred)

    def decoder_file(self, precision: str | None) -> FileEntry:
        """The decoder of a llama.cpp type, or the preferred one; raises as `vision_file`."""
        return _choose("decoder", self.manifest.decoder.files, precision, DECODER)

    def check_hashes(self, entries: Sequence[FileEntry] | None = None) -> None:
        """Read files and compare their SHA-256 with the manifest.

        Args:
            entries: None for all.

        Raises:
            BundleError: a file cannot be read or is not the one that was exported.
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
        """As `check_hashes`, but a file that was found right before and has not been written since is not
        read again: that would take longer than loading it.

        Raises:
            BundleError: as `check_hashes`.
        """
        marks = {entry.name: self._mark(entry) for entry in entries}
        unknown = [entry for entry in entries if not marks[entry.name].exists()]
        if not unknown:
            return
        self.check_hashes(unknown)
        for entry in unknown:
            write_cached(marks[entry.name], f"{self.path(entry)}\n")

    def _mark(self, entry: FileEntry) -> Path:
        """A file of the user's cache that stands for this content in this place since its last change."""
        path = self.path(entry)
        try:
            found = path.stat()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error}") from error
        # ctime: the system's own, which no program sets back
        seen = (
            str(path.resolve()),
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
        name = hashlib.sha256(repr((seen, entry.sha256)).encode()).hexdigest()
        return user_cache("checked") / name


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error}") from error


def _choose(
    half: str, files: Mapping[str, FileEntry], precision: str | None, preferred: Sequence[str]
) -> FileEntry:
    if precision is None:
        precision = next((name for name in preferred if name in files), next(iter(files)))
    if precision not in files:
        raise InputError(f"the bundle has no {half} in {precision!r}; it has {', '.join(files)}")
    return files[precision]


def _no_bundle(found: Path) -> str:
    """What was found in place of a bundle, with the command that makes one of it, as it is to be typed."""
    wanted = f"a bundle is a folder with {MANIFEST_NAME}"
    out = found.resolve().name if not found.name else found.stem if found.is_file() else found.name
    made = str(
        found.with_name(f"{out}-bundle") if found.name else found.resolve().parent / f"{out}-bundle"
    )
    if found.is_file() and found.suffix == ".gguf":
        return (
            f"{found} is a GGUF file, the language model alone; {wanted}, made from the checkpoint that the "
            f"file was made from: {_export('CHECKPOINT', made, '--decoder-gguf', str(found))}"
        )
    if found.is_file() and found.suffix in (".onnx", ".safetensors", ".bin", ".pt", ".pth"):
        return f"{found} is one file of a model; {wanted}: {_export('CHECKPOINT', made)}"
    if not found.is_dir():
        return f"{found} is not a folder; {wanted}"
    if (found / "adapter_config.json").is_file():
        return (
            f"{found} is an adapter, not a bundle; {_export(str(found), made)} says how to merge it into its "
            f"base model, and then: {_export('MERGED', made)}"
        )
    if (found / "config.json").is_file():
        return f"{found} is a checkpoint, not a bundle; make one of it: {_export(str(found), made)}"
    return f"{found} is not a bundle, it has no {MANIFEST_NAME}; {_export('CHECKPOINT', 'OUT')} makes one"


def _export(*arguments: str) -> str:
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
                allow_patterns=[MANIFEST_NAME, "vision*.onnx", "decoder*.gguf", "README.md"],
            )
        )
    except Exception as error:
        # huggingface_hub raises its own, requests', and OS errors; all mean that there is no bundle.
        raise BundleError(
            f"cannot get the hub repository {repository!r}: {' '.join(str(error).split())}; "
            f"is the name right, and is there a network?"
        ) from error
