"""Predicted damage: its sums, the fit of its factors, and plans that are checked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packer.budget.plan import Candidate
from packer.eval.damage import quadratic_forms, second_order_nats
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import dequantize, quantize
from packer.train.model import GPT, GPTConfig

from packer import api
from packer.checkpoint.checkpoint import from_state_dict
from packer.curvature.calibration import TextSource, calibrate
from packer.curvature.file import write_curvature
from packer.curvature.windows import token_batches
from packer.errors import CurvatureError, PlanError
from packer.evaluation import Data
from packer.planning.account import Limits
from packer.planning.candidates import Measurement, TensorInfo
from packer.planning.damage_fit import DamageTrial, fit_damage
from packer.planning.damage_trials import at_damage, damage_evaluator, fit_to_model, plan_and_check
from packer.planning.predicted_damage import complete, output_error, predicted_nats


def spd(columns: int, seed: int) -> torch.Tensor:
    root = torch.randn(columns, columns, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_quadratic_forms_of_banks(banks: int, rows: int, columns: int) -> None:
    change = torch.randn(banks * rows, columns, generator=torch.Generator().manual_seed(1))
    hessian = torch.stack([spd(columns, bank) for bank in range(banks)])
    forms = quadratic_forms(change, hessian)
    for row in range(banks * rows):
        expected = float(change[row] @ hessian[row // rows] @ change[row])
        assert float(forms[row]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    weights = torch.arange(banks * rows).float()
    half = 0.5 * float((weights.double() * forms).sum())
    assert second_order_nats(change, hessian, weights) == pytest.approx(half)


def test_a_tied_embedding_counts_twice() -> None:
    table = Curvature(spd(3, 1), torch.tensor([0.5, 0.5]), 10, row_usage=torch.ones(2))
    head = Curvature(spd(3, 2), torch.tensor([1.0, 2.0]), 10)
    change = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    both = predicted_nats(replace(head, lookup=table), change)
    alone = [predicted_nats(one, change) for one in (head, table)]
    assert both == pytest.approx(sum(part or 0.0 for part in alone))
    assert predicted_nats(replace(head, fisher=None), change) is None
    scaled = replace(head, hessian=7 * head.hessian)
    assert output_error(scaled, change) == pytest.approx(output_error(head, change))


def test_a_tensor_without_curvature_is_guessed_by_the_median_and_no_outlier() -> None:
    known = [
        Candidate(f"w{n}", "int4", 10, 2.0, 2.0 * ratio) for n, ratio in enumerate((1, 3, 500))
    ]
    unknown = Candidate("blind", "int4", 10, 5.0)
    infos = [TensorInfo(one.tensor, "other", None, (8, 8), "float32") for one in (*known, unknown)]
    filled, guessed = complete([*known, unknown], infos)
    assert guessed == ("blind",) and filled[:3] == tuple(known)
    assert filled[3].damage_bpb == pytest.approx(3 * 5.0)


FACTORS = {"mlp-in": 1.3, "mlp-out": 0.8, "token-embedding": 2.0}


def trials_of(noise: float) -> list[DamageTrial]:
    chance = np.random.default_rng(0)
    found = []
    for number in range(24):
        parts = {role: float(chance.lognormal()) * 1e-3 for role in FACTORS}
        if number < 6:
            role = list(FACTORS)[number % 3]
            parts = {role: parts[role]}
        true = sum(FACTORS[role] * part for role, part in parts.items())
        found.append(DamageTrial(f"{number}", parts, true * math.exp(noise * chance.normal())))
    return found


def test_factors_are_found() -> None:
    fit = fit_damage(trials_of(0.0), "a text", 100)
    for role, factor in FACTORS.items():
        assert fit.factor(role) == pytest.approx(factor, rel=0.05)
    assert fit.error < 0.02
    assert fit.factor("gate") == fit.common
    noisy = fit_damage(trials_of(0.2), "a text", 100)
    assert 0.1 < noisy.error < 0.3
    with pytest.raises(ValueError, match="no trial"):
        fit_damage([DamageTrial("nothing", {"gate": 0.0}, 0.0)], "a text", 1)


def test_a_fit_replaces_the_one_before() -> None:
    measured = api.measure({"blocks.0.mlp.fc.weight": torch.randn(16, 16)})
    first = fit_damage([DamageTrial("one", {"mlp-in": 1.0}, 2.0)], "a text", 10)
    second = fit_damage([DamageTrial("one", {"mlp-in": 1.0}, 3.0)], "a text", 10)
    once, twice = measured.fitted(second), measured.fitted(first).fitted(second)
    for one, two, raw in zip(once.candidates, twice.candidates, measured.candidates, strict=True):
        assert two.damage == pytest.approx(one.damage)
        assert one.damage == pytest.approx(3 * raw.weight_error)
    chosen = [c for c in twice.candidates if c.choice == "int6.row"]
    raw_error = next(c.weight_error for c in measured.candidates if c.choice == "int6.row")
    assert twice.unfitted(chosen) == {"mlp-in": pytest.approx(raw_error)}
    again = Measurement.from_json(twice.to_json(), "here")
    assert again == twice


class Ones:
    """Every token stands for two bytes."""

    vocab_size = 32

    def target_bytes(self, tokens: np.ndarray, position: int) -> np.ndarray:  # noqa: ARG002
        return np.full(len(tokens) - 1, 2, dtype=np.int64)

    def unknown_count(self, tokens: np.ndarray) -> int:  # noqa: ARG002
        return 0

    def after(self, start: int) -> Ones:  # noqa: ARG002
        return self


@pytest.fixture(scope="module")
def calibrated():
    """(model, checkpoint, data, curvature) of a small companion model."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 2, 64, 4, 2, embedding_init_std=0.03))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    checkpoint = from_state_dict(model.state_dict())
    tokens = np.random.default_rng(0).integers(0, 32, 4097)
    data = Data(tokens, Ones(), 32, None, None)
    batches = token_batches(tokens, 64, 4096, torch.device("cpu"))
    text = TextSource("noise", 2.0)
    curvature = calibrate(model, batches, checkpoint=checkpoint, text=text)
    return model.eval(), checkpoint, data, curvature


