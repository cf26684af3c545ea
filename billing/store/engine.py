"""The engine and the session factory: short transactions, a bounded pool, other people's servers.

What a role, a database or a server has as its defaults changes nothing here: each transaction is READ COMMITTED, and
the other defaults that matter are set by each connection. Behind a pooler that gives every transaction another
connection to the server they are set by each transaction, and no statement is prepared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simplejson
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, pool
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from billing.errors import InvalidSetting
from billing.store.trouble import PREPARED_ELSEWHERE, READ_ONLY_TRANSACTION, never_show, sqlstate

Sessions = sessionmaker[Session]

RESTED_SECONDS = 5
LONGEST_LIFE_SECONDS = 30 * 60  # of a connection: whatever is changed behind a name or a proxy is followed in the end
PREPARED_STATEMENTS = 500
CONNECT_SECONDS = 5
# libpq's own names. Without them a thread waits a quarter of an hour for a server whose machine is gone.
NOTICE_A_DEAD_SERVER = {
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
LONGEST_IDLE_SECONDS = 20  # of a transaction that waits for its client, however busy the machine is
LONGEST_STATEMENT_SECONDS = 15 * 60  # a report over millions of rows; everything else takes milliseconds
UTF8 = "UTF8"
VERSION_17 = 170_000

# Of psycopg, not of libpq: out of a URL they would come as text, and change what this software relies on.
_NOT_IN_A_URL = ("autocommit", "context", "row_factory", "cursor_factory")

# A role's default is somebody's taste; a server's or a database's is how a primary is fenced off.
_READ_ONLY_BY_ROLE = """
    (current_setting('default_transaction_read_only') = 'on' AND (
        SELECT source IN ('user', 'database user') FROM pg_settings WHERE name = 'default_transaction_read_only'))
"""
_IS_READ_ONLY = f"""
    (pg_is_in_recovery() OR (current_setting('default_transaction_read_only') = 'on' AND NOT {_READ_ONLY_BY_ROLE}))
"""
# What psycopg reads dates with. A pooler restores these two for each of its clients.
_LOOK = f"""
    SELECT pg_backend_pid(), current_setting('server_encoding'), {_IS_READ_ONLY}, {_READ_ONLY_BY_ROLE},
        current_setting('synchronous_commit') = 'off' AND (
            SELECT source IN ('user', 'database', 'database user') FROM pg_settings WHERE name = 'synchronous_commit'),
        set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO, MDY', false)
