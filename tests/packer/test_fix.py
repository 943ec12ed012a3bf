"""`packer fix` on artifacts of others: lossless first, then the cheapest bytes."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from click.testing import CliRunner, Result

from packer import api
from packer.artifact.decoder import read_weights
from packer.checkpoint.checkpoint import read_checkpoint
from packer.cli import main

Run = Callable[..., Result]
Weights = dict[str, torch.Tensor]


def int_codes(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 codes, float16 scales) by the largest magnitude of each row (PR #162)."""
    top = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(dim=1) / top).clamp(min=1e-12).half()
    codes = (weight / scale.float()[:, None]).round().clamp(-top - 1, top)
    return codes.to(torch.int8), scale


def artifact(weights: Weights, mlp_bits: int = 6) -> bytes:
    """{"w", "m"} under zstd: int6, int8 embedding, small tensors float16 or float32."""
    parts: Weights = {}
    meanings: dict[str, Any] = {}
    for name, weight in weights.items():
        if weight.numel() > 8192 and weight.dim() == 2:
            bits = 8 if name == "tok_emb.weight" else mlp_bits if ".mlp." in name else 6
            parts[f"{name}.q"], parts[f"{name}.scale"] = int_codes(weight, bits)
            meanings[name] = {"type": f"int{bits}"}
        else:
            parts[name] = weight if weight.dim() < 2 else weight.half()
            meanings[name] = "passthrough_ctrl" if weight.dim() < 2 else "passthrough_fp16"
    buffer = io.BytesIO()
    torch.save({"w": parts, "m": meanings}, buffer)
    return zstandard.ZstdCompressor(level=19).compress(buffer.getvalue())


def seeded_weights() -> Weights:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    weights = {"tok_emb.weight": normal(256, 64)}
    for layer in range(2):
        weights[f"blocks.{layer}.attn.c_q.weight"] = normal(64, 64)
        weights[f"blocks.{layer}.mlp.fc.weight"] = normal(192, 64)
        weights[f"blocks.{layer}.mlp.proj.weight"] = normal(64, 192)
        weights[f"blocks.{layer}.attn_scale"] = normal(64) + 1
    return weights


@pytest.fixture
def seeded(tmp_path: Path) -> Path:
    path = tmp_path / "final_model.int6.ptz"
    path.write_bytes(artifact(seeded_weights()))
    return path


