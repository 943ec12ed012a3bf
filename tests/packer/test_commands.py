"""Every command: what it prints, what --json holds, and how it ends."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from packer import api
from packer.checkpoint.roles import Role
from packer.cli import main

CAP = 12_000
Run = Callable[..., Result]
ACCOUNT = ("cap_bytes", "code_bytes", "artifact_bytes", "total_bytes", "unused_bytes")
ROW = ("name", "role", "shape", "choice", "size_bytes", "bits_per_weight", "damage_bpb")


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def done_json(result: Result) -> dict[str, Any]:
    lines = done(result).splitlines()
    assert len(lines) == 1
    value = json.loads(lines[0])
    assert isinstance(value, dict)
    return value


def check_report(value: dict[str, Any], cap: int = CAP, code: int = 0) -> None:
    """What every script may rely on, and that the sums end."""
    assert {*ACCOUNT, "tensors"} <= set(value)
    assert all(set(ROW) <= set(row) for row in value["tensors"])
    assert (value["cap_bytes"], value["code_bytes"]) == (cap, code)
    assert value["total_bytes"] == value["code_bytes"] + value["artifact_bytes"]
    assert value["unused_bytes"] == value["cap_bytes"] - value["total_bytes"]
    for row in value["tensors"]:
        assert Role(row["role"]).value == row["role"]
        elements = torch.empty(row["shape"], device="meta").numel()
        bits = 8 * row["size_bytes"] / elements if elements else None
        assert row["bits_per_weight"] == pytest.approx(bits)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_names_every_option_and_argument(name: str) -> None:
    text = done(CliRunner().invoke(main, [name, "--help"]))
    assert f"Usage: main {name}" in text
    assert "--json" in text
    undocumented = [
        parameter.name
        for parameter in main.commands[name].params
        if parameter.param_type_name == "option"
        and not getattr(parameter, "help", None)
        and parameter.name not in ("output", "help")
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("plan", ["--cap", "--calibration", "--tokenizer", "-o"]),
        ("pack", ["--cap", "--calibration", "--tokenizer", "-o"]),
        ("measure", ["--calibration", "--tokenizer", "-o"]),
        ("compare", ["--cap", "--calibration", "--data", "--tokenizer"]),
        ("calibrate", ["--data", "--tokenizer", "-o"]),
        ("fix", ["--cap", "--data", "--tokenizer", "-o"]),
        ("eval", ["--data", "--tokenizer"]),
    ],
)
def test_help_begins_with_the_options_of_a_beginner(name: str, first: list[str]) -> None:
    text = done(CliRunner().invoke(main, [name, "--help"]))
    text = text[text.index("Main options:") :]
    assert re.findall(r"^  (--?[a-z-]+)", text, re.M)[: len(first)] == first
    listed = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.M)
    options = [p for p in main.commands[name].params if p.param_type_name == "option"]
    assert sorted(listed) == sorted(["--help", *(p.opts[-1] for p in options)])


def test_the_version_is_that_of_the_distribution() -> None:
    import importlib.metadata

    text = done(CliRunner().invoke(main, ["--version"]))
    assert text == f"packer, version {importlib.metadata.version('bytecap')}\n"


def test_inspect(run: Run, made: Path, weights: dict[str, torch.Tensor]) -> None:
    text = done(run("inspect", made / "model.pt"))
    assert "tok_emb.weight = lm_head.weight" in text
    assert f"{len(weights) - 1} tensors" in text
    value = done_json(run("inspect", made / "model.pt", "--json"))
    assert value["ties"] == {"lm_head.weight": "tok_emb.weight"}
    rows = {row["name"]: row for row in value["tensors"]}
    assert set(rows) == set(weights) - {"lm_head.weight"}
    assert sum(row["size_bytes"] for row in rows.values()) == value["size_bytes"]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    key = rows["blocks.1.attn.c_k.weight"]
    assert (key["role"], key["layer"], key["shape"]) == ("attention-k", 1, [32, 32])
    assert key["rms"] == pytest.approx(
        float(weights["blocks.1.attn.c_k.weight"].square().mean().sqrt())
    )
    assert rows["empty"]["rms"] is None
    assert rows["tok_emb.weight"]["tied"] == ["lm_head.weight"]


def test_inspect_without_what_was_dropped(run: Run, made: Path) -> None:
    value = done_json(run("inspect", made / "model.pt", "--drop", "blocks.*", "--json"))
    assert not [row for row in value["tensors"] if row["name"].startswith("blocks.")]
    assert any("dropped by blocks.*" in note for note in value["notes"])


def test_measure_writes_candidates(run: Run, made: Path, tmp_path: Path) -> None:
    text = done(run("measure", made / "model.pt"))
    assert text.startswith("candidates.json: ")
    assert (tmp_path / "candidates.json").read_bytes() == (made / "candidates.json").read_bytes()
    value = done_json(run("measure", made / "model.pt", "-o", "c.json", "--json"))
    assert value.pop("output") == "c.json" and value.pop("curvature_file") is None
    assert value == json.loads((tmp_path / "c.json").read_text())
    rows = {row["name"]: row for row in value["tensors"]}
    choices = [choice for choice, *_ in rows["tok_emb.weight"]["candidates"]]
    assert {"fp32", "fp16", "bf16", "int8.row", "int6.row"} <= set(choices)
    assert all(damage is None for *_, damage in rows["tok_emb.weight"]["candidates"])


def test_measure_takes_pins_and_configuration(run: Run, made: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("layers = 2\n[rope]\nbase = 1e4\n")
    arguments = ("--pin", "embeddings=int3.row~zlib", "--config", "config.toml", "--json")
    value = done_json(run("measure", made / "model.pt", *arguments))
    embedding = next(row for row in value["tensors"] if row["name"] == "tok_emb.weight")
    assert "int3.row~zlib" in [choice for choice, *_ in embedding["candidates"]]
    assert json.loads(value["metadata"]["config"]) == {"layers": 2, "rope": {"base": 10000.0}}


@pytest.mark.parametrize("source", ["model.pt", "candidates.json", "plan.json"])
def test_plan_of_a_checkpoint_and_of_measurements_is_one(
    run: Run, made: Path, tmp_path: Path, source: str
) -> None:
    value = done_json(run("plan", made / source, "--cap", CAP, "-o", "plan.json", "--json"))
    check_report(value)
    assert 0 <= value["unused_bytes"] <= 2_000
    assert (value["damage_kind"], value["gap"]) == ("weight_error", 0)
    assert "several times less damage" in value["notes"][0]
    assert value["artifact_bytes"] == value["header_bytes"] + sum(
        row["size_bytes"] for row in value["tensors"]
    )
    assert (tmp_path / "plan.json").read_bytes() == (made / "plan.json").read_bytes()


def test_plan_prints_the_account_and_the_next_command(run: Run, made: Path, tmp_path: Path) -> None:
    planned = run("plan", made / "model.pt", "--cap", "12KB", "-o", "a plan.json")
    text = done(planned)
    total = api.load_plan(tmp_path / "a plan.json").plan.total_bytes
    assert f"= {total:,} of 12,000, {CAP - total:,} left" in text
    assert "no code is counted (name files with --code) and no loader" in text
    assert "no data was given" in text
    calibrate = f"to calibrate: packer plan {made / 'model.pt'} --cap 12000 --calibration TEXT"
    assert calibrate in planned.stderr
    assert "proven optimal" in text
    following = text.splitlines()[-1]
    assert following.startswith("next: packer pack ")
    done(run(*shlex.split(following)[2:]))
    assert (tmp_path / "model.pack").stat().st_size == total


def test_the_next_command_leaves_out_what_the_plan_left_out(
    run: Run, made: Path, tmp_path: Path
) -> None:
    arguments = ("--cap", CAP, "--drop", "late.*", "--drop", "m?sk", "-o", "p.json")
    text = done(run("plan", made / "model.pt", *arguments))
    done(run(*shlex.split(text.splitlines()[-1])[2:]))
    assert "late.half" not in api.unpack(tmp_path / "model.pack")


def test_plan_without_an_output_writes_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    assert "next:" not in done(run("plan", made / "candidates.json", "--cap", CAP))
    assert list(tmp_path.iterdir()) == []


def test_plan_counts_code_loader_and_margin(run: Run, made: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"#" * 1_234)
    (tmp_path / "more.py").write_bytes(b"#" * 66)
    (tmp_path / "link.py").symlink_to("more.py")
    code = ("--code", "train.py", "--code", "more.py", "--code", "link.py")
    arguments = ("plan", made / "candidates.json", "--cap", "40KB", *code, "--margin", "2KB")
    value = done_json(run(*arguments, "--json"))
    check_report(value, cap=40_000, code=1_300)  # the link is the same file, counted once
    assert value["unused_bytes"] >= 2_000
    with_loader = done_json(run(*arguments, "--loader", "--json"))
    assert with_loader["code_bytes"] > 1_300 + 2_000
    text = done(run(*arguments, "--loader"))
    assert f"the loader {with_loader['code_bytes'] - 1_300:,}" in text
    assert "train.py 1,234" in text


@pytest.mark.parametrize(
    ("spelled", "cap"),
    [("12000", 12_000), ("12_000", 12_000), ("12.5KB", 12_500), ("12kib", 12_288)],
)
def test_sizes_are_decimal_unless_written_otherwise(
    run: Run, made: Path, spelled: str, cap: int
) -> None:
    value = done_json(run("plan", made / "candidates.json", "--cap", spelled, "--json"))
    assert value["cap_bytes"] == cap


def test_plan_says_what_other_caps_would_do(run: Run, made: Path) -> None:
    arguments = ("plan", made / "candidates.json", "--cap", CAP, "--what-if")
    value = done_json(run(*arguments, "--json"))
    offsets = {one["offset_bytes"]: one for one in value["what_if"]}
    assert sorted(offsets) == [-200_000, -50_000, 50_000, 200_000]
    assert offsets[-50_000]["damage"] is None  # nothing fits under a cap below zero
    assert 0 <= offsets[50_000]["damage"] < value["damage"]
    text = done(run(*arguments))
    assert "at a cap of 62,000 (+50,000): weight_error" in text


def test_pins_are_kept_and_the_last_one_wins(run: Run, made: Path) -> None:
    pins = ("--pin", "attention-k=int6.row", "--pin", "late-k=fp16", "--pin", "mask=raw")
    value = done_json(run("plan", made / "model.pt", "--cap", CAP, *pins, "--json"))
    choices = {row["name"]: row["choice"] for row in value["tensors"]}
    assert choices["blocks.0.attn.c_k.weight"] == "int6.row"
    assert choices["blocks.1.attn.c_k.weight"] == "fp16"


def test_pack_follows_a_plan(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = ("pack", made / "model.pt", "--plan", made / "plan.json")
    value = done_json(run(*arguments, "-o", "a.pack", "--json"))
    check_report(value)
    assert (value["output"], value["loader"]) == ("a.pack", None)
    assert value["artifact_bytes"] == (tmp_path / "a.pack").stat().st_size
    assert value["artifact_bytes"] == (
        value["header_bytes"] + value["side_bytes"] + value["payload_bytes"]
    )
    planned = json.loads((made / "plan.json").read_text())
    assert value["total_bytes"] == planned["total_bytes"]
    text = done(run(*arguments, "-o", "b.pack"))
    assert f"b.pack: code 0 + header {value['header_bytes']:,} + side values" in text
    assert (tmp_path / "a.pack").read_bytes() == (tmp_path / "b.pack").read_bytes()
    assert (tmp_path / "a.pack").read_bytes() == (made / "model.pack").read_bytes()


def test_pack_plans_by_itself_under_a_cap(run: Run, made: Path, tmp_path: Path) -> None:
    done(run("pack", made / "model.pt", "--cap", CAP, "-o", "a.pack"))
    assert (tmp_path / "a.pack").read_bytes() == (made / "model.pack").read_bytes()


def test_pack_writes_the_loader_that_was_counted(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = ("--cap", "40KB", "-o", "m.pack", "--loader", "loader.py", "--json")
    value = done_json(run("pack", made / "model.pt", *arguments))
    check_report(value, cap=40_000, code=(tmp_path / "loader.py").stat().st_size)
    loader: dict[str, Any] = {}
    exec((tmp_path / "loader.py").read_text(), loader)
    loaded = loader["read_weights"]((tmp_path / "m.pack").read_bytes())
    ours = api.unpack(tmp_path / "m.pack")
    assert {name: w.dtype for name, w in loaded.items()} == {n: w.dtype for n, w in ours.items()}
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)


def test_a_policy_measured_on_the_same_contents_measures_nothing_anew(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured anew")

    monkeypatch.setattr("packer.planning.pipeline.measure_choices", refuse)
    monkeypatch.setattr("packer.planning.pipeline.measure", refuse)
    policy = ("pack", made / "model.pt", "--policy", made / "plan.json", "-o", "a.pack")
    assert "every choice of the policy was kept" in done(run(*policy, "--cap", CAP))
    assert Path("a.pack").read_bytes() == (made / "model.pack").read_bytes()
    loaded = done(run(*policy, "--cap", "20KB", "--loader", "loader.py"))
    assert f"loader {Path('loader.py').stat().st_size:,}" in loaded.replace("of ", "")
    with pytest.raises(AssertionError, match="measured anew"):
        run(*policy, "--cap", CAP, "--include", made / "plan.json")


def test_the_next_command_names_a_missing_checkpoint_in_capitals(
    run: Run, made: Path, tmp_path: Path
) -> None:
    text = (made / "plan.json").read_text().replace(str(made / "model.pt"), "gone.pt")
    (tmp_path / "moved.json").write_text(text)
    planned = done(run("plan", "moved.json", "--cap", "12KB", "-o", "p.json"))
    assert planned.splitlines()[-1] == "next: packer pack CHECKPOINT --plan p.json -o model.pack"


def test_pack_under_a_policy(run: Run, made: Path) -> None:
    policy = ("pack", made / "model.pt", "--policy", made / "plan.json", "-o", "a.pack")
    text = done(run(*policy, "--cap", CAP))
    assert "every choice of the policy was kept" in text
    text = done(run(*policy, "--cap", "9KB"))
    last = text.splitlines()[-1]
    assert last.startswith("stepped down from the policy: ")
    choices = api.load_plan(made / "plan.json").choices
    for step in last.partition(": ")[2].split("; "):
        name, before, _, after = step.split()
        assert choices[name] == before != after
    value = done_json(run(*policy, "--cap", "9KB", "--json"))
    check_report(value, cap=9_000)
    assert value["unused_bytes"] >= 0


def test_verify(run: Run, made: Path, weights: dict[str, torch.Tensor]) -> None:
    size = (made / "model.pack").stat().st_size
    text = done(run("verify", made / "model.pack"))
    assert text == (
        f"{made / 'model.pack'}: {size:,} bytes, checksum right, "
        f"{len(weights) - 1} tensors decode\n"
    )
    against = ("verify", made / "model.pack", "--against", made / "model.pt")
    text = done(run(*against, "--plan", made / "plan.json"))
    assert "bit for bit as in" in text
    value = done_json(run(*against, "--plan", made / "plan.json", "--json"))
    assert (value["passed"], value["problems"], value["artifact_bytes"]) == (True, [], size)
    checks = {check["name"]: check for check in value["tensors"]}
    assert checks["step"]["exact"] is True
    unpacked = api.unpack(made / "model.pack")
    for name, check in checks.items():
        if weights[name].is_floating_point() and weights[name].numel():
            difference = (unpacked[name].double() - weights[name].double()).abs().max()
            assert check["max_error"] == pytest.approx(float(difference))


def test_verify_against_another_checkpoint_ends_in_a_refusal(
    run: Run, made: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    other = dict(weights)
    other["step"] = torch.tensor(8)
    other["late.half"] = torch.zeros(3)
    del other["mask"], other["lm_head.weight"]
    torch.save(other, tmp_path / "other.pt")
    result = run("verify", made / "model.pack", "--against", "other.pt", "--json")
    assert result.exit_code == 1
    assert "does not pass" in result.stderr
    value = json.loads(result.stdout)
    assert value["passed"] is False
    problems = "\n".join(value["problems"])
    assert "mask: in the artifact and not in other.pt" in problems
    assert "late.half: float16 [16, 32] in the artifact, float32 [3] in other.pt" in problems
    assert "step: raw did not come back bit for bit" in problems
    assert "tied names" in problems


def test_verify_finds_codes_that_the_plan_does_not_give(
    run: Run, made: Path, tmp_path: Path
) -> None:
    pinned = api.plan(made / "model.pt", 20_000, api.MeasureOptions(pins={"mlp-in": "int6.row"}))
    api.pack(made / "model.pt", pinned, out=tmp_path / "m.pack")
    api.plan(
        made / "model.pt",
        20_000,
        api.MeasureOptions(pins={"mlp-in": "int6.row+percentile"}),
        out="p.json",
    )
    result = run("verify", "m.pack", "--against", made / "model.pt", "--plan", "p.json", "--json")
    assert result.exit_code == 1
    assert any("codes differ" in problem for problem in json.loads(result.stdout)["problems"])


def test_unpack_and_pack_again(run: Run, made: Path, tmp_path: Path) -> None:
    value = done_json(run("unpack", made / "model.pack", "-o", "w.safetensors", "--json"))
    weights = api.unpack(made / "model.pack")
    elements = sum(weight.numel() for weight in weights.values())
    assert value == {"output": "w.safetensors", "tensors": len(weights), "elements": elements}
    assert done(run("unpack", made / "model.pack", "-o", "w.pt")) == (
        f"w.pt: {len(weights)} tensors, {elements:,} weights\n"
    )
    for unpacked in ("w.safetensors", "w.pt"):
        done(run("plan", unpacked, "--cap", CAP, "-o", "p.json"))
        done(run("pack", unpacked, "--plan", "p.json", "-o", "again.pack"))
        done(run("verify", "again.pack", "--against", unpacked, "--plan", "p.json"))
        assert (tmp_path / "again.pack").stat().st_size <= CAP


def test_unpacking_twice_gives_equal_files(run: Run, made: Path, tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        done(run("unpack", made / "model.pack", "-o", name))
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


@pytest.mark.parametrize("source", ["model.pack", "plan.json"])
def test_report_of_what_fits(run: Run, made: Path, source: str) -> None:
    value = done_json(run("report", made / source, "--json"))
    check_report(value)
    assert value["artifact_bytes"] == (made / "model.pack").stat().st_size
    text = done(run("report", made / source))
    assert f"= {value['total_bytes']:,} of 12,000, {value['unused_bytes']:,} left" in text
    assert "token-embedding" in text


def test_report_of_a_checkpoint(run: Run, made: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"#" * 1_000)
    arguments = ("report", made / "model.pt", "--cap", "50KB", "--code", "train.py")
    value = done_json(run(*arguments, "--json"))
    check_report(value, cap=50_000, code=1_000)
    assert f"OVER by {-value['unused_bytes']:,}" in done(run(*arguments))
    assert "(no cap given)" in done(run("report", made / "model.pt"))


def test_report_explains_a_tensor(run: Run, made: Path) -> None:
    name = "blocks.0.mlp.fc.weight"
    value = done_json(run("report", made / "plan.json", "--explain", name, "--json"))
    assert value["tensor"] == name
    chosen = [line["choice"] for line in value["candidates"] if line["chosen"]]
    assert chosen == [api.load_plan(made / "plan.json").choices[name]]
    text = done(run("report", made / "plan.json", "--explain", name))
    assert sum(line.startswith("->") for line in text.splitlines()) == 1


def test_report_draws_and_explains_at_once(run: Run, made: Path, tmp_path: Path) -> None:
    done(run("report", made / "plan.json", "--explain", "step", "--plot", "bytes.svg"))
    assert (tmp_path / "bytes.svg").stat().st_size > 1_000


def test_diff_of_a_plan_and_its_artifact_is_empty(run: Run, made: Path) -> None:
    value = done_json(run("diff", made / "plan.json", made / "model.pack", "--json"))
    assert value["tensors"] == []
    assert value["before"]["total_bytes"] == value["after"]["total_bytes"]
    text = done(run("diff", made / "plan.json", made / "model.pack"))
    assert text.startswith("0 tensors differ; ")


def test_diff_of_two_plans(run: Run, made: Path, tmp_path: Path) -> None:
    done(run("plan", made / "candidates.json", "--cap", "9KB", "-o", "small.json"))
    value = done_json(run("diff", made / "plan.json", "small.json", "--json"))
    assert value["tensors"]
    change = value["after"]["total_bytes"] - value["before"]["total_bytes"]
    assert sum(one["size_change"] for one in value["tensors"]) == change
    text = done(run("diff", made / "plan.json", "small.json"))
    assert f"bytes ({change:+,})" in text
    choices = api.load_plan(tmp_path / "small.json").choices
    for one in value["tensors"]:
        assert choices[one["name"]] == one["after"]["choice"]


def test_output_that_a_terminal_cannot_show_does_not_stop_a_command(tmp_path: Path) -> None:
    torch.save({"gewicht×.weight": torch.ones(3, 4)}, tmp_path / "odd.pt")
    result = CliRunner(charset="ascii").invoke(main, ["inspect", str(tmp_path / "odd.pt")])
    assert result.exit_code == 0
    assert "gewicht?.weight" in result.stdout


def test_pack_by_recipe(run: Run, made: Path) -> None:
    arguments = ("pack", made / "model.pt", "--recipe", "baseline-int8-zlib", "-o", "r.pack")
    result = run(*arguments, "--cap", 27_000)
    assert result.exit_code == 0, result.output
    assert "baseline-int8-zlib at reach " in result.stdout
    assert Path("r.pack").stat().st_size <= 27_000
    found = json.loads(run(*arguments, "--cap", 27_000, "--json").stdout)
    assert found["recipe"] == "baseline-int8-zlib"
    assert list(found["parameter"]) == ["reach"]
    refused = run("pack", made / "model.pt", "--recipe", "int7", "-o", "r.pack", "--cap", 27_000)
    assert refused.exit_code == 1
    assert "there is no recipe 'int7'" in refused.stderr
    for wrong in ((), ("--cap", 27_000, "--policy", made / "plan.json")):
        assert run(*arguments, *wrong).exit_code == 2
