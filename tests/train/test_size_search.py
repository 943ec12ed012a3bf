"""The search for a size: families, ladders that go on after any death, and `packer size --best`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from packer.train import ladder, size_search
from packer.train.ladder import at_size, climb, family, resized, rungs_of, steps_in, trained
from packer.train.loop import Trainer
from packer.train.settings import TrainConfig
from packer.train.size_search import searchable
from packer.train.training_data import TrainingData

from packer.cli import main
from packer.errors import PackerError
from packer.size.best import Speed

SPEED = Speed(0.0, 1e-8)


@pytest.fixture
def run(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run whose ladder takes steps enough at any length."""
    config = searchable(tiny, Path())
    monkeypatch.setattr(ladder, "FEWEST_STEPS", 5)
    return replace(
        config,
        batch=replace(config.batch, tokens=256),
        pack=replace(config.pack, calibration_tokens=512),
        run=replace(config.run, eval_tokens=128, precision="float32"),
    )


def test_a_family_keeps_heads_and_ratio(tiny: TrainConfig) -> None:
    shapes = family(tiny.model)
    for shape in shapes:
        model = resized(tiny.model, shape.layers, shape.width)
        assert model.head_dim == tiny.model.head_dim
        assert shape.layers >= 2 and model.num_heads % model.num_kv_heads == 0
    own = tiny.model.num_layers, tiny.model.model_dim
    assert resized(tiny.model, *own) == tiny.model
    assert own in {(shape.layers, shape.width) for shape in shapes}


def test_layers_that_are_named_count_from_the_end(tiny: TrainConfig) -> None:
    model = replace(tiny.model, num_layers=4, value_embedding_dim=8, value_embedding_layers=(2, 3))
    assert resized(model, 3, 64).value_embedding_layers == (1, 2)
    assert resized(model, 6, 64).value_embedding_layers == (4, 5)


def test_a_run_of_another_length_keeps_its_shares(run: TrainConfig) -> None:
    longer = at_size(run, family(run.model)[0], 60)
    assert longer.schedule.iterations == 60 and longer.schedule.warmdown == 30


def test_rungs_span_the_sizes_that_the_time_can_train(run: TrainConfig) -> None:
    shapes = family(run.model)
    few, many = (rungs_of(shapes, SPEED, seconds) for seconds in (5, 500))
    assert len(few) >= 3 and few[0] in shapes
    assert many[-1].weights >= few[-1].weights
    steps = [steps_in(run, shape, SPEED, 10) for shape in few]
    assert steps == sorted(steps, reverse=True)


def test_a_ladder_that_was_killed_goes_on(
    run: TrainConfig,
    tiny_data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third run dies in its middle; what was finished is not trained again."""
    run = replace(run, run=replace(run.run, save_every=5))
    shapes = family(run.model)[:2]
    known = (shapes, SPEED, 2.0, 256)
    whole = climb(run, tiny_data, tmp_path / "whole", *known)
    steps, one_step = [], Trainer._one_step

    def dying(self: Trainer, seconds: float, pace: float = 0.0) -> None:
        steps.append(self.folder.name)
        if self.folder.name == whole[2].folder.name and self.step == 7 and not died:
            died.append(True)
            raise KeyboardInterrupt
        one_step(self, seconds, pace)

    died: list[bool] = []
    monkeypatch.setattr(Trainer, "_one_step", dying)
    with pytest.raises(KeyboardInterrupt):
        climb(run, tiny_data, tmp_path / "killed", *known)
    before = len(steps)
    again = climb(run, tiny_data, tmp_path / "killed", *known)
    assert [one.rung for one in again] == [one.rung for one in whole]
    assert steps.count(whole[0].folder.name) == whole[0].config.schedule.iterations
    assert steps[before:].count(whole[2].folder.name) == whole[2].config.schedule.iterations - 5


def test_a_time_too_short_for_a_ladder_says_how_long_would_do(
    run: TrainConfig, tiny_data: TrainingData, tmp_path: Path
) -> None:
    shapes = family(run.model)[:2]
    with pytest.raises(PackerError, match=r"0\.1 s are too short.*give at least \d+ s"):
        climb(run, tiny_data, tmp_path, shapes, SPEED, 0.1, 256)


def test_finished_runs_only_load(
    run: TrainConfig, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = at_size(run, family(run.model)[0], 8)
    first = trained(config, tiny_data, tmp_path / "run").final_weights()["raw"]
    monkeypatch.setattr(Trainer, "train", pytest.fail)
    again = trained(config, tiny_data, tmp_path / "run").final_weights()["raw"]
    assert all(bool((again[name] == weight).all()) for name, weight in first.items())


def test_best_is_a_command_that_goes_on(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: TrainingData
) -> None:
    """A second time nothing is trained; other settings are refused."""
    monkeypatch.setattr("packer.train.training_data.open_training_data", lambda _: tiny_data)
    monkeypatch.setattr(ladder, "FEWEST_STEPS", 3)
    monkeypatch.setattr(size_search, "CALIBRATION_TOKENS", 512)
    command = ["size", str(tiny_run), "--best", "--data", str(tmp_path), "--seconds", "1.5"]
    options = ["--cap", "30000", "--rate", "6000", "--ladder", str(tmp_path / "ladder"), "--json"]
    recipe = ["--recipe", "baseline-int8-zlib"]
    first = CliRunner().invoke(main, command + options + recipe)
    assert first.exit_code == 0, first.output
    assert "warning: the corpus is shorter than a minute" in first.stderr
    sizes = json.loads(first.stdout)["sizes"]
    losses = [one["bits_per_byte"] for one in sizes]
    assert losses == sorted(losses) and all(one["total_bytes"] <= 30_000 for one in sizes)
    monkeypatch.setattr(Trainer, "train", pytest.fail)
    again = CliRunner().invoke(main, command + options + recipe)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    tiny_run.write_text(tiny_run.read_text().replace('"tokens": 128', '"tokens": 256'))
    other = CliRunner().invoke(main, command + options)
    assert other.exit_code == 1 and "a ladder of other settings" in other.stderr
    without = CliRunner().invoke(main, command[:3])
    assert without.exit_code == 2 and "--best needs --cap" in without.stderr