def fixed(run: Run, *arguments: object) -> dict[str, Any]:
    result = run("fix", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the seeded artifact, re-encoded."""
    path = tmp_path_factory.mktemp("lossless") / "final_model.int6.ptz"
    path.write_bytes(artifact(seeded_weights()))
    result = CliRunner().invoke(main, ["fix", str(path), "--json"], catch_exceptions=False)
    return int(json.loads(result.stdout)["lossless_bytes"])


def test_lossless_is_enough_where_it_fits(seeded: Path, run: Run) -> None:
    before = seeded.read_bytes()
    found = fixed(run, seeded, "--cap", len(before) - 200, "-o", "new.pack")
    assert found["lossless"] and found["steps"] == [] and found["damage"] == 0
    assert found["artifact_bytes"] == Path("new.pack").stat().st_size <= len(before) - 200
    decoded, expected = read_weights(Path("new.pack").read_bytes()), read_checkpoint(seeded).tensors
    assert set(decoded) == set(expected)
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)
    assert seeded.read_bytes() == before


@pytest.mark.parametrize("share", [0.98, 0.6])
def test_the_cheapest_bytes_go_first_and_the_rest_stays(
    seeded: Path, lossless: int, run: Run, share: float
) -> None:
    cap = int(lossless * share)
    found = fixed(run, seeded, "--cap", cap, "--margin", 16, "-o", "new.pack")
    size = Path("new.pack").stat().st_size
    assert cap * 0.98 < size <= cap - 16 and found["artifact_bytes"] == size
    steps = found["steps"]
    assert lossless - sum(step["saved_bytes"] for step in steps) == size
    assert found["damage"] == pytest.approx(sum(step["damage"] for step in steps))
    prices = [step["damage"] / step["saved_bytes"] for step in steps]
    assert prices == sorted(prices) and all(step["saved_bytes"] > 0 for step in steps)
    decoded, expected = read_weights(Path("new.pack").read_bytes()), read_checkpoint(seeded).tensors
    changed = {name for name in expected if not torch.equal(decoded[name], expected[name])}
    assert changed == {step["tensor"] for step in steps}
    if share == 0.6:  # the same bytes again, for most steps
        fixed(run, seeded, "--cap", cap, "--margin", 16, "-o", "again.pack")
        assert Path("again.pack").read_bytes() == Path("new.pack").read_bytes()
    assert run("verify", "new.pack").exit_code == 0


def test_a_smaller_cap_never_does_less_damage(seeded: Path, lossless: int, run: Run) -> None:
    damages = [
        fixed(run, seeded, "--cap", lossless * tenths // 10)["damage"] for tenths in (4, 7, 9)
    ]
    assert damages == sorted(damages, reverse=True) and damages[-1] > 0


def test_what_is_refused(seeded: Path, lossless: int, run: Run) -> None:
    for arguments, code, word in (
        (("--cap", lossless - 1, "--lossless"), 1, "OVER by 1; nothing was written"),
        (("--cap", 500), 1, "the smallest possible total is"),
        (("--cap", lossless, "-o", seeded), 2, "is an input"),
        (("--cap", 0), 2, "a cap is at least 1 byte"),
    ):
        result = run("fix", seeded, *arguments)
        assert result.exit_code == code and word in result.output, result.output
    torch.save(seeded_weights(), "plain.pt")
    result = run("fix", "plain.pt")
    assert result.exit_code == 1 and "use packer pack" in result.output
    assert sorted(path.name for path in Path().iterdir()) == [seeded.name, "plain.pt"]


def test_nothing_is_written_without_an_output(seeded: Path, run: Run) -> None:
    result = run("fix", seeded, "--cap", seeded.stat().st_size * 3 // 4)
    assert result.exit_code == 0 and "not written (no -o)" in result.stdout
    assert "OVER by" in result.stderr and "fewer (" in result.stderr
    assert list(Path().resolve().iterdir()) == [seeded]


def test_the_loader_is_counted_and_reads_the_weights_alone(seeded: Path, run: Run) -> None:
    Path("train_gpt.py").write_text("print('train')\n")
    cap = 15_000 + seeded.stat().st_size * 3 // 4
    found = fixed(
        run, seeded, "--cap", cap, "--code", "train_gpt.py", "--loader", "loader.py", "-o", "n.pack"
    )
    code = len(Path("train_gpt.py").read_bytes()) + len(Path("loader.py").read_bytes())
    assert found["code_bytes"] == code
    assert found["total_bytes"] == code + Path("n.pack").stat().st_size <= cap
    script = (
        "import loader, torch\n"
        "weights = loader.read_weights(open('n.pack', 'rb').read())\n"
        "torch.save(weights, 'w.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    loaded = torch.load("w.pt", weights_only=True)
    expected = read_weights(Path("n.pack").read_bytes())
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_checkpoint_is_one_more_way_and_the_better_one(
    seeded: Path, lossless: int, run: Run
) -> None:
    torch.save(seeded_weights(), "model.pt")
    cap = lossless * 7 // 10
    found = fixed(run, seeded, "--cap", cap, "--checkpoint", "model.pt", "-o", "new.pack")
    first, second = found["repairs"]
    assert {first["name"], second["name"]} == {"plan of the checkpoint", "coarser tensors"}
    assert found["damage"] == first["damage"] < second["damage"]
    assert max(first["total_bytes"], second["total_bytes"]) <= cap
    # Rounded once, not twice: the plan of the weights themselves is nearer to them.
    assert first["name"] == "plan of the checkpoint" and found["steps"] == []
    assert Path("new.pack").stat().st_size == found["total_bytes"] == first["total_bytes"]
    same = fixed(run, seeded, "--cap", lossless, "--checkpoint", "model.pt")
    assert same["lossless"] and same["repairs"] == []
    other = {**seeded_weights(), "tok_emb.weight": torch.ones(255, 64)}
    torch.save(other, "other.pt")
    refused = run("fix", seeded, "--cap", cap, "--checkpoint", "other.pt")
    assert refused.exit_code == 1 and "tok_emb.weight has the shape" in refused.output


def read_as_its_author_does(path: Path) -> Weights:
    """Decompressed, loaded and multiplied as PR #162's script does, with nothing of ours."""
    blob = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 30)
    held = torch.load(io.BytesIO(blob), weights_only=True)
    found = {}
    for name, meaning in held["m"].items():
        if isinstance(meaning, dict):
            codes, scale = held["w"][f"{name}.q"], held["w"][f"{name}.scale"]
            bits = int(meaning["type"].removeprefix("int"))
            assert -(2 ** (bits - 1)) <= int(codes.min()) and int(codes.max()) < 2 ** (bits - 1)
            found[name] = codes.float() * scale.float().view(codes.shape[0], 1)
        else:
            found[name] = held["w"][name].float()
    return found


