"""The web process: what it stores, what it refuses, and that nothing from outside makes it fall over."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import simplejson
import uvicorn
from sqlalchemy import select, text

from billing.app import App, build
from billing.domain.gateway import SessionMode
from billing.parts import Rules
from billing.settings import Settings
from billing.store.models import WebhookEvent
from billing.subscribing import payment_sessions, session_results
from billing.web import LOOK_UPS_OF_A_SESSION, PAGES_OF_AN_ADDRESS, WRONG_TOKENS_OF_AN_ADDRESS, make_web
from tests.world import NO_PERIOD_TWICE, Subscriber, World

SAMPLES = sorted((Path(__file__).parent / "xendit" / "samples").glob("*.json"))
WEBHOOKS = "/webhooks/xendit"
TOKEN = "story-callback-token"
CARD_NUMBER = "4000000000001091"


class Web:
    """The web process with a browser in front of it."""

    def __init__(self, database_url: str, world: World, **settings: Any) -> None:
        wanted: dict[str, Any] = {
            "_env_file": None,
            "database_url": database_url,
            "xendit_secret_key": "xnd_development_story",
            "xendit_callback_token": TOKEN,
            "xendit_requests_per_minute": 1_000_000,
        }
        self.settings = Settings(**wanted | settings)
        built = build(self.settings, gateway=world.gateway)
        # The world's clock and gateway, the process's own engine.
        parts = type(built.parts)(
            sessions=built.parts.sessions,
            clock=world.clock,
            gateway=world.gateway,
            quota=built.parts.quota,
            rules=built.parts.rules,
        )
        self.app = App(self.settings, built.engine, parts)
        self.second = 0.0
        self.address: tuple[str, int] | None = ("192.0.2.7", 40_000)
        self._web = make_web(self.app, self.settings, None, clock=lambda: self.second)

    def post(
        self, content: bytes | AsyncIterator[bytes] | object, *, token: str | bytes | None = TOKEN, **headers: str
    ) -> httpx.Response:
        body = content if isinstance(content, bytes | AsyncIterator) else simplejson.dumps(content).encode()
        sent: dict[str, str | bytes] = {"content-type": "application/json", **headers}
        if token is not None:
            sent["x-callback-token"] = token
        return self.ask("POST", WEBHOOKS, content=body, headers=list(sent.items()))

    def get(self, path: str) -> httpx.Response:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, **wanted: Any) -> httpx.Response:
        """Ends when what the web process does after its answer is done. Its errors are the test's errors."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._web, raise_app_exceptions=True, client=self.address)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://billing.example") as browser:
                return await browser.request(method, path, **wanted)

        return asyncio.run(ask())

    async def post_and_hang_up(self, body: bytes) -> int:
        """The beginning of a body, then nobody is there any more. The status that would have been answered."""
        messages = [{"type": "http.request", "body": body, "more_body": True}, {"type": "http.disconnect"}]
        answered: list[int] = []
        headers = [(b"x-callback-token", TOKEN.encode())]
        scope = {"type": "http", "method": "POST", "path": WEBHOOKS, "query_string": b"", "headers": headers}

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])

        await self._web(scope, receive, send)
        return answered[0]

    @contextmanager
    def listening(self) -> Iterator[int]:
        """As uvicorn serves it."""
        with socket.create_server(("127.0.0.1", 0)) as door:
            server = uvicorn.Server(
                uvicorn.Config(self._web, log_level="error", timeout_keep_alive=60, timeout_graceful_shutdown=1)
            )
            thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
            thread.start()
            yield int(door.getsockname()[1])
            server.should_exit = True
            thread.join(timeout=10)

    def stored(self) -> list[WebhookEvent]:
        with self.app.parts.sessions() as session:
            return list(session.scalars(select(WebhookEvent).order_by(WebhookEvent.id)))

    def everything_stored(self) -> str:
        with self.app.parts.sessions() as session:
            return str(session.scalars(text("SELECT payload::text FROM webhook_events")).all())


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url, rules=Rules(components_origins=("https://shop.example",))) as world:
        yield world


@pytest.fixture
def new_web(database_url: str, world: World) -> Iterator[Callable[..., Web]]:
    with ExitStack() as running:

        def make(url: str = database_url, **settings: Any) -> Web:
            web = Web(url, world, **settings)
            running.callback(web.app.engine.dispose)
            return web

        yield make


