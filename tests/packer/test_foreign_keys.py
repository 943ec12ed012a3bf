"""Keys of other authors' artifacts: decoded, known to be harmless, or refused by their names."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.errors import CheckpointError, PackerError

Run = Callable[..., Result]
Value = dict[str, Any]
CODES = torch.arange(-12, 12, dtype=torch.int8).reshape(4, 6)
SCALE = torch.tensor([0.5, 0.003, 1.25, 0.0]).half()
PRODUCT = (CODES.numpy().astype(np.float32).T * SCALE.numpy().astype(np.float32)).T


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read(folder: Path, value: object) -> Checkpoint:
    path = folder / "a.ptz"
    path.write_bytes(zlib.compress(value if isinstance(value, bytes) else torch_bytes(value)))
    return read_checkpoint(path)


def refusal(folder: Path, value: object) -> str:
    with pytest.raises(PackerError) as caught:
        read(folder, value)
    said = str(caught.value)
    assert said.startswith(str(folder)) and "\n" not in said
    return said


def equal(found: torch.Tensor, expected: np.ndarray[Any, Any] | torch.Tensor) -> bool:
    wanted = expected if isinstance(expected, torch.Tensor) else torch.from_numpy(expected.copy())
    return found.dtype == wanted.dtype and torch.equal(found, wanted)


def int8(entry: Value | None = None, **more: Any) -> Value:
    return {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": {"a": CODES},
        "scales": {"a": SCALE},
        "dtypes": {"a": "float32"},
        "passthrough": {"b": torch.ones(3)},
        "qmeta": {"a": {"scheme": "per_row", "axis": 0, **(entry or {})}},
        **more,
    }


def mixed(meaning: Any = "gptq (int6)", more: Value | None = None, **top: Any) -> Value:
    parts = {"a.q": CODES, "a.scale": SCALE, "b": torch.ones(3), **(more or {})}
    return {"w": parts, "m": {"a": meaning, "b": "passthrough"}, **top}


def ternary(**more: Any) -> Value:
    codes = {"packed": bytes([121, 3]), "n_trits": 8, "shape": [2, 4], "group_size": 4}
    entry = {"type": "ternary", "scale": torch.ones(2).half(), "padded_cols": 4, **codes, **more}
    return {"a": entry, "b": {"type": "fp16", "data": torch.ones(3).half()}}


def qgv3(entry: Value | None = None, **more: Any) -> bytes:
    sections = (CODES.numpy().tobytes(), SCALE.numpy().tobytes())
    tables = {
        "quantized": {"a": {"offset": 0, "nbytes": 24, "dtype": "int8", "shape": [4, 6]}},
        "scales": {"a": {"offset": 0, "nbytes": 8, "dtype": "float16", "shape": [4]}},
    }
    tables["quantized"]["a"].update(entry or {})
    meta = json.dumps({"format": "QGv3", "dtypes": {"a": "float32"}, **tables, **more}).encode()
    return b"QGv3" + struct.pack("<4I", len(meta), 24, 8, 0) + meta + b"".join(sections)


def psionic(**more: torch.Tensor) -> bytes:
    tensors = {"a.__q": CODES, "a.__scale": SCALE, **more}
    return bytes(
        safetensors_bytes(tensors, {"psionic.parameter_golf.quant_format": "int8_clean_per_row_v1"})
    )


def pgrp(**more: Any) -> bytes:
    rest = {"r": {"b": torch.ones(3)}, "m": {"b": "passthrough"}, "s": {}, **more}
    packed = bytes(brotli.compress(torch_bytes(rest)))
    return b"PGRP" + struct.pack("<10I", 9, *[0] * 7, len(packed), 0) + packed


SOUND: dict[str, object] = {
    "int8": int8(),
    "mixed": mixed(),
    "qgv3": qgv3(),
    "safetensors": psionic(),
    "flat": {"a.q": CODES, "a.scale": SCALE, "b": torch.ones(3)},
}


@pytest.mark.parametrize("layout", SOUND)
def test_without_such_keys_they_are_read(tmp_path: Path, layout: str) -> None:
    assert equal(read(tmp_path, SOUND[layout]).tensors["a"], PRODUCT)


@pytest.mark.parametrize("key", ["wobble", "hadamard", "split_fp16", "boustrophedon", "packed"])
def test_keys_of_qmeta_and_m(tmp_path: Path, key: str) -> None:
    assert key in refusal(tmp_path, int8({key: True}))
    assert key in refusal(tmp_path, mixed({"type": "int6", key: True}))
    assert key in refusal(tmp_path, qgv3(qmeta={"a": {"scheme": "per_row", key: True}}))
    if key != "wobble":  # a switch that is off
        assert equal(read(tmp_path, int8({key: False})).tensors["a"], PRODUCT)
        assert equal(read(tmp_path, mixed({"type": "int6", key: False})).tensors["a"], PRODUCT)


UNKNOWN: dict[str, tuple[object, str]] = {
    "had_cols": (mixed({"type": "int6", "had_cols": 4}), "had_cols"),
    "aliases": (mixed({"type": "int6", "aliases": ["c"]}), "aliases"),
    "block_size": (mixed({"type": "int6", "block_size": 2}), "block_size"),
    "a tensor as a word": (int8({"method": torch.ones(4)}), "method"),
    "top of int8": (int8(zero_points={"a": SCALE}), "zero_points"),
    "top of int8, rows": (int8(row_passthrough={"a": SCALE}), "row_passthrough"),
    "top of mixed": (mixed(perm=torch.ones(4)), "perm"),
    "top of ternary": ({**ternary(), "c": torch.ones(3)}, "c is a Tensor"),
    "top of qgv3": (qgv3(zero_points={}), "zero_points"),
    "top of pgrp": (pgrp(p=torch.ones(3)), "has p"),
    "top of flat": ({"a.q": CODES, "a.scale": SCALE, "config": {"x": 1}}, "config"),
    "a scheme": (int8({"scheme": "per_group"}), "per_group"),
    "an axis": (int8({"axis": 1}), "axis"),
    "another shape": (int8({"shape": [6, 4]}), "[6, 4]"),
    "another dtype": (int8({"orig_dtype": "bfloat16"}), "bfloat16"),
    "qmeta of nothing": (int8(qmeta={"c": {"scheme": "per_row"}}), "of c"),
    "qmeta of a kept one": (int8(qmeta={"b": {"transposed": True}}), "of b"),
    "entry of ternary": (ternary(zero=torch.ones(2)), "a: its entry has zero"),
    "turbo": (ternary(turbo=True), "turbo"),
    "entry of qgv3": (qgv3({"order": "F"}), "order"),
    "part of safetensors": (psionic(**{"a.__zero": torch.ones(4)}), "a: its part __zero"),
    "part of mixed": (mixed(more={"a.rows": torch.ones(2)}), "a: its part rows"),
    "part of nothing": (mixed(more={"c.rows": torch.ones(2)}), "w has c.rows"),
    "tensor of nothing": (mixed(more={"c": torch.ones(2)}), "w has c,"),
    "part of flat": ({**SOUND["flat"], "a.zero": torch.ones(4)}, "a: its part zero"),  # type: ignore[dict-item]
    "codes of flat": ({**SOUND["flat"], "c.q": CODES}, "the scale of c"),  # type: ignore[dict-item]
    "word of m": (mixed("gptq (int6) rotated"), "rotated"),
    "two widths": (mixed("int6_int8"), "int6_int8"),
    "no width": (mixed("nf4"), "nf4"),
    "correction of m": (mixed("gptq (int6)+bias"), "+bias"),
    "no type": (mixed({"bits": 6}), "type"),
    "another name": (int8(__quant_format__="int6_rans_per_row_v1"), "int6_rans_per_row_v1"),
    "a name of two arithmetics": (int8(__quant_format__="int6_gptq_lite_v1"), "int6_gptq_lite_v1"),
    "a name and no dtypes": (int8(__quant_format__="int6_per_row_v1", dtypes={}), "dtypes"),
    "packed codes": (
        int8(__quant_format__="int6_clean_per_row_v1", quantized={"a": CODES.view(torch.uint8)}),
        "torch.uint8",
    ),
    "a method that rotates": (int8({"method": "gptq_hadamard"}), "method 'gptq_hadamard'"),
    "a category of another arithmetic": (int8({"category": "ternary"}), "category 'ternary'"),
    "a method in m": (mixed({"type": "int6", "method": "asymmetric"}), "method 'asymmetric'"),
    "kept and rotated": (mixed("passthrough_rotated", {"a": SCALE}), "rotated"),
    "kept and more": (mixed("passthrough+delta"), "+delta"),
    "kept and transposed": (mixed("passthrough (transposed)"), "transposed"),
    "kept in qmeta": (int8(qmeta={"b": {"type": "passthrough_perm"}}), "perm"),
    "integers in m": (mixed({"type": "int6", "dtype": "int8"}), "torch.int8"),
    "two codes a byte": (int8({"bits": 4}), "says 4 bits, and its codes are -12 to 11"),
    "two codes a byte by num_bits": (int8({"num_bits": 4}), "says 4 bits"),
    "codes and the tensor": ({**SOUND["flat"], "a": CODES}, "a.q"),  # type: ignore[dict-item]
    "part of codes": ({**SOUND["flat"], "a.q.zero": SCALE}, "a.q.zero"),  # type: ignore[dict-item]
    "packed codes by qmeta": (
        int8({"bits": 6, "numel": 24, "shape": [4, 6]}, __quant_format__="int6_clean_per_row_v1"),
        "numel",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_keys_are_refused_by_name(tmp_path: Path, name: str) -> None:
    value, words = UNKNOWN[name]
    assert words in refusal(tmp_path, value)


def test_keys_that_change_nothing(tmp_path: Path) -> None:
    entry = {"bits": 6, "method": "gptq", "shape": [4, 6], "orig_dtype": "torch.float32"}
    assert equal(read(tmp_path, int8(entry)).tensors["a"], PRODUCT)
    said = {"type": "int6", "method": "gptq_fallback", "clip_range": 31, "shape": (4, 6)}
    assert equal(read(tmp_path, mixed(said)).tensors["a"], PRODUCT)
    half = read(tmp_path, mixed({"type": "int8", "dtype": "bfloat16"})).tensors["a"]
    assert equal(half, torch.from_numpy(PRODUCT.copy()).bfloat16())
    for text in ("passthrough_ctrl", "passthrough (float16)", "passthrough_fp16", "passthrough"):
        kept = {"w": {"b": torch.ones(3)}, "m": {"b": text}}
        assert equal(read(tmp_path, kept).tensors["b"], torch.ones(3))
    for method in ("gptq_lite", "full Hessian GPTQ", "clip-search", "absmax", "int6.row"):
        assert equal(read(tmp_path, int8({"method": method})).tensors["a"], PRODUCT)
    for text in ("int6", "rowwise (int8)", "int6_per_row", "gptq (int5)"):
        assert equal(read(tmp_path, mixed(text)).tensors["a"], PRODUCT)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("int6_per_row_v1", {}),
        (
            "sdclip_int6_int8_v1",
            {"bits": {"a": 6}, "qmeta": {"a": {"scheme": "per_row", "bits": 6}}},
        ),
        ("sft_gptq_intN_v1", {}),
        ("int6_gptq_ar_v1", {"qmeta": {"a": {"scheme": "per_row", "axis": 0}}}),
        ("int8_per_row_v1", {"passthrough_orig_dtypes": {}}),
        ("int6_fake_per_row_v1", {"scale_scheme": "per_row"}),
        ("int6_fp16embed_v1", {}),
        ("mixed_lowbit_v1", {"qmeta": {"a": {"scheme": "per_row", "bits": 6}}}),
        ("sd_clip_v1", {"qmeta": {"a": {"bits": 6}}}),
        ("mixed_int6_int8_per_row_v1", {}),
        ("mixed_int6_int8_v1", {"scale_scheme": "per_row"}),
        ("int6_8_clean_per_row_v1", {"bitwidths": {"a": 6}}),
        ("int5_clean_per_row_v1", {"bits": 5}),
        ("gptq_lite_mixed_v2", {"qmeta": {"a": {"scheme": "int6_per_row", "clip_pct": 0.99}}}),
        (
            "mixed_int6_clipsearch_v1",
            {
                "stats": {"mse": 0.5},
                "qmeta": {"a": {"type": "int8"}, "b": {"type": "passthrough_float"}},
            },
        ),
    ],
)
def test_other_names_of_the_same_arithmetic(
    tmp_path: Path, run: Run, name: str, more: Value
) -> None:
    value = int8(__quant_format__=name, dtypes={"a": "bfloat16"}, **more)
    found = read(tmp_path, value)
    assert equal(found.tensors["a"], torch.from_numpy(PRODUCT.copy()).bfloat16())
    assert found.foreign is not None and found.foreign.layout == name
    result = run("fix", tmp_path / "a.ptz", "--no-recode", "-o", "b.ptz")
    assert result.exit_code == 0, result.output
    assert equal(read_checkpoint("b.ptz").tensors["a"], found.tensors["a"])


def test_transposed_codes(tmp_path: Path) -> None:
    """In qmeta the scales are of the rows as stored; in m of the rows of the weights."""
    assert equal(read(tmp_path, int8({"transposed": True})).tensors["a"], PRODUCT.T)
    turned = {"a.q": CODES.T.contiguous()}
    for kind in ("int6", "clip15"):
        found = read(tmp_path, mixed({"type": kind, "transposed": True}, turned))
        assert equal(found.tensors["a"], PRODUCT)
    assert "24 scales" not in refusal(tmp_path, mixed({"type": "int6", "transposed": True}))
    assert "transposed is 'yes'" in refusal(tmp_path, int8({"transposed": "yes"}))
    flat = {"quantized": {"a": CODES.flatten()}, "scales": {"a": 0.5}}
    assert "[24]" in refusal(tmp_path, int8({"transposed": True}, **flat))


def rows(*ranges: tuple[int, int]) -> list[Value]:
    return [
        {"row_start": start, "row_end": end, "value": torch.full((end - start, 6), 0.1).half()}
        for start, end in ranges
    ]


def test_rows_kept_as_floats(tmp_path: Path) -> None:
    entry = {"row_passthrough": [(0, 1), (2, 4)]}
    value = int8(
        entry,
        row_group_passthrough={"a": rows((0, 1), (2, 4))},
        passthrough_orig_dtypes={"a": "bfloat16"},
    )
    expected = PRODUCT.copy()
    kept = np.float32(torch.tensor(0.1).half().bfloat16().float())
    expected[[0, 2, 3]] = kept
    assert equal(read(tmp_path, value).tensors["a"], expected)


@pytest.mark.parametrize(
    ("ranges", "listed", "words"),
    [
        (rows((0, 2), (1, 3)), None, "row 1 is kept twice"),
        (rows((3, 5)), None, "3 to 5 of 4"),
        ([{**rows((0, 1))[0], "row_start": -1}], None, "-1"),
        ([{**rows((0, 1))[0], "value": torch.ones(1, 5)}], None, "[1, 5]"),
        ([{**rows((0, 1))[0], "gain": 2}], None, "gain"),
        (rows((0, 1)), [(0, 2)], "[(0, 2)]"),
        (None, [(0, 1)], "row_passthrough"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, ranges: Any, listed: Any, words: str) -> None:
    tables = {} if ranges is None else {"row_group_passthrough": {"a": ranges}}
    assert words in refusal(tmp_path, int8({"row_passthrough": listed}, **tables))


def test_two_arithmetics_of_ternary_groups_are_told(tmp_path: Path, run: Run) -> None:
    read(tmp_path, ternary())
    result = run("unpack", tmp_path / "a.ptz", "-o", "w.safetensors")
    assert result.exit_code == 0 and "#640" in result.stderr and "#1609" in result.stderr
    binary = {**ternary()["a"], "type": "binary", "n_bits": 8, "packed": bytes([3])}
    del binary["n_trits"]
    assert not any("#640" in note for note in read(tmp_path, {"a": binary}).notes)


def test_a_flat_dict_says_what_it_is_taken_for(tmp_path: Path) -> None:
    found = read(tmp_path, SOUND["flat"])
    assert any(".scale" in note for note in found.notes) and set(found.tensors) == {"a", "b"}
    plain = read(tmp_path, {"a.q": torch.ones(2, 2), "a.scale": torch.ones(2)})
    assert plain.foreign is None and set(plain.tensors) == {"a.q", "a.scale"}


def test_entries_of_unknown_types(tmp_path: Path) -> None:
    value = {f"layer.{i}": {"type": "quant", "q": CODES, "s": SCALE} for i in range(30)}
    value["norm"] = {"type": "raw", "data": torch.ones(3)}
    said = refusal(tmp_path, value)
    assert "quant (30), raw (1)" in said and "layer.0" in said and "--weights" not in said
    assert len(said) < 1000


def test_no_option_is_advised_that_a_command_lacks(tmp_path: Path, run: Run) -> None:
    torch.save({"avg_model": {"w": torch.ones(2, 2)}, "step": 3}, tmp_path / "c.pt")
    np.savez(tmp_path / "w.npz", **{"b.weight": np.ones(3)})
    for command in (("unpack",), ("fix", "--lossless")):
        result = run(*command, tmp_path / "c.pt", "-o", "x.safetensors")
        assert result.exit_code == 1 and "--weights" not in result.output
        assert "avg_model" in result.output and "no artifact" in result.output
        result = run(*command, tmp_path / "w.npz", "-o", "x.safetensors")
        assert result.exit_code == 1 and "torch.save" not in result.output
        assert ".npz" in result.output and "safetensors" in result.output
    result = run("report", tmp_path / "c.pt", "--weights", "avg_model")
    assert result.exit_code == 0, result.output


def test_lossless_writes_no_larger_file(tmp_path: Path, run: Run) -> None:
    """Rows that repeat: the file's own codec sees it, a coder of single codes does not."""
    block = torch.randint(-127, 128, (1, 256), generator=torch.Generator().manual_seed(1))
    value = {
        **int8(),
        "quantized": {"a": block.to(torch.int8).repeat(256, 1)},
        "scales": {"a": torch.full((256,), 0.01).half()},
    }
    read(tmp_path, value)
    size = (tmp_path / "a.ptz").stat().st_size
    for options in (["--lossless"], []):
        result = run("fix", tmp_path / "a.ptz", *options, "-o", "b.pack", "--loader", "l.py")
        assert result.exit_code == 1 and f"than its {size:,}" in result.output
        assert not Path("b.pack").exists() and not Path("l.py").exists()


def test_weights_read_are_those_unpacked(tmp_path: Path, run: Run) -> None:
    read(tmp_path, SOUND["mixed"])
    result = run("fix", tmp_path / "a.ptz", "--lossless", "-o", "b.pack")
    assert result.exit_code == 0 and "bit-identical" in result.stderr
    assert run("unpack", "b.pack", "-o", "w.safetensors").exit_code == 0
    assert equal(load_file("w.safetensors")["a"], PRODUCT)


def test_scales_of_other_dtypes(tmp_path: Path) -> None:
    """float64 scales become float32 before they are multiplied, as their own readers do."""
    wide = torch.tensor([0.1, 0.2, 0.3, 0.7], dtype=torch.float64)
    expected = (CODES.numpy().astype(np.float32).T * wide.numpy().astype(np.float32)).T
    assert equal(read(tmp_path, int8(scales={"a": wide})).tensors["a"], expected)
    with pytest.raises(CheckpointError, match="a scale is negative"):
        read(tmp_path, int8(scales={"a": -wide}))
