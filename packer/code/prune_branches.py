"""Code without the branches that lead to what never happens.

A shipped decoder reads one known file: no check of it ever fails, and functions for formats that it
lacks are never called. A block that is certain to raise, or to call such a function, is then never
run, so the `if` around it is known to be false. The tests of an `if` are taken to change nothing.
Which functions these are is listed where modules are shipped (packer/shipping/loader.py and
packer/shipping/bundle.py).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from packer.code.syntax import called_name

Block = list[ast.stmt]


@dataclass(frozen=True)
class Marks:
    """What is known of functions and methods, by name.

    uncalled: never called. checks: they only raise or return nothing, so statements that call them
    are left out. guards: they raise in what is shipped too, and stay whole.
    """

    uncalled: frozenset[str] = frozenset()
    checks: frozenset[str] = frozenset()
    guards: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        return self.uncalled | self.checks | self.guards


def without(node: ast.stmt, marks: Marks) -> ast.stmt:
    """The statement at the top of a module (which is changed) without branches that never run."""
    if isinstance(node, ast.FunctionDef) and node.name not in marks.guards:
        node.body = _Pruner(marks).block(node.body) or [ast.Pass()]
    elif isinstance(node, ast.ClassDef):
        for part in node.body:
            without(part, marks)
    elif isinstance(node, ast.Assign):
        node.value = _Pruner(marks).visit(node.value)
    return node


class _Pruner(ast.NodeTransformer):
    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def block(self, body: Sequence[ast.stmt]) -> Block | None:
        """What is left of a block; None of one that never runs."""
        kept: Block = []
        dead = False  # what follows never runs
        for statement in reversed(body):
            left = self.statement(statement)
            if left is None:
                kept, dead = [], True
            elif dead:
                kept, dead = self._before_dead(left)
            else:
                kept = [*left, *kept]
        return None if dead else kept

    def _before_dead(self, left: Block) -> tuple[Block, bool]:
        """(what is left, whether it never runs) of a statement whose successors never run."""
        if len(left) == 1 and isinstance(left[0], ast.If) and _leaves(left[0].body):
            return left[0].body, False
        if any(isinstance(inner, ast.Return) for node in left for inner in ast.walk(node)):
            return left, False
        return [], True

    def statement(self, node: ast.stmt) -> Block | None:
        """What is left of a statement; None of one that never runs."""
        if isinstance(node, ast.If):
            return self._if(node)
        if isinstance(node, ast.Try):
            return self._try(node)
        if isinstance(node, ast.With | ast.For | ast.While):
            node.body = self.block(node.body) or [ast.Pass()]
        elif isinstance(node, ast.FunctionDef):
            without(node, self.marks)
        elif isinstance(node, ast.Raise) or self._calls_never(node):
            return None
        elif isinstance(node, ast.Pass) or self._only_checks(node):
            return []
        else:
            self.visit(node)
        return [node]

    def _if(self, node: ast.If) -> Block | None:
        then, otherwise = self.block(node.body), self.block(node.orelse)
        if then is None or otherwise is None:
            return otherwise if then is None else then
        if not then and not otherwise:
            return []
        test = self.visit(node.test)
        if not then:
            return [ast.If(ast.UnaryOp(ast.Not(), test), otherwise, [])]
        return [ast.If(test, then, otherwise)]

    def _try(self, node: ast.Try) -> Block | None:
        """Handlers that only raise are left out."""
        body = self.block(node.body)
        handlers = [(one, self.block(one.body)) for one in node.handlers]
        live = [(one, left) for one, left in handlers if left is not None]
        if body is None or not (live or node.finalbody):
            return body
        node.body = body
        for one, left in live:
            one.body = left or [ast.Pass()]
        node.handlers = [one for one, _ in live]
        return [node]

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        if self._calls_never(node.body):
            return self.visit(node.orelse)  # type: ignore[no-any-return]
        if self._calls_never(node.orelse):
            return self.visit(node.body)  # type: ignore[no-any-return]
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        """Entries of a table of functions that are never called are left out."""
        kept = [
            (key, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if not (isinstance(value, ast.Name) and value.id in self.marks.uncalled)
        ]
        node.keys, node.values = [key for key, _ in kept], [value for _, value in kept]
        return self.generic_visit(node)

    def _calls_never(self, node: ast.AST) -> bool:
        """Whether evaluating it is certain to call what is never called."""
        if isinstance(node, ast.IfExp):
            return self._calls_never(node.test) or (
                self._calls_never(node.body) and self._calls_never(node.orelse)
            )
        if isinstance(node, ast.BoolOp):
            return self._calls_never(node.values[0])
        if isinstance(node, ast.Lambda | ast.FunctionDef | ast.ClassDef | ast.comprehension):
            return False
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in self.marks.uncalled:
            return True
        return any(self._calls_never(inner) for inner in ast.iter_child_nodes(node))

    def _only_checks(self, node: ast.stmt) -> bool:
        call = node.value if isinstance(node, ast.Expr) else None
        return isinstance(call, ast.Call) and called_name(call) in self.marks.checks


def _leaves(body: Block) -> bool:
    """Whether a block always ends the function or the turn of its loop."""
    return isinstance(body[-1], ast.Return | ast.Continue | ast.Break)