"""  # noqa: S608
_ASK_WHETHER_READ_ONLY = f"SELECT {_IS_READ_ONLY}"
# The other defaults that matter. A machine that is cut off in the middle of a transaction holds its locks until TCP
# gives up, which takes hours; one of them may be the quota's. Ours last milliseconds.
_PINS = {
    "idle_in_transaction_session_timeout": f"{LONGEST_IDLE_SECONDS}s",
    "statement_timeout": f"{LONGEST_STATEMENT_SECONDS}s",
    "lock_timeout": "0",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
}
# Of an attempt whose charge is under way, a commit that returns before it is on disk may forget everything. A server
# that is set up like that as a whole is somebody's decision; a role's or a database's default is not.
_PIN_DURABLE = {"synchronous_commit": "on"}
_PIN_SINCE_17 = {"transaction_timeout": "0"}


def make_engine(url: str, *, pool_size: int = 16) -> Engine:
    """At most `pool_size` connections a process. Threads wait for one: a transaction takes a millisecond or two
    and the call to Xendit holds none, so far fewer connections than threads are enough."""
    limits = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 60, "pool_recycle": LONGEST_LIFE_SECONDS}
    engine = _create(url, _Ways.of(url), limits)
    _ping_after_idling(engine)
    return engine


def make_engine_for_migrations(url: str, *, lock_timeout: str) -> Engine:
    """A connection at a time; statements may take as long as they take, and none is worth preparing."""
    unlimited = {"idle_in_transaction_session_timeout": "0", "statement_timeout": "0", "lock_timeout": lock_timeout}
    return _create(url, _Ways(prepares=False, pins=_PINS | unlimited), {"poolclass": pool.NullPool})


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


def refuse_unusable(engine: Engine) -> None:
    """When a process starts. Raises InvalidSetting for a database that will never do; one that does not answer may
    do so later."""
    with suppress(SQLAlchemyError), engine.connect():
        pass


# -------------------------------------------------------------------------------------------------- the URL


@dataclass(slots=True)
class _Ways:
    """How the connections of one engine are set up. `pooled` is found out; `threshold` is a wish in the URL."""

    prepares: bool = True
    threshold: int | None = None
    pooled: bool = False
    pins: Mapping[str, str] = field(default_factory=lambda: _PINS)

    @classmethod
    def of(cls, url: str) -> _Ways:
        try:
            wish = make_url(url).query.get("prepare_threshold")
        except Exception:  # noqa: BLE001 - said by _create
            return cls()
        if wish is None:
            return cls()
        if wish in ("0", "none", "None"):
            return cls(prepares=False)
        if not isinstance(wish, str) or not wish.isascii() or not wish.isdecimal() or len(wish) > 6:  # noqa: PLR2004
            raise InvalidSetting(
                "BILLING_DATABASE_URL: prepare_threshold must be a whole number;"
                " for example ?prepare_threshold=0, which prepares no statements"
            )
        return cls(threshold=int(wish))


def _create(url: str, ways: _Ways, limits: Mapping[str, Any]) -> Engine:
    try:
        address = make_url(url).difference_update_query(["prepare_threshold"])
        engine = create_engine(
            address,
            isolation_level="READ COMMITTED",
            connect_args=_connect_arguments(address),
            # Stored events keep their amounts exact: no binary floats on the way in or out.
            json_serializer=partial(simplejson.dumps, use_decimal=True),
            json_deserializer=partial(simplejson.loads, use_decimal=True),
            **limits,
        )
        _, options = engine.dialect.create_connect_args(address)
        make_conninfo(**{name: value for name, value in options.items() if name != "context"})
        refused = [name for name in _NOT_IN_A_URL if name in address.query]
    except Exception as error:  # noqa: BLE001 - a URL that cannot be parsed: SQLAlchemy and libpq raise several kinds
        raise InvalidSetting(
            f"BILLING_DATABASE_URL: cannot be used ({error.__class__.__name__});"
            " for example postgresql+psycopg://billing:secret@localhost:5432/billing"
        ) from None
    if refused:
        raise InvalidSetting(f"BILLING_DATABASE_URL: {refused[0]} cannot be set in it; take it out")
    never_show(engine.url.password or "")
    _set_up_connections(engine, ways)
    _leave_what_failed_over(engine, ways)
    return engine


def _connect_arguments(address: URL) -> dict[str, Any]:
    """What the URL says itself goes first."""
    ours: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "billing", **NOTICE_A_DEAD_SERVER}
    if not isinstance(hosts := address.query.get("host", ""), str) or "," in hosts:
        ours["target_session_attrs"] = "read-write"  # of several hosts the one that is the primary now
    return {name: value for name, value in ours.items() if name not in address.query} | {"client_encoding": "utf8"}


# ------------------------------------------------------------------------------------------ each connection


def _set_up_connections(engine: Engine, ways: _Ways) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        with _outside_a_transaction(connection) as cursor:
            cursor.execute(_LOOK)
            server_process, encoding, read_only, read_only_by_role, forgetful = cursor.fetchone()[:5]
            pooled = ways.pooled or server_process != connection.info.backend_pid
            pins = {**ways.pins, **(_PIN_DURABLE if forgetful else {})}
            if connection.info.server_version >= VERSION_17:
                pins |= _PIN_SINCE_17
            if not pooled:
                cursor.execute(_pin(pins, of_transaction=False))
        if encoding != UTF8:
            connection.close()
            raise InvalidSetting(
                f"BILLING_DATABASE_URL: the database's encoding is {encoding}, and names need {UTF8}; make another one,"
                f" for example with createdb --encoding={UTF8} --template=template0 billing"
            )
        record.info["read_only"] = read_only
        record.info["each_time"] = _pin(pins, of_transaction=True) if pooled else ""
        if pooled and not event.contains(engine, "begin", set_up_again):
            event.listen(engine, "begin", set_up_again)
        # There are some two hundred statements in this software, and psycopg keeps a hundred prepared ones.
        connection.prepared_max = PREPARED_STATEMENTS
        if ways.threshold is not None:
            connection.prepare_threshold = ways.threshold
        elif pooled or not ways.prepares:
            connection.prepare_threshold = None
        if read_only_by_role and not read_only:
            connection.read_only = False

    def set_up_again(connection: Connection) -> None:
        opened = connection.connection
        each_time = opened.info["each_time"]
        if each_time and not opened.dbapi_connection.autocommit:  # type: ignore[union-attr]
            connection.exec_driver_sql(each_time)


def _pin(pins: Mapping[str, str], *, of_transaction: bool) -> str:
    """One statement: several at once cannot be prepared, where somebody wants that."""
    settings = (f"set_config('{name}', '{value}', {of_transaction})" for name, value in pins.items())
    return f"SELECT {', '.join(settings)}"


@contextmanager
def _outside_a_transaction(connection: DBAPIConnection) -> Iterator[Any]:
    """A cursor; the connection is then as it was. One with which that fails is of no more use."""
    try:
        connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            yield cursor
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise


def _leave_what_failed_over(engine: Engine, ways: _Ways) -> None:
    """A server that takes no more writes is none for us, though it answers: all connections to it are given up, and
    the next ones find the new primary, by whatever way leads there."""

    @event.listens_for(engine, "handle_error")
    def judge(context: ExceptionContext) -> None:
        state = sqlstate(context.original_exception)
        if state == READ_ONLY_TRANSACTION or state in PREPARED_ELSEWHERE:
            context.is_disconnect = True
        ways.pooled = ways.pooled or state in PREPARED_ELSEWHERE


def _ping_after_idling(engine: Engine) -> None:
    """A connection that has rested may be dead (a restarted server): it is asked first, and replaced if it is.
    SQLAlchemy's own pre-ping asks every time, which costs a third of a charge's round trips."""

    @event.listens_for(engine, "checkout")
    def ask_rested(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        now, used_at = time.monotonic(), record.info.get("used_at")
        record.info["used_at"] = now
        if used_at is None:
            return
        if record.info["read_only"]:  # it was when we connected: by now there may be another
            raise DisconnectionError
        if now - used_at < RESTED_SECONDS:
            return
        try:
            with _outside_a_transaction(connection) as cursor:
                cursor.execute(_ASK_WHETHER_READ_ONLY)
                takes_writes = cursor.fetchone() == (False,)
        except Exception:  # noqa: BLE001 - the driver's errors: whatever it was, a new connection is better
            takes_writes = False
        if not takes_writes:
            raise InvalidatePoolError
