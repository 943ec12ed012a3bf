"""The recipe that led the contest at its end (PR #2135), as a file of its author's layout.

Matrices are rounded with GPTQ under k standard deviations; the three with the largest error get a
correction of rank 4; small tensors are int8 with a scale per row. All codes go into one stream with
sorted rows, all else into another (sorted_frame_writer.py). The file is read back like anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.roles import Role, TensorRole
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.errors import PlanError
from packer.foreign.lrzip import lrzip_program
from packer.packing.sorted_frame_writer import MOST_ROWS, sorted_frame
from packer.planning.measure import Progress, ignore_progress, pinned_choices, tensor_infos
from packer.planning.options import MeasureOptions
from packer.planning.recipes import Position, Recipe, recipe_choices
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import Passthrough, Uniform
from packer.quantizers.grouped_low_rank import fits, grouped_correction
from packer.quantizers.quantize import dequantize, quantizable, quantize, quantize_reported
from packer.threads import side_by_side

RANK, GROUP, CORRECTED = 4, 32, 3
FACTORS = {"A": "lqA_a", "A_scale": "lqAs_a", "B": "lqB_a", "B_scale": "lqBs_a"}
CONTROL = parse_choice("int8.row")  # of tensors that are not quantized
SMALLEST_CONTROL = 32  # values; fewer are kept as float16


class LayoutError(PlanError):
    """A tensor that the layout cannot hold."""


@dataclass(frozen=True)
class LeaderFile:
    """data: the file. problems: tensor -> why it was not rounded as its choice says."""

    data: bytes
    problems: Mapping[str, str]


@dataclass(frozen=True)
class _Stored:
    """One tensor. parts: by suffix, the codes of a matrix under q. error: float32 [rows, columns],
    of a matrix that can be corrected.
    """

    meaning: str
    parts: Mapping[str, torch.Tensor]
    error: torch.Tensor | None = field(default=None, repr=False)
    problem: str | None = None


def with_coder_here(recipe: Recipe) -> Recipe:
    """The recipe; where lrzip is not installed, brotli is in its place and in its name."""
    if recipe.coder != "lrzip" or lrzip_program() is not None:
        return recipe
    return replace(recipe, name=recipe.name.replace("lrzip", "brotli"), coder="brotli")


def leader_file(
    checkpoint: Checkpoint,
    recipe: Recipe,
    position: Position,
    options: MeasureOptions,
    curvature: CurvatureSet | None,
    progress: Progress = ignore_progress,
) -> LeaderFile:
    """The file at one value of the size parameter. options: its pins replace the recipe's choices.

    Raises PlanError: GPTQ without curvature. LayoutError: a tensor that the layout cannot hold.
    """
    infos, curved = tensor_infos(checkpoint), by_tensor_of(curvature)
    chosen = recipe_choices(recipe, infos, position, set(curved))
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    pinned = {name: str(one) for name, one in pinned_choices(options.pins, roles).items()}
    choices = {**chosen.choices, **pinned}

    def store(name: str) -> _Stored:
        return _stored(name, checkpoint.tensors[name], choices[name], curved.get(name))

    stored: dict[str, _Stored] = {}
    for name, one in zip(choices, side_by_side(store, choices), strict=True):
        progress(f"{recipe.name} at {position}: {name}", len(stored), len(choices))
        stored[name] = one
    nearest = "rounded to nearest: there is no curvature of it"
    problems = dict.fromkeys((name for name in chosen.nearest if name not in pinned), nearest)
    problems |= {name: one.problem for name, one in stored.items() if one.problem is not None}
    return LeaderFile(_framed(stored | _corrected(stored), recipe.coder), problems)


def _stored(name: str, weight: torch.Tensor, text: str, curvature: Curvature | None) -> _Stored:
    choice = parse_choice(text)
    if isinstance(choice.format, Passthrough):
        return _kept(weight)
    if not isinstance(choice.format, Uniform) or weight.dim() != 2 or len(weight) > MOST_ROWS:
        raise LayoutError(
            f"{name} is {list(weight.shape)} as {text}: the leader's layout holds integers of two "
            f"axes and at most {MOST_ROWS:,} rows"
        )
    quantized, report = quantize_reported(weight, choice, curvature)
    parts = {"q": quantized.codes, "scale": quantized.side["scale"]}
    rows, columns = weight.shape
    correctable = fits(rows, columns, RANK, GROUP)
    error = weight.float() - dequantize(quantized).float() if correctable else None
    problem = None if report is None else report.problem
    return _Stored(f"gptq (int{choice.format.bits})", parts, error, problem)


def _kept(weight: torch.Tensor) -> _Stored:
    """int8 under a scale per row; as float16 where the values are few, or as it is."""
    if weight.dim() in (1, 2) and weight.numel() >= SMALLEST_CONTROL and quantizable(weight):
        quantized = quantize(weight, CONTROL)
        codes = quantized.codes.reshape(weight.shape)
        return _Stored("gate_int8_row", {"gq": codes, "gs": quantized.side["scale"]})
    half = weight.half() if weight.is_floating_point() else weight
    return _Stored("passthrough", {"": half if bool(half.isfinite().all()) else weight})


def _corrected(stored: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """The matrices of largest error, with their correction."""
    errors = {name: one.error for name, one in stored.items() if one.error is not None}
    largest = sorted(errors, key=lambda name: -float(errors[name].norm()))[:CORRECTED]
    corrected = {}
    for name in largest:
        factors = grouped_correction(errors[name], RANK, GROUP)
        parts = {**stored[name].parts, **{FACTORS[key]: one for key, one in factors.items()}}
        corrected[name] = _Stored(f"{stored[name].meaning}+lqer_asym", parts)
    return corrected


def _framed(stored: Mapping[str, _Stored], coder: str) -> bytes:
    parts = {
        f"{name}.{suffix}" if suffix else name: part
        for name, one in stored.items()
        for suffix, part in one.parts.items()
    }
    matrices = {f"{name}.q": one.parts["q"] for name, one in stored.items() if "q" in one.parts}
    rest = {key: part for key, part in parts.items() if key not in matrices}
    meanings = {name: one.meaning for name, one in stored.items()}
    return sorted_frame(matrices, {"w": rest, "m": meanings}, coder)
