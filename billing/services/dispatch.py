"""One turn of the engine: open what is due, hand out what is to be charged, look up what is open. All bounded.

The scheduler calls `tick` every few seconds, `billing run` until nothing is due. `send(kind, ids)` hands ids to
workers (or does the work in this process): a hint that may be lost, doubled or late. Rows with leases are the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.services import invoicing, reconciling, retrying
from billing.services.invoicing import Opened
from billing.services.parts import Parts, Send
from billing.store import queries
from billing.store.clock import real_now

CHARGE, CHECK, EVENT, SESSION_CHECK, REFUND = "charge", "check", "event", "session_check", "refund"
DAY = "day"
DAYS_COMPARED_AGAIN = 3  # a message may be lost, and Xendit may list a payment late
BATCH = 500
MAX_BATCHES = 400  # of openings in one tick: then the others get their turn


@dataclass(slots=True)
class Done:
    """What a tick did; empty means that nothing was due."""

    opened: int = 0
    handed_out: int = 0

    def __bool__(self) -> bool:
        return self.opened > 0 or self.handed_out > 0


def tick(parts: Parts, send: Send) -> Done:
    """Everything that is due now, once. With nothing due it costs one statement."""
    done = Done()
    due = look(parts)
    if due.subscriptions:
        done.opened = sum(batch.invoices for batch in open_all_due(parts, parts.clock.now()))
    if due.expired_submissions or due.overdue_invoices:
        retire(parts)
    if due.attempts or done.opened:
        done.handed_out += hand_out_charges(parts, send)
    done.handed_out += hand_out_checks(parts, send, due)
    return done


def look(parts: Parts) -> queries.Due:
    """Which kinds of work are due now."""
    with parts.reading() as session:
        return queries.what_is_due(session, parts.clock.now(), real_now())


def open_all_due(parts: Parts, now: datetime, *, run_id: str | None = None) -> list[Opened]:
    """Batch after batch, each in its own transaction, until nothing is due. Several processes may do it at once."""
    batches: list[Opened] = []
    while len(batches) < MAX_BATCHES:
        with parts.transaction() as session:
            batch = invoicing.open_due_invoices(session, now, run_id=run_id, limit=BATCH)
        batches.append(batch)
        if not batch.more:
            break
    return batches


def hand_out_charges(parts: Parts, send: Send, *, run_id: str | None = None, now: datetime | None = None) -> int:
    """Claim due attempts and send their ids, never more than workers may have in hand at once."""
    handed = 0
    at = now or parts.clock.now()
    while True:
        with parts.transaction() as session:
            room = parts.rules.max_in_flight - queries.count_in_flight(session, real_now())
            ids = (
                queries.claim_due_attempts(session, at, real_now(), min(room, BATCH), run_id=run_id) if room > 0 else []
            )
        if not ids:
            return handed
        send(CHARGE, ids)
        handed += len(ids)
        if len(ids) < min(room, BATCH):
            return handed


def retire(parts: Parts) -> None:
    """What ended without anybody noticing: calls whose process died, invoices whose grace is over."""
    while reconciling.doubt_expired_submissions(parts, BATCH) == BATCH:
        pass
    while True:
        with parts.transaction() as session:
            if retrying.close_overdue_invoices(session, parts.clock.now(), BATCH) < BATCH:
                return


def hand_out_checks(parts: Parts, send: Send, due: queries.Due) -> int:
    """Look-ups, late events, sessions and refunds that are due."""
    handed = 0
    claims: Sequence[tuple[str, bool, Callable[..., list[str]]]] = (
        (EVENT, due.events, queries.claim_due_events),
        (CHECK, due.checks, queries.claim_due_checks),
        (SESSION_CHECK, due.session_checks, queries.claim_due_session_checks),
        (REFUND, due.refunds, queries.claim_due_refunds),
    )
    for kind, is_due, claim in claims:
        if not is_due:
            continue
        with parts.transaction() as session:
            ids = claim(session, parts.clock.now(), real_now(), BATCH)
        if ids:
            send(kind, ids)
            handed += len(ids)
    return handed


def hand_out_days(parts: Parts, send: Send) -> None:
    """The last days against Xendit's list, once a day: money we were never told of is found by nothing else."""
    today = parts.clock.now().date()
    send(DAY, [(today - timedelta(days=back)).isoformat() for back in range(1, DAYS_COMPARED_AGAIN + 1)])
