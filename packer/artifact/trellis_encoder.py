"""Codes on a trellis to bytes: the encoding half of what trellis_decoder.py reads.

Entropy-coded trellis-coded quantization (Fischer and Wang 1992): symbols are coded under tables by
context class and by the parity of the trellis state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.ans_encoder import (
    Codes,
    Numbers,
    count_levels,
    first_byte,
    level_counts,
    open_reach,
    push_classes,
    push_table,
)
from packer.artifact.context_classes import choose_classes
from packer.artifact.symbol_writers import ConstrictionEncoder, RansEncoder, SymbolEncoder
from packer.quantizers.trellis_path import code_states, symbols_of


def encode_trellis(
    codes: Codes,
    scale: npt.NDArray[Any] | None = None,
    column_scale: npt.NDArray[Any] | None = None,
    coder: str = "ans",
) -> bytes:
    """The stream of int16 codes [rows, columns] that lie on the trellis; arguments as of
    `encode_ans`.
    """
    if not codes.any():
        return bytes(2)
    odd = code_states(codes)[:-1] & 1  # [rows, columns]
    whole = symbols_of(codes, odd)  # [rows, columns]
    largest = int(np.abs(whole).max())
    reach = max(open_reach(whole, largest), min(largest, 2))
    symbols = _within(whole, reach)
    encoder = RansEncoder(symbols, reach) if coder == "numpy" else ConstrictionEncoder()
    if reach < largest:
        _push_even_excess(encoder, whole, reach)
    classes, row_class, column_class = choose_classes(symbols, reach, scale, column_scale)
    kinds = 2 * column_class[None, :] + odd  # [rows, columns]
    shifted = symbols.astype(np.int32) + reach
    tables = _tables(shifted, reach, row_class, kinds)
    _push_rows(encoder, shifted, tables, row_class, kinds)
    for table in reversed(tables.values()):
        push_table(encoder, table, reach)
    if not classes.columns_by_scale:
        push_classes(encoder, column_class, classes.columns)
    if classes.kind == 2:
        push_classes(encoder, row_class, classes.rows)
    return bytes([first_byte(classes) | (reach < largest) << 6, reach]) + encoder.data()


def _push_rows(
    encoder: SymbolEncoder,
    symbols: npt.NDArray[np.int32],
    tables: dict[tuple[int, int], Numbers],
    row_class: Numbers,
    kinds: Numbers,
) -> None:
    models = {key: encoder.model(level_counts()[table]) for key, table in tables.items()}
    by_kind = np.take_along_axis(symbols, kinds.argsort(axis=1, kind="stable"), 1)
    # Symbols of each kind in each row, [rows, kinds].
    sizes = np.stack([(kinds == kind).sum(axis=1) for kind in range(kinds.max() + 1)], axis=1)
    ends = sizes.cumsum(axis=1)
    for row in range(len(symbols) - 1, -1, -1):
        for kind in np.flatnonzero(sizes[row])[::-1].tolist():
            here = slice(ends[row, kind] - sizes[row, kind], ends[row, kind])
            encoder.encode_reverse(by_kind[row, here], models[row_class[row], kind])


def _within(symbols: Numbers, reach: int) -> npt.NDArray[np.int8]:
    """Symbols clipped to ±reach, to the largest magnitude of their own parity."""
    magnitudes = np.abs(symbols)
    beyond = reach - ((magnitudes - reach) & 1)
    within: npt.NDArray[np.int8] = (
        np.sign(symbols) * np.where(magnitudes > reach, beyond, magnitudes)
    ).astype(np.int8)
    return within


def _push_even_excess(encoder: SymbolEncoder, symbols: Numbers, reach: int) -> None:
    magnitudes = np.abs(symbols)
    half = (magnitudes[magnitudes >= reach - 1] - reach + 1) >> 1
    for part in (half >> 8, half & 255):
        encoder.encode_reverse(part.astype(np.int32), encoder.model(np.ones(256, np.int64)))


def _tables(
    symbols: npt.NDArray[np.int32], reach: int, row_class: Numbers, kinds: Numbers
) -> dict[tuple[int, int], Numbers]:
    """Levels of every class of rows and kind; one that no symbol uses has a code 0."""
    width, highest = 2 * reach + 1, 2 * (int(kinds.max()) // 2 + 1)
    index = (row_class[:, None] * highest + kinds) * width + symbols
    cells = (int(row_class.max()) + 1) * highest
    counts = np.bincount(index.ravel(), minlength=cells * width).reshape(-1, highest, width)
    counts[..., reach] += counts.sum(axis=-1) == 0
    return {
        (row, kind): count_levels(counts[row, kind])
        for row in np.unique(row_class).tolist()
        for kind in range(highest)
    }
