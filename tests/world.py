"""A world to tell stories in: one database, a clock that only moves when told, and the simulator as Xendit.

Everything between the services and the gateway is the real thing: the same Parts, the same client, the same inbox.
Only HTTP is missing (the client's transport calls the simulator), and time (nobody waits for it).

    ana = world.subscribe_save()        Ana has saved a card and her first period is due
    world.run()                         one billing run
    world.deliver_webhooks()            what Xendit has to say reaches the web process
    world.live(days=40)                 a scheduler runs for forty days
    assert world.collected() == [50_000, 50_000]
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
import simplejson
from sqlalchemy import Select, func, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from billing.app import refusing_a_copy
from billing.charging import begin, key, pay_by_hand, send
from billing.charging import look_up as reconciling
from billing.checks import doctor
from billing.checks.invariants import CHECKS
from billing.domain.gateway import Lane, Quota, SessionMode, SessionType
from billing.domain.lifecycle import BILLABLE
from billing.domain.money import Money
from billing.domain.schedule import schedule_from_text
from billing.inbox import apply
from billing.parts import Parts, Rules
from billing.quota import Unlimited
from billing.reading import explain
from billing.reading import timeline as story
from billing.reading.views import Json
from billing.runs import run as runs
from billing.runs import tick as dispatch
from billing.sandbox.simulator import Simulator, SimulatorConfig, SimulatorTransport
from billing.store.clock import real_now
from billing.store.engine import make_engine, make_sessions
from billing.store.models import (
    Base,
    Capture,
    ChannelBreaker,
    ChargeAttempt,
    Customer,
    Fact,
    Invoice,
    PaymentSession,
    PaymentToken,
    Plan,
    Refund,
    SkippedPeriod,
    Subscription,
    WebhookEvent,
)
from billing.subscribing import catalog, payment_sessions
from billing.subscriptions import moves
from billing.work import work_on
from billing.xendit.client import XenditGateway
from billing.xendit.masking import mask_payload
from billing.xendit.webhook import read_event

START = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)  # 09:00 in Jakarta, on a day that most months do not have
NO_LIMIT = 1_000_000_000
SECRET_KEY = "xnd_development_story"
CHARGE = "POST /v3/payment_requests"
VISA = "4000000000001091"
OTHER_VISA = "4000000000001000"
NO_PERIOD_TWICE = "no_period_is_paid_twice"
# What the doctor tells of and a story may well end with: something is due, or waits for a person.
NOT_WRONG = frozenset({
    "due_attempts_on_time", "due_periods_on_time", "due_follow_ups_on_time",
    "charging_is_allowed", "no_run_is_stopped", "no_invoice_is_held", "no_subscription_is_held", "no_refund_is_stuck",
})  # fmt: skip


Row = TypeVar("Row", bound=Base)


@dataclass
class StoppedClock:
    """billing.store.clock.Clock that moves when a story says so."""

    instant: datetime

    def now(self) -> datetime:
        return self.instant


class OneAtATime(SimulatorTransport):
    """The simulator has no locks; stories with two runs at once have threads."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            return super().handle_request(request)


@dataclass
class Budget:
    """A quota with so many requests left."""

    left: int

    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:  # noqa: ARG002 - the port's signature
        permits = min(wanted, max(self.left, 0))
        self.left -= permits
        return permits

    def give_back(self, endpoint: str, permits: int) -> None:  # noqa: ARG002 - the port's signature
        self.left += permits

    def outlook(self, endpoint: str, seconds: float) -> int | None:
        """Whoever asks finds out when there is none left."""

    def learn(self, endpoint: str, *, limit: int | None, remaining: int | None) -> None:
        """Told of the gateway's own count."""

    def pause(self, endpoint: str, seconds: float) -> None:
        """Told of a 429."""


