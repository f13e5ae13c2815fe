"""The models that the page offers, and those that are loaded.

Each browser chooses a model. A model is loaded once for all browsers. When one more than `MAX_LOADED` is
needed, the least recently used model that nobody uses is closed.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevlm.bundle import DEFAULT_MODEL, Bundle, built_in_models
from edgevlm.demo.checks import FileChecks
from edgevlm.errors import BundleError, EdgeVLMError, InputError
from edgevlm.local_bundles import exported_bundles
from edgevlm.manifest import FileEntry, Usage
from edgevlm.runtimes import system
from edgevlm.vlm import VLM

MAX_LOADED = 2
"""The tab Compare needs two models. More of them would only take memory."""

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class ModelEntry:
    """A model that a person can choose, with the precisions of its two files."""

    label: str
    """Name in the page; unique among all entries."""
    model: str
    """Name, folder or repository, as for `VLM.from_pretrained`."""
    vision: str | None = None
    """Precision of the vision graph; None: chosen by the device."""
    decoder: str | None = None
    """Precision of the decoder; None: chosen by the device."""
    bundle: Bundle | None = None
    """None if it cannot be opened."""
    problem: str | None = None
    """Why the model cannot be used; None if no reason is known."""
    checked: bool = False
    """True if the hashes of its files were checked."""

    @property
    def files(self) -> list[FileEntry]:
        """The files that may be loaded."""
        if self.bundle is None:
            return []
        manifest = self.bundle.manifest
        decoder = manifest.decoder
        visions = (
            file
            for name, chosen in manifest.vision.files.items()
            if self.vision in (None, name)
            for file in manifest.vision.needed(chosen)
        )
        needed = (
            file
            for name, chosen in self.bundle.auto_decoders.items()
            if self.decoder in (None, name)
            for file in decoder.needed(chosen)
        )
        return list(dict.fromkeys([*visions, *needed]))

    @property
    def usable(self) -> bool:
        """True if the files were checked and are good."""
        return self.checked and self.problem is None

    @property
    def usage(self) -> Usage:
        """The intended use; empty for a bundle that cannot be opened."""
        known = None if self.bundle is None else self.bundle.manifest.usage
        return known or Usage()


@dataclass
class LoadedModel:
    """A model in memory."""

    vlm: VLM
    entry: ModelEntry
    memory: int | None
    """Bytes by which this process grew while the model was loaded."""

    @property
    def disk(self) -> int:
        """Bytes of the two files that are loaded."""
        return self.vlm.vision_file.size + self.vlm.decoder_file.size


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model is loaded, so that it is loaded once."""
    loaded: LoadedModel | None = None
    users: int = 0
    replaced: bool = False
    """True if another bundle has this label now. The model is closed when nobody uses it."""


