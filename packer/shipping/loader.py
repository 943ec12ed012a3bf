"""The loader: one generated file that reads an artifact without importing this package.

It is the source text of our decoders and dequantizers for only the formats and coders in use, so
that a submission runs the same code as the tests.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable

from packer.code.minify import minify_closed
from packer.code.prune_branches import Marks
from packer.code.self_extracting import ENTRY, wrap
from packer.shipping.extract import extract

ENTRIES = ("read_weights",)
DECODERS: tuple[str, ...] = (
    "packer.quantizers.dequantize",
    "packer.quantizers.step_grid",
    "packer.artifact.reader",
    "packer.artifact.rans_decoder",
    "packer.quantizers.trellis_path",
    "packer.artifact.stream_decoder",
    "packer.artifact.trellis_decoder",
    "packer.artifact.step_decoder",
    "packer.artifact.decoder",
)
# Functions that only check whether a file is valid. That of a submission is known to be, so that a
# loader does not call them.
CHECKS = frozenset(
    {
        *("check_magic", "check_header", "check_sizes", "check_format", "check_rank", "check_end"),
        *("check_lanes", "check_start", "check_used", "check_scale", "check_finished"),
    }
)
# Checks that a loader does call; every `raise` elsewhere is left out of it.
GUARDS = frozenset({"keep_checksum"})
# Without torch, for coder numpy: `read_arrays` is shipped under the name of `read_weights`.
NUMPY_DECODERS: tuple[str, ...] = (*DECODERS[1:], "packer.artifact.numpy_decoder")
NUMPY_ENTRY = "read_arrays"
# Parts of a loader, and the functions that only each part needs.
PARTS = {
    "kept": ("decode_kept",),
    "scaled": ("read_scale", "decode_scaled"),
    "rank": ("read_correction", "read_factors", "decode_factors"),
    "stepped": ("read_stepped", "decode_stepping"),
    "trellis": ("decode_trellis",),
    "ans": ("open_constriction",),
    "numpy": ("LaneDecoder",),
    "zstd": ("from_zstd",),
    "brotli": ("from_brotli",),
    "lzma": ("from_lzma",),
    "zlib": ("from_zlib",),
}
AUTOMATIC = frozenset({"ans", "brotli", "lzma", "zlib"})
WITHOUT_CONSTRICTION = frozenset({"numpy", "lzma", "zlib"})
KEPT_FORMATS = ("raw", "fp32", "fp16", "bf16")
EVERYTHING = frozenset(PARTS)
RE_ENCODED = EVERYTHING - {"numpy", "zstd"}  # for re-encoding a third-party artifact
# Upper bounds in bytes, counted until the choices are known.
LARGEST_LOADER = 5_000
LARGEST_ENCODER = 17_000  # what a bundle adds to its loader


def parts_of(choices: Iterable[str]) -> frozenset[str]:
    """The names of PARTS that a loader needs to read an artifact of these choices.

    All automatic coders, because the smallest is known only once there are codes.
    """
    parts: set[str] = set()
    for choice in choices:
        format, _, coder = choice.partition("+")[0].partition("~")
        if format in KEPT_FORMATS:
            parts.add("kept")
        elif format.startswith("step"):
            parts.add("stepped")
        elif format.startswith("trellis"):
            parts |= {"stepped", "trellis"}
        else:
            parts |= {"scaled", "rank"} if ".rank" in format else {"scaled"}
        parts |= WITHOUT_CONSTRICTION if coder == "numpy" else {*AUTOMATIC, coder} & EVERYTHING
    return frozenset(parts)


def gives_arrays(parts: frozenset[str]) -> bool:
    """Whether the loader of these parts needs only numpy, and so returns numpy arrays."""
    return "numpy" in parts and parts.isdisjoint({"ans", "brotli", "zstd"})


@functools.cache
def loader_source(parts: frozenset[str] = EVERYTHING) -> str:
    """Python source defining `read_weights(data: bytes) -> {name: tensor}`, as it is shipped.

    It needs numpy, torch and the codecs among its parts, or only numpy if it `gives_arrays`.
    Compressed if that is shorter; `packer code` unpacks it when it packs the loader with a training
    script.
    """
    plain = minified_loader(parts)
    codecs = ("lzma", "brotli") if "brotli" in parts else ("lzma",)
    return min(plain, wrap({ENTRY: plain}, codecs=codecs).text, key=len)


@functools.cache
def minified_loader(parts: frozenset[str] = EVERYTHING) -> str:
    """The loader before it is compressed."""
    uncalled = frozenset(name for part in EVERYTHING - parts for name in PARTS[part])
    marks = Marks(uncalled, CHECKS, GUARDS)
    if not gives_arrays(parts):
        return minify_closed(extract(DECODERS, ENTRIES, marks), ENTRIES)
    tree = extract(NUMPY_DECODERS, [NUMPY_ENTRY], marks)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == NUMPY_ENTRY:
            node.name = ENTRIES[0]
    return minify_closed(tree, ENTRIES)


def loader_bytes(choices: Iterable[str]) -> int:
    """Size of the loader for an artifact of these choices."""
    return len(loader_source(parts_of(choices)).encode())
