"""The servers the tests run against.

PostgreSQL and Valkey are taken from BILLING_TEST_DATABASE_URL and BILLING_TEST_REDIS_URL, else from the
embedded wheels. Without either, tests that need them are skipped; with CI=true they fail. One server of each
kind serves a whole run, all xdist workers included: the controller starts them and passes the addresses on.
Without xdist they start when first asked for.

The database named in BILLING_TEST_DATABASE_URL is only used to create and drop others (billing_test_...). The
one named in BILLING_TEST_REDIS_URL is flushed, and so are, with xdist, as many after it as there are workers.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url
from xdist.workermanage import WorkerController

from billing.errors import EmbeddedServerFailed
from billing.sandbox import embedded
from billing.store import engine as engines


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses only, so that it can travel to xdist workers. `missing` says why there are none."""

    postgres_url: str = ""
    template: str = ""
    redis_url: str = ""
    missing: str = ""


_running = pytest.StashKey[ExitStack]()
_servers = pytest.StashKey[Servers]()


HERE = Path(__file__).parent
# Folders of what is long for its own sake: a kill at every commit, simulated years, storms, fail-overs, old releases.
PROOFS = {"kills", "simulation", "chaos", "databases", "upgrade"}
# Thousands of databases that live for a second each need no vacuum.
TEST_SERVER = {"autovacuum": "off"}
DROPPED_AFTER = 5  # tests


class CompiledOnce(dict[Any, Any]):
    """What SQLAlchemy has made of a statement, for all engines of a test process: each test has an engine of its own,
    and would else compile the same hundred statements again, which took a third of all time."""

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get(self._for_any_engine(key), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__(self._for_any_engine(key), compiled)

    @staticmethod
    def _for_any_engine(key: tuple[Any, ...]) -> tuple[Any, ...]:
        dialect, *statement = key
        return (type(dialect), getattr(dialect, "server_version_info", None), *statement)


def _compile_statements_once() -> None:
    compiled = CompiledOnce()

    def create_engine(*arguments: Any, **options: Any) -> Engine:
        made = sqlalchemy.create_engine(*arguments, **options)
        made.update_execution_options(compiled_cache=compiled)
        return made

    engines.create_engine = create_engine


def pytest_configure(config: pytest.Config) -> None:
    _compile_statements_once()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background by a script. Processes of the tests would ignore Ctrl-C as well, and tests send it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_running] = ExitStack()
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.stash[_servers] = Servers(**given["servers"])
    elif getattr(config.option, "numprocesses", None):
        config.stash[_servers] = config.stash[_running].enter_context(_start_servers())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PROOFS & set(item.path.relative_to(HERE).parts):
            item.add_marker(pytest.mark.proof)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["servers"] = asdict(node.config.stash[_servers])


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_running].close()


@contextmanager
def _start_servers() -> Iterator[Servers]:
    with ExitStack() as running:
        try:
            postgres_url = os.environ.get("BILLING_TEST_DATABASE_URL")
            postgres_url = postgres_url or running.enter_context(embedded.postgres(settings=TEST_SERVER)).url
            redis_url = os.environ.get("BILLING_TEST_REDIS_URL")
            redis_url = redis_url or running.enter_context(embedded.valkey()).url
        except EmbeddedServerFailed as error:
            yield Servers(missing=str(error))
            return
        template = running.enter_context(_migrated_template(postgres_url))
        yield Servers(postgres_url=postgres_url, template=template, redis_url=redis_url)


@contextmanager
def _migrated_template(postgres_url: str) -> Iterator[str]:
    """Migrations run once; every test then gets a copy, which takes some 15 ms."""
    from billing.store.migrate import upgrade  # here: a run without a database loads no models

    with _maintenance(make_url(postgres_url)) as server:
        name = _create_database(server)
        try:
            upgrade(_named(postgres_url, name))
            yield name
        finally:
            _drop_database(server, name)


@contextmanager
def _maintenance(url: URL) -> Iterator[psycopg.Connection]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection


def _create_database(server: psycopg.Connection, *, template: str = "template0") -> str:
    name = f"billing_test_{uuid.uuid4().hex[:16]}"
    # FILE_COPY: three times as fast as the default for a database this small.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    if server.info.server_version < 150_000:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    server.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return name


def _adopt(url: str) -> None:
    """`billing adopt`: a copy of the template charges nobody (billing/store/which_database.py)."""
    with _maintenance(make_url(url)) as database:
        database.execute(
            "UPDATE database_identity SET database_oid ="
            " (SELECT CAST(oid AS bigint) FROM pg_database WHERE datname = current_database())"
        )


def _drop_database(server: psycopg.Connection, name: str) -> None:
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _named(postgres_url: str, database: str) -> str:
    return make_url(postgres_url).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Servers:
    stash = request.config.stash
    if _servers not in stash:
        stash[_servers] = stash[_running].enter_context(_start_servers())
    if stash[_servers].missing:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(stash[_servers].missing)
    return stash[_servers]


@pytest.fixture(scope="session")
def postgres_url(servers: Servers) -> str:
    """The server, for what is about databases as such."""
    return servers.postgres_url


@pytest.fixture(scope="session")
def _maintenance_connection(postgres_url: str) -> Iterator[psycopg.Connection]:
    with _maintenance(make_url(postgres_url)) as connection:
        yield connection


@pytest.fixture(scope="session")
def _drop_later(_maintenance_connection: psycopg.Connection) -> Iterator[Callable[[str], None]]:
    """Databases are dropped some tests later: PostgreSQL sleeps for 100 ms when a connection has just been closed."""
    over: deque[str] = deque()

    def drop_later(name: str) -> None:
        over.append(name)
        if len(over) > DROPPED_AFTER:
            _drop_database(_maintenance_connection, over.popleft())

    yield drop_later
    for name in over:
        _drop_database(_maintenance_connection, name)


@pytest.fixture
def database_url(
    servers: Servers, _maintenance_connection: psycopg.Connection, _drop_later: Callable[[str], None]
) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    name = _create_database(_maintenance_connection, template=servers.template)
    url = _named(servers.postgres_url, name)
    _adopt(url)
    yield url
    _drop_later(name)


@pytest.fixture
def copy_database(
    servers: Servers, _maintenance_connection: psycopg.Connection, _drop_later: Callable[[str], None]
) -> Iterator[Callable[[str], str]]:
    """Makes a copy beside a database to which nobody is connected: the address of the copy."""
    made: list[str] = []

    def copy(url: str) -> str:
        made.append(_create_database(_maintenance_connection, template=make_url(url).database or ""))
        return _named(servers.postgres_url, made[-1])

    yield copy
    for name in made:
        _drop_later(name)


@pytest.fixture
def empty_database_url(
    servers: Servers, _maintenance_connection: psycopg.Connection, _drop_later: Callable[[str], None]
) -> Iterator[str]:
    """Without any table: what `billing migrate` meets the first time."""
    name = _create_database(_maintenance_connection)
    yield _named(servers.postgres_url, name)
    _drop_later(name)


@pytest.fixture
def redis_url(servers: Servers, worker_id: str) -> str:
    """An empty Redis database, shared with no other xdist worker."""
    url = make_url(servers.redis_url)
    number = int(url.database or 0) + (0 if worker_id == "master" else int(worker_id.removeprefix("gw")))
    own = url.set(database=str(number)).render_as_string(hide_password=False)
    with redis.Redis.from_url(own) as client:
        client.flushdb()
    return own