class ModelPool:
    """The models that can be chosen and those that are loaded. All methods are thread-safe.

    Args:
        model: as for `VLM.from_pretrained`; it is the first entry.
        device, threads: as for `VLM.from_pretrained`; the same for every model.
    """

    def __init__(
        self, model: str = DEFAULT_MODEL, *, device: str = "auto", threads: int | None = None
    ) -> None:
        self._first = model
        self._device = device
        self._threads = threads
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self.checks = FileChecks()

    def entries(self) -> list[ModelEntry]:
        """Return the first model, the built-in models and those exported on this machine.

        Start to check files that changed since their last check, in the background.
        """
        named = list(dict.fromkeys([self._first, *built_in_models()]))
        first = Path(self._first).expanduser().resolve()
        folders = [folder for folder in exported_bundles() if folder.resolve() != first]
        names = Counter([*named, *(folder.name for folder in folders)])
        entries = [entry for model in named for entry in _entries(model, model)]
        for folder in folders:
            unique = names[folder.name] == 1
            entries += _entries(str(folder), folder.name if unique else f"{folder.name} ({folder})")
        self._drop_replaced(entries)
        return [self._with_check_result(entry) for entry in entries]

    def find(self, label: str | None) -> ModelEntry:
        """Return the entry with this label; None: the first entry.

        Raises:
            InputError: there is no such entry, or no longer.
        """
        entries = self.entries()
        if label is None:
            return entries[0]
        for entry in entries:
            if entry.label == label:
                return entry
        raise InputError(f"no model {label!r} is offered any more; choose another under Models")

    @contextmanager
    def acquire(self, label: str | None, progress: Progress | None = None) -> Iterator[LoadedModel]:
        """Load a model if necessary, and keep it loaded inside the ``with`` block.

        Raises:
            EdgeVLMError: the model cannot be loaded.
        """
        entry = self.loaded_entry(label) or self.find(label)
        with self._lock:
            slot = self._slots.setdefault(entry.label, _Slot())
            self._slots.move_to_end(entry.label)
            slot.users += 1
        try:
            with slot.lock:
                if slot.loaded is None:
                    self._close_unused()
                    slot.loaded = self._load(entry, progress)
            yield slot.loaded
        finally:
            with self._lock:
                slot.users -= 1
                unused = slot.users == 0
                if unused and slot.loaded is None and self._slots.get(entry.label) is slot:
                    del self._slots[entry.label]
            if unused and slot.replaced and slot.loaded is not None:
                slot.loaded.vlm.close()

    def is_loaded(self, label: str) -> bool:
        """Return True if the model with this label is in memory."""
        return self.loaded_entry(label) is not None

    def loaded_entry(self, label: str | None) -> ModelEntry | None:
        """Return the entry of a loaded model without reading the disk; None if it is not loaded."""
        with self._lock:
            slot = None if label is None else self._slots.get(label)
            return None if slot is None or slot.loaded is None else slot.loaded.entry

    def usage(self, label: str | None) -> Usage:
        """Return the intended use of a model; empty for a model that is gone or broken."""
        try:
            entry = self.loaded_entry(label) or self.find(label)
        except InputError:
            return Usage()
        return entry.usage

    def load(self, label: str | None) -> Iterator[float]:
        """Load a model and yield the fraction that is done, 0 to 1, before each step.

        Raises:
            EdgeVLMError: the model cannot be loaded.
        """
        steps: queue.SimpleQueue[float | Exception | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                with self.acquire(label, lambda fraction, name: steps.put(fraction)):
                    pass
            except Exception as error:
                steps.put(error)
            steps.put(None)

        threading.Thread(target=run, daemon=True).start()
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step

    def close(self) -> None:
        """Free every model. Wait for answers that are under way."""
        with self._lock:
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            with slot.lock:
                if slot.loaded is not None:
                    slot.loaded.vlm.close()

    def _drop_replaced(self, entries: list[ModelEntry]) -> None:
        """Drop loaded models whose bundles were exported again."""
        closing = []
        with self._lock:
            for entry in entries:
                slot = self._slots.get(entry.label)
                if entry.bundle is None or slot is None or slot.loaded is None:
                    continue
                if slot.loaded.entry.bundle != entry.bundle:
                    del self._slots[entry.label]
                    slot.replaced = True
                    if slot.users == 0:
                        closing.append(slot.loaded)
        for loaded in closing:
            loaded.vlm.close()

    def _with_check_result(self, entry: ModelEntry) -> ModelEntry:
        if entry.bundle is None:
            return entry
        problem = self.checks.result(entry.bundle, entry.files)
        return replace(entry, problem=problem or None, checked=problem == "")

    def _load(self, entry: ModelEntry, progress: Progress | None) -> LoadedModel:
        if entry.problem is not None:
            raise BundleError(entry.problem)
        system.return_freed_memory()  # otherwise memory of earlier work would count against this model
        before = system.resident_memory()
        vlm = VLM.from_pretrained(
            entry.model,
            device=self._device,
            threads=self._threads,
            vision=entry.vision,
            decoder=entry.decoder,
            progress=progress,
        )
        after = system.resident_memory()
        grown = None if before is None or after is None else max(after - before, 0)
        return LoadedModel(vlm, entry, grown)

    def _close_unused(self) -> None:
        """Close models that nobody uses, so that one more may be loaded."""
        with self._lock:
            unused = [
                label
                for label, slot in self._slots.items()
                if slot.loaded is not None and slot.users == 0
            ]
            loaded = sum(slot.loaded is not None for slot in self._slots.values())
            closing = [
                self._slots.pop(label) for label in unused[: max(loaded + 1 - MAX_LOADED, 0)]
            ]
        for slot in closing:
            if slot.loaded is not None:
                slot.loaded.vlm.close()


def _entries(model: str, name: str) -> list[ModelEntry]:
    """Return a bundle with its default precisions, and each other pair of precisions."""
    try:
        bundle = Bundle.open(model, local_files_only=True)
    except (EdgeVLMError, OSError) as error:
        return [ModelEntry(name, model, problem=str(error))]
    pairs = [
        (vision, decoder)
        for vision in bundle.manifest.vision.files
        for decoder in bundle.auto_decoders
    ]
    entries = [ModelEntry(name, model, bundle=bundle)]
    if len(pairs) > 1:
        entries += [
            ModelEntry(f"{name}: {vision}, {decoder}", model, vision, decoder, bundle)
            for vision, decoder in pairs
        ]
    return entries
