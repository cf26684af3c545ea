"""What the subscribers and the operators of a world do (who they are: population.py).

An act is what a command or the return page would do, no more: it calls the same services, and a refusal is an answer
like any other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import simplejson
from sqlalchemy import select

from billing.charging import pay_by_hand, send
from billing.charging.tokens import make_first, refresh_token
from billing.checks import doctor
from billing.checks import reconcile as resolving
from billing.domain.gateway import Lane, SessionMode, SessionType
from billing.domain.lifecycle import RunState, SubscriptionStatus
from billing.domain.schedule import schedule_from_text
from billing.errors import BillingError, IllegalTransition, NotFound
from billing.parts import Parts
from billing.runs import control as steering
from billing.runs import run, tick
from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulation.money import part_of
from billing.sandbox.simulation.population import CARDS, Subscriber
from billing.sandbox.simulator import Simulator
from billing.sandbox.simulator.answers import json_amount
from billing.sandbox.simulator.state import Payment
from billing.store import queries
from billing.store.models import BillingRun, Customer, Invoice, PaymentSession, PaymentToken, Plan, Subscription
from billing.subscribing import catalog, import_rows, payment_sessions, session_results
from billing.subscriptions import moves as lives

AFTER_3DS = ("SUCCEEDED", "PENDING:SUCCEEDED", "TIMEOUT_ERROR", "AUTHENTICATION_FAILED")
HALF_OF_THEM = 0.5
BY_A_PERSON = "stopped by a person"
# What people do, and how often beside each other.
ACTS = {
    "adds a payment method": 6, "pays the newest invoice by hand": 6, "pauses": 2, "resumes": 3,
    "cancels at the end of the period": 1, "cancels at once": 1, "prefers a token": 2, "opens the return page": 3,
    "refreshes a token": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Somebody asked for it; a process may have died over it."""

    at: datetime
    at_once: bool
    idle: bool  # it was paused or had not begun, so it ended at once in any case


