"""Polish: with the codes as they are, everything else in a file is tuned to the model before it.

Reconstruction points, scales, norms and control tensors are moved by Adam (Kingma and Ba,
arXiv:1412.6980) until the file's model gives the logits of the unquantized one on calibration text,
by their KL divergence. At every step the model reads what the file would hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from packer.curvature.calibration import BATCH_TOKENS
from packer.curvature.observing import gradients_for
from packer.errors import PolishError
from packer.eval.damage import DamageMeter
from packer.eval.forward import device_of, evaluation_mode, tail_logits
from packer.eval.shards import TokenStream
from packer.measuring import Progress, ignore_progress
from packer.polishing.tuning import Tuned, tuned
from packer.quantizers.formats import QuantizedTensor

BETAS = (0.9, 0.99)
WARM_UP = 10  # steps in which the rate rises; what they took says how many the time allows
WORKING_SHARE = 0.95  # of the time; the rest is for the step under way when it ends


@dataclass(frozen=True)
class Pace:
    """How fast and how far: optimizer steps, tokens in each, the highest rate, the seed of the
    order in which windows are read.
    """

    steps: int = 240
    tokens: int = 2048
    rate: float = 0.003
    seed: int = 0


DEFAULT_PACE = Pace()


@dataclass(frozen=True)
class Distilled:
    """Tensors with their free numbers moved.

    steps: that were done. cut_short: by the clock, so that another run may do more or fewer.
    """

    tensors: Mapping[str, QuantizedTensor]
    steps: int
    cut_short: bool


def distil(
    tensors: Mapping[str, QuantizedTensor],
    meter: DamageMeter,
    text: TokenStream,
    window: int,
    *,
    seconds: float,
    pace: Pace = DEFAULT_PACE,
    progress: Progress = ignore_progress,
) -> Distilled:
    """The tensors of a file, all but their codes moved towards the logits of `meter.reference`.

    text: tokens to read, in windows drawn without repetition and then anew. seconds: a limit; the
    rate falls to nothing by the last step, so the first steps tell how many there will be.
    Raises PolishError: no window of text, nothing to tune, or no time for one step. ScoreError: a
    model that only tells losses.
    """
    deadline = time.perf_counter() + WORKING_SHARE * seconds
    free = free_parts(tensors, meter)
    optimizer = torch.optim.Adam([one.free for one in free.values()], betas=BETAS)
    batches, done = _batches(text, window, pace), 0
    with _tuning(meter, free):
        for rate, tokens in zip(_rates(pace, deadline, progress), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            _backward(meter, free, tokens)
            optimizer.step()
            done += 1
    if done == 0:
        raise PolishError(f"{seconds:.0f} seconds are not enough for a single step; allow more")
    moved = {name: one.stored() for name, one in free.items()}
    return Distilled({**tensors, **moved}, done, done < pace.steps)


def free_parts(tensors: Mapping[str, QuantizedTensor], meter: DamageMeter) -> dict[str, Tuned]:
    """What can be tuned, by tensor, in order of name. Raises PolishError: nothing."""
    found = {name: tuned(tensors[name]) for name in sorted(tensors) if name in meter.live}
    free = {name: one for name, one in found.items() if one is not None}
    if not free:
        raise PolishError("nothing in this file can be tuned")
    return free


def _batches(text: TokenStream, window: int, pace: Pace) -> Iterator[Tensor]:
    """int64 [windows, window] without end. Raises PolishError: not one window."""
    windows, size = len(text) // window, max(1, pace.tokens // window)
    if windows < 1:
        raise PolishError(
            f"{len(text):,} tokens of calibration text are left to polish on, less than a window "
            f"of {window:,}: give more text, or a shorter --calibration-window"
        )
    generator = np.random.default_rng(pace.seed)
    while True:
        order = generator.permutation(windows)
        for first in range(0, windows, size):
            chosen = [text[k * window : (k + 1) * window] for k in order[first : first + size]]
            yield torch.from_numpy(np.stack(chosen).astype(np.int64))


def _rates(pace: Pace, deadline: float, progress: Progress) -> Iterator[float]:
    """The rate of every step: a rise, then half a cosine down to nothing.

    Only where the first steps were so slow that not all fit before the deadline are there fewer.
    """
    started, planned = time.perf_counter(), pace.steps
    for done in range(pace.steps):
        now = time.perf_counter()
        if done == WARM_UP:
            each = (now - started) / WARM_UP
            planned = min(pace.steps, WARM_UP + int((deadline - now) / each))
        if done >= planned or now > deadline:
            return
        progress("polishing, steps", done, planned)
        if done < WARM_UP:
            yield pace.rate * (done + 1) / WARM_UP
        else:
            share = (done - WARM_UP) / (planned - WARM_UP)
            yield pace.rate * (1 + math.cos(math.pi * share)) / 2


@contextmanager
def _tuning(meter: DamageMeter, free: Mapping[str, Tuned]) -> Iterator[None]:
    """Inside, the changed model may be overwritten and asks for gradients of its weights."""
    start = {name: one.weights().detach() for name, one in free.items()}
    models = [meter.reference, meter.changed]
    with meter.holding(start), evaluation_mode(models), gradients_for(meter.live.values()):
        yield


def _backward(meter: DamageMeter, free: Mapping[str, Tuned], tokens: Tensor) -> None:
    """Gradients of all free numbers, of the mean KL over a batch.

    The model gets weights as values and gives their gradients back, so that any model will do.
    """
    weights = {name: one.weights() for name, one in free.items()}
    live, device = meter.live, device_of(meter.changed)
    with torch.no_grad():
        for name, weight in weights.items():
            live[name].copy_(weight)
            live[name].grad = None
    on_gpu = device.type == "cuda"
    size = max(1, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) // tokens.size(1))
    with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
        for part in torch.split(tokens.to(device), size):
            (_summed_kl(meter, part) / tokens.numel()).backward()  # type: ignore[no-untyped-call]
    reached = [name for name in weights if live[name].grad is not None]
    torch.autograd.backward(
        [weights[name] for name in reached],
        [live[name].grad.to(weights[name].device) for name in reached],  # type: ignore[union-attr]
    )


def _summed_kl(meter: DamageMeter, tokens: Tensor) -> Tensor:
    """KL(reference || changed) in nats over all positions of tokens [windows, window]."""
    with torch.no_grad():
        expected = tail_logits(meter.reference, tokens, tokens.size(1), None).log_softmax(dim=-1)
    found = tail_logits(meter.changed, tokens, tokens.size(1), None).log_softmax(dim=-1)
    gaps = (expected - found).masked_fill(expected == -torch.inf, 0)  # NaN where neither may follow
    return (expected.exp() * gaps).sum()
