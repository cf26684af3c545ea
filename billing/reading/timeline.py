"""What `billing explain` reads of one subscription, and its past told in order, one English line per event. Read only.

The lines come from the facts, which are written in the transaction that makes them true, and from the rows they name:
an attempt's codes and look-ups are told as they are known now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.domain.declines import Classified, classify, explain_for_people
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus
from billing.domain.money import Money, format_money
from billing.domain.schedule import stored_zone
from billing.parts import Rules
from billing.reading.views import instant
from billing.store.models import (
    ChargeAttempt,
    ChargingStop,
    Customer,
    Fact,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    SkippedPeriod,
    Subscription,
)

Json = dict[str, Any]

# One line per kind of fact; the words in braces are members of its detail.
LINES = {
    "subscription.created": "subscribed to plan {plan} ({via}); incomplete until its payment session brings a token",
    "subscription.begun": "subscribed to plan {plan} with a payment method saved before ({token})",
    "subscription.imported": "imported on plan {plan} with {token} ({token_status}); billed from {next_billing_at} on",
    "subscription.activated": "active; the next period to bill begins {next_billing_at}",
    "subscription.trialing": "the free trial has begun; the first period to bill begins {next_billing_at}",
    "subscription.past_due": "past due: an invoice is unpaid and is being followed up",
    "subscription.recovered": "no overdue invoice is left: active again",
    "subscription.paused": "paused: {reason}; planned attempts are withdrawn and nothing is billed",
    "subscription.resumed": "resumed; {goes_on}, not billed are {skipped}",
    "subscription.held": "billing of this subscription is on hold: {reason}",
    "subscription.released": "released {by}; it had been held because {held_because}",
    "subscription.cancel_planned": "canceled for the end of the period, {at}",
    "subscription.cancel_taken_back": "the cancellation planned for {at} is taken back; {goes_on}",
    "subscription.canceled": "canceled for good: {reason}",
    "periods.not_listed": "what was due and not billed could not be listed: {reason}",
    "periods.skipped": "periods not billed: {count}; {reason}",
    "token.saved": "a payment method was saved ({token})",
    "token.blocked": "{token} is not tried again ({reason}); `{undo}` undoes that",
    "token.replaced": "{token} was declined and is replaced: it is not charged again by itself; `{undo}` undoes that",
    "token.unblocked": "{token} may be charged again: a person has undone {undone}",
    "customer.asked": "the customer is asked for a payment method{until}: {reason}",
    "customer.new_method": "a new payment method is there ({token}): invoice {invoice} is charged with it",
    "session.expired": "payment session {session} expired unused; `billing session create` starts again",
    "session.canceled": "payment session {session} was canceled",
    "session.try_failed": "a try on the payment page failed: {declined}; the page stays open",
    "invoice.paid": "invoice {invoice} is paid: {amount}, as the {source} said{late}",
    "invoice.paid_in_part": "of invoice {invoice} {amount} were paid, as the {source} said{late}",
    "invoice.overpaid": "invoice {invoice} was collected a second time: {amount}; the refund is {refund}",
    "invoice.held": "invoice {invoice} is on hold for a person: {reason}",
    "invoice.released": "invoice {invoice} was released and is charged: {reason}",
    "invoice.uncollectible": "invoice {invoice} is given up: {reason}",
    "invoice.void": "invoice {invoice} is void: {reason}",
    "invoice.pay_asked": "an operator asked for an extra attempt at invoice {invoice}",
    "attempt.failed": "{the_attempt} failed: {declined}; {next}",
    "attempt.in_doubt": "{the_attempt} is in doubt, nobody knows whether money moved: {reason}{evidence}",
    "attempt.never_arrived": "{the_attempt} left no trace in {look_ups} look-ups: it never arrived, and is made again",
    "attempt.pending": "{the_attempt} is pending: Xendit has it and has not decided",
    "attempt.requires_action": "{the_attempt} waits for the customer to confirm it",
    "attempt.postponed": "{the_attempt} is put off{until}: {reason}",
    "attempt.canceled": "{the_attempt} is withdrawn: {reason}",
    "charging.stopped": "all charging is stopped: {reason}",
    "refund.held": "money captured for invoice {invoice} is kept for a person to decide: {reason}",
    "refund.succeeded": "the second payment of invoice {invoice} is refunded",
    "refund.made_elsewhere": "of invoice {invoice} {given_back} were given back outside this software ({refund});"
    " nothing is charged for it again",
    "refund.failed": "a refund failed: {reason}",
}
NO_OTHER_TRY = ("the customer is asked", "given up", "held")  # how charging/after_failure.py says what follows
NOT_RECORDED = "(not recorded)"
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z)")


@dataclass(frozen=True, slots=True)
class Story:
    """One subscription with everything that belongs to it, as of `now`."""

    now: datetime
    rules: Rules
    subscription: Subscription
    plan: Plan
    customer: Customer
    zone: ZoneInfo
    facts: list[Fact]
    invoices: dict[str, Invoice]
    attempts: dict[str, ChargeAttempt]
    tokens: dict[str, PaymentToken]
    sessions: list[PaymentSession]
    skipped: list[SkippedPeriod]
    stop: ChargingStop | None

    def when(self, at: datetime | None) -> str:
        """In the subscription's zone, with the offset: the day in it is the day that counts."""
        return NOT_RECORDED if at is None else at.astimezone(self.zone).isoformat(" ", "minutes")

    def localised(self, sentence: str) -> str:
        """Instants inside a sentence, as facts hold them, in the subscription's zone."""
        return _INSTANT.sub(lambda found: self.when(datetime.fromisoformat(found[0])), sentence)

    def token_name(self, token_id: str | None) -> str:
        token = self.tokens.get(token_id or "")
        if token is None:
            return "a payment method"
        return f"{token.channel_code} ending in {token.card_last4}" if token.card_last4 else token.channel_code

    def attempt_name(self, attempt: ChargeAttempt) -> str:
        return f"attempt {attempt.number} at invoice {self.invoices[attempt.invoice_id].number}"


def read(session: Session, subscription: Subscription, now: datetime, rules: Rules) -> Story:
    def all_of(table: type[Any], column: Any, value: str) -> list[Any]:
        return list(session.scalars(select(table).where(column == value).order_by(table.id)))

    return Story(
        now=now,
        rules=rules,
        subscription=subscription,
        plan=session.get_one(Plan, subscription.plan_id),
        customer=session.get_one(Customer, subscription.customer_id),
        zone=stored_zone(subscription.timezone),
        facts=all_of(Fact, Fact.subscription_id, subscription.id),
        invoices={row.id: row for row in all_of(Invoice, Invoice.subscription_id, subscription.id)},
        attempts={row.id: row for row in all_of(ChargeAttempt, ChargeAttempt.subscription_id, subscription.id)},
        tokens={row.id: row for row in all_of(PaymentToken, PaymentToken.customer_id, subscription.customer_id)},
        sessions=all_of(PaymentSession, PaymentSession.subscription_id, subscription.id),
        skipped=all_of(SkippedPeriod, SkippedPeriod.subscription_id, subscription.id),
        stop=session.scalar(select(ChargingStop)),
    )


# ------------------------------------------------------------------------------------------ the past in order


@dataclass(frozen=True, slots=True)
class _Event:
    """`order` is the fact's number; what no fact was written for stands just before or after the fact it led to."""

    at: datetime
    order: tuple[float, int]
    kind: str
    what: str
    detail: Json


def tell_events(story: Story) -> list[Json]:
    """Oldest first: {"at", "kind", "what", "detail"}."""
    named = _facts_by_name(story)
    events = [*_facts(story), *_openings(story, named), *_sendings(story, named), *_sessions(story, named)]
    events.sort(key=lambda event: (event.at, event.order))
    return [
        {"at": instant(event.at), "kind": event.kind, "what": event.what, "detail": event.detail} for event in events
    ]


def _facts(story: Story) -> Iterator[_Event]:
    for fact in story.facts:
        attempt = story.attempts.get(fact.detail.get("attempt", ""))
        # Past due is written just before the failure that makes it so.
        order = (fact.id + 1, 1) if fact.kind == "subscription.past_due" else (fact.id, 0)
        yield _Event(fact.at, order, fact.kind, _line(story, fact, attempt), fact.detail | _more(story, fact, attempt))


def _openings(story: Story, named: _Named) -> Iterator[_Event]:
    attempts: dict[str, list[str]] = {}
    for attempt in story.attempts.values():
        attempts.setdefault(attempt.invoice_id, []).append(attempt.id)
    for invoice in story.invoices.values():
        if invoice.status == InvoiceStatus.DRAFT or invoice.period_key == "first":
            continue
        amount = format_money(Money(invoice.amount_minor, invoice.currency))
        span = f"{story.when(invoice.period_start)} to {story.when(invoice.period_end)}"
        what = f"invoice {invoice.number} over {amount} opened for the period {span}"
        names = {invoice.number, *attempts.get(invoice.id, ())}
        order = (_first_fact(named, names, invoice.opened_at), -2)
        yield _Event(invoice.opened_at, order, "invoice.opened", what, {"invoice": invoice.number})


def _sendings(story: Story, named: _Named) -> Iterator[_Event]:
    for attempt in story.attempts.values():
        if attempt.submitted_at is None:
            continue
        amount = format_money(Money(attempt.amount_minor, attempt.currency))
        with_token = story.token_name(attempt.payment_token_id)
        what = f"{story.attempt_name(attempt)}: {amount} sent to Xendit with {with_token} ({attempt.origin})"
        detail = {"attempt": attempt.id, "reference_id": attempt.reference_id, "status": attempt.status}
        names = {attempt.id, story.invoices[attempt.invoice_id].number}
        order = (_first_fact(named, names, attempt.submitted_at), -1)
        yield _Event(attempt.submitted_at, order, "attempt.submitted", what, detail)


def _sessions(story: Story, named: _Named) -> Iterator[_Event]:
    for row in story.sessions:
        what = f"payment session {row.id} ({row.type}) opened; its link lives until {story.when(row.expires_at)}"
        order = (_first_fact(named, {row.id}, row.created_at), 1)
        yield _Event(row.created_at, order, "session.opened", what, {"session": row.id, "status": row.status})


_Named = Mapping[str, Sequence[Fact]]


def _facts_by_name(story: Story) -> _Named:
    """The facts that name an attempt, invoice or session, in their order."""
    named: dict[str, list[Fact]] = {}
    for fact in story.facts:
        for member in ("attempt", "invoice", "session"):
            if (name := fact.detail.get(member)) is not None:
                named.setdefault(name, []).append(fact)
    return named


def _first_fact(named: _Named, names: set[str], since: datetime) -> float:
    """The number of the first fact from then on that names one of these."""
    told = (next((fact.id for fact in named.get(name, ()) if fact.at >= since), inf) for name in names)
    return min(told, default=inf)


def _line(story: Story, fact: Fact, attempt: ChargeAttempt | None) -> str:
    template = LINES.get(fact.kind)
    if template is None:  # a kind that is newer than this table: say what is known
        return f"{fact.kind}: " + ", ".join(f"{name} {value}" for name, value in fact.detail.items())
    words = _Words(fact.detail)
    if "token" in fact.detail:
        words["token"] = story.token_name(fact.detail["token"])
    if "amount" in fact.detail:
        words["amount"] = format_money(Money.parse(fact.detail["amount"], story.subscription.currency))
    words["until"] = f" until {fact.detail['until']}" if fact.detail.get("until") else ""
    words["late"] = " late, after it had been reported otherwise" if fact.detail.get("late") else ""
    by_itself = "by itself: Xendit has said what the payment method is, or another one is there"
    words["by"] = by_itself if fact.detail.get("by_itself") else "by a person"
    words["goes_on"] = f"the next period to bill begins {fact.detail.get('next_billing_at', NOT_RECORDED)}"
    if fact.kind == "subscription.cancel_taken_back" and not fact.detail.get("next_billing_at"):
        words["goes_on"] = "no next period is planned by that"
    if fact.detail.get("ends_at"):
        words["goes_on"] = f"it ends {fact.detail['ends_at']}, as was planned"
    words["the_attempt"] = story.attempt_name(attempt) if attempt else "an attempt"
    words["declined"] = explain_for_people(
        _verdict(fact, attempt), is_last=str(fact.detail.get("next")).startswith(NO_OTHER_TRY)
    )
    words["evidence"] = _evidence_line(story, attempt)
    return story.localised(template.format_map(words))


class _Words(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return NOT_RECORDED


def _verdict(fact: Fact, attempt: ChargeAttempt | None) -> Classified:
    """By all codes that are known now: the network's come after the fact was written."""
    if attempt is None or attempt.failure_code is None:
        return classify(failure_code=fact.detail.get("failure_code"))
    return classify(
        failure_code=attempt.failure_code, network_code=attempt.network_code, advice_code=attempt.advice_code
    )


def _evidence_line(story: Story, attempt: ChargeAttempt | None) -> str:
    if attempt is None or attempt.status != AttemptStatus.IN_DOUBT or attempt.doubt_since is None:
        return ""
    until = story.when(attempt.doubt_since + story.rules.settlement_window)
    return f"; looked up {attempt.checks} times, again {story.when(attempt.next_check_at)}, until {until}"


def _more(story: Story, fact: Fact, attempt: ChargeAttempt | None) -> Json:
    """What scripts want to know beyond the fact itself."""
    if fact.kind == "attempt.in_doubt" and attempt is not None and attempt.doubt_since is not None:
        return {
            "look_ups": attempt.checks,
            "next_look_up_at": instant(attempt.next_check_at),
            "window_ends_at": instant(attempt.doubt_since + story.rules.settlement_window),
        }
    if fact.kind in ("periods.skipped", "subscription.resumed"):
        return {"periods": [period.period_key for period in story.skipped if period.created_at == fact.at]}
    if fact.kind == "attempt.failed" and attempt is not None:
        return {"network_code": attempt.network_code, "advice_code": attempt.advice_code}
    return {}
