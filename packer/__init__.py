"""Fit a trained language model under a hard byte cap."""

from pathlib import Path

# In a source checkout the leaf packages stand beside this folder; installed, they are inside it.
if not (Path(__file__).parent / "quantizers").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
