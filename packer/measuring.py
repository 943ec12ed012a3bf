"""Weights times choices: what every tensor weighs and loses under every format worth having."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from packer.artifact import encode_header, encode_tensor, header_bytes
from packer.budget.plan import Candidate
from packer.candidates import Measurement, TensorInfo
from packer.checkpoint import Checkpoint, contents_fingerprint, structure_fingerprint
from packer.errors import PlanError
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import dequantize, quantizable, quantize
from packer.roles import Role, TensorRole, roles_of, select
from packer.threads import one_torch_thread

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as work goes on; total in tensors."""

# Matrices below this many weights are cheap in any format: the long grid would only cost time.
LONG_GRID_ELEMENTS = 4096
# Steps in units of the standard deviation, three an octave: 0.05 is nearly lossless, 1.6 leaves
# about one bit per weight. With entropy coding the step, not the bit width, decides size and error.
STEP_GRID = tuple(0.05 * 2 ** (i / 3) for i in range(16))

NO_DATA = "squared weight error times a weight per role; no data was given"


def ignore_progress(what: str, done: int, total: int) -> None:
    """The default: tell nobody."""


def default_choices(weight: torch.Tensor) -> tuple[Choice, ...]:
    """Every choice that could be right for a tensor of this shape and dtype."""
    exact = exact_choice(weight.dtype)
    if not quantizable(weight):
        return (exact,)
    texts = ["fp16", "bf16"] if weight.dtype.itemsize > 2 else []
    if weight.dtype == torch.float64:
        texts.append("fp32")
    texts += ["int8.row", "int6.row"]
    if weight.dim() >= 2 and weight.numel() >= LONG_GRID_ELEMENTS:
        texts += ["int7.row", "int5.row", "int4.row", "int3.row", "int2.row", "ternary.row"]
        clips = [f"{127 * step:.4g}" for step in STEP_GRID]
        texts += [f"int8.tensor+kstd@{k}" for k in clips]
        texts += [f"int8.row+kstd@{k}" for k in clips[::2]]
    elif weight.dim() >= 1 and weight.numel() >= 16:
        texts += ["int5.row", "int8.tensor", "int6.tensor", "int4.row"]
    return (exact, *(parse_choice(text) for text in texts))


def exact_choice(dtype: torch.dtype) -> Choice:
    """The passthrough that keeps every bit."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return parse_choice(names.get(dtype, "raw"))


# Without data a squared weight error is all there is. One unit of it costs this much in a tensor of
# each role, relative to an MLP input matrix; how it was measured stands in docs/planner.md.
ROLE_WEIGHT: Mapping[Role, float] = {
    Role.TOKEN_EMBEDDING: 20.0,
    Role.HEAD: 20.0,
    Role.ATTENTION: 1.2,
    Role.ATTENTION_Q: 0.7,
    Role.ATTENTION_K: 1.0,
    Role.ATTENTION_V: 2.3,
    Role.ATTENTION_O: 1.6,
    Role.MLP_IN: 1.0,
    Role.MLP_GATE: 1.0,
    Role.MLP_OUT: 1.8,
    Role.HASHED_BIGRAM: 1.0,
    Role.VALUE_EMBEDDING: 0.15,
    Role.GATE: 15.0,
    Role.CONTROL: 15.0,
    Role.NORM: 15.0,
    Role.OTHER: 1.0,
}


def measure(
    checkpoint: Checkpoint,
    *,
    pins: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    curvature: Mapping[str, Curvature] | None = None,
    progress: Progress = ignore_progress,
) -> Measurement:
    """Candidates for every tensor: real coded bytes and weight error under each choice.

    pins: selector -> choice; a pinned tensor is measured under that choice as well. metadata: text
    for the artifact, added to the checkpoint's own. curvature: by tensor, for choices with +gptq.
    Raises SelectorError: a pin matches nothing. PlanError: a pinned choice cannot hold the tensor.
    """
    infos = tensor_infos(checkpoint)
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    pinned = pinned_choices(pins or {}, roles)
    choices = {
        name: with_pinned(default_choices(weight), pinned.get(name))
        for name, weight in checkpoint.tensors.items()
    }
    measured = _measurement(checkpoint, infos, choices, metadata or {}, curvature or {}, progress)
    check_pinned(pinned, measured.candidates)
    return measured


def measure_choices(
    checkpoint: Checkpoint,
    choices: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
    curvature: Mapping[str, Curvature] | None = None,
) -> Measurement:
    """One candidate for every tensor: the choice given for its name.

    Raises PlanError: a tensor has no choice, or its choice cannot be read or cannot hold it.
    """
    missing = sorted(set(checkpoint.tensors) - set(choices))
    if missing:
        raise PlanError(f"no choice is given for {', '.join(missing[:5])}; plan this checkpoint")
    parsed = {name: (_parsed(name, choices[name]),) for name in checkpoint.tensors}
    infos = tensor_infos(checkpoint)
    measured = _measurement(checkpoint, infos, parsed, metadata or {}, curvature or {}, progress)
    check_pinned({name: choice for name, (choice,) in parsed.items()}, measured.candidates)
    return measured


def _measurement(
    checkpoint: Checkpoint,
    infos: tuple[TensorInfo, ...],
    choices: Mapping[str, Sequence[Choice]],
    metadata: Mapping[str, str],
    curvature: Mapping[str, Curvature],
    progress: Progress,
) -> Measurement:
    candidates: list[Candidate] = []

    with one_torch_thread():
        for done, info in enumerate(infos):
            progress(info.name, done, len(infos))
            weight = checkpoint.tensors[info.name]
            felt = curvature.get(info.name)
            candidates += measure_tensor(info, weight, choices[info.name], felt)
    progress("measured", len(infos), len(infos))
    all_metadata = dict(sorted({**checkpoint.metadata, **metadata}.items()))
    return Measurement(
        source=checkpoint.source,
        structure=structure_fingerprint(checkpoint),
        contents=contents_fingerprint(checkpoint),
        header_bytes=header_bytes(header_of(infos, checkpoint.ties, all_metadata)),
        tensors=infos,
        candidates=tuple(candidates),
        ties=checkpoint.ties,
        metadata=all_metadata,
        damage_source=NO_DATA,
    )


def tensor_infos(checkpoint: Checkpoint) -> tuple[TensorInfo, ...]:
    """Name, role, shape and dtype of every stored tensor, sorted by name."""
    shapes = {name: tuple(weight.shape) for name, weight in checkpoint.tensors.items()}
    roles = roles_of(shapes, checkpoint.ties)
    return tuple(
        TensorInfo(
            name,
            roles[name].role.value,
            roles[name].layer,
            shapes[name],
            str(checkpoint.tensors[name].dtype).removeprefix("torch."),
        )
        for name in sorted(shapes)
    )


def header_of(
    infos: Sequence[TensorInfo], ties: Mapping[str, str], metadata: Mapping[str, str]
) -> bytes:
    """The artifact's header stream for these tensors."""
    return encode_header({info.name: (info.dtype, info.shape) for info in infos}, ties, metadata)


