"""Checkpoints as named weights: wrapper prefixes removed, tied tensors once, finite values only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from packer.artifact.tensor_bytes import dtype_name
from packer.checkpoint.file_kinds import load
from packer.checkpoint.foreign_artifact import ForeignArtifact, foreign_of
from packer.checkpoint.lazy_tensors import (
    DequantizedFile,
    StoredTensor,
    StoredTensors,
    meta_tensors_of,
)
from packer.checkpoint.packed_layers import packed_folder
from packer.checkpoint.roles import matching, nearest
from packer.checkpoint.state_dict import find_state_dict, left_out
from packer.checkpoint.ties import apply_declared_ties, equal_tensors, without_ties
from packer.checkpoint.validate import (
    refuse_empty,
    refuse_non_finite,
    refuse_unspeakable,
    refuse_unsupported,
)
from packer.errors import CheckpointError, SelectorError, listed


@dataclass(frozen=True)
class Checkpoint:
    """Named weights, every distinct storage once, and copies of one tensor once.

    source: the path as given, or "state dict". tensors: detached, contiguous, finite CPU tensors in
    file order, names without wrapper prefixes; those of safetensors are read on each
    access and not cached, as are those of GGUF, GPTQ and AWQ, others may be views of the file
    (memory-mapped) or of the state dict given. ties: tied name -> the name in `tensors` that holds
    its values. metadata: text the file carried (safetensors and GGUF only). notes: what was taken,
    renamed and left out, in words for people. foreign: the artifact, if the file
    is a third-party one. dequantized: the file or folder, if it is GGUF, GPTQ or AWQ.
    """

    source: str
    tensors: Mapping[str, torch.Tensor]
    ties: dict[str, str]
    metadata: dict[str, str]
    notes: tuple[str, ...]
    foreign: ForeignArtifact | None = None
    dequantized: DequantizedFile | None = None

    @property
    def meta_tensors(self) -> Mapping[str, torch.Tensor]:
        """Shape and dtype of every stored tensor; its values may not be there."""
        return meta_tensors_of(self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(self.stored_as(name)[1] for name in self.meta_tensors)

    def stored_as(self, name: str) -> tuple[str, int]:
        """(dtype, bytes) of a tensor in its file; also where it is dequantized on reading."""
        if self.dequantized is not None:
            tensor = self.dequantized.tensors[name]
            return tensor.type.lower(), tensor.size_bytes
        meta = self.meta_tensors[name]
        return dtype_name(meta.dtype), meta.nbytes

    @property
    def holders(self) -> dict[str, str]:
        """Every name, tied ones last -> the name of the tensor that has its values."""
        return {**{name: name for name in self.tensors}, **self.ties}

    def all_weights(self) -> dict[str, torch.Tensor]:
        """Every tensor in memory at once; tied names come last and share theirs."""
        weights = dict(self.tensors)
        return {**weights, **{tied: weights[kept] for tied, kept in self.ties.items()}}


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    drop: Sequence[str] = (),
    template: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    artifact: bool = False,
) -> Checkpoint:
    """The weights in a torch file (zip or legacy), a safetensors file, a folder of shards, a GGUF
    file, a folder of GPTQ or AWQ, or another author's artifact.

    weights: the (dotted) key the state dict lies under, where the usual ones will not do; by
    default the first of ema, model, state_dict, model_state_dict that holds tensors, else the file
    itself. drop: globs (case matters) of names to leave out. template: a checkpoint of the same
    model, for the dtypes that some artifacts do not store. max_memory: bytes that a compressed file
    may expand to. artifact: whether only an artifact will do.
    Zip records are checked against their CRC; the other formats carry no checksum.
    Raises CheckpointError: unreadable, damaged, needs unpickling, or not fit to pack.
    SelectorError: `weights` or a glob of `drop` names nothing.
    """
    source = os.fspath(path)
    try:
        content = load(Path(source), max_memory)
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror or error}") from error
    template_weights = None if template is None else read_checkpoint(template).all_weights()
    foreign = foreign_of(content, template_weights)
    if foreign is not None:
        return _from_foreign(foreign, weights, drop)
    if artifact:
        raise CheckpointError(_no_artifact(source, content.value))
    file = content.gguf or packed_folder(content)
    if file is not None:
        return _dequantized(file, weights, drop)
    state_dict, notes = find_state_dict(content.value, weights, source)
    if content.codec != "none":
        notes = [f"decompressed from {content.file_bytes:,} bytes of {content.codec}", *notes]
    all_notes = [*content.notes, *notes]
    if template is not None:
        all_notes.append("--template is for other authors' artifacts: not used")
    return _normalize(state_dict, content.metadata, drop, all_notes, source, content.places)


def _no_artifact(source: str, value: object) -> str:
    keys = [str(key)[:40] for key in value] if isinstance(value, Mapping) else []
    holds = f"a dict with {listed(keys)}" if keys else f"a {type(value).__name__}"
    return (
        f"{source}: is no artifact of a layout that is known here, but {holds}; where "
        "these are a checkpoint's weights, use packer pack, or packer report and inspect"
    )


def _from_foreign(foreign: ForeignArtifact, weights: str | None, drop: Sequence[str]) -> Checkpoint:
    """The weights of an artifact, decoded as its own reader does."""
    if weights is not None:
        raise SelectorError(
            f"{foreign.source}: is an artifact, whose weights lie under no key; leave --weights out"
        )
    all_notes = [f"{foreign.layout} artifact, {foreign.file_bytes:,} bytes of {foreign.codec}"]
    decoded = _normalize(foreign.weights(), {}, drop, [*all_notes, *foreign.notes], foreign.source)
    return replace(decoded, foreign=foreign)


def _dequantized(file: DequantizedFile, weights: str | None, drop: Sequence[str]) -> Checkpoint:
    """The weights of GGUF, GPTQ or AWQ, each dequantized whenever it is asked for."""
    if weights is not None:
        raise SelectorError(
            f"{file.source}: is {file.kind.upper()}, whose weights lie under no key; leave "
            "--weights out"
        )
    all_notes = list(file.notes)
    meta_tensors = {name: tensor.meta for name, tensor in file.tensors.items()}
    refuse_unspeakable(meta_tensors, file.source)
    kept = _without_dropped(meta_tensors, drop, all_notes, file.source)
    refuse_empty(kept, file.source)
    ties = {tied: name for tied, name in file.ties.items() if name in kept}
    if ties:
        all_notes.append(f"tied, stored once: {_pairs(ties)}")
    tensors = StoredTensors({name: file.tensors[name] for name in kept})
    refuse_non_finite(tensors, file.source)
    texts, words = dict(file.metadata), tuple(all_notes)
    return Checkpoint(file.source, tensors, ties, texts, words, dequantized=file)


def from_state_dict(
    state_dict: Mapping[str, torch.Tensor], *, source: str = "state dict", drop: Sequence[str] = ()
) -> Checkpoint:
    """The same checks and clean-up for weights in memory; CPU tensors are shared, not copied.

    Raises CheckpointError and SelectorError as `read_checkpoint` does.
    """
    return _normalize(state_dict, {}, drop, [], source)


def _normalize(
    state_dict: Mapping[Any, object],
    metadata: Mapping[str, str],
    drop: Sequence[str],
    notes: Sequence[str],
    source: str,
    places: Mapping[str, StoredTensor] | None = None,
) -> Checkpoint:
    """places: where the tensors lie by their names in `state_dict`, if they can be read alone."""
    named = {
        name: value
        for name, value in state_dict.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    named_in_file = {id(tensor): name for name, tensor in named.items()}
    all_notes = [*notes, *left_out(state_dict, besides=named)]
    texts = dict(sorted(metadata.items()))
    refuse_unspeakable(named, source)
    named = apply_declared_ties(named, texts, all_notes, source)
    named = _without_wrappers(named, all_notes, source)
    refuse_empty(named, source)
    named = _without_dropped(named, drop, all_notes, source)
    refuse_empty(named, source)
    refuse_unsupported(named, source)
    kept, ties = without_ties(named)
    if ties:
        all_notes.append(f"tied, stored once: {_pairs(ties)}")
    if not places:
        kept = {name: _plain(tensor) for name, tensor in kept.items()}
    tensors = _read_later(kept, named_in_file, places) if places else kept
    copies = equal_tensors(kept, tensors)
    if copies:
        all_notes.append(f"equal in every byte, stored once as tied ones are: {_pairs(copies)}")
        ties = {**{tied: copies.get(name, name) for tied, name in ties.items()}, **copies}
        kept = {name: tensor for name, tensor in kept.items() if name not in copies}
        tensors = _read_later(kept, named_in_file, places) if places else kept
    masks = refuse_non_finite(tensors, source)
    if masks:
        all_notes.append(f"infinities, as masks have them, kept exactly: {listed(masks)}")
    return Checkpoint(source, tensors, ties, texts, tuple(all_notes))


def _without_wrappers(
    named: Mapping[str, torch.Tensor], notes: list[str], source: str
) -> dict[str, torch.Tensor]:
    """Names without what DistributedDataParallel and torch.compile put around a model."""
    unwrapped: dict[str, torch.Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in named.items():
        plain = without_wrapper(name)
        if plain in unwrapped:
            raise CheckpointError(
                f"{source}: without wrapper prefixes {before[plain]!r} and {name!r} are both "
                f"{plain!r}; save one of the two models, or leave one out with --weights"
            )
        unwrapped[plain], before[plain] = tensor, name
    renamed = sum(plain != name for plain, name in before.items())
    if renamed:
        notes.append(f"wrapper prefixes (module., _orig_mod.) removed from {renamed} names")
    return unwrapped


def without_wrapper(name: str) -> str:
    """The name without the prefixes that compiling and data parallelism put before it."""
    *path, last = name.split(".")
    path = [part for part in path if part != "_orig_mod"]
    while path and path[0] == "module":
        del path[0]
    return ".".join([*path, last])


def _without_dropped(
    named: Mapping[str, torch.Tensor], drop: Sequence[str], notes: list[str], source: str
) -> dict[str, torch.Tensor]:
    dropped: set[str] = set()
    for glob in drop:
        matched = set(matching(glob, named))
        if not matched:
            raise SelectorError(
                f"{source}: --drop {glob} matches no tensor; the nearest name is "
                f"{nearest(glob, named)!r}"
            )
        notes.append(f"dropped by {glob}: {listed(sorted(matched))}")
        dropped |= matched
    return {name: tensor for name, tensor in named.items() if name not in dropped}


def _pairs(ties: Mapping[str, str]) -> str:
    return listed([f"{tied} = {kept}" for tied, kept in ties.items()])


def _read_later(
    kept: Mapping[str, torch.Tensor],
    named_in_file: Mapping[int, str],
    places: Mapping[str, StoredTensor],
) -> StoredTensors:
    """The tensors, by the names they are kept under; named_in_file: of each object, its name."""
    return StoredTensors({name: places[named_in_file[id(t)]] for name, t in kept.items()})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
