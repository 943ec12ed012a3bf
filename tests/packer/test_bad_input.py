"""What bad input gets: one clear paragraph, the right exit code, and nothing half-written."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

CAP = 12_000
Run = Callable[..., Result]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def here(tmp_path: Path, made: Path) -> Path:
    """The working folder with copies of everything that `made` holds."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def refused(run: Run, here: Path) -> Callable[..., str]:
    """Runs a command that must refuse in one paragraph and leave every file as it was."""

    def refuse(*arguments: object, code: int = 1) -> str:
        before = contents(here)
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert contents(here) == before
        usage, error, message = result.stderr.rpartition("Error: ")
        assert error and "Error: " not in usage and "Traceback" not in result.stderr
        assert result.stdout == "" or "does not pass" in message
        assert len(message.strip().splitlines()) == 1
        return message.strip()

    return refuse


Refused = Callable[..., str]
READERS = (
    ("inspect",),
    ("measure", "-o", "out.json"),
    ("plan", "--cap", CAP, "-o", "out.json"),
    ("pack", "--cap", CAP, "-o", "out.pack"),
    ("report",),
)


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_every_reader_names_a_damaged_checkpoint(
    refused: Refused, here: Path, command: tuple[object, ...]
) -> None:
    whole = (here / "model.pt").read_bytes()
    (here / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (here / "empty.pt").write_bytes(b"")
    (here / "text.pt").write_text("not a checkpoint")
    (here / "folder").mkdir()
    words = {
        "cut.pt": "truncated or damaged",
        "empty.pt": "the file is empty",
        "text.pt": "neither a torch file nor safetensors",
        "folder": "a folder without *.safetensors",
    }
    for name, said in words.items():
        message = refused(command[0], name, *command[1:])
        assert message.startswith(f"{name}: ") and said in message


def test_bits_flipped_in_a_checkpoint(run: Run, here: Path) -> None:
    """Every flip is refused, or it fell on a byte that no tensor holds."""
    whole = (here / "model.pt").read_bytes()
    generator = random.Random(0)
    outcomes = []
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        (here / "flipped.pt").write_bytes(flipped)
        result = run("pack", "flipped.pt", "--plan", "plan.json", "-o", "out.pack")
        outcomes.append(result.exit_code)
        if result.exit_code == 0:
            assert (here / "out.pack").read_bytes() == (here / "model.pack").read_bytes()
            (here / "out.pack").unlink()
        else:
            assert result.exit_code == 1
            assert "flipped.pt" in result.stderr and not (here / "out.pack").exists()
    assert outcomes.count(1) >= 30


@pytest.mark.parametrize("command", [("verify",), ("report",), ("unpack", "-o", "out.pt")])
def test_every_reader_names_a_damaged_artifact(
    refused: Refused, here: Path, command: tuple[str, ...]
) -> None:
    whole = (here / "model.pack").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    damaged = {
        "cut.pack": (whole[:-100], "truncated or damaged"),
        "flipped.pack": (bytes(flipped), "truncated or damaged"),
        "long.pack": (whole + b"\0", "truncated or damaged"),
        "short.pack": (whole[:12], ""),
        "version.pack": (whole[:8] + b"\x02" + whole[9:], "format version 2"),
    }
    for name, (data, said) in damaged.items():
        (here / name).write_bytes(data)
        message = refused(command[0], name, *command[1:])
        assert message.startswith(f"{name}: ") and said in message


def test_other_files_are_no_artifacts(refused: Refused, here: Path) -> None:
    (here / "empty.pack").write_bytes(b"")
    for name in ("model.pt", "plan.json", "empty.pack"):
        message = refused("verify", name)
        assert message.startswith(f"{name}: not an artifact: ")
        assert message.endswith("; name a file that packer pack wrote")
    assert "is a directory" in refused("verify", ".", code=2)
    assert "is a directory" in refused("unpack", ".", "-o", "out.pt", code=2)


@pytest.mark.parametrize(
    ("name", "word"),
    [("model.pt", "no artifact"), ("plan.json", "nor an artifact"), ("empty.pack", "empty")],
)
def test_other_files_are_not_unpacked(refused: Refused, here: Path, name: str, word: str) -> None:
    (here / "empty.pack").write_bytes(b"")
    message = refused("unpack", name, "-o", "out.pt")
    assert message.startswith(f"{name}: ") and word in message


def test_every_bit_of_an_artifact_counts(run: Run, here: Path) -> None:
    whole = (here / "model.pack").read_bytes()
    generator = random.Random(1)
    for _ in range(25):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        (here / "flipped.pack").write_bytes(flipped)
        assert run("verify", "flipped.pack").exit_code == 1


def test_a_checkpoint_with_values_that_are_not_finite(refused: Refused, here: Path) -> None:
    bad = torch.ones(4, 5)
    bad[1, 2], bad[3, 4] = float("nan"), float("inf")
    torch.save({"fine.weight": torch.ones(3), "blocks.0.bad.weight": bad}, here / "nan.pt")
    message = refused("pack", "nan.pt", "--cap", CAP, "-o", "out.pack")
    assert message.startswith("nan.pt: NaN or infinity in blocks.0.bad.weight (2 of 20 values)")
    assert "--drop" in message


def test_a_checkpoint_that_would_run_code(refused: Refused, here: Path) -> None:
    torch.save({"model": {"w": torch.ones(3)}, "when": Path("somewhere")}, here / "code.pt")
    message = refused("plan", "code.pt", "--cap", CAP)
    assert message.startswith("code.pt: ") and "unpickled" in message and "state_dict()" in message


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("0", "a cap is at least 1 byte"),
        ("-5", "is not a size"),
        ("_", "is not a size"),
        ("", "is not a size"),
        ("1e6", "is not a size"),
        ("16 megabytes", "is not a size"),
        ("٣", "is not a size"),
        ("1.5", "is not a whole number of bytes"),
        ("1.2345KB", "is not a whole number of bytes"),
        ("9" * 30, "is more than"),
        ("9999999999GiB", "is more than"),
    ],
)
def test_caps_that_are_no_sizes(refused: Refused, size: str, said: str) -> None:
    message = refused("plan", "candidates.json", f"--cap={size}", "-o", "out.json", code=2)
    assert message.startswith("Invalid value for '--cap': ") and said in message
    if size != "0":
        assert repr(size) in message


