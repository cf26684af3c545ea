"""Every place in the product that commits, found by reading its code: `send._settle_one#2` is the second in it.

A block `with ...transaction()` or `with ...begin()` commits at its end; `.commit()` and AUTOCOMMIT where they stand.
Savepoints (`begin_nested`) do not: what follows them decides.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

ROOMS = "subscriptions|charging|subscribing|reading|runs|inbox|checks"  # their files have names of their own
ROOT = Path(__file__).resolve().parents[2]
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Commits = ast.stmt | ast.expr


@dataclass(frozen=True, slots=True)
class Point:
    name: str
    file: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name} ({Path(self.file).relative_to(ROOT)}:{self.first})"


@cache
def all_points() -> dict[str, Point]:
    """By name, in the order of the code."""
    files = sorted(path for room in ("billing", "workers") for path in (ROOT / room).rglob("*.py"))
    return {point.name: point for path in files for point in _points_of(path)}


def point_of(frame: FrameType | None) -> Point | None:
    """The block whose commit is being sent: the innermost one of ours on the stack."""
    blocks = _blocks_by_file()
    while frame is not None:
        inside = [p for p in blocks.get(frame.f_code.co_filename, ()) if p.first <= frame.f_lineno <= p.last]
        if inside:
            return min(inside, key=lambda point: point.last - point.first)
        frame = frame.f_back
    return None


@cache
def _blocks_by_file() -> dict[str, list[Point]]:
    blocks: dict[str, list[Point]] = {}
    for point in all_points().values():
        blocks.setdefault(point.file, []).append(point)
    return blocks


def _points_of(path: Path) -> Iterator[Point]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = re.sub(rf"^billing\.(?:(?:{ROOMS})\.)?", "", module)
    for function, number, node in numbered_commits(path.read_text(encoding="utf-8")):
        yield Point(f"{module}.{function}#{number}", str(path), node.lineno, node.end_lineno or node.lineno)


def numbered_commits(source: str) -> Iterator[tuple[str, int, Commits]]:
    """(function, which one in it, the block or expression that commits)."""
    counted: dict[str, int] = {}
    for function, node in _commits(ast.parse(source), ""):
        counted[function] = counted.get(function, 0) + 1
        yield function, counted[function], node


def _commits(tree: ast.AST, function: str) -> Iterator[tuple[str, Commits]]:
    """Outer before inner, in the order of the lines."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{function}.{node.name}".removeprefix(".") if isinstance(node, NAMED) else function
        if isinstance(node, ast.stmt | ast.expr) and _does_commit(node, within=tree):
            yield function, node
        yield from _commits(node, inner)


def _does_commit(node: Commits, *, within: ast.AST) -> bool:
    match node:
        case ast.With(items=items) | ast.AsyncWith(items=items):
            return any(_opens(item.context_expr) for item in items)
        case ast.Call(func=ast.Attribute(attr="commit")) | ast.Constant(value="AUTOCOMMIT"):
            return True
        case ast.Call():  # what opens the block of a `with` is not counted again: the block is the point
            return _opens(node) and not isinstance(within, ast.withitem)
    return False


def _opens(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="transaction" | "begin")):
            return True
    return False
