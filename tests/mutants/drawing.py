"""What may be changed in a file of Python, one small fault at a time, as text for text."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
# Their arguments may come in any order.
SYMMETRIC = ("suppress", "maximum", "minimum", "hypot", "logaddexp")
FUNCTIONS = {"sorted": "list", "min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One fault: the bytes from ``start`` to ``end`` of a file become ``text``."""

    path: str
    first_line: int
    last_line: int
    start: int
    end: int
    text: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """Only the lines that differ, with - and +."""
        before, after = source.decode().splitlines(), self.apply(source).decode().splitlines()
        lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))
        return "\n".join(line for line in lines[2:] if not line.startswith("@@"))


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of the text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[tuple[int, int, str], Mutant] = {}
    for node, changed, kind in _changes(ast.parse(source)):
        text = ast.unparse(changed)
        if isinstance(changed, ast.expr) and not isinstance(changed, (ast.Constant, ast.Call)):
            text = f"({text})"
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        mutant = Mutant(path, node.lineno, node.end_lineno or node.lineno, start, end, text, kind)
        found.setdefault((start, end, text), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def lines_that_use(mutant: Mutant, source: bytes) -> set[int]:
    """The mutant's lines; outside of functions, where a module's import executes it, its readers'.

    A constant is used where its name is read, a default in the body of its function, a class
    where its name is read and in its methods.
    """
    tree = ast.parse(source)
    lines = set(range(mutant.first_line, mutant.last_line + 1))
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS) and lines & _lines_of(node):
            return lines if node.body[0].lineno <= mutant.first_line else _lines_of(node)
    names = names_at_import(mutant, source)
    used = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names
    }
    for kind in tree.body:
        if isinstance(kind, ast.ClassDef) and lines & _lines_of(kind):
            used.update(*(_lines_of(node) for node in kind.body if isinstance(node, _FUNCTIONS)))
    return used


def names_at_import(mutant: Mutant, source: bytes) -> set[str]:
    """The names that a module's import binds to what the mutant changes: constants, a class."""
    for node in ast.parse(source).body:
        if mutant.first_line not in _lines_of(node):
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            return {
                name.id
                for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
        if isinstance(node, ast.ClassDef):
            return {node.name}
    return set()


def at_import(mutant: Mutant, source: bytes) -> bool:
    """Whether the import of the module executes the mutant, and no function does."""
    return not any(
        mutant.first_line in _lines_of(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, _FUNCTIONS)
    )


def constant_of(mutant: Mutant, source: bytes) -> str | None:
    """The name of the module's constant that the mutant changes."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            pairs: list[tuple[ast.expr, ast.expr]] = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                start = sum(map(len, lines[: value.lineno - 1])) + value.col_offset
                end = sum(map(len, lines[: (value.end_lineno or 0) - 1]))
                if start <= mutant.start and mutant.end <= end + (value.end_col_offset or 0):
                    return ast.unparse(target)
    return None


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _lines_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


Change = tuple[ast.expr | ast.stmt, ast.expr | ast.stmt, str]


def _changes(tree: ast.AST) -> Iterator[Change]:
    """Every node that can be replaced; annotations, decorators and f-strings are left alone."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list") or isinstance(tree, ast.JoinedStr):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or _typing_only(node):
                continue
            if isinstance(node, ast.expr):
                yield from ((node, *change) for change in _of_expression(node))
            elif isinstance(node, ast.stmt):
                yield from ((node, *change) for change in _of_statement(node))
            if name == "test" and not isinstance(node, (ast.Compare, ast.UnaryOp, ast.Constant)):
                yield node, ast.UnaryOp(ast.Not(), node), "condition negated"
            yield from _changes(node)


def _typing_only(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return ast.unparse(node.value).startswith(("TypeVar(", "typing.TypeVar("))
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _of_expression(node: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    match node:
        case ast.Compare(left, operators, comparators):
            for table, kind in ((BOUNDARY, "boundary"), (OPPOSITE, "comparison")):
                for index, operator in enumerate(operators):
                    if type(operator) in table:
                        changed = [*operators]
                        changed[index] = table[type(operator)]()
                        yield ast.Compare(left, changed, comparators), kind
        case ast.BoolOp(operator, values):
            yield (
                ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values),
                "and/or",
            )
        case ast.UnaryOp(ast.Not(), operand):
            yield operand, "not removed"
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            texts = (ast.JoinedStr, ast.List, ast.Tuple)
            if not any(isinstance(side, texts) or _is_text(side) for side in (left, right)):
                yield ast.BinOp(left, ARITHMETIC[type(operator)](), right), "arithmetic"
        case ast.Constant(bool() as value):
            yield ast.Constant(not value), "constant"
        case ast.Constant(float() as value) if abs(value) < 1:
            yield ast.Constant(value * 2 or 1.0), "constant"
        case ast.Constant(int() | float() as value):
            # Of a large float one is no part.
            for other in {value + 1, value - 1} - {value}:
                yield ast.Constant(other), "constant"
        case ast.Call(ast.Name(name), [argument, *_], _) if name in FUNCTIONS:
            keywords = [] if name == "sorted" else node.keywords
            arguments = [argument] if name == "sorted" else node.args
            yield ast.Call(ast.Name(FUNCTIONS[name]), arguments, keywords), "function"
        case ast.Call(function, [first, second, *others], keywords):
            symmetric = ast.unparse(function).rpartition(".")[2] in SYMMETRIC
            symmetric |= ast.dump(first) == ast.dump(second)
            if not (symmetric or any(isinstance(each, ast.Starred) for each in node.args)):
                swapped = ast.Call(function, [second, first, *others], keywords)
                yield swapped, "arguments swapped"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _of_statement(node: ast.stmt) -> Iterator[tuple[ast.stmt, str]]:
    match node:
        case ast.Raise() | ast.Expr(ast.Call()) | ast.Continue() | ast.Break():
            yield ast.Pass(), "statement deleted"
        case ast.AugAssign():
            yield ast.Pass(), "statement deleted"
        case ast.Return(ast.expr() as value):
            if not (isinstance(value, ast.Constant) and value.value is None):
                yield ast.Return(ast.Constant(None)), "nothing returned"
