"""Which tensors are trained for rounding, from when on, and that packing gives back just those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import dequantize, quantize
from packer.train.loop import Trainer
from packer.train.model import GPT
from packer.train.qat import FakeQuantization, choices_for
from packer.train.settings import QATSettings, ScheduleSettings, TrainConfig

from packer import api
from packer.errors import PackerError

STEPS = ScheduleSettings(iterations=20, lr_warmup=5, warmdown=10)


def quantization(tiny: TrainConfig, **settings: object) -> FakeQuantization:
    torch.manual_seed(0)
    formats = {"blocks.*.weight": "int4.row"}
    made = QATSettings(**{"formats": formats, **settings})  # type: ignore[arg-type]
    return FakeQuantization.attached(GPT(tiny.model), made)


def weight_of(qat: FakeQuantization) -> torch.Tensor:
    return qat.model.get_submodule("blocks.0.mlp.fc").weight.detach()  # type: ignore[union-attr]


def test_late_means_the_falling_rate_not_the_rising_one(tiny: TrainConfig) -> None:
    qat = quantization(tiny, mode="late", late_below=0.45)
    plain = weight_of(qat).clone()
    began = []
    for step in range(20):
        qat.begin_step(STEPS, step, 0.0)
        began.append(qat.since is not None)
        assert torch.equal(weight_of(qat), plain) != began[-1]
    assert began.index(True) == 16, "at (20 - 16) / 10 = 0.4"


def test_rounding_sets_in_by_degrees(tiny: TrainConfig) -> None:
    qat = quantization(tiny, mode="on", anneal=3)
    plain = weight_of(qat).clone()
    decoded = dequantize(quantize(plain, parse_choice("int4.row")))
    for step, share in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        qat.begin_step(STEPS, step, 0.0)
        expected = torch.lerp(plain, decoded, share)
        torch.testing.assert_close(weight_of(qat), expected, atol=1e-7, rtol=0)
    assert torch.equal(weight_of(qat), decoded)


def test_held_scales_are_chosen_anew_every_so_often(tiny: TrainConfig) -> None:
    qat = quantization(tiny, mode="on", hold=2)
    original = qat.model.get_submodule("blocks.0.mlp.fc").parametrizations.weight.original
    fresh = []
    for step in range(5):
        with torch.no_grad():
            original.mul_(1.5)
        qat.begin_step(STEPS, step, 0.0)
        packed = dequantize(quantize(original.detach(), parse_choice("int4.row")))
        fresh.append(torch.equal(weight_of(qat), packed))
    assert fresh == [True, False, True, False, True]
    with torch.no_grad():
        original.mul_(1.5)
    qat.finish()
    packed = dequantize(quantize(original.detach(), parse_choice("int4.row")))
    assert torch.equal(weight_of(qat), packed)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_switches_on_inside_a_compiled_model(tiny: TrainConfig, backend: str) -> None:
    """In the contest the switch was a constant of the compiled graph, and QAT never began."""
    qat = quantization(tiny, mode="late", late_below=0.45)
    tokens = torch.arange(32).reshape(2, 16)
    torch._dynamo.reset()
    compiled = torch.compile(qat.model, backend=backend)
    losses = []
    for step in (0, 15, 16, 19):
        qat.begin_step(STEPS, step, 0.0)
        # Outputs of blocks start at zero; the embedding alone would hide the rounding.
        if not losses:
            for block in qat.model.blocks:  # type: ignore[union-attr]
                torch.nn.init.normal_(block.mlp.proj.parametrizations.weight.original, std=0.2)
        losses.append(float(compiled(tokens, tokens).detach()))
    torch._dynamo.reset()
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_what_is_packed_is_what_the_forward_saw(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    formats = {"blocks.*.weight": "int5.row", "late-k": "fp16", "tok_emb.weight": "int7.tensor"}
    settings = QATSettings(mode="on", formats=formats)
    run = trainer(qat=settings)
    before = dict(run.pins()) if run.qat.since is not None else None
    run.train()
    assert before is None
    plan = api.plan(run.weights, 10**6, api.MeasureOptions(pins=run.pins()))
    api.pack(run.weights, plan, out=tmp_path / "m.pack")
    decoded = api.unpack(tmp_path / "m.pack")
    seen = run.snapshot().state_dict()
    for name in run.qat.choices:
        assert torch.equal(decoded[name], seen[name]), name
    kept = {name: str(choice) for name, choice in run.qat.choices.items()}
    assert run.pins() == kept


def test_a_plan_says_what_to_train_for(tiny: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = dict(GPT(tiny.model).named_parameters())
    detached = {name: weight.detach() for name, weight in weights.items()}
    plan = api.plan(detached, 15_000, out=tmp_path / "plan.json")
    settings = QATSettings(mode="on", plan=str(tmp_path / "plan.json"))
    qat = FakeQuantization.attached(GPT(tiny.model), settings)
    assert {name: str(choice) for name, choice in qat.choices.items()} == plan.choices
    qat.begin_step(STEPS, 0, 0.0)
    logits = qat.model(torch.arange(16)[None])
    assert torch.isfinite(logits).all()
    with pytest.raises(PackerError, match="belongs to another model"):
        wider = GPT(replace(tiny.model, mlp_mult=3.0))
        choices_for(settings, dict(wider.named_parameters()))


def test_selectors_and_choices_that_make_no_sense_are_named(tiny: TrainConfig) -> None:
    with pytest.raises(PackerError, match=r"'block\.\*' matches no tensor"):
        quantization(tiny, formats={"block.*": "int4.row"})
    with pytest.raises(PackerError, match=r"formats: blocks\.\*: int9: integer formats have"):
        quantization(tiny, formats={"blocks.*": "int9.row"})