@pytest.mark.parametrize("command", [("plan", "-o", "out.json"), ("pack", "-o", "out.pack")])
def test_a_cap_of_one_kilobyte(refused: Refused, command: tuple[str, ...]) -> None:
    message = refused(command[0], "model.pt", "--cap", "1KB", *command[1:])
    assert message.startswith("no plan fits under the cap of 1,000 bytes: the smallest possible")
    assert "tok_emb.weight" in message and "raise the cap" in message


def test_the_smallest_size_told_is_reachable(refused: Refused, run: Run, here: Path) -> None:
    message = refused("pack", "model.pt", "--cap", "1KB", "-o", "out.pack")
    smallest = int(message.partition("total is ")[2].partition(", ")[0].replace(",", ""))
    over = ("pack", "model.pt", "--cap", smallest - 1, "-o", "out.pack")
    assert f"total is {smallest:,}, 1 too many" in refused(*over)
    assert run("pack", "model.pt", "--cap", smallest, "-o", "out.pack").exit_code == 0
    assert (here / "out.pack").stat().st_size == smallest


def test_code_larger_than_the_cap(refused: Refused, here: Path) -> None:
    (here / "train.py").write_bytes(b"#" * 50_000)
    message = refused("plan", "candidates.json", "--cap", CAP, "--code", "train.py")
    assert "code, header and margin take 50," in message


