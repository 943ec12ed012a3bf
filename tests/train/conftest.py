"""A tiny run on made-up tokens: seconds to train, with every part of the trainer in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packer.eval.shards import HEADER_BYTES, MAGIC
from packer.eval.token_bytes import TokenBytes
from packer.train import ledger
from packer.train.loop import Trainer
from packer.train.model import GPTConfig
from packer.train.settings import (
    AveragingSettings,
    BatchSettings,
    DataSettings,
    OptimizerSettings,
    QATSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)
from packer.train.training_data import TrainingData

VOCAB = 64

TINY = TrainConfig(
    model=GPTConfig(
        vocab_size=VOCAB,
        num_layers=2,
        model_dim=32,
        num_heads=2,
        num_kv_heads=1,
        mlp_mult=2.0,
        rope_dims=8,
        smear_gate=True,
        bigram_vocab_size=40,
        bigram_dim=8,
    ),
    batch=BatchSettings(sequence=16, tokens=128, order="coprime"),
    optimizer=OptimizerSettings(matrix_lr=0.02, embedding_lr=0.02, scalar_lr=0.01, grad_clip=1.0),
    schedule=ScheduleSettings(iterations=12, lr_warmup=2, warmdown=6),
    averaging=AveragingSettings(ema_decay=0.8, swa_every=2, swa_below=0.9),
    qat=QATSettings(mode="late", late_below=0.6, formats={"blocks.*.weight": "int6.row"}),
    run=RunSettings(precision="float32", log_every=2, save_seconds=0.0, size_share=0.01),
)


def stream_of(tokens: int, seed: int = 0) -> np.ndarray:
    """Tokens with something to learn: each is mostly the one before plus 1, 2 or 3."""
    rng = np.random.default_rng(seed)
    return (np.cumsum(rng.integers(1, 4, tokens)) % VOCAB).astype(np.uint16)


def byte_table() -> TokenBytes:
    no = np.zeros(VOCAB, dtype=np.bool_)
    return TokenBytes(np.full(VOCAB, 2), no, no, no)


def write_shard(path: Path, tokens: np.ndarray) -> None:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_data() -> TrainingData:
    return TrainingData(stream_of(3000), stream_of(600, seed=1), byte_table())


@pytest.fixture
def trainer(tmp_path: Path, tiny_data: TrainingData) -> Callable[..., Trainer]:
    """A trainer in a folder of its own; sections of the configuration by name."""

    def make(folder: str = "run", **sections: object) -> Trainer:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        config = replace(TINY, **sections)  # type: ignore[arg-type]
        device, said = torch.device("cpu"), list[str]()
        return Trainer(config, tiny_data, place, device, say=said.append)

    return make


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A configuration file of the tiny run on shards of its own."""
    from packer.train.run_config import run_settings

    write_shard(tmp_path / "t_train_0.bin", stream_of(2000))
    write_shard(tmp_path / "t_train_1.bin", stream_of(1000, seed=2))
    config = replace(TINY, data=DataSettings(train=(str(tmp_path / "t_train_*.bin"),)))
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(run_settings(config)), "utf-8")
    return path


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's clock goes on by a fiftieth of a second whenever it is read."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 50)
    monkeypatch.setattr(ledger, "time", clock)
