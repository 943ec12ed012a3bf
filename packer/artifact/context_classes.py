"""Context classes of an ANS stream: which rows and which columns of codes share tables.

Initial classes: rows and columns are sorted by energy or by scale and cut into classes of equal
size, as many as pay for their tables. They are then refined: each row and column in turn moves to
the class whose tables code it shortest (Lloyd, "Least squares quantization in PCM", 1982, with code
length in place of distance). Classes are side information of the stream; the decoder does not
depend on how they were chosen. docs/methods.md, "Which rows and columns share tables", has what it
saves.
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
_SMALLEST_REFINED = 1 << 14  # codes
_REFINING_ROUNDS = 6
_REFINING_SAMPLE = 256  # rows from which columns are classed, and columns for rows
_GOLDEN = 2654435769  # 2^32 over the golden ratio: its multiples spread evenly (Knuth)
_PARTS_OF_A_BIT = 256  # lengths are whole multiples, so that their sums are the same in any order
_ABSENT = 0.05  # added to every count, so that no code length is infinite
_ALONE = 8  # magnitudes below it have a range of their own
_BLOCK_ELEMENTS = 1 << 20
_COUNTED_ELEMENTS = 1 << 17  # whose 64-bit indices stay in a cache

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
"""Classes, and the class of each row [rows] and of each column [columns]."""


def energy_classes(codes: Codes) -> tuple[Numbers, Numbers]:
    """The finest classes of rows [rows] and of columns [columns], by their sum of magnitudes."""
    row_energy = np.zeros(codes.shape[0], dtype=np.int64)  # [rows]
    column_energy = np.zeros(codes.shape[1], dtype=np.int64)  # [columns]
    for start, block in row_blocks(codes):
        magnitudes = np.abs(block.astype(np.int16))
        row_energy[start : start + len(block)] = magnitudes.sum(axis=1, dtype=np.int64)
        column_energy += magnitudes.sum(axis=0, dtype=np.int64)
    return stream_decoder.rank_classes(row_energy, _FINEST), stream_decoder.rank_classes(
        column_energy, _FINEST
    )


def row_blocks(codes: Codes, elements: int = _BLOCK_ELEMENTS) -> list[tuple[int, Codes]]:
    """(first row, rows) of blocks small enough that wide copies of them stay cheap."""
    step = max(1, elements // max(codes.shape[1], 1))
    return [(start, codes[start : start + step]) for start in range(0, len(codes), step)]


def choose_classes(
    codes: Codes,
    reach: int,
    scale: npt.NDArray[Any] | None,
    column_scale: npt.NDArray[Any] | None = None,
) -> Classed:
    """The classes estimated to give the smallest stream, and the class of each row and column.

    codes: [rows, columns] within ±reach, the largest magnitude that the tables hold. scale [rows],
    column_scale [columns]: known to the decoder, so that classes by their rank cost nothing.
    """
    rows, columns = codes.shape
    if 1 < rows <= _FINEST:  # byte planes, or so few rows that each can have its own tables
        return Classes(3, 1, 1), np.arange(rows), np.zeros(columns, dtype=np.int64)
    if rows == 1 or codes.size < _SMALLEST_CLASSED:
        return Classes(0, 1, 1), np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    row_energy, column_energy = energy_classes(codes)
    row_options, column_options = [(2, row_energy)], [(False, column_energy)]
    if scale is not None and len(scale) == rows:
        row_options.append((1, stream_decoder.rank_classes(scale, _FINEST)))
    if column_scale is not None and len(column_scale) == columns:
        column_options.append((True, stream_decoder.rank_classes(column_scale, _FINEST)))
    estimates = []
    for kind, by_row in row_options:
        for by_scale, by_column in column_options:
            bits, classes = _best_classes(codes, reach, by_row, by_column, kind, by_scale)
            estimates.append((bits, classes, by_row, by_column))
    _, classes, by_row, by_column = min(estimates, key=lambda estimate: estimate[0])
    initial = classes, by_row * classes.rows // _FINEST, by_column * classes.columns // _FINEST
    return _refined(codes, reach, initial) if codes.size >= _SMALLEST_REFINED else initial


def _refined(codes: Codes, reach: int, initial: Classed) -> Classed:
    """Refined classes; the initial ones where storing the refined costs more than they save."""
    if initial[0].rows * initial[0].columns == 1:
        return initial
    options = (initial, _after_moves(codes, _size_ranges(reach), initial))
    return min(options, key=lambda option: _classed_bits(codes, reach, *option))


def _after_moves(codes: Codes, ranges: npt.NDArray[np.int32], start: Classed) -> Classed:
    """Classes after up to six rounds of moves of a sample's rows and columns, and one of all."""
    classes, rows, columns = start[0], start[1].copy(), start[2].copy()
    some_rows, some_columns = _sample(len(rows)), _sample(len(columns))
    across = ranges[np.abs(codes[:, some_columns].astype(np.int16))]  # [rows, sample]
    down = ranges[np.abs(codes[some_rows].T.astype(np.int16))]  # [columns, sample]
    for _ in range(_REFINING_ROUNDS):
        before = rows[some_rows].copy(), columns[some_columns].copy()
        if classes.rows > 1:
            rows[some_rows] = _moved(across[some_rows], before[0], columns[some_columns])
        if classes.columns > 1:
            columns[some_columns] = _moved(down[some_columns], before[1], rows[some_rows])
        if (rows[some_rows] == before[0]).all() and (columns[some_columns] == before[1]).all():
            break
    rows = _moved(across, rows, columns[some_columns], some_rows)
    columns = _moved(down, columns, rows[some_rows], some_columns)
    stored = replace(classes, kind=2 if classes.rows > 1 else 0, columns_by_scale=False)
    return stored, rows, columns


