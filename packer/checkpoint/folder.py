"""Which files of a folder are the model: by its index, else by the names that writers give shards.

Only names and indexes are looked at here; no weights are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packer.errors import CheckpointError, listed, reason

CONFIGURATION = "config.json"
QUANTIZATION = "quantization_config"  # its entry for codes of GPTQ, AWQ and others
# Parts of the names of files and of entries that are not weights.
NOT_WEIGHTS = re.compile(
    r"(.*[-_.])?(optim\w*|sched\w*|lr_sched\w*|rng\w*|random_states?\w*|training_args|trainer\w*|"
    r"(grad_)?scaler\w*|adapter\w*|lora\w*)([-_.].*)?",
    re.IGNORECASE,
)
MAIN_NAMES = ("model", "pytorch_model", "diffusion_pytorch_model")
# Looked for in this order: a folder may hold one model in several containers.
SUFFIXES = ((".safetensors",), (".bin",), (".pt", ".pth"))
INDEX = re.compile(r"(?P<name>.+)(?P<suffix>\.safetensors|\.bin|\.pth?)\.index(\..+)?\.json")
COUNTED = re.compile(
    r"(?P<name>.*?)[-_.]?(?P<number>\d{1,9})[-_]of[-_](?P<count>\d{1,9})(?P<rest>.*)"
)
NUMBERED = re.compile(r"(?P<name>.*?)[-_.]?\d{1,9}")
MAX_COUNT = 100_000  # of shards, so that a name alone asks for no work


@dataclass(frozen=True)
class Shards:
    """Files of one folder that hold a model. weight_map: tensor -> file, from an index."""

    folder: Path
    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    """Files whose names differ in their number alone. count: the total that the names declare."""

    name: str
    count: int | None = None
    files: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        return missing_shards(self.files) if self.count else []


def shards_in(folder: Path) -> Shards:
    """The files to read. Raises CheckpointError: some are missing, or none is a model's."""
    names = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    others: list[str] = []
    for suffixes in SUFFIXES:
        files = [name for name in names if Path(name).suffix in suffixes]
        shards = _indexed(folder, names, files, suffixes) or _named(folder, files)
        if shards is not None:
            return shards
        others += files
    if others:
        raise CheckpointError(
            f"{folder}: is a folder with {listed(others)}, which by their names are not a "
            "model's weights; name a file itself to read it all the same"
        )
    partial = [name for name in names if re.search(r"\.(incomplete|part|tmp|crdownload)$", name)]
    begun = f", but with {listed(partial)} of a download that did not end" if partial else ""
    raise CheckpointError(
        f"{folder}: is a folder without *.safetensors, *.bin or *.pt{begun}; name a checkpoint "
        "file, or a folder that holds one"
    )


def _indexed(
    folder: Path, names: Sequence[str], files: Sequence[str], suffixes: Sequence[str]
) -> Shards | None:
    """What the folder's index lists, None where there is none that counts."""
    spelled = [match for name in names if (match := INDEX.fullmatch(name))]
    indexes = [match for match in spelled if match["suffix"] in suffixes]
    main = [match for match in indexes if match["name"] in MAIN_NAMES]
    chosen = [match[0] for match in main or indexes]
    if not chosen:
        return None
    plain = [name for name in chosen if name.endswith(".index.json")] or chosen
    if len(plain) > 1:
        raise CheckpointError(
            f"{folder}: holds several indexes, {listed(plain)}; name one of them to read its shards"
        )
    shards = indexed_shards(folder / plain[0])
    whole = [name for name in files if Path(name).stem in MAIN_NAMES]
    if _absent(shards) and whole and not set(whole) & set(shards.files):
        return None
    refuse_absent(shards, plain[0])
    return Shards(folder, shards.files, shards.weight_map, _passed_over(files, shards.files))


