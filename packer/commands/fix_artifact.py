"""`packer fix` on one artifact: re-encode, repair or plan anew, whichever loses least."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packer.commands.fix_scores import Bench, describe_scores
from packer.commands.options.types import (
    print_json,
    read_config,
    refuse_overwriting,
    say,
    say_notes,
)
from packer.errors import CapError

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.commands.options.fix import FixOptions
    from packer.evaluation import Evaluated
    from packer.fix.repack import Repacked
    from packer.fix.repair_options import RepairOption
    from packer.fix.repairs import Step
    from packer.foreign.tensors import ForeignArtifact
    from packer.planning.account import Limits

Scores = Mapping[str, "Evaluated"]


def fix_artifact(artifact: str, options: FixOptions) -> None:
    """Read, repair, measure, write and report. Raises PackerError."""
    from packer.checkpoint.checkpoint import read_checkpoint
    from packer.fix.own_layout import refuse_unwritable
    from packer.fix.repack import repack
    from packer.fix.repair_options import repair_options
    from packer.progress import shown

    inputs = [artifact, *options.scoring.built.inputs, options.checkpoint, *options.limits.code]
    for written in (options.output, options.loader):
        refuse_overwriting(inputs, written)
    limits = options.count()
    loaded = read_checkpoint(artifact, **options.opening.arguments, artifact=True)
    foreign = loaded.foreign
    assert foreign is not None
    if options.no_recode:
        refuse_unwritable(Path(artifact), foreign, options.opening.max_memory)
    say_notes(loaded.notes)
    original = read_original(foreign, options.checkpoint)
    bench = options.bench(artifact)
    if bench is not None:
        bench.check()
    say_notes([_spell_start(foreign, limits)])
    metadata = read_config(options.config)
    with shown("re-encoding") as progress:
        same = repack(
            foreign,
            cap_bytes=limits.cap_bytes,
            code_bytes=limits.code_bytes,
            metadata=metadata,
            progress=progress,
        )
    say_notes([_spell_lossless(foreign, same)])
    repairs: list[RepairOption] = []
    scores: Scores | None = None
    if options.no_recode:
        repairs = [_in_own_layout(foreign, same, limits, options)]
        repairs, scores = measured(repairs, bench)
    elif same.account.unused_bytes < limits.margin_bytes:
        if options.lossless:
            raise CapError(
                f"{foreign.source}: re-encoded without loss it takes {same.account}; nothing was "
                "written. Leave out --lossless to store tensors more coarsely."
            )
        with shown("looking for bytes") as progress:
            repairs = repair_options(limits, foreign, same, original, metadata, progress)
        repairs, scores = measured(repairs, bench)
    data = repairs[0].data if repairs else same.data
    _refuse_larger(foreign, data)
    _write(options.output, options.loader, data)
    if bench is not None and scores is None:
        scores = bench.run({"re-encoded": data})
    _show(foreign, same, repairs, scores, options)


def _refuse_larger(foreign: ForeignArtifact, data: bytes) -> None:
    """Raises CapError: the new artifact is larger than the old one."""
    more = len(data) - foreign.file_bytes
    if more <= 0:
        return
    floats = [name for name, one in foreign.tensors.items() if one.is_inflated]
    why = (
        f" ({len(floats)} tensors, such as {floats[0]}, have codes that none of our formats "
        "can hold, and are kept as floats)"
        if floats
        else ""
    )
    raise CapError(
        f"{foreign.source}: re-encoded it would be {len(data):,} bytes, {more:,} more than its "
        f"{foreign.file_bytes:,}{why}; nothing was written. Submit it unchanged, or plan "
        "its weights anew: packer pack FILE --cap N"
    )


def _in_own_layout(
    foreign: ForeignArtifact, same: Repacked, limits: Limits, options: FixOptions
) -> RepairOption:
    """The artifact as its author writes it, with coarser codes."""
    from packer.fix.own_layout import requantize
    from packer.fix.repair_options import RepairOption
    from packer.planning.account import Account
    from packer.progress import shown

    allowed = limits.cap_bytes - limits.code_bytes - limits.margin_bytes
    with shown("looking for bytes") as progress:
        requantized = requantize(
            Path(foreign.source), foreign, same, allowed, options.opening.max_memory, progress
        )
    account = Account(limits.cap_bytes, limits.code_bytes, 0, 0, len(requantized.data))
    return RepairOption(
        "its own layout", requantized.data, account, requantized.damage, requantized.steps
    )


def read_original(foreign: ForeignArtifact, checkpoint: str | None) -> Checkpoint | None:
    """The weights that the artifact was made from. Raises CheckpointError: they do not fit it."""
    from packer.checkpoint.checkpoint import read_checkpoint
    from packer.fix.repair_options import original_of

    return None if checkpoint is None else original_of(foreign, read_checkpoint(checkpoint))


def measured(
    repairs: Sequence[RepairOption], bench: Bench | None
) -> tuple[list[RepairOption], Scores | None]:
    """(the repair options by measured KL, their scores); unchanged and None without data."""
    from dataclasses import replace

    from packer.fix.repair_options import ranked

    if bench is None:
        return list(repairs), None
    scores = bench.run({repair.name: repair.data for repair in repairs})
    known = []
    for repair in repairs:
        divergence = scores[repair.name].divergence
        known.append(
            replace(repair, kl=None if divergence is None else divergence.kl_bits_per_byte)
        )
    return ranked(known), scores


def _write(output: str | None, loader: str | None, data: bytes) -> None:
    from packer.files import replacing
    from packer.shipping.loader import RE_ENCODED, loader_source

    contents = {} if output is None else {output: data}
    if loader is not None:
        contents[loader] = loader_source(RE_ENCODED).encode()
    with contextlib.ExitStack() as all_or_none:
        for path, content in contents.items():
            all_or_none.enter_context(replacing(path)).write_bytes(content)


def _spell_start(foreign: ForeignArtifact, limits: Limits) -> str:
    from packer.planning.account import describe_rest

    total = limits.code_bytes + foreign.file_bytes
    return (
        f"code {limits.code_bytes:,} + artifact {foreign.file_bytes:,} = {total:,}"
        f"{describe_rest(limits.cap_bytes, limits.cap_bytes - total)}"
    )


def _spell_lossless(foreign: ForeignArtifact, same: Repacked) -> str:
    saved = foreign.file_bytes - len(same.data)
    fewer = f"{saved:,} fewer" if saved >= 0 else f"{-saved:,} more"
    return (
        f"the same codes re-encoded: {len(same.data):,} bytes, {fewer} "
        f"({100 * abs(saved) / foreign.file_bytes:.2f} %); all {len(foreign.tensors)} tensors "
        "decode bit-identical to what the artifact's codes and scales give"
    )


def _show(
    foreign: ForeignArtifact,
    same: Repacked,
    repairs: Sequence[RepairOption],
    scores: Scores | None,
    options: FixOptions,
) -> None:
    if options.as_json:
        print_json(_json(foreign, same, repairs, scores, options))
        return
    show_repairs(repairs)
    account = repairs[0].account if repairs else same.account
    say(f"{options.output or 'not written (no -o)'}: {account}")
    if scores is not None:
        name = repairs[0].name if repairs else "re-encoded"
        say(describe_scores(scores, name, options.checkpoint or "the artifact as submitted"))
    elif repairs:
        hint = (
            ""
            if options.checkpoint or options.no_recode
            else "; with --checkpoint CKPT, less may be lost"
        )
        say(f"to measure what it costs, add --data TEXT --tokenizer MODEL{hint}")


def show_repairs(repairs: Sequence[RepairOption]) -> None:
    """The repair options, the chosen one first, and its steps."""
    from packer.reports import tables

    if len(repairs) > 1:
        rows = [
            (repair.name, f"{repair.account.total_bytes:,}", f"{repair.damage:.4g}", _kl(repair))
            for repair in repairs
        ]
        columns = ("option, chosen first", ">total bytes", ">weight error", ">KL, bits/byte")
        tables.print_table(columns, rows)
        say("")
    if repairs and repairs[0].steps:
        show_steps(repairs[0].steps)


def _kl(repair: RepairOption) -> str:
    return "" if repair.kl is None else f"{repair.kl:.6f}"


def show_steps(steps: Sequence[Step]) -> None:
    """Print what each tensor's repair saves and costs, the cheapest byte first."""
    from packer.reports import tables

    saved, damage, rows = 0, 0.0, []
    for step in steps:
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
    tables.print_table((*columns, ">error so far"), rows)
    say("")


