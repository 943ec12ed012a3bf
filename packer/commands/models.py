"""The models of checkpoints and artifacts: the companion model, transformers, or a user's class."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.types import read_config, say_notes
from packer.devices import choose_device
from packer.errors import PackerError
from packer.printable import spelled

if TYPE_CHECKING:
    import torch

    from packer.checkpoint.any_weights import NamedWeights
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.commands.options.model import ModelOptions
    from packer.eval.forward import AnyModel
    from packer.evaluation import Subject

Settings = Mapping[str, Any]
Say = Callable[[Sequence[str]], None]


def load_subjects(
    sources: Sequence[str], built: ModelOptions, device: torch.device, say: Say
) -> list[Subject]:
    """The model of every file or folder, on a device; see `subjects_of`.

    Raises PackerError, ConfigError: a source is damaged, or does not fit its model.
    """
    from packer.checkpoint.any_weights import load_weights
    from packer.progress import shown

    loaded = []
    for source in sources:
        with shown(f"reading {spelled(source)}"):
            loaded.append(load_weights(source, **built.opening.arguments))
        say(loaded[-1].notes)
    return subjects_of(loaded, built, device, say)


def subjects_of(
    loaded: Sequence[NamedWeights], built: ModelOptions, device: torch.device, say: Say
) -> list[Subject]:
    """The model of every set of weights, on a device.

    The companion model, a model of transformers that a config.json names, or a class or function
    in a user's file, `built.model` (FILE.py:NAME). Its configuration or arguments come from the
    file that `built` names, else from the source or the file next to it, else from another source.
    say: called with where they come from.
    Raises PackerError, ConfigError: weights that do not fit their model.
    """
    from packer.evaluation import Subject

    if built.model is None:
        models = _known_models(loaded, built.config, say)
    else:
        models = _foreign_models(loaded, built.model, built.model_config, device, say)
    return [
        Subject(one.source, one.kind, model.to(device), one.size_bytes)  # type: ignore[union-attr]
        for one, model in zip(loaded, models, strict=True)
    ]


def model_of(checkpoint: Checkpoint, built: ModelOptions) -> AnyModel:
    """The model with the weights of a checkpoint that has been read. Raises as `subjects_of`."""
    from packer.checkpoint.any_weights import weights_of

    device = choose_device(built.device)
    return subjects_of([weights_of(checkpoint)], built, device, say_notes)[0].model


def has_configuration(checkpoint: Checkpoint, built: ModelOptions) -> bool:
    """Whether anything says which model a checkpoint is of. Raises PackerError: damaged."""
    from packer.huggingface.configuration import configuration_beside

    source, metadata = checkpoint.source, checkpoint.metadata
    named = built.model or built.config or "config" in metadata or _beside(source).is_file()
    return bool(named) or configuration_beside(source) is not None


def check_configuration(checkpoint: Checkpoint, built: ModelOptions) -> str | None:
    """Compare a checkpoint's shapes with the transformers configuration it has, if any.

    Returns why it could not, None if it could. Raises CheckpointError: they are of another model.
    """
    from packer.huggingface.configuration import configuration_beside, is_transformers
    from packer.huggingface.shape_check import check_shapes

    if built.config is None:
        own = configuration_beside(checkpoint.source)
    else:
        settings = _any_settings(built.config)
        own = (settings, built.config) if is_transformers(settings) else None
    if own is None or built.model is not None:
        return None
    meta_tensors = {
        name: checkpoint.meta_tensors[kept] for name, kept in checkpoint.holders.items()
    }
    complete = not built.opening.drop
    problem = check_shapes(*own, meta_tensors, checkpoint.source, complete=complete)
    return None if problem is None else f"shapes are not compared with {own[1]}: {problem}"


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn errors of eval and train into PackerError."""
    from packer.eval.errors import EvalError
    from packer.train.config import ConfigError

    try:
        yield
    except (EvalError, ConfigError) as error:
        raise PackerError(str(error)) from None


