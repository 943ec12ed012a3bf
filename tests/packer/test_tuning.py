"""`packer pack --tune`: weights moved between the stages of rounding, and kept if that helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from click.testing import Result
from packer.eval.sample import sample_windows
from packer.eval.token_bytes import AssumedBytes
from packer.train.model import GPT, GPTConfig

from packer import api
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.roles import Role, TensorRole
from packer.commands.options.tuning import TuningOptions
from packer.commands.tuning import pack_tuned
from packer.curvature.calibration import calibrate
from packer.curvature.windows import token_batches
from packer.errors import TuningError
from packer.evaluation import Data
from packer.packing.verify import verify
from packer.planning.damage_trials import Calibration, DamageEvaluator, damage_evaluator
from packer.planning.measure import ignore_progress
from packer.planning.plan import PackPlan
from packer.tuning.stages import SHARES, stages_of
from packer.tuning.tune import TuningText, steps_within, tuned_checkpoint

Run = Callable[..., Result]
CONFIG = GPTConfig(64, 4, 64, 4, 2, rope_train_length=64, embedding_init_std=0.5)
CAP = 75_000
WINDOW = 32
STEPS = 24
Lab = tuple[Checkpoint, PackPlan, Calibration]


@pytest.fixture(scope="module")
def lab() -> Lab:
    """A model of four blocks, a plan of about 3 bits a weight, and text by the model itself."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    sampled = sample_windows(model.eval(), windows=256, window=WINDOW, start=None, vocab_size=64)
    stream = torch.cat(list(sampled)).flatten().numpy()
    data = Data(stream, AssumedBytes(1.0), 64, None, None)
    checkpoint = api.load(model.state_dict())
    batches = token_batches(stream, WINDOW, 4096, torch.device("cpu"))
    curvature = calibrate(model, batches, checkpoint=checkpoint)
    evaluator = damage_evaluator(
        model, checkpoint, curvature, data, "samples", tokens=8192, window=WINDOW, held_out=True
    )
    plan = api.plan(checkpoint, CAP, curvature=curvature)
    return checkpoint, plan, Calibration(curvature, evaluator)


def evaluator_in(lab: Lab) -> DamageEvaluator:
    evaluator = lab[2].evaluator
    assert evaluator is not None
    return evaluator


def text_of(lab: Lab) -> TuningText:
    return TuningText(*evaluator_in(lab).before, WINDOW)


def tuned_weights(lab: Lab) -> Checkpoint:
    checkpoint, plan, _ = lab
    evaluator, text = evaluator_in(lab), text_of(lab)
    return tuned_checkpoint(checkpoint, plan, STEPS, evaluator, text, ignore_progress)


def test_stages_round_embeddings_and_the_first_half_first() -> None:
    names = {"emb": None, "norm": None, **{f"h.{k}.w": k for k in range(4)}, "h.3.gain": 3}
    tensors = {n: torch.empty(8 if n in ("norm", "h.3.gain") else 4096) for n in names}
    roles = {name: TensorRole(Role.MLP_IN, layer) for name, layer in names.items()}
    stages = stages_of(tensors, roles, 100)
    assert [one.rounded for one in stages] == [("emb", "h.0.w", "h.1.w"), ("h.2.w",), ("h.3.w",)]
    assert [one.tuned for one in stages[:2]] == [
        ("h.2.w", "h.3.w", "h.3.gain"),
        ("h.3.w", "h.3.gain"),
    ]
    assert stages[2].tuned == ("norm", "h.3.gain")
    assert sum(one.steps for one in stages) == 100
    assert stages[0].steps == int(100 * SHARES[0] / (1 - SHARES[3]))


def test_tuned_weights_do_less_damage_repeat_and_leave_the_model_as_it_was(lab: Lab) -> None:
    checkpoint, plan, _ = lab
    evaluator = evaluator_in(lab)
    live = {name: weight.detach().clone() for name, weight in evaluator.meter.live.items()}
    other = tuned_weights(lab)
    assert all(torch.equal(w, evaluator.meter.live[name]) for name, w in live.items())
    again = tuned_weights(lab)
    assert all(torch.equal(other.tensors[n], again.tensors[n]) for n in checkpoint.tensors)
    chosen = plan.plan.chosen
    before = evaluator.trial(plan.measurement, chosen, "untuned").measured
    after = replace(evaluator, checkpoint=other).trial(plan.measurement, chosen, "tuned").measured
    assert after < 0.97 * before


def test_the_tuned_file_fits_and_is_kept_only_if_held_out_text_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, plan, calibration = lab
    packed = pack_tuned(*lab, TuningOptions(steps=STEPS))
    assert (
        packed is not None
        and packed.data != api.pack(checkpoint, plan, curvature=calibration.curvature).data
    )
    assert packed.account.total_bytes <= CAP
    assert verify(packed.data, checkpoint, plan.choices, calibration.curvature).problems == ()
    assert sum(packed.plan.choices[n] == c for n, c in plan.choices.items()) > 40
    trial = DamageEvaluator.trial
    monkeypatch.setattr(
        DamageEvaluator, "trial", lambda *args: replace(trial(*args), measured=0.25)
    )
    assert pack_tuned(*lab, TuningOptions(steps=2)) is None


def test_no_model_no_text_no_time_and_no_finite_logits_are_refused(lab: Lab) -> None:
    checkpoint, plan, calibration = lab
    evaluator, text = evaluator_in(lab), text_of(lab)
    with pytest.raises(TuningError, match="no model of it to tune"):
        pack_tuned(checkpoint, plan, replace(calibration, evaluator=None), TuningOptions(steps=1))
    with pytest.raises(TuningError, match="31 tokens are left to tune on, less than a window"):
        next(replace(text, tokens=WINDOW - 1).batches())
    with pytest.raises(TuningError, match="there is time for 0 steps of"):
        steps_within(1e-6, evaluator.meter, text)
    name = "blocks.1.mlp.fc.weight"
    evaluator.meter.live[name].data.fill_(torch.nan)
    try:
        with pytest.raises(TuningError, match="divergence of the rounded model is nan"):
            steps_within(1, evaluator.meter, text)
    finally:
        evaluator.meter.live[name].data.copy_(checkpoint.tensors[name])


def test_the_command_needs_a_text_and_one_measure_of_length(run: Run) -> None:
    torch.save({"w": torch.ones(2)}, "model.pt")
    line = ("pack", "model.pt", "--cap", 12_000, "-o", "x.pack", "--tune", 1)
    no_text = run(*line)
    assert no_text.exit_code == 2 and "--tune reads a text: give --calibration" in no_text.output
    both = run(*line, "--tune-steps", 3)
    assert both.exit_code == 2 and "give --tune or --tune-steps, not both" in both.output
