"""Which part of a checkpoint's values is the state dict, and what beside it is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from packer.checkpoint_files import RESAVE
from packer.errors import CheckpointError, SelectorError
from packer.roles import nearest

USUAL_KEYS = ("ema", "model", "state_dict", "model_state_dict")
INNER_KEYS = (*USUAL_KEYS, "shadow", "module")  # shadow: EMA helpers; module: DeepSpeed
MAX_LISTED = 5


def find_state_dict(
    loaded: object, weights: str | None, source: str
) -> tuple[Mapping[object, object], list[str]]:
    """The mapping that holds the tensors, and notes on the way there."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{source}: holds a {type(loaded).__name__}, not a state dict of named tensors; "
            "re-save it as torch.save({'name': tensor, ...}, path)"
        )
    notes: list[str] = []
    found: Mapping[object, object] = loaded
    path: tuple[str, ...] = ()
    if weights is not None:
        found, path = _chosen(loaded, weights, source), (weights,)
    seen = {id(found)}
    while (key := _nested_key(found, source, path)) is not None:
        others = [other for other in USUAL_KEYS if other != key and other in found]
        if others:
            where = ".".join((*path, "KEY"))
            notes.append(f"also there: {', '.join(others)}; choose with --weights {where}")
        path = (*path, key)
        child = found[key]
        if not isinstance(child, Mapping) or id(child) in seen:
            raise CheckpointError(f"{source}: {'.'.join(path)} holds itself; {RESAVE}")
        seen.add(id(child))
        notes.extend(left_out(found, besides={key, *others}))
        found = child
    if path:
        notes.insert(0, f"weights taken from {'.'.join(path)}")
    return found, notes


def _nested_key(mapping: Mapping[object, object], source: str, path: tuple[str, ...]) -> str | None:
    """The key to follow from here, None when `mapping` itself is the state dict."""
    for key in INNER_KEYS if path else USUAL_KEYS:
        if isinstance(mapping.get(key), Mapping) and _holds_tensors(mapping[key]):
            return key
    if any(isinstance(value, torch.Tensor) for value in mapping.values()):
        return None
    nested = [key for key, value in mapping.items() if isinstance(key, str) and _is_nest(value)]
    if path and len(nested) == 1:
        return nested[0]
    if nested:
        raise CheckpointError(
            f"{source}: there are tensors under {', '.join(nested)}, none of which is a usual key; "
            f"choose one with --weights {nested[0]}"
        )
    raise CheckpointError(f"{source}: holds no named tensors; {RESAVE}")


def _chosen(loaded: Mapping[object, object], key: str, source: str) -> Mapping[object, object]:
    found = _at(loaded, key)
    if isinstance(found, Mapping) and _holds_tensors(found):
        return found
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
        child = mapping.get(key[:dot])
        if isinstance(child, Mapping):
            found = _at(child, key[dot + 1 :])
            if found is not None:
                return found
    return None


def _nest_paths(mapping: Mapping[object, object]) -> list[str]:
    """Keys, and keys one level below, that hold named tensors."""
    paths = []
    for key, value in mapping.items():
        if isinstance(value, Mapping) and _is_nest(value):
            paths.append(str(key))
            paths += [f"{key}.{inner}" for inner, below in value.items() if _is_nest(below)]
    return paths


def _is_nest(value: object) -> bool:
    return isinstance(value, Mapping) and _holds_tensors(value)


def _holds_tensors(value: object) -> bool:
    """Whether a tensor lies anywhere below; each mapping is looked at once, so loops end."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            return True
        if isinstance(item, Mapping) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values())
    return False


def left_out(mapping: Mapping[Any, object], besides: Iterable[object]) -> list[str]:
    keys = [str(key) for key in mapping if key not in set(besides)]
    return [f"left out, not weights: {listed(keys)}"] if keys else []


def listed(items: Sequence[str], what: str = "") -> str:
    """Up to five items, then how many more."""
    shown = ", ".join(items[:MAX_LISTED])
    more = len(items) - MAX_LISTED
    return f"{shown} and {more} more {what}".rstrip() if more > 0 else shown