def _sample(count: int) -> Numbers:
    """Positions [at most 256] of a sample of `count` rows, in no pattern of heads or groups."""
    scattered = np.arange(count) * _GOLDEN % (1 << 32)
    return np.sort(scattered.argsort(kind="stable")[:_REFINING_SAMPLE])


def _size_ranges(reach: int) -> npt.NDArray[np.int32]:
    """The range [reach + 1] that a magnitude is in: small ones alone, later four to an octave.

    Classes differ in how widely their codes are spread; the exact size of a large code adds little
    to that.
    """
    magnitudes = np.arange(reach + 1)
    octaves = np.log2(np.maximum(magnitudes, _ALONE) / _ALONE)
    ranges: npt.NDArray[np.int32] = np.minimum(magnitudes, _ALONE).astype(np.int32)
    ranges += (4 * octaves).astype(np.int32)
    return ranges


def _moved(
    sizes: npt.NDArray[np.int32], own: Numbers, other: Numbers, known: Numbers | None = None
) -> Numbers:
    """The class [rows] whose current tables code each row of ranges [rows, columns] shortest.

    own [rows], other [columns]: current classes. known: positions of the rows whose counts make up
    the tables; None: all.
    """
    import torch  # here: planning from measurements does not need it; its thread count is set

    ranges, own_count, other_count = int(sizes.max()) + 1, int(own.max()) + 1, int(other.max()) + 1
    cells = other_count * ranges
    columns = other * ranges  # [columns]
    counts = torch.empty(len(sizes), cells, dtype=torch.float64)
    for start, block in row_blocks(sizes, _COUNTED_ELEMENTS):
        index = block + columns + cells * np.arange(len(block))[:, None]
        flat = np.bincount(index.ravel(), minlength=len(block) * cells)
        counts[start : start + len(block)] = torch.from_numpy(flat).reshape(len(block), cells)
    # Sums of whole numbers, so that their order does not matter, [own classes, cells].
    members = (
        torch.from_numpy(own if known is None else own[known]) == torch.arange(own_count)[:, None]
    )
    tables = members.double() @ (counts if known is None else counts[known])
    shares = tables.numpy().reshape(own_count, other_count, ranges) + _ABSENT
    shares /= shares.sum(axis=-1, keepdims=True)
    lengths = np.rint(-_PARTS_OF_A_BIT * np.log2(shares)).reshape(own_count, cells)
    # Bits of every row under the tables of every class, [rows, own classes].
    bits = counts @ torch.from_numpy(lengths).T
    moved: Numbers = bits.argmin(dim=1).numpy()
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
    """Bits of the classes as side information; none where they follow from a scale."""
    rows, columns = codes.shape
    by_column = columns * np.log2(classes.columns) * (not classes.columns_by_scale)
    return float(by_column + rows * np.log2(classes.rows) * (classes.kind == 2))


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
    estimates = []
    for row_classes in _CLASS_COUNTS:
        for column_classes in _CLASS_COUNTS:
            bits = _estimated_bits(histograms, row_classes, column_classes, stride)
            merged = Classes(kind, row_classes, column_classes, columns_by_scale)
            bits += _class_bits(codes, merged)
            estimates.append((bits, row_classes, column_classes))
    bits, row_classes, column_classes = min(estimates)
    by_scale = columns_by_scale and column_classes > 1
    return bits, Classes(kind if row_classes > 1 else 0, row_classes, column_classes, by_scale)


def _histograms(codes: Codes, reach: int, row_class: Numbers, column_class: Numbers) -> Numbers:
    """Counts [row classes, column classes, symbols] under the finest classes.

    symbols = 2 · reach + 1: the codes -reach to reach.
    """
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
    """Bits of all codes and their tables, after neighbouring classes are merged.

    histograms: [row classes, column classes, symbols].
    """
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
