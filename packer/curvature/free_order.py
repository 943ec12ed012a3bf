"""Whether a model computes the same when the hidden units of its MLPs change places: by trying."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from packer.checkpoint import Checkpoint
from packer.eval.forward import AnyModel, tail_logits
from packer.hidden_units import units_of

# Nats a token between both at most. Another order of sums alone leaves 2e-9 in float32, and 1e-4 in
# bfloat16 (measured on a trained model of 6 layers).
SAME_NATS = 1e-6
SAME_NATS_NARROW = 1e-3


def order_is_free(
    model: AnyModel, live: Mapping[str, Tensor], checkpoint: Checkpoint, tokens: Tensor
) -> bool:
    """Whether all MLPs that are found in the checkpoint may have their units in any order.

    live: the model's weights by the checkpoint's names; they are as before afterwards. tokens:
    int64 [windows, time], on the model's device. False where there are no such MLPs.
    """
    groups = units_of(checkpoint)
    if not groups or any(name not in live for axes in groups for name in axes):
        return False
    before = _log_probabilities(model, tokens)
    with _shuffled(groups, live):
        after = _log_probabilities(model, tokens)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    narrow = _autocast(tokens) or any(one.dtype.itemsize < 4 for one in live.values())
    return bool(kl < (SAME_NATS_NARROW if narrow else SAME_NATS))  # False for NaN


def _autocast(tokens: Tensor) -> bool:
    return tokens.device.type == "cuda"


@torch.no_grad()
def _log_probabilities(model: AnyModel, tokens: Tensor) -> Tensor:
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=_autocast(tokens)):
        logits = tail_logits(model, tokens, tokens.size(1), None)
    return logits.float().log_softmax(-1)


@contextlib.contextmanager
def _shuffled(groups: list[dict[str, int]], live: Mapping[str, Tensor]) -> Iterator[None]:
    """The units of every group in an order of its own, inside."""
    generator = torch.Generator().manual_seed(0)
    kept = {name: live[name].detach().clone() for axes in groups for name in axes}
    with torch.no_grad():
        try:
            for axes in groups:
                name, axis = next(iter(axes.items()))
                order = torch.randperm(live[name].size(axis), generator=generator)
                for name, axis in axes.items():
                    live[name].copy_(kept[name].index_select(axis, order.to(kept[name].device)))
            yield
        finally:
            for name, values in kept.items():
                live[name].copy_(values)
