"""`packer pack`: the artifact, under the cap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import (
    CURVATURE,
    CurvatureOptions,
    Felt,
    ModelOptions,
    TextOptions,
    feel,
)
from packer.commands.options import (
    CODE,
    CODER,
    CONFIG,
    DROP,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    MAX_MEMORY,
    PINS,
    TEMPLATE,
    WEIGHTS,
    WRITABLE,
    cap_option,
    print_json,
    read_config,
    refuse_overwriting,
    say_notes,
    with_options,
)
from packer.commands.plan import spell_quality

if TYPE_CHECKING:
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.fit import Packed
    from packer.knob import RecipePlan
    from packer.planning import PackPlan


@click.command(short_help="The artifact, never over the cap.")
@click.argument("checkpoint", type=EXISTING)
@click.option("-o", "--output", type=WRITABLE, required=True, help="The artifact to write.")
@click.option("--plan", "plan_file", type=EXISTING_FILE, help="Pack exactly this plan.")
@click.option("--policy", type=EXISTING_FILE, help="Keep another run's choices, under --cap.")
@click.option("--recipe", metavar="NAME", help="A recipe people know, made to fit under --cap.")
@with_options(cap_option(required=False), CODE, MARGIN, PINS, CODER)
@click.option("--loader", type=WRITABLE, help="Write (and count) the loader, a Python file, too.")
@with_options(CURVATURE, CONFIG, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def pack(
    checkpoint: str,
    output: str,
    plan_file: str | None,
    policy: str | None,
    recipe: str | None,
    cap: int | None,
    code: tuple[str, ...],
    margin: int,
    pins: tuple[tuple[str, str], ...],
    coder: str | None,
    loader: str | None,
    curvature_file: str | None,
    calibration: tuple[str, ...],
    calibration_tokens: int,
    calibration_window: int,
    tokenizer: str | None,
    bytes_table: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    config: str | None,
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
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
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown

    text = TextOptions(calibration, tokenizer, bytes_table, calibration_tokens, calibration_window)
    built = ModelOptions(config, model, model_config, device, weights, drop, template, max_memory)
    options = CurvatureOptions(curvature_file, text, built)
    options.check()
    _check_usage(plan_file, policy, recipe, cap, bool(code or margin or pins or config or coder))
    if plan_file is not None and calibration:
        raise click.UsageError(
            "a --plan is packed with the curvature it was made with: --curvature"
        )
    if policy is not None and (pins or coder):
        raise click.UsageError(
            "--policy carries its own pins and coders; leave --pin and --coder out, or plan anew"
        )
    if recipe is not None and coder:
        raise click.UsageError("--recipe carries its own coder; leave --coder out")
    for written in (output, loader):
        inputs = [checkpoint, plan_file, policy, config, template, curvature_file, *code]
        refuse_overwriting(inputs, written)
    _refuse_one_for_both(output, loader)
    metadata = read_config(config)
    made = None if plan_file is None else api.load_plan(plan_file)
    loaded = read_checkpoint(checkpoint, **built.opening)
    say_notes(loaded.notes)
    felt = feel(checkpoint, loaded, options)
    turned = None
    source = _to_plan(loaded, felt, dict(pins), coder, metadata, made, policy, recipe)
    with shown("packing") as progress:
        if recipe is not None:
            assert cap is not None
            turned = api.plan_recipe(
                loaded,
                recipe,
                cap,
                code=code,
                loader=loader is not None,
                margin_bytes=margin,
                pins=dict(pins),
                metadata=metadata,
                curvature=felt.curvature,
                progress=progress,
            )
            made = turned.plan
        elif made is None:
            assert cap is not None
            made = api.plan(
                source,
                cap,
                code=code,
                loader=loader is not None,
                margin_bytes=margin,
                pins=dict(pins),
                policy=policy,
                metadata=metadata,
                curvature=felt.curvature if source is loaded else None,
                coder=coder if source is loaded else None,
                progress=progress,
            )
        packed = api.pack(
            loaded,
            made,
            out=output,
            loader=loader,
            curvature=felt.curvature,
            progress=progress,
        )
    _show(packed, output, loader, as_json, policy is not None, turned)


def _to_plan(
    loaded: Checkpoint,
    felt: Felt,
    pins: dict[str, str],
    coder: str | None,
    metadata: dict[str, str],
    made: PackPlan | None,
    policy: str | None,
    recipe: str | None,
) -> Checkpoint | Measurement:
    """The checkpoint, or where damage can be fitted to a model, its fitted measurements."""
    from packer import api
    from packer.progress import shown

    if felt.bench is None or made is not None or policy is not None or recipe is not None:
        return loaded
    with shown("measuring") as progress:
        measured = api.measure(
            loaded,
            pins=pins,
            metadata=metadata,
            curvature=felt.curvature,
            coder=coder,
            progress=progress,
        )
    return felt.fitted(measured)


def _check_usage(
    plan_file: str | None,
    policy: str | None,
    recipe: str | None,
    cap: int | None,
    decides: bool,
) -> None:
    if recipe is not None and (plan_file is not None or policy is not None or cap is None):
        raise click.UsageError("--recipe goes with --cap, and without --plan or --policy")
    if plan_file is not None and (policy is not None or cap is not None or decides):
        raise click.UsageError(
            "--plan carries its own cap, code, margin, pins, coder and config; leave those options "
            "out, or use --policy with a new --cap"
        )
    if plan_file is None and cap is None:
        raise click.UsageError("give --plan, or --cap to plan for (and --policy to follow one)")


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

    report = report_packed(packed, output)
    if as_json:
        value = {**report.to_json(), "rounding_problems": _problems(packed, turned)}
        if turned is not None:
            value["recipe"] = turned.recipe.name
            value["knob"] = {turned.position.knob: turned.position.value}
        print_json({**value, "output": output, "loader": loader})
        return
    tables.print_report(report, every_tensor=False)
    click.echo()
    click.echo(f"{output}: {packed.account}")
    click.echo(packed.plan.limits.spell_code())
    click.echo(spell_quality(packed.plan))
    if packed.rounds > 1:
        click.echo(f"real sizes differed from the plan; planned again, {packed.rounds} rounds")
    if turned is not None:
        click.echo(f"{turned.recipe.name} with its knob at {turned.position}")
    for name, problem in _problems(packed, turned).items():
        click.echo(f"{name}: {problem}")
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
        click.echo("stepped down from the policy: " + "; ".join(changed))
    else:
        click.echo("every choice of the policy was kept")
