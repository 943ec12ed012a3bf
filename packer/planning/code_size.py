"""Plans that leave room for their own code: a loader or bundle of only the formats chosen.

Its size depends on the choices, and the choices depend on the bytes that it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from packer.budget.plan import Candidate, InfeasibleCap, Plan, PlanningError, plan_to_cap
from packer.errors import CapError, PlanError
from packer.planning.account import MAX_SIZE_BYTES, Limits, count_code
from packer.planning.options import PlanLimits
from packer.shipping.loader import (
    LARGEST_ENCODER,
    LARGEST_LOADER,
    loader_source,
    parts_of,
)

ROUNDS = 8
CLOSE = 64  # bytes by which a bundle may be smaller than what was counted for it

Weigh = Callable[[Plan], tuple[int, int]]
"""Plan -> (decoder, encoder) bytes in its bundle."""


def weigh_limits(limits: int | PlanLimits) -> Limits:
    """The limits, or a cap in bytes alone, with the size of every code file. A loader or bundle is
    counted at its largest, until a plan replaces that by the size of its own.

    Raises PackerError: a file cannot be read.
    """
    limits = limits if isinstance(limits, PlanLimits) else PlanLimits(limits)
    loader = LARGEST_LOADER if limits.loader or limits.bundle else 0
    encoder = LARGEST_ENCODER if limits.bundle else 0
    files = count_code(limits.code)
    return Limits(limits.cap_bytes, files, loader, limits.margin_bytes, encoder)


def solve_with_code(
    candidates: Sequence[Candidate], header_bytes: int, limits: Limits, weigh: Weigh
) -> tuple[Plan, Limits]:
    """(the plan, limits with the loader or bundle that goes with it, where one counts).

    Raises CapError, PlanError.
    """
    if limits.encoder_bytes:
        return _with_bundle(candidates, header_bytes, limits, weigh)
    if limits.loader_bytes:
        return _with_loader(candidates, header_bytes, limits)
    return solve(candidates, header_bytes, limits), limits


def _with_loader(
    candidates: Sequence[Candidate], header_bytes: int, limits: Limits
) -> tuple[Plan, Limits]:
    """Starts with a loader for every candidate's format or, if no plan fits with it, for those of
    the smallest candidates. Then repeatedly drops the formats that the plan does not use, and
    the candidates in them, until the loader is exactly that of the plan.
    """
    parts, fewest = _parts(candidates), _parts(_smallest(candidates))
    while True:
        limits = replace(limits, loader_bytes=len(loader_source(parts).encode()))
        try:
            plan = solve(readable(candidates, parts), header_bytes, limits)
        except CapError:
            if parts == fewest:
                raise
            parts = fewest
            continue
        if _parts(plan.chosen) == parts:
            return plan, limits
        parts = _parts(plan.chosen)


def _with_bundle(
    candidates: Sequence[Candidate], header_bytes: int, limits: Limits, weigh: Weigh
) -> tuple[Plan, Limits]:
    """The size of a bundle depends on the kinds of choices and, because it contains the choices as
    text, by a few bytes on each of them. Counts the bundle of the smallest choices first, then that
    of the resulting plan, until a bundle is about as large as was counted. If no plan fits with
    that, only the formats of the smallest candidates remain.
    """

    def weighed(plan: Plan) -> Limits:
        decoder, encoder = weigh(plan)
        return replace(limits, loader_bytes=decoder, encoder_bytes=encoder)

    smallest = _smallest(candidates)
    roomy = replace(limits, cap_bytes=MAX_SIZE_BYTES - 1)
    fewest = counted = weighed(solve(smallest, header_bytes, roomy))
    best: tuple[Plan, Limits] | None = None
    for _ in range(ROUNDS):
        try:
            plan = solve(candidates, header_bytes, counted)
        except CapError:
            if counted == fewest:
                raise
            candidates, counted = readable(candidates, _parts(smallest)), fewest
            continue
        actual = weighed(plan)
        left = counted.code_bytes - actual.code_bytes
        if left >= 0 and (best is None or plan.damage < best[0].damage):
            best = replace(plan, code_bytes=actual.code_bytes), actual
        if 0 <= left <= CLOSE:
            break
        counted = actual
    if best is None:
        raise CapError("no plan leaves room for its own bundle; raise the cap by some bytes")
    return best


def _smallest(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The smallest candidate of each tensor."""
    by_size = sorted(candidates, key=lambda c: c.size_bytes, reverse=True)
    return [*{candidate.tensor: candidate for candidate in by_size}.values()]


def counted_loader(choices: Iterable[str], limits: Limits) -> bytes:
    """The loader for these choices. Raises PlanError: its size is not what the plan counts."""
    source = loader_source(parts_of(choices)).encode()
    if limits.loader_bytes != len(source):
        raise PlanError(
            f"the plan counts {limits.loader_bytes:,} bytes of loader, and the loader has "
            f"{len(source):,}. Plan again with --loader; from the plan's file that "
            "measures nothing anew."
        )
    return source


def _parts(candidates: Iterable[Candidate]) -> frozenset[str]:
    return parts_of(candidate.choice for candidate in candidates)


def readable(candidates: Iterable[Candidate], parts: frozenset[str]) -> list[Candidate]:
    """The candidates that a loader with these parts can read."""
    return [candidate for candidate in candidates if parts_of([candidate.choice]) <= parts]


def solve(candidates: Sequence[Candidate], header_bytes: int, limits: Limits) -> Plan:
    """plan_to_cap with errors as the user sees them. Raises CapError, PlanError."""
    try:
        return plan_to_cap(
            candidates,
            cap_bytes=limits.cap_bytes,
            code_bytes=limits.code_bytes,
            header_bytes=header_bytes,
            margin_bytes=limits.margin_bytes,
        )
    except InfeasibleCap as error:
        raise CapError(str(error)) from None
    except PlanningError as error:
        raise PlanError(str(error)) from None
