"""The account never lies: `python -m benchmarks.account --cases 1000`.

Random checkpoints are measured, planned for random caps, packed and weighed. Of each must hold:
  - the file and everything counted beside it are at most the cap, to the byte;
  - the plan's bytes are the file's, and the parts of the account sum up to it;
  - nothing better fits in what is left: no tensor has a choice of less damage (by a billionth of
    the plan's, where float64 ends) that needs no more bytes in addition than are unused;
  - where all combinations can be tried (100,000 at most), none that fits does less damage;
  - a cap that nothing meets is refused, and the smallest size named is the smallest there is.
Exit code 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packer import api
from packer.errors import CapError
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.plan import PackPlan, make_plan

MAX_COMBINATIONS = 100_000
ROUNDING = 1e-9  # of a sum of damages
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8)


@dataclass(frozen=True)
class Case:
    """unused_bytes: under the cap, margin excluded; None where nothing fits. combinations: tried,
    0 where they are too many. problems: in words.
    """

    number: int
    unused_bytes: int | None
    at_best: bool
    combinations: int
    problems: tuple[str, ...]


def checkpoint(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One to six tensors of odd shapes, every kind of values, now and then tied."""
    names = ("tok_emb.weight", "blocks.0.attn.c_k.weight", "blocks.0.mlp.fc.weight", "a", "b", "c")
    weights = {name: _tensor(generator) for name in names[: 1 + _draw(generator, 6)]}
    if _draw(generator, 4) == 0:
        weights["lm_head.weight"] = weights["tok_emb.weight"]
    return weights


def _draw(generator: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def _tensor(generator: torch.Generator) -> torch.Tensor:
    axes = _draw(generator, 4)
    sizes = [_draw(generator, 3) + 1, 1 + _draw(generator, 40), 1 + _draw(generator, 60)]
    shape = sizes[3 - axes :]
    if _draw(generator, 40) == 0:
        shape = [0, *shape]
    values = torch.randn(shape, generator=generator)
    kind = _draw(generator, 6)
    if kind == 0:
        values = values**3 * 10.0 ** (_draw(generator, 9) - 6)
    elif kind == 1:
        values = torch.where(values.abs() > 1.5, values, 0.0)
    elif kind == 2:
        values = torch.full_like(values, 0.25)
    elif kind == 3:
        values = (values * 2).round() / 8
    dtype = DTYPES[_draw(generator, len(DTYPES))]
    return (values.abs() * 50).to(dtype) if not dtype.is_floating_point else values.to(dtype)


def try_case(number: int, seed: int = 0) -> Case:
    """A checkpoint and a cap of their own, always the same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    weights = checkpoint(generator)
    measured = api.measure(weights)
    smallest, largest = _extremes(measured)
    cap = max(smallest - 40 + _draw(generator, largest - smallest + 120), 1)
    margin = _draw(generator, 30) if _draw(generator, 5) == 0 else 0
    limits = Limits(cap, margin_bytes=margin)
    try:
        made = make_plan(measured, limits, {})
    except CapError as error:
        is_named = f"{smallest + margin:,}" in str(error)
        problems = [] if is_named else [f"{smallest + margin:,} is not in the error: {error}"]
        if smallest + margin <= cap:
            problems.append(f"{smallest + margin:,} bytes would fit under {cap:,}")
        return Case(number, None, False, 0, tuple(problems))
    combinations = _combinations(measured)
    problems = [*_weighed(weights, made), *_promise(made)]
    if combinations <= MAX_COMBINATIONS:
        problems += _against_all(made, cap - margin)
    unused = made.plan.unused_bytes - margin
    tried = combinations if combinations <= MAX_COMBINATIONS else 0
    return Case(number, unused, _step_up(made) is None, tried, tuple(problems))


def _extremes(measured: Measurement) -> tuple[int, int]:
    """The smallest and the largest file there is."""
    sizes = [[c.size_bytes for c in found] for found in measured.by_tensor.values()]
    header = measured.header_bytes
    return header + sum(map(min, sizes)), header + sum(map(max, sizes))


def _combinations(measured: Measurement) -> int:
    return math.prod(len(found) for found in measured.by_tensor.values())


def _weighed(weights: Mapping[str, torch.Tensor], made: PackPlan) -> list[str]:
    """The file itself against what was promised of it."""
    packed = api.pack(weights, made)
    limits, account, size = packed.plan.limits, packed.account, len(packed.data)
    total, problems = size + limits.code_bytes, []
    if total + limits.margin_bytes > limits.cap_bytes:
        problems.append(f"{total:,} bytes and a margin under a cap of {limits.cap_bytes:,}")
    if made.plan.total_bytes != total or packed.rounds != 1:
        problems.append(f"{made.plan.total_bytes:,} bytes were predicted, {total:,} are there")
    parts = account.header_bytes + account.side_bytes + account.payload_bytes
    if parts != size or account.total_bytes != total:
        problems.append(f"the account says {account}")
    problems += api.verify(packed.data, weights, made).problems
    return problems


def _step_up(made: PackPlan) -> int | None:
    """The fewest bytes more that would do less damage to some tensor; None: there is nothing."""
    chosen = {candidate.tensor: candidate for candidate in made.plan.chosen}
    steps = [
        candidate.size_bytes - chosen[name].size_bytes
        for name, found in made.measurement.by_tensor.items()
        for candidate in found
        if candidate.damage < chosen[name].damage - ROUNDING * made.plan.damage
    ]
    return min(steps, default=None)


def _promise(made: PackPlan) -> list[str]:
    unused, step = made.plan.unused_bytes - made.plan.margin_bytes, _step_up(made)
    if made.plan.gap or step is None or step > unused:
        return []
    return [f"{unused:,} bytes are unused, and {step:,} more would do less damage"]


def _against_all(made: PackPlan, cap_bytes: int) -> list[str]:
    """Every combination of choices, by hand."""
    fixed = made.plan.code_bytes + made.plan.header_bytes
    best = min(
        math.fsum(candidate.damage for candidate in combination)
        for combination in itertools.product(*made.measurement.by_tensor.values())
        if fixed + sum(candidate.size_bytes for candidate in combination) <= cap_bytes
    )
    if math.isclose(made.plan.damage, best, rel_tol=ROUNDING, abs_tol=1e-30):
        return []
    return [f"the plan does {made.plan.damage!r} damage, another that fits does {best!r}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [try_case(number, options.seed) for number in range(options.cases)]
    failed = [case for case in cases if case.problems]
    report = {**_summary(cases), "failures": [vars(case) for case in failed]}
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name}: {value}" for name, value in report.items()))
    sys.exit(1 if failed else 0)


def _summary(cases: list[Case]) -> dict[str, int]:
    packed = [case for case in cases if case.unused_bytes is not None]
    limited = sorted(case.unused_bytes or 0 for case in packed if not case.at_best)
    return {
        "cases": len(cases),
        "packed": len(packed),
        "refused": len(cases) - len(packed),
        "with everything at its best": len(packed) - len(limited),
        "tried against every combination": sum(case.combinations > 0 for case in cases),
        "median of bytes unused, others": limited[len(limited) // 2] if limited else 0,
        "most bytes unused, others": max(limited, default=0),
    }


if __name__ == "__main__":
    main()
