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

from billing.demo.cast import HOME, OPENING_DAY, PLANS, Fate, Person, card_number, end_of, sign_up_days
from billing.demo.stage import Stage
from billing.domain.gateway import SessionMode
from billing.domain.lifecycle import BILLABLE, SubscriptionStatus
from billing.services import catalog, onboarding, runs, subscriptions
from billing.store.models import Customer, Fact, PaymentSession, Plan, Subscription

POLL_SECONDS = 0.03
PATIENCE_SECONDS = 3.0  # for webhooks and look-ups that are under way; what is lost for good must not stop the demo
RUNS_AT_ONE_INSTANT = 6  # one run can make work for the next: a new card, a look-up
OFFICE_THREADS = 8
TOGETHER = timedelta(minutes=10)  # what is due within minutes is done in one run
LATER_THAT_DAY = timedelta(minutes=12)  # by then a session whose webhook was lost is asked about
NEXT_DAY = timedelta(hours=26)  # an abandoned session has expired by then
PAUSE = timedelta(days=40)
NEW_CARDS_FROM = 1_000_000  # numbers of cards nobody in the cast begins with
# On the third day of sign-ups, and again when everybody is in: how bad, and for how long.
WEBHOOK_TROUBLE = {"loss_rate": 0.35, "duplicate_rate": 0.35}
NO_TROUBLE = {"loss_rate": 0.0, "duplicate_rate": 0.0}
TROUBLE_LASTS = timedelta(days=6)
TROUBLE_BEGINS = "From now on every third webhook is lost, and every third arrives twice"
TROUBLE_ENDS = "Webhooks arrive again"

_NEXT_DUE = text(
    """
    SELECT min(at) FROM (
        SELECT min(next_billing_at) AS at FROM subscriptions
            WHERE status IN ('trialing', 'active', 'past_due') AND hold_reason IS NULL
        UNION ALL SELECT min(scheduled_at) FROM charge_attempts WHERE status = 'scheduled'
        UNION ALL SELECT min(next_check_at) FROM charge_attempts WHERE next_check_at IS NOT NULL
        UNION ALL SELECT min(grace_ends_at) FROM invoices WHERE status = 'open' AND hold_reason IS NULL
            AND grace_ends_at > :now
        UNION ALL SELECT min(next_try_at) FROM refunds WHERE next_try_at IS NOT NULL
    ) AS due
    """
)
_CHARGES_DUE = text(
    """
    SELECT (SELECT count(*) FROM charge_attempts WHERE status = 'submitted'
            OR (status = 'scheduled' AND scheduled_at <= :now) OR next_check_at <= :now)
         + (SELECT count(*) FROM subscriptions WHERE next_billing_at <= :now AND hold_reason IS NULL
            AND status IN ('trialing', 'active', 'past_due'))
    """
)
_EVENTS_UNDER_WAY = text("SELECT count(*) FROM webhook_events WHERE state = 'received'")
# A look-up of a session is claimed by moving its next one five minutes on.
_LOOK_UPS_UNDER_WAY = text(
    """
    SELECT (SELECT count(*) FROM payment_sessions WHERE next_check_at <= :now
            OR next_check_at BETWEEN :now + interval '4 minutes' AND :now + interval '6 minutes')
         + (SELECT count(*) FROM charge_attempts WHERE next_check_at <= :now)
    """
)


