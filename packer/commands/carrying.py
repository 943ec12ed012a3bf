"""What an artifact carries beside weights: a configuration, and files of the model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from packer.commands.options.sections import OUTPUT, option
from packer.commands.options.types import read_config

if TYPE_CHECKING:
    from packer.planning.candidates import Measurement

INCLUDE = option(
    "--include",
    section=OUTPUT,
    multiple=True,
    metavar="FILE",
    help="Carry a file inside the artifact, such as config.json or tokenizer.json: a path, or a "
    "name or glob in the checkpoint's folder. Its bytes count; packer unpack -o FOLDER/ writes it.",
)


def carried(config: str | None, include: Sequence[str], checkpoint: str) -> dict[str, str]:
    """Metadata of the artifact that is to be made. Raises BadParameter, CheckpointError."""
    from packer.huggingface.files import carried_metadata

    return {**read_config(config), **carried_metadata(include, checkpoint)}


def carried_account(measured: Measurement) -> tuple[list[str], int]:
    """(names of the files that an artifact carries, bytes that its header has for them)."""
    from packer.artifact.encoder import header_bytes
    from packer.huggingface.files import carried_files, without_files
    from packer.planning.measure import header_of

    names = sorted(carried_files(measured.metadata))
    if not names:
        return [], 0
    others = without_files(measured.metadata)
    plain = header_of(measured.tensors, measured.ties, others, measured.candidates)
    return names, measured.header_bytes - header_bytes(plain)
