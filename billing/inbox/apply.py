"""The inbox: every event is stored once as received, applied once, and can be replayed.

No order is assumed. What cannot be matched yet is kept and tried again; what fails because of our own bug parks
itself and blocks no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import simplejson
import structlog
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from billing.charging import matching, refunds
from billing.charging.settle import settle_attempt
from billing.charging.tokens import apply_token, saved_by_customer
from billing.domain.gateway import (
    ChargeReport,
    EventKind,
    GatewayEvent,
    RefundReport,
    SessionReport,
    TokenReport,
)
from billing.domain.lifecycle import AttemptStatus, EventState, TokenStatus
from billing.domain.money import Money
from billing.errors import BillingError
from billing.parts import Parts, Rules
from billing.store.models import (
    Capture,
    ChargeAttempt,
    Customer,
    PaymentSession,
    PaymentToken,
    WebhookEvent,
    new_id,
)
from billing.store.trouble import is_databases_trouble
from billing.subscribing import session_results

ReadEvent = Callable[[Mapping[str, Any]], GatewayEvent]
"""Xendit's payload in our words (billing/xendit/webhook.py), handed in by the composition root."""

FIRST_TRY = timedelta(seconds=20)  # until then the process that stored it, or the message, is expected to apply it
UNMATCHED_TRIES = tuple(timedelta(minutes=m) for m in (1, 5, 30, 120, 360, 720, 1440, 2880))

log = structlog.get_logger()


_RECORD = text(
    """
    INSERT INTO webhook_events (id, dedupe_key, event, payload, state, deliveries, received_at, next_try_at)
    SELECT id, dedupe_key, event, CAST(payload AS jsonb), state, deliveries, :now, next_try_at
    FROM unnest(CAST(:ids AS text[]), CAST(:keys AS text[]), CAST(:events AS text[]), CAST(:payloads AS text[]),
        CAST(:states AS text[]), CAST(:counts AS int[]), CAST(:tries AS timestamptz[]))
        AS x (id, dedupe_key, event, payload, state, deliveries, next_try_at)
    ON CONFLICT (dedupe_key) DO UPDATE SET deliveries = webhook_events.deliveries + excluded.deliveries
    RETURNING id
    """
)


def record_events(
    session: Session, deliveries: Sequence[tuple[GatewayEvent, Mapping[str, Any]]], now: datetime
) -> list[str | None]:
    """Store deliveries. For each the id of a new event that is to be applied; None for one we have already (its
    deliveries are counted) and for what is kept only."""
    first: dict[str, tuple[str, GatewayEvent, Mapping[str, Any]]] = {}
    counts = Counter(event.dedupe_key for event, _ in deliveries)
    for event, payload in deliveries:
        first.setdefault(event.dedupe_key, (new_id("evt"), event, payload))
    rows = sorted(first.items())  # two inboxes lock in the same order
    values = {
        "ids": [identity for _, (identity, _, _) in rows],
        "keys": [key for key, _ in rows],
        "events": [event.name for _, (_, event, _) in rows],
        "payloads": [simplejson.dumps(payload, use_decimal=True) for _, (_, _, payload) in rows],
        "states": [
            EventState.IGNORED if event.kind == EventKind.OTHER else EventState.RECEIVED for _, (_, event, _) in rows
        ],
        "counts": [counts[key] for key, _ in rows],
        "tries": [None if event.kind == EventKind.OTHER else now + FIRST_TRY for _, (_, event, _) in rows],
        "now": now,
    }
    stored = set(session.scalars(_RECORD, values))
    results: list[str | None] = []
    for event, _ in deliveries:
        identity = first[event.dedupe_key][0]
        results.append(identity if identity in stored and event.kind != EventKind.OTHER else None)
        stored.discard(identity)  # the next delivery of it in this batch is not new
    return results


