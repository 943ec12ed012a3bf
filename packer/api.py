"""What the commands do, callable with values: inspect, calibrate, measure, plan, pack, and so on.

    from packer import PlanLimits, pack, plan
    weights = model.state_dict()
    limits = PlanLimits(16_000_000, code=["train_gpt.py"])
    packed = pack(weights, plan(weights, limits), out="model.pack")
    print(packed.account)

A checkpoint is a path, a state dict, or a Checkpoint; a plan is a path or a PackPlan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from packer.artifact.artifact_file import reading_artifact
from packer.artifact.decoder import MAX_DECODED_BYTES, decode_weights, parse
from packer.checkpoint import inspection
from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.checkpoint.lazy_tensors import Renamed
from packer.curvature import calibration
from packer.curvature.calibration import TextSource
from packer.curvature.curvature_set import SELF_GENERATED, CurvatureSet
from packer.curvature.file import write_curvature
from packer.curvature.given import CurvatureLike, resolve_curvature
from packer.curvature.self_generated import TEMPERATURE, sample_batches
from packer.errors import PlanError
from packer.eval.forward import AnyModel, TailLogits
from packer.eval.forward_probe import adapt
from packer.files import replacing, write_json
from packer.foreign.gguf_header import is_gguf
from packer.packing import codes_file
from packer.packing import verify as unpacking
from packer.packing.pack import Packed, pack_to_cap
from packer.planning import measure as measuring
from packer.planning.candidates import Measurement
from packer.planning.code_size import counted_loader, weigh_limits
from packer.planning.damage_trials import NO_CALIBRATION, Calibration
from packer.planning.measure import DEFAULT_OPTIONS, Progress, ignore_progress
from packer.planning.measured_source import check_measured, measurement_in
from packer.planning.options import MeasureFields, MeasureOptions, PathLike, PlanLimits
from packer.planning.pipeline import always, fit_measurement, plan_checkpoint, plan_under_policy
from packer.planning.plan import PackPlan, check_curvature, follow_policy, make_plan, read_plan
from packer.planning.recipe_search import RecipePlan, recipe_under_cap
from packer.planning.recipes import find_recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack

CheckpointLike = PathLike | Mapping[str, torch.Tensor] | Checkpoint

__all__ = [
    "Calibration",
    "CheckpointLike",
    "CurvatureLike",
    "MeasureOptions",
    "PathLike",
    "PlanLimits",
    "calibrate",
    "inspect",
    "load",
    "load_plan",
    "measure",
    "pack",
    "plan",
    "plan_recipe",
    "unpack",
    "unpack_foreign",
    "unpack_to",
    "verify",
]


def load(checkpoint: CheckpointLike) -> Checkpoint:
    """A Checkpoint of whatever describes one. Raises CheckpointError."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        return from_state_dict(checkpoint)
    return read_checkpoint(checkpoint)


def load_plan(plan: PathLike | PackPlan) -> PackPlan:
    """A PackPlan of whatever describes one. Raises PlanError."""
    return plan if isinstance(plan, PackPlan) else read_plan(plan)


def inspect(
    checkpoint: CheckpointLike, progress: Progress = ignore_progress
) -> tuple[inspection.TensorStatistics, ...]:
    """Role, shape, dtype, bytes, share, rms and kurtosis of every tensor."""
    return inspection.inspect(load(checkpoint), progress)


def measure(
    checkpoint: CheckpointLike,
    options: MeasureOptions = DEFAULT_OPTIONS,
    *,
    curvature: CurvatureLike | Calibration | None = None,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
    **fields: Unpack[MeasureFields],
) -> Measurement:
    """Every tensor under every choice; written to `out` (candidates.json) when given.

    curvature: what `calibrate` returned or wrote, which predicts damage in bits per byte and lets
    GPTQ round; or by tensor a Curvature or just second moments of its inputs, [columns, columns],
    with which GPTQ rounds. A Calibration also fits the predictions to true measurements. fields:
    of the options, by name.
    Raises CheckpointError, CurvatureError, SelectorError, PlanError.
    """
    loaded, options = load(checkpoint), replace(options, **fields)
    calibration = _calibration_of(loaded, curvature)
    measurement = measuring.measure(loaded, options, calibration.curvature, progress=progress)
    measurement = fit_measurement(measurement, calibration, always(progress))
    if out is not None:
        write_json(out, measurement.to_json())
    return measurement


