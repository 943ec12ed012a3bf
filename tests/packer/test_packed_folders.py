"""Folders of GPTQ and AWQ: values by the documented layout, bit for bit, and refusals by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from packer.checkpoint.checkpoint import read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.errors import CheckpointError

Folder = Callable[[str], Path]
Run = Callable[..., Result]
Tensors = dict[str, torch.Tensor]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM", "zero_point": True}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of columns in a word, from its lowest bits


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes along the last axis as int32, one after another from the lowest bit of each row."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (bits * at) for at, code in enumerate(row))
        count = len(row) * bits // 32
        rows.append([(stream >> (32 * at)) & 0xFFFFFFFF for at in range(count)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    ordered = codes.reshape(len(codes), -1, 8)[:, :, list(AWQ_ORDER)]
    return words(ordered.reshape(len(codes), -1), 4)


def quantized(
    weight: torch.Tensor, settings: Mapping[str, Any], seed: int = 0
) -> tuple[Tensors, torch.Tensor]:
    """(the parts of a layer in its method's layout, the float32 weight that they stand for)."""
    inputs = weight.shape[1]
    bits, width = settings["bits"], settings["group_size"]
    width = inputs if width == -1 else width
    group = torch.arange(inputs) // width
    if settings.get("desc_act"):
        group = group[torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))]
    members = [weight[:, group == one] for one in range(int(group.max()) + 1)]
    low = torch.stack([one.amin(1).clamp(max=0) for one in members])  # [groups, outputs]
    high = torch.stack([one.amax(1).clamp(min=0) for one in members])
    scales = ((high - low) / (2**bits - 1)).half()
    zeros = (-low / scales.float()).round().clamp(1, 2**bits - 1).long()
    codes = (weight.T / scales.float()[group] + zeros[group]).round().clamp(0, 2**bits - 1).long()
    wanted = ((codes - zeros[group]).float() * scales.float()[group]).T
    if settings["quant_method"] == "awq":
        return {
            "qweight": awq_words(codes),
            "qzeros": awq_words(zeros),
            "scales": scales,
        }, wanted
    stored = zeros - int(settings.get("checkpoint_format", "gptq") == "gptq")
    return {
        "qweight": words(codes.T, bits).T.contiguous(),
        "qzeros": words(stored, bits),
        "scales": scales,
        "g_idx": group.int(),
    }, wanted


def write(
    path: Path, source: Path, settings: Mapping[str, Any], **changed: torch.Tensor | None
) -> Tensors:
    """A folder with the linear layers of another one packed; returns all weights as they should
    be read. changed: parts of the first layer to be others, or left out.
    """
    shutil.copytree(source, path)
    weights: Tensors = {}
    stored: Tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name or len(weight) * settings["bits"] % 32:
            weights[name] = stored[name] = weight
            continue
        parts, weights[name] = quantized(weight, settings)
        if changed:
            parts = {key: one for key, one in {**parts, **changed}.items() if one is not None}
            changed = {}
        stored |= {f"{name.removesuffix('.weight')}.{key}": one for key, one in parts.items()}
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    configuration = json.loads((source / "config.json").read_text())
    configuration["quantization_config"] = dict(settings)
    (path / "config.json").write_text(json.dumps(configuration))
    return weights


