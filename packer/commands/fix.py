"""`packer fix`: the cheapest way under the cap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.fix_folder import fix_submission, show_steps
from packer.commands.options import (
    CODE,
    CONFIG,
    EXISTING,
    JSON,
    MARGIN,
    MAX_MEMORY,
    TEMPLATE,
    cap_option,
    print_json,
    read_config,
    refuse_overwriting,
    say_notes,
    with_options,
)
from packer.errors import CapError, CheckpointError

if TYPE_CHECKING:
    from packer.account import Limits
    from packer.foreign_tensors import ForeignArtifact
    from packer.repack import Repacked
    from packer.repairs import Repair

CONTEST_CAP = 16_000_000


@click.command(short_help="An artifact that is over the cap, under it.")
@click.argument("source", type=EXISTING)
@click.option("-o", "--output", type=click.Path(), help="The new artifact or folder to write.")
@with_options(
    cap_option(required=False, help="Byte limit, code included; default: 16MB."), CODE, MARGIN
)
@click.option("--lossless", is_flag=True, help="Change no weight: re-encode the same codes only.")
@click.option(
    "--loader",
    type=click.Path(dir_okay=False),
    help="Write (and count) the loader, a Python file, too.",
)
@with_options(CONFIG, TEMPLATE, MAX_MEMORY, JSON)
def fix(
    source: str,
    output: str | None,
    cap: int | None,
    code: tuple[str, ...],
    margin: int,
    lossless: bool,
    loader: str | None,
    config: str | None,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Bring SOURCE, an artifact (.ptz) or a submission folder, under the cap at the least cost.

    \b
    packer fix final_model.int6.ptz --code train_gpt.py -o fixed.pack --loader loader.py
    packer fix records/my_run -o fixed_run

    First without loss: the same codes under our coder, bit-identical weights, checked by decoding;
    in a folder also packed code and a corrected submission.json. If that is not enough, tensors
    are stored more coarsely, those that lose least for the bytes they save. Without -o, says what
    it would do. SOURCE itself is never touched.
    """
    if Path(source).is_dir():
        if loader is not None or config is not None:
            raise click.UsageError("a folder gets its loader by itself; --config is for artifacts")
        fix_submission(
            source,
            output,
            cap or CONTEST_CAP,
            code,
            margin,
            lossless,
            template,
            max_memory,
            as_json,
        )
        return
    _fix_artifact(
        source, output, cap, code, margin, lossless, loader, config, template, max_memory, as_json
    )


def _fix_artifact(
    artifact: str,
    output: str | None,
    cap: int | None,
    code: tuple[str, ...],
    margin: int,
    lossless: bool,
    loader: str | None,
    config: str | None,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown
    from packer.repack import repack

    for written in (output, loader):
        refuse_overwriting([artifact, config, template, *code], written)
    limits = _limits(cap or CONTEST_CAP, code, margin, loader is not None)
    loaded = read_checkpoint(artifact, template=template, max_memory=max_memory)
    foreign = loaded.foreign
    if foreign is None:
        raise CheckpointError(f"{artifact}: is a checkpoint, not an artifact; use packer pack")
    say_notes(loaded.notes)
    say_notes([_spell_start(foreign, limits)])
    with shown("re-encoding") as progress:
        same = repack(
            foreign,
            cap_bytes=limits.cap_bytes,
            code_bytes=limits.code_bytes,
            metadata=read_config(config),
            progress=progress,
        )
    say_notes([_spell_lossless(foreign, same)])
    made = None
    if same.account.unused_bytes < margin:
        made = _repaired(foreign, same, limits, lossless)
    _write(output, loader, same.data if made is None else made.data)
    _show(foreign, same, made, output, as_json)


def _limits(cap: int, code: tuple[str, ...], margin: int, loader: bool) -> Limits:
    from packer.account import Limits, count_code
    from packer.ship import loader_source

    return Limits(cap, count_code(code), len(loader_source().encode()) if loader else 0, margin)


def _repaired(foreign: ForeignArtifact, same: Repacked, limits: Limits, lossless: bool) -> Repair:
    from packer.progress import shown
    from packer.repairs import repair

    if lossless:
        raise CapError(
            f"{foreign.source}: re-encoded without loss it takes {same.account}; nothing was "
            "written. Without --lossless, tensors would be stored more coarsely."
        )
    stored = {name: tensor.stored for name, tensor in foreign.tensors.items()}
    with shown("looking for bytes") as progress:
        return repair(same, stored, limits, progress)


def _write(output: str | None, loader: str | None, data: bytes) -> None:
    import contextlib

    from packer.files import replacing
    from packer.ship import loader_source

    contents = {output: data, loader: loader_source().encode()}
    with contextlib.ExitStack() as all_or_none:
        for path, content in contents.items():
            if path is not None:
                all_or_none.enter_context(replacing(path)).write_bytes(content)


def _spell_start(foreign: ForeignArtifact, limits: Limits) -> str:
    from packer.account import spell_rest

    total = limits.code_bytes + foreign.file_bytes
    return (
        f"code {limits.code_bytes:,} + artifact {foreign.file_bytes:,} = {total:,}"
        f"{spell_rest(limits.cap_bytes, limits.cap_bytes - total)}"
    )


def _spell_lossless(foreign: ForeignArtifact, same: Repacked) -> str:
    saved = foreign.file_bytes - len(same.data)
    fewer = f"{saved:,} fewer" if saved >= 0 else f"{-saved:,} more"
    return (
        f"the same codes re-encoded: {len(same.data):,} bytes, {fewer} "
        f"({100 * abs(saved) / foreign.file_bytes:.2f} %); all {len(foreign.tensors)} tensors "
        "decode bit-identical"
    )


def _show(
    foreign: ForeignArtifact,
    same: Repacked,
    made: Repair | None,
    output: str | None,
    as_json: bool,
) -> None:
    if as_json:
        print_json(_json(foreign, same, made, output))
        return
    if made is not None:
        show_steps(made)
    account = same.account if made is None else made.account
    click.echo(f"{output or 'not written (no -o)'}: {account}")
    if made is not None:
        click.echo(
            f"what it costs: packer eval {foreign.source} {output or 'FIXED.pack'} --data TEXT; "
            "with the checkpoint itself, packer pack CKPT --cap loses less"
        )


def _json(
    foreign: ForeignArtifact, same: Repacked, made: Repair | None, output: str | None
) -> dict[str, Any]:
    account = same.account if made is None else made.account
    return {
        "source": foreign.source,
        "layout": foreign.layout,
        "codec": foreign.codec,
        "output": output,
        "file_bytes": foreign.file_bytes,
        "lossless_bytes": len(same.data),
        "artifact_bytes": account.artifact_bytes,
        "saved_bytes": foreign.file_bytes - account.artifact_bytes,
        "code_bytes": account.code_bytes,
        "total_bytes": account.total_bytes,
        "cap_bytes": account.cap_bytes,
        "unused_bytes": account.unused_bytes,
        "lossless": made is None,
        "damage": 0.0 if made is None else made.damage,
        "steps": [] if made is None else [vars(step) for step in made.steps],
        "ties": dict(same.ties),
        "tensors": [
            {
                "name": name,
                "stored": foreign.tensors[name].stored,
                "format": str(foreign.tensors[name].quantized.format),
                "coder": encoded.coder,
                "raw_bytes": foreign.tensors[name].raw_bytes,
                "size_bytes": encoded.size_bytes,
            }
            for name, encoded in same.encoded.items()
        ],
    }
