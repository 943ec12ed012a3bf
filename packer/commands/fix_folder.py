"""`packer fix` on a submission folder: a new folder beside it, the old one untouched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options import print_json, say_notes
from packer.errors import OutputError

if TYPE_CHECKING:
    from packer.folder_fix import FixedFolder, Folder
    from packer.repairs import Repair


def fix_submission(
    source: str,
    output: str | None,
    cap: int,
    code: Sequence[str],
    margin: int,
    lossless: bool,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Reads, repairs, writes and says so. Raises PackerError."""
    from packer.account import spell_rest
    from packer.folder_fix import fix_folder, read_folder
    from packer.progress import shown

    if output is not None:
        _refuse_output(source, output)
    folder = read_folder(Path(source), code, template, max_memory)
    say_notes(folder.foreign.notes)
    total = folder.code_bytes + folder.foreign.file_bytes
    claimed = (folder.claims or {}).get("bytes_total")
    say_notes(
        [
            f"code {folder.code_bytes:,} + artifact {folder.foreign.file_bytes:,} = {total:,}"
            f"{spell_rest(cap, cap - total)}"
            + ("" if claimed in (None, total) else f"; submission.json claims {claimed}")
        ]
    )
    with shown("fixing") as progress:
        fixed = fix_folder(folder, cap, margin, lossless=lossless, progress=progress)
    if output is not None:
        write_folder(folder, fixed, output)
    _show(folder, fixed, output, as_json)


def _refuse_output(source: str, output: str) -> None:
    """Raises UsageError: inside the source, or something is there."""
    target, old = Path(output).resolve(), Path(source).resolve()
    if target == old or old in target.parents or target in old.parents:
        raise click.UsageError(f"{output} is, or lies in or around, {source}; name another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise click.UsageError(f"{output} is there already; name a folder that is not")


def write_folder(folder: Folder, fixed: FixedFolder, output: str) -> None:
    """The new folder, whole or not at all. Raises OutputError."""
    target = Path(output).resolve()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:32]}.") as made:
            inside = Path(made) / "folder"
            left_out = shutil.ignore_patterns(*fixed.dropped) if fixed.dropped else None
            shutil.copytree(folder.root, inside, ignore=left_out)
            for name, content in fixed.files.items():
                (inside / name).write_bytes(content)
            if target.exists():
                target.rmdir()
            inside.rename(target)
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{output}: {reason}; nothing was written. Name another folder") from None


def _show(folder: Folder, fixed: FixedFolder, output: str | None, as_json: bool) -> None:
    if as_json:
        print_json(_json(folder, fixed, output))
        return
    from packer.account import spell_rest

    if fixed.made is not None:
        show_steps(fixed.made)
    for key, (old, new) in fixed.corrected.items():
        click.echo(f"submission.json: {key} {old} -> {new}")
    for number, line in enumerate(fixed.to_do, 1):
        click.echo(f"to do {number}: {line}")
    where = f"{output}{os.sep}" if output else "not written (no -o)"
    click.echo(
        f"{where}: {fixed.what}: code {fixed.code_bytes:,} + artifact {fixed.artifact_bytes:,} = "
        f"{fixed.total_bytes:,}{spell_rest(fixed.cap_bytes, fixed.cap_bytes - fixed.total_bytes)}"
    )


def _json(folder: Folder, fixed: FixedFolder, output: str | None) -> dict[str, Any]:
    return {
        "source": str(folder.root),
        "artifact": folder.artifact.name,
        "output": output,
        "was_code_bytes": folder.code_bytes,
        "was_artifact_bytes": folder.foreign.file_bytes,
        "what": fixed.what,
        "code_bytes": fixed.code_bytes,
        "artifact_bytes": fixed.artifact_bytes,
        "total_bytes": fixed.total_bytes,
        "cap_bytes": fixed.cap_bytes,
        "unused_bytes": fixed.cap_bytes - fixed.total_bytes,
        "lossless": fixed.made is None,
        "steps": [] if fixed.made is None else [vars(step) for step in fixed.made.steps],
        "corrected": {key: list(pair) for key, pair in fixed.corrected.items()},
        "to_do": list(fixed.to_do),
    }


def show_steps(made: Repair) -> None:
    from packer import tables

    saved, damage, rows = 0, 0.0, []
    for step in made.steps:
        saved += step.saved_bytes
        damage += step.damage
        rows.append(
            (
                step.tensor,
                step.before,
                step.after,
                f"{step.saved_bytes:,}",
                f"{step.damage:.3g}",
                f"{saved:,}",
                f"{damage:.3g}",
            )
        )
    columns = ("tensor", "was", "becomes", ">bytes saved", ">weight error", ">saved so far")
    tables.console().print(tables.table((*columns, ">error so far"), rows))
    click.echo()
