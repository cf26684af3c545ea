"""PgBouncer in transaction mode, old as Debian's: works with the plain URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from billing.runs import tick
from billing.store.engine import make_engine
from billing.store.migrate import newest, upgrade
from billing.store.models import ChargeAttempt
from billing.work import InProcess
from tests.databases.pgbouncer import pgbouncer
from tests.world import World, copy_subscription


@pytest.fixture
def pooled_world(pooled_url: str) -> Iterator[World]:
    with World(pooled_url) as world:
        yield world


def test_three_months_are_billed_by_sixteen_threads_on_six_connections(pooled_world: World) -> None:
    world = pooled_world
    copy_subscription(world, world.subscribe_save(), 39)
    threads = InProcess(world.parts, 16)

    for month in range(3):
        while tick.tick(world.parts, threads):
            world.deliver_webhooks()
        world.deliver_webhooks()
        assert world.collected() == [50_000] * 40 * (month + 1)
        world.advance(days=31)
    threads.close()

    with world.parts.reading() as session:
        assert set(session.scalars(select(ChargeAttempt.status))) == {"succeeded"}


@pytest.mark.usefixtures("_pgbouncer")
def test_each_transaction_has_our_ways_whoever_had_the_connection_before(database_url: str, short_folder: Path) -> None:
    with pgbouncer(database_url, short_folder, default_pool_size="1") as url:
        neighbour = make_engine(url, pool_size=1)
        with neighbour.connect() as connection:
            connection.execute(text("SET statement_timeout = '200ms'"))
            connection.execute(text("SET default_transaction_isolation = 'serializable'"))
            connection.commit()
        neighbour.dispose()
        engine = make_engine(url, pool_size=1)
        with engine.connect() as connection:
            asked = "current_setting('statement_timeout'), current_setting('transaction_isolation'), pg_sleep(0.3)"
            limit, isolation, _ = connection.execute(text(f"SELECT {asked}")).one()
        engine.dispose()

    assert (limit, isolation) == ("15min", "read committed")


@pytest.mark.parametrize("wish", ["0", "none"])
def test_the_wish_for_no_prepared_statements_may_stand_in_the_url(database_url: str, wish: str) -> None:
    engine = make_engine(f"{database_url}&prepare_threshold={wish}", pool_size=1)
    with engine.connect() as connection:
        for _ in range(20):
            connection.execute(text("SELECT 1"))
        assert connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
    engine.dispose()


def test_without_a_pooler_statements_are_prepared(database_url: str) -> None:
    engine = make_engine(database_url, pool_size=1)
    with engine.connect() as connection:
        for _ in range(20):
            connection.execute(text("SELECT 1"))
        assert connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")) >= 1
    engine.dispose()


def test_a_pooler_that_was_not_recognised_is_found_out_by_its_first_error(database_url: str) -> None:
    """Whatever stands between us and the server: a statement that another connection prepared, or none did."""
    world_of_errors = make_engine(database_url, pool_size=2)
    with pytest.raises(Exception, match="does not exist"), world_of_errors.connect() as connection:
        connection.execute(text("EXECUTE prepared_elsewhere"))
    with world_of_errors.connect() as connection:
        for _ in range(20):
            connection.execute(text("SELECT 1"))
        assert connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
    world_of_errors.dispose()


@pytest.mark.usefixtures("_pgbouncer")
def test_the_schema_is_made_through_it_and_by_one_at_a_time(empty_database_url: str, short_folder: Path) -> None:
    with pgbouncer(empty_database_url, short_folder, default_pool_size="4") as url:
        assert upgrade(url) == newest()
        assert upgrade(url) == newest()
        engine = make_engine(url, pool_size=1)
        with engine.connect() as connection:
            here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            left = connection.scalar(text(f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"))
            limits = connection.scalar(text("SELECT current_setting('lock_timeout')"))
        engine.dispose()

    assert (left, limits) == (0, "0")
