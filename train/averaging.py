"""Averages of the weights along a run: exponential, and plain over the last part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from packer.train.settings import AveragingSettings
from torch import Tensor

Weights = Mapping[str, Tensor]


class Averages:
    """Float32 averages by name; `ema` and `swa` are None until they begin.

    ema: from the first step on, the weights before it included. swa: the plain mean of the weights
    taken every `swa_every` steps once the learning-rate scale is below `swa_below`.
    """

    def __init__(self, settings: AveragingSettings, weights: Weights) -> None:
        self.settings = settings
        self.devices = {name: weight.device for name, weight in weights.items()}
        self.ema = _copy(weights) if settings.ema_decay else None
        self.swa: dict[str, Tensor] | None = None
        self.swa_count = 0

    @torch.no_grad()
    def update(self, weights: Weights, step: int, lr_scale: float) -> None:
        """Take in the weights after step number `step` (from 1)."""
        values = list(weights.values())
        if self.ema is not None:
            torch._foreach_lerp_(list(self.ema.values()), values, 1 - self.settings.ema_decay)
        every = self.settings.swa_every
        if every and step % every == 0 and lr_scale < self.settings.swa_below:
            self.swa_count += 1
            if self.swa is None:
                self.swa = _copy(weights)
            else:
                torch._foreach_lerp_(list(self.swa.values()), values, 1 / self.swa_count)

    def state(self) -> dict[str, object]:
        return {"ema": self.ema, "swa": self.swa, "swa_count": self.swa_count}

    def restore(self, state: Mapping[str, object]) -> None:
        """What `state` gave, on the device of the weights; averages not kept here are dropped."""
        if self.ema is not None and isinstance(state["ema"], dict):
            self.ema = self._placed(state["ema"])
        if self.settings.swa_every and isinstance(state["swa"], dict):
            assert isinstance(state["swa_count"], int)
            self.swa, self.swa_count = self._placed(state["swa"]), state["swa_count"]

    def _placed(self, found: Weights) -> dict[str, Tensor]:
        return {name: found[name].to(device) for name, device in self.devices.items()}


def _copy(weights: Weights) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
