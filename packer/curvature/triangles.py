"""Sums of outer products as triangles, at little more than half the work and memory of matrices.

A triangle [..., size] has the rows of a symmetric matrix in blocks, one after the other, each block
up to the column of its last row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

ROW_BLOCK = 128  # rows; smaller ones multiply more slowly, larger ones compute more twice


def triangle_blocks(width: int) -> Iterator[tuple[int, int, slice]]:
    """(first row, row after the last, place in the triangle) of every block."""
    at = 0
    for first in range(0, width, ROW_BLOCK):
        end = min(first + ROW_BLOCK, width)
        yield first, end, slice(at, at + (end - first) * end)
        at += (end - first) * end


def triangle_size(width: int) -> int:
    """Numbers in the triangle of a matrix [width, width]."""
    return sum((end - first) * end for first, end, _ in triangle_blocks(width))


def gram(vectors: torch.Tensor, width: int, start: int = 0) -> torch.Tensor:
    """The triangle of the sum of v vᵀ over vectors [count, columns].

    They are the columns from `start` on of vectors that have `width` and are zero elsewhere.
    """
    triangle, stop = vectors.new_zeros(triangle_size(width)), start + vectors.size(1)
    for first, end, place in triangle_blocks(width):
        low, high = max(first, start), min(end, stop)
        if low < high:
            block = triangle[place].view(end - first, end)[low - first : high - first, start:high]
            torch.mm(
                vectors[:, low - start : high - start].mT, vectors[:, : high - start], out=block
            )
    return triangle


def symmetric(triangle: torch.Tensor, width: int) -> torch.Tensor:
    """The matrix [..., width, width] of a triangle [..., size].

    Products of floats need not come out exactly symmetric within a block; this does.
    """
    matrix = triangle.new_empty(*triangle.shape[:-1], width, width)
    for first, end, place in triangle_blocks(width):
        block = triangle[..., place].reshape(*triangle.shape[:-1], end - first, end)
        square = block[..., first:]
        matrix[..., first:end, :first] = block[..., :first]
        matrix[..., :first, first:end] = block[..., :first].mT
        matrix[..., first:end, first:end] = (square + square.mT) / 2
    return matrix