def measure_tensor(
    info: TensorInfo,
    weight: torch.Tensor,
    choices: Sequence[Choice],
    curvature: Curvature | None = None,
) -> list[Candidate]:
    """A candidate for every choice that decodes to finite weights, in the order given."""
    role_weight = ROLE_WEIGHT[Role(info.role)]
    found = []
    for choice in choices:
        try:
            quantized = quantize(weight, choice, curvature)
        except FormatError as error:
            raise PlanError(f"{info.name}: {error}") from None
        error_value = weight_error(weight, dequantize(quantized))
        if error_value is None:
            continue
        size = encode_tensor(quantized, choice.coder).size_bytes
        found.append(Candidate(info.name, str(choice), size, role_weight * error_value))
    return found


def weight_error(weight: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """Sum of squared differences in float64, or None when a decoded weight is not finite."""
    if not (weight.is_floating_point() and weight.dtype.itemsize > 1):
        return 0.0  # only `raw`, which is exact, holds the other dtypes
    if weight.dtype == torch.float64:
        total = float((weight - decoded).square().sum())
    else:
        difference = decoded.float() - weight.float()
        total = float(difference.square_().sum(dtype=torch.float64))
    return total if math.isfinite(total) else None


def pinned_choices(pins: Mapping[str, str], roles: Mapping[str, TensorRole]) -> dict[str, Choice]:
    """The choice of every pinned tensor; of two pins on one tensor the later wins.

    Raises SelectorError: a selector matches nothing. PlanError: a choice cannot be read.
    """
    found: dict[str, Choice] = {}
    for selector, text in pins.items():
        choice = _parsed(f"pin {selector}", text)
        found.update(dict.fromkeys(select(selector, roles), choice))
    return found


def _parsed(what: str, text: str) -> Choice:
    try:
        return parse_choice(text)
    except FormatError as error:
        raise PlanError(f"{what}: {error}") from None


def with_pinned(choices: Sequence[Choice], pinned: Choice | None) -> tuple[Choice, ...]:
    if pinned is None or pinned in choices:
        return tuple(choices)
    return (*choices, pinned)


def check_pinned(pinned: Mapping[str, Choice], candidates: Sequence[Candidate]) -> None:
    """Raises PlanError: a pinned choice was measured and does not give finite weights."""
    measured = {(candidate.tensor, candidate.choice) for candidate in candidates}
    for name, choice in pinned.items():
        if (name, str(choice)) not in measured:
            raise PlanError(f"{name}: under {choice} some weights overflow; pin a wider format")
