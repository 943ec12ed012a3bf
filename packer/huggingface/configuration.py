"""Finds and checks a model's transformers configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from packer.checkpoint.folder import CONFIGURATION, QUANTIZATION
from packer.errors import CheckpointError
from packer.huggingface.files import Beside

Settings = Mapping[str, Any]
# Settings of dtype, attention and cache, which scoring chooses itself, and of codes, which are
# dequantized by now.
RUNNING = (
    *("dtype", "torch_dtype", "_attn_implementation", "attn_implementation", "use_cache"),
    QUANTIZATION,
)


def is_transformers(settings: Settings) -> bool:
    """Whether settings are a configuration of transformers and not of another model."""
    return isinstance(settings.get("model_type"), str)


def configuration_beside(
    source: str, metadata: Mapping[str, str] | None = None
) -> tuple[Settings, str] | None:
    """(the transformers configuration in a folder, next to a file or inside an artifact; its
    location), or None without one. metadata: of an artifact that has been read.

    Raises CheckpointError: it is not a JSON object, or not the configuration of one model.
    """
    beside = Beside(source, metadata)
    if CONFIGURATION not in beside or not beside.is_model:
        return None
    where = beside.spelled(CONFIGURATION)
    try:
        settings = json.loads(beside.read(CONFIGURATION))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: is not JSON ({error}); download it again, or remove it"
        ) from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where}: is no object of settings; download it again")
    if not is_transformers(settings) and "architectures" in settings:
        raise CheckpointError(
            f"{where}: names no model_type, so that transformers cannot tell which model it is; "
            'add it, such as "model_type": "llama"'
        )
    return (settings, where) if is_transformers(settings) else None


def refuse_unbuildable(settings: Settings, where: str) -> None:
    """Raises CheckpointError: the configuration needs code of its own."""
    own_code = settings.get("auto_map")
    if own_code:
        names = own_code.values() if isinstance(own_code, dict) else [own_code]
        raise CheckpointError(
            f"{where}: asks for code from its folder or the network (auto_map: "
            f"{', '.join(str(name) for name in names)}), which is never run; where transformers "
            f"has a model {settings['model_type']!r} itself, remove auto_map from it"
        )
