"""Codes that lie on a trellis, out of an ANS stream: row by row, each under the model of its state.

Like decoder.py this module is closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact_error import ArtifactError
from packer.quantizers.trellis_path import NEXT_STATE, codes_of
from packer.stream_decoder import Buffer, check_start, decode_table, open_classes


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
    if data[1] == 0 or rows * columns == 0:
        return np.zeros((rows, columns), dtype=np.int16)
    first, reach = data[:2]
    ans, model, row_class, column_class = open_classes(
        data, rows, columns, scale, column_scale, coder
    )
    kinds = 2 * (int(column_class.max()) + 1)
    tables = {
        (row, kind): decode_table(ans, model, reach)
        for row in np.unique(row_class).tolist()
        for kind in range(kinds)
    }
    symbols, states = np.zeros((rows, columns), np.int64), np.zeros((rows + 1, columns), np.int64)
    for row, of_row in enumerate(row_class.tolist()):
        kind = 2 * column_class + (states[row] & 1)
        ordered, at = np.argsort(kind, kind="stable"), 0
        for number, count in enumerate(np.bincount(kind)):
            if count:
                here = ordered[at : at + count]
                symbols[row, here] = ans.decode(tables[of_row, number], count)
                at += count
        symbols[row] -= reach
        states[row + 1] = NEXT_STATE[states[row], symbols[row] & 1]
    if first & 64:
        add_even_excess(ans, model, symbols, reach)
    if not ans.is_empty():
        raise ArtifactError("an ANS stream has data left after its last symbol")
    codes = codes_of(symbols, states[:-1])
    if np.abs(codes).max() > 32767:
        raise ArtifactError(f"a trellis decodes to a code of {np.abs(codes).max()}")
    return codes.astype(np.int16)


def add_even_excess(ans: Any, model: Any, symbols: npt.NDArray[np.int64], reach: int) -> None:
    """The two largest magnitudes have more of it, an even number: two bytes of its half each."""
    at = np.abs(symbols) >= reach - 1
    byte = model(np.ones(256, np.int64))
    excess = ans.decode(byte, at.sum()).astype(np.int64)
    excess += 256 * ans.decode(byte, at.sum())
    symbols[at] += 2 * np.sign(symbols[at]) * excess
