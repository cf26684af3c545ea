"""What somebody has set on the server, the database or the role changes nothing; what cannot work is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from billing.runs import tick
from billing.store.engine import make_engine
from tests.cli.terminal import Terminal
from tests.databases.pgbouncer import pgbouncer
from tests.world import World, copy_subscription
from workers import scheduler

ODD = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "timezone": "Pacific/Chatham",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "client_encoding": "latin1",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "statement_timeout": "5s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "synchronous_commit": "off",
}
OURS = {
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "client_encoding": "UTF8",
    "extra_float_digits": "1",
    "statement_timeout": "15min",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "20s",
    "synchronous_commit": "on",
}


def at_the_console(database_url: str, *statements: str) -> None:
    plain = database_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(plain, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def odd_url(database_url: str) -> str:
    """A database whose user has odd defaults; they go with the database."""
    name = make_url(database_url).database
    settings = (f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET {n} = '{v}'" for n, v in ODD.items())
    # Back to writing for the console itself, whose later statements this would stop.
    at_the_console(database_url, *settings)
    return database_url


def test_a_roles_defaults_change_no_transaction_of_ours(odd_url: str) -> None:
    engine = make_engine(odd_url, pool_size=1)
    outside = engine.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:  # leaves the connection as it found it
        connection.execute(text("SELECT 1"))
    with engine.connect() as connection:
        found = {name: connection.scalar(text("SELECT current_setting(:name)"), {"name": name}) for name in OURS}
    engine.dispose()

    assert found == OURS


@pytest.mark.usefixtures("_pgbouncer")
def test_nor_behind_a_pooler_whichever_connection_it_gives_us(odd_url: str, short_folder: Path) -> None:
    found = []
    with pgbouncer(odd_url, short_folder) as url:
        engine = make_engine(url, pool_size=6)
        for _ in range(2):
            with ExitStack() as open_at_once:
                for connection in [open_at_once.enter_context(engine.connect()) for _ in range(6)]:
                    query = text("SELECT name, current_setting(name) FROM unnest(CAST(:names AS text[])) AS name")
                    found.append({row[0]: row[1] for row in connection.execute(query, {"names": list(OURS)})})
        engine.dispose()

    assert found == [OURS] * 12


def test_forty_due_are_billed_by_two_schedulers_at_once_whatever_the_role_prefers(odd_url: str) -> None:
    with World(odd_url) as world:
        copy_subscription(world, world.subscribe_save(), 39)

        world.in_two_threads(lambda: tick.tick(world.parts, world.send))
        world.settle_down()

        assert world.collected() == [50_000] * 40


def test_a_database_that_was_read_only_when_we_came_is_used_when_it_is_not_any_more(database_url: str) -> None:
    """As after a fail-over whose name still leads to the old server for a while."""
    name = make_url(database_url).database
    at_the_console(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine = make_engine(database_url, pool_size=1)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM plans")) == 0

    at_the_console(
        database_url, "SET default_transaction_read_only = off",
        f"ALTER DATABASE {name} RESET default_transaction_read_only",
    )  # fmt: skip

    with engine.begin() as connection:
        connection.execute(text("INSERT INTO test_clock (id, offset_microseconds) VALUES (1, 0)"))
    engine.dispose()


# ------------------------------------------------------------------------------------------------- encoding


@pytest.fixture
def latin1_url(postgres_url: str) -> Iterator[str]:
    name = f"billing_test_latin1_{threading.get_native_id()}"
    at_the_console(
        postgres_url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING latin1 LOCALE 'C' LOCALE_PROVIDER libc"
    )
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    at_the_console(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("command", [("migrate",), ("plan", "list"), ("run",), ("doctor",)])
def test_every_command_refuses_another_encoding_and_says_what_to_do(latin1_url: str, command: tuple[str, ...]) -> None:
    terminal = Terminal({"BILLING_DATABASE_URL": latin1_url, "BILLING_XENDIT_SECRET_KEY": "xnd_development_x"})

    line = terminal.refused(*command, status=2)

    assert line.startswith("BILLING_DATABASE_URL: the database's encoding is LATIN1")
    assert "createdb --encoding=UTF8 --template=template0" in line


def test_every_process_refuses_it_at_its_start(
    latin1_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from billing.web import create_app
    from workers import broker

    monkeypatch.setenv("BILLING_DATABASE_URL", latin1_url)
    monkeypatch.setenv("BILLING_REDIS_URL", "redis://127.0.0.1:9/0")
    monkeypatch.setenv("BILLING_XENDIT_SECRET_KEY", "xnd_development_x")
    monkeypatch.setenv("BILLING_XENDIT_CALLBACK_TOKEN", "a-token-of-the-dashboard")

    assert scheduler.main() == 2
    with pytest.raises(SystemExit, match="2"):
        create_app()
    with pytest.raises(SystemExit, match="2"):
        broker.app.__wrapped__()
    lines = capsys.readouterr().err.splitlines()
    assert [line[:51] for line in lines] == ["billing: BILLING_DATABASE_URL: the database's encod"] * 3


# -------------------------------------------------------------------------------------------------- the URL


@pytest.mark.parametrize("option", ["prepare_threshold=often", "autocommit=true", "row_factory=x", "no_such_option=1"])
def test_an_option_that_would_break_things_later_is_refused_in_one_line(option: str) -> None:
    url = f"postgresql+psycopg://billing:hunter2@127.0.0.1:1/billing?{option}"

    line = Terminal({"BILLING_DATABASE_URL": url}).refused("plan", "list", status=2)

    assert line.startswith("BILLING_DATABASE_URL: ")
    assert "hunter2" not in line
