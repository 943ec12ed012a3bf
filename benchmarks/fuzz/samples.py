"""Small whole files of every kind that is read: what the mutants are made of."""

from __future__ import annotations

import io
import json
import lzma
import pickle
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import brotli
import torch
import zstandard
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import quantize
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig
from packer.train.run_state import write_state
from safetensors.torch import save

from packer import api
from packer.artifact.encoder import Artifact
from packer.checkpoint.checkpoint import from_state_dict
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.resume import ResumeFile, ResumeState

Files = dict[str, bytes]
CAP = 6_000
CHOICES = (
    *("fp32", "fp16", "bf16", "raw", "int8.row", "int5.row.wide", "int4.tensor", "int2.row"),
    *("int3.row.scale32", "ternary.row", "int6.row~zstd", "int6.row~brotli", "int8.row~lzma"),
    *("fp16~zlib", "int4.row~raw", "step.row.col+nearest@0.4", "step+nearest@1"),
)
KNOWN_BY = {"model": "1f", "tokens": "2e"}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """One block of width 16, tied head, buffers, a scalar, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    weights = {
        "tok_emb.weight": normal(32, 16),
        "blocks.0.attn_scale": normal(16) + 1,
        "blocks.0.attn.c_k.weight": normal(8, 16),
        "blocks.0.mlp.fc.weight": normal(24, 16),
        "late.half": normal(4, 16).half(),
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }
    return {**weights, "lm_head.weight": weights["tok_emb.weight"]}


def artifacts(golden: Path) -> Files:
    """The golden files, and one with every kind of format and coder."""
    tensors, coders = {}, {}
    for index, text in enumerate(CHOICES):
        choice = parse_choice(text)
        rows, columns = 3 + index % 5 * 4, 2 + index % 7 * 3
        line = torch.arange(rows * columns, dtype=torch.float32)
        weight = ((line * 37 % 101) - 50).reshape(rows, columns) / 64
        tensors[f"blocks.{index}.w"] = quantize(weight, choice)
        coders[f"blocks.{index}.w"] = choice.coder
    tensors["empty"] = quantize(torch.zeros(0, 4), parse_choice("raw"))
    tensors["scalar"] = quantize(torch.tensor(0.05), parse_choice("fp16"))
    every = Artifact(tensors, {"head": "scalar"}, {"config": '{"layers":2}'}, coders, 16_000_000)
    return {"every": every.to_bytes(), **{p.stem: p.read_bytes() for p in golden.glob("*.pack")}}


def planned() -> tuple[bytes, bytes]:
    """(candidates.json, plan.json) of `weights`."""
    measured = api.measure(weights())
    pack_plan = api.plan(measured, CAP)
    return json.dumps(measured.to_json()).encode(), json.dumps(pack_plan.to_json()).encode()


def curvature() -> bytes:
    """A curvature.safetensors of two tensors of `weights`."""
    checkpoint = from_state_dict(weights())
    provenance = {
        "contents": contents_fingerprint(checkpoint),
        "source": "text",
        "tokens": 64,
        "seconds": 1.0,
        "vocab_size": 32,
        "bytes_per_token": 2.5,
        "unreached": ["late.half"],
        "warnings": [],
    }
    tensors = {}
    for name in ("blocks.0.mlp.fc.weight", "blocks.0.attn.c_k.weight"):
        rows, columns = checkpoint.tensors[name].shape
        one = Curvature(2 * torch.eye(columns), torch.ones(rows), 64)
        tensors[f"{name}/hessian"] = one.hessian
        tensors[f"{name}/fisher"] = torch.ones(rows)
    metadata = {"bytecap": "bytecap curvature 1", "provenance": json.dumps(provenance)}
    return bytes(save(tensors, metadata))


def unfinished() -> bytes:
    """A calibration that was cut off."""
    state = ResumeState(2, 64, 32, 1.0, {"a/hessian": torch.eye(4)}, torch.Generator().get_state())
    with tempfile.TemporaryDirectory() as folder:
        kept = ResumeFile(Path(folder) / "kept", KNOWN_BY)
        kept._write(state)
        return kept.path.read_bytes()


def torch_bytes(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def checkpoints() -> Files:
    whole = {name: w for name, w in weights().items() if name != "lm_head.weight"}
    nested = {"model": weights(), "step": 3, "optimizer": [torch.ones(2)]}
    return {
        "zip": torch_bytes(weights()),
        "nested": torch_bytes(nested),
        "legacy": torch_bytes(weights(), legacy=True),
        "safetensors": bytes(save(whole, {"config": "{}", "lm_head.weight": "tok_emb.weight"})),
    }


def models() -> Files:
    """Companion models with and without the optional parts, their configuration inside."""
    plain = {"vocab_size": 32, "num_layers": 2, "model_dim": 16, "num_heads": 4, "num_kv_heads": 2}
    tables = {"bigram_vocab_size": 8, "bigram_dim": 4, "value_embedding_dim": 4}
    files = {}
    for name, parts in (("plain", {}), ("tables", {**tables, "value_embedding_layers": [1]})):
        config = GPTConfig(**{**plain, "mlp_mult": 2.0, **parts})
        weights = {key: one.clone() for key, one in GPT(config).state_dict().items()}
        files[name] = bytes(save(weights, {"config": json.dumps(settings_of(config))}))
    return files


def training_state() -> bytes:
    parameters = {"w": torch.ones(4, 4)}
    state = {
        "config": {"model": {}},
        "step": 3,
        "qat_since": None,
        "model": parameters,
        "optimizers": [],
        "averages": {"ema": parameters},
        "seconds": {"train": 1.0},
        "rng": torch.Generator().get_state(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        write_state(path, state)
        return path.read_bytes()


def shard() -> bytes:
    header = struct.pack("<3i", 20240520, 1, 200) + bytes(4 * 253)
    return header + bytes(value for at in range(200) for value in (at % 64, 0))


def int8_dict() -> dict[str, Any]:
    """The layout int8_clean_per_row_v1."""
    return {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": {"w": torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8)},
        "scales": {"w": torch.tensor([0.5, 0.25, 1, 2]).half()},
        "dtypes": {"w": "float32"},
        "passthrough": {"norm": torch.ones(8).half()},
        "passthrough_orig_dtypes": {"norm": "bfloat16"},
        "qmeta": {"w": {"scheme": "per_row", "axis": 0}},
    }


def mixed_dict() -> dict[str, Any]:
    """The layout {"w", "m"}, with a correction of low rank and a group of columns."""
    codes = torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8)
    parts = {
        "w.q": codes,
        "w.scale": torch.tensor([0.5, 0.25, 1, 2]).half(),
        "w.lqA": codes[:, :2].contiguous(),
        "w.lqAs": torch.ones(4).half(),
        "w.lqB": codes[:2],
        "w.lqBs": torch.ones(2).half(),
        "w.awqg_start": torch.tensor([2], dtype=torch.int16),
        "w.awqg_s_hi": torch.ones(4).half(),
        "w.awqg_size": torch.tensor(4, dtype=torch.int16),
        "gate.gq": codes,
        "gate.gs": torch.ones(4).half(),
        "norm": torch.ones(8).half(),
    }
    meanings = {"gate": "gate_int8_row", "norm": "passthrough (float16)"}
    return {"w": parts, "m": {"w": "gptq (int6)+awqgrpint8+lqer", **meanings}}


def ternary_dict() -> dict[str, Any]:
    """The layout of ternary and binary artifacts."""
    common = {"shape": [2, 8], "group_size": 8, "scale": torch.ones(2).half()}
    return {
        "a": {"type": "ternary", "packed": torch.arange(4).byte(), "n_trits": 16, **common},
        "b": {"type": "binary", "packed": torch.arange(2).byte(), "n_bits": 16, **common},
        "n": {"type": "fp16", "data": torch.ones(8).half()},
        "f": {"type": "fp8", "data": torch.ones(8).to(torch.float8_e4m3fn)},
    }


def qgv3() -> bytes:
    codes, scales, rest = bytes(range(32)), torch.ones(4).half().numpy().tobytes(), bytes(16)
    tables = {
        "quantized": {"w": {"offset": 0, "nbytes": 32, "dtype": "int8", "shape": [4, 8]}},
        "scales": {"w": {"offset": 0, "nbytes": 8, "dtype": "float16", "shape": [4]}},
        "passthrough": {"n": {"offset": 0, "nbytes": 16, "dtype": "float16", "shape": [8]}},
        "dtypes": {"w": "float32"},
    }
    meta = json.dumps({"format": "int8_clean_per_row_v1", **tables}).encode()
    return b"QGv3" + struct.pack("<4I", len(meta), 32, 8, 16) + meta + codes + scales + rest


def numpy_pickle() -> bytes:
    value = int8_dict()
    arrays = {
        key: {n: t.numpy() if isinstance(t, torch.Tensor) else t for n, t in table.items()}
        if isinstance(table, Mapping)
        else table
        for key, table in value.items()
    }
    return pickle.dumps(arrays)


def pgrp() -> bytes:
    """The frame of per-group lrzip, its groups empty: the program may not be installed."""
    rest = {"norm": torch.ones(8).half()}
    value = {"r": rest, "m": {"norm": "passthrough (float16)"}, "s": {}}
    packed = bytes(brotli.compress(torch_bytes(value), quality=1))
    return b"PGRP" + struct.pack("<10I", 9, *[0] * 7, len(packed), 0) + packed


def sorted_frame() -> bytes:
    """Version 2 of that frame: all matrices in one brotli stream, rows in another order."""
    value = {
        "w": {"w.scale": torch.ones(4).half(), "norm": torch.ones(8).half()},
        "m": {"w": "gptq (int6)", "norm": "passthrough (float16)"},
    }
    plain = torch_bytes(value)
    rest = bytes(brotli.compress(b"BSHF\2" + plain[::2] + plain[1::2], quality=1))
    codes = bytes(brotli.compress(bytes(range(32)), quality=1))
    table = struct.pack("<IIH3sII4H", 2, 1, 3, b"w.q", 4, 8, 2, 0, 3, 1)
    ends = struct.pack("<BI", 0, len(codes)) + codes + struct.pack("<I", len(rest)) + rest
    return b"PGRP" + table + ends


def foreign() -> Files:
    psionic = {"psionic.parameter_golf.quant_format": "int8_clean_per_row_v1"}
    marked = {"w.__q": torch.ones(2, 4).char(), "w.__scale": torch.ones(2), "n": torch.ones(3)}
    return {
        "int8": torch_bytes(int8_dict()),
        "mixed": torch_bytes(mixed_dict()),
        "ternary": torch_bytes(ternary_dict()),
        "qgv3": qgv3(),
        "pickle": numpy_pickle(),
        "pgrp": pgrp(),
        "sorted": sorted_frame(),
        "safetensors": bytes(save(marked, psionic)),
        "zlib": zlib.compress(torch_bytes(int8_dict())),
        "xz": lzma.compress(torch_bytes(mixed_dict())),
        "zstd": zstandard.ZstdCompressor().compress(torch_bytes(ternary_dict())),
        "brotli": bytes(brotli.compress(qgv3())),
    }


LOG = b"""import torch
====================================================================================================
val_loader:shards pattern=./data/fineweb_val_*.bin tokens:62021632
train_loader:dataset:fineweb10B_sp1024 train_shards:80
model_params:17059912
seed:1337
step:13780/20000 val_loss:2.0606 val_bpb:1.2172 train_time:600038ms step_avg:43.54ms
stopping_early: wallclock_cap train_time:600038ms step:13780/20000
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
GPTQ:collected 67 Hessians in 12.6s
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
ttt_sliding:done val_loss=2.790000 val_bpb=1.080000 elapsed=365.2s
"""
CLAIMS = {
    "author": "A",
    "val_bpb": 1.2244,
    "val_loss": 2.0727,
    "bytes_total": 15863489,
    "bytes_code": 47642,
    "bytes_model_int8_zlib": "15.8 MB",
    "seeds": [1337, 42],
    "seed_results": {"1337": {"val_bpb": 1.2244, "bytes_total": 15863489, "steps": 13780}},
    "compliance": {"under_16mb": True, "train_under_600s": True},
}
README = b"""# A submission

| seed | val_bpb | bytes |
|---|---|---|
| 1337 | 1.2244 | 15,863,489 |

Total 15,863,489 bytes, 1.2244 bpb, 600 s of training.
"""
CODE = b"import torch\n\nprint(torch.__version__)\nfrom helper import f\n"
TABLE = json.dumps({"bytes": [1, 2, 3, 4], "leading_space": [1], "boundary": [0], "unknown": [3]})
RUN = b"""preset = "demo"
[model]
num_layers = 2
[schedule]
iterations = 20
warmdown = 5
"""
INDEX = {"metadata": {"total_size": 9}, "weight_map": {"a": "one.safetensors"}}
