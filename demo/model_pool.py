"""The models that the page offers, what is known of them, and those of them that are loaded.

Browsers choose for themselves; what they choose is loaded once for all of them. When one more is asked for
than are kept, the one that was used longest ago goes, once nobody uses it.
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
from edgevlm.demo.checks import Checks
from edgevlm.errors import BundleError, EdgeVLMError, InputError
from edgevlm.local_bundles import exported_bundles
from edgevlm.manifest import FileEntry, Usage
from edgevlm.runtimes import system
from edgevlm.vlm import VLM

MOST_LOADED = 2
"""As many as are compared; more would take memory that nobody sees the use of."""

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen, with the precisions of its two halves."""

    label: str
    """What a person reads and chooses; no two offers share it."""
    model: str
    """Name, folder or repository, as `VLM.from_pretrained` takes it."""
    vision: str | None = None
    """None: whichever suits the device."""
    decoder: str | None = None
    bundle: Bundle | None = None
    """None if it cannot be opened."""
    problem: str | None = None
    """Why it cannot be used, as far as is known."""
    checked: bool = False
    """Whether its files were read and found to be those that were exported."""

    @property
    def files(self) -> list[FileEntry]:
        """Those that may be loaded."""
        if self.bundle is None:
            return []
        manifest = self.bundle.manifest
        halves = ((manifest.vision.files, self.vision), (manifest.decoder.files, self.decoder))
        return [
            entry
            for files, chosen in halves
            for name, entry in files.items()
            if chosen in (None, name)
        ]

    @property
    def usage(self) -> Usage:
        """What it is for; nothing is known of a broken model."""
        known = None if self.bundle is None else self.bundle.manifest.usage
        return known or Usage()


@dataclass
class Loaded:
    """A model in memory."""

    vlm: VLM
    offer: Offer
    memory: int | None
    """Bytes by which this process grew while it was loaded."""

    @property
    def disk(self) -> int:
        """Bytes of the two files that are loaded."""
        return self.vlm.vision_file.size + self.vlm.decoder_file.size


