"""A submission folder that is over the cap, as the contents of a new one that is not.

Repairs are tried from the one that asks least of the author: correct the claim, pack the code,
re-encode the artifact (the code must then read it with the loader), both, and last change weights.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packer.account import CodeFile, Limits
from packer.checkpoint import read_checkpoint
from packer.code_packing import SourceFile, pack_code, read_sources
from packer.errors import CapError, CheckpointError, SubmissionError
from packer.foreign_tensors import ForeignArtifact
from packer.measuring import Progress, ignore_progress
from packer.repack import Repacked, assembled, repack
from packer.repairs import Repair, repair
from packer.ship import loader_source

ENTRY_NAMES = ("train_gpt.py", "train_gpt_mlx.py", "train.py")
NO_ARTIFACTS = (".py", ".md", ".json", ".log", ".txt", ".out", ".csv", ".sh", ".toml", ".yaml")
CLAIMS = "submission.json"
EDIT_BYTES = 512  # left free for the edit that makes the code use the loader
TOTAL_KEYS = ("bytes_total", "total_bytes")
CODE_KEYS = ("bytes_code", "code_bytes")
EITHER_KEYS = ("artifact_bytes", "artifact_size_bytes", "artifact_bytes_max", "artifact_bytes_mean")


@dataclass(frozen=True)
class Folder:
    """What counts in a submission folder. code: the entry first. claims: None without a file."""

    root: Path
    artifact: Path
    foreign: ForeignArtifact
    code: tuple[SourceFile, ...]
    claims: Mapping[str, Any] | None

    @property
    def code_bytes(self) -> int:
        return sum(file.size_bytes for file in self.code)


@dataclass(frozen=True)
class FixedFolder:
    """files: name -> new content; all other files are copied as they are. dropped: not copied.

    what: the repair in words. code_bytes, artifact_bytes: as counted. to_do: what is left to the
    author. corrected: claim -> (old value, new value). made: the lossy repair, if one was needed.
    """

    files: Mapping[str, bytes]
    dropped: tuple[str, ...]
    what: str
    code_bytes: int
    artifact_bytes: int
    cap_bytes: int
    to_do: tuple[str, ...]
    corrected: Mapping[str, tuple[Any, Any]]
    made: Repair | None = None

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes


def read_folder(
    root: Path,
    code: Sequence[str] = (),
    template: str | None = None,
    max_memory: int | None = None,
) -> Folder:
    """The artifact, told by its content, the code that counts, and the claims.

    code: the files that count, the entry first; without them train_gpt.py, or the only Python
    file. Raises SubmissionError: no artifact or several, no code. CheckpointError: a damaged one.
    """
    files = sorted(path for path in root.iterdir() if path.is_file() and path.name[0] != ".")
    likely = [path for path in files if path.suffix.lower() not in NO_ARTIFACTS]
    read = [(path, _artifact(path, template, max_memory)) for path in likely]
    found = [(path, foreign) for path, foreign in read if foreign is not None]
    if len(found) != 1:
        raise SubmissionError(
            f"{root}: holds {len(found)} artifacts ({', '.join(path.name for path in likely)} were "
            "looked at); name the one to fix instead of the folder, or leave one there"
        )
    python = [path for path in files if path.suffix == ".py"]
    entry = next((path for name in ENTRY_NAMES for path in python if path.name == name), None)
    named = [Path(path) for path in code] or ([entry] if entry else python)
    if not named or (not code and entry is None and len(python) > 1):
        raise SubmissionError(
            f"{root}: {len(python)} Python files and none is {ENTRY_NAMES[0]}; name those that "
            "count with --code, the one that is run first"
        )
    return Folder(root, *found[0], read_sources(named), _claims(root / CLAIMS))


def _artifact(path: Path, template: str | None, max_memory: int | None) -> ForeignArtifact | None:
    """The artifact in a file; a file of another kind is none, unless it is called one."""
    try:
        return read_checkpoint(path, template=template, max_memory=max_memory).foreign
    except CheckpointError:
        if path.suffix.lower() == ".ptz":
            raise
        return None


def _claims(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SubmissionError(f"{path}: is not JSON ({error}); correct it by hand first") from None
    if not isinstance(value, dict):
        raise SubmissionError(f"{path}: is no object; correct it by hand first")
    return value


def fix_folder(
    folder: Folder,
    cap_bytes: int,
    margin_bytes: int = 0,
    *,
    lossless: bool = False,
    progress: Progress = ignore_progress,
) -> FixedFolder:
    """The least that brings a folder under the cap.

    Raises CapError: nothing does; with `lossless`, nothing that leaves the weights alone does.
    """
    foreign, allowed = folder.foreign, cap_bytes - margin_bytes
    raw = folder.code_bytes
    if raw + foreign.file_bytes <= allowed:
        return _fixed(folder, cap_bytes, "it fits as it is", {}, raw, foreign.file_bytes)
    packed = pack_code(folder.code)
    if packed.packed_bytes + foreign.file_bytes <= allowed:
        return _fixed(
            folder,
            cap_bytes,
            f"code packed, {packed.saved_bytes:,} bytes fewer; the artifact is untouched",
            {Path(folder.code[0].path).name: packed.text.encode()},
            packed.packed_bytes,
            foreign.file_bytes,
            dropped=tuple(Path(file.path).name for file in folder.code[1:]),
        )
    same = repack(foreign, progress=progress)
    return _re_encoded(folder, same, cap_bytes, allowed, lossless, progress)


def _re_encoded(
    folder: Folder,
    same: Repacked,
    cap_bytes: int,
    allowed: int,
    lossless: bool,
    progress: Progress,
) -> FixedFolder:
    """The folder with its artifact in our coder and, where that is not enough, packed code too."""
    text = loader_source()
    loader = SourceFile("loader.py", "loader", text, len(text.encode()))
    beside = folder.code_bytes + loader.size_bytes
    inside = pack_code((*folder.code, loader)).packed_bytes + EDIT_BYTES
    packs = beside + len(same.data) > allowed and inside < beside
    code_bytes = inside if packs else beside
    made = None
    what = f"the same codes re-encoded, {folder.foreign.file_bytes - len(same.data):,} bytes fewer"
    if code_bytes + len(same.data) > allowed:
        if lossless:
            over = code_bytes + len(same.data) - allowed
            raise CapError(
                f"{folder.root}: without loss, code {code_bytes:,} and artifact "
                f"{len(same.data):,} are {over:,} bytes too many; nothing was written. Without "
                "--lossless, tensors would be stored more coarsely"
            )
        limits = Limits(cap_bytes, (CodeFile("code", code_bytes),), 0, cap_bytes - allowed)
        stored = {name: tensor.stored for name, tensor in folder.foreign.tensors.items()}
        made = repair(same, stored, limits, progress)
        what += f", and {len(made.steps)} tensors stored more coarsely"
    data, _ = (
        assembled(same.header, same.encoded, cap_bytes, code_bytes)
        if made is None
        else (made.data, None)
    )
    name = f"{folder.artifact.stem}.pack"
    to_do = _to_do(folder, name, packs, made is not None)
    fixed = _fixed(
        folder,
        cap_bytes,
        what + ("; code packed with its loader" if packs else ""),
        {name: data, loader.path: text.encode()},
        code_bytes,
        len(data),
        dropped=(folder.artifact.name,),
        to_do=to_do,
    )
    return replace(fixed, made=made)


def _to_do(folder: Folder, name: str, packs: bool, lossy: bool) -> tuple[str, ...]:
    entry = Path(folder.code[0].path).name
    lines = decompressing_lines(folder.code[0].text)
    where = f" (line {', '.join(map(str, lines))})" if lines else ""
    told = [
        f"in {entry}{where}, replace decompression and dequantization by: "
        f"from loader import read_weights; state_dict = read_weights(open('{name}', 'rb').read())"
    ]
    if packs:
        names = " ".join(Path(file.path).name for file in folder.code)
        told.append(
            f"then count it packed: packer code {names} loader.py -o {entry}; until then the "
            "folder is over the cap"
        )
    if lossy:
        told.append("the weights changed: measure val_bpb and val_loss again (packer eval)")
    return tuple(told)


def decompressing_lines(source: str) -> list[int]:
    """Lines that call something named decompress, in code that parses."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return sorted(
        {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2].lstrip("_").startswith("decompress")
        }
    )


