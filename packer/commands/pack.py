"""`packer pack`: the artifact, under the cap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.curvature_options import CURVATURE, CurvatureOptions
from packer.commands.felt import Felt, feel
from packer.commands.limit_options import LimitOptions
from packer.commands.option_groups import OptionGroup
from packer.commands.options import (
    CODE,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    PINS,
    WAYS,
    WRITABLE,
    cap_option,
    print_json,
    read_config,
    refuse_overwriting,
    say,
    with_options,
)

if TYPE_CHECKING:
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.fit import Packed
    from packer.knob import RecipePlan
    from packer.planning import PackPlan


@dataclass(frozen=True)
class Deciding:
    """Where the choice of every tensor comes from; from none of these: it is planned here."""

    plan_file: str | None
    policy: str | None
    recipe: str | None

    @property
    def given(self) -> bool:
        return (self.plan_file, self.policy, self.recipe) != (None, None, None)

    def check(self, limits: LimitOptions, curvature: CurvatureOptions) -> None:
        """Raises UsageError: options that are already decided, or of two ways at once."""
        decides = limits.code or limits.margin or limits.pins or curvature.built.config
        others = self.plan_file is not None or self.policy is not None
        if self.recipe is not None and (others or limits.cap is None):
            raise click.UsageError("--recipe goes with --cap, and without --plan or --policy")
        carried = self.policy is not None or limits.cap is not None or decides
        if self.plan_file is not None and carried:
            raise click.UsageError(
                "--plan carries its own cap, code, margin, pins and config; leave those options "
                "out, or use --policy with a new --cap"
            )
        if self.plan_file is None and limits.cap is None:
            raise click.UsageError("give --plan, or --cap to plan for (and --policy to follow one)")
        if self.plan_file is not None and curvature.text.data:
            raise click.UsageError(
                "a --plan is packed with the curvature it was made with: --curvature"
            )
        if self.policy is not None and (limits.pins or limits.ways):
            raise click.UsageError(
                "--policy carries its own choices; leave --pin, --coder and --trellis out, or "
                "plan anew"
            )
        if self.recipe is not None and limits.ways:
            raise click.UsageError("--recipe carries its own ways; leave --coder and --trellis out")


DECIDING = OptionGroup(
    "deciding",
    Deciding,
    click.option("--plan", "plan_file", type=EXISTING_FILE, help="Pack exactly this plan."),
    click.option("--policy", type=EXISTING_FILE, help="Keep another run's choices, under --cap."),
    click.option("--recipe", metavar="NAME", help="A recipe people know, made to fit under --cap."),
)


@click.command(short_help="The artifact, never over the cap.")
@click.argument("checkpoint", type=EXISTING)
@click.option("-o", "--output", type=WRITABLE, required=True, help="The artifact to write.")
@DECIDING
@OptionGroup("limits", LimitOptions, cap_option(required=False), CODE, MARGIN, PINS, *WAYS)
@click.option("--loader", type=WRITABLE, help="Write (and count) the loader, a Python file, too.")
@with_options(CURVATURE, JSON)
def pack(
    checkpoint: str,
    output: str,
    deciding: Deciding,
    limits: LimitOptions,
    loader: str | None,
    curvature: CurvatureOptions,
    as_json: bool,
) -> None:
    """Pack CHECKPOINT into an artifact that is never over the cap.

    With --plan, exactly that plan (its cap, code and pins); the checkpoint must be the planned one.
    With --policy and --cap, the choices of another run of the same structure, stepping down only
    where they do not fit. With --recipe and --cap, a recipe that people know, its size knob turned
    until the file fits: baseline-int8-zlib, int6-rowmax-zstd, int5mlp-int6-zstd, gptq-lite-int6,
    full-gptq-int6 or sdclip-gptq-brotli. With --cap alone, plan first.
    """
    from packer import api
    from packer.progress import shown

    curvature.check()
    deciding.check(limits, curvature)
    for written in (output, loader):
        inputs = [checkpoint, deciding.plan_file, deciding.policy, *curvature.inputs, *limits.code]
        refuse_overwriting(inputs, written)
    _refuse_one_for_both(output, loader)
    metadata = read_config(curvature.built.config)
    made = None if deciding.plan_file is None else api.load_plan(deciding.plan_file)
    loaded = curvature.built.opening.read(checkpoint)
    felt = feel(checkpoint, loaded, curvature)
    turned, source = None, loaded if deciding.given else _to_plan(loaded, felt, limits, metadata)
    with shown("packing") as progress:
        if made is None:
            told = {
                "cap_bytes": limits.cap,
                "code": limits.code,
                "loader": loader is not None,
                "margin_bytes": limits.margin,
                "pins": limits.pinned,
                "metadata": metadata,
                "progress": progress,
            }
            made, turned = _planned(deciding, loaded, source, felt, limits, told)
        packed = api.pack(
            loaded, made, out=output, loader=loader, curvature=felt.curvature, progress=progress
        )
    _show(packed, output, loader, as_json, deciding.policy is not None, turned)


def _to_plan(
    loaded: Checkpoint, felt: Felt, limits: LimitOptions, metadata: dict[str, str]
) -> Checkpoint | Measurement:
    """The checkpoint, or where damage can be fitted to a model, its fitted measurements."""
    if felt.bench is None:
        return loaded
    return felt.measure_to_plan(loaded, limits, metadata)


def _planned(
    deciding: Deciding,
    loaded: Checkpoint,
    source: Checkpoint | Measurement,
    felt: Felt,
    limits: LimitOptions,
    told: dict[str, Any],
) -> tuple[PackPlan, RecipePlan | None]:
    """The plan, and the recipe that it is of, if any. Raises CapError, PlanError."""
    from packer import api
    from packer.candidates import Measurement
    from packer.refining import refined

    if isinstance(source, Measurement):
        made = api.plan(source, **told)
        return refined(loaded, made, felt.curvature, told["progress"]), None
    if deciding.recipe is None:
        made = api.plan(
            source,
            policy=deciding.policy,
            curvature=felt.curvature,
            coder=limits.coder,
            trellis=limits.trellis,
            **told,
        )
        return made, None
    turned = api.plan_recipe(source, deciding.recipe, curvature=felt.curvature, **told)
    return turned.plan, turned


def _refuse_one_for_both(output: str, loader: str | None) -> None:
    if loader is not None and Path(output).resolve() == Path(loader).resolve():
        raise click.UsageError(f"{loader} cannot be both the artifact and its loader")


def _show(
    packed: Packed,
    output: str,
    loader: str | None,
    as_json: bool,
    policy: bool,
    turned: RecipePlan | None,
) -> None:
    from packer.reports import tables
    from packer.reports.report import report_packed
    from packer.reports.spelling import spell_quality

    report = report_packed(packed, output)
    if as_json:
        value = {**report.to_json(), "rounding_problems": _problems(packed, turned)}
        value["lost"] = dict(packed.lost)
        if turned is not None:
            value["recipe"] = turned.recipe.name
            value["knob"] = {turned.position.knob: turned.position.value}
        print_json({**value, "output": output, "loader": loader})
        return
    tables.print_report(report, every_tensor=False)
    say("")
    say(f"{output}: {packed.account}")
    say(packed.plan.limits.spell_code())
    say(spell_quality(packed.plan), lines=True)
    if packed.rounds > 1:
        say(f"real sizes differed from the plan; planned again, {packed.rounds} rounds")
    if turned is not None:
        say(f"{turned.recipe.name} with its knob at {turned.position}")
    for name, problem in (*packed.lost.items(), *_problems(packed, turned).items()):
        say(f"{name}: {problem}")
    if policy:
        _say_steps_down(packed.plan)


def _problems(packed: Packed, turned: RecipePlan | None) -> dict[str, str]:
    """Tensor -> why it was not rounded as it should be."""
    return {**(turned.problems if turned else {}), **packed.rounding_problems}


def _say_steps_down(made: PackPlan) -> None:
    """Under a policy: which tensors did not keep its choice, the largest of those allowed."""
    allowed = made.measurement.by_tensor
    kept = {name: max(found, key=lambda c: c.size_bytes).choice for name, found in allowed.items()}
    changed = [
        f"{chosen.tensor} {kept[chosen.tensor]} -> {chosen.choice}"
        for chosen in made.plan.chosen
        if chosen.choice != kept[chosen.tensor]
    ]
    if changed:
        say("stepped down from the policy: " + "; ".join(changed))
    else:
        say("every choice of the policy was kept")
