"""What the settings of a script are before it runs: constants, and environment variables' defaults.

Only what is assigned once in the whole file, and from literals, other such settings and
os.environ, is known. Everything else is unknown, and nothing is concluded from it.
"""

from __future__ import annotations

import ast
import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 20
MAX_LENGTH = 10_000  # of a string or a number's digits, so that no folding grows without end

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
_METHODS = ("lower", "upper", "strip")


class Unknown(Exception):  # noqa: N818 - not an error: most expressions are unknown
    """An expression whose value cannot be told without running the script."""


class Switches:
    """Values of names and attributes in a tree, as far as they are certain.

    environment: variables that the script will find set.
    """

    def __init__(self, tree: ast.Module, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._anything_is_set = False
        self._bound: dict[str, list[ast.expr | None]] = defaultdict(list)
        for node in ast.walk(tree):
            self._bind(node)
            if isinstance(node, ast.ClassDef) and node.decorator_list:
                self._fields_are_unknown(node)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, node.value)
        elif isinstance(node, ast.arg | ast.keyword):
            self._bound[node.arg or ""].append(None)
        elif isinstance(node, ast.alias):
            self._bound[node.asname or node.name].append(None)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
            named = node.args[1] if len(node.args) > 1 else None
            if isinstance(named, ast.Constant):
                self._bound[str(named.value)].append(None)
            else:
                self._anything_is_set = True
        elif isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            name = node.id if isinstance(node, ast.Name) else node.attr
            self._bound[name].append(None)  # taken back by _assign for plain assignments

    def _fields_are_unknown(self, node: ast.ClassDef) -> None:
        """Fields of a dataclass are whatever the constructor is handed."""
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                self._bound[inner.target.id].append(None)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        name = getattr(target, "id", None) or getattr(target, "attr", None)
        if name is not None:
            self._bound[name].append(value)

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression. Raises Unknown."""
        if depth > MAX_DEPTH:
            raise Unknown
        try:
            found = self._value(node, depth + 1)
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            raise Unknown from None
        if isinstance(found, str | int) and len(str(found)) > MAX_LENGTH:
            raise Unknown
        return found

    def _value(self, node: ast.expr, depth: int) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple):
            return tuple(self.value(item, depth) for item in node.elts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self.value(node.operand, depth)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand, depth)
        if isinstance(node, ast.BoolOp):
            return self._boolean(node, depth)
        if isinstance(node, ast.Compare):
            return self._comparison(node, depth)
        if isinstance(node, ast.Name | ast.Attribute):
            return self._named(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise Unknown

    def _boolean(self, node: ast.BoolOp, depth: int) -> Any:
        """One operand can decide alone, whatever the unknown ones are."""
        decides = isinstance(node.op, ast.Or)
        value: Any = None
        unknown = False
        for operand in node.values:
            try:
                value = self.value(operand, depth)
            except Unknown:
                unknown = True
                continue
            if bool(value) is decides:
                return decides
        if unknown:
            raise Unknown
        return value

    def _comparison(self, node: ast.Compare, depth: int) -> bool:
        left = self.value(node.left, depth)
        for operation, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(right, ast.List | ast.Set):  # elsewhere it may be filled later
                right = ast.Tuple(right.elts, ast.Load())
            value = self.value(right, depth)
            if not _COMPARE[type(operation)](left, value):
                return False
            left = value
        return True

    def _named(self, node: ast.Name | ast.Attribute, depth: int) -> Any:
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name == "TYPE_CHECKING":
            return False
        if self._anything_is_set and isinstance(node, ast.Attribute):
            raise Unknown
        values = self._bound.get(name, [])
        # Every plain assignment is noted twice: as one that stores, and with its value.
        if len(values) != 2 or sum(value is None for value in values) != 1:
            raise Unknown
        (value,) = (value for value in values if value is not None)
        return self.value(value, depth)

    def _call(self, node: ast.Call, depth: int) -> Any:
        function = node.func
        if node.keywords:
            raise Unknown
        if isinstance(function, ast.Name) and function.id in _FUNCTIONS and len(node.args) == 1:
            return _FUNCTIONS[function.id](self.value(node.args[0], depth))
        spelled = ast.unparse(function)
        if spelled in ("os.environ.get", "os.getenv", "environ.get", "getenv"):
            variable = self.value(node.args[0], depth)
            default = self.value(node.args[1], depth) if len(node.args) > 1 else None
            return self.environment.get(str(variable), default)
        if isinstance(function, ast.Attribute) and function.attr in _METHODS and not node.args:
            return getattr(str(self.value(function.value, depth)), function.attr)()
        raise Unknown
