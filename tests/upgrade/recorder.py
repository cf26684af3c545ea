"""A pytest plugin that writes down what the software sends to its database while tests live through stories.

Once a release, with that release checked out:

    python -m pytest -n 0 -p tests.upgrade.recorder tests/stories tests/services

It writes tests/upgrade/released/<newest revision>.sql. Statements of the tests themselves and of migrations are left
out: what counts is who sent it, so the nearest of our own frames has to be the software's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from billing.store import migrate
from tests.upgrade.statements import FOLDER, condensed

ROOT = str(Path(__file__).resolve().parents[2]) + "/"
SOFTWARE = (f"{ROOT}billing/", f"{ROOT}workers/")
OTHERS = (f"{ROOT}tests/", f"{ROOT}migrations/", f"{ROOT}billing/store/migrate.py")

_recorded: set[str] = set()


@event.listens_for(Engine, "before_cursor_execute")
def _note(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool) -> None:
    if _sent_by_the_software():
        _recorded.add(_as_the_driver_types_it(statement, parameters))


def _as_the_driver_types_it(statement: str, parameters: Any) -> str:
    """`$1 - interval '30 days'` needs a type, and psycopg sends one with each instant."""
    if not isinstance(parameters, Mapping):
        return statement
    for name, value in parameters.items():
        if isinstance(value, datetime) and value.tzinfo is not None:
            statement = re.sub(rf"%\({name}\)s(?!::)", f"%({name})s::TIMESTAMP WITH TIME ZONE", statement)
    return statement


def _sent_by_the_software() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        frame = frame.f_back
        file = frame.f_code.co_filename
        if file.startswith(OTHERS):
            return False
        if file.startswith(SOFTWARE):
            return True
    return False


def pytest_sessionfinish() -> None:
    lines = [f"-- What the software of revision {migrate.newest()} sends. Written by tests/upgrade/recorder.py."]
    lines += [f"{statement};" for statement in condensed(_recorded)]
    (FOLDER / f"{migrate.newest()}.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")
