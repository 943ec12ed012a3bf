"""One self-extracting script: sources compressed, spelled in base 85, and executed in place.

The script counts as code with its own length. `wrap` writes one, `unwrap` reads one back without
running it, and knows the shapes other authors use as well.
"""

from __future__ import annotations

import ast
import base64
import lzma
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import brotli

from packer.code.syntax import called_name, calls_in, parse_if_possible
from packer.errors import CodeError

ENTRY = "__main__"
MAX_SOURCE_BYTES = 64 * 2**20
LZMA2 = 0x21
LZMA2_WINDOW = 2**23  # what a reader without settings allows
DECODERS: dict[str, Callable[[str | bytes], bytes]] = {
    "b85decode": base64.b85decode,
    "b64decode": base64.b64decode,
}
EXTREME = 9 | lzma.PRESET_EXTREME
XZ_MAGIC = b"\xfd7zXZ\x00"
LZMA_ALONE_START = b"]\x00\x00"
CODECS = ("lzma", "brotli")


@dataclass(frozen=True)
class Wrapped:
    """text: the script. codec: lzma, which Python has, or brotli, which must be installed."""

    text: str
    codec: str


# Runs the entry after a finder for the other sources stands in front of every other. Nothing in it
# may depend on a global that the entry could overwrite, hence the defaults.
PRELUDE = """class _F:
 def find_spec(s,n,*a,m={modules},p={packages},u=__import__('importlib.util').util):
  if n in m:return u.spec_from_loader(n,s,is_package=n in p)
 def create_module(s,c):0
 def exec_module(s,m,r=_R,n={modules},f=globals().get('__file__')):
  if f:m.__file__=f
  r(n[m.__name__],m.__name__,m.__dict__)
__import__('sys').meta_path.insert(0,_F())
_R(0,'__main__',globals())
"""
# _S: sources, _R: runs the source with that number. Without `findable`, functions have no source.
RUNNER = """def _R(i,n,g,S=_S):exec(compile(S[i],'<%s>'%n,'exec'),g)
"""
FINDABLE_RUNNER = """def _R(i,n,g,S=_S,c=__import__('linecache').cache):
 n='<%s>'%n;s=S[i].decode();c[n]=len(s),None,s.splitlines(1),n;exec(compile(s,n,'exec'),g)
"""


def wrap(
    sources: Mapping[str, str], *, findable: bool = False, codecs: Iterable[str] = CODECS
) -> Wrapped:
    """The shortest script that runs `sources[ENTRY]`, the others importable by their dotted names.

    findable: inspect.getsource works on what the script defines; Triton kernels and torch.jit
    need it. Equal sources give equal text under equal versions of the compressors.
    Raises CodeError: no entry, or a script that does not give the sources back.
    """
    if ENTRY not in sources or any("\0" in source for source in sources.values()):
        raise CodeError("a script needs an entry, and no source may hold a NUL character")
    payload, run = _payload(sources, findable)
    candidates = [
        Wrapped(text, codec) for codec in codecs for text in _spelled(payload, run, codec)
    ]
    best = min(candidates, key=lambda one: len(one.text))  # the first of equals
    if unwrap(best.text) != dict(sources):
        raise CodeError("the wrapped script does not give the sources back; nothing was written")
    return best


def _payload(sources: Mapping[str, str], findable: bool) -> tuple[bytes, str]:
    """What is compressed, and the pattern of the statement that runs it."""
    others = [name for name in sources if name != ENTRY]
    if not others and not findable:
        return sources[ENTRY].encode(), "exec({})"
    prelude = FINDABLE_RUNNER if findable else RUNNER
    if others:
        packages = {n for n in others if any(o.startswith(f"{n}.") for o in others)}
        modules = {name: i + 1 for i, name in enumerate(others)}
        listed = "{" + ",".join(repr(name) for name in sorted(packages)) + "}" if packages else "()"
        prelude += PRELUDE.format(modules=repr(modules).replace(" ", ""), packages=listed)
    else:
        prelude += "_R(0,'__main__',globals())\n"
    parts = [prelude, sources[ENTRY], *(sources[name] for name in others)]
    return "\0".join(parts).encode(), "_P,*_S={}.split(b'\\0')\nexec(_P)"


def _spelled(payload: bytes, run: str, codec: str) -> Iterable[str]:
    """Every script under one codec that might be the shortest."""
    if codec == "brotli":
        for mode in (brotli.MODE_TEXT, brotli.MODE_GENERIC):
            for window in (24, 22, 18, 16):
                data = brotli.compress(payload, mode=mode, quality=11, lgwin=window)
                yield _script("brotli", "L.decompress({})", data, run)
        return
    raw = f'L.decompress({{}},3,None,[{{{{"id":{LZMA2}}}}}])'
    for literal, position in ((c, p) for c in range(5) for p in range(5 - c)):
        for alignment in range(3):
            model = {"lc": literal, "lp": position, "pb": alignment, "nice_len": 273}
            window = min(max(len(payload), 4096), LZMA2_WINDOW)
            filters = [{"id": LZMA2, "preset": EXTREME, "dict_size": window, **model}]
            data = lzma.compress(payload, lzma.FORMAT_RAW, filters=filters)
            yield _script("lzma", raw, data, run)


