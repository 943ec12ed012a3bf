"""The ledger and the clock agree on a device that works on while its process goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packer.train import ledger, loop
from packer.train.gradients import Gradients
from packer.train.ledger import Ledger
from packer.train.loop import Trainer
from packer.train.presets import PRESETS
from packer.train.qat import FakeQuantization
from packer.train.schedule import Pace, fall, lr_scale
from packer.train.settings import ScheduleSettings, TrainConfig
from packer.train.training_data import TrainingData
from torch import nn


class Stream:
    """A device and the only clock: a launch takes the process 1 ms and the device `seconds`."""

    def __init__(self) -> None:
        self.now = self.busy_until = 0.0

    def launch(self, seconds: float) -> None:
        self.now += 0.001
        self.busy_until = max(self.now, self.busy_until) + seconds

    def wait(self, *_: object) -> None:
        self.now = max(self.now, self.busy_until)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Steps take a device 0.085 s; whoever reads a number from it waits."""
    found = Stream()
    monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: found.now))
    monkeypatch.setattr(Trainer, "_wait", found.wait)
    monkeypatch.setattr(Trainer, "_clip", lambda _: None)
    monkeypatch.setattr(Trainer, "_mean_loss", lambda _: found.wait() or 0.0)
    monkeypatch.setattr(loop, "validate", lambda *_, **__: found.launch(1.0))
    monkeypatch.setattr(Gradients, "_forward", lambda _, model: model)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_: None)  # on the CPU

    def add(*_: object) -> torch.Tensor:
        found.launch(0.085)
        return torch.zeros(())

    monkeypatch.setattr(Gradients, "add", add)
    return found


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), *((8, rank) for rank in range(8))])
def test_ledger_and_clock_agree(
    world_size: int,
    rank: int,
    stream: Stream,
    tiny: TrainConfig,
    tiny_data: TrainingData,
    tmp_path: Path,
) -> None:
    schedule = ScheduleSettings(iterations=10**6, max_wallclock=6.0, warmdown=20)
    config = replace(
        tiny, schedule=schedule, run=replace(tiny.run, log_every=10, size_share=0.0, eval_every=40)
    )
    run = Trainer(
        config, tiny_data, tmp_path, torch.device("cpu"),
        rank=rank, world_size=world_size, say=lambda _: None,
    )  # fmt: skip
    run.train()
    stream.wait()
    counted = sum(run.ledger.seconds.values())
    assert run.ledger.training_budget == pytest.approx(6.0, rel=0.03)
    assert counted == pytest.approx(stream.now, rel=0.03)
    assert run.ledger.seconds["evaluation"] == pytest.approx(2.0, rel=0.03)
    assert run.step == pytest.approx(6.0 / 0.085, abs=3)


def test_work_counts_for_the_part_that_queued_it(stream: Stream) -> None:
    parts = Ledger(stream.wait)
    with parts.time("training"):
        stream.launch(2.0)
        with parts.time("training"):
            stream.launch(1.0)
        with parts.time("evaluation"):
            stream.launch(5.0)
        stream.launch(3.0)
    assert parts.seconds["training"] == pytest.approx(6.0, abs=0.01)
    assert parts.seconds["evaluation"] == pytest.approx(5.0, abs=0.01)


SLOW_STEPS = {
    "the first": {0: 2.0},
    "the first ones": dict.fromkeys(range(10), 2.0),
    "a late one": {300: 60.0},
}


@pytest.mark.parametrize("slow", SLOW_STEPS)
def test_slow_steps_do_not_begin_late_quantization(slow: str) -> None:
    """A step of #569 takes 0.085 s, and its training 586."""
    config = PRESETS["11l-vrl-leaky-gptq"]
    qat = FakeQuantization(nn.Module(), config.qat, {})
    seconds, pace, scales, step = 0.0, Pace(), [], 0
    while seconds < 585.0:
        qat.begin_step(config.schedule, step, seconds, pace.seconds)
        scales.append(lr_scale(config.schedule, step, seconds, pace.seconds))
        seconds += SLOW_STEPS[slow].get(step, 0.085)
        pace.add(seconds)
        step += 1
    remaining = step - (qat.since or 0)
    assert remaining == pytest.approx(0.15 * 3500, rel=0.05)
    if "first" in slow:
        assert min(scales[:2000]) == 1.0


def test_the_clock_says_nothing_of_the_first_steps() -> None:
    clock = ScheduleSettings(iterations=20_000, max_wallclock=600.0, warmdown=3500)
    assert fall(clock, 1, 5.0) == fall(clock, 19, 95.0) == 1.0
    assert fall(clock, 1000, 500.0) == pytest.approx(200 / 3500)
    assert fall(clock, 1000, 500.0, 0.25) == pytest.approx(400 / 3500)
