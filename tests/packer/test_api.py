"""What a training script calls: values in, values out."""

from __future__ import annotations

import inspect
import io
import json
import textwrap
from dataclasses import fields, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from packer.quantizers.quantize import dequantize

import packer
from packer import api
from packer.artifact.decoder import DTYPES
from packer.artifact.encoder import Artifact
from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.errors import CapError, CheckpointError, OutputError, PackerError, PlanError
from packer.planning.options import MeasureFields, MeasureOptions
from packer.reports.report import report_artifact

CAP = 12_000
Weights = dict[str, torch.Tensor]


class Model(torch.nn.Module):
    """A tied embedding and head around one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb = torch.nn.Embedding(32, 16)
        self.mlp = torch.nn.Linear(16, 16)
        self.lm_head = torch.nn.Linear(16, 32, bias=False)
        self.lm_head.weight = self.tok_emb.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(self.mlp(self.tok_emb(tokens)))
        return logits


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def test_the_five_lines_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very lines of the package's docstring, at the end of a training script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_gpt.py").write_bytes(b"#" * 1_000)
    assert packer.__doc__ is not None
    lines = textwrap.dedent(packer.__doc__.split("\n\n")[1])
    assert 4 <= len(lines.strip().splitlines()) <= 5
    exec(lines, {"model": Model()})
    printed = capsys.readouterr().out
    assert printed.startswith("code 1,000 + header ")
    assert "of 16,000,000, " in printed
    assert (tmp_path / "model.pack").exists()


def test_the_module_offers_what_it_lists() -> None:
    values = {"Calibration", "MeasureOptions", "PlanLimits"}
    commands = {
        "calibrate",
        "inspect",
        "measure",
        "pack",
        "plan",
        "plan_recipe",
        "unpack",
        "verify",
    }
    assert set(packer.__all__) == values | commands
    for name in packer.__all__:
        offered = getattr(packer, name)
        assert offered is getattr(api, name)
        assert offered.__doc__


def test_no_public_function_takes_more_than_seven_arguments() -> None:
    for name in {*packer.__all__, *api.__all__}:
        if name[0].islower():  # fields of the options, by name, are no arguments of their own
            taken = inspect.signature(getattr(api, name)).parameters.values()
            assert sum(one.kind is not one.VAR_KEYWORD for one in taken) <= 7, name


def test_fields_of_the_options_can_be_given_by_name(weights: Weights) -> None:
    pins = {"mlp-in": "int6.row"}
    assert MeasureFields.__annotations__.keys() == {one.name for one in fields(MeasureOptions)}
    by_name = packer.plan(weights, CAP, pins=pins, coder="numpy")
    assert by_name == packer.plan(weights, CAP, packer.MeasureOptions(pins, coder="numpy"))
    assert packer.measure(weights, pins=pins) == packer.measure(
        weights, packer.MeasureOptions(pins)
    )
    with pytest.raises(TypeError, match="reorder"):
        packer.plan(weights, CAP, reorder=False)
    with pytest.raises(AttributeError, match="no attribute 'paсk'"):
        packer.paсk  # noqa: B018  (a Cyrillic letter)


def test_a_model_goes_in_and_comes_back() -> None:
    """Parameters that ask for gradients, a tied head, and a strict load of what was unpacked."""
    model = Model()
    packed = packer.pack(model.state_dict(), packer.plan(model.state_dict(), 100_000))
    again = Model()
    again.load_state_dict(packer.unpack(packed.data), strict=True)
    tokens = torch.arange(32)
    assert torch.equal(again(tokens), model(tokens))  # a cap this wide keeps every bit
    assert packer.verify(packed.data, model.state_dict(), packed.plan).problems == ()


def test_a_file_tuned_after_rounding_unpacks_and_verify_says_so(
    weights: Weights, tmp_path: Path
) -> None:
    name = "blocks.0.mlp.fc.weight"
    plan = packer.plan(weights, CAP, packer.MeasureOptions(pins={name: "int4.row"}))
    whole = Artifact.from_bytes(packer.pack(weights, plan).data)
    rounded = whole.tensors[name]
    tuned = replace(rounded, side={"scale": 1.25 * rounded.side["scale"]})
    tensors, path = {**whole.tensors, name: tuned}, tmp_path / "w.safetensors"
    data = replace(whole, tensors=tensors, metadata={"polished": "1"}).to_bytes()
    packer.unpack(data, path)
    unpacked = read_checkpoint(path)
    assert torch.equal(unpacked.tensors[name], dequantize(tuned))
    assert "polished" in unpacked.metadata
    assert "polished" not in packer.measure(unpacked).metadata
    assert packer.verify(data, weights, plan).problems == (
        "an earlier version tuned its scales and floats after rounding",
        f"{name}: the scales differ from what int4.row gives",
    )


def test_training_goes_on_unharmed(weights: Weights) -> None:
    before = {name: weight.clone() for name, weight in weights.items()}
    packer.pack(weights, packer.plan(weights, CAP))
    assert all(same_bits(weights[name], before[name]) for name in before)


def test_each_kind_of_source_gives_one_plan(made: Path, weights: Weights) -> None:
    measured = packer.measure(weights)
    plan = packer.plan(weights, CAP)
    sources = (
        *(measured, plan, from_state_dict(weights)),
        *(made / "model.pt", str(made / "model.pt"), made / "candidates.json", made / "plan.json"),
    )
    assert all(packer.plan(source, CAP).plan == plan.plan for source in sources)


def test_each_kind_of_plan_and_checkpoint_gives_one_file(made: Path, weights: Weights) -> None:
    plan = packer.plan(weights, CAP)
    whole = (made / "model.pack").read_bytes()
    for checkpoint in (weights, from_state_dict(weights), made / "model.pt"):
        for followed in (plan, made / "plan.json"):
            assert packer.pack(checkpoint, followed).data == whole


def test_artifacts_as_paths_and_as_bytes(made: Path) -> None:
    path = made / "model.pack"
    one, two = packer.unpack(path), packer.unpack(path.read_bytes())
    assert list(one) == list(two) and all(same_bits(one[name], two[name]) for name in one)
    assert packer.verify(path) == packer.verify(path.read_bytes())
    with pytest.raises(PackerError, match=r"missing\.pack cannot be read"):
        packer.unpack(made / "missing.pack")


def test_values_of_inspect(weights: Weights) -> None:
    found = packer.inspect(weights)
    assert [one.name for one in found] == [name for name in weights if name != "lm_head.weight"]
    assert sum(one.share for one in found) == pytest.approx(1)


def test_progress_is_told(weights: Weights) -> None:
    reports: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        reports.append((what, done, total))

    plan = packer.plan(weights, CAP, progress=progress)
    stored = from_state_dict(weights).tensors
    counted = [*accumulate(stored[name].numel() for name in sorted(stored))]
    assert [done for _, done, _ in reports] == counted  # in weights, not tensors
    assert {total for *_, total in reports} == {counted[-1]}
    packed = packer.pack(weights, plan, progress=progress)
    assert reports[-1] == ("packed", counted[-1], counted[-1])
    packer.verify(packed.data, weights, progress=progress)
    assert reports[-1] == ("verified", counted[-1], counted[-1])


def test_code_loader_and_margin_are_counted(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"#" * 321)
    code = [tmp_path / "train.py"]
    plan = packer.plan(weights, packer.PlanLimits(40_000, code=code, loader=True, margin_bytes=9))
    packed = packer.pack(weights, plan, out=tmp_path / "m.pack", loader=tmp_path / "loader.py")
    loader = (tmp_path / "loader.py").stat().st_size
    assert packed.account.code_bytes == 321 + loader
    assert (tmp_path / "m.pack").stat().st_size + 321 + loader <= 40_000 - 9
    with pytest.raises(PackerError, match=r"code file .*missing\.py cannot be read"):
        packer.plan(weights, packer.PlanLimits(CAP, code=[tmp_path / "missing.py"]))


@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_below_one_byte(weights: Weights, cap: int) -> None:
    with pytest.raises(PlanError, match=f"the cap is {cap} bytes; "):
        packer.plan(weights, cap)


def test_refusals(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(CapError, match="no plan fits under the cap of 100 bytes"):
        packer.plan(weights, 100, out=tmp_path / "plan.json")
    with pytest.raises(CheckpointError, match="NaN or infinity in a"):
        packer.plan({"a": torch.tensor([float("nan")])}, CAP)
    with pytest.raises(CheckpointError, match="no named tensors are left"):
        packer.plan({}, CAP)
    plan = packer.plan(weights, CAP)
    with pytest.raises(PlanError, match=r"counts 0 bytes of loader.*--loader"):
        packer.pack(weights, plan, out=tmp_path / "m.pack", loader=tmp_path / "loader.py")
    with pytest.raises(OutputError, match="does not exist"):
        packer.pack(weights, plan, out=tmp_path / "missing" / "m.pack")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".pt", ".pth", ".PT", ".safetensors"])
def test_files_of_unpacked_weights_read_back_tied(
    made: Path, tmp_path: Path, weights: Weights, ending: str
) -> None:
    path = tmp_path / f"weights{ending}"
    unpacked = packer.unpack(made / "model.pack", path)
    assert unpacked["lm_head.weight"] is unpacked["tok_emb.weight"]
    read = read_checkpoint(path)
    assert read.ties == {"lm_head.weight": "tok_emb.weight"}
    assert set(read.tensors) | set(read.ties) == set(weights)
    for name, weight in read.tensors.items():
        assert same_bits(weight, unpacked[name])
        assert (weight.dtype, weight.shape) == (weights[name].dtype, weights[name].shape)


def test_a_pt_file_shares_the_storage_of_tied_names(made: Path, tmp_path: Path) -> None:
    packer.unpack(made / "model.pack", tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert loaded["lm_head.weight"].data_ptr() == loaded["tok_emb.weight"].data_ptr()


def test_a_safetensors_file_holds_tied_names_for_other_readers(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    packer.unpack(made / "model.pack", tmp_path / "weights.safetensors")
    loaded = load_file(tmp_path / "weights.safetensors")
    assert same_bits(loaded["lm_head.weight"], loaded["tok_emb.weight"])


def can_be_written(name: str) -> bool:
    """By the torch that is installed: 2.4 lacks some dtypes, and others in its files."""
    try:
        torch.save(torch.zeros(1, dtype=getattr(torch, name)), io.BytesIO())
    except (AttributeError, KeyError):
        return False
    return True


def one_of_every_dtype() -> Weights:
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name in filter(can_be_written, DTYPES):
        dtype = getattr(torch, name)
        values = torch.randn(6, 5, generator=generator, dtype=torch.float32) * 3
        found[f"{name}.matrix"] = values.abs().to(dtype) if "uint" in name else values.to(dtype)
        found[f"{name}.scalar"] = torch.ones(()).to(dtype)
        found[f"{name}.empty"] = torch.zeros(2, 0).to(dtype)
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_every_dtype_comes_back_bit_for_bit_where_the_cap_allows(tmp_path: Path) -> None:
    weights = one_of_every_dtype()
    packed = packer.pack(weights, packer.plan(weights, 1_000_000), out=tmp_path / "m.pack")
    unpacked = packer.unpack(tmp_path / "m.pack", tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    for found in (unpacked, loaded):
        assert set(found) == set(weights)
        assert all(same_bits(found[name], weight) for name, weight in weights.items())
    assert packed.plan.plan.damage == 0
    checks = packer.verify(tmp_path / "m.pack", weights).tensors
    assert all(check.exact for check in checks)


def test_what_torch_cannot_write_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def save(*_: object) -> None:
        raise KeyError("dtype torch.uint16 is not recognized")

    packed = packer.pack({"w": torch.ones(2, 2)}, packer.plan({"w": torch.ones(2, 2)}, 10_000))
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OutputError, match=r"torch\.uint16 is not recognized\); write a"):
        packer.unpack(packed.data, tmp_path / "w.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_every_dtype_keeps_its_name_under_a_tight_cap() -> None:
    weights = one_of_every_dtype()
    smallest = packer.plan(weights, 1_000_000).measurement
    least = sum(min(c.size_bytes for c in found) for found in smallest.by_tensor.values())
    packed = packer.pack(weights, packer.plan(smallest, smallest.header_bytes + least))
    unpacked = packer.unpack(packed.data)
    for name, weight in weights.items():
        assert (unpacked[name].dtype, unpacked[name].shape) == (weight.dtype, weight.shape)
    assert packed.account.unused_bytes == 0


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ("", " ", "a\nb", "[bold]x[/bold]", "ключ.веса", "модуль." * 40, "0", "a.b..c", "🙂")
    weights = {name: torch.full((3,), float(at)) for at, name in enumerate(names)}
    for ending in (".pt", ".safetensors"):
        packed = packer.pack(weights, packer.plan(weights, 10_000))
        packer.unpack(packed.data, tmp_path / f"w{ending}")
        read = read_checkpoint(tmp_path / f"w{ending}")
        assert {name: float(w[0]) for name, w in read.tensors.items()} == {
            name: float(at) for at, name in enumerate(names)
        }


def test_a_configuration_travels_inside_the_artifact(weights: Weights, tmp_path: Path) -> None:
    config = json.dumps({"layers": 2})
    plan = packer.plan(weights, CAP, packer.MeasureOptions(metadata={"config": config, "run": "é"}))
    packed = packer.pack(weights, plan)
    packer.unpack(packed.data, tmp_path / "w.safetensors")
    metadata = read_checkpoint(tmp_path / "w.safetensors").metadata
    assert (metadata["config"], metadata["run"]) == (config, "é")
    again = packer.pack(tmp_path / "w.safetensors", packer.plan(tmp_path / "w.safetensors", CAP))
    packer.unpack(again.data, tmp_path / "again.safetensors")
    assert read_checkpoint(tmp_path / "again.safetensors").metadata == metadata


def test_the_artifact_s_own_report_agrees_with_what_was_packed(weights: Weights) -> None:
    packed = packer.pack(weights, packer.plan(weights, CAP))
    report = report_artifact(packed.data, "m.pack")
    assert report.account == packed.account
    assert {row.name: row.size_bytes for row in report.rows} == {
        name: encoded.size_bytes for name, encoded in packed.encoded.items()
    }


def test_a_checkpoint_is_a_value(weights: Weights) -> None:
    loaded = api.load(weights)
    assert isinstance(loaded, Checkpoint)
    assert api.load(loaded) is loaded
