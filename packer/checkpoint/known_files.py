"""Files that are no checkpoints and that everybody knows by their first bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

HEAD_BYTES = 512  # of a file: the signature of a tar archive comes late
MIN_TEXT = 8  # letters
CONVERT = "convert it to safetensors with the tools that it comes from, and use that"
UNPACK = "take the checkpoint out of it, and use that"
DOWNLOAD = "download the file itself, from its address for raw files and with the right to read it"
WEIGHTS_FILE = "name the file or folder that holds the weights"

# (what the file starts with, what it is, what to do about it); the first that fits counts.
STARTS: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https?://(git-lfs\.github|hawser\.github|git-media)",
        "a Git LFS pointer, which stands for a file that was not downloaded",
        "fetch it with `git lfs pull`, or download it by itself",
    ),
    (
        rb"\x00\x05\x16[\x00\x07]",
        "an AppleDouble file, which macOS keeps next to a file of the same name without ._",
        "name the file without ._ itself",
    ),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)", "a web page (HTML)", DOWNLOAD),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "an XML document, as servers send in place of a file", DOWNLOAD),
    (rb"GGUF|lmgg|tjgg|algg|ggml", "a GGUF or GGML file of llama.cpp", CONVERT),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5), as Keras writes", CONVERT),
    (rb"\x93NUMPY", "a single numpy array (.npy)", "save named tensors with safetensors"),
    (
        rb"\x0a[\x01-\x7f]\x0a[\x01-\x20][\x20-\xff]{1,32}\x15\x00\x00",
        "a sentencepiece tokenizer",
        WEIGHTS_FILE,
    ),
    (rb".{4}TFL3", "a TensorFlow Lite model", CONVERT),
    (rb"ftrt|ptrt", "a TensorRT engine", CONVERT),
    (rb".{257}ustar", "a tar archive", UNPACK),
    (rb"BZh[1-9]1AY&SY", "a bzip2 archive", UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (rb"\x04\x22\x4d\x18", "an lz4 archive", UNPACK),
    (rb"%PDF-", "a PDF document", WEIGHTS_FILE),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture", WEIGHTS_FILE),
    (rb"PAR1|ARROW1|SQLite format 3", "a table of data", WEIGHTS_FILE),
    (rb"\x7fELF", "a program or library", WEIGHTS_FILE),
    (
        rb"\x00{64}",
        "zeros at its beginning, as of a download whose place was set aside and not filled",
        "download it again",
    ),
)
# Too short to be sure of before everything else was tried.
WEAK_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\x08[\x01-\x20][\x12\x1a\x3a]", "an ONNX model", CONVERT),
    (rb"[\x81-\x8f\xde\xdf][\xa1-\xbf\x00][ -~]{2}", "msgpack, as Flax writes", CONVERT),
)

# (the name of a record, without the folder all are in; what a zip file with it is; what to do)
RECORDS: tuple[tuple[str, str, str], ...] = (
    (r".*\.npy", "an archive of numpy arrays (.npz)", "save named tensors with safetensors"),
    (r"(.*/)?model\.weights\.h5", "a Keras model", CONVERT),
    (r".*(archive_format|serialized_exported_program\.json)", "a torch.export program", CONVERT),
    (r"(.*/)?\.data/.*", "a torch.package archive", CONVERT),
    (r"(.*/)?saved_model\.pb", "a TensorFlow model", CONVERT),
    (r".*\.(safetensors|pt|pth|bin|ckpt)", "a zip archive with checkpoints inside", UNPACK),
)


def known_by_start(head: bytes, *, sure: bool = True) -> tuple[str, str] | None:
    """(what a file is, what to do about it) by its first HEAD_BYTES; None where that is unknown.

    sure: leave out what compressed data may start with by chance.
    """
    for start, what, advice in (*STARTS, *(() if sure else WEAK_STARTS)):
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return what, advice
    text = _as_text(head)
    if text is None:
        return None
    kind = "JSON" if text[0] in "{[" else "a text"
    return f"{kind}, which begins {text.splitlines()[0][:60]!r}", WEIGHTS_FILE


def _as_text(head: bytes) -> str | None:
    """The text that a file begins with, None where it begins with other bytes."""
    try:
        # A letter may be cut off at the end.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()
    except UnicodeDecodeError:
        return None
    plain = text.translate(dict.fromkeys(map(ord, "\r\n\t"), " "))
    return text if len(text) >= MIN_TEXT and plain.isprintable() else None


def known_by_records(names: Iterable[str]) -> tuple[str, str] | None:
    """(what a zip file is, what to do about it) by the names of its records."""
    names = list(names)
    for record, what, advice in RECORDS:
        if any(re.fullmatch(record, name) for name in names):
            return what, advice
    return None


def not_a_checkpoint(path: Path, what: str, advice: str, layers: Sequence[str] = ()) -> str:
    """A refusal of a file that is something else; layers: of compression around it."""
    inside = f"holds, inside its {'+'.join(layers)} data," if layers else "is"
    return (
        f"{path}: {inside} {what}, neither a torch file nor safetensors, nor an artifact; {advice}"
    )