def _script(module: str, decompress: str, data: bytes, run: str) -> str:
    spelled = f'B.b85decode("{base64.b85encode(data).decode()}")'
    return f"import {module} as L,base64 as B\n" + run.format(decompress.format(spelled)) + "\n"


def unwrap(text: str) -> dict[str, str] | None:
    """The sources inside a self-extracting script, without running any of it; None if it is none.

    Found are scripts that decompress (lzma, zlib, brotli) one literal in base 85 or 64.
    Raises CodeError: a literal that is damaged or expands beyond 64 MiB.
    """
    payload = _payload_of(text)
    if payload is None:
        return None
    try:
        parts = payload.decode().split("\0")
    except UnicodeDecodeError as error:
        raise CodeError(f"the wrapped source is not UTF-8: {error}") from None
    if len(parts) == 1:
        return {ENTRY: parts[0]}
    names = {number: name for name, number in _module_numbers(parts[0]).items()}
    return {names.get(i, ENTRY if i == 0 else f"part {i}"): s for i, s in enumerate(parts[1:])}


def _module_numbers(prelude: str) -> dict[str, int]:
    """The names of bundled modules, from the literal inside our own prelude."""
    for node in ast.walk(ast.parse(prelude)):
        if isinstance(node, ast.FunctionDef) and node.name == "find_spec":
            value = ast.literal_eval(node.args.kw_defaults[0] or ast.Dict([], []))
            return {str(name): int(number) for name, number in value.items()}
    return {}


def _payload_of(text: str) -> bytes | None:
    """The bytes that a self-extracting script decompresses; None if it decompresses no literal."""
    tree = parse_if_possible(text)
    if tree is None or len(tree.body) > 12:  # a program that happens to hold a compressed table
        return None
    for call in calls_in(tree):
        if called_name(call) != "decompress" or not call.args:
            continue
        encoded = _decoded_literal(call.args[0], tree)
        if encoded is not None:
            return _decompress(encoded, call)
    return None


def _decoded_literal(node: ast.expr, tree: ast.Module) -> bytes | None:
    """The bytes of b85decode("...") or b64decode("..."), its literal possibly behind a name."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    decode = DECODERS.get(called_name(node))
    literal = node.args[0]
    if isinstance(literal, ast.Name):
        literal = _value_of(literal.id, tree) or literal
    if decode is None or not isinstance(literal, ast.Constant):
        return None
    if not isinstance(literal.value, str | bytes):
        return None
    try:
        return decode(literal.value)
    except ValueError as error:
        raise CodeError(f"the wrapped source is damaged: {error}") from None


def _value_of(name: str, tree: ast.Module) -> ast.expr | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [name] == [getattr(t, "id", "") for t in node.targets]:
            return node.value
    return None


def _decompress(data: bytes, call: ast.Call) -> bytes:
    """By the bytes, not by the module's name in the script; expansion is bounded."""
    readers: tuple[Callable[[bytes], bytes], ...] = (_zlib, _raw_lzma(call), _brotli)
    if data.startswith((XZ_MAGIC, LZMA_ALONE_START)):
        readers = (_lzma, *readers)
    errors: list[str] = []
    for read in readers:
        try:
            return read(data)
        except (lzma.LZMAError, zlib.error, brotli.error, ValueError, EOFError) as error:
            errors.append(str(error))
    raise CodeError(f"the wrapped source does not decompress: {'; '.join(errors)}")


def _bounded(text: bytes, finished: bool) -> bytes:
    """Raises CodeError: a text that is too long. EOFError: one that is cut short."""
    if len(text) > MAX_SOURCE_BYTES:
        raise CodeError(f"the wrapped source expands beyond {MAX_SOURCE_BYTES:,} bytes")
    if not finished:
        raise EOFError("the data end too early")
    return text


def _lzma(data: bytes) -> bytes:
    reader = lzma.LZMADecompressor()
    return _bounded(reader.decompress(data, MAX_SOURCE_BYTES + 1), reader.eof)


def _zlib(data: bytes) -> bytes:
    reader = zlib.decompressobj()
    return _bounded(reader.decompress(data, MAX_SOURCE_BYTES + 1), reader.eof)


def _brotli(data: bytes) -> bytes:
    reader = brotli.Decompressor()
    text: bytes = reader.process(data, output_buffer_limit=MAX_SOURCE_BYTES + 1)
    return _bounded(text, reader.is_finished())


def _raw_lzma(call: ast.Call) -> Callable[[bytes], bytes]:
    """A reader with the filters spelled in the call, or with plain LZMA2."""
    filters: Any = [{"id": LZMA2}]
    spelled = [*call.args[3:4], *(word.value for word in call.keywords if word.arg == "filters")]
    for node in spelled:
        filters = _filters(node) or filters

    def read(data: bytes) -> bytes:
        reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        return _bounded(reader.decompress(data, MAX_SOURCE_BYTES + 1), reader.eof)

    return read


def _filters(node: ast.expr) -> list[dict[str, int]] | None:
    """Literal filters; names such as lzma.FILTER_LZMA2 are looked up."""

    class Named(ast.NodeTransformer):
        def visit_Attribute(self, inner: ast.Attribute) -> ast.AST:
            value = getattr(lzma, inner.attr, None)
            return ast.Constant(value) if isinstance(value, int) else inner

    try:
        value = ast.literal_eval(Named().visit(ast.parse(ast.unparse(node), mode="eval")))
    except (ValueError, SyntaxError):
        return None
    good = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return value if good else None