@pytest.mark.parametrize(
    ("pin", "code", "said"),
    [
        ("tok_em.weight=fp16", 1, "matches no tensor; the nearest that does is 'tok_emb.weight'"),
        ("blocks.9.*=fp16", 1, "'blocks.9.*' matches no tensor"),
        ("late-k:7=fp16", 1, "asks for the key projections of 7 blocks where 2 have one"),
        ("late-k:x=fp16", 1, "stands a number of blocks"),
        ("head=fp16", 1, "'head' matches no tensor"),
        ("embeddings=int9.row", 1, "embeddings: int9: integer formats have 2 to 8 bits"),
        ("embeddings=fp12", 1, "embeddings: unknown format 'fp12'; formats are raw, fp32"),
        ("embeddings=int6.row~rar", 1, "unknown coder 'rar'; coders are ans, zstd"),
        ("embeddings=int6.row+kstd", 1, "kstd takes one value"),
        ("embeddings=int6.row+prune@2", 1, "prune needs a fraction in [0, 1), found 2.0"),
        ("step=int6.row", 1, "step: int6.row cannot hold torch.int64"),
        ("embeddings", 2, "is not SELECTOR=CHOICE, such as embeddings=fp16"),
        ("=fp16", 2, "is not SELECTOR=CHOICE"),
        ("embeddings=", 2, "is not SELECTOR=CHOICE"),
    ],
)
def test_pins_that_mean_nothing(refused: Refused, pin: str, code: int, said: str) -> None:
    assert said in refused("pack", "model.pt", "--cap", CAP, "--pin", pin, "-o", "o", code=code)


def test_a_pin_that_overflows_or_was_not_measured(refused: Refused, here: Path) -> None:
    torch.save({"big.weight": torch.full((4, 5), 1e30)}, here / "big.pt")
    message = refused("plan", "big.pt", "--cap", CAP, "--pin", "*=fp16")
    assert message.startswith("big.weight: under fp16 some weights overflow; pin a wider format")
    message = refused("plan", "candidates.json", "--cap", CAP, "--pin", "embeddings=int3.row")
    assert message.startswith("tok_emb.weight is pinned to 'int3.row', which was not measured")


def test_drops_and_keys_that_name_nothing(refused: Refused, here: Path) -> None:
    message = refused("inspect", "model.pt", "--drop", "mtp_heads.*")
    assert message.startswith("model.pt: --drop mtp_heads.* matches no tensor; the nearest name is")
    assert "no named tensors are left" in refused("inspect", "model.pt", "--drop", "*")
    assert "leave it out" in refused("inspect", "model.pt", "--weights", "ema")
    torch.save({"ema": {"w": torch.ones(3)}, "model": {"w": torch.zeros(3)}}, here / "two.pt")
    message = refused("inspect", "two.pt", "--weights", "emma")
    assert message.startswith("two.pt: there are no named tensors under 'emma'")
    assert "'ema'" in message


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing/out", "the folder {here}/missing does not exist; nothing was written"),
        ("model.pt/out", "{here}/model.pt is a file, not a folder; nothing was written"),
        ("/proc/out", "writing there is not allowed; nothing was written"),
        ("x" * 300, "the name is too long; nothing was written"),
        ("pipe", "pipe is a device or a pipe, which is not replaced; name a file"),
    ],
)
def test_outputs_that_cannot_be_written(
    refused: Refused, here: Path, place: str, said: str
) -> None:
    if place.startswith("/proc") and not Path("/proc/self").is_dir():
        pytest.skip("no folder here refuses root")
    os.mkfifo(here / "pipe")
    commands: tuple[tuple[object, ...], ...] = (
        ("measure", "model.pt", "-o", place),
        ("plan", "candidates.json", "--cap", CAP, "-o", place),
        ("pack", "model.pt", "--plan", "plan.json", "-o", place),
    )
    for command in commands:
        message = refused(*command)
        assert message.startswith(place) and said.format(here=here) in message


@pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.pt.zip"])
def test_unpack_writes_two_kinds_of_file(refused: Refused, name: str) -> None:
    message = refused("unpack", "model.pack", "-o", name)
    assert message == f"{name}: weights are written as .safetensors or .pt; name such a file"


def test_pictures_have_known_endings(refused: Refused) -> None:
    message = refused("report", "plan.json", "--plot", "bytes.bmp")
    assert message.startswith("bytes.bmp: pictures are written as .png, .svg")


