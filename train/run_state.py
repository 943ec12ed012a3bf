"""The state file of a run: all that the next step depends on, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from packer.errors import PackerError
from packer.files import write_bytes

KIND = "bytecap training state"
VERSION = 1
FIELDS = {
    "config": dict,
    "step": int,
    "qat_since": (int, type(None)),
    "model": dict,
    "optimizers": list,
    "averages": dict,
    "seconds": dict,
    "rng": torch.Tensor,
}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file. Raises OutputError: full disk, no permission; the old file stays."""
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "version": VERSION, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU.

    Raises PackerError: no such file, damaged, of another kind or version.
    """
    if not path.is_file():
        raise PackerError(f"{path}: there is no state to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        raise PackerError(
            f"{path} cannot be resumed from: it is damaged or no state file "
            f"({type(error).__name__}); start anew in another folder"
        ) from None
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise PackerError(f"{path} is not the state of a training run; name a folder of one")
    if state.get("version") != VERSION:
        raise PackerError(
            f"{path} is a state of version {state.get('version')}, and this release resumes "
            f"version {VERSION}; finish it with the release that began it"
        )
    for name, kind in FIELDS.items():
        if not isinstance(state.get(name), kind):  # type: ignore[arg-type]
            raise PackerError(f"{path} is damaged: its {name} is missing or of the wrong kind")
    return state
