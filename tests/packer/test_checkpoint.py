"""Reading checkpoints: what is taken, what is cleaned up, and what is refused in words."""

import argparse
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model

from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint, structure_fingerprint
from packer.errors import CheckpointError, PackerError, SelectorError

Writer = Callable[[Path, dict[str, torch.Tensor]], Path]

FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
DTYPES = [
    *("float64", "float32", "float16", "bfloat16", *FLOAT8),
    *("complex128", "complex64", "complex32"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
]


def weights(*names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 6, generator=generator) for name in names}


def saved(path: Path, value: object, **options: bool) -> Path:
    torch.save(value, path, **options)
    return path


def ones(dtype: str, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental in torch
        return torch.ones(shape).to(getattr(torch, dtype))


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert str(path) in message
    assert "Traceback" not in message and "\n" not in message
    return message


# --- Kinds of files -----------------------------------------------------------------------------


def as_zip(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return saved(path, tensors)


def as_legacy(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return saved(path, tensors, _use_new_zipfile_serialization=False)


def as_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def as_shards(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    for number, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, path / f"model-{number}.safetensors")
    return path


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_safetensors, as_shards])
def test_the_content_decides_what_a_file_is(tmp_path: Path, write: Writer) -> None:
    tensors = weights("a.weight", "b.weight")
    path = write(tmp_path / "misleading.txt", tensors)
    found = read_checkpoint(path)
    assert found.source == str(path)
    assert list(found.tensors) == ["a.weight", "b.weight"]
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert (found.ties, found.metadata, found.notes) == ({}, {}, ())
    assert found.size_bytes == 2 * 24 * 4


def test_the_reference_checkpoint(shared: Path) -> None:
    path = shared / "checkpoints" / "ref6x256.pt"
    found = read_checkpoint(path)
    assert sum(tensor.numel() for tensor in found.tensors.values()) == 4_029_492
    assert found.size_bytes == 4 * 4_029_492
    expected = torch.load(path, weights_only=True)
    assert list(found.tensors) == list(expected)
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    assert contents_fingerprint(found) == contents_fingerprint(from_state_dict(expected))


def test_a_checkpoint_saved_from_an_accelerator(shared: Path) -> None:
    found = read_checkpoint(shared / "artifacts" / "raw_tiny.pt")
    assert {str(tensor.device) for tensor in found.tensors.values()} == {"cpu"}
    assert found.tensors["tok_emb.weight"].shape == (1024, 128)


# What the formats have no code for.
NOT_LEGACY = (*FLOAT8, "complex32", "uint16", "uint32", "uint64")
NOT_SAFETENSORS = ("complex128", "complex32")


@pytest.mark.parametrize(
    ("write", "dtype"),
    [
        *((as_zip, dtype) for dtype in DTYPES),
        *((as_legacy, dtype) for dtype in DTYPES if dtype not in NOT_LEGACY),
        *((as_safetensors, dtype) for dtype in DTYPES if dtype not in NOT_SAFETENSORS),
    ],
)
def test_every_dtype_scalar_and_empty(tmp_path: Path, write: Writer, dtype: str) -> None:
    tensors = {"matrix": ones(dtype), "scalar": ones(dtype, ()), "empty": ones(dtype, (0, 3))}
    try:
        path = write(tmp_path / "file", tensors)
    except KeyError:
        pytest.skip(f"torch or safetensors is too old here to write {dtype}")
    found = read_checkpoint(path).tensors
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    for name, tensor in tensors.items():
        assert (
            found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
        ), name


def test_tensors_are_plain_contiguous_and_detached(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(base.clone()),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "expanded": torch.ones(1, 4).expand(3, 4),
    }
    found = read_checkpoint(saved(tmp_path / "m.pt", tensors)).tensors
    for name, tensor in found.items():
        assert tensor.is_contiguous() and not tensor.requires_grad and not tensor.is_conj(), name
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, tensors[name].detach().resolve_conj())


