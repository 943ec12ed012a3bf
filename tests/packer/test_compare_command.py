"""`packer compare`: recipes and our planner on one small model, scored through the file."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig

from packer.packing.comparison import CURVE_K, equal_kl
from packer.packing.leader_file import with_coder_here
from packer.planning.recipes import RECIPES

CONFIG = GPTConfig(64, 2, 64, 4, 2, rope_train_length=64, embedding_init_std=0.5)
CAP = 78_000
CAPS = (30_000, 60_000, 100_000)
NAMES = [with_coder_here(recipe).name for recipe in RECIPES.values()]
WITH_K = {"sdclip-gptq-brotli", "sdclip-int7-brotli", NAMES[-1]}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, train_bpe: Callable[[Path, int], None]) -> Path:
    """Two models of one family, text to calibrate on, text to score on, a tokenizer."""
    folder = tmp_path_factory.mktemp("lab")
    for name, layers in (("model", 2), ("smaller", 1)):
        torch.manual_seed(layers)
        config = replace(CONFIG, num_layers=layers)
        model = GPT(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        torch.save(model.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.config.json").write_text(json.dumps(settings_of(config)))
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "qui", "vexat", "bonum", "jazz", "hyphen"]
    for seed, name in enumerate(("train", "valid")):
        chosen = np.random.default_rng(seed).choice(words, 4000)
        text = "\n".join(" ".join(chosen[i::400]) for i in range(400))
        (folder / f"{name}.txt").write_text(text)
    train_bpe(folder / "train.txt", 64)
    return folder


def options(lab: Path, *, calibrated: bool = True) -> tuple[object, ...]:
    amount = ("--calibration-tokens", 2048, "--calibration-window", 64)
    calibration = ("--calibration", lab / "train.txt", *amount)
    scoring = ("--data", lab / "valid.txt", "--tokenizer", lab / "t64.model")
    return (*(calibration if calibrated else ()), *scoring, "--tokens", 4096, "--window", 64)


@pytest.fixture(scope="module")
def compared(lab: Path) -> dict[str, Any]:
    from click.testing import CliRunner

    from packer.cli import main

    caps = ",".join(map(str, CAPS))
    arguments = ("compare", lab / "model.pt", "--cap", CAP, "--caps", caps, *options(lab))
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_every_recipe_and_ours_stand_under_the_cap(compared: dict[str, Any]) -> None:
    rows = [row for row in compared["rows"] if row["cap_bytes"] == CAP]
    assert [row["recipe"] for row in rows] == [*NAMES, "ours"]
    assert compared["refused"] == []
    for row in rows:
        assert 0 < row["total_bytes"] <= CAP
        assert row["kl_bits_per_byte"] > 0
        assert row["stderr_bits_per_byte"] > 0
        assert row["seconds"] > 0
        assert row["rounding_problems"] == {}
        assert (row["predicted_bits_per_byte"] is None) == (row["recipe"] == NAMES[-1])
        assert (row["parameter"] is None) == (row["recipe"] == "ours")
    parameters = {row["recipe"]: row["parameter_name"] for row in rows}
    assert parameters["sdclip-gptq-brotli"] == "k"
    assert parameters["gptq-lite-int6"] == "reach"


def test_curves_of_ours_and_of_recipes_with_a_k(compared: dict[str, Any]) -> None:
    ours = [row for row in compared["rows"] if row["recipe"] == "ours"]
    assert [row["cap_bytes"] for row in ours] == sorted({CAP, *CAPS})
    for rougher, finer in itertools.pairwise(ours):
        assert rougher["kl_bits_per_byte"] > finer["kl_bits_per_byte"]
        assert rougher["predicted_bits_per_byte"] > finer["predicted_bits_per_byte"]
    curve = [row for row in compared["rows"] if row["cap_bytes"] is None]
    assert {row["recipe"] for row in curve} == WITH_K
    for recipe in WITH_K:
        points = [row for row in curve if row["recipe"] == recipe]
        assert [row["parameter"] for row in points] == list(CURVE_K)
        for finer, rougher in itertools.pairwise(points):
            assert finer["total_bytes"] > rougher["total_bytes"]
            assert finer["kl_bits_per_byte"] < rougher["kl_bits_per_byte"]
    points = {row["total_bytes"]: row["kl_bits_per_byte"] for row in curve}
    for one in compared["equal_kl"]:
        assert points[one["recipe_bytes"]] == one["kl_bits_per_byte"]
        assert one["ratio"] == pytest.approx(one["ours_bytes"] / one["recipe_bytes"], rel=1e-4)


def test_a_row_is_what_packing_and_scoring_by_hand_gives(
    compared: dict[str, Any], lab: Path, run: Run
) -> None:
    pack = ("pack", lab / "model.pt", "--recipe", "int6-rowmax-zstd", "--cap", CAP)
    assert run(*pack, "-o", "r.pack").exit_code == 0
    scoring = options(lab, calibrated=False)
    result = run("eval", lab / "model.pt", "r.pack", *scoring, "--json")
    scored = json.loads(result.stdout)["scores"][1]
    row = next(row for row in compared["rows"] if row["recipe"] == "int6-rowmax-zstd")
    assert row["total_bytes"] == Path("r.pack").stat().st_size
    assert row["kl_bits_per_byte"] == pytest.approx(scored["kl_bits_per_byte"], rel=1e-6)
    assert row["delta_bits_per_byte"] == pytest.approx(scored["delta_bits_per_byte"], rel=1e-6)


def test_curvature_from_a_file_and_a_table_for_people(lab: Path, run: Run) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--tokens", 2048, "--window", 64)
    assert run("calibrate", lab / "model.pt", *text, *amount, "-o", "c.st").exit_code == 0
    result = run(
        "compare", lab / "model.pt", "--cap", 30_000, "--curvature", "c.st",
        "--pin", "tok_emb.weight=int8.row", *options(lab, calibrated=False),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    header, ours, *refused = result.stdout.splitlines()
    assert header.split()[:4] == ["recipe", "parameter", "cap", "total"]
    assert ours.split()[:2] == ["ours", "30,000"]
    assert [line.partition(":")[0] for line in refused] == NAMES
    assert "(pruned 0.99) it takes" in refused[0]


def test_checkpoints_are_ranked_by_bits_per_byte_through_the_file(lab: Path, run: Run) -> None:
    sources = (lab / "smaller.pt", lab / "model.pt")
    result = run("compare", *sources, "--cap", 80_000, *options(lab), "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["checkpoint"] for row in rows} == set(map(str, sources))
    assert {row["recipe"] for row in rows} == {"ours"}
    assert rows[0]["bits_per_byte"] < rows[1]["bits_per_byte"]


def test_finished_files_of_others_are_rows_at_their_size_on_disk(lab: Path, run: Run) -> None:
    gguf = pytest.importorskip("gguf")
    weights = torch.load(lab / "model.pt", weights_only=True)
    for kind in ("Q8_0", "Q4_0"):
        writer = gguf.GGUFWriter(f"{kind}.gguf", "companion")
        for name, weight in weights.items():
            matrix = weight.dim() == 2 and weight.shape[1] % 32 == 0
            type = gguf.GGMLQuantizationType[kind if matrix else "F32"]
            raw = gguf.quants.quantize(weight.float().numpy(), type)
            writer.add_tensor(name, raw, raw_dtype=type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    Path("folder").mkdir()
    rounded = {name: weight.bfloat16().float() for name, weight in weights.items()}
    torch.save(rounded, "folder/pytorch_model.bin")
    alone = ("--no-calibration",)
    assert run("pack", lab / "model.pt", "--cap", CAP, *alone, "-o", "m.pack").exit_code == 0
    files = ("Q8_0.gguf", "Q4_0.gguf", "folder", "m.pack")
    given = [word for file in files for word in ("--with", file)]
    arguments = ("compare", lab / "model.pt", "--cap", 30_000, *given, "--caps", 100_000)
    result = run(*arguments, *options(lab), "--json")
    assert result.exit_code == 0, result.output
    Path("rows.json").write_text(result.stdout)
    compared = json.loads(result.stdout)
    rows = {row["recipe"]: row for row in compared["rows"][-len(files) :]}
    assert tuple(rows) == files
    sizes = {file: Path(file).stat().st_size for file in files}
    sizes["folder"] = Path("folder/pytorch_model.bin").stat().st_size
    assert {file: row["total_bytes"] for file, row in rows.items()} == sizes
    assert rows["Q4_0.gguf"]["kl_bits_per_byte"] > rows["Q8_0.gguf"]["kl_bits_per_byte"] > 0
    assert 0 < rows["folder"]["kl_bits_per_byte"] < rows["Q8_0.gguf"]["kl_bits_per_byte"]
    scored = run("eval", lab / "model.pt", *files, *options(lab, calibrated=False), "--json")
    for one in json.loads(scored.stdout)["scores"][1:]:
        row = rows[one["source"]]
        assert row["kl_bits_per_byte"] == pytest.approx(one["kl_bits_per_byte"], rel=1e-6)
    kinds = {one["source"]: one["kind"] for one in json.loads(scored.stdout)["scores"]}
    assert kinds["Q8_0.gguf"] == "gguf"
    equal = {one["recipe"]: one for one in compared["equal_kl"]}
    assert equal["m.pack"]["recipe_bytes"] == sizes["m.pack"]
    assert run("pack", lab / "model.pt", "--cap", 45_000, *alone, "-o", "p.pack").exit_code == 0
    page = ("report", "p.pack", "--compare", "rows.json", "--html", "p.html")
    assert run(*page).exit_code == 0 and "Q4_0.gguf" in Path("p.html").read_text()


def test_a_finished_file_that_is_none_is_refused_before_packing(lab: Path, run: Run) -> None:
    broken = lab / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    result = run("compare", lab / "model.pt", "--cap", CAP, "--with", broken, *options(lab))
    assert result.exit_code == 1 and "broken.gguf" in result.stderr
    sources = (lab / "smaller.pt", lab / "model.pt")
    result = run("compare", *sources, "--cap", CAP, "--with", broken, *options(lab))
    assert result.exit_code == 2 and "--with compares with one checkpoint" in result.stderr


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ((), 2, "give --calibration TEXT or --self-generate"),
        (("--calibration", "train.txt", "--caps", "1MB,0"), 2, "a cap is at least 1 byte"),
        (("--calibration", "train.txt", "--caps", "1MB,x"), 2, "'x' is not a size"),
        (("--curvature", "model.pt", "--curvature", "model.pt"), 2, "2 --curvature files for 1"),
        (("--curvature", "train.txt"), 1, "train.txt"),
        (("--calibration", "no.txt"), 1, "no such data"),
        (("--calibration", "train.txt", "--pin", "nothing=fp16"), 1, "matches no tensor"),
    ],
)
def test_what_cannot_be_is_refused(
    lab: Path, run: Run, given: tuple[str, ...], code: int, said: str
) -> None:
    files = ("train.txt", "model.pt", "no.txt")
    words = [lab / word if word in files else word for word in given]
    amount = ("--calibration-tokens", 256, "--calibration-window", 64)
    rest = (*amount, *options(lab, calibrated=False))
    result = run("compare", lab / "model.pt", "--cap", CAP, *words, *rest)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split())


def test_several_checkpoints_have_no_curve(lab: Path, run: Run) -> None:
    sources = (lab / "smaller.pt", lab / "model.pt")
    result = run("compare", *sources, "--cap", CAP, "--caps", "1MB,2MB", *options(lab))
    assert result.exit_code == 2
    assert "--caps draws the curve of one checkpoint" in result.stderr


def test_bytes_at_equal_kl_lie_on_a_straight_line_of_logarithms() -> None:
    """Ours needs bytes = 1000 · KL^-½; theirs is a quarter larger everywhere."""
    ours = [(round(1000 / math.sqrt(kl)), kl) for kl in (0.04, 0.0025, 0.01)]
    theirs = [("theirs", round(1250 / math.sqrt(kl)), kl) for kl in (0.05, 0.02, 0.005, 0.001)]
    found = equal_kl(ours, theirs)
    assert [one.kl_bits_per_byte for one in found] == [0.02, 0.005]  # the others would be guesses
    for one in found:
        assert one.ratio == pytest.approx(0.8, rel=1e-3)
    assert equal_kl(ours[:1], theirs) == ()


def test_ours_is_fitted_to_a_text_of_the_model_itself(lab: Path, run: Run) -> None:
    weights = torch.load(lab / "model.pt", weights_only=True)
    weights["tok_emb.weight"] *= 0.2  # less sure of itself, it does not write one piece for ever
    torch.save(weights, "tame.pt")
    config = ("--config", lab / "model.config.json")
    arguments = ("compare", "tame.pt", "--cap", 30_000, *config, *options(lab, calibrated=False))
    own = ("--self-generate", 192, "--calibration-window", 64)
    result = run(*arguments, *own, "--json")
    assert result.exit_code == 0, result.output
    assert "192 tokens of text by the model itself (temperature 0.8)" in result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert row["recipe"] == "ours" and row["kl_bits_per_byte"] > 0
    both = run(*arguments, *own, "--calibration", lab / "train.txt")
    assert both.exit_code == 2 and "takes the place of --calibration" in both.stderr
    neither = run(*arguments)
    assert neither.exit_code == 2 and "give --calibration TEXT or" in neither.stderr
