"""`packer pack`: a checkpoint to an artifact under the cap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.carrying import INCLUDE, carried, carried_account
from packer.commands.load_calibration import load_calibration
from packer.commands.options.curvature import CURVATURE, CurvatureOptions, beside
from packer.commands.options.groups import (
    MAIN,
    OUTPUT,
    OptionGroup,
    SectionedCommand,
    option,
    with_options,
)
from packer.commands.options.tuning import TUNING, TuningOptions
from packer.commands.options.types import (
    CODE,
    CODER,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    PINS,
    TRELLIS,
    WRITABLE,
    cap_option,
    measure_options,
    plan_limits,
    print_json,
    refuse_overwriting,
    say,
    say_notes,
)
from packer.commands.tuning import pack_tuned
from packer.planning.options import MeasureOptions, PlanLimits

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.packing.pack import Packed
    from packer.planning.damage_trials import Calibration
    from packer.planning.plan import PackPlan
    from packer.planning.recipe_search import RecipePlan


@dataclass(frozen=True)
class Deciding:
    """Where the choice for every tensor comes from; with none of these, `packer pack` plans."""

    plan_file: str | None
    policy: str | None
    recipe: str | None

    @property
    def by_cap(self) -> bool:
        """Whether `packer pack` plans by itself."""
        return self.plan_file is None and self.policy is None and self.recipe is None

    def check(
        self,
        limits: PlanLimits,
        options: MeasureOptions,
        curvature: CurvatureOptions,
        tuning: TuningOptions,
    ) -> None:
        """Raises UsageError: options that --plan, --policy or --recipe decide, or two of those."""
        coded = options.coder or options.trellis
        decides = limits.code or limits.margin_bytes or options.pins or curvature.built.config
        others = self.plan_file is not None or self.policy is not None
        if self.recipe is not None and (others or not limits.cap_bytes):
            raise click.UsageError("--recipe goes with --cap, and without --plan or --policy")
        carried = self.policy is not None or limits.cap_bytes or decides
        if self.plan_file is not None and carried:
            raise click.UsageError(
                "--plan carries its own cap, code, margin, pins and config; leave those options "
                "out, or use --policy with a new --cap"
            )
        if self.plan_file is None and not limits.cap_bytes:
            raise click.UsageError("give --plan, or --cap to plan for (and --policy to follow one)")
        if self.plan_file is not None and curvature.text.data and not tuning.given:
            raise click.UsageError(
                "--plan is packed with the curvature it was made with; give --curvature, not "
                "--calibration (which --tune reads)"
            )
        if self.policy is not None and (options.pins or coded):
            raise click.UsageError(
                "--policy carries its own choices; leave --pin, --coder and --trellis out, or "
                "plan anew"
            )
        if self.recipe is not None and coded:
            raise click.UsageError("--recipe has its own coder; leave --coder and --trellis out")


DECIDING = OptionGroup(
    "deciding",
    Deciding,
    option("--plan", "plan_file", section=MAIN, type=EXISTING_FILE, help="Pack exactly this plan."),
    option(
        "--policy",
        section=MAIN,
        type=EXISTING_FILE,
        help="Keep the choices of another run's plan, under --cap.",
    ),
    option(
        "--recipe",
        section=MAIN,
        metavar="NAME",
        help="Use a published recipe, tuned to fit under --cap.",
    ),
)


@click.command(cls=SectionedCommand, short_help="Write the artifact, never over the cap.")
@click.argument("checkpoint", type=EXISTING)
@OptionGroup("limits", plan_limits, cap_option(required=False), CODE, MARGIN)
@OptionGroup("options", measure_options, PINS, CODER, TRELLIS)
@CURVATURE
@option(
    "-o", "--output", section=MAIN, type=WRITABLE, required=True, help="Write the artifact to FILE."
)
@DECIDING
@TUNING
@option(
    "--loader",
    section=OUTPUT,
    type=WRITABLE,
    help="Write the loader, a Python file, and count its bytes.",
)
@with_options(INCLUDE, JSON)
def pack(
    checkpoint: str,
    output: str,
    deciding: Deciding,
    tuning: TuningOptions,
    limits: PlanLimits,
    options: MeasureOptions,
    loader: str | None,
    curvature: CurvatureOptions,
    include: tuple[str, ...],
    as_json: bool,
) -> None:
    """Pack CHECKPOINT into an artifact that is never over the cap.

    \b
    packer pack model.pt --plan plan.json -o model.pack
    packer pack model.pt --cap 16MB --calibration train.txt \\
        --tokenizer bpe.model -o model.pack

    With --plan, pack exactly that plan, with its cap, code and pins; the checkpoint must be the one
    it was made for. With --cap alone, plan first; calibration is as of packer plan. With --policy
    and --cap, keep the choices of another run of the same structure, and step down only where they
    do not fit. With --tune, weights are moved before they are rounded, to make good the errors of
    those rounded earlier; the tuned file is kept if held-out text shows less damage. With --recipe
    and --cap, use a published recipe, with its size parameter tuned until the file fits:

    \b
    baseline-int8-zlib, int6-rowmax-zstd, int5mlp-int6-zstd,
    gptq-lite-int6, full-gptq-int6, sdclip-gptq-brotli
    """
    from packer import api
    from packer.progress import shown

    curvature.check()
    tuning.check(curvature)
    deciding.check(limits, options, curvature, tuning)
    if include and deciding.plan_file is not None:
        raise click.UsageError("--plan carries its own files; give --include to packer plan")
    for written in (output, loader):
        inputs = [checkpoint, deciding.plan_file, deciding.policy, *curvature.inputs, *limits.code]
        refuse_overwriting(inputs, written)
    if loader is not None and Path(output).resolve() == Path(loader).resolve():
        raise click.UsageError(f"{loader} cannot be both the artifact and its loader")
    options = replace(options, metadata=carried(curvature.built.config, include, checkpoint))
    plan = None if deciding.plan_file is None else api.load_plan(deciding.plan_file)
    loaded = curvature.built.opening.read(checkpoint)
    allowed = replace(limits, loader=loader is not None)
    if deciding.by_cap:
        _check_cap(loaded, allowed, options, curvature)
    calibration = load_calibration(loaded, _curvature_for(deciding, plan, curvature))
    recipe = None
    if plan is None:
        plan, recipe = _plan(deciding, loaded, allowed, options, calibration)
    packed = pack_tuned(loaded, plan, calibration, tuning) if tuning.given else None
    if packed is None:
        curvature_set = calibration.curvature
        with shown("packing") as progress:
            packed = api.pack(loaded, plan, curvature=curvature_set, progress=progress)
    api.write_packed(packed, output, loader)
    _show(packed, output, loader, as_json, deciding.policy is not None, recipe)


def _check_cap(
    checkpoint: Checkpoint, limits: PlanLimits, options: MeasureOptions, curvature: CurvatureOptions
) -> None:
    """Raises CapError: the cap is far below every plan; before anything is calibrated."""
    from packer.planning.code_size import weigh_limits
    from packer.planning.reachable import check_reachable

    check_reachable(checkpoint, weigh_limits(limits), options, not curvature.no_calibration)


def _curvature_for(
    deciding: Deciding, plan: PackPlan | None, curvature: CurvatureOptions
) -> CurvatureOptions:
    """The options, but that nothing is calibrated for choices that need no curvature; that of a
    plan is read from beside it. Raises PlanError.
    """
    from packer import api
    from packer.planning.plan import rounded_with_curvature
    from packer.planning.recipes import find_recipe

    if plan is not None:
        kept = beside(deciding.plan_file or "")
        if curvature.file is None and rounded_with_curvature(plan) and Path(kept).is_file():
            return replace(curvature, file=kept)
        wanted = False
    elif deciding.policy is not None:
        wanted = bool(rounded_with_curvature(api.load_plan(deciding.policy)))
    else:
        wanted = deciding.recipe is None or find_recipe(deciding.recipe).rounds_with_gptq
    return replace(curvature, no_calibration=curvature.no_calibration or not wanted)


def _plan(
    deciding: Deciding,
    checkpoint: Checkpoint,
    limits: PlanLimits,
    options: MeasureOptions,
    calibration: Calibration,
) -> tuple[PackPlan, RecipePlan | None]:
    """The plan, and the recipe it follows, if any. Raises CapError, PlanError."""
    from packer import api
    from packer.planning.code_size import weigh_limits
    from packer.planning.pipeline import plan_checkpoint, plan_under_policy
    from packer.progress import shown

    if deciding.recipe is not None:
        curvature = calibration.curvature
        with shown("measuring") as progress:
            recipe = api.plan_recipe(
                checkpoint, deciding.recipe, limits, options, curvature=curvature, progress=progress
            )
        return recipe.plan, recipe
    weighed = weigh_limits(limits)
    if deciding.policy is not None:
        policy = api.load_plan(deciding.policy)
        return plan_under_policy(policy, checkpoint, weighed, options, calibration, shown), None
    return plan_checkpoint(checkpoint, weighed, options, calibration, shown), None


def _show(
    packed: Packed,
    output: str,
    loader: str | None,
    as_json: bool,
    policy: bool,
    recipe: RecipePlan | None,
) -> None:
    from packer.reports import tables
    from packer.reports.describe import describe_quality
    from packer.reports.report import report_packed

    report = report_packed(packed, output)
    files, file_bytes = carried_account(packed.plan.measurement)
    if as_json:
        value = {**report.to_json(), "rounding_problems": _problems(packed, recipe)}
        value["lost"] = dict(packed.lost)
        value["calibration"] = packed.plan.measurement.calibration
        if recipe is not None:
            value["recipe"] = recipe.recipe.name
            value["parameter"] = {recipe.position.parameter: recipe.position.value}
        value["included"], value["included_bytes"] = files, file_bytes
        print_json({**value, "output": output, "loader": loader})
        return
    tables.print_report(report, every_tensor=False)
    say("")
    say(f"{output}: {packed.account}")
    if files:
        say(f"{file_bytes:,} bytes of the header are for {', '.join(files)}")
    say(packed.plan.limits.describe_code())
    say(describe_quality(packed.plan), lines=True)
    say_notes(report.notes)
    if packed.rounds > 1:
        say(f"real sizes differed from the plan; planned again, {packed.rounds} rounds")
    if recipe is not None:
        say(f"{recipe.recipe.name} at {recipe.position}")
    for name, problem in (*packed.lost.items(), *_problems(packed, recipe).items()):
        say(f"{name}: {problem}")
    if policy:
        _say_steps_down(packed.plan)


def _problems(packed: Packed, recipe: RecipePlan | None) -> dict[str, str]:
    """Tensor -> why it was not rounded as planned."""
    return {**(recipe.problems if recipe else {}), **packed.rounding_problems}


def _say_steps_down(plan: PackPlan) -> None:
    """Print which tensors did not keep the policy's choice, the largest of those allowed."""
    allowed = plan.measurement.by_tensor
    kept = {name: max(each, key=lambda c: c.size_bytes).choice for name, each in allowed.items()}
    changed = [
        f"{chosen.tensor} {kept[chosen.tensor]} -> {chosen.choice}"
        for chosen in plan.plan.chosen
        if chosen.choice != kept[chosen.tensor]
    ]
    if changed:
        say("stepped down from the policy: " + "; ".join(changed))
    else:
        say("every choice of the policy was kept")
