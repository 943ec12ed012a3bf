"""The bundle: one script with both the encoder and the decoder for only the formats of a plan.

A submission is run again from its training code, so that the code that packs the weights is part of
it and counts. Like the loader, the bundle is source text of our own functions.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packer.code.minify import minify_closed
from packer.code.prune_branches import Marks
from packer.code.self_extracting import ENTRY, wrap
from packer.shipping.extract import extract
from packer.shipping.loader import (
    CHECKS,
    DECODERS,
    ENTRIES,
    EVERYTHING,
    GUARDS,
    PARTS,
    loader_bytes,
    parts_of,
)

if TYPE_CHECKING:
    from packer.quantizers.choice import Choice


def _modules(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names.split())


ENCODERS = (
    *_modules("packer.quantizers", "clip prune curvature formats choice rounding stepping"),
    *_modules("packer.quantizers", "two_sided compiled_loops trellis_search trellis low_rank"),
    "packer.quantizers.quantize",
    *_modules("packer.artifact", "rans_encoder symbol_writers context_classes ans_encoder"),
    *_modules("packer.artifact", "trellis_encoder encoder"),
    "packer.shipping.fit_to_cap",
)
BUNDLE_ENTRIES = (*ENTRIES, "fit_to_cap", "read_curvatures", "Choice", "Curvature")
DEFINED = ("read_curvatures", "encode_weights", "Curvature")  # beside the loader's entries
# As CHECKS and GUARDS of packer/shipping/loader.py: what a bundle leaves out, and what raises.
ENCODER_CHECKS = CHECKS | {"check_shape"}
ENCODER_GUARDS = GUARDS | {"keep_fitting", "keep_usable"}
# The functions that an encoder needs only for each part.
ENCODER_PARTS = {
    "kept": ("_encode_kept", "_stored_bytes"),
    "scaled": ("_encode_scaled", "choose_scale"),
    "rank": ("_encode_factors", "correction"),
    "stepped": ("_encode_stepped", "_stepped"),
    "trellis": ("encode_trellis", "trellis_codes"),
    "ans": ("ConstrictionEncoder",),
    "numpy": ("RansEncoder",),
    "zstd": ("to_zstd",),
    "brotli": ("to_brotli",),
    "lzma": ("to_lzma",),
    "zlib": ("to_zlib",),
}
# Functions that only one rounding variant or range rule needs.
VARIANTS = {
    "gptq": ("_factors",),
    "gptq2": ("_output_factors", "round_both_ways"),
    "prune": ("prune_smallest",),
    "mse": ("least_squares_scale",),
    "kstd": ("kstd_scale",),
    "percentile": ("percentile_scale",),
    "rounded": ("_percentile_by_gptq",),
    "quantile": ("quantile_scale",),
    "zero": ("without_small",),
    "absmax": ("absmax_scale",),
    "absmean": ("absmean_scale",),
    "ternary": ("ternary_scale",),
}
# Compiled loops, and the same without a compiler, about five times slower. A trellis search exists
# only compiled; with one, the other loops are compiled too.
COMPILED = ("_compiled_block", "_compiled_tile")
NOT_COMPILED = ("_by_columns", "_by_antidiagonals")
THREADS = 8  # with compiled loops; other loops would wait for the interpreter


@dataclass(frozen=True)
class BundleContents:
    """What a bundle contains.

    choices: by tensor; only the ratios of their steps matter. ties, metadata: of the artifact.
    beside_bytes: size of other code files and the margin.
    """

    choices: Mapping[str, str]
    ties: Mapping[str, str]
    metadata: Mapping[str, str]
    cap_bytes: int
    beside_bytes: int


@dataclass(frozen=True)
class Bundle:
    """script: the file. decoder_bytes: the share of a loader for the same formats."""

    script: str
    decoder_bytes: int

    @property
    def encoder_bytes(self) -> int:
        """The rest: encoder, plan and command line."""
        return self.size_bytes - self.decoder_bytes

    @property
    def size_bytes(self) -> int:
        return len(self.script.encode())


GLUE = """
def encode_weights(weights, curvature, cap_bytes, code_bytes):
    choices = {{name: Choice(*_KINDS[kind], {step}) for name, kind, step in _PLAN}}
    return fit_to_cap(
        weights, choices, _TIES, _METADATA, curvature, cap_bytes, code_bytes, {threads})

_KINDS = {kinds}
_PLAN = {plan}
_TIES = {ties!r}
_METADATA = {metadata!r}
"""
COMMAND = """
if __name__ == "__main__":
    import os, sys, torch
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: WEIGHTS CURVATURE OUT [CAP]")
    _, weights, curvature, out, *cap = sys.argv
    def read(path, how):
        try:
            with open(path, "rb") as file:
                return how(file)
        except Exception as error:
            sys.exit(f"{{path}} cannot be read: {{error!r:.200}}")
    def tensors(file):
        if weights.endswith(".safetensors"):
            return read_tensors(file.read())[0]
        return torch.load(file, map_location="cpu", weights_only=True)
    weights = read(weights, tensors)
    curvature = read(curvature, lambda file: read_curvatures(file.read()))
    code = os.path.getsize(__file__) + {beside}
    try:
        data = encode_weights(weights, curvature, int(*cap or [{cap}]), code)
        with open(out + ".tmp", "wb") as file:
            file.write(data)
        os.replace(out + ".tmp", out)
    except Exception as error:
        sys.exit(f"{{out}} was not written: {{error}}")
    print(f"code {{code}} + artifact {{len(data)}} = {{code + len(data)}}")
