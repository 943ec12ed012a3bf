"""Runs: they learn, they go on after any death, they stop when they should."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packer.quantizers import fake_quant
from packer.train.loop import METRICS, STATE, Trainer, TrainingError
from packer.train.metrics import read_metrics
from packer.train.run_state import read_state
from packer.train.settings import (
    PackSettings,
    QATSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)

from packer.errors import PackerError

Start = Callable[..., subprocess.Popen[str]]


def tensors_of(value: Any, at: str = "") -> dict[str, torch.Tensor]:
    """Every tensor inside a state, by its path."""
    if isinstance(value, torch.Tensor):
        return {at: value}
    if not isinstance(value, (dict, list, tuple)):
        return {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, inner in pairs for k, v in tensors_of(inner, f"{at}/{key}").items()}


def equal_runs(first: Path, second: Path) -> None:
    """Everything but the clock is the same to the bit."""
    one, other = (tensors_of(read_state(folder / STATE)) for folder in (first, second))
    assert set(one) == set(other) and len(one) > 20
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_run_learns_and_tells(trainer: Callable[..., Trainer], tiny: TrainConfig) -> None:
    run = trainer(schedule=replace(tiny.schedule, iterations=60, warmdown=20))
    before = run.evaluate(0)
    run.train()
    lines = read_metrics(run.folder / METRICS)
    assert lines[-1]["step"] == 60 and lines[-1]["tokens"] == 60 * 128
    assert lines[-1]["bits_per_byte"] < before - 0.3
    strengths = [line.get("qat_strength", 0) for line in lines]
    assert strengths[0] == 0 and strengths[-1] == 1
    assert set(run.final_weights()) == {"raw", "ema", "swa"}
    assert 0 < run.size.estimate < 100_000
    assert any("tokens/s" in text and "left" in text for text in run.say.__self__)


@pytest.mark.parametrize(
    "qat",
    [
        QATSettings(),
        QATSettings(mode="late", late_below=0.6, anneal=3, formats={"blocks.*.weight": "int6.row"}),
        QATSettings(mode="on", hold=3, formats={"blocks.*.weight": "int4.row"}),
    ],
)
def test_resumed_is_as_if_never_stopped(qat: QATSettings, trainer: Callable[..., Trainer]) -> None:
    whole = trainer("whole", qat=qat)
    whole.train()
    for stop in (1, 7, 11):
        folder = f"stopped{stop}"
        part = trainer(folder, qat=qat)
        part.metrics.begin(0)
        while part.step < stop:
            part._one_step(0.0)
        part.save()
        part.states.wait()
        part._one_step(0.0)  # lost, and logged already
        again = trainer(folder, qat=qat)
        torch.manual_seed(999)
        again.restore(read_state(again.folder / STATE))
        again.train()
        equal_runs(whole.folder, again.folder)
        steps = [line["step"] for line in read_metrics(again.folder / METRICS)]
        assert steps == sorted(steps)
        losses = [line["loss"] for line in read_metrics(again.folder / METRICS)]
        assert losses == [line["loss"] for line in read_metrics(whole.folder / METRICS)]


def command(folder: Path, config: Path, *more: str) -> list[str]:
    script = "import torch; torch.set_num_threads(1); from packer.cli import main; main()"
    source = () if "--resume" in more else (str(config),)
    return [sys.executable, "-c", script, "train", *source, "-o", str(folder), *more]


def test_killed_at_any_moment_it_ends_the_same(
    tiny_run: Path, tmp_path: Path, start_process: Start
) -> None:
    more = ("--set", "iterations=40", "--set", "save_every=1", "--set", "warmdown=20")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, tiny_run, *more), check=True, capture_output=True)
    moments = random.Random(5)
    arguments = command(killed, tiny_run, *more)
    kills = 0
    for _ in range(2):
        process = start_process(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        begun = kills > 0 or (killed / STATE).exists()
        while not (begun or (killed / STATE).exists()) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.random() * (2.5 if begun else 0.1))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        read_state(killed / STATE)
        arguments = command(killed, tiny_run, "--resume")
    assert kills > 0
    subprocess.run(arguments, check=True, capture_output=True)
    equal_runs(whole, killed)
    left = [path.name for path in killed.iterdir() if path.name.endswith(".tmp")]
    assert all(name.startswith(".") for name in left)


def test_ctrl_c_saves_between_steps(tiny_run: Path, tmp_path: Path, start_process: Start) -> None:
    more = ("--set", "iterations=100000", "--set", "log_every=1")
    process = start_process(command(tmp_path / "run", tiny_run, *more))
    metrics = tmp_path / "run" / METRICS
    deadline = time.monotonic() + 60
    while len(read_metrics(metrics)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "with --resume" in said and "Traceback" not in said
    state = read_state(tmp_path / "run" / STATE)
    assert state["step"] >= 3 and f"stopped after step {state['step']}" in said


def test_a_loss_that_is_not_finite_stops_and_leaves_the_good_state(
    trainer: Callable[..., Trainer],
) -> None:
    run = trainer(run=RunSettings(precision="float32", save_every=1, save_seconds=0.0))
    run.metrics.begin(0)
    run._one_step(0.0)
    run._one_step(0.0)
    run.states.wait()
    good = (run.folder / STATE).read_bytes()
    with torch.no_grad():
        run.weights["tok_emb.weight"].fill_(float("nan"))
    run.save()
    run.states.wait()
    assert (run.folder / STATE).read_bytes() == good
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan.*of step 2\. Lower"):
        run._one_step(0.0)
    assert (run.folder / STATE).read_bytes() == good


def test_a_full_disk_keeps_the_old_state_and_training_goes_on(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(run=RunSettings(precision="float32", save_every=2, save_seconds=0.0))
    run.metrics.begin(0)
    run._one_step(0.0)
    run._one_step(0.0)
    run.states.wait()
    good = (run.folder / STATE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        while run.step < 12:
            run._one_step(0.0)
        run.states.wait()
    assert run.step == 12
    assert (run.folder / STATE).read_bytes() == good
    assert any("the disk is full" in text for text in run.say.__self__)
    run.save()
    run.states.wait()
    assert read_state(run.folder / STATE)["step"] == 12


def test_primed_is_as_if_not(trainer: Callable[..., Trainer], tiny: TrainConfig) -> None:
    plain = trainer("plain")
    schedule = replace(tiny.schedule, priming_steps=3)
    primed = trainer("primed", schedule=schedule)
    plain.train()
    primed.train()
    equal_runs(plain.folder, primed.folder)
    assert primed.ledger.seconds["compilation"] > 0


def test_int5_for_mlps_by_one_setting(trainer: Callable[..., Trainer]) -> None:
    formats = {"blocks.*.mlp.*.weight": "int6.row", "tok_emb.weight": "int8.row"}
    run = trainer(pack=PackSettings(cap=10**6, formats=formats, int5_mlp=True))
    assert run.pins() == {"blocks.*.mlp.*.weight": "int5.row", "tok_emb.weight": "int8.row"}
    assert str(run.size.choices["blocks.0.mlp.fc.weight"]) == "int5.row"


def test_a_state_of_another_model_is_refused(
    trainer: Callable[..., Trainer], tiny: TrainConfig, tmp_path: Path
) -> None:
    run = trainer("one")
    run.save()
    run.states.wait()
    other = trainer("two", model=replace(tiny.model, mlp_mult=3.0))
    with pytest.raises(PackerError, match="does not fit this configuration"):
        other.restore(read_state(run.folder / STATE))
    damaged = tmp_path / "damaged.pt"
    data = (run.folder / STATE).read_bytes()
    for cut in (0, 10, len(data) // 2):
        damaged.write_bytes(data[:cut])
        with pytest.raises(PackerError, match="cannot be resumed from"):
            read_state(damaged)
    torch.save({"kind": "bytecap training state", "version": 99}, damaged)
    with pytest.raises(PackerError, match="version 99"):
        read_state(damaged)
    torch.save({"kind": "bytecap training state", "version": 1, "step": "3"}, damaged)
    with pytest.raises(PackerError, match="its config is missing"):
        read_state(damaged)


@pytest.mark.usefixtures("steady_clock")
def test_the_clock_ends_a_run_and_calibration_has_its_reserve(
    trainer: Callable[..., Trainer],
) -> None:
    schedule = ScheduleSettings(
        iterations=10**6, max_wallclock=1.5, calibration_reserve=0.5, warmdown=5
    )
    run = trainer(schedule=schedule)
    run.train()
    assert run.step == 49, "a step takes 0.02 s, and twice as long is left for the last"
    assert run.ledger.seconds["training"] == pytest.approx(1.0)
    rows = {row.part: row.budget for row in run.ledger.rows()}
    assert rows == {"training": "training", "evaluation": "evaluation"}


@pytest.mark.usefixtures("steady_clock")
def test_a_clock_shorter_than_a_step_is_refused(trainer: Callable[..., Trainer]) -> None:
    run = trainer(schedule=ScheduleSettings(max_wallclock=0.1, calibration_reserve=0.095))
    with pytest.raises(TrainingError, match=r"one step took 0\.0\d+ s, and all.*max_wallclock"):
        run.train()
    assert run.step == 1


def test_accumulated_gradients_are_those_of_the_whole_batch(
    trainer: Callable[..., Trainer], tiny: TrainConfig
) -> None:
    whole = trainer("whole", batch=tiny.batch)
    parts = trainer("parts", batch=replace(tiny.batch, micro_tokens=48))
    assert float(whole.gradients.add(3)) == pytest.approx(float(parts.gradients.add(3)), rel=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_accumulated_rounding_is_done_once_a_step(
    trainer: Callable[..., Trainer], tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    qat = replace(tiny.qat, mode="on")
    whole = trainer("whole", qat=qat)
    parts = trainer("parts", qat=qat, batch=replace(tiny.batch, micro_tokens=48))
    for run in (whole, parts):
        run.qat.begin_step(run.config.schedule, 0, 0.0)
    calls: list[int] = []
    original = fake_quant._round_trip
    monkeypatch.setattr(fake_quant, "_round_trip", lambda *a: calls.append(1) or original(*a))
    loss = float(parts.gradients.add(3))
    assert len(calls) == len(parts.qat.choices)
    assert float(whole.gradients.add(3)) == pytest.approx(loss, rel=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("micro_tokens", [0, 96])
def test_out_of_memory_halves_the_windows_and_says_so(
    micro_tokens: int, trainer: Callable[..., Trainer], tiny: TrainConfig
) -> None:
    """8 windows a step; 4 fit beside what the first forward of an attempt keeps."""
    whole = trainer("whole")
    run = trainer("little", batch=replace(tiny.batch, micro_tokens=micro_tokens))
    forward, seen = run.gradients.forward, []

    def limited(tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        if len(tokens) > 4 or len(seen) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(tokens, wanted)

    run.gradients.forward = limited
    loss = float(run.gradients.add(3))
    assert max(seen[-2:]) <= 4 and run.gradients.micro_windows < 8
    assert any(
        "going on with" in text and "batch.micro_tokens" in text for text in run.say.__self__
    )
    assert float(whole.gradients.add(3)) == pytest.approx(loss, rel=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_out_of_memory_with_one_window_names_the_setting(trainer: Callable[..., Trainer]) -> None:
    run = trainer()

    def never(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    run.gradients.forward = never
    with pytest.raises(PackerError, match=r"with 16 tokens in a forward.*batch\.micro_tokens"):
        run.gradients.add(0)
    run.gradients.world_size, run.gradients.micro_windows = 2, 8
    with pytest.raises(PackerError, match=r"with 128 tokens in a forward.*batch\.micro_tokens"):
        run.gradients._averaging_only = lambda _: contextlib.nullcontext()
        run.gradients.add(0)


def test_two_processes_have_the_loss_curve_of_one(
    tiny_run: Path, tmp_path: Path, free_port: int, start_process: Start
) -> None:
    more = ("--set", "log_every=1", "--set", "micro_tokens=32")
    subprocess.run(command(tmp_path / "one", tiny_run, *more), check=True, capture_output=True)
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port),
        }
        processes.append(
            start_process(command(tmp_path / "two", tiny_run, *more, "--json"), env=environment)
        )
    outputs = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert json.loads(outputs[0][0])["steps"] == 12 and outputs[1][0] == ""
    one, two = (read_metrics(tmp_path / name / METRICS) for name in ("one", "two"))
    assert len(one) == len(two) > 12
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
    assert two[-1]["loss"] < two[0]["loss"]
