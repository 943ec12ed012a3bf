"""Damage measured on the model, to fit predictions to it and to check whole plans."""

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
from packer.eval.shards import TokenStream
from packer.evaluation import Data
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.damage_fit import DamageTrial, fit_damage
from packer.planning.measure import Progress, ignore_progress
from packer.planning.plan import PackPlan, make_plan
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import dequantize, quantize
from packer.threads import one_torch_thread

# One held-out token, from the end of the text, for so many that calibration reads.
HELD_OUT = 5
# Predicted damage of the whole plans that are measured, in bits per byte; the middle one is also
# measured role by role. The table in docs/planner.md (Damage from curvature) has the KL of plans
# from 2.25 to 5 bits per weight: useful ones lie between these.
SMALL, MIDDLE, LARGE = 0.0015, 0.005, 0.015
NOISE_FLOOR = 1e-6  # bits per byte: less is lost in the rounding of the forward pass
MAX_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class DamageEvaluator:
    """Measures the divergence that quantizing a checkpoint causes.

    source: what the text is. tokens: how many of it are read. before: the whole text, and how many
    of its tokens come before those.
    """

    checkpoint: Checkpoint
    curvature: CurvatureSet | None
    meter: DamageMeter
    source: str
    tokens: int
    before: tuple[TokenStream, int]

    def trial(
        self, measurement: Measurement, changed: Sequence[Candidate], what: str
    ) -> DamageTrial:
        """The divergence with these candidates in place of the weights of their tensors."""
        with one_torch_thread():
            weights = self._decoded(changed)
        measured = self.meter.divergence(weights).kl_bits_per_byte
        return DamageTrial(what, measurement.unfitted(changed), measured)

    def _decoded(self, changed: Sequence[Candidate]) -> dict[str, torch.Tensor]:
        """The weights as a file would decode them."""
        by_tensor = by_tensor_of(self.curvature)
        decoded = {}
        for name, text in ((one.tensor, one.choice) for one in changed):
            weight = self.checkpoint.tensors[name]
            decoded[name] = dequantize(quantize(weight, parse_choice(text), by_tensor.get(name)))
        return decoded


@dataclass(frozen=True, eq=False)
class Calibration:
    """curvature: predicts damage in bits per byte, and GPTQ rounds with it; None: weight errors
    take the place of damage. evaluator: the model and a held-out text, on which the damage of a
    few plans is measured so that predictions can be fitted to it; None: predictions are not fitted.
    """

    curvature: CurvatureSet | None = None
    evaluator: DamageEvaluator | None = None


NO_CALIBRATION = Calibration()


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
    """An evaluator on the first tokens of a text; `held_out`: on a fifth as many at its end.

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
    before = data.stream, start
    return DamageEvaluator(checkpoint, curvature, meter, words, count * window, before)


def held_out_part(length: int, tokens: int, window: int) -> tuple[int, int]:
    """(first token, number of windows) of the part held out at the end of a text.

    length: tokens in the text, at least `window`. Calibration must stop before the first token:
    GPTQ does better on text that it was calibrated on.
    """
    whole = (length - 1) // window
    count = max(1, min(tokens // window, whole) // HELD_OUT)
    return (whole - count) * window, count


def windows_with_trials(calibrated: int) -> int:
    """Windows to read of a text so that calibration gets `calibrated` and the rest is held out."""
    return calibrated + max(1, calibrated // HELD_OUT) + 1  # one more: the last token has no next


def fit_to_model(
    measurement: Measurement, evaluator: DamageEvaluator, progress: Progress = ignore_progress
) -> Measurement:
    """The measurement with damage multiplied by factors fitted to a handful of trials.

    Three whole plans are measured, the middle one also role by role.
    """
    trials: list[DamageTrial] = []
    groups = [
        ("a plan of little damage", at_damage(measurement, SMALL)),
        *_parts(measurement, at_damage(measurement, MIDDLE)),
        ("a plan of middling damage", at_damage(measurement, MIDDLE)),
        ("a plan of much damage", at_damage(measurement, LARGE)),
    ]
    for done, (what, changed) in enumerate(groups):
        progress(what, done, len(groups))
        trials.append(evaluator.trial(measurement, changed, what))
    return measurement.fitted(fit_damage(trials, evaluator.source, evaluator.tokens))


def _parts(
    measurement: Measurement, chosen: Sequence[Candidate]
) -> Iterator[tuple[str, Sequence[Candidate]]]:
    """(what, candidates) of every role whose damage in a plan can be measured by itself."""
    roles = {tensor.name: tensor.role for tensor in measurement.tensors}
    for role in sorted(set(roles.values())):
        members = [c for c in chosen if roles[c.tensor] == role]
        if sum(c.damage for c in members) > NOISE_FLOOR:
            yield f"{role} alone", members


def at_damage(measurement: Measurement, target: float) -> tuple[Candidate, ...]:
    """A plan of about this predicted damage: the best candidates at one Lagrange multiplier."""
    fronts = [undominated(group) for group in by_tensor(measurement.candidates).values()]
    low, high = 1e-15, 1.0
    for _ in range(60):
        price = (low * high) ** 0.5
        damage = sum(c.damage for c in _cheapest(fronts, price))
        low, high = (low, price) if damage > target else (price, high)
    return tuple(_cheapest(fronts, low))


def _cheapest(fronts: Iterable[Sequence[Candidate]], price: float) -> Iterator[Candidate]:
    for front in fronts:
        yield min(front, key=lambda c: c.damage + price * c.size_bytes)


@dataclass(frozen=True, eq=False)
class CheckedPlan:
    """A plan and its damage. predicted, measured: KL in bits per byte."""

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
    evaluator: DamageEvaluator,
    progress: Progress = ignore_progress,
) -> tuple[CheckedPlan, ...]:
    """Plans, measures the plan as a whole and role by role, fits the factors, and plans again.

    At most three rounds, fewer when the fit no longer changes the plan. Returns the plans in the
    order made; the best is that of least `measured`. Raises CapError, PlanError, SelectorError.
    """
    rounds: list[CheckedPlan] = []
    trials = list(measurement.damage_fit.trials) if measurement.damage_fit else []
    for number in range(1, MAX_ROUNDS + 1):
        plan = make_plan(measurement, limits, pins)
        if any(plan.choices == one.plan.choices for one in rounds):
            break
        chosen = plan.plan.chosen
        groups = [*_parts(measurement, chosen), ("the plan", chosen)]
        for done, (what, changed) in enumerate(groups):
            progress(f"round {number}, {what}", done, len(groups))
            trials.append(evaluator.trial(measurement, changed, f"round {number}, {what}"))
        predicted = plan.plan.damage if plan.plan.damage_kind == "damage_bpb" else None
        rounds.append(CheckedPlan(plan, predicted, trials[-1].measured))
        measurement = measurement.fitted(fit_damage(trials, evaluator.source, evaluator.tokens))
    return tuple(rounds)
