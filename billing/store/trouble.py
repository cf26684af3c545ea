"""What a database error means. Judged here and nowhere else.

Most errors of a statement tell of the row it came with, or of a bug of ours. All others are the database's trouble:
what was tried may be tried again as it is, and no row suffers for it. Each kind of trouble has its own words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from billing.errors import ServiceUnavailable

READ_ONLY_TRANSACTION = "25006"
# A pooler between us and the server has given this transaction another connection than the one that prepared.
PREPARED_ELSEWHERE = frozenset({"26000", "42P05"})
CONFLICT_TRIES = 4
SHORTEST_PASSWORD = 4  # a shorter one would be found in every word

_passwords: set[str] = set()  # of the databases of this process

Result = TypeVar("Result")


class Trouble(Enum):
    AWAY = auto()
    LOST = auto()
    READ_ONLY = auto()
    CONFLICT = auto()
    DISK_FULL = auto()
    CROWDED = auto()
    TOO_SLOW = auto()
    FORBIDDEN = auto()
    NO_SCHEMA = auto()


_WORDS = {
    Trouble.AWAY: "the database does not answer ({said}); check BILLING_DATABASE_URL and that PostgreSQL runs",
    Trouble.LOST: "the connection to the database was lost; run the command again",
    Trouble.READ_ONLY: "the database takes no writes ({said}): it is a standby or was made read-only;"
    " BILLING_DATABASE_URL has to lead to the primary, and everything goes on by itself once it does",
    Trouble.CONFLICT: "other transactions are in the way ({said}); run the command again",
    Trouble.DISK_FULL: "the database's disk is full ({said}); make room there, and everything goes on by itself",
    Trouble.CROWDED: "the database has no connection left for us ({said});"
    " raise max_connections there, or lower BILLING_DATABASE_POOL_SIZE or the number of processes",
    Trouble.TOO_SLOW: "a statement took too long and was ended ({said}); pg_stat_activity shows what it waits for",
    Trouble.FORBIDDEN: "the database refuses ({said}); give the user of BILLING_DATABASE_URL the rights on its tables",
    Trouble.NO_SCHEMA: "the database has no current schema; run `billing migrate`",
}

# By the beginning of the SQLSTATE; the longest that fits counts. None: of the statement or its row.
_BY_SQLSTATE: dict[str, Trouble | None] = {
    "08": Trouble.LOST,
    "25P": Trouble.LOST,  # idle in a transaction, or in one, for too long
    READ_ONLY_TRANSACTION: Trouble.READ_ONLY,
    "40": Trouble.CONFLICT,
    "55P03": Trouble.CONFLICT,
    "53": Trouble.AWAY,
    "53100": Trouble.DISK_FULL,
    "53300": Trouble.CROWDED,
    "54": None,  # a value too large for its row or index; of psycopg's kinds it is "operational"
    "57": Trouble.LOST,
    "57014": Trouble.TOO_SLOW,
    "58": Trouble.AWAY,
    "42501": Trouble.FORBIDDEN,
    "42P01": Trouble.NO_SCHEMA,
    "42703": Trouble.NO_SCHEMA,
    **dict.fromkeys(PREPARED_ELSEWHERE, Trouble.LOST),
}
# A connection that is refused comes without an SQLSTATE.
_NO_ROOM = re.compile(r"too many (clients|connections)|connection slots are reserved|no more connections allowed")


def trouble_of(error: BaseException) -> Trouble | None:
    """The database's trouble; None for an error that tells of the statement, or that is not the database's."""
    if isinstance(error, PoolTimeout):
        return Trouble.CROWDED
    if not isinstance(error, DBAPIError):
        return None
    state = sqlstate(error.orig)
    for length in range(len(state), 1, -1):
        if state[:length] in _BY_SQLSTATE:
            return _BY_SQLSTATE[state[:length]]
    if isinstance(error, OperationalError | InterfaceError):
        return Trouble.CROWDED if _NO_ROOM.search(str(error.orig)) else Trouble.AWAY
    return Trouble.LOST if error.connection_invalidated else None


def is_databases_trouble(error: BaseException) -> bool:
    """Whether an error says nothing of the row it came with: a lost connection, a deadlock, a time-out."""
    return trouble_of(error) is not None


def raise_if_databases_trouble(error: Exception) -> None:
    """For whoever takes any other error for that of one row, or of one job."""
    if is_databases_trouble(error):
        raise error


def in_words(error: BaseException) -> str | None:
    """One line: what is wrong and what to do. None when it is not the database's trouble."""
    trouble = trouble_of(error)
    if trouble is None:
        return None
    said = first_line(error) if isinstance(error, DBAPIError) else "all connections of this process are in use"
    return _WORDS[trouble].format(said=said)


@contextmanager
def database_errors_in_one_line() -> Iterator[None]:
    """At the edges (command line, web, worker): the database's trouble is one line, not a traceback."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        words = in_words(error)
        if words is None:
            raise
        raise ServiceUnavailable(words) from None


def repeat_conflicts(transaction: Callable[[], Result]) -> Result:
    """A transaction that another one is in the way of (a deadlock, as a rule with somebody at a database console) is
    begun anew, at once and a few times. `transaction` is the whole of it, and calls nobody."""
    for _ in range(CONFLICT_TRIES - 1):
        try:
            return transaction()
        except DBAPIError as error:
            if trouble_of(error) is not Trouble.CONFLICT:
                raise
    return transaction()


def sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""


def never_show(password: str) -> None:
    """A server may repeat a part of what it was sent: of our passwords nothing is in any line."""
    if len(password) >= SHORTEST_PASSWORD:
        _passwords.add(password)


def first_line(error: DBAPIError) -> str:
    said = str(error.orig).strip()
    line = said.splitlines()[0] if said else error.__class__.__name__
    for password in _passwords:
        line = line.replace(password, "***")
    return line
