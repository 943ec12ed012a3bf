"""Folders of Hugging Face models through the commands: scored, planned, packed, and refused."""

from __future__ import annotations

import json
import math
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

Folder = Callable[[str], Path]
Run = Callable[..., Result]
EVERY = ("llama", "qwen2", "qwen3", "gpt2", "gpt-neox", "mistral", "gemma", "mixtral", "qwen2-moe")
WINDOW = 32


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def copied(model_folder: Folder, tmp_path: Path) -> Callable[..., Path]:
    """A folder of one's own, with other settings in its config.json."""

    def copy(name: str = "llama", **settings: object) -> Path:
        target = tmp_path / "mine"
        shutil.copytree(model_folder(name), target)
        file = target / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        return target

    return copy


@pytest.mark.parametrize("name", EVERY)
def test_a_folder_is_scored_as_transformers_computes_it(
    name: str, model_folder: Folder, text: Path, run: Run
) -> None:
    folder = model_folder(name)
    done = run("eval", folder, "--data", text, "--window", WINDOW, "--tokens", 320, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["scores"][0]
    assert found["nats"] == pytest.approx(nats_by_transformers(folder, text, 320), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"] / 320))


def nats_by_transformers(folder: Path, text: Path, count: int) -> float:
    """Of the first tokens of a text in windows of `WINDOW`, by the library alone."""
    import tokenizers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = torch.tensor([0, *tokenizer.encode(text.read_text("utf-8")).ids])[: count + 1]
    total = 0.0
    for start in range(0, count, WINDOW):
        window = tokens[start : start + WINDOW + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return total


def test_bytes_of_all_tokens_are_those_of_the_text(
    model_folder: Folder, text: Path, run: Run
) -> None:
    done = run("eval", model_folder("llama"), "--data", text, "--window", WINDOW, "--json")
    found = json.loads(done.stdout)
    assert found["scores"][0]["bytes"] == found["text_bytes"] == len(text.read_bytes())
    table = run("eval", model_folder("llama"), "--data", text, "--window", WINDOW)
    assert "perplexity" in table.stdout


def test_text_calibrates_plans_packs_and_compares(
    model_folder: Folder, text: Path, run: Run, tmp_path: Path
) -> None:
    folder = model_folder("qwen2")
    options = ("--calibration", text, "--calibration-tokens", 512, "--calibration-window", WINDOW)
    plan = run("plan", folder, "--cap", 60_000, *options, "-o", "plan.json")
    assert plan.exit_code == 0, plan.output
    curvature = ("--curvature", "plan.curvature.safetensors")
    packed = run("pack", folder, "--plan", "plan.json", *curvature, "-o", "m.pack")
    assert packed.exit_code == 0, packed.output
    assert (tmp_path / "m.pack").stat().st_size <= 60_000
    scored = run("eval", folder, "m.pack", "--data", text, "--window", WINDOW, "--json")
    assert scored.exit_code == 0, scored.output
    kl = json.loads(scored.stdout)["scores"][1]["kl_bits_per_byte"]
    assert 0 < kl < 0.2
    few = ("--calibration-tokens", 64, "--calibration-window", WINDOW)
    data = ("--data", text, "--tokens", 64, "--window", WINDOW)
    options = ("--calibration", text, *few, *data, "--json")
    compared = run("compare", folder, "--cap", 60_000, *options)
    assert compared.exit_code == 0, compared.output


def test_text_by_the_model_itself_is_calibrated_on(model_folder: Folder, run: Run) -> None:
    options = ("--self-generate", 256, "--window", WINDOW)
    done = run("calibrate", model_folder("llama"), *options, "-o", "c.safetensors", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tokens"] == 256


def test_a_sample_is_written(model_folder: Folder, text: Path, run: Run) -> None:
    options = ("--data", text, "--window", WINDOW, "--tokens", 64, "--sample", "The cat")
    done = run("eval", model_folder("gpt2"), *options)
    assert done.exit_code == 0 and "The cat" in done.stdout


def test_shards_are_read_as_one_file(
    copied: Callable[..., Path], text: Path, run: Run, model_folder: Folder
) -> None:
    folder = copied("mixtral")
    in_shards(folder)
    options = ("--data", text, "--window", WINDOW, "--tokens", 64, "--json")
    done = run("eval", model_folder("mixtral"), folder, *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["scores"][1]["kl_bits_per_byte"] == 0


def in_shards(folder: Path, first: str = "model-00001-of-00002.safetensors") -> None:
    """The model of a folder in two files and an index; `first` is what the index calls one."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {first: names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        if Path(file).name == file:
            save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_files_of_training_are_no_weights(copied: Callable[..., Path], run: Run) -> None:
    folder = copied()
    save_file({"exp_avg": torch.ones(9)}, folder / "optimizer.safetensors")
    done = run("inspect", folder)
    assert "exp_avg" not in done.stdout and "passed over: optimizer.safetensors" in done.stderr


def refused(run: Run, folder: Path, text: Path, *more: object) -> str:
    options = more or ("--window", WINDOW)
    done = run("eval", folder, "--data", text, *options)
    assert done.exit_code == 1, done.output
    return done.stderr


def test_shapes_that_are_not_the_weights_are_refused(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    folder = copied(intermediate_size=96)
    said = refused(run, folder, text)
    assert "config.json, 6 differences" in said and "(64, 32), the model has (96, 32)" in said


def planned(run: Run, folder: Path, *more: object) -> Result:
    options = ("--no-calibration", *more)
    return run("plan", folder, "--cap", 90_000, "-o", "plan.json", *options)


@pytest.mark.parametrize("name", EVERY)
def test_a_plan_without_text_compares_shapes(
    name: str, copied: Callable[..., Path], run: Run
) -> None:
    done = planned(run, copied(name))
    assert done.exit_code == 0 and "shapes" not in done.stderr, done.output


SIZES_OF = {
    "llama": {"intermediate_size": 96},
    "gpt2": {"n_embd": 48},
    "gpt-neox": {"vocab_size": 299},
    "mixtral": {"hidden_size": 64},
    "qwen2-moe": {"num_attention_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("name", SIZES_OF)
def test_a_plan_without_text_refuses_other_shapes(
    name: str, copied: Callable[..., Path], run: Run
) -> None:
    folder = copied(name, **SIZES_OF[name])
    for command in (["plan", folder], ["pack", folder, "-o", "m.pack"], ["measure", folder]):
        cap = () if command[0] == "measure" else ("--cap", 90_000)
        done = run(*command, *cap)
        assert done.exit_code == 1 and "is not the model of" in done.stderr, done.output
        assert "mine/config.json" in done.stderr and ", the model has (" in done.stderr
    assert not Path("m.pack").exists()


def test_a_plan_without_text_refuses_other_layers(copied: Callable[..., Path], run: Run) -> None:
    folder = copied(num_hidden_layers=3)
    done = planned(run, folder)
    assert done.exit_code == 1 and "missing: model.layers.2" in done.stderr
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1}))
    done = planned(run, folder)
    assert done.exit_code == 1 and "not in the model: model.layers.1" in done.stderr
    other = {**json.loads((folder / "config.json").read_text()), "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps({**other, "architectures": None}))
    assert planned(run, folder).exit_code == 1


def test_a_part_of_a_model_is_planned(copied: Callable[..., Path], run: Run) -> None:
    done = planned(run, copied(), "--drop", "*.mlp.*")
    assert done.exit_code == 0, done.output


def test_what_is_no_causal_model_is_planned_all_the_same(
    copied: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(model_type="t5")
    assert "builds no causal language model" in planned(run, folder).stderr
    settings = json.loads((folder / "config.json").read_text())
    pooled = {**settings, "model_type": "llama", "architectures": ["LlamaModel"]}
    (folder / "config.json").write_text(json.dumps({**pooled, "num_hidden_layers": 3}))
    done = planned(run, folder)
    assert done.exit_code == 0 and "LlamaModel, no causal language model" in done.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = planned(run, folder)
    assert done.exit_code == 0 and "pip install 'bytecap[hf]'" in done.stderr


def test_layers_that_are_not_in_the_file_are_refused(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    said = refused(run, copied("mixtral", num_hidden_layers=3), text)
    assert "missing: model.layers.2" in said and "mine/config.json" in said


def test_an_untied_head_that_is_not_there_is_refused(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    said = refused(run, copied(tie_word_embeddings=False), text)
    assert "missing: lm_head.weight" in said


def test_code_of_a_folder_is_never_run(copied: Callable[..., Path], run: Run, text: Path) -> None:
    folder = copied(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('was run')")
    said = refused(run, folder, text)
    assert "modeling_mine.Mine" in said and "never run" in said
    assert "never run" in planned(run, folder).stderr


def test_codes_of_a_quantized_folder_are_refused(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    said = refused(run, copied(quantization_config={"quant_method": "gptq", "bits": 4}), text)
    assert "quantized already (gptq)" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "llamma"}, "has no model 'llamma'"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "t5"}, "builds no causal language model"),
        ({"hidden_size": "wide"}, "mine/config.json: transformers"),
    ],
)
def test_a_configuration_of_no_model_is_refused(
    settings: dict[str, Any], words: str, copied: Callable[..., Path], run: Run, text: Path
) -> None:
    assert words in refused(run, copied(**settings), text)


def test_a_window_beyond_the_models_is_refused(model_folder: Folder, run: Run, text: Path) -> None:
    for command, data in (("eval", "--data"), ("calibrate", "--data"), ("plan", "--calibration")):
        window = "--calibration-window" if command == "plan" else "--window"
        cap = ("--cap", 60_000) if command == "plan" else ()
        done = run(command, model_folder("gpt2"), data, text, window, 65, *cap)
        assert done.exit_code == 1
        assert "a window of 65 tokens is longer than the 64" in done.stderr


def test_tokens_beyond_the_vocabulary_are_refused(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    folder = copied()
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:128].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": 128}))
    said = refused(run, folder, text)
    assert "a vocabulary of 128 and the tokenizer one of 300" in said and "a token 2" in said


def test_an_index_names_only_files_of_its_folder(
    copied: Callable[..., Path], run: Run, text: Path
) -> None:
    folder = copied()
    in_shards(folder, "../model.safetensors")
    said = refused(run, folder, text)
    assert "'../model.safetensors', which is not a *.safetensors file of this folder" in said


def test_a_missing_shard_is_named(copied: Callable[..., Path], run: Run, text: Path) -> None:
    folder = copied()
    in_shards(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors, 1 of 2" in refused(run, folder, text)


def test_without_the_library_its_extra_is_named(
    model_folder: Folder, run: Run, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = refused(run, model_folder("llama"), text)
    assert "pip install 'bytecap[hf]'" in said and "config.json" in said
