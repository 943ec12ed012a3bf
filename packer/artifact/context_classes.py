"""Which rows and which columns of a matrix of codes share tables: the classes of an ANS stream.

Rows and columns are ranked by their energy or their scale and cut into classes of equal size, as
many as pay for their tables. Then each moves to the class under whose tables it is shortest, in
turn (Lloyd, "Least squares quantization in PCM", 1982, with code length in place of distance). The
decoder is told the classes and never how they were found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact import stream_decoder

_FINEST = 8  # row classes and column classes at most
_CLASS_COUNTS = (1, 2, 4, 8)
_SAMPLED_ELEMENTS = 1 << 17
_SMALLEST_CLASSED = 256  # fewer codes cannot pay for a second table
_SMALLEST_SETTLED = 1 << 14
_SETTLING_ROUNDS = 6
_SETTLING_SAMPLE = 256  # rows, or columns, that say where a column, or a row, belongs
_GOLDEN = 2654435769  # 2^32 over the golden ratio: its multiples spread evenly (Knuth)
_PARTS_OF_A_BIT = 256  # lengths are whole multiples, so that their sums are the same in any order
_ABSENT = 0.05
_ALONE = 8  # magnitudes below it are told apart
_BLOCK_ELEMENTS = 1 << 20

Codes = npt.NDArray[Any]  # int8, or int16 of stepped formats
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """How the rows and columns of a stream are classed; fields as in stream_decoder.decode_ans."""

    kind: int
    rows: int
    columns: int
    columns_by_scale: bool = False


Classed = tuple[Classes, Numbers, Numbers]
"""Classes, and which each row and each column is in."""


def energy_classes(codes: Codes) -> tuple[Numbers, Numbers]:
    """The finest classes of rows and of columns, by their sum of magnitudes."""
    row_energy = np.zeros(codes.shape[0], dtype=np.int64)
    column_energy = np.zeros(codes.shape[1], dtype=np.int64)
    for start, block in row_blocks(codes):
        magnitudes = np.abs(block.astype(np.int16))
        row_energy[start : start + len(block)] = magnitudes.sum(axis=1, dtype=np.int64)
        column_energy += magnitudes.sum(axis=0, dtype=np.int64)
    return stream_decoder.rank_classes(row_energy, _FINEST), stream_decoder.rank_classes(
        column_energy, _FINEST
    )


def row_blocks(codes: Codes) -> list[tuple[int, Codes]]:
    """(first row, rows) of blocks small enough that wide copies of them stay cheap."""
    step = max(1, _BLOCK_ELEMENTS // max(codes.shape[1], 1))
    return [(start, codes[start : start + step]) for start in range(0, len(codes), step)]


def choose_classes(
    codes: Codes,
    reach: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None = None,
) -> Classed:
    """The classes estimated to give the smallest stream, and the class of each row and column."""
    rows, columns = codes.shape
    if 1 < rows <= _FINEST:  # byte planes, or so few rows that each can have its own tables
        return Classes(3, 1, 1), np.arange(rows), np.zeros(columns, dtype=np.int64)
    if rows == 1 or codes.size < _SMALLEST_CLASSED:
        return Classes(0, 1, 1), np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    row_energy, column_energy = energy_classes(codes)
    row_ways, column_ways = [(2, row_energy)], [(False, column_energy)]
    if scale is not None and len(scale) == rows:
        row_ways.append((1, stream_decoder.rank_classes(scale, _FINEST)))
    if column_scale is not None and len(column_scale) == columns:
        column_ways.append((True, stream_decoder.rank_classes(column_scale, _FINEST)))
    found = []
    for kind, by_row in row_ways:
        for by_scale, by_column in column_ways:
            bits, classes = _best_classes(codes, reach, by_row, by_column, kind, by_scale)
            found.append((bits, classes, by_row, by_column))
    _, classes, by_row, by_column = min(found, key=lambda way: way[0])
    ranked = classes, by_row * classes.rows // _FINEST, by_column * classes.columns // _FINEST
    return _settled(codes, reach, ranked) if codes.size >= _SMALLEST_SETTLED else ranked


def _settled(codes: Codes, reach: int, ranked: Classed) -> Classed:
    """Classes after some rounds of moves; as ranked where telling them costs more than it saves."""
    if ranked[0].rows * ranked[0].columns == 1:
        return ranked
    ways = (ranked, _after_moves(codes, _size_ranges(reach), ranked))
    return min(ways, key=lambda way: _classed_bits(codes, reach, *way))


def _after_moves(codes: Codes, ranges: npt.NDArray[np.int32], start: Classed) -> Classed:
    """Classes after the rows and columns of a sample have moved some times, and all others once."""
    classes, rows, columns = start[0], start[1].copy(), start[2].copy()
    some_rows, some_columns = _sample(len(rows)), _sample(len(columns))
    across = ranges[np.abs(codes[:, some_columns].astype(np.int16))]
    down = ranges[np.abs(codes[some_rows].T.astype(np.int16))]
    for _ in range(_SETTLING_ROUNDS):
        before = rows[some_rows].copy(), columns[some_columns].copy()
        if classes.rows > 1:
            rows[some_rows] = _moved(across[some_rows], before[0], columns[some_columns])
        if classes.columns > 1:
            columns[some_columns] = _moved(down[some_columns], before[1], rows[some_rows])
        if (rows[some_rows] == before[0]).all() and (columns[some_columns] == before[1]).all():
            break
    rows = _moved(across, rows, columns[some_columns], some_rows)
    columns = _moved(down, columns, rows[some_rows], some_columns)
    told = replace(classes, kind=2 if classes.rows > 1 else 0, columns_by_scale=False)
    return told, rows, columns


def _sample(count: int) -> Numbers:
    """Some of so many rows, in no pattern that heads or groups could have too."""
    scattered = np.arange(count) * _GOLDEN % (1 << 32)
    return np.sort(scattered.argsort(kind="stable")[:_SETTLING_SAMPLE])


def _size_ranges(reach: int) -> npt.NDArray[np.int32]:
    """The range [reach + 1] that a magnitude is in: small ones alone, later four to an octave.

    Classes differ in how wide their codes are spread, of which one large code tells no more than
    another.
    """
    magnitudes = np.arange(reach + 1)
    octaves = np.log2(np.maximum(magnitudes, _ALONE) / _ALONE)
    found: npt.NDArray[np.int32] = np.minimum(magnitudes, _ALONE).astype(np.int32)
    found += (4 * octaves).astype(np.int32)
    return found


def _moved(
    sizes: npt.NDArray[np.int32], own: Numbers, other: Numbers, known: Numbers | None = None
) -> Numbers:
    """The class of every row of ranges [rows, columns] that is shortest under the tables so far.

    own, other: classes of rows and of columns. known: rows that the tables are made of, else all.
    """
    import torch  # whose threads are set; a plan from measurements does without it

    ranges, own_count, other_count = int(sizes.max()) + 1, int(own.max()) + 1, int(other.max()) + 1
    cells = other_count * ranges
    index = sizes + (other * ranges).astype(np.int32)
    index += (np.arange(len(sizes)) * cells).astype(np.int32)[:, None]
    counts = np.bincount(index.ravel(), minlength=len(sizes) * cells).reshape(len(sizes), -1)
    tables = np.zeros((own_count, cells))
    known = np.arange(len(own)) if known is None else known
    np.add.at(tables, own[known], counts[known])
    shares = tables.reshape(own_count, other_count, ranges) + _ABSENT
    shares /= shares.sum(axis=-1, keepdims=True)
    lengths = np.rint(-_PARTS_OF_A_BIT * np.log2(shares)).reshape(own_count, cells)
    taken = torch.from_numpy(counts.astype(np.float64)) @ torch.from_numpy(lengths).T
    moved: Numbers = taken.argmin(dim=1).numpy()
    return moved


def _classed_bits(
    codes: Codes, reach: int, classes: Classes, by_row: Numbers, by_column: Numbers
) -> float:
    """Estimated bits of a stream with these classes; of large ones from every fourth row."""
    stride = 4 if codes.size >= _SAMPLED_ELEMENTS else 1
    histograms = _histograms(codes[::stride], reach, by_row[::stride], by_column)
    used = histograms[: classes.rows, : classes.columns].reshape(-1, 2 * reach + 1)
    bits = _table_bits(used.astype(np.float64), stride)
    return bits + _class_bits(codes, classes)


def _class_bits(codes: Codes, classes: Classes) -> float:
    """What it takes to tell the classes, where no scale tells them."""
    rows, columns = codes.shape
    told = columns * np.log2(classes.columns) * (not classes.columns_by_scale)
    return float(told + rows * np.log2(classes.rows) * (classes.kind == 2))


def _best_classes(
    codes: Codes,
    reach: int,
    row_class: Numbers,
    column_class: Numbers,
    kind: int,
    columns_by_scale: bool,
) -> tuple[float, Classes]:
    """(estimated bits, classes) of the best merging of the finest classes.

    Large tensors are estimated from every fourth row, which finds the same classes but for ties.
    """
    stride = 4 if codes.size >= _SAMPLED_ELEMENTS else 1
    histograms = _histograms(codes[::stride], reach, row_class[::stride], column_class)
    found = []
    for row_classes in _CLASS_COUNTS:
        for column_classes in _CLASS_COUNTS:
            bits = _estimated_bits(histograms, row_classes, column_classes, stride)
            told = Classes(kind, row_classes, column_classes, columns_by_scale)
            bits += _class_bits(codes, told)
            found.append((bits, row_classes, column_classes))
    bits, row_classes, column_classes = min(found)
    by_scale = columns_by_scale and column_classes > 1
    return bits, Classes(kind if row_classes > 1 else 0, row_classes, column_classes, by_scale)


def _histograms(
    codes: Codes,
    reach: int,
    row_class: Numbers,
    column_class: Numbers,
) -> Numbers:
    """Counts [row classes, column classes, symbols] under the finest classes."""
    symbols = 2 * reach + 1
    cells = _FINEST * _FINEST * symbols
    total = np.zeros(cells, dtype=np.int64)
    column_offset = (column_class * symbols + reach).astype(np.int32)
    row_offset = (row_class * _FINEST * symbols).astype(np.int32)
    for start, block in row_blocks(codes):
        index = block + column_offset
        index += row_offset[start : start + len(block), None]
        total += np.bincount(index.ravel(), minlength=cells)
    return total.reshape(_FINEST, _FINEST, symbols)


def _estimated_bits(
    histograms: Numbers, row_classes: int, column_classes: int, stride: int
) -> float:
    """Bits of all codes and their tables, after merging classes."""
    finest, _, symbols = histograms.shape
    merged = histograms.reshape(row_classes, finest // row_classes, finest, symbols).sum(axis=1)
    merged = merged.reshape(row_classes, column_classes, finest // column_classes, symbols).sum(
        axis=2
    )
    return _table_bits(merged.reshape(-1, symbols).astype(np.float64), stride)


def _table_bits(counts: npt.NDArray[np.float64], stride: int) -> float:
    """Entropy of all codes plus about what their tables [tables, symbols] cost.

    The counts are of one code in `stride`. The entropy of a sample falls short of the whole's by
    half a nat per symbol used (Miller and Madow), which is put back.
    """
    used = counts > 0
    entropy = -(counts * np.log2(np.where(used, counts, 1))).sum()
    totals = counts.sum(axis=1)
    entropy += (totals * np.log2(np.maximum(totals, 1))).sum()
    missing = 0.5 / np.log(2) * (stride - 1) * used.sum()
    return float(stride * entropy + missing + 2.2 * used.sum() + 0.5 * (~used).sum())
