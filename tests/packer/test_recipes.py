"""The named recipes: what they choose, and the size parameter at which the real file fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature

from packer import api
from packer.checkpoint.checkpoint import from_state_dict
from packer.curvature.given import resolve_curvature
from packer.errors import CapError, PlanError
from packer.planning.account import Limits
from packer.planning.measure import tensor_infos
from packer.planning.recipe_search import largest_that_fits, recipe_at
from packer.planning.recipes import RECIPES, Position, find_recipe, recipe_choices

NAMES = (
    *("baseline-int8-zlib", "int6-rowmax-zstd", "int5mlp-int6-zstd", "gptq-lite-int6"),
    *("full-gptq-int6", "sdclip-gptq-brotli", "sdclip-int7-brotli"),
)
LEADER = "leader-lqer-lrzip"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Weights:
    """Two blocks of width 96: every class of tensors that recipes tell apart, some too small."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    weights = {"tok_emb.weight": normal(128, 96), "bigram.embed.weight": normal(256, 32)}
    for block in range(2):
        weights[f"blocks.{block}.attn.c_k.weight"] = normal(96, 96)
        weights[f"blocks.{block}.mlp.fc.weight"] = normal(192, 96)
        weights[f"blocks.{block}.mlp.proj.weight"] = normal(96, 192)
        weights[f"blocks.{block}.attn_scale"] = normal(96) + 1
    weights["bigram.proj.weight"] = normal(96, 32)
    weights["half"] = normal(4, 8).bfloat16()
    weights["step"] = torch.tensor(7)
    return weights


@pytest.fixture(scope="module")
def curvature(model: Weights) -> dict[str, Curvature]:
    """Of every tensor but one MLP matrix, which calibration never reached."""
    found = {}
    for seed, (name, weight) in enumerate(model.items()):
        if weight.dim() == 2 and name != "blocks.1.mlp.fc.weight":
            columns = weight.shape[1]
            inputs = torch.randn(300, columns, generator=torch.Generator().manual_seed(seed))
            inputs[:, 1:] += inputs[:, :1]
            found[name] = Curvature(inputs.T @ inputs / 300, None, 300)
    return found


def choices_of(name: str, model: Weights, position: Position | None = None) -> dict[str, str]:
    recipe, infos = find_recipe(name), tensor_infos(from_state_dict(model))
    found = recipe_choices(recipe, infos, position or recipe.original, set(model))
    return dict(found.choices)


def test_the_recipes_are_there():
    assert tuple(RECIPES) == (*NAMES, LEADER)
    with pytest.raises(PlanError, match="no recipe 'int7'; recipes are baseline-int8-zlib, "):
        find_recipe("int7")


