"""The state of a calibration in a file, from which an interrupted one is resumed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packer.checkpoint.file_kinds import load
from packer.checkpoint.safetensors_write import write_all
from packer.errors import CheckpointError, CurvatureError
from packer.files import replacing

KIND = "bytecap unfinished calibration 2"
SECONDS_BETWEEN = 10.0  # at least, from one save to the next
COST_SHARE = 0.05  # of the time, at most, for saving


@dataclass(frozen=True, eq=False)
class ResumeState:
    """The state of a calibration after some batches.

    seconds: time they took. sums: see `AllMoments.sums`. generator: state of the one for labels.
    """

    batches: int
    tokens: int
    vocab_size: int | None
    seconds: float
    sums: Mapping[str, torch.Tensor]
    generator: torch.Tensor


class ResumeFile:
    """The file that a running calibration is saved to.

    known_by: the settings that identify the calibration, by name.
    """

    def __init__(self, path: str | os.PathLike[str], known_by: Mapping[str, str]) -> None:
        self.path, self.known_by = Path(path), dict(known_by)
        self._next = time.monotonic() + SECONDS_BETWEEN

    def read(self) -> ResumeState | None:
        """The saved state; None if there is no file.

        Raises CurvatureError: damaged, or of another calibration.
        """
        if not self.path.exists():
            return None
        try:
            content = load(self.path)
        except (CheckpointError, OSError) as error:
            raise CurvatureError(f"{error}. {self._way_out()}") from None
        if content.metadata.get("bytecap") != KIND or not isinstance(content.value, dict):
            raise CurvatureError(f"{self.path} is no unfinished calibration. {self._way_out()}")
        try:
            state = json.loads(content.metadata["state"])
            self._check(state["known_by"])
            return _resume_state(state, dict(content.value))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CurvatureError(f"{self.path} is damaged: {error!r}. {self._way_out()}") from None

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def keep(self, state: ResumeState) -> None:
        """Raises OutputError."""
        begun = time.monotonic()
        self._write(state)
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, (now - begun) / COST_SHARE)

    def _write(self, state: ResumeState) -> None:
        fields = {
            "known_by": self.known_by,
            "batches": state.batches,
            "tokens": state.tokens,
            "vocab_size": state.vocab_size,
            "seconds": state.seconds,
        }
        tensors = {f"sum/{key}": value.cpu() for key, value in state.sums.items()}
        tensors["generator"] = state.generator
        with replacing(self.path) as temporary:
            write_all(temporary, tensors, {"bytecap": KIND, "state": json.dumps(fields)})

    def _check(self, saved: Mapping[str, str]) -> None:
        other = sorted(
            what for what in {*self.known_by, *saved} if self.known_by.get(what) != saved.get(what)
        )
        if other:
            raise CurvatureError(
                f"{self.path} is an unfinished calibration with another {other[0]}: it cannot go "
                f"on with this one. {self._way_out()}"
            )

    def _way_out(self) -> str:
        return "Remove it to start anew, or name another output."


def _resume_state(fields: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> ResumeState:
    generator = tensors.pop("generator")
    vocab_size = fields["vocab_size"]
    state = ResumeState(
        int(fields["batches"]),
        int(fields["tokens"]),
        None if vocab_size is None else int(vocab_size),
        float(fields["seconds"]),
        {key.removeprefix("sum/"): value for key, value in tensors.items()},
        generator,
    )
    if state.batches < 1 or state.tokens < 1 or not state.seconds >= 0:
        raise ValueError("counts must be positive")
    return state