@pytest.fixture
def web(new_web: Callable[..., Web]) -> Web:
    made: Web = new_web()
    return made


def capture(**changes: Any) -> dict[str, Any]:
    """A capture of something that is none of ours."""
    data = {
        "payment_id": "py-00000000-0000-4000-a000-000000000001",
        "payment_request_id": "pr-00000000-0000-4000-a000-000000000001",
        "reference_id": "somebody-elses",
        "status": "SUCCEEDED",
        "currency": "IDR",
        "request_amount": 50000,
    }
    return {"event": "payment.capture", "business_id": "b", "created": "2026-01-31T02:00:00Z", "data": data | changes}


# What Xendit sends


@pytest.mark.parametrize("sample", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_every_documented_event_is_accepted_and_stored_once(web: Web, sample: Path) -> None:
    body = sample.read_bytes()

    assert [web.post(body).status_code for _ in range(3)] == [200, 200, 200]

    assert [event.deliveries for event in web.stored()] == [3]
    assert web.stored()[0].state in ("ignored", "unmatched", "applied")


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 20


def test_all_samples_together_in_any_order_break_nothing(web: Web) -> None:
    for sample in reversed(SAMPLES):
        assert web.post(sample.read_bytes()).status_code == 200
    assert not [event for event in web.stored() if event.state == "parked"]


def test_a_delivery_is_known_again_by_what_it_says(web: Web) -> None:
    """W3: the envelope's `created` changes with every delivery."""
    web.post(capture() | {"created": "2026-01-31T02:00:00Z"})
    web.post(capture() | {"created": "2026-01-31T02:15:00Z"})

    assert [event.deliveries for event in web.stored()] == [2]


def test_an_event_is_applied_right_after_the_answer(web: Web, world: World) -> None:
    ana = world.subscribe()
    ana.completes_session()

    for delivery in world.simulator.due_deliveries(world.now):
        assert web.post(delivery.body).status_code == 200

    assert ana.status == "active"
    assert {event.state for event in web.stored()} == {"applied"}


def test_amounts_stay_exact(web: Web) -> None:
    web.post(b'{"event":"payment.capture","data":{"payment_id":"py-1","status":"SUCCEEDED","fee":0.10000000000000001}}')
    assert "0.10000000000000001" in web.everything_stored()


# Who may send


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + " x", TOKEN[:-1], b"\xc3\xa4"])
def test_who_does_not_know_the_token_is_refused(web: Web, token: str | bytes | None) -> None:
    refused = web.post(capture(), token=token)

    assert refused.status_code == 401
    assert TOKEN not in refused.text
    assert web.stored() == []


def test_two_tokens_are_accepted_while_one_is_being_rotated(new_web: Callable[..., Web]) -> None:
    web = new_web(xendit_callback_token="old-token, new-token")

    assert web.post(capture(), token="old-token").status_code == 200
    assert web.post(capture(), token="new-token").status_code == 200
    assert web.post(capture(), token="old-token, new-token").status_code == 401


def test_a_token_that_was_taken_out_is_refused(new_web: Callable[..., Web]) -> None:
    assert new_web(xendit_callback_token="new-token").post(capture(), token="old-token").status_code == 401


@pytest.mark.parametrize("token", [b"\xff\xfe", "\xe4".encode(), b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"x" * 50_000])
def test_a_token_of_strange_bytes_is_refused_like_any_other(web: Web, token: bytes) -> None:
    assert web.post(capture(), token=token).status_code == 401


def test_who_guesses_the_token_is_told_to_wait(web: Web) -> None:
    answers = [web.post(capture(), token=f"guess-{number}") for number in range(WRONG_TOKENS_OF_AN_ADDRESS + 5)]
    assert {answer.status_code for answer in answers} == {401}
    told_to_wait = [answer.headers.get("retry-after") for answer in answers]
    assert told_to_wait == [None] * WRONG_TOKENS_OF_AN_ADDRESS + ["60"] * 5

    web.second = 61
    assert "retry-after" not in web.post(capture(), token="guess").headers


def test_the_right_token_always_gets_through(web: Web) -> None:
    """Also from an address that has guessed wrong before: Xendit during a rotation."""
    for _ in range(WRONG_TOKENS_OF_AN_ADDRESS + 5):
        web.post(capture(), token="wrong")
    answers = {web.post(capture(payment_id=f"py-{number}")).status_code for number in range(150)}
    assert answers == {200}
    assert len(web.stored()) == 150


