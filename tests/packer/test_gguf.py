"""GGUF files: values bit for bit as the library's, names and rows as Hugging Face has them, and
lies refused before memory is spent.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from packer.checkpoint.checkpoint import read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.checkpoint.gguf_tensors import read_gguf
from packer.errors import CheckpointError, SelectorError

gguf = pytest.importorskip("gguf")
Array = np.ndarray[Any, Any]
Run = Callable[..., Result]
QUANTIZED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
LLAMA = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def write(
    path: Path,
    tensors: Mapping[str, tuple[Array, str]],
    architecture: str = "llama",
    settings: Mapping[str, Any] = LLAMA,
) -> Path:
    """A file of the library's own writer; tensors: (raw values, ggml type)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in settings.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_array
        add(f"{architecture}.{key}", value)
    for name, (raw, kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def f32(values: torch.Tensor) -> tuple[Array, str]:
    return values.numpy(), "F32"


def same_bits(found: torch.Tensor, wanted: Array) -> bool:
    return found.shape == wanted.shape and found.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", QUANTIZED)
def test_values_are_bit_for_bit_those_of_the_library(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(5, 7, 512)).astype(np.float32)
    type = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(values, type)
    path = write(tmp_path / "m.gguf", {"w": (raw, kind), "x": (values[0], "F32")}, "other", {})
    checkpoint = read_checkpoint(path)
    assert same_bits(checkpoint.tensors["w"], gguf.quants.dequantize(raw, type))
    assert same_bits(checkpoint.tensors["x"], values[0])
    assert checkpoint.stored_as("w") == (kind.lower(), raw.nbytes)


@pytest.mark.parametrize("kind", sorted(k.name for k in gguf.quants._type_traits))
def test_any_bytes_of_any_type_are_dequantized_as_the_library_does(
    tmp_path: Path, kind: str
) -> None:
    type = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[type]
    raw = np.random.default_rng(1).integers(0, 256, (37, 512 // block * size), dtype=np.uint8)
    path = write(tmp_path / "m.gguf", {"w": (raw, kind)}, "other", {})
    with np.errstate(all="ignore"):
        found = read_gguf(path).tensors["w"].read("w")
        wanted = gguf.quants.dequantize(raw, type)
    assert same_bits(found, wanted)


def test_whole_numbers_and_doubles_keep_their_dtypes(tmp_path: Path) -> None:
    values = np.arange(-6, 6).reshape(3, 4)
    kinds = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F64": np.float64}
    tensors = {kind: (values.astype(dtype), kind) for kind, dtype in kinds.items()}
    found = read_checkpoint(write(tmp_path / "m.gguf", tensors, "other", {})).tensors
    for kind, dtype in kinds.items():
        assert same_bits(found[kind], values.astype(dtype))


def test_blocks_of_rows_join_to_the_whole_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(2).normal(size=(101, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    path = write(tmp_path / "m.gguf", {"w": (raw, "Q4_0")}, "other", {})
    whole = read_checkpoint(path).tensors["w"]
    monkeypatch.setattr("packer.checkpoint.gguf_tensors.BLOCK_ELEMENTS", 640)
    assert torch.equal(read_checkpoint(path).tensors["w"], whole)


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter stores queries and keys of Llama."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape).contiguous()


def llama() -> dict[str, torch.Tensor]:
    """Weights as Hugging Face names them, but for a head: it is the embedding's."""
    torch.manual_seed(0)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (96, 32),
        "model.norm.weight": (32,),
        f"{layer}input_layernorm.weight": (32,),
        f"{layer}post_attention_layernorm.weight": (32,),
        f"{layer}self_attn.q_proj.weight": (32, 32),
        f"{layer}self_attn.q_proj.bias": (32,),
        f"{layer}self_attn.k_proj.weight": (16, 32),
        f"{layer}self_attn.v_proj.weight": (16, 32),
        f"{layer}self_attn.o_proj.weight": (32, 32),
        f"{layer}mlp.gate_proj.weight": (64, 32),
        f"{layer}mlp.up_proj.weight": (64, 32),
        f"{layer}mlp.down_proj.weight": (32, 64),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def as_llama_cpp(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[Array, str]]:
    w = {name.removeprefix("model.layers.0."): value for name, value in weights.items()}
    return {
        "token_embd.weight": f32(w["model.embed_tokens.weight"]),
        "output_norm.weight": f32(w["model.norm.weight"]),
        "rope_freqs.weight": f32(torch.ones(4)),
        "blk.0.attn_norm.weight": f32(w["input_layernorm.weight"]),
        "blk.0.ffn_norm.weight": f32(w["post_attention_layernorm.weight"]),
        "blk.0.attn_q.weight": f32(interleaved(w["self_attn.q_proj.weight"], 4)),
        "blk.0.attn_q.bias": f32(interleaved(w["self_attn.q_proj.bias"], 4)),
        "blk.0.attn_k.weight": f32(interleaved(w["self_attn.k_proj.weight"], 2)),
        "blk.0.attn_v.weight": f32(w["self_attn.v_proj.weight"]),
        "blk.0.attn_output.weight": f32(w["self_attn.o_proj.weight"]),
        "blk.0.ffn_gate.weight": f32(w["mlp.gate_proj.weight"]),
        "blk.0.ffn_up.weight": f32(w["mlp.up_proj.weight"]),
        "blk.0.ffn_down.weight": f32(w["mlp.down_proj.weight"]),
    }


@pytest.mark.parametrize("each_layer", [False, True])
def test_llama_has_the_names_and_rows_of_hugging_face(tmp_path: Path, each_layer: bool) -> None:
    weights = llama()
    heads = {"attention.head_count": [4], "attention.head_count_kv": [2]} if each_layer else {}
    path = write(tmp_path / "m.gguf", as_llama_cpp(weights), settings={**LLAMA, **heads})
    found = read_checkpoint(path)
    assert found.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(found.tensors) == set(weights)
    for name, wanted in weights.items():
        assert torch.equal(found.tensors[name], wanted), name
    assert any("rope_freqs.weight" in note for note in found.notes)
    assert found.metadata["gguf.general.architecture"] == "llama"


def test_without_a_number_of_heads_no_rows_are_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()), settings={})
    with pytest.raises(CheckpointError, match=r"attention\.head_count is None"):
        read_checkpoint(path)
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()), settings={"attention.head_count": 7})
    with pytest.raises(CheckpointError, match="has 32 rows, which 7 heads"):
        read_checkpoint(path)


def test_qwen_keeps_its_rows_and_gemma_loses_the_one_on_its_norms(tmp_path: Path) -> None:
    rows, norm = torch.randn(32, 32), torch.randn(32)
    tensors = {"blk.3.attn_q.weight": f32(rows), "blk.3.attn_q_norm.weight": f32(norm)}
    found = read_checkpoint(write(tmp_path / "q.gguf", tensors, "qwen3")).tensors
    assert torch.equal(found["model.layers.3.self_attn.q_proj.weight"], rows)
    assert torch.equal(found["model.layers.3.self_attn.q_norm.weight"], norm)
    names = {
        "output_norm": "model.norm",
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.post_attention_norm": "model.layers.0.post_attention_layernorm",
        "blk.0.ffn_norm": "model.layers.0.pre_feedforward_layernorm",
        "blk.0.post_ffw_norm": "model.layers.0.post_feedforward_layernorm",
    }
    shifted = {f"{name}.weight": f32(norm + at) for at, name in enumerate(names)}
    path = write(tmp_path / "g.gguf", {**shifted, "blk.0.attn_q.weight": f32(rows)}, "gemma2")
    found = read_checkpoint(path).tensors
    for at, name in enumerate(names.values()):
        assert torch.equal(found[f"{name}.weight"], norm + at - 1)
    assert torch.equal(found["model.layers.0.self_attn.q_proj.weight"], rows)


def test_other_architectures_keep_their_names_and_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"blk.0.attn_q.weight": f32(torch.ones(4, 4))}, "mamba", {})
    found = read_checkpoint(path)
    assert list(found.tensors) == ["blk.0.attn_q.weight"]
    assert any("'mamba'" in note for note in found.notes)


