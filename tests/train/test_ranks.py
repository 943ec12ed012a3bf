"""Several processes: they end a run together, and none is left when another dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packer.train.log_line import evaluation_line
from packer.train.loop import METRICS, Trainer
from packer.train.metrics import read_metrics
from packer.train.presets import PRESETS
from packer.train.settings import TrainConfig
from packer.train.validation import CompiledTail, Validation

from packer import devices
from packer.errors import PackerError

Start = Callable[..., subprocess.Popen[str]]

ENDING = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from packer.train.finish import Ending
from packer.train.ledger import Ledger
from packer.train.model import GPT
from packer.train.settings import PackSettings
from packer.train.training_data import TrainingData
from packer.train.validation import Validation
from packer.curvature.ranks import Ranks
from packer.devices import joined

sys.path.insert(0, sys.argv[1])
from conftest import TINY, byte_table, stream_of

seen, original, cpu = [], GPT.tail_logits, torch.device("cpu")
GPT.tail_logits = lambda model, ids, count: seen.append(len(ids)) or original(model, ids, count)
pack = PackSettings(cap=40_000, calibration_tokens=2048)
config = replace(TINY, run=replace(TINY.run, stride=4), pack=pack)
data = TrainingData(stream_of(3000), stream_of(1500, seed=1), byte_table())
torch.manual_seed(0)
torch.set_num_threads(1)
weights = {
    name: p.detach() + 0.02 * torch.randn(p.shape)
    for name, p in GPT(config.model).named_parameters()
}

def finished(ranks):
    validation = Validation(config, data, cpu, ranks)
    assert validation.seconds(weights) > 0
    seen.clear()
    ending = Ending(config, data, Path(sys.argv[2]), Ledger(), validation, ranks)
    (one,) = ending.finish({"raw": weights}, {}, lambda *_: None)
    assert ending.ledger.seconds["calibration"] > 0
    print(json.dumps({**one.to_json(), "windows": sum(seen), "tokens": one.after.tokens}))

with joined(cpu) as (rank, size):
    finished(Ranks(rank, size))
if rank == 0:
    finished(Ranks())
"""


def started(start: Start, command: list[object], size: int, port: int) -> list[subprocess.Popen]:
    """The ranks of one command, as torchrun would start them."""
    found = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        names |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
        environment = {name: str(value) for name, value in names.items()}
        found.append(start(command, env=os.environ | environment))
    return found


def test_two_ranks_end_a_run_as_one(start_process: Start, free_port: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDING, Path(__file__).parent, tmp_path]
    ranks = started(start_process, command, 2, free_port)
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs
    first, alone = (json.loads(line) for line in outputs[0][0].splitlines())
    second = json.loads(outputs[1][0])
    assert alone["tokens"] == first["tokens"] == second["tokens"] == 1499
    assert first["note"] == alone["note"] == "calibrated on 2,048 training tokens"
    for key in ("bits_per_byte", "packed_bits_per_byte", "total_bytes"):
        assert first[key] == second[key] == pytest.approx(alone[key], rel=1e-3), key
    assert first["windows"] + second["windows"] == alone["windows"]
    assert abs(first["windows"] - second["windows"]) <= 0.4 * alone["windows"]


def test_a_rank_that_dies_ends_the_others_by_name(
    start_process: Start, free_port: int, tiny_run: Path, tmp_path: Path
) -> None:
    script = "import torch; torch.set_num_threads(1); from packer.cli import main; main()"
    command = [sys.executable, "-c", script, "train", tiny_run, "-o", tmp_path / "run"]
    ranks = started(
        start_process, [*command, "--set", "iterations=1000000"], size=2, port=free_port
    )
    deadline = time.monotonic() + 300
    while not read_metrics(tmp_path / "run" / METRICS) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGKILL)
    _, said = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 1
    assert "rank 1 of 2 processes ended or no longer answers" in said
    assert "Traceback" not in said


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], devices._Ranks]:
    """A rank of three that share a store."""
    monkeypatch.setattr(devices, "ANSWER_SECONDS", 0.2)
    store = torch.distributed.HashStore()

    def rank(number: int) -> devices._Ranks:
        found = object.__new__(devices._Ranks)
        found.store, found.rank, found.size = store, number, 3
        return found

    return rank


def test_an_error_of_all_ranks_is_said_by_the_first(
    beside: Callable[[int], devices._Ranks],
) -> None:
    error = PackerError("no data")
    alone = beside(2).reported(error)
    assert isinstance(alone, PackerError) and str(alone) == "rank 2 of 3: no data"
    assert beside(0).reported(error) is error
    assert isinstance(beside(1).reported(error), SystemExit)


def test_ranks_that_do_not_answer_are_named(beside: Callable[[int], devices._Ranks]) -> None:
    assert beside(1).lost().startswith("rank 0 and rank 2 of 3 processes ended")
    assert beside(0).lost().startswith("rank 2 of 3 processes ended")
    gone = beside(2)
    gone.store = SimpleNamespace(set=lambda *_: (_ for _ in ()).throw(RuntimeError("reset")))
    assert gone.lost().startswith("rank 0 of 3 processes ended")


def test_scores_are_compiled_where_training_was(
    trainer: Callable[..., Trainer], tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(run=replace(tiny.run, stride=4))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(run.config, run=replace(run.config.run, compile="on"))
    plain, compiled = (Validation(one, run.data, run.device) for one in (run.config, config))
    assert isinstance(compiled.scored, CompiledTail)
    called, original = [], compiled.scored.compiled
    monkeypatch.setattr(
        compiled.scored, "compiled", lambda *given: called.append(given) or original(*given)
    )
    one, other = plain.score(run.weights), compiled.score(run.weights)
    assert one is not None and other is not None
    assert other.nats == pytest.approx(one.nats, rel=1e-6)
    batches = (599 - 16) / (4 * compiled.batch)
    assert len(called) == int(batches) > 0, "all but the first window and the last batch"


def test_what_scores_will_take_is_said_before_training(tiny: TrainConfig) -> None:
    contest = PRESETS["11l-vrl-leaky-gptq"]
    line = evaluation_line(contest, 71.0, 62_021_632)
    assert line == (
        "validation after training: 62,021,632 tokens for 3 weights, as trained and packed, "
        "about 426 s"
    )
    slow = evaluation_line(contest, 200.0, 62_021_632)
    assert slow.endswith("about 1,200 s; run.final_eval_tokens = 31,010,816 would take 600 s")
    assert "1,000 tokens for 3 weights, about 3 s" in evaluation_line(tiny, 1.0, 1000)
