"""AWQ-lite (PR #1908): groups of columns with int8 steps inside int6 and int7 matrices.

What a reader must give is computed here with numpy, element by element of the layout's description.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from packer.checkpoint.checkpoint import read_checkpoint
from packer.errors import CheckpointError
from packer.fix.repack import check_same_weights, repack

Run = Callable[..., Result]
ROWS, COLUMNS = 24, 96


def matrix(bits: int, starts: list[int], size: int, seed: int = 5) -> dict[str, Any]:
    """Codes to ±(2^(bits-1) - 1), and to ±127 inside the groups; float16 steps of both kinds."""
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1) - 1
    codes = rng.integers(-top, top + 1, (ROWS, COLUMNS))
    for start in starts:
        codes[:, start : start + size] = rng.integers(-127, 128, (ROWS, size))
    steps = rng.uniform(0.001, 0.02, ROWS).astype(np.float16)
    steps[3] = 0  # a row of zeros
    return {
        "q": torch.from_numpy(codes.astype(np.int8)),
        "scale": torch.from_numpy(steps),
        "awqg_start": torch.tensor(starts, dtype=torch.int16),
        "awqg_s_hi": torch.from_numpy((steps * np.float16(top / 127)).astype(np.float16)),
        "awqg_size": torch.tensor(size, dtype=torch.int16),
    }


def artifact(name: str, parts: dict[str, Any], meaning: Any) -> dict[str, Any]:
    kept = torch.linspace(-1, 1, 7).half()
    return {
        "w": {**{f"{name}.{suffix}": part for suffix, part in parts.items()}, "norm": kept},
        "m": {name: meaning, "norm": "passthrough (float16)"},
    }


def decoded(parts: dict[str, Any]) -> np.ndarray[Any, Any]:
    """float32 by the description: the row's step, or the group's where a group has the column."""
    codes, low, high = (parts[key].numpy() for key in ("q", "scale", "awqg_s_hi"))
    size = int(parts["awqg_size"])
    grouped = np.zeros(codes.shape[1], bool)
    for start in parts["awqg_start"].tolist():
        grouped[start : start + size] = True
    found = np.empty(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            step = high[row] if grouped[column] else low[row]
            found[row, column] = np.float32(codes[row, column]) * np.float32(step)
    return found


def saved(path: Path, value: object) -> Path:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(zlib.compress(buffer.getvalue()))
    return path


@pytest.mark.parametrize(
    ("starts", "size"),
    [([0], 16), ([COLUMNS - 16], 16), ([32, 0, 64], 16), ([5, 88], 7), ([0], COLUMNS), ([95], 1)],
)
@pytest.mark.parametrize("bits", [6, 7])
def test_groups_anywhere(tmp_path: Path, run: Run, starts: list[int], size: int, bits: int) -> None:
    name = "tok_emb.weight" if bits == 7 else "blocks.0.mlp.fc.weight"
    parts = matrix(bits, starts, size)
    path = saved(tmp_path / "a.ptz", artifact(name, parts, f"gptq (int{bits})+awqgrpint8"))
    result = run("unpack", path, "-o", "w.safetensors")
    assert result.exit_code == 0, result.output
    found = load_file("w.safetensors")
    assert set(found) == {name, "norm"}
    assert np.array_equal(found[name].numpy().view(np.uint32), decoded(parts).view(np.uint32))


def test_float32_steps_and_a_template(tmp_path: Path) -> None:
    parts = matrix(6, [16], 64)
    parts["awqg_s_hi"] = parts["awqg_s_hi"].float() * 1.0001  # bits that float16 has no room for
    path = saved(tmp_path / "a.ptz", artifact("w", parts, "gptq (int6)+awqgrpint8"))
    torch.save({"w": torch.ones(ROWS, COLUMNS).bfloat16(), "norm": torch.ones(7)}, tmp_path / "t")
    found = read_checkpoint(path, template=tmp_path / "t").tensors["w"]
    assert torch.equal(found, torch.from_numpy(decoded(parts)).bfloat16())


@pytest.mark.parametrize("grouped", [True, False])
def test_low_rank_comes_after_the_groups(tmp_path: Path, grouped: bool) -> None:
    """Factors whose product float32 holds exactly in any order of addition."""
    parts = matrix(7, [32], 16)
    rng = np.random.default_rng(2)
    left, right = rng.integers(-2, 2, (ROWS, 4)), rng.integers(-8, 8, (4, COLUMNS))
    a, b = (torch.from_numpy(one.astype(np.int8)) for one in (left, right))
    half = np.float32(0.5) ** 9
    if grouped:
        scales = np.float32(2) ** rng.integers(-3, 2, 4 * COLUMNS // 32)
        wide = right * np.repeat(scales, 32).reshape(4, COLUMNS)
        more = {"lqA_a": a, "lqAs_a": torch.tensor(half).half(), "lqB_a": b}
        more["lqBs_a"] = torch.from_numpy(scales.astype(np.float16))
        product = (left * half) @ wide
    else:
        rows = np.float32(2) ** rng.integers(-3, 2, 4)
        more = {"lqA": a, "lqAs": torch.full((ROWS,), float(half)).half(), "lqB": b}
        more["lqBs"] = torch.from_numpy(rows.astype(np.float16))
        product = (left * half) @ (right * rows[:, None])
    kind = "lqer_asym" if grouped else "lqer"
    value = artifact("w", {**parts, **more}, f"gptq (int7)+awqgrpint8+{kind}")
    found = read_checkpoint(saved(tmp_path / "a.ptz", value))
    assert found.foreign is not None and found.foreign.tensors["w"].stored.endswith(f"8+{kind}")
    expected = decoded(parts) + product.astype(np.float32)
    assert np.array_equal(found.tensors["w"].numpy(), expected)
    check_same_weights(
        repack(found.foreign).data,
        {name: one.quantized for name, one in found.foreign.tensors.items()},
        "a.ptz",
    )


def test_re_encoding_that_grows_writes_nothing(tmp_path: Path, run: Run) -> None:
    path = saved(tmp_path / "a.ptz", artifact("w", matrix(6, [0], 16), "gptq (int6)+awqgrpint8"))
    result = run("fix", path, "--lossless", "-o", "new.pack")
    assert result.exit_code == 1 and not Path("new.pack").exists()
    assert f"{path.stat().st_size:,}" in result.output and "more than" in result.output
    assert "such as w" in result.output
    report = json.loads(run("report", path, "--json").stdout)
    assert {row["name"] for row in report["tensors"]} == {"w", "norm"}


GOOD = matrix(6, [16], 16)
MEANING = "gptq (int6)+awqgrpint8"
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "overlap": ({"awqg_start": torch.tensor([8, 16])}, MEANING, "two groups have column 16"),
    "the same twice": ({"awqg_start": torch.tensor([16, 16])}, MEANING, "two groups"),
    "beyond the columns": ({"awqg_start": torch.tensor([81])}, MEANING, "81 to 96 of its 96"),
    "before them": ({"awqg_start": torch.tensor([-1])}, MEANING, "awqg_start"),
    "no size": ({"awqg_size": torch.tensor(0)}, MEANING, "awqg_start"),
    "two sizes": ({"awqg_size": torch.tensor([16, 16])}, MEANING, "awqg_size 2 ×"),
    "starts of floats": ({"awqg_start": torch.ones(1)}, MEANING, "awqg_start is torch.float32"),
    "a step too few": ({"awqg_s_hi": torch.ones(23)}, MEANING, "23 values for 24 rows"),
    "a step of codes": ({"awqg_s_hi": torch.ones(24).char()}, MEANING, "awqg_s_hi is torch.int8"),
    "no number": ({"awqg_s_hi": torch.full((24,), torch.nan)}, MEANING, "awqg_s_hi"),
    "not announced": ({}, "gptq (int6)", "awqg_s_hi, awqg_size, awqg_start"),
    "announced and absent": ({"awqg_size": None}, MEANING, "awqg_size"),
    "no codes": ({"q": None, "scale": None}, MEANING, "awqg_s_hi"),
    "another addition": ({}, "gptq (int6)+awqgrpint8+smooth", "+smooth"),
    "no matrix": (
        {"q": GOOD["q"].reshape(24, 12, 8), "scale": GOOD["scale"]},
        MEANING,
        "[24, 12, 8]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_groups_that_do_not_fit(tmp_path: Path, name: str) -> None:
    changes, meaning, words = WRONG[name]
    parts = {key: part for key, part in {**GOOD, **changes}.items() if part is not None}
    path = saved(tmp_path / "a.ptz", artifact("blocks.1.w", parts, meaning))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert words in str(caught.value) and "blocks.1.w" in str(caught.value)
    assert "\n" not in str(caught.value)
