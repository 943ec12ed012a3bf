"""`packer fix` on a submission folder: writes a new folder, and leaves the old one unmodified."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.fix_artifact import (
    measured,
    read_original,
    repairs_json,
    scores_json,
    show_repairs,
)
from packer.commands.fix_scores import describe_scores
from packer.commands.options.types import print_json, say, say_notes
from packer.files import replacing_folder

if TYPE_CHECKING:
    from packer.commands.fix_artifact import Scores
    from packer.commands.options.fix import FixOptions
    from packer.fix.fix_folder import FixedFolder
    from packer.fix.fixable_folder import Folder
    from packer.fix.repair_options import RepairOption


def fix_submission(source: str, options: FixOptions) -> None:
    """Read, repair, measure, write and report. Raises PackerError."""
    from packer.fix.fix_folder import fix_folder
    from packer.fix.fixable_folder import read_folder
    from packer.progress import shown

    if options.loader is not None:
        raise click.UsageError("--loader is for artifacts; a folder always gets its loader")
    if options.output is not None:
        refuse_output(source, options.output)
    opening = options.opening
    folder = read_folder(
        Path(source), [*map(str, options.limits.code)], opening.template, opening.max_memory
    )
    say_notes(
        [*(folder.foreign.notes if folder.foreign else ()), _spell_start(folder, options.cap)]
    )
    original = read_original(folder.foreign, options.checkpoint) if folder.foreign else None
    bench = options.bench(str(folder.root / folder.artifact)) if folder.artifact else None
    if bench is not None:
        bench.check()
    scores: Scores | None = None

    def rank(repairs: list[RepairOption]) -> list[RepairOption]:
        nonlocal scores
        best, scores = measured(repairs, bench)
        return best

    with shown("fixing") as progress:
        fixed = fix_folder(
            folder,
            options.cap,
            options.limits.margin_bytes,
            lossless=options.lossless,
            original=original,
            rank=rank,
            progress=progress,
        )
    if options.output is not None:
        write_folder(folder, fixed, options.output)
    if options.as_json:
        print_json(_json(folder, fixed, scores, options.output))
    else:
        _show(fixed, scores, options)


def _spell_start(folder: Folder, cap: int) -> str:
    from packer.planning.account import describe_rest

    total = folder.code_bytes + folder.largest_model
    claimed = (folder.claims or {}).get("bytes_total")
    return (
        f"code {folder.code_bytes:,} + artifact {folder.largest_model:,} = {total:,}"
        f"{describe_rest(cap, cap - total)}"
        + ("" if claimed in (None, total) else f"; submission.json claims {claimed}")
    )


def refuse_output(source: str, output: str) -> None:
    """Raises UsageError: the output overlaps the source, or is not empty."""
    target, old = Path(output).resolve(), Path(source).resolve()
    if target == old or old in target.parents or target in old.parents:
        raise click.UsageError(f"{output} is, or lies in or around, {source}; name another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise click.UsageError(f"{output} exists already; name a new folder")


def write_folder(folder: Folder, fixed: FixedFolder, output: str) -> None:
    """Write the new folder, whole or not at all. Raises OutputError."""
    dropped = {(folder.root / name).resolve() for name in fixed.dropped}

    def left_out(where: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(where) / name).resolve() in dropped]

    with replacing_folder(output) as inside:
        shutil.copytree(folder.root, inside, ignore=left_out, dirs_exist_ok=True)
        for name, content in fixed.files.items():
            (inside / name).write_bytes(content)


def _show(fixed: FixedFolder, scores: Scores | None, options: FixOptions) -> None:
    from packer.planning.account import describe_rest

    show_repairs(fixed.options)
    for key, (old, new) in fixed.corrected.items():
        say(f"submission.json: {key} {old} -> {new}")
    for number, line in enumerate(fixed.to_do, 1):
        say(f"to do {number}: {line}")
    if scores is not None:
        reference = options.checkpoint or "the artifact as submitted"
        say(describe_scores(scores, fixed.options[0].name, reference))
    where = f"{options.output}{os.sep}" if options.output else "not written (no -o)"
    left = fixed.cap_bytes - fixed.total_bytes
    say(
        f"{where}: {fixed.what}: code {fixed.code_bytes:,} + artifact {fixed.artifact_bytes:,} = "
        f"{fixed.total_bytes:,}{describe_rest(fixed.cap_bytes, left)}"
    )


def _json(
    folder: Folder, fixed: FixedFolder, scores: Scores | None, output: str | None
) -> dict[str, Any]:
    return {
        "source": str(folder.root),
        "artifact": folder.artifact,
        "output": output,
        "was_code_bytes": folder.code_bytes,
        "was_artifact_bytes": folder.artifact_bytes,
        "what": fixed.what,
        "code_bytes": fixed.code_bytes,
        "artifact_bytes": fixed.artifact_bytes,
        "total_bytes": fixed.total_bytes,
        "cap_bytes": fixed.cap_bytes,
        "unused_bytes": fixed.cap_bytes - fixed.total_bytes,
        "lossless": not fixed.options,
        "repairs": repairs_json(fixed.options),
        "steps": [vars(step) for step in fixed.options[0].steps] if fixed.options else [],
        "scores": scores_json(scores),
        "corrected": {key: list(pair) for key, pair in fixed.corrected.items()},
        "to_do": list(fixed.to_do),
    }
