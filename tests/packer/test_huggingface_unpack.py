"""Back as a folder: weights in their own dtype, and the files that an artifact carries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from packer import api
from packer.errors import PackerError
from packer.huggingface.files import carried_files, carried_metadata, without_files
from packer.planning.options import MeasureOptions

Folder = Callable[[str], Path]
Run = Callable[..., Result]
CAP = 400_000


def lossless(run: Run, folder: Path, output: str, *more: object) -> Result:
    kind = next(iter(load_file(folder / "model.safetensors").values())).dtype
    exact = "bf16" if kind == torch.bfloat16 else "fp32"
    options = ("--no-calibration", "--pin", f"*={exact}", *more)
    done = run("pack", folder, "--cap", CAP, *options, "-o", output)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_same_tokens_are_generated_after_a_lossless_pack(
    name: str, model_folder: Folder, run: Run
) -> None:
    folder = model_folder(name)
    lossless(run, folder, "m.pack", "--include", "*.json")
    done = run("unpack", "m.pack", "-o", "back/")
    assert done.exit_code == 0, done.output
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert Path("back", file).read_bytes() == (folder / file).read_bytes()
    assert generated(Path("back")) == generated(folder)


def generated(folder: Path) -> list[int]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[0, 40, 41, 42]])
    found: list[int] = model.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    return found


def test_weights_come_back_in_the_dtype_that_was_read(
    model_folder: Folder, run: Run, tmp_path: Path
) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    model.bfloat16().save_pretrained(tmp_path / "narrow")
    options = ("--no-calibration", "--include", "config.json")
    done = run("pack", "narrow", "--cap", 60_000, *options, "-o", "m.pack")
    assert done.exit_code == 0, done.output
    run("unpack", "m.pack", "-o", "back/")
    weights = load_file(tmp_path / "back" / "model.safetensors")
    assert {one.dtype for one in weights.values()} == {torch.bfloat16}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert loaded.dtype == torch.bfloat16


def test_an_artifact_alone_is_scored(model_folder: Folder, run: Run, text: Path) -> None:
    folder = model_folder("llama")
    lossless(run, folder, "m.pack", "--include", "*.json")
    options = ("--data", text, "--window", 32, "--tokens", 64, "--json")
    alone = json.loads(run("eval", "m.pack", *options).stdout)["scores"][0]
    beside = json.loads(run("eval", folder, *options).stdout)["scores"][0]
    assert (alone["nats"], alone["bytes"]) == (beside["nats"], beside["bytes"])


def test_a_configuration_is_lent_to_an_artifact_without(
    model_folder: Folder, run: Run, text: Path
) -> None:
    folder = model_folder("llama")
    lossless(run, folder, "m.pack")
    options = ("--data", text, "--window", 32, "--tokens", 64)
    done = run("eval", folder, "m.pack", *options)
    assert done.exit_code == 0 and "configuration is taken from" in done.stderr
    alone = run("eval", "m.pack", *options)
    assert alone.exit_code == 1 and "name its sentencepiece model or tokenizer.json" in alone.stderr


def test_files_are_counted_to_the_byte(model_folder: Folder, run: Run, tmp_path: Path) -> None:
    folder = model_folder("llama")
    lossless(run, folder, "without.pack")
    done = lossless(run, folder, "with.pack", "--include", "tokenizer.json", "--json")
    output = json.loads(done.stdout)
    sizes = [(tmp_path / name).stat().st_size for name in ("with.pack", "without.pack")]
    assert output["included"] == ["tokenizer.json"]
    assert output["included_bytes"] == sizes[0] - sizes[1] > 0
    said = lossless(run, folder, "again.pack", "--include", "tokenizer.json").stdout
    assert f"{output['included_bytes']:,} bytes of the header are for tokenizer.json" in said


def test_a_plan_carries_its_files(model_folder: Folder, run: Run) -> None:
    folder = model_folder("llama")
    options = ("--no-calibration", "--include", "config.json")
    run("plan", folder, "--cap", 60_000, *options, "-o", "plan.json")
    done = run("pack", folder, "--plan", "plan.json", "-o", "m.pack")
    assert done.exit_code == 0 and "are for config.json" in done.stdout
    twice = run("pack", folder, "--plan", "plan.json", "--include", "config.json", "-o", "m.pack")
    assert twice.exit_code == 2 and "give --include to packer plan" in twice.stderr


def test_files_of_any_bytes_come_back(run: Run, made: Path, tmp_path: Path) -> None:
    """Not text, empty, and with line feeds of every kind."""
    kinds = {"tokenizer.model": bytes(range(256)), "empty.txt": b"", "lines.txt": b"a\r\nb\rc\n"}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    options = [part for name in kinds for part in ("--include", name)]
    done = run("pack", made / "model.pt", "--cap", 30_000, *options, "-o", "m.pack")
    assert done.exit_code == 0, done.output
    done = run("unpack", "m.pack", "-o", "back/", "--json")
    assert json.loads(done.stdout)["files"] == ["model.safetensors", *sorted(kinds)]
    for name, data in kinds.items():
        assert (tmp_path / "back" / name).read_bytes() == data
    assert run("unpack", "m.pack", "-o", "one.safetensors").exit_code == 0
    assert b"tokenizer.model" not in (tmp_path / "one.safetensors").read_bytes()


def test_what_cannot_be_included_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    other = tmp_path / "other" / "config.json"
    other.parent.mkdir()
    other.write_text("{}")
    cases = {
        ("nothing.json",): "there is no such file",
        ("model.safetensors",): "model.safetensors: holds weights",
        ("config.json", str(other)): "another file called config.json",
    }
    for given, words in cases.items():
        with pytest.raises(PackerError, match=words):
            carried_metadata(given, folder)


def test_a_folder_with_files_is_left_alone(model_folder: Folder, run: Run, tmp_path: Path) -> None:
    lossless(run, model_folder("llama"), "m.pack")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    done = run("unpack", "m.pack", "-o", "full")
    assert done.exit_code == 1 and "not empty" in done.stderr
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "fresh").mkdir()
    done = run("unpack", "m.pack", "-o", "fresh")
    assert done.exit_code == 0 and "carries no config.json" in done.stderr
    assert not [one for one in tmp_path.iterdir() if one.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["../x.json", ".hidden", "a/b.json", "model.safetensors", ""])
def test_an_artifact_writes_only_plain_names(name: str, run: Run, made: Path) -> None:
    hostile = {f"file:{name}": "{}"}
    with pytest.raises(PackerError):
        carried_files(hostile)
    measured = api.measure(made / "model.pt", MeasureOptions(metadata=hostile))
    api.pack(made / "model.pt", api.plan(measured, 30_000), out="m.pack")
    done = run("unpack", "m.pack", "-o", "back/")
    assert done.exit_code == 1 and not Path("back").exists()


def test_other_metadata_stays() -> None:
    assert without_files({"file:a": "1", "bytes:b": "2", "config": "{}"}) == {"config": "{}"}
