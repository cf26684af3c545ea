"""A copy of the database charges nobody until a person says that it is the one now (docs/decisions/0024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from billing.charging import pay_by_hand, tokens
from billing.charging.refunds import follow_refund
from billing.checks import doctor
from billing.domain.gateway import SessionMode, SessionType
from billing.errors import CopyOfDatabase, NotSent
from billing.runs import tick
from billing.store import migrate, which_database
from billing.store.clock import real_now
from billing.store.engine import make_engine
from billing.subscribing import payment_sessions, session_results
from billing.work import work_on
from tests.world import NO_PERIOD_TWICE, World

IS_A_COPY = doctor.WHICH_DATABASE


@pytest.fixture
def copy(world: World, database_url: str, copy_database: Callable[[str], str]) -> Iterator[Callable[[], World]]:
    """`copy()`: the world as it is now, dumped and restored beside it, with the same account at Xendit."""
    made: list[World] = []

    def beside() -> World:
        world.engine.dispose()  # PostgreSQL copies no database that somebody is connected to
        made.append(World(copy_database(database_url), beside=world))
        made[-1].waive(IS_A_COPY, NO_PERIOD_TWICE)  # of what the other has charged since it knows nothing
        return made[-1]

    yield beside
    for each in made:
        each.__exit__(None, None, None)


def is_a_copy(world: World) -> None:
    """As if this database had been made from another one."""
    world.waive(IS_A_COPY)
    with world.parts.transaction() as session:
        session.execute(text("UPDATE database_identity SET database_oid = 1"))


def adopt(world: World) -> None:
    with world.parts.transaction() as session:
        which_database.adopt(session, real_now())


def standing(world: World) -> which_database.Standing:
    with world.parts.reading() as session:
        return which_database.standing(session)


def test_a_copy_beside_the_live_one_sends_nothing(world: World, copy: Callable[[], World]) -> None:
    ana = world.subscribe_save()
    world.run()
    world.advance(days=28)  # the second period is due
    other = copy()
    sent = world.calls(), world.calls("POST /sessions"), world.calls("POST /customers")

    for work in (other.tick, other.run, lambda: tick.hand_out_days(other.parts, other.send)):
        with pytest.raises(CopyOfDatabase, match="`billing adopt`"):
            work()
    with pytest.raises(CopyOfDatabase):
        other.subscribe("bea")

    assert (world.calls(), world.calls("POST /sessions"), world.calls("POST /customers")) == sent
    assert len(other.all_attempts()) == 1, "not even opened"
    world.run()
    assert world.collected() == [50_000, 50_000]
    assert ana.outcomes == ["succeeded", "succeeded"]


def test_adopted_it_charges(world: World, copy: Callable[[], World]) -> None:
    world.waive(NO_PERIOD_TWICE)  # it is not told of what the copy charges
    world.subscribe_save()
    other = copy()
    with pytest.raises(CopyOfDatabase):
        other.run()

    adopt(other)
    other.run()

    assert other.collected() == [50_000]
    assert standing(other).is_the_one


def test_a_database_swapped_under_a_living_process_is_found_when_a_charge_begins(world: World) -> None:
    """The attempt is opened, claimed and in a worker's hands."""
    ana = world.subscribe_save()
    world.open_due()
    is_a_copy(world)

    with pytest.raises(CopyOfDatabase):
        world.send(tick.CHARGE, [ana.attempt.id])

    assert world.calls() == 0
    assert (ana.outcomes, ana.invoice.hold_reason, ana.invoice.status) == (["scheduled"], None, "open")
    adopt(world)
    world.run()
    assert world.collected() == [50_000]


def test_nothing_a_person_asks_for_leaves_a_copy(world: World) -> None:
    ana, bea = world.subscribe_save("ana"), world.subscribe("bea")
    world.open_due()
    is_a_copy(world)

    for wish in (
        lambda: pay_by_hand.pay_invoice(world.parts, ana.invoice.id, None),
        lambda: payment_sessions.open_session(world.parts, ana.customer, mode=SessionMode.PAYMENT_LINK),
    ):
        with pytest.raises(CopyOfDatabase):
            wish()
    for wish in (
        lambda: session_results.cancel_session(world.parts, bea.session_id),
        lambda: tokens.cancel_token(world.parts, ana.tokens[0].id),
    ):
        with pytest.raises(NotSent, match="`billing adopt`"):
            wish()

    assert (bea.session.status, ana.tokens[0].status, ana.outcomes) == ("ACTIVE", "ACTIVE", ["scheduled"])
    assert world.calls("POST /v3/payment_tokens/{id}/cancel") == world.calls("POST /sessions/{id}/cancel") == 0