def repairs_json(repairs: Sequence[RepairOption]) -> list[dict[str, Any]]:
    """Every repair option, the chosen one first."""
    return [
        {
            "name": repair.name,
            "total_bytes": repair.account.total_bytes,
            "damage": repair.damage,
            "kl_bits_per_byte": repair.kl,
        }
        for repair in repairs
    ]


def scores_json(scores: Scores | None) -> dict[str, Any] | None:
    return None if scores is None else {name: one.to_json() for name, one in scores.items()}


def _json(
    foreign: ForeignArtifact,
    same: Repacked,
    repairs: Sequence[RepairOption],
    scores: Scores | None,
    options: FixOptions,
) -> dict[str, Any]:
    account = repairs[0].account if repairs else same.account
    return {
        "source": foreign.source,
        "layout": foreign.layout,
        "codec": foreign.codec,
        "output": options.output,
        "file_bytes": foreign.file_bytes,
        "lossless_bytes": len(same.data),
        "artifact_bytes": account.artifact_bytes,
        "saved_bytes": foreign.file_bytes - account.artifact_bytes,
        "code_bytes": account.code_bytes,
        "total_bytes": account.total_bytes,
        "cap_bytes": account.cap_bytes,
        "unused_bytes": account.unused_bytes,
        "lossless": not repairs,
        "damage": repairs[0].damage if repairs else 0.0,
        "repairs": repairs_json(repairs),
        "steps": [vars(step) for step in repairs[0].steps] if repairs else [],
        "scores": scores_json(scores),
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
