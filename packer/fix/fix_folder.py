"""Brings a submission folder under the cap: the contents of the repaired folder.

Repairs are tried in the order of the work they leave to the author: correct the claim, pack the
code, re-encode the artifact (the code must then read it with the loader), both, and finally change
the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packer.checkpoint.checkpoint import Checkpoint
from packer.code.pack_script import SourceFile, pack_code
from packer.code.self_extracting import ENTRY
from packer.code.syntax import called_name, calls_in, parse_if_possible
from packer.errors import CapError, SubmissionError
from packer.fix.fixable_folder import Folder
from packer.fix.repack import Repacked, assembled, repack
from packer.fix.repair_options import RepairOption, repair_options
from packer.fix.true_claims import TrueSizes, corrected_claims
from packer.planning.account import CodeFile, Limits
from packer.planning.measure import Progress, ignore_progress
from packer.shipping.loader import RE_ENCODED, loader_source
from packer.submission.claimed_seeds import seed_entries
from packer.submission.claims import CLAIMS

EDIT_BYTES = 512  # left free for the edit that makes the code use the loader
Rank = Callable[[list[RepairOption]], list[RepairOption]]


@dataclass(frozen=True)
class FixedFolder:
    """files: name -> new content; all other files are copied unchanged. dropped: not copied.

    what: the repair in words. code_bytes, artifact_bytes: as counted. to_do: what is left to the
    author. corrected: claim -> (old value, new value). options: the lossy repair options if one was
    needed, the chosen one first. artifact: name of the new artifact; None if it is unchanged.
    """

    files: Mapping[str, bytes]
    dropped: tuple[str, ...]
    what: str
    code_bytes: int
    artifact_bytes: int
    cap_bytes: int
    to_do: tuple[str, ...]
    corrected: Mapping[str, tuple[Any, Any]]
    options: tuple[RepairOption, ...] = ()
    artifact: str | None = None

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes


def fix_folder(
    folder: Folder,
    cap_bytes: int,
    margin_bytes: int = 0,
    *,
    lossless: bool = False,
    original: Checkpoint | None = None,
    rank: Rank = list,
    progress: Progress = ignore_progress,
) -> FixedFolder:
    """The smallest repair that brings a folder under the cap.

    original: the checkpoint; planning it anew is one more repair option. rank: orders the lossy
    options, the best first.
    Raises CapError: no repair suffices; with `lossless`, none that keeps the weights does.
    """
    model, allowed = folder.largest_model, cap_bytes - margin_bytes
    if folder.code_bytes + model <= allowed:
        return _fixed(folder, cap_bytes, "it fits as it is", {}, folder.code_bytes)
    packed = _packed(folder)
    if packed.size_bytes + model <= allowed:
        return _fixed(
            folder,
            cap_bytes,
            f"code packed, {folder.code_bytes - packed.size_bytes:,} bytes fewer; the artifact is "
            "untouched",
            packed.files,
            packed.size_bytes,
            dropped=packed.dropped,
        )
    if folder.foreign is None:
        raise CapError(_why_not(folder, packed.size_bytes + model - allowed))
    same = repack(folder.foreign, progress=progress)
    return _re_encoded(folder, same, cap_bytes, allowed, lossless, original, rank, progress)


def _why_not(folder: Folder, over: int) -> str:
    start = f"{folder.root}: even with packed code it is {over:,} bytes over, so the artifact has"
    anew = "pack the checkpoint anew: packer pack CKPT --cap N"
    if folder.artifact is not None:
        return f"{start} to change, and {folder.artifact} is ours; nothing was written. {anew}"
    largest = max(folder.others, key=lambda name: folder.others[name])
    return (
        f"{start} to change, and it is not in the folder; nothing was written. Put the artifact of "
        f"{largest} ({folder.others[largest]:,} bytes) into the folder and fix it again: the same "
        f"codes take fewer bytes with our coder. Or {anew}"
    )


@dataclass(frozen=True)
class PackedFiles:
    """files: name -> content. dropped: names of files that are now packed into another."""

    files: Mapping[str, bytes]
    dropped: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.files.values()))


def _packed(folder: Folder, loader: SourceFile | None = None) -> PackedFiles:
    """All code as one script; files that are run by name are packed one by one."""
    added = () if loader is None else (loader,)
    if not folder.executed:
        text = pack_code((*folder.code, *added)).text
        names = tuple(_inside(file) for file in folder.code)
        return PackedFiles({names[0]: text.encode()}, names[1:])
    alone = [replace(file, module=ENTRY) for file in folder.code]
    files = {_inside(file): pack_code([file]).text.encode() for file in alone}
    return PackedFiles({**files, **{_beside(folder, one): one.text.encode() for one in added}}, ())


def _inside(file: SourceFile) -> str:
    """A code file's path inside the folder."""
    path = Path(file.path)
    return path.name if path.is_absolute() else path.as_posix()


def _beside(folder: Folder, file: SourceFile) -> str:
    """The path of a new file in the folder of the entry."""
    return Path(_inside(folder.code[0])).with_name(file.path).as_posix()


