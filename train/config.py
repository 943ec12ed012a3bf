"""Reads a model's configuration from a file, or infers it from the names and shapes of its weights.

`read_config` reads JSON or TOML. `infer_config` recovers what it can from a state dict, and lists
the settings that leave no trace in the weights, such as how much of a head rotates, or on how many
layers XSA ran.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .model import GPTConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIELDS = {field.name: field for field in dataclasses.fields(GPTConfig)}
REQUIRED = tuple(n for n, field in FIELDS.items() if field.default is dataclasses.MISSING)

# Settings that change every logit but leave no trace in the weights. Initial values only matter to
# training.
NEVER_IN_WEIGHTS = (
    "activation",
    "logit_softcap",
    "rope_base",
    "rope_dims",
    "rope_train_length",
    "xsa_last_n",
    "ln_scale",
)


class ConfigError(ValueError):
    """A configuration that is incomplete, misspelt, or contradicts the weights."""


@dataclass(frozen=True)
class InferredConfig:
    """The settings that can be inferred from a state dict.

    Attributes:
        known: settings by name.
        unknown: names of settings that must come from elsewhere.
    """

    known: dict[str, Any]
    unknown: tuple[str, ...]

    def complete(self, settings: Mapping[str, Any]) -> GPTConfig:
        """The configuration, with the unknown settings from `settings` (a file, metadata).

        Raises ConfigError: settings that are missing, misspelt, or contradict the weights.
        """
        settings = checked(settings, "the configuration")
        missing = [name for name in self.unknown if name not in settings]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} cannot be inferred from the weights: set them in a "
                "configuration file (JSON or TOML)"
            )
        for name, inferred in self.known.items():
            setting = settings.get(name, inferred)
            if name == "mlp_mult":  # only its product with the width shows
                width = self.known["model_dim"]
                setting, inferred = int(setting * width), int(inferred * width)
            if setting != inferred:
                raise ConfigError(
                    f"{name} is {setting!r} in the configuration but {inferred!r} in the weights: "
                    "this configuration belongs to another checkpoint"
                )
        return config_from({**self.known, **settings})


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings from a JSON or TOML file (by its ending), names and types checked.

    Raises ConfigError: a file that cannot be read, an unknown key with the nearest valid one, or a
    value of the wrong type.
    """
    return checked(read_file(path), str(path))


