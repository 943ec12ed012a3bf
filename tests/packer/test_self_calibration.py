"""Without a text, `plan`, `pack` and `measure` calibrate on text that the model writes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packer.eval.sample import sample_windows
from packer.eval.token_bytes import AssumedBytes
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig

from packer import api
from packer.curvature import self_generated
from packer.curvature.self_generated import TextSize, estimated_seconds, size_for
from packer.planning.plan import read_plan

CONFIG = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64, embedding_init_std=0.5)
CAP, LARGE = ("--cap", 12_000), ("--cap", 60_000)
LOSS_ALONE = """
from torch import nn
import torch.nn.functional as F

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64, bias=False)
    def forward(self, ids, targets):
        logits = self.head(self.embed(ids)).view(-1, 64)
        return F.cross_entropy(logits, targets.view(-1))
"""


def companion() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt with its configuration beside it, alone.pt without, bare.pt of somebody's class."""
    folder = tmp_path_factory.mktemp("lab")
    weights = companion().state_dict()
    torch.save(weights, folder / "model.pt")
    torch.save(weights, folder / "alone.pt")
    (folder / "model.config.json").write_text(json.dumps(settings_of(CONFIG)))
    (folder / "bare.py").write_text(LOSS_ALONE)
    shapes = {"embed.weight": (64, 16), "head.weight": (64, 16)}
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "bare.pt")
    return folder


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test takes a second."""
    monkeypatch.setattr(self_generated, "KEPT", TextSize(10, 32))
    monkeypatch.setattr(self_generated, "ANEW", TextSize(20, 8))


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_plan_without_text_is_calibrated_and_packed_as_printed(lab: Path, run) -> None:
    pin = ("--pin", "mlp-in=int4.row+gptq")
    planned = run("plan", lab / "model.pt", *CAP, *pin, "-o", "p.json", "--json")
    assert planned.exit_code == 0, planned.output
    said = words(planned.stderr)
    assert "calibrating on 320 tokens that the model writes itself, about 0 s" in said
    assert "--calibration TEXT is better, --no-calibration faster" in said
    assert "calibrated on 320 tokens of text by the model itself (temperature 1; 1.00 bytes" in said
    value = json.loads(planned.stdout)
    assert value["calibration"] == "self-generated" and value["damage_kind"] == "damage_bpb"
    assert read_plan("p.json").measurement.damage_fit is not None
    packed = run("pack", lab / "model.pt", "--plan", "p.json", "-o", "m.pack", "--json")
    assert packed.exit_code == 0, packed.output
    assert "calibrating" not in packed.stderr
    assert json.loads(packed.stdout)["calibration"] == "self-generated"


def test_two_runs_give_equal_bytes(lab: Path, run) -> None:
    for name in ("a", "b"):
        assert run("pack", lab / "model.pt", *CAP, "-o", name).exit_code == 0
    assert Path("a").read_bytes() == Path("b").read_bytes()


@pytest.mark.parametrize("source", ["model.pt", "alone.pt"])
def test_no_calibration_is_the_plan_from_the_weights_alone(lab: Path, run, source: str) -> None:
    done = run("pack", lab / source, *CAP, "--no-calibration", "-o", "m.pack", "--json")
    assert done.exit_code == 0 and "calibrat" not in done.stderr
    assert json.loads(done.stdout)["calibration"] == "none"
    api.pack(lab / source, api.plan(lab / source, CAP[1]), out="api.pack")
    assert Path("m.pack").read_bytes() == Path("api.pack").read_bytes()


def test_without_a_configuration_the_plan_says_what_to_type(lab: Path, run) -> None:
    planned = run("plan", lab / "alone.pt", *CAP)
    assert planned.exit_code == 0 and "to calibrate: packer plan" in words(planned.stderr)
    named = run("measure", lab / "alone.pt", "--config", lab / "model.config.json", "--json")
    assert json.loads(named.stdout)["calibration"] == "self-generated"
    assert json.loads(named.stdout)["curvature_file"] == "candidates.curvature.safetensors"


def test_a_configuration_of_another_model_is_no_reason_to_refuse(lab: Path, run) -> None:
    Path("other.pt").write_bytes((lab / "bare.pt").read_bytes())
    Path("other.config.json").write_text(json.dumps(settings_of(CONFIG)))
    done = run("plan", "other.pt", *CAP, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["calibration"] == "none"
    assert "these weights are not of the companion model" in words(done.stderr)


def test_a_class_that_is_named_writes_too_or_is_refused(lab: Path, run) -> None:
    model = ("--model", f"{lab / 'bare.py'}:Bare")
    done = run("plan", lab / "bare.pt", "--cap", 3000, *model, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["calibration"] == "self-generated"
    assert "calibrating on 160 tokens" in words(done.stderr)
    wrong = ("--model", f"{lab / 'bare.py'}:Bear")
    refused = run("plan", lab / "bare.pt", "--cap", 3000, *wrong)
    assert refused.exit_code == 1 and "the nearest is 'Bare'" in words(refused.stderr)
    assert "--no-calibration plans without the model" in words(refused.stderr)
    assert run("plan", lab / "bare.pt", "--cap", 3000, *wrong, "--no-calibration").exit_code == 0


def test_what_would_take_long_is_left_out(lab: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packer.commands.self_calibration.LONGEST", 0.0)
    done = run("plan", lab / "model.pt", *CAP, "--json")
    assert json.loads(done.stdout)["calibration"] == "none"
    assert "it would take about 0 minutes" in words(done.stderr)
    assert "packer calibrate with --self-generate 320" in words(done.stderr)


def test_choices_that_need_no_curvature_get_none(lab: Path, run) -> None:
    done = run("pack", lab / "model.pt", *LARGE, "--recipe", "int6-rowmax-zstd", "-o", "r")
    assert done.exit_code == 0 and "calibrat" not in done.stderr
    gptq = run("pack", lab / "model.pt", *LARGE, "--recipe", "full-gptq-int6", "-o", "g", "--json")
    assert gptq.exit_code == 0 and json.loads(gptq.stdout)["calibration"] == "self-generated"
    assert run("plan", lab / "model.pt", *CAP, "--no-calibration", "-o", "p.json").exit_code == 0
    kept = run("pack", lab / "model.pt", *CAP, "--policy", "p.json", "-o", "p", "--json")
    assert kept.exit_code == 0 and json.loads(kept.stdout)["calibration"] == "none"


@pytest.mark.parametrize("other", [("--calibration", "TEXT"), ("--curvature", "TEXT")])
def test_no_calibration_goes_without_one(lab: Path, run, other: tuple[str, str]) -> None:
    Path("TEXT").write_text("a")
    done = run("plan", lab / "model.pt", *CAP, "--no-calibration", *other)
    assert done.exit_code == 2 and "--no-calibration goes without" in words(done.stderr)


def test_a_folder_is_read_with_its_own_tokenizer(model_folder: Callable[[str], Path], run) -> None:
    done = run("plan", model_folder("llama"), "--cap", 60_000, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["calibration"] == "self-generated"
    assert "(temperature 1) in" in words(done.stderr)


def test_from_python_a_model_is_calibrated_without_batches() -> None:
    first, second = api.calibrate(companion()), api.calibrate(companion())
    assert first.kind == "self-generated" and first.tokens == 320
    assert first.sha256 == second.sha256 != api.calibrate(companion(), seed=1).sha256


def test_windows_begin_with_any_token() -> None:
    given = {"windows": 40, "window": 3, "start": None, "vocab_size": 64}
    first, again = (torch.cat(list(sample_windows(companion(), **given))) for _ in range(2))
    assert torch.equal(first, again) and len(first[:, 0].unique()) > 20


def test_windows_are_no_longer_than_the_model_allows() -> None:
    model = companion()
    assert size_for(model) == TextSize(10, 32)
    model.longest_window = 16
    assert size_for(model) == TextSize(20, 16)


def test_the_estimate_grows_with_weights_and_tokens() -> None:
    model = companion()
    one, two = (estimated_seconds(model, TextSize(windows, 32)) for windows in (1, 2))
    assert two == 2 * one > 0
    assert estimated_seconds(lambda tokens: tokens, TextSize(1, 32)) == 0


def test_assumed_bytes_add_up_wherever_a_stream_is_cut() -> None:
    tokens = np.zeros(1001, dtype=np.int64)
    counter = AssumedBytes(2.442)
    whole = counter.target_bytes(tokens, 1)
    assert whole.sum() == pytest.approx(2442, abs=1) and set(whole) == {2, 3}
    parts = [counter.target_bytes(tokens[:400], 1), counter.target_bytes(tokens[399:], 400)]
    assert (np.concatenate(parts) == whole).all()
    assert (counter.after(399).target_bytes(tokens[399:], 1) == parts[1]).all()
    assert counter.unknown_count(tokens) == 0
