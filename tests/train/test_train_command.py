"""`packer train` as its user meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from packer.train.data import make_data
from packer.train.data_job import DataOptions

from packer.cli import main
from packer.submission.training_log import parse_log

TEXT = "the cat sat on a mat and saw that rat run into its hole again while dogs slept"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `packer data` writes, of a made-up text."""
    place = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name, words in (("a.txt", 6000), ("b.txt", 1500)):
        (place / name).write_text(" ".join(rng.choice(TEXT.split(), words)), "utf-8")
    options = DataOptions(vocab_size=300)
    make_data([place / "a.txt"], place / "data", options, valid=[place / "b.txt"])
    return place / "data"


@pytest.fixture
def run(folder: Path, tiny_run: Path, tmp_path: Path) -> Callable[..., Result]:
    """The command on the tiny model, in tmp_path/run unless options say otherwise."""

    def call(*more: str) -> Result:
        arguments = ["train", str(tiny_run), "--data", str(folder), "-o", str(tmp_path / "run")]
        return CliRunner().invoke(main, [*arguments, "--set", "vocab_size=300", *more])

    return call


def test_trains_packs_scores_and_names_the_best(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("--cap", "40000", "--json", "--set", "eval_every=6")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["steps"] == 12
    by_name = {one["average"]: one for one in value["averages"]}
    assert set(by_name) == {"raw", "ema", "swa"}
    for one in by_name.values():
        size = Path(one["artifact"]).stat().st_size
        assert size == one["total_bytes"] <= 40_000
        assert one["packed_bits_per_byte"] > 0
        assert re.fullmatch(r"calibrated on [\d,]+ training tokens", one["note"])
    best = min(by_name.values(), key=lambda one: one["packed_bits_per_byte"])
    assert value["best"] == best["average"]
    assert {row["part"]: row["budget"] for row in value["ledger"]} == {
        "training": "training",
        "calibration": "training",
        "quantization": "none",
        "packing": "none",
        "evaluation": "evaluation",
    }
    assert value["size_share"] < 1
    log = parse_log((tmp_path / "run" / "train.log").read_text(), "train.log")
    assert (log.seed, log.step, log.total_bytes) == (1337, 12, best["total_bytes"])
    assert log.model_bytes == Path(best["artifact"]).stat().st_size and log.code_bytes == 0
    (score,) = log.quantized_scores
    assert score.bpb == pytest.approx(best["packed_bits_per_byte"], abs=1e-8)
    seconds = {row["part"]: row["seconds"] for row in value["ledger"]}
    logged = (log.train_seconds, log.calibration_seconds, log.eval_seconds)
    expected = [seconds[part] for part in ("training", "calibration", "evaluation")]
    assert logged == pytest.approx(expected, abs=0.06)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(main, ["inspect", best["checkpoint"]])
    assert shown.exit_code == 0 and "blocks.1.mlp.fc.weight" in shown.output


def test_the_scores_are_those_of_packer_eval(run: Callable[..., Result], folder: Path) -> None:
    done = run("--cap", "40000", "--json")
    raw = json.loads(done.stdout)["averages"][0]
    data = ["--data", str(folder / "*_val_*.bin"), "--tokenizer", str(folder / "tokenizer.model")]
    sources = [raw["checkpoint"], raw["artifact"]]
    scored = CliRunner().invoke(main, ["eval", *sources, *data, "--window", "16", "--json"])
    assert scored.exit_code == 0, scored.output
    found = [one["bits_per_byte"] for one in json.loads(scored.stdout)["scores"]]
    assert found == pytest.approx([raw["bits_per_byte"], raw["packed_bits_per_byte"]], rel=1e-6)


@pytest.mark.usefixtures("steady_clock")
def test_calibration_stays_inside_the_wall_clock(run: Callable[..., Result]) -> None:
    clock = ("--cap", "40000", "--json", "--max-wallclock", "62", "--set", "iterations=100000")
    value = json.loads(run(*clock, "--set", "calibration_reserve=60").stdout)
    seconds = {row["part"]: row["seconds"] for row in value["ledger"]}
    assert 1.9 < seconds["training"] <= 2.0 + 1e-9 and seconds["calibration"] > 0
    assert sum(seconds[part] for part in ("training", "calibration")) <= 62.0
    assert all("calibrated on" in one["note"] for one in value["averages"])


@pytest.mark.usefixtures("steady_clock")
def test_without_a_reserve_a_wall_clock_leaves_no_calibration(run: Callable[..., Result]) -> None:
    formats = 'pack.formats={"blocks.*.weight"="int6.row+gptq"}'
    clock = ("--cap", "40000", "--json", "--max-wallclock", "2", "--set", formats)
    value = json.loads(run(*clock).stdout)
    assert "calibration" not in {row["part"] for row in value["ledger"]}
    for one in value["averages"]:
        assert "nothing is reserved for it" in one["note"] and one["total_bytes"] <= 40_000


def test_without_a_cap_nothing_is_packed(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "run").glob("*.pack"))
    assert "best: " in done.stdout and "packing" not in done.stdout
    assert "step 12/12" in done.stderr and "tokens/s" in done.stderr


