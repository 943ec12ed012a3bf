"""Configurations from files and from weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packer.train.config import (
    ConfigError,
    config_from,
    infer_config,
    read_config,
    settings_of,
)
from packer.train.model import GPT, GPTConfig

CONFIG = GPTConfig(
    vocab_size=40,
    num_layers=4,
    model_dim=24,
    num_heads=3,
    num_kv_heads=1,
    mlp_mult=2.67,
    activation="leaky_relu_squared",
    rope_dims=4,
    xsa_last_n=1,
    smear_gate=True,
    bigram_vocab_size=16,
    bigram_dim=6,
    value_embedding_dim=5,
    value_embedding_layers=(1, 3),
    value_residual=True,
    backout=True,
    tie_embeddings=False,
)


def test_the_reference_configuration_as_it_stands(shared: Path) -> None:
    folder = shared / "checkpoints"
    settings = read_config(folder / "ref6x256.config.json")
    config = config_from(settings)
    assert (config.num_layers, config.model_dim, config.value_embedding_layers) == (6, 256, (4, 5))
    weights = torch.load(folder / "ref6x256.pt", weights_only=True)
    assert infer_config(weights).complete(settings) == config


def test_settings_survive_json_and_toml(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings_of(CONFIG)), encoding="utf-8")
    assert config_from(read_config(path)) == CONFIG
    path = tmp_path / "config.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings_of(CONFIG).items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert config_from(read_config(path)) == CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_embedding_dim": 0, "value_embedding_layers": ()},
        {"bigram_vocab_size": 0, "bigram_dim": 128},
        {"qk_norm": False},
        {"u_net_skips": False, "resid_mix": False, "output_scales": False},
        {"value_residual": False, "backout": False, "smear_gate": False, "tie_embeddings": True},
    ],
    ids=str,
)
def test_weights_tell_all_but_the_unknown(changes: dict[str, object]) -> None:
    config = replace(CONFIG, **changes)
    inferred = infer_config(GPT(config).state_dict())
    settings = settings_of(config)
    rest = {name: settings[name] for name in inferred.unknown}
    assert not inferred.known.keys() & rest.keys()
    found = inferred.complete(rest)
    assert found.mlp_dim == config.mlp_dim == 64
    assert replace(found, mlp_mult=config.mlp_mult) == config
    assert inferred.complete(settings) == config


def test_what_the_weights_do_not_tell_is_named() -> None:
    inferred = infer_config(GPT(CONFIG).state_dict())
    assert {"rope_dims", "xsa_last_n", "value_embedding_layers"} <= set(inferred.unknown)
    assert "num_heads" in infer_config(GPT(replace(CONFIG, qk_norm=False)).state_dict()).unknown
    with pytest.raises(ConfigError, match=r"rope_dims.*xsa_last_n.* cannot be inferred"):
        inferred.complete({"activation": "relu_squared"})


def test_a_configuration_of_another_checkpoint_is_refused() -> None:
    inferred = infer_config(GPT(CONFIG).state_dict())
    with pytest.raises(ConfigError, match="num_layers is 5 in the configuration but 4"):
        inferred.complete({**settings_of(CONFIG), "num_layers": 5})
    with pytest.raises(ConfigError, match="mlp_mult"):
        inferred.complete({**settings_of(CONFIG), "mlp_mult": 3.0})


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tok_emb\.weight.*starts with transformer\.wte"):
        infer_config({"transformer.wte.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"num_layer": 3}', "no setting 'num_layer'; the nearest is 'num_layers'"),
        ('{"num_layers": "3"}', "num_layers = '3' should be of type int"),
        ('{"num_layers": true}', "should be of type int"),
        ('{"value_embedding_layers": [1.5]}', "value_embedding_layers"),
        ("[1, 2]", "one object"),
        ("{", "neither JSON nor TOML"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_config(path)


def test_missing_files_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="lacks vocab_size, num_layers"):
        config_from({"model_dim": 32, "num_heads": 4, "num_kv_heads": 4})
    with pytest.raises(ConfigError, match="impossible: num_heads = 5"):
        config_from({**settings_of(CONFIG), "num_heads": 5})