def test_without_recoding_its_own_code_reads_the_result(seeded: Path, run: Run) -> None:
    cap = seeded.stat().st_size * 9 // 10
    found = fixed(run, seeded, "--cap", cap, "--no-recode", "-o", "new.ptz")
    assert cap * 0.97 < Path("new.ptz").stat().st_size == found["total_bytes"] <= cap
    decoded, expected = read_as_its_author_does(Path("new.ptz")), read_as_its_author_does(seeded)
    changed = {name for name in expected if not torch.equal(decoded[name], expected[name])}
    assert changed == {step["tensor"] for step in found["steps"]} != set()
    ours = read_checkpoint("new.ptz").tensors
    assert set(ours) == set(decoded)
    assert all(torch.equal(ours[name], decoded[name]) for name in decoded)
    assert run("fix", seeded, "--no-recode", "--lossless").exit_code == 2
    refused = run("fix", seeded, "--cap", 5000, "--no-recode", "-o", "none.ptz")
    assert refused.exit_code == 1 and "without --no-recode" in refused.output


def test_options_that_go_with_others(seeded: Path, run: Run) -> None:
    for arguments, word in (
        (("--tokens", 5), "name it with --data"),
        (("--model-config", seeded), "--model-config goes with --model"),
    ):
        result = run("fix", seeded, *arguments)
        assert result.exit_code == 2 and word in result.output


# --- Submission folders -------------------------------------------------------------------------

CODE = (
    """
import io, zstandard, torch


def unused(a, b):
    # A long comment that packing leaves out, since nothing of it runs. """
    + "na " * 800
    + """
    return a + b


def load(path):
    blob = zstandard.ZstdDecompressor().decompress(open(path, "rb").read())
    return torch.load(io.BytesIO(blob), weights_only=True)
"""
)
CLAIMS = {
    "name": "replay",
    "val_bpb": 1.2345,
    "bytes_total": 123,
    "bytes_code": 7,
    "bytes_model_int6_zstd": 99,
    "artifact_bytes": 0,
    "compliance": {"artifact_under_16mb": True, "three_seeds": True},
}


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    folder = tmp_path / "records" / "run"
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text(CODE)
    (folder / "final_model.int6.ptz").write_bytes(artifact(seeded_weights()))
    (folder / "train_seed1.log").write_text("step:1/1 val_bpb:1.2345\n")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2")
    (folder / "submission.json").write_text(json.dumps(CLAIMS))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def sizes(folder: Path) -> tuple[int, int]:
    """(code, artifact) as they were."""
    found = contents(folder)
    return len(found["train_gpt.py"]), len(found["final_model.int6.ptz"])


def test_a_stale_claim_is_corrected_and_nothing_else(submission: Path, run: Run) -> None:
    """PR #372: the total in submission.json was the parent's."""
    before, (code, model) = contents(submission), sizes(submission)
    found = fixed(run, submission, "-o", "new")
    claims = json.loads(Path("new/submission.json").read_text())
    assert claims == {
        **CLAIMS,
        "bytes_total": code + model,
        "bytes_code": code,
        "bytes_model_int6_zstd": model,
        "artifact_bytes": code + model,
    }
    assert found["corrected"]["bytes_total"] == [123, code + model] and found["to_do"] == []
    assert {**contents(Path("new")), "submission.json": before["submission.json"]} == before
    assert contents(submission) == before


