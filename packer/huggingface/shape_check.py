"""Compares the shapes of weights with those of a configuration's model, without building it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from packer.errors import CheckpointError, listed
from packer.eval.foreign_weights import best_fit
from packer.huggingface.configuration import Settings, refuse_unbuildable
from packer.huggingface.library import quietly, transformers_for
from packer.huggingface.model import built_by_library, configuration_of


def check_shapes(
    settings: Settings,
    where: str,
    meta_tensors: Mapping[str, Tensor],
    source: str,
    *,
    complete: bool = True,
) -> str | None:
    """Why the shapes were not compared; None if they were, and fit.

    where, source: files of the configuration and of the weights. meta_tensors: by their names in
    the file, tied ones included. complete: whether a tensor that is not there is refused.
    Raises CheckpointError: shapes or layers are those of another model.
    """
    refuse_unbuildable(settings, where)
    try:
        library = transformers_for(where)
        if settings["model_type"] not in library.CONFIG_MAPPING:
            return f"transformers {library.__version__} has no model {settings['model_type']!r}"
    except CheckpointError as error:
        return str(error)
    with quietly(library), torch.device("meta"):
        configuration = configuration_of(library, settings, where)
        try:
            model = built_by_library(library, configuration, where)
        except CheckpointError as error:
            return str(error)
    named = settings.get("architectures") or [type(model).__name__]
    if type(model).__name__ not in named:
        return f"{where} is of {listed([str(one) for one in named])}, no causal language model"
    fit, differences = best_fit(model, {n: one.to("meta") for n, one in meta_tensors.items()})
    lines = _sure(differences, any_fits=bool(fit.weights))
    lines = [line for line in lines if complete or not line.startswith("missing:")]
    if lines:
        raise CheckpointError(
            f"{source}: is not the model of {where}, {len(lines)} differences: {listed(lines)}"
        )
    return None


def _sure(differences: tuple[str, ...], any_fits: bool) -> list[str]:
    """Those that no renaming on loading explains: of shape, or names that one side alone lacks."""
    missing = [line for line in differences if line.startswith("missing:")]
    extra = [line for line in differences if line.startswith("not in the model:")]
    if missing and extra and any_fits:
        return [line for line in differences if line not in missing and line not in extra]
    return list(differences)
