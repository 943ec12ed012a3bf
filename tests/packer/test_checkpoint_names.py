"""Names in checkpoints: nested ones, ties, those that formats reserve, globs, and paths."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from packer import api
from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.calibration import calibrate
from packer.curvature.shared_copies import share_copies
from packer.errors import CheckpointError, OutputError, PlanError
from packer.packing.verify import write_weights

Run = Callable[..., Result]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def names_in(tmp_path: Path, value: Any, weights: str | None = None) -> list[str]:
    torch.save(value, tmp_path / "m.pt")
    return list(read_checkpoint(tmp_path / "m.pt", weights=weights).tensors)


# --- Nested state dicts -------------------------------------------------------------------------

TREE = {"enc": {"0": {"w": normal(2, 2)}, "1": {"w": normal(2, 3)}}, "head": {"b": normal(4)}}
DOTTED = ["enc.0.w", "enc.1.w", "head.b"]


@pytest.mark.parametrize(
    ("value", "weights", "names"),
    [
        ({"state_dict": TREE, "optimizer": {"state": {0: normal(2)}}}, None, DOTTED),
        ({"model": {**TREE, "optimizer": {"exp_avg": normal(3)}, "step": 3}}, None, DOTTED),
        ({"params": TREE, "opt_state": {"mu": TREE}}, "params", DOTTED),
        ({"params": TREE}, "params.enc", ["0.w", "1.w"]),
        (TREE, ".", DOTTED),
        ({"bias": normal(2), **TREE}, None, ["bias", *DOTTED]),
        ({"model": [{"w": normal(2)}, {"w": normal(3)}]}, None, ["0.w", "1.w"]),
        ({"model": {"model": {"w": normal(2)}, "head": {"w": normal(3)}}}, None, None),
    ],
)
def test_nested_entries_have_dotted_names(
    tmp_path: Path, value: Any, weights: str | None, names: list[str] | None
) -> None:
    assert names_in(tmp_path, value, weights) == (names or ["model.w", "head.w"])


def test_a_refusal_names_weights_that_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--weights \.$") as caught:
        names_in(tmp_path, TREE)
    key = str(caught.value).split("--weights ")[1].split()[0]
    assert names_in(tmp_path, TREE, key) == ["0.w", "1.w"]


def test_a_tree_that_cannot_be_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'a\.b' is there twice"):
        names_in(tmp_path, {"model": {"a.b": normal(1), "a": {"b": normal(2)}}})
    loop: dict[str, Any] = {"w": normal(1), "part": {"w": normal(2)}}
    loop["part"]["again"] = loop["part"]
    with pytest.raises(CheckpointError, match="holds itself"):
        names_in(tmp_path, loop)
    deep: Any = normal(1)
    for _ in range(200):
        deep = {"x": deep, "y": normal(1)}
    with pytest.raises(CheckpointError, match="nested more than 100"):
        names_in(tmp_path, deep)


# --- Copies -------------------------------------------------------------------------------------


def copied(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    table = normal(96, 16)
    weights = {
        "emb.weight": table,
        "head.weight": table.clone(),
        "fc.weight": normal(16, 16, seed=1),
        "norm1.weight": torch.ones(512),
        "norm2.weight": torch.ones(512),
        "mix1": torch.eye(32),
        "mix2": torch.eye(32),
        "small": table[0].clone(),
        "small too": table[0].clone(),
    }
    save_file(weights, tmp_path / "copied.safetensors")
    return tmp_path / "copied.safetensors", weights


def test_copies_are_stored_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    path, weights = copied(tmp_path)
    found = read_checkpoint(path)
    assert found.ties == {"head.weight": "emb.weight"}
    assert "head.weight = emb.weight" in found.notes[0]
    packed = api.pack(path, api.plan(path, 100_000), out=tmp_path / "m.pack")
    assert not api.verify(packed.data, path).problems
    again = api.unpack(packed.data)
    assert set(again) == set(weights)
    assert torch.equal(again["head.weight"], again["emb.weight"])
    api.unpack(packed.data, out=tmp_path / "u.safetensors")
    assert set(load_file(tmp_path / "u.safetensors")) == set(weights)


def test_almost_copies_stay_apart() -> None:
    table = normal(2000, 8)
    inside = table.clone()
    inside[1000, 3] += 1
    found = from_state_dict({"a": table, "b": inside, "c": table.reshape(8, 2000).clone()})
    assert found.ties == {}


def test_artifacts_with_both_copies_still_verify(tmp_path: Path) -> None:
    path, weights = copied(tmp_path)
    apart = Checkpoint("both", weights, {}, {}, ())
    data = api.pack(apart, api.plan(apart, 200_000)).data
    assert not api.verify(data, path).problems
    differing = {**weights, "head.weight": weights["head.weight"] + 1}
    problems = "\n".join(
        api.verify(api.pack(path, api.plan(path, 200_000)).data, differing).problems
    )
    assert "head.weight: in state dict and not in the artifact" in problems
    other_order = {name: weights[name] for name in reversed(weights)}
    kept = api.pack(other_order, api.plan(other_order, 100_000)).data
    assert not api.verify(kept, path).problems


def test_a_policy_of_tied_copies_is_refused_where_they_differ(tmp_path: Path) -> None:
    path, weights = copied(tmp_path)
    other = {**weights, "head.weight": normal(96, 16, seed=9)}
    with pytest.raises(PlanError, match=r"head\.weight"):
        api.plan(other, 100_000, policy=api.plan(path, 100_000))


class Untied(torch.nn.Module):
    """An embedding and a head of equal values in parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(96, 16)
        self.head = torch.nn.Linear(16, 96, bias=False)
        self.head.weight = torch.nn.Parameter(self.emb.weight.detach().clone())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.emb(tokens))
        return logits


