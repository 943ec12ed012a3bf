"""`packer calibrate` as its users meet it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig

from packer.checkpoint.checkpoint import read_checkpoint
from packer.curvature.file import read_curvature
from packer.planning.damage_trials import held_out_part

CONFIG = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64, embedding_init_std=0.5)
BANKED = """
import torch
import torch.nn.functional as F
from torch import nn

class Banked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.bank = nn.Parameter(torch.zeros(2, 64, 16))
        self.odd = nn.Parameter(torch.ones(64, 64))
    def forward(self, ids, targets):
        x = self.embed(ids)
        hidden = F.linear(x, self.bank[0].to(x.dtype)).relu()
        logits = F.linear(hidden @ self.bank[1], self.embed.weight) * self.odd.mean()
        return F.cross_entropy(logits.view(-1, 64), targets.view(-1))

class Held(nn.Module):
    # Shifts labels, and makes a table for as many positions as it first sees.
    def __init__(self):
        super().__init__()
        self.model, self.positions = Banked(), None
    def forward(self, ids, labels):
        import os
        os.write(1, b"called")
        if self.positions is None:
            self.positions = torch.arange(ids.size(1)).cos()[:, None]
        x = self.model.embed(ids) + self.positions
        hidden = F.linear(x, self.model.bank[0]).relu()
        logits = F.linear(hidden @ self.model.bank[1], self.model.embed.weight)
        logits = (logits * self.model.odd.mean())[:, :-1].transpose(1, 2)
        return F.cross_entropy(logits, labels[:, 1:])
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, train_bpe: Callable[[Path, int], None]) -> Path:
    """model.pt of the companion family, banked.pt of somebody's, text, shards and tokenizers."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "model.config.json").write_text(json.dumps(settings_of(CONFIG)))
    (folder / "banked.py").write_text(BANKED)
    shapes = {"embed.weight": (64, 16), "bank": (2, 64, 16), "odd": (64, 64)}
    torch.save({name: 0.3 * torch.randn(s) for name, s in shapes.items()}, folder / "banked.pt")
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "qui", "vexat", "bonum", "jazz", "hyphen"]
    chosen = np.random.default_rng(0).choice(words, 4000)
    (folder / "train.txt").write_text("\n".join(" ".join(chosen[i::400]) for i in range(400)))
    for size in (64, 80):
        train_bpe(folder / "train.txt", size)
    return folder


def test_a_tokenizer_of_another_size_is_told(lab: Path, run) -> None:
    """Where the text has no token that the model lacks."""
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t80.model", "--tokens", 512)
    result = run("calibrate", lab / "model.pt", *text, "--window", 64)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stderr.split())
    assert "vocabulary of 64 and the tokenizer one of 80" in words


def test_a_model_that_holds_the_files_and_makes_tables_when_called(
    lab: Path, tmp_path: Path
) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model", "--tokens", 512)
    command = ("calibrate", lab / "banked.pt", "--model", f"{lab / 'banked.py'}:Held", *text)
    done = subprocess.run(
        [sys.executable, "-m", "packer", *map(str, command), "--window", "64", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == ["bank", "embed.weight", "odd"]
    assert "called" in done.stderr


def test_a_text_gives_curvature_of_every_tensor(lab: Path, run) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--tokens", 2048, "--window", 64)
    result = run("calibrate", lab / "model.pt", *text, *amount, "-o", "c.safetensors")
    assert result.exit_code == 0, result.output
    assert "2,048 tokens of" in result.stdout and " s\n" in result.stdout
    checkpoint = read_checkpoint(lab / "model.pt")
    found = read_curvature("c.safetensors", checkpoint)
    assert set(found.by_tensor) == set(checkpoint.tensors)
    assert found.vocab_size == 64 and found.bytes_per_token and 1 < found.bytes_per_token < 9
    again = run("calibrate", lab / "model.pt", *text, *amount, "-o", "again", "--json")
    value = json.loads(again.stdout)
    assert value["sha256"] == found.sha256 and value["tokens"] == 2048
    assert value["seconds"] > 0 and str(lab / "train.txt") in value["source"]


def test_somebodys_banked_model_with_a_loss_alone(lab: Path, run) -> None:
    result = run(
        "calibrate", lab / "banked.pt", "--model", f"{lab / 'banked.py'}:Banked", "--data",
        lab / "train.txt", "--tokenizer", lab / "t64.model", "--tokens", 512, "--window", 32,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "odd: no linear map or lookup was seen to use it" in result.stderr
    found = read_curvature("curvature.safetensors", read_checkpoint(lab / "banked.pt"))
    assert found.by_tensor["bank"].hessian.shape == (2, 16, 16)
    assert found.by_tensor["embed.weight"].lookup is not None


def test_the_model_may_write_the_text_itself(lab: Path, run) -> None:
    own = ("--self-generate", 96, "--window", 32, "--tokenizer", lab / "t64.model", "--json")
    values = []
    for seed in (0, 0, 1):
        result = run("calibrate", lab / "model.pt", *own, "--seed", seed)
        assert result.exit_code == 0, result.output
        values.append(json.loads(result.stdout))
    assert values[0]["sha256"] == values[1]["sha256"] != values[2]["sha256"]
    assert values[0]["tokens"] == 96 and "by the model itself" in values[0]["source"]


def on_text(lab: Path, tokens: int) -> list[object]:
    """The command, of so many tokens in windows of 64."""
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    return ["calibrate", lab / "model.pt", *text, "--tokens", tokens, "--window", 64]


def test_a_calibration_killed_half_way_goes_on(lab: Path, run) -> None:
    """Killed from outside, as by kill -9, after two of four batches."""
    command = on_text(lab, 4096)
    assert run(*command, "-o", "whole").exit_code == 0
    script = f"""
