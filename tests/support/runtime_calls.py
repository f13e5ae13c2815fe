"""The calls of both runtimes of a model, counted, so that a test can act when a certain one begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgevlm import VLM


@dataclass
class RuntimeCalls:
    """Counts the calls of both runtimes of a model, and tells when a certain one begins."""

    vlm: VLM
    at: int = -1
    begin: Callable[[], object] = lambda: None
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        engine = self.vlm._engine
        vision, decoder = engine._encoder._vision, engine._decoder
        for owner, name in (
            (vision, "encode"),
            (decoder, "decode_tokens"),
            (decoder, "decode_embeddings"),
            (decoder, "decode_draft"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.names.append(name)
            if len(self.names) - 1 == self.at:
                self.begin()
            return method(*arguments, **named)

        return counted

    def expect(self, at: int, begin: Callable[[], object]) -> None:
        """Call `begin` when call number `at` from now on begins."""
        self.names.clear()
        self.at, self.begin = at, begin
