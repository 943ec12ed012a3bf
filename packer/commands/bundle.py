"""`packer bundle`: encoder and decoder of a plan's formats in one script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.commands.options.groups import with_options
from packer.commands.options.types import (
    EXISTING_FILE,
    JSON,
    WRITABLE,
    print_json,
    refuse_overwriting,
    say,
)

if TYPE_CHECKING:
    from packer.planning.plan import PackPlan
    from packer.shipping.bundle import Bundle


@click.command(short_help="Write encoder and decoder as one script.")
@click.option(
    "--plan",
    "plan_file",
    type=EXISTING_FILE,
    required=True,
    help="Read the plan whose formats the script must handle.",
)
@click.option(
    "-o",
    "--output",
    type=WRITABLE,
    default="bundle.py",
    show_default=True,
    help="Write the script to FILE.",
)
@with_options(JSON)
def bundle(plan_file: str, output: str, as_json: bool) -> None:
    """Write one script that encodes and decodes exactly the formats of a plan.

    The script does not import packer. A submission is run again, so the code that packs its weights
    counts as well; `packer plan --bundle` makes room for it. The script holds the plan's choices
    and the relative sizes of their steps, and adjusts one multiplier of all steps until artifact,
    code and script together just fit the plan's cap:

    \b
      python bundle.py WEIGHTS CURVATURE OUT [CAP]

    From a training script, call encode_weights(weights, curvature, cap_bytes, code_bytes) and
    read_weights(data), and read_curvatures(data) for the file of `packer calibrate`.
    """
    from packer.files import replacing
    from packer.planning.plan import read_plan
    from packer.shipping.bundle import make_bundle

    refuse_overwriting([plan_file], output)
    plan = read_plan(plan_file)
    built = make_bundle(plan.bundled)
    with replacing(output) as temporary:
        temporary.write_text(built.script, "utf-8")
    _show(built, plan, output, as_json)


def _show(built: Bundle, plan: PackPlan, output: str, as_json: bool) -> None:
    code = sum(file.size_bytes for file in plan.limits.code) + built.size_bytes
    room = plan.limits.cap_bytes - plan.limits.margin_bytes - code
    if as_json:
        sizes = {"decoder_bytes": built.decoder_bytes, "encoder_bytes": built.encoder_bytes}
        account = {"script_bytes": built.size_bytes, "code_bytes": code, "artifact_bytes": room}
        print_json({"output": output, **sizes, **account, "cap_bytes": plan.limits.cap_bytes})
        return
    say(
        f"{output}: {built.size_bytes:,} bytes, of which its decoder takes "
        f"{built.decoder_bytes:,} and its encoder {built.encoder_bytes:,}"
    )
    say(f"code {code:,} of {plan.limits.cap_bytes:,}, which leaves {room:,} for the artifact")
