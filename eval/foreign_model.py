"""Other people's models: a class or function in their file, imported only when named.

Importing runs the file's top level like any import, but not what it guards with
`if __name__ == "__main__"`. Only name files that you would run.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError
from .flash_stand_in import flash_stand_in
from .foreign_forward import adapt
from .forward import AnyModel


def load_foreign_model(
    spec: str,
    settings: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> AnyModel:
    """Build a model from somebody's file, load weights strictly, find how it gives logits.

    Args:
        spec: `path/to/module.py:Name`, a class or factory function.
        settings: its arguments by name; see `build`.
        state_dict: every weight by its name in the model, tied ones included.
        device: where it is tried and stays; real flash-attn kernels refuse to run on a CPU.

    Raises:
        ModelError: the file, name, arguments, weights or forward do not fit, each in words.
    """
    path, _, name = spec.rpartition(":")
    if not path:
        raise ModelError(f"{spec!r} should be FILE.py:NAME, such as train_gpt.py:GPT")
    with flash_stand_in():
        target = _named(import_file(path), name, path)
        model = build(target, settings, spec)
    load_strictly(model, state_dict)
    return adapt(model.eval().to(device), spec)


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file under a name of its own, so that its main does not run.

    Raises:
        ModelError: no such file, or its import fails.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    name = f"foreign_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file: its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    sys.path.insert(0, str(path.parent))  # files beside it are its to import
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"importing {path} failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def build(target: Callable[..., Any], settings: Mapping[str, Any], spec: str) -> nn.Module:
    """Call a class or factory with settings as keyword arguments.

    One that takes a single configuration object instead gets its annotated dataclass made of the
    settings, or a namespace with them as attributes.

    Raises:
        ModelError: arguments that are missing or unknown, or what comes out is no module.
    """
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = settings
    holder = _configuration_parameter(target, settings)
    if holder is not None:
        arguments, keywords = (_configuration(holder, settings, spec),), {}
    _check_arguments(target, arguments, keywords, spec)
    try:
        model = target(*arguments, **keywords)
    except Exception as error:
        raise ModelError(f"{spec} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gave {type(model).__name__}, not a torch module")
    return model


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights when names and shapes are exactly the model's.

    Raises:
        ModelError: the differences by name: missing, not expected, of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    lines = [f"missing: {name} {expected[name]}" for name in expected.keys() - given.keys()]
    lines += [f"not in the model: {name} {given[name]}" for name in given.keys() - expected.keys()]
    lines += [
        f"{name} is {given[name]}, the model has {shape}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if lines:
        raise ModelError(
            f"the checkpoint is not this model, {len(lines)} differences:\n  "
            + "\n  ".join(sorted(line.replace("\n", "\\n") for line in lines))
        )
    model.load_state_dict(dict(state_dict))


def _named(module: ModuleType, name: str, path: str) -> Callable[..., Any]:
    target = getattr(module, name, None)
    if not callable(target):
        own = [
            n for n, v in vars(module).items() if callable(v) and v.__module__ == module.__name__
        ]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ModelError(f"{path} has no class or function {name!r}{hint}")
    found: Callable[..., Any] = target
    return found


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
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    spec: str,
) -> None:
    signature = _signature(target)
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ModelError(
            f"the model configuration does not fit {spec}{signature}: {error}"
        ) from error