def test_packing_the_code_comes_before_touching_the_artifact(submission: Path, run: Run) -> None:
    """PR #1412: 78.7 KB of raw code; packed, it fits."""
    code, model = sizes(submission)
    found = fixed(run, submission, "--cap", code + model - 1000, "--lossless", "-o", "new")
    new = contents(Path("new"))
    assert new["final_model.int6.ptz"] == contents(submission)["final_model.int6.ptz"]
    assert len(new["train_gpt.py"]) < code - 1000 and "code packed" in found["what"]
    assert found["total_bytes"] == len(new["train_gpt.py"]) + model
    assert json.loads(new["submission.json"])["bytes_total"] == found["total_bytes"]


def test_the_artifact_is_re_encoded_with_its_loader(submission: Path, run: Run) -> None:
    weights = seeded_weights()
    weights["blocks.0.mlp.fc.weight"] = torch.randn(3072, 192, generator=torch.manual_seed(1))
    (submission / "final_model.int6.ptz").write_bytes(artifact(weights))
    _, model = sizes(submission)
    found = fixed(run, submission, "--cap", model - 500, "--lossless", "-o", "new")
    new = contents(Path("new"))
    assert set(new) == {
        *("final_model.int6.pack", "loader.py", "submission.json", "tokenizer.model"),
        *("train_gpt.py", "train_seed1.log"),
    }
    expected = read_checkpoint(submission / "final_model.int6.ptz").tensors
    decoded = read_weights(new["final_model.int6.pack"])
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)
    assert found["artifact_bytes"] == len(new["final_model.int6.pack"])
    assert found["lossless"] and found["unused_bytes"] >= 0
    line = CODE[: CODE.index(".decompress(")].count("\n") + 1
    assert f"train_gpt.py (line {line})" in found["to_do"][0]
    claims = json.loads(new["submission.json"])
    assert claims["bytes_model_int6_zstd"] == len(new["final_model.int6.pack"])
    assert claims["bytes_total"] == found["total_bytes"] == claims["artifact_bytes"]


def test_weights_change_last(submission: Path, run: Run) -> None:
    _, model = sizes(submission)
    cap = model * 9 // 10
    refused = run("fix", submission, "--cap", cap, "--lossless", "-o", "new")
    assert refused.exit_code == 1 and "too many; nothing was written" in refused.output
    assert not Path("new").exists()
    result = run("fix", submission, "--cap", cap, "-o", "new")
    assert result.exit_code == 0 and "measure val_bpb and val_loss again" in result.stdout
    assert "OVER by" in result.stderr and "submission.json claims 123" in result.stderr
    assert "bytes saved" in result.stdout and result.stdout.rstrip().endswith("left")
    first = contents(Path("new"))
    assert run("fix", submission, "--cap", cap, "-o", "again").exit_code == 0
    assert contents(Path("again")) == first


LOG = """seed: 7
Serialized model int6+zstd: {model} bytes
Code size: {code} bytes
Total submission size int6+zstd: {total} bytes
"""


def test_a_folder_without_its_artifact_is_fixed_from_its_logs(submission: Path, run: Run) -> None:
    """Contest folders hold logs and code alone; PR #372's total was another's."""
    code, model = sizes(submission)
    (submission / "final_model.int6.ptz").unlink()
    refused = run("fix", submission)
    assert refused.exit_code == 1 and "no log names the size" in refused.output
    log = LOG.format(model=model, code=code, total=model + code)
    (submission / "train_seed7.log").write_text(log)
    found = fixed(run, submission, "-o", "new")
    assert found["corrected"]["bytes_total"] == [123, code + model]
    packed = fixed(run, submission, "--cap", code + model - 1000, "-o", "packed")
    assert "code packed" in packed["what"]
    refused = run("fix", submission, "--cap", model)
    assert refused.exit_code == 1 and "it is not in the folder" in refused.output


