"""Which size to train under a cap in a given time: a measured speed, a ladder, predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from packer.train.contenders import calibrated, finest_bytes, measured_storage
from packer.train.ladder import (
    LadderRun,
    best_average,
    climb,
    family,
    measured_speed,
    resized,
    rungs_of,
    trained,
)
from packer.train.run_config import run_settings
from packer.train.settings import DataSettings, QATSettings, TrainConfig
from packer.train.training_data import TrainingData

from packer.errors import PackerError
from packer.evaluation import Data
from packer.files import write_json
from packer.size.best import Shape, Speed, Storage
from packer.size.loss_fit import LossFit, fit_loss

CHOOSING_TOKENS = 16_384  # of held-out text, to choose an average on
CALIBRATION_TOKENS = 16_384
CALIBRATION_COST = 2.5  # of a token, in tokens of training
TIMED_WIDTHS = (2, 4)  # in heads, of the sizes whose steps are timed


def searchable(config: TrainConfig, data_folder: Path) -> TrainConfig:
    """The run without quantization, sized and timed later; nothing but training takes its time."""
    return replace(
        config,
        data=DataSettings(folder=str(data_folder)),
        qat=QATSettings(),
        pack=replace(config.pack, cap=0, calibration_tokens=CALIBRATION_TOKENS),
        run=replace(config.run, precision="auto", size_share=0.0, eval_every=0, eval_tokens=2048),
    )


@dataclass(frozen=True, eq=False)
class SizeSearch:
    """A ladder of a `searchable` run, in a folder. speed: of training. fit: of the losses."""

    config: TrainConfig
    data: TrainingData
    folder: Path
    shapes: tuple[Shape, ...]
    speed: Speed
    runs: tuple[LadderRun, ...]
    fit: LossFit

    def storage(self, recipe: str) -> Storage:
        """How a recipe, or one of `contenders.OURS`, stores the family; measured once, on the
        second smallest size."""
        path = self.folder / f"storage-{recipe}.json"
        if not path.exists():
            run = self.runs[min(1, len(self.runs) - 1)]
            trainer = trained(run.config, self.data, run.folder)
            weights, _ = best_average(trainer, self.data, CHOOSING_TOKENS)
            assert self.data.valid is not None and self.data.counter is not None
            text = Data(self.data.valid, self.data.counter, None, None, None)
            ready = calibrated(weights, run.config, self.data)
            write_json(path, measured_storage(ready, recipe, text, CHOOSING_TOKENS))
        known = json.loads(path.read_text("utf-8"))
        finest = {
            shape: finest_bytes(resized(self.config.model, shape.layers, shape.width), recipe)
            for shape in self.shapes
        }
        return Storage(known["damage_scale"], known["code_bytes"], finest)

    def training_seconds(self, seconds: float) -> float:
        """What calibration leaves of them, at the largest size of the ladder.

        Raises PackerError: nothing.
        """
        largest = max(run.shape.weights for run in self.runs)
        tokens = min(self.config.pack.calibration_tokens, len(self.data.train))
        spent = CALIBRATION_COST * tokens * self.speed.seconds_per_token(largest)
        if spent >= seconds:
            raise PackerError(
                f"calibration on {tokens:,} tokens takes {spent:.1f} of {seconds:g} s, and leaves "
                "none for training; give more time"
            )
        return seconds - spent


def search_sizes(
    config: TrainConfig,
    data: TrainingData,
    folder: Path,
    seconds: float,
    say: Callable[[str], None],
    tokens_per_second: float | None = None,
) -> SizeSearch:
    """Trains the ladder for a training time, or goes on with the one in the folder.

    tokens_per_second: of the configuration's own size, others in proportion to their weights; None
    measures it. Raises PackerError: the time is too short, or the data have no held-out text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(config, folder)
    shapes = tuple(family(config.model))
    speed = _speed(config, data, folder, shapes, tokens_per_second)
    rungs = rungs_of(shapes, speed, seconds)
    say(f"a ladder of {', '.join(f'{rung.weights:,}' for rung in rungs)} weights")
    _say_epochs(rungs, speed, seconds, data, say)
    runs = climb(config, data, folder, rungs, speed, seconds, CHOOSING_TOKENS, say)
    fit = fit_loss([run.rung for run in runs])
    return SizeSearch(config, data, folder, shapes, speed, tuple(runs), fit)


def _keep_settings(config: TrainConfig, folder: Path) -> None:
    """Raises PackerError: the folder holds a ladder of other settings."""
    path, settings = folder / "config.json", run_settings(config)
    if not path.exists():
        write_json(path, settings)
    elif json.loads(path.read_text("utf-8")) != settings:
        raise PackerError(
            f"{folder} holds a ladder of other settings; name another folder, or remove it"
        )


def _say_epochs(
    rungs: list[Shape],
    speed: Speed,
    seconds: float,
    data: TrainingData,
    say: Callable[[str], None],
) -> None:
    minute, whole = (
        speed.tokens(rungs[0].weights, time) / len(data.train) for time in (60, seconds)
    )
    say(f"the smallest reads the corpus {minute:.2f} times in a minute, {whole:.2f} times in all")
    if minute > 1:
        say("warning: the corpus is shorter than a minute of training; give more text")


def _speed(
    config: TrainConfig,
    data: TrainingData,
    folder: Path,
    shapes: tuple[Shape, ...],
    tokens_per_second: float | None,
) -> Speed:
    if tokens_per_second is not None:
        if not tokens_per_second > 0:
            raise PackerError(f"{tokens_per_second:g} tokens a second: the speed is above 0")
        own = (config.model.num_layers, config.model.model_dim)
        weights = min(shapes, key=lambda s: abs(s.layers - own[0]) + abs(s.width - own[1])).weights
        return Speed(0.0, 1 / (tokens_per_second * weights))
    path = folder / "speed.json"
    if not path.exists():
        head = config.model.model_dim // config.model.num_heads
        timed = [next(s for s in shapes if s.width == heads * head) for heads in TIMED_WIDTHS]
        write_json(path, asdict(measured_speed(config, timed, data, folder)))
    return Speed(**json.loads(path.read_text("utf-8")))