def record_event(session: Session, event: GatewayEvent, payload: Mapping[str, Any], now: datetime) -> str | None:
    return record_events(session, [(event, payload)], now)[0]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A stored event that says: this payment has succeeded, and so much was captured (None: it does not say)."""

    event_id: str
    payment_id: str
    amount: Money | None


_CONFIRM = text(
    """
    WITH known AS (
        SELECT said.event_id, c.id AS capture_id, c.amount_known, said.amount_minor, a.subscription_id
        FROM unnest(CAST(:events AS text[]), CAST(:payments AS text[]), CAST(:amounts AS bigint[]),
            CAST(:currencies AS text[])) AS said (event_id, payment_id, amount_minor, currency)
        JOIN captures c ON c.payment_id = said.payment_id
        JOIN charge_attempts a ON a.id = c.attempt_id
        WHERE a.status = 'succeeded' AND (said.amount_minor IS NULL
            OR (said.amount_minor = c.amount_minor AND said.currency = c.currency))
    ), captured AS (
        UPDATE captures c SET amount_known = true FROM known
        WHERE c.id = known.capture_id AND NOT known.amount_known AND known.amount_minor IS NOT NULL
    )
    UPDATE webhook_events e
    SET state = 'applied', applied_at = :now, next_try_at = NULL, lease_until = NULL, error = NULL,
        tries = e.tries + 1, subscription_id = known.subscription_id
    FROM known WHERE e.id = known.event_id AND e.state = 'received'
    RETURNING e.id
    """
)


def confirm_events(parts: Parts, confirmations: Sequence[Confirmation]) -> list[str]:
    """Marks as applied what tells nothing new: the capture is known, and it is as much as the event says, which is
    certain from then on. Returns the ids of the others, which are untouched and to be applied."""
    values = {
        "events": [each.event_id for each in confirmations],
        "payments": [each.payment_id for each in confirmations],
        "amounts": [each.amount.amount_minor if each.amount else None for each in confirmations],
        "currencies": [each.amount.currency if each.amount else None for each in confirmations],
        "now": parts.clock.now(),
    }
    with parts.transaction() as session:
        known = set(session.scalars(_CONFIRM, values))
    return [each.event_id for each in confirmations if each.event_id not in known]


def apply_stored_event(parts: Parts, event_id: str, read_event: ReadEvent, *, again: bool = False) -> None:
    """Apply one stored event in one transaction. A failure of ours parks it, with the error on the row."""
    now = parts.clock.now()
    try:
        with parts.transaction() as session:
            # Waits, never skips: who holds the row may only be counting another delivery of the same event.
            row = session.scalar(select(WebhookEvent).where(WebhookEvent.id == event_id).with_for_update())
            if row is None or (not again and row.state not in (EventState.RECEIVED, EventState.UNMATCHED)):
                return
            event = read_event(row.payload)
            matched, subscription_id = _apply(session, event, now, parts.rules)
            row.tries += 1
            row.lease_until = None
            row.error = None
            if matched:
                row.state, row.applied_at, row.next_try_at = EventState.APPLIED, now, None
                row.subscription_id = subscription_id
            elif row.state != EventState.APPLIED and event.is_sample:
                row.state, row.next_try_at = EventState.IGNORED, None
                row.error = "a sample of Xendit's dashboard: it names nothing of this account"
            elif row.state != EventState.APPLIED:
                _try_unmatched_later(row, now)
    except BillingError as error:
        _park(parts, event_id, str(error))
    except Exception as error:
        if is_databases_trouble(error):
            # A deadlock or a lost connection: nothing is wrong with the event, it stays due.
            log.warning("webhook.not_applied_yet", event_id=event_id, error=error.__class__.__name__)
            return
        # Whatever our bug is, this event must neither block others nor be lost: it waits for `billing replay`.
        log.exception("webhook.parked", event_id=event_id)
        _park(parts, event_id, f"{error.__class__.__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def _try_unmatched_later(row: WebhookEvent, now: datetime) -> None:
    """Kept and tried again for two days, as long as its parent may still come; then kept without more tries."""
    row.state = EventState.UNMATCHED
    row.next_try_at = next((row.received_at + step for step in UNMATCHED_TRIES if row.received_at + step > now), None)
    if row.next_try_at is None:
        row.state = EventState.IGNORED
        row.error = "nothing here belongs to it"


def _park(parts: Parts, event_id: str, error: str) -> None:
    with parts.transaction() as session:
        row = session.get(WebhookEvent, event_id, with_for_update=True)
        if row is not None:
            row.tries += 1
            row.lease_until = None
            row.error = error
            if row.state != EventState.APPLIED:
                row.state, row.next_try_at = EventState.PARKED, None


def _apply(session: Session, event: GatewayEvent, now: datetime, rules: Rules) -> tuple[bool, str | None]:
    """(matched, subscription id)."""
    match event.report:
        case ChargeReport() as report:
            return _apply_payment(session, report, now, rules)
        case TokenReport() as report:
            return _apply_token(session, report, now)
        case SessionReport() as report:
            return _apply_session(session, report, now)
        case RefundReport() as report:
            subscription_id = refunds.apply_refund(session, report, now)
            return subscription_id is not None, subscription_id
        case None:
            return True, None


def _apply_payment(session: Session, report: ChargeReport, now: datetime, rules: Rules) -> tuple[bool, str | None]:
    # A payment we have recorded is that payment, whatever reference an event puts on it.
    capture = _capture_of(session, report)
    attempt = _find_attempt(session, report) if capture is None else session.get_one(ChargeAttempt, capture.attempt_id)
    if attempt is None:
        return False, None
    # Nothing to settle, and no lock needed, when the answer to our call has told us this capture already.
    if capture is None or attempt.status != AttemptStatus.SUCCEEDED or _says_other(report, capture):
        settle_attempt(session, attempt.id, report, now, rules, source="webhook")
    return True, attempt.subscription_id


def _capture_of(session: Session, report: ChargeReport) -> Capture | None:
    if report.payment_id is None:
        return None
    return session.scalar(select(Capture).where(Capture.payment_id == report.payment_id))


def _says_other(report: ChargeReport, capture: Capture) -> bool:
    """What was captured is news until somebody has said it, and then only if it is more."""
    if report.amount is None or not report.amount_is_captured:
        return False
    return not capture.amount_known or report.amount.amount_minor > capture.amount_minor


def _find_attempt(session: Session, report: ChargeReport) -> ChargeAttempt | None:
    """By reference, exact or without the session's suffix; else by the ids Xendit gave it."""
    references = matching.references_of(report.reference_id)
    if references:
        query = select(ChargeAttempt).where(ChargeAttempt.reference_id.in_(references))
        attempt = session.scalar(query)
        if attempt is not None:
            return attempt
    if report.payment_request_id is not None:
        query = select(ChargeAttempt).where(ChargeAttempt.payment_request_id == report.payment_request_id)
        attempt = session.scalar(query.limit(1))
        if attempt is not None:
            return attempt
    row = matching.match_session(session, report)
    if row is None:
        return None
    return session.scalar(select(ChargeAttempt).where(ChargeAttempt.reference_id == row.reference_id))


