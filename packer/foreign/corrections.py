"""What {"w", "m"} artifacts add to codes × scales, in float32 and in this order.

awqgrpintB      groups of columns with steps of their own (PR #1908): awqg_start [groups] first
                columns, awqg_size columns in each, awqg_s_hi [rows] steps of B bits
lqer            a product of low rank (PR #1797): lqA [rows, rank] and lqB [rank, columns] with
                a scale per row of each, lqAs and lqBs
lqer_asym       the same: lqA_a with one scale, lqB_a with a scale per group of its elements
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from packer.errors import CheckpointError
from packer.foreign.tensors import Parts, product

LOW_RANK = ("lqA", "lqAs", "lqB", "lqBs")
LOW_RANK_GROUPED = ("lqA_a", "lqAs_a", "lqB_a", "lqBs_a")
COLUMN_GROUPS = ("awqg_start", "awqg_s_hi", "awqg_size")
SUFFIXES = (*LOW_RANK, *LOW_RANK_GROUPED, *COLUMN_GROUPS)
LARGEST_RANK = 4096
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def suffixes_of(additions: Sequence[str]) -> set[str]:
    """The parts that the entry of a tensor in m requires."""
    suffixes: set[str] = set()
    for addition in additions:
        if addition == "lqer":
            suffixes.update(LOW_RANK)
        else:
            suffixes.update(LOW_RANK_GROUPED if addition == "lqer_asym" else COLUMN_GROUPS)
    return suffixes


def corrected(name: str, codes: torch.Tensor, scale: torch.Tensor, parts: Parts) -> torch.Tensor:
    """float32 weights of codes × scales with all that `parts` adds.

    codes: int8 [rows, columns]. scale: one, or one per row.
    Raises CheckpointError: parts that do not fit the codes.
    """
    if codes.dim() != 2:
        raise CheckpointError(f"{name}: its codes have the shape {list(codes.shape)}; no matrix")
    weight = product(codes, scale)
    if COLUMN_GROUPS[0] in parts:
        steps = _group_steps(name, codes, parts)
        for columns in _column_groups(name, codes, parts):
            weight[:, columns] = product(codes[:, columns], steps)
    for suffixes in (LOW_RANK, LOW_RANK_GROUPED):
        if suffixes[0] in parts:
            left, right = _factors(name, *(parts[suffix] for suffix in suffixes))
            if (left.shape[0], right.shape[1]) != tuple(codes.shape):
                raise CheckpointError(
                    f"{name}: its correction {list(left.shape)} × {list(right.shape)} does not fit "
                    f"the shape {list(codes.shape)}"
                )
            weight = weight + left @ right
    return weight


def _group_steps(name: str, codes: torch.Tensor, parts: Parts) -> torch.Tensor:
    """float32 [rows]."""
    steps = parts["awqg_s_hi"]
    if not steps.is_floating_point() or steps.numel() != codes.shape[0]:
        raise CheckpointError(
            f"{name}: awqg_s_hi is {steps.dtype} with {steps.numel():,} values for "
            f"{codes.shape[0]:,} rows; one float per row belongs there"
        )
    floats = steps.to(torch.float32).reshape(-1)
    if not bool((torch.isfinite(floats * 128) & (floats >= 0)).all()):
        raise CheckpointError(
            f"{name}: a step of awqg_s_hi is negative or not finite; the file is damaged"
        )
    return floats


def _column_groups(name: str, codes: torch.Tensor, parts: Parts) -> list[slice]:
    starts, size = parts["awqg_start"], parts["awqg_size"]
    columns = codes.shape[1]
    if starts.dtype not in INTEGERS or size.dtype not in INTEGERS or size.numel() != 1:
        raise CheckpointError(
            f"{name}: awqg_start is {starts.dtype} and awqg_size {size.numel():,} × {size.dtype}; "
            "integers, and one size, belong there"
        )
    width, last = int(size), -1
    for start in sorted(starts.flatten().tolist()):
        if width < 1 or start < 0 or start + width > columns:
            raise CheckpointError(
                f"{name}: awqg_start names the columns {start:,} to {start + width - 1:,} of its "
                f"{columns:,}; the file is damaged"
            )
        if start <= last:
            raise CheckpointError(
                f"{name}: by awqg_start and awqg_size {width} two groups have column {start:,}; "
                "the file is damaged"
            )
        last = start + width - 1
    return [slice(start, start + width) for start in starts.flatten().tolist()]


def _factors(
    name: str,
    left: torch.Tensor,
    left_scale: torch.Tensor,
    right: torch.Tensor,
    right_scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors [rows, rank] and [rank, columns] in float32."""
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] <= LARGEST_RANK
    groups = right_scale.numel()
    per_row = left_scale.numel() in (1, left.shape[0] if left.dim() else 1)
    if not fits or not groups or right.numel() % groups or not per_row:
        raise CheckpointError(
            f"{name}: factors {list(left.shape)} and {list(right.shape)} with "
            f"{left_scale.numel()} and {groups} scales do not fit together"
        )
    scaled_right = right.float().reshape(groups, -1) * right_scale.float().reshape(-1, 1)
    return left.float() * left_scale.float().reshape(-1, 1), scaled_right.reshape(right.shape)
