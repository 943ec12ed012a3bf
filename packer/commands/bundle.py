"""`packer bundle`: encoder and decoder of a plan's formats in one script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.options.types import (
    EXISTING_FILE,
    JSON,
    WRITABLE,
    print_json,
    refuse_overwriting,
    say,
    with_options,
)

if TYPE_CHECKING:
    from packer.planning.plan import PackPlan
    from packer.shipping.bundle import Bundle


@click.command(short_help="Encoder and decoder in one script.")
@click.option("--plan", "plan_file", type=EXISTING_FILE, required=True, help="Whose formats.")
@click.option(
    "--inline",
    type=EXISTING_FILE,
    metavar="SCRIPT",
    help="Put it into a copy of this training script, as the dictionary `bundle`.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="With calibration on batches, in place of a file of curvature; a plan that counted it has "
    "it anyway.",
)
@click.option("-o", "--output", type=WRITABLE, default="bundle.py", show_default=True)
@with_options(JSON)
def bundle(plan_file: str, inline: str | None, calibrate: bool, output: str, as_json: bool) -> None:
    """Write one script that encodes and decodes just the formats of a plan, with no import of ours.

    A submission is run again, so the code that packs its weights counts as well; with
    `packer plan --bundle` a plan makes room for it. The script holds the plan's choices, their
    steps relative to each other, and turns the one multiplier of all steps until file, code and
    script together fill the plan's cap:

    \b
      python bundle.py WEIGHTS CURVATURE OUT [CAP]

    or, from a training script, encode_weights(weights, curvature, cap_bytes, code_bytes) and
    read_weights(data), with read_curvatures(data) for the file of `packer calibrate`; with --inline
    they are bundle["encode_weights"] and so on. With --calibrate there is
    calibrated(model, weights, batches, seconds) as well, which gives (curvature, tokens, seconds).
    """
    from packer.files import replacing
    from packer.planning.plan import read_plan
    from packer.shipping.bundle import make_bundle

    refuse_overwriting([plan_file, inline], output)
    plan = read_plan(plan_file)
    calibrate = calibrate or plan.limits.calibrate
    made = make_bundle(replace(plan.bundled, script=inline, calibrate=calibrate))
    with replacing(output) as temporary:
        temporary.write_text(made.script, "utf-8")
    _show(made, plan, inline, output, as_json)


def _show(made: Bundle, plan: PackPlan, inline: str | None, output: str, as_json: bool) -> None:
    inlined = None if inline is None else str(Path(inline).resolve())
    beside = sum(file.size_bytes for file in plan.limits.code if file.path != inlined)
    code = beside + made.size_bytes
    room = plan.limits.cap_bytes - plan.limits.margin_bytes - code
    if as_json:
        sizes = {"decoder_bytes": made.decoder_bytes, "encoder_bytes": made.encoder_bytes}
        account = {"script_bytes": made.size_bytes, "code_bytes": code, "artifact_bytes": room}
        print_json({"output": output, **sizes, **account, "cap_bytes": plan.limits.cap_bytes})
        return
    say(
        f"{output}: {made.size_bytes:,} bytes, of which its decoder takes "
        f"{made.decoder_bytes:,} and its encoder {made.encoder_bytes:,}"
    )
    say(f"code {code:,} of {plan.limits.cap_bytes:,}, which leaves {room:,} for the artifact")
