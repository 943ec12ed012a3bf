"""The loader: one generated file that reads an artifact with no import of ours.

It is the source text of the decoders and of the dequantize functions, of just the formats and
coders in use, so that what a submission runs is what the tests run.
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
    "packer.artifact.artifact_error",
    "packer.artifact.reader",
    "packer.artifact.rans_decoder",
    "packer.quantizers.trellis_path",
    "packer.artifact.stream_decoder",
    "packer.artifact.trellis_decoder",
    "packer.artifact.step_decoder",
    "packer.artifact.decoder",
)
# Functions that only check whether a file is as specified: the file of a submission is known to be,
# so no loader calls them.
CHECKS = frozenset(
    {
        *("check_magic", "check_header", "check_sizes", "check_format", "check_rank", "check_end"),
        *("check_lanes", "check_start", "check_used", "check_scale", "check_finished"),
    }
)
# Functions that a loader calls nonetheless, to raise: every other `raise` is left out of it.
GUARDS = frozenset({"keep_checksum"})
# Without torch, for coder numpy: `read_arrays` is shipped under the name of `read_weights`.
NUMPY_DECODERS: tuple[str, ...] = (*DECODERS[1:], "packer.artifact.numpy_decoder")
NUMPY_ENTRY = "read_arrays"
# What a loader needs to know, and the functions that only this needs.
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
RE_ENCODED = EVERYTHING - {"numpy", "zstd"}  # whatever becomes of another author's artifact
LARGEST_LOADER = 5_000  # bytes; counted where it is not known yet what a loader must hold
LARGEST_ENCODER = 17_000  # likewise of what a bundle adds to it
LARGEST_CALIBRATION = 11_000  # and of a calibration in a bundle


def parts_of(choices: Iterable[str]) -> frozenset[str]:
    """What a loader must hold to read an artifact of these choices: names of PARTS.

    Of the automatic coders all, because which is smallest is known only once codes are there.
    """
    found: set[str] = set()
    for choice in choices:
        format, _, coder = choice.partition("+")[0].partition("~")
        if format in KEPT_FORMATS:
            found.add("kept")
        elif format.startswith("step"):
            found.add("stepped")
        elif format.startswith("trellis"):
            found |= {"stepped", "trellis"}
        else:
            found |= {"scaled", "rank"} if ".rank" in format else {"scaled"}
        found |= WITHOUT_CONSTRICTION if coder == "numpy" else {*AUTOMATIC, coder} & EVERYTHING
    return frozenset(found)


def gives_arrays(parts: frozenset[str]) -> bool:
    """Whether the loader of these parts needs no package but numpy, and so gives numpy arrays."""
    return "numpy" in parts and parts.isdisjoint({"ans", "brotli", "zstd"})


@functools.cache
def loader_source(parts: frozenset[str] = EVERYTHING) -> str:
    """Python source defining `read_weights(data: bytes) -> {name: tensor}`, as it is shipped.

    It needs numpy, torch and the codecs among its parts, and nothing of ours; where it
    `gives_arrays`, numpy alone. Wrapped, if that is
    shorter: `packer code` opens it again when it packs the loader with a training script.
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
    """What the loader of an artifact of these choices counts."""
    return len(loader_source(parts_of(choices)).encode())
