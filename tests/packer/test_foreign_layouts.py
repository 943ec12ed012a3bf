"""Every layout of contest artifacts, written here from its specification, reads back exactly.

The writers follow the published layouts; what a reader must give is computed beside them.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.formats import Uniform
from safetensors.torch import save as safetensors_bytes

from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.errors import CheckpointError
from packer.fix.repack import repack
from packer.foreign.codecs import unshuffle
from packer.foreign.numpy_pickle import read_numpy_pickle
from packer.foreign.ternary import _unpack

Weights = dict[str, torch.Tensor]
INT8_FORMAT = "int8_clean_per_row_v1"
CONTROLS = ("attn_scale", "mlp_scale", "resid_mix", "q_gain", "skip_weight")


def small_weights(seed: int = 3) -> Weights:
    """Names and ranks of a contest model, small: two blocks of width 16, vocabulary 48."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {"tok_emb.weight": normal(48, 16).bfloat16()}
    for layer in range(2):
        name = f"blocks.{layer}"
        for part in ("c_q", "proj"):
            weights[f"{name}.attn.{part}.weight"] = normal(16, 16)
        for part in ("c_k", "c_v"):
            weights[f"{name}.attn.{part}.weight"] = normal(8, 16)
        weights[f"{name}.mlp.fc.weight"] = normal(32, 16)
        weights[f"{name}.mlp.proj.weight"] = normal(16, 32)
        weights[f"{name}.attn.attn_gate_w"] = normal(4, 12)
        weights[f"{name}.attn_scale"] = normal(16) + 1
    weights["skip_weights"] = normal(1, 16)
    weights["steps"] = torch.arange(3)
    return weights


