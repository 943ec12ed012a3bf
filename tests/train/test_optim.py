"""Muon against its definition, and who optimizes what."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from packer.quantizers.attachment import attach
from packer.train import loop
from packer.train.model import GPT
from packer.train.optim import (
    Muon,
    ParameterError,
    check_coverage,
    group_of,
    make_optimizers,
    orthogonalized,
    set_rates,
    shared_among,
)
from packer.train.settings import OptimizerSettings, TrainConfig
from torch import nn

from packer.curvature.ranks import Ranks


@pytest.mark.parametrize("shape", [(5, 12, 12), (3, 8, 20), (3, 20, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    updates = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(updates, steps=5).float()
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.3 and singular.max() < 1.4
    u, _, v = torch.linalg.svd(updates, full_matrices=False)
    kept = (u.mT @ found @ v.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(kept, singular.sort(dim=-1).values, atol=0.5, rtol=0)
    assert (kept > 0).all()


def test_a_step_is_momentum_nesterov_decay_and_scale() -> None:
    """Two steps written out, for a tall and a wide matrix."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(6, 3, generator=generator), torch.randn(3, 6, generator=generator)]
    params = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.5, steps=5)
    buffers = [torch.zeros_like(weight) for weight in weights]
    for _ in range(2):
        for index, parameter in enumerate(params):
            grad = torch.randn(*parameter.shape, generator=generator)
            parameter.grad = grad
            buffers[index] = 0.9 * buffers[index] + grad
            update = orthogonalized((grad + 0.9 * buffers[index])[None], 5)[0].float()
            scale = math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1]))
            weights[index] = weights[index] * (1 - 0.1 * 0.5) - 0.1 * scale * update
        optimizer.step()
    for parameter, weight in zip(params, weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("able", [False, True])
def test_muon_iterates_in_bfloat16_where_the_cpu_multiplies_in_it(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "multiplies_bfloat16", lambda _: able)
    trainer = SimpleNamespace(device=torch.device("cpu"))
    dtype = loop.Trainer._iteration_dtype(trainer)  # type: ignore[arg-type]
    assert dtype == (torch.bfloat16 if able else torch.float32)


def test_muon_iterates_in_its_dtype_and_keeps_it_in_its_state() -> None:
    parameter = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    before, options = parameter.detach().clone(), {"lr": 0.04, "weight_decay": 0.0, "steps": 5}
    muon = Muon([parameter], momentum=0.85, dtype=torch.float32, **options)
    parameter.grad = before.clone()
    muon.step()
    update = orthogonalized((1.85 * before)[None], 5, torch.float32)[0]
    torch.testing.assert_close(parameter.detach(), before - 0.04 * math.sqrt(2) * update)
    buffer = io.BytesIO()
    torch.save(muon.state_dict(), buffer)
    buffer.seek(0)
    other = Muon([parameter], momentum=0.85, **options)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["dtype"] == torch.float32


def test_every_parameter_has_one_optimizer_quantized_or_not(tiny: TrainConfig) -> None:
    torch.manual_seed(0)
    model = GPT(tiny.model)
    groups = group_of(model)
    assert groups["blocks.0.attn.c_q.weight"] == "matrix"
    assert groups["bigram.proj.weight"] == "matrix"
    assert {groups["tok_emb.weight"], groups["bigram.embed.weight"]} == {"embedding"}
    assert {groups["skip_weights"], groups["blocks.1.resid_mix"], groups["smear.gate"]} == {
        "scalar"
    }
    choices = {"blocks.0.attn.c_q.weight": "int6.row", "skip_weights": "int8.row"}
    attach(model, choices)
    settings = OptimizerSettings(embedding_lr=0.5, scalar_lr=0.25)
    muon, adam = make_optimizers(model, settings)
    counted = {id(p) for o in (muon, adam) for g in o.param_groups for p in g["params"]}
    assert counted == {id(p) for p in model.parameters()}
    by_lr = {group["lr"]: len(group["params"]) for group in adam.param_groups}
    assert by_lr[0.5] == 2
    set_rates((muon, adam), 0.5, 0.77)
    assert [group["lr"] for group in adam.param_groups] == [0.25, 0.125]
    assert muon.param_groups[0]["momentum"] == 0.77


def test_a_parameter_that_nobody_wants_is_named() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3))
    with pytest.raises(ParameterError, match=r"0\.weight \[3, 2, 3\] is neither"):
        make_optimizers(model, OptimizerSettings())


def test_a_parameter_with_two_optimizers_is_named() -> None:
    model = nn.Linear(2, 2)
    twice = [torch.optim.SGD([model.weight], lr=1.0), torch.optim.SGD(model.parameters(), lr=1.0)]
    with pytest.raises(ParameterError, match="weight belongs to 2 optimizers"):
        check_coverage(dict(model.named_parameters()), twice)
    with pytest.raises(ParameterError, match="bias belongs to 0 optimizers"):
        check_coverage(dict(model.named_parameters()), twice[:1])


def test_ranks_share_the_matrices_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five matrices among three ranks: two each, one of zeros."""
    updates = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
    counts: list[int] = []

    def counting(mine: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
        counts.append(len(mine))
        return orthogonalized(mine, steps, dtype)

    def calls(gather: Callable[[list[torch.Tensor], torch.Tensor], object]) -> list[torch.Tensor]:
        monkeypatch.setattr(torch.distributed, "all_gather", gather)
        return [
            shared_among(Ranks(rank, 3), counting)(updates, 5, torch.bfloat16) for rank in range(3)
        ]

    parts: list[torch.Tensor] = []
    calls(lambda _, mine: parts.append(mine.clone()))
    found = calls(lambda shares, _: [a.copy_(b) for a, b in zip(shares, parts, strict=True)])
    assert counts == [2] * 6
    for one in found:
        assert torch.equal(one, orthogonalized(updates, 5))