@contextlib.contextmanager
def running_foreign(spec: str | None) -> Iterator[None]:
    """Run a user's model file as its own program; its stdout goes to stderr.

    Raises PackerError in place of every exception that is not ours.
    """
    from packer.eval.errors import EvalError
    from packer.eval.foreign_program import running_as, spelled
    from packer.train.config import ConfigError

    if spec is None:
        yield
        return
    path = spec.rpartition(":")[0] or spec
    try:
        with running_as(path), _stdout_to_stderr():
            yield
    except (PackerError, EvalError, ConfigError, click.ClickException, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise PackerError(f"{spec} failed with {spelled(error, path)}") from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Also what is written outside of Python, as by kernels and other processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _known_models(loaded: Sequence[NamedWeights], config: str | None, say: Say) -> list[AnyModel]:
    """Models of transformers where the configuration is one of theirs, else companion models."""
    models = _of_transformers(loaded, config, say)
    others = [one for one, theirs in zip(loaded, models, strict=True) if theirs is None]
    companions = iter(_companions(others, config, say))
    return [next(companions) if theirs is None else theirs for theirs in models]


def _of_transformers(
    loaded: Sequence[NamedWeights], config: str | None, say: Say
) -> list[AnyModel | None]:
    """The models of sources with a configuration of transformers, None for others.

    config: for all sources, if named; else each uses its own, or the first one there is.
    """
    from packer.huggingface.configuration import configuration_beside, is_transformers
    from packer.huggingface.model import build_model
    from packer.progress import shown

    if config is not None:
        named = _any_settings(config)
        own = [(named, config) if is_transformers(named) else None] * len(loaded)
    else:
        own = [
            (one.config, one.source)
            if one.config is not None and is_transformers(one.config)
            else configuration_beside(one.source, one.metadata)
            for one in loaded
        ]
    lent = next((theirs for theirs in own if theirs is not None), None)
    models: list[AnyModel | None] = []
    for one, theirs in zip(loaded, own, strict=True):
        if theirs is None and one.config is None and not _beside(one.source).is_file():
            theirs = lent
            if lent is not None:
                say([f"{one.source}: the configuration is taken from {lent[1]}"])
        if theirs is None:
            models.append(None)
        else:
            say_one = functools.partial(_say_of, say, one.source)
            with shown("building the model"):
                models.append(build_model(*theirs, one.weights, one.source, say_one))
    return models


def _say_of(say: Say, source: str, note: str) -> None:
    say([f"{source}: {note}"])


def _companions(loaded: Sequence[NamedWeights], config: str | None, say: Say) -> list[AnyModel]:
    from packer.train.config import read_config as read

    settings = [read(config)] * len(loaded) if config else _settings(loaded, read, say)
    return [_companion(one, own) for one, own in zip(loaded, settings, strict=True)]


def _foreign_models(
    loaded: Sequence[NamedWeights],
    spec: str,
    model_config: str | None,
    device: torch.device,
    say: Say,
) -> list[AnyModel]:
    from packer.eval.foreign_model import load_foreign_model

    if model_config:
        settings: Sequence[Settings] = [_any_settings(model_config)] * len(loaded)
    else:
        settings = _settings(loaded, _any_settings, say)
    models: list[AnyModel] = []

    for one, own in zip(loaded, settings, strict=True):
        say_one = functools.partial(_say_of, say, one.source)
        with _naming(one.source):
            models.append(load_foreign_model(spec, own, one.weights, device, say_one))
    return models


def _settings(
    loaded: Sequence[NamedWeights], read: Callable[[str], Settings], say: Say
) -> list[Settings]:
    """The settings of each source, else those of the first source that has some."""
    own = [_own_settings(one, read, say) for one in loaded]
    pairs = [(settings, one.source) for settings, one in zip(own, loaded, strict=True)]
    some = ((settings, source) for settings, source in pairs if settings is not None)
    lent, owner = next(some, ({}, None))
    without = [source for settings, source in pairs if settings is None]
    if owner is not None and without:
        say([f"{', '.join(without)}: the configuration is taken from {owner}"])
    return [lent if settings is None else settings for settings in own]


def _own_settings(one: NamedWeights, read: Callable[[str], Settings], say: Say) -> Settings | None:
    if one.config is not None:
        return one.config
    beside = _beside(one.source)
    if not beside.is_file():
        return None
    say([f"{one.source}: the configuration is taken from {beside}"])
    return read(str(beside))


def _beside(source: str) -> Path:
    """model.config.json for model.pt, and for a folder named model."""
    path = Path(source)
    return path.parent / f"{path.stem or path.resolve().name}.config.json"


def _any_settings(path: str) -> Settings:
    """Settings for a user's class, whose names are not checked."""
    settings: Settings = json.loads(read_config(path)["config"])
    return settings


def _companion(one: NamedWeights, settings: Settings) -> AnyModel:
    from packer.eval.foreign_weights import load_strictly
    from packer.train.config import infer_config
    from packer.train.model import GPT

    weights = dict(one.weights)
    if "lm_head.weight" in weights and weights["lm_head.weight"] is weights.get("tok_emb.weight"):
        del weights["lm_head.weight"]  # tied: the model has it once
    another = "; if it is another model, name its class with --model"
    if one.kind == "gguf":
        another += f", or make a folder of it: packer unpack {one.source} -o FOLDER/"
    with _naming(one.source, hint=another):
        inferred = infer_config(weights)
    hint = "" if settings else f", with --config or as {_beside(one.source)}"
    with _naming(one.source, hint=hint):
        model = GPT(inferred.complete(settings))
        load_strictly(model, weights)
    return model.eval()


@contextlib.contextmanager
def _naming(source: str, hint: str = "") -> Iterator[None]:
    """Name the source in errors about its weights or configuration, and what to do."""
    from packer.eval.errors import EvalError
    from packer.train.config import ConfigError

    try:
        yield
    except (EvalError, ConfigError) as error:
        raise PackerError(f"{source}: {error}{hint}") from None