def _apply_token(session: Session, report: TokenReport, now: datetime) -> tuple[bool, str | None]:
    known = session.scalar(select(PaymentToken).where(PaymentToken.payment_token_id == report.payment_token_id))
    row = matching.match_session(session, report)
    customer: Customer | None
    if known is not None:
        customer = session.get_one(Customer, known.customer_id)
    elif row is not None:
        customer = session.get_one(Customer, row.customer_id)
    else:
        customer = matching.customer_by_xendit_id(session, report.customer_id)
    if customer is None:
        return False, None
    token = apply_token(session, customer, report, now)
    if row is not None and row.customer_id == token.customer_id:
        session_results.link_token(session, row, token, now)
    elif known is None and token.status == TokenStatus.ACTIVE:
        saved_by_customer(session, token, now)  # of several open sessions, or on a page of the merchant's own
    return True, row.subscription_id if row else None


def _apply_session(session: Session, report: SessionReport, now: datetime) -> tuple[bool, str | None]:
    query = select(PaymentSession).where(PaymentSession.xendit_session_id == report.session_id)
    row = session.scalar(query)
    if row is None and report.reference_id:
        # The event can be faster than the answer to the call that opened the session.
        row = session.scalar(select(PaymentSession).where(PaymentSession.reference_id == report.reference_id))
    if row is None:
        return False, None
    session_results.apply_session(session, row, report, now)
    return True, row.subscription_id