def test_an_output_is_never_one_of_the_inputs(refused: Refused, here: Path) -> None:
    (here / "link").symlink_to("model.pt")
    (here / "config.json").write_text('{"a": 1}')
    (here / "shards").mkdir()
    shutil.copy(here / "model.pt", here / "shards" / "model.safetensors")
    pack = ("pack", "model.pt", "--cap", CAP)
    commands: tuple[tuple[object, ...], ...] = (
        ("measure", "model.pt", "-o", "./model.pt"),
        ("measure", "model.pt", "-o", "link"),
        ("measure", "model.pt", "--config", "config.json", "-o", "config.json"),
        ("measure", "shards", "-o", "shards/model.safetensors"),
        ("plan", "candidates.json", "--cap", CAP, "-o", "candidates.json"),
        ("plan", "model.pt", "--cap", CAP, "--code", "link", "-o", "model.pt"),
        ("pack", "model.pt", "--plan", "plan.json", "-o", "plan.json"),
        ("pack", "model.pt", "--plan", "plan.json", "-o", "out", "--loader", "model.pt"),
        (*pack, "--policy", "plan.json", "-o", "plan.json"),
        (*pack, "--config", "config.json", "-o", "config.json"),
        (*pack, "--code", "config.json", "-o", "out", "--loader", "config.json"),
        ("unpack", "model.pack", "-o", "model.pack"),
        ("report", "plan.json", "--plot", "plan.json"),
    )
    for command in commands:
        assert "is an input; name another file to write" in refused(*command, code=2)
    message = refused(*pack, "-o", "out", "--loader", "./out", code=2)
    assert message == "./out cannot be both the artifact and its loader"


WRONG_USAGE: tuple[tuple[tuple[object, ...], str], ...] = (
    (("pack", "model.pt", "-o", "out"), "give --plan, or --cap to plan for"),
    (("pack", "model.pt", "--policy", "plan.json", "-o", "out"), "give --plan, or --cap"),
    (("pack", "model.pt", "--cap", CAP), "Missing option '-o'"),
    (
        ("pack", "model.pt", "--plan", "plan.json", "--cap", CAP, "-o", "out"),
        "--plan carries its own cap",
    ),
    (
        ("pack", "model.pt", "--plan", "plan.json", "--pin", "embeddings=fp16", "-o", "out"),
        "--plan carries its own cap",
    ),
    (
        ("pack", "model.pt", "--policy", "plan.json", "--cap", CAP, "--pin", "a=b", "-o", "out"),
        "--policy carries its own choices",
    ),
    (("plan", "model.pt"), "Missing option '--cap'"),
    (("plan", "missing.pt", "--cap", CAP), "'missing.pt' does not exist"),
    (("plan", "model.pt", "--cap", CAP, "--code", "missing.py"), "'missing.py' does not exist"),
    (("plan", "model.pt", "--cap", CAP, "--code", "."), "is a directory"),
    (("plan", "model.pt", "--cap", CAP, "-o", "."), "is a directory"),
    (("plan", "plan.json", "--cap", CAP, "--drop", "x"), "need the checkpoint as SOURCE"),
    (("verify", "model.pack", "--plan", "plan.json"), "--plan needs the checkpoint as well"),
    (("report", "model.pack", "--explain", "step"), "--explain needs a plan"),
    (("diff", "plan.json"), "Missing argument 'AFTER'"),
    (("frobnicate",), "No such command 'frobnicate'"),
)


@pytest.mark.parametrize(("arguments", "said"), WRONG_USAGE, ids=lambda value: str(value)[:40])
def test_wrong_usage(refused: Refused, arguments: tuple[object, ...], said: str) -> None:
    assert said in refused(*arguments, code=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no settings"),
        (b"{}", "holds no settings"),
        (b"[1, 2]", "holds no settings"),
        (b"layers: 2", "is neither JSON nor TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"when = 1979-05-27", "cannot be written as JSON"),
        (b'{"scale": NaN}', "cannot be written as JSON"),
        (b"scale = inf", "cannot be written as JSON"),
    ],
)
def test_configurations_that_are_none(
    refused: Refused, here: Path, content: bytes, said: str
) -> None:
    (here / "config").write_bytes(content)
    arguments = ("pack", "model.pt", "--cap", CAP, "--config", "config", "-o", "out")
    message = refused(*arguments, code=2)
    assert "config " in message and said in message


def test_a_plan_for_other_contents(refused: Refused, here: Path, weights: Any) -> None:
    changed = {**weights, "step": torch.tensor(8)}
    torch.save(changed, here / "later.pt")
    message = refused("pack", "later.pt", "--plan", "plan.json", "-o", "out")
    assert message.startswith("the plan was made for ") and "later.pt has contents" in message
    assert "--policy and --cap" in message


