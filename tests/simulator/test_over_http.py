"""The same simulator behind a real socket: answers, dropped connections, webhooks sent out, an orderly end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from queue import Queue
from typing import Any

import httpx
import pytest
import simplejson
import uvicorn
from starlette.types import Receive, Scope, Send

from billing.sandbox.simulator import Simulator, SimulatorConfig, create_simulator_app
from billing.sandbox.simulator.post import read_target
from tests.simulator.desk import HEADERS, Desk, session_body


@dataclass
class Merchant:
    """Receives webhooks; `answers` are given in turn, then 200."""

    answers: list[int] = field(default_factory=list)
    arrived: Queue[tuple[dict[str, str], Any]] = field(default_factory=Queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.arrived.put((headers, simplejson.loads(body)))
        status = self.answers.pop(0) if self.answers else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def next(self) -> tuple[dict[str, str], Any]:
        return self.arrived.get(timeout=10)


@dataclass
class Running:
    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=10)


def _start(app: Any) -> Running:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # calls queue up until the server is ready
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", lifespan="off" if isinstance(app, Merchant) else "on", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    return Running(f"http://127.0.0.1:{listening.getsockname()[1]}", server, thread)


@dataclass
class Town:
    """A merchant and a simulator that knows where the merchant lives."""

    merchant: Merchant
    simulator: Simulator
    client: httpx.Client
    shift: list[timedelta]

    def post(self, path: str, body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def wait_for_answer(self, status: int) -> None:
        """Until the simulator has noted the merchant's answer to its newest webhook."""
        for _ in range(1000):
            if self.client.get("/_simulator/webhooks").json()["events"][0]["last_answer"] == status:
                return
        raise AssertionError(f"no webhook was answered {status}")


@pytest.fixture
def town() -> Iterator[Town]:
    merchant, shift = Merchant(), [timedelta()]
    real = datetime(2026, 1, 15, 9, tzinfo=UTC)
    simulator = Simulator(lambda: real + shift[0], config=SimulatorConfig(requests_per_minute=1_000_000))
    shop = _start(merchant)
    app = create_simulator_app(
        simulator, webhook_url=f"{shop.url}/webhooks/xendit", callback_token="cb-token", poll_seconds=0.02
    )
    gateway = _start(app)
    with httpx.Client(base_url=gateway.url, headers=HEADERS, timeout=10) as client:
        yield Town(merchant, simulator, client, shift)
    gateway.stop()
    shop.stop()


def test_a_charge_is_answered_and_its_webhook_arrives(town: Town) -> None:
    token = town.post("/_simulator/tokens", {}).json()["payment_token_id"]

    answer = town.post("/v3/payment_requests", Desk().charge_body(token))

    assert answer.status_code == 201
    assert answer.headers["rate-limit-limit"] == "1000000"
    headers, event = town.merchant.next()
    assert event["event"] == "payment.capture"
    assert event["data"]["payment_id"] == answer.json()["latest_payment_id"]
    assert headers["x-callback-token"] == "cb-token"
    assert headers["webhook-id"]


def test_a_dropped_connection_still_did_the_charge(town: Town) -> None:
    token = town.post("/_simulator/tokens", {}).json()["payment_token_id"]
    town.post(f"/_simulator/tokens/{token}/script", {"outcomes": ["TIMEOUT_AFTER", "GARBAGE"]})

    with pytest.raises(httpx.TransportError):
        town.post("/v3/payment_requests", Desk().charge_body(token))

    assert town.merchant.next()[1]["event"] == "payment.capture"
    spoilt = town.post("/v3/payment_requests", Desk(charges=5).charge_body(token))
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|delimiter"):
        spoilt.json()


def test_time_passes_without_a_call_and_refused_webhooks_come_again(town: Town) -> None:
    town.merchant.answers = [500]
    town.post("/sessions", session_body())

    town.shift[0] = timedelta(days=90)
    first = town.merchant.next()[1]
    town.wait_for_answer(500)
    town.shift[0] = timedelta(days=90, minutes=16)
    second = town.merchant.next()[1]

    assert first["event"] == second["event"] == "payment_session.expired"
    assert first["data"] == second["data"]
    assert first["created"] != second["created"]


def test_many_webhooks_go_out_on_few_connections(town: Town) -> None:
    tokens = town.post("/_simulator/tokens", {"count": 60}).json()["payment_token_ids"]
    desk = Desk()
    for token in tokens:
        town.post("/v3/payment_requests", desk.charge_body(token))

    arrived = {town.merchant.next()[1]["data"]["payment_token_id"] for _ in tokens}

    assert arrived == set(tokens)


def test_a_person_opens_the_hosted_page(town: Town) -> None:
    session = town.post("/sessions", session_body()).json()

    page = httpx.get(
        f"{town.client.base_url}/sessions/{session['payment_session_id']}", headers={"accept": "text/html"}
    )

    assert page.status_code == 200
    assert "Choose a payment method" in page.text


def test_a_webhook_address_that_cannot_be_one() -> None:
    with pytest.raises(ValueError, match="webhook URL"):
        read_target("localhost:8000/webhooks/xendit")


def test_the_process_ends_in_order_on_sigterm() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"from billing.sandbox.simulator import run_simulator; run_simulator(port={port}); print('in order')"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    try:
        transport = httpx.HTTPTransport(retries=8)  # the transport waits longer and longer for the port to open
        with httpx.Client(transport=transport) as client:
            assert "Xendit simulator" in client.get(f"http://127.0.0.1:{port}/").text
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, b"in order\n")