def test_tensors_are_chosen_as_those_of_other_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()))
    found = read_checkpoint(path, drop=["*.bias"])
    assert "model.layers.0.self_attn.q_proj.bias" not in found.tensors
    with pytest.raises(SelectorError, match="--weights"):
        read_checkpoint(path, weights="ema")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in model\.norm"):
        broken = {"output_norm.weight": f32(torch.tensor([1.0, torch.nan]))}
        read_checkpoint(write(tmp_path / "nan.gguf", broken))


def header(
    settings: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + settings + tensors


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(
    name: bytes = b"w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    numbers = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return text(name) + numbers


def setting(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int) -> bytes:
    return struct.pack("<IQ", kind, count)


LIES = {
    "as GGUF it has version 1,": header(version=1),
    "big-endian version 3": header(version=3 << 24),
    f"{1 << 60:,} tensors": header(counts=(1 << 60, 0)),
    f"{1 << 61:,} settings": header(counts=(0, 1 << 61)),
    f"the key of a setting of {1 << 62:,} bytes": header(text(b"k" * 30, 1 << 62), counts=(0, 1)),
    f"{(1 << 50):,} entries of 'k'": header(setting(b"k", 9, array(0, 1 << 50)), counts=(0, 1)),
    f"{(1 << 51):,} entries of 'k'": header(setting(b"k", 9, array(8, 1 << 51)), counts=(0, 1)),
    "'k' of type 9": header(setting(b"k", 9, array(9, 1) * 5), counts=(0, 1)),
    "'k' of type 77": header(setting(b"k", 77, b""), counts=(0, 1)),
    "the setting 'k' twice": header(setting(b"k", 0, b"\1") * 2, counts=(0, 2)),
    "no text": header(setting(b"\xff", 0, b"\1"), counts=(0, 1)),
    "alignment of 12": header(
        setting(b"general.alignment", 4, struct.pack("<I", 12)), counts=(0, 1)
    ),
    "alignment of 'x'": header(setting(b"general.alignment", 8, text(b"x")), counts=(0, 1)),
    "of 1,000,000 dimensions": header(
        b"", text(b"w") + struct.pack("<I", 1_000_000), counts=(1, 0)
    ),
    "'w' of shape [0]": header(b"", tensor(dims=(0,)), counts=(1, 0)),
    f"'w' of shape {[1 << 40, 1 << 40]}": header(b"", tensor(dims=(1 << 40,) * 2), counts=(1, 0)),
    "the tensor 'w' twice": header(b"", tensor() * 2, counts=(2, 0)),
    f"takes {4 << 50:,} bytes at offset": header(b"", tensor(dims=(1 << 50,)), counts=(1, 0)),
    "takes 128 bytes at offset 1,": header(b"", tensor(offset=1024), counts=(1, 0)),
    "the tensor before it ends": header(b"", tensor() + tensor(b"v", offset=96), counts=(2, 0)),
    "32 bytes are the alignment": header(b"", tensor(offset=4), counts=(1, 0)),
    "of ggml type 99,": header(b"", tensor(kind=99), counts=(1, 0)),
    "of ggml type 9 (Q8_1)": header(b"", tensor(kind=9), counts=(1, 0)),
    "rows of 33 weights, which blocks of 32": header(
        b"", tensor(dims=(33,), kind=2), counts=(1, 0)
    ),
    "one of 3 parts": header(setting(b"split.count", 2, b"\3\0"), counts=(0, 1)),
    "has no tensors": header(),
}


@pytest.mark.parametrize("said", LIES)
def test_a_lie_is_refused_by_name_and_number_and_takes_no_memory(tmp_path: Path, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(LIES[said] + bytes(512))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert peak < 20_000_000


def test_no_beginning_of_a_file_is_taken_for_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()))
    whole = path.read_bytes()
    for length in [*range(1, 1700, 13), *range(1700, len(whole), len(whole) // 50)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            read_checkpoint(path)


def test_no_flipped_byte_of_the_header_does_more_than_be_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()))
    whole = bytearray(path.read_bytes())
    refused = 0
    for at in range(4, 1400, 5):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= change
            path.write_bytes(damaged)
            try:
                read_checkpoint(path)
            except CheckpointError:
                refused += 1
    assert refused > 300


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", as_llama_cpp(llama()))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'bytecap\[gguf\]'"):
        read_checkpoint(path)


def test_commands_read_it_as_a_checkpoint(tmp_path: Path, run: Run) -> None:
    torch.manual_seed(3)
    values = torch.randn(256, 64).numpy()
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    tensors = {"token_embd.weight": (raw, "Q8_0"), "output_norm.weight": f32(torch.randn(64))}
    path = write(tmp_path / "m.gguf", tensors)
    shown = json.loads(run("inspect", path, "--json").stdout)
    assert [(one["dtype"], one["size_bytes"]) for one in shown["tensors"]] == [
        ("q8_0", raw.nbytes),
        ("f32", 256),
    ]
    report = json.loads(run("report", path, "--json").stdout)
    assert report["artifact_bytes"] == path.stat().st_size
    assert report["header_bytes"] == path.stat().st_size - raw.nbytes - 256
    for ending in ("safetensors", "pt"):
        run("unpack", path, "-o", tmp_path / f"w.{ending}")
        unpacked = read_checkpoint(tmp_path / f"w.{ending}")
        assert contents_fingerprint(unpacked) == contents_fingerprint(read_checkpoint(path))
    packed = tmp_path / "m.pack"
    run("pack", path, "--cap", 20_000, "-o", packed)
    assert packed.stat().st_size <= 20_000
    run("verify", packed, "--against", path)
