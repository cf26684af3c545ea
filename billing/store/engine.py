"""The engine and the session factory: short transactions, a bounded pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import simplejson
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from billing.errors import InvalidSetting, ServiceUnavailable

Sessions = sessionmaker[Session]

RESTED_SECONDS = 5
SHORTEST_PASSWORD = 4  # a shorter one would be found in every word
_passwords: set[str] = set()  # of the databases of this process: in no error line, wherever a server repeats them
PREPARED_STATEMENTS = 500
# libpq's own names. Without them a thread waits a quarter of an hour for a server whose machine is gone.
NOTICE_A_DEAD_SERVER = {
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
LONGEST_IDLE_SECONDS = 20  # of a transaction that waits for its client, however busy the machine is


def make_engine(url: str, *, pool_size: int = 16) -> Engine:
    """At most `pool_size` connections a process. Threads wait for one: a transaction takes a millisecond or two
    and the call to Xendit holds none, so far fewer connections than threads are enough."""
    try:
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=60,
            connect_args={"connect_timeout": 5, "application_name": "billing", **NOTICE_A_DEAD_SERVER},
            # Stored events keep their amounts exact: no binary floats on the way in or out.
            json_serializer=partial(simplejson.dumps, use_decimal=True),
            json_deserializer=partial(simplejson.loads, use_decimal=True),
        )
    except Exception as error:  # noqa: BLE001 - a URL that cannot be parsed: SQLAlchemy raises several kinds
        raise InvalidSetting(
            f"BILLING_DATABASE_URL: cannot be used ({error.__class__.__name__});"
            " for example postgresql+psycopg://billing:secret@localhost:5432/billing"
        ) from None
    password = engine.url.password or ""
    if len(password) >= SHORTEST_PASSWORD:
        _passwords.add(password)
    _ping_after_idling(engine)
    _prepare_connections(engine)
    return engine


def _prepare_connections(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        # There are some two hundred statements in this software, and psycopg keeps a hundred prepared ones.
        connection.prepared_max = PREPARED_STATEMENTS
        # A machine that is cut off in the middle of a transaction holds its locks until TCP gives up, which takes
        # hours; one of them may be the quota's. Ours last milliseconds.
        connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{LONGEST_IDLE_SECONDS}s'")
        connection.autocommit = False


def _ping_after_idling(engine: Engine) -> None:
    """A connection that has rested may be dead (a restarted server): it is asked first, and replaced if it is.
    SQLAlchemy's own pre-ping asks every time, which costs a third of a charge's round trips."""

    @event.listens_for(engine, "checkin")
    def note_rest(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask_rested(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) < RESTED_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except Exception as error:  # noqa: BLE001 - the driver's errors; which mean a lost connection is asked next
            alive = not engine.dialect.is_disconnect(error, connection, None)  # type: ignore[arg-type]
        if not alive:
            raise DisconnectionError


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def database_errors_in_one_line() -> Iterator[None]:
    """At the edges (command line, web, worker): a lost or unmigrated database is one line, not a traceback."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise ServiceUnavailable(
            f"the database does not answer ({first_line(error)}); check BILLING_DATABASE_URL and that PostgreSQL runs"
        ) from None
    except DBAPIError as error:
        if "UndefinedTable" in repr(error.orig) or "UndefinedColumn" in repr(error.orig):
            raise ServiceUnavailable("the database has no current schema; run `billing migrate`") from None
        if is_databases_trouble(error):
            raise ServiceUnavailable("the connection to the database was lost; run the command again") from None
        raise


# The database's trouble, not that of a statement or a row: what was tried may be tried again as it is.
# 08 connection, 25P03 idle too long, 40 conflicts, 53 resources, 55P03 lock, 57 stopped by an operator, 58 system.
_TROUBLE = ("08", "25P03", "40", "53", "55P03", "57", "58")


def is_databases_trouble(error: BaseException) -> bool:
    """Whether an error says nothing of the row it came with: a lost connection, a deadlock, a time-out."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or (getattr(error.orig, "sqlstate", None) or "").startswith(_TROUBLE)


def raise_if_databases_trouble(error: Exception) -> None:
    """For whoever takes any other error for that of one row, or of one job."""
    if is_databases_trouble(error):
        raise error


def first_line(error: DBAPIError) -> str:
    line = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else error.__class__.__name__
    for password in _passwords:
        line = line.replace(password, "***")
    return line
