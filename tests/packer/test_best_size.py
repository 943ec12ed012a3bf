"""The best size under a cap: losses from a ladder, bytes from shapes, and the choice of both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from packer.checkpoint.checkpoint import from_state_dict
from packer.errors import PackerError
from packer.packing.leader_file import leader_file, with_coder_here
from packer.planning.account import Limits
from packer.planning.options import MeasureOptions
from packer.planning.recipe_search import recipe_at
from packer.planning.recipes import K, Position, Recipe, find_recipe
from packer.size.best import Shape, Speed, Storage, cost_of_cap, damage_scale, proposals
from packer.size.loss_fit import LossLaw, Rung, fit_loss
from packer.size.packed import finest_k, packed_bytes

LAW = LossLaw(1.2, 40.0, 60.0, (0.3, 0.35))
SHAPES = [Shape(n, 32 * n, 50_000 * n * n) for n in range(1, 9)]
SPEED = Speed(1e-5, 1e-10)


def rungs(noise: float = 0.0) -> list[Rung]:
    """Of a ladder: each size for a quarter and an eighth of 600 s."""
    sizes = [
        (n, int(SPEED.tokens(n, seconds)))
        for n in (50_000, 150_000, 500_000, 1_500_000)
        for seconds in (150, 75)
    ]
    signs = [1, -1, -1, 1, 1, -1, 1, -1]
    return [Rung(n, t, LAW.at(n, t) + noise * s) for (n, t), s in zip(sizes, signs, strict=True)]


def test_a_law_is_found_again_and_noise_makes_it_less_certain() -> None:
    clear, noisy = fit_loss(rungs()), fit_loss(rungs(0.005))
    tokens = SPEED.tokens(400_000, 600)
    wanted = LAW.at(400_000, tokens)
    loss, error = clear.at(400_000, tokens)
    assert loss == pytest.approx(wanted, abs=1e-6) and error < 1e-6
    loss, error = noisy.at(400_000, tokens)
    assert error > 0.005 and abs(loss - wanted) < error


def test_a_law_needs_five_runs() -> None:
    with pytest.raises(PackerError, match=r"at least 5 short runs, and there are 4"):
        fit_loss(rungs()[:4])


def test_fewer_bits_and_more_time_ask_for_other_sizes() -> None:
    fit = fit_loss(rungs())
    finest = {shape: 4 * shape.weights for shape in SHAPES}
    frugal, lavish = (Storage(damage_scale(bits, 0.01), 3000, finest) for bits in (3.0, 5.0))

    def best(storage: Storage, seconds: float, cap: float = math.inf) -> int:
        return proposals(SHAPES, fit, SPEED, seconds, storage, cap)[0].shape.weights

    assert best(frugal, 600, 150_000) > best(lavish, 600, 150_000)  # fewer bits: more weights
    assert best(frugal, 6000) > best(frugal, 60)
    assert best(frugal, 600, 100_000) < best(frugal, 600)
    bound = proposals(SHAPES, fit, SPEED, 600, frugal, 100_000)[0]
    free = proposals(SHAPES, fit, SPEED, 600, frugal)[0]
    assert bound.total_bytes == 100_000 and cost_of_cap(bound, free) > 0.001
    loose = proposals(SHAPES, fit, SPEED, 600, frugal, 10**9)[0]
    assert cost_of_cap(loose, free) == 0 and loose.total_bytes == 3000 + finest[loose.shape]


def test_a_cap_that_no_size_fits_names_one_that_would() -> None:
    storage = Storage(1.0, 3000, {shape: 4 * shape.weights for shape in SHAPES})
    with pytest.raises(PackerError, match=r"no size fits under 5,000 bytes.* 9,250 bytes"):
        proposals(SHAPES, fit_loss(rungs()), SPEED, 600, storage, 5000)


def normal_model(width: int) -> dict[str, torch.Tensor]:
    """Three blocks of normal weights, with the vectors and small projections of trained models."""
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    weights = {"tok_emb.weight": normal(1024, width), "bigram.embed.weight": normal(512, 64)}
    for block in range(3):
        weights[f"blocks.{block}.attn_scale"] = normal(width) + 1
        weights[f"blocks.{block}.attn.c_q.weight"] = normal(width, width)
        weights[f"blocks.{block}.attn.c_k.weight"] = normal(width // 2, width)
        weights[f"blocks.{block}.mlp.fc.weight"] = normal(3 * width, width)
        weights[f"blocks.{block}.mlp.proj.weight"] = normal(width, 3 * width)
    return weights


def to_nearest(recipe: Recipe) -> Recipe:
    """Without GPTQ, which needs curvature and hardly changes sizes."""
    stored = {
        name: None if kind is None else replace(kind, gptq=False)
        for name in ("matrices", "embeddings", "tables", "mlps", "attentions")
        for kind in [getattr(recipe, name)]
    }
    return replace(recipe, **stored)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "name", "k"),
    [
        (64, "baseline-int8-zlib", None),
        (64, "sdclip-gptq-brotli", 12.85),
        (128, "sdclip-gptq-brotli", 30.0),
        (96, "sdclip-int7-brotli", 13.0),
    ],
)
def test_predicted_bytes_are_within_two_percent_of_packed(
    width: int, name: str, k: float | None
) -> None:
    weights = normal_model(width)
    recipe = to_nearest(find_recipe(name))
    position = recipe.original if k is None else Position(K, k)
    packed = recipe_at(from_state_dict(weights), recipe, position, Limits(0)).plan.plan
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert packed_bytes(shapes, recipe, k) == pytest.approx(packed.artifact_bytes, rel=0.02)


@pytest.mark.parametrize(("width", "k"), [(64, 12.85), (96, 6.0)])
def test_predicted_bytes_are_those_of_the_leaders_layout_too(width: int, k: float) -> None:
    weights = normal_model(width)
    recipe = with_coder_here(to_nearest(find_recipe("leader-lqer-lrzip")))
    file = leader_file(
        from_state_dict(weights), recipe, Position(K, k), MeasureOptions(), curvature=None
    )
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert packed_bytes(shapes, recipe, k) == pytest.approx(len(file.data), rel=0.03)


def test_the_finest_k_is_the_first_of_the_positions() -> None:
    recipe = find_recipe("sdclip-gptq-brotli")
    assert finest_k(recipe) == recipe.positions[0].value == pytest.approx(6.0, rel=0.01)
    assert finest_k(find_recipe("baseline-int8-zlib")) is None