import os, signal
import torch
from packer.curvature import calibration
from packer.curvature import resume
from packer.cli import main
torch.set_num_threads(1)  # as here: sums are the same with as many threads
resume.SECONDS_BETWEEN, resume.COST_SHARE = 0.0, 1e9
observe, seen = calibration._observe, []
def killed(*arguments):
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(1)
    return observe(*arguments)
calibration._observe = killed
main({[str(part) for part in command]!r} + ["-o", "c"])
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Path("c.partial").exists() and not Path("c").exists()
    other = run(*command, "-o", "c", "--seed", 1)
    assert other.exit_code == 1 and "with another --seed" in " ".join(other.stderr.split())
    again = run(*command, "-o", "c")
    assert (
        again.exit_code == 0
        and "continuing the interrupted calibration in c.partial" in again.stderr
    )
    checkpoint = read_checkpoint(lab / "model.pt")
    assert read_curvature("c", checkpoint).sha256 == read_curvature("whole", checkpoint).sha256
    assert not Path("c.partial").exists()


def together(program: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, with a thread each as in these tests."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*run, *program.split(), *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def same_but_for_rounding(lab: Path, one: str, other: str) -> None:
    """Sums in another order come out differently in their last digits."""
    checkpoint = read_checkpoint(lab / "model.pt")
    first, second = (read_curvature(path, checkpoint) for path in (one, other))
    assert (first.tokens, first.vocab_size) == (second.tokens, second.vocab_size)
    values, others = dict(first.tensors()), dict(second.tensors())
    assert values.keys() == others.keys()
    for key, value in values.items():
        last_digits = 2**-22 * float(value.abs().max())
        torch.testing.assert_close(others[key], value, rtol=2**-22, atol=last_digits)


def test_processes_share_a_text(lab: Path, run) -> None:
    """Five batches for two processes, the last of which only the first one has."""
    command = on_text(lab, 5120)
    assert run(*command, "-o", "one").exit_code == 0
    ended = together("-m packer", *command, "-o", "two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("two: curvature of") == 1
    same_but_for_rounding(lab, "one", "two")
    # Cut off, it goes on in one process as in two.
    Path("killed.py").write_text(KILLED_IN_THE_SECOND_ROUND)
    ended = together("killed.py", *command, "-o", "three")
    assert ended.returncode != 0 and Path("three.partial").exists() and not Path("three").exists()
    again = run(*command, "-o", "three")
    assert (
        again.exit_code == 0
        and "continuing the interrupted calibration in three.partial" in again.stderr
    )
    same_but_for_rounding(lab, "one", "three")


def test_several_processes_write_no_text(lab: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = contextlib.nullcontext((1, 2))  # the second of two
    monkeypatch.setattr("packer.commands.calibrate.joined", lambda _: rank)
    refused = run(*on_text(lab, 64)[:2], "--self-generate", 64, "-o", "four")
    assert refused.exit_code == 2 and "--self-generate runs in one process" in refused.stderr
    assert not Path("four").exists()


KILLED_IN_THE_SECOND_ROUND = """
import os, signal, sys
from packer.cli import main
from packer.curvature import calibration, resume

resume.SECONDS_BETWEEN, resume.COST_SHARE = 0.0, 1e9
observe, seen = calibration._observe, []

def killed(*arguments):
    if seen and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(1)
    return observe(*arguments)

calibration._observe = killed
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "give --data, or --self-generate"),
        (["--data", "train.txt", "--self-generate", 64], 2, "give --data, or --self-generate"),
        (["--self-generate", 64], 2, "needs the tokenizer"),
        (["--data", "train.txt"], 1, "name its sentencepiece model or tokenizer.json"),
        (["--data", "no.txt", "--tokenizer", "t64.model"], 1, "no such data"),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--tokens", 8],
            1,
            "a window of 512 tokens is longer than the 8 tokens",
        ),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--seconds", "1e-9"],
            1,
            "was read within 1e-09 seconds; allow more",
        ),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--model-config", "model.pt"],
            2,
            "--model-config goes with --model",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    lab: Path, run, options: list[object], code: int, said: str
) -> None:
    files = ("train.txt", "t64.model", "no.txt", "model.pt")
    given = [lab / str(option) if option in files else option for option in options]
    result = run("calibrate", lab / "model.pt", *given)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split()), result.stderr
    assert not Path("curvature.safetensors").exists()


def test_few_tokens_are_warned_of(lab: Path, run) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    result = run("calibrate", lab / "model.pt", *text, "--tokens", 32, "--window", 32)
    assert result.exit_code == 0
    assert "rank 32 at most" in result.stderr


@pytest.fixture(scope="module")
def curvature_file(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curvature of model.pt on 1,024 tokens."""
    from click.testing import CliRunner

    from packer.cli import main

    path = tmp_path_factory.mktemp("curvature") / "c.safetensors"
    text = ["--data", lab / "train.txt", "--tokenizer", lab / "t64.model", "--tokens", 1024]
    command = ["calibrate", lab / "model.pt", *text, "--window", 64, "-o", path]
    result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    return path


def test_a_plan_with_curvature_is_packed_with_it(lab: Path, curvature_file: Path, run) -> None:
    model = lab / "model.pt"
    options = ("--curvature", curvature_file)
    planned = run(
        "plan", model, "--cap", "12KB", *options, "--pin", "mlp-in=int4.row+gptq", "-o", "p"
    )
    assert planned.exit_code == 0, planned.output
    assert "predicted damage (damage_bpb)" in planned.stdout
    assert "1,024 tokens of" in planned.stdout
    assert f"--curvature {curvature_file}" in planned.stdout.splitlines()[-1]
    plan = json.loads(Path("p").read_text())
    checkpoint = read_checkpoint(model)
    assert plan["measurement"]["curvature"] == read_curvature(curvature_file, checkpoint).sha256
    refused = run("pack", model, "--plan", "p", "-o", "model.pack")
    assert refused.exit_code == 1 and "needs curvature, as" in " ".join(refused.stderr.split())
    assert not Path("model.pack").exists()
    packed = run("pack", model, "--plan", "p", *options, "-o", "model.pack")
    assert packed.exit_code == 0, packed.output
    assert Path("model.pack").stat().st_size <= 12_000
    against = ("verify", "model.pack", "--against", model, "--plan", "p")
    assert run(*against, *options).exit_code == run(*against).exit_code == 0
    other = run("plan", lab / "banked.pt", "--cap", "12KB", *options)
    assert other.exit_code == 1 and "contents" in other.stderr


def test_the_next_command_works_as_printed(lab: Path, run) -> None:
    text = ("--calibration", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--calibration-tokens", 1024, "--calibration-window", 64)
    pin = ("--pin", "mlp-in=int4.row+gptq")
    planned = run("plan", lab / "model.pt", "--cap", "12KB", *text, *amount, *pin, "-o", "p.json")
    assert planned.exit_code == 0, planned.output
    command = shlex.split(planned.stdout.splitlines()[-1].removeprefix("next: packer "))
    assert command[-2:] == ["--curvature", "p.curvature.safetensors"]
    packed = run(*command)
    assert packed.exit_code == 0, packed.output
    assert Path("model.pack").stat().st_size <= 12_000
    again = run("plan", "p.json", "--cap", "13KB", "-o", "again.json")
    command = shlex.split(again.stdout.splitlines()[-1].removeprefix("next: packer "))
    assert run(*command).exit_code == 0
    measured = run("measure", lab / "model.pt", *text, *amount, "--curvature-out", "c.st", "--json")
    assert json.loads(measured.stdout)["curvature_file"] == "c.st"
    checkpoint = read_checkpoint(lab / "model.pt")
    made = read_curvature("c.st", checkpoint)
    assert made.sha256 == read_curvature("p.curvature.safetensors", checkpoint).sha256
    nothing = run("plan", lab / "model.pt", "--cap", "12KB", "--curvature-out", "c.st")
    assert (
        nothing.exit_code == 2
        and "--curvature-out writes curvature made with --calibration" in nothing.stderr
    )
    both = run("measure", lab / "model.pt", *text, "-o", "c", "--curvature-out", "c")
    assert both.exit_code == 2 and "cannot hold the curvature too" in both.stderr


def test_calibration_text_fits_the_damage(lab: Path, run) -> None:
    text = ("--calibration", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--calibration-tokens", 1024, "--calibration-window", 64)
    result = run("measure", lab / "model.pt", *text, *amount)
    assert result.exit_code == 0, result.output
    assert "fitted to" in result.stdout and "192 tokens of the end of" in result.stdout
    value = json.loads(Path("candidates.json").read_text())
    assert value["damage_fit"]["tokens"] == 192 and value["damage_fit"]["error"] < 1
    assert {"mlp-in", "token-embedding"} <= set(value["damage_fit"]["factors"])
    planned = run("plan", "candidates.json", "--cap", "13KB", "-o", "p")
    assert planned.exit_code == 0 and "fitted to" in planned.stdout
    late = run("plan", "candidates.json", "--cap", "13KB", *text)
    assert late.exit_code == 2 and "need the checkpoint as SOURCE" in late.stderr


@pytest.mark.parametrize("wanted", [512, 10**6])
def test_calibration_leaves_the_held_out_end_of_the_text_unread(
    lab: Path, run, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    held_out: list[int] = []

    def noted(*arguments: int) -> tuple[int, int]:
        part = held_out_part(*arguments)
        held_out.append(part[0])
        return part

    monkeypatch.setattr("packer.planning.damage_trials.held_out_part", noted)
    text = ("--calibration", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--calibration-tokens", wanted, "--calibration-window", 64)
    result = run("measure", lab / "model.pt", *text, *amount, "--curvature-out", "c.st")
    assert result.exit_code == 0, result.output
    made = read_curvature("c.st", read_checkpoint(lab / "model.pt"))
    (first,) = set(held_out)
    assert first > 512 and made.tokens == min(wanted, first) // 64 * 64


def test_a_plan_is_measured_on_a_text(lab: Path, curvature_file: Path, run) -> None:
    text = ("--measure-on", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--calibration-tokens", 512, "--calibration-window", 64)
    options = ("--curvature", curvature_file)
    result = run("plan", lab / "model.pt", "--cap", "12KB", *options, *text, *amount, "-o", "p")
    assert result.exit_code == 0, result.output
    assert "round 1: measured damage" in result.stdout and "; kept" in result.stdout
    assert ", predicted " in result.stdout
    again = run("plan", "p", "--cap", "12KB", *options, *text, *amount, "--json")
    rounds = json.loads(again.stdout)["measured_rounds"]
    assert rounds and all(one["measured_damage_bpb"] > 0 for one in rounds)
    blind = run("plan", "p", "--cap", "12KB", *text, *amount)
    assert blind.exit_code == 1 and "give that file" in " ".join(blind.stderr.split())
    alone = ("--cap", "12KB", "--no-calibration")
    without = run("plan", lab / "model.pt", *alone, *text, *amount)
    assert without.exit_code == 0 and "predicted in other units" in without.stdout
