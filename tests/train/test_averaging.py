"""Averages against their definitions."""

from __future__ import annotations

import torch
from packer.train.averaging import Averages
from packer.train.settings import AveragingSettings


def test_both_averages_as_they_are_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(4, 3, generator=generator),
        "b": torch.randn((), generator=generator),
    }
    settings = AveragingSettings(ema_decay=0.9, swa_every=3, swa_below=0.5)
    averages = Averages(settings, weights)
    ema = {name: weight.clone() for name, weight in weights.items()}
    taken = []
    for step in range(1, 13):
        for weight in weights.values():
            weight += torch.randn(weight.shape, generator=generator)
        scale = 1.0 - step / 12
        averages.update(weights, step, scale)
        ema = {name: 0.9 * ema[name] + 0.1 * weight for name, weight in weights.items()}
        if step in (9, 12):
            taken.append({name: weight.clone() for name, weight in weights.items()})
    assert averages.ema is not None and averages.swa is not None
    assert averages.swa_count == 2
    for name in weights:
        torch.testing.assert_close(averages.ema[name], ema[name])
        torch.testing.assert_close(averages.swa[name], (taken[0][name] + taken[1][name]) / 2)


def test_none_is_kept_that_nobody_asked_for() -> None:
    weights = {"a": torch.ones(2)}
    averages = Averages(AveragingSettings(), weights)
    averages.update(weights, 1, 0.0)
    assert averages.ema is None and averages.swa is None


def test_a_state_goes_on_where_it_was() -> None:
    settings = AveragingSettings(ema_decay=0.5, swa_every=1, swa_below=1.0)
    weights = {"a": torch.zeros(2)}
    first, second = Averages(settings, weights), Averages(settings, weights)
    for step in range(1, 6):
        weights["a"] += step
        first.update(weights, step, 0.0)
        if step == 2:
            state = {
                "ema": {"a": first.ema["a"].clone()},
                "swa": {"a": first.swa["a"].clone()},
                "swa_count": first.swa_count,
            }
            second.restore(state)
        elif step > 2:
            second.update(weights, step, 0.0)
    assert torch.equal(first.ema["a"], second.ema["a"])
    assert torch.equal(first.swa["a"], second.swa["a"])
