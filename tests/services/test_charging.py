"""begin_attempt and settle_attempt, seen from close by: what is written down, what is checked, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import Engine, event, text

from billing.charging import send
from billing.charging import settle as settling
from billing.charging.begin import Begun, Question, UnverifiedToken, begin_attempts, refuse
from billing.domain.gateway import ChargeReport, ChargeStatus
from billing.domain.lifecycle import AttemptStatus
from billing.domain.money import Money
from billing.store.clock import real_now
from tests.world import CHARGE, START, Subscriber, World

MOST_STATEMENTS = 14
MOST_COMMITS = 5


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


@pytest.fixture
def ana(world: World) -> Subscriber:
    """Her first invoice is open; nobody has begun to charge it."""
    subscriber = world.subscribe_save()
    world.open_due()
    return subscriber


def begin(world: World, subscriber: Subscriber) -> Begun | Question | None:
    with world.parts.transaction() as session:
        started = begin_attempts(session, [subscriber.attempt.id], world.now, world.parts.rules)
    asked = [refuse(world.parts, refused, world.now) for refused in started.refused]
    found = [*started.begun, *asked]
    return found[0] if found else None


def settle(world: World, subscriber: Subscriber, report: ChargeReport) -> None:
    with world.parts.transaction() as session:
        settling.settle_attempt(
            session, subscriber.attempts[0].id, report, world.now, world.parts.rules, source="webhook"
        )


PAID = ChargeReport(ChargeStatus.SUCCEEDED, payment_request_id="pr-1", payment_id="py-1", amount=Money(50_000, "IDR"))
DECLINED = ChargeReport(ChargeStatus.FAILED, payment_request_id="pr-1", failure_code="INSUFFICIENT_BALANCE")


# Begin


def test_what_is_to_be_sent_is_written_down_first(world: World, ana: Subscriber) -> None:
    """D1: the attempt, its token and its lease are committed before the call."""
    begun = begin(world, ana)

    assert isinstance(begun, Begun)
    attempt = ana.attempt
    assert attempt.status == "submitted"
    assert attempt.submitted_at == START
    assert attempt.payment_token_id == ana.tokens[0].id
    assert attempt.lease_until is not None
    assert attempt.lease_until > real_now() + world.parts.rules.call_limit
    assert begun.request.reference_id == attempt.reference_id
    assert begun.request.payment_token_id == ana.tokens[0].payment_token_id
    assert begun.request.amount == Money(50_000, "IDR")
    assert begun.request.metadata["invoice_id"] == ana.invoice.id


def test_an_attempt_is_begun_once(world: World, ana: Subscriber) -> None:
    assert isinstance(begin(world, ana), Begun)
    assert begin(world, ana) is None


def test_an_attempt_is_not_begun_before_its_time(world: World, ana: Subscriber) -> None:
    world.clock.instant -= timedelta(seconds=1)
    assert begin(world, ana) is None
    assert ana.attempt.status == "scheduled"


def test_references_are_safe_to_match(ana: Subscriber) -> None:
    """W5: Xendit appends `_suffix` to references of session-born payments, so ours hold no underscore."""
    for name in (ana.attempt.reference_id, ana.session.reference_id):
        assert "_" not in name
        assert name.isascii()
        assert len(name) <= 64


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE subscriptions SET status = 'paused'",
        "UPDATE subscriptions SET status = 'canceled'",
        "UPDATE subscriptions SET status = 'incomplete'",
        "UPDATE invoices SET status = 'paid'",
        "UPDATE invoices SET status = 'void'",
        "UPDATE invoices SET status = 'uncollectible'",
        "WITH line AS (UPDATE invoice_lines SET amount_minor = amount_minor - 10)"
        " UPDATE invoices SET amount_minor = amount_minor - 10",
    ],
)
def test_what_changed_meanwhile_withdraws_the_attempt(world: World, ana: Subscriber, change: str) -> None:
    """Contract 5.2: never on a subscription that is paused or canceled, nor for what is paid."""
    world.waive("open_invoices_have_an_end")  # what has changed meanwhile has changed in the database only
    execute(world, change)
    assert begin(world, ana) is None
    assert ana.attempt.status == "canceled"
    assert ana.attempt.error
    execute(world, "UPDATE invoices SET amount_paid_minor = 0, status = 'open'")


@pytest.mark.parametrize("status", ["FAILED", "EXPIRED", "CANCELED", "REQUIRES_ACTION"])
def test_only_an_active_token_is_charged(world: World, ana: Subscriber, status: str) -> None:
    """Contract 5.2."""
    execute(world, f"UPDATE payment_tokens SET status = '{status}'")
    assert begin(world, ana) is None
    assert ana.attempt.status == "canceled"
    assert ana.status == "past_due"


def test_a_token_never_seen_active_is_asked_about_first(world: World, ana: Subscriber) -> None:
    execute(world, "UPDATE payment_tokens SET status = 'PENDING'")
    assert isinstance(begin(world, ana), UnverifiedToken)

    world.run()

    assert world.calls("GET /v3/payment_tokens/{id}") == 1
    assert ana.invoice.status == "paid"


def test_a_token_that_cannot_be_asked_about_now_waits(world: World, ana: Subscriber) -> None:
    execute(world, "UPDATE payment_tokens SET status = 'PENDING'")
    world.break_calls("500_BEFORE", endpoint="GET /v3/payment_tokens/{id}")
    world.run()
    assert world.calls(CHARGE) == 0
    assert ana.attempt.status == "scheduled"

    world.live(minutes=5)

    assert ana.invoice.status == "paid"


def test_a_token_xendit_does_not_know_waits_and_bothers_nobody(world: World, ana: Subscriber) -> None:
    execute(
        world,
        "UPDATE payment_tokens SET status = 'PENDING', payment_token_id = 'pt-00000000-0000-4000-a000-00000000dead'",
    )
    world.live(days=2)

    assert world.calls(CHARGE) == 0
    assert (ana.tokens[0].status, ana.status) == ("PENDING", "active")
    assert ana.subscription.hold_reason
    assert "customer.asked" not in ana.story


# Settle


def test_settling_twice_changes_nothing(world: World, ana: Subscriber) -> None:
    begin(world, ana)
    settle(world, ana, PAID)
    before = (ana.invoice.amount_paid_minor, ana.story)
    settle(world, ana, PAID)
    assert (ana.invoice.amount_paid_minor, ana.story) == before


@pytest.mark.parametrize(
    "later",
    [
        DECLINED,
        ChargeReport(ChargeStatus.PENDING, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.REQUIRES_ACTION, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.EXPIRED, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.CANCELED, payment_request_id="pr-1"),
    ],
    ids=lambda report: report.status,
)
def test_succeeded_never_moves(world: World, ana: Subscriber, later: ChargeReport) -> None:
    begin(world, ana)
    settle(world, ana, PAID)
    settle(world, ana, later)
    assert (ana.outcomes, ana.invoice.status, ana.status) == (["succeeded"], "paid", "active")


@pytest.mark.parametrize(
    "later",
    [
        ChargeReport(ChargeStatus.PENDING, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.REQUIRES_ACTION, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.EXPIRED, payment_request_id="pr-1"),
        ChargeReport(ChargeStatus.CANCELED, payment_request_id="pr-1"),
        DECLINED,
    ],
    ids=lambda report: report.status,
)
def test_failed_becomes_nothing_but_succeeded(world: World, ana: Subscriber, later: ChargeReport) -> None:
    begin(world, ana)
    settle(world, ana, DECLINED)
    planned = ana.attempt.scheduled_at

    settle(world, ana, later)

    assert ana.outcomes == ["failed", "scheduled"]
    assert ana.attempt.scheduled_at == planned
    assert ana.invoice.dunning_step == 1


def test_the_capture_without_an_id_and_the_one_with_it_are_the_same(world: World, ana: Subscriber) -> None:
    begin(world, ana)
    settle(world, ana, ChargeReport(ChargeStatus.SUCCEEDED, payment_request_id="pr-1"))
    settle(world, ana, PAID)
    assert ana.invoice.amount_paid_minor == 50_000
    assert ana.refunds == []


def test_another_payment_under_the_same_reference_is_a_second_capture(world: World, ana: Subscriber) -> None:
    begin(world, ana)
    settle(world, ana, PAID)
    settle(
        world,
        ana,
        ChargeReport(ChargeStatus.SUCCEEDED, payment_request_id="pr-2", payment_id="py-2", amount=Money(50_000, "IDR")),
    )
    assert ana.invoice.amount_paid_minor == 100_000, "shown"
    assert [refund.reason for refund in ana.refunds] == ["DUPLICATE"]


def test_captured_for_less_is_held_for_a_person(world: World, ana: Subscriber) -> None:
    begin(world, ana)
    settle(
        world,
        ana,
        ChargeReport(ChargeStatus.SUCCEEDED, payment_request_id="pr-1", payment_id="py-1", amount=Money(20_000, "IDR")),
    )
    assert (ana.invoice.status, ana.invoice.amount_paid_minor) == ("open", 20_000)
    assert ana.invoice.hold_reason
    world.live(days=25)
    assert world.calls(CHARGE) == 0


def test_captured_for_more_is_paid_and_the_rest_given_back(world: World, ana: Subscriber) -> None:
    begin(world, ana)
    settle(
        world,
        ana,
        ChargeReport(ChargeStatus.SUCCEEDED, payment_request_id="pr-1", payment_id="py-1", amount=Money(70_000, "IDR")),
    )
    assert (ana.invoice.status, ana.invoice.amount_paid_minor) == ("paid", 70_000)
    assert [(refund.amount_minor, refund.reason) for refund in ana.refunds] == [(20_000, "DUPLICATE")]


def test_setting_back_loses_against_a_late_truth(world: World, ana: Subscriber) -> None:
    """A worker that wakes up after its lease was taken from it changes nothing."""
    begun = begin(world, ana)
    assert isinstance(begun, Begun)
    with world.parts.transaction() as session:
        settling.doubt_attempt(session, ana.attempt.id, world.now, "its process is gone", rules=world.parts.rules)

    send._set_back(world.parts, begun, timedelta(minutes=1), "nothing was sent")

    assert ana.outcomes == [AttemptStatus.IN_DOUBT]


# Cost


@dataclass
class Cost:
    statements: int = 0
    commits: int = 0


@contextmanager
def counted(engine: Engine) -> Iterator[Cost]:
    cost = Cost()

    def statement(*_: object) -> None:
        cost.statements += 1

    def commit(_: object) -> None:
        cost.commits += 1

    event.listen(engine, "before_cursor_execute", statement)
    event.listen(engine, "commit", commit)
    yield cost
    event.remove(engine, "before_cursor_execute", statement)
    event.remove(engine, "commit", commit)


def test_a_renewal_costs_few_statements_and_commits(world: World) -> None:
    """From claim to settled, its webhook stored and applied: what decides how many a second are possible.

    The cost of one more renewal is the difference between a run of many and a run of few.
    """
    few, many = [cost_of_renewing(world, count) for count in (10, 30)]

    assert world.collected() == [50_000] * 40
    assert (many.statements - few.statements) / 20 <= MOST_STATEMENTS
    assert (many.commits - few.commits) / 20 <= MOST_COMMITS


def cost_of_renewing(world: World, count: int) -> Cost:
    for number in range(count):
        world.subscribe_save(f"customer{number}of{count}")
    world.open_due()
    with counted(world.engine) as cost:
        world.run()
        world.deliver_webhooks()
    return cost


def execute(world: World, statement: str) -> None:
    with world.parts.transaction() as session:
        session.execute(text(statement))
