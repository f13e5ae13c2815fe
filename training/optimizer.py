"""One optimizer: Muon for the inner matrices, AdamW for the rest.

Muon is momentum with an update that Newton-Schulz steps make orthogonal. torch's own Muon runs in bfloat16,
which is slow on many CPUs. This one runs in float32, with one batched product for all matrices of one shape,
and each process computes a part of the updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Scale of the learning rate for token embeddings: most tokens have a gradient in few steps only.
EMBEDDING_RATE_SCALE = 10.0
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest orthogonal matrices, approximately; [n, rows, columns]."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW with one learning rate: Muon's update is scaled to the usual size of AdamW's.

    Args:
        parts: modules, each with its share of the learning rate. The share is the item `share` of the
            parameter groups; multiply by it when you set `lr`.
        lr: the learning rate.
        momentum: momentum of Muon.
        betas: betas of AdamW.
        weight_decay: weight decay of all matrices.
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
            groups.append({"params": words, "muon": False, "share": EMBEDDING_RATE_SCALE * share})
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
        distributed = dist.is_initialized()
        share = slice(dist.get_rank(), None, dist.get_world_size()) if distributed else slice(None)
        flat = torch.zeros(sum(p.numel() for p in given))
        parts = flat.split([p.numel() for p in given])
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        momenta = [self._momentum(p, group["momentum"]) for p in given]
        for momentum, part in list(zip(momenta, parts, strict=True))[share]:
            same_shape[momentum.shape].append((momentum, part.view(momentum.shape)))
        for pairs in same_shape.values():
            updates = orthogonal(torch.stack([momentum for momentum, _ in pairs]))
            for (_, part), update in zip(pairs, updates, strict=True):
                part.copy_(update)
        if distributed:
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
    """Return inner matrices for Muon, and for AdamW token embeddings, and heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    words: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            inner = p.ndim == 2 and (".layers." in name or "modality_projection" in name)
            kind = matrices if inner else words if "embed_tokens" in name else others
            kind.append(p)
    return matrices, words, others