def test_a_small_file_cannot_claim_huge_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"mask": torch.ones(1).expand(1 << 20, 1 << 20)})
    assert "mask" in refusal(path) and path.stat().st_size < 10_000


# --- Files that are refused ---------------------------------------------------------------------


def test_things_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pt")
    assert "without *.safetensors" in refusal(tmp_path)
    for name, content, word in [
        ("empty.pt", b"", "empty"),
        ("text.pt", b"hello world, this is text", "neither"),
        ("short.pt", b"PK", "neither"),
        ("deflated.ptz", b"\x78\xda" + bytes(99), "zlib"),
        ("m.pack", b"\x93BYTECAP\x01" + bytes(99), "packer unpack"),
        ("plain.pkl", pickle.dumps({"a": 1}), "no named tensors"),
        ("object.pkl", pickle.dumps({"a": argparse.Namespace()}), "argparse.Namespace"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        assert word in refusal(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


def test_other_zip_files(tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "data.pkl" in refusal(other)
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("m/constants.pkl", "x")
        archive.writestr("m/data.pkl", "x")
    assert "TorchScript" in refusal(script)
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(saved(tmp_path / "m.pt", weights("a"))) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.namelist():
            target.writestr(record, source.read(record))
    assert "compressed" in refusal(packed)


@pytest.mark.parametrize("zipped", [True, False])
def test_unpickling_is_refused_with_the_object_asked_for(tmp_path: Path, zipped: bool) -> None:
    value = {"model": weights("a"), "args": argparse.Namespace(lr=0.1)}
    path = saved(tmp_path / "m.pt", value, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "argparse.Namespace" in message and "torch.save(model.state_dict()" in message


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.ones(3), "Tensor"),
        ([torch.ones(3)], "list"),
        (7, "int"),
        ({}, "no named tensors"),
        ({"step": 3, "config": {"layers": 2}}, "no named tensors"),
        ({3: torch.ones(2)}, "no named tensors"),
        ({"shadow_params": [torch.ones(2)]}, "no named tensors"),
    ],
)
def test_values_without_names_are_refused(tmp_path: Path, value: object, word: str) -> None:
    assert word in refusal(saved(tmp_path / "m.pt", value))


def test_tensors_that_are_not_dense_values_are_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for name, tensor in {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": quantized,
        "nested": nested,
        "meta": torch.empty(3, device="meta"),
        "lazy": torch.nn.LazyLinear(3).weight,
    }.items():
        with pytest.raises(CheckpointError, match=rf"{name} \("):
            from_state_dict({"fine": torch.ones(2), name: tensor})
        assert list(from_state_dict({"fine": torch.ones(2), name: tensor}, drop=[name]).tensors)


def test_truncated_files(tmp_path: Path) -> None:
    for write in (as_zip, as_legacy, as_safetensors):
        whole = write(tmp_path / write.__name__, weights("a", "b")).read_bytes()
        for tenth in range(10):
            path = tmp_path / "cut"
            path.write_bytes(whole[: len(whole) * tenth // 10])
            refusal(path)
        path.write_bytes(whole[:-1])
        refusal(path)


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_safetensors])
def test_flipped_bits_never_escape_as_another_error(tmp_path: Path, write: Writer) -> None:
    whole = write(tmp_path / "whole", weights("a", "b"))
    expected = contents_fingerprint(read_checkpoint(whole))
    content = whole.read_bytes()
    path = tmp_path / "flipped"
    refused = 0
    for position in range(0, len(content), max(1, len(content) // 400)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = contents_fingerprint(read_checkpoint(path))
        except CheckpointError:
            refused += 1
        else:
            # Only zip files carry checksums; what is read from them in spite of a flip is right.
            assert write is not as_zip or found == expected
    assert refused > 20


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), kind=st.sampled_from(["", "zip", "legacy", "safetensors"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, kind: str) -> None:
    head = {
        "": b"",
        "zip": b"PK\x03\x04",
        "legacy": bytes.fromhex("80028a0a6cfc9c46f9206aa850192e"),
        "safetensors": len(data).to_bytes(8, "little") + b"{",
    }[kind]
    path = tmp_path / "any"
    path.write_bytes(head + data)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_one_flipped_weight_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", weights("a"))
    content = bytearray(path.read_bytes())
    position = content.index(weights("a")["a"].numpy().tobytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_files_saved_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "m.pt", weights("a"))
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path).tensors["a"], weights("a")["a"])


# --- Folders of shards --------------------------------------------------------------------------


def write_index(folder: Path, weight_map: object) -> None:
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def test_an_index_names_the_shards(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "model", weights("a", "b"))
    save_file(weights("a"), folder / "consolidated.safetensors")
    (note,) = read_checkpoint(folder).notes
    assert "passed over: consolidated.safetensors" in note
    save_file(weights("a"), folder / "model-2.safetensors")
    message = refusal(folder)
    assert "'a'" in message and "model-2.safetensors" in message
    write_index(folder, {"a": "model-0.safetensors", "b": "model-1.safetensors"})
    assert list(read_checkpoint(folder).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "model-1.safetensors", "b": "model-1.safetensors"}, "'a'"),
        ({"a": "model-0.safetensors", "b": "model-0.safetensors"}, "'b'"),
        ({"a": "model-0.safetensors"}, ""),
        ({"a": "model-0.safetensors", "b": "model-9.safetensors"}, "model-9.safetensors"),
        ({"a": "../secret.safetensors"}, "not a *.safetensors file of this folder"),
        (["a"], "weight_map"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, weight_map: object, word: str) -> None:
    folder = as_shards(tmp_path / "model", weights("a", "b"))
    write_index(folder, weight_map)
    if word:
        assert word in refusal(folder)
    else:
        assert list(read_checkpoint(folder).tensors) == ["a"]  # other shards are not the model's


def test_a_damaged_index_or_shard(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "model", weights("a", "b"))
    (folder / "model.safetensors.index.json").write_bytes(b"\xff{")
    assert "index" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-1.safetensors").write_bytes(b"")
    assert "model-1.safetensors" in refusal(folder)
    (folder / "model-1.safetensors").unlink()
    (folder / "model-1.safetensors").mkdir()
    assert "model-1.safetensors: is not a regular file" in refusal(folder)


# --- Which weights ------------------------------------------------------------------------------


def test_the_usual_keys_in_their_order(tmp_path: Path) -> None:
    value = {name: weights(f"{name}.w") for name in ("model_state_dict", "state_dict", "model")}
    value["ema"] = weights("ema.w")
    for taken in ("ema", "model", "state_dict", "model_state_dict"):
        found = read_checkpoint(saved(tmp_path / "m.pt", {**value, "step": 7}))
        assert list(found.tensors) == [f"{taken}.w"]
        assert found.notes[0] == f"weights taken from {taken}"
        assert any("step" in note for note in found.notes)
        del value[taken]
        assert all(any(other in note for note in found.notes) for other in value)


def test_weights_chooses(tmp_path: Path) -> None:
    value = {
        "model": weights("a"),
        "ema": {"decay": 0.99, "steps": torch.tensor(5), "shadow": weights("b")},
        "averages": {"fast": weights("c"), "slow.er": weights("d")},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "step": 7,
    }
    path = saved(tmp_path / "m.pt", value)
    for key, name in [
        (None, "b"),
        ("model", "a"),
        ("ema", "b"),
        ("ema.shadow", "b"),
        ("averages.fast", "c"),
        ("averages.slow.er", "d"),
    ]:
        assert list(read_checkpoint(path, weights=key).tensors) == [name]
    with pytest.raises(SelectorError, match=r"averages\.fast.*nearest is 'model'"):
        read_checkpoint(path, weights="modell")
    with pytest.raises(SelectorError, match="'step'"):
        read_checkpoint(path, weights="step")
    both = read_checkpoint(path, weights="averages")
    assert list(both.tensors) == ["fast.c", "slow.er.d"]
    with pytest.raises(SelectorError, match="bare state dict"):
        read_checkpoint(saved(tmp_path / "bare.pt", weights("a")), weights="model")


def test_unusual_keys_must_be_chosen(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"generator": weights("a"), "critic": weights("b")})
    assert "generator, critic" in refusal(path)
    assert list(read_checkpoint(path, weights="critic").tensors) == ["b"]