def test_the_largest_run_is_held_against_the_cap(submission: Path, run: Run) -> None:
    code, model = sizes(submission)
    for seed, more in ((7, 50), (8, 0)):  # the artifact that is here is seed 8's
        log = LOG.format(model=model + more, code=code, total=model + code + more)
        (submission / f"train_seed{seed}.log").write_text(log.replace("seed: 7", f"seed: {seed}"))
    found = fixed(run, submission, "--cap", code + model + 49, "-o", "new")
    assert "code packed" in found["what"] and found["artifact_bytes"] == model + 50


def test_folders_that_are_refused(submission: Path, run: Run) -> None:
    def refuse(word: str, *arguments: object, code: int = 1) -> None:
        result = run("fix", submission, *arguments)
        assert result.exit_code == code and word in result.output, result.output

    refuse("lies in or around", "-o", submission / "new", code=2)
    refuse("lies in or around", "-o", submission.parent, code=2)
    Path("there").mkdir()
    Path("there/file").touch()
    refuse("exists already", "-o", "there", code=2)
    refuse("--loader is for artifacts", "--loader", "loader.py", code=2)
    (submission / "second.ptz").write_bytes((submission / "final_model.int6.ptz").read_bytes())
    refuse("holds 2 artifacts")
    (submission / "second.ptz").write_bytes(b"\x78\xda damaged")
    refuse("zlib data is truncated or damaged")
    (submission / "second.ptz").unlink()
    (submission / "submission.json").write_text("{")
    refuse("is not valid JSON")
    (submission / "train_gpt.py").rename(submission / "a.py")
    (submission / "b.py").touch()
    refuse("name those that count with --code")
    assert not Path("new").exists()


# --- A new submission from finished runs --------------------------------------------------------

RUN_LOG = """seed: {seed}
step:990/20000 val_loss:2.9 val_bpb:1.71 train_time:598000ms step_avg:604ms
Serialized model: 99999 bytes
Code size: {code} bytes
Serialized model int6+zstd: {model} bytes
Total submission size int6+zstd: {total} bytes
final_int6_roundtrip_exact val_loss:{nats:.8f} val_bpb:{bpb:.8f} eval_time:42000ms
"""
# Nobody's packed code is below a kilobyte: settings that do not compress.
RUN_CODE = CODE + f"SETTINGS = {random.Random(0).randbytes(1200).hex()!r}\n"
NATS_PER_BPB = 0.6931471805599453 * 2.442


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three finished runs: code, log and artifact each; seed 2 scores best, seed 1 is median."""
    folders = []
    for seed, bpb in ((1, 1.70), (2, 1.69), (3, 1.72)):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        weights = seeded_weights()
        weights["blocks.0.mlp.fc.weight"] *= 1 + seed / 10
        (folder / "train_gpt.py").write_text(RUN_CODE)
        (folder / "final_model.int6.ptz").write_bytes(artifact(weights))
        model = (folder / "final_model.int6.ptz").stat().st_size
        sizes = {"model": model, "code": len(RUN_CODE), "total": model + len(RUN_CODE)}
        log = RUN_LOG.format(seed=seed, nats=bpb * NATS_PER_BPB, bpb=bpb, **sizes)
        (folder / "train.log").write_text(log)
        folders.append(folder)
    return folders


OWN_LOG = """3,000 parameters, seed {seed}, 9,000 training tokens, 128 a step, float32 on cpu x 1
step 6/12  loss 5.1000  lr 1.00  900 tokens/s, 0:01 left
step 12/12  loss 5.0000  valid 1.8000 bpb  lr 0.10  900 tokens/s, 0:00 left
seconds: training 1.7, calibration 0.3, packing 0.2, evaluation 0.5
best: ema, runs/{seed}/ema.pack, {size:,} bytes + code {code} = {total:,}, \
{bpb:.8f} bits per byte, {nats:.8f} nats a token through the file
"""


def test_three_runs_of_the_companion_trainer_become_a_submission(
    runs: list[Path], run: Run
) -> None:
    """The log names the best average's artifact; those of the others lie beside it."""
    weights = seeded_weights()
    measured = api.measure(weights)
    raw = api.pack(weights, api.plan(measured, 40_000)).data
    for seed, (folder, bpb) in enumerate(zip(runs, (1.70, 1.69, 1.72), strict=True), 1):
        (folder / "final_model.int6.ptz").unlink()
        (folder / "raw.pack").write_bytes(raw)
        api.pack(weights, api.plan(measured, 30_000 + 500 * seed), out=folder / "ema.pack")
        size = (folder / "ema.pack").stat().st_size
        facts = {"size": size, "code": len(RUN_CODE), "total": size + len(RUN_CODE)}
        log = OWN_LOG.format(seed=seed, bpb=bpb, nats=bpb * NATS_PER_BPB, **facts)
        (folder / "train.log").write_text(log)
    fixed(run, "--new", *runs, "-o", "new")
    new = contents(Path("new"))
    claims = json.loads(new["submission.json"])
    largest = max((folder / "ema.pack").stat().st_size for folder in runs)
    assert claims["bytes_total"] == largest + len(RUN_CODE)
    assert claims["val_bpb"] == pytest.approx((1.70 + 1.69 + 1.72) / 3, abs=1e-8)
    assert claims["seed_results"]["2"]["steps"] == 12
    assert claims["compliance"]["train_under_600s"] is True
    assert new["ema.pack"] == contents(runs[0])["ema.pack"]


