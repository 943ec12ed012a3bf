"""What the commands do, callable with values: inspect, calibrate, measure, plan, pack, and so on.

    from packer import pack, plan
    weights = model.state_dict()
    packed = pack(weights, plan(weights, 16_000_000, code=["train_gpt.py"]), out="model.pack")
    print(packed.account)

A checkpoint is a path, a state dict, or a Checkpoint; a plan is a path or a PackPlan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from packer import codes_file, inspection, measuring, unpacking
from packer.api_inputs import (
    CheckpointLike,
    CurvatureLike,
    PathLike,
    checkpoint_of,
    load,
    load_plan,
    measurement_of,
    under_policy,
)
from packer.artifact_files import reading_artifact
from packer.candidates import Measurement
from packer.checkpoint import read_checkpoint
from packer.counted_code import limits_of
from packer.curvature import calibration
from packer.curvature.calibration import TextSource
from packer.curvature.curvature_set import AnyCurvature, CurvatureSet
from packer.curvature.file import write_curvature
from packer.curvature.given import given_curvature
from packer.decoder import MAX_DECODED_BYTES, decode_weights, parse
from packer.errors import PlanError
from packer.eval.forward import AnyModel, TailLogits
from packer.eval.forward_probe import adapt
from packer.files import replacing, write_json
from packer.fit import Packed, pack_to_cap
from packer.knob import RecipePlan, recipe_under_cap
from packer.measuring import Progress, ignore_progress, tensors_of
from packer.planning import PackPlan, check_curvature, make_plan
from packer.recipes import find_recipe
from packer.refining import refined
from packer.ship import loader_source, parts_of

__all__ = [
    "CheckpointLike",
    "CurvatureLike",
    "PathLike",
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


def inspect(checkpoint: CheckpointLike) -> tuple[inspection.TensorStatistics, ...]:
    """Role, shape, dtype, bytes, share, rms and kurtosis of every tensor."""
    return inspection.inspect(load(checkpoint))


def measure(
    checkpoint: CheckpointLike,
    *,
    pins: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    curvature: CurvatureLike | None = None,
    hessians: Mapping[str, torch.Tensor] | None = None,
    coder: str | None = None,
    trellis: bool = False,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
) -> Measurement:
    """Every tensor under every choice; written to `out` (candidates.json) when given.

    pins: selector -> choice, measured as well. metadata: text that goes into the artifact.
    curvature: what `calibrate` gave or wrote, which predicts damage in bits per byte and lets GPTQ
    round; or Curvature by tensor. hessians: in its place second moments of the inputs alone,
    [columns, columns] by tensor, with which GPTQ rounds. coder: of every tensor; "numpy" is read
    where constriction is not installed; None lets the packer choose. trellis: with curvature, codes
    on a trellis too: fewer bytes, slower.
    """
    loaded = load(checkpoint)
    felt = given_curvature(loaded, curvature, hessians)
    measured = measuring.measure(
        loaded,
        pins=pins,
        metadata=metadata,
        curvature=felt,
        coder=coder,
        trellis=trellis,
        progress=progress,
    )
    if out is not None:
        write_json(out, measured.to_json())
    return measured


def plan(
    source: CheckpointLike | Measurement | PackPlan,
    cap_bytes: int,
    *,
    code: Sequence[PathLike] = (),
    loader: bool = False,
    bundle: bool = False,
    inline: PathLike | None = None,
    calibrates: bool = False,
    margin_bytes: int = 0,
    pins: Mapping[str, str] | None = None,
    policy: PathLike | PackPlan | None = None,
    metadata: Mapping[str, str] | None = None,
    curvature: CurvatureLike | None = None,
    hessians: Mapping[str, torch.Tensor] | None = None,
    coder: str | None = None,
    trellis: bool = False,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
) -> PackPlan:
    """The plan of least damage under the cap; written to `out` (plan.json) when given.

    source: a checkpoint, which is measured first, or measurements (candidates.json, plan.json).
    code: files counted as code. loader: count the loader too. bundle: count a bundle instead, or
    inline: what it adds to this script. calibrates: the bundle makes its own curvature of batches.
    margin_bytes: left free on purpose.
    pins: selector -> choice. policy: another run's plan, whose choices and pins are kept; tensors
    step down only where they do not fit. curvature, hessians, coder, trellis: as in `measure`.
    Raises CapError: nothing fits; says the smallest size reachable. PlanError, SelectorError.
    """
    bundle = bundle or inline is not None or calibrates
    limits = limits_of(cap_bytes, code, loader, margin_bytes, bundle, inline, calibrates)
    if policy is not None and (pins or coder):
        raise PlanError(
            "a policy carries its own pins and coders; plan without it to choose others"
        )
    felt: AnyCurvature | None = None
    if coder is not None:
        source = checkpoint_of(source, "coder")
    if curvature is not None or hessians is not None:
        source = checkpoint_of(source, "curvature")
        felt = given_curvature(source, curvature, hessians)
    if policy is not None:
        made = under_policy(load_plan(policy), source, limits, metadata, felt, progress)
    else:
        measurement, earlier = measurement_of(
            source, pins, metadata, felt, coder, trellis, progress
        )
        made = make_plan(measurement, limits, {**earlier, **(pins or {})})
        if felt is not None:
            made = refined(checkpoint_of(source, "curvature"), made, felt, progress)
    if out is not None:
        write_json(out, made.to_json())
    return made


def plan_recipe(
    checkpoint: CheckpointLike,
    recipe: str,
    cap_bytes: int,
    *,
    code: Sequence[PathLike] = (),
    loader: bool = False,
    margin_bytes: int = 0,
    pins: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    curvature: CurvatureLike | None = None,
    hessians: Mapping[str, torch.Tensor] | None = None,
    progress: Progress = ignore_progress,
) -> RecipePlan:
    """The plan of a named recipe (`packer.recipes`) whose knob was turned until its file fits.

    Arguments as of `plan`. Raises CapError: it fits at no position of its knob. PlanError: no such
    recipe, or it rounds with GPTQ and there is no curvature.
    """
    limits = limits_of(cap_bytes, code, loader, margin_bytes)
    loaded = load(checkpoint)
    felt = given_curvature(loaded, curvature, hessians)
    return recipe_under_cap(
        loaded,
        find_recipe(recipe),
        limits,
        curvature=None if felt is None else tensors_of(felt),
        pins=pins,
        metadata=metadata,
        progress=progress,
    )


def calibrate(
    model: Any,
    batches: Iterable[torch.Tensor],
    *,
    seconds: float | None = None,
    seed: int = 0,
    bytes_per_token: float | None = None,
    out: PathLike | None = None,
    progress: Progress = ignore_progress,
) -> CurvatureSet:
    """How much every weight of a torch module is felt; written to `out` (.safetensors) when given.

    model: gives logits for tokens [windows, time], or a loss from `cross_entropy`. batches: int64
    tokens [windows, time]. seconds: within which it ends, see
    `packer.curvature.calibration.calibrate`. bytes_per_token: of the text, so that damage is
    in bits per byte. The model is left as it was.
    Raises CurvatureError, ModelError: see packer.curvature.calibration and
    packer.eval.foreign_forward.
    """
    text = TextSource("batches of a training script", bytes_per_token)
    runs: AnyModel = model  # one that can leave out positions needs no adapter
    if not isinstance(model, TailLogits):
        runs = adapt(model, type(model).__name__)
    found = calibration.calibrate(
        runs, batches, seconds=seconds, seed=seed, text=text, progress=progress
    )
    if out is not None:
        write_curvature(out, found)
    return found


def pack(
    checkpoint: CheckpointLike,
    plan: PathLike | PackPlan,
    *,
    out: PathLike | None = None,
    loader: PathLike | None = None,
    curvature: CurvatureLike | None = None,
    hessians: Mapping[str, torch.Tensor] | None = None,
    progress: Progress = ignore_progress,
) -> Packed:
    """The artifact of a plan, weighed: never over the plan's cap; written to `out` when given.

    loader: also write the loader there; the plan must have counted it. curvature, hessians: what
    the plan's choices with +gptq were measured with, as in `measure`.
    Raises PlanError: the plan is for other contents, counts no loader, or needs curvature that is
    not there. CapError: nothing fits.
    """
    made = load_plan(plan)
    source = loader_source(parts_of(made.choices.values()))
    if loader is not None and made.limits.loader_bytes != len(source.encode()):
        raise PlanError(
            f"the plan counts {made.limits.loader_bytes:,} bytes of loader, and the loader has "
            f"{len(source.encode()):,}. Plan again with --loader."
        )
    loaded = load(checkpoint)
    felt = given_curvature(loaded, curvature, hessians)
    check_curvature(made, _sha256(felt), felt is not None)
    packed = pack_to_cap(loaded, made, progress, tensors_of(felt))
    contents = {out: packed.data, loader: source.encode()}
    with contextlib.ExitStack() as all_or_none:
        for path, data in contents.items():
            if path is not None:
                all_or_none.enter_context(replacing(path)).write_bytes(data)
    return packed


def unpack(
    artifact: PathLike | bytes,
    out: PathLike | None = None,
    *,
    max_bytes: int = MAX_DECODED_BYTES,
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
    artifact: PathLike | bytes,
    out: PathLike | None = None,
    *,
    max_bytes: int = MAX_DECODED_BYTES,
) -> dict[str, torch.Tensor]:
    """Integer codes and steps by name (packer.codes_file), nothing inflated to floats; written to
    `out` (.safetensors) when given. Raises as `unpack`.
    """
    with _reading(artifact):
        data = _bytes_of(artifact)
        if out is None:
            return codes_file.read_codes(data, max_bytes)
        return codes_file.write_codes(data, out, max_bytes)


def unpack_foreign(
    artifact: PathLike,
    out: PathLike | None = None,
    template: PathLike | None = None,
    max_memory: int | None = None,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """(weights by name, notes) of another author's artifact; written to `out` when given.

    template: a checkpoint of the same model, for dtypes that the artifact does not store.
    max_memory: bytes that it may expand to.
    Raises CheckpointError: damaged, of no known layout, or no artifact at all.
    """
    checkpoint = read_checkpoint(artifact, template=template, max_memory=max_memory, artifact=True)
    weights = checkpoint.all_weights()
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
    hessians: Mapping[str, torch.Tensor] | None = None,
) -> unpacking.Verification:
    """Checksum and decoding; with a checkpoint the error of every tensor; with a plan its codes.

    curvature: by tensor; without it, codes of choices with +gptq are not checked.
    Raises PackerError, or ArtifactError for bytes: not an artifact, or damaged; PlanError: the plan
    was made with another curvature. Other differences are returned as problems.
    """
    checkpoint = None if against is None else load(against)
    made = None if plan is None else load_plan(plan)
    felt = None if checkpoint is None else given_curvature(checkpoint, curvature, hessians)
    if made is not None and felt is not None:
        check_curvature(made, _sha256(felt), given=True)
    choices = None if made is None else made.choices
    with _reading(artifact):
        return unpacking.verify(
            _bytes_of(artifact), checkpoint, choices, progress, tensors_of(felt) or None
        )


def _sha256(felt: AnyCurvature | None) -> str | None:
    return felt.sha256 if isinstance(felt, CurvatureSet) else None


def _bytes_of(artifact: PathLike | bytes) -> bytes:
    return artifact if isinstance(artifact, bytes) else Path(artifact).read_bytes()


def _reading(artifact: PathLike | bytes) -> contextlib.AbstractContextManager[None]:
    """Errors name the file where there is one."""
    return contextlib.nullcontext() if isinstance(artifact, bytes) else reading_artifact(artifact)
