"""Unpacks weights to a file, and verifies an artifact against its checkpoint and plan."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from packer.artifact import decoder
from packer.artifact.encoder import quantized_tensor
from packer.artifact.tensor_bytes import bytes_of, dtype_name
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.earlier_versions import PERMUTED_MARK, POLISHED_MARK, TUNED_MARK
from packer.checkpoint.lazy_tensors import Renamed, meta_tensors_of
from packer.checkpoint.safetensors_write import UnwritableError, write_safetensors
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.errors import OutputError
from packer.files import replacing
from packer.huggingface.files import without_files
from packer.planning.measure import Progress, ignore_progress
from packer.progress import WeightCount
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import Passthrough, QuantizedTensor, TensorFormat
from packer.quantizers.quantize import dequantize, quantize
from packer.threads import one_torch_thread

BLOCK_ELEMENTS = 1 << 18
SIDE_NAMES = {"scale": "scales", "row": "row steps", "column": "column steps", "shrink": "values"}


@dataclass(frozen=True)
class TensorCheck:
    """How one tensor decodes. max_error: largest |difference|. relative_error: rms difference
    over rms weight, None for a tensor of zeros. exact: bit for bit equal. All are None without a
    checkpoint to compare with.
    """

    name: str
    format: str
    max_error: float | None
    relative_error: float | None
    exact: bool | None
    problem: str | None


@dataclass(frozen=True)
class Verification:
    """The result of `verify`. problems: everything that is wrong, as text; empty if it passed."""

    artifact_bytes: int
    tensors: tuple[TensorCheck, ...]
    problems: tuple[str, ...]


def write_weights(
    path: str | os.PathLike[str],
    weights: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Weights as `.safetensors` or `.pt`, by the suffix of `path`; nothing is written on failure.

    In a .pt file tied names share their storage. A .safetensors file cannot share: tied names are
    written out, and the metadata records the ties.
    Raises OutputError: another suffix, a dtype that safetensors lacks, no space, no permission.
    """
    if _is_safetensors(path):
        _save_safetensors(path, meta_tensors_of(weights), weights.items(), ties, metadata)
        return
    # Empty tensors may share an address, which torch refuses for two dtypes. Given a path, torch
    # writes its name into the file, so that files differ.
    whole: dict[str, torch.Tensor] = {}
    for name in weights:
        weight = whole[ties[name]] if name in ties else weights[name]
        whole[name] = weight if weight.numel() else weight.clone()
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(whole, file)
        except KeyError as error:  # torch 2.4 has unsigned dtypes, but not on disk
            raise OutputError(
                f"{path}: this torch cannot write it ({error.args[0]}); write a .safetensors file, "
                "or take a newer torch"
            ) from None


def write_decoded(
    path: str | os.PathLike[str],
    stored: decoder.StoredArtifact,
    progress: Progress = ignore_progress,
) -> dict[str, torch.Tensor]:
    """The weights of a parsed artifact, as `write_weights` writes them. Returns meta
    tensors of their shapes and dtypes. A .safetensors file is written as tensors are decoded, so
    that few of them are in memory; for a .pt file all of them are.

    Raises OutputError as `write_weights`, and ArtifactError: a stream is damaged.
    """
    meta_tensors = {
        tensor.name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
        for tensor in stored.tensors
    }
    meta_tensors |= {tied: meta_tensors[kept] for tied, kept in stored.ties.items()}
    if _is_safetensors(path):
        decoded = _decoded(stored, progress)
        _save_safetensors(path, meta_tensors, decoded, stored.ties, stored.metadata)
    else:
        write_weights(path, dict(_decoded(stored, progress)), stored.ties, stored.metadata)
    return meta_tensors