def test_three_runs_become_a_submission_that_the_checker_passes(runs: list[Path], run: Run) -> None:
    Path("about.json").write_text(json.dumps({"author": "A", "name": "A try", "blurb": "int6."}))
    found = fixed(run, "--new", *runs, "-o", "new", "--about", "about.json")
    assert found["to_do"] == ["say in submission.json: github_id, date"]
    assert {path.name for path in Path("new").iterdir()} == {
        *("README.md", "submission.json", "train_gpt.py", "final_model.int6.ptz"),
        *(f"train_seed{seed}.log" for seed in (1, 2, 3)),
    }
    new = contents(Path("new"))
    assert new["train_gpt.py"] == RUN_CODE.encode()
    assert new["final_model.int6.ptz"] == contents(runs[0])["final_model.int6.ptz"]
    claims = json.loads(new["submission.json"])
    largest = max((folder / "final_model.int6.ptz").stat().st_size for folder in runs)
    assert claims["bytes_total"] == largest + len(RUN_CODE) and claims["name"] == "A try"
    assert claims["val_bpb"] == pytest.approx((1.70 + 1.69 + 1.72) / 3, abs=1e-8)
    assert all(claims["compliance"].values()) and len(claims["compliance"]) == 4
    checked = run("check", "new", "--json")
    assert checked.exit_code == 0
    findings = json.loads(checked.stdout)["findings"]
    assert findings == found["findings"]  # as reported when it was written
    passed = {finding["rule"] for finding in findings if finding["status"] == "pass"}
    assert passed >= {
        *("cap", "sums", "code-files", "json", "json-total", "json-parts", "json-seeds", "score"),
        *("compliance", "readme", "artifact", "train-time", "eval-time", "seeds", "network"),
    }
    assert not any(finding["status"] == "fail" for finding in findings)


def test_a_new_submission_is_told_in_words(runs: list[Path], run: Run) -> None:
    preview = run("fix", "--new", *runs)
    assert preview.exit_code == 0 and "not written (no -o)" in preview.stdout
    assert "seed 1: code" in preview.stdout and "to do 1: say in submission.json" in preview.stdout
    written = run("fix", "--new", *runs, "-o", "new")
    assert written.exit_code == 0 and "new/: val_bpb 1.70" in written.stdout
    for text, says in (("{", "is not JSON"), ("[1]", "holds no JSON object")):
        Path("about.json").write_text(text)
        refused = run("fix", "--new", *runs, "-o", "other", "--about", "about.json")
        assert refused.exit_code == 2 and says in refused.stderr
    assert run("fix", "--new", *runs[:2], "about.json", "-o", "other").exit_code == 2
    assert not Path("other").exists()


