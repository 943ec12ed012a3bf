"""Bytes of a recipe as `packer.planning.recipes` packs it, from the shapes of a model alone.

Those recipes quantize smaller tensors than their originals and are stored in our own container, so
that their files differ from what `packer.size.estimate` predicts of the originals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from packer.checkpoint.roles import roles_of
from packer.planning.recipes import SMALLEST_QUANTIZED, K, Recipe, stored_class
from packer.quantizers.grouped_low_rank import fits
from packer.size.estimate import Shapes, coded_bits, largest_of, normal_entropy

KEPT_BYTES = 1.75  # of a weight kept as fp16, after the coder
SCALE_BYTES = {"zlib": 1.7, "brotli": 1.5, "lzma": 1.6, "zstd": 1.6, "lrzip": 1.5}  # of fp16
# The leader's own layout: small tensors are int8, and three matrices have corrections of rank 4.
KEPT_INT8, CORRECTED, RANK, GROUP, CORRECTION_BYTES = 0.92, 3, 4, 32, 0.66
HEADER_BYTES, BLOCK_BYTES = 250, 5  # of the file, and of a tensor beside codes and scales


def packed_bytes(shapes: Shapes, recipe: Recipe, k: float | None = None) -> int:
    """The artifact, its weights close to normal. k: of the matrices; None: as the recipe has it."""
    factor = 1.0 if k is None else k / recipe.original.value
    total, matrices = float(HEADER_BYTES), list[tuple[int, int, int]]()
    for name, role in roles_of(shapes).items():
        shape = shapes[name]
        count = math.prod(shape)
        stored = stored_class(recipe, role.role)
        total += BLOCK_BYTES
        if count < SMALLEST_QUANTIZED or len(shape) < 2 or stored.bits == 16:
            total += (KEPT_INT8 if recipe.own_layout else KEPT_BYTES) * count
            continue
        matrices.append((count, shape[0], count // shape[0]))
        clip = largest_of(count // shape[0]) if stored.k is None else factor * stored.k
        entropy = normal_entropy(clip / stored.code_max, stored.code_max)
        total += count / 8 * coded_bits(recipe.coder, entropy)
        total += SCALE_BYTES[recipe.coder] * shape[0]
    return round(total + _corrections(matrices) * recipe.own_layout)


def _corrections(matrices: Sequence[tuple[int, int, int]]) -> float:
    """Bytes of the leader's corrections. matrices: (weights, rows, columns) of the quantized."""
    able = [
        (rows, columns) for _, rows, columns in sorted(matrices) if fits(rows, columns, RANK, GROUP)
    ]
    return sum(CORRECTION_BYTES * RANK * (rows + columns) for rows, columns in able[-CORRECTED:])


def finest_k(recipe: Recipe) -> float | None:
    """The smallest k that a recipe can be set to; None where its size is not set by one."""
    ks = [position.value for position in recipe.positions if position.parameter == K]
    return min(ks, default=None)