def test_plain_values_beside_tensors_are_named(tmp_path: Path) -> None:
    value = {**weights("a"), "step": 3, "config": {"layers": 2}}
    found = read_checkpoint(saved(tmp_path / "m.pt", value))
    assert list(found.tensors) == ["a"]
    assert found.notes == ("left out, not weights: step, config",)


def test_a_usual_key_without_tensors_is_passed_over(tmp_path: Path) -> None:
    value = {"model": {"layers": 2}, "state_dict": weights("a")}
    assert list(read_checkpoint(saved(tmp_path / "m.pt", value)).tensors) == ["a"]


def test_a_value_that_holds_itself_ends(tmp_path: Path) -> None:
    value: dict[str, object] = {"a": torch.ones(2)}
    value["model"] = value
    assert "itself" in refusal(saved(tmp_path / "m.pt", value))


# --- Names --------------------------------------------------------------------------------------


def test_wrapper_prefixes_are_removed() -> None:
    names = {
        "module.a": "a",
        "_orig_mod.module.module.b": "b",
        "module._orig_mod.blocks.0._orig_mod.w": "blocks.0.w",
        "my_module.c": "my_module.c",
        "blocks.module.d": "blocks.module.d",
        "module": "module",
    }
    found = from_state_dict(weights(*names))
    assert list(found.tensors) == list(names.values())
    assert found.notes == ("wrapper prefixes (module., _orig_mod.) removed from 3 names",)


