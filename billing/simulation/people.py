"""Who lives in a simulated world: plans, subscribers and how they came in; and what they and the operators do.

An act is what a command or the return page would do, no more: it calls the same services, and a refusal is an answer
like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import simplejson
from sqlalchemy import select

from billing.domain.gateway import Lane, SessionMode, SessionType
from billing.domain.lifecycle import SubscriptionStatus
from billing.domain.schedule import schedule_from_text
from billing.errors import BillingError, NotFound
from billing.services import (
    catalog,
    charging,
    dispatch,
    doctor,
    importing,
    onboarding,
    paying,
    resolving,
    runs,
    sessions,
)
from billing.services import subscriptions as lives
from billing.services.parts import Parts
from billing.services.tokens import make_first, refresh_token
from billing.simulation.fate import Fate
from billing.store.models import Customer, Invoice, PaymentSession, PaymentToken, Plan, Subscription
from billing.xendit.simulator import Simulator

AMOUNT = 50_000  # IDR, for every plan
CARDS = ("4000000000001091", "4000000000001000", "5200000000001096")
WALLETS = ("OVO", "DANA", "SHOPEEPAY", "GOPAY_RECURRING")
ZONES = ("Asia/Jakarta", "Asia/Manila", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe")


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a plan bills: as the product is told, and as the oracle counts."""

    told: str  # to the product
    months: int = 0
    days: int = 0
    first_of_month_at: int | None = None  # hour


# A merchant's mix: most pay by the month, many by the quarter or the year.
RHYTHMS = (
    (Rhythm("every 1:month", months=1), 30),
    (Rhythm("every 3:month", months=3), 25),
    (Rhythm("every 6:month", months=6), 15),
    (Rhythm("every 1:year", months=12), 20),
    (Rhythm("cron 0 9 1 * *", months=1, first_of_month_at=9), 7),
    (Rhythm("every 3:week", days=21), 3),
)
# What people do, and how often beside each other.
ACTS = {
    "adds a payment method": 6, "pays the newest invoice by hand": 6, "pauses": 2, "resumes": 3,
    "cancels at the end of the period": 1, "cancels at once": 1, "prefers a token": 2, "opens the return page": 3,
    "refreshes a token": 2,
}  # fmt: skip
CATCH_UPS = ("all", "all", "all", "latest", "skip", "hold")
DUNNINGS = ("standard", "standard", "strict", "gentle", "pause")


@dataclass(slots=True)
class Subscriber:
    """`start_at`: when the first period was asked to begin; None: when the first payment is captured."""

    reference: str
    rhythm: Rhythm
    zone: str
    via: str
    catch_up: str
    start_at: datetime | None
    wallet: str | None
    card: str


def draw_subscriber(fate: Fate, number: int, start: datetime) -> Subscriber:
    rhythm = fate.choose([rhythm for rhythm, weight in RHYTHMS for _ in range(weight)])
    via = fate.choose(("save", "save", "pay", "import"))
    if rhythm.first_of_month_at is not None:
        via = "save"
    day = fate.choose((0, 0, 1, 2, 3)) * 7 + (3 if fate.coin(0.2) else 0)
    begins = start + timedelta(days=day, hours=int(fate.between(0, 24)), minutes=30)
    if fate.coin(0.2):
        begins = datetime(start.year, 1, 31, 2, 30, tzinfo=start.tzinfo)
    return Subscriber(
        reference=f"sub-{number}",
        rhythm=rhythm,
        zone=fate.choose(ZONES) if fate.coin(0.4) else ZONES[0],
        via=via,
        catch_up=fate.choose(CATCH_UPS),
        start_at=None if via == "pay" else begins,
        wallet=fate.choose(WALLETS) if fate.coin() else None,
        card=fate.choose(CARDS),
    )


