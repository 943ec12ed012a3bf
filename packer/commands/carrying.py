"""What an artifact stores besides weights: a configuration, and files of the model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from packer.commands.options.groups import OUTPUT, option
from packer.commands.options.types import read_config

if TYPE_CHECKING:
    from packer.planning.candidates import Measurement

INCLUDE = option(
    "--include",
    section=OUTPUT,
    multiple=True,
    metavar="FILE",
    help="Store FILE, such as config.json or tokenizer.json, inside the artifact: a path, or a "
    "name or glob in the checkpoint's folder. Its bytes count; unpack -o FOLDER/ restores it.",
)


def carried(config: str | None, include: Sequence[str], checkpoint: str) -> dict[str, str]:
    """Metadata to store in the artifact. Raises BadParameter, CheckpointError."""
    from packer.huggingface.files import carried_metadata

    return {**read_config(config), **carried_metadata(include, checkpoint)}


def carried_account(measured: Measurement) -> tuple[list[str], int]:
    """(names of the files stored in an artifact, bytes of its header that they take)."""
    from packer.artifact.encoder import header_bytes
    from packer.huggingface.files import carried_files, without_files
    from packer.planning.measure import header_of

    names = sorted(carried_files(measured.metadata))
    if not names:
        return [], 0
    others = without_files(measured.metadata)
    plain = header_of(measured.tensors, measured.ties, others, measured.candidates)
    return names, measured.header_bytes - header_bytes(plain)
