"""GGUF to a folder for `from_pretrained`: the same logits and tokens, and refusals in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

Folder = Callable[[str], Path]
Run = Callable[..., Result]
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2"}


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter stores queries and keys of Llama."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape).contiguous()


def as_gguf(
    folder: Path, kind: str, path: Path, scaling: torch.Tensor | None = None, **changed: Any
) -> Path:
    """The model and tokenizer of a folder, by the names and keys that the library gguf knows."""
    settings = {**json.loads((folder / "config.json").read_text()), **changed}
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(settings["vocab_size"])
    add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[ARCHITECTURES[kind]], settings["num_hidden_layers"]
    )
    for name, weight in load_file(folder / "model.safetensors").items():
        rotary = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        heads = rotary.get(name.split(".")[-2])
        if heads and kind == "llama":
            weight = interleaved(weight, settings[heads])
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.numpy())
    if scaling is not None:
        writer.add_tensor("rope_freqs.weight", scaling.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: Any, folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = whole["model"]
    special = {token["content"] for token in whole["added_tokens"]}
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_folder_computes_what_the_original_does(
    kind: str, model_folder: Folder, run: Run, text: Path, tmp_path: Path
) -> None:
    original = model_folder(kind)
    path = as_gguf(original, kind, tmp_path / "m.gguf")
    tokenizer = ("--tokenizer", original / "tokenizer.json")
    alone = run("eval", path, "--data", text, "--window", 32, *tokenizer)
    assert alone.exit_code == 1 and f"packer unpack {path} -o FOLDER/" in alone.stderr
    done = run("unpack", path, "-o", "back/")
    assert done.exit_code == 0, done.output
    assert "splits its text, 'gpt-2', and does not hold it" in done.stderr
    assert "rotary embedding is scaled" not in done.stderr
    models = [transformers.AutoModelForCausalLM.from_pretrained(one) for one in (original, "back")]
    tokens = torch.tensor([[0, 40, 41, 42, 299]])
    with torch.no_grad():
        wanted, found = (model(tokens).logits for model in models)
    assert torch.allclose(wanted, found, atol=1e-5)
    sentence = text.read_text("utf-8") if kind == "llama" else "mat"  # Qwen splits text otherwise
    tokenizer = transformers.AutoTokenizer.from_pretrained("back")
    own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(original / "tokenizer.json"))
    assert tokenizer.encode(sentence, add_special_tokens=False) == own.encode(sentence)
    options = ("--data", text, "--window", 32, "--tokens", 64, "--json")
    scored = run("eval", original, "back", *options)
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["scores"][1]["kl_bits_per_byte"] < 1e-9


def test_settings_of_other_shapes_are_refused(
    model_folder: Folder, run: Run, tmp_path: Path
) -> None:
    path = as_gguf(model_folder("qwen2"), "qwen2", tmp_path / "m.gguf", intermediate_size=96)
    done = run("unpack", path, "-o", "back/")
    assert done.exit_code == 1 and "m.gguf's settings, 6 differences" in done.stderr
    assert "is (64, 32), the model has (96, 32)" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_a_scaled_rotary_embedding_is_warned_of(
    model_folder: Folder, run: Run, tmp_path: Path
) -> None:
    scaling = torch.tensor([1.0, 1.0, 4.0, 8.0])
    path = as_gguf(model_folder("llama"), "llama", tmp_path / "m.gguf", scaling)
    done = run("unpack", path, "-o", "back/")
    assert done.exit_code == 0
    assert "rotary embedding is scaled (none, rope_freqs.weight)" in done.stderr


def test_what_has_no_names_or_no_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    cases = {"mamba": "is of architecture 'mamba'", "smollm3": "reads no configuration"}
    for architecture, words in cases.items():
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        writer.add_tensor("token_embd.weight", torch.ones(4, 32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        done = run("unpack", "m.gguf", "-o", "back/")
        assert done.exit_code == 1 and words in done.stderr
        assert not Path("back").exists()


def test_without_the_library_its_extra_is_named(
    model_folder: Folder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_gguf(model_folder("llama"), "llama", tmp_path / "m.gguf")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    done = run("unpack", path, "-o", "back/")
    assert done.exit_code == 1 and "pip install 'bytecap[hf]'" in done.stderr
