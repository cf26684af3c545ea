"""Which database this is. Written down by `billing migrate`; a copy (a dump restored beside it, CREATE DATABASE ...
TEMPLATE, a restored backup) has the row of the one it was made from, and charges nobody until `billing adopt`.

A rename and a fail-over to a streaming replica keep both the cluster's identifier and the database's oid: no copy. What
cannot be told apart: docs/decisions/0024-which-database-this-is.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from billing.errors import CopyOfDatabase
from billing.store.trouble import first_line, sqlstate

# For a cluster whose identifier this user may not read: the database's name stands in for it.
BY_NAME = "name:"
_MAY_ASK = "may_ask_for_the_cluster"
NOT_PERMITTED = "42501"

_MAY_READ_CLUSTER = text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
_WITH_CLUSTER = text("""
    SELECT CAST(c.system_identifier AS text), CAST(d.oid AS bigint), CAST(d.datname AS text),
        i.system_identifier, i.database_oid, i.noted_at
    FROM pg_database d CROSS JOIN pg_control_system() c LEFT JOIN database_identity i ON i.id = 1
    WHERE d.datname = current_database()
""")
_WITHOUT_CLUSTER = text("""
    SELECT CAST(NULL AS text), CAST(d.oid AS bigint), CAST(d.datname AS text),
        i.system_identifier, i.database_oid, i.noted_at
    FROM pg_database d LEFT JOIN database_identity i ON i.id = 1
    WHERE d.datname = current_database()
""")
_NOTE = text("""
    INSERT INTO database_identity (id, system_identifier, database_oid, noted_at) VALUES (1, :cluster, :oid, :now)
    ON CONFLICT (id) DO NOTHING
""")
_REPLACE = text("""
    INSERT INTO database_identity (id, system_identifier, database_oid, noted_at) VALUES (1, :cluster, :oid, :now)
    ON CONFLICT (id) DO UPDATE SET system_identifier = excluded.system_identifier,
        database_oid = excluded.database_oid, noted_at = excluded.noted_at
""")


@dataclass(frozen=True, slots=True)
class Noted:
    """What stands in the row."""

    system_identifier: str
    database_oid: int
    noted_at: datetime

    def __str__(self) -> str:
        return in_words(self.system_identifier, self.database_oid)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the server says of this database, and what was noted; `system_identifier` is None when this user may not
    read it."""

    system_identifier: str | None
    database_oid: int
    name: str
    noted: Noted | None

    def __str__(self) -> str:
        return in_words(self.to_note, self.database_oid)

    @property
    def to_note(self) -> str:
        return self.system_identifier or f"{BY_NAME}{self.name}"

    @property
    def is_the_one(self) -> bool:
        noted = self.noted
        if noted is None or noted.database_oid != self.database_oid:
            return False
        if noted.system_identifier.startswith(BY_NAME):
            return noted.system_identifier == f"{BY_NAME}{self.name}"
        return self.system_identifier in (None, noted.system_identifier)

    @property
    def wrong(self) -> str | None:
        """Why nothing may be charged from here, in one line; None when this is the database."""
        if self.is_the_one:
            return None
        if self.noted is None:
            return "it is not noted which database this is, so nothing is charged from it; run `billing migrate`"
        return (
            f"this database is a copy: {self.noted} was noted, and this is {self}; nothing is charged from a copy."
            " If it is the one to charge from now on, and nothing uses the other any more: `billing adopt`"
        )

    @property
    def told_by(self) -> str:
        if self.system_identifier is not None:
            return "told by the cluster's identifier and the database's oid"
        return "told by the database's oid and name only: this user may not call pg_control_system()"


def in_words(identifier: str, oid: int) -> str:
    cluster = f"name {identifier.removeprefix(BY_NAME)}" if identifier.startswith(BY_NAME) else f"cluster {identifier}"
    return f"{oid} of {cluster}"


def standing(session: Session) -> Standing:
    """One cheap statement."""
    row = session.execute(_WITH_CLUSTER if _may_read_cluster(session) else _WITHOUT_CLUSTER).one()
    noted = Noted(row[3], row[4], row[5]) if row[3] is not None else None
    return Standing(row[0], row[1], row[2], noted)


def _may_read_cluster(session: Session) -> bool:
    """Asked once a connection. The identifier itself is asked for every time: a pooler may lead elsewhere tomorrow."""
    info = session.connection().info
    if _MAY_ASK not in info:
        info[_MAY_ASK] = bool(session.scalar(_MAY_READ_CLUSTER))
    return bool(info[_MAY_ASK])


def refuse_a_copy(session: Session) -> None:
    """Raises CopyOfDatabase. In the transaction of what it guards, so that a database that is swapped under a living
    process is found."""
    try:
        wrong = standing(session).wrong
    except ProgrammingError as error:
        if sqlstate(error.orig) != NOT_PERMITTED:
            raise
        session.connection().info.pop(_MAY_ASK, None)
        raise CopyOfDatabase(f"it cannot be told which database this is ({first_line(error)}); try again") from None
    if wrong is not None:
        raise CopyOfDatabase(wrong)


def note_if_new(session: Session, now: datetime) -> Standing:
    """What is noted stays, whatever the server says: only `adopt` changes it."""
    found = standing(session)
    session.execute(_NOTE, {"cluster": found.to_note, "oid": found.database_oid, "now": now})
    return standing(session)


def adopt(session: Session, now: datetime) -> Standing:
    """This database is the one from now on. Returns how it stood before."""
    before = standing(session)
    if not before.is_the_one:
        session.execute(_REPLACE, {"cluster": before.to_note, "oid": before.database_oid, "now": now})
    return before
