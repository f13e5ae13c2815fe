"""Muon for the inner matrices, AdamW for the rest, as one optimizer.

Muon is momentum whose update is made orthogonal by Newton-Schulz steps. torch's own runs in
bfloat16, which is slow on many CPUs; this one runs in float32, one batched product for all matrices
of one shape, shared out among the processes that train together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

WORDS = 10.0  # share of the rate for words' embeddings: most words have a gradient in few steps
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly; [n, rows, columns]."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """One learning rate for both kinds: Muon's update is scaled to AdamW's usual size.

    `parts` are modules, each with its share of the learning rate, which stands in its parameter
    groups as `share`: who sets `lr` multiplies by it.
    """

    def __init__(
        self,
        parts: list[tuple[nn.Module, float]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.02,
    ) -> None:
        groups: list[dict[str, Any]] = []
        for module, share in parts:
            matrices, words, others = split_parameters(module)
            groups.append({"params": matrices, "muon": True, "share": share})
            groups.append({"params": words, "muon": False, "share": WORDS * share})
            groups.append({"params": others, "muon": False, "share": share})
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "weight_decay": weight_decay,
            "step": 0,
        }
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # of overloads
        del closure
        for group in self.param_groups:
            group["step"] += 1
            (self._muon if group["muon"] else self._adamw)(group)

    def _muon(self, group: dict[str, Any]) -> None:
        given = [p for p in group["params"] if p.grad is not None]
        together = dist.is_initialized()
        share = slice(dist.get_rank(), None, dist.get_world_size()) if together else slice(None)
        flat = torch.zeros(sum(p.numel() for p in given))
        parts = flat.split([p.numel() for p in given])
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        momenta = [self._momentum(p, group["momentum"]) for p in given]
        for momentum, part in list(zip(momenta, parts, strict=True))[share]:
            alike[momentum.shape].append((momentum, part.view(momentum.shape)))
        for pairs in alike.values():
            updates = orthogonal(torch.stack([momentum for momentum, _ in pairs]))
            for (_, part), update in zip(pairs, updates, strict=True):
                part.copy_(update)
        if together:
            dist.all_reduce(flat)
        for p, part in zip(given, parts, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(part.view(p.shape), alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)

    def _momentum(self, p: nn.Parameter, keep: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        mean: Tensor = state["momentum"]
        mean.lerp_(p.grad, 1 - keep)
        return p.grad.lerp(mean, keep)

    def _adamw(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["mean"].lerp_(p.grad, 1 - first)
            state["square"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            spread = (state["square"] / (1 - second ** group["step"])).sqrt().add_(1e-8)
            if p.ndim > 1:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - first ** group["step"]))


def split_parameters(
    module: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Inner matrices for Muon; for AdamW words' embeddings, and heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    words: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            inner = p.ndim == 2 and (".layers." in name or "modality_projection" in name)
            kind = matrices if inner else words if "embed_tokens" in name else others
            kind.append(p)
    return matrices, words, others
