"""A trained model as a file under a cap, by published recipes and by ours, and its true score."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packer.eval import score as scoring
from packer.eval.batches import Setting
from packer.train.calibrating import curvature_of
from packer.train.ladder import shapes_of
from packer.train.ledger import Ledger
from packer.train.model import GPT, GPTConfig, model_of
from packer.train.settings import TrainConfig
from packer.train.training_data import TrainingData
from torch import Tensor

from packer.checkpoint.any_weights import load_weights
from packer.checkpoint.checkpoint import from_state_dict
from packer.errors import PackerError
from packer.evaluation import Data
from packer.packing.comparison import Comparison, Entry, Refused
from packer.packing.leader_file import with_coder_here
from packer.planning.account import Limits
from packer.planning.damage_trials import Calibration, damage_evaluator
from packer.planning.options import MeasureOptions
from packer.planning.recipes import find_recipe
from packer.shipping.loader import LARGEST_LOADER, loader_bytes
from packer.size.best import damage_scale
from packer.size.packed import finest_k, packed_bytes

OURS = ("ours", "ours-trellis")
TRIED_BITS = (3.0, 6.0, 12.0, 24.0)  # a weight
# A file of the leader's own layout is read by a script of its author; the loader that reads integer
# rows stands in for it.
STAND_IN = ("int6.row~brotli", "int8.row~brotli", "fp16~brotli")


@dataclass(frozen=True, eq=False)
class Ready:
    """Weights to pack: by name, the model they belong to, and what rounding needs to know."""

    weights: Mapping[str, Tensor]
    config: TrainConfig
    calibration: Calibration

    @property
    def model(self) -> GPT:
        return model_of(self.config.model, self.weights)


def calibrated(weights: Mapping[str, Tensor], config: TrainConfig, data: TrainingData) -> Ready:
    """The weights with curvature from training data, and predicted damage fitted on held-out text.

    Raises PackerError: no curvature, or no held-out text.
    """
    whole = {name: weight.detach().float().contiguous() for name, weight in weights.items()}
    curvature, note = curvature_of(whole, config, data, Ledger(), 1.0)
    if curvature is None or data.valid is None or data.counter is None:
        raise PackerError(
            "recipes cannot be compared without calibration and held-out text; "
            + (note or "not calibrated")
        )
    held_out = Data(data.valid, data.counter, config.model.vocab_size, None, None)
    evaluator = damage_evaluator(
        model_of(config.model, whole),
        from_state_dict(whole),
        curvature,
        held_out,
        "held-out text",
        tokens=config.pack.calibration_tokens,
        window=config.batch.sequence,
        held_out=True,
    )
    return Ready(whole, config, Calibration(curvature, evaluator))


def packed_under(ready: Ready, recipe: str, cap_bytes: int) -> Entry | Refused:
    """The file of a recipe by name, or of OURS, with the loader that reads it under the cap."""
    options = MeasureOptions(trellis=recipe == OURS[1])
    code = Limits(0, loader_bytes=LARGEST_LOADER)
    if recipe in OURS:
        comparison = Comparison(from_state_dict(ready.weights), code, ready.calibration, options)
        return next(comparison.ours_under([cap_bytes]))
    named = find_recipe(recipe)
    if named.own_layout:
        code = Limits(0, loader_bytes=loader_bytes(STAND_IN))
    comparison = Comparison(from_state_dict(ready.weights), code, ready.calibration, options)
    return comparison.recipe_under(named, cap_bytes)


def decoded(entry: Entry) -> dict[str, Tensor]:
    """The weights that are read back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(entry.data)
        return {name: weight.float() for name, weight in load_weights(path).weights.items()}


def score_of(
    weights: Mapping[str, Tensor], config: TrainConfig, text: Data, tokens: int = 0
) -> float:
    """Bits per byte on the first tokens of a text, 0 for all."""
    available = len(text.stream) - 1
    count = min(tokens or available, available)
    setting = Setting(min(config.batch.sequence, available), tokens=count)
    model = model_of(config.model, weights)
    return scoring.score(model, text.stream, text.counter, setting).bits_per_byte


def measured_storage(ready: Ready, recipe: str, text: Data, tokens: int) -> dict[str, float]:
    """damage_scale and code_bytes of a recipe's Storage, from the coarsest file of TRIED_BITS.

    Raises PackerError: the recipe cannot store the model.
    """
    count, reason = sum(weight.numel() for weight in ready.weights.values()), ""
    for bits in TRIED_BITS:
        entry = packed_under(ready, recipe, round(LARGEST_LOADER + bits * count / 8))
        if isinstance(entry, Refused):
            reason = entry.reason
            continue
        after, before = (
            score_of(weights, ready.config, text, tokens)
            for weights in (decoded(entry), ready.weights)
        )
        scale = damage_scale(8 * entry.artifact_bytes / count, after - before)
        return {"damage_scale": scale, "code_bytes": entry.code_bytes}
    raise PackerError(f"{recipe} cannot store {count:,} weights: {reason}")


def finest_bytes(model: GPTConfig, recipe: str) -> int:
    """Artifact bytes of a model in the finest setting of a recipe."""
    shapes = shapes_of(model)
    if recipe in OURS:  # every weight as it is
        return 4 * sum(math.prod(shape) for shape in shapes.values())
    named = with_coder_here(find_recipe(recipe))
    return packed_bytes(shapes, named, finest_k(named))