def plan(
    source: CheckpointLike | Measurement | PackPlan,
    limits: int | PlanLimits,
    options: MeasureOptions = DEFAULT_OPTIONS,
    *,
    curvature: CurvatureLike | Calibration | None = None,
    policy: PathLike | PackPlan | None = None,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
    **fields: Unpack[MeasureFields],
) -> PackPlan:
    """The plan of least damage under the cap; written to `out` (plan.json) when given.

    source: a checkpoint, which is measured first, or measurements (candidates.json, plan.json).
    limits: the cap in bytes, or with what counts beside the artifact. policy: another run's plan,
    whose choices and pins are kept; tensors step down only where they do not fit. curvature: as of
    `measure`. fields: of the options, by name.
    Raises CapError: nothing fits; says the smallest size reachable. PlanError, SelectorError.
    """
    weighed = weigh_limits(limits)
    options = replace(options, **fields)
    if policy is not None and (options.pins or options.coder):
        raise PlanError(
            "a policy carries its own pins and coders; plan without it to choose others"
        )
    measured = measurement_in(source)
    if measured is not None:
        check_measured(options, curvature is not None)
        measurement, earlier_pins = measured
        if policy is not None:
            pack_plan = follow_policy(load_plan(policy), measurement, weighed)
        else:
            pack_plan = make_plan(measurement, weighed, {**earlier_pins, **options.pins})
    else:
        checkpoint = load(source)  # type: ignore[arg-type]
        calibration_given = _calibration_of(checkpoint, curvature)
        with_all = (checkpoint, weighed, options, calibration_given, always(progress))
        if policy is not None:
            pack_plan = plan_under_policy(load_plan(policy), *with_all)
        else:
            pack_plan = plan_checkpoint(*with_all)
    if out is not None:
        write_json(out, pack_plan.to_json())
    return pack_plan


def plan_recipe(
    checkpoint: CheckpointLike,
    recipe: str,
    limits: int | PlanLimits,
    options: MeasureOptions = DEFAULT_OPTIONS,
    *,
    curvature: CurvatureLike | None = None,
    progress: Progress = ignore_progress,
) -> RecipePlan:
    """The plan of a named recipe (`packer.planning.recipes`), its size parameter set so that its
    file fits.

    Arguments as of `plan`, but that a recipe carries its own coder and takes no trellis. Raises
    CapError: it fits at no position. PlanError: no such recipe, options that it carries itself, or
    it rounds with GPTQ and there is no curvature.
    """
    if options.coder is not None or options.trellis:
        raise PlanError("a recipe carries its own coder and takes no trellis; leave both out")
    loaded = load(checkpoint)
    return recipe_under_cap(
        loaded,
        find_recipe(recipe),
        weigh_limits(limits),
        options,
        resolve_curvature(loaded, curvature),
        progress,
    )


def calibrate(
    model: Any,
    batches: Iterable[torch.Tensor] | None = None,
    *,
    seconds: float | None = None,
    seed: int = 0,
    bytes_per_token: float | None = None,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
) -> CurvatureSet:
    """Curvature of every weight of a torch module; written to `out` (.safetensors) when given.

    model: gives logits for tokens [windows, time], or a loss from `cross_entropy`. batches: int64
    tokens [windows, time]; without any, the model writes some itself. seconds: within which it ends
    once there are batches, see `packer.curvature.calibration.calibrate`. bytes_per_token: of the
    text, so that damage is in bits per byte. The model is left as it was.
    Raises CurvatureError, ModelError: see packer.curvature.calibration and
    packer.eval.foreign_forward.
    """
    text = TextSource("batches of a training script", bytes_per_token)
    runs: AnyModel = model  # one that can leave out positions needs no adapter
    if not isinstance(model, TailLogits):
        runs = adapt(model, type(model).__name__)
    if batches is None:
        text = replace(text, words=f"{SELF_GENERATED} (temperature {TEMPERATURE:g})")
        batches = sample_batches(runs, seed)
    curvature = calibration.calibrate(
        runs, batches, seconds=seconds, seed=seed, text=text, progress=progress
    )
    if out is not None:
        write_curvature(out, curvature)
    return curvature


def pack(
    checkpoint: CheckpointLike,
    plan: PathLike | PackPlan,
    *,
    out: PathLike | None = None,
    loader: PathLike | None = None,
    curvature: CurvatureLike | None = None,
    progress: Progress = ignore_progress,
) -> Packed:
    """The artifact of a plan, weighed: never over the plan's cap; written to `out` when given.

    loader: also write the loader there; the plan must have counted it. curvature: what the
    plan's choices with +gptq were measured with, as in `measure`.
    Raises PlanError: the plan is for other contents, counts no loader, or needs curvature that is
    not there. CapError: nothing fits.
    """
    pack_plan = load_plan(plan)
    if loader is not None:
        counted_loader(pack_plan.choices.values(), pack_plan.limits)
    loaded = load(checkpoint)
    curvature_set = resolve_curvature(loaded, curvature)
    check_curvature(pack_plan, None if curvature_set is None else curvature_set.sha256)
    packed = pack_to_cap(loaded, pack_plan, curvature_set, progress)
    write_packed(packed, out, loader)
    return packed