class People:
    """Everybody who does something by hand. `parts` are those of the terminal or page it is done at."""

    def __init__(self, fate: Fate, simulator: Simulator, send: Callable[[str, list[str]], None]) -> None:
        self._fate, self._simulator, self._send = fate, simulator, send
        self.cancellations: dict[str, datetime] = {}  # when each was last asked for

    def control(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What only a customer or a bank can do. None when it cannot be done now."""
        answer = self._simulator.answer("POST", f"/_simulator{path}", "", {}, simplejson.dumps(body or {}).encode())
        return simplejson.loads(answer.body) if answer.status < 300 else None  # noqa: PLR2004 - any 2xx

    # Coming in ---------------------------------------------------------------------------------------------

    def create(self, parts: Parts, who: Subscriber) -> None:
        """The plan and the customer."""
        now = parts.clock.now()
        with parts.transaction() as session:
            catalog.create_plan(
                session, code=f"plan-{who.reference}", name="Gold", amount=str(AMOUNT), currency="IDR",
                schedule=schedule_from_text(who.rhythm.told), timezone=who.zone, trial_days=0, cycles=None,
                catch_up=who.catch_up, dunning=self._fate.choose(DUNNINGS), now=now,
            )  # fmt: skip
            if who.via != "import":
                catalog.create_customer(
                    session, reference=who.reference, name="Ana", email="ana@example.com", country="ID", mobile=None,
                    timezone=None, now=now,
                )  # fmt: skip

    def come_in(self, parts: Parts, who: Subscriber) -> None:
        """One try to subscribe, as far as it goes; or to be imported."""
        if who.via == "import":
            self._import(parts, who)
            return
        existing = self._subscription(parts, who.reference)
        if existing is None:
            self._subscribe(parts, who)
        elif existing.status == SubscriptionStatus.INCOMPLETE:
            self._start_again(parts, who, existing)
        row = self._open_session(parts, who.reference)
        if row is not None and row.xendit_session_id is not None:
            self._complete(who, row)

    def _subscribe(self, parts: Parts, who: Subscriber) -> None:
        with parts.reading() as session:
            customer = session.scalars(select(Customer).where(Customer.reference == who.reference)).one()
            plan = session.scalars(select(Plan).where(Plan.code == f"plan-{who.reference}")).one()
        onboarding.subscribe(
            parts, customer, plan, via=SessionType(who.via.upper()), mode=SessionMode.PAYMENT_LINK,
            start_at=who.start_at, reference=who.reference,
        )  # fmt: skip

    def _start_again(self, parts: Parts, who: Subscriber, subscription: Subscription) -> None:
        with parts.reading() as session:
            customer = session.get_one(Customer, subscription.customer_id)
        try:
            onboarding.open_session(
                parts, customer, mode=SessionMode.PAYMENT_LINK, subscription=subscription,
                via=SessionType(who.via.upper()),
            )  # fmt: skip
        except BillingError:
            return  # one is open still: its link works

    def _complete(self, who: Subscriber, row: PaymentSession) -> None:
        body: dict[str, Any] = {"channel_code": who.wallet} if who.wallet else {"card_number": who.card}
        if self._fate.happens("decline"):
            body["outcome"] = "INSUFFICIENT_BALANCE"
        self.control(f"/sessions/{row.xendit_session_id}/complete", body)

    def _import(self, parts: Parts, who: Subscriber) -> None:
        token = self.control("/tokens", {"channel_code": who.wallet} if who.wallet else {})
        assert who.start_at is not None  # noqa: S101 - imports begin when they are told to
        line = {
            "customer_reference": who.reference, "name": "Ana", "email": "ana@example.com", "country": "ID",
            "plan": f"plan-{who.reference}", "subscription_reference": who.reference,
            "payment_token_id": token["payment_token_id"], "channel_code": token["channel_code"],
            "next_billing_at": who.start_at.isoformat(),
        }  # fmt: skip
        verify = self._fate.coin()
        importing.import_rows(parts, [json.dumps(line)], dry_run=False, verify_with_gateway=verify)

    # Acting ------------------------------------------------------------------------------------------------

    def act(self, parts: Parts, who: Subscriber) -> str:
        """One thing a customer or an operator might do at the worst moment. Returns it in words."""
        acts: dict[str, Callable[[Parts, Subscription], None]] = {
            "adds a payment method": self._add_method,
            "pays the newest invoice by hand": self._pay,
            "pauses": self._pause,
            "resumes": self._resume,
            "cancels at the end of the period": lambda p, s: self._cancel(p, s, at_once=False),
            "cancels at once": lambda p, s: self._cancel(p, s, at_once=True),
            "prefers a token": self._prefer,
            "opens the return page": self._refresh_session,
            "refreshes a token": self._refresh_token,
        }
        what = self._fate.choose([act for act, weight in ACTS.items() for _ in range(weight)])
        subscription = self._subscription(parts, who.reference)
        if subscription is None:
            return f"{who.reference} has not come in yet"
        acts[what](parts, subscription)
        return f"{who.reference} {what}"

    def resume_if_paused(self, parts: Parts, who: Subscriber) -> None:
        subscription = self._subscription(parts, who.reference)
        if subscription is not None and subscription.status == SubscriptionStatus.PAUSED:
            self._resume(parts, subscription)

    def repair(self, parts: Parts) -> None:
        doctor.examine(parts, repair=True)

    def reconcile(self, parts: Parts) -> None:
        resolving.resolve_open(parts, lambda _done, _all: None)

    def run_billing(self, parts: Parts, send: Callable[[str, Any], None]) -> None:
        runs.run_here(parts, send, None, lambda _totals: None)

    def _add_method(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            customer = session.get_one(Customer, subscription.customer_id)
        row = onboarding.open_session(parts, customer, mode=SessionMode.PAYMENT_LINK)
        body = {"channel_code": self._fate.choose(WALLETS)} if self._fate.coin(0.3) else {"card_number": CARDS[1]}
        self.control(f"/sessions/{row.xendit_session_id}/complete", body)

    def _pay(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            invoice = session.scalar(
                select(Invoice).where(Invoice.subscription_id == subscription.id).order_by(Invoice.period_index.desc())
            )
        if invoice is None:
            raise NotFound("no invoice yet")
        attempt_id = paying.pay_invoice(parts, invoice.id, None)
        if self._fate.coin():
            charging.charge(parts, [attempt_id], Lane.CUSTOMER)
        else:
            self._send(dispatch.CHARGE_NOW, [attempt_id])

    def _pause(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.pause(session, row, parts.clock.now())

    def _resume(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.resume(session, row, session.get_one(Plan, row.plan_id), parts.clock.now())

    def _cancel(self, parts: Parts, subscription: Subscription, *, at_once: bool) -> None:
        self.cancellations[subscription.reference] = parts.clock.now()
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.cancel(session, row, parts.clock.now(), at_once=at_once, reason="by request")
        if at_once:
            sessions.cancel_open_sessions(parts, subscription.id)

    def _prefer(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            token = self._fate.choose(self._tokens(session, subscription))
            make_first(session, token)

    def _refresh_token(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            token = self._fate.choose(self._tokens(session, subscription))
        refresh_token(parts, token.payment_token_id)

    def _refresh_session(self, parts: Parts, subscription: Subscription) -> None:
        row = self._open_session(parts, subscription.reference)
        if row is None:
            raise NotFound("no open session")
        sessions.refresh_session(parts, row.id)

    # Looking -----------------------------------------------------------------------------------------------

    def _tokens(self, session: Any, subscription: Subscription) -> list[PaymentToken]:
        query = select(PaymentToken).where(PaymentToken.customer_id == subscription.customer_id)
        tokens: list[PaymentToken] = list(session.scalars(query.order_by(PaymentToken.id)))
        if not tokens:
            raise NotFound("no payment method yet")
        return tokens

    def _subscription(self, parts: Parts, reference: str) -> Subscription | None:
        with parts.reading() as session:
            return session.scalar(select(Subscription).where(Subscription.reference == reference))

    def _open_session(self, parts: Parts, reference: str) -> PaymentSession | None:
        query = (
            select(PaymentSession)
            .join(Subscription, Subscription.id == PaymentSession.subscription_id)
            .where(Subscription.reference == reference, PaymentSession.status == "ACTIVE")
            .order_by(PaymentSession.id.desc())
        )
        with parts.reading() as session:
            return session.scalar(query.limit(1))