def test_formats_that_do_not_fit_give_way_aloud(run: Callable[..., Result]) -> None:
    done = run("--cap", "11000", "--json")
    assert done.exit_code == 0, done.output
    for one in json.loads(done.stdout)["averages"]:
        assert one["total_bytes"] <= 11_000
        assert "the formats trained for do not fit" in one["note"]
    assert "warning: the predicted size" in done.stderr


def test_a_cap_that_nothing_meets_keeps_the_weights(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    done = run("--cap", "500", "--json")
    value = json.loads(done.stdout)
    assert done.exit_code == 1
    assert all("smallest" in one["note"] for one in value["averages"])
    assert (tmp_path / "run" / "raw.safetensors").is_file()


def test_a_finished_run_is_not_overwritten_and_resumes_to_its_end(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    assert run().exit_code == 0
    again = run()
    assert again.exit_code == 1 and "holds a run already" in again.output
    resumed = CliRunner().invoke(main, ["train", "--resume", "-o", str(tmp_path / "run")])
    assert resumed.exit_code == 0 and "continuing after step 12" in resumed.stderr


def test_settings_are_shown_without_training(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("--show", "--set", "iterations=77", "--cap", "16MB", "--max-wallclock", "600")
    value: dict[str, Any] = json.loads(done.stdout)
    assert value["schedule"]["iterations"] == 77
    assert value["schedule"]["max_wallclock"] == 600
    assert value["pack"]["cap"] == 16_000_000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "iteration=5"], "the nearest is 'iterations'"),
        (["--set", "vocab_size=512"], "the tokenizer .* has 300 pieces: train with --set"),
        (["--set", "data.folder=/nowhere"], "/nowhere.manifest.json cannot be read"),
        (["--set", "tokens=100"], "tokens = 100 cannot be: it must be a multiple"),
        (["--set", "sequence=40000", "--set", "tokens=40000"], "fewer than one window of 40,000"),
        (["--set", "stride=17"], "run.stride = 17 cannot be: it must be at most batch.sequence"),
        (["--resume"], "give only -o"),
        (["--device", "tpu"], "--device tpu cannot be used here"),
        (["--code", "nothing.py"], "nothing.py"),
    ],
)
def test_wrong_input_is_said_in_words(
    more: list[str], message: str, run: Callable[..., Result]
) -> None:
    done = run(*more)
    assert done.exit_code in (1, 2)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert re.search(message, done.output.replace("\n", " ")), done.output


def test_damaged_folders_are_named(
    folder: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change = ("--set", f"data.folder={copy}")
    shard = next(copy.glob("*_train_*.bin"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-2])
    assert "it is cut short" in run(*change).output.replace("\n", " ")
    shard.unlink()
    assert "is missing: make the folder again" in run(*change).output.replace("\n", " ")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, "complete": False}), "utf-8")
    assert "is unfinished" in run(*change).output.replace("\n", " ")
    (copy / "manifest.json").write_text("{", "utf-8")
    assert "is damaged" in run(*change).output.replace("\n", " ")
    assert (
        "is text: make shards of it"
        in run("--set", "data.folder=", "--set", "data.train=['a.txt']").output
    )


def test_help_names_every_preset() -> None:
    from packer.train.presets import PRESETS

    shown = CliRunner().invoke(main, ["train", "--help"]).output
    assert all(name in shown for name in PRESETS)
