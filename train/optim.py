"""Muon for matrices, AdamW for everything else; every parameter has exactly one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed
from packer.quantizers.attachment import plain_name
from packer.train.settings import OptimizerSettings
from torch import Tensor, nn

from packer.curvature.ranks import Ranks
from packer.errors import PackerError

# The quintic of Jordan et al. (Muon, 2024): it sends every singular value into about [0.7, 1.2].
QUINTIC = (3.4445, -4.7750, 2.0315)
GROUPS = ("matrix", "embedding", "head", "scalar", "memory", "step")


class ParameterError(PackerError):
    """A parameter that belongs to no optimizer, or to more than one."""


def orthogonalized(updates: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton-Schulz: [n, rows, columns] with singular values near 1 and the same directions.

    dtype: by default bfloat16, which halves the traffic and is what the iteration was tuned for.
    """
    a, b, c = QUINTIC
    x: Tensor = updates.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


Orthogonalize = Callable[[Tensor, int, torch.dtype], Tensor]


def shared_among(ranks: Ranks, orthogonalize: Orthogonalize) -> Orthogonalize:
    """`orthogonalize`, of which each rank computes its share of the matrices for all."""
    if ranks.size == 1:
        return orthogonalize

    def shared(updates: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        share = -(-len(updates) // ranks.size)
        padded = updates.new_zeros(share * ranks.size, *updates.shape[1:])
        padded[: len(updates)] = updates
        mine = padded[ranks.rank * share : (ranks.rank + 1) * share]
        found = orthogonalize(mine, steps, dtype).contiguous()
        every = found.new_empty(padded.shape)
        # As bytes: gloo does not know every dtype.
        shares = list(every.view(torch.uint8).chunk(ranks.size))
        torch.distributed.all_gather(shares, found.view(torch.uint8))
        return every[: len(updates)]

    return shared


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov, then the orthogonalized update, scaled by √max(1, rows / columns).

    Weight decay is decoupled: the weight shrinks by lr · weight_decay before the update. Matrices
    of one shape are orthogonalized together, by `orthogonalize`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        steps: int,
        dtype: torch.dtype = torch.bfloat16,
        orthogonalize: Orthogonalize = orthogonalized,
    ) -> None:
        self.orthogonalize = orthogonalize
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        # A state keeps the dtype, so that a resumed run goes on in it.
        defaults |= {"steps": steps, "dtype": dtype}
        super().__init__(list(params), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for params in _by_shape(p for p in group["params"] if p.grad is not None):
                self._step(params, group)

    def _step(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        updates = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        dtype = group.get("dtype", torch.bfloat16)
        found = self.orthogonalize(torch.stack(list(updates)), group["steps"], dtype)
        rows, columns = params[0].shape
        scale = math.sqrt(max(1.0, rows / columns))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        deltas = found.to(params[0].dtype).unbind()
        torch._foreach_add_(params, deltas, alpha=-group["lr"] * scale)


def _by_shape(params: Iterable[Tensor]) -> list[list[Tensor]]:
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for p in params:
        found.setdefault(tuple(p.shape), []).append(p)
    return list(found.values())


def group_of(model: nn.Module) -> dict[str, str]:
    """Parameter name -> one of `GROUPS`, by the module that holds it and its shape.

    Matrices are the weights of linear layers, embeddings those of lookups (a tied head with them),
    control tensors have fewer than two axes or one row a layer, memory tokens do not decay.
    Raises ParameterError: a parameter that is none of these, by name.
    """
    owners = {
        f"{path}.{leaf}" if path else leaf: module
        for path, module in model.named_modules()
        for leaf in _plain_leaves(module)
    }
    found = {}
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        found[name] = _group(plain, parameter, owners.get(plain))
    return found


def _plain_leaves(module: nn.Module) -> list[str]:
    """Names of the module's own parameters, parametrized ones included."""
    parametrized = getattr(module, "parametrizations", {})
    return [*(name for name, _ in module.named_parameters(recurse=False)), *parametrized]


def _group(name: str, parameter: Tensor, owner: nn.Module | None) -> str:
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if isinstance(owner, nn.Linear) and parameter.dim() == 2:
        return "head" if name.startswith("lm_head.") else "matrix"
    if name == "memory":
        return "memory"
    if parameter.dim() < 2 or (parameter.dim() == 2 and not isinstance(owner, nn.Linear)):
        return "scalar"
    raise ParameterError(
        f"{name} {list(parameter.shape)} is neither a matrix of a linear layer, nor a table, nor a "
        "control tensor: no optimizer takes it"
    )


def make_optimizers(
    model: nn.Module,
    settings: OptimizerSettings,
    dtype: torch.dtype = torch.bfloat16,
    orthogonalize: Orthogonalize = orthogonalized,
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon, then AdamW, over all parameters; each group keeps its first learning rate as `base_lr`.

    dtype, orthogonalize: of Muon's iteration.
    Raises ParameterError: a parameter without an optimizer, or with several.
    """
    named = dict(model.named_parameters())
    groups = group_of(model)
    matrices = [named[name] for name, group in groups.items() if group == "matrix"]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(
                matrices,
                lr=settings.matrix_lr,
                momentum=settings.momentum_start,
                weight_decay=settings.matrix_weight_decay,
                steps=settings.newton_schulz_steps,
                dtype=dtype,
                orthogonalize=orthogonalize,
            )
        )
    adam = [
        {
            "params": [named[name] for name, group in groups.items() if group == wanted],
            "lr": lr,
            "weight_decay": decay,
        }
        for wanted, lr, decay in (
            ("embedding", settings.embedding_lr, settings.weight_decay),
            ("head", settings.head_lr, settings.weight_decay),
            ("scalar", settings.scalar_lr, settings.weight_decay),
            ("memory", settings.scalar_lr, 0.0),
        )
    ]
    optimizers.append(
        torch.optim.AdamW(
            [group for group in adam if group["params"]],
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    check_coverage(named, optimizers)
    return tuple(optimizers)


def check_coverage(
    named: Mapping[str, Tensor], optimizers: Iterable[torch.optim.Optimizer]
) -> None:
    """Raises ParameterError: a parameter that no optimizer has, or that several have, by name."""
    count: dict[int, int] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                count[id(p)] = count.get(id(p), 0) + 1
    for name, p in named.items():
        if count.get(id(p), 0) != 1:
            raise ParameterError(
                f"{plain_name(name)} belongs to {count.get(id(p), 0)} optimizers; each parameter "
                "belongs to exactly one"
            )


def set_rates(
    optimizers: Iterable[torch.optim.Optimizer], lr_scale: float, momentum: float
) -> None:
    """Learning rates at `lr_scale` of where they began, and Muon's momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum
