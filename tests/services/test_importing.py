"""Subscribers who are charged elsewhere today move in: what is taken, what is left alone, what is refused and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.checks.doctor import examine
from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import SubscriptionStatus, TokenStatus
from billing.errors import NotSent, RateLimited, RequestRejected
from billing.parts import Parts
from billing.store.models import Customer, Fact, Invoice, PaymentToken, Subscription
from billing.subscribing import import_rows as importing
from billing.subscribing.import_rows import import_rows
from billing.subscriptions.open_periods import open_due_invoices
from tests.factories import NOW, make_customer, make_plan, make_subscription, make_token
from tests.services.stand_ins import Clock, Gateway

TOKEN = "pt-11111111-2222-3333-4444-555555555555"


def row(**changes: Any) -> str:
    """Ana, monthly from 28 February 2026 at nine in Jakarta. A member set to None is left out."""
    members: dict[str, Any] = {
        "customer_reference": "ana",
        "name": "Ana",
        "email": "ana@example.com",
        "country": "ID",
        "plan": "gold",
        "subscription_reference": "ana-gold",
        "payment_token_id": TOKEN,
        "channel_code": "CARDS",
        "next_billing_at": "2026-02-28T09:00:00+07:00",
    }
    return json.dumps({name: value for name, value in (members | changes).items() if value is not None})


def take(parts: Parts, *lines: str, dry_run: bool = False, verify: bool = False) -> dict[str, Any]:
    return import_rows(parts, lines, dry_run=dry_run, verify_with_gateway=verify)


def refusal(parts: Parts, *lines: str, verify: bool = False) -> str:
    """The reason the last line is refused for; nothing may be left of it."""
    report = take(parts, *lines, verify=verify)
    assert [refused["line"] for refused in report["refused"]] == [len(lines)]
    reason: str = report["refused"][0]["reason"]
    assert "\n" not in reason
    return reason


@pytest.fixture(autouse=True)
def gold(session: Session) -> None:
    make_plan(session, code="gold")
    session.commit()


def only(session: Session) -> Subscription:
    return session.scalars(select(Subscription)).one()


def count(session: Session, table: type[Any]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


# ------------------------------------------------------------------------------------------- what is taken


def test_a_subscriber_becomes_active_with_the_date_exactly_as_given(parts: Parts, session: Session) -> None:
    assert take(parts, row()) == {"created": 1, "unchanged": 0, "refused": []}

    subscription = only(session)
    assert subscription.status == SubscriptionStatus.ACTIVE
    assert subscription.next_billing_at == datetime(2026, 2, 28, 2, 0, tzinfo=UTC)
    assert (subscription.next_index, subscription.billed_cycles) == (0, 0)
    assert (subscription.amount_minor, subscription.currency, subscription.timezone) == (50_000, "IDR", "Asia/Jakarta")
    token = session.get_one(PaymentToken, subscription.payment_token_id)
    assert (token.payment_token_id, token.status, token.channel_code) == (TOKEN, TokenStatus.PENDING, "CARDS")
    told = session.scalars(select(Fact)).one()
    assert told.kind == "subscription.imported"


def test_the_period_paid_for_elsewhere_is_the_running_one(parts: Parts, session: Session) -> None:
    take(parts, row())

    subscription = only(session)
    assert subscription.current_period_end == subscription.next_billing_at
    assert subscription.current_period_start == datetime(2026, 1, 28, 2, 0, tzinfo=UTC)


def test_the_first_period_is_billed_when_it_is_due_and_the_calendar_has_no_gap(
    parts: Parts, session: Session, clock: Clock
) -> None:
    take(parts, row())
    clock.at = datetime(2026, 2, 28, 2, 0, tzinfo=UTC)

    with parts.transaction() as billing:
        open_due_invoices(billing, clock.now())

    invoice = session.scalars(select(Invoice)).one()
    assert (invoice.period_index, invoice.period_start) == (0, clock.at)
    assert examine(parts)["ok"]


def test_an_anchor_day_beyond_the_month_comes_back_when_a_month_has_it(
    parts: Parts, session: Session, clock: Clock
) -> None:
    """31, cut to 28 in February: C1."""
    take(parts, row(anchor_day=31))
    clock.at = datetime(2026, 6, 30, 2, 0, tzinfo=UTC)

    with parts.transaction() as billing:
        open_due_invoices(billing, clock.now())

    starts = session.scalars(select(Invoice.period_start).order_by(Invoice.period_index)).all()
    assert [(start.month, start.day) for start in starts] == [(2, 28), (3, 31), (4, 30), (5, 31), (6, 30)]


def test_without_an_anchor_day_it_is_the_day_of_the_next_date(parts: Parts, session: Session) -> None:
    take(parts, row())

    assert only(session).anchor_day == 28


def test_a_date_in_the_past_is_left_to_the_catch_up_policy(parts: Parts, session: Session) -> None:
    past = (NOW - timedelta(days=40)).isoformat()

    assert take(parts, row(next_billing_at=past, catch_up=True))["created"] == 1
    assert only(session).next_billing_at == NOW - timedelta(days=40)


@pytest.mark.parametrize(
    ("schedule", "days", "taken"),
    [
        *(("every 1:month", 0, True), ("every 1:month", 27, True), ("every 1:month", 32, False)),
        *(("every 1:week", 6, True), ("every 1:week", 8, False), ("every 1:day", 0.9, True)),
        *(("every 1:day", 1.1, False), ("every 1:year", 364, True), ("every 1:year", 367, False)),
    ],
)
def test_a_date_may_lie_one_of_its_periods_in_the_past_and_no_more(
    parts: Parts, session: Session, schedule: str, days: float, taken: bool
) -> None:
    make_plan(session, code="plan", schedule=schedule)
    session.commit()
    line = row(plan="plan", next_billing_at=(NOW - timedelta(days=days)).isoformat())

    assert take(parts, line, dry_run=True)["created"] == taken
    assert take(parts, line)["created"] == taken
    assert count(session, Subscription) == taken


@pytest.mark.parametrize(
    ("terms", "billed"),
    [
        ({}, 12),
        ({"cycles": 3}, 3),
        ({"catch_up": "latest"}, 1),
        ({"catch_up": "skip"}, 0),
        ({"catch_up": "hold"}, 0),
    ],
)
def test_a_year_mistyped_is_refused_with_what_it_would_have_charged(
    parts: Parts, session: Session, terms: dict[str, Any], billed: int
) -> None:
    make_plan(session, code="plan", **terms)
    session.commit()

    reason = refusal(parts, row(plan="plan", next_billing_at=(NOW - timedelta(days=6 * 365 + 2)).isoformat()))

    assert "next_billing_at: 73 periods of plan plan (every month) have begun by now" in reason
    assert f"and {billed} would be billed at once" in reason
    assert '"catch_up": true' in reason
    assert count(session, Customer) == 0


def test_a_cron_plan_counts_its_own_ticks(parts: Parts, session: Session) -> None:
    make_plan(session, code="cron", schedule="cron 0 9 1 * *")
    session.commit()
    two_ago = (NOW.replace(day=1) - timedelta(days=40)).strftime("%Y-%m-01T09:00:00+07:00")

    assert "3 periods of plan cron" in refusal(parts, row(plan="cron", next_billing_at=two_ago))
    assert take(parts, row(plan="cron", next_billing_at=two_ago, catch_up=True))["created"] == 1


def test_a_row_that_is_here_already_is_unchanged_however_old_its_date(parts: Parts, clock: Clock) -> None:
    take(parts, row())
    clock.at = datetime(2027, 6, 1, tzinfo=UTC)

    assert take(parts, row()) == {"created": 0, "unchanged": 1, "refused": []}


def test_a_date_years_ahead_is_taken_with_a_warning(parts: Parts) -> None:
    told: list[str] = []
    lines = [row(), row(subscription_reference="b", next_billing_at="2126-02-28T09:00:00+07:00")]

    report = import_rows(parts, lines, dry_run=False, verify_with_gateway=False, warn=told.append)

    assert report["created"] == 2
    assert told == ["line 2: nothing is charged before 2126-02-28; is that year meant?"]


def test_the_rows_time_zone_decides_the_day(parts: Parts, session: Session) -> None:
    """00:30 in Manila on the 1st is still the last of February in Jakarta."""
    take(parts, row(timezone="Asia/Manila", next_billing_at="2026-03-01T00:30:00+08:00"))

    subscription = only(session)
    assert (subscription.timezone, subscription.anchor_day) == ("Asia/Manila", 1)


def test_two_subscriptions_of_one_customer_share_customer_and_token(parts: Parts, session: Session) -> None:
    report = take(parts, row(), row(subscription_reference="ana-silver"))

    assert report["created"] == 2
    assert (count(session, Customer), count(session, PaymentToken), count(session, Subscription)) == (1, 1, 2)


def test_a_customer_who_is_here_already_gets_the_id_xendit_knows_him_by(parts: Parts, session: Session) -> None:
    ana = make_customer(session, reference="ana")
    session.commit()

    assert take(parts, row(xendit_customer_id="cust-1"))["created"] == 1

    session.refresh(ana)
    assert ana.xendit_customer_id == "cust-1"


def test_a_known_active_token_stays_active_though_nobody_was_asked(parts: Parts, session: Session) -> None:
    token = make_token(session, make_customer(session, reference="ana"), payment_token_id=TOKEN)
    session.commit()

    assert take(parts, row())["created"] == 1

    session.refresh(token)
    assert token.status == TokenStatus.ACTIVE


def test_a_cron_plan_takes_its_own_ticks(parts: Parts, session: Session) -> None:
    make_plan(session, code="cron", schedule="cron 0 9 1 * *")
    session.commit()

    assert take(parts, row(plan="cron", next_billing_at="2026-03-01T09:00:00+07:00"))["created"] == 1
    assert only(session).next_billing_at == datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def test_blank_lines_and_a_byte_order_mark_are_no_rows_but_count_as_lines(parts: Parts) -> None:
    report = take(parts, "\ufeff" + row(), "", "   \n", "nonsense")

    assert report["created"] == 1
    assert [refused["line"] for refused in report["refused"]] == [4]


def test_an_optional_member_may_be_empty_as_a_table_has_it(parts: Parts, session: Session) -> None:
    empty = json.dumps(
        json.loads(row()) | {"timezone": "", "xendit_customer_id": "", "anchor_day": "", "catch_up": None}
    )

    assert take(parts, empty)["created"] == 1
    assert only(session).timezone == "Asia/Jakarta"


def test_progress_is_told_as_it_goes(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(importing, "BATCH", 2)

    import_rows(parts, [row(), "", "nonsense"], dry_run=True, verify_with_gateway=False, progress=told.append)

    assert told == [2, 3]


# ---------------------------------------------------------------------------------------------- once more


def test_the_same_file_again_changes_nothing_even_after_months_of_billing(
    parts: Parts, session: Session, clock: Clock
) -> None:
    take(parts, row(), row(customer_reference="ben", subscription_reference="ben-gold", payment_token_id="pt-ben"))
    clock.at = datetime(2026, 4, 1, tzinfo=UTC)
    with parts.transaction() as billing:
        open_due_invoices(billing, clock.now())
    before = session.execute(select(Subscription.reference, Subscription.next_billing_at)).all()
    session.rollback()

    report = take(
        parts, row(), row(customer_reference="ben", subscription_reference="ben-gold", payment_token_id="pt-ben")
    )

    assert report == {"created": 0, "unchanged": 2, "refused": []}
    assert session.execute(select(Subscription.reference, Subscription.next_billing_at)).all() == before


def test_a_subscriber_who_has_changed_his_card_since_is_unchanged(parts: Parts, session: Session) -> None:
    take(parts, row())
    subscription = only(session)
    customer = session.get_one(Customer, subscription.customer_id)
    subscription.payment_token_id = make_token(session, customer).id
    session.commit()

    assert take(parts, row())["unchanged"] == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": "silver"}, "plan"),
        ({"payment_token_id": "pt-another"}, "payment_token_id"),
        ({"anchor_day": 30}, "anchor_day"),
        ({"timezone": "Asia/Makassar"}, "timezone"),
    ],
)
def test_an_existing_subscription_that_differs_is_refused_with_the_difference(
    parts: Parts, session: Session, change: dict[str, Any], named: str
) -> None:
    make_plan(session, code="silver")
    session.commit()
    take(parts, row())

    reason = refusal(parts, row(**change))

    assert f"ana-gold exists and differs in {named}" in reason


def test_the_same_row_twice_in_a_file_is_one_subscription(parts: Parts, session: Session) -> None:
    assert take(parts, row(), row()) == {"created": 1, "unchanged": 1, "refused": []}
    assert count(session, Subscription) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"next_billing_at": "2026-03-28T09:00:00+07:00"}, "line 1 has the same subscription_reference"),
        ({"subscription_reference": "b", "email": "other@example.com"}, "line 1 describes customer ana otherwise"),
        ({"subscription_reference": "b", "customer_reference": "ben"}, "line 1 gives this token to customer ana"),
        (
            {"subscription_reference": "b", "customer_reference": "ben", "payment_token_id": "pt-b"},
            "line 1 gives this xendit_customer_id to customer ana",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_lines_that_contradict_each_other_are_refused_by_line(
    parts: Parts, change: dict[str, Any], reason: str, dry_run: bool
) -> None:
    both = {"xendit_customer_id": "cust-1"}

    report = take(parts, row(**both), row(**both | change), dry_run=dry_run)

    assert report["created"] == 1
    assert report["refused"][0]["line"] == 2
    assert reason in report["refused"][0]["reason"]


def test_a_dry_run_reports_the_same_and_writes_nothing(parts: Parts, session: Session) -> None:
    lines = (row(), row(), row(subscription_reference="b", plan="none"), row(subscription_reference="c"))

    dry = take(parts, *lines, dry_run=True)

    assert (count(session, Customer), count(session, PaymentToken), count(session, Subscription)) == (0, 0, 0)
    assert count(session, Fact) == 0
    session.rollback()
    assert take(parts, *lines) == dry
    assert dry["created"] == 2


# ---------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("[" * 50_000, "characters; write one row"),
        ("[" * 15_000, "not JSON"),
        ('{"plan": ' + "1" * 5_000 + "}", "not JSON"),
        ('{"plan": "gold", "plan": "gold"}', "twice"),
        ("{}", "customer_reference, name"),
        (row(plann="gold"), "did you mean plan?"),
        (row(cvv="123"), "unknown member 'cvv'"),
        (row(name=7), "name must be text in quotes, not a number"),
        (row(name=["Ana"]), "not a list"),
        (row(name=True), "not true or false"),
        (row(name=""), "name missing"),
        (row(name="   "), "name"),
        (row(name="A" * 201), "201 characters"),
        (row(name="Ana\u0000"), "no text"),
        (row(name="Ana\ud800"), "no text"),
        (row(email="nobody"), "email"),
        (row(country="id"), "write ID"),
        (row(country="DE"), "not supported"),
        (row(customer_reference="-ana"), "customer_reference"),
        (row(subscription_reference="a b"), "subscription_reference"),
        (row(timezone="WIB"), "Asia/Jakarta"),
        (row(plan="platinum"), "no plan 'platinum'"),
        (row(payment_token_id="pm-1"), "pt-"),
        (row(payment_token_id="tok"), "pt-"),
        (row(xendit_customer_id="ana"), "cust-"),
        (row(channel_code="GOPAY"), "without the customer"),
        (row(channel_code="PAYMAYA"), "cannot be charged in ID"),
        (row(channel_code="cards"), "channel_code 'cards'"),
        (row(country="PH"), "costs IDR, which cannot be charged in PH"),
        (row(next_billing_at="soon"), "not a time"),
        (row(next_billing_at="2026-02-28"), "no offset"),
        (row(next_billing_at="2026-02-28T09:00:00"), "no offset"),
        (row(next_billing_at="0001-01-01T00:00:00+14:00"), "the year 1"),
        (row(next_billing_at="9999-12-31T23:00:00-12:00"), "the year 9999"),
        (row(catch_up="true"), "catch_up must be true or false"),
        (row(catch_up=1), "catch_up must be true or false"),
        (row(name="Ana \x1b[31m"), "name: character 5 is U+001B (a control character)"),
        (row(name="Ana\u202e"), "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        (row(email="ana\x9b@example.com"), "email: character 4 is U+009B"),
        (row(plan="gold\u2028"), "plan: character 5 is U+2028"),
        ("\ufeff" + row(), "a byte order mark stands in this line"),
        (row() + "\ufeff" + row(), "a byte order mark stands in this line"),
        (row(name="Ren").replace("Ren", "Ren\udce9"), "not UTF-8 text; convert the file"),
        (row(anchor_day=0), "from 1 to 31"),
        (row(anchor_day=32), "from 1 to 31"),
        (row(anchor_day="28"), "without quotes"),
        (row(anchor_day=True), "from 1 to 31"),
        (row(anchor_day=28.0), "whole number"),
        (row(anchor_day=27), "does not fit"),
        (row(anchor_day=31, next_billing_at="2026-03-30T09:00:00+07:00"), "does not fit"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_in_one_line(
    parts: Parts, session: Session, line: str, reason: str
) -> None:
    assert reason in refusal(parts, "", line)
    assert count(session, Customer) == 0
    assert count(session, PaymentToken) == 0


def test_a_refused_row_leaves_nothing_and_the_next_one_goes_on(parts: Parts, session: Session) -> None:
    other = row(customer_reference="ben", subscription_reference="ben", payment_token_id="pt-ben")

    report = take(parts, row(email="nobody"), other)

    assert report["created"] == 1
    assert session.scalars(select(Customer.reference)).all() == ["ben"]


def test_a_price_the_channel_does_not_take_is_refused(parts: Parts, session: Session) -> None:
    make_plan(session, code="cheap", amount_minor=4_999)
    session.commit()

    assert "too little for CARDS" in refusal(parts, row(plan="cheap"))


def test_a_date_between_two_cron_ticks_is_refused_with_the_next_one(parts: Parts, session: Session) -> None:
    make_plan(session, code="cron", schedule="cron 0 9 1 * *")
    session.commit()

    reason = refusal(parts, row(plan="cron", next_billing_at="2026-03-02T09:00:00+07:00"))

    assert "the next one is 2026-04-01T09:00:00+07:00" in reason


def test_an_anchor_day_for_a_weekly_plan_is_refused(parts: Parts, session: Session) -> None:
    make_plan(session, code="weekly", schedule="every 1:week")
    session.commit()

    assert "leave it out" in refusal(parts, row(plan="weekly", anchor_day=31))


def test_the_second_of_two_equal_hours_is_refused_with_the_first(parts: Parts) -> None:
    reason = refusal(parts, row(timezone="Europe/Berlin", next_billing_at="2026-10-25T02:30:00+01:00"))

    assert "2026-10-25T02:30:00+02:00" in reason


@pytest.mark.parametrize("change", [{"name": "Anna"}, {"email": "a@example.com"}, {"country": "PH"}])
def test_a_customer_who_is_somebody_else_is_refused(parts: Parts, session: Session, change: dict[str, str]) -> None:
    make_customer(session, reference="ana")
    session.commit()

    assert f"exists with another {next(iter(change))}" in refusal(parts, row(**change))


def test_another_customers_xendit_id_is_refused(parts: Parts, session: Session) -> None:
    make_customer(session, reference="ben", xendit_customer_id="cust-1")
    make_customer(session, reference="ana", xendit_customer_id="cust-2")
    session.commit()

    assert "belongs to customer ben" in refusal(parts, row(xendit_customer_id="cust-1"))
    assert "another xendit_customer_id" in refusal(parts, row(xendit_customer_id="cust-3"))


def test_another_customers_token_is_refused(parts: Parts, session: Session) -> None:
    make_token(session, make_customer(session, reference="ben"), payment_token_id=TOKEN)
    session.commit()

    assert "belongs to customer ben" in refusal(parts, row())


@pytest.mark.parametrize("state", [{"status": "EXPIRED"}, {"blocked_reason": "STOLEN_CARD"}])
def test_a_token_that_must_not_be_charged_is_refused(parts: Parts, session: Session, state: dict[str, str]) -> None:
    make_token(session, make_customer(session, reference="ana"), payment_token_id=TOKEN, **state)
    session.commit()

    assert "cannot be charged" in refusal(parts, row())


def test_no_refusal_repeats_what_may_be_a_card_number(parts: Parts) -> None:
    pan = "4000 0000 0000 1091"
    lines = [row(**{member: pan}) for member in json.loads(row())] + [row(**{pan: "x"}), f'{{"plan": {pan}}}', pan]

    report = take(parts, *lines, dry_run=True)

    assert len(report["refused"]) >= len(lines) - 1  # a name may be anything
    assert pan not in str(report)
    assert pan.replace(" ", "") not in str(report)


def test_a_race_with_another_import_ends_in_one_subscription(
    parts: Parts, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one commits between our look and our write."""
    write = importing.imports.write

    def after_the_other_one(*arguments: Any) -> None:
        monkeypatch.setattr(importing.imports, "write", write)
        take(parts, row())
        write(*arguments)

    monkeypatch.setattr(importing.imports, "write", after_the_other_one)

    assert take(parts, row()) == {"created": 0, "unchanged": 1, "refused": []}
    assert count(session, Subscription) == 1