@dataclass
class _Place:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model is loaded, so that it is loaded once."""
    loaded: Loaded | None = None
    users: int = 0
    replaced: bool = False
    """Another bundle goes by its label now; it is closed once nobody uses it."""


class Models:
    """What can be chosen and what is loaded; safe to use from many threads.

    Args:
        model: what `VLM.from_pretrained` takes; it is offered first.
        device, threads: of every model, as `VLM.from_pretrained` takes them.
    """

    def __init__(
        self, model: str = DEFAULT_MODEL, *, device: str = "auto", threads: int | None = None
    ) -> None:
        self._first = model
        self._device = device
        self._threads = threads
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()
        self.checks = Checks()

    def offers(self) -> list[Offer]:
        """What there is now: the first model, those built in, those exported on this machine.

        Files that were not checked since they changed are checked from now on, while this returns.
        """
        named = list(dict.fromkeys([self._first, *built_in_models()]))
        first = Path(self._first).expanduser().resolve()
        folders = [folder for folder in exported_bundles() if folder.resolve() != first]
        names = Counter([*named, *(folder.name for folder in folders)])
        offers = [offer for model in named for offer in _offers(model, model)]
        for folder in folders:
            alone = names[folder.name] == 1
            offers += _offers(str(folder), folder.name if alone else f"{folder.name} ({folder})")
        self._drop_replaced(offers)
        return [self._checked(offer) for offer in offers]

    def find(self, label: str | None) -> Offer:
        """The offer of this label; None is the first.

        Raises:
            InputError: there is none, or no longer.
        """
        offers = self.offers()
        if label is None:
            return offers[0]
        for offer in offers:
            if offer.label == label:
                return offer
        raise InputError(f"no model {label!r} is offered any more; choose another under Models")

    @contextmanager
    def lease(self, label: str | None, progress: Progress | None = None) -> Iterator[Loaded]:
        """A loaded model, which stays so while it is leased; the first lease loads it.

        Raises:
            EdgeVLMError: it cannot be loaded.
        """
        offer = self.loaded_offer(label) or self.find(label)
        with self._lock:
            place = self._places.setdefault(offer.label, _Place())
            self._places.move_to_end(offer.label)
            place.users += 1
        try:
            with place.lock:
                if place.loaded is None:
                    self._make_room()
                    place.loaded = self._load(offer, progress)
            yield place.loaded
        finally:
            with self._lock:
                place.users -= 1
                unused = place.users == 0
                if unused and place.loaded is None and self._places.get(offer.label) is place:
                    del self._places[offer.label]
            if unused and place.replaced and place.loaded is not None:
                place.loaded.vlm.close()

    def is_loaded(self, label: str) -> bool:
        return self.loaded_offer(label) is not None

    def loaded_offer(self, label: str | None) -> Offer | None:
        """The offer of a model that is loaded, without a look at the disk; else None."""
        with self._lock:
            place = None if label is None else self._places.get(label)
            return None if place is None or place.loaded is None else place.loaded.offer

    def usage(self, label: str | None) -> Usage:
        """What a model is for; nothing is known of one that is gone or broken."""
        try:
            offer = self.loaded_offer(label) or self.find(label)
        except InputError:
            return Usage()
        return offer.usage

    def loading(self, label: str | None) -> Iterator[float]:
        """Load a model: shares of the steps that are done, from 0 to 1, each before the next step.

        Raises:
            EdgeVLMError: it cannot be loaded.
        """
        steps: queue.SimpleQueue[float | Exception | None] = queue.SimpleQueue()

        def load() -> None:
            try:
                with self.lease(label, lambda share, what: steps.put(share)):
                    pass
            except Exception as error:
                steps.put(error)
            steps.put(None)

        threading.Thread(target=load, daemon=True).start()
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step

    def close(self) -> None:
        """Free every model; waits for answers that are being made."""
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        for place in places:
            with place.lock:
                if place.loaded is not None:
                    place.loaded.vlm.close()

    def _drop_replaced(self, offers: list[Offer]) -> None:
        """Forget loaded models whose bundles were exported again, here or elsewhere."""
        closing = []
        with self._lock:
            for offer in offers:
                place = self._places.get(offer.label)
                if offer.bundle is None or place is None or place.loaded is None:
                    continue
                if place.loaded.offer.bundle != offer.bundle:
                    del self._places[offer.label]
                    place.replaced = True
                    if place.users == 0:
                        closing.append(place.loaded)
        for loaded in closing:
            loaded.vlm.close()

    def _checked(self, offer: Offer) -> Offer:
        if offer.bundle is None:
            return offer
        wrong = self.checks.result(offer.bundle, offer.files)
        return replace(offer, problem=wrong or None, checked=wrong == "")

    def _load(self, offer: Offer, progress: Progress | None) -> Loaded:
        if offer.problem is not None:
            raise BundleError(offer.problem)
        system.return_freed_memory()  # or what loading hands back of earlier work would count against it
        before = system.resident_memory()
        vlm = VLM.from_pretrained(
            offer.model,
            device=self._device,
            threads=self._threads,
            vision=offer.vision,
            decoder=offer.decoder,
            progress=progress,
        )
        after = system.resident_memory()
        grown = None if before is None or after is None else max(after - before, 0)
        return Loaded(vlm, offer, grown)

    def _make_room(self) -> None:
        """Close models that nobody uses until one more may be loaded."""
        with self._lock:
            idle = [
                label
                for label, place in self._places.items()
                if place.loaded is not None and place.users == 0
            ]
            loaded = sum(place.loaded is not None for place in self._places.values())
            leaving = [
                self._places.pop(label) for label in idle[: max(loaded + 1 - MOST_LOADED, 0)]
            ]
        for place in leaving:
            if place.loaded is not None:
                place.loaded.vlm.close()


def _offers(model: str, name: str) -> list[Offer]:
    """A bundle as it chooses its precisions itself, and in each of several."""
    try:
        bundle = Bundle.open(model, local_files_only=True)
    except (EdgeVLMError, OSError) as error:
        return [Offer(name, model, problem=str(error))]
    pairs = [
        (vision, decoder)
        for vision in bundle.manifest.vision.files
        for decoder in bundle.manifest.decoder.files
    ]
    offers = [Offer(name, model, bundle=bundle)]
    if len(pairs) > 1:
        offers += [
            Offer(f"{name}: {vision}, {decoder}", model, vision, decoder, bundle)
            for vision, decoder in pairs
        ]
    return offers
