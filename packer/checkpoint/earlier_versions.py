"""Changes of weights by tuning and by earlier versions, recorded in the metadata of their files."""

from __future__ import annotations

from collections.abc import Mapping

POLISHED_MARK = "polished"  # scales and floats were tuned after rounding
PERMUTED_MARK = "units"  # hidden units of MLPs lie in another order than in the checkpoint
TUNED_MARK = "tuned"  # weights were moved before rounding, in so many steps
MARKS = (POLISHED_MARK, PERMUTED_MARK, TUNED_MARK)


def without_marks(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what is true of one file alone: nothing of it goes into another file."""
    return {key: text for key, text in metadata.items() if key not in MARKS}