# ------------------------------------------------------------------------------------ what Xendit says of it


def test_a_verified_token_is_stored_active_with_its_card(parts: Parts, session: Session, gateway: Gateway) -> None:
    gateway.tokens[TOKEN] = TokenReport(
        TOKEN, "ACTIVE", channel_code="CARDS", card_last4="1091", card_expiry="2029-12", fingerprint="f"
    )

    assert take(parts, row(), verify=True)["created"] == 1

    token = session.scalars(select(PaymentToken)).one()
    assert (token.status, token.card_last4, token.card_expiry) == (TokenStatus.ACTIVE, "1091", "2029-12")


def test_a_token_xendit_does_not_know_is_refused(parts: Parts, session: Session) -> None:
    assert "does not know" in refusal(parts, row(), verify=True)
    assert count(session, Customer) == 0


@pytest.mark.parametrize("status", ["EXPIRED", "PENDING", "SOMETHING_NEW"])
def test_a_token_that_is_not_active_at_xendit_is_refused(parts: Parts, gateway: Gateway, status: str) -> None:
    gateway.tokens[TOKEN] = TokenReport(TOKEN, status)

    assert f"the token is {status}" in refusal(parts, row(), verify=True)


def test_a_token_of_another_customer_at_xendit_is_refused(parts: Parts, gateway: Gateway) -> None:
    gateway.tokens[TOKEN] = TokenReport(TOKEN, "ACTIVE", customer_id="cust-ben")

    assert "another customer" in refusal(parts, row(xendit_customer_id="cust-ana"), verify=True)


