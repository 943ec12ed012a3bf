"""True measurements of damage, to bring predictions in line and to check whole plans."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from packer.budget.frontier import by_tensor, undominated
from packer.budget.plan import Candidate
from packer.checkpoint.checkpoint import Checkpoint
from packer.curvature.calibration import live_weights
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.curvature.shared_copies import share_copies
from packer.errors import CurvatureError
from packer.eval.batches import Setting
from packer.eval.damage import DamageMeter
from packer.eval.foreign_forward import named_module
from packer.eval.forward import AnyModel
from packer.evaluation import Data
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.damage_fit import DamageFit, Trial, fit_damage
from packer.planning.measure import Progress, ignore_progress
from packer.planning.plan import PackPlan, make_plan
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import dequantize, quantize
from packer.threads import one_torch_thread

HELD_OUT = 5  # a fifth as many tokens as calibration reads are held out, the last of the text
# What a whole plan is taken to do to the model, in bits per byte: the middle one is also measured
# role by role. Damage of useful plans lies between.
SMALL, MIDDLE, LARGE = 0.0015, 0.005, 0.015
UNSEEN = 1e-6  # bits per byte: less is lost in the rounding of the forward pass
MAX_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class DamageEvaluator:
    """A checkpoint, its model, and tokens to measure divergence on. source: the text, in words."""

    checkpoint: Checkpoint
    curvature: CurvatureSet | None
    meter: DamageMeter
    source: str
    tokens: int

    def trial(self, measurement: Measurement, changed: Sequence[Candidate], what: str) -> Trial:
        """The divergence when these candidates take the place of their weights."""
        with one_torch_thread():
            weights = self._decoded(changed)
        measured = self.meter.divergence(weights).kl_bits_per_byte
        return Trial(what, measurement.unfitted(changed), measured)

    def _decoded(self, changed: Sequence[Candidate]) -> dict[str, torch.Tensor]:
        """What a file would hold."""
        by_tensor = by_tensor_of(self.curvature)
        found = {}
        for name, text in ((one.tensor, one.choice) for one in changed):
            weight = self.checkpoint.tensors[name]
            found[name] = dequantize(quantize(weight, parse_choice(text), by_tensor.get(name)))
        return found


def damage_evaluator(
    model: AnyModel,
    checkpoint: Checkpoint,
    curvature: CurvatureSet | None,
    data: Data,
    source: str,
    *,
    tokens: int,
    window: int,
    held_out: bool,
) -> DamageEvaluator:
    """A bench on the first tokens of a text, or with `held_out` on a fifth as many, its last ones.

    Raises CurvatureError: less than a window of text, or a model without named weights.
    """
    windows = min(tokens, len(data.stream) - 1) // window
    module = named_module(model)
    if windows < 1 or module is None:
        raise CurvatureError(
            f"{source} has {len(data.stream):,} tokens, less than a window of {window:,}; take a "
            "shorter window or more text"
        )
    start, count = 0, windows
    if held_out:
        start, count = held_out_part(len(data.stream), tokens, window)
    stream = np.asarray(data.stream[start : start + count * window + 1])
    changed = copy.deepcopy(model)
    inner = named_module(changed)
    assert inner is not None
    share_copies(inner, checkpoint.ties)
    live = live_weights(inner, checkpoint)
    setting = Setting(window, tokens=count * window)
    meter = DamageMeter(model, changed, live, stream, data.counter.after(start), setting)
    words = f"the end of {source}" if held_out else source
    return DamageEvaluator(checkpoint, curvature, meter, words, count * window)


def held_out_part(length: int, tokens: int, window: int) -> tuple[int, int]:
    """(first token, windows) at the end of a text of so many tokens, of which at least `window`.

    Whoever calibrates stops before the first token: what GPTQ saw it is too good at.
    """
    whole = (length - 1) // window
    count = max(1, min(tokens // window, whole) // HELD_OUT)
    return (whole - count) * window, count


def windows_with_trials(calibrated: int) -> int:
    """Windows of a text whose first `calibrated` may be read, the rest being held out."""
    return calibrated + max(1, calibrated // HELD_OUT) + 1  # one more: the last token has no next


def fit_to_model(
    measurement: Measurement, bench: DamageEvaluator, progress: Progress = ignore_progress
) -> Measurement:
    """The measurement with damages multiplied by factors that a handful of trials gave.

    Three whole plans are measured, the middle one also role by role.
    """
    trials: list[Trial] = []
    groups = [
        ("a plan of little damage", at_damage(measurement, SMALL)),
        *_parts(measurement, at_damage(measurement, MIDDLE)),
        ("a plan of middling damage", at_damage(measurement, MIDDLE)),
        ("a plan of much damage", at_damage(measurement, LARGE)),
    ]
    for done, (what, changed) in enumerate(groups):
        progress(what, done, len(groups))
        trials.append(bench.trial(measurement, changed, what))
    return measurement.fitted(fit_damage(trials, bench.source, bench.tokens))


def _parts(
    measurement: Measurement, chosen: Sequence[Candidate]
) -> Iterator[tuple[str, Sequence[Candidate]]]:
    """(words, candidates) of every role of a plan that can be felt by itself."""
    roles = {tensor.name: tensor.role for tensor in measurement.tensors}
    for role in sorted(set(roles.values())):
        members = [c for c in chosen if roles[c.tensor] == role]
        if sum(c.damage for c in members) > UNSEEN:
            yield f"{role} alone", members


def at_damage(measurement: Measurement, wanted: float) -> tuple[Candidate, ...]:
    """A plan of about this predicted damage: of every tensor the best at one price of a byte."""
    fronts = [undominated(group) for group in by_tensor(measurement.candidates).values()]
    low, high = 1e-15, 1.0
    for _ in range(60):
        price = (low * high) ** 0.5
        damage = sum(c.damage for c in _cheapest(fronts, price))
        low, high = (low, price) if damage > wanted else (price, high)
    return tuple(_cheapest(fronts, low))


def _cheapest(fronts: Iterable[Sequence[Candidate]], price: float) -> Iterator[Candidate]:
    for front in fronts:
        yield min(front, key=lambda c: c.damage + price * c.size_bytes)


@dataclass(frozen=True, eq=False)
class CheckedPlan:
    """A plan and what it really does. predicted, measured: KL in bits per byte."""

    plan: PackPlan
    predicted: float | None
    measured: float

    @property
    def ratio(self) -> float | None:
        """Measured over predicted."""
        return self.measured / self.predicted if self.predicted else None


def plan_and_check(
    measurement: Measurement,
    limits: Limits,
    pins: Mapping[str, str],
    bench: DamageEvaluator,
    progress: Progress = ignore_progress,
) -> tuple[CheckedPlan, ...]:
    """Plans, measures what the plan does as a whole and role by role, fits, and plans again.

    At most three rounds, fewer when the fit no longer changes the plan. In the order made; take
    the best by `measured`. Raises CapError, PlanError, SelectorError.
    """
    rounds: list[CheckedPlan] = []
    trials: list[Trial] = list(_earlier(measurement.damage_fit))
    for number in range(1, MAX_ROUNDS + 1):
        made = make_plan(measurement, limits, pins)
        if any(made.choices == one.plan.choices for one in rounds):
            break
        chosen = made.plan.chosen
        groups = [*_parts(measurement, chosen), ("the plan", chosen)]
        for done, (what, changed) in enumerate(groups):
            progress(f"round {number}, {what}", done, len(groups))
            trials.append(bench.trial(measurement, changed, f"round {number}, {what}"))
        known = made.plan.damage if made.plan.damage_kind == "damage_bpb" else None
        rounds.append(CheckedPlan(made, known, trials[-1].measured))
        measurement = measurement.fitted(fit_damage(trials, bench.source, bench.tokens))
    return tuple(rounds)


def _earlier(fit: DamageFit | None) -> tuple[Trial, ...]:
    return fit.trials if fit is not None else ()