class People:
    """Everybody who does something by hand. `parts` are those of the terminal or page it is done at."""

    def __init__(
        self,
        fate: Fate,
        simulator: Simulator,
        send: Callable[[str, list[str]], None],
        subscribers: Sequence[Subscriber],
    ) -> None:
        self._fate, self._simulator, self._send, self._subscribers = fate, simulator, send, subscribers
        # What each was asked to do, by reference: what is judged at the end is what was asked, not what was made of it.
        self.starts: dict[str, datetime | None] = {}
        self.cancellations: dict[str, list[Cancellation]] = defaultdict(list)
        self._tokens_to_import: dict[str, Any] = {}
        self.refunds: dict[str, tuple[str, ...]] = {}  # made in the dashboard, by Xendit's id: which kinds each is of

    def control(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What only a customer or a bank can do. None when it cannot be done now."""
        answer = self._simulator.answer("POST", f"/_simulator{path}", "", {}, simplejson.dumps(body or {}).encode())
        return simplejson.loads(answer.body) if answer.status < 300 else None  # noqa: PLR2004 - any 2xx

    # Coming in ---------------------------------------------------------------------------------------------

    def create(self, parts: Parts, who: Subscriber) -> None:
        """The plan, and the customer who is not there yet."""
        now = parts.clock.now()
        with parts.transaction() as session:
            catalog.create_plan(
                session, code=f"plan-{who.reference}", name="Gold", amount=who.market.amount,
                currency=who.market.currency, schedule=schedule_from_text(who.rhythm.told), timezone=who.zone,
                trial_days=who.trial_days, cycles=who.cycles, catch_up=who.catch_up, dunning=who.dunning, now=now,
            )  # fmt: skip
            known = session.scalar(select(Customer.id).where(Customer.reference == who.customer))
            if known is None and who.via != "import":
                catalog.create_customer(
                    session, reference=who.customer, name="Ana", email="ana@example.com", country=who.market.country,
                    mobile=None, timezone=None, now=now,
                )  # fmt: skip

    def come_in(self, parts: Parts, who: Subscriber) -> None:
        """One try to subscribe, as far as it goes; or to be imported. The link is followed when its time has come."""
        if who.via == "import":
            self._import(parts, who)
            return
        existing = self._subscription(parts, who.reference)
        if existing is None:
            self._subscribe(parts, who)
        if parts.clock.now() < who.comes_at:
            return
        if existing is not None and existing.status == SubscriptionStatus.INCOMPLETE:
            self._start_again(parts, who, existing)
        row = self._open_session(parts, who.reference)
        if row is not None and row.xendit_session_id is not None:
            self._complete(who, row)

    def _subscribe(self, parts: Parts, who: Subscriber) -> None:
        with parts.reading() as session:
            customer = session.scalars(select(Customer).where(Customer.reference == who.customer)).one()
            plan = session.scalars(select(Plan).where(Plan.code == f"plan-{who.reference}")).one()
        passed = who.start_at is not None and who.start_at <= parts.clock.now()  # it is refused now
        self.starts[who.reference] = start_at = None if passed else who.start_at
        payment_sessions.subscribe(
            parts, customer, plan, via=SessionType(who.via.upper()), mode=SessionMode.PAYMENT_LINK,
            start_at=start_at, reference=who.reference,
        )  # fmt: skip

    def _start_again(self, parts: Parts, who: Subscriber, subscription: Subscription) -> None:
        with parts.reading() as session:
            customer = session.get_one(Customer, subscription.customer_id)
        try:
            payment_sessions.open_session(
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
        token = self._tokens_to_import.get(who.reference) or self.control("/tokens", self._token_of(who))
        self._tokens_to_import[who.reference] = token
        assert who.start_at is not None  # noqa: S101 - imports begin when they are told to
        self.starts[who.reference] = who.start_at
        line = {
            "customer_reference": who.customer, "name": "Ana", "email": "ana@example.com",
            "country": who.market.country, "plan": f"plan-{who.reference}", "subscription_reference": who.reference,
            "payment_token_id": token["payment_token_id"], "channel_code": token["channel_code"],
            "next_billing_at": who.start_at.isoformat(), "catch_up": True,
        }  # fmt: skip
        if who.anchor_day is not None:
            line["anchor_day"] = who.anchor_day
        import_rows.import_rows(parts, [json.dumps(line)], dry_run=False, verify_with_gateway=who.verify)

    def _token_of(self, who: Subscriber) -> dict[str, str]:
        body = {"country": who.market.country, "currency": who.market.currency}
        return body | ({"channel_code": who.wallet} if who.wallet else {"card_number": who.card})

    # Acting ------------------------------------------------------------------------------------------------

    def act(self, parts: Parts, who: Subscriber) -> str:
        """One thing a customer or an operator might do at the worst moment. Returns it in words."""
        return self.do(parts, who, self._fate.choose([act for act, weight in ACTS.items() for _ in range(weight)]))

    def do(self, parts: Parts, who: Subscriber, what: str) -> str:
        """One of ACTS. Returns it in words."""
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
        subscription = self._subscription(parts, who.reference)
        if subscription is None:
            return f"{who.reference} has not come in yet"
        acts[what](parts, subscription)
        return f"{who.reference} {what}"

    def leave(self, parts: Parts, who: Subscriber) -> None:
        subscription = self._subscription(parts, who.reference)
        if subscription is None:
            raise NotFound("has not come in yet")
        self._cancel(parts, subscription, at_once=who.leaves == "cancels at once")

    # The operator at runs, holds and charging ---------------------------------------------------------------

    def stop_charging(self, parts: Parts) -> None:
        with parts.transaction() as session:
            queries.stop_charging(session, BY_A_PERSON, parts.clock.now())

    def resume_charging(self, parts: Parts) -> None:
        with parts.transaction() as session:
            queries.lift_charging_stop(session)

    def steer_run(self, parts: Parts) -> str:
        """Pause or abort the latest run; somebody else lets it go on later."""
        with parts.reading() as session:
            run_id = steering.find_run(session, None).id
        if self._fate.coin(0.7):
            steering.pause_run(parts, run_id)
            return f"pauses {run_id}"
        steering.abort_run(parts, run_id)
        return f"aborts {run_id}"

    def resume_runs(self, parts: Parts) -> None:
        with parts.reading() as session:
            waiting = select(BillingRun.id).where(BillingRun.state.in_((RunState.PAUSED, RunState.STOPPED)))
            ids = list(session.scalars(waiting.order_by(BillingRun.id)))
        for run_id in ids:
            steering.resume_run(parts, run_id)

    def approve_holds(self, parts: Parts) -> None:
        """Yes to every subscription that its catch-up policy holds."""
        steering.approve(parts, steering.waiting_for_approval(parts, []))

    def approve_aborted_runs(self, parts: Parts) -> None:
        """Yes to what aborted runs have left, as far as it is open."""
        with parts.reading() as session:
            aborted = select(BillingRun.id).where(BillingRun.state == RunState.ABORTED)
            ids = list(session.scalars(aborted.order_by(BillingRun.id)))
        for run_id in ids:
            try:
                steering.approve(parts, steering.waiting_for_approval(parts, [run_id]))
            except IllegalTransition:
                continue  # it left nothing that waits

    def pay_what_is_held(self, parts: Parts) -> None:
        """`billing invoice pay` of every invoice that waits for a person."""
        held = select(Invoice.id).where(Invoice.status == "open", Invoice.hold_reason.is_not(None))
        with parts.reading() as session:
            ids = list(session.scalars(held.order_by(Invoice.id)))
        for invoice_id in ids:
            try:
                send.charge(parts, [pay_by_hand.pay_invoice(parts, invoice_id, None)], Lane.CUSTOMER)
            except BillingError:
                continue  # its subscription is paused or has ended, or nobody knows yet what became of the last try

    def resume_if_paused(self, parts: Parts, who: Subscriber) -> None:
        subscription = self._subscription(parts, who.reference)
        if subscription is not None and subscription.status == SubscriptionStatus.PAUSED:
            self._resume(parts, subscription)

    def repair(self, parts: Parts) -> None:
        doctor.examine(parts, repair=True)

    def reconcile(self, parts: Parts) -> None:
        resolving.resolve_open(parts, lambda _done, _all: None)

    def run_billing(self, parts: Parts, send: Callable[[str, Any], None]) -> None:
        run.run_here(parts, send, None, lambda _totals: None)

    def _add_method(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            customer = session.get_one(Customer, subscription.customer_id)
        row = payment_sessions.open_session(parts, customer, mode=SessionMode.PAYMENT_LINK)
        wallets = next((who.market.wallets for who in self._subscribers if who.reference == subscription.reference), ())
        by_wallet = bool(wallets) and self._fate.coin(0.3)
        body = {"channel_code": self._fate.choose(wallets)} if by_wallet else {"card_number": CARDS[1]}
        self.control(f"/sessions/{row.xendit_session_id}/complete", body)

    def _pay(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            invoice = session.scalar(
                select(Invoice).where(Invoice.subscription_id == subscription.id).order_by(Invoice.period_index.desc())
            )
        if invoice is None:
            raise NotFound("no invoice yet")
        attempt_id = pay_by_hand.pay_invoice(parts, invoice.id, None)
        if self._fate.coin():
            send.charge(parts, [attempt_id], Lane.CUSTOMER)
        else:
            self._send(tick.CHARGE_NOW, [attempt_id])

    def _pause(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.pause(session, row, parts.clock.now())

    def _resume(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.resume(session, row, session.get_one(Plan, row.plan_id), parts.clock.now())

    def _cancel(self, parts: Parts, subscription: Subscription, *, at_once: bool) -> None:
        # What is idle ends at once, whatever was asked for.
        idle = subscription.status in (SubscriptionStatus.INCOMPLETE, SubscriptionStatus.PAUSED)
        asked = Cancellation(parts.clock.now(), at_once=at_once or idle, idle=idle)
        self.cancellations[subscription.reference].append(asked)
        with parts.transaction() as session:
            row = lives.lock_subscription(session, subscription.id)
            lives.cancel(session, row, parts.clock.now(), at_once=at_once, reason="by request")
        if at_once:
            session_results.cancel_open_sessions(parts, subscription.id)

    def _prefer(self, parts: Parts, subscription: Subscription) -> None:
        with parts.transaction() as session:
            token = self._fate.choose(self._tokens(session, subscription))
            make_first(session, token, parts.clock.now())

    def _refresh_token(self, parts: Parts, subscription: Subscription) -> None:
        with parts.reading() as session:
            token = self._fate.choose(self._tokens(session, subscription))
        refresh_token(parts, token.payment_token_id)

    def _refresh_session(self, parts: Parts, subscription: Subscription) -> None:
        row = self._open_session(parts, subscription.reference)
        if row is None:
            raise NotFound("no open session")
        session_results.refresh_session(parts, row.id)

    def answer_bank(self, request_id: str) -> None:
        """Whoever is asked by a bank (3DS) answers; what comes of it is up to the bank."""
        if self._simulator.world.requests[request_id].status == "REQUIRES_ACTION":
            self.control(f"/payment_requests/{request_id}/resolve", {"outcome": self._fate.choose(AFTER_3DS)})

    def refund_in_the_dashboard(self) -> str:
        """Somebody of the merchant's gives money back at Xendit: a whole payment, or a part of it. Of some nobody here
        is told."""
        chance = self._fate.dashboard
        payments = [payment for payment in self._simulator.world.payments.values() if self._is_whole(payment)]
        if not payments:
            return "dashboard: there is nothing to refund"
        payment = chance.choice(payments)
        in_part, unheard = chance.random() < HALF_OF_THEM, chance.random() < HALF_OF_THEM
        wanted = {"amount": json_amount(part_of(payment.captured, payment.document["currency"]))} if in_part else {}
        payment_id = payment.document["payment_id"]
        made = self.control(f"/payments/{payment_id}/refund", wanted)
        if made is None:
            return f"dashboard: {payment_id} cannot be refunded"
        kinds = ("part" if in_part else "whole", *(["webhook lost"] if unheard else []))
        self.refunds[made["id"]] = kinds
        if unheard:
            self._fate.unheard.add(made["id"])
        return f"dashboard: refund of {made['amount']} of {payment_id} ({', '.join(kinds)})"

    def _is_whole(self, payment: Payment) -> bool:
        """The one payment of its period, in its currency and nothing of it given back. Anything else waits for a
        person, or is given back by us: the stories have what becomes of that."""
        asked, request = payment.document, payment.request.document
        if payment.status != "SUCCEEDED" or payment.refunded or asked["currency"] != request["currency"]:
            return False
        invoice = (request.get("metadata") or {}).get("invoice_id")
        others = [
            other
            for other in self._simulator.world.payments.values()
            if invoice is not None
            and (other.request.document.get("metadata") or {}).get("invoice_id") == invoice
            and other.captured
        ]
        return len(others) <= 1 and payment.captured == Decimal(str(request["request_amount"]))

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
