"""When Xendit refuses us, not the customer: the account's key, the account's quota, our own limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from billing.charging import key
from billing.errors import Conflict
from billing.parts import Rules
from billing.store import queries
from billing.store.engine import make_engine, make_sessions
from billing.store.models import ChargingStop
from tests.world import CHARGE, SECRET_KEY, START, Budget, World


@pytest.mark.parametrize("refusal", ["HTTP:401:INVALID_API_KEY", "HTTP:403:REQUEST_FORBIDDEN_ERROR"])
def test_a_refused_account_stops_all_charging_until_someone_acts(world: World, refusal: str) -> None:
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(5)]
    world.break_calls(refusal)

    world.live(days=3)

    assert world.calls(CHARGE) == 1, "not one more call with a refused key"
    assert {subscriber.attempt.status for subscriber in subscribers} == {"scheduled"}
    assert {subscriber.status for subscriber in subscribers} == {"active"}, "no customer is bothered"
    assert world.run()["stopped"] is not None
    assert world.calls(CHARGE) == 1, "and it says why"
    with pytest.raises(Conflict, match="charging is stopped"):
        subscribers[0].pay_invoice()

    resume_charging(world)
    world.run()

    assert world.collected() == [50_000] * 5


def test_skipping_3ds_refused_stops_charging(new_world: Callable[..., World]) -> None:
    """X2: an account setting is missing; dunning would only make it worse."""
    world = new_world(skip_three_ds_allowed=False)
    ana = world.subscribe_save()
    world.break_calls("HTTP:403:SKIP_3DS_FORBIDDEN")

    world.live(days=2)

    assert world.calls(CHARGE) == 1
    assert ana.status == "active"


@pytest.mark.parametrize("limit", ["429", "HTTP:400:PAYMENT_REQUEST_RATE_LIMITED"])
def test_too_many_requests_is_no_decline(world: World, limit: str) -> None:
    """L2: scheduled again under the same reference, not counted."""
    ana = world.subscribe_save()
    world.break_calls(limit)
    world.run()
    reference = ana.attempt.reference_id
    assert ana.outcomes == ["scheduled"]
    assert ana.attempt.scheduled_at > START

    world.live(minutes=10)

    assert [(attempt.reference_id, attempt.status) for attempt in ana.attempts] == [(reference, "succeeded")]
    assert ana.invoice.first_failed_at is None


def test_a_used_up_quota_leaves_attempts_where_they_are(new_world: Callable[..., World]) -> None:
    world = new_world(quota=Budget(left=100))
    ana = world.subscribe_save()
    world.tick_with_workers_that_die()
    world.parts.quota.left = 0  # type: ignore[attr-defined]

    world.send("charge", [ana.attempt.id])

    assert world.calls(CHARGE) == 0
    assert ana.outcomes == ["scheduled"]
    world.parts.quota.left = 10  # type: ignore[attr-defined]
    assert world.run()["succeeded"] == 1, "it is taken up as soon as there is quota: its lease was given back"


def test_an_amount_outside_the_channels_limits_is_never_sent(world: World) -> None:
    plan = world.plan("tiny", amount="1000")  # cards in Indonesia begin at IDR 5,000
    ana = world.subscribe_save(plan=plan)

    world.live(days=2)

    assert world.calls(CHARGE) == 0
    assert ana.invoice.hold_reason
    assert "5000" in ana.invoice.hold_reason.replace(",", "")


def test_a_token_that_died_unnoticed_is_found_out_and_the_customer_asked(world: World) -> None:
    """Unlinked at the provider: no webhook tells of it."""
    ana = world.subscribe_save()
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/cancel")

    world.live(days=1)
    assert ana.attempt.failure_code == "INVALID_TOKEN"
    assert (ana.status, ana.invoice.status) == ("past_due", "open")

    ana.adds_card()
    world.live(days=1)
    assert (ana.status, ana.invoice.status) == ("active", "paid")


def test_an_expired_token_is_not_charged_at_all(world: World) -> None:
    ana = world.subscribe_save()
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/expire")
    world.deliver_webhooks()

    world.live(days=3)

    assert ana.tokens[0].status == "EXPIRED"
    assert world.calls(CHARGE) == 0
    assert "customer.asked" in ana.story


def test_many_due_at_once_are_charged_in_waves(new_world: Callable[..., World]) -> None:
    world = new_world(rules=Rules(max_in_flight=3))
    for number in range(10):
        world.subscribe_save(f"customer{number}")

    world.tick_with_workers_that_die()
    in_hand = [row for row in world.all_attempts() if row.lease_until is not None]
    assert len(in_hand) == 3, "no more than workers may have in hand"

    world.leases_run_out()
    world.run()
    assert world.collected() == [50_000] * 10


def test_gateway_calls_keep_no_transaction_open(world: World) -> None:
    """D1: the attempt is committed as submitted before the call, and nothing is held while it runs."""
    ana = world.subscribe_save()
    seen: list[tuple[str, int]] = []
    charge = world.gateway.charge

    def watch(request: object) -> object:
        seen.append((ana.attempt.status, world.engine.pool.checkedout()))  # type: ignore[attr-defined]
        return charge(request)  # type: ignore[arg-type]

    world.gateway.charge = watch  # type: ignore[assignment,method-assign]
    world.run()

    assert seen == [("submitted", 0)]


def test_a_worker_that_slept_too_long_does_not_send(world: World) -> None:
    """What has not left within the call's limit must not leave at all: its lease is about to end."""
    ana = world.subscribe_save()
    object.__setattr__(world.parts, "rules", Rules(call_limit=timedelta(seconds=-1)))
    world.open_due()
    world.send("charge", [ana.attempt.id])

    assert world.calls(CHARGE) == 0
    assert ana.outcomes == ["scheduled"]