def trained_weights(shared: Path) -> Weights:
    loaded = torch.load(shared / "checkpoints/ref6x256.pt", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def kept_as_is(weight: torch.Tensor, smallest: int) -> bool:
    return not weight.is_floating_point() or weight.numel() <= smallest


def is_control(name: str) -> bool:
    return any(control in name for control in CONTROLS)


def per_row(weight: torch.Tensor, bits: int, low: int | None = None) -> tuple[torch.Tensor, ...]:
    """(int8 codes, float16 scales) by the largest magnitude of each row."""
    top = 2 ** (bits - 1) - 1
    rows = weight.float()
    scale = (rows.abs().amax(dim=1) / top).clamp(min=1e-12).half()
    codes = (rows / scale.float()[:, None]).round().nan_to_num().clamp(low or -top, top)
    return codes.to(torch.int8), scale


def int8_dict(weights: Weights, *, qmeta: bool, smallest: int = 100) -> dict[str, Any]:
    """The dict of §3.1; one matrix has a single scale for all of it, as tensors of rank 3 do."""
    value: dict[str, Any] = {
        "__quant_format__": INT8_FORMAT,
        **{key: {} for key in ("quantized", "scales", "dtypes", "passthrough")},
    }
    for name, weight in weights.items():
        dtype = str(weight.dtype).removeprefix("torch.")
        if kept_as_is(weight, smallest):
            half = weight.is_floating_point() and not is_control(name)
            value["passthrough"][name] = weight.half() if half else weight
            if half and qmeta:
                value.setdefault("passthrough_orig_dtypes", {})[name] = dtype
            continue
        codes, scale = per_row(weight, 8)
        if name == "blocks.1.mlp.fc.weight":
            scale = weight.float().abs().max() / 127
            codes = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        value["quantized"][name], value["scales"][name] = codes, scale
        value["dtypes"][name] = dtype
        if qmeta and scale.dim():
            value.setdefault("qmeta", {})[name] = {"scheme": "per_row", "axis": 0}
    return value


def int8_expected(value: Mapping[str, Any]) -> Weights:
    found = {}
    for name, codes in value["quantized"].items():
        scale = value["scales"][name].float()
        product = codes.float() * (scale[:, None] if scale.dim() else scale)
        found[name] = product.to(getattr(torch, value["dtypes"][name]))
    for name, kept in value["passthrough"].items():
        dtype = value.get("passthrough_orig_dtypes", {}).get(name)
        found[name] = kept.to(getattr(torch, dtype)) if dtype else kept
    return found


def mixed_dict(weights: Weights, bits: int, *, gptq: bool, smallest: int = 100) -> dict[str, Any]:
    """The dict {"w", "m"} of §3.2 or, with gptq, of §3.4."""
    parts: Weights = {}
    meanings: dict[str, Any] = {}
    for name, weight in weights.items():
        if gptq and name.endswith("attn_gate_w"):
            parts[f"{name}.gq"], parts[f"{name}.gs"] = per_row(weight, 8)
            meanings[name] = "gate_int8_row"
        elif kept_as_is(weight, smallest):
            keep = not weight.is_floating_point() or (is_control(name) and not gptq)
            parts[name] = weight if keep else weight.half()
            plain = "passthrough_ctrl" if keep else "passthrough_fp16"
            meanings[name] = "passthrough (float16)" if gptq else plain
        else:
            count = 8 if "tok_emb" in name else bits
            low = None if gptq else -(2 ** (count - 1))
            parts[f"{name}.q"], parts[f"{name}.scale"] = per_row(weight, count, low)
            meanings[name] = f"gptq (int{count})" if gptq else {"type": f"int{count}"}
    return {"w": parts, "m": meanings}


def mixed_expected(value: Mapping[str, Any], template: Weights | None) -> Weights:
    """Codes × scales, plus the low-rank product, in the template's dtypes or float32."""
    found = {}
    for name in value["m"]:
        parts = {
            key.removeprefix(name + "."): part
            for key, part in value["w"].items()
            if key.startswith(name + ".")
        }
        dtype = template[name].dtype if template else torch.float32
        if name in value["w"]:
            kept = value["w"][name]
            found[name] = kept.to(dtype) if kept.is_floating_point() else kept
            continue
        codes, scale = parts.get("q", parts.get("gq")), parts.get("scale", parts.get("gs"))
        weight = codes.float() * scale.float()[:, None]
        if "lqA_a" in parts:
            left = parts["lqA_a"].float() * parts["lqAs_a"].float()
            groups = parts["lqB_a"].reshape(-1, 64).float() * parts["lqBs_a"].float()[:, None]
            weight = weight + left @ groups.reshape(parts["lqB_a"].shape)
        elif "lqA" in parts:
            left = parts["lqA"].float() * parts["lqAs"].float()[:, None]
            weight = weight + left @ (parts["lqB"].float() * parts["lqBs"].float()[:, None])
        found[name] = weight.to(dtype)
    return found


def add_low_rank(value: dict[str, Any], weights: Weights, name: str, *, grouped: bool) -> None:
    """The correction of §3.4 on one tensor, rank 4."""
    parts = value["w"]
    error = (
        weights[name].float() - parts[f"{name}.q"].float() * parts[f"{name}.scale"].float()[:, None]
    )
    u, s, v = torch.linalg.svd(error, full_matrices=False)
    left, right = u[:, :4] * s[:4], v[:4]
    if grouped:
        scale = (left.abs().max() / 1.5).half()
        parts[f"{name}.lqA_a"] = (left / scale.float()).round().clamp(-2, 1).to(torch.int8)
        parts[f"{name}.lqAs_a"] = scale
        groups = right.reshape(-1, 64)
        scales = (groups.abs().amax(dim=1) / 7.5).half()
        codes = (groups / scales.float()[:, None]).round().clamp(-8, 7).to(torch.int8)
        parts[f"{name}.lqB_a"], parts[f"{name}.lqBs_a"] = codes.reshape(right.shape), scales
        value["m"][name] += "+lqer_asym"
        return
    parts[f"{name}.lqA"], parts[f"{name}.lqAs"] = per_row(left, 4)
    parts[f"{name}.lqB"], parts[f"{name}.lqBs"] = per_row(right, 4)
    value["m"][name] += "+lqer"


def shuffled(data: bytes, stride: int = 2) -> bytes:
    """§3.4: every stride-th byte from 0, then from 1, ..., behind BSHF and the stride."""
    planes = b"".join(data[first::stride] for first in range(stride))
    return b"BSHF" + bytes([stride]) + planes


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "zlib": lambda data: zlib.compress(data, 9),
    "zstd": lambda data: zstandard.ZstdCompressor(level=22).compress(data),
    "zstd without its size": lambda data: zstandard.ZstdCompressor(
        level=3, write_content_size=False
    ).compress(data),
    "xz": lambda data: lzma.compress(data, preset=6),
    "lzma alone": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=6),
    "brotli": lambda data: bytes(brotli.compress(data, quality=5, lgwin=24)),
    "brotli, shuffled": lambda data: bytes(brotli.compress(shuffled(data), quality=5)),
    "xz, shuffled": lambda data: lzma.compress(shuffled(data, 4)),
    "tagged zlib": lambda data: b"ZLIB" + zlib.compress(data),
    "tagged zstd": lambda data: b"ZST0" + zstandard.ZstdCompressor().compress(data),
}