def test_one_address_does_not_use_up_what_another_has(web: Web) -> None:
    def told_to_wait(address: str | None) -> bool:
        web.address = (address, 1) if address is not None else None
        answers = [web.post(capture(), token="wrong") for _ in range(WRONG_TOKENS_OF_AN_ADDRESS)]
        assert {answer.status_code for answer in answers} == {401}
        return any("retry-after" in answer.headers for answer in answers)

    assert not told_to_wait("192.0.2.1")
    assert not told_to_wait("192.0.2.2")
    assert not told_to_wait("::ffff:192.0.2.3")
    assert not told_to_wait("::ffff:192.0.2.4")
    assert not told_to_wait("2001:db8:0:1::1")
    assert not told_to_wait("2001:db8:0:2::1")
    assert told_to_wait("2001:db8:0:1::2"), "one household has all addresses of a /64"
    assert not told_to_wait(None)
    assert not told_to_wait("x" * 5_000)
    assert told_to_wait("192.0.2.1")


def test_a_refused_sender_is_not_read(web: Web) -> None:
    assert web.post(b"{not json", token="wrong").status_code == 401


# What strangers send


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nonsense", b"\xff\xfe\x00", b"null", b"[]", b"[{}]", b'"text"', b"12", b"true", b"NaN",
        b"{}",
        b'{"event": null, "data": {}}', b'{"event": 7, "data": {}}', b'{"event": {}, "data": {}}',
        b'{"event": "payment.capture"}', b'{"event": "payment.capture", "data": null}',
        b'{"event": "payment.capture", "data": "text"}', b'{"event": "payment.capture", "data": []}',
        b'{"event": "payment.capture", "data": {"amount": NaN}}',
        b'{"event": "payment.capture", "data": {"amount": -Infinity}}',
        b'{"event": "", "data": {}}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(web: Web, body: bytes) -> None:
    refused = web.post(body)

    assert refused.status_code == 400
    assert "Traceback" not in refused.text
    assert web.stored() == []


ODD: list[Any] = [
    None, True, -1, 10**40, 1.5, "", "x" * 5000, "a\x00b", "\ud800", [], {}, [[]],
]  # fmt: skip


@pytest.mark.parametrize("event", ["payment.capture", "payment_token.activation", "payment_session.completed",
                                   "payment.failure", "refund.succeeded", "payment_request.expiry"])  # fmt: skip
@pytest.mark.parametrize("odd", ODD, ids=[repr(value)[:12] for value in ODD])
def test_odd_values_in_any_member_are_stored_or_refused_but_never_500(web: Web, event: str, odd: object) -> None:
    members = [
        "id", "payment_id", "payment_token_id", "payment_session_id", "reference_id", "status", "currency",
        "request_amount", "captures", "updated", "channel_properties", "payment_details",
    ]  # fmt: skip
    for changed in members:
        data = {name: "SUCCEEDED" if name == "status" else f"{name[:2]}-{name}" for name in members} | {changed: odd}
        assert web.post({"event": event, "data": data}).status_code in (200, 400), changed
    assert not [row.error for row in web.stored() if row.state == "parked"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"event":"payment.capture","data":{"payment_id":"py-1","note":"a\\u0000b"}}',
        b'{"event":"payment.capture\\u0000","data":{"payment_id":"py-1"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-\\u0000"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","\\u0000":"x"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","note":"\\ud800"}}',
        b'{"event":"payment.capture","data":{"payment_id":"\\udc00","status":"SUCCEEDED"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","amount":1e999999}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","request_amount":1e999999,"currency":"IDR"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","request_amount":-1e-999999,"currency":"IDR"}}',
        b'{"event":"payment.capture","data":{"payment_id":"py-1","amount":' + b"9" * 5000 + b"}}",
        b'{"event":"unheard.of","data":{"amount":1e999999}}',
        b'{"event":"unheard.of","data":{"amount":' + b"9" * 5000 + b"}}",
        b'{"event":"x","data":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"event":"x","data":{"a":' + b"[" * 400 + b"]" * 400 + b"}}",
        b'{"event":"x","data":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
        b'{"event":"payment.capture","data":{"payment_id":"py-1","captures":[null,1,"x",{},[]]}}',
        b'{"event":"' + b"e" * 100_000 + b'","data":{}}',
        '{"event":"payment.capture","data":{"payment_id":"py-\u2028\U0001f600","status":"SUCCEEDED"}}'.encode(),
        b'\xef\xbb\xbf{"event":"payment.capture","data":{"payment_id":"py-1"}}',
        b'{"event":"payment.capture","event":"x","data":{},"data":{"payment_id":"py-1"}}',
    ],
    ids=range(20),
)  # fmt: skip
def test_hostile_bodies_are_never_500(web: Web, body: bytes) -> None:
    assert web.post(body).status_code in (200, 400)


