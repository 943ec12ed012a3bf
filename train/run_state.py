"""The state file of a run: all that the next step depends on, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from packer.errors import OutputError, PackerError
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


class StateWriter:
    """Writes states of a run in a thread, one after the other, while training goes on.

    saved_step: of the state that the file holds, None before any.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.saved_step: int | None = None
        self._executor = ThreadPoolExecutor(1)
        self._writing: Future[int | None] | None = None

    def begin(self, state: Mapping[str, Any]) -> None:
        """Copy a state to the CPU, and begin to write it once the one before is written."""
        copied = _on_cpu(state)
        self.wait()
        self._writing = self._executor.submit(self._write, copied)

    def wait(self) -> None:
        """Until nothing is left to write. Training goes on where that failed; the old file stays.

        Raises what no file system refuses.
        """
        writing, self._writing = self._writing, None
        try:
            step = None if writing is None else writing.result()
        except OutputError as error:
            self.say(f"warning: the state was not saved: {error}")
            return
        self.saved_step = self.saved_step if step is None else step

    def _write(self, state: Mapping[str, Any]) -> int | None:
        """The step of the state written; None of weights that are not finite: the next loss will
        say so, and the last good state must stay.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in state["model"].values()):
            return None
        write_state(self.path, state)
        return int(state["step"])


def _on_cpu(value: Any) -> Any:
    """A copy in which every tensor is on the CPU, and none is one that training changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on_cpu(one) for one in value]
    return value


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
