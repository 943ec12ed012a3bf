"""Other people's models: a class or function in their file, imported only when named.

Importing runs the file's top level like any import, but not what it guards with
`if __name__ == "__main__"`. Only name files that you would run.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Notice, ignore
from .errors import ModelError
from .foreign_forward import Foreign
from .foreign_program import import_file, running_as, spelled
from .foreign_weights import Renamed, load_strictly
from .forward_probe import adapt


def load_foreign_model(
    spec: str,
    settings: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    notice: Notice = ignore,
) -> Foreign:
    """Build a model from somebody's file, load weights strictly, find how it gives logits.

    Args:
        spec: `path/to/module.py:Name`, a class or factory function.
        settings: its arguments by name; see `build`.
        state_dict: every weight by its name in the model, tied ones included.
        device: where it is tried and stays; real flash-attn kernels refuse to run on a CPU.
        notice: called with a sentence on names in the file or the model that were ignored.

    Raises ModelError: the file, name, arguments, weights or forward do not fit, each in words.
    """
    path, _, name = spec.rpartition(":")
    if not path:
        raise ModelError(f"{spec!r} should be FILE.py:NAME, such as train_gpt.py:GPT")
    module = import_file(path)
    with running_as(path):
        model = build(_named(module, name, path), settings, spec)
        fit = load_strictly(model, state_dict)
        for note in fit.notes:
            notice(note)
        adapted = adapt(model.eval().to(device), spec)
    if fit.names:
        adapted.named = Renamed(model, fit.names)
    return adapted


def build(target: Callable[..., Any], settings: Mapping[str, Any], spec: str) -> nn.Module:
    """Call a class or factory with settings as keyword arguments.

    One that takes a single configuration object instead gets its annotated dataclass made of the
    settings, or a namespace with them as attributes.
    Raises ModelError: arguments that are missing or unknown, or what comes out is no module.
    """
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = settings
    holder = _configuration_parameter(target, settings)
    if holder is not None:
        arguments, keywords = (_configuration(holder, settings, spec),), {}
    _check_arguments(target, arguments, keywords, spec)
    try:
        model = target(*arguments, **keywords)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{spec} failed with {spelled(error, spec.rpartition(':')[0])}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gave {type(model).__name__}, not a torch module")
    return model


def _named(module: ModuleType, name: str, path: str) -> Callable[..., Any]:
    target = getattr(module, name, None)
    if not callable(target):
        own = [
            n for n, v in vars(module).items() if callable(v) and v.__module__ == module.__name__
        ]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ModelError(f"{path} has no class or function {name!r}{hint}")
    function: Callable[..., Any] = target
    return function


def _configuration_parameter(
    target: Callable[..., Any], settings: Mapping[str, Any]
) -> inspect.Parameter | None:
    """The one required parameter that wants all settings as an object, if there is such."""
    signature = _signature(target)
    try:
        signature.bind(**settings)
    except TypeError:
        required = [
            p
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        # A number or text is never a configuration: then the settings are just misspelt.
        if len(required) == 1 and getattr(required[0].annotation, "__module__", "") != "builtins":
            return required[0]
    return None


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """The signature, annotations written as text resolved where that is possible."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def _configuration(holder: inspect.Parameter, settings: Mapping[str, Any], spec: str) -> Any:
    kind = holder.annotation
    if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
        return SimpleNamespace(**settings)
    _check_arguments(kind, (), settings, f"{spec}'s {kind.__name__}")
    try:
        return kind(**settings)
    except Exception as error:
        raise ModelError(f"{kind.__name__} failed with {type(error).__name__}: {error}") from error


def _check_arguments(
    target: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], spec: str
) -> None:
    signature = _signature(target)
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ModelError(
            f"the model configuration does not fit {spec}{signature}: {error}"
        ) from error
