"""Damage of changed weights: predicted to second order, and measured as a divergence.

With labels drawn from the model, the expected KL of a small change Δ is ½ Δᵀ F Δ, F the Fisher
information of the weights. F of a linear map is taken for a Kronecker product: a diagonal over
rows, and a second moment H over columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import Progress, Setting, ignore
from .compare import Divergence, divergence
from .forward import AnyModel
from .score import ByteCounter
from .shards import TokenStream

BLOCK_ELEMENTS = 1 << 22  # of a product held at once


def quadratic_forms(change: Tensor, hessian: Tensor) -> Tensor:
    """float64 [rows]: Δ_r H Δ_rᵀ of every row of a change [rows, columns] under its H.

    hessian: [columns, columns], or [banks, columns, columns] for as many equal groups of rows.
    """
    columns = change.size(-1)
    banks = hessian.reshape(-1, columns, columns)
    grouped = change.float().reshape(len(banks), -1, columns)
    forms = []
    for rows, H in zip(grouped, banks, strict=True):
        for block in torch.split(rows, max(1, BLOCK_ELEMENTS // columns)):
            forms.append((block @ H).mul_(block).sum(dim=-1).double())
    return torch.cat(forms).clamp(min=0)


def second_order_nats(change: Tensor, hessian: Tensor, row_weights: Tensor) -> float:
    """½ Σ_r weight_r · Δ_r H Δ_rᵀ, in nats a token; arguments as of `quadratic_forms`."""
    forms = quadratic_forms(change, hessian)
    return 0.5 * float((row_weights.double() * forms).sum())


def kronecker_nats(change: Tensor, hessian: Tensor, factors: Tensor) -> float:
    """½ tr(G Δ H Δᵀ), in nats a token, summed over banks.

    change: [rows, columns]. hessian: [columns, columns] or a stack. factors: G of every bank,
    [banks, rows of one, rows of one].
    """
    columns = change.size(-1)
    banks = hessian.reshape(-1, columns, columns)
    grouped = change.float().reshape(len(banks), -1, columns)
    total = 0.0
    for rows, H, G in zip(grouped, banks, factors, strict=True):
        total += float((G @ rows).mul_(rows @ H).sum(dim=-1).double().sum())
    return 0.5 * max(total, 0.0)


@dataclass(frozen=True, eq=False)
class DamageMeter:
    """Measures the divergence of a model from itself with some weights changed.

    Attributes:
        reference: the unquantized model.
        changed: a copy of it; `live` are its weights by name, which are overwritten and restored.
        stream, counter, setting: what it is measured on; see `score`.
    """

    reference: AnyModel
    changed: AnyModel
    live: Mapping[str, Tensor]
    stream: TokenStream
    counter: ByteCounter
    setting: Setting

    def divergence(self, weights: Mapping[str, Tensor], progress: Progress = ignore) -> Divergence:
        """KL(model || model with these weights) over the stream; other weights stay.

        Raises ScoreError: settings, model and stream do not fit.
        """
        with self._holding(weights):
            measured = self.stream, self.counter, self.setting
            return divergence(self.reference, [self.changed], *measured, progress=progress)[0]

    @contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the changed model has these weights, but for those that it does not use."""
        weights = {name: weight for name, weight in weights.items() if name in self.live}
        kept = {name: self.live[name].detach().clone() for name in weights}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    self.live[name].copy_(weight)
            yield
        finally:
            with torch.no_grad():
                for name, weight in kept.items():
                    self.live[name].copy_(weight)