class World:
    """Parts, clock and simulator, and the verbs of a story. Use it as a context manager.

    With `beside` another world it has that one's clock and Xendit: two databases, one account.

    When it ends its promises are checked. A test that makes up rows which no service would write names the promises
    (NO_PERIOD_TWICE, or checks of the doctor) that it breaks by that: `world.waive("periods_tile")`; all others hold.
    """

    def __init__(
        self,
        database_url: str,
        *,
        start: datetime = START,
        rules: Rules | None = None,
        quota: Quota | None = None,
        beside: World | None = None,
        **simulator: Any,
    ) -> None:
        self._waived = {*NOT_WRONG}
        self.clock = beside.clock if beside else StoppedClock(start)
        config = SimulatorConfig(requests_per_minute=NO_LIMIT, **simulator)
        self.simulator = beside.simulator if beside else Simulator(self.clock.now, seed=1, config=config)
        self.engine = make_engine(database_url, pool_size=16)
        sessions = make_sessions(self.engine)
        self.gateway = XenditGateway(
            base_url="https://xendit.example",
            secret_key=SECRET_KEY,
            timeout_seconds=5,
            before_request=refusing_a_copy(sessions),
            transport=OneAtATime(self.simulator),
        )
        self.parts = Parts(
            sessions=sessions,
            clock=self.clock,
            gateway=self.gateway,
            quota=quota or Unlimited(),
            rules=rules or Rules(),
            key_fingerprint=key.fingerprint(SECRET_KEY),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.check_promises()
        finally:
            self.gateway.close()
            self.engine.dispose()

    # Time -----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def advance(self, **by: float) -> None:
        """Time passes and nobody looks: `advance(days=3)`."""
        self.clock.instant += timedelta(**by)

    def live(self, **by: float) -> None:
        """Time passes with a scheduler running and webhooks arriving: stops at every instant something is due."""
        end = self.now + timedelta(**by)
        while True:
            self.settle_down()
            following = self._next_instant()
            if following is None or following > end:
                break
            # What stays due (held, stopped) must not stop the clock.
            self.clock.instant = max(following, self.now + timedelta(minutes=1))
        self.clock.instant = end
        self.settle_down()

    def settle_down(self) -> None:
        """Run and deliver until neither has anything to do."""
        for _ in range(20):
            if not (self.tick() or self.deliver_webhooks()):
                return

    def _next_instant(self) -> datetime | None:
        """The next instant at which a scheduler would find something to do, or Xendit acts by itself."""
        columns: Sequence[tuple[InstrumentedAttribute[Any], Any]] = (
            (Subscription.next_billing_at, Subscription.status.in_(BILLABLE) & Subscription.hold_reason.is_(None)),
            (ChargeAttempt.scheduled_at, ChargeAttempt.status == "scheduled"),
            (ChargeAttempt.next_check_at, ChargeAttempt.next_check_at.is_not(None)),
            (Invoice.grace_ends_at, (Invoice.status == "open") & Invoice.hold_reason.is_(None)),
            (PaymentSession.next_check_at, PaymentSession.next_check_at.is_not(None)),
            (PaymentToken.next_check_at, PaymentToken.next_check_at.is_not(None)),
            (WebhookEvent.next_try_at, WebhookEvent.next_try_at.is_not(None)),
            (Refund.next_try_at, Refund.next_try_at.is_not(None)),
            (ChannelBreaker.probe_at, ChannelBreaker.probe_at.is_not(None)),
            (Subscription.ends_at, Subscription.status.in_(BILLABLE) & ~Subscription.calendar_over),
            (PaymentToken.next_check_at, PaymentToken.next_check_at.is_not(None)),
        )
        with self.parts.sessions() as session:
            dues = [session.scalar(select(func.min(column)).where(condition)) for column, condition in columns]
        later = [due for due in (*dues, self.simulator.next_due_at()) if due is not None and due > self.now]
        return min(later, default=None)

    # Work -----------------------------------------------------------------------------------------------------

    def run(self) -> Json:
        """`billing run` without Redis, in this thread."""
        return runs.run_here(self.parts, self.send, None, lambda _totals: None)

    def tick(self) -> bool:
        """One tick of a scheduler whose workers are quick. True when there was something to do."""
        return bool(dispatch.tick(self.parts, self.send))

    def tick_with_workers_that_die(self) -> None:
        """What is due is opened, claimed and handed out; nobody ever does it."""
        dispatch.tick(self.parts, lambda _kind, _ids: None)

    def open_due(self) -> None:
        """What is due is opened; nothing is handed out yet."""
        dispatch.open_all_due(self.parts, self.now)

    def send(self, kind: str, ids: Sequence[str]) -> None:
        for identity in ids:
            work_on(self.parts, kind, identity)

    def in_two_threads(self, work: Callable[[], object]) -> None:
        """Both begin at once; an error in either is this test's error."""
        errors: list[BaseException] = []
        start = threading.Barrier(2)

        def one() -> None:
            start.wait()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - carried over to the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def leases_run_out(self) -> None:
        """Leases live in real time: what dead processes held is free again."""
        over = real_now() - timedelta(seconds=1)
        with self.parts.transaction() as session:
            for table in (ChargeAttempt, WebhookEvent, Refund):
                session.execute(update(table).where(table.lease_until.is_not(None)).values(lease_until=over))

    # Webhooks -------------------------------------------------------------------------------------------------

    def deliver_webhooks(
        self,
        *,
        order: Literal["sent", "reversed"] = "sent",
        lose: Collection[str] = (),
        double: bool = False,
    ) -> list[str]:
        """What is due at Xendit's end is stored and applied as the web process does. Returns the names applied.

        `lose` names events that never arrive; `double` delivers everything twice.
        """
        arrived: list[str] = []
        while due := self.simulator.due_deliveries(self.now):
            for delivery in due if order == "sent" else reversed(due):
                self.simulator.delivery_result(delivery, 200)
                if delivery.event in lose:
                    continue
                for _ in range(2 if double else 1):
                    self.receive(delivery.body)
                arrived.append(delivery.event)
        return arrived

    def receive(self, body: bytes) -> str | None:
        """The inbox of billing/web.py, without HTTP."""
        payload = mask_payload(simplejson.loads(body, use_decimal=True))
        assert isinstance(payload, dict)
        with self.parts.transaction() as session:
            stored = apply.record_event(session, read_event(payload), payload, self.now)
        if stored is not None:
            apply.apply_stored_event(self.parts, stored, read_event)
        return stored

    # Subscribers ----------------------------------------------------------------------------------------------

    def plan(self, code: str = "gold", *, every: str = "every 1:month", **wanted: Any) -> Plan:
        """IDR 50,000 a month, unless said otherwise."""
        values: dict[str, Any] = {
            "name": "Gold",
            "amount": "50000",
            "currency": "IDR",
            "timezone": "Asia/Jakarta",
            "trial_days": 0,
            "cycles": None,
            "catch_up": "all",
            "dunning": "standard",
        }
        with self.parts.transaction() as session:
            known = session.scalar(select(Plan).where(Plan.code == code))
            if known is not None:
                return known
            schedule = schedule_from_text(every)
            return catalog.create_plan(session, code=code, schedule=schedule, now=self.now, **values | wanted)

    def customer(self, reference: str = "ana", *, country: str = "ID") -> Customer:
        with self.parts.transaction() as session:
            known = session.scalar(select(Customer).where(Customer.reference == reference))
            return known or catalog.create_customer(
                session,
                reference=reference,
                name=reference.title(),
                email=f"{reference}@example.com",
                country=country,
                mobile=None,
                timezone=None,
                now=self.now,
            )

    def subscribe(
        self,
        customer: str = "ana",
        *,
        via: SessionType = SessionType.SAVE,
        plan: Plan | None = None,
        country: str = "ID",
        start_at: datetime | None = None,
        again: bool = False,
    ) -> Subscriber:
        """`billing subscribe`: the customer has a link and has not followed it yet."""
        subscription, session = payment_sessions.subscribe(
            self.parts,
            self.customer(customer, country=country),
            plan or self.plan(),
            via=via,
            mode=SessionMode.PAYMENT_LINK,
            start_at=start_at,
            reference=None,
            again=again,
        )
        return Subscriber(self, subscription.id, session.id)

    def subscribe_save(
        self, customer: str = "ana", *, card: str | None = None, channel: str | None = None, **wanted: Any
    ) -> Subscriber:
        """Has followed the link and saved a card (or another channel's token); Xendit's events have arrived."""
        subscriber = self.subscribe(customer, via=SessionType.SAVE, **wanted)
        subscriber.completes_session(card=card, channel=channel)
        self.deliver_webhooks()
        return subscriber

    def subscribe_pay(self, customer: str = "ana", *, card: str | None = None, **wanted: Any) -> Subscriber:
        """Has paid the first period on the page and saved the card with it."""
        subscriber = self.subscribe(customer, via=SessionType.PAY, **wanted)
        subscriber.completes_session(card=card)
        self.deliver_webhooks()
        return subscriber

    # Xendit's end ---------------------------------------------------------------------------------------------

    def control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The simulator's own controls, which no client of Xendit has."""
        answer = self.simulator.answer(method, f"/_simulator{path}", "", {}, simplejson.dumps(body or {}).encode())
        read = simplejson.loads(answer.body, use_decimal=True)
        assert answer.status < 300, read
        return read

    def script(self, payment_token_id: str, outcomes: Sequence[str]) -> None:
        """What the next charges of a token come to, one after the other (simulator/outcomes.py has the words)."""
        self.control("POST", f"/tokens/{payment_token_id}/script", {"outcomes": list(outcomes)})

    def break_calls(self, outcome: str, *, endpoint: str = CHARGE, count: int = 1) -> None:
        """The next `count` calls to the endpoint end like this, whatever they ask for."""
        self.control("POST", "/faults", {"endpoint": endpoint, "outcome": outcome, "count": count})

    @contextmanager
    def another_accounts_key(self) -> Iterator[None]:
        """While the block runs Xendit knows nothing of ours, as it would with the key of another account or mode."""
        xendit = self.simulator.world
        stores: list[dict[str, Any]] = [
            xendit.tokens, xendit.requests, xendit.payments, xendit.sessions, xendit.transactions_by_reference,
        ]  # fmt: skip
        hidden = [dict(store) for store in stores]
        for store in stores:
            store.clear()
        try:
            yield
        finally:
            for store, ours in zip(stores, hidden, strict=True):
                store.update(ours)

    def calls(self, endpoint: str = CHARGE) -> int:
        """How often the endpoint was asked, refused calls included."""
        return sum(self.control("GET", "/requests").get(endpoint, {}).values())

    def ledger(self) -> list[Json]:
        """Xendit's truth: every payment it made money with, oldest first."""
        payments = self.control("GET", "/ledger")["payments"]
        return [payment for payment in payments if payment["captures"]]

    def collected(self) -> list[int]:
        """What Xendit collected and kept, payment by payment (currencies without decimals)."""
        kept = [int(payment["captured"]) - int(payment["refunded"]) for payment in self.ledger()]
        return [amount for amount in kept if amount]

    # Our end --------------------------------------------------------------------------------------------------

    def all(self, query: Select[Row]) -> list[Row]:
        with self.parts.sessions() as session:
            return list(session.scalars(query))

    def fresh(self, row: Row) -> Row:
        """The row as it is now."""
        with self.parts.sessions() as session:
            return session.get_one(type(row), row.id)  # type: ignore[attr-defined]

    def all_attempts(self) -> list[ChargeAttempt]:
        return self.all(select(ChargeAttempt).order_by(ChargeAttempt.id))

    def events(self, name: str | None = None) -> list[WebhookEvent]:
        query = select(WebhookEvent).order_by(WebhookEvent.id)
        return self.all(query.where(WebhookEvent.event == name) if name else query)

    # What never happens ---------------------------------------------------------------------------------------

    def waive(self, *promises: str) -> None:
        unknown = {*promises} - {NO_PERIOD_TWICE, doctor.WHICH_DATABASE, *CHECKS}
        assert not unknown, f"no such promise: {unknown}"
        self._waived |= {*promises}

    def check_promises(self) -> None:
        """Asserted at the end of every story: section 5 of the contract, as far as any story can break it."""
        if NO_PERIOD_TWICE not in self._waived:
            with self.parts.sessions() as session:
                self._no_period_is_paid_twice(session)
        self._the_doctor_finds_nothing()

    def _no_period_is_paid_twice(self, session: Session) -> None:
        """Of each invoice all that Xendit captured is known here, and no more is kept than it is over."""
        rows = session.execute(
            select(ChargeAttempt.reference_id, ChargeAttempt.invoice_id).where(ChargeAttempt.reference_id.is_not(None))
        )
        invoice_of = {row[0]: row[1] for row in rows}
        captured: Counter[tuple[str, str]] = Counter()
        for payment in self.ledger():
            reference = payment["reference_id"].rpartition("_")[0] or payment["reference_id"]
            currency = payment["currency"]
            captured[invoice_of[reference], currency] += Money.parse(str(payment["captured"]), currency).amount_minor
        for (invoice, currency), minor in captured.items():
            known = select(func.coalesce(func.sum(Capture.amount_minor), 0)).where(
                Capture.invoice_id == invoice, Capture.currency == currency
            )
            given_back = (
                select(func.coalesce(func.sum(Refund.amount_minor), 0))
                .join(Capture, Capture.id == Refund.capture_id)
                .where(Capture.invoice_id == invoice, Capture.currency == currency)
            )
            row = session.get_one(Invoice, invoice)
            owed = row.amount_minor if row.currency == currency else 0
            several = session.scalar(select(func.count()).where(Capture.invoice_id == invoice)) or 0
            assert several < 2 or session.scalar(known) == minor, f"{invoice}: {minor} {currency} were captured"
            assert minor - (session.scalar(given_back) or 0) <= owed, f"{invoice}: {minor} {currency} were captured"

    def _the_doctor_finds_nothing(self) -> None:
        """The invariants of design and contract, as `billing doctor` checks them on the live database."""
        wrong = [
            f"{check['name']}: {check['detail']}"
            for check in doctor.examine(self.parts)["checks"]
            if not check["ok"] and check["name"] not in self._waived
        ]
        assert not wrong, wrong


@dataclass(frozen=True)
class Subscriber:
    """A customer with one subscription: what the story's hero does, and what is known of her. Always fresh."""

    world: World
    id: str
    session_id: str = field(repr=False)

    # What she does --------------------------------------------------------------------------------------------

    def completes_session(
        self,
        session: PaymentSession | None = None,
        *,
        card: str | None = None,
        channel: str | None = None,
        outcome: str | None = None,
    ) -> None:
        """On Xendit's page. With an `outcome` that is a failure the session stays open."""
        row = session or self.session
        body = {"card_number": card} if card else {}
        if channel is not None:
            body["channel_code"] = channel
        if outcome is not None:
            body["outcome"] = outcome
        self.world.control("POST", f"/sessions/{row.xendit_session_id}/complete", body)

    def adds_card(self, card: str = OTHER_VISA) -> PaymentToken:
        """Another payment method, by a session of its own; Xendit's events have arrived."""
        session = payment_sessions.open_session(self.world.parts, self.customer, mode=SessionMode.PAYMENT_LINK)
        self.completes_session(session, card=card)
        self.world.deliver_webhooks()
        return self.tokens[-1]

    def new_session(self, via: SessionType = SessionType.SAVE) -> PaymentSession:
        return payment_sessions.open_session(
            self.world.parts, self.customer, mode=SessionMode.PAYMENT_LINK, subscription=self.subscription, via=via
        )

    def script(self, *outcomes: str) -> None:
        """What the next charges of her first token come to."""
        self.world.script(self.tokens[0].payment_token_id, outcomes)

    # What the merchant does -----------------------------------------------------------------------------------

    def pause(self) -> None:
        with self.world.parts.transaction() as session:
            row = moves.lock_subscription(session, self.id)
            moves.pause(session, row, self.world.now)

    def resume(self) -> None:
        with self.world.parts.transaction() as session:
            row = moves.lock_subscription(session, self.id)
            moves.resume(session, row, session.get_one(Plan, row.plan_id), self.world.now)

    def cancel(self, *, at_once: bool = False) -> None:
        with self.world.parts.transaction() as session:
            row = moves.lock_subscription(session, self.id)
            moves.cancel(session, row, self.world.now, at_once=at_once, reason="by request")

    def uncancel(self) -> None:
        with self.world.parts.transaction() as session:
            row = moves.lock_subscription(session, self.id)
            moves.uncancel(session, row, session.get_one(Plan, row.plan_id), self.world.now)

    def pay_invoice(self, *, token: PaymentToken | None = None) -> None:
        """`billing invoice pay` of the newest invoice."""
        attempt_id = pay_by_hand.pay_invoice(self.world.parts, self.invoice.id, token.id if token else None)
        send.charge(self.world.parts, [attempt_id])

    def look_up(self) -> None:
        """`billing reconcile`, for the newest attempt only."""
        reconciling.check_attempt(self.world.parts, self.attempt.id)

    # Crashes --------------------------------------------------------------------------------------------------

    def charged_by_a_process_that_dies(self, *, before_the_call: bool = False) -> None:
        """The newest attempt is begun (and sent); then its process is gone."""
        with self.world.parts.transaction() as session:
            started = begin.begin_attempts(session, [self.attempt.id], self.world.now, self.world.parts.rules)
        (begun,) = started.begun
        if not before_the_call:
            self.world.gateway.charge(begun.request)

    # What is known of her -------------------------------------------------------------------------------------

    @property
    def subscription(self) -> Subscription:
        return self.world.all(select(Subscription).where(Subscription.id == self.id))[0]

    @property
    def status(self) -> str:
        return self.subscription.status

    @property
    def customer(self) -> Customer:
        query = select(Customer).join(Subscription, Subscription.customer_id == Customer.id)
        return self.world.all(query.where(Subscription.id == self.id))[0]

    @property
    def session(self) -> PaymentSession:
        return self.world.all(select(PaymentSession).where(PaymentSession.id == self.session_id))[0]

    @property
    def tokens(self) -> list[PaymentToken]:
        """Oldest first."""
        query = select(PaymentToken).where(PaymentToken.customer_id == self.subscription.customer_id)
        return self.world.all(query.order_by(PaymentToken.id))

    @property
    def invoices(self) -> list[Invoice]:
        query = select(Invoice).where(Invoice.subscription_id == self.id)
        return self.world.all(query.order_by(Invoice.period_index))

    @property
    def invoice(self) -> Invoice:
        """The newest."""
        return self.invoices[-1]

    @property
    def attempts(self) -> list[ChargeAttempt]:
        """All of them, oldest first."""
        query = select(ChargeAttempt).where(ChargeAttempt.subscription_id == self.id)
        return self.world.all(query.order_by(ChargeAttempt.id))

    @property
    def attempt(self) -> ChargeAttempt:
        """The newest."""
        return self.attempts[-1]

    @property
    def outcomes(self) -> list[str]:
        """How the attempts stand, oldest first."""
        return [attempt.status for attempt in self.attempts]

    @property
    def skipped(self) -> list[SkippedPeriod]:
        query = select(SkippedPeriod).where(SkippedPeriod.subscription_id == self.id)
        return self.world.all(query.order_by(SkippedPeriod.period_index))

    @property
    def refunds(self) -> list[Refund]:
        query = select(Refund).join(Capture, Capture.id == Refund.capture_id)
        query = query.join(Invoice, Invoice.id == Capture.invoice_id).where(Invoice.subscription_id == self.id)
        return self.world.all(query.order_by(Refund.id))

    @property
    def next(self) -> explain.Next:
        """What `billing explain` says comes next."""
        with self.world.parts.reading() as session:
            row = session.get_one(Subscription, self.id)
            return explain.next_of(story.read(session, row, self.world.now, self.world.parts.rules))

    @property
    def story(self) -> list[str]:
        """What `billing explain` has to tell, as words."""
        facts = self.world.all(select(Fact).where(Fact.subscription_id == self.id).order_by(Fact.id))
        return [fact.kind for fact in facts]


def copy_subscription(world: World, model: Subscriber, more: int) -> None:
    """So many more subscriptions of the same customer that are like this one, in one statement."""
    with world.parts.transaction() as session:
        session.execute(
            text(
                "INSERT INTO subscriptions SELECT (x).* FROM (SELECT jsonb_populate_record(t, jsonb_build_object("
                "'id', t.id || '-' || g, 'reference', t.reference || '-' || g)) AS x FROM subscriptions t,"
                " generate_series(1, :more) g WHERE t.id = :id) q"
            ),
            {"more": more, "id": model.id},
        )