def test_copies_in_a_model_count_as_head_and_as_table() -> None:
    model = Untied()
    before = dict(model.named_parameters())
    tokens = torch.from_numpy(np.arange(96).reshape(2, 48))
    found = calibrate(model, [tokens])
    assert found.contents == contents_fingerprint(from_state_dict(model.state_dict()))
    curvature = found.by_tensor["emb.weight"]
    assert list(found.by_tensor) == ["emb.weight"]
    assert curvature.hessian is not None and curvature.row_usage is not None
    assert all(before[name] is one for name, one in model.named_parameters())
    assert share_copies(model, {"head.weight": "emb.weight"})
    assert model.head.weight is model.emb.weight


# --- Metadata, reserved names, globs --------------------------------------------------------------


@pytest.mark.parametrize("key", ["author", "modelspec.title", "base_model", "format"])
def test_texts_are_not_ties(tmp_path: Path, key: str) -> None:
    save_file({"a.w": normal(2, 2), "pt": normal(3)}, tmp_path / "m.safetensors", {key: "pt"})
    found = read_checkpoint(tmp_path / "m.safetensors")
    assert sorted(found.tensors) == ["a.w", "pt"] and found.ties == {}
    assert found.metadata == {key: "pt"}
    assert any(key in note for note in found.notes) == (key != "format")


def test_names_that_safetensors_keeps_are_refused_before_writing(tmp_path: Path) -> None:
    weights = {"__metadata__": normal(8), "w": normal(4)}
    (tmp_path / "m.safetensors").write_bytes(b"before")
    with pytest.raises(OutputError, match=r"__metadata__.*\.pt file instead"):
        write_weights(tmp_path / "m.safetensors", weights, {}, {})
    assert (tmp_path / "m.safetensors").read_bytes() == b"before"
    write_weights(tmp_path / "m.pt", weights, {}, {})
    assert set(read_checkpoint(tmp_path / "m.pt").tensors) == set(weights)


@pytest.mark.parametrize(
    ("glob", "left"),
    [
        ("b[0].w", ["b0.w", "b*", "bx"]),
        ("b*", ["b[0].w", "b0.w", "bx"]),
        ("b[0]?w", ["b[0].w", "b*", "bx"]),
        ("b?0].*", ["b0.w", "b*", "bx"]),
    ],
)
def test_an_exact_name_comes_before_a_glob(glob: str, left: list[str]) -> None:
    state = {name: normal(2) for name in ("b[0].w", "b0.w", "b*", "bx")}
    assert list(from_state_dict(state, drop=[glob]).tensors) == left


def test_brackets_are_letters_where_they_match_nothing_as_a_set() -> None:
    state = {"layers[0].w": normal(2), "layers[0].b": normal(2), "v": normal(2)}
    assert list(from_state_dict(state, drop=["layers[0].*"]).tensors) == ["v"]


# --- Paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_paths_that_are_no_text(run: Run, tmp_path: Path, suffix: str) -> None:
    path = os.fsdecode(b"mod\xe8le") + suffix
    try:
        if suffix == ".pt":
            torch.save({"w": normal(8, 8)}, tmp_path / "m.pt")
            (tmp_path / "m.pt").replace(tmp_path / path)
        elif suffix:
            save_file({"w": normal(8, 8)}, tmp_path / "m.safetensors")
            (tmp_path / "m.safetensors").replace(tmp_path / path)
        else:
            (tmp_path / path).mkdir()
            save_file({"w": normal(8, 8)}, tmp_path / "m.safetensors")
            (tmp_path / "m.safetensors").replace(tmp_path / path / "model.safetensors")
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    shown = run("inspect", path, "--json")
    assert shown.exit_code == 0, shown.output
    assert [one["name"] for one in json.loads(shown.stdout)["tensors"]] == ["w"]
    out = os.fsdecode(b"\xff.pack")
    assert run("pack", path, "--cap", 10_000, "-o", out).exit_code == 0
    assert run("verify", out, "--against", path).exit_code == 0
