"""Which part of a checkpoint's values is the state dict, nested or not, and what is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from packer.checkpoint.folder import NOT_WEIGHTS
from packer.checkpoint.roles import nearest
from packer.checkpoint.torch_files import RESAVE
from packer.errors import CheckpointError, SelectorError, listed

USUAL_KEYS = ("ema", "model", "state_dict", "model_state_dict")
INNER_KEYS = (*USUAL_KEYS, "shadow", "module")  # shadow: EMA helpers; module: DeepSpeed
WHOLE = "."  # as --weights: all there is, with dotted names
# Keys of what trainers save besides the model's own tensors.
ASIDE = re.compile(
    rf"{NOT_WEIGHTS.pattern}|(.*_)?(ema|swa|exp_avg|momentum|grad|gradient)s?(_.*)?", re.IGNORECASE
)
MAX_DEPTH = 100
MAX_ENTRIES = 1_000_000


def find_state_dict(
    loaded: object, weights: str | None, source: str
) -> tuple[Mapping[object, object], list[str]]:
    """The mapping that holds the tensors, and notes on the way there.

    Nested mappings are flattened, with dotted names.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{source}: holds a {type(loaded).__name__}, not a state dict of named tensors; "
            "re-save it as torch.save({'name': tensor, ...}, path)"
        )
    if weights == WHOLE and WHOLE not in loaded:
        return _flat(loaded, source), []
    notes: list[str] = []
    state_dict: Mapping[object, object] = loaded
    path: tuple[str, ...] = ()
    if weights is not None:
        state_dict, path = _chosen(loaded, weights, source), (weights,)
    seen = {id(state_dict)}
    while (key := _nested_key(state_dict, source, path)) is not None:
        others = [other for other in USUAL_KEYS if other != key and other in state_dict]
        if others:
            where = ".".join((*path, "KEY"))
            notes.append(f"also there: {', '.join(others)}; choose with --weights {where}")
        path = (*path, key)
        child = _branch(state_dict[key])
        if child is None or id(child) in seen:
            raise CheckpointError(f"{source}: {'.'.join(path)} holds itself; {RESAVE}")
        seen.add(id(child))
        notes.extend(left_out(state_dict, besides={key, *others}))
        state_dict = child
    if path:
        notes.insert(0, f"weights taken from {'.'.join(path)}")
    return _flat(state_dict, source), notes


def _nested_key(mapping: Mapping[object, object], source: str, path: tuple[str, ...]) -> str | None:
    """The key to follow from here, None when `mapping` itself is the state dict."""
    nested = [key for key, value in mapping.items() if isinstance(key, str) and _is_nest(value)]
    parts = [key for key in nested if key not in INNER_KEYS and not ASIDE.fullmatch(key)]
    if not (path and parts):
        for key in INNER_KEYS if path else USUAL_KEYS:
            if key in nested:
                return key
    if any(isinstance(value, torch.Tensor) for value in mapping.values()):
        return None
    if path and nested:
        only = _branch(mapping[nested[0]]) if len(nested) == 1 else None
        plain = only is not None and not any(_is_nest(value) for value in only.values())
        return nested[0] if plain else None
    if nested:
        raise CheckpointError(
            f"{source}: there are tensors under {listed(nested)}, none of which is a usual key; "
            f"choose one with --weights {shlex.quote(nested[0])} or take all of them, with dotted "
            f"names, with --weights {WHOLE}"
        )
    raise CheckpointError(f"{source}: holds no named tensors; {RESAVE}")


def _flat(tree: Mapping[object, object], source: str) -> Mapping[object, object]:
    """Every entry below, under the keys that lead to it with dots between them.

    Mappings without tensors, or of other state than weights, are not flattened.
    Raises CheckpointError: a mapping holds itself, one name twice, or more entries than allowed.
    """
    if not any(_is_part(key, value) for key, value in tree.items()):
        return tree
    flat: dict[object, object] = {}

    def gather(branch: Mapping[object, object], before: str, inside: tuple[int, ...]) -> None:
        if len(inside) > MAX_DEPTH:
            raise CheckpointError(f"{source}: is nested more than {MAX_DEPTH} deep; {RESAVE}")
        for key, value in branch.items():
            name = f"{before}{key}" if isinstance(key, str) or before else key
            if id(value) in inside:
                raise CheckpointError(f"{source}: {name} holds itself; {RESAVE}")
            child = _branch(value) if _is_part(key, value) else None
            if child is not None:
                gather(child, f"{name}.", (*inside, id(value)))
            elif name in flat or len(flat) == MAX_ENTRIES:
                why = f"{name!r} is there twice" if name in flat else f"{MAX_ENTRIES:,} entries"
                raise CheckpointError(f"{source}: nested entries cannot be named: {why}; {RESAVE}")
            else:
                flat[name] = value

    gather(tree, "", (id(tree),))
    return flat


def _is_part(key: object, value: object) -> bool:
    """Whether an entry holds tensors of the model, by its key."""
    return isinstance(key, str) and not ASIDE.fullmatch(key) and _is_nest(value)


def _branch(value: object) -> Mapping[object, object] | None:
    """What can be gone into: a mapping, or a list of mappings by their numbers."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        return {str(number): one for number, one in enumerate(value)}
    return None


def _chosen(loaded: Mapping[object, object], key: str, source: str) -> Mapping[object, object]:
    chosen = _branch(_at(loaded, key))
    if chosen is not None and _holds_tensors(chosen):
        return chosen
    known = _nest_paths(loaded)
    if not known:
        raise SelectorError(
            f"{source}: holds a bare state dict, so --weights {key} names nothing; leave it out"
        )
    raise SelectorError(
        f"{source}: there are no named tensors under {key!r}; there are under {', '.join(known)}. "
        f"The nearest is {nearest(key, known)!r}"
    )


def _at(mapping: Mapping[object, object], key: str) -> object:
    """The value under a key, or under a dotted path of keys that may hold dots themselves."""
    if key in mapping:
        return mapping[key]
    for dot in (place for place, letter in enumerate(key) if letter == "."):
        child = _branch(mapping.get(key[:dot]))
        if child is not None:
            value = _at(child, key[dot + 1 :])
            if value is not None:
                return value
    return None


def _nest_paths(mapping: Mapping[object, object]) -> list[str]:
    """Keys, and keys one level below, that hold named tensors."""
    paths = []
    for key, value in mapping.items():
        if _is_nest(value):
            paths.append(str(key))
            below = (_branch(value) or {}).items()
            paths += [f"{key}.{inner}" for inner, one in below if _is_nest(one)]
    return paths


def _is_nest(value: object) -> bool:
    return _branch(value) is not None and _holds_tensors(value)


def _holds_tensors(value: object) -> bool:
    """Whether a tensor lies anywhere below; each mapping is looked at once, so loops end."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            return True
        if id(item) not in seen and (branch := _branch(item)) is not None:
            seen.add(id(item))
            pending.extend(branch.values())
    return False


def left_out(mapping: Mapping[Any, object], besides: Iterable[object]) -> list[str]:
    keys = [str(key) for key in mapping if key not in set(besides)]
    return [f"left out, not weights: {listed(keys)}"] if keys else []
