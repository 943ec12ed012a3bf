"""Codes on a trellis from an ANS stream: row by row, each under the model of its state.

Like decoder.py this module is closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.stream_decoder import (
    Buffer,
    add_excess,
    check_start,
    check_used,
    decode_table,
    open_classes,
)
from packer.quantizers.trellis_path import NEXT_STATE, codes_of


def decode_trellis(
    data: Buffer,
    rows: int,
    columns: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None,
    coder: int,
) -> npt.NDArray[np.int16]:
    """int16 [rows, columns]. The stream is that of decode_ans, but for the order of its codes:

    every pair of classes has a table for even and one for odd states, all tables stand before all
    symbols, symbols come row by row, in a row by class of column and then by kind of state.
    """
    check_start(data, rows, columns, scale, column_scale, True)
    first, reach = data[:2]
    if reach == 0 or rows * columns == 0:
        return np.zeros((rows, columns), dtype=np.int16)
    ans, model, row_class, column_class = open_classes(
        data, rows, columns, scale, column_scale, coder
    )
    kinds = range(2 * int(column_class.max()) + 2)
    tables = {row: [decode_table(ans, model, reach) for _ in kinds] for row in np.unique(row_class)}
    symbols, odd = np.zeros((2, rows, columns), np.int64)
    state = odd[0]
    for row in range(rows):
        odd[row] = state & 1
        for kind in kinds:
            here = 2 * column_class + odd[row] == kind
            symbols[row, here] = ans.decode(tables[row_class[row]][kind], here.sum())
        symbols[row] -= reach
        state = NEXT_STATE[state, symbols[row] & 1]
    if first & 64:
        add_excess(ans, model, symbols, reach, 2)
    check_used(ans)
    return codes_of(symbols, odd).astype(np.int16)
