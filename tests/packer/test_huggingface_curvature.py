"""Curvature of what transformers runs: every tensor of every architecture, joined ones too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from packer.eval.foreign_forward import Foreign, PlainForward
from torch import Tensor, nn

from packer.checkpoint.any_weights import load_weights
from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.curvature.calibration import calibrate
from packer.curvature.curvature_set import CurvatureSet
from packer.huggingface.configuration import configuration_beside
from packer.huggingface.model import build_model
from packer.huggingface.weight_places import Place, Placed, placed_by_trial

EVERY = ("llama", "qwen2", "qwen3", "gpt2", "gpt-neox", "mistral", "gemma", "mixtral", "qwen2-moe")
Folder = Callable[[str], Path]


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 300, (2, 32), generator=generator) for _ in range(count)]


def built(folder: Path) -> tuple[Foreign, Checkpoint]:
    found = configuration_beside(str(folder))
    assert found is not None
    model = build_model(*found, load_weights(folder).weights, str(folder), print)
    return model, read_checkpoint(folder)


def calibrated(folder: Path) -> CurvatureSet:
    model, checkpoint = built(folder)
    return calibrate(model, batches(), checkpoint=checkpoint)


@pytest.mark.parametrize("name", EVERY)
def test_every_tensor_of_every_architecture_has_curvature(name: str, model_folder: Folder) -> None:
    folder = model_folder(name)
    found = calibrated(folder)
    meta_tensors = read_checkpoint(folder).meta_tensors
    assert set(found.by_tensor) == set(meta_tensors)
    for tensor, one in found.by_tensor.items():
        assert one.fisher is not None, tensor
        assert one.hessian.shape[-1] == meta_tensors[tensor].shape[-1]
        assert bool(one.hessian.isfinite().all()) and float(one.hessian.diagonal().sum()) > 0
    assert found.warnings == ()


def test_lookups_and_products_of_a_tied_head_are_both_seen(model_folder: Folder) -> None:
    found = calibrated(model_folder("llama")).by_tensor["model.embed_tokens.weight"]
    assert found.row_usage is not None and found.lookup is not None


def test_experts_see_just_the_tokens_that_are_routed_to_them(model_folder: Folder) -> None:
    folder = model_folder("mixtral")
    model, checkpoint = built(folder)
    seen: list[Tensor] = []
    layer = model.model.get_submodule("model.layers.0.mlp")
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    found = calibrate(model, batches(), checkpoint=checkpoint).by_tensor
    names = [f"model.layers.0.block_sparse_moe.experts.{at}" for at in range(4)]
    read = torch.cat([x.reshape(-1, 32) for x in seen[-4:]]).double()
    whole = 2 * read.mT @ read / len(read)  # two experts a token
    total = sum(found[f"{name}.w1.weight"].hessian.double() for name in names)
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-7)
    for name in names:
        assert torch.equal(found[f"{name}.w1.weight"].hessian, found[f"{name}.w3.weight"].hessian)


class Apart(nn.Module):
    """Gate and up in two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(300, 16), nn.Linear(24, 300)
        self.gate, self.up = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x), self.up(x)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, up = self.both(self.embed(tokens))
        logits: Tensor = self.out(F.silu(gate) * up)
        return logits


class Joined(Apart):
    """The same, in a bank of one."""

    def __init__(self, of: Apart) -> None:
        super().__init__()
        self.embed, self.out = of.embed, of.out
        self.bank = nn.Parameter(torch.cat([of.gate.weight, of.up.weight])[None].detach().clone())
        del self.gate, self.up

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = F.linear(x, self.bank[0]).chunk(2, dim=-1)
        return gate, up


def test_joined_matrices_have_the_curvature_of_each() -> None:
    torch.manual_seed(0)
    apart = Apart()
    joined = PlainForward(Joined(apart))
    places = {"gate.weight": Place("bank", (24, 16), (16, 1), 0)}
    places["up.weight"] = Place("bank", (24, 16), (16, 1), 24 * 16)
    places |= {
        name: Place(name, tuple(one.shape), tuple(one.stride()), 0)
        for name, one in apart.named_parameters()
        if name not in places
    }
    joined.named = Placed(joined.model, places)
    checkpoint = from_state_dict(apart.state_dict())
    expected = calibrate(PlainForward(apart), batches(), checkpoint=checkpoint).by_tensor
    found = calibrate(joined, batches(), checkpoint=checkpoint).by_tensor
    assert set(found) == set(expected)
    for name, one in expected.items():
        torch.testing.assert_close(found[name].hessian, one.hessian)
        torch.testing.assert_close(found[name].fisher, one.fisher)
        torch.testing.assert_close(found[name].outputs, one.outputs)


def test_places_of_tensors_are_found_by_trial() -> None:
    """Joined, stacked and transposed; a sum of two is no place of either."""
    model = nn.Module()
    model.bank = nn.Parameter(torch.zeros(2, 5, 3))
    model.turned = nn.Parameter(torch.zeros(3, 2))
    model.mixed = nn.Parameter(torch.zeros(4))
    shapes = {"a": (2, 3), "b": (3, 3), "c": (2, 3), "d": (3, 3), "t": (2, 3), "m": (4,), "n": (4,)}

    def load(numbers: dict[str, Tensor]) -> nn.Module:
        made = nn.Module()
        first, second = (torch.cat([numbers[x], numbers[y]]) for x, y in ("ab", "cd"))
        made.bank = nn.Parameter(torch.stack([first, second]))
        made.turned = nn.Parameter(numbers["t"].mT.contiguous())
        made.mixed = nn.Parameter((numbers["m"] + numbers["n"]) / 2)
        return made

    found = placed_by_trial(model, shapes, load)
    assert found.lost == ("m", "n")
    assert found.places["d"] == Place("bank", (3, 3), (3, 1), 15 + 6)
    assert found.places["t"] == Place("turned", (2, 3), (1, 2), 0)
    live = dict(found.named_parameters())
    live["d"].fill_(7.0)
    assert model.bank[1, 2:].eq(7).all() and model.bank[1, :2].eq(0).all()


def test_tensors_without_curvature_are_named_with_the_reason() -> None:
    class Unused(Apart):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.Parameter(torch.ones(8))
            self.wide = nn.Parameter(torch.ones(5000))

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * self.wide.mean()

    torch.manual_seed(0)
    model = Unused()
    weights = {**model.state_dict(), "stranger": torch.ones(3), "steps": torch.tensor(3)}
    found = calibrate(PlainForward(model), batches(), checkpoint=from_state_dict(weights))
    said = {line.partition(":")[0]: line for line in found.warnings}
    assert "nothing was seen to use it" in said["never"]
    assert "has 5,000 columns" in said["wide"]
    assert "the model has no tensor of this name" in said["stranger"]
    assert "steps" not in said


def test_weights_that_a_library_joins_are_measured_one_by_one(
    model_folder: Folder, text: Path, run: Callable[..., object], tmp_path: Path
) -> None:
    """The evaluator writes into pieces of a joined bank; the plan's damage is that of trials."""
    told = ("--calibration", text, "--calibration-tokens", 512, "--calibration-window", 32)
    done = run("plan", model_folder("mixtral"), "--cap", 60_000, *told, "-o", "p.json", "--json")
    assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
    plan = json.loads((tmp_path / "p.json").read_text())
    assert plan["measurement"]["damage_fit"] is not None