def test_names_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'module\.a' and '_orig_mod\.a'"):
        from_state_dict(weights("module.a", "_orig_mod.a"))


def test_drop_leaves_out() -> None:
    state = weights("blocks.0.w", "mtp_heads.0.weight", "mtp_heads.1.weight")
    found = from_state_dict(state, drop=["mtp_heads.*"])
    assert list(found.tensors) == ["blocks.0.w"]
    assert found.notes == ("dropped by mtp_heads.*: mtp_heads.0.weight, mtp_heads.1.weight",)
    with pytest.raises(SelectorError, match=r"nearest name is 'mtp_heads\.\d\.weight'"):
        from_state_dict(state, drop=["MTP_heads.*weight"])
    with pytest.raises(CheckpointError, match="no named tensors"):
        from_state_dict(state, drop=["*"])


# --- Ties ---------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """Two names of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(5, 3)
        self.lm_head = torch.nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_tensors_are_stored_once(tmp_path: Path, zipped: bool) -> None:
    state = Tied().state_dict()
    path = saved(tmp_path / "m.pt", state, _use_new_zipfile_serialization=zipped)
    for found in (read_checkpoint(path), from_state_dict(state)):
        assert list(found.tensors) == ["wte.weight"]
        assert found.ties == {"lm_head.weight": "wte.weight"}
        assert found.size_bytes == 60
        assert "lm_head.weight = wte.weight" in found.notes[0]


def test_what_is_not_a_tie() -> None:
    base = torch.arange(6.0)
    state = {
        "base": base,
        "twin": base[:],
        "equal": base.clone(),
        "shifted": base[1:],
        "shaped": base.reshape(2, 3),
        "typed": base.view(torch.int32),
        "empty": torch.ones(0),
        "empty too": torch.ones(0),
    }
    found = from_state_dict(state)
    assert found.ties == {"twin": "base"}
    assert list(found.tensors) == [name for name in state if name != "twin"]


