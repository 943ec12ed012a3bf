"""Names of files and of models that are compared: ties, wrappers, masks and tables."""

from __future__ import annotations

import pytest
import torch
from packer.eval.errors import ModelError
from packer.eval.foreign_weights import Renamed, load_strictly
from torch import Tensor, nn


class Tied(nn.Module):
    """Ties head and embedding, and two norms; has a mask that is saved and a table that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.emb.weight
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("mask", torch.ones(5, 5).tril()[None, None])
        self.register_buffer("cos", torch.ones(3), persistent=False)


class Held(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, Tied())


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"emb.weight": (6, 4), "first.weight": (4, 4), "first.bias": (4,), "last.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_that_a_tie_leaves_out_are_there() -> None:
    model, given = Tied(), weights()
    load_strictly(model, given)
    assert torch.equal(model.head.weight, given["emb.weight"])
    assert torch.equal(model.last.weight, given["first.weight"])
    other = {**given, "head.weight": given["emb.weight"] + 1, "last.weight": given["first.weight"]}
    del other["emb.weight"], other["first.weight"]
    load_strictly(model, other)
    assert torch.equal(model.emb.weight, given["emb.weight"] + 1)


def test_two_values_for_one_tensor_are_refused() -> None:
    given = weights()
    load_strictly(Tied(), {**given, "head.weight": given["emb.weight"].clone()})
    given["head.weight"] = given["emb.weight"] + 0.5
    with pytest.raises(ModelError, match=r"emb.weight and head.weight are one .* by up to 0.5"):
        load_strictly(Tied(), given)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("module.", ""),
        ("module.", "module."),
        ("model.", ""),
        ("model.", "module.model."),
        ("", "net."),
        ("", "module._orig_mod."),
        ("model.", "transformer."),
    ],
)
def test_prefixes_on_either_side_do_not_count(mine: str, theirs: str) -> None:
    model: nn.Module = Held(mine[:-1]) if mine else Tied()
    given = {theirs + name: value for name, value in weights().items()}
    fit = load_strictly(model, {**given, "n_averaged": torch.tensor(7)})
    loaded = dict(Renamed(model, fit.names).named_parameters(remove_duplicate=False))
    for name, value in given.items():
        assert torch.equal(loaded[name], value)
    assert [note for note in fit.notes if "n_averaged" in note]


def test_masks_and_tables_may_be_on_one_side() -> None:
    given = {
        **weights(),
        "h.0.attn.bias": torch.ones(1, 1, 7, 7).tril().bool(),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.1.hidden": torch.full((7, 7), -torch.inf).triu(1),
        "rope.inv_freq": torch.ones(3),
        "cos": torch.arange(3.0),
    }
    model = Tied()
    fit = load_strictly(model, given)
    assert torch.equal(model.get_buffer("cos"), torch.arange(3.0))
    missing, spare = fit.notes
    assert "mask" in missing and "h.0.attn.bias" in spare and "1 more" in spare


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stats", torch.rand(7, 7), r"not in the model: stats \(7, 7\)"),
        ("ones", torch.ones(7, 7), r"not in the model: ones \(7, 7\)"),
        ("first.bias", None, r"missing: first.bias \(4,\)"),
        ("first.weight", None, r"missing: first.weight \(4, 4\)"),
        ("cos", torch.ones(9), r"cos is \(9,\), the model has \(3,\)"),
    ],
)
def test_all_else_is_held_against_the_model(name: str, value: Tensor | None, words: str) -> None:
    given = weights()
    given.pop(name, None)
    if value is not None:
        given[name] = value
    with pytest.raises(ModelError, match=words):
        load_strictly(Tied(), given)


def test_statistics_are_no_table_that_can_be_made_anew() -> None:
    given = nn.BatchNorm1d(4).state_dict()
    del given["running_mean"]
    with pytest.raises(ModelError, match="missing: running_mean"):
        load_strictly(nn.BatchNorm1d(4), given)
