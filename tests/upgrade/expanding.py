"""What a migration may do while old workers are alive. `complaints` reads its source; nothing is run.

A migration that takes away what older software needs says so: CONTRACTS = "0001" names the last release that needed it.
A unique index may take the place of a stricter one that goes in the same migration: IMPLIED = "new_index by old_index".
An index that is dropped refuses nothing; a statement that relies on it (ON CONFLICT) fails in test_old_workers.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

HARMLESS = {"f", "get_context", "create_table", "create_table_comment"}
WRITES_ROWS = re.compile(r"\s*(UPDATE|INSERT)\b", re.IGNORECASE)
HIDDEN_DDL = re.compile(r";|\b(ALTER|DROP|RENAME|TRUNCATE|LOCK)\b", re.IGNORECASE)


def complaints(source: str, earlier: Collection[str]) -> list[str]:
    """Why this migration must not run beside old workers; empty when it may."""
    tree = ast.parse(source)
    found = [*_odd_imports(tree), *_bad_contract(tree, earlier)]
    contracts = contracted(source) is not None
    implied, _, stricter = _constants(tree).get("IMPLIED", "").partition(" by ")
    dropped = {_text(call, 0, "index_name") for call in _calls(tree) if _name(call) == "drop_index"}
    made: set[str] = set()
    apart = _in_autocommit(tree)
    for call in _calls(tree):
        name = _name(call)
        if name == "create_table":
            made.add(str(_text(call, 0, "table_name")))
        found += _why_locking(call, name, made, apart)
        if implied and name == "create_index" and _text(call, 0, "index_name") == implied and stricter in dropped:
            continue
        if not contracts and (why := _why_contracting(call, name, made)):
            found.append(f"line {call.lineno}: op.{name}: {why}")
    if apart and any(id(call) not in apart and _name(call) not in ("f", "get_context") for call in _calls(tree)):
        found.append("what runs outside a transaction is a migration of its own, or it would be half done")
    return found


def contracted(source: str) -> str | None:
    """The last release that needed what this migration removes."""
    return _constants(ast.parse(source)).get("CONTRACTS")


def _constants(tree: ast.Module) -> dict[str, str]:
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _bad_contract(tree: ast.Module, earlier: Collection[str]) -> Iterator[str]:
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "CONTRACTS"]
    if named and _constants(tree).get("CONTRACTS") not in earlier:
        yield "CONTRACTS does not name an earlier revision"


def _odd_imports(tree: ast.Module) -> Iterator[str]:
    """`op` under another name, or handed on, could not be followed."""
    called = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "alembic.op":
            yield f"line {node.lineno}: import op itself"
        if isinstance(node, ast.alias) and node.name in ("op", "alembic.op") and node.asname not in (None, "op"):
            yield "op has another name here"
        if isinstance(node, ast.Name) and node.id == "op" and id(node) not in called:
            yield f"line {node.lineno}: op is handed on"


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Everything asked of `op`, except on the way down."""
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and part.name == "downgrade":
            continue
        calls = [node for node in ast.walk(part) if isinstance(node, ast.Call) and _name(node)]
        yield from sorted(calls, key=lambda call: call.lineno)


def _name(call: ast.Call) -> str | None:
    function = call.func
    ours = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "op"
    return function.attr if ours and isinstance(function, ast.Attribute) else None


def _in_autocommit(tree: ast.Module) -> set[int]:
    """Calls inside `with op.get_context().autocommit_block():`."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(ast.unparse(item.context_expr) == "op.get_context().autocommit_block()" for item in node.items)
    ]
    return {id(node) for block in blocks for inner in block.body for node in ast.walk(inner)}


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is(call: ast.Call, name: str, value: object) -> bool:
    given = _keyword(call, name)
    return isinstance(given, ast.Constant) and given.value is value


def _text(call: ast.Call, place: int, name: str) -> str | None:
    given = call.args[place] if len(call.args) > place else _keyword(call, name)
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None


def _why_locking(call: ast.Call, name: str | None, made: set[str], apart: set[int]) -> Iterator[str]:
    if name != "create_index" or _text(call, 1, "table_name") in made:
        return
    if not _is(call, "postgresql_concurrently", True) or id(call) not in apart:
        yield f"line {call.lineno}: op.create_index: on a table in use only CONCURRENTLY, in an autocommit_block"


def _why_contracting(call: ast.Call, name: str | None, made: set[str]) -> str | None:
    match name:
        case _ if name in HARMLESS:
            return None
        case "drop_index":
            return None if _is(call, "postgresql_concurrently", True) else "an index is dropped CONCURRENTLY"
        case "create_index":
            known = _text(call, 1, "table_name") in made or _keyword(call, "unique") is None
            return None if known or _is(call, "unique", False) else "old writes could be refused"
        case "add_column":
            return _why_not_added(call)
        case "alter_column":
            return _why_not_altered(call)
        case "execute":
            return _why_not_executed(call)
        case _:
            return "does more than expand"


def _why_not_added(call: ast.Call) -> str | None:
    column = call.args[1] if len(call.args) > 1 else _keyword(call, "column")
    if not isinstance(column, ast.Call):
        return "the column is not written out"
    kinds = {ast.unparse(part.func).rpartition(".")[2] for part in column.args if isinstance(part, ast.Call)}
    if kinds & {"Identity", "Computed", "ForeignKey", "CheckConstraint"} or any(
        _keyword(column, word) is not None for word in ("primary_key", "unique", "index")
    ):
        return "only a plain column is added without rewriting or reading the table"
    default = _keyword(column, "server_default")
    if default is not None and "(" in ast.unparse(default).removeprefix("sa.text("):
        return "a default that is computed rewrites the table"
    nullable = _keyword(column, "nullable")
    free = nullable is None or _is(column, "nullable", True)
    has_default = default is not None and not _is(column, "server_default", None)
    return None if free or has_default else "NOT NULL without a server default refuses old inserts"


def _why_not_altered(call: ast.Call) -> str | None:
    for keyword in call.keywords:
        match keyword.arg:
            case "comment" | "schema":
                pass
            case argument if argument is not None and argument.startswith("existing_"):
                pass
            case "nullable" if _is(call, "nullable", True):
                pass
            case "server_default" if isinstance(keyword.value, ast.Constant) and keyword.value.value is not None:
                pass
            case other:
                return f"{other} changes what old workers rely on"
    return None


def _why_not_executed(call: ast.Call) -> str | None:
    statement = _text(call, 0, "sqltext")
    if statement is None:
        return "a statement has to be written out"
    plain = WRITES_ROWS.match(statement) and not HIDDEN_DDL.search(statement)
    return None if plain else "only an UPDATE or INSERT of rows is known to expand"
