"""From measurements to a plan under a cap; the file plan.json. Without torch, to start quickly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from packer.budget.plan import Candidate, Plan
from packer.budget.what_if import what_if
from packer.checkpoint.roles import select
from packer.errors import CapError, PlanError
from packer.files import read_json
from packer.planning.account import CodeFile, Limits, describe_rest
from packer.planning.candidates import KIND as CANDIDATES_KIND
from packer.planning.candidates import Measurement, check_kind, whole_number
from packer.planning.code_size import readable, solve, solve_with_code
from packer.shipping.bundle import BundleContents, make_bundle
from packer.shipping.loader import parts_of

KIND = "bytecap plan"
VERSION = 1


@dataclass(frozen=True)
class PackPlan:
    """A plan with what it was made from: enough to pack, to plan again and to explain every choice.

    pins: tensor -> choice, fixed by the user.
    """

    measurement: Measurement
    plan: Plan
    limits: Limits
    pins: Mapping[str, str]

    @property
    def choices(self) -> dict[str, str]:
        return {candidate.tensor: candidate.choice for candidate in self.plan.chosen}

    @property
    def bundled(self) -> BundleContents:
        """The contents of this plan's bundle."""
        limits = self.limits
        return BundleContents(
            self.choices,
            self.measurement.ties,
            self.measurement.metadata,
            limits.cap_bytes,
            sum(file.size_bytes for file in limits.code) + limits.margin_bytes,
        )

    def describe_account(self) -> str:
        """The account as planned, to the byte; packing splits the tensors into scales and codes."""
        plan = self.plan
        tensors = plan.artifact_bytes - plan.header_bytes
        return (
            f"code {plan.code_bytes:,} + header {plan.header_bytes:,} + tensors {tensors:,} = "
            f"{plan.total_bytes:,}{describe_rest(plan.cap_bytes, plan.unused_bytes)}"
        )

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        fields = {
            "kind": KIND,
            "version": VERSION,
            "cap_bytes": plan.cap_bytes,
            "code_bytes": plan.code_bytes,
            "margin_bytes": plan.margin_bytes,
            "artifact_bytes": plan.artifact_bytes,
            "total_bytes": plan.total_bytes,
            "unused_bytes": plan.unused_bytes,
            "damage_kind": plan.damage_kind,
            "damage": plan.damage,
            "price": plan.price,
            "gap": plan.gap,
            "code": [[file.path, file.size_bytes] for file in self.limits.code],
            "loader_bytes": self.limits.loader_bytes,
            "encoder_bytes": self.limits.encoder_bytes,
            "pins": dict(self.pins),
            "choices": [[candidate.tensor, candidate.choice] for candidate in plan.chosen],
        }
        return {**fields, "measurement": self.measurement.to_json()}

    @staticmethod
    def from_json(value: Mapping[str, Any], source: str) -> PackPlan:
        """Raises PlanError: not a plan of this version, damaged, or naming unknown choices."""
        check_kind(value, KIND, VERSION, source, "Plan again with `packer plan`.")
        try:
            measurement = Measurement.from_json(value["measurement"], source)
            return _pack_plan(value, measurement, source)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"{source} is damaged: {error!r}. Plan again.") from None


def read_plan(path: str | os.PathLike[str]) -> PackPlan:
    """The plan in a file. Raises PlanError."""
    return PackPlan.from_json(read_json(path), str(path))


def read_measurement(path: str | os.PathLike[str]) -> tuple[Measurement, Mapping[str, str]]:
    """(measurement, pins) of a candidates file, which has no pins, or of an earlier plan.

    Raises PlanError.
    """
    value = read_json(path)
    if value.get("kind") == CANDIDATES_KIND:
        return Measurement.from_json(value, str(path)), {}
    plan = PackPlan.from_json(value, str(path))
    return plan.measurement, plan.pins