@pytest.mark.parametrize(
    ("name", "embedding", "first_key", "late_key", "mlp", "bigram"),
    [
        (NAMES[0], *["int8.row~zlib"] * 5),
        (NAMES[1], "fp16~zstd", "int6.row~zstd", "fp16~zstd", "int6.row~zstd", "int6.row~zstd"),
        (
            NAMES[2],
            *("fp16~zstd", "int6.row~zstd+prune@0.03", "fp16~zstd"),
            *("int5.row~zstd+prune@0.03", "int6.row~zstd+prune@0.03"),
        ),
        (NAMES[3], "int8.row~zstd", *["int6.row~zstd+percentile-matrix"] * 3, "int8.row~zstd"),
        (NAMES[4], "int8.row~lzma", *["int6.row~lzma+percentile-matrix+gptq"] * 3, "int8.row~lzma"),
        (NAMES[5], "int8.row~brotli+kstd@20+gptq", *["int6.row~brotli+kstd@12.85+gptq"] * 4),
        (
            NAMES[6],
            *("int7.row~brotli+kstd@15+gptq", *["int6.row~brotli+kstd@13+gptq"] * 2),
            *("int6.row~brotli+kstd@12+gptq", "int6.row~brotli+kstd@13+gptq"),
        ),
        (
            LEADER,  # its layout says what compresses it
            *("int7.row+kstd@14+gptq", *["int6.row+kstd@13+gptq"] * 2),
            *("int6.row+kstd@11.5+gptq", "int6.row+kstd@12.85+gptq"),
        ),
    ],
)
def test_what_each_recipe_chooses_at_its_original_size(
    name, embedding, first_key, late_key, mlp, bigram, model
):
    choices = choices_of(name, model)
    assert choices["tok_emb.weight"] == embedding
    assert choices["blocks.0.attn.c_k.weight"] == first_key
    assert choices["blocks.1.attn.c_k.weight"] == late_key
    assert choices["blocks.0.mlp.fc.weight"] == choices["blocks.1.mlp.proj.weight"] == mlp
    assert choices["bigram.embed.weight"] == bigram
    small = {n: choices[n] for n in ("bigram.proj.weight", "blocks.0.attn_scale", "half", "step")}
    assert list(small.values()) == ["fp16", "fp16", "bf16", "raw"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_position_gives_choices_that_can_be_read(name, model):
    for position in find_recipe(name).positions:
        for text in choices_of(name, model, position).values():
            assert str(parse_choice(text)) == text


def test_the_size_parameter_scales_every_class_alike(model):
    halved = choices_of("sdclip-gptq-brotli", model, Position("k", 25.7))
    assert halved["tok_emb.weight"] == "int8.row~brotli+kstd@40+gptq"
    leader = choices_of(LEADER, model, Position("k", 25.7))
    assert leader["tok_emb.weight"] == "int7.row+kstd@28+gptq"
    assert leader["blocks.0.mlp.fc.weight"] == "int6.row+kstd@23+gptq"
    fewer = choices_of("int5mlp-int6-zstd", model, Position("reach", 10))
    assert fewer["blocks.0.mlp.fc.weight"] == "int5.row~zstd+reach@5+prune@0.03"
    assert fewer["blocks.0.attn.c_k.weight"] == "int6.row~zstd+reach@10+prune@0.03"
    pruned = choices_of("gptq-lite-int6", model, Position("pruned", 0.5))
    assert pruned["blocks.0.mlp.fc.weight"] == ("int6.row~zstd+percentile-matrix+reach@1+prune@0.5")
    assert pruned["tok_emb.weight"] == "int8.row~zstd+reach@4+prune@0.5"


@pytest.mark.parametrize(
    ("name", "cap"),
    [
        *((name, cap) for name in NAMES for cap in (90_000, 60_000)),
        *((name, 30_000) for name in NAMES if not name.endswith("zstd")),  # fp16 alone takes 43,000
    ],
)
def test_the_file_fits_and_no_position_that_is_larger_does(name, cap, model, curvature):
    made = api.plan_recipe(model, name, cap, curvature=curvature)
    packed = api.pack(model, made.plan, curvature=curvature)
    assert packed.rounds == 1
    assert packed.account.total_bytes <= cap
    positions = made.recipe.positions
    at = positions.index(made.position)
    if packed.account.total_bytes < 0.9975 * cap and at > 0:
        larger = recipe_at(
            from_state_dict(model),
            made.recipe,
            positions[at - 1],
            Limits(1),
            curvature=resolve_curvature(from_state_dict(model), curvature),
        )
        assert larger.plan.plan.total_bytes > cap
    expected = ("blocks.1.mlp.fc.weight",) if made.recipe.rounds_with_gptq else ()
    assert made.nearest == expected


def test_pins_replace_what_the_recipe_chooses(model, curvature):
    pins = {"mlp-in": "int8.row"}
    made = api.plan_recipe(
        model, "full-gptq-int6", 60_000, api.MeasureOptions(pins=pins), curvature=curvature
    )
    assert made.plan.choices["blocks.1.mlp.fc.weight"] == "int8.row"
    assert made.nearest == ()
    assert set(made.plan.pins) == {"blocks.0.mlp.fc.weight", "blocks.1.mlp.fc.weight"}


def test_a_recipe_with_gptq_needs_curvature(model):
    with pytest.raises(PlanError, match="full-gptq-int6 rounds with GPTQ, which needs curvature"):
        api.plan_recipe(model, "full-gptq-int6", 60_000)


def test_a_cap_below_the_coarsest_recipe_is_refused_with_the_smallest_size(model):
    with pytest.raises(CapError, match=r"does not fit under 9,000 bytes: .*pruned 0.99\) it takes"):
        api.plan_recipe(model, "int6-rowmax-zstd", 9_000)


def test_banked_models_have_no_key_of_their_own_to_keep():
    bank = {"qo_bank": torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))}
    assert choices_of("int6-rowmax-zstd", bank) == {"qo_bank": "int6.row~zstd"}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=60, unique=True),
    room=st.integers(0, 10_500),
    start=st.integers(0, 59),
    slope=st.floats(1e-3, 1e5),
)
def test_the_search_ends_at_the_first_size_that_fits(sizes, room, start, slope):
    falling = sorted(sizes, reverse=True)
    asked: list[int] = []

    def total_bytes(index: int) -> int:
        asked.append(index)
        return falling[index]

    octaves = [float(index) for index in range(len(falling))]
    found = largest_that_fits(total_bytes, octaves, min(start, len(falling) - 1), room, slope)
    fitting = [index for index, size in enumerate(falling) if size <= room]
    assert len(set(asked)) == len(asked) <= 13
    if found is None:
        assert not fitting
        assert len(falling) - 1 in asked
    else:
        assert falling[found] <= room
        assert found == fitting[0] or falling[found] >= 0.9975 * room


def test_a_recipe_takes_no_other_coder_and_no_trellis(model):
    for options in (api.MeasureOptions(coder="numpy"), api.MeasureOptions(trellis=True)):
        with pytest.raises(PlanError, match="carries its own coder"):
            api.plan_recipe(model, "baseline-int8-zlib", 60_000, options)


def test_a_recipe_with_a_layout_of_its_own_has_no_plan(model, curvature):
    with pytest.raises(PlanError, match=f"{LEADER} is a file of its author's layout"):
        api.plan_recipe(model, LEADER, 60_000, curvature=curvature)