def _fixed(
    folder: Folder,
    cap_bytes: int,
    what: str,
    files: Mapping[str, bytes],
    code_bytes: int,
    artifact_bytes: int,
    *,
    dropped: tuple[str, ...] = (),
    to_do: tuple[str, ...] = (),
) -> FixedFolder:
    contents = dict(files)
    changed: Mapping[str, tuple[Any, Any]] = {}
    if folder.claims is not None:
        claims, changed = corrected_claims(
            folder.claims, folder.foreign.file_bytes, code_bytes, artifact_bytes, cap_bytes
        )
        contents[CLAIMS] = (json.dumps(claims, indent=2, ensure_ascii=False) + "\n").encode()
    return FixedFolder(
        contents, dropped, what, code_bytes, artifact_bytes, cap_bytes, to_do, changed
    )


def corrected_claims(
    claims: Mapping[str, Any],
    old_artifact_bytes: int,
    code_bytes: int,
    artifact_bytes: int,
    cap_bytes: int,
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(the claims with true sizes, claim -> (old, new)); scores and everything else stay.

    artifact_bytes and its like mean the model alone in some submissions and the total in others:
    which of the two is told by the old value.
    """
    total = code_bytes + artifact_bytes
    wanted: dict[str, Any] = {"bytes_total": total}
    for key in claims:
        if key in TOTAL_KEYS:
            wanted[key] = total
        elif key in CODE_KEYS:
            wanted[key] = code_bytes
        elif key.startswith("bytes_model"):
            wanted[key] = artifact_bytes
        elif key in EITHER_KEYS:
            wanted[key] = artifact_bytes if claims[key] == old_artifact_bytes else total
    if "total_bytes" in claims and "bytes_total" not in claims:
        del wanted["bytes_total"]
    found = {**claims, **wanted}
    changed = {
        key: (claims.get(key), value) for key, value in wanted.items() if claims.get(key) != value
    }
    compliance = claims.get("compliance")
    if isinstance(compliance, dict) and "artifact_under_16mb" in compliance:
        fits = total <= cap_bytes
        if compliance["artifact_under_16mb"] is not fits:
            changed["compliance.artifact_under_16mb"] = (compliance["artifact_under_16mb"], fits)
        found["compliance"] = {**compliance, "artifact_under_16mb": fits}
    return found, changed