def indexed_shards(index: Path) -> Shards:
    """What one index lists. Raises CheckpointError: it is damaged, or names other folders."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: is not an index of shards with a weight_map ({reason(error)}); download it "
            "again, or remove it to take the files of this folder by their names"
        ) from error
    endings = tuple(suffix for kind in SUFFIXES for suffix in kind)
    for name, shard in files.items():
        if Path(shard).name != shard or not shard.endswith(endings):
            raise CheckpointError(
                f"{index}: puts {name!r} into {shard!r}, which is not a *.safetensors file of this "
                "folder, nor a *.bin or *.pt"
            )
    if not files:
        raise CheckpointError(f"{index}: lists no tensors; download it again")
    return Shards(index.parent, tuple(sorted(set(files.values()))), files)


def refuse_absent(shards: Shards, index: str) -> None:
    """Raises CheckpointError: shards that are listed are not there."""
    absent = _absent(shards)
    if absent:
        raise CheckpointError(
            f"{shards.folder}: {index} names the shards {listed(absent)}, {len(absent)} of "
            f"{len(shards.files)} that are not there; download what is missing"
        )


def _absent(shards: Shards) -> list[str]:
    return [name for name in shards.files if not (shards.folder / name).exists()]


def _named(folder: Path, files: Sequence[str]) -> Shards | None:
    """The model that the names of files show; None if no name is that of weights."""
    groups = [group for group in _groups(files) if not NOT_WEIGHTS.fullmatch(group.name)]
    main = [group for group in groups if group.name in MAIN_NAMES]
    # A whole model in one file comes before shards, and shards that are all there before others.
    main.sort(key=lambda one: (len(one.missing) > 0, len(one.files) > 1, one.count or 0))
    taken = main[:1] or groups
    for group in taken:
        if group.missing:
            raise CheckpointError(
                f"{folder}: of {group.count} shards {len(group.missing)} are missing, "
                f"{listed(group.missing)}; download what is missing, or name the file "
                f"{group.files[0]} to read that part alone"
            )
    if not taken:
        return None
    chosen = sorted(name for group in taken for name in group.files)
    notes = _passed_over(files, chosen)
    if len(taken) > 1:
        notes = (f"read as one model: {listed(chosen)}", *notes)
    return Shards(folder, tuple(chosen), None, notes)


def _groups(files: Sequence[str]) -> list[_Group]:
    groups: dict[tuple[str, int | None, bool], _Group] = {}
    for file in files:
        stem = Path(file).stem
        counted, numbered = COUNTED.fullmatch(stem), NUMBERED.fullmatch(stem)
        if counted:
            group = _Group(counted["name"] + counted["rest"], int(counted["count"]))
        else:
            group = _Group(numbered["name"] if numbered else stem)
        key = (group.name, group.count, numbered is not None)
        groups.setdefault(key, group).files.append(file)
    return list(groups.values())


def missing_shards(files: Sequence[str]) -> list[str]:
    """Names that shards of one set lack, which are called NAME-NUMBER-of-COUNT.

    Numbers begin at 1, or at 0 where a shard has that.
    """
    spelled = [match for file in files if (match := COUNTED.fullmatch(Path(file).stem))]
    if not spelled:
        return []
    one, suffix = spelled[0], Path(files[0]).suffix
    numbers = {int(match["number"]) for match in spelled}
    count, first = min(int(one["count"]), MAX_COUNT), 0 if 0 in numbers else 1
    lacking = [number for number in range(first, first + count) if number not in numbers]
    start, stop = one.span("number")
    width = stop - start
    text = one.string
    return [f"{text[:start]}{number:0{width}d}{text[stop:]}{suffix}" for number in lacking]


def _passed_over(files: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    others = sorted(set(files) - set(taken))
    if not others:
        return ()
    return (f"read from the folder: {listed(sorted(taken))}; passed over: {listed(others)}",)


def notes_on_part(path: Path) -> tuple[str, ...]:
    """Notes on missing parts, by a file's own name or an index next to it."""
    lacking = missing_shards([path.name])
    if not lacking:
        lacking = sorted(set(_neighbours(path)) - {path.name})
    if not lacking:
        return ()
    return (
        f"{path.name} is one of {len(lacking) + 1} shards: what {listed(lacking)} holds is not "
        "read; name the folder for the whole model",
    )


def _neighbours(path: Path) -> tuple[str, ...]:
    """The shards of an index in the file's folder that lists the file."""
    try:
        indexes = [one for one in path.parent.iterdir() if INDEX.fullmatch(one.name)]
        listed_ones = [indexed_shards(one).files for one in sorted(indexes)]
    except (OSError, CheckpointError):  # of another model, for all that is known
        return ()
    return next((files for files in listed_ones if path.name in files), ())
