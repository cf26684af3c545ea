"""The first of the month: who goes first, what a channel that is down costs, and charges in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from billing.charging import send as charging
from billing.domain.gateway import Lane
from billing.parts import Parts, Rules
from billing.runs import tick
from billing.store.breaker import FIRST_PROBE, LONGEST_PAUSE, OPENS_AFTER, Trouble, note_failure, take_probe
from billing.store.models import Capture, ChannelBreaker, ChargeAttempt, Fact, Invoice
from billing.work import work_on
from tests.world import CHARGE, Budget, Subscriber, World

DOWN = "HTTP:503:CHANNEL_UNAVAILABLE"


def due_renewals(world: World, count: int, *, channel: str | None = None) -> list[Subscriber]:
    """Their first month is paid, their second is due."""
    subscribers = [world.subscribe_save(f"renewal{number}", channel=channel) for number in range(count)]
    world.settle_down()
    world.advance(days=28)
    return subscribers


def handed_out(world: World) -> list[tuple[str, list[str]]]:
    """What a tick hands to workers, in its order; nobody does it."""
    handed: list[tuple[str, list[str]]] = []
    tick.tick(world.parts, lambda kind, ids: handed.append((kind, list(ids))))
    return handed


# Lanes


def test_whoever_waits_goes_first_then_renewals_then_retries(world: World) -> None:
    retry = world.subscribe_save("retry")
    retry.script("INSUFFICIENT_BALANCE")
    world.live(hours=1)
    due_renewals(world, 5)
    newcomer = world.subscribe_save("newcomer")

    world.open_due()
    kinds = [kind for kind, _ in handed_out(world)]

    assert newcomer.attempt.lane == Lane.CUSTOMER
    assert Lane.RETRY in {attempt.lane for attempt in retry.attempts}
    assert kinds == [tick.CHARGE_NOW, tick.CHARGE_AGAIN, tick.CHARGE]


def test_a_few_retries_go_out_while_renewals_would_take_all(world: World) -> None:
    """No lane starves: one place in ten is theirs, the rest is for renewals."""
    shares = tick._shares(20, for_customers=20)

    assert shares[0] == (Lane.CUSTOMER, 20)
    assert shares[1] == (Lane.RETRY, 2)
    assert shares[2] == (Lane.RENEWAL, 20)
    assert world.calls(CHARGE) == 0


def test_a_changed_payment_method_is_charged_at_once(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.settle_down()
    ana.adds_card()

    assert ana.attempt.lane == Lane.CUSTOMER
    assert [kind for kind, _ in handed_out(world)] == [tick.CHARGE_NOW]


def test_imported_subscribers_are_no_crowd_of_waiting_customers(world: World) -> None:
    ana = world.subscribe_save(start_at=world.now + timedelta(days=3))
    world.advance(days=3)
    world.open_due()

    assert ana.attempt.lane == Lane.RENEWAL, "a date was set: nobody stands at the checkout"


class Narrow(Budget):
    """Lets so many through in the next seconds."""

    def outlook(self, endpoint: str, seconds: float) -> int | None:  # noqa: ARG002 - the port's signature
        return 3


def test_no_more_is_handed_out_than_the_budget_lets_through(database_url: str) -> None:
    with World(database_url, quota=Narrow(left=1_000)) as world:
        subscribers = due_renewals(world, 10)

        assert sum(len(ids) for _, ids in handed_out(world)) == 3
        assert handed_out(world) == [], "what is handed out is not done yet"

        world.leases_run_out()
        world.settle_down()
        assert {subscriber.invoice.status for subscriber in subscribers} == {"paid"}


class Full(Budget):
    """Renewals have filled the next seconds."""

    def outlook(self, endpoint: str, seconds: float) -> int | None:  # noqa: ARG002 - the port's signature
        return 0


def test_a_customer_is_handed_out_although_the_next_seconds_are_full(database_url: str) -> None:
    with World(database_url, quota=Full(left=1_000)) as world:
        due_renewals(world, 3)
        newcomer = world.subscribe_save("newcomer")
        world.open_due()

        assert handed_out(world) == [(tick.CHARGE_NOW, [newcomer.attempt.id])]


# A channel is down


@pytest.fixture
def crowd(world: World) -> list[Subscriber]:
    return due_renewals(world, OPENS_AFTER + 4, channel="OVO")


def waiting_for(world: World, channel: str) -> list[ChargeAttempt]:
    return world.all(select(ChargeAttempt).where(ChargeAttempt.parked_by == f"channel:{channel}"))


def test_while_a_channel_is_down_its_charges_wait_and_spend_nothing(world: World, crowd: list[Subscriber]) -> None:
    before = world.calls(CHARGE)
    world.break_calls(DOWN, count=1_000)

    world.settle_down()

    assert world.calls(CHARGE) - before == OPENS_AFTER, "no quota"
    parked = waiting_for(world, "OVO")
    assert len(parked) == len(crowd) - OPENS_AFTER
    assert {attempt.status for attempt in parked} == {"scheduled"}
    assert all("OVO, which is down" in (attempt.error or "") for attempt in parked)
    spared = [subscriber.invoice for subscriber in crowd if subscriber.attempt.parked_by]
    assert {(invoice.technical_step, invoice.dunning_step) for invoice in spared} == {(0, 0)}, "no retries"


def test_others_go_on_meanwhile(world: World) -> None:
    wallets = due_renewals(world, OPENS_AFTER + 2, channel="OVO")
    for subscriber in wallets:
        subscriber.script(*[DOWN] * 50)
    cards = [world.subscribe_save(f"card{number}") for number in range(5)]

    world.settle_down()

    assert {subscriber.invoice.status for subscriber in cards} == {"paid"}
    assert len(waiting_for(world, "OVO")) == 2


def test_a_probe_brings_the_channel_back(world: World, crowd: list[Subscriber]) -> None:
    world.break_calls(DOWN, count=OPENS_AFTER)
    world.settle_down()
    assert waiting_for(world, "OVO")

    world.live(minutes=2)

    assert waiting_for(world, "OVO") == []
    assert world.all(select(ChannelBreaker)) == []
    assert [subscriber.invoice.status for subscriber in crowd].count("paid") == len(crowd) - OPENS_AFTER
    world.live(days=2)
    assert {subscriber.invoice.status for subscriber in crowd} == {"paid"}, "those that found it down had retries left"


@pytest.mark.usefixtures("crowd")
def test_probes_become_rarer(world: World) -> None:
    before = world.calls(CHARGE)
    world.break_calls(DOWN, count=1_000)

    world.live(minutes=3)
    assert world.calls(CHARGE) - before == OPENS_AFTER + 2, "after half a minute, and a minute later"

    world.live(minutes=3)
    assert world.calls(CHARGE) - before == OPENS_AFTER + 3


def test_a_channel_that_is_down_for_a_week_is_probed_to_the_end(world: World) -> None:
    trouble = Trouble("OVO", "CHANNEL_UNAVAILABLE", world.now)
    with world.parts.transaction() as session:
        note_failure(session, "OVO", trouble.reason, world.now, opens=True)
    for _ in range(100):
        world.advance(minutes=11)
        with world.parts.transaction() as session:
            probe_at = session.get_one(ChannelBreaker, "OVO").probe_at
            assert take_probe(session, replace(trouble, probe_at=probe_at), world.now)
            assert session.get_one(ChannelBreaker, "OVO").probe_at - world.now <= LONGEST_PAUSE  # type: ignore[operator]


def test_one_probe_at_a_time(world: World, crowd: list[Subscriber]) -> None:
    before = world.calls(CHARGE)
    world.break_calls(DOWN, count=1_000)
    world.settle_down()
    waiting = [attempt.id for attempt in waiting_for(world, "OVO")]
    with world.parts.transaction() as session:
        for attempt_id in waiting:
            session.get_one(ChargeAttempt, attempt_id).parked_by = None
    world.advance(seconds=FIRST_PROBE.total_seconds() + 1)

    world.send(tick.CHARGE, waiting)

    assert world.calls(CHARGE) - before == OPENS_AFTER + 1
    assert len(waiting_for(world, "OVO")) == len(waiting) - 1
    assert crowd


def test_a_decline_is_an_answer_and_opens_nothing(world: World, crowd: list[Subscriber]) -> None:
    for subscriber in crowd:
        subscriber.script("INSUFFICIENT_BALANCE")
    before = world.calls(CHARGE)

    world.settle_down()

    assert world.calls(CHARGE) - before == len(crowd)
    assert world.all(select(ChannelBreaker)) == []


def test_a_few_failures_among_answers_open_nothing(world: World, crowd: list[Subscriber]) -> None:
    for number, subscriber in enumerate(crowd):
        subscriber.script(DOWN if number % 2 else "SUCCEEDED")

    world.settle_down()

    assert waiting_for(world, "OVO") == []


def test_what_a_person_asks_for_goes_out_even_so(world: World, crowd: list[Subscriber]) -> None:
    world.break_calls(DOWN, count=OPENS_AFTER)
    world.settle_down()
    spared = next(subscriber for subscriber in crowd if subscriber.attempt.parked_by)

    spared.pay_invoice()

    assert spared.invoice.status == "paid"
    assert waiting_for(world, "OVO") == [], "and its success tells that the channel is back"


def test_the_channels_own_limit_of_requests_makes_it_wait_at_once(world: World, crowd: list[Subscriber]) -> None:
    before = world.calls(CHARGE)
    world.break_calls("HTTP:400:PAYMENT_REQUEST_RATE_LIMITED", count=1)

    world.settle_down()

    assert world.calls(CHARGE) - before == 1
    assert len(waiting_for(world, "OVO")) == len(crowd) - 1
    world.live(hours=1)
    assert {subscriber.invoice.status for subscriber in crowd} == {"paid"}


# Groups


@pytest.fixture
def in_groups(world: World) -> Iterator[Parts]:
    with ThreadPoolExecutor(8) as callers:
        yield replace(world.parts, callers=callers, rules=Rules(charges_at_once=16))


def ids_of(subscribers: Sequence[Subscriber]) -> list[str]:
    return [subscriber.attempt.id for subscriber in subscribers]


def test_a_group_ends_as_each_of_it_would_have_alone(world: World, in_groups: Parts) -> None:
    endings = {
        "SUCCEEDED": "succeeded",
        "INSUFFICIENT_BALANCE": "failed",
        "PENDING": "pending",
        "TIMEOUT_AFTER": "in_doubt",
        DOWN: "failed",
        "429": "scheduled",
        "HTTP:400:API_VALIDATION_ERROR": "failed",
        "SLOW:0.01": "succeeded",
    }
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(len(endings))]
    for subscriber, outcome in zip(subscribers, endings, strict=True):
        subscriber.script(outcome)
    world.open_due()

    work_on(in_groups, tick.CHARGE, *ids_of(subscribers))

    assert [subscriber.attempts[0].status for subscriber in subscribers] == list(endings.values())
    assert world.calls(CHARGE) == len(endings)


def test_two_workers_with_the_same_group_charge_each_once(world: World, in_groups: Parts) -> None:
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(12)]
    world.open_due()
    ids = ids_of(subscribers)

    world.in_two_threads(lambda: work_on(in_groups, tick.CHARGE, *ids))

    assert world.collected() == [50_000] * 12


def test_one_that_breaks_does_not_take_the_others_with_it(
    world: World, in_groups: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribers = [world.subscribe_save(f"customer{number}") for number in range(6)]
    world.open_due()
    unlucky = subscribers[3].attempt
    charge = world.gateway.charge

    def breaks(request: Any) -> Any:
        if request.reference_id == unlucky.reference_id:
            raise RuntimeError("a bug of ours")
        return charge(request)

    monkeypatch.setattr(world.gateway, "charge", breaks)

    with pytest.raises(RuntimeError):
        work_on(in_groups, tick.CHARGE, *ids_of(subscribers))

    statuses = [subscriber.attempt.status for subscriber in subscribers]
    assert statuses.count("succeeded") == 5
    assert statuses[3] == "submitted", "looked up when its lease ends"


def rows_of(world: World, subscriber: Subscriber) -> dict[str, dict[str, object]]:
    """Everything a charge writes, without what is different for every attempt."""
    own = {"id", "reference_id", "invoice_id", "subscription_id", "attempt_id", "number", "lease_id", "created_at"}
    own |= {"payment_id", "payment_request_id", "payment_token_id", "fingerprint", "detail", "amount_minor"}
    rows: dict[str, Any] = {
        "attempt": subscriber.attempt,
        "invoice": subscriber.invoice,
        "capture": world.all(select(Capture).where(Capture.invoice_id == subscriber.invoice.id))[0],
        "fact": world.all(select(Fact).where(Fact.subscription_id == subscriber.id, Fact.kind == "invoice.paid"))[-1],
    }
    seen = {
        name: {column.name: getattr(row, column.name) for column in row.__table__.columns if column.name not in own}
        for name, row in rows.items()
    }
    seen["told"] = {key: type(value).__name__ for key, value in rows["fact"].detail.items()}
    return seen


def test_what_is_settled_together_is_settled_as_one_by_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement for paid charges does what settle_attempt does: every row it leaves is the same."""
    alone, together = (due_renewals(world, 1)[0], world.subscribe_save("other"))
    world.open_due()
    with monkeypatch.context() as patch:
        patch.setattr(charging, "settle_together", lambda *_: set())
        work_on(world.parts, tick.CHARGE, alone.attempt.id)
    work_on(world.parts, tick.CHARGE, together.attempt.id)

    first, second = rows_of(world, alone), rows_of(world, together)
    for name in (
        "lane",
        "scheduled_at",
        "submitted_at",
        "opened_at",
        "period_key",
        "period_index",
        "period_start",
        "period_end",
    ):
        first["attempt"].pop(name, None), second["attempt"].pop(name, None)
        first["invoice"].pop(name, None), second["invoice"].pop(name, None)
    assert first == second
    assert world.all(select(Invoice).where(Invoice.status == "paid"))
