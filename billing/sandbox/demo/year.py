"""The demo's months, lived through: from one instant at which something is due to the next, with a billing run at each.

This file plays cron, the merchant's office and the customers. The work itself is done as in production: `billing run`
opens what is due, dramatiq workers charge it, webhooks and look-ups bring what Xendit knows.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from sqlalchemy import select, text

from billing.domain.gateway import SessionMode
from billing.domain.lifecycle import BILLABLE, SubscriptionStatus
from billing.runs import run
from billing.sandbox.demo.cast import HOME, OPENING_DAY, PLANS, Fate, Person, card_number, end_of, sign_up_days
from billing.sandbox.demo.stage import Stage
from billing.store.models import Customer, Fact, PaymentSession, Plan, Subscription
from billing.subscribing import catalog, payment_sessions, session_results
from billing.subscriptions import moves

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 15.0  # for what is under way; whatever it is, it must not stop the demo for good
RUNS_AT_ONE_INSTANT = 6  # one run can make work for the next: a new card, a look-up
OFFICE_THREADS = 8
TROUBLE = frozenset({"attempt.failed", "attempt.in_doubt", "attempt.pending", "attempt.requires_action"})
TOGETHER = timedelta(minutes=15)  # what people do and what is due
LATER_THAT_DAY = timedelta(minutes=12)  # by then a session whose webhook was lost is asked about
NEXT_DAY = timedelta(hours=26)  # an abandoned session has expired by then
PAUSE = timedelta(days=40)
NEW_CARDS_FROM = 1_000_000  # numbers of cards nobody in the cast begins with
# On the second day of sign-ups, and again in the middle: how bad, and for how long.
WEBHOOK_TROUBLE = {"loss_rate": 0.35, "duplicate_rate": 0.35}
NO_TROUBLE = {"loss_rate": 0.0, "duplicate_rate": 0.0}
TROUBLE_LASTS = timedelta(days=6)
TROUBLE_BEGINS = "From now on every third webhook is lost, and every third arrives twice"
TROUBLE_ENDS = "Webhooks arrive again"

# The last of those that are due within half an hour of the first: one run does them all.
_NEXT_DUE = text(
    """
    WITH due AS (
        SELECT next_billing_at AS at FROM subscriptions
            WHERE status IN ('trialing', 'active', 'past_due') AND hold_reason IS NULL
        UNION ALL SELECT scheduled_at FROM charge_attempts WHERE status = 'scheduled'
        UNION ALL SELECT next_check_at FROM charge_attempts WHERE next_check_at IS NOT NULL
        UNION ALL SELECT grace_ends_at FROM invoices WHERE status = 'open' AND grace_ends_at > :now
        UNION ALL SELECT next_try_at FROM refunds WHERE next_try_at IS NOT NULL
    )
    SELECT max(at) FROM due WHERE at <= (SELECT min(at) FROM due) + interval '30 minutes'
    """
)
# What waits for a billing run, and what a worker has in hand; by the test clock, in one statement. (The look-up of a
# session is claimed by moving its next one five minutes on.)
_BUSY = text(
    """
    WITH clock AS (
        SELECT clock_timestamp() + offset_microseconds * interval '1 microsecond' AS now FROM test_clock
    ),
    due AS (
        SELECT false AS waits FROM charge_attempts WHERE status = 'submitted' AND lease_until IS NOT NULL
        UNION ALL SELECT lease_until IS NULL FROM charge_attempts, clock
            WHERE status = 'scheduled' AND scheduled_at <= now
        UNION ALL SELECT lease_until IS NULL FROM charge_attempts, clock WHERE next_check_at <= now
        UNION ALL SELECT true FROM payment_sessions, clock WHERE next_check_at <= now
        UNION ALL SELECT false FROM payment_sessions, clock
            WHERE next_check_at BETWEEN now + interval '4 minutes' AND now + interval '6 minutes'
        UNION ALL SELECT true FROM subscriptions, clock WHERE next_billing_at <= now AND hold_reason IS NULL
            AND status IN ('trialing', 'active', 'past_due')
        UNION ALL SELECT true FROM invoices, clock
            WHERE status = 'open' AND grace_ends_at <= now AND hold_reason IS NULL
            AND NOT EXISTS (SELECT 1 FROM charge_attempts AS a WHERE a.invoice_id = invoices.id AND a.status IN
                ('scheduled', 'submitted', 'pending', 'requires_action', 'in_doubt'))
    )
    SELECT count(*) FILTER (WHERE waits) AS waiting, count(*) FILTER (WHERE NOT waits) AS in_hand,
        (SELECT count(*) FROM webhook_events WHERE next_try_at IS NOT NULL AND state = 'received') AS events
    FROM due
    """
)


class Audience(Protocol):
    """Who watches: the report, on a terminal or not."""

    def advanced(self, at: datetime, *, paid: int, failed: int) -> None: ...

    def noticed(self, who: str, currency: str, fact: Fact) -> None: ...

    def announced(self, at: datetime, what: str) -> None: ...


@dataclass(slots=True)
class Year:
    """`play` is the way in; when it returns, everything due up to the end has been done."""

    stage: Stage
    people: list[Person]
    months: int
    audience: Audience
    now: datetime = OPENING_DAY
    paid: int = 0
    failed: int = 0
    _agenda: list[tuple[datetime, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _people_by_subscription: dict[str, Person] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)
    _last_fact: int = 0
    _office: ThreadPoolExecutor = field(init=False)

    def play(self) -> None:
        with ThreadPoolExecutor(OFFICE_THREADS, thread_name_prefix="office") as self._office:
            self._play()

    def _play(self) -> None:
        end = end_of(self.months)
        self._move_to(OPENING_DAY)
        self._open_shop()
        while (instant := self._next_instant()) < end:
            self._move_to(instant)
            self._bill(news=self._live())
        self._move_to(end)
        self._bill(news=True)

    # ------------------------------------------------------------------------------------------------ time

    def _move_to(self, instant: datetime) -> None:
        self.now = instant
        self.stage.move_clocks(instant)

    def _next_instant(self) -> datetime:
        """The next minute at which something is due."""
        with self.stage.parts.reading() as session:
            due = session.scalar(_NEXT_DUE, {"now": self.now})
        planned = self._agenda[0][0] if self._agenda else None
        coming = [at for at in (due, planned) if at is not None]
        if not coming:
            return end_of(self.months)
        instant = max(at for at in coming if at <= min(coming) + TOGETHER)
        # Up to the minute; and never the minute we are in: what is due now was tried just now.
        minute = (instant + timedelta(seconds=60, microseconds=-1)).astimezone(HOME).replace(second=0, microsecond=0)
        return max(minute, self.now + timedelta(minutes=1))

    def _plan(self, at: datetime, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), action))

    def _live(self) -> bool:
        """What people do now; what Xendit tells of by itself, such as the end of a session, comes first."""
        if not self._agenda or self._agenda[0][0] > self.now:
            return False
        self._settle(news=True)
        while self._agenda and self._agenda[0][0] <= self.now:
            _, _, action = heapq.heappop(self._agenda)
            action()
        return True

    # ------------------------------------------------------------------------------------------------ cron

    def _bill(self, *, news: bool) -> None:
        """Billing runs until nothing is due any more, then what came of them.

        `news`: webhooks matter at this instant, because somebody has just signed up, was declined or is in doubt. Of
        charges that have succeeded they only say again what the answer has said, so time need not wait for them.
        """
        tries = RUNS_AT_ONE_INSTANT
        while self._settle(news=news) and tries:
            run.run_on_workers(self.stage.parts, self.stage.send, None, lambda _totals: None, wait=False)
            tries -= 1
        if self._read_facts() & TROUBLE and not news:
            self._bill(news=True)
            return
        self.audience.advanced(self.now, paid=self.paid, failed=self.failed)

    def _settle(self, *, news: bool) -> int:
        """Wait until the workers are done. Returns how much waits for a billing run."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            queued = self._webhooks_queued() if news else 0  # asked first: they leave this queue for what comes next
            waiting, in_hand, events = self._busy()
            if waiting or not (in_hand or (news and (events or queued))):
                return waiting
            self.stage.check_alive()
            time.sleep(POLL_SECONDS)
        return 0

    def _busy(self) -> tuple[int, int, int]:
        with self.stage.app.engine.connect() as connection:
            row = connection.execute(_BUSY).one()
        return row.waiting, row.in_hand, row.events

    def _webhooks_queued(self) -> int:
        counts = self.stage.simulator.get("/_simulator/webhooks?summary")["counts"]
        return sum(row["count"] for row in counts if row["status"] == "QUEUED")

    def _read_facts(self) -> set[str]:
        """What has happened since the last look, by kind."""
        with self.stage.parts.reading() as session:
            facts = session.scalars(select(Fact).where(Fact.id > self._last_fact).order_by(Fact.id)).all()
        for fact in facts:
            self._last_fact = fact.id
            self.paid += fact.kind == "invoice.paid"
            self.failed += fact.kind == "attempt.failed"
            person = self._people_by_subscription[fact.subscription_id]
            self.audience.noticed(person.name, person.plan.currency, fact)
            if fact.kind == "customer.asked":
                self._asked(person, fact)
        return {fact.kind for fact in facts}

    # ---------------------------------------------------------------------------------- the merchant's office

    def _open_shop(self) -> None:
        with self.stage.parts.transaction() as session:
            for sheet in PLANS:
                catalog.create_plan(
                    session,
                    code=sheet.code,
                    name=sheet.name,
                    amount=sheet.amount,
                    currency=sheet.currency,
                    schedule=sheet.schedule,
                    timezone=sheet.zone,
                    trial_days=sheet.trial_days,
                    cycles=None,
                    catch_up="all",
                    dunning="standard",
                    now=self.now,
                )
        for day in sign_up_days(self.months):
            self._plan(day, partial(self._sign_up, [person for person in self.people if person.joins_at == day]))
        for person in self.people:
            if person.changes_mind_at is not None:
                self._plan(person.changes_mind_at, partial(self._change_mind, person))
        self._plan_webhook_trouble()

    def _plan_webhook_trouble(self) -> None:
        """Once while people sign up, so that tokens have to be fetched; once in the middle."""
        middle = OPENING_DAY + (end_of(self.months) - OPENING_DAY) / 2
        for begin in (sign_up_days(self.months)[1] - timedelta(hours=1), middle):
            self._plan(begin, partial(self._webhooks, WEBHOOK_TROUBLE, TROUBLE_BEGINS))
            self._plan(begin + TROUBLE_LASTS, partial(self._webhooks, NO_TROUBLE, TROUBLE_ENDS))

    def _webhooks(self, faults: dict[str, float], what: str) -> None:
        self.stage.simulator.post("/_simulator/webhooks/config", faults)
        self.audience.announced(self.now, what)

    def _sign_up(self, people: list[Person]) -> None:
        for person, subscription_id in zip(people, self._office.map(self._subscribe, people), strict=True):
            self._people_by_subscription[subscription_id] = person
        for person in people:
            if person.abandons_first:
                self._plan(self._another_day(), partial(self._start_again, person))
        self._plan(self.now + LATER_THAT_DAY, lambda: None)

    def _another_day(self) -> datetime:
        """When an abandoned session has expired: the next day of sign-ups, if there is one."""
        later = [day for day in sign_up_days(self.months) if day > self.now + NEXT_DAY]
        return min(later, default=self.now + NEXT_DAY)

    def _subscribe(self, person: Person) -> str:
        parts = self.stage.parts
        with parts.transaction() as session:
            customer = catalog.create_customer(
                session,
                reference=person.reference,
                name=person.name,
                email=person.email,
                country=person.country,
                mobile=None,
                timezone=None,
                now=parts.clock.now(),
            )
            plan = catalog.find_plan(session, person.plan.code)
        subscription, opened = payment_sessions.subscribe(
            parts,
            customer,
            plan,
            via=person.via,
            mode=SessionMode.PAYMENT_LINK,
            start_at=person.plan.start_at,
            reference=person.reference,
        )
        if not person.abandons_first:
            self._use_payment_page(person, opened)
        return subscription.id

    def _change_mind(self, person: Person) -> None:
        with self.stage.parts.transaction() as session:
            subscription = moves.lock_subscription(session, self._subscription_id(person))
            if subscription.status not in BILLABLE:
                return
            match person.fate:
                case Fate.PAUSES:
                    moves.pause(session, subscription, self.now)
                    self._plan(self.now + PAUSE, partial(self._resume, person))
                case Fate.LEAVES:
                    moves.cancel(session, subscription, self.now, at_once=False, reason="by request")
                case _:
                    moves.cancel(session, subscription, self.now, at_once=True, reason="by request")

    def _resume(self, person: Person) -> None:
        with self.stage.parts.transaction() as session:
            subscription = moves.lock_subscription(session, self._subscription_id(person))
            if subscription.status == SubscriptionStatus.PAUSED:
                moves.resume(session, subscription, session.get_one(Plan, subscription.plan_id), self.now)

    # --------------------------------------------------------------------------------------------- customers

    def _use_payment_page(self, person: Person, opened: PaymentSession, *, new_card: str | None = None) -> None:
        """As the customer would: perhaps a failed try or two, then it works. The first token gets the script."""
        page = f"/_simulator/sessions/{opened.xendit_session_id}"
        by_card = person.channel == "CARDS" or new_card is not None
        paid_with: dict[str, object] = {"channel_code": "CARDS" if by_card else person.channel}
        if by_card:
            paid_with["card_number"] = new_card or person.card_number
        if new_card is None:
            if person.card_expiry is not None:
                paid_with["expiry_year"], paid_with["expiry_month"] = person.card_expiry
            for _ in range(person.failed_tries):
                code = "AUTHENTICATION_FAILED" if by_card else "USER_DECLINED_PAYMENT"
                self.stage.simulator.post(f"{page}/fail", paid_with | {"failure_code": code})
        done = self.stage.simulator.post(f"{page}/complete", paid_with)["session"]
        if new_card is None and person.script:
            token = f"/_simulator/tokens/{done['payment_token_id']}"
            self.stage.simulator.post(f"{token}/script", {"outcomes": person.script})

    def _start_again(self, person: Person) -> None:
        """A fresh session, as `billing session create` opens it; first ours learns that the other one has expired."""
        with self.stage.parts.reading() as session:
            subscription = session.get_one(Subscription, self._subscription_id(person))
            customer = session.get_one(Customer, subscription.customer_id)
            abandoned = select(PaymentSession.id).where(PaymentSession.subscription_id == subscription.id)
            session_id = session.scalars(abandoned).one()
        session_results.refresh_session(self.stage.parts, session_id)
        opened = payment_sessions.open_session(
            self.stage.parts, customer, mode=SessionMode.PAYMENT_LINK, subscription=subscription, via=person.via
        )
        self._use_payment_page(person, opened)

    def _asked(self, person: Person, fact: Fact) -> None:
        """We asked for another payment method; most people bring one after some days."""
        asked_for = str(fact.detail.get("invoice"))
        if person.answers_after is None or asked_for in self._answered:
            return
        self._answered.add(asked_for)
        self._plan(self.now + person.answers_after, partial(self._bring_new_card, person, len(self._answered)))

    def _bring_new_card(self, person: Person, number: int) -> None:
        with self.stage.parts.reading() as session:
            subscription = session.get_one(Subscription, self._subscription_id(person))
            customer = session.get_one(Customer, subscription.customer_id)
        if subscription.status in BILLABLE:
            opened = payment_sessions.open_session(self.stage.parts, customer, mode=SessionMode.PAYMENT_LINK)
            self._use_payment_page(person, opened, new_card=card_number(NEW_CARDS_FROM + number))

    def _subscription_id(self, person: Person) -> str:
        return next(key for key, owner in self._people_by_subscription.items() if owner is person)