@pytest.mark.parametrize("trouble", [NotSent("no line"), RateLimited("429", retry_after_seconds=1)])
def test_what_cannot_be_asked_now_is_stored_pending(
    parts: Parts, session: Session, gateway: Gateway, trouble: Exception
) -> None:
    gateway.tokens[TOKEN] = trouble

    assert take(parts, row(), verify=True)["created"] == 1
    assert session.scalars(select(PaymentToken.status)).one() == TokenStatus.PENDING


def test_a_refused_key_ends_the_import_and_keeps_what_was_taken(
    parts: Parts, session: Session, gateway: Gateway
) -> None:
    gateway.tokens[TOKEN] = TokenReport(TOKEN, "ACTIVE")
    gateway.tokens["pt-ben"] = RequestRejected("401 INVALID_API_KEY", http_status=401, stops_account=True)
    ben = row(customer_reference="ben", subscription_reference="ben", payment_token_id="pt-ben")

    with pytest.raises(RequestRejected):
        take(parts, row(), ben, verify=True)

    assert session.scalars(select(Subscription.reference)).all() == ["ana-gold"]


def test_nobody_is_asked_about_rows_that_are_there_or_refused_anyway(
    parts: Parts, session: Session, gateway: Gateway
) -> None:
    make_subscription(session, reference="other")
    session.commit()
    gateway.tokens[TOKEN] = TokenReport(TOKEN, "ACTIVE")
    take(parts, row(), verify=True)

    take(parts, row(), row(subscription_reference="b"), row(subscription_reference="c", plan="none"), verify=True)

    assert gateway.asked == [TOKEN]
