"""How the range of a row is chosen: each rule turns rows of weights into one scale per row.

None of the rules has a floor. A floor such as 1/31 silently gives nearly every row of a
weight-decayed model the same step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Of GPTQ-lite (openai/parameter-golf PR #414).
PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
QUANTILE = 0.9995  # of the fake quantization of PR #569
_SEARCH_BLOCK_ELEMENTS = 1 << 18  # bounds the working memory of the search to tens of megabytes
_LARGEST_PATTERN = 0x7BFF  # of the largest finite float16


def store_scale(scale: torch.Tensor, absmax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Stored scales [rows]: rounded to `dtype`, finite, positive for rows with weights.

    A scale that would round to zero becomes the smallest positive number, one that would overflow
    the largest; rows of zeros get scale 0.
    """
    info = torch.finfo(dtype)
    stored = scale.clamp(max=info.max).to(dtype)
    # Numbers, not tensors of the host, for which a GPU would be waited for.
    stored = stored.masked_fill(stored == 0, info.smallest_normal * info.eps)
    return stored.masked_fill(~(absmax > 0), 0.0)


def absmax_scale(rows: torch.Tensor, code_max: int) -> torch.Tensor:
    """float32 [rows, columns] -> [rows]: the largest magnitude takes the largest code."""
    return row_absmax(rows) / code_max


