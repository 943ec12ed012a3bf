"""Where a run's settings come from, and what every preset holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packer.train.config import ConfigError
from packer.train.presets import PRESETS
from packer.train.run_config import read_run, run_from, run_settings

# Every value of the systems to reproduce, and of the baseline; test_presets.py has the lines of
# their scripts. One table, so that a changed number is seen.
CONTEST_MODEL = {
    "vocab_size": 1024,
    "num_layers": 11,
    "model_dim": 512,
    "num_heads": 8,
    "num_kv_heads": 4,
    "mlp_mult": 3.0,
    "activation": "relu_squared",
    "tie_embeddings": True,
    "logit_softcap": 30.0,
    "rope_base": 10_000.0,
    "rope_dims": 0,
    "rope_train_length": 1024,
    "xsa_last_n": 0,
    "ln_scale": False,
    "smear_gate": True,
    "bigram_vocab_size": 2048,
    "bigram_dim": 128,
    "value_embedding_dim": 0,
    "value_embedding_layers": (),
    "u_net_skips": True,
    "qk_norm": True,
    "q_gain_init": 1.5,
    "resid_mix": True,
    "output_scales": True,
    "value_residual": False,
    "backout": False,
    "orthogonal_init": True,
    "embedding_init_std": 0.005,
    "resid_mix_phase": False,
    "value_residual_init": -1.5,
    "memory_tokens": 0,
    "scaled_projections": True,
}
INT8 = "int8.row+quantile@0.9999984"
QAT_INT6 = "int6.row+quantile@0.9995"
INT5MLP = {
    "blocks.*.attn.*.weight": "int6.row",
    "blocks.*.mlp.*.weight": "int5.row",
    "tok_emb.weight": "fp16",
    "late-k": "fp16",
}
CONTEST = {
    "model": CONTEST_MODEL,
    "data": {"folder": "", "train": (), "valid": (), "tokenizer": ""},
    "batch": {"sequence": 2048, "tokens": 786_432, "micro_tokens": 98_304, "order": "sequential"},
    "optimizer": {
        "matrix_lr": 0.025,
        "matrix_weight_decay": 0.04,
        "momentum": 0.99,
        "momentum_start": 0.92,
        "momentum_warmup": 1500,
        "newton_schulz_steps": 5,
        "embedding_lr": 0.035,
        "head_lr": 0.008,
        "scalar_lr": 0.025,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.04,
        "grad_clip": 0.3,
    },
    "schedule": {
        "iterations": 20_000,
        "max_wallclock": 600.0,
        "calibration_reserve": 0.0,
        "lr_warmup": 0,
        "warmdown": 3500,
        "warmdown_floor": 0.0,
        "priming_steps": 20,
    },
    "averaging": {"ema_decay": 0.997, "swa_every": 50, "swa_below": 0.2},
    "qat": {
        "mode": "off",
        "formats": {},
        "plan": "",
        "late_below": 0.15,
        "anneal": 0,
        "hold": 0,
    },
    "pack": {
        "cap": 16_000_000,
        "code": (),
        "formats": {},
        "size_cap": 0,
        "calibration_tokens": 32_768,
        "int5_mlp": False,
        "prune_codes": 0.0,
    },
    "run": {
        "seed": 1337,
        "precision": "auto",
        "compile": "auto",
        "log_every": 10,
        "eval_every": 1000,
        "save_every": 0,
        "save_seconds": 60.0,
        "eval_tokens": 65_536,
        "final_eval_tokens": 0,
        "stride": 64,
        "size_share": 0.01,
    },
}
DIFFERENCES = {
    "baseline-9l": {
        "model": {
            "num_layers": 9,
            "mlp_mult": 2.0,
            "smear_gate": False,
            "bigram_vocab_size": 0,
            "orthogonal_init": False,
            "scaled_projections": False,
        },
        "batch": {"sequence": 1024, "tokens": 524_288, "micro_tokens": 0},
        "optimizer": {
            "matrix_lr": 0.04,
            "matrix_weight_decay": 0.0,
            "momentum": 0.95,
            "momentum_start": 0.85,
            "momentum_warmup": 500,
            "embedding_lr": 0.05,
            "scalar_lr": 0.04,
            "weight_decay": 0.0,
            "grad_clip": 0.0,
        },
        "schedule": {"warmdown": 1200, "priming_steps": 0},
        "averaging": {"ema_decay": 0.0, "swa_every": 0},
        "qat": {"formats": {"blocks.*.weight": "int8.row", "embeddings": "int8.row"}},
        "run": {"stride": 0},
    },
    "11l-backout-int6": {
        "model": {"bigram_vocab_size": 4096, "backout": True},
        "schedule": {"iterations": 9000, "warmdown": 3000},
        "averaging": {"ema_decay": 0.0, "swa_every": 200, "swa_below": 0.5},
        "pack": {
            "formats": {
                "blocks.*.weight": "int6.row",
                "tok_emb.weight": INT8,
                "bigram.embed.weight": INT8,
                "bigram.proj.weight": "fp16",
            },
        },
    },
    "11l-xsa4-ema-int5mlp": {
        "model": {
            "rope_base": 500_000.0,
            "rope_train_length": 0,
            "bigram_dim": 64,
            "xsa_last_n": 4,
        },
        "batch": {"tokens": 524_288, "micro_tokens": 65_536},
        "optimizer": {
            "matrix_lr": 0.02,
            "momentum": 0.95,
            "momentum_start": 0.85,
            "momentum_warmup": 500,
            "embedding_lr": 0.03,
            "scalar_lr": 0.02,
            "weight_decay": 0.0,
            "grad_clip": 0.0,
        },
        "schedule": {"warmdown": 2000, "warmdown_floor": 0.1},
        "averaging": {"swa_every": 0},
        "qat": {"mode": "on", "formats": INT5MLP},
        "pack": {
            "formats": {**INT5MLP, "bigram.*.weight": "fp32", "bigram.embed.weight": INT8},
        },
    },
    "11l-vrl-leaky-gptq": {
        "model": {
            "activation": "leaky_relu_squared",
            "rope_dims": 16,
            "xsa_last_n": 11,
            "ln_scale": True,
            "value_residual": True,
            "value_residual_init": 0.0,
            "resid_mix_phase": True,
            "value_embedding_dim": 128,
            "value_embedding_layers": (9, 10),
        },
        "schedule": {"calibration_reserve": 14.0},
        "qat": {
            "mode": "late",
            "formats": {
                "blocks.*.weight": QAT_INT6,
                "bigram.proj.weight": QAT_INT6,
                "ve_shared.proj.weight": QAT_INT6,
            },
        },
        "pack": {
            "formats": {
                "blocks.*.weight": "int6.row+percentile-rounded+gptq",
                "bigram.embed.weight": "int6.row+percentile-matrix",
                "ve_shared.embed.weight": "int6.row+percentile-matrix",
                "bigram.proj.weight": "fp16",
                "ve_shared.proj.weight": "fp16",
                "tok_emb.weight": INT8,
            },
            "prune_codes": 0.02,
            "calibration_tokens": 25_165_824,
        },
        "run": {"seed": 42, "eval_every": 500},
    },
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_value_of_a_contest_preset(name: str) -> None:
    expected = {
        section: {**values, **DIFFERENCES[name].get(section, {})}
        for section, values in CONTEST.items()
    }
    assert run_from(expected, name) == PRESETS[name]
    found = run_settings(PRESETS[name])
    for section, values in expected.items():
        assert set(found[section]) == set(values), "a setting that this table does not have"


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_settings(PRESETS[name])), "utf-8")
    assert read_run(str(path)) == PRESETS[name] == read_run(name)


def test_a_file_starts_from_a_preset_and_changes_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'preset = "11l-backout-int6"\n[schedule]\nwarmdown = 7\niterations = 9\n'
        '[qat]\nmode = "on"\nformats = { "blocks.*" = "int5.row" }\n',
        "utf-8",
    )
    made = read_run(
        str(path), ["iterations=11", "model.num_layers=3", "matrix_lr=1", "order=coprime"]
    )
    assert (made.schedule.warmdown, made.schedule.iterations) == (7, 11)
    assert (made.model.num_layers, made.model.backout) == (3, True)
    assert made.optimizer.matrix_lr == 1.0 and isinstance(made.optimizer.matrix_lr, float)
    assert made.qat.formats == {"blocks.*": "int5.row"}
    assert made.batch.order == "coprime"


def test_a_model_alone_is_a_plain_model_with_the_default_training(shared: Path) -> None:
    made = read_run(str(shared / "checkpoints" / "ref6x256.config.json"), ["iterations=5"])
    assert made.model == PRESETS["small-6l"].model
    assert made.optimizer == PRESETS["demo"].optimizer
    assert made.schedule.iterations == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("iteration=5", "no setting 'iteration'; the nearest is 'iterations'"),
        ("shedule.iterations=5", "no section 'shedule'; nearest is 'schedule'"),
        ("schedule.iterations=many", "iterations = 'many' should be of type int"),
        ("iterations", "write KEY=VALUE"),
        ("iterations=0", r"\[schedule\] iterations = 0 cannot be: it must be at least 1"),
        ("formats=5", "say which: qat.formats or pack.formats"),
        ("beta2=1.5", r"beta2 = 1.5 cannot be: it must be in \[0, 1\)"),
        ("matrix_lr=nan", "matrix_lr = nan cannot be"),
        ("batch.tokens=1000", "tokens = 1000 cannot be: it must be a multiple of sequence = 256"),
        ("model.num_heads=7", "num_heads = 7 cannot be"),
        ("qat.mode=sometimes", "off or on or late"),
    ],
)
def test_a_wrong_change_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run("small-6l", [change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[shedule]\nwarmdown = 1", r"no section \[shedule\]; the nearest is \[schedule\]"),
        ("[schedule]\nwarm_down = 1", r"\[schedule\]: there is no setting 'warm_down'.*'warmdown'"),
        ("schedule = 5", "schedule must be a section"),
        ('preset = "nine"', "preset = 'nine' is none of demo, small-6l"),
        ("[schedule", "neither JSON nor TOML"),
        ('[qat]\nmode = "on"', r"\[qat\] mode = 'on' cannot be: it must be off unless"),
        ("[qat]\nformats = { a = 5 }", "formats = {'a': 5} should be of type"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "small-6l"\n' * ("preset" not in text) + text, "utf-8")
    if "mode" in text:
        path.write_text('[qat]\nformats = {}\nmode = "on"', "utf-8")
    with pytest.raises(ConfigError, match=message):
        read_run(str(path))


def test_neither_a_preset_nor_a_file() -> None:
    with pytest.raises(ConfigError, match="the nearest is 'baseline-9l'"):
        read_run("baseline-9")
