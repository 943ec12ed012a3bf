"""`packer size`: predictions against the contest's logged artifacts and real coding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from packer import api
from packer.checkpoint.roles import roles_of
from packer.errors import PackerError
from packer.planning.recipes import RECIPES as PACKED
from packer.size.estimate import (
    CODERS,
    RECIPES,
    RENAMED,
    ClassRule,
    class_of,
    coded_bits,
    estimate_size,
    factor_to_cap,
    largest_of,
    normal_entropy,
    recipes_named,
)

Run = Callable[..., Result]

# The 11-layer April stack. What it has beyond the companion model: skips between more passes over
# looped layers, and gates on them, 4,608 weights.
APRIL = """vocab_size = 8192
num_layers = 11
model_dim = 512
num_heads = 8
num_kv_heads = 4
mlp_mult = 4
"""
APRIL_EXTRA = 4_608
# Later rows differ by a few attention gates: their weights beyond those of the first row.
FIRST_APRIL = 35_943_512
# (record, recipe, weights, bytes of the compressed model) of every 35.94 M row.
APRIL_ROWS = [
    ("04-05 SDClip seed 1", "sdclip-gptq-brotli", 35_943_512, 15_972_031),
    ("04-05 SDClip seed 42", "sdclip-gptq-brotli", 35_943_512, 15_973_467),
    ("04-05 SDClip seed 1234", "sdclip-gptq-brotli", 35_943_512, 15_967_802),
    ("04-05 SDClip seed 1337", "sdclip-gptq-brotli", 35_943_512, 15_969_408),
    ("04-06 Hessian clip", "sdclip-gptq-brotli", 35_943_512, 15_976_275),
    ("04-06 QK5", "sdclip-gptq-brotli", 35_943_512, 15_974_299),
    ("04-08 parallel residual", "sdclip-gptq-brotli", 35_943_513, 15_973_569),
    ("04-09 Muon 0.97", "sdclip-gptq-brotli", 35_944_536, 15_973_959),
    ("04-09 three-layer loop", "sdclip-gptq-brotli", 35_944_536, 15_976_325),
    ("04-10 variable length", "sdclip-gptq-brotli", 35_944_602, 15_969_354),
    ("04-14 multi-phase", "sdclip-int7-brotli", 35_944_602, 15_912_231),
    ("04-16 attention gate", "sdclip-int7-brotli", 35_945_671, 15_906_856),
    ("04-18 case operators", "sdclip-int7-brotli", 35_944_602, 15_903_987),
    ("04-19 gated attention", "sdclip-int7-brotli", 35_989_658, 15_943_451),
    ("04-22 gated attention", "sdclip-int7-brotli", 35_989_658, 15_951_089),
    ("04-23 sparse gate", "sdclip-int7-brotli", 35_945_658, 15_909_203),
    ("04-27 LQER", "sdclip-int7-brotli", 35_945_671, 15_920_836),
    ("04-29 LQER, three seeds", "sdclip-int7-brotli", 35_945_671, 15_920_392),
    ("04-27 lrzip seed 42", "sdclip-int7-lrzip", 35_945_671, 15_865_260),
    ("04-27 lrzip seed 0", "sdclip-int7-lrzip", 35_945_671, 15_868_948),
    ("04-27 lrzip seed 1234", "sdclip-int7-lrzip", 35_945_671, 15_875_551),
    ("05-02 one stream seed 42", "leader-lqer-lrzip", 35_945_671, 15_910_335),
]
# PR #2046, one model at other clips and widths: (bits, k, megabytes of the artifact).
CLIP_SWEEP = [
    (6, 4.0, 22.58),
    (6, 6.0, 20.23),
    (6, 8.0, 18.64),
    (6, 12.85, 15.97),
    (6, 19.3, 13.72),
    (5, 6.0, 16.18),
    (5, 12.85, 12.02),
]
BASELINE = '{"vocab_size": 1024, "num_layers": 9, "model_dim": 512, "num_heads": 8, '
BASELINE += '"num_kv_heads": 4, "mlp_mult": 2.0}'


@pytest.fixture
def april(tmp_path: Path) -> Path:
    path = tmp_path / "april.toml"
    path.write_text(APRIL)
    return path


def sizes(run: Run, *arguments: object) -> list[dict[str, Any]]:
    result = run("size", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["sizes"]
    assert isinstance(found, list)
    for row in found:
        parts = ("codes_bytes", "side_bytes", "kept_bytes", "container_bytes")
        assert row["artifact_bytes"] == sum(row[part] for part in parts)
    return found


def test_the_logged_35_94_m_artifacts_are_predicted_within_two_percent(
    run: Run, april: Path
) -> None:
    """All but one of them within one percent."""
    errors = {}
    extras = {weights: APRIL_EXTRA + weights - FIRST_APRIL for _, _, weights, _ in APRIL_ROWS}
    for weights, extra in extras.items():
        predicted = {row["recipe"]: row for row in sizes(run, april, "--set", f"extra={extra}")}
        for record, recipe, row_weights, logged in APRIL_ROWS:
            if row_weights == weights:
                assert predicted[recipe]["parameters"] == weights
                errors[record] = predicted[recipe]["artifact_bytes"] / logged - 1
    assert len(errors) == len(APRIL_ROWS)
    assert max(abs(error) for error in errors.values()) < 0.01, errors


def test_a_sweep_of_clips_and_widths_is_predicted_within_one_percent(run: Run, april: Path) -> None:
    for bits, k, megabytes in CLIP_SWEEP:
        widths = [f"--set=bits.{name}={bits}" for name in ("mlp", "attention", "other")]
        (row,) = sizes(run, april, "--recipe", "sdclip-gptq-brotli", *widths, "--set", f"k={k}")
        assert row["artifact_bytes"] / 1e6 == pytest.approx(megabytes, rel=0.01), (bits, k)


def test_the_baseline_is_predicted_within_one_percent(run: Run, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(BASELINE)
    (row,) = sizes(run, "b.json", "--recipe", "baseline-int8-zlib")
    assert row["parameters"] == 17_059_912
    assert row["artifact_bytes"] == pytest.approx(15_815_847, rel=0.01)


@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (7, 15.0), (8, 20.0), (4, 3.0), (2, 1.5)])
def test_the_entropy_is_that_of_real_codes(bits: int, k: float) -> None:
    rule = ClassRule(bits, k)
    step = k / rule.max_code
    values = np.random.default_rng(3).standard_normal(2_000_000)
    codes = np.clip(np.round(values / step), -rule.max_code, rule.max_code)
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    assert normal_entropy(step, rule.max_code) == pytest.approx(
        float(-(counts * np.log2(counts)).sum()), rel=2e-3
    )


def test_the_formula_of_the_field_holds_where_nothing_is_clipped() -> None:
    step = 12.85 / 31
    formula = math.log2(math.sqrt(2 * math.pi * math.e) / step)
    assert normal_entropy(step, 31) == pytest.approx(formula, rel=0.005)


def test_a_coder_takes_what_it_takes_of_normal_codes() -> None:
    codes = np.round(np.random.default_rng(4).standard_normal(300_000) / 0.8).astype(np.int8)
    coded = 8 * len(brotli.compress(codes.tobytes(), quality=11)) / codes.size
    assert coded_bits("brotli", normal_entropy(0.8, 127)) == pytest.approx(coded, rel=0.01)


def test_the_largest_of_many_normals() -> None:
    drawn = np.abs(np.random.default_rng(5).standard_normal((4000, 512))).max(axis=1)
    assert largest_of(512) == pytest.approx(float(drawn.mean()), rel=0.005)
    assert largest_of(1) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-3)


@settings(deadline=None)
@given(st.floats(0.01, 3), st.integers(1, 127))
def test_a_wider_step_never_needs_more_bits(step: float, max_code: int) -> None:
    bits = normal_entropy(step, 10_000)
    assert normal_entropy(1.1 * step, 10_000) <= bits + 1e-9
    assert 0 <= normal_entropy(step, max_code) <= math.log2(2 * max_code + 1)


SHAPES = {
    "tok_emb.weight": (4096, 256),
    "blocks.0.mlp.fc.weight": (1024, 256),
    "blocks.0.attn.c_q.weight": (512, 256),
    "blocks.0.attn_scale": (256,),
}


@settings(deadline=None)
@given(st.integers(300_000, 1_200_000))
def test_the_factor_lands_just_under_the_cap(cap: int) -> None:
    recipe = RECIPES["sdclip-gptq-brotli"]
    factor = factor_to_cap(SHAPES, recipe, cap)
    assert factor is not None
    landed = estimate_size(SHAPES, recipe.scaled(factor)).artifact_bytes
    assert 0.998 * cap < landed <= cap


def test_caps_out_of_reach_have_no_factor() -> None:
    assert factor_to_cap(SHAPES, RECIPES["sdclip-gptq-brotli"], 1_000) is None
    assert factor_to_cap(SHAPES, RECIPES["sdclip-gptq-brotli"], 10**9) is None
    assert factor_to_cap(SHAPES, RECIPES["gptq-lite-int6"], 900_000) is None


def test_parts_are_where_they_belong() -> None:
    estimate = estimate_size(SHAPES, RECIPES["sdclip-gptq-brotli"], extra=100)
    assert estimate.parameters == sum(math.prod(shape) for shape in SHAPES.values()) + 100
    assert estimate.kept == 2 * (256 + 100)
    assert estimate.side == 2 * (4096 + 1024 + 512)
    assert set(estimate.bits) == {"embedding", "mlp", "attention"}
    kept = estimate_size(
        SHAPES, RECIPES["sdclip-gptq-brotli"].with_rule("embedding", ClassRule(16))
    )
    assert kept.kept == 2 * (256 + 4096 * 256)


def test_small_weights_are_cheap_where_scales_have_a_floor() -> None:
    recipe = RECIPES["gptq-lite-int6"]
    free = estimate_size(SHAPES, recipe).codes
    assert estimate_size(SHAPES, recipe, weight_std=1.0).codes == free
    assert estimate_size(SHAPES, recipe, weight_std=0.05).codes < 0.7 * free
    same = estimate_size(SHAPES, RECIPES["sdclip-gptq-brotli"], weight_std=0.05)
    assert same.codes == estimate_size(SHAPES, RECIPES["sdclip-gptq-brotli"]).codes


def combinations(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield (*row["settings"].values(), row["recipe"])


def test_a_sweep_is_every_combination(run: Run, april: Path) -> None:
    sweep = ("--set", "num_layers=10,11", "--set", "k=10,12.85", "--set", "mlp_mult=3")
    rows = sizes(run, april, *sweep, "--recipe", "sdclip-gptq-brotli", "--recipe", "ours")
    expected = [
        (n, k, r)
        for n in ("10", "11")
        for k in ("10", "12.85")
        for r in ("sdclip-gptq-brotli", "ours")
    ]
    assert list(combinations(rows)) == expected
    by = {key: row["total_bytes"] for key, row in zip(expected, rows, strict=True)}
    assert by["10", "10", "sdclip-gptq-brotli"] < by["11", "10", "sdclip-gptq-brotli"]
    assert by["10", "12.85", "sdclip-gptq-brotli"] < by["10", "10", "sdclip-gptq-brotli"]
    ours = [row for row in rows if row["recipe"] == "ours"]
    text = run("size", april, *sweep, "--recipe", "sdclip-gptq-brotli", "--cap", "16MB").stdout
    assert "num_layers" in text and "OVER by" not in text and "left" in text
    assert all(row["k"]["mlp"] == float(row["settings"]["k"]) for row in ours)


def test_a_list_is_one_value(run: Run, april: Path) -> None:
    tables = ("--set", "value_embedding_layers=[9,10]", "--set", "value_embedding_dim=128")
    rows = sizes(run, april, *tables)
    assert {tuple(row["settings"]) for row in rows} == {()}
    assert rows[0]["parameters"] > 36_000_000


def test_the_cap_says_what_fits(run: Run, april: Path, tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("x" * 30_000)
    arguments = (
        april,
        "--set",
        f"extra={APRIL_EXTRA}",
        "--recipe",
        "sdclip-gptq-brotli",
        "--cap",
        "16MB",
    )
    (row,) = sizes(run, *arguments, "--code", "train_gpt.py")
    assert row["total_bytes"] == row["artifact_bytes"] + 30_000
    assert row["unused_bytes"] == 16_000_000 - row["total_bytes"] < 0
    text = run("size", *arguments, "--code", "train_gpt.py").stdout
    assert f"OVER by {-row['unused_bytes']:,}" in text
    assert row["k_factor"] > 1
    wider = [f"--set=k.{name}={k * row['k_factor']}" for name, k in row["k"].items()]
    (landed,) = sizes(run, *arguments, "--code", "train_gpt.py", *wider)
    assert 0 <= landed["unused_bytes"] < 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "num_layer=3"), "no setting 'num_layer'"),
        (("--set", "num_layers"), "not KEY=VALUE"),
        (("--set", "num_layers=many"), "should be of type int"),
        (("--set", "num_heads=7"), "num_heads = 7"),
        (("--set", "k=-1"), "a clip is above 0"),
        (("--set", "k=wide"), "is not a number"),
        (("--set", "bits.mlp=9"), "2 to 8 bits"),
        (("--set", "bits.mlp=5.5"), "whole number"),
        (("--set", "weight_std=0"), "are positive"),
        (("--recipe", "int5"), "no recipe 'int5'"),
        (("--set", "k=" + ",".join(map(str, range(1, 2100)))), "2,099 combinations"),
    ],
)
def test_refusals(run: Run, april: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("size", april, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_a_configuration_that_lacks_settings_is_refused(run: Run) -> None:
    Path("c.json").write_text('{"vocab_size": 8192}')
    result = run("size", "c.json")
    assert result.exit_code == 1 and "lacks num_layers" in result.output


def test_rules_that_cannot_be() -> None:
    with pytest.raises(PackerError, match="bits = 1"):
        ClassRule(1, 3.0)


def test_ours_is_what_packing_normal_weights_gives() -> None:
    """Trained weights take a percent less: their rows and columns differ in energy."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()
    }
    recipe = RECIPES["ours"]
    pins = {"blocks.0.attn_scale": "fp16"}
    for name, role in roles_of(SHAPES).items():
        if name not in pins:
            pins[name] = f"int8.tensor+kstd@{recipe.rules[class_of(role.role)].k:.6g}"
    packed = api.pack(weights, api.plan(weights, 10**7, api.MeasureOptions(pins=pins)))
    predicted = estimate_size(SHAPES, recipe)
    coded = predicted.codes / CODERS["ans"][0]
    assert coded == pytest.approx(packed.account.payload_bytes, rel=0.01)
    assert predicted.artifact_bytes == pytest.approx(packed.account.artifact_bytes, rel=0.02)


def test_an_earlier_spelling_of_a_recipe_is_refused_with_the_new_one() -> None:
    with pytest.raises(PackerError, match="'int6-k' is called sdclip-gptq-brotli now"):
        recipes_named(["int6-k"])
    assert set(RENAMED.values()) < set(RECIPES) and not set(RENAMED) & set(RECIPES)


def test_rules_of_published_recipes_are_those_of_packing() -> None:
    packed = {name: one for name, one in PACKED.items() if name in RECIPES}
    assert set(RECIPES) - set(packed) == {"sdclip-int7-lrzip", "ours"}
    for name, one in packed.items():
        matrices = one.matrices
        kinds = (one.embeddings, one.mlps or matrices, one.attentions or matrices, matrices)
        rules = RECIPES[name].rules.values()
        assert [(r.bits, r.k) for r in rules] == [(k.bits, k.k) for k in kinds]
        assert RECIPES[name].coder == one.coder
    assert RECIPES["sdclip-int7-lrzip"].rules == RECIPES["leader-lqer-lrzip"].rules