def write_packed(packed: Packed, out: PathLike | None, loader: PathLike | None = None) -> None:
    """Write the artifact to `out` and its loader to `loader`, both or neither.

    Raises PlanError: the plan counts no loader. OutputError.
    """
    files: dict[PathLike, bytes] = {} if out is None else {out: packed.data}
    if loader is not None:
        files[loader] = counted_loader(packed.plan.choices.values(), packed.plan.limits)
    with contextlib.ExitStack() as all_or_none:
        for path, data in files.items():
            all_or_none.enter_context(replacing(path)).write_bytes(data)


def unpack(
    artifact: PathLike | bytes, out: PathLike | None = None, *, max_bytes: int = MAX_DECODED_BYTES
) -> dict[str, torch.Tensor]:
    """Weights by name, tied names included; written to `out` (.safetensors or .pt) when given.

    Raises PackerError, or ArtifactError for bytes: not an artifact, damaged, or larger decoded than
    `max_bytes`.
    """
    with _reading(artifact):
        stored = parse(_bytes_of(artifact), max_bytes)
        weights = decode_weights(stored)
    if out is not None:
        unpacking.write_weights(out, weights, stored.ties, stored.metadata)
    return weights


def unpack_to(
    artifact: PathLike | bytes,
    out: PathLike,
    *,
    max_bytes: int = MAX_DECODED_BYTES,
    progress: Progress = ignore_progress,
) -> dict[str, torch.Tensor]:
    """Weights written to `out` (.safetensors or .pt); returned are tensors of their shapes and
    dtypes without values. A .safetensors file is written as tensors are decoded, so that few of
    them are in memory. Raises as `unpack`.
    """
    with _reading(artifact):
        stored = parse(_bytes_of(artifact), max_bytes)
        return unpacking.write_decoded(out, stored, progress)


def unpack_codes(
    artifact: PathLike | bytes, out: PathLike | None = None, *, max_bytes: int = MAX_DECODED_BYTES
) -> dict[str, torch.Tensor]:
    """Integer codes and steps by name (packer.packing.codes_file), nothing inflated to floats;
    written to `out` (.safetensors) when given. Raises as `unpack`.
    """
    with _reading(artifact):
        return codes_file.unpack_codes(_bytes_of(artifact), out, max_bytes)


def unpack_foreign(
    artifact: PathLike,
    out: PathLike | None = None,
    template: PathLike | None = None,
    max_memory: int | None = None,
) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """(weights by name, each made when asked for, notes) of another author's artifact or GGUF file.

    template: a checkpoint of the same model, for dtypes that the artifact does not store.
    max_memory: bytes that it may expand to.
    Raises CheckpointError: damaged, of no known layout, or no artifact at all.
    """
    only = not is_gguf(artifact)
    checkpoint = read_checkpoint(artifact, template=template, max_memory=max_memory, artifact=only)
    weights = Renamed(checkpoint.tensors, checkpoint.holders)
    if out is not None:
        unpacking.write_weights(out, weights, checkpoint.ties, checkpoint.metadata)
    return weights, checkpoint.notes


def verify(
    artifact: PathLike | bytes,
    against: CheckpointLike | None = None,
    plan: PathLike | PackPlan | None = None,
    progress: Progress = ignore_progress,
    *,
    curvature: CurvatureLike | None = None,
) -> unpacking.Verification:
    """Checksum and decoding; with a checkpoint the error of every tensor; with a plan its codes.

    curvature: by tensor; without it, codes of choices with +gptq are not checked.
    Raises PackerError, or ArtifactError for bytes: not an artifact, or damaged; PlanError: the plan
    was made with another curvature. Other differences are returned as problems.
    """
    checkpoint = None if against is None else load(against)
    pack_plan = None if plan is None else load_plan(plan)
    curvature_set = None if checkpoint is None else resolve_curvature(checkpoint, curvature)
    if pack_plan is not None and curvature_set is not None:
        check_curvature(pack_plan, curvature_set.sha256)
    choices = None if pack_plan is None else pack_plan.choices
    with _reading(artifact):
        return unpacking.verify(_bytes_of(artifact), checkpoint, choices, curvature_set, progress)


def _calibration_of(
    checkpoint: Checkpoint, curvature: CurvatureLike | Calibration | None
) -> Calibration:
    if isinstance(curvature, Calibration):
        return curvature
    resolved = resolve_curvature(checkpoint, curvature)
    return NO_CALIBRATION if resolved is None else Calibration(resolved)


def _bytes_of(artifact: PathLike | bytes) -> bytes:
    return artifact if isinstance(artifact, bytes) else Path(artifact).read_bytes()


def _reading(artifact: PathLike | bytes) -> contextlib.AbstractContextManager[None]:
    """Errors name the file where there is one."""
    return contextlib.nullcontext() if isinstance(artifact, bytes) else reading_artifact(artifact)