def _decoded(
    stored: decoder.StoredArtifact, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of every tensor, tied names included."""
    names = {tensor.name: [tensor.name] for tensor in stored.tensors}
    for tied, kept in stored.ties.items():
        names[kept].append(tied)
    count = WeightCount(progress, _elements(stored))
    for tensor in stored.tensors:
        count.begin(tensor.name)
        weight = decoder.decode_weight(tensor)
        yield from ((name, weight) for name in names[tensor.name])


def _elements(stored: decoder.StoredArtifact) -> dict[str, int]:
    return {tensor.name: math.prod(tensor.shape) for tensor in stored.tensors}


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether the suffix is .safetensors. Raises OutputError: it is not .pt or .pth either."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".pt", ".pth", ".safetensors"):
        raise OutputError(f"{path}: weights are written as .safetensors or .pt; name such a file")
    return suffix == ".safetensors"


def _save_safetensors(
    path: str | os.PathLike[str],
    meta_tensors: Mapping[str, torch.Tensor],
    values: Iterable[tuple[str, torch.Tensor]],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    texts = {
        **without_files(metadata),
        **({"bytecap.ties": json.dumps(dict(ties))} if ties else {}),
    }
    try:
        with replacing(path) as temporary:
            write_safetensors(temporary, meta_tensors, values, {"format": "pt", **texts})
    except UnwritableError as error:
        raise OutputError(f"{path}: {error}; name a .pt file instead") from None


def verify(
    data: bytes,
    against: Checkpoint | None = None,
    choices: Mapping[str, str] | None = None,
    curvature: CurvatureSet | None = None,
    progress: Progress = ignore_progress,
) -> Verification:
    """Decode everything, and compare with a checkpoint and a plan's choices if given.

    With a checkpoint, passthrough tensors must equal it bit for bit, as far as their format keeps
    bits; with choices too, quantizing again must give exactly the codes in the file. For a choice
    with +gptq that needs curvature; without, only its format is compared. Of a tuned artifact,
    names, shapes and dtypes are compared with the checkpoint, and no values.
    Raises decoder.ArtifactError: not an artifact, or damaged. Differences are returned as problems.
    """
    stored = decoder.parse(data)
    against = _named_as_stored(against, stored) if against else None
    problems = _structure_problems(stored, against) if against else []
    if against is not None and PERMUTED_MARK in stored.metadata:
        problems.append(_not_comparable(against))
        against = None
    if TUNED_MARK in stored.metadata:
        against = None
    checks, count = [], WeightCount(progress, _elements(stored))
    with one_torch_thread():
        for tensor in stored.tensors:
            count.begin(tensor.name)
            weight = _comparable(tensor, against)
            choice = choices.get(tensor.name) if choices else None
            known = by_tensor_of(curvature).get(tensor.name)
            quantized = quantized_tensor(tensor)
            checks.append(check_tensor(quantized, tensor.name, weight, choice, known))
    count.begin("verified")
    problems += [f"{check.name}: {check.problem}" for check in checks if check.problem]
    if problems and POLISHED_MARK in stored.metadata:
        problems.insert(0, "an earlier version tuned its scales and floats after rounding")
    return Verification(len(data), tuple(checks), tuple(problems))


def _named_as_stored(against: Checkpoint, stored: decoder.StoredArtifact) -> Checkpoint:
    """The checkpoint with the artifact's ties, as far as they hold in it: which of several equal
    tensors is kept, and whether they are tied, depends on the order and format of the file.
    """
    holders = {**{name: name for name in against.tensors}, **against.ties}
    apart = {tensor.name for tensor in stored.tensors}
    ties = {
        tied: kept
        for tied, kept in stored.ties.items()
        if tied in holders and holders[tied] == holders.get(kept)
    }
    # Names that the artifact lacks keep their ties, and are reported as problems.
    names = {name: holder for name, holder in holders.items() if name in apart}
    lacking = {tied: k for tied, k in against.ties.items() if tied not in {*apart, *ties}}
    names |= {name: name for name in against.tensors if name not in {*apart, *ties}}
    return replace(against, tensors=Renamed(against.tensors, names), ties={**ties, **lacking})


def _not_comparable(against: Checkpoint) -> str:
    return (
        "an earlier version wrote it with the hidden units of MLPs in another order, so its "
        f"tensors cannot be compared with those of {against.source} element by element; leave "
        "--against out, or compare what both predict with packer eval"
    )


def _comparable(tensor: decoder.StoredTensor, against: Checkpoint | None) -> torch.Tensor | None:
    """The original weight if it has this shape and dtype; other differences are reported by
    `_structure_problems`.
    """
    meta = against.meta_tensors.get(tensor.name) if against else None
    if against is None or meta is None:
        return None
    same = (tuple(meta.shape), dtype_name(meta.dtype)) == (tensor.shape, tensor.dtype)
    return against.tensors[tensor.name] if same else None


def check_tensor(
    quantized: QuantizedTensor,
    name: str,
    weight: torch.Tensor | None,
    choice: str | None,
    curvature: Curvature | None = None,
) -> TensorCheck:
    """One tensor compared with its original weight and choice, if given."""
    decoded = dequantize(quantized)
    problem = None
    if decoded.is_floating_point() and _is_broken(decoded.float(), quantized.format):
        problem = "some decoded weights are not finite"
    if weight is None:
        return TensorCheck(name, str(quantized.format), None, None, None, problem)
    if isinstance(quantized.format, Passthrough):
        kept = dequantize(quantize(weight, Choice(quantized.format)))
        if not _same_bits(kept, decoded):
            problem = f"{quantized.format} did not come back bit for bit"
    elif choice is not None:
        problem = problem or _requantize_problem(quantized, weight, choice, curvature)
    max_error, relative_error = _errors(weight, decoded)
    exact = _same_bits(weight, decoded)
    return TensorCheck(name, str(quantized.format), max_error, relative_error, exact, problem)


def _is_broken(decoded: torch.Tensor, format: TensorFormat) -> bool:
    """Whether values are not finite, except for infinities in masks, which are unquantized."""
    allowed = decoded.isfinite()
    if isinstance(format, Passthrough):
        allowed |= decoded.isinf()
    return not bool(allowed.all())


def _requantize_problem(
    quantized: QuantizedTensor, weight: torch.Tensor, choice: str, curvature: Curvature | None
) -> str | None:
    parsed = parse_choice(choice)
    if parsed.format != quantized.format:
        return f"the plan says {choice}, the file holds {quantized.format}"
    if parsed.rounding != "nearest" and curvature is None:
        return None
    again = quantize(weight, parsed, curvature)
    if not torch.equal(again.codes, quantized.codes):
        count = int((again.codes != quantized.codes).sum())
        return f"{count} of {again.codes.numel()} codes differ from what {choice} gives"
    for name, values in quantized.side.items():
        if not _same_bits(again.side[name], values):
            what = SIDE_NAMES.get(name, f"correction's {name}")
            return f"the {what} differ from what {choice} gives"
    return None


def _structure_problems(stored: decoder.StoredArtifact, against: Checkpoint) -> list[str]:
    """Names, shapes, dtypes and ties that differ."""
    problems = []
    actual = {tensor.name: (tensor.shape, tensor.dtype) for tensor in stored.tensors}
    expected = {
        name: (tuple(w.shape), dtype_name(w.dtype)) for name, w in against.meta_tensors.items()
    }
    for name in sorted(set(actual) | set(expected)):
        if name not in actual:
            problems.append(f"{name}: in {against.source} and not in the artifact")
        elif name not in expected:
            problems.append(f"{name}: in the artifact and not in {against.source}")
        elif actual[name] != expected[name]:
            (shape, dtype), (expected_shape, expected_dtype) = actual[name], expected[name]
            problems.append(
                f"{name}: {dtype} {list(shape)} in the artifact, "
                f"{expected_dtype} {list(expected_shape)} in {against.source}"
            )
    if dict(stored.ties) != dict(against.ties):
        problems.append(
            f"tied names: {stored.ties} in the artifact, {against.ties} in {against.source}"
        )
    return problems


def _errors(weight: torch.Tensor, decoded: torch.Tensor) -> tuple[float, float | None]:
    """(largest |difference|, rms difference over rms weight); in float64, a block at a time."""
    if weight.numel() == 0:
        return 0.0, None
    wide = torch.complex128 if weight.is_complex() else torch.float64
    largest, lost, power = torch.zeros(1, dtype=torch.float64), 0.0, 0.0
    for before, after in zip(_blocks(weight), _blocks(decoded), strict=True):
        original = before.to(wide)
        difference = (after.to(wide) - original).masked_fill_(after == before, 0.0).abs()
        largest = torch.maximum(largest, difference.max())  # NaN stays NaN
        lost += float(difference.square().sum())
        power += float(original.abs().square().sum())
    return float(largest), (lost / power) ** 0.5 if power else None


def _blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.reshape(-1), BLOCK_ELEMENTS)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bytes_of(a), bytes_of(b))