def row_absmax(rows: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each row [rows]."""
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # ten times as fast as aminmax


def kstd_scale(rows: torch.Tensor, code_max: int, k: float) -> torch.Tensor:
    """Clip at k standard deviations of the row, unbiased (PR #1394). Rows of one weight: absmax."""
    if rows.shape[1] < 2:
        return absmax_scale(rows, code_max)
    return k * rows.std(dim=1) / code_max


def percentile_scale(
    rows: torch.Tensor, code_min: int, code_max: int, dtype: torch.dtype, *, per_matrix: bool
) -> torch.Tensor:
    """The percentile of |w| with the least squared error, chosen per row or once per matrix.

    The contest's GPTQ-lite (PR #414) clips every row at its own percentile but picks one winner for
    the whole matrix; per row is never worse in squared error.
    """
    scales = [scale.float() for scale in percentile_scales(rows, code_max, dtype)]
    errors = [row_error(rows, scale, code_min, code_max) for scale in scales]
    error = torch.stack(errors)  # [percentiles, rows]
    if per_matrix:
        return torch.stack(scales).index_select(0, error.sum(dim=1).argmin()[None])[0]
    winner = error.argmin(dim=0, keepdim=True)
    return torch.stack(scales).gather(0, winner)[0]


def percentile_scales(rows: torch.Tensor, code_max: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The stored scales [rows] under each of `PERCENTILES`."""
    ordered = rows.abs().sort(dim=1).values
    return [
        store_scale(_quantile(ordered, percentile) / code_max, ordered[:, -1], dtype)
        for percentile in PERCENTILES
    ]


def quantile_scale(rows: torch.Tensor, code_max: int, fraction: float) -> torch.Tensor:
    """Clip at a quantile of |w|, as the straight-through estimator of PR #569. Where it is 0 in a
    row that has weights: absmax.
    """
    clip = _quantile(rows.abs().sort(dim=1).values, fraction)
    return torch.where(clip > 0, clip, row_absmax(rows)) / code_max


def _quantile(ordered: torch.Tensor, fraction: float) -> torch.Tensor:
    """Linearly interpolated quantile of each ascending row [rows, columns] -> [rows]."""
    position = fraction * (ordered.shape[1] - 1)
    low = int(position)
    high = min(low + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], position - low)


def row_error(
    rows: torch.Tensor, scale: torch.Tensor, code_min: int, code_max: int
) -> torch.Tensor:
    """Squared error [rows], float64, of nearest rounding under scale [rows]."""
    decoded = nearest_codes(rows, scale, code_min, code_max) * scale[:, None]
    return (rows - decoded).double().square().sum(dim=1)


def nearest_codes(
    rows: torch.Tensor, scale: torch.Tensor, code_min: int, code_max: int
) -> torch.Tensor:
    """float32 integers [rows, columns] nearest to rows / scale, ties to even; 0 for scale 0."""
    divisor = scale.float().masked_fill(scale == 0, torch.inf)[:, None]
    return (rows / divisor).round_().clamp_(code_min, code_max)


def least_squares_scale(rows: torch.Tensor, code_max: int) -> torch.Tensor:
    """The float16 scale of least squared error for codes ±code_max, exact over all float16 values.

    With B = Σ|w|q and C = Σq², the error of scale s is Σw² - 2sB + s²C. As s falls past
    |w|/(j - 1/2) the code of w rises from j - 1 to j: B grows by |w| and C by 2j - 1. Adding these
    events into one bin per float16 value and summing from the largest scale down gives B and C, and
    so the error, at every representable scale at once. Positive float16 numbers are ordered like
    their bit patterns, which serve as bins.
    """
    return by_blocks(rows, lambda block: _least_squares_block(block, code_max))


def by_blocks(rows: torch.Tensor, search: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`search` of all rows [rows, columns] -> [rows], some rows at a time to bound its memory."""
    size = max(1, _SEARCH_BLOCK_ELEMENTS // max(rows.shape[1], 1))
    return torch.cat([search(block) for block in torch.split(rows, size)])


def _least_squares_block(rows: torch.Tensor, code_max: int) -> torch.Tensor:
    magnitudes = rows.abs()
    absmax = magnitudes.amax(dim=1)
    low = _pattern(_smallest_useful_scale(rows, absmax, code_max)).long()  # [rows]
    width = int((_pattern((absmax * 2).clamp(2.0**-24, 65504.0)).long() - low).amax()) + 2
    bins = torch.zeros(2, rows.shape[0] * width, dtype=torch.float64)
    row = torch.arange(rows.shape[0]).repeat_interleave(rows.shape[1])
    weight = magnitudes.reshape(-1)
    for j in range(1, code_max + 1):
        # The largest float16 scale at which |w| still reaches code j, counted from the row's low.
        threshold = _pattern((weight / (j - 0.5)).clamp(max=65504.0)).long() - low[row]
        reached = threshold >= 0
        row, weight, threshold = row[reached], weight[reached], threshold[reached]
        index = row * width + threshold.clamp(max=width - 1)
        bins[0].index_add_(0, index, weight.double())
        bins[1].index_add_(0, index, torch.full_like(weight, 2 * j - 1, dtype=torch.float64))
    totals = bins.view(2, -1, width).flip(2).cumsum(2).flip(2)
    patterns = (low[:, None] + torch.arange(width)).clamp(max=_LARGEST_PATTERN)
    scales = patterns.to(torch.int16).view(torch.float16).double()  # [rows, width]
    error = scales * (scales * totals[1] - 2 * totals[0])  # less the constant Σw²
    best = scales.gather(1, error.argmin(dim=1, keepdim=True))[:, 0].float()
    return torch.where(absmax > 0, best, torch.zeros(()))


def _smallest_useful_scale(rows: torch.Tensor, absmax: torch.Tensor, code_max: int) -> torch.Tensor:
    """[rows]: below it, clipping the largest weight alone costs more than the absmax scale does."""
    known = row_error(rows, absmax / code_max, -code_max, code_max).sqrt().float()
    return ((absmax - 1.001 * known) / code_max).clamp(2.0**-24, 65504.0)


def _pattern(values: torch.Tensor) -> torch.Tensor:
    """Bit pattern, int16, of the largest float16 not above each nonnegative float32 value."""
    half = values.to(torch.float16)
    half = torch.where(
        half.float() > values, (half.view(torch.int16) - 1).view(torch.float16), half
    )
    return half.view(torch.int16)


def ternary_scale(rows: torch.Tensor) -> torch.Tensor:
    """The scale of least squared error for codes -1, 0, 1: the mean of the m largest magnitudes.

    For a set of m kept weights the best scale is their mean and the gain (Σ|w|)²/m; the best set of
    each size is the m largest (Li and Liu, Ternary Weight Networks, arXiv:1605.04711, solved
    exactly). Nearest rounding under that scale keeps exactly this set.
    """
    return by_blocks(rows, _ternary_block)


def _ternary_block(rows: torch.Tensor) -> torch.Tensor:
    ordered = rows.abs().double().sort(dim=1, descending=True).values
    totals = ordered.cumsum(dim=1)
    count = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    best = (totals.square() / count).argmax(dim=1, keepdim=True)
    return (totals.gather(1, best) / count[best])[:, 0].float()


def absmean_scale(rows: torch.Tensor) -> torch.Tensor:
    """Mean magnitude of the row, the scale of BitNet b1.58 (arXiv:2402.17764)."""
    return rows.abs().mean(dim=1)
