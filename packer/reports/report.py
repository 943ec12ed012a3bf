"""The byte report of a checkpoint, a plan or an artifact, as plain values."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from packer.planning.account import Account, Limits
from packer.planning.candidates import TensorInfo
from packer.planning.plan import PackPlan, saved_by

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.packing.pack import Packed


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a report. choice: format, coder and steps as far as they are known.

    size_bytes: all bytes of this tensor in the file. damage_bpb, weight_error: predicted, None if
    not measured. raw_bytes, entropy_bits: of another author's artifact, bytes before compression
    and their order-0 entropy per weight.
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    choice: str
    size_bytes: int
    damage_bpb: float | None = None
    weight_error: float | None = None
    raw_bytes: int | None = None
    entropy_bits: float | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.size_bytes / self.elements if self.elements else None


@dataclass(frozen=True)
class Report:
    """A report of any source. artifact_bytes: of the file; header_bytes: outside all tensors.

    account: the parts of the file if known, else None. damage_kind, damage, price, gap: of the
    plan, else None. notes: what was read or left out, in words.
    """

    source: str
    kind: str  # checkpoint, plan, artifact, foreign
    rows: tuple[TensorRow, ...]
    cap_bytes: int
    code_bytes: int
    artifact_bytes: int
    header_bytes: int
    account: Account | None = None
    damage_kind: str | None = None
    damage: float | None = None
    price: float | None = None
    gap: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes

    @property
    def unused_bytes(self) -> int:
        return self.cap_bytes - self.total_bytes

    def to_json(self) -> dict[str, Any]:
        """The report as printed by `--json`; sizes in bytes."""
        account = self.account
        return {
            "source": self.source,
            "kind": self.kind,
            "cap_bytes": self.cap_bytes,
            "code_bytes": self.code_bytes,
            "artifact_bytes": self.artifact_bytes,
            "total_bytes": self.total_bytes,
            "unused_bytes": self.unused_bytes,
            "header_bytes": account.header_bytes if account else self.header_bytes,
            "side_bytes": account.side_bytes if account else None,
            "payload_bytes": account.payload_bytes if account else None,
            "damage_kind": self.damage_kind,
            "damage": self.damage,
            "price": self.price,
            "gap": self.gap,
            "notes": list(self.notes),
            "tensors": [row_json(row) for row in self.rows],
        }


def row_json(row: TensorRow) -> dict[str, Any]:
    return {**vars(row), "shape": list(row.shape), "bits_per_weight": row.bits_per_weight}


def report_plan(pack_plan: PackPlan, source: str) -> Report:
    """A report of a plan, with its measured sizes."""
    plan, saved = pack_plan.plan, saved_by(pack_plan, 1000)
    infos = {info.name: info for info in pack_plan.measurement.tensors}
    rows = tuple(
        report_row(infos[c.tensor], c.choice, c.size_bytes, c.damage_bpb, c.weight_error)
        for c in plan.chosen
    )
    return Report(
        source=source,
        kind="plan",
        rows=rows,
        cap_bytes=plan.cap_bytes,
        code_bytes=plan.code_bytes,
        artifact_bytes=plan.artifact_bytes,
        header_bytes=plan.header_bytes,
        damage_kind=plan.damage_kind,
        damage=plan.damage,
        price=None if saved is None else saved / 1000,
        gap=plan.gap,
        notes=_notes(pack_plan),
    )


def _notes(pack_plan: PackPlan) -> tuple[str, ...]:
    """What the plan's damage leaves out, in words, and the command that mends it."""
    plan, measurement = pack_plan.plan, pack_plan.measurement
    chosen_freely = len(measurement.candidates) > len(measurement.tensors)
    if plan.damage == 0 or not chosen_freely:
        return ()
    command = shlex.join(["packer", "plan", measurement.source, "--cap", str(plan.cap_bytes)])
    if measurement.curvature is None:
        return (
            "planned without data: a calibrated plan of this size does several times less damage; "
            f"to calibrate: {command} --calibration TEXT",
        )
    if measurement.damage_fit is not None or plan.damage_kind != "damage_bpb":
        return ()
    return (
        "the predicted damage is not fitted to the model: it leaves out that other text differs "
        "from the text calibrated on, to which GPTQ also rounds, and what grows faster than the "
        "square of an error; 1.1 to 2 times as much was measured; to fit it: "
        f"{command} --curvature FILE --calibration TEXT",
    )