"""


def make_bundle(contents: BundleContents) -> Bundle:
    """`python bundle.py WEIGHTS CURVATURE OUT [CAP]`; imported or executed, it defines
    `encode_weights(weights, curvature, cap_bytes, code_bytes)`, `read_curvatures(data)`,
    `Curvature(hessian, fisher, tokens, ...)` by position, and `read_weights(data)`.

    The cap and the bytes of other files that count as code are in the script.
    """
    codecs = ("lzma", "brotli") if "brotli" in parts_of(contents.choices.values()) else ("lzma",)
    script = wrap({ENTRY: _source(contents)}, codecs=codecs).text
    return Bundle(script, loader_bytes(contents.choices.values()))


def _source(contents: BundleContents) -> str:
    from packer.quantizers.choice import parse_choice

    choices = {name: parse_choice(text) for name, text in contents.choices.items()}
    parts = parts_of(contents.choices.values())
    classes = sorted({kind for one in choices.values() for kind in _classes(one.format)})
    unused = sorted(EVERYTHING - parts)
    never = [name for part in unused for name in (*PARTS[part], *ENCODER_PARTS[part])]
    unused = sorted(VARIANTS.keys() - _variants(choices))
    never += [name for variant in unused for name in VARIANTS[variant]]
    never += NOT_COMPILED if "trellis" in parts else COMPILED
    entries = [*BUNDLE_ENTRIES, *classes, "read_tensors"]
    marks = Marks(frozenset(never), ENCODER_CHECKS, ENCODER_GUARDS)
    tree = extract((*DECODERS, *ENCODERS), entries, marks)
    command = COMMAND.format(beside=contents.beside_bytes, cap=contents.cap_bytes)
    tree.body += ast.parse(_glue(contents, choices) + command).body
    return minify_closed(tree, [*ENTRIES, *DEFINED])


def _classes(format: object) -> list[str]:
    base = getattr(format, "base", None)
    return [type(format).__name__, *([] if base is None else _classes(base))]


def _variants(choices: Mapping[str, Choice]) -> set[str]:
    """Names of VARIANTS that some choice uses, directly or through another."""
    used: set[str] = set()
    for choice in choices.values():
        classes = _classes(choice.format)
        rule = "ternary" if "Ternary" in classes and choice.range_rule == "mse" else None
        used |= {rule or (choice.range_rule or "").partition("-")[0]} & VARIANTS.keys()
        used |= {"mse"} if "LowRank" in classes else set()
        used |= {"absmax"} if choice.range_rule == "kstd" else set()
        used |= {"rounded"} if choice.range_rule == "percentile-rounded" else set()
        used |= {"prune"} if choice.prune else set()
        used |= {"zero"} if choice.zero else set()
        used |= {"gptq", choice.rounding} if choice.rounding != "nearest" else set()
    return used


def _glue(contents: BundleContents, choices: Mapping[str, Choice]) -> str:
    """The plan in the bundle: every tensor's choice, in two tables."""
    sources = {name: _source_of_choice(choice) for name, choice in choices.items()}
    kinds = list(dict.fromkeys(sources.values()))
    rows: list[tuple[str, int, object]]
    rows = [(name, kinds.index(sources[name]), one.step) for name, one in choices.items()]
    zeros = any(one.zero for one in choices.values())
    if zeros:
        rows = [(name, kind, (step, choices[name].zero)) for name, kind, step in rows]
    return GLUE.format(
        step="*step" if zeros else "step",
        kinds="[" + ",".join(kinds) + "]",
        plan=rows,
        ties=dict(contents.ties),
        metadata=dict(contents.metadata),
        threads=THREADS if any("trellis" in kind for kind in contents.choices.values()) else 1,
    )


def _source_of_choice(choice: Choice) -> str:
    """The arguments of a Choice without its step, as source text."""
    values = (choice.coder, choice.range_rule, choice.range_value, choice.reach, choice.prune)
    rounding = f"{choice.rounding!r},{int(choice.ascending)}"
    return f"({_source_of_format(choice.format)},{','.join(map(repr, values))},{rounding})"


def _source_of_format(format: object) -> str:
    assert dataclasses.is_dataclass(format)
    fields = [getattr(format, one.name) for one in dataclasses.fields(format) if one.init]
    inner = [_source_of_format(f) if dataclasses.is_dataclass(f) else repr(f) for f in fields]
    return f"{type(format).__name__}({','.join(inner)})"