def read_file(path: str | Path) -> dict[str, Any]:
    """The object in a JSON or TOML file (by its ending). Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is neither JSON nor TOML as its name says ({error})") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold one object of settings by name")
    return settings


def config_from(settings: Mapping[str, Any]) -> GPTConfig:
    """The configuration from complete settings; `settings_of` is its inverse.

    Raises ConfigError: a required setting is missing, one is misspelt, of the wrong type or
    impossible.
    """
    settings = checked(settings, "the configuration")
    missing = [name for name in REQUIRED if name not in settings]
    if missing:
        raise ConfigError(f"the configuration lacks {', '.join(missing)}")
    try:
        return GPTConfig(**settings)
    except ValueError as error:
        raise ConfigError(f"the configuration is impossible: {error}") from error


def settings_of(config: Any) -> dict[str, Any]:
    """All fields of a dataclass of settings by name, as JSON and TOML can hold them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def checked(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings whose names and types fit; lists become tuples, whole numbers floats as needed.

    Raises ConfigError: see `read_config`; `source` names where they came from.
    """
    return {name: check_setting(FIELDS, name, value, source) for name, value in settings.items()}


def check_setting(
    fields: Mapping[str, dataclasses.Field[Any]], name: str, value: Any, source: str
) -> Any:
    """The value as its field holds it: lists as tuples, whole numbers as floats where it is one.

    Raises ConfigError: no such field, with the nearest that there is, or a value of another type.
    """
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{source}: there is no setting {name!r}; the nearest is {near!r}")
    kind = str(fields[name].type)
    if kind == "float" and type(value) in (int, float):
        return _finite(name, value, source)
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        if all(type(item).__name__ == kind[len("tuple[") :].partition(",")[0] for item in value):
            return tuple(value)
    elif kind.startswith("Mapping") and isinstance(value, Mapping):
        if all(isinstance(text, str) for pair in value.items() for text in pair):
            return dict(value)
    elif kind == type(value).__name__:
        return value
    raise ConfigError(f"{source}: {name} = {value!r} should be of type {kind}")


def _finite(name: str, value: float, source: str) -> float:
    if not abs(value) <= sys.float_info.max:  # NaN is not either
        raise ConfigError(f"{source}: {name} = {value!r} cannot be: it must be a finite number")
    return float(value)


def infer_config(state_dict: Mapping[str, Tensor]) -> InferredConfig:
    """Recover the configuration from names and shapes.

    The number of heads is inferred from `q_gain`; without QK-norm it is unknown, as are the layers
    of value embeddings (only their number shows) and everything that leaves no weights.
    Raises ConfigError: the weights are not of this model, with the names that are missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    _check_family(shapes)
    layers = _count_blocks(shapes)
    vocab_size, dim = shapes["tok_emb.weight"]
    known: dict[str, Any] = {
        "vocab_size": vocab_size,
        "num_layers": layers,
        "model_dim": dim,
        # The next float up, so that rounding down to whole rows gives back as many.
        "mlp_mult": math.nextafter(shapes["blocks.0.mlp.fc.weight"][0] / dim, math.inf),
        "tie_embeddings": "lm_head.weight" not in shapes,
        "smear_gate": "smear.gate" in shapes,
        "qk_norm": "blocks.0.attn.q_gain" in shapes,
        "resid_mix": "blocks.0.resid_mix" in shapes,
        "output_scales": "blocks.0.attn_scale" in shapes,
        "backout": "backout_lambda" in shapes,
    }
    known |= _tables(shapes)
    if layers > 1:
        known["u_net_skips"] = "skip_weights" in shapes
        known["value_residual"] = "blocks.1.attn.vrl_alpha" in shapes
    unknown = list(NEVER_IN_WEIGHTS)
    if known["value_embedding_dim"]:
        unknown.append("value_embedding_layers")
    if known["qk_norm"]:
        heads = shapes["blocks.0.attn.q_gain"][0]
        kv_dim = shapes["blocks.0.attn.c_k.weight"][0]
        known |= {"num_heads": heads, "num_kv_heads": kv_dim * heads // dim}
    else:
        unknown += ["num_heads", "num_kv_heads"]
    return InferredConfig(known, tuple(unknown))


def _count_blocks(shapes: Iterable[str]) -> int:
    """Raises ConfigError: a number is left out; one name could claim any number of blocks."""
    numbers = {m[1] for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    absent = [str(number) for number in range(len(numbers)) if str(number) not in numbers]
    if absent:
        raise ConfigError(
            f"the weights name {len(numbers)} blocks, and there is no blocks.{absent[0]}"
        )
    return len(numbers)


def _tables(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the embedding tables that are optional; no width for a table that is not there."""
    for name in ("bigram.embed.weight", "ve_shared.embed.weight"):
        if len(shapes.get(name, (0, 0))) != 2:
            raise ConfigError(f"{name} has the shape {list(shapes[name])} where a table belongs")
    rows, width = shapes.get("bigram.embed.weight", (0, 0))
    sizes = {"bigram_vocab_size": rows, "bigram_dim": width} if rows else {"bigram_vocab_size": 0}
    memory = (*shapes.get("memory", ()), 0)[0]
    return {
        **sizes,
        "memory_tokens": memory,
        "value_embedding_dim": shapes.get("ve_shared.embed.weight", (0, 0))[1],
    }


def _check_family(shapes: Mapping[str, tuple[int, ...]]) -> None:
    needed = ["tok_emb.weight", "blocks.0.mlp.fc.weight", "blocks.0.attn.c_k.weight"]
    missing = [name for name in needed if len(shapes.get(name, ())) != 2]
    if missing:
        first_names = ", ".join(list(shapes)[:4]) or "nothing"
        raise ConfigError(
            f"these weights are not of the companion model: there is no matrix "
            f"{', '.join(missing)}; the file starts with {first_names}"
        )
