"""What `packer fix` writes, `packer check` passes: both count the same code, by the same keys."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from click.testing import Result

from packer.artifact.decoder import read_weights
from packer.fix.true_claims import TrueSizes, corrected_claims

Run = Callable[..., Result]
LONG = "# " + "na " * 1500 + "\n"
ENTRY = (
    "import io, zstandard, torch\n"
    + LONG
    + """
def load(path):
    blob = zstandard.ZstdDecompressor().decompress(open(path, "rb").read())
    return torch.load(io.BytesIO(blob), weights_only=True)
"""
)


def artifact(seed: int = 1, rows: int = 900) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for layer in range(2):
        weight = torch.randn(rows, 64, generator=generator)
        scale = (weight.abs().amax(dim=1) / 31).half()
        codes = (weight / scale.float()[:, None]).round().clamp(-31, 31).to(torch.int8)
        name = f"blocks.{layer}.mlp.fc.weight"
        weights |= {f"{name}.q": codes, f"{name}.scale": scale}
    meanings = {f"blocks.{layer}.mlp.fc.weight": {"type": "int6"} for layer in range(2)}
    buffer = io.BytesIO()
    torch.save({"w": weights, "m": meanings}, buffer)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def log(model: int, code: int, seed: int = 7) -> str:
    return (
        f"seed:{seed}\nstep:9/9 val_loss:2.0{seed} val_bpb:1.1{seed} train_time:598000ms\n"
        f"Code size: {code} bytes\nSerialized model int6+zstd: {model} bytes\n"
        f"Total submission size int8+zlib: {model + code} bytes\n"
        f"final_exact val_loss:2.0{seed}000000 val_bpb:1.1{seed}000000 eval_time:9000ms\n"
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def make(files: dict[str, str | bytes], **claims: Any) -> Path:
        folder = tmp_path / "sent"
        folder.mkdir()
        said = {"val_bpb": 1.17, "val_loss": 2.07, **claims}
        contents = {"README.md": "1.17 bpb", "submission.json": json.dumps(said), **files}
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        return folder

    return make


def fixed_and_checked(run: Run, folder: Path, cap: int) -> dict[str, Any]:
    """What fix wrote of itself; the folder has no fail under its own cap."""
    result = run("fix", folder, "--cap", cap, "-o", "new", "--json")
    assert result.exit_code == 0, result.output
    output = json.loads(result.stdout)
    checked = run("check", "new", "--cap", cap, "--json")
    found = json.loads(checked.stdout)["findings"]
    assert [one for one in found if one["status"] == "fail"] == [], found
    claims = json.loads(Path("new/submission.json").read_text())
    assert claims["bytes_total"] == output["total_bytes"] <= cap
    by_rule = {one["rule"]: one["status"] for one in found}
    assert by_rule["json-total"] == "pass" and by_rule.get("json-parts", "pass") == "pass"
    return dict(output)


def test_re_encoded_with_a_loader_beside(make: Callable[..., Path], run: Run) -> None:
    model = artifact()
    files = {"train_gpt.py": "import torch\n", "m.ptz": model, "a.log": log(len(model), 13)}
    folder = make(files, bytes_total=len(model) + 13, bytes_code=13, model_size_mb=0.01)
    output = fixed_and_checked(run, folder, len(model) - 1500)
    assert "re-encoded" in output["what"] and Path("new/loader.py").exists()
    # As the author is asked to: the loader imported, the claims corrected by what that takes.
    claims = json.loads(Path("new/submission.json").read_text())
    edit = "from loader import read_weights\n"
    with Path("new/train_gpt.py").open("a") as file:
        file.write(edit)
    for key in ("bytes_total", "bytes_code"):
        claims[key] += len(edit)
    Path("new/submission.json").write_text(json.dumps(claims))
    checked = run("check", "new", "--cap", len(model))
    assert checked.exit_code == 0, checked.output


def test_re_encoded_and_packed_with_its_loader(make: Callable[..., Path], run: Run) -> None:
    model = artifact()
    code = ENTRY + LONG
    files = {"train_gpt.py": code, "m.ptz": model, "a.log": log(len(model), len(code))}
    folder = make(files, bytes_total=1, bytes_code=2)
    output = fixed_and_checked(run, folder, len(model))
    assert "packed with its loader" in output["what"]
    assert Path("new/train_gpt.py").stat().st_size == output["code_bytes"]
    assert "packer code" in output["to_do"][1] and str(folder) in output["to_do"][0]
    assert read_weights(Path("new/m.pack").read_bytes())


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ("import helper\n" + ENTRY, "helper.py"),
        ("exec(open(__file__.replace('gpt', 'all')).read())\n", "train_all.py"),
        ("import runpy\nrunpy.run_path('train_all.py')\n", "train_all.py"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_code_of_several_files_is_packed(
    make: Callable[..., Path], run: Run, entry: str, other: str, here: bool
) -> None:
    model = artifact(rows=60)
    size, code = len(model), len(entry) + len(ENTRY)
    files = {"train_gpt.py": entry, other: ENTRY, "a.log": log(size, code)}
    folder = make({**files, **({"m.ptz": model} if here else {})}, artifact_bytes=size)
    output = fixed_and_checked(run, folder, size + code - 2000)
    assert output["was_code_bytes"] == code and "code packed" in output["what"]
    left = list(Path("new").glob("*.py"))
    assert sum(path.stat().st_size for path in left) == output["code_bytes"]
    assert len(left) == (1 if other == "helper.py" else 2)


def test_code_that_packs_to_almost_nothing(make: Callable[..., Path], run: Run) -> None:
    """Most of it is a comment: the script that extracts itself is no stub of what was logged."""
    functions = "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(200))
    model, code = artifact(rows=60), ENTRY + functions + 40 * LONG
    files = {"train_gpt.py": code, "m.ptz": model, "a.log": log(len(model), len(code))}
    output = fixed_and_checked(run, make(files, bytes_total=1), len(model) + len(code) - 9)
    assert "code packed" in output["what"] and output["code_bytes"] < 0.03 * len(code)


@pytest.mark.parametrize("spared", [1500, 9000])
def test_one_artifact_of_three_runs_re_encoded(
    make: Callable[..., Path], run: Run, spared: int
) -> None:
    """The other runs are over as logged: a warning, since their artifacts are not here."""
    models = {seed: artifact(seed) for seed in (1, 2, 3)}
    seed, largest = max(models.items(), key=lambda one: len(one[1]))
    code = "import torch\n"
    logs = {f"train_seed{n}.log": log(len(one), len(code), n) for n, one in models.items()}
    sizes = {f"artifact_bytes_seed{n}": len(one) + len(code) for n, one in models.items()}
    files = {"train_gpt.py": code, "m.ptz": largest, **logs}
    folder = make(files, bytes_total=len(largest) + len(code), val_bpb=1.12, val_loss=2.02, **sizes)
    output = fixed_and_checked(run, folder, len(largest) - spared)
    claims = json.loads(Path("new/submission.json").read_text())
    assert claims[f"artifact_bytes_seed{seed}"] == output["total_bytes"]


def test_it_fits_and_only_the_claims_are_corrected(make: Callable[..., Path], run: Run) -> None:
    model = artifact(rows=60)
    size, code = len(model), len(ENTRY)
    files = {"train_gpt.py": ENTRY, "m.ptz": model, "a.log": log(size, code)}
    folder = make(files, total_bytes=5, bytes_total=6, code_bytes=7, quantized_model_bytes=8)
    fixed_and_checked(run, folder, 16_000_000)
    claims = json.loads(Path("new/submission.json").read_text())
    assert claims["total_bytes"] == claims["bytes_total"] == size + code
    assert (claims["code_bytes"], claims["quantized_model_bytes"]) == (code, size)


def test_stored_more_coarsely(make: Callable[..., Path], run: Run) -> None:
    model = artifact()
    files = {"train_gpt.py": "import torch\n", "m.ptz": model, "a.log": log(len(model), 13)}
    output = fixed_and_checked(run, make(files, bytes_total=1), len(model) * 7 // 10)
    assert not output["lossless"]


def test_a_total_of_which_a_budget_tells(make: Callable[..., Path], run: Run) -> None:
    text = (
        "seed:1\nstep:9/9 val_loss:2.07 val_bpb:1.17 train_time:5ms\nbudget:900000/16000000 FITS\n"
    )
    folder = make({"train_gpt.py": ENTRY, "a.log": text}, bytes_total=3)
    output = fixed_and_checked(run, folder, 16_000_000)
    assert output["total_bytes"] == 900_000


def test_without_the_artifact_its_own_is_asked_for(make: Callable[..., Path], run: Run) -> None:
    folder = make({"train_gpt.py": ENTRY, "train_seed7.log": log(16_100_000, len(ENTRY))})
    refused = run("fix", folder)
    assert refused.exit_code == 1
    assert "Put the artifact of train_seed7.log (16,100,000 bytes)" in refused.output


def test_claims_that_are_no_json_are_refused_by_name(make: Callable[..., Path], run: Run) -> None:
    folder = make({"train_gpt.py": ENTRY, "a.log": log(900, len(ENTRY)), "submission.json": "[1]"})
    refused = run("fix", folder)
    assert refused.exit_code == 1 and "submission.json: it holds a list" in refused.output


def runs_of(tmp_path: Path, extra: dict[str, str]) -> list[Path]:
    folders = []
    for seed in (1, 2, 3):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        model = zlib.compress(zstandard.ZstdDecompressor().decompress(artifact(seed, rows=60)))
        code = sum(map(len, extra.values()))
        contents = {**extra, "train.log": log(len(model), code, seed)}
        for name, text in contents.items():
            (folder / name).write_text(text)
        (folder / "m.ptz").write_bytes(model)
        folders.append(folder)
    return folders


@pytest.mark.parametrize(
    "files",
    [{"train_gpt.py": ENTRY}, {"train_gpt.py": "import helper\n" + ENTRY, "helper.py": "x = 1\n"}],
)
def test_a_new_submission(tmp_path: Path, run: Run, files: dict[str, str]) -> None:
    runs = runs_of(tmp_path, files)
    (runs[1] / "train.log").write_text((runs[1] / "train.log").read_text(), encoding="utf-16")
    made = run("fix", "--new", *runs, "-o", "new")
    assert made.exit_code == 0, made.output
    checked = run("check", "new", "--json")
    found = json.loads(checked.stdout)["findings"]
    assert checked.exit_code == 0, [one for one in found if one["status"] == "fail"]


def test_a_new_submission_of_code_that_runs_files_is_refused(tmp_path: Path, run: Run) -> None:
    stub = {"train_gpt.py": "exec(open('all.py').read())\n", "all.py": ENTRY}
    refused = run("fix", "--new", *runs_of(tmp_path, stub), "-o", "new")
    assert refused.exit_code == 1 and "runs all.py by name" in refused.output


THREE = (30_000, 70_000, 80_000)


@pytest.mark.parametrize(
    ("claims", "models", "before", "expected"),
    [
        ({"artifact_bytes_mean": 70_000}, THREE, THREE, 70_000),
        ({"artifact_bytes_mean": 60_000}, THREE, THREE, 60_000),
        ({"avg_total_bytes": 1}, THREE, THREE, 70_000),
        ({"bytes_total_min": 1}, THREE, THREE, 40_000),
        ({"artifact_bytes_mean": 70_000}, (60_000,), THREE, 70_000),
        ({"artifact_bytes": 70_000}, (60_000,), THREE, 60_000),
        ({"artifact_bytes": 80_000}, (60_000,), THREE, 60_000),
        ({"artifact_bytes": 90_000}, (60_000,), THREE, 70_000),
        ({"artifact_bytes_std": 7000}, (60_000,), THREE, 7000),
        ({"bytes_limit": 9000}, (60_000,), THREE, 9000),
        ({"total_size_mb": 0.5}, (15_900_000,), (1000,), 15.9),
        ({"bytes_total": "0.07 MB"}, (60_000,), (60_000,), 70_000),
        ({"artifact_bytes": {"42": 5}}, (60_000,), (60_000,), {"42": 70_000}),
        ({"artifact_bytes": {"42": 5, "7": 6}}, (60_000,), (60_000,), {"42": 5, "7": 6}),
        ({"artifact_bytes_seed42": 60_000}, (50_000,), (60_000,), 50_000),
        ({"artifacts": [{"bytes": 60_000}]}, (50_000,), (60_000,), [{"bytes": 50_000}]),
        ({"artifacts": [{"bytes": 1}, {"bytes": 2}]}, THREE, THREE, [{"bytes": 1}, {"bytes": 2}]),
        ({"bytes": {"model": 1, "code": 2}}, (5,), (6,), {"model": 5, "code": 10_000}),
    ],
)
def test_true_sizes_keep_what_a_key_means(
    claims: dict[str, Any], models: tuple[int, ...], before: tuple[int, ...], expected: Any
) -> None:
    found, _ = corrected_claims(claims, TrueSizes(10_000, models, before), 10**6)
    assert found[next(iter(claims))] == expected


def test_a_left_over_file_is_not_the_artifact(make: Callable[..., Path], run: Run) -> None:
    files = {"train_gpt.py": ENTRY, "a.log": log(15_900_000, len(ENTRY)), "smoke.ptz": artifact(2)}
    output = fixed_and_checked(run, make(files, bytes_total=3), 16_000_000)
    assert output["artifact"] is None and output["artifact_bytes"] == 15_900_000


def test_a_script_that_cannot_be_what_was_logged_is_refused(
    make: Callable[..., Path], run: Run
) -> None:
    stub = "name = 'train_' + 'all.py'\nexec(open(name).read())\n"
    folder = make({"train_gpt.py": stub, "train_all.py": ENTRY, "a.log": log(900, len(ENTRY))})
    refused = run("fix", folder)
    assert refused.exit_code == 1 and "--code" in refused.output
    assert f"a.log counts {len(ENTRY):,} bytes" in refused.output


@pytest.mark.parametrize(
    "claimed",
    [
        lambda size: {"seeds": [{"seed": 7, "artifact_bytes": size}]},
        lambda size: {"results_by_seed": {"seed_7": {"total_bytes": size, "val_bpb": 1.17}}},
        lambda size: {"seed_results": {"7": {"size_bytes": size, "val_loss": 2.07}}},
    ],
)
@pytest.mark.parametrize("spared", [100, 1500])
def test_the_size_of_the_only_seed_is_corrected(
    make: Callable[..., Path], run: Run, claimed: Callable[[int], dict[str, Any]], spared: int
) -> None:
    """With packed code alone, and with the artifact re-encoded."""
    model = artifact()
    files = {"train_gpt.py": ENTRY, "m.ptz": model, "a.log": log(len(model), len(ENTRY))}
    total = len(model) + len(ENTRY)
    folder = make(files, bytes_total=total, **claimed(total))
    cap = total - spared if spared < 1000 else len(model) - spared
    output = fixed_and_checked(run, folder, cap)
    assert (
        str(output["total_bytes"]) in Path("new/submission.json").read_text().partition("seed")[2]
    )


@pytest.mark.parametrize("entry", ["import loader\n", "x = 1\n"])
def test_the_loader_replaces_no_file_of_its_name(
    make: Callable[..., Path], run: Run, entry: str
) -> None:
    model = artifact()
    files = {"train_gpt.py": entry, "loader.py": "batches = 3\n", "m.ptz": model}
    folder = make({**files, "a.log": log(len(model), len(entry))})
    refused = run("fix", folder, "--cap", len(model) - 1500, "-o", "new")
    assert refused.exit_code == 1 and "loader.py: has 12 bytes" in refused.output
    assert not Path("new").exists()
