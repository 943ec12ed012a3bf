"""Measures the size and damage of every tensor under every choice that could be best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from packer.artifact.encoder import encode_header, encode_tensor, header_bytes
from packer.budget.plan import Candidate
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.earlier_versions import without_marks
from packer.checkpoint.fingerprint import contents_fingerprint, structure_fingerprint
from packer.checkpoint.roles import Role, TensorRole, roles_of, select
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.errors import PlanError
from packer.planning.candidates import Measurement, TensorInfo
from packer.planning.options import MeasureOptions
from packer.planning.predicted_damage import (
    bits_per_byte,
    complete,
    describe_source,
    output_error,
    predicted_nats,
)
from packer.planning.step_grid import (
    DENSE,
    StepGrid,
    Variants,
    best_variants,
    step_choices,
)
from packer.planning.weight_errors import (
    NO_DATA,
    ROLE_WEIGHT,
    ErrorMeasure,
    balanced,
    error_measure,
    far_out,
    is_formula,
    weight_error,
)
from packer.progress import Progress as Progress
from packer.progress import WeightCount
from packer.progress import ignore_progress as ignore_progress
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.clip import row_absmax
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError, row_shape
from packer.quantizers.quantize import dequantize, quantizable, quantize
from packer.threads import as_completed, side_by_side

# Matrices of fewer weights are cheap in any format: the long grid would only cost time.
LONG_GRID_ELEMENTS = 4096
PROBED_ALONE = 1 << 18  # weights; the best format of fewer varies, and is soon probed
SMALL_SCALE = 2.0**-20  # a float16 that holds four bits
FLOAT16_MAX = torch.finfo(torch.float16).max
# Steps in units of the standard deviation, three per octave: 0.05 is nearly lossless, 1.6 leaves
# about one bit per weight (docs/planner.md, Candidates). With entropy coding the step size, not the
# bit width, determines size and error.
STEP_GRID = tuple(0.05 * 2 ** (i / 3) for i in range(16))

GIVEN_HESSIANS = (
    "squared error of the outputs under the second moments given, and of weights without one, "
    "times a weight per role"
)

DEFAULT_OPTIONS = MeasureOptions()


def default_choices(
    weight: torch.Tensor,
    curvature: Curvature | None = None,
    trellis: bool = False,
    grid: StepGrid = DENSE,
    variants: Variants | None = None,
) -> tuple[Choice, ...]:
    """Every choice that could be right for a tensor of this shape and dtype.

    With curvature, stepped formats rounded by GPTQ, at the steps of the grid, replace clips and
    rounding to nearest. trellis, variants: as of `step_choices`.
    """
    exact = exact_choice(weight.dtype)
    if not (quantizable(weight) and bool(weight.isfinite().all())):
        return (exact,)
    texts = []
    if weight.dim() >= 2 and weight.numel() >= LONG_GRID_ELEMENTS:
        if curvature is not None:
            # Steps without a clip; a clip with one step per tensor or row is never better.
            curved = step_choices(weight, curvature, trellis, grid, variants)
            return (*wide_choices(weight), *curved) if grid.wide else curved
        texts += ["int7.row", "int2.row", "ternary.row"]
        clips = [f"{127 * step:.4g}" for step in STEP_GRID]
        texts += [f"int8.tensor+kstd@{k}" for k in clips]
        # A step per row pays only where clips are so narrow that they cut off large weights.
        texts += [f"int8.row+kstd@{k}" for k in clips[:6:2]]
        texts += [f"step+nearest@{ratio * k:.4g}" for ratio in far_out(weight) for k in STEP_GRID]
    elif weight.dim() >= 1 and weight.numel() >= 16:
        texts += ["int5.row", "int8.tensor", "int6.tensor", "int4.row"]
    if scales_leave_float16(weight):
        texts += _with_float32_scales(texts)
    return (*wide_choices(weight), *(parse_choice(text) for text in texts))


def wide_choices(weight: torch.Tensor) -> tuple[Choice, ...]:
    """Choices of six bits a weight and more, the exact one first."""
    texts = ["fp16", "bf16"] if weight.dtype.itemsize > 2 else []
    if weight.dtype == torch.float64:
        texts.append("fp32")
    texts += ["int8.row", "int6.row"]
    if scales_leave_float16(weight):
        texts += _with_float32_scales(texts)
    return (exact_choice(weight.dtype), *(parse_choice(text) for text in texts))


def _with_float32_scales(texts: Sequence[str]) -> list[str]:
    return [re.sub(r"^(int\d\.\w+)", r"\1.scale32", t) for t in texts if t[:3] == "int"]


def scales_leave_float16(weight: torch.Tensor) -> bool:
    """Whether scales of some integer format would be rounded to a few bits, or overflow."""
    largest = row_absmax(weight.float().reshape(row_shape(tuple(weight.shape))))
    least = torch.where(largest > 0, largest, torch.inf).min()
    return bool(least / 127 < SMALL_SCALE) or bool(largest.max() > FLOAT16_MAX)


def exact_choice(dtype: torch.dtype) -> Choice:
    """The passthrough that keeps every bit."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return parse_choice(names.get(dtype, "raw"))