def _pack_plan(value: Mapping[str, Any], measurement: Measurement, source: str) -> PackPlan:
    choices = {str(tensor): str(choice) for tensor, choice in value["choices"]}
    limits = Limits(
        whole_number(value["cap_bytes"]),
        tuple(CodeFile(str(path), whole_number(size)) for path, size in value["code"]),
        whole_number(value["loader_bytes"]),
        whole_number(value["margin_bytes"]),
        whole_number(value.get("encoder_bytes", 0)),
    )
    plan = Plan(
        chosen=chosen_candidates(measurement, choices, source),
        cap_bytes=limits.cap_bytes,
        code_bytes=limits.code_bytes,
        header_bytes=measurement.header_bytes,
        margin_bytes=limits.margin_bytes,
        damage_kind=str(value["damage_kind"]),
        price=float(value["price"]),
        gap=float(value["gap"]),
    )
    pins = {str(tensor): str(choice) for tensor, choice in value["pins"].items()}
    return PackPlan(measurement, plan, limits, pins)


def chosen_candidates(
    measurement: Measurement, choices: Mapping[str, str], source: str
) -> tuple[Candidate, ...]:
    """The candidate of each tensor's choice, sorted by tensor.

    Raises PlanError: a tensor has no choice, or a choice was not measured.
    """
    by_tensor = measurement.by_tensor
    if set(choices) != set(by_tensor):
        missing = sorted(set(by_tensor) - set(choices))
        unknown = sorted(set(choices) - set(by_tensor))
        raise PlanError(
            f"{source} does not cover the checkpoint: without a choice {missing or 'none'}, "
            f"not in the checkpoint {unknown or 'none'}. Plan again with `packer plan`."
        )
    chosen = []
    for tensor in sorted(choices):
        matching = [c for c in by_tensor[tensor] if c.choice == choices[tensor]]
        if not matching:
            raise PlanError(
                f"{source}: {tensor} is to be {choices[tensor]!r}, which was not measured; "
                f"measured are {', '.join(c.choice for c in by_tensor[tensor])}"
            )
        chosen.append(matching[0])
    return tuple(chosen)


def make_plan(
    measurement: Measurement, limits: Limits, pins: Mapping[str, str] | None = None
) -> PackPlan:
    """The plan of least damage whose file, code and margin included, fits the cap.

    pins: selector -> choice text. If the limits count a loader or a bundle, the limits of the plan
    count the one for its own formats.
    Raises SelectorError: a selector matches nothing. PlanError: a pinned choice was not measured.
    CapError: no combination fits; names the smallest size.
    """
    pinned = pinned_texts(measurement, pins or {})
    candidates = restrict(measurement, pinned)
    plan, limits = _solved(candidates, measurement, limits)
    return PackPlan(measurement, plan, limits, pinned)


def _solved(
    candidates: Sequence[Candidate], measurement: Measurement, limits: Limits
) -> tuple[Plan, Limits]:
    """(plan, limits with the size of the plan's own loader or bundle, if one counts)."""

    def weigh(plan: Plan) -> tuple[int, int]:
        bundle = make_bundle(PackPlan(measurement, plan, limits, {}).bundled)
        return bundle.decoder_bytes, bundle.encoder_bytes

    return solve_with_code(candidates, measurement.header_bytes, limits, weigh)


def pinned_texts(measurement: Measurement, pins: Mapping[str, str]) -> dict[str, str]:
    """Tensor -> pinned choice in canonical form. Raises PlanError: it was not measured."""
    measured = {(c.tensor, c.choice) for c in measurement.candidates}
    known = {choice for _, choice in measured}
    pinned: dict[str, str] = {}
    for selector, text in pins.items():
        choice = text if text in known else canonical(selector, text)
        pinned.update(dict.fromkeys(select(selector, measurement.roles), choice))
    for tensor, choice in pinned.items():
        if (tensor, choice) not in measured:
            raise PlanError(
                f"{tensor} is pinned to {choice!r}, which was not measured. Give the checkpoint "
                f"instead of its measurements, or measure with --pin '{tensor}={choice}'."
            )
    return pinned


def canonical(selector: str, text: str) -> str:
    """A choice in canonical form: kstd@20.0 becomes kstd@20.

    Raises PlanError: it cannot be read.
    """
    from packer.quantizers.choice import parse_choice  # torch, which is not needed otherwise
    from packer.quantizers.formats import FormatError

    try:
        return str(parse_choice(text))
    except FormatError as error:
        raise PlanError(f"pin {selector}: {error}") from None


