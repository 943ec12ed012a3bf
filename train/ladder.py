"""A ladder: short runs of one configuration at several sizes, from which its losses are predicted.

The family is the configuration at other widths and depths: heads as wide as its own, depths near
its ratio of width to depth. Runs are counted in steps, fixed beforehand from a measured speed, so
that a busy machine changes nothing; a ladder that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from packer.train.loop import STATE, Trainer
from packer.train.model import GPT, GPTConfig, model_of
from packer.train.run_state import read_state
from packer.train.settings import TrainConfig
from packer.train.training_data import TrainingData
from packer.train.validation import validate
from torch import Tensor

from packer.errors import PackerError
from packer.files import write_json
from packer.size.best import Shape, Speed
from packer.size.loss_fit import Rung

Say = Callable[[str], None]
RUNG = "rung.json"
RUNGS = 4  # sizes
SHARES = (1 / 4, 1 / 8)  # of the training time, for every size
TOKENS_PER_WEIGHT = (40.0, 1.0)  # of the smallest and the largest size, in the whole time
FEWEST_STEPS = 20
TIMED_STEPS, UNTIMED_STEPS = 8, 2


def resized(model: GPTConfig, layers: int, width: int) -> GPTConfig:
    """The configuration at another depth and width; layers that are named count from the end."""
    heads = width // (model.model_dim // model.num_heads)
    kv_heads = max(1, heads * model.num_kv_heads // model.num_heads)
    while heads % kv_heads:
        kv_heads -= 1
    moved = (n + layers - model.num_layers for n in model.value_embedding_layers)
    return replace(
        model,
        num_layers=layers,
        model_dim=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        xsa_last_n=min(model.xsa_last_n, layers),
        value_embedding_layers=tuple(n for n in moved if n >= 0),
    )


def family(model: GPTConfig) -> list[Shape]:
    """Sizes of up to twice the width, at the two depths nearest the ratio; fewest weights first."""
    head, ratio = model.model_dim // model.num_heads, model.model_dim / model.num_layers
    sizes = {
        (max(2, math.floor(heads * head / ratio) + more), heads * head)
        for heads in range(1, 2 * model.num_heads + 1)
        for more in (0, 1)
    }
    shapes = (Shape(*size, _weights(resized(model, *size))) for size in sizes)
    return sorted(shapes, key=lambda shape: shape.weights)


def shapes_of(model: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights; nothing is allocated."""
    with torch.device("meta"):
        empty = GPT(replace(model, orthogonal_init=False))
    return {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}


def _weights(model: GPTConfig) -> int:
    return sum(math.prod(shape) for shape in shapes_of(model).values())