def report_packed(packed: Packed, source: str) -> Report:
    """A report of a packed file: the plan's damages with the real sizes."""
    planned = report_plan(packed.plan, source)
    rows = tuple(
        replace(
            row,
            choice=_with_coder(row.choice, packed.encoded[row.name].coder),
            size_bytes=packed.encoded[row.name].size_bytes,
        )
        for row in planned.rows
    )
    return replace(
        planned,
        kind="artifact",
        rows=rows,
        artifact_bytes=packed.account.artifact_bytes,
        account=packed.account,
    )


def _with_coder(choice: str, coder: str) -> str:
    """The choice with the coder that was used, if the choice left it open."""
    head, plus, steps = choice.partition("+")
    return choice if "~" in head else f"{head}~{coder}{plus}{steps}"


def report_artifact(data: bytes, source: str) -> Report:
    """A report of an artifact. Raises decoder.ArtifactError: not an artifact, or damaged."""
    from packer.artifact import decoder
    from packer.artifact.encoder import coder_name, stored_format
    from packer.checkpoint.roles import roles_of

    stored = decoder.parse(data)
    roles = roles_of({tensor.name: tensor.shape for tensor in stored.tensors}, stored.ties)
    rows, side, payload = [], 0, 0
    for tensor in stored.tensors:
        role = roles[tensor.name]
        info = TensorInfo(tensor.name, role.role.value, role.layer, tensor.shape, tensor.dtype)
        choice = f"{stored_format(tensor)}~{coder_name(tensor)}"
        rows.append(report_row(info, choice, tensor.size_bytes))
        side += sum(len(data) for _, data in (tensor.scale or (0, b""), *tensor.factors))
        side += tensor.steps_bytes
        payload += len(tensor.codes[1])
    account = Account(
        stored.cap_bytes, stored.code_bytes, len(data) - side - payload, side, payload
    )
    return Report(
        source=source,
        kind="artifact",
        rows=tuple(rows),
        cap_bytes=stored.cap_bytes,
        code_bytes=stored.code_bytes,
        artifact_bytes=len(data),
        header_bytes=stored.header_bytes,
        account=account,
    )


def report_checkpoint(checkpoint: Checkpoint, limits: Limits) -> Report:
    """A report of a checkpoint: bytes of every tensor, of GGUF, GPTQ and AWQ as stored."""
    from packer.planning.measure import exact_choice, tensor_infos

    file, meta_tensors = checkpoint.dequantized, checkpoint.meta_tensors
    rows = tuple(
        report_row(info, stored if file else str(exact_choice(meta_tensors[info.name].dtype)), size)
        for info in tensor_infos(checkpoint)
        for stored, size in [checkpoint.stored_as(info.name)]
    )
    header_bytes = file.file_bytes - sum(row.size_bytes for row in rows) if file else 0
    return Report(
        source=checkpoint.source,
        kind="checkpoint",
        rows=rows,
        cap_bytes=limits.cap_bytes,
        code_bytes=limits.code_bytes,
        artifact_bytes=sum(row.size_bytes for row in rows) + header_bytes,
        header_bytes=header_bytes,
        notes=checkpoint.notes,
    )


def report_row(
    info: TensorInfo,
    choice: str,
    size_bytes: int,
    damage_bpb: float | None = None,
    weight_error: float | None = None,
) -> TensorRow:
    tensor = info.name, info.role, info.layer, info.shape, info.dtype
    return TensorRow(*tensor, choice, size_bytes, damage_bpb, weight_error)


@dataclass(frozen=True)
class Share:
    """The sums over all tensors of one role or one layer."""

    name: str
    tensors: int
    elements: int
    size_bytes: int
    damage_bpb: float | None
    weight_error: float | None

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.size_bytes / self.elements if self.elements else None


def by_role(report: Report) -> tuple[Share, ...]:
    """Shares by role, the largest first."""
    return _shares(report.rows, lambda row: row.role)


def by_layer(report: Report) -> tuple[Share, ...]:
    """Shares in the order of layers; tensors of no layer first, as 'no layer'."""
    shares = _shares(report.rows, lambda row: "no layer" if row.layer is None else f"{row.layer}")
    return tuple(
        sorted(shares, key=lambda share: -1 if share.name == "no layer" else int(share.name))
    )


def _shares(rows: Iterable[TensorRow], key: Callable[[TensorRow], str]) -> tuple[Share, ...]:
    grouped: dict[str, list[TensorRow]] = {}
    for row in rows:
        grouped.setdefault(key(row), []).append(row)
    shares = [
        Share(
            name,
            len(members),
            sum(row.elements for row in members),
            sum(row.size_bytes for row in members),
            _total([row.damage_bpb for row in members]),
            _total([row.weight_error for row in members]),
        )
        for name, members in grouped.items()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.size_bytes, share.name)))


def _total(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