def test_dropping_the_kept_name_promotes_its_twin() -> None:
    state = Tied().state_dict()
    found = from_state_dict(state, drop=["wte.*"])
    assert list(found.tensors) == ["lm_head.weight"] and found.ties == {}
    assert torch.equal(found.tensors["lm_head.weight"], state["wte.weight"])


def test_ties_of_save_model(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(Tied(), str(path), metadata={"format": "pt", "author": "nobody"})
    found = read_checkpoint(path)
    assert list(found.tensors) == ["lm_head.weight"]
    assert found.ties == {"wte.weight": "lm_head.weight"}
    assert found.metadata == {"format": "pt", "author": "nobody"}
    promoted = read_checkpoint(path, drop=["lm_head.*"])
    assert list(promoted.tensors) == ["wte.weight"] and promoted.ties == {}


def test_our_own_ties(tmp_path: Path) -> None:
    matrix = torch.randn(3, 4)
    tensors = {"wte": matrix, "lm_head": matrix.clone(), "changed": matrix + 1}
    ties = {"lm_head": "wte", "changed": "wte", "absent": "wte", "wte": "wte"}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={"bytecap.ties": json.dumps(ties), "other": "kept"})
    found = read_checkpoint(path)
    assert found.ties == {"lm_head": "wte"}
    assert sorted(found.tensors) == ["changed", "wte"]
    assert found.metadata == {"other": "kept"}
    assert any("changed was tied to wte" in note for note in found.notes)
    save_file(tensors, path, metadata={"bytecap.ties": "[1]"})
    assert "bytecap.ties" in refusal(path)


# --- NaN and infinity ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if "float" in dtype])
def test_nan_is_refused_with_name_and_count(dtype: str) -> None:
    values = torch.zeros(40)
    values[3] = values[7] = float("nan")
    state = {"fine": torch.ones(2), "bad.weight": values.to(getattr(torch, dtype))}
    with pytest.raises(CheckpointError, match=r"bad\.weight \(2 of 40 values\)"):
        from_state_dict(state)
    assert list(from_state_dict(state, drop=["bad*"]).tensors) == ["fine"]


def test_infinite_and_complex_values() -> None:
    bad = torch.tensor([complex(1, float("inf")), complex(float("nan"), float("nan")), 1j])
    with pytest.raises(CheckpointError, match=r"c \(2 of 3 values\)"):
        from_state_dict({"c": bad})
    with pytest.raises(CheckpointError, match=r"h \(1 of 9 values\)"):
        from_state_dict({"h": torch.tensor([*range(8), float("-inf")], dtype=torch.float16)})


def test_many_bad_tensors_are_counted() -> None:
    state = {f"t{i}": torch.tensor([float("nan")]) for i in range(8)}
    with pytest.raises(CheckpointError, match=r"t4 .* and 3 more tensors") as caught:
        from_state_dict(state)
    assert "t5" not in str(caught.value)


def test_bad_values_in_a_later_block() -> None:
    values = torch.arange((1 << 20) + 5.0)
    values[-1] = float("inf")
    with pytest.raises(CheckpointError, match="1 of 1,048,581"):
        from_state_dict({"big": values})


# --- Fingerprints -------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("ab.1"), min_size=1, max_size=3)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
CHECKPOINTS = st.dictionaries(
    NAMES,
    st.tuples(SHAPES, st.sampled_from(["float32", "int32", "bfloat16", "uint8"])),
    min_size=1,
    max_size=4,
)


def checkpoint(tensors: dict[str, torch.Tensor], ties: dict[str, str]) -> Checkpoint:
    return Checkpoint("here", tensors, ties, {}, ())