def _re_encoded(
    folder: Folder,
    same: Repacked,
    cap_bytes: int,
    allowed: int,
    lossless: bool,
    original: Checkpoint | None,
    rank: Rank,
    progress: Progress,
) -> FixedFolder:
    """The folder with its artifact re-encoded and, if that is not enough, its code packed too."""
    assert folder.foreign is not None and folder.artifact is not None
    text = loader_source(RE_ENCODED)
    loader = SourceFile("loader.py", "loader", text, len(text.encode()))
    _refuse_own_loader(folder, loader)
    beside = folder.code_bytes + loader.size_bytes
    packed = _packed(folder, loader)
    packs = beside + len(same.data) > allowed and packed.size_bytes + EDIT_BYTES < beside
    code_bytes = packed.size_bytes + EDIT_BYTES if packs else beside
    options: list[RepairOption] = []
    what = f"the same codes re-encoded, {folder.artifact_bytes - len(same.data):,} bytes fewer"
    if code_bytes + len(same.data) > allowed:
        if lossless:
            over = code_bytes + len(same.data) - allowed
            raise CapError(
                f"{folder.root}: without loss, code {code_bytes:,} and artifact "
                f"{len(same.data):,} are {over:,} bytes too many; nothing was written. Without "
                "--lossless, tensors would be stored more coarsely"
            )
        limits = Limits(cap_bytes, (CodeFile("code", code_bytes),), 0, cap_bytes - allowed)
        options = rank(repair_options(limits, folder.foreign, same, original, progress=progress))
        steps = len(options[0].steps)
        more = f"and {steps} tensors stored more coarsely"
        what = f"{what}, {more}" if steps else "the checkpoint planned anew"
    data, _ = (
        (options[0].data, None)
        if options
        else assembled(same.header, same.encoded, cap_bytes, code_bytes)
    )
    name = Path(folder.artifact).with_suffix(".pack").as_posix()
    code = packed if packs else PackedFiles({}, ())
    fixed = _fixed(
        folder,
        cap_bytes,
        what + ("; code packed with its loader" if packs else ""),
        {name: data, _beside(folder, loader): text.encode(), **code.files},
        packed.size_bytes if packs else beside,
        len(data),
        dropped=(folder.artifact, *code.dropped),
        to_do=_to_do(folder, name, packs, bool(options)),
    )
    return replace(fixed, options=tuple(options), artifact=name)


def _refuse_own_loader(folder: Folder, loader: SourceFile) -> None:
    """Raises SubmissionError: the folder has another file where the loader goes."""
    path = folder.root / _beside(folder, loader)
    if path.exists() and path.read_bytes() != loader.text.encode():
        raise SubmissionError(
            f"{path}: has {path.stat().st_size:,} bytes and differs from the loader that has to be "
            "written there; nothing was written. Rename it and what imports it, and fix the folder "
            "again"
        )


def _to_do(folder: Folder, name: str, packs: bool, lossy: bool) -> tuple[str, ...]:
    entry = Path(folder.code[0].path).name
    lines = decompressing_lines(folder.code[0].text)
    where = f" (line {', '.join(map(str, lines))})" if lines else ""
    steps = [
        f"in {entry}{where}, replace decompression and dequantization by: "
        f"from loader import read_weights; state_dict = read_weights(open('{name}', 'rb').read())"
    ]
    if packs:
        names = " ".join(str(folder.root / _inside(file)) for file in folder.code)
        steps[0] = steps[0].replace(f"in {entry}", f"in {folder.root / _inside(folder.code[0])}", 1)
        steps.append(
            f"then pack it again: packer code {names} loader.py -o {entry}; the packed code here "
            "is without that edit, for which the cap has room. Then claim its new size"
        )
    else:
        steps.append("the edit changes bytes_code and the total by some bytes: claim the new sizes")
    if lossy:
        steps.append("the weights changed: measure val_bpb and val_loss again (packer eval)")
    if folder.others:
        steps.append(
            f"the totals are of this artifact; fix those of {', '.join(folder.others)} alike, and "
            "claim the largest"
        )
    return tuple(steps)


def decompressing_lines(source: str) -> list[int]:
    """Numbers of the lines that call something named decompress; none if it does not parse."""
    tree = parse_if_possible(source)
    calls = () if tree is None else calls_in(tree)
    named = (one for one in calls if called_name(one).lstrip("_").startswith("decompress"))
    return sorted({one.lineno for one in named})


def _fixed(
    folder: Folder,
    cap_bytes: int,
    what: str,
    files: Mapping[str, bytes],
    code_bytes: int,
    new_bytes: int | None = None,
    *,
    dropped: tuple[str, ...] = (),
    to_do: tuple[str, ...] = (),
) -> FixedFolder:
    """new_bytes: size of a new artifact; None if all models are unchanged."""
    here = () if folder.artifact is None else (folder.artifact_bytes,)
    before = (*here, *folder.others.values())
    models = before if new_bytes is None else (new_bytes,)
    seeds = {seed: (size, size) for seed, size in folder.seeds.items()}
    if new_bytes is not None and folder.own_seed in seeds:
        seeds[folder.own_seed] = (new_bytes, folder.artifact_bytes)
    sizes = TrueSizes(code_bytes, models, before, seeds)
    contents = dict(files)
    changed: Mapping[str, tuple[Any, Any]] = {}
    if folder.claims is not None:
        claims, changed = corrected_claims(folder.claims, sizes, cap_bytes)
        contents[CLAIMS] = (json.dumps(claims, indent=2, ensure_ascii=False) + "\n").encode()
    model = folder.largest_model if new_bytes is None else new_bytes
    is_unchanged = new_bytes is None and code_bytes == folder.code_bytes
    unknown = seed_entries(folder.claims or {}).keys() - seeds.keys()
    if len(before) > 1 and not is_unchanged and unknown:
        by_hand = (
            "the entries of single seeds in submission.json are unchanged: correct their sizes"
        )
        to_do = (*to_do, by_hand)
    return FixedFolder(contents, dropped, what, code_bytes, model, cap_bytes, to_do, changed)
