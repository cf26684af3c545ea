"""What released software sends to the database: one file a release, named after the revision it was written for.

statements(release)    read by the tests: an old worker that lives through an upgrade goes on sending these
condensed(recorded)    used by recorder.py, which writes the file of the next release
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "released"

_PLACEHOLDER = re.compile(r"%\((\w+)\)s")
_TYPED = r"@\w+@(?:::[A-Z][A-Z ]*(?:\[\])?)?"
_LIST = re.compile(rf"IN \(({_TYPED})(?:, {_TYPED})+\)")
_ROWS = re.compile(r"(VALUES \([^()]*\))(?:, \([^()]*\))+")
_PLAIN_UPDATE = re.compile(r"UPDATE (\w+) SET ((?:\w+=@\w+@(?:::[A-Z ]+)?(?:, )?)+) WHERE \1\.id = @\w+@::VARCHAR")
_SAVEPOINT = re.compile(r"(?:SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) ")


def releases() -> list[str]:
    """Oldest first."""
    return sorted(path.stem for path in FOLDER.glob("*.sql"))


def statements(release: str) -> list[str]:
    lines = (FOLDER / f"{release}.sql").read_text(encoding="utf-8").splitlines()
    return [line.removesuffix(";") for line in lines if line and not line.startswith("--")]


def condensed(recorded: Iterable[str]) -> list[str]:
    """Distinct, with `$1` for placeholders: any number of rows or list members is one, and of the updates of one
    row by its id those stay whose columns no other names."""
    named = {_with_names(statement) for statement in recorded if not _SAVEPOINT.match(statement)}
    return sorted(_numbered(statement) for statement in named - _covered(named))


def _with_names(statement: str) -> str:
    flat = " ".join(statement.split()).rstrip("; ").replace("%%", "%")
    return _ROWS.sub(r"\1", _LIST.sub(r"IN (\1)", _PLACEHOLDER.sub(r"@\1@", flat)))


def _covered(named: set[str]) -> set[str]:
    updates = {
        statement: (found[1], frozenset(re.sub(r"@\w+@", "@", found[2]).split(", ")))
        for statement in named
        if (found := _PLAIN_UPDATE.fullmatch(statement)) is not None
    }
    return {
        statement
        for statement, (table, columns) in updates.items()
        if any(table == other and columns < wider for other, wider in updates.values())
    }


def _numbered(statement: str) -> str:
    numbers: dict[str, int] = {}
    return re.sub(r"@(\w+)@", lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", statement)
