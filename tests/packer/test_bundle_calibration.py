"""Calibration inside a bundle: the same curvature as the packer's own, in time, or a refusal."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from packer.quantizers.curvature import Curvature
from packer.train.config import infer_config, read_config
from packer.train.model import GPT
from torch import Tensor, nn

import packer
from packer import api
from packer.checkpoint.checkpoint import from_state_dict
from packer.cli import main
from packer.curvature.calibration import calibrate
from packer.errors import CurvatureError
from packer.shipping.bundle import inline_bundle, make_bundle
from packer.shipping.bundled_calibration import curvature_within
from packer.shipping.fit_to_cap import CLOSE
from packer.shipping.loader import LARGEST_CALIBRATION

VOCAB, WIDTH = 96, 24
# A training script: model, weights, batches; what it does with them comes after it.
TRAINING = '''"""Trains."""
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


class Model(nn.Module):
    """A tied head, a bank of matrices sliced at use, a product with a weight, a scale; a loss."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.emb = nn.Embedding(96, 24)
        self.emb.weight.data = torch.randn(96, 24, generator=draw)
        self.up = nn.Parameter(torch.randn(2, 72, 24, generator=draw) / 3)
        self.down = nn.Parameter(torch.randn(72, 24, generator=draw) / 9)
        self.scale = nn.Parameter(1 + torch.randn(24, generator=draw) / 9)
        self.head = nn.Linear(24, 96, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("seen", torch.tensor(5))

    def forward(self, tokens, targets):
        x = self.emb(tokens)
        for layer in (0, 1):
            x = x + F.relu(F.linear(x, self.up[layer].to(x.dtype))) @ self.down
        return F.cross_entropy(self.head(x * self.scale).flatten(0, 1), targets.flatten())


draw = torch.Generator().manual_seed(4)
batches = [torch.randint(0, 96, (4, 16), generator=draw) for _ in range(3)]
model = Model()
weights = model.state_dict()
'''
CALIBRATING = """
import sys
from dataclasses import replace
from pathlib import Path
curvature, tokens, seconds = bundle["calibrated"](model, weights, batches, 60)
code = Path(__file__).stat().st_size
data = bundle["encode_weights"](weights, curvature, int(sys.argv[1]), code)
Path(sys.argv[2]).write_bytes(data)
torch.save(bundle["read_weights"](data), sys.argv[3])
print(f"{tokens} {seconds:.1f} {len(data)} {code}")
"""
ALONE = """
import runpy, sys
sys.modules["packer"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FIELDS = ("hessian", "fisher", "row_usage", "outputs")


def run_alone(*arguments: object) -> str:
    command = [sys.executable, "-I", "-c", ALONE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained() -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(TRAINING, space)
    return space


def known(theirs: object) -> Curvature:
    """A bundle's own Curvature, whose fields have other names in the same order."""
    assert dataclasses.is_dataclass(theirs)
    hessian, fisher, tokens, usage, lookup, outputs = (
        getattr(theirs, one.name) for one in dataclasses.fields(theirs)
    )
    both = None if lookup is None else known(lookup)
    return Curvature(hessian, fisher, tokens, usage, both, outputs)


def assert_same(one: Curvature, other: Curvature) -> None:
    assert one.tokens == other.tokens
    for field in FIELDS:
        mine, theirs = getattr(one, field), getattr(other, field)
        assert (mine is None) == (theirs is None), field
        assert mine is None or torch.equal(mine, theirs), field
    assert (one.lookup is None) == (other.lookup is None)
    if one.lookup is not None and other.lookup is not None:
        assert_same(one.lookup, other.lookup)


@pytest.fixture(scope="module")
def space() -> dict[str, Any]:
    return trained()


@pytest.fixture(scope="module")
def plan(space: dict[str, Any]) -> packer.planning.plan.PackPlan:
    curvature = packer.calibrate(space["model"], space["batches"])
    return packer.plan(space["weights"], 12_000, curvature=curvature)


@pytest.fixture(scope="module")
def made(plan: packer.planning.plan.PackPlan) -> dict[str, Any]:
    """What a bundle defines."""
    return defined(make_bundle(replace(plan.bundled, calibrate=True)).script)


def defined(script: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "bundle"}
    exec(script, space)
    return space


class Logits(nn.Module):
    """The same model, which gives logits alone, or what holds them."""

    def __init__(self, model: nn.Module, way: str) -> None:
        super().__init__()
        for name, part in [*model.named_children(), *model.named_parameters(recurse=False)]:
            setattr(self, name, part)
        self.way = way

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        if self.way == "targets" and targets is None:
            raise TypeError("targets are missing")
        logits = self.forward_logits(tokens)
        return logits if self.way == "plain" else (logits.mean(), logits)

    def forward_logits(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        for layer in (0, 1):
            x = x + F.relu(F.linear(x, self.up[layer])) @ self.down
        return F.linear(x * self.scale, self.emb.weight)


@pytest.mark.parametrize("way", ["loss", "plain", "targets", "logits"])
def test_it_is_the_packers_own_bit_by_bit(space, made, way):
    model = space["model"] if way == "loss" else Logits(space["model"], way)
    ours = packer.calibrate(model, space["batches"], seed=5).by_tensor
    theirs, tokens, seconds = made["calibrated"](model, space["weights"], space["batches"], 60, 5)
    assert tokens == 3 * 4 * 16 and 0 < seconds < 60
    assert theirs.keys() == ours.keys() == {"emb.weight", "up", "down", "scale"}
    for name in ours:
        assert_same(known(theirs[name]), ours[name])
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_a_training_script_alone_writes_what_the_packer_does(tmp_path, space, plan):
    curvature = packer.calibrate(space["model"], space["batches"])
    packed = packer.pack(space["weights"], plan, curvature=curvature).data
    (tmp_path / "train.py").write_text(TRAINING + CALIBRATING)
    done = inline_bundle(replace(plan.bundled, calibrate=True), (tmp_path / "train.py").read_text())
    script = tmp_path / "train.py"
    script.write_text(done.script)
    cap = script.stat().st_size + len(packed) + CLOSE
    said = run_alone(script, cap, tmp_path / "m.pack", tmp_path / "back.pt").split()
    data = (tmp_path / "m.pack").read_bytes()
    assert [int(said[0]), *map(int, said[2:])] == [192, len(data), script.stat().st_size]
    assert data[25:-8] == packed[25:-8]  # all but cap, code and checksum
    theirs, ours = torch.load(tmp_path / "back.pt"), packer.unpack(data)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_plan_counts_it(tmp_path, plan):
    (tmp_path / "train.py").write_text(TRAINING)
    packer.files.write_json(tmp_path / "plan.json", plan.to_json())
    inline = ("--inline", str(tmp_path / "train.py"))
    arguments = ["plan", str(tmp_path / "plan.json"), "--cap", "60000", *inline, "--calibrate"]
    asked = [*arguments, "-o", str(tmp_path / "again.json"), "--json"]
    output = json.loads(CliRunner().invoke(main, asked, catch_exceptions=False).stdout)
    again = api.load_plan(tmp_path / "again.json")
    assert again.limits.calibrate and not plan.limits.calibrate
    out = ["-o", str(tmp_path / "out.py"), "--json"]  # a plan that counted it has it anyway
    command = ["bundle", "--plan", str(tmp_path / "again.json"), *inline, *out]
    made = json.loads(CliRunner().invoke(main, command, catch_exceptions=False).stdout)
    assert made["encoder_bytes"] == output["encoder_bytes"] == again.limits.encoder_bytes
    assert made["script_bytes"] == made["code_bytes"] == output["code_bytes"]
    without = inline_bundle(replace(again.bundled, calibrate=False), TRAINING)
    assert 4_000 < made["encoder_bytes"] - without.encoder_bytes < LARGEST_CALIBRATION
    assert "calibrated" in defined((tmp_path / "out.py").read_text())["bundle"]


def spoiled(space: dict[str, Any], what: str) -> tuple[Any, Any, Any]:
    """(model, weights, batches) of which something is wrong."""
    model = trained()["model"]
    weights, batches = dict(model.state_dict()), list(space["batches"])
    if what == "changed":
        weights["down"] = weights["down"] + 1e-3
    elif what == "shape":
        weights["down"] = weights["down"][:9]
    elif what == "missing":
        del weights["up"]
    elif what == "other":
        model = nn.Linear(4, 4)
    elif what == "nan":
        model.scale.data[0] = torch.nan
    elif what == "large":
        model.scale.data[0] = 3e38
    elif what == "blind":
        model.forward = lambda tokens, targets: (tokens + targets).sum()
    return (
        model,
        weights,
        {"none": [], "flat": [batches[0][0]], "floats": [batches[0] / 2]}.get(what, batches),
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("changed", r"down \[72, 24\] is not as in the model"),
        ("shape", r"down \[9, 24\] is not as in the model, \[72, 24\]"),
        ("missing", "up is not among the weights"),
        ("other", "the model has no weight down"),
        ("nan", "scale has values that are not finite"),
        ("large", "the model's logits are not finite"),
        ("none", "no batch was read within 60 seconds"),
        ("flat", r"a batch is torch.int64 \[16\]; integer tokens \[windows, time\]"),
        ("floats", r"a batch is torch.float32 \[4, 16\]; integer tokens"),
        ("blind", "the model gives no logits: .*its loss"),
    ],
)
def test_what_it_cannot_use_is_refused_in_a_bundle_too(space, made, what, message):
    with pytest.raises(Exception, match=message) as refused:
        made["calibrated"](*spoiled(space, what), 60)
    base = refused.type.__mro__[1]
    assert base.__mro__[1] is Exception and base not in (CurvatureError, packer.errors.PackerError)


def test_weights_rounded_for_the_file_are_the_models_own(space, made):
    """Half of a float32, or a float32 of what a model holds in bfloat16; not another number."""
    model = trained()["model"]
    halves = {name: weight.clone() for name, weight in model.state_dict().items()}
    halves["up"] = halves["up"].half()
    calibrated = made["calibrated"]
    assert calibrated(model, halves, space["batches"], 60)[1] == 192
    model.up.data = model.up.data.bfloat16()
    with pytest.raises(Exception, match=r"up .* is not as in the model"):
        calibrated(model, halves, space["batches"], 60)


class Clocked(Logits):
    """Every forward takes 0.4 s by the clock, and the one after `before` long ones far more."""

    def __init__(self, model: nn.Module, now: list[float], stalls: int) -> None:
        super().__init__(model, "plain")
        self.now, self.left = now, stalls

    def forward_logits(self, tokens: Tensor) -> Tensor:
        self.left -= 1
        self.now[0] += 0.4 if self.left else 10.0
        return super().forward_logits(tokens)


@pytest.mark.parametrize(("stalls", "read", "spent"), [(0, 6, 2.8), (7, 5, 12.4)])
def test_a_batch_that_does_not_end_in_time_counts_as_a_whole_or_not(
    space, monkeypatch, stalls, read, spent
):
    now = [0.0]
    monkeypatch.setattr(packer.shipping.bundled_calibration.time, "perf_counter", lambda: now[0])
    model = Clocked(space["model"], now, stalls)
    weights, batches = from_state_dict(model.state_dict()).tensors, list(space["batches"]) * 4
    found, tokens, seconds = curvature_within(model, weights, [*weights], {}, batches, 3.0)
    assert tokens == read * 64 and seconds == pytest.approx(spent)
    ours = calibrate(Logits(space["model"], "plain"), batches[:read]).by_tensor
    for name, one in ours.items():
        assert_same(found[name], one)


def test_a_first_batch_that_takes_too_long_is_refused(space, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(packer.shipping.bundled_calibration.time, "perf_counter", lambda: now[0])
    model = Clocked(space["model"], now, 2)
    weights = from_state_dict(model.state_dict()).tensors
    with pytest.raises(CurvatureError, match="within 3 seconds; allow more"):
        curvature_within(model, weights, [*weights], {}, space["batches"], 3.0)


def test_of_the_reference_checkpoint(shared):
    """The companion model: hashed pairs, value embeddings, a bank of scales, a tied head."""
    folder = shared / "checkpoints"
    weights = torch.load(folder / "ref6x256.pt", weights_only=True)
    settings = read_config(str(folder / "ref6x256.config.json"))
    model = GPT(infer_config(weights).complete(settings))
    model.load_state_dict(weights)
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 1024, (2, 64), generator=draw) for _ in range(2)]
    ours = packer.calibrate(model, batches)
    names = from_state_dict(weights).tensors
    pins = {name: ("step.row.col+gptq2@0.5" if "attn.c_k" in name else "fp16") for name in names}
    loaded = api.load(weights)
    measured = packer.planning.measure.measure_choices(loaded, pins, curvature=ours)
    size = measured.header_bytes + sum(one.size_bytes for one in measured.candidates)
    plan = packer.planning.plan.make_plan(measured, packer.planning.account.Limits(size + CLOSE))
    packed = packer.pack(weights, plan, curvature=ours).data
    made = defined(make_bundle(replace(plan.bundled, calibrate=True)).script)
    curvature, tokens, _ = made["calibrated"](model, weights, batches, 600)
    assert tokens == 256 and curvature.keys() == ours.by_tensor.keys()
    for name, one in ours.by_tensor.items():
        assert_same(known(curvature[name]), one)
    data = made["encode_weights"](weights, curvature, len(packed) + CLOSE, 0)
    assert data[25:-8] == packed[25:-8]
    theirs, unpacked = made["read_weights"](data), packer.unpack(data)
    assert all(torch.equal(theirs[name], unpacked[name]) for name in unpacked)