def restrict(measurement: Measurement, choices: Mapping[str, str]) -> list[Candidate]:
    """The candidates, only those of the given choice for the tensors in `choices`."""
    return [
        candidate
        for candidate in measurement.candidates
        if choices.get(candidate.tensor, candidate.choice) == candidate.choice
    ]


def saved_by(pack_plan: PackPlan, more_bytes: int) -> float | None:
    """The damage that `more_bytes` would save, by planning again under a higher cap; None if that
    many bytes are unused already, or if nothing would be saved.
    """
    plan = pack_plan.plan
    if plan.unused_bytes - plan.margin_bytes >= more_bytes:
        return None
    candidates = restrict(pack_plan.measurement, pack_plan.pins)
    if pack_plan.limits.loader_bytes:
        candidates = readable(candidates, parts_of(pack_plan.choices.values()))
    (moved,) = what_if(candidates, plan, (more_bytes,))
    return -moved.damage_change if moved.damage_change else None


def rounded_with_curvature(pack_plan: PackPlan) -> list[Candidate]:
    """The chosen candidates whose codes depend on curvature."""
    has_curvature = pack_plan.measurement.curvature is not None
    # A low-rank correction uses curvature if there is some.
    return [
        c
        for c in pack_plan.plan.chosen
        if "+gptq" in c.choice or (".rank" in c.choice and has_curvature)
    ]


def check_curvature(pack_plan: PackPlan, sha256: str | None) -> None:
    """Raises PlanError: the plan rounds with curvature, and this is another or none.

    sha256: of the curvature that packing would use; None: there is none.
    """
    planned = pack_plan.measurement.curvature
    rounded = rounded_with_curvature(pack_plan)
    if rounded and sha256 is None:
        raise PlanError(
            f"{rounded[0].tensor}: {rounded[0].choice} needs curvature, as {len(rounded)} of the "
            "plan's tensors do: give the file that it was made with, --curvature FILE"
        )
    if rounded and sha256 is not None and planned not in (None, sha256):
        raise PlanError(
            f"the plan was made with curvature {str(planned)[:12]}, and this is {sha256[:12]}: its "
            "codes and sizes would differ. Give the file it was made with, or plan again"
        )


def replan(pack_plan: PackPlan, measurement: Measurement) -> PackPlan:
    """A new plan of corrected measurements, under the same limits and pins. Raises CapError."""
    candidates = restrict(measurement, pack_plan.pins)
    if pack_plan.limits.loader_bytes:  # the loader that was counted cannot read other formats
        candidates = readable(candidates, parts_of(pack_plan.choices.values()))
    solved = solve(candidates, measurement.header_bytes, pack_plan.limits)
    return replace(pack_plan, measurement=measurement, plan=solved)


def follow_policy(policy: PackPlan, measurement: Measurement, limits: Limits) -> PackPlan:
    """The policy's choices on other weights of the same structure.

    All choices are kept if they fit. Otherwise unpinned tensors may step down to smaller
    candidates, at the least damage that fits.
    Raises PlanError: another structure. CapError: even the smallest does not fit.
    """
    if policy.measurement.structure != measurement.structure:
        raise PlanError(
            f"the policy was made for tensors of another structure "
            f"({policy.measurement.structure[:12]} against {measurement.structure[:12]}); a policy "
            "needs the same names, shapes, dtypes and ties. Plan this checkpoint by itself."
        )
    kept = chosen_candidates(measurement, policy.choices, "the policy")
    allowed = replace(measurement, candidates=tuple(at_most(kept, policy.pins, measurement)))
    try:
        plan, limits = _solved(kept, measurement, limits)
    except CapError:
        plan, limits = _solved(allowed.candidates, measurement, limits)
    return PackPlan(allowed, plan, limits, dict(policy.pins))


def at_most(
    kept: Sequence[Candidate], pins: Mapping[str, str], measurement: Measurement
) -> list[Candidate]:
    """The kept candidates, and all smaller ones of unpinned tensors."""
    limit = {candidate.tensor: candidate for candidate in kept}
    return [
        candidate
        for candidate in measurement.candidates
        if candidate == limit[candidate.tensor]
        or (
            candidate.tensor not in pins
            and candidate.size_bytes < limit[candidate.tensor].size_bytes
        )
    ]
