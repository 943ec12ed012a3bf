"""A step waits for nothing: not for numbers of the device, not for reading, not for a disk."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packer.train import loop, run_state
from packer.train.batches import Batches
from packer.train.loop import STATE, Trainer
from packer.train.run_state import StateWriter, read_state
from packer.train.settings import TrainConfig
from packer.train.training_data import TrainingData
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoHost(TorchDispatchMode):
    """Raises where a GPU would be waited for: a number is read, or a tensor of the host is used."""

    def __torch_dispatch__(
        self, func: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if func is torch.ops.aten._local_scalar_dense.default or found == {"cpu", "meta"}:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_and_has_its_batch_before_it_begins(
    tiny: TrainConfig, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of shapes alone stands for a GPU; AdamW, which it has no kernel of, is left out."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(loop, "SizeWatch", lambda *_, **__: SimpleNamespace(look=lambda *_: None))
    read, original = [], Batches.read
    monkeypatch.setattr(Batches, "read", lambda b, step: read.append(step) or original(b, step))
    config = replace(
        tiny,
        qat=replace(tiny.qat, mode="on"),
        batch=replace(tiny.batch, micro_tokens=64),
        run=replace(tiny.run, log_every=4),
    )
    run = Trainer(config, tiny_data, tmp_path, torch.device("meta"), say=lambda _: None)
    run.optimizers = run.optimizers[:1]
    for step in range(3):
        with NoHost():
            run._one_step(0.0)
        assert read == list(range(step + 2))
    with pytest.raises(AssertionError, match="waits for the device"), NoHost():
        run._one_step(0.0)  # which logs its loss


def test_a_state_is_written_while_training_goes_on(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, may_write, original = trainer(), threading.Event(), run_state.write_bytes
    monkeypatch.setattr(
        run_state, "write_bytes", lambda *given: may_write.wait(60) and original(*given)
    )
    run.metrics.begin(0)
    run._one_step(0.0)
    before = {name: weight.clone() for name, weight in run.weights.items()}
    run.save()
    run._one_step(0.0)
    assert not (run.folder / STATE).exists()
    may_write.set()
    assert run._saved() == f"{run.folder / STATE}, of step 1"
    model = read_state(run.folder / STATE)["model"]
    for name, parameter in run.model.state_dict().items():
        plain = name.replace("parametrizations.", "").replace(".original", "")
        if plain in before:
            assert torch.equal(model[name], before[plain])
            assert parameter.data_ptr() != model[name].data_ptr()


def test_what_goes_wrong_in_writing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    states = StateWriter(tmp_path / STATE, said.append)
    state = {"step": 1, "model": {"weight": torch.ones(3)}}
    states.begin(state)
    states.begin({**state, "step": 2})
    states.wait()
    good = (tmp_path / STATE).read_bytes()
    assert states.saved_step == 2 and not said

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    states.begin({**state, "step": 3})
    states.wait()
    assert states.saved_step == 2 and (tmp_path / STATE).read_bytes() == good
    assert "the disk is full" in said[0]
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    states.begin({**state, "step": 4})
    with pytest.raises(ZeroDivisionError):
        states.wait()
