"""Code bytes as the rules count them, and the same code in fewer: minified, compressed, wrapped."""

from __future__ import annotations

import io
import os
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packer.code.minify import minify
from packer.code.self_extracting import CODECS, ENTRY, unwrap, wrap
from packer.code.syntax import parse
from packer.code.texts import encoding_of
from packer.errors import CodeError

# Functions whose own source text is read back when the script runs.
READS_SOURCE = re.compile(r"\btriton\b|\bgetsource|\btorch\.jit\.script\b|\bcustom_op\b")

IMPORTS_BROTLI = re.compile(r"^\s*(?:import|from)\s[^#\n]*\bbrotli\b", re.MULTILINE)


@dataclass(frozen=True)
class SourceFile:
    """One counted file. module: its name for `import` from the first file.

    text_bytes: what a script that reads itself as text and encodes it again would log; less than
    size_bytes where lines end in CR LF.
    """

    path: str
    module: str
    text: str
    size_bytes: int

    @property
    def text_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Packing:
    """How code is compressed. rename: only where that is smaller. codecs: the compressors that may
    be used, see packer.code.self_extracting; without them brotli only where the sources import it,
    since it is no part of Python.
    """

    minified: bool = True
    rename: bool = False
    codecs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PackedCode:
    """text: the script that replaces all files. codec: what its payload is under, None if plain.

    same_tree: whether every source parses to the original's syntax tree, docstrings left out.
    already: the first file was a self-extracting script, and what it holds was packed.
    """

    text: str
    codec: str | None
    original_bytes: int
    minified_bytes: int
    same_tree: bool
    already: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """Packages besides Python that the script needs in order to unpack itself."""
        return ("brotli",) if self.codec == "brotli" else ()

    @property
    def packed_bytes(self) -> int:
        return len(self.text.encode())

    @property
    def saved_bytes(self) -> int:
        return self.original_bytes - self.packed_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "original_bytes": self.original_bytes,
            "minified_bytes": self.minified_bytes,
            "packed_bytes": self.packed_bytes,
            "saved_bytes": self.saved_bytes,
            "codec": self.codec,
            "needs": list(self.needs),
            "same_tree": self.same_tree,
            "already_packed": self.already,
        }


def read_sources(paths: Sequence[str | os.PathLike[str]]) -> tuple[SourceFile, ...]:
    """The files, the script that is run first. A file named twice is an error.

    Raises CodeError: a file that cannot be read or is not UTF-8.
    """
    folder = Path(paths[0]).resolve().parent
    sources: dict[Path, SourceFile] = {}
    for path in paths:
        resolved = Path(path).resolve()
        if resolved in sources:
            raise CodeError(f"{path} is named twice; every file counts once")
        try:
            data = resolved.read_bytes()
            text = _source_text(data).replace("\r\n", "\n").replace("\r", "\n")
        except OSError as error:
            raise CodeError(f"{path} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, SyntaxError, LookupError) as error:
            raise CodeError(
                f"{path} is not a text in UTF-8, so Python does not run it ({error}); its bytes "
                f"look like {encoding_of(data)[0]}: save it as UTF-8"
            ) from None
        module = ENTRY if not sources else _module_name(resolved, folder)
        sources[resolved] = SourceFile(str(path), module, text, len(data))
    return tuple(sources.values())


def _source_text(data: bytes) -> str:
    """The source as Python reads it: UTF-8, or as a comment at its start declares."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    if b"\0" in data:
        raise SyntaxError("it holds NUL bytes")
    return data.decode(encoding)


def _module_name(path: Path, folder: Path) -> str:
    """What `import` calls the file when the first file's folder is on the path."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    parts = list(inside.with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def pack_code(files: Sequence[SourceFile], packing: Packing | None = None) -> PackedCode:
    """All files as one script; see `wrap` for how. Deterministic.

    A minified script that wrapping would only lengthen stays plain.
    Raises CodeError: a file that is no Python, that does not parse, or that could not be proven.
    """
    packing = packing or Packing()
    packed = _packed(files, packing)
    if packing.rename:
        plain = _packed(files, replace(packing, rename=False))
        packed = min(plain, packed, key=lambda one: one.packed_bytes)
    return packed


def _packed(files: Sequence[SourceFile], packing: Packing) -> PackedCode:
    sources, already = _opened(files)
    short: dict[str, str] = {}
    same_tree = True
    for module, (name, source) in sources.items():
        if packing.minified:
            done = minify(source, name, rename=packing.rename)
            short[module], same_tree = done.text, same_tree and done.same_tree
        else:
            parse(source, name)
            short[module] = source
    _with_packages(short)
    texts = [source for _, source in sources.values()]
    findable = any(READS_SOURCE.search(source) for source in texts)
    has_brotli = any(IMPORTS_BROTLI.search(source) for source in texts)
    codecs = packing.codecs or (CODECS if has_brotli else ("lzma",))
    wrapped = wrap(short, findable=findable, codecs=codecs)
    plain = len(short) == 1 and len(short[ENTRY].encode()) <= len(wrapped.text)
    return PackedCode(
        short[ENTRY] if plain else wrapped.text,
        None if plain else wrapped.codec,
        original_bytes=sum(file.size_bytes for file in files),
        minified_bytes=sum(len(source.encode()) for source in short.values()),
        same_tree=same_tree,
        already=already,
    )


def _opened(files: Sequence[SourceFile]) -> tuple[dict[str, tuple[str, str]], bool]:
    """module -> (name for messages, source); a file that is itself a wrapper is opened first."""
    sources: dict[str, tuple[str, str]] = {}
    already = False
    for file in files:
        if not file.path.endswith(".py"):
            raise CodeError(f"{file.path} is no Python source; it is counted, but not packed")
        inner = unwrap(file.text)
        if inner is not None and file.module == ENTRY:
            already = True
            sources |= {module: (f"{file.path} ({module})", t) for module, t in inner.items()}
        elif file.module in sources:
            raise CodeError(f"{file.path}: there is another file for the module {file.module}")
        elif inner is not None and set(inner) == {ENTRY}:  # such as a loader
            sources[file.module] = (file.path, inner[ENTRY])
        else:
            sources[file.module] = (file.path, file.text)
    return sources, already


def _with_packages(sources: dict[str, str]) -> None:
    """An empty package for every folder of a bundled module that has no __init__.py among them."""
    for module in list(sources):
        parts = module.split(".")
        for end in range(1, len(parts)):
            sources.setdefault(".".join(parts[:end]), "")
