"""Steps per second of the trainer beside the plainest loop, and what quantization adds to a step.

python -m benchmarks.train_speed [--steps 12] [--rounds 4]

The plain loop is forward, backward, clipping, the same optimizers and the next batch, on the same
model. The trainer adds averages, the size estimate, a log line every tenth step, checks that the
loss is finite, and its ledger. Rounds alternate, so that a busy machine slows all alike; the
medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from packer.train.loop import Trainer
from packer.train.model import GPT
from packer.train.optim import make_optimizers
from packer.train.presets import PRESETS
from packer.train.settings import QATSettings
from packer.train.training_data import TrainingData

FORMATS = {"blocks.*.weight": "int6.row", "embeddings": "int8.row"}
KINDS = {
    "trainer": QATSettings(formats=FORMATS),
    "trainer, QAT": QATSettings(mode="on", formats=FORMATS),
    "trainer, QAT, scales held 10 steps": QATSettings(mode="on", formats=FORMATS, hold=10),
}


def made_trainer(folder: Path, qat: QATSettings) -> Trainer:
    config = replace(PRESETS["small-6l"], qat=qat)
    tokens = np.random.default_rng(0).integers(0, 1024, 1_000_000).astype(np.uint16)
    folder.mkdir()
    data = TrainingData(tokens, None, None)
    trainer = Trainer(config, data, folder, torch.device("cpu"), say=lambda text: None)  # noqa: ARG005
    trainer.metrics.begin(0)
    return trainer


def plain_loop(trainer: Trainer) -> Callable[[], None]:
    """A step of the plainest loop over the trainer's data, with a model of its own."""
    torch.manual_seed(0)
    model = GPT(trainer.config.model)
    optimizers = make_optimizers(model, trainer.config.optimizer)
    gradients = trainer.gradients
    micro = trainer.config.batch.micro_tokens // trainer.config.batch.sequence
    step = 0

    def run() -> None:
        nonlocal step
        inputs, targets = gradients.batches.read(step)
        for tokens, wanted in zip(inputs.split(micro), targets.split(micro), strict=True):
            with torch.autocast("cpu", gradients.autocast, enabled=gradients.autocast is not None):
                loss = model(tokens, wanted)
            (loss * len(tokens) / len(inputs)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1

    return run


def seconds_of(run: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trainers = {
            name: made_trainer(Path(place) / str(number), qat)
            for number, (name, qat) in enumerate(KINDS.items())
        }
        runs: dict[str, Callable[[], None]] = {"plain loop": plain_loop(trainers["trainer"])}
        for name, trainer in trainers.items():
            runs[name] = lambda one=trainer: one._one_step(one.ledger.training_budget)  # type: ignore[misc]
        found: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(given.rounds):
            for name, run in runs.items():
                found[name].append(seconds_of(run, given.steps))
    plain = statistics.median(found["plain loop"])
    tokens = PRESETS["small-6l"].batch.tokens
    print(f"{'':38} {'ms a step':>9} {'tokens/s':>9} {'over plain':>10}")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        over = 100 * (median / plain - 1)
        print(f"{name:38} {1000 * median:9.1f} {tokens / median:9,.0f} {over:+9.1f} %")


if __name__ == "__main__":
    main()
