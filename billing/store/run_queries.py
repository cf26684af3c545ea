"""What is asked about billing runs: how one stands, what is left of it, and its row under lock. Callers own the
transaction. Read by runs/run.py and its neighbours, the command line and the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, and_, exists, false, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from billing.domain.gateway import CHARGE_ENDPOINT, Lane
from billing.domain.lifecycle import BILLABLE, AttemptStatus, HoldKind, InvoiceStatus, RunKind, RunState
from billing.store.models import (
    BillingRun,
    ChannelBreaker,
    ChargeAttempt,
    ChargingStop,
    Fact,
    Invoice,
    PaymentToken,
    QuotaBudget,
    Subscription,
)

RATE_WINDOW = timedelta(minutes=1)
LATELY = timedelta(minutes=10)
MOST_RUNS = 100  # unfinished ones looked at at once
CHARGES_COMPARED, OF_ONE_RUN = 20_000, 2_000  # whose declines are the usual ones; a share needs no more

# Money that is gone, or may be.
COMMITTED = frozenset(
    {
        AttemptStatus.SUCCEEDED,
        AttemptStatus.SUBMITTED,
        AttemptStatus.PENDING,
        AttemptStatus.REQUIRES_ACTION,
        AttemptStatus.IN_DOUBT,
    }
)
# Our own mistakes and what never arrived say nothing of the customers' cards.
NO_DECLINE = ("our_fault", "not_sent")


@dataclass(slots=True)
class Standing:
    """How a run stands, counted once."""

    by_status: Counter[str] = field(default_factory=Counter)
    money: Counter[tuple[str, str]] = field(default_factory=Counter)  # (status, currency) -> minor units
    due: int = 0  # to be claimed, or claimed and not begun
    parked: int = 0
    last_minute: int = 0  # sent in it
    # Without what a customer waited for: the guards judge what the run does by itself.
    own: Counter[str] = field(default_factory=Counter)
    own_money: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_succeeded: int = 0  # of its own: results of first tries
    first_declined: int = 0
    opened: int = 0  # invoices, as the run's row says

    @property
    def sent(self) -> int:
        idle = (AttemptStatus.SCHEDULED, AttemptStatus.CANCELED)
        return sum(count for status, count in self.by_status.items() if status not in idle)

    @property
    def waiting(self) -> int:
        return self.by_status[AttemptStatus.SCHEDULED]

    @property
    def anything_left(self) -> bool:
        return bool(self.due or self.parked or self.by_status[AttemptStatus.SUBMITTED])

    @property
    def anything_planned(self) -> bool:
        return bool(self.waiting or self.by_status[AttemptStatus.SUBMITTED])

    @property
    def collected(self) -> dict[str, int]:
        """Minor units by currency."""
        return _sums(self.money, {AttemptStatus.SUCCEEDED})

    @property
    def own_committed(self) -> dict[str, int]:
        """Charged and perhaps charged."""
        return _sums(self.own_money, COMMITTED)

    @property
    def own_foreseen(self) -> dict[str, int]:
        """What it comes to when all that waits is charged as well."""
        return _sums(self.own_money, {*COMMITTED, AttemptStatus.SCHEDULED})


def _sums(money: Counter[tuple[str, str]], statuses: Collection[str]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for (status, currency), minor in money.items():
        if status in statuses:
            sums[currency] += minor
    return dict(sorted(sums.items()))


def standing(session: Session, run_id: str, now: datetime, *, of: ColumnElement[bool] | None = None) -> Standing:
    """One pass over the run's attempts, by their index; or over others (`of`)."""
    attempt = ChargeAttempt
    free, scheduled = attempt.parked_by.is_(None), attempt.status == AttemptStatus.SCHEDULED
    own = attempt.lane != Lane.CUSTOMER
    declined = and_(attempt.status == AttemptStatus.FAILED, func.coalesce(attempt.decline_class, "").not_in(NO_DECLINE))
    rows = session.execute(
        select(
            attempt.status,
            attempt.currency,
            own,
            func.count(),
            func.sum(attempt.amount_minor),
            func.count().filter(scheduled, free, attempt.scheduled_at <= now),
            func.count().filter(scheduled, ~free),
            func.count().filter(attempt.submitted_at > now - RATE_WINDOW),
            func.count().filter(attempt.number == 1, attempt.status == AttemptStatus.SUCCEEDED),
            func.count().filter(attempt.number == 1, declined),
        )
        .where(attempt.run_id == run_id if of is None else of)
        .group_by(attempt.status, attempt.currency, own)
    )
    found = Standing()
    for status, currency, is_own, count, minor, due, parked, last_minute, succeeded, failed in rows:
        found.by_status[status] += count
        found.money[status, currency] += int(minor)
        found.due += due
        found.parked += parked
        found.last_minute += last_minute
        if is_own:
            found.own[status] += count
            found.own_money[status, currency] += int(minor)
            found.first_succeeded += succeeded
            found.first_declined += failed
    return found