def test_code_is_packed_where_the_runs_fit_only_so(runs: list[Path], run: Run) -> None:
    total = max(json.loads(run("fix", "--new", *runs, "--json").stdout)["totals"].values())
    found = fixed(run, "--new", *runs, "--cap", total - 500, "-o", "new")
    assert found["code_bytes"] < len(RUN_CODE) - 500
    assert Path("new/train_gpt.py").stat().st_size == found["code_bytes"]
    assert max(found["totals"].values()) == found["submission"]["bytes_total"] <= total - 500
    checked = run("check", "new", "--cap", total - 500)
    assert checked.exit_code == 0, checked.output


def test_runs_that_are_no_submission(runs: list[Path], run: Run) -> None:
    def refuse(word: str, *arguments: object, code: int = 1) -> None:
        result = run("fix", "--new", *arguments, "-o", "new")
        assert result.exit_code == code and word in result.output, result.output
        assert not Path("new").exists()

    refuse("a submission needs 3", *runs[:2])
    refuse("every seed may be there once", runs[0], *runs[:2])
    refuse("OVER by", *runs, "--cap", 1000)
    refuse("--lossless", *runs, "--lossless", code=2)
    (runs[2] / "train_gpt.py").write_text(RUN_CODE + "# edited\n")
    refuse("ran different code", *runs)
    (runs[2] / "train.log").unlink()
    refuse("one log with its seed", *runs)
    result = run("fix", *runs)
    assert result.exit_code == 2 and "--new" in result.output


# --- The int6 model of PR #339, replayed on the reference checkpoint ----------------------------


@pytest.fixture(scope="module")
def replay(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt, its int6 artifact, and what the author planned: int5 on all MLPs."""
    folder = tmp_path_factory.mktemp("replay")
    weights = torch.load(shared / "checkpoints/ref6x256.pt", weights_only=True)
    torch.save(weights, folder / "model.pt")
    (folder / "int6.ptz").write_bytes(artifact(weights))
    (folder / "int5.ptz").write_bytes(artifact(weights, mlp_bits=5))
    return folder


def test_one_percent_over_needs_no_loss_and_more_costs_half_of_blanket_int5(
    replay: Path, shared: Path, run: Run
) -> None:
    """3.5 % over even after re-encoding, so that the whole of it must come from coarser tensors."""
    size = (replay / "int6.ptz").stat().st_size
    enough = fixed(run, replay / "int6.ptz", "--cap", int(size / 1.0106), "-o", "enough.pack")
    assert enough["lossless"] and enough["unused_bytes"] >= 0
    cap = int(enough["artifact_bytes"] / 1.035)
    options = (
        *("--config", shared / "checkpoints/ref6x256.config.json"),
        *("--data", shared / "corpus/valid/sherlock.txt"),
        *("--tokenizer", shared / "tokenizers/fineweb_1024_bpe.model"),
        *("--window", 256, "--tokens", 1024),
    )
    found = fixed(run, replay / "int6.ptz", "--cap", cap, "-o", "new.pack", *options)
    own_cap = int(size / 1.035)
    kept = fixed(run, replay / "int6.ptz", "--cap", own_cap, "--no-recode", "-o", "new.ptz")
    assert kept["unused_bytes"] >= 0
    assert not found["lossless"] and 0 <= found["unused_bytes"] < 1000
    files = (replay / "model.pt", replay / "int5.ptz", "new.pack", "new.ptz")
    scored = run("eval", *files, "--json", *options)
    assert scored.exit_code == 0, scored.output
    _, int5, new, own = json.loads(scored.stdout)["scores"]
    assert 0 < new["kl_bits_per_byte"] < int5["kl_bits_per_byte"] / 2
    assert 0 < own["kl_bits_per_byte"] < int5["kl_bits_per_byte"] / 2
    # fix measured the same file on the same text, but from the artifact as it was.
    score = found["scores"]["coarser tensors"]
    assert score["bits_per_byte"] == pytest.approx(new["bits_per_byte"], abs=1e-9)
    assert found["scores"]["as submitted"]["bits_per_byte"] < score["bits_per_byte"] + 0.01
    assert score["kl_bits_per_byte"] == found["repairs"][0]["kl_bits_per_byte"] > 0
