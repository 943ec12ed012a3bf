"""What a Python file finds around it when it runs: its folder on the path, no arguments but itself.

Imports inside functions and forwards need the same, so that commands stay in `running_as` for as
long as they call somebody's model.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .errors import ModelError
from .flash_stand_in import flash_stand_in

OURS = __name__.partition(".")[0]
EMBEDDED = ("built-in", "frozen")  # modules that any Python has before it looks at its path


@contextmanager
def running_as(path: str | Path) -> Iterator[None]:
    """Inside, imports and `sys.argv` are as if Python had been started with this file.

    Modules of other places that are called as one in the file's folder give way to it, and are back
    afterwards, as are the path, the arguments and the current directory.
    """
    folders = _folders(Path(path).resolve())
    kept, arguments, directory = list(sys.path), list(sys.argv), Path.cwd()
    hidden = {name: sys.modules.pop(name) for name in _shadowed(folders)}
    sys.path[:0] = map(str, folders)
    sys.argv = [str(path)]
    try:
        with flash_stand_in():
            yield
    finally:
        sys.path[:], sys.argv = kept, arguments
        sys.modules.update(hidden)
        os.chdir(directory)


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file under a name of its own, so that its main does not run.

    One in a package is imported as a part of it. Elsewhere its folder takes the place of the
    package, for relative imports.
    Raises ModelError: no such file, or its import fails.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    if path.suffix != ".py":
        raise ModelError(f"{path} is not a Python file: its name should end in .py")
    try:
        with running_as(path):
            return _imported(path)
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {path} failed with {spelled(error, path)}") from error


def spelled(error: BaseException, path: str | Path) -> str:
    """What was raised, in a line, with the last line in the file's folder that it went through."""
    folder = Path(path).resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    text = " ".join(str(error).split())
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    if isinstance(error, SystemExit):
        text += ", as a program that ends; keep what runs it under if __name__ == '__main__'"
    return f"{type(error).__name__}: {text}{where}"


def _imported(path: Path) -> ModuleType:
    root = _package_root(path)
    if root is not None:
        return importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    package = f"foreign_model_{hashlib.sha256(bytes(path.parent)).hexdigest()[:12]}"
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    name = f"{package}.{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_root(path: Path) -> Path | None:
    """The folder above the outermost package that a file is in; None where it is in none."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    inside = path.relative_to(root).with_suffix("").parts
    if len(inside) == 1 or any("." in part for part in inside):
        return None
    return root


def _folders(path: Path) -> list[Path]:
    """Where the file's imports are looked for before all others."""
    root = _package_root(path)
    return [path.parent] if root is None else [path.parent, root]


def _shadowed(folders: list[Path]) -> list[str]:
    """Modules in memory, with all that is in them, that a file or folder there is called as."""
    names = []
    for name, module in list(sys.modules.items()):
        first = name.partition(".")[0]
        top = sys.modules.get(first)
        file = getattr(module, "__file__", None)
        origin = getattr(getattr(top, "__spec__", None), "origin", None)
        if top is None or file is None or first == OURS or origin in EMBEDDED:
            continue
        theirs = any(
            (folder / f"{first}.py").is_file() or (folder / first / "__init__.py").is_file()
            for folder in folders
        )
        if theirs and not any(Path(file).is_relative_to(folder) for folder in folders):
            names.append(name)
    return names
