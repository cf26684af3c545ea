"""SQL takes values as bound parameters only: no statement is put together from anything that came from outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("billing", "workers") for path in (ROOT / folder).rglob("*.py"))
TAKES_SQL = {"text", "execute", "scalar", "scalars", "exec_driver_sql", "literal_column", "DDL", "executemany"}
LOOKS_LIKE_SQL = re.compile(
    r"\s*(SELECT\s|INSERT INTO\s|UPDATE\s+\w+\s+SET\s|DELETE FROM\s|WITH \w+ AS"
    r"|ALTER \w|CREATE \w|DROP \w|TRUNCATE\s|SET\s+\w+\s*=)"
)

# (file, function) whose statement has a part that is no constant of its module, and why that part is ours.
REVIEWED = {
    ("billing/checks/doctor.py", "_count"): "check.bad is one of the queries in checks/invariants.py",
    ("billing/checks/doctor.py", "_ids"): "check.bad is one of the queries in checks/invariants.py",
    ("billing/store/migrate.py", "_drop_half_built_indexes"): "names quoted by the server, from its own catalogue",
    ("billing/store/engine.py", "_pin"): "settings, from the constants above it",
    ("billing/store/engine.py", "set_up_again"): "as above",
    ("billing/sandbox/simulation/guards.py", "install"): "names of triggers, from the list above it",
    ("billing/sandbox/simulation/oracle.py", "_any"): "a query written out in MAY_WAIT below it",
    ("billing/sandbox/simulation/oracle.py", "_just_now"): "as above",
    ("billing/sandbox/simulation/runner.py", "empty"): "names of tables, from store/models.py; a throw-away server",
    ("billing/sandbox/simulation/runner.py", "_create_database"): "a name the runner makes up; a throw-away server",
}


def test_no_statement_is_put_together_from_values() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), place): f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for place, line in built_statements(path.read_text())
    }
    assert {where for key, where in found.items() if key not in REVIEWED} == set()
    assert REVIEWED.keys() <= found.keys(), "a reviewed place is gone: take it off the list"


@pytest.mark.parametrize(
    "statement",
    [
        'session.execute(text(f"DELETE FROM x WHERE id = {identity}"))',
        'session.execute(text("DELETE FROM x WHERE id = %s" % identity))',
        'session.execute(text("DELETE FROM x WHERE id = {}".format(identity)))',
        'session.execute(text("DELETE FROM x WHERE id = " + identity))',
        'session.execute(text("".join(["DELETE FROM x WHERE id = ", identity])))',
        "session.execute(text(identity))",
        'query = f"SELECT {identity}"\n    session.execute(text(query))',
        'query = "SELECT 1 WHERE x = \'" + identity + "\'"\n    return query',
        'session.scalars(select(X).where(text(f"{identity} = 1")))',
        'session.execute(text(f"DELETE FROM x WHERE id = {TABLES[identity]}"))',
    ],
)
def test_such_a_statement_would_be_found(statement: str) -> None:
    source = f"from sqlalchemy import text\nTABLES = {{}}\ndef f(session, identity):\n    {statement}\n"
    assert [place for place, _line in built_statements(source)] != []


@pytest.mark.parametrize(
    "statement",
    [
        'session.execute(text("DELETE FROM x WHERE id = :id"), {"id": identity})',
        'session.execute(text(f"DELETE FROM x LIMIT {MOST}"))',
        "session.execute(QUERY, {'id': identity})",
        "session.execute(select(X).where(X.id == identity))",
        "session.execute(text(QUERY))",
        'log.info(f"updated {identity}")',
    ],
)
def test_and_these_are_fine(statement: str) -> None:
    source = f'from sqlalchemy import text\nMOST = 5\nQUERY = "SELECT 1"\ndef f(session, identity):\n    {statement}\n'
    assert list(built_statements(source)) == []


def built_statements(source: str) -> Iterator[tuple[str, int]]:
    """(function, line) of every SQL text that is not made of constants alone."""
    tree = ast.parse(source)
    takes_sql = TAKES_SQL if _imports_text(tree) else TAKES_SQL - {"text"}  # xendit/wire.py has its own
    constants = {name for node in tree.body for name in _assigned(node) if name.lstrip("_").isupper()}
    for place, node in _with_function(tree):
        if isinstance(node, ast.Call) and _called(node) in takes_sql and node.args:
            if _called(node) in ("text", "literal_column", "DDL", "exec_driver_sql"):
                suspicious = not _is_constant(node.args[0], constants)
            else:
                suspicious = _is_built(node.args[0]) and not _is_constant(node.args[0], constants)
            if suspicious:
                yield place, node.lineno
        elif _is_built(node) and LOOKS_LIKE_SQL.match(_beginning(node)) and not _is_constant(node, constants):
            yield place, node.lineno


def _is_constant(node: ast.AST, constants: set[str]) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name in constants
        case ast.Attribute(value=ast.Name(id=module), attr=name):  # a constant of another module of ours
            return module.islower() and name.isupper()
        case ast.JoinedStr(values=parts):
            return all(_is_constant(part, constants) for part in parts)
        case ast.FormattedValue(value=value):
            return _is_constant(value, constants)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _is_constant(left, constants) and _is_constant(right, constants)
        case ast.Call(func=ast.Name(id="sql_list"), args=[listed], keywords=[]):  # statuses of domain/lifecycle.py
            return isinstance(listed, ast.Name) and listed.id.isupper()
        case _:
            return False


def _is_built(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.BinOp(left=ast.Constant(value=str()) | ast.JoinedStr(), op=ast.Mod() | ast.Add()):
            return True
        case ast.BinOp(left=ast.BinOp() as left, op=ast.Add()):
            return _is_built(left)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str()), attr="format" | "join" | "replace")):
            return True
        case _:
            return False


def _beginning(node: ast.AST) -> str:
    first = next(
        (part for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)), None
    )
    return str(first.value) if first else ""


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _imports_text(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("sqlalchemy")
        and "text" in {a.name for a in node.names}
        for node in ast.walk(tree)
    )


def _assigned(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id


def _with_function(node: ast.AST, place: str = "module") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else place
        yield inside, child
        yield from _with_function(child, inside)
