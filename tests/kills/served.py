"""A world whose Xendit can also be reached over HTTP, so that other processes can work in it, and be killed in it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any

import uvicorn
from sqlalchemy import select, text, update
from starlette.types import Receive, Scope, Send

from billing.checks import doctor
from billing.domain.lifecycle import UNFINISHED
from billing.sandbox.simulator import Simulator, create_simulator_app
from billing.store.clock import real_now
from billing.store.models import (
    Capture,
    ChargeAttempt,
    Customer,
    Invoice,
    PaymentSession,
    Refund,
    Subscription,
    WebhookEvent,
)
from tests.kills.process import CALLBACK_TOKEN, Ended, Kill, Order, Process, run_process
from tests.world import CHARGE, Subscriber, World


class Front:
    """One web server for all tests of a run; behind it is the simulator of the test that runs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._app: Any = None

    def serve(self, simulator: Simulator) -> None:
        """The simulator has no locks, and the test asks it as well: from now on one at a time."""
        lock, answer = threading.Lock(), simulator.answer

        @wraps(answer)
        def one_at_a_time(*asked: Any) -> Any:
            with lock:
                return answer(*asked)

        simulator.answer = one_at_a_time  # type: ignore[assignment,method-assign]
        self._app = create_simulator_app(simulator, webhook_url=None, callback_token=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


@contextmanager
def running_front() -> Iterator[Front]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        front = Front(f"http://127.0.0.1:{listening.getsockname()[1]}")
        config = uvicorn.Config(front, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield front
        server.should_exit = True
        thread.join(timeout=10)


class ServedWorld(World):
    def __init__(self, database_url: str, front: Front, **wanted: Any) -> None:
        super().__init__(database_url, **wanted)
        self._database_url = database_url
        self._address = front.address
        front.serve(self.simulator)

    # Processes ------------------------------------------------------------------------------------------------

    def in_a_process(
        self,
        work: Callable[[Process], object],
        *,
        kill: Kill | None = None,
        nobody_listens: bool = False,
        quota_used_up: bool = False,
    ) -> Ended:
        """A process does the work, with whatever webhooks are due now, or dies of it."""
        deliveries = self.simulator.due_deliveries(self.now)
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))  # and never listens: whoever connects is refused
            address = f"http://127.0.0.1:{deaf.getsockname()[1]}" if nobody_listens else self._address
            order = Order(
                environment=self._environment(address),
                now=self.now,
                work=work,
                deliveries=[delivery.body for delivery in deliveries],
                kill=kill,
                quota_used_up=quota_used_up,
            )
            ended = run_process(order)
        for number, delivery in enumerate(deliveries):
            # What nobody answered is sent again; what the dead one had answered is not.
            self.simulator.delivery_result(delivery, ended.answered.get(number))
        self._database_has_noticed()
        return ended

    def _environment(self, address: str) -> dict[str, str]:
        return {
            "BILLING_DATABASE_URL": self._database_url,
            "BILLING_DATABASE_POOL_SIZE": "4",
            "BILLING_REDIS_URL": "",
            "BILLING_XENDIT_BASE_URL": address,
            "BILLING_XENDIT_SECRET_KEY": "xnd_development_kills",
            "BILLING_XENDIT_CALLBACK_TOKEN": CALLBACK_TOKEN,
            "BILLING_XENDIT_REQUESTS_PER_MINUTE": "6000",  # a budget: so that its commits are seen
            "BILLING_LOG_FORMAT": "json",
        }

    def _database_has_noticed(self) -> None:
        """PostgreSQL takes back what a dead process left open as soon as it reads the end of its connection."""
        give_up = time.monotonic() + 10
        left_open = text(
            "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.002)"
            " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        )
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while connection.scalar(left_open):
                assert time.monotonic() < give_up, "a dead process still has a transaction"

    def leases_run_out(self) -> None:
        """Long ago, so that the doctor, too, takes the dead process for dead."""
        over = real_now() - doctor.LOST - timedelta(seconds=1)
        with self.parts.transaction() as session:
            for table in (ChargeAttempt, WebhookEvent, Refund):
                session.execute(update(table).where(table.lease_until.is_not(None)).values(lease_until=over))

    # Afterwards -----------------------------------------------------------------------------------------------

    def subscriber(self, number: int = 0) -> Subscriber:
        """By the order in which they subscribed."""
        subscription = self.all(select(Subscription).order_by(Subscription.id))[number]
        sessions = self.all(select(PaymentSession).where(PaymentSession.subscription_id == subscription.id))
        return Subscriber(self, subscription.id, max((row.id for row in sessions), default=""))

    def what_came_of_it(self) -> list[str]:
        """Subscriptions, their periods and refunds, with what Xendit's own ledger says was collected for each."""
        lines: list[str] = []
        collected = self._collected_by_invoice()
        for subscription in self.all(select(Subscription).order_by(Subscription.id)):
            customer = self.all(select(Customer).where(Customer.id == subscription.customer_id))[0]
            lines.append(f"{customer.reference} is {subscription.status}")
            periods = select(Invoice).where(Invoice.subscription_id == subscription.id)
            for invoice in self.all(periods.order_by(Invoice.period_index, Invoice.id)):
                times, kept = collected.pop(invoice.id, (0, 0))
                number = f"period {invoice.period_index + 1}"
                lines.append(f"{number} is {invoice.status}: collected {times}x, kept {kept}")
                refunds = select(Refund).join(Capture, Capture.id == Refund.capture_id)
                lines += [
                    f"refund is {row.status}" for row in self.all(refunds.where(Capture.invoice_id == invoice.id))
                ]
        return lines + [f"collected for nothing known: {reference}" for reference in collected]

    def _collected_by_invoice(self) -> dict[str, tuple[int, int]]:
        """(how often, what was kept), for each invoice; under its own reference what belongs to none."""
        invoice_of = {row.reference_id: row.invoice_id for row in self.all_attempts()}
        collected: dict[str, tuple[int, int]] = {}
        for payment in self.ledger():
            reference = payment["reference_id"].rpartition("_")[0] or payment["reference_id"]
            invoice = invoice_of.get(reference, reference)
            times, kept = collected.get(invoice, (0, 0))
            kept += int(payment["captured"]) - int(payment["refunded"])
            collected[invoice] = (times + payment["captures"], kept)
        return collected

    def sent_again(self) -> int:
        """Charges refused because Xendit has their reference already: it forgave us, but they must not be sent."""
        return int(self.control("GET", "/requests").get(CHARGE, {}).get("409", 0))

    def left_behind(self) -> list[str]:
        """Attempts without an end, leases nobody holds any more."""
        unfinished = self.all(select(ChargeAttempt).where(ChargeAttempt.status.in_(UNFINISHED)))
        left = [f"attempt {row.id} is {row.status}" for row in unfinished]
        with self.parts.sessions() as session:
            for table in (ChargeAttempt, WebhookEvent, Refund):
                leased = session.scalars(select(table.id).where(table.lease_until.is_not(None)))
                left += [f"lease on {identity}" for identity in leased]
        return left

    def waits_for_a_person(self) -> set[str]:
        """The names of the doctor's checks that find something: nothing may, unless a scenario says so."""
        return {check["name"] for check in doctor.examine(self.parts)["checks"] if not check["ok"]}
