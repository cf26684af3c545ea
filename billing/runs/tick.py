"""One turn of the engine: open what is due, hand out what is to be charged, look up what is open. All bounded.

The scheduler calls `tick` every few seconds, `billing run` until nothing is due. `send(kind, ids)` hands ids to
workers (or does the work in this process): a hint that may be lost, doubled or late. Rows with leases are the truth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from inspect import unwrap

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from billing.charging import endings, look_up
from billing.domain.gateway import CHARGE_ENDPOINT, READ_TOKEN_ENDPOINT, Lane
from billing.domain.lifecycle import RunKind, RunState
from billing.errors import ServiceUnavailable
from billing.parts import Parts, Send
from billing.runs import limits
from billing.store import breaker, queries, run_queries, which_database
from billing.store.clock import real_now, uptime
from billing.store.models import BillingRun
from billing.subscriptions import open_periods
from billing.subscriptions.open_periods import Opened

CHARGE, CHARGE_NOW, CHARGE_AGAIN = "charge", "charge_now", "charge_again"
KIND_OF_LANE = {Lane.CUSTOMER: CHARGE_NOW, Lane.RENEWAL: CHARGE, Lane.RETRY: CHARGE_AGAIN}
LANE_OF_KIND = {kind: lane for lane, kind in KIND_OF_LANE.items()}
CHECK, EVENT, SESSION_CHECK, REFUND = "check", "event", "session_check", "refund"
DAY = "day"
TOKEN_CHECK = "token_check"  # noqa: S105 - a kind of work
LONGEST_COMPARED_LATE = timedelta(days=60)
BATCH = 500
OPENERS = 2
MAX_BATCHES = 400  # of openings in one tick: then the others get their turn
AHEAD_SECONDS = 3.0  # of the quota: no more is handed out, so that a run can be stopped and a customer let in
TICK_SECONDS = 10.0  # then the other jobs have their turn: guards, events, look-ups
PLAN_SECONDS = 5.0  # of the first tick of a day; a plan that takes longer is not complete, and compared with nothing
FIRST_WAVE = 8  # charges of a run under way until Xendit has answered one: a refused account is found out by few
CUSTOMERS_BEYOND = 20  # so many who wait are handed out although renewals have filled the next seconds
VERIFIED_AT_ONCE = 25  # imported tokens in one turn: should the gateway hang, the others wait for so many, not more
VERIFY_AHEAD_SECONDS = 1.0  # of the quota for them, which is about a turn
SHARE_OF_RETRIES = 10  # one in so many: renewals go first, and no lane starves


@dataclass(slots=True)
class Done:
    """What a tick did; empty means that nothing was due."""

    opened: int = 0
    handed_out: int = 0

    def __bool__(self) -> bool:
        return self.opened > 0 or self.handed_out > 0


def tick(parts: Parts, send: Send) -> Done:  # noqa: PLR0912 - one line for each kind of work
    """Everything that is due now, once. With nothing due it costs one statement.

    Raises CopyOfDatabase, before anything is done, and
    ServiceUnavailable when there is no way to whoever does the work. What needs nobody else is done even so:
    a period that is not opened for weeks would be skipped by its plan.
    """
    done = Done()
    now = parts.clock.now()
    with parts.reading() as session:
        due = queries.what_is_due(session, now, real_now())
        if due.anything:
            which_database.refuse_a_copy(session)
    if not due.anything:
        return done
    until = uptime() + TICK_SECONDS
    unreachable = _unreachable(send)
    if due.expired_submissions or due.overdue_invoices:
        retire(parts, until)
    if due.ends:
        endings.end_subscriptions(parts, until)
    if due.subscriptions or due.attempts or due.probes:
        with parts.transaction() as session:
            run_id, is_new = take_daily_run(session, now)
            if due.probes:
                breaker.release_probes(session, now)
        if is_new:
            limits.plan_daily_run(parts, run_id, now, uptime() + PLAN_SECONDS)
        if (due.attempts or due.probes) and unreachable is None:
            done.handed_out += hand_out_charges(parts, send, run_id=run_id, only_free=True, until=until)
        if due.subscriptions:
            for batch in opening(parts, now, run_id=run_id, until=until):
                done.opened += batch.invoices
                # Between batches: whoever waits is not kept waiting until a hundred thousand are opened.
                if unreachable is None:
                    done.handed_out += hand_out_charges(parts, send, run_id=run_id, only_free=True, until=until)
    if unreachable is not None:
        raise unreachable
    done.handed_out += hand_out_checks(parts, send, due)
    if due.token_checks:
        done.handed_out += hand_out_unverified(parts, send)
    return done


def take_daily_run(session: Session, now: datetime) -> tuple[str, bool]:
    """The scheduler's run of this day of billing's clock: its id, and whether it was made just now. It is there before
    anything is opened for it; its plan follows (`limits.plan_daily_run`)."""
    day = now.astimezone(UTC).date()
    run_id = f"run-{day.isoformat()}"
    found = session.execute(
        select(BillingRun.state, BillingRun.finished_at).where(BillingRun.id == run_id)
    ).one_or_none()
    if found is None:
        return run_id, run_queries.insert_run(session, id=run_id, kind=RunKind.DAILY, at=now, started_at=real_now())
    if found.state == RunState.RUNNING and found.finished_at is not None:  # the clock was set back
        session.execute(update(BillingRun).where(BillingRun.id == run_id).values(finished_at=None))
    return run_id, False


def takes_more(send: Send, kind: str) -> bool:
    """Whether it is of any use to hand out more. Asked before rows are claimed: a lease on a row of which nobody is
    told would only delay it. Raises ServiceUnavailable."""
    ask: Callable[[str], bool] | None = getattr(unwrap(send), "takes_more", None)
    return ask is None or ask(kind)


def _unreachable(send: Send) -> ServiceUnavailable | None:
    try:
        takes_more(send, CHARGE)
    except ServiceUnavailable as error:
        return error
    return None


def look(parts: Parts) -> queries.Due:
    """Which kinds of work are due now."""
    with parts.reading() as session:
        return queries.what_is_due(session, parts.clock.now(), real_now())


def opening(parts: Parts, now: datetime, *, run_id: str | None = None, until: float = math.inf) -> Iterator[Opened]:
    """Batch after batch, each in its own transaction, until nothing is due. Several processes may do it at once, and
    here two threads do: while one waits for the database the other computes.

    Every other batch takes what has become due last: whoever is due now does not wait behind those that are years
    behind. `until` (uptime): begin no new batch after it, but two in any case: what is due gets done, however slowly.
    """
    under_way: deque[Future[Opened]] = deque()
    begun, more = 0, True
    while True:
        while more and len(under_way) < OPENERS:
            under_way.append(_begin_opening(parts, now, run_id, newest_first=begun % 2 == 1))
            begun += 1
            more = begun < MAX_BATCHES and (begun < OPENERS or uptime() < until)
        if not under_way:
            return
        batch = under_way.popleft().result()
        more = more and batch.more and uptime() < until
        yield batch


def _begin_opening(parts: Parts, now: datetime, run_id: str | None, *, newest_first: bool) -> Future[Opened]:
    if parts.callers is not None:
        return parts.callers.submit(_open_batch, parts, now, run_id, newest_first=newest_first)
    done: Future[Opened] = Future()
    done.set_result(_open_batch(parts, now, run_id, newest_first=newest_first))
    return done


def _open_batch(parts: Parts, now: datetime, run_id: str | None, *, newest_first: bool) -> Opened:
    with parts.transaction() as session:
        return open_periods.open_due_invoices(session, now, run_id=run_id, limit=BATCH, newest_first=newest_first)


def open_all_due(parts: Parts, now: datetime, *, run_id: str | None = None) -> list[Opened]:
    return list(opening(parts, now, run_id=run_id))


def hand_out_charges(
    parts: Parts,
    send: Send,
    *,
    run_id: str | None = None,
    now: datetime | None = None,
    only_free: bool = False,
    until: float = math.inf,
) -> int:
    """Claim due attempts and send their ids: customers who wait, then renewals, then retries. Never more than workers
    may have in hand, and never more than the quota lets through in the next seconds.

    `until` (uptime): begin no new wave after it. Where `send` does the work itself, everything else waits for it.
    """
    at = now or parts.clock.now()
    handed = 0
    beyond = CUSTOMERS_BEYOND
    while takes_more(send, CHARGE):
        claimed: list[tuple[Lane, list[str]]] = []
        with parts.transaction() as session:
            real = real_now()
            room, for_customers = _room(parts, session, run_id, beyond, real)
            for lane, share in _shares(room, for_customers=for_customers):
                taken = sum(len(ids) for _, ids in claimed)
                left = share if lane == Lane.CUSTOMER else min(share, room - taken)
                if left > 0:
                    ids = queries.claim_due_attempts(
                        session, at, real, left, lane=lane, run_id=run_id, only_free=only_free
                    )
                    if run_id is not None and ids and parts.rules.run_spending_cap and lane != Lane.CUSTOMER:
                        ids = limits.hold_to_caps(session, run_id, ids, parts.rules)
                    claimed.append((lane, ids))
        beyond = 0
        send_charges(parts, send, claimed)
        count = sum(len(ids) for _, ids in claimed)
        handed += count
        if count < room or count == 0 or uptime() > until:
            break
    return handed


def send_charges(parts: Parts, send: Send, claimed: Sequence[tuple[Lane, list[str]]]) -> None:
    """Raises ServiceUnavailable when nobody could be told."""
    try:
        for lane, ids in claimed:
            if ids:
                send(KIND_OF_LANE[lane], ids)
    except ServiceUnavailable:
        # Nobody was told of them: whoever can tell somebody next need not wait for their leases to end.
        with parts.transaction() as session:
            queries.release_leases(session, [identity for _, ids in claimed for identity in ids])
        raise


def _room(parts: Parts, session: Session, run_id: str | None, beyond: int, real: datetime) -> tuple[int, int]:
    """How many more may be handed out, by the quota and by what workers may have in hand; and how many if customers
    wait, who are let in `beyond` what renewals have filled."""
    waiting, sent = queries.count_in_flight(session, real)
    free = max(0, min(parts.rules.max_in_flight - waiting - sent, BATCH))
    outlook = parts.quota.outlook(CHARGE_ENDPOINT, AHEAD_SECONDS)
    room = free if outlook is None else max(0, min(free, outlook - waiting))
    customers = max(room, min(free, beyond))
    if run_id is None or _is_answered(parts, session, run_id):
        return room, customers
    customers_sent = queries.count_customers_in_flight(session, real)
    return min(room, max(0, FIRST_WAVE - waiting - sent)), min(customers, max(0, FIRST_WAVE - customers_sent))


def _is_answered(parts: Parts, session: Session, run_id: str) -> bool:
    """Whether Xendit has answered a charge of this run, so that the account is known to work: asked until it has."""
    if run_id not in parts.answered_runs and run_queries.is_answered(session, run_id, parts.clock.now()):
        parts.answered_runs.add(run_id)
    return run_id in parts.answered_runs


def _shares(room: int, *, for_customers: int) -> Sequence[tuple[Lane, int]]:
    """Lanes in their order, with what each may take; what retries leave of their share is renewals'."""
    for_retries = max(1, room // SHARE_OF_RETRIES)
    if room == 1 and int(uptime()) % SHARE_OF_RETRIES:
        for_retries = 0  # a single place is theirs one second in ten
    return (
        (Lane.CUSTOMER, for_customers),
        (Lane.RETRY, for_retries),
        (Lane.RENEWAL, room),
        (Lane.RETRY, room),
    )


def retire(parts: Parts, until: float = math.inf) -> None:
    """What ended without anybody noticing: calls whose process died, invoices whose grace is over. Goes on at the next
    turn when it is `until` (uptime)."""
    while look_up.doubt_expired_submissions(parts, BATCH) == BATCH and uptime() < until:
        pass
    endings.close_overdue_invoices(parts, until)


def hand_out_checks(parts: Parts, send: Send, due: queries.Due) -> int:
    """Look-ups, late events, sessions, refunds and tokens that Xendit did not know, as they are due."""
    handed = 0
    claims: Sequence[tuple[str, bool, Callable[..., list[str]]]] = (
        (EVENT, due.events, queries.claim_due_events),
        (CHECK, due.checks, queries.claim_due_checks),
        (SESSION_CHECK, due.session_checks, queries.claim_due_session_checks),
        (REFUND, due.refunds, queries.claim_due_refunds),
        (TOKEN_CHECK, due.token_checks, queries.claim_due_token_checks),
    )
    for kind, is_due, claim in claims:
        if not is_due or not takes_more(send, kind):
            continue
        with parts.transaction() as session:
            ids = claim(session, parts.clock.now(), real_now(), BATCH)
        if ids:
            send(kind, ids)
            handed += len(ids)
    return handed


def hand_out_unverified(parts: Parts, send: Send) -> int:
    """Some of the imported tokens that Xendit was not asked about yet: those that are due first, and no more than the
    quota lets through until the next turn. Whatever else is due does not wait behind a hundred thousand of them."""
    if not takes_more(send, TOKEN_CHECK):
        return 0
    outlook = parts.quota.outlook(READ_TOKEN_ENDPOINT, VERIFY_AHEAD_SECONDS)
    most = VERIFIED_AT_ONCE if outlook is None else min(VERIFIED_AT_ONCE, outlook)
    if most <= 0:
        return 0
    with parts.transaction() as session:
        ids = queries.claim_unverified_tokens(session, parts.clock.now(), most)
    if ids:
        send(TOKEN_CHECK, ids)
    return len(ids)


def hand_out_days(parts: Parts, send: Send) -> None:
    """Once a day: the days before against Xendit's list, because money we were never told of is found by nothing else.

    Which days have been compared is written down: a day on which nobody was at work, or whose message was lost, comes
    again until somebody has compared it."""
    parts.refuse_a_copy()
    if takes_more(send, DAY):
        send(DAY, [day.isoformat() for day in days_to_compare(parts)])


def days_to_compare(parts: Parts) -> list[date]:
    """The latest first."""
    now = parts.clock.now()
    with parts.reading() as session:
        return queries.days_to_compare(session, now - LONGEST_COMPARED_LATE, now)