class Audience(Protocol):
    """Who watches: the report, on a terminal or not."""

    def advanced(self, at: datetime, *, paid: int, failed: int) -> None: ...

    def noticed(self, at: datetime, who: str, fact: Fact) -> None: ...

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

    def play(self) -> None:
        end = end_of(self.months)
        self._move_to(OPENING_DAY)
        self._open_shop()
        while (instant := self._next_instant()) < end:
            self._move_to(instant)
            self._live()
            self._bill()
        self._move_to(end)
        self._bill()

    # ------------------------------------------------------------------------------------------------ time

    def _move_to(self, instant: datetime) -> None:
        self.now = instant
        self.stage.move_clocks(instant)

    def _next_instant(self) -> datetime:
        """The next whole minute at which something is due. The year after the next stands for never."""
        with self.stage.parts.sessions() as session:
            due = session.scalar(_NEXT_DUE, {"now": self.now})
        planned = self._agenda[0][0] if self._agenda else None
        coming = [at for at in (due, planned) if at is not None]
        if not coming:
            return end_of(self.months)
        whole_minute = min(coming).astimezone(HOME).replace(second=0, microsecond=0)
        return max(whole_minute if whole_minute == min(coming) else whole_minute + timedelta(minutes=1), self._tick())

    def _tick(self) -> datetime:
        """The clock never stands still: what is due now was tried just now."""
        return self.now + timedelta(minutes=1)

    def _plan(self, at: datetime, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), action))

    def _live(self) -> None:
        """What people do now; what Xendit tells of by itself, such as the end of a session, comes first."""
        if self._agenda and self._agenda[0][0] <= self.now:
            self._wait_for_events()
        while self._agenda and self._agenda[0][0] <= self.now:
            _, _, action = heapq.heappop(self._agenda)
            action()

    # ------------------------------------------------------------------------------------------------ cron

    def _bill(self) -> None:
        """Billing runs until nothing is due any more, then what came of them."""
        for _ in range(RUNS_AT_ONE_INSTANT):
            runs.run_on_workers(
                self.stage.parts, self.stage.send, None, self._watch, wait=True, poll_seconds=POLL_SECONDS
            )
            self._wait_for_events()
            self._wait_for(lambda: self._count(_LOOK_UPS_UNDER_WAY))
            if not self._count(_CHARGES_DUE):
                break
        self._read_facts()
        self.audience.advanced(self.now, paid=self.paid, failed=self.failed)

    def _watch(self, _totals: runs.Json) -> None:
        self.stage.check_alive()

    def _wait_for_events(self) -> None:
        """Webhooks on their way, and events in a worker's hands."""
        self._wait_for(lambda: self._webhooks_queued() or self._count(_EVENTS_UNDER_WAY))

    def _wait_for(self, how_many: Callable[[], int]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while how_many() and time.monotonic() < deadline:
            self.stage.check_alive()
            time.sleep(POLL_SECONDS)

    def _webhooks_queued(self) -> int:
        counts = self.stage.simulator.get("/_simulator/webhooks")["counts"]
        return sum(row["count"] for row in counts if row["status"] == "QUEUED")

    def _count(self, query: object) -> int:
        with self.stage.parts.sessions() as session:
            return session.scalar(query, {"now": self.stage.parts.clock.now()}) or 0  # type: ignore[call-overload]

    def _read_facts(self) -> None:
        with self.stage.parts.sessions() as session:
            facts = session.scalars(select(Fact).where(Fact.id > self._last_fact).order_by(Fact.id)).all()
        for fact in facts:
            self._last_fact = fact.id
            self.paid += fact.kind == "invoice.paid"
            self.failed += fact.kind == "attempt.failed"
            person = self._people_by_subscription[fact.subscription_id]
            self.audience.noticed(self.now, person.name, fact)
            if fact.kind == "customer.asked":
                self._asked(person, fact)

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
            self._plan(day + LATER_THAT_DAY, lambda: None)
        for person in self.people:
            if person.changes_mind_at is not None:
                self._plan(person.changes_mind_at, partial(self._change_mind, person))
        self._plan_webhook_trouble()

    def _plan_webhook_trouble(self) -> None:
        """Once while people sign up, so that tokens have to be fetched; once in the middle."""
        middle = OPENING_DAY + (end_of(self.months) - OPENING_DAY) / 2
        for begin in (sign_up_days(self.months)[2] - timedelta(hours=1), middle):
            self._plan(begin, partial(self._webhooks, WEBHOOK_TROUBLE, TROUBLE_BEGINS))
            self._plan(begin + TROUBLE_LASTS, partial(self._webhooks, NO_TROUBLE, TROUBLE_ENDS))

    def _webhooks(self, faults: dict[str, float], what: str) -> None:
        self.stage.simulator.post("/_simulator/webhooks/config", faults)
        self.audience.announced(self.now, what)

    def _sign_up(self, people: list[Person]) -> None:
        with ThreadPoolExecutor(OFFICE_THREADS) as office:
            for person, subscription_id in zip(people, office.map(self._subscribe, people), strict=True):
                self._people_by_subscription[subscription_id] = person
        for person in people:
            if person.abandons_first:
                self._plan(self.now + NEXT_DAY, partial(self._start_again, person))
        self._wait_for_events()

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
        subscription, opened = onboarding.subscribe(
            parts,
            customer,
            plan,
            via=person.via,
            mode=SessionMode.PAYMENT_LINK,
            start_at=person.plan.start_at,
            reference=f"{person.reference}-{plan.code}",
        )
        if not person.abandons_first:
            self._use_payment_page(person, opened)
        return subscription.id

    def _change_mind(self, person: Person) -> None:
        with self.stage.parts.transaction() as session:
            subscription = subscriptions.lock_subscription(session, self._subscription_id(person))
            if subscription.status not in BILLABLE:
                return
            match person.fate:
                case Fate.PAUSES:
                    subscriptions.pause(session, subscription, self.now)
                    self._plan(self.now + PAUSE, partial(self._resume, person))
                case Fate.LEAVES:
                    subscriptions.cancel(session, subscription, self.now, at_once=False, reason="by request")
                case _:
                    subscriptions.cancel(session, subscription, self.now, at_once=True, reason="by request")

    def _resume(self, person: Person) -> None:
        with self.stage.parts.transaction() as session:
            subscription = subscriptions.lock_subscription(session, self._subscription_id(person))
            if subscription.status == SubscriptionStatus.PAUSED:
                subscriptions.resume(session, subscription, session.get_one(Plan, subscription.plan_id), self.now)

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
        with self.stage.parts.sessions() as session:
            subscription = session.get_one(Subscription, self._subscription_id(person))
            customer = session.get_one(Customer, subscription.customer_id)
            abandoned = select(PaymentSession.id).where(PaymentSession.subscription_id == subscription.id)
            session_id = session.scalars(abandoned).one()
        onboarding.refresh_session(self.stage.parts, session_id)
        opened = onboarding.open_session(
            self.stage.parts, customer, mode=SessionMode.PAYMENT_LINK, subscription=subscription, via=person.via
        )
        self._use_payment_page(person, opened)
        self._wait_for_events()

    def _asked(self, person: Person, fact: Fact) -> None:
        """We asked for another payment method; most people bring one after some days."""
        if person.answers_after is None or fact.detail.get("invoice") in self._answered:
            return
        self._answered.add(fact.detail.get("invoice"))
        self._plan(self.now + person.answers_after, partial(self._bring_new_card, person, len(self._answered)))

    def _bring_new_card(self, person: Person, number: int) -> None:
        with self.stage.parts.sessions() as session:
            subscription = session.get_one(Subscription, self._subscription_id(person))
            customer = session.get_one(Customer, subscription.customer_id)
        if subscription.status in BILLABLE:
            opened = onboarding.open_session(self.stage.parts, customer, mode=SessionMode.PAYMENT_LINK)
            self._use_payment_page(person, opened, new_card=card_number(NEW_CARDS_FROM + number))
            self._wait_for_events()

    def _subscription_id(self, person: Person) -> str:
        return next(key for key, owner in self._people_by_subscription.items() if owner is person)