def among(ids: Collection[str]) -> ColumnElement[bool]:
    """These attempts. As an array: there may be more of them than a statement takes parameters."""
    return ChargeAttempt.id == func.any(literal(list(ids), ARRAY(Text)))


def begun_by(begun: Collection[str], run_id: str) -> ColumnElement[bool]:
    """The attempts that one command has begun, and what still waits of the run that it drives."""
    attempt = ChargeAttempt
    waits = and_(attempt.run_id == run_id, attempt.status == AttemptStatus.SCHEDULED)
    return or_(among(begun), waits)


def of_run_but(before: Collection[str], run_id: str) -> ColumnElement[bool]:
    """The attempts of a run, but those of which the same was true `before`."""
    return and_(ChargeAttempt.run_id == run_id, ~among(before))


def begun_of_run(session: Session, run_id: str) -> set[str]:
    idle = (AttemptStatus.SCHEDULED, AttemptStatus.CANCELED)
    query = select(ChargeAttempt.id).where(ChargeAttempt.run_id == run_id, ChargeAttempt.status.not_in(idle))
    return set(session.scalars(query))


@dataclass(frozen=True, slots=True)
class Unsent:
    """Charges that were due and did not leave: how many, why one of them, and when the first of them is tried again
    (None: when what they wait for is over)."""

    count: int
    why: str | None
    until: datetime | None


# Due, not in anybody's hands, and with the reason why it did not leave. A run that a person or a guard has stopped, and
# a payment method that Xendit does not know, are told of by themselves.
_DID_NOT_LEAVE = and_(
    ChargeAttempt.status == AttemptStatus.SCHEDULED,
    ChargeAttempt.error.is_not(None),
    or_(ChargeAttempt.parked_by.is_(None), ChargeAttempt.parked_by.startswith("channel:")),
)


def unsent(session: Session, of: ColumnElement[bool], real_now: datetime) -> Unsent:
    """Of these attempts. One that was put off counts until it is tried, however late that is: it was due. What somebody
    has in hand is on its way."""
    attempt = ChargeAttempt
    in_hand = func.coalesce(attempt.lease_until > real_now, false())
    row = session.execute(
        select(
            func.count(), func.min(attempt.error), func.min(attempt.scheduled_at).filter(attempt.parked_by.is_(None))
        ).where(_DID_NOT_LEAVE, of, in_hand.is_(False))
    ).one()
    return Unsent(*row)


def did_not_leave(session: Session) -> set[str]:
    return set(session.scalars(select(ChargeAttempt.id).where(_DID_NOT_LEAVE)))


def withdrawn(session: Session, of: ColumnElement[bool]) -> tuple[int, str | None]:
    """How many of these attempts were withdrawn though their invoice is not paid, and why one of them was."""
    row = session.execute(
        select(func.count(), func.min(ChargeAttempt.error))
        .join(Invoice, Invoice.id == ChargeAttempt.invoice_id)
        .where(of, ChargeAttempt.status == AttemptStatus.CANCELED, Invoice.status == InvoiceStatus.OPEN)
    ).one()
    return row[0], row[1]