def test_a_policy_for_another_structure(refused: Refused, here: Path) -> None:
    torch.save({"tok_emb.weight": torch.ones(4, 5)}, here / "other.pt")
    arguments = ("pack", "other.pt", "--policy", "plan.json", "--cap", CAP, "-o", "out")
    assert "structure" in refused(*arguments) or "no choice" in refused(*arguments)


def test_a_plan_that_counts_no_loader(refused: Refused) -> None:
    arguments = ("pack", "model.pt", "--plan", "plan.json", "-o", "out", "--loader", "l.py")
    message = refused(*arguments)
    assert message.startswith("the plan counts 0 bytes of loader, and the loader has ")


def test_reports_of_what_has_its_own_cap(refused: Refused) -> None:
    for source in ("plan.json", "model.pack"):
        for option in (("--cap", "1MB"), ("--code", "plan.json"), ("--drop", "x")):
            message = refused("report", source, *option)
            assert message.startswith(f"{source} was made for its own cap, code and weights")


def test_explaining_a_tensor_that_is_not_there(refused: Refused) -> None:
    message = refused("report", "plan.json", "--explain", "tok_emb")
    assert message == "the plan has no tensor 'tok_emb'; the nearest is 'tok_emb.weight'"


def test_a_file_of_another_kind_where_a_plan_belongs(refused: Refused, here: Path) -> None:
    (here / "list.json").write_text("[1]")
    (here / "other.json").write_text('{"layers": 2}')
    for name, said in {
        "model.pt": "is not a JSON file",
        "list.json": "holds a list where an object belongs",
        "other.json": "expected 'bytecap plan'",
        "candidates.json": "expected 'bytecap plan'",
    }.items():
        message = refused("pack", "model.pt", "--plan", name, "-o", "out")
        assert message.startswith(name) and said in message
    assert "is a directory" in refused("pack", "model.pt", "--plan", ".", "-o", "out", code=2)


def test_memory_that_unpacking_may_not_take(refused: Refused, weights: Any) -> None:
    whole = sum(weight.nbytes for name, weight in weights.items() if name != "lm_head.weight")
    arguments = ("unpack", "model.pack", "-o", "out.pt", "--max-memory", whole - 1)
    message = refused(*arguments)
    assert f"{whole} bytes and {whole - 1} are allowed" in message.replace(",", "")


