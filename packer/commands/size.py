"""`packer size`: predicted bytes of a model before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from packer.commands.best_size import SEARCH, SearchOptions, propose
from packer.commands.options.groups import with_options
from packer.commands.options.types import (
    CODE,
    EXISTING_FILE,
    JSON,
    Assignment,
    cap_option,
    print_json,
    say,
)
from packer.planning.account import describe_rest

if TYPE_CHECKING:
    from packer.size.estimate import SizeEstimate
    from packer.size.sweep import Variant


@click.command(short_help="Predict bytes before training.")
@click.argument("config", type=EXISTING_FILE)
@click.option(
    "--set",
    "settings",
    multiple=True,
    type=Assignment("KEY=VALUE", "num_layers=10,11"),
    metavar="KEY=VALUE[,VALUE...]",
    help="Change a setting of the model (num_layers=11) or of the recipe (k=12.85, k.mlp=11.5, "
    "bits.embedding=7); add extra=N small weights that the model lacks; or give weight_std=S for "
    "recipes whose scales have a floor. Several values, separated by commas, are a sweep.",
)
@click.option(
    "--recipe", "names", multiple=True, help="Predict only for this recipe; repeat for more."
)
@with_options(
    cap_option(
        required=False, help="Print what fits under SIZE bytes, code included, and with which k."
    ),
    CODE,
    SEARCH,
    JSON,
)
def size(
    config: str,
    settings: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    cap: int | None,
    code: tuple[str, ...],
    search: SearchOptions,
    as_json: bool,
) -> None:
    """Predict the bytes of the model in CONFIG (JSON or TOML) with published recipes and ours.

    Uses the shapes alone: codes take the entropy of a normal variable at the recipe's step, times
    the overhead of its coder; scales, small tensors and the container are counted exactly. The
    prediction is within 1 % of logged artifacts of recipes that clip at k standard deviations.
    Recipes that clip at row maxima have scales with a floor, and take less if weights are small;
    give weight_std for those. Layers that run several times count once. With --cap, `k ×` is the
    factor on all clips that would just reach the cap.

    With --best, sizes of the same model at other widths and depths are trained for a short time,
    and the best for --cap and --seconds are proposed; --recipe then also takes ours-trellis.
    """
    from packer.planning.account import count_code
    from packer.size.estimate import estimate_size, factor_to_cap, recipes_named
    from packer.size.sweep import variants
    from packer.train.config import FIELDS

    code_bytes = sum(file.size_bytes for file in count_code(code))
    if search.best:
        propose(config, names, cap, code_bytes, search, as_json)
        return
    sizes: list[dict[str, Any]] = []
    for variant in variants(settings, list(FIELDS)):
        shapes = _shapes(config, variant)
        for recipe in (variant.applied(one) for one in recipes_named(names)):
            estimate = estimate_size(
                shapes, recipe, extra=variant.extra, weight_std=variant.weight_std
            )
            left = None if cap is None else cap - code_bytes
            factor = factor_to_cap(shapes, recipe, left, extra=variant.extra) if left else None
            sizes.append(_row(variant, estimate, code_bytes, cap, factor))
    if as_json:
        print_json({"config": config, "cap_bytes": cap, "code_bytes": code_bytes, "sizes": sizes})
        return
    _print(sizes, cap)


def _shapes(config: str, variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors; nothing is allocated."""
    import torch

    from packer.errors import PackerError
    from packer.train.config import ConfigError, checked, config_from, read_config
    from packer.train.model import GPT

    try:
        settings = {**read_config(config), **checked(variant.model, "--set")}
        settings["orthogonal_init"] = False  # nothing is initialized
        with torch.device("meta"):
            model = GPT(config_from(settings))
    except ConfigError as error:
        raise PackerError(f"{config}: {error}") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _row(
    variant: Variant, estimate: SizeEstimate, code_bytes: int, cap: int | None, factor: float | None
) -> dict[str, Any]:
    total = estimate.artifact_bytes + code_bytes
    return {
        "settings": dict(variant.spelled),
        "recipe": estimate.recipe.name,
        "about": estimate.recipe.about,
        "parameters": estimate.parameters,
        "codes_bytes": estimate.codes,
        "side_bytes": estimate.side,
        "kept_bytes": estimate.kept,
        "container_bytes": estimate.container,
        "artifact_bytes": estimate.artifact_bytes,
        "total_bytes": total,
        "unused_bytes": None if cap is None else cap - total,
        "bits_per_weight": 8 * estimate.artifact_bytes / estimate.parameters,
        "bits_per_code": dict(estimate.bits),
        "k_factor": factor,
        "k": {name: rule.k for name, rule in estimate.recipe.rules.items() if rule.k},
        "at_most": estimate.recipe.floor and variant.weight_std is None,
    }


def _print(sizes: list[dict[str, Any]], cap: int | None) -> None:
    from packer.reports import tables

    swept = list(sizes[0]["settings"])
    rows = [
        (
            *row["settings"].values(),
            row["recipe"],
            f"{row['parameters']:,}",
            f"{row['codes_bytes']:,}",
            f"{row['side_bytes'] + row['kept_bytes'] + row['container_bytes']:,}",
            f"{'≤ ' if row['at_most'] else ''}{row['total_bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            describe_rest(cap, row["unused_bytes"]).rpartition(", ")[2] if cap else "-",
            "-" if row["k_factor"] is None else f"{row['k_factor']:.3f}",
            row["about"],
        )
        for row in sizes
    ]
    columns = (*swept, "recipe", ">weights", ">codes", ">side, kept, container", ">total")
    columns = (*columns, ">bits/w", ">of the cap", ">k ×", "how")
    tables.print_table(columns, rows)
    if any(row["at_most"] for row in sizes):
        say("≤: an upper bound; where scales have a floor, small weights take less (weight_std=S)")
