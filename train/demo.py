"""The demonstration: text to tokenizer, model, plan, artifact and scores, in one folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from packer.eval.batches import Setting, ignore
from packer.eval.errors import EvalError
from packer.eval.sample import continue_text
from packer.train.config import settings_of
from packer.train.data import make_data
from packer.train.data_job import TOKENIZER, DataOptions
from packer.train.demo_text import SEPARATOR, Corpus
from packer.train.loop import Trainer
from packer.train.model import model_of
from packer.train.presets import PRESETS
from packer.train.run_config import run_settings
from packer.train.settings import AveragingSettings, DataSettings, PackSettings, TrainConfig
from packer.train.tokenizer import TokenizerError
from packer.train.trained_plan import plan_as_trained
from packer.train.training_data import open_training_data
from torch import Tensor

from packer import api, evaluation
from packer.errors import CapError, OutputError, PackerError
from packer.evaluation import Data, Evaluated, Subject
from packer.files import write_bytes, write_json
from packer.packing.pack import Packed
from packer.packing.verify import write_weights
from packer.planning.plan import PackPlan
from packer.progress import in_tokens
from packer.threads import torch_threads

THREADS = 2  # fixed, so that a seed gives one artifact on a machine, whatever else it has
CHECKPOINT, UNPACKED = "model.safetensors", "unpacked.safetensors"
PLAN, ARTIFACT = "plan.json", "model.pack"
PROMPT_LETTERS = 60
SAMPLE_TOKENS = 120

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
Shown = Callable[[str], contextlib.AbstractContextManager[Progress]]


@dataclass(frozen=True)
class DemoSettings:
    """cap_bytes, seed: as asked for. vocab_size: of the tokenizer. run: what is trained."""

    cap_bytes: int = 1_250_000
    seed: int = 1337
    vocab_size: int = 1024
    tokenizer_bytes: int = 2_000_000
    run: TrainConfig = PRESETS["demo"]

    def configured(self, data: Path) -> TrainConfig:
        """The run on the shards in a folder, with the weights themselves as its only result."""
        return replace(
            self.run,
            model=replace(self.run.model, vocab_size=self.vocab_size),
            data=DataSettings(folder=str(data)),
            averaging=AveragingSettings(),
            pack=PackSettings(cap=self.cap_bytes),
            run=replace(self.run.run, seed=self.seed),
        )


@dataclass(frozen=True, eq=False)
class Demo:
    """The results. note: formats given up to fit the cap, or empty. seconds: by step, in order."""

    folder: Path
    corpus: Corpus
    config: TrainConfig
    manifest: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    packed: Packed
    note: str
    before: Evaluated
    after: Evaluated
    samples: tuple[str, str]
    seconds: Mapping[str, float]

    @property
    def weights(self) -> int:
        return sum(info.elements for info in self.packed.plan.measurement.tensors)


@dataclass
class _Clock:
    """Prints each step as it begins, and records its seconds."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str, words: str) -> Iterator[None]:
        self.say(f"{name}: {words}")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def refuse_used(folder: Path) -> None:
    """Raises OutputError: the folder is a file, or has something in it."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder with -o")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} holds files already, and nothing there is overwritten: name another folder "
            f"with -o, or remove {folder} first"
        )


def run_demo(corpus: Corpus, folder: Path, settings: DemoSettings, say: Say, shown: Shown) -> Demo:
    """Every step once, into an empty folder; equal text and seed give an equal artifact.

    shown: opens a progress bar with a label.
    Raises PackerError: the folder is in use or cannot be written, text or vocabulary do not do,
    the cap is below what any plan reaches.
    """
    refuse_used(folder)
    clock = _Clock(say)
    try:
        with torch_threads(THREADS):
            return _run(corpus, folder, settings, clock, shown)
    except EvalError as error:
        raise PackerError(str(error)) from None


def _run(corpus: Corpus, folder: Path, settings: DemoSettings, clock: _Clock, shown: Shown) -> Demo:
    data = folder / "data"
    with clock.step("text", f"{corpus.source}, to a tokenizer and shards in {data}"):
        manifest = _make_data(corpus, folder, settings, shown)
    config = settings.configured(data)
    steps, tokens = config.schedule.iterations, config.batch.tokens
    with clock.step("train", f"{steps:,} steps of {tokens:,} tokens, quantization-aware at last"):
        trainer = _train(config, folder / "run", clock.say)
    weights = {name: weight.detach().cpu() for name, weight in trainer.weights.items()}
    metadata = {"config": json.dumps(settings_of(config.model), sort_keys=True)}
    write_weights(folder / CHECKPOINT, weights, {}, metadata)
    with clock.step("plan", f"every tensor measured, then a plan for {settings.cap_bytes:,} bytes"):
        plan, note = _plan(weights, trainer.pins(), settings.cap_bytes, metadata, folder, shown)
    with clock.step("pack", f"to {folder / ARTIFACT}, and back to {folder / UNPACKED}"):
        packed = api.pack(weights, plan, out=folder / ARTIFACT)
        unpacked = api.unpack(folder / ARTIFACT, folder / UNPACKED)
    with clock.step("score", "before and after, on the same held-out text"):
        before, after, samples = _score(corpus, config, folder, weights, unpacked, shown)
    metrics, scores = tuple(trainer.metrics.lines), (before, after, samples)
    return Demo(folder, corpus, config, manifest, metrics, packed, note, *scores, clock.seconds)


def _make_data(
    corpus: Corpus, folder: Path, settings: DemoSettings, shown: Shown
) -> Mapping[str, Any]:
    """The corpus as two text files, tokenizer and shards."""
    text = folder / "text"
    try:
        text.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made a folder: {error.strerror}") from None
    for name, documents in (("train", corpus.train), ("valid", corpus.valid)):
        joined = SEPARATOR.join(document.text for document in documents)
        write_bytes(text / f"{name}.txt", joined.encode())
    options = DataOptions(
        vocab_size=settings.vocab_size,
        tokenizer_bytes=settings.tokenizer_bytes,
        space_runs=True,
        document_separator=SEPARATOR,
    )
    data, train, valid = folder / "data", text / "train.txt", text / "valid.txt"
    try:
        with shown("encoding") as progress:
            return make_data([train], data, options, valid=[valid], progress=progress)
    except TokenizerError as error:
        raise TokenizerError(
            f"{error}. The demonstration always takes {settings.vocab_size:,} pieces: for such "
            f"text run packer data {train} --valid {valid} and packer train"
        ) from None


def _train(config: TrainConfig, folder: Path, say: Say) -> Trainer:
    folder.mkdir()
    write_json(folder / "config.json", run_settings(config))
    trainer = Trainer(config, open_training_data(config), folder, torch.device("cpu"), say=say)
    trainer.train()
    return trainer


def _plan(
    weights: Mapping[str, Tensor],
    pins: Mapping[str, str],
    cap_bytes: int,
    metadata: Mapping[str, str],
    folder: Path,
    shown: Shown,
) -> tuple[PackPlan, str]:
    """The plan that keeps the formats trained for, where they fit, and what it gave up."""
    with shown("measuring") as progress:
        measured = api.measure(weights, api.MeasureOptions(pins, metadata), progress=progress)
    try:
        return plan_as_trained(measured, cap_bytes, pins, out=folder / PLAN)
    except CapError as error:
        raise CapError(
            f"{error}. What was trained is kept: packer pack {folder / CHECKPOINT} --cap SIZE "
            f"-o {folder / ARTIFACT} packs it under another cap."
        ) from None


def _score(
    corpus: Corpus,
    config: TrainConfig,
    folder: Path,
    weights: Mapping[str, Tensor],
    unpacked: Mapping[str, Tensor],
    shown: Shown,
) -> tuple[Evaluated, Evaluated, tuple[str, str]]:
    """The trained weights and those that came back from the file, on the same tokens."""
    data = evaluation.open_data(
        [folder / "data" / "corpus_val_*.bin"], tokenizer=folder / "data" / TOKENIZER
    )
    size = sum(weight.nbytes for weight in weights.values())
    packed_size = (folder / ARTIFACT).stat().st_size
    subjects = (
        Subject(str(folder / CHECKPOINT), "checkpoint", model_of(config.model, weights), size),
        Subject(str(folder / ARTIFACT), "artifact", model_of(config.model, unpacked), packed_size),
    )
    available = len(data.stream) - 1
    setting = Setting(
        window=min(config.batch.sequence, available),
        stride=config.run.stride or None,
        tokens=min(config.run.final_eval_tokens or available, available),
    )
    with shown("scoring") as progress:
        before, after = evaluation.evaluate(
            subjects,
            data,
            setting,
            progress=in_tokens(progress),
            notice=ignore,
        )
    return before, after, _samples(corpus, subjects, data, setting.window)


def _samples(
    corpus: Corpus, subjects: tuple[Subject, Subject], data: Data, window: int
) -> tuple[str, str]:
    """How both go on from the beginning of a text that neither has seen."""
    prompt = corpus.valid[0].text[:PROMPT_LETTERS]
    before, after = (
        continue_text(subject.model, data.tokenizer, prompt, count=SAMPLE_TOKENS, context=window)
        for subject in subjects
    )
    return before, after