VARIANTS = {
    "gptq 4 bits": GPTQ,
    "gptq 2 bits": {**GPTQ, "bits": 2},
    "gptq 3 bits in streams across words": {**GPTQ, "bits": 3, "group_size": 32},
    "gptq 8 bits, one group": {**GPTQ, "bits": 8, "group_size": -1},
    "gptq in the order of activations": {**GPTQ, "desc_act": True},
    "gptq without the offset of zeros": {**GPTQ, "checkpoint_format": "gptq_v2"},
    "awq": AWQ,
    "awq, one group": {**AWQ, "group_size": -1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_bit_for_bit_what_the_layout_says(
    variant: str, model_folder: Folder, tmp_path: Path
) -> None:
    weights = write(tmp_path / "q", model_folder("llama"), VARIANTS[variant])
    found = read_checkpoint(tmp_path / "q")
    assert set(found.tensors) == set(weights)
    for name, wanted in weights.items():
        assert torch.equal(found.tensors[name], wanted), name
    kind = VARIANTS[variant]["quant_method"]
    count = 10 if "3 bits" in variant else 14  # 16 outputs of 3 bits fill no words
    assert any(f"{count} layers of {kind} int" in note for note in found.notes)


def test_words_are_those_of_a_written_example() -> None:
    """AWQ's word of the columns 0 to 7 is 0x75316420; GPTQ's of the inputs 0 to 7 0x76543210."""
    columns = torch.arange(8)[None]
    assert awq_words(columns).item() == 0x75316420
    assert words(columns, 4).item() == 0x76543210


@pytest.mark.parametrize("settings", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_commands_take_it_as_a_model(
    settings: Mapping[str, Any], model_folder: Folder, run: Run, text: Path, tmp_path: Path
) -> None:
    original = model_folder("qwen2")
    weights = write(tmp_path / "q", original, settings)
    dense = tmp_path / "dense"
    shutil.copytree(original, dense)
    save_file(weights, dense / "model.safetensors", {"format": "pt"})
    options = ("--data", text, "--window", 32, "--tokens", 64, "--json")
    scores = json.loads(run("eval", dense, "q", original, *options).stdout)["scores"]
    assert scores[1]["kl_bits_per_byte"] == 0 < scores[2]["kl_bits_per_byte"]
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    few = ("--calibration", text, "--calibration-tokens", 64, "--calibration-window", 32)
    done = run("compare", original, "--with", "q", "--cap", 60_000, *few, *options)
    assert done.exit_code == 0, done.output
    row = next(one for one in json.loads(done.stdout)["rows"] if one["recipe"] == "q")
    assert row["total_bytes"] == size and row["kl_bits_per_byte"] > 0
    assert run("plan", "q", "--cap", 60_000, "--no-calibration").exit_code == 0
    included = run("plan", "q", "--cap", 60_000, "--no-calibration", "--include", "config.json")
    assert included.exit_code == 1 and "include a copy without it" in included.stderr
    report = json.loads(run("report", "q", "--json").stdout)
    assert report["artifact_bytes"] == size
    assert contents_fingerprint(read_checkpoint("q")) == contents_fingerprint(
        read_checkpoint(dense)
    )


def test_biases_of_zero_are_not_missed(
    model_folder: Folder, run: Run, text: Path, tmp_path: Path
) -> None:
    bias = torch.zeros(32, dtype=torch.float16)
    options = ("--data", text, "--window", 32, "--tokens", 64)
    write(tmp_path / "q", model_folder("llama"), GPTQ, bias=bias)
    assert run("plan", "q", "--cap", 60_000, "--no-calibration").exit_code == 0
    done = run("eval", "q", *options)
    assert done.exit_code == 0 and "not used by the model: model.layers.0" in done.stderr
    write(tmp_path / "r", model_folder("llama"), GPTQ, bias=bias + 0.5)
    done = run("eval", "r", *options)
    assert done.exit_code == 1 and "not in the model: model.layers.0" in done.stderr


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized already (bitsandbytes)"),
        ({"quant_method": "compressed-tensors"}, "(compressed-tensors), and of such only GPTQ and"),
        ({"quant_method": "fp8"}, "(fp8)"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin', where gptq and gptq_v2"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv', where gemm"),
        ({"bits": 5}, "gptq with bits 5"),
        ({"bits": "4"}, "gptq with bits '4'"),
        ({"group_size": 0}, "group_size 0"),
        ({"bits": 8}, "which does not go with qweight"),
        ({"group_size": 8}, "which does not go with qweight"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    changed: dict[str, Any], words: str, model_folder: Folder, tmp_path: Path
) -> None:
    write(tmp_path / "q", model_folder("llama"), GPTQ)
    file = tmp_path / "q" / "config.json"
    configuration = json.loads(file.read_text())
    configuration["quantization_config"] = {**GPTQ, **changed}
    file.write_text(json.dumps(configuration))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "q")
    assert words in str(caught.value) and str(tmp_path / "q") in str(caught.value)


def test_codes_without_a_word_of_how_are_refused(model_folder: Folder, tmp_path: Path) -> None:
    write(tmp_path / "q", model_folder("llama"), GPTQ)
    configuration = json.loads((tmp_path / "q" / "config.json").read_text())
    del configuration["quantization_config"]
    (tmp_path / "q" / "config.json").write_text(json.dumps(configuration))
    for path in (tmp_path / "q", tmp_path / "q" / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"has packed layers \(\*\.qweight\), and no"):
            read_checkpoint(path)
    plain = tmp_path / "plain"
    shutil.copytree(model_folder("llama"), plain)
    configuration["quantization"] = {"bits": 4, "group_size": 64}  # as MLX writes it
    (plain / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(CheckpointError, match=r"quantized already \(quantization\)"):
        read_checkpoint(plain)


BROKEN = {
    "has no scales": {"scales": None},
    "has no qzeros": {"qzeros": None},
    "has qweight of torch.int64": {"qweight": torch.zeros(4, 32, dtype=torch.int64)},
    "has scales of torch.int32": {"scales": torch.zeros(2, 32, dtype=torch.int32)},
    "has scales [3, 32], which does not go with qweight [8, 32] of gptq int4 g16": {
        "scales": torch.zeros(3, 32)
    },
    "has g_idx [31]": {"g_idx": torch.zeros(31, dtype=torch.int32)},
    "has g_idx from 0 to 5, with 4 groups": {"g_idx": (torch.arange(64) // 12).int()},
    "has g_idx from -1 to 0, with 4 groups": {"g_idx": -(torch.arange(64) // 32).int()},
    "has qzeros [4, 4], which does not go with qweight [3, 32]": {
        "qweight": torch.zeros(3, 32, dtype=torch.int32),
        "g_idx": None,
    },
}


@pytest.mark.parametrize("said", BROKEN)
def test_parts_that_do_not_fit_are_refused(said: str, model_folder: Folder, tmp_path: Path) -> None:
    write(tmp_path / "q", model_folder("llama"), GPTQ, **BROKEN[said])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "q")
    assert said in str(caught.value) and "model.layers.0." in str(caught.value)
    assert str(tmp_path / "q") in str(caught.value)
