"""What each part of the method is worth: bits per weight with one part left out at a time.

    python -m benchmarks.ablation CHECKPOINT --curvature curvature.safetensors
        [--only TEXT]... [--data TEXT --tokenizer T [--config CONFIG]]

Every matrix is quantized so that all weights cost the same damage, at three multipliers. Bits are
of our real blocks, steps and all, interpolated at the predicted damage of the full method at the
middle multiplier; with --data also at its measured KL over 128 windows of 256 tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import brotli
import numpy as np
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize, quantize
from packer.quantizers.rounding import factorize
from packer.quantizers.stepping import row_curvature
from packer.quantizers.trellis_path import code_states, symbols_of

from packer.artifact import encode_tensor
from packer.checkpoint import Checkpoint, read_checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import read_curvature
from packer.predicted_damage import bits_per_byte, predicted_nats

# √(12 · damage of a weight in nats · 2), for scalar codes: about 3, 2.5 and 2 bits a weight on the
# reference model.
MULTIPLIERS = (1.7e-4, 2.4e-4, 3.4e-4)
FINER = 0.6  # steps of the trellis, for about the same damage
WINDOW, WINDOWS = 256, 128
SMALLEST = 16_384

Bytes = Callable[[QuantizedTensor], float]


def our_bytes(quantized: QuantizedTensor) -> float:
    return encode_tensor(quantized).size_bytes


def brotli_bytes(quantized: QuantizedTensor) -> float:
    """Our side values, and the codes, or their symbols on the trellis, as bytes under brotli-11."""
    encoded, codes = encode_tensor(quantized), quantized.codes.numpy()
    if isinstance(quantized.format, Stepped) and quantized.format.trellis:
        codes = symbols_of(codes, code_states(codes)[:-1])
    narrow = codes.astype(np.int8 if np.abs(codes).max() < 128 else np.int16)
    packed = len(brotli.compress(narrow.tobytes(), quality=11, lgwin=24))
    return encoded.size_bytes - encoded.payload_bytes + packed


def bytes_with_float16_steps(quantized: QuantizedTensor) -> float:
    encoded = encode_tensor(quantized)
    steps = sum(len(quantized.side[name]) for name in ("row", "column") if name in quantized.side)
    return encoded.size_bytes - encoded.side_bytes + 2 * steps


@dataclass(frozen=True)
class Way:
    """Rounding `gptq2` is `gptq` where there is no curvature of outputs. equal: all tensors have
    the same step in units of their rms weight.
    """

    name: str
    format: str = "trellis.row.col"
    rounding: str = "gptq2"
    size: Bytes = our_bytes
    equal: bool = False


WAYS = (
    Way("everything"),
    Way("codes by brotli-11", size=brotli_bytes),
    Way("float16 steps", size=bytes_with_float16_steps),
    Way("no column steps", "trellis.row"),
    Way("no row steps", "trellis.col"),
    Way("no tensor weights, no row steps", "trellis.col", equal=True),
    Way("one-sided GPTQ", rounding="gptq"),
    Way("scalar codes", "step.row.col"),
    Way("scalar codes, one-sided GPTQ", "step.row.col", "gptq"),
)


@dataclass(frozen=True, eq=False)
class Point:
    """bits per weight; predicted damage in nats; weights by name."""

    bits: float
    nats: float
    weights: dict[str, torch.Tensor]


def unit(weight: torch.Tensor, curvature: Curvature, way: Way, rounding: str) -> float:
    """The mean step at which a weight costs 1/24 nat, in units of the rms weight."""
    hessian = curvature.rounding_hessian
    factors = [factorize(one) for one in (hessian if hessian.dim() == 3 else hessian[None])]
    found = torch.cat([one.upper.diagonal().log() for one in factors if one.upper is not None])
    total = float(found.double().mean())
    rows = row_curvature(curvature).double()
    if ".row" not in way.format:
        total -= math.log(float(rows.mean())) / 2
    elif rounding == "gptq2":
        assert curvature.row_factors is not None
        outputs = [factorize(one) for one in curvature.row_factors]
        found = torch.cat([one.upper.diagonal().log() for one in outputs if one.upper is not None])
        total += float(found.double().mean())
    else:
        total -= float(rows.log().mean()) / 2
    return math.exp(total) / float(weight.float().square().mean().sqrt())


def quantized_by(
    way: Way, names: Sequence[str], checkpoint: Checkpoint, curvature: CurvatureSet, c: float
) -> Point:
    """Every tensor of `names` at the multiplier c."""
    steps, roundings = {}, {}
    for name in names:
        one = curvature.by_tensor[name]
        roundings[name] = way.rounding if one.outputs is not None else "gptq"
        steps[name] = c * unit(checkpoint.tensors[name], one, way, roundings[name])
    if way.equal:
        steps = dict.fromkeys(names, math.exp(np.mean(np.log(list(steps.values())))))
    finer = FINER if way.format.startswith("trellis") else 1
    size, nats, weights = 0.0, 0.0, {}
    for name in names:
        choice = parse_choice(f"{way.format}+{roundings[name]}@{finer * steps[name]:.5g}")
        quantized = quantize(checkpoint.tensors[name], choice, curvature.by_tensor[name])
        weights[name] = dequantize(quantized)
        change = weights[name].float() - checkpoint.tensors[name].float()
        nats += predicted_nats(curvature.by_tensor[name], change) or 0.0
        size += way.size(quantized)
    elements = sum(checkpoint.tensors[name].numel() for name in names)
    return Point(8 * size / elements, nats, weights)


def bits_at(damages: Sequence[float], bits: Sequence[float], damage: float) -> float:
    """Bits at a damage on the line through the two nearest points, in the log of the damage."""
    logs, wanted = np.log(damages), math.log(damage)
    first, second = sorted(np.argsort(np.abs(logs - wanted))[:2])
    slope = (bits[second] - bits[first]) / (logs[second] - logs[first])
    return float(bits[first] + slope * (wanted - logs[first]))


def meter(arguments: argparse.Namespace, checkpoint: Checkpoint) -> Callable[[Point], float]:
    """Measures the KL of a point in bits per byte."""
    from packer.commands.models import load_subjects
    from packer.evaluation import open_data
    from packer.trials import damage_bench

    (subject,) = load_subjects(
        [arguments.checkpoint],
        device=torch.device("cpu"),
        weights=None,
        drop=(),
        config=arguments.config,
        model=None,
        model_config=None,
        say=lambda notes: None,  # noqa: ARG005  (nothing to say here)
    )
    bench = damage_bench(
        subject.model,
        checkpoint,
        None,
        open_data([arguments.data], tokenizer=arguments.tokenizer),
        arguments.data,
        tokens=WINDOW * WINDOWS,
        window=WINDOW,
        held_out=False,
    )
    return lambda point: bench.meter.divergence(point.weights).kl_bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--curvature", required=True)
    parser.add_argument("--only", action="append", help="tensors with this in their name")
    parser.add_argument("--data", help="a text, to measure KL on")
    parser.add_argument("--tokenizer")
    parser.add_argument("--config")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(arguments.checkpoint)
    curvature = read_curvature(arguments.curvature, checkpoint)
    names = [
        name
        for name, weight in checkpoint.tensors.items()
        if weight.dim() >= 2
        and weight.numel() >= SMALLEST
        and name in curvature.by_tensor
        and curvature.by_tensor[name].fisher is not None
        and any(text in name for text in arguments.only or [""])
    ]
    measured = meter(arguments, checkpoint) if arguments.data else None
    elements = sum(checkpoint.tensors[name].numel() for name in names)
    print(f"{len(names)} tensors, {elements:,} weights")
    print("| left out | bits at equal predicted damage | | at equal measured KL | |")
    print("|---|---:|---:|---:|---:|")
    wanted, kl_wanted, base, kl_base = 0.0, 0.0, 0.0, 0.0
    for way in WAYS:
        points = [quantized_by(way, names, checkpoint, curvature, c) for c in MULTIPLIERS]
        bits, damages = [point.bits for point in points], [point.nats for point in points]
        wanted = wanted or damages[1]
        found = bits_at(damages, bits, wanted)
        base = base or found
        line = f"| {way.name} | {found:.4f} | {100 * (found / base - 1):+.2f} % |"
        if measured is not None:
            kls = [measured(point) for point in points]
            kl_wanted = kl_wanted or kls[1]
            found = bits_at(kls, bits, kl_wanted)
            kl_base = kl_base or found
            line += f" {found:.4f} | {100 * (found / kl_base - 1):+.2f} % |"
        print(line, flush=True)
    print(
        f"predicted damage {bits_per_byte(wanted, curvature):.5f} bits per byte"
        + (f", measured KL {kl_wanted:.5f}" if measured is not None else "")
    )


if __name__ == "__main__":
    main()