def at_size(config: TrainConfig, shape: Shape, steps: int) -> TrainConfig:
    """The run at a size and of a length: warm-ups and warm-down keep their shares of it."""
    schedule, optimizer = config.schedule, config.optimizer
    share = steps / schedule.iterations
    return replace(
        config,
        model=resized(config.model, shape.layers, shape.width),
        schedule=replace(
            schedule,
            iterations=steps,
            max_wallclock=0.0,
            warmdown=round(share * schedule.warmdown),
            lr_warmup=min(schedule.lr_warmup, steps // 4),
        ),
        optimizer=replace(optimizer, momentum_warmup=min(optimizer.momentum_warmup, steps // 4)),
    )


def measured_speed(
    config: TrainConfig, shapes: Sequence[Shape], data: TrainingData, folder: Path
) -> Speed:
    """Of training, from a few steps at two sizes: seconds of each thread's processor time on a CPU,
    which waiting for other processes does not lengthen."""
    small, large = shapes
    times = [_seconds_per_token(at_size(config, one, 100), data, folder) for one in shapes]
    per_weight = max(times[1] - times[0], 0.0) / (large.weights - small.weights)
    return Speed(max(times[0] - per_weight * small.weights, 0.0), per_weight)


def _seconds_per_token(config: TrainConfig, data: TrainingData, folder: Path) -> float:
    config = replace(config, run=replace(config.run, size_share=0.0, log_every=10**6))
    trainer = Trainer(config, data, folder, torch.device("cpu"), say=_silent)
    for _ in range(UNTIMED_STEPS):
        trainer._one_step(0.0)
    started = time.process_time()
    for _ in range(TIMED_STEPS):
        trainer._one_step(0.0)
    seconds = (time.process_time() - started) / torch.get_num_threads()
    return seconds / (TIMED_STEPS * config.batch.tokens)


def _silent(text: str) -> None:
    del text


def trained(config: TrainConfig, data: TrainingData, folder: Path, say: Say = _silent) -> Trainer:
    """The run in a folder at its end; one that was stopped goes on, one that ended only loads."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, data, folder, torch.device("cpu"), say=say)
    if (folder / STATE).exists():
        trainer.restore(read_state(folder / STATE))
    if trainer.step < config.schedule.iterations:
        trainer.train()
    return trainer


def best_average(
    trainer: Trainer, data: TrainingData, tokens: int
) -> tuple[Mapping[str, Tensor], float]:
    """(weights, bits per byte) of the average that does best on so many held-out tokens.

    Raises PackerError: there is no held-out text.
    """
    config, scored = trainer.config, {}
    for name, weights in trainer.final_weights().items():
        model = model_of(config.model, weights)
        score = validate(model, data, config.batch.sequence, tokens)
        if score is None:
            raise PackerError("averages are chosen on held-out text, and the data have none")
        scored[name] = score.bits_per_byte, weights
    loss, weights = min(scored.values(), key=lambda pair: pair[0])
    return weights, loss


def rungs_of(shapes: Sequence[Shape], speed: Speed, seconds: float) -> list[Shape]:
    """Sizes for the ladder, evenly spaced in the logarithm of their weights.

    shapes: fewest weights first. The ladder spans TOKENS_PER_WEIGHT, or RUNGS neighbours.
    """
    most, least = TOKENS_PER_WEIGHT
    per_weight = [speed.tokens(s.weights, seconds) / s.weights for s in shapes]  # falling
    low = max(sum(one >= most for one in per_weight) - 1, 0)
    high = min(sum(one > least for one in per_weight), len(shapes) - 1)
    high = min(max(high, low + RUNGS - 1), len(shapes) - 1)
    low = max(min(low, high - RUNGS + 1), 0)
    smallest, largest = shapes[low], shapes[high]
    ends = math.log(smallest.weights), math.log(largest.weights)
    wanted = [ends[0] + (ends[1] - ends[0]) * i / (RUNGS - 1) for i in range(RUNGS)]
    return list(dict.fromkeys(_nearest(shapes, log) for log in wanted))


def _nearest(shapes: Sequence[Shape], log_weights: float) -> Shape:
    return min(shapes, key=lambda shape: abs(math.log(shape.weights) - log_weights))


@dataclass(frozen=True)
class LadderRun:
    """A run of a ladder: where it is, and what it gave."""

    shape: Shape
    folder: Path
    config: TrainConfig
    rung: Rung


def climb(
    config: TrainConfig,
    data: TrainingData,
    folder: Path,
    shapes: Sequence[Shape],
    speed: Speed,
    seconds: float,
    tokens: int,
    say: Say = _silent,
) -> list[LadderRun]:
    """Every size trained for each of SHARES of the time, and scored on so many held-out tokens.

    Raises PackerError: the time is too short for FEWEST_STEPS of a run.
    """
    planned = [
        (shape, share, steps_in(config, shape, speed, share * seconds))
        for share in SHARES
        for shape in shapes
    ]
    shape, share, fewest = min(planned, key=lambda one: one[2])
    if fewest < FEWEST_STEPS:
        raise PackerError(
            f"{seconds:g} s are too short for a ladder: {share:g} of them are {fewest} steps of "
            f"{shape.weights:,} weights, and a run needs {FEWEST_STEPS}; give at least "
            f"{seconds * (FEWEST_STEPS + 1) / (fewest + 1):.0f} s, or smaller steps (batch.tokens)"
        )
    runs = []
    for shape, _, steps in planned:
        place = folder / f"{shape.layers}x{shape.width}-{steps}"
        run = at_size(config, shape, steps)
        runs.append(LadderRun(shape, place, run, _rung(run, shape, data, place, tokens)))
        say(f"{place.name}: {shape.weights:,} weights, {runs[-1].rung.bits_per_byte:.4f} bpb")
    return runs


def steps_in(config: TrainConfig, shape: Shape, speed: Speed, seconds: float) -> int:
    """Whole steps that fit."""
    return int(speed.tokens(shape.weights, seconds) / config.batch.tokens)


def _rung(config: TrainConfig, shape: Shape, data: TrainingData, folder: Path, tokens: int) -> Rung:
    if (folder / RUNG).exists():
        return Rung(**json.loads((folder / RUNG).read_text("utf-8")))
    trainer = trained(config, data, folder)
    _, loss = best_average(trainer, data, tokens)
    rung = Rung(shape.weights, config.schedule.iterations * config.batch.tokens, loss)
    write_json(folder / RUNG, vars(rung))
    return rung