def measure(
    checkpoint: Checkpoint,
    options: MeasureOptions = DEFAULT_OPTIONS,
    curvature: CurvatureSet | None = None,
    *,
    grid: StepGrid = DENSE,
    progress: Progress = ignore_progress,
) -> Measurement:
    """Candidates for every tensor: real coded bytes and damage under each choice.

    curvature: gives damage in bits per byte and choices with +gptq; second moments alone give those
    choices, with squared errors as damage. grid: step sizes of the choices with +gptq.
    Raises SelectorError: a pin matches nothing. PlanError: a pinned choice cannot hold the tensor.
    """
    infos = tensor_infos(checkpoint)
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    pinned = pinned_choices(options.pins, roles)
    coder = options.coder
    variants = common_variants(checkpoint, infos, by_tensor_of(curvature))

    def choices_of(name: str, weight: torch.Tensor, known: Curvature | None) -> tuple[Choice, ...]:
        defaults = default_choices(weight, known, options.trellis, grid, variants.get(name))
        chosen = [replace(choice, coder=coder) for choice in defaults] if coder else defaults
        return with_pinned(chosen, pinned.get(name))

    return _measurement(
        checkpoint, infos, choices_of, pinned, options.metadata, curvature, progress
    )


def common_variants(
    checkpoint: Checkpoint, infos: Sequence[TensorInfo], by_tensor: Mapping[str, Curvature]
) -> dict[str, Variants]:
    """Formats and roundings for large tensors, probed in one of every role and shape.

    In large tensors they differ little within a role (docs/planner.md, Candidates).
    """
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for info in infos:
        if info.elements > PROBED_ALONE and info.name in by_tensor:
            groups.setdefault((info.role, info.shape), []).append(info.name)
    several = [names for names in groups.values() if len(names) > 1]

    def probed(names: Sequence[str]) -> Variants | None:
        middle = names[len(names) // 2]
        weight = checkpoint.tensors[middle]
        usable = quantizable(weight) and bool(weight.isfinite().all())
        return best_variants(weight, by_tensor[middle]) if usable else None

    found = zip(several, side_by_side(probed, several), strict=True)
    return {name: one for names, one in found if one is not None for name in names}


def measure_choices(
    checkpoint: Checkpoint,
    choices: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    curvature: CurvatureSet | None = None,
    progress: Progress = ignore_progress,
) -> Measurement:
    """One candidate for every tensor: the choice given for its name. metadata: as for `measure`.

    Raises PlanError: a tensor has no choice, or its choice cannot be read or cannot hold it.
    """
    missing = sorted(set(checkpoint.tensors) - set(choices))
    if missing:
        raise PlanError(f"no choice is given for {', '.join(missing[:5])}; plan this checkpoint")
    parsed = {name: _parsed(name, choices[name]) for name in checkpoint.tensors}
    infos = tensor_infos(checkpoint)

    def choices_of(name: str, *_: object) -> tuple[Choice, ...]:
        return (parsed[name],)

    return _measurement(checkpoint, infos, choices_of, parsed, metadata or {}, curvature, progress)


def _measurement(
    checkpoint: Checkpoint,
    infos: tuple[TensorInfo, ...],
    choices_of: Callable[[str, torch.Tensor, Curvature | None], Sequence[Choice]],
    required: Mapping[str, Choice],
    metadata: Mapping[str, str],
    curvature: CurvatureSet | None,
    progress: Progress,
) -> Measurement:
    """required: choices that must hold their tensors; others are left out if they cannot."""
    by_tensor = by_tensor_of(curvature)
    whole = curvature if curvature is not None and curvature.predicts_damage else None
    all_metadata = metadata_of(checkpoint, metadata)
    levels: dict[str, float] = {}
    count = WeightCount(progress, {info.name: info.elements for info in infos})

    def candidates_of(info: TensorInfo) -> list[Candidate]:
        weight, known = checkpoint.tensors[info.name], by_tensor.get(info.name)
        choices, errors = choices_of(info.name, weight, known), None
        by_size = not by_tensor or (known is None and is_formula(info, weight))
        if by_size and quantizable(weight) and bool(weight.isfinite().all()):
            errors = error_measure(info, weight)
            levels[info.name] = errors.level
        arguments = known, whole, errors, required.get(info.name)
        measured = measure_tensor(info, weight, count.each(info.name, choices), *arguments)
        # Where no step of the grid can hold the weights, a format of more bits does.
        return measured or measure_tensor(info, weight, wide_choices(weight), *arguments)

    candidates = measured_side_by_side(infos, candidates_of, count)
    if not by_tensor:
        candidates = balanced(candidates, infos, levels)
    finished, guessed = complete(candidates, infos)
    return Measurement(
        source=checkpoint.source,
        structure=structure_fingerprint(checkpoint),
        contents=contents_fingerprint(checkpoint),
        header_bytes=header_bytes(header_of(infos, checkpoint.ties, all_metadata, finished)),
        tensors=infos,
        candidates=finished,
        ties=checkpoint.ties,
        metadata=all_metadata,
        damage_source=describe_damage(finished, by_tensor, whole, guessed),
        curvature=None if curvature is None else curvature.sha256,
        calibration="none" if curvature is None else curvature.kind,
    )


def measured_side_by_side(
    infos: Sequence[TensorInfo],
    candidates_of: Callable[[TensorInfo], list[Candidate]],
    count: WeightCount,
) -> list[Candidate]:
    """Candidates of all tensors in order, measured in parallel on all cores, the largest first."""
    by_name: dict[str, list[Candidate]] = {}
    largest_first = sorted(infos, key=lambda info: -info.elements)
    for info, measured in as_completed(candidates_of, largest_first, count.wait):
        count.end(info.name)
        by_name[info.name] = measured
    return [candidate for info in infos for candidate in by_name[info.name]]


def describe_damage(
    candidates: Sequence[Candidate],
    by_tensor: Mapping[str, Curvature],
    whole: CurvatureSet | None,
    guessed: Sequence[str],
) -> str:
    """What the candidates' damage was computed from, as text."""
    if whole is not None and candidates and candidates[0].damage_bpb is not None:
        return describe_source(whole, guessed)
    return GIVEN_HESSIANS if by_tensor else NO_DATA


def metadata_of(checkpoint: Checkpoint, more: Mapping[str, str]) -> dict[str, str]:
    """The metadata to store: the checkpoint's and more, sorted by name."""
    return dict(sorted(without_marks({**checkpoint.metadata, **more}).items()))


def tensor_infos(checkpoint: Checkpoint) -> tuple[TensorInfo, ...]:
    """Name, role, shape and dtype of every stored tensor, sorted by name."""
    meta_tensors = checkpoint.meta_tensors
    shapes = {name: tuple(meta.shape) for name, meta in meta_tensors.items()}
    roles = roles_of(shapes, checkpoint.ties)
    return tuple(
        TensorInfo(
            name,
            roles[name].role.value,
            roles[name].layer,
            shapes[name],
            str(meta_tensors[name].dtype).removeprefix("torch."),
        )
        for name in sorted(shapes)
    )


def header_of(
    infos: Sequence[TensorInfo],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
    candidates: Iterable[Candidate] = (),
) -> bytes:
    """The artifact's header stream for these tensors, in a coder that readers of them have."""
    coder = "numpy" if any("~numpy" in candidate.choice for candidate in candidates) else None
    shapes = {info.name: (info.dtype, info.shape) for info in infos}
    return encode_header(shapes, ties, metadata, coder)


def measure_tensor(
    info: TensorInfo,
    weight: torch.Tensor,
    choices: Iterable[Choice],
    curvature: Curvature | None = None,
    whole: CurvatureSet | None = None,
    errors: ErrorMeasure | None = None,
    required: Choice | None = None,
) -> list[Candidate]:
    """A candidate for every choice that can hold the weights, in the order given.

    Damage is in bits per byte if `whole` is given and the Fisher of the rows is known. errors: how
    weight errors are weighted; None: equally.
    Raises PlanError: the required choice cannot hold the weights.
    """
    role_weight = ROLE_WEIGHT[Role(info.role)]
    candidates = []
    for choice in choices:
        try:
            quantized = quantize(weight, choice, curvature)
            decoded = dequantize(quantized)
        except FormatError as error:
            if choice == required:
                raise PlanError(f"{info.name}: {error}") from None
            continue
        error_value = errors.of(decoded) if errors else weight_error(weight, decoded)
        if error_value is None or not math.isfinite(role_weight * error_value):
            if choice == required:
                raise PlanError(
                    f"{info.name}: under {choice} some weights overflow; pin a wider format"
                )
            continue
        damage = None
        if curvature is not None and error_value > 0:
            change = decoded.float() - weight.float()
            if whole is not None and curvature.fisher is not None:
                damage = bits_per_byte(predicted_nats(curvature, change) or 0.0, whole)
            else:
                error_value = output_error(curvature, change)
        elif whole is not None and error_value == 0:
            damage = 0.0
        size = encode_tensor(quantized, choice.coder).size_bytes
        candidates.append(
            Candidate(info.name, str(choice), size, role_weight * error_value, damage)
        )
    return candidates


def pinned_choices(pins: Mapping[str, str], roles: Mapping[str, TensorRole]) -> dict[str, Choice]:
    """The choice of every pinned tensor; the last pin of a tensor wins.

    Raises SelectorError: a selector matches nothing. PlanError: a choice cannot be read.
    """
    pinned: dict[str, Choice] = {}
    for selector, text in pins.items():
        choice = _parsed(f"pin {selector}", text)
        pinned.update(dict.fromkeys(select(selector, roles), choice))
    return pinned


def _parsed(what: str, text: str) -> Choice:
    try:
        return parse_choice(text)
    except FormatError as error:
        raise PlanError(f"{what}: {error}") from None


def with_pinned(choices: Sequence[Choice], pinned: Choice | None) -> tuple[Choice, ...]:
    if pinned is None or pinned in choices:
        return tuple(choices)
    return (*choices, pinned)