def test_a_body_that_is_too_large_is_refused_by_its_length(new_web: Callable[..., Web]) -> None:
    web = new_web(webhook_max_bytes=2_000)
    assert web.post(capture(note="x" * 3_000)).status_code == 413
    assert web.stored() == []


def test_a_body_that_is_too_large_is_refused_without_its_length(new_web: Callable[..., Web]) -> None:
    web = new_web(webhook_max_bytes=2_000)

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000

    assert web.post(unannounced()).status_code == 413


def test_a_length_that_lies_is_of_no_use(new_web: Callable[..., Web]) -> None:
    web = new_web(webhook_max_bytes=2_000)
    assert web.post(capture(note="x" * 3_000), **{"content-length": "10"}).status_code == 413


def test_a_body_that_never_ends_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.web.BODY_SECONDS", 0.05)

    async def unending() -> AsyncIterator[bytes]:
        yield b'{"event":'
        await asyncio.Event().wait()

    refused = web.post(unending())

    assert (refused.status_code, refused.headers["connection"]) == (408, "close")
    assert web.stored() == []


def test_who_hangs_up_in_the_middle_leaves_nothing(web: Web) -> None:
    assert asyncio.run(web.post_and_hang_up(b'{"event":"payment.capture",')) == 400
    assert web.stored() == []


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"1e3", b"9" * 5_000, b"", b" 12", b"0x10"])
def test_a_length_that_is_no_number_is_of_no_use(web: Web, length: bytes) -> None:
    headers = [(b"x-callback-token", TOKEN.encode()), (b"content-length", length)]
    answer = web.ask("POST", WEBHOOKS, content=simplejson.dumps(capture()).encode(), headers=headers)
    assert answer.status_code == 200


