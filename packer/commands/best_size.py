"""`packer size --best`: the width and depth to train under a cap in a given time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.groups import OptionGroup
from packer.commands.options.types import Finite, print_json, say

if TYPE_CHECKING:
    from packer.size.best import Proposal

SHOWN = 5  # sizes of each recipe


@dataclass(frozen=True)
class SearchOptions:
    """What `--best` needs: data, seconds, tokens_per_second of training, and a folder."""

    best: bool
    data: str | None
    seconds: float | None
    tokens_per_second: float | None
    ladder: str


SEARCH = OptionGroup(
    "search",
    SearchOptions,
    click.option(
        "--best",
        is_flag=True,
        help="Propose the width and depth that end with the fewest bits per byte under --cap after "
        "--seconds of training, from short runs of CONFIG at several sizes.",
    ),
    click.option("--data", metavar="DIR", help="Train them on these shards."),
    click.option(
        "--seconds",
        type=Finite(min=0, min_open=True),
        help="Propose for this training time, calibration included.",
    ),
    click.option(
        "--rate",
        "tokens_per_second",
        type=Finite(min=0, min_open=True),
        metavar="TOKENS",
        help="Take training to read this many tokens a second at CONFIG's size; default: measure.",
    ),
    click.option(
        "--ladder",
        default="ladder",
        show_default=True,
        metavar="DIR",
        help="Keep the short runs here; the same command goes on with them.",
    ),
)


def propose(
    config: str,
    names: Sequence[str],
    cap: int | None,
    code_bytes: int,
    options: SearchOptions,
    as_json: bool,
) -> None:
    """Print the best sizes of every recipe. Raises PackerError, click.UsageError."""
    from packer.errors import PackerError
    from packer.size.best import cost_of_cap, proposals
    from packer.train.config import ConfigError
    from packer.train.run_config import read_run
    from packer.train.size_search import search_sizes, searchable
    from packer.train.training_data import open_training_data

    if options.data is None or options.seconds is None or cap is None:
        raise click.UsageError("--best needs --cap SIZE, --data DIR and --seconds SECONDS")
    try:
        run = searchable(read_run(config), Path(options.data))
    except ConfigError as error:
        raise PackerError(str(error)) from None
    search = search_sizes(
        run,
        open_training_data(run),
        Path(options.ladder),
        options.seconds,
        _progress,
        options.tokens_per_second,
    )
    found = []
    for name in names or ("ours",):
        storage = search.storage(name)
        seconds = search.training_seconds(options.seconds)
        known = search.shapes, search.fit, search.speed, seconds, storage
        sizes, free = proposals(*known, cap - code_bytes), proposals(*known)
        found += [(name, one, cost_of_cap(sizes[0], free[0])) for one in sizes[:SHOWN]]
    if as_json:
        print_json({"config": config, "cap_bytes": cap, "sizes": [_row(*one) for one in found]})
        return
    _print(found, cap)


def _progress(text: str) -> None:
    say(text, err=True)


def _row(recipe: str, one: Proposal, cost: float) -> Mapping[str, Any]:
    return {
        "recipe": recipe,
        "num_layers": one.shape.layers,
        "model_dim": one.shape.width,
        "parameters": one.shape.weights,
        "tokens": round(one.tokens),
        "total_bytes": one.total_bytes,
        "bits_per_weight": one.bits,
        "trained_bits_per_byte": one.trained,
        "damage_bits_per_byte": one.damage,
        "bits_per_byte": one.bits_per_byte,
        "stderr_bits_per_byte": one.stderr,
        "cap_costs_bits_per_byte": cost,
    }


def _print(found: Sequence[tuple[str, Proposal, float]], cap: int) -> None:
    from packer.reports.tables import print_table
    from packer.size.best import NOT_BINDING

    rows = [
        (
            recipe,
            f"{one.shape.layers} x {one.shape.width}",
            f"{one.shape.weights:,}",
            f"{one.tokens:,.0f}",
            f"{one.total_bytes:,}",
            f"{one.bits:.2f}",
            f"{one.trained:.4f}",
            f"{one.damage:.4f}",
            f"{one.bits_per_byte:.4f} ± {one.stderr:.4f}",
        )
        for recipe, one, _ in found
    ]
    columns = ("recipe", ">size", ">weights", ">tokens", ">bytes", ">bits/w")
    print_table((*columns, ">bpb trained", ">+ rounding", ">bpb in all"), rows)
    for recipe, cost in {recipe: cost for recipe, _, cost in found}.items():
        binds = f"costs {cost:.4f} bits per byte" if cost > NOT_BINDING else "does not bind"
        say(f"{recipe}: the cap of {cap:,} bytes {binds}")
