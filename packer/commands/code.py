"""`packer code`: bytes of code as the rules count them, and one smaller script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.types import (
    EXISTING_FILE,
    JSON,
    WRITABLE,
    print_json,
    refuse_overwriting,
    say,
)

if TYPE_CHECKING:
    from packer.code.pack_script import PackedCode, SourceFile


@click.command(short_help="Count code bytes; minify and wrap code.")
@click.argument("files", nargs=-1, required=True, type=EXISTING_FILE)
@click.option("-o", "--out", type=WRITABLE, help="Write the self-extracting script to FILE.")
@click.option(
    "--rename",
    is_flag=True,
    help="Also shorten local names, where that is smaller; not proven equivalent.",
)
@click.option("--no-minify", is_flag=True, help="Compress the sources without minifying them.")
@click.option(
    "--codec",
    type=click.Choice(["auto", "lzma", "brotli"]),
    default="auto",
    help="Choose the compressor; auto: lzma, which every Python has, or the smaller of both if "
    "FILES import brotli.",
)
@JSON
def code(
    files: tuple[str, ...],
    out: str | None,
    rename: bool,
    no_minify: bool,
    codec: str,
    as_json: bool,
) -> None:
    """Count the bytes of FILES as code, and pack them into one small script.

    Code counts as the UTF-8 bytes of every file. In the script, the first file is the one that
    runs, and every other is a module, imported by its path relative to the first (model.py as
    model, lib/rope.py as lib.rope). Comments and docstrings are removed, which is proven to leave
    the syntax tree unchanged; the result is compressed and written in base 85, and proven to unwrap
    to exactly those sources. The script is written only with -o, and never over an original. The
    same input gives the same bytes under the same versions of Python and the compressors.
    """
    from packer.code.pack_script import Packing, pack_code, read_sources
    from packer.files import write_bytes

    if rename and no_minify:
        raise click.UsageError("--rename is a way to minify; leave out --no-minify")
    refuse_overwriting(files, out)
    sources = read_sources(files)
    python = all(source.path.endswith(".py") for source in sources)
    packed = None
    if python or out is not None:
        codecs = None if codec == "auto" else (codec,)
        packed = pack_code(sources, Packing(not no_minify, rename, codecs))
    if out is not None and packed is not None:
        write_bytes(out, packed.text.encode())
    if as_json:
        print_json(_json(sources, packed, out))
        return
    _print(sources, packed)
    if out is not None:
        say(f"written: {out}")


def _json(
    sources: tuple[SourceFile, ...], packed: PackedCode | None, out: str | None
) -> dict[str, Any]:
    return {
        "code_bytes": sum(source.size_bytes for source in sources),
        "files": [
            {"path": one.path, "size_bytes": one.size_bytes, "text_bytes": one.text_bytes}
            for one in sources
        ],
        "packed": packed.to_json() if packed else None,
        "out": out,
    }


def _print(sources: tuple[SourceFile, ...], packed: PackedCode | None) -> None:
    for one in sources:
        logged = one.text_bytes
        note = f" (a script that reads itself logs {logged:,})" if logged != one.size_bytes else ""
        say(f"{one.path}: {one.size_bytes:,} bytes{note}")
    total = sum(one.size_bytes for one in sources)
    if packed is None:
        say(f"code {total:,} bytes")
        return
    proof = "same syntax tree" if packed.same_tree else "names shortened, compiles; not proven"
    form = f"wrapped under {packed.codec}" if packed.codec else "plain, wrapping does not pay"
    say(
        f"code {total:,} -> minified {packed.minified_bytes:,} ({proof}) -> "
        f"{packed.packed_bytes:,} {form}: {packed.saved_bytes:,} bytes saved"
    )
    if packed.codec:
        needs = (
            f"{', '.join(packed.needs)}, which must be installed" if packed.needs else "no package"
        )
        click.echo(f"to unpack itself, the script needs {needs}")
    if packed.already:
        say("the first file was a self-extracting script; what is inside it was packed")
