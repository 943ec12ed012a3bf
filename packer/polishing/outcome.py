"""What a polish gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PolishOutcome:
    """before, after: KL to the unquantized model, in bits per byte of held-out tokens.

    held_out: where those come from, in words. steps, seconds: what was done. cut_short: by the
    clock, so that another run may do more steps or fewer. worth_bytes: about what the same fall of
    damage would cost under the plan's price of a byte; None where the plan has no such price.
    """

    before: float
    after: float
    held_out: str
    held_out_tokens: int
    steps: int
    seconds: float
    cut_short: bool
    worth_bytes: int | None

    @property
    def kept(self) -> bool:
        """Whether it helped. Where not, the file is as it was."""
        return self.after < self.before

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        kl = {f"kl_{name}_bits_per_byte": values.pop(name) for name in ("before", "after")}
        return {"kept": self.kept, **kl, **values}
