"""`packer fix` on artifacts of others: lossless first, then the cheapest bytes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from click.testing import Result

from packer.checkpoint import read_checkpoint
from packer.decoder import read_weights

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
    for layer in range(3):
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


def test_lossless_is_enough_where_it_fits(seeded: Path, run: Run) -> None:
    before = seeded.read_bytes()
    found = fixed(run, seeded, "--cap", len(before) - 200, "-o", "new.pack")
    assert found["lossless"] and found["steps"] == [] and found["damage"] == 0
    assert found["artifact_bytes"] == Path("new.pack").stat().st_size <= len(before) - 200
    decoded, expected = read_weights(Path("new.pack").read_bytes()), read_checkpoint(seeded).tensors
    assert set(decoded) == set(expected)
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)
    assert seeded.read_bytes() == before


@pytest.mark.parametrize("share", [0.98, 0.8, 0.5])
def test_the_cheapest_bytes_go_first_and_the_rest_stays(
    seeded: Path, run: Run, share: float
) -> None:
    lossless = fixed(run, seeded)["lossless_bytes"]
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
    first = Path("new.pack").read_bytes()
    fixed(run, seeded, "--cap", cap, "--margin", 16, "-o", "again.pack")
    assert Path("again.pack").read_bytes() == first
    assert run("verify", "new.pack").exit_code == 0


def test_a_smaller_cap_never_does_less_damage(seeded: Path, run: Run) -> None:
    lossless = fixed(run, seeded)["lossless_bytes"]
    damages = [
        fixed(run, seeded, "--cap", lossless * tenths // 10)["damage"] for tenths in range(4, 10)
    ]
    assert damages == sorted(damages, reverse=True) and damages[-1] > 0


def test_what_is_refused(seeded: Path, run: Run) -> None:
    lossless = fixed(run, seeded)["lossless_bytes"]
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


def test_one_percent_over_needs_no_loss(replay: Path, run: Run) -> None:
    size = (replay / "int6.ptz").stat().st_size
    found = fixed(run, replay / "int6.ptz", "--cap", int(size / 1.0106), "-o", "new.pack")
    assert found["lossless"] and found["unused_bytes"] >= 0


def test_what_lossless_cannot_save_costs_half_of_blanket_int5(
    replay: Path, shared: Path, run: Run
) -> None:
    """3.5 % over even after re-encoding, so that the whole of it must come from coarser tensors."""
    lossless = fixed(run, replay / "int6.ptz")["lossless_bytes"]
    cap = int(lossless / 1.035)
    found = fixed(run, replay / "int6.ptz", "--cap", cap, "-o", "new.pack")
    assert not found["lossless"] and 0 <= found["unused_bytes"] < 1000
    scored = run(
        *("eval", replay / "model.pt", replay / "int5.ptz", "new.pack", "--json"),
        *("--config", shared / "checkpoints/ref6x256.config.json"),
        *("--data", shared / "corpus/valid/sherlock.txt"),
        *("--tokenizer", shared / "tokenizers/fineweb_1024_bpe.model"),
        *("--window", 256, "--tokens", 6144),
    )
    assert scored.exit_code == 0, scored.output
    _, int5, new = json.loads(scored.stdout)["scores"]
    assert 0 < new["kl_bits_per_byte"] < int5["kl_bits_per_byte"] / 2