def test_what_arrives_at_a_copy_is_applied_and_a_refund_waits(world: World) -> None:
    ana = world.subscribe(via=SessionType.PAY)
    ana.cancel(at_once=True)
    ana.completes_session()
    is_a_copy(world)
    world.deliver_webhooks()
    (refund,) = ana.refunds

    for follow in (
        lambda: work_on(world.parts, tick.REFUND, refund.id),
        partial(follow_refund, world.parts, refund.id),
    ):
        with pytest.raises(CopyOfDatabase):
            follow()

    assert {event.state for event in world.events()} == {"applied"}
    assert world.calls("POST /refunds") == 0
    assert world.fresh(refund).status == "requested"
    adopt(world)
    world.live(hours=1)
    assert world.fresh(refund).status == "succeeded"


def test_the_doctor_tells_of_a_copy(world: World) -> None:
    def told() -> dict[str, object]:
        (check,) = [check for check in doctor.examine(world.parts)["checks"] if check["name"] == IS_A_COPY]
        return check

    assert told()["ok"]
    is_a_copy(world)
    assert (told()["ok"], told()["count"]) == (False, 1)
    assert "this database is a copy" in str(told()["detail"])
    assert "billing adopt" in str(told()["repair"])


# What is no copy, and what cannot be told


def test_a_renamed_database_is_no_copy(world: World, database_url: str, postgres_url: str) -> None:
    world.engine.dispose()
    name = make_url(database_url).database or ""
    server = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)

    def rename(old: str, new: str) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            statement = sql.SQL("ALTER DATABASE {} RENAME TO {}")
            connection.execute(statement.format(sql.Identifier(old), sql.Identifier(new)))

    rename(name, f"{name}_new")
    renamed = make_engine(make_url(database_url).set(database=f"{name}_new").render_as_string(hide_password=False))
    with Session(renamed) as session:
        found = which_database.standing(session)
    renamed.dispose()
    rename(f"{name}_new", name)

    assert found.name == f"{name}_new"
    assert found.is_the_one


def test_another_cluster_is_another_database_whatever_its_oid(world: World) -> None:
    with world.parts.transaction() as session:
        session.execute(text("UPDATE database_identity SET system_identifier = '1'"))
    with pytest.raises(CopyOfDatabase):
        world.parts.refuse_a_copy()
    adopt(world)
    world.parts.refuse_a_copy()


def test_where_the_cluster_may_not_be_asked_for_oid_and_name_tell(world: World) -> None:
    with world.parts.transaction() as session:
        session.execute(text("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"))
    world.engine.dispose()
    with world.parts.transaction() as session:
        session.execute(text("SET LOCAL ROLE pg_read_all_data"))
        found = which_database.standing(session)
    assert found.is_the_one, "noted by a user who may ask: the oid is the same"
    assert found.system_identifier is None
    assert "may not call pg_control_system()" in found.told_by

    with world.parts.transaction() as session:
        session.execute(text("UPDATE database_identity SET system_identifier = 'name:another'"))
        session.execute(text("SET LOCAL ROLE pg_read_all_data"))
        assert not which_database.standing(session).is_the_one
    with world.parts.transaction() as session:
        session.execute(text("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC"))
    adopt(world)


# Who writes it down


def test_migrate_notes_it_once_and_a_copy_that_is_migrated_stays_one(world: World, database_url: str) -> None:
    is_a_copy(world)
    before = standing(world).noted
    migrate.upgrade(database_url)
    assert standing(world).noted == before
    adopt(world)


def test_a_database_of_an_older_release_is_noted_when_it_is_migrated(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, "0006")
    migrate.upgrade(empty_database_url)

    engine = make_engine(empty_database_url, pool_size=2)
    with Session(engine) as session:
        assert which_database.standing(session).is_the_one
    engine.dispose()


def test_where_nothing_is_noted_nothing_is_charged(world: World, database_url: str) -> None:
    with world.parts.transaction() as session:
        session.execute(text("DELETE FROM database_identity"))
    with pytest.raises(CopyOfDatabase, match="run `billing migrate`"):
        world.parts.refuse_a_copy()
    migrate.upgrade(database_url)
    world.parts.refuse_a_copy()