def withdrawn_of_run(session: Session, run_id: str) -> set[str]:
    query = select(ChargeAttempt.id).where(
        ChargeAttempt.run_id == run_id, ChargeAttempt.status == AttemptStatus.CANCELED
    )
    return set(session.scalars(query))


def committed(session: Session, run_id: str, *, but: Collection[str]) -> tuple[Counter[str], int]:
    """What a run has charged, may have charged, or has handed out, by currency in minor units; and how many are handed
    out and not begun. Whatever has a lease counts, even one that is over: its message may still arrive. Without what a
    customer waits for: that is no doing of the run."""
    attempt = ChargeAttempt
    in_hand = and_(attempt.status == AttemptStatus.SCHEDULED, attempt.lease_until.is_not(None))
    rows = session.execute(
        select(attempt.currency, func.sum(attempt.amount_minor), func.count().filter(in_hand))
        .where(
            attempt.run_id == run_id,
            attempt.lane != Lane.CUSTOMER,
            attempt.id.not_in(but),
            or_(attempt.status.in_(COMMITTED), in_hand),
        )
        .group_by(attempt.currency)
    ).all()
    return Counter({row[0]: int(row[1]) for row in rows}), sum(row[2] for row in rows)


def declines_by_reason(
    session: Session, of: ColumnElement[bool], most: int = 20
) -> list[tuple[str | None, str | None, int]]:
    attempt = ChargeAttempt
    rows = session.execute(
        select(attempt.failure_code, attempt.decline_class, func.count())
        .where(of, attempt.status == AttemptStatus.FAILED)
        .group_by(attempt.failure_code, attempt.decline_class)
        .order_by(func.count().desc(), attempt.failure_code)
        .limit(most)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def results_by_channel(session: Session, of: ColumnElement[bool]) -> list[tuple[str | None, str, str, int, int]]:
    """(channel, currency, status, charges, minor units) of what was sent."""
    attempt = ChargeAttempt
    rows = session.execute(
        select(
            PaymentToken.channel_code, attempt.currency, attempt.status, func.count(), func.sum(attempt.amount_minor)
        )
        .outerjoin(PaymentToken, PaymentToken.id == attempt.payment_token_id)
        .where(of, attempt.status.not_in({AttemptStatus.SCHEDULED, AttemptStatus.CANCELED}))
        .group_by(PaymentToken.channel_code, attempt.currency, attempt.status)
        .order_by(PaymentToken.channel_code, attempt.currency)
    )
    return [(row[0], row[1], row[2], row[3], int(row[4])) for row in rows]


def usual_decline_share(session: Session, run_id: str, since: datetime, needed: int) -> float | None:
    """Of first tries in the latest other runs; None with fewer than `needed` results since then. Bounded on purpose:
    a share needs thousands of charges, not all of two months'."""
    rows = session.execute(
        text(
            """
            SELECT count(*), count(*) FILTER (WHERE status = 'failed') FROM (
                SELECT settled.status FROM (
                    SELECT id FROM billing_runs WHERE id <> :run ORDER BY started_at DESC
                ) r CROSS JOIN LATERAL (
                    SELECT a.status FROM charge_attempts a
                    WHERE a.run_id = r.id AND a.number = 1 AND a.status IN ('succeeded', 'failed')
                        AND a.settled_at > :since AND coalesce(a.decline_class, '') NOT IN ('our_fault', 'not_sent')
                    LIMIT :of_one_run
                ) settled
                LIMIT :most
            ) compared
            """
        ),
        {"run": run_id, "since": since, "of_one_run": OF_ONE_RUN, "most": CHARGES_COMPARED},
    ).one()
    return rows[1] / rows[0] if rows[0] >= needed else None


# What a person, a customer or an import did: none of it was to be foreseen, all of it was meant.
_MEANT = (
    "'subscription.created', 'subscription.imported', 'subscription.activated', 'subscription.trialing',"
    " 'subscription.resumed', 'subscription.released'"
)
_OPENED = text(
    f"""
    SELECT a.currency, sum(a.amount_minor) FROM charge_attempts a
    WHERE a.run_id = :run AND a.origin = 'schedule' AND a.number = 1 AND a.lane <> :customer
        AND (a.status = 'scheduled' OR a.status = ANY(CAST(:committed AS text[])))
        AND a.created_at >= :began
        AND NOT EXISTS (SELECT FROM facts f
            WHERE f.subscription_id = a.subscription_id AND f.id > :facts AND f.kind IN ({_MEANT}))
    GROUP BY a.currency ORDER BY a.currency
    """  # noqa: S608 - our own names
)


def opened_as_foreseen(session: Session, run: BillingRun, facts: int) -> dict[str, int]:
    """What the run has opened, charged or still waiting, by currency in minor units: of those who were there when it
    was planned (`facts` is the last line of all stories then) and whom nobody has touched since."""
    values = {
        "run": run.id,
        "facts": facts,
        "began": run.at,
        "customer": int(Lane.CUSTOMER),
        "committed": sorted(COMMITTED),
    }
    return {row[0]: int(row[1]) for row in session.execute(_OPENED, values)}


# What shows that the account works: whatever Xendit said of a charge itself. Not our own mistakes, nor silence.
_ANSWER = """(a.status IN ('succeeded', 'pending', 'requires_action')
    OR (a.status = 'failed' AND coalesce(a.decline_class, '') NOT IN ('our_fault', 'not_sent')))"""
_IS_ANSWERED = text(
    f"""
    SELECT EXISTS (SELECT FROM charge_attempts a WHERE a.run_id = :run AND {_ANSWER}) OR EXISTS (
        SELECT FROM billing_runs r JOIN charge_attempts a ON a.run_id = r.id
        WHERE r.finished_at IS NULL AND r.state = 'running' AND a.submitted_at > :lately AND {_ANSWER}
    ) AS answered_lately
    """  # noqa: S608 - our own statement
)


def is_answered(session: Session, run_id: str, now: datetime) -> bool:
    """Whether Xendit has answered a charge of this run, or lately of another that goes on: they share their work."""
    return bool(session.scalar(_IS_ANSWERED, {"run": run_id, "lately": now - LATELY}))


def last_fact(session: Session) -> int:
    """The number of the last line of all stories."""
    return session.scalar(select(func.max(Fact.id))) or 0


def was_opened_for(session: Session, run_id: str) -> bool:
    return bool(session.scalar(select(exists().where(ChargeAttempt.run_id == run_id))))


# ------------------------------------------------------------------------------------------------ the rows


def lock_run(session: Session, run_id: str) -> BillingRun | None:
    query = select(BillingRun).where(BillingRun.id == run_id).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def insert_run(session: Session, **values: Any) -> bool:
    """False when there is one of this id already."""
    query = insert(BillingRun).values(values).on_conflict_do_nothing().returning(BillingRun.id)
    return session.scalar(query) is not None


def orphan_run(session: Session, heart_stopped_before: datetime) -> BillingRun | None:
    """An unfinished run that was asked for and that nobody drives any more; locked, so that one process takes it."""
    query = (
        select(BillingRun)
        .where(
            BillingRun.finished_at.is_(None),
            BillingRun.kind == RunKind.ASKED,
            BillingRun.state == RunState.RUNNING,
            or_(BillingRun.heartbeat_at.is_(None), BillingRun.heartbeat_at < heart_stopped_before),
        )
        .order_by(BillingRun.started_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return session.scalar(query)


def end_unbegun(session: Session, reason: str, real: datetime) -> None:
    """Runs that were stopped before they opened anything, because their plan was not what somebody expected."""
    begun = exists().where(ChargeAttempt.run_id == BillingRun.id)
    session.execute(
        update(BillingRun)
        .where(
            BillingRun.finished_at.is_(None),
            BillingRun.kind == RunKind.ASKED,
            BillingRun.state == RunState.STOPPED,
            BillingRun.opened == 0,
            ~begun,
        )
        .values(state=RunState.ABORTED, reason=reason, finished_at=real)
        .execution_options(synchronize_session=False)
    )


def unfinished_runs(session: Session, states: Sequence[str]) -> list[BillingRun]:
    query = select(BillingRun).where(BillingRun.finished_at.is_(None), BillingRun.state.in_(states))
    return list(session.scalars(query.order_by(BillingRun.started_at).limit(MOST_RUNS)))


def beat(session: Session, run_id: str, at: datetime | None) -> None:
    session.execute(update(BillingRun).where(BillingRun.id == run_id).values(heartbeat_at=at))


# ------------------------------------------------------------------------------------------ parking, bounded


def park_free(session: Session, run_id: str, error: str, limit: int) -> int:
    """At most `limit` of a run that have not begun, except where a customer waits. What another transaction has in hand
    is not waited for (it may be waiting for us): begin parks it."""
    free = (
        select(ChargeAttempt.id)
        .where(
            ChargeAttempt.run_id == run_id,
            ChargeAttempt.status == AttemptStatus.SCHEDULED,
            ChargeAttempt.parked_by.is_(None),
            ChargeAttempt.lane != Lane.CUSTOMER,
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(ChargeAttempt)
        .where(ChargeAttempt.id.in_(free.cte("free").select()))
        .values(parked_by=f"run:{run_id}", lease_until=None, error=error)
        .execution_options(synchronize_session=False)
    )
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


_CAUSES = text(
    """
    WITH RECURSIVE causes AS (
        (SELECT parked_by FROM charge_attempts WHERE parked_by IS NOT NULL ORDER BY parked_by LIMIT 1)
        UNION ALL
        SELECT (SELECT a.parked_by FROM charge_attempts a WHERE a.parked_by > c.parked_by ORDER BY a.parked_by LIMIT 1)
        FROM causes c WHERE c.parked_by IS NOT NULL
    )
    SELECT parked_by FROM causes WHERE parked_by IS NOT NULL LIMIT 1000
    """
)


def parked_causes(session: Session) -> list[str]:
    """What parked attempts wait for, each once; jumps from one to the next in the index, however many wait."""
    return list(session.scalars(_CAUSES))


def aborted_among(session: Session, causes: Sequence[str]) -> list[str]:
    """The aborted runs that attempts still wait for."""
    runs = [cause.removeprefix("run:") for cause in causes if cause.startswith("run:")]
    return list(
        session.scalars(select(BillingRun.id).where(BillingRun.id.in_(runs), BillingRun.state == RunState.ABORTED))
    )


def causes_gone(session: Session, causes: Sequence[str]) -> list[str]:
    """Those that hold nothing up any more: a run that runs or is gone, a channel whose breaker is closed, a customer
    none of whose subscriptions waits for Xendit to know a token."""
    runs = [cause.removeprefix("run:") for cause in causes if cause.startswith("run:")]
    channels = [cause.removeprefix("channel:") for cause in causes if cause.startswith("channel:")]
    holding = {
        f"run:{found}"
        for found in session.scalars(
            select(BillingRun.id).where(
                BillingRun.id.in_(runs), BillingRun.state.in_((RunState.PAUSED, RunState.STOPPED, RunState.ABORTED))
            )
        )
    } | {
        f"channel:{found}"
        for found in session.scalars(
            select(ChannelBreaker.channel_code).where(
                ChannelBreaker.channel_code.in_(channels), ChannelBreaker.probe_at.is_not(None)
            )
        )
    }
    holding |= _tokens_waited_for(session, causes)
    return [cause for cause in causes if cause not in holding]


def _tokens_waited_for(session: Session, causes: Sequence[str]) -> set[str]:
    customers = [cause.removeprefix("token:") for cause in causes if cause.startswith("token:")]
    held = select(Subscription.customer_id).where(
        Subscription.customer_id.in_(customers),
        Subscription.hold_kind == HoldKind.TOKEN_UNKNOWN,
        Subscription.hold_reason.is_not(None),
        Subscription.status.in_(BILLABLE),
    )
    return {f"token:{found}" for found in session.scalars(held)} if customers else set()


# A lane at a time, and the first of each: only so the index answers alone, however many wait or are parked.
_BUSY = text(
    """
    SELECT EXISTS (SELECT FROM charge_attempts WHERE status = 'submitted' AND lease_until IS NOT NULL)
    OR coalesce((SELECT scheduled_at <= :now FROM charge_attempts
        WHERE lane = 0 AND status = 'scheduled' AND parked_by IS NULL ORDER BY lane, scheduled_at LIMIT 1), false)
    OR coalesce((SELECT scheduled_at <= :now FROM charge_attempts
        WHERE lane = 1 AND status = 'scheduled' AND parked_by IS NULL ORDER BY lane, scheduled_at LIMIT 1), false)
    OR coalesce((SELECT scheduled_at <= :now FROM charge_attempts
        WHERE lane = 2 AND status = 'scheduled' AND parked_by IS NULL ORDER BY lane, scheduled_at LIMIT 1), false)
    OR coalesce((SELECT scheduled_at <= :now FROM charge_attempts
        WHERE lane = 3 AND status = 'scheduled' AND parked_by IS NULL ORDER BY lane, scheduled_at LIMIT 1), false)
    """
)


def anything_to_charge(session: Session, now: datetime) -> bool:
    """Due, handed out or sent, in whatever run; without what is parked. Asks indexes only."""
    return bool(session.scalar(_BUSY, {"now": now}))


_CLAIMABLE = text(
    """
    SELECT EXISTS (
        SELECT FROM charge_attempts d WHERE d.status = 'scheduled' AND d.parked_by IS NULL AND d.scheduled_at <= :now
            AND (d.lease_until IS NULL OR d.lease_until < :real_now) AND NOT EXISTS (
                SELECT FROM charge_attempts o WHERE o.subscription_id = d.subscription_id AND o.id < d.id
                    AND (o.status = 'submitted' OR (o.status = 'scheduled' AND o.scheduled_at <= :now)))
    ) AND NOT EXISTS (SELECT FROM charging_stop)
    """
)


def anything_to_claim(session: Session, now: datetime, real_now: datetime) -> bool:
    """Due and in nobody's hands: only the quota keeps it from being handed out."""
    return bool(session.scalar(_CLAIMABLE, {"now": now, "real_now": real_now}))


def has_parked(session: Session, run_id: str) -> bool:
    parked = (ChargeAttempt.parked_by.is_not(None), ChargeAttempt.status == AttemptStatus.SCHEDULED)
    return bool(session.scalar(select(exists().where(ChargeAttempt.run_id == run_id, *parked))))


def parked_by(session: Session, prefix: str) -> int:
    """How many charges wait for what begins so, of whatever run."""
    waiting = (ChargeAttempt.parked_by.startswith(prefix), ChargeAttempt.status == AttemptStatus.SCHEDULED)
    return session.scalar(select(func.count()).where(*waiting)) or 0


def charging_stop_reason(session: Session) -> str | None:
    return session.scalar(select(ChargingStop.reason))


# ------------------------------------------------------------------------------------------------ the quota


_USED = text(
    """
    SELECT coalesce(sum(sent), 0)::int FROM quota_slots, (SELECT extract(epoch FROM clock_timestamp()) * 10 AS now) t
    WHERE endpoint = :endpoint AND tenth > t.now - 600 AND tenth <= t.now
    """
)


def quota_used(session: Session, endpoint: str = CHARGE_ENDPOINT) -> int:
    """Requests of the last minute, by everybody."""
    return int(session.scalar(_USED, {"endpoint": endpoint}) or 0)


def learned_limit(session: Session, endpoint: str = CHARGE_ENDPOINT) -> int | None:
    return session.scalar(select(QuotaBudget.learned_limit).where(QuotaBudget.endpoint == endpoint))
