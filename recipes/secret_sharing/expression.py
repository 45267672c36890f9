"""The expressions that the calculator knows: a safe part of Python's, and their numbers taken out."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_OPERATORS = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.USub: operator.neg, ast.UAdd: lambda x: x},
}
_CAN = "an expression has numbers, + - * / **, comparisons, parentheses and `x if y < z else w`"
_LONGEST, _HIGHEST, _DEEPEST = 2000, 1000, 200
_TOO_DEEP = f"the expression is nested too deeply: {_DEEPEST} levels are the most, and `1 + 2 + 3` has 2"


@dataclass(frozen=True)
class Program:
    """An expression without its numbers: this is public."""

    text: str
    """With the names x0, x1, … in place of numbers; exponents stay."""
    decimals: tuple[bool, ...]
    """Which numbers are decimals."""

    @property
    def is_comparison(self) -> bool:
        """Whether the value is a truth value."""
        return isinstance(self._tree, ast.Compare)

    @property
    def is_decimal(self) -> bool:
        """Whether there are decimals in it, or a division, which makes them."""
        return any(self.decimals) or any(isinstance(node, ast.Div) for node in ast.walk(self._tree))

    @property
    def _tree(self) -> ast.expr:
        return ast.parse(self.text, mode="eval").body

    def evaluate(self, numbers: Callable[[int], Any], select: Callable[[Any, Any, Any], Any]) -> Any:
        """Compute it on whatever `numbers(index)` gives; `select(condition, x, y)` stands for if-else."""

        def value(node: ast.expr) -> Any:
            match node:
                case ast.Name(name):
                    return numbers(int(name[1:]))
                case ast.UnaryOp(kind, operand):
                    return _OPERATORS[type(kind)](value(operand))
                case ast.BinOp(base, ast.Pow(), ast.Constant(exponent)):
                    return value(base) ** exponent
                case ast.BinOp(left, kind, right):
                    return _OPERATORS[type(kind)](value(left), value(right))
                case ast.Compare(left, kinds, rights):
                    operands = [value(part) for part in (left, *rights)]
                    steps = zip(kinds, operands, operands[1:], strict=False)
                    truths = [_OPERATORS[type(kind)](x, y) for kind, x, y in steps]
                    return math.prod(truths[1:], start=truths[0])
                case ast.IfExp(condition, yes, no):
                    return select(value(condition), value(yes), value(no))
            raise AssertionError(f"the parser lets {node} through")

        return value(self._tree)


def parse(expression: str) -> tuple[Program, list[int | float]]:
    """The program, and its numbers in the order in which they stand.

    Raises:
        ValueError: no expression, or one with more in it than the calculator knows.
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters: {_LONGEST} are the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about style
            tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, UnicodeError) as error:
        reason = getattr(error, "msg", "it is no text")
        raise ValueError(f"{_cut(expression)!r} is not an expression: {reason}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            _check(node)
    extract = _Extract()
    text = ast.unparse(extract.visit(tree))
    return Program(text, tuple(isinstance(x, float) for x in extract.numbers)), extract.numbers


def _check_depth(tree: ast.expr) -> None:
    """Refuse what would take more steps into the tree than Python's stack has room for."""
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(_TOO_DEEP)


def _check(node: ast.expr) -> None:
    """Refuse what the calculator does not know."""
    kinds: list[ast.AST] = []
    match node:
        case ast.Constant(value) if type(value) in (int, float):
            if abs(value) > 1e300:
                raise ValueError("a number is too large: not even Python's floats go far beyond 1e300")
        case ast.BinOp(_, ast.Pow(), exponent):
            if not isinstance(exponent, ast.Constant) or type(exponent.value) is not int:
                raise ValueError(f"{_shown(node)}: an exponent is public, a whole number from 0")
            if exponent.value > _HIGHEST:
                raise ValueError(f"{_shown(node)}: exponents go up to {_HIGHEST}")
        case ast.BinOp(op=kind) | ast.UnaryOp(op=kind):
            kinds = [kind]
        case ast.Compare(ops=several):
            kinds = several
        case ast.IfExp(ast.Compare()):
            pass
        case _:
            kinds = [node]
    if any(type(kind) not in _OPERATORS for kind in kinds):
        raise ValueError(f"{_shown(node)}: {_CAN}")


class _Extract(ast.NodeTransformer):
    """Puts names for numbers, and keeps the numbers; exponents are public."""

    def __init__(self) -> None:
        self.numbers: list[int | float] = []

    def visit_Constant(self, node: ast.Constant) -> ast.Name:
        self.numbers.append(node.value)
        return ast.Name(f"x{len(self.numbers) - 1}")

    def visit_IfExp(self, node: ast.IfExp) -> ast.IfExp:
        body, test = self.visit(node.body), self.visit(node.test)  # as they stand, from left to right
        return ast.IfExp(test, body, self.visit(node.orelse))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.Pow):
            return ast.BinOp(self.visit(node.left), node.op, node.right)
        return self.generic_visit(node)


def _shown(node: ast.AST) -> str:
    return _cut(ast.unparse(node))


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"
