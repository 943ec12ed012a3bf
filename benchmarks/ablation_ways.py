"""The parts of the method, and with which of them matrices are quantized in the ablation."""

from __future__ import annotations

from dataclasses import dataclass

Way = frozenset[str]
"""Names of the parts in use. The empty one is the plain base: scalar codes, one float16 step per
tensor, the same in units of the rms weight for all tensors, one-sided GPTQ with its columns by
descending diagonal, brotli-11.
"""


@dataclass(frozen=True)
class Part:
    """A part and what it is compared with. A part that means something only beside others is
    removed from less than everything, or added to more than the plain base.

    needed: parts that are there both with and without it. needing: parts that go with it.
    instead_of: parts that it takes the place of, left out on both sides.
    """

    name: str
    label: str
    needed: Way = frozenset()
    needing: Way = frozenset()
    instead_of: Way = frozenset()

    def removed(self) -> tuple[Way, Way]:
        """(without it, with it), of everything else."""
        full = EVERYTHING - self.instead_of
        return full - {self.name} - self.needing, full

    def alone(self) -> tuple[Way, Way]:
        """(without it, with it), on the plain base."""
        return self.needed, self.needed | {self.name} | self.needing


PARTS = (
    Part("coder", "coder (in place of brotli-11)", needing=frozenset({"refined"})),
    Part("refined", "within it: refined classes", needed=frozenset({"coder"})),
    Part("columns", "column steps"),
    Part("rows", "row steps (row weights)"),
    Part("tensors", "tensor weights"),
    Part("coded", "coded steps (in place of float16)", needed=frozenset({"rows", "columns"})),
    Part("two-sided", "two-sided GPTQ"),
    Part("order", "order of columns"),
    Part("points", "reconstruction points", instead_of=frozenset({"trellis", "rate"})),
    Part("trellis", "trellis, rate-aware", needing=frozenset({"rate"})),
    Part("rate", "within it: rate-aware choice", needed=frozenset({"trellis"})),
)
EVERYTHING: Way = frozenset(part.name for part in PARTS)
PLAIN: Way = frozenset()
SIZE_ONLY: Way = frozenset({"coder", "refined", "coded"})
"""Parts that change bytes and no weight."""


def ways() -> list[Way]:
    """All ways that are compared, first everything, those with equal weights side by side."""
    found = {way for part in PARTS for way in (*part.removed(), *part.alone())}
    return sorted(found, key=lambda way: (-len(way - SIZE_ONLY), spell(way - SIZE_ONLY), -len(way)))


def spell(way: Way) -> str:
    """The way in words, by the shorter list.

    >>> spell(EVERYTHING - {"rows"}), spell(frozenset({"rows"})), spell(PLAIN)
    ('without rows', 'only rows', 'plain')
    """
    if way in (EVERYTHING, PLAIN):
        return "everything" if way else "plain"
    left_out = EVERYTHING - way
    if len(left_out) < len(way):
        return "without " + " ".join(sorted(left_out))
    return "only " + " ".join(sorted(way))
