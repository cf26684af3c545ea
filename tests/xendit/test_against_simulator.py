"""Every call of the client against the simulator, over HTTP. The simulator was written from Xendit's documents alone,
so what it refuses here is a field we got wrong; and every webhook it sends must be one we understand."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from billing.domain.gateway import (
    ChargeReport,
    ChargeRequest,
    ChargeStatus,
    EventKind,
    GatewayEvent,
    NewCustomer,
    RecurringTerms,
    RefundReport,
    RefundStatus,
    SessionMode,
    SessionReport,
    SessionRequest,
    SessionType,
    TokenReport,
)
from billing.domain.money import Money
from billing.errors import BillingError, NotFound, OutcomeUnknown, RateLimited, RequestRejected, Unavailable
from billing.sandbox.simulator import Simulator, SimulatorConfig, create_simulator_app
from billing.xendit.client import XenditGateway
from billing.xendit.webhook import read_event
from billing.xendit.wire import parse_json

Renewal = Callable[..., ChargeRequest]

NOW = datetime(2026, 12, 1, 2, 0, tzinfo=UTC)
IDR_125000 = Money.parse("125000", "IDR")
_serial = itertools.count(1)


@dataclass
class World:
    """The simulator, the client that talks to it, and a clock for both."""

    simulator: Simulator
    url: str
    gateway: XenditGateway
    now: datetime = NOW

    def control(self, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/_simulator{path}", json=body, trust_env=False)
        assert answer.is_success, answer.text
        parsed = parse_json(answer.content)
        assert isinstance(parsed, dict)
        return parsed

    def new_customer(self) -> str:
        number = next(_serial)
        return self.gateway.create_customer(
            NewCustomer(
                reference_id=f"sari-{number}",
                name=f"Sari Wijaya-{number}",
                email="sari@shop.example",
                country="ID",
                mobile="+6281234567890",
            )
        )

    def new_token(self, channel_code: str = "CARDS", *outcomes: str, **members: Any) -> str:
        token_id = str(self.control("/tokens", channel_code=channel_code, **members)["payment_token_id"])
        if outcomes:
            self.control(f"/tokens/{token_id}/script", outcomes=list(outcomes))
        return token_id

    def pass_time(self, by: timedelta) -> None:
        self.now += by

    def webhooks(self) -> list[GatewayEvent]:
        events = []
        while deliveries := self.simulator.due_deliveries(self.now):
            for delivery in deliveries:
                events.append(read_event(parse_json(delivery.body)))
                self.simulator.delivery_result(delivery, 200)
        return events


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[str, list[Starlette]]]:
    """One HTTP server for all tests of this file; each puts a simulator of its own on it."""
    playing: list[Starlette] = []

    async def play(scope: Scope, receive: Receive, send: Send) -> None:
        await playing[-1](scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(play, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", playing
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def world(stage: tuple[str, list[Starlette]]) -> Iterator[World]:
    url, playing = stage
    created: list[World] = []
    config = SimulatorConfig(base_url=url, requests_per_minute=100_000)
    simulator = Simulator(lambda: created[0].now, config=config)
    playing.append(create_simulator_app(simulator, webhook_url=None, callback_token=None))
    gateway = XenditGateway(base_url=url, secret_key="xnd_development_k3y", timeout_seconds=5)
    created.append(World(simulator, url, gateway))
    yield created[0]
    gateway.close()


def session_request(customer_id: str, **changes: Any) -> SessionRequest:
    members: dict[str, Any] = {
        "reference_id": f"ses-{next(_serial)}",
        "type": SessionType.SAVE,
        "mode": SessionMode.PAYMENT_LINK,
        "customer_id": customer_id,
        "amount": Money.zero("IDR"),
        "country": "ID",
        "expires_at": NOW + timedelta(hours=2),
        "description": "Gym membership",
        "allowed_channels": ["CARDS", "DANA"],
        "metadata": {"subscription_id": "sub-1"},
        "recurring": RecurringTerms(frequency_days=30, expires_on=date(2029, 11, 30)),
        "success_return_url": "https://shop.example/ok",
        "cancel_return_url": "https://shop.example/no",
    }
    return SessionRequest(**members | changes)


def charged(event: GatewayEvent) -> ChargeReport:
    assert isinstance(event.report, ChargeReport)
    return event.report


def test_a_customer_exists_once(world: World) -> None:
    sari = NewCustomer(reference_id="sari-x", name="Sari", email="s@shop.example", country="ID", mobile=None)
    first = world.gateway.create_customer(sari)
    again = world.gateway.create_customer(sari)
    renamed = world.gateway.create_customer(
        NewCustomer(reference_id="sari-x", name="Sari W", email="s@shop.example", country="ID", mobile=None)
    )
    assert first == again == renamed
    assert first.startswith("cust-")


def test_a_saved_card_can_be_charged(world: World, renewal: Renewal) -> None:
    session = world.gateway.create_session(session_request(world.new_customer()))
    assert session.status == "ACTIVE"
    assert session.payment_link_url is not None
    world.control(f"/sessions/{session.session_id}/complete")

    completed = world.gateway.get_session(session.session_id)
    assert completed.status == "COMPLETED"
    assert completed.payment_token_id is not None
    token = world.gateway.get_token(completed.payment_token_id)
    assert (token.status, token.channel_code, token.customer_id) == ("ACTIVE", "CARDS", completed.customer_id)
    assert token.card_last4 is not None
    assert token.card_expiry is not None

    report = world.gateway.charge(renewal(payment_token_id=token.payment_token_id))
    assert report.status is ChargeStatus.SUCCEEDED
    assert report.amount == IDR_125000

    events = {event.name: event for event in world.webhooks()}
    assert events.keys() == {"payment_token.activation", "payment_session.completed", "payment.capture"}
    saved, ended = events["payment_token.activation"].report, events["payment_session.completed"].report
    assert isinstance(saved, TokenReport)
    assert isinstance(ended, SessionReport)
    assert saved.payment_token_id == ended.payment_token_id == token.payment_token_id
    assert saved.reference_id is not None
    assert saved.reference_id.rpartition("_")[0] == ended.reference_id == session.reference_id
    capture = charged(events["payment.capture"])
    assert (capture.payment_request_id, capture.payment_id) == (report.payment_request_id, report.payment_id)
    assert capture.captured_at is not None


def test_a_paid_session_brings_money_and_token(world: World) -> None:
    request = session_request(
        world.new_customer(), type=SessionType.PAY, amount=IDR_125000, allow_save="FORCED", recurring=None
    )
    session = world.gateway.create_session(request)
    world.control(f"/sessions/{session.session_id}/complete")
    completed = world.gateway.get_session(session.session_id)
    assert completed.payment_id is not None
    assert completed.payment_token_id is not None
    payment = world.gateway.get_payment(completed.payment_id)
    assert (payment.status, payment.amount) == (ChargeStatus.SUCCEEDED, IDR_125000)
    assert payment.payment_request_id == completed.payment_request_id
    assert {event.kind for event in world.webhooks()} == {EventKind.PAYMENT, EventKind.TOKEN, EventKind.SESSION}


def test_components_mode_gives_a_key_instead_of_a_link(world: World) -> None:
    request = session_request(world.new_customer(), mode=SessionMode.COMPONENTS, origins=["https://shop.example"])
    assert world.gateway.create_session(request).components_sdk_key is not None


def test_a_session_is_cancelled_once_and_expires_by_itself(world: World) -> None:
    customer_id = world.new_customer()
    cancelled = world.gateway.create_session(session_request(customer_id))
    assert world.gateway.cancel_session(cancelled.session_id).status == "CANCELED"
    assert world.gateway.cancel_session(cancelled.session_id).status == "CANCELED"

    forgotten = world.gateway.create_session(session_request(customer_id))
    world.pass_time(timedelta(hours=3))
    assert [event.name for event in world.webhooks()] == ["payment_session.expired"]
    assert world.gateway.get_session(forgotten.session_id).status == "EXPIRED"


def test_a_token_is_cancelled_and_expires(world: World, renewal: Renewal) -> None:
    cancelled, expired = world.new_token(), world.new_token()
    assert world.gateway.cancel_token(cancelled).status == "CANCELED"
    assert world.gateway.cancel_token(cancelled).status == "CANCELED"
    report = world.gateway.charge(renewal(payment_token_id=cancelled))
    assert (report.status, report.failure_code) == (ChargeStatus.FAILED, "INVALID_TOKEN")

    world.control(f"/tokens/{expired}/expire")
    assert world.gateway.get_token(expired).status == "EXPIRED"
    (event,) = world.webhooks()
    assert (event.name, event.primary_id) == ("payment_token.expiry", expired)


@pytest.mark.parametrize(
    ("channel_code", "country", "amount"),
    [
        ("CARDS", "ID", Money.parse("125000", "IDR")),
        ("CARDS", "PH", Money.parse("499.50", "PHP")),
        ("DANA", "ID", Money.parse("125000", "IDR")),
        ("PAYMAYA", "PH", Money.parse("499.50", "PHP")),
        ("TOUCHNGO", "MY", Money.parse("19.90", "MYR")),
        ("SCB_DIRECT_DEBIT", "TH", Money.parse("350.25", "THB")),
    ],
)
def test_every_kind_of_channel_is_charged_exactly(
    world: World, renewal: Renewal, *, channel_code: str, country: str, amount: Money
) -> None:
    token_id = world.new_token(channel_code, country=country)
    request = renewal(payment_token_id=token_id, channel_code=channel_code, country=country, amount=amount)
    report = world.gateway.charge(request)
    assert (report.status, report.amount, report.channel_code) == (ChargeStatus.SUCCEEDED, amount, channel_code)
    (event,) = world.webhooks()
    assert charged(event).amount == amount


def test_a_decline_shows_its_codes_in_webhook_and_payment(world: World, renewal: Renewal) -> None:
    token_id = world.new_token("CARDS", "DECLINED_BY_ISSUER/05/24")
    report = world.gateway.charge(renewal(payment_token_id=token_id))
    assert (report.status, report.failure_code) == (ChargeStatus.FAILED, "DECLINED_BY_ISSUER")
    assert report.payment_id is not None
    (event,) = world.webhooks()
    for detailed in (charged(event), world.gateway.get_payment(report.payment_id)):
        assert (detailed.failure_code, detailed.network_code, detailed.advice_code) == (
            "DECLINED_BY_ISSUER",
            "05",
            "24",
        )


def test_a_pending_charge_is_read_until_it_is_decided(world: World, renewal: Renewal) -> None:
    token_id = world.new_token("CARDS", "PENDING:INSUFFICIENT_BALANCE")
    report = world.gateway.charge(renewal(payment_token_id=token_id))
    assert report.status is ChargeStatus.PENDING
    assert report.payment_request_id is not None
    world.pass_time(timedelta(hours=1))
    (event,) = world.webhooks()
    later = world.gateway.get_charge(report.payment_request_id)
    assert later.status is charged(event).status is ChargeStatus.FAILED
    assert later.failure_code == "INSUFFICIENT_BALANCE"


def test_a_charge_that_needs_the_customer_is_cancelled_once(world: World, renewal: Renewal) -> None:
    report = world.gateway.charge(renewal(payment_token_id=world.new_token("CARDS", "REQUIRES_ACTION")))
    assert report.status is ChargeStatus.REQUIRES_ACTION
    assert report.action_url is not None
    assert report.payment_request_id is not None
    assert world.gateway.cancel_charge(report.payment_request_id).status is ChargeStatus.CANCELED
    assert world.gateway.cancel_charge(report.payment_request_id).status is ChargeStatus.CANCELED


def test_cancelling_a_paid_charge_tells_that_it_is_paid(world: World, renewal: Renewal) -> None:
    report = world.gateway.charge(renewal(payment_token_id=world.new_token()))
    assert report.payment_request_id is not None
    assert world.gateway.cancel_charge(report.payment_request_id).status is ChargeStatus.SUCCEEDED


@pytest.mark.parametrize("outcome", ["TIMEOUT_AFTER", "500_AFTER", "502_AFTER", "GARBAGE"])
def test_a_lost_answer_is_found_by_its_reference(world: World, renewal: Renewal, outcome: str) -> None:
    request = renewal(payment_token_id=world.new_token("CARDS", outcome))
    with pytest.raises(OutcomeUnknown):
        world.gateway.charge(request)
    with pytest.raises(OutcomeUnknown):  # the reference of a card charge is taken: 409
        world.gateway.charge(request)
    (row,) = world.gateway.find_transactions(request.reference_id)
    assert (row.status, row.amount, row.reference_id) == ("SUCCESS", IDR_125000, request.reference_id)
    assert row.payment_id is not None
    payment = world.gateway.get_payment(row.payment_id)
    assert (payment.status, payment.reference_id) == (ChargeStatus.SUCCEEDED, request.reference_id)


@pytest.mark.parametrize("outcome", ["TIMEOUT_BEFORE", "500_BEFORE"])
def test_a_lost_request_leaves_no_trace(world: World, renewal: Renewal, outcome: str) -> None:
    request = renewal(payment_token_id=world.new_token("CARDS", outcome))
    with pytest.raises(OutcomeUnknown):
        world.gateway.charge(request)
    assert world.gateway.find_transactions(request.reference_id) == []


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("429", RateLimited),
        ("HTTP:400:PAYMENT_REQUEST_RATE_LIMITED", RateLimited),
        ("HTTP:503:CHANNEL_UNAVAILABLE", Unavailable),
        ("HTTP:503:ISSUER_UNAVAILABLE", Unavailable),
        ("HTTP:403:SKIP_3DS_FORBIDDEN", RequestRejected),
        ("HTTP:403:INVALID_MERCHANT_SETTINGS", RequestRejected),
        ("HTTP:500:SERVER_ERROR", OutcomeUnknown),
    ],
)
def test_refusals_are_sorted(world: World, renewal: Renewal, *, outcome: str, expected: type) -> None:
    with pytest.raises(BillingError) as caught:
        world.gateway.charge(renewal(payment_token_id=world.new_token("CARDS", outcome)))
    assert type(caught.value) is expected


def test_a_payment_is_refunded(world: World, renewal: Renewal) -> None:
    report = world.gateway.charge(renewal(payment_token_id=world.new_token()))
    assert report.payment_request_id is not None
    world.webhooks()
    refund = world.gateway.refund(
        reference_id="rfn-1", payment_request_id=report.payment_request_id, amount=IDR_125000, reason="DUPLICATE"
    )
    assert (refund.status, refund.amount) == (RefundStatus.PENDING, IDR_125000)
    with pytest.raises(BillingError):
        world.gateway.refund(
            reference_id="rfn-2", payment_request_id=report.payment_request_id, amount=IDR_125000, reason="DUPLICATE"
        )
    world.pass_time(timedelta(minutes=1))
    (event,) = world.webhooks()
    assert isinstance(event.report, RefundReport)
    assert (event.name, event.report.refund_id) == ("refund.succeeded", refund.refund_id)
    assert event.report.status is RefundStatus.SUCCEEDED


def test_a_day_of_payments_is_read_in_pages(world: World, renewal: Renewal) -> None:
    token_id = world.new_token()
    references = [f"att-{number}" for number in range(60)]
    for reference_id in references:
        world.gateway.charge(renewal(payment_token_id=token_id, reference_id=reference_id))
    day = {"created_from": NOW - timedelta(hours=1), "created_to": NOW + timedelta(hours=1)}
    rows = world.gateway.list_transactions(**day)
    assert sorted(row.reference_id or "" for row in rows) == sorted(references)
    earlier = {"created_from": NOW - timedelta(days=2), "created_to": NOW - timedelta(days=1)}
    assert world.gateway.list_transactions(**earlier) == []


def test_what_does_not_exist_is_not_found(world: World) -> None:
    unknown = "1402feb0-bb79-47ae-9d1e-e69394d3949c"
    for read in (
        lambda: world.gateway.get_session("ps-661f87c614802d6c402cd82d"),
        lambda: world.gateway.get_token(f"pt-{unknown}"),
        lambda: world.gateway.get_charge(f"pr-{unknown}"),
        lambda: world.gateway.get_payment(f"py-{unknown}"),
        lambda: world.gateway.create_session(session_request(f"cust-{unknown}")),
    ):
        with pytest.raises(NotFound):
            read()


def test_a_wrong_key_stops_the_account(world: World, renewal: Renewal) -> None:
    gateway = XenditGateway(base_url=world.url, secret_key="xnd_production_k3y", timeout_seconds=5)
    with pytest.raises(RequestRejected, match="BILLING_XENDIT_SECRET_KEY") as caught:
        gateway.charge(renewal())
    gateway.close()
    assert caught.value.stops_account
