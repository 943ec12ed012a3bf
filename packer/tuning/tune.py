"""Tensors are rounded in stages, and the others moved in between to make good the errors.

After every stage the weights not yet rounded are moved, by gradients of the KL divergence from the
unquantized model, so that they compensate for what was rounded: GPTQ across layers, by descent
(block-wise tuning as in QuIP#, arXiv:2402.04396, with the whole model's divergence). The result is
other weights for the same plan: choices, formats and decoder stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.earlier_versions import TUNED_MARK
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import by_tensor_of
from packer.curvature.observing import gradients_for
from packer.errors import TuningError
from packer.eval.damage import DamageMeter
from packer.eval.forward import device_of, evaluation_mode, tail_logits
from packer.eval.shards import TokenStream
from packer.planning.damage_trials import DamageEvaluator
from packer.planning.plan import PackPlan, at_most
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import dequantize, quantizable, quantize
from packer.threads import one_torch_thread
from packer.tuning.stages import Stage, stages_of
from packer.tuning.updates import Updates

Progress = Callable[[str, int, int], None]

STEP_TOKENS = 2048
# Moves are RATE · √KL of a weight's size, KL in nats a token: the noise that a step adds to the KL
# grows as the square of its size, and stays a fraction of the KL.
RATE, LARGEST_RATE = 0.0254, 0.00225
LAST_SHARE = 0.3  # of the rate at the end of a stage; 0 at the end of the last
KL_DECAY = 0.9
FEWEST_STEPS = 20
STEPPING_SHARE = 0.9  # of the time; the rest is for rounding


@dataclass(frozen=True)
class TuningText:
    """The first `tokens` of a stream, read in windows without repetition, and then anew."""

    stream: TokenStream
    tokens: int
    window: int

    def batches(self) -> Iterator[Tensor]:
        """int64 [windows, window] without end. Raises TuningError: less than one window."""
        count, size = self.tokens // self.window, max(1, STEP_TOKENS // self.window)
        if count < 1:
            raise TuningError(
                f"{self.tokens:,} tokens are left to tune on, less than a window of "
                f"{self.window:,}; give more text with --calibration, or a shorter "
                "--calibration-window"
            )
        generator = np.random.default_rng(0)
        while True:
            for chosen in np.array_split(generator.permutation(count), -(-count // size)):
                parts = [self.stream[k * self.window : (k + 1) * self.window] for k in chosen]
                yield torch.from_numpy(np.stack(parts).astype(np.int64))


def steps_within(minutes: float, meter: DamageMeter, text: TuningText) -> int:
    """How many steps fit, by the time of one over all weights. Raises TuningError: too few."""
    batch = next(text.batches())
    with evaluation_mode([meter.reference, meter.changed]), gradients_for(meter.live.values()):
        begun = time.perf_counter()
        for _ in range(2):  # the first is slower
            begun = time.perf_counter()
            _gradients(meter, tuple(meter.live), batch)
    spent = time.perf_counter() - begun
    steps = int(STEPPING_SHARE * 60 * minutes / spent)
    if steps < FEWEST_STEPS:
        raise TuningError(
            f"in {minutes:g} minutes there is time for {steps} steps of {spent:.2g} seconds, and "
            f"tuning takes {FEWEST_STEPS} at least; allow "
            f"{math.ceil(FEWEST_STEPS * spent / STEPPING_SHARE / 6 + 0.5) / 10:g} minutes or more"
        )
    return steps


def tuned_checkpoint(
    checkpoint: Checkpoint,
    plan: PackPlan,
    steps: int,
    evaluator: DamageEvaluator,
    text: TuningText,
    progress: Progress,
) -> Checkpoint:
    """The checkpoint with weights that, rounded as planned, do less damage together.

    evaluator: its meter has the unquantized model and a copy of it, whose weights are overwritten
    and restored. Raises TuningError: nothing to tune, no text, a divergence that is not finite.
    """
    meter, curvature = evaluator.meter, by_tensor_of(evaluator.curvature)
    start = {name: weight.detach().clone() for name, weight in meter.live.items()}
    free = [name for name in start if quantizable(checkpoint.tensors[name])]
    if not free:
        raise TuningError(f"{checkpoint.source}: the model uses no tensor that could be tuned")
    stages = stages_of({n: start[n] for n in free}, plan.measurement.roles, steps)
    run = _Run(meter, {n: Updates(start[n], curvature.get(n)) for n in free}, text.batches())
    moved: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        moved[name] = meter.live[name].detach().clone().to(checkpoint.tensors[name])
        return moved[name]

    try:
        with evaluation_mode([meter.reference, meter.changed]):
            done = 0
            for stage in stages:
                for name in stage.rounded:
                    choice = parse_choice(plan.choices[name])
                    with one_torch_thread(), torch.no_grad():
                        rounded = quantize(take(name), choice, curvature.get(name))
                        meter.live[name].copy_(dequantize(rounded))
                for kl in run.stage(stage, last=stage is stages[-1]):
                    done += 1
                    progress(f"step {done:,}, KL {kl:.5f} nats", done, steps)
            for name in stages[-1].tuned:
                take(name)
    finally:
        with torch.no_grad():
            for name, weight in start.items():
                meter.live[name].copy_(weight)
    tensors = {name: moved.get(name, weight) for name, weight in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, foreign=None, dequantized=None)


def for_plan(plan: PackPlan, tuned: Checkpoint, steps: int) -> PackPlan:
    """The plan for tuned weights: its choices, from which tensors step down if their real sizes no
    longer fit. The artifact's metadata has the number of steps.
    """
    kept = tuple(at_most(plan.plan.chosen, plan.pins, plan.measurement))
    contents = contents_fingerprint(tuned)
    metadata = dict(sorted({**plan.measurement.metadata, TUNED_MARK: str(steps)}.items()))
    measurement = replace(plan.measurement, contents=contents, candidates=kept, metadata=metadata)
    return replace(plan, measurement=measurement)


@dataclass(frozen=True, eq=False)
class _Run:
    """What all stages share."""

    meter: DamageMeter
    updates: Mapping[str, Updates]
    batches: Iterator[Tensor]

    def stage(self, stage: Stage, last: bool) -> Iterator[float]:
        """Moves the stage's weights; yields the running KL after each step."""
        live, average, end = self.meter.live, None, 0.0 if last else LAST_SHARE
        with gradients_for(live[name] for name in stage.tuned):
            for k in range(stage.steps):
                kl, gradients = _gradients(self.meter, stage.tuned, next(self.batches))
                average = kl if average is None else KL_DECAY * average + (1 - KL_DECAY) * kl
                rate = min(RATE * math.sqrt(max(average, 0.0)), LARGEST_RATE)
                rate *= 1 - (1 - end) * k / stage.steps
                with torch.no_grad():
                    for name, gradient in gradients.items():
                        live[name].sub_(self.updates[name].move(gradient, rate))
                yield average


def _gradients(
    meter: DamageMeter, names: tuple[str, ...], tokens: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """KL(reference || changed) in nats a token, and its gradients. Raises TuningError."""
    tokens, weights = tokens.to(device_of(meter.changed)), [meter.live[name] for name in names]
    with torch.no_grad():
        wanted = tail_logits(meter.reference, tokens, tokens.size(1), None).log_softmax(-1)
    actual = tail_logits(meter.changed, tokens, tokens.size(1), None).log_softmax(-1)
    loss = (wanted.exp() * (wanted - actual)).sum() / tokens.numel()
    kl = float(loss.detach())
    if not math.isfinite(kl):
        raise TuningError(
            f"the divergence of the rounded model is {kl}: its logits are not finite. Pack without "
            "--tune, and score the file"
        )
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    found = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
    return kl, found
