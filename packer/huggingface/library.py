"""The libraries of the extra `hf`: found, or asked for by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

from packer.errors import CheckpointError
from packer.eval.text_tokenizer import INSTALL


def transformers_for(source: str) -> ModuleType:
    """The library transformers. Raises CheckpointError: it is not installed; names the source."""
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            f"{source}: is read with the library transformers, which is not installed: {INSTALL}"
        ) from None
    found: ModuleType = transformers
    return found


@contextlib.contextmanager
def quietly(library: ModuleType) -> Iterator[None]:
    """Inside, transformers reports only errors and draws no bars."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
