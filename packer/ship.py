"""The loader: one generated file that reads an artifact with no import of ours.

It is the source text of the decoders and of the dequantize functions, without comments, docstrings
and annotations, so that what a submission runs is what the tests run.
"""

from __future__ import annotations

import ast
import importlib.resources

MODULES = (
    ("packer.quantizers", "dequantize.py"),
    ("packer.quantizers", "step_grid.py"),
    ("packer", "stream_decoder.py"),
    ("packer", "step_decoder.py"),
    ("packer", "decoder.py"),
)
USAGE = '"""Weights of an artifact: state_dict = read_weights(open(path, "rb").read())."""'


def loader_source() -> str:
    """Python source defining `read_weights(data: bytes) -> {name: tensor}`.

    It needs numpy, torch and the codecs that the artifact uses, and nothing of ours.
    """
    imports: dict[str, None] = {}
    bodies: list[str] = []
    for package, name in MODULES:
        tree = ast.parse(importlib.resources.files(package).joinpath(name).read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                if _is_foreign(node):
                    imports[ast.unparse(node)] = None
            elif not _is_docstring(node):
                bodies.append(ast.unparse(_Stripped().visit(node)))
    return "\n".join([USAGE, "from __future__ import annotations", *imports, *bodies]) + "\n"


def _is_foreign(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether the loader needs the import: not ours, and not for annotations only."""
    names = [alias.name for alias in node.names]
    module = node.module or "" if isinstance(node, ast.ImportFrom) else names[0]
    return not module.startswith("packer") and module not in (
        "__future__",
        "typing",
        "numpy.typing",
    )


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Stripped(ast.NodeTransformer):
    """Functions and classes without docstrings, and functions without annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
        node.body = [part for part in node.body if not _is_docstring(part)] or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = [part for part in node.body if not _is_docstring(part)] or [ast.Pass()]
        return node