def read(tmp_path: Path, data: bytes, template: Weights | None = None) -> Checkpoint:
    path = tmp_path / "final_model.int6.ptz"
    path.write_bytes(data)
    if template is None:
        return read_checkpoint(path)
    torch.save(template, tmp_path / "template.pt")
    return read_checkpoint(path, template=tmp_path / "template.pt")


def assert_exact(found: Checkpoint, expected: Weights) -> None:
    """Equal bits; and the same again out of an artifact of ours made of the same codes."""
    assert_equal(found, expected)
    assert found.foreign is not None
    repack(found.foreign)  # refuses itself where a bit differs


def assert_equal(found: Checkpoint, expected: Weights) -> None:
    assert found.foreign is not None
    assert set(found.tensors) == set(expected)
    for name, weight in expected.items():
        same = found.tensors[name]
        assert same.dtype == weight.dtype and same.shape == weight.shape, name
        assert torch.equal(flat_bytes(same), flat_bytes(weight)), name


def flat_bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous().reshape(-1).view(torch.uint8)


# --- int8_clean_per_row_v1 ----------------------------------------------------------------------


@pytest.mark.parametrize("qmeta", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_int8_dict_under_any_codec(tmp_path: Path, codec: str, qmeta: bool) -> None:
    value = int8_dict(small_weights(), qmeta=qmeta)
    found = read(tmp_path, CODECS[codec](torch_bytes(value)))
    assert_exact(found, int8_expected(value))
    assert found.foreign is not None and found.foreign.layout == INT8_FORMAT
    one = found.foreign.tensors["blocks.0.attn.c_q.weight"]
    assert one.quantized.format == Uniform(8, "row")
    assert torch.equal(one.quantized.codes, value["quantized"]["blocks.0.attn.c_q.weight"])
    whole = found.foreign.tensors["blocks.1.mlp.fc.weight"]
    assert whole.quantized.format == Uniform(8, "tensor", scale32=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_int8_dict_as_a_pickle_of_numpy_arrays(tmp_path: Path, protocol: int) -> None:
    weights = {
        name: w.float() if w.dtype == torch.bfloat16 else w for name, w in small_weights().items()
    }
    value = int8_dict(weights, qmeta=True)
    arrays = {
        key: {
            name: one.numpy() if isinstance(one, torch.Tensor) else one
            for name, one in table.items()
        }
        if isinstance(table, dict)
        else table
        for key, table in value.items()
    }
    whole = "blocks.1.mlp.fc.weight"  # a numpy number, not an array
    arrays["scales"][whole] = np.float32(value["scales"][whole])
    found = read(tmp_path, zlib.compress(pickle.dumps(arrays, protocol=protocol), 9))
    assert_exact(found, int8_expected(value))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(["f4", "f2", "i1", "u1", "i8", ">f4", ">i4", "b1"]),
    st.booleans(),
)
def test_numpy_pickles_keep_values(
    protocol: int, shape: list[int], dtype: str, fortran: bool
) -> None:
    count = int(np.prod(shape, dtype=int))
    array = np.arange(count).reshape(shape).astype(dtype)
    array = np.asfortranarray(array) if fortran else array
    found = read_numpy_pickle(pickle.dumps({"a": array, "b": array}, protocol=protocol), "f")
    assert isinstance(found, dict) and found["a"] is found["b"]
    assert found["a"].numpy().tolist() == array.tolist() and found["a"].shape == array.shape


def test_int8_dict_as_safetensors(tmp_path: Path) -> None:
    """PR #119: `.__q` and `.__scale` for the quantized, every dtype float32 on reading."""
    value = int8_dict({n: w for n, w in small_weights().items() if n != "steps"}, qmeta=False)
    tensors = dict(value["passthrough"])
    for name, codes in value["quantized"].items():
        tensors[f"{name}.__q"] = codes
        tensors[f"{name}.__scale"] = value["scales"][name].reshape(-1).half()
        value["scales"][name] = value["scales"][name].half()
    for name, kept in value["passthrough"].items():
        value["passthrough"][name] = kept.float()
    value["dtypes"] = dict.fromkeys(value["quantized"], "float32")
    metadata = {"psionic.parameter_golf.quant_format": INT8_FORMAT}
    data = zlib.compress(safetensors_bytes(tensors, metadata), 9)
    assert_exact(read(tmp_path, data), int8_expected(value))


def qgv3(value: Mapping[str, Any], *, listed: bool = False) -> bytes:
    """PR #160: magic, four u32 lengths, JSON, then codes, scales and passthrough."""
    sections, tables = [], {}
    for key in ("quantized", "scales", "passthrough"):
        section, table = b"", {}
        for name, tensor in value[key].items():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            table[name] = {
                "offset": len(section),
                "nbytes": len(raw),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
            }
            section += raw
        sections.append(section)
        rows = [{"name": name, **entry} for name, entry in table.items()]
        tables[key] = rows if listed else table
    extra = {key: value[key] for key in ("dtypes", "passthrough_orig_dtypes") if key in value}
    meta = json.dumps({"format": INT8_FORMAT, **tables, **extra}).encode()
    lengths = struct.pack("<4I", len(meta), *(len(section) for section in sections))
    return b"QGv3" + lengths + meta + b"".join(sections)


@pytest.mark.parametrize("listed", [False, True])
def test_int8_dict_as_qgv3(tmp_path: Path, listed: bool) -> None:
    value = int8_dict(small_weights(), qmeta=True)
    assert_exact(read(tmp_path, lzma.compress(qgv3(value, listed=listed))), int8_expected(value))


# --- {"w", "m"} ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "gptq"), [(5, False), (6, False), (6, True), (7, True)])
def test_mixed_dict_with_and_without_a_template(
    tmp_path: Path, codec: str, bits: int, gptq: bool
) -> None:
    weights = small_weights()
    value = mixed_dict(weights, bits, gptq=gptq)
    data = CODECS[codec](torch_bytes(value))
    found = read(tmp_path, data)
    assert_exact(found, mixed_expected(value, None))
    assert any("float32 is assumed" in note for note in found.notes)
    with_dtypes = read(tmp_path, data, weights)
    assert_exact(with_dtypes, mixed_expected(value, weights))
    assert with_dtypes.tensors["tok_emb.weight"].dtype == torch.bfloat16
    assert not any("assumed" in note for note in with_dtypes.notes)


def test_a_template_with_banks(tmp_path: Path) -> None:
    """PR #549 trains banks and writes matrices: qo_bank is every c_q, then every proj."""
    weights = {
        name: weight.bfloat16()
        for name, weight in small_weights().items()
        if weight.is_floating_point()
    }
    value = mixed_dict(weights, 6, gptq=False)
    banked = {name: weight for name, weight in weights.items() if not name.endswith("weight")}
    banked["tok_emb.weight"] = weights["tok_emb.weight"]
    for bank, parts in {
        "qo_bank": ("attn.c_q", "attn.proj"),
        "kv_bank": ("attn.c_k", "attn.c_v"),
        "mlp_up_bank": ("mlp.fc",),
        "mlp_down_bank": ("mlp.proj",),
    }.items():
        matrices = [weights[f"blocks.{i}.{part}.weight"] for part in parts for i in range(2)]
        banked[bank] = torch.stack(matrices)
    found = read(tmp_path, CODECS["xz"](torch_bytes(value)), banked)
    assert_equal(found, mixed_expected(value, weights))


def test_codes_below_the_symmetric_range_are_kept(tmp_path: Path) -> None:
    """PR #180 clamps to [-16, 15] and [-32, 31]."""
    value = mixed_dict(small_weights(), 6, gptq=False)
    value["w"]["blocks.0.mlp.fc.weight.q"][0, 0] = -32
    found = read(tmp_path, CODECS["zstd"](torch_bytes(value)))
    assert_exact(found, mixed_expected(value, None))
    assert found.foreign is not None
    assert str(found.foreign.tensors["blocks.0.mlp.fc.weight"].quantized.format) == "int6.row.wide"


@pytest.mark.parametrize("grouped", [False, True])
def test_low_rank_corrections(tmp_path: Path, grouped: bool) -> None:
    weights = small_weights()
    value = mixed_dict(weights, 5, gptq=True)
    name = "blocks.1.mlp.proj.weight"
    add_low_rank(value, weights, name, grouped=grouped)
    found = read(tmp_path, CODECS["brotli"](torch_bytes(value)), weights)
    assert_exact(found, mixed_expected(value, weights))
    assert found.foreign is not None
    one = found.foreign.tensors[name]
    assert one.stored == "int5.row+lqer_asym" if grouped else one.stored == "int5.row+lqer"
    assert torch.equal(one.parts["q"], value["w"][f"{name}.q"])
    plain = value["w"][f"{name}.q"].float() * value["w"][f"{name}.scale"].float()[:, None]
    error, before = (found.tensors[name] - weights[name], plain - weights[name])
    assert error.norm() < before.norm()


def test_the_trained_checkpoint_as_a_leaders_artifact(tmp_path: Path, shared: Path) -> None:
    """Real weights as int6 GPTQ-style codes under shuffled brotli, with their own template."""
    weights = trained_weights(shared)
    value = mixed_dict(weights, 6, gptq=True, smallest=65_536)
    add_low_rank(value, weights, "tok_emb.weight", grouped=True)
    found = read(tmp_path, CODECS["brotli, shuffled"](torch_bytes(value)), weights)
    assert_equal(found, mixed_expected(value, weights))


# --- Per-group lrzip ----------------------------------------------------------------------------

GROUPS = (
    *("tok_emb.weight.q", "attn.c_k.weight.q", "attn.c_q.weight.q", "attn.c_v.weight.q"),
    *("attn.proj.weight.q", "mlp.fc.weight.q", "mlp.proj.weight.q"),
)
SORTED_GROUPS = (GROUPS[0], GROUPS[2], GROUPS[5])


def lrzip(data: bytes, folder: Path) -> bytes:
    source, packed = folder / "group", folder / "group.lrz"
    source.write_bytes(data)
    command = ["lrzip", "-z", "-L", "9", "-q", "-f", "-o", str(packed), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return packed.read_bytes()


def greedy_order(codes: torch.Tensor) -> list[int]:
    """From row 0 always to the nearest row not yet visited, in L1 distance."""
    rows = codes.int()
    left, order = list(range(1, len(rows))), [0]
    while left:
        distances = (rows[left] - rows[order[-1]]).abs().sum(dim=1)
        order.append(left.pop(int(distances.argmin())))
    return order


def pgrp(value: Mapping[str, Any], folder: Path, compress: Callable[[bytes, Path], bytes]) -> bytes:
    """§3.5: seven groups of column-major codes, brotli of the rest, brotli of the row orders."""
    rest, shapes, streams, orders = dict(value["w"]), {}, [], b""
    for group in GROUPS:
        names = [key for key in value["w"] if key.endswith(group)]
        names.sort(key=lambda key: int(key.split(".")[1]) if key.startswith("blocks") else 0)
        content, shapes[group] = b"", []
        for name in names:
            codes = rest.pop(name)
            shapes[group].append(list(codes.shape))
            if group in SORTED_GROUPS:
                order = greedy_order(codes)
                orders += np.array(order, "<u2").tobytes()
                codes = codes[order]
            content += codes.T.contiguous().numpy().tobytes()
        streams.append(compress(content, folder) if content else b"")
    streams.append(
        brotli.compress(torch_bytes({"r": rest, "m": value["m"], "s": shapes}), quality=5, lgwin=24)
    )
    streams.append(brotli.compress(orders) if orders else b"")
    lengths = struct.pack(f"<{len(streams)}I", *(len(stream) for stream in streams))
    return b"PGRP" + struct.pack("<I", len(streams)) + lengths + b"".join(streams)


@pytest.mark.skipif(shutil.which("lrzip") is None, reason="the program lrzip is not installed")
def test_per_group_lrzip(tmp_path: Path) -> None:
    weights = small_weights()
    value = mixed_dict(weights, 6, gptq=True)
    add_low_rank(value, weights, "tok_emb.weight", grouped=True)
    found = read(tmp_path, pgrp(value, tmp_path, lrzip), weights)
    assert_exact(found, mixed_expected(value, weights))


def test_per_group_without_lrzip_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def disguise(content: bytes, _folder: Path) -> bytes:
        return b"LRZI\0\6" + len(content).to_bytes(8, "little") + content

    value = mixed_dict(small_weights(), 6, gptq=True)
    with pytest.raises(CheckpointError, match="install the package lrzip"):
        read(tmp_path, pgrp(value, tmp_path, disguise))


# --- Ternary and binary -------------------------------------------------------------------------


def trit_bytes(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Five trits a byte, codes + 1 in base 3, the first one least; zeros of the code fill up."""
    digits = np.concatenate([codes + 1, np.zeros(-len(codes) % 5, np.int8)]).reshape(-1, 5)
    return (digits.astype(np.int64) @ np.array([1, 3, 9, 27, 81])).astype(np.uint8)


def mask_bytes(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    used = codes != 0
    return np.concatenate([np.packbits(used), np.packbits(codes[used] > 0)])


def grouped_entry(weight: torch.Tensor, kind: str, group: int) -> tuple[dict[str, Any], Weights]:
    """(entry of §3.6, {"": the weights its reader gives})."""
    flat = weight.float().reshape(weight.shape[0], -1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % group))
    groups = padded.reshape(-1, group)
    scale = groups.abs().mean(dim=1).half()
    if kind == "binary":
        codes = torch.where(groups < 0, -1, 1).to(torch.int8)
        packed = np.packbits((codes.reshape(-1) > 0).numpy(), bitorder="little")
        steps = scale.float()
    else:
        codes = (groups / scale.float()[:, None]).round().clamp(-1, 1).to(torch.int8)
        pack = trit_bytes if kind == "ternary" else mask_bytes
        packed = pack(codes.reshape(-1).numpy())
        steps = scale.float() / codes.float().abs().mean(dim=1)
    entry = {
        "type": kind,
        "packed": torch.from_numpy(packed.copy()),
        "scale": scale,
        "shape": list(flat.shape),
        "padded_cols": padded.shape[1],
        "group_size": group,
        "n_bits" if kind == "binary" else "n_trits": codes.numel(),
        "orig_shape": list(weight.shape),
    }
    decoded = (codes.float() * steps[:, None]).reshape(padded.shape)[:, : flat.shape[1]]
    return entry, {"": decoded.reshape(weight.shape)}


@pytest.mark.parametrize("kind", ["ternary", "ternary_bitmask", "binary"])
@pytest.mark.parametrize("packed_as", ["tensor", "bytes"])
def test_ternary_and_binary(tmp_path: Path, kind: str, packed_as: str) -> None:
    weights = small_weights()
    weights["bank"] = torch.stack([weights["blocks.0.mlp.fc.weight"]] * 2)  # three axes
    value: dict[str, Any] = {}
    expected: Weights = {}
    for name, weight in weights.items():
        if weight.numel() > 100 and "tok_emb" not in name:
            value[name], decoded = grouped_entry(weight, kind, 12)  # 12 does not divide 16
            expected[name] = decoded[""]
            if packed_as == "bytes":
                value[name]["packed"] = value[name]["packed"].numpy().tobytes()
        elif "tok_emb" in name:
            value[name] = {"type": "fp8", "data": weight.to(torch.float8_e4m3fn)}
            expected[name] = value[name]["data"].float()
        else:
            value[name] = {"type": "fp16", "data": weight.half()}
            expected[name] = weight.half().float()
    found = read(tmp_path, lzma.compress(torch_bytes(value)))
    assert_exact(found, expected)


def test_four_bit_floats(tmp_path: Path) -> None:
    weight = small_weights()["blocks.0.mlp.fc.weight"]
    codes, scale = per_row(weight, 4)
    flat = (codes.reshape(-1) + 8).to(torch.uint8)
    entry = {
        "type": "fp4",
        "packed": flat[::2] | flat[1::2] << 4,
        "scale": scale,
        "shape": [32, 16],
    }
    found = read(tmp_path, lzma.compress(torch_bytes({"w": entry})))
    assert_exact(found, {"w": codes.float() * scale.float()[:, None]})
    assert found.foreign is not None
    assert str(found.foreign.tensors["w"].quantized.format) == "int4.row"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 1), min_size=1, max_size=64))
def test_packed_trits_and_signs_are_read_back(codes: list[int]) -> None:
    values = np.array(codes, np.int8)
    assert _unpack("ternary", trit_bytes(values), len(codes), "w").tolist() == codes
    assert _unpack("ternary_bitmask", mask_bytes(values), len(codes), "w").tolist() == codes
    signs = np.where(values < 0, -1, 1)
    packed = np.packbits(signs > 0, bitorder="little")
    assert _unpack("binary", packed, len(codes), "w").tolist() == signs.tolist()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=50), st.integers(1, 9))
def test_shuffled_bytes_are_put_back(data: bytes, stride: int) -> None:
    assert unshuffle(shuffled(data, stride), "f") == data


# --- Plain weights, compressed ------------------------------------------------------------------


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_a_compressed_checkpoint_is_a_checkpoint(tmp_path: Path, codec: str) -> None:
    weights = small_weights()
    found = read(tmp_path, CODECS[codec](torch_bytes({"model": weights, "step": 3})))
    assert found.foreign is None and "decompressed from" in found.notes[0]
    for name, weight in weights.items():
        assert torch.equal(flat_bytes(found.tensors[name]), flat_bytes(weight))