@pytest.fixture(scope="module")
def measured(calibrated) -> Measurement:
    return api.measure(calibrated[1], curvature=calibrated[3])


def test_predicted_damage_comes_true(calibrated, measured: Measurement) -> None:
    """Whole plans, before and after the fit, on tokens that it never saw."""
    model, checkpoint, data, curvature = calibrated
    assert all(c.damage_bpb is not None for c in measured.candidates)
    assert any("+gptq" in c.choice for c in measured.candidates)
    assert measured.curvature == curvature.sha256 and "bits per token" not in measured.damage_source
    evaluator = damage_evaluator(
        model, checkpoint, curvature, data, "noise", tokens=4096, window=64, held_out=True
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit_to_model(measured, evaluator)
    assert fitted.damage_fit is not None and len(fitted.damage_fit.trials) >= 6
    assert fitted.damage_fit.tokens == 12 * 64
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    other = Data(np.random.default_rng(1).integers(0, 32, 1025), Ones(), 32, None, None)
    check = damage_evaluator(
        model, checkpoint, curvature, other, "more", tokens=1024, window=64, held_out=False
    )
    for wanted in (0.001, 0.004, 0.012):
        trial = check.trial(fitted, at_damage(fitted, wanted), "a plan")
        assert trial.measured == pytest.approx(fitted.damage_fit.predicted(trial), rel=0.35)
        assert trial.measured == pytest.approx(trial.total, rel=0.6)


def test_predictions_are_fitted_from_python_too(calibrated, measured: Measurement) -> None:
    model, checkpoint, data, curvature = calibrated
    evaluator = damage_evaluator(
        model, checkpoint, curvature, data, "noise", tokens=1024, window=64, held_out=True
    )
    cap = int(sum(tensor.elements for tensor in measured.tensors) * 3 / 8)
    plain = api.plan(checkpoint, cap, curvature=curvature)
    fitted = api.plan(checkpoint, cap, curvature=api.Calibration(curvature, evaluator))
    assert plain.measurement.damage_fit is None
    fit = fitted.measurement.damage_fit
    assert fit is not None and "noise" in fit.source
    assert len(fitted.measurement.candidates) > len(measured.candidates) / 4
    truth = evaluator.trial(fitted.measurement, fitted.plan.chosen, "the plan")
    assert fitted.plan.damage == pytest.approx(truth.measured, rel=0.35)
    assert api.measure(checkpoint, curvature=api.Calibration(curvature, evaluator)).damage_fit


def test_plans_are_checked_and_the_best_is_known(calibrated, measured: Measurement) -> None:
    model, checkpoint, data, curvature = calibrated
    evaluator = damage_evaluator(
        model, checkpoint, curvature, data, "noise", tokens=1024, window=64, held_out=False
    )
    cap = int(sum(tensor.elements for tensor in measured.tensors) * 3 / 8)
    rounds = plan_and_check(measured, Limits(cap, (), 0, 0), {}, evaluator)
    assert 1 <= len(rounds) <= 3
    assert all(one.plan.plan.total_bytes <= cap for one in rounds)
    assert rounds[0].ratio == pytest.approx(1, rel=0.6)
    last = rounds[-1]
    again = evaluator.trial(last.plan.measurement, last.plan.plan.chosen, "again")
    assert again.measured == pytest.approx(last.measured)


def test_gptq_plans_are_packed_with_their_curvature_only(
    calibrated, measured: Measurement, tmp_path: Path
) -> None:
    model, checkpoint, _, curvature = calibrated
    plan = api.plan(measured, 28_000)
    assert any("+gptq" in choice for choice in plan.choices.values())
    with pytest.raises(PlanError, match=r"needs curvature, as .*--curvature FILE"):
        api.pack(checkpoint, plan)
    other = calibrate(model, [torch.arange(32).reshape(1, 32)], checkpoint=checkpoint)
    with pytest.raises(PlanError, match="was made with curvature"):
        api.pack(checkpoint, plan, curvature=other)
    write_curvature(tmp_path / "c.safetensors", curvature)
    packed = api.pack(checkpoint, plan, curvature=tmp_path / "c.safetensors")
    assert packed.account.total_bytes <= 28_000 and packed.rounds == 1
    assert api.verify(packed.data, checkpoint, plan, curvature=curvature).problems == ()


def test_a_training_script_brings_its_own(calibrated) -> None:
    """calibrate(model, batches, seconds) and plan(state_dict, curvature=second moments)."""
    model, _, data, _ = calibrated
    weights = model.state_dict()
    batches = token_batches(np.asarray(data.stream), 64, 512, torch.device("cpu"))
    curvature = api.calibrate(model, batches, seconds=60, bytes_per_token=2.0)
    plan = api.plan(weights, 28_000, curvature=curvature)
    assert plan.plan.damage_kind == "damage_bpb"
    assert api.pack(weights, plan, curvature=curvature).account.total_bytes <= 28_000
    hessians = {name: one.hessian for name, one in curvature.by_tensor.items() if ".mlp." in name}
    plain = api.plan(weights, 28_000, curvature=hessians)
    assert plain.plan.damage_kind == "weight_error"
    assert "second moments given" in plain.measurement.damage_source
    assert any("+gptq" in choice for choice in plain.choices.values())
    assert api.pack(weights, plain, curvature=hessians).account.total_bytes <= 28_000
    name = next(iter(hessians))
    bad = hessians[name].clone()
    bad[0, 1] += 5
    cases = [
        ({name: bad}, rf"{name}: hessian is not symmetric"),
        ({name: float("nan") * bad}, rf"{name}: hessian has values that are not finite"),
        ({name: hessians[name][:8, :8]}, rf"{name}: .*8 wide"),
        ({"nobody": hessians[name]}, "nobody, which .* does not hold"),
    ]
    for given_hessians, said in cases:
        with pytest.raises(CurvatureError, match=said):
            api.plan(weights, 28_000, curvature=given_hessians)
    changed = {**weights, name: weights[name] + 1}
    with pytest.raises(CurvatureError, match="contents"):
        api.plan(changed, 28_000, curvature=curvature)
    with pytest.raises(PlanError, match="measurements carry the damage"):
        api.plan(plan, 28_000, curvature=curvature)


def test_combined_rounding_serves_a_tied_embedding_best(calibrated) -> None:
    """GPTQ under the head's Hessian alone hurts the lookup more than it saves the head."""
    _, checkpoint, _, curvature = calibrated
    weight, one = checkpoint.tensors["tok_emb.weight"], curvature.by_tensor["tok_emb.weight"]
    choice = parse_choice("int4.row+gptq")
    damages = []
    for rounding in (one, Curvature(one.hessian, one.fisher, one.tokens)):
        change = dequantize(quantize(weight, choice, rounding)) - weight
        damages.append(predicted_nats(one, change) or 0.0)
    assert 0 < damages[0] < damages[1]


def test_at_damage_is_on_the_frontier() -> None:
    candidates = tuple(
        Candidate(tensor, f"c{i}", 100 * (4 - i), 0.0, 0.001 * i)
        for tensor in "ab"
        for i in range(4)
    )
    measured = replace(api.measure({"a": torch.ones(2), "b": torch.ones(2)}), candidates=candidates)
    assert sum(c.damage for c in at_damage(measured, 0.01)) == pytest.approx(0.006)
    assert sum(c.damage for c in at_damage(measured, 0.0)) == 0