def test_over_a_real_connection_a_slow_or_refused_sender_is_cut_off(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who trickles his body must not hold a connection for ever."""
    monkeypatch.setattr("billing.web.BODY_SECONDS", 0.2)
    with web.listening() as port:
        for token, status in ((TOKEN, b"408"), ("wrong", b"401")):
            with socket.create_connection(("127.0.0.1", port), timeout=8) as connection:
                head = (
                    f"POST {WEBHOOKS} HTTP/1.1\r\nhost: x\r\nx-callback-token: {token}\r\ncontent-length: 500\r\n\r\n"
                )
                connection.sendall(head.encode() + b'{"event"')
                answered = b"".join(iter(lambda: connection.recv(4096), b""))  # until the other side closes
            assert answered.startswith(b"HTTP/1.1 " + status)


def test_a_number_that_grows_without_end_is_kept_as_text(web: Web) -> None:
    """jsonb would write it out: 28,000 of them fit into one body and come back as 3.7 GB."""
    body = b'{"event":"x","data":{"a":[' + b",".join([b"1e131000"] * 20_000) + b"]}}"
    assert web.post(body).status_code == 200
    assert len(web.everything_stored()) < 500_000


def test_an_unknown_event_is_stored_and_left_alone(web: Web) -> None:
    assert web.post({"event": "something.new", "data": {"id": "x"}}).status_code == 200
    assert [(row.event, row.state) for row in web.stored()] == [("something.new", "ignored")]


def test_somebody_elses_payment_is_kept_unmatched(web: Web) -> None:
    """W1: its parent may still come."""
    assert web.post(capture()).status_code == 200
    assert [(row.event, row.state) for row in web.stored()] == [("payment.capture", "unmatched")]


# What "Test and save" in Xendit's dashboard sends: objects of the reference, which exist nowhere.
DASHBOARD = {
    "payment.capture": {
        "payment_id": "py-1fdaf346-dd2e-4b6c-b938-124c7167a822",
        "reference_id": "example_reference_id",
    },
    "payment.failure": {
        "payment_id": "py-1fdaf346-dd2e-4b6c-b938-124c7167a822",
        "reference_id": "example_reference_id",
    },
    "payment_token.activation": {
        "payment_token_id": "pt-1402feb0-bb79-47ae-9d1e-e69394d3949c",
        "reference_id": "90392f42-d98a-49ef-a7f3-abcezas123",
        "customer_id": "cust-b98d6f63-d240-44ec-9bd5-aa42954c4f48",
    },
    "payment_session.completed": {
        "payment_session_id": "ps-661f87c614802d6c402cd82d",
        "reference_id": "order_12345_PAY",
        "payment_token_id": "pt-661f87c614802d6c402cd82d",
    },
    "refund.succeeded": {
        "event": "refund.succeeded",
        "data": {
            "id": "rfd-6f4a377d-a201-437f-9119-f8b00cbbe857",
            "payment_id": "ddpy-3cd658ae-25b9-4659-aa36-596ae41a809f",
            "reference_id": "b2756a1e-e6cd-4352-9a68-0483aa2b6a2",
            "amount": 10000,
            "currency": "PHP",
        },
    },
}


def test_samples_of_the_dashboard_do_not_wait_for_a_parent(web: Web) -> None:
    """An alert on events that belong to nothing begins at 0."""
    for event, data in DASHBOARD.items():
        for _ in range(2):
            assert web.post({"event": event, "created": "2021-12-02T14:52:21.566Z", "data": data}).status_code == 200

    stored = web.stored()
    assert [(row.state, row.deliveries, row.next_try_at) for row in stored] == [("ignored", 2, None)] * len(DASHBOARD)
    assert all("sample" in (row.error or "") for row in stored)
    assert 'billing_webhook_events_waiting{state="unmatched"} 0.0' in web.get("/metrics").text


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_slash_at_the_end_changes_nothing(web: Web, slash: str) -> None:
    answer = web.ask("POST", f"{WEBHOOKS}{slash}", json=capture(), headers={"x-callback-token": TOKEN})
    assert (answer.status_code, len(web.stored())) == (200, 1)
    assert web.ask("POST", f"{WEBHOOKS}{slash}", json=capture()).status_code == 401
    assert web.get(f"{WEBHOOKS}{slash}").status_code == 405
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/return/nobody", 404)):
        assert web.get(f"{path}{slash}").status_code == status


def test_a_query_behind_the_address_changes_nothing(web: Web) -> None:
    answer = web.ask("POST", f"{WEBHOOKS}?from=dashboard", json=capture(), headers={"x-callback-token": TOKEN})
    assert (answer.status_code, len(web.stored())) == (200, 1)


@pytest.mark.parametrize("path", ["/webhooks", "/webhooks/", "/webhooks//xendit", "/webhooks/xendit/more/"])
def test_another_address_is_refused_and_never_a_redirect(web: Web, path: str) -> None:
    """Whoever follows a redirect of a POST sends it elsewhere, or without its body."""
    answer = web.ask("POST", path, json=capture(), headers={"x-callback-token": TOKEN})
    assert (answer.status_code, answer.headers.get("location"), web.stored()) == (404, None, [])


def test_a_copy_of_the_database_is_not_ready_and_stores_what_arrives(web: Web, world: World) -> None:
    world.waive("this_is_the_database")
    with world.parts.transaction() as session:
        session.execute(text("UPDATE database_identity SET database_oid = 1"))

    ready = web.get("/readyz")
    assert (ready.status_code, ready.json()["ok"]) == (503, False)
    assert "this database is a copy" in ready.json()["problems"][0]
    assert "billing_database_is_a_copy 1.0" in web.get("/metrics").text
    assert web.post(capture()).status_code == 200
    assert len(web.stored()) == 1


def test_an_event_before_its_parent_is_applied_when_the_parent_appears(web: Web, world: World) -> None:
    world.waive(NO_PERIOD_TWICE)  # the event tells of a payment that Xendit does not have
    ana = world.subscribe_save()
    world.open_due()
    foreseen = ana.attempt.reference_id
    with world.parts.transaction() as session:  # the event names a reference we do not know yet
        session.execute(text("UPDATE charge_attempts SET reference_id = 'not-yet'"))
    web.post(capture(reference_id=foreseen))
    assert ana.invoice.status == "open"

    with world.parts.transaction() as session:
        session.execute(text("UPDATE charge_attempts SET reference_id = :known"), {"known": foreseen})
    world.advance(minutes=2)
    world.tick()

    assert ana.invoice.status == "paid"


@pytest.mark.parametrize(
    "data",
    [
        {"card_number": CARD_NUMBER},
        {"channel_properties": {"card_details": {"card_number": CARD_NUMBER, "cvv": "737"}}},
        {"note": f"the card is {CARD_NUMBER}."},
        {"note": "4000 0000 0000 1091"},
        {"note": "4000-0000-0000-1091"},
        {CARD_NUMBER: "a member's name"},
        {"amounts": [int(CARD_NUMBER)]},
        {"description": CARD_NUMBER, "metadata": {"pan": CARD_NUMBER, "cvv2": "737", "cvn": "737"}},
    ],
    ids=range(8),
)
@pytest.mark.parametrize("event", ["payment.capture", "somebody.elses"])
def test_card_numbers_are_not_in_the_database(web: Web, event: str, data: dict[str, Any]) -> None:
    web.post({"event": event, "data": {"payment_id": "py-1", "status": "SUCCEEDED"} | data})

    kept = web.everything_stored()
    assert CARD_NUMBER not in kept.replace(" ", "").replace("-", "")
    assert "737" not in kept


def test_the_database_away_means_send_it_again(new_web: Callable[..., Web]) -> None:
    web = new_web("postgresql+psycopg://nobody@127.0.0.1:9/nowhere")
    refused = web.post(capture())
    assert refused.status_code == 503
    assert "Traceback" not in refused.text


# Health


def test_metrics_need_no_folder_to_share_between_processes() -> None:
    """Who runs web under gunicorn has set PROMETHEUS_MULTIPROC_DIR for other programs."""
    made = "from billing import metrics; print(metrics.Gauge('a', 'b')._value.get())"
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", made], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("0.0\n", 0), done.stderr


def test_health_and_readiness(web: Web) -> None:
    assert web.get("/healthz").status_code == 200
    assert web.get("/readyz").json() == {"ok": True, "problems": []}


def test_without_the_database_it_lives_and_is_not_ready(new_web: Callable[..., Web]) -> None:
    web = new_web("postgresql+psycopg://nobody:hushhush@127.0.0.1:9/nowhere")

    assert web.get("/healthz").status_code == 200
    ready = web.get("/readyz")
    assert (ready.status_code, ready.json()["problems"]) == (503, ["the database does not answer"])
    assert "hushhush" not in ready.text
    metrics = web.get("/metrics")
    assert (metrics.status_code, "billing_up 0.0" in metrics.text) == (200, True)


def test_without_a_schema_it_is_not_ready_and_says_what_to_do(
    new_web: Callable[..., Web], empty_database_url: str
) -> None:
    ready = new_web(empty_database_url).get("/readyz")

    assert (ready.status_code, ready.json()["problems"]) == (
        503, ["the database has no current schema; run `billing migrate`"],
    )  # fmt: skip


def test_with_redis_it_is_ready_only_when_redis_answers(new_web: Callable[..., Web], redis_url: str) -> None:
    assert new_web(redis_url=redis_url).get("/readyz").status_code == 200
    away = new_web(redis_url="redis://127.0.0.1:9/0").get("/readyz")
    assert (away.status_code, away.json()["problems"]) == (503, ["Redis does not answer"])


def test_metrics_show_what_is_under_way(web: Web, world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_BEFORE")
    world.run()
    world.advance(days=40)

    shown = web.get("/metrics").text

    assert 'billing_attempts_unfinished{status="in_doubt"} 1.0' in shown
    assert "billing_charging_stopped 0.0" in shown
    oldest = re.search(r'^billing_oldest_due_seconds{kind="subscription"} (.+)$', shown, re.MULTILINE)
    assert oldest is not None
    assert float(oldest[1]) > 86_400


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/webhooks", "/return", "/admin", "/return/../x"])
def test_there_is_nothing_else(web: Web, path: str) -> None:
    assert web.get(path).status_code == 404


def test_webhooks_are_posted(web: Web) -> None:
    assert web.get(WEBHOOKS).status_code == 405


# The two pages a customer may see


def test_the_return_page_asks_xendit_when_the_webhook_is_late(web: Web, world: World) -> None:
    ana = world.subscribe()
    waiting = web.get(f"/return/{ana.session_id}")
    assert (waiting.status_code, "Waiting" in waiting.text) == (200, True)

    ana.completes_session()
    done = web.get(f"/return/{ana.session_id}")

    assert (done.status_code, "All done" in done.text) == (200, True)
    assert ana.status == "active"


def test_reloading_the_return_page_does_not_use_up_the_quota(web: Web, world: World) -> None:
    ana, ben = world.subscribe("ana"), world.subscribe("ben")

    shown = [web.get(f"/return/{ana.session_id}") for _ in range(LOOK_UPS_OF_A_SESSION + 20)]

    assert {page.status_code for page in shown} == {200}
    assert all("Waiting" in page.text for page in shown)
    assert world.calls("GET /sessions/{id}") == LOOK_UPS_OF_A_SESSION
    web.get(f"/return/{ben.session_id}")
    assert world.calls("GET /sessions/{id}") == LOOK_UPS_OF_A_SESSION + 1
    web.second = 61
    web.get(f"/return/{ana.session_id}")
    assert world.calls("GET /sessions/{id}") == LOOK_UPS_OF_A_SESSION + 2


def test_all_return_pages_together_leave_half_of_the_quota(new_web: Callable[..., Web], world: World) -> None:
    web = new_web(xendit_requests_per_minute=8)
    links = [world.subscribe(f"customer-{number}").session_id for number in range(6)]

    shown = [web.get(f"/return/{link}").status_code for link in links * 2]

    assert set(shown) == {200}
    assert world.calls("GET /sessions/{id}") == 4


@pytest.mark.parametrize("page", ["return", "checkout"])
def test_pages_are_shown_so_often_to_one_address(web: Web, world: World, page: str) -> None:
    ana = world.subscribe()
    shown = [web.get(f"/{page}/ses-{number}") for number in range(PAGES_OF_AN_ADDRESS + 3)]

    assert [answer.status_code for answer in shown] == [404] * PAGES_OF_AN_ADDRESS + [429] * 3
    assert (shown[-1].headers["retry-after"], shown[-1].text.count("\n")) == ("60", 1)
    assert web.get(f"/return/{ana.session_id}").status_code == 429
    assert web.get("/healthz").status_code == 200
    assert web.post(capture()).status_code == 200
    web.address = ("192.0.2.8", 1)
    assert web.get(f"/return/{ana.session_id}").status_code == 200


def test_the_return_page_of_a_link_that_is_over(web: Web, world: World) -> None:
    ana = world.subscribe()
    session_results.cancel_session(world.parts, ana.session_id)
    assert "no longer valid" in web.get(f"/return/{ana.session_id}").text


def test_the_return_page_does_not_need_xendit_to_answer(web: Web, world: World) -> None:
    ana = world.subscribe()
    world.break_calls("500_BEFORE", endpoint="GET /sessions/{id}")
    assert web.get(f"/return/{ana.session_id}").status_code == 200


@pytest.mark.parametrize(
    "name", ["ses-unknown", "%00", "ses-%00", "x" * 3_000, "%F0%9F%98%80", "%ED%A0%80", "'--", "<script>alert(1)"]
)
@pytest.mark.parametrize("page", ["return", "checkout"])
def test_pages_of_unknown_sessions(web: Web, page: str, name: str) -> None:
    shown = web.get(f"/{page}/{name}")
    assert shown.status_code == 404
    assert "<script>alert" not in shown.text


def test_the_checkout_page_embeds_components(web: Web, world: World) -> None:
    ana = world.subscribe()
    session_results.cancel_session(world.parts, ana.session_id)
    session = payment_sessions.open_session(
        world.parts, ana.customer, mode=SessionMode.COMPONENTS, subscription=ana.subscription
    )

    shown = web.get(f"/checkout/{session.id}")

    assert shown.status_code == 200
    assert session.components_sdk_key
    assert session.components_sdk_key in shown.text


@pytest.mark.parametrize("page", ["return", "checkout"])
def test_pages_without_the_database(new_web: Callable[..., Web], page: str) -> None:
    shown = new_web("postgresql+psycopg://nobody@127.0.0.1:9/nowhere").get(f"/{page}/ses-{'0' * 32}")
    assert shown.status_code == 503
    assert "Traceback" not in shown.text


def test_there_is_no_checkout_page_for_a_payment_link(web: Web, world: World) -> None:
    ana: Subscriber = world.subscribe()
    assert web.get(f"/checkout/{ana.session_id}").status_code == 404
