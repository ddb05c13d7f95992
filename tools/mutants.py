"""Small wrong changes of a module: which there are, and which of them nobody can see.

The operators are cosmic-ray's, and two of ours. Left out are, by rule: annotations and types,
docstrings, assertions, what errors and log lines say; and of the replacements of an operator all
but one or two.
"""

import ast
import difflib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Parso refuses to be imported first by cosmic_ray.ast.
import parso
from cosmic_ray.ast import ast_nodes  # pyright: ignore[reportMissingImports]
from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import OperatorProvider  # pyright: ignore[reportMissingImports]
from parso.python.tree import Keyword

EQUIVALENTS = Path(__file__).with_name("mutants_equivalent.json")

REPLACED = {
    "ReplaceBinaryOperator": (
        *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul"),
        *("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr", "LShift_RShift", "RShift_LShift"),
    ),
    "ReplaceComparisonOperator": (
        *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
        *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
    ),
    "ReplaceUnaryOperator": ("USub_UAdd", "Delete_Invert", "Delete_Not"),
}
"""Of cosmic-ray's families of replacements those that are made: the opposite, and the next."""

DISPLAYS = ("testlist_comp", "testlist_star_expr", "dictorsetmaker")
"""Parso's names for what stands in a list, tuple, set or mapping."""

SAYS = ("log", "logger", "logging", "warnings")
"""What is called to say something."""

TYPES = ("Int", "Float", "UInt8", "UInt32", "Callable", "dict", "tuple", "list", "Mapping")
"""What names are given to in a module, as types."""


class LeaveOutElement:
    """Leaves an element out of a list, tuple, set or mapping of several."""

    def mutation_positions(self, node):
        """Return the place of each element."""
        return [(element.start_pos, element.end_pos) for element, _ in self._elements(node)]

    def mutate(self, node, index):
        """Return the node without the element and its comma."""
        _, (first, last) = list(self._elements(node))[index]
        node.children[first:last] = []
        return node

    @staticmethod
    def _elements(node: Any) -> Iterator[tuple[Any, tuple[int, int]]]:
        parent: Any = node.parent
        if node.type not in DISPLAYS or parent.type == "return_stmt":
            return
        commas = [n for n, child in enumerate(node.children) if child.type == "operator"]
        commas = [n for n in commas if node.children[n].value == ","]
        starts = [0, *(n + 1 for n in commas)]
        ends = [*(n + 1 for n in commas), len(node.children)]
        parts = [(a, b) for a, b in zip(starts, ends, strict=True) if a < b]
        if len(parts) > 2 or (len(parts) == 2 and node.type == "dictorsetmaker"):
            yield from ((node.children[a], (a, b)) for a, b in parts)


class LeaveOutCall:
    """Leaves out a statement that is nothing but a call."""

    def mutation_positions(self, node):
        """Return the place of the statement."""
        return [(node.start_pos, node.end_pos)] if self._is_call(node) else []

    def mutate(self, node, index):
        """Return `pass` in its place."""
        return Keyword("pass", node.start_pos, node.get_first_leaf().prefix)

    @staticmethod
    def _is_call(node: Any) -> bool:
        last: Any = node.children[-1] if getattr(node, "children", None) else None
        return (
            node.type == "atom_expr"
            and node.parent.type in ("simple_stmt", "suite")
            and last.type == "trailer"
            and last.children[0].value == "("
        )


class Mutant(NamedTuple):
    """One wrong change.

    Attributes:
        key: the line, the operator and the how manieth this is of both.
        operator: its name.
        occurrence: as `mutate_code` counts.
        lines: those of the statement that it is in.
    """

    key: str
    operator: str
    occurrence: int
    lines: range


def of_module(source: str) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines."""
    tree, nodes = ast.parse(source), list(ast_nodes(parso.parse(source)))
    silent, statements = _silent(tree), _statements(tree)
    placed = []
    for name, operator in OPERATORS.items():
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(places):
            if not any(first <= start and end <= last for first, last in silent):
                placed.append((start, name, occurrence))
    written, seen, mutants = source.splitlines(), Counter(), []
    for (line, _), name, occurrence in sorted(placed):
        key = f"{written[line - 1].strip()} | {name}"
        seen[key] += 1
        lines = min((lines for lines in statements if line in lines), key=len, default=range(line))
        mutants.append(Mutant(f"{key} {seen[key]}", name, occurrence, lines))
    return mutants


def mutated(source: str, mutant: Mutant) -> str | None:
    """Return a module with a mutant; None where that is no Python."""
    changed = mutate_code(source, OPERATORS[mutant.operator], mutant.occurrence)
    try:
        compile(changed or "", "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return None if changed == source else changed


def changes(source: str, changed: str) -> tuple[str, str]:
    """Return the lines that differ, before and after, without indentation."""
    old, new = source.splitlines(), changed.splitlines()
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    before = " ".join(line.strip() for _, a, b, _, _ in codes for line in old[a:b])
    return before, " ".join(line.strip() for _, _, _, a, b in codes for line in new[a:b])


def equivalents(module: str) -> dict[str, str]:
    """Return the keys of the mutants of a module that change nothing, each with the reason."""
    return json.loads(EQUIVALENTS.read_text()).get(module, {}) if EQUIVALENTS.exists() else {}


def _operators() -> Iterator[tuple[str, Any]]:
    provider: Any = OperatorProvider()
    for name in provider:
        family, _, kind = name.partition("_")
        if not family.startswith("Variable") and kind in REPLACED.get(family, (kind,)):
            yield name, provider[name]()
    yield "LeaveOutElement", LeaveOutElement()
    yield "LeaveOutCall", LeaveOutCall()


OPERATORS = dict(_operators())


def _silent(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the places that are left out, each from (line, column) to (line, column)."""
    nodes: list[Any] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            nodes.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif _is_silent(node):
            nodes.append(node)
    nodes = [node for node in nodes if node is not None]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes]


def _is_silent(node: ast.AST) -> bool:
    """Tell whether something is said, asserted, or a type."""
    match node:
        case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Expr(ast.Constant()):
            return True
        case ast.Call(ast.Attribute(ast.Name(name))):
            return name in SAYS
        case ast.If(ast.Name(name)):
            return name == "TYPE_CHECKING"
        case ast.Assign(value=ast.Subscript(ast.Name(name))):
            return name in TYPES
    return False


def _statements(tree: ast.Module) -> list[range]:
    """Return the lines of every statement, of one with a body those of its head."""
    ranges = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            body = getattr(node, "body", None)
            first = getattr(node, "lineno", None)
            for decorator in getattr(node, "decorator_list", ()):
                first = min(first, decorator.lineno)  # pyright: ignore[reportArgumentType]
            if first is not None:
                end = getattr(node, "end_lineno", first)
                ranges.append(range(first, max(body[0].lineno, first + 1) if body else end + 1))
    return ranges
