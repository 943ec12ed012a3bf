"""Damage to bytes, JSON values and texts, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

MAX_GROWTH = 4096  # bytes that one insertion adds at most
INTERESTING = (0, 1, 2, 3, 7, 8, 127, 128, 129, 254, 255, 256, 32767, 32768, 65535, 2**31 - 1)
HUGE = (2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = "[" * 5000 + "]" * 5000
VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", "x", "\ud800", "\0", "a" * 5000, -1, -0.0, 1.5, 1e308),
    *(float("nan"), float("inf"), 2**31, 2**53 + 1, 2**62, 2**63, 2**64, 10**400, [None], [[]]),
    *({"": None}, [-1], ["x"], [2**40, 2**40], [1.5], "float32", "int6.row", "../x", "/dev/zero"),
)


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to eight changes; others: files to splice pieces of into this one."""
    mutant = bytearray(data)
    for _ in range(_few(rng)):
        rng.choice(BYTE_CHANGES)(rng, mutant, others)
    return bytes(mutant)


def _few(rng: Random) -> int:
    """1 half of the time, 2 a quarter of it, and so on up to 8."""
    count = 1
    while count < 8 and rng.random() < 0.5:
        count += 1
    return count


def _place(rng: Random, data: bytearray) -> int:
    """A position; starts and ends, where headers and checksums are, more often than the rest."""
    if rng.random() < 0.3:
        return min(rng.randrange(64), len(data))
    if rng.random() < 0.1:
        return max(len(data) - rng.randrange(64), 0)
    return rng.randrange(len(data) + 1)


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[min(_place(rng, data), len(data) - 1)] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[min(_place(rng, data), len(data) - 1)] = rng.choice(INTERESTING) & 255


def _set_number(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    width = rng.choice((2, 4, 8))
    number = rng.choice(INTERESTING + HUGE) & (1 << 8 * width) - 1
    at = _place(rng, data)
    data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    length = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, MAX_GROWTH)))
    filler = rng.randbytes(length) if rng.random() < 0.5 else bytes([rng.randrange(256)]) * length
    at = _place(rng, data)
    data[at:at] = filler


def _delete(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 1, 2, 4, 8, 1 + len(data) // 8))]


def _truncate(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _place(rng, data), rng.randrange(1, 256)
    data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 8))


def _swap(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    one, other, length = _place(rng, data), _place(rng, data), rng.randrange(1, 64)
    piece = data[one : one + length]
    data[one : one + length] = data[other : other + length]
    data[other : other + length] = piece


def _splice(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        at, length = _place(rng, data), rng.randrange(1, 512)
        data[at : at + length] = other[start : start + length]


BYTE_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _flip, _set, _set, _set_number, _set_number, _insert, _delete, _truncate),
    *(_repeat, _swap, _splice),
)


def mutate_json(rng: Random, value: Any) -> Any:
    """A copy with one to eight changed places: replaced, removed, doubled, or nearly the same."""
    mutant = copy.deepcopy(value)
    for _ in range(_few(rng)):
        containers = _containers(mutant)
        if not containers:
            return rng.choice(VALUES)
        _change_entry(rng, rng.choice(containers))
    return mutant


def _containers(value: Any) -> list[Any]:
    """Every object and list that holds something."""
    pending, containers = [value], []
    while pending:
        one = pending.pop()
        inside = list(one.values()) if isinstance(one, dict) else one
        if isinstance(inside, list) and inside:
            containers.append(one)
            pending.extend(inside)
    return containers


def _change_entry(rng: Random, container: Any) -> None:
    keys = list(container) if isinstance(container, dict) else range(len(container))
    key, other = rng.choice(keys), rng.choice(keys)
    action = rng.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1:
        container[key] = copy.deepcopy(container[other])
    elif action == 2 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[other]))
    elif action == 3 and isinstance(container, dict):
        container[rng.choice((str(other) + "x", "", "__class__"))] = container.pop(key)
    elif action == 4 and type(container[key]) in (int, float) and abs(container[key]) < 2**64:
        container[key] = _near_number(rng, container[key])
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))


def _near_number(rng: Random, number: float) -> float:
    return rng.choice((number + 1, number - 1, -number, number * 2, number * 2**20, number / 2))


def spell(rng: Random, value: Any) -> bytes:
    """JSON text, now and then with bytes of it changed or a value too deep to read."""
    text = json.dumps(value)
    if rng.random() < 0.02:
        text = text.replace("null", DEEP, 1)
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, data) if rng.random() < 0.1 else data


def mutate_json_text(rng: Random, data: bytes) -> bytes:
    """A file of JSON, changed as a value or as bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    return spell(rng, mutate_json(rng, json.loads(data)))


WORDS = ("nan", "inf", "-1", "1e400", "9" * 400, "1_000", "0", "NaN", "∞", "1.2.3", "", "-0", "1e5")


def mutate_text(rng: Random, data: bytes) -> bytes:
    """Lines removed, doubled and moved; numbers replaced; bytes changed."""
    lines = data.split(b"\n")
    for _ in range(_few(rng)):
        at = rng.randrange(len(lines))
        action = rng.randrange(5)
        if action == 0 and len(lines) > 1:
            del lines[at]
        elif action == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif action == 2:
            lines[at] = mutate_bytes(rng, lines[at], lines)
        else:
            lines[at] = _other_word(rng, lines[at])
    return b"\n".join(lines)


def _other_word(rng: Random, line: bytes) -> bytes:
    words = line.split(b" ")
    at = rng.randrange(len(words))
    key, sign, _ = words[at].rpartition(rng.choice((b":", b"=")))
    words[at] = key + sign + rng.choice(WORDS).encode()
    return b" ".join(words)