# Another key


REFUSALS = ["HTTP:401:INVALID_API_KEY", "HTTP:403:UNAUTHORIZED_SENDER_IP", "HTTP:403:SKIP_3DS_FORBIDDEN"]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_process_with_another_key_lifts_the_stop(world: World, refusal: str) -> None:
    """Another key is what was put right: nobody has to say so once more."""
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(3)]
    world.break_calls(refusal)
    world.tick()
    (stop,) = world.all(select(ChargingStop))
    assert stop.refused_key == key.fingerprint(SECRET_KEY)
    assert len(stop.refused_key) == 16
    told: list[str] = []

    assert key.lift_stop_of_another_key(world.parts, told.append)
    assert told == []
    assert world.all(select(ChargingStop)), "it starts again with the refused key: the stop stays"

    newer = replace(world.parts, key_fingerprint=key.fingerprint("xnd_development_new"))
    assert key.lift_stop_of_another_key(newer, told.append)
    (line,) = told
    assert "restart the processes that still have the old key" in line
    assert "xnd_" not in line
    assert world.all(select(ChargingStop)) == []
    world.run()
    assert world.collected() == [50_000] * 3
    assert {subscriber.status for subscriber in subscribers} == {"active"}


def test_an_old_process_that_is_refused_again_stops_again(world: World) -> None:
    for number in range(2):
        world.subscribe_save(f"customer{number}")
    world.break_calls("HTTP:401:INVALID_API_KEY", count=2)
    world.tick()
    newer = replace(world.parts, key_fingerprint=key.fingerprint("xnd_development_new"))
    key.lift_stop_of_another_key(newer, lambda _: None)

    world.tick()

    assert [stop.refused_key for stop in world.all(select(ChargingStop))] == [key.fingerprint(SECRET_KEY)]


def test_a_stop_by_a_person_stays_whatever_key_comes(world: World) -> None:
    world.subscribe_save()
    with world.parts.transaction() as session:
        queries.stop_charging(session, "by an operator: wait", world.now)
    world.break_calls("HTTP:401:INVALID_API_KEY")
    world.tick()

    newer = replace(world.parts, key_fingerprint=key.fingerprint("xnd_development_new"))
    assert key.lift_stop_of_another_key(newer)

    assert [stop.reason for stop in world.all(select(ChargingStop))] == ["by an operator: wait"]


@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody@127.0.0.1:1/nothing", None])
def test_a_database_that_is_away_or_empty_keeps_no_process_from_starting(world: World, url: str | None) -> None:
    engine = world.engine if url is None else make_engine(url, pool_size=1)
    if url is None:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE charging_stop RENAME TO not_migrated_yet"))
    newer = replace(world.parts, sessions=make_sessions(engine), key_fingerprint=key.fingerprint("xnd_development_new"))

    assert not key.lift_stop_of_another_key(newer), "to be asked again"

    if url is None:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE not_migrated_yet RENAME TO charging_stop"))


def resume_charging(world: World) -> None:
    """`billing charging resume`"""
    with world.parts.transaction() as session:
        assert queries.lift_charging_stop(session)