def fingerprints(tensors: dict[str, torch.Tensor], ties: dict[str, str]) -> tuple[str, str]:
    made = checkpoint(tensors, ties)
    return structure_fingerprint(made), contents_fingerprint(made)


@given(layout=CHECKPOINTS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_fingerprints_see_every_change_and_no_order(
    layout: dict[str, tuple[tuple[int, ...], str]], data: st.DataObject
) -> None:
    tensors = {name: ones(dtype, shape) for name, (shape, dtype) in layout.items()}
    first = next(iter(tensors))
    ties = {"tied 1": first, "tied 2": first}
    structure, contents = fingerprints(tensors, ties)
    assert structure != contents

    order = data.draw(st.permutations(list(tensors)))
    reordered = {name: tensors[name].clone() for name in order}
    assert fingerprints(reordered, dict(reversed(ties.items()))) == (structure, contents)

    name = data.draw(st.sampled_from(list(tensors)))
    tensor = tensors[name]
    others = {other: value for other, value in tensors.items() if other != name}
    for changed, changed_ties in [
        ({**others, name + "x": tensor}, ties),
        ({**tensors, "another": tensor}, ties),
        (others, ties),
        ({**tensors, name: tensor.unsqueeze(0)}, ties),
        ({**tensors, name: tensor.to(torch.float64)}, ties),
        (tensors, {}),
        (tensors, {"tied 1": first}),
        (tensors, {"tied 1": first, "tied 3": first}),
        (tensors, {"tied 1": first, "tied 2": first + "x"}),
    ]:
        other = fingerprints(changed, changed_ties)
        assert other[0] != structure and other[1] != contents

    if tensor.numel():
        flipped = tensor.clone()
        position = data.draw(st.integers(0, tensor.nbytes - 1))
        flipped.reshape(-1).view(torch.uint8)[position] ^= 1 << data.draw(st.integers(0, 7))
        other = fingerprints({**tensors, name: flipped}, ties)
        assert other[0] == structure and other[1] != contents


def test_fingerprints_do_not_confuse_neighbouring_fields() -> None:
    one = torch.ones(1)
    seen = {
        fingerprints({"a": one, "b": one}, {}),
        fingerprints({"ab": one}, {}),
        fingerprints({"a": one}, {"b": "a"}),
        fingerprints({"a": one}, {"ba": ""}),
        fingerprints({"a": torch.ones(1, 11)}, {}),
        fingerprints({"a": torch.ones(11, 1)}, {}),
        fingerprints({"a": torch.ones(11)}, {}),
    }
    assert len({value for pair in seen for value in pair}) == 14


def test_fingerprints_do_not_depend_on_the_file_format(tmp_path: Path) -> None:
    tensors = {"b": ones("bfloat16"), "a": ones("float8_e5m2"), "c": ones("bool", ())}
    found = {
        fingerprints(read_checkpoint(write(tmp_path / write.__name__, tensors)).tensors, {})
        for write in (as_zip, as_safetensors)
    }
    assert found == {fingerprints(tensors, {})}


def test_fingerprints_are_of_these_bytes() -> None:
    """Plans on disk hold fingerprints, so what is hashed may not change unnoticed."""

    def fields(*texts: str) -> bytes:
        return b"".join(len(text).to_bytes(8, "little") + text.encode() for text in texts)

    made = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    values = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
    header, ties = ("1", "w", "float32", "2,3"), fields("1", "v", "w")
    assert fingerprints(made, {"v": "w"}) == (
        sha256(fields("bytecap structure 1", *header) + ties).hexdigest(),
        sha256(fields("bytecap contents 1", *header) + values + ties).hexdigest(),
    )


def test_errors_are_of_one_family(tmp_path: Path) -> None:
    """Whatever is wrong with a file, one `except PackerError` is enough."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    path = tmp_path / "m.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(PackerError):
        read_checkpoint(path, drop=["nothing"])
    with pytest.raises(PackerError):
        read_checkpoint(path / "inside a file")