def test_dtypes_that_safetensors_lacks(refused: Refused, run: Run, here: Path) -> None:
    torch.save({"wave": torch.ones(3, dtype=torch.complex128)}, here / "wave.pt")
    assert run("pack", "wave.pt", "--cap", CAP, "-o", "wave.pack").exit_code == 0
    message = refused("unpack", "wave.pack", "-o", "out.safetensors")
    assert message == (
        "out.safetensors: safetensors has no complex128, the dtype of wave; name a .pt file instead"
    )
    assert run("unpack", "wave.pack", "-o", "out.pt").exit_code == 0


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A file system of 8 KB inside the working folder, where mounting is permitted."""
    disk = here / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


WRITERS: tuple[tuple[object, ...], ...] = (
    ("measure", "model.pt", "-o", "out.json"),
    ("plan", "candidates.json", "--cap", CAP, "-o", "out.json"),
    ("pack", "model.pt", "--plan", "plan.json", "-o", "out.pack"),
    ("unpack", "model.pack", "-o", "out.pt"),
    ("unpack", "model.pack", "-o", "out.safetensors"),
    ("report", "plan.json", "--plot", "out.png"),
)


def test_a_small_disk_that_fills(refused: Refused, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4096))
    for *command, output in WRITERS:
        message = refused(*command, f"disk/{output}")
        assert message == (
            f"disk/{output}: the disk is full; nothing was written. Free some space or name "
            "another folder."
        )


@pytest.mark.parametrize("command", WRITERS, ids=lambda command: f"{command[0]} {command[-1]}")
def test_a_disk_that_is_full_at_the_last_moment(
    refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (here / str(command[-1])).write_bytes(b"what stood there")
    monkeypatch.setattr(os, "fsync", full)
    message = refused(*command)
    assert message.startswith(f"{command[-1]}: the disk is full; what stood there is untouched")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, of long lists the first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


def changed(plan: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """A copy of the plan with another value in one place; `...` takes the place away."""
    copied = copy.deepcopy(plan)
    at: Any = copied
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return copied


WRONG: tuple[object, ...] = (..., None, [], {}, "x", -1, 1.5, [None], float("nan"))


def test_plans_damaged_in_any_one_place(run: Run, here: Path) -> None:
    """Refused in one paragraph, or harmless."""
    plan = json.loads((here / "plan.json").read_text())
    generator = random.Random(0)
    refusals = 0
    for path in list(places(plan))[1:]:
        for value in generator.sample(WRONG, 3):
            (here / "bad.json").write_text(json.dumps(changed(plan, path, value)))
            for command in (("report", "bad.json"), ("plan", "bad.json", "--cap", CAP)):
                result = run(*command)
                assert result.exit_code in (0, 1), (path, value)
                refusals += result.exit_code
                if result.exit_code:
                    message = result.stderr.strip()
                    assert message.startswith("Error: ") and len(message.splitlines()) == 1
    assert refusals > 50


DAMAGE: tuple[tuple[tuple[Any, ...], object, str], ...] = (
    (("kind",), "plan", "is 'plan'; expected 'bytecap plan'"),
    (("version",), 2, "version 2"),
    (("choices",), ..., "is damaged: KeyError('choices')"),
    (("choices", 0), ..., "without a choice ['blocks.0.attn.c_k.weight']"),
    (("choices", 0, 0), "stranger", "not in the checkpoint ['stranger']"),
    (("choices", 0, 1), "int9.row", "is to be 'int9.row', which was not measured"),
    (("choices", 0), ["only a name"], "is damaged"),
    (("measurement", "tensors", 0), ..., "not in the checkpoint ['blocks.0.attn.c_k.weight']"),
    (("measurement", "tensors", 0, "role"), "chief", "is damaged"),
    (("measurement", "tensors", 0, "candidates", 0), ["fp16"], "is damaged"),
    (("measurement",), ..., "is damaged: KeyError('measurement')"),
    (("pins",), [], "is damaged"),
)


@pytest.mark.parametrize(("path", "value", "said"), DAMAGE, ids=lambda value: str(value)[:40])
def test_plans_damaged_in_known_places(
    refused: Refused, here: Path, path: tuple[Any, ...], value: object, said: str
) -> None:
    plan = json.loads((here / "plan.json").read_text())
    (here / "bad.json").write_text(json.dumps(changed(plan, path, value)))
    message = refused("pack", "model.pt", "--plan", "bad.json", "-o", "out.pack")
    assert message.startswith("bad.json") and said in message


def test_a_plan_whose_choice_cannot_be_read(refused: Refused, here: Path) -> None:
    """A choice that this version does not know, in the plan and among its candidates."""
    text = (here / "plan.json").read_text()
    choice = json.loads(text)["choices"][0][1]
    (here / "bad.json").write_text(text.replace(f'"{choice}"', '"int6.column"'))
    message = refused("pack", "model.pt", "--plan", "bad.json", "-o", "out.pack")
    assert message.startswith("blocks.0.attn.c_k.weight: unknown format 'int6.column'")


def test_a_name_that_is_no_text_is_refused(refused: Refused, here: Path) -> None:
    torch.save({"w\ud800": torch.ones(3)}, here / "odd.pt")
    assert "is not valid text" in refused("plan", "odd.pt", "--cap", "10000")


@pytest.mark.parametrize("ties", [{}, {"lm_head.weight": "nothing"}, {"other": "tok_emb.weight"}])
def test_a_plan_with_edited_ties_is_refused(
    refused: Refused, here: Path, ties: dict[str, str]
) -> None:
    plan = json.loads((here / "plan.json").read_text())
    plan["measurement"]["ties"] = ties
    (here / "bad.json").write_text(json.dumps(plan))
    message = refused("pack", "model.pt", "--plan", "bad.json", "-o", "out.pack")
    assert "describes other tensors" in message
