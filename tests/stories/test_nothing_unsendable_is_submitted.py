"""Nothing is submitted that cannot be sent: what fails before the first byte leaves the charge planned as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpcore
import httpx
import pytest

from billing.domain.lifecycle import AttemptStatus
from billing.reading import explain
from billing.runs import tick
from billing.xendit import connection, wire
from billing.xendit.client import XenditGateway
from tests.edges.local_server import LocalServer, local_server
from tests.world import SECRET_KEY, Subscriber, World

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def xendit() -> Iterator[LocalServer]:
    """Something that answers, and counts what reaches it."""
    with local_server(lambda *_request: (500, {}, b"{}")) as server:
        yield server


@pytest.fixture
def ana(world: World) -> Subscriber:
    subscriber = world.subscribe_save()
    world.open_due()
    return subscriber


def charge_over_http(world: World, base_url: str) -> None:
    """As a worker does, with the real client and its real connections. What breaks is logged there."""
    gateway = XenditGateway(base_url=base_url, secret_key=SECRET_KEY, timeout_seconds=5)
    world.parts = replace(world.parts, gateway=gateway)
    try:
        tick.hand_out_charges(world.parts, world.send)
    finally:
        gateway.close()


def raising(error: Exception) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


def _no_client(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("httpx.Client.__init__", raising(RuntimeError("no client")))


def _no_request(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("httpx.Client.build_request", raising(httpx.InvalidURL("no address")))


def _no_body(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wire, "charge_body", raising(TypeError("no body")))


def _no_json(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(connection, "dump_json", raising(UnicodeEncodeError("ascii", "é", 0, 1, "no JSON")))


def _no_such_protocol(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("httpx.HTTPTransport.handle_request", raising(httpx.UnsupportedProtocol("no protocol")))


def _proxy_says_no(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("httpx.HTTPTransport.handle_request", raising(httpx.ProxyError("407")))


def _no_such_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("socket.create_connection", raising(UnicodeError("label too long")))


def _no_such_port(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("socket.create_connection", raising(OverflowError("port must be 0-65535")))


def _no_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("socket.create_connection", raising(OSError("no route")))


def _a_header_that_http_forbids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(connection, "_headers", lambda *_: {"x-key": "a\r\nb"})


def _a_bug_in_the_pool(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(httpcore.ConnectionPool, "create_connection", raising(KeyError("a bug of somebody's")))


BEFORE_THE_FIRST_BYTE: dict[str, Break] = {
    each.__name__.strip("_").replace("_", " "): each
    for each in (
        *(_no_client, _no_request, _no_body, _no_json, _no_such_protocol, _proxy_says_no, _no_such_name),
        *(_no_such_port, _no_connection, _a_header_that_http_forbids, _a_bug_in_the_pool),
    )
}


@pytest.mark.parametrize("how", BEFORE_THE_FIRST_BYTE)
def test_what_fails_before_the_first_byte_leaves_the_charge_planned(
    world: World, ana: Subscriber, xendit: LocalServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with monkeypatch.context() as patch:
        BEFORE_THE_FIRST_BYTE[how](patch)
        charge_over_http(world, xendit.url)

    assert xendit.requests == []
    assert ana.outcomes == ["scheduled"]
    assert (ana.attempt.submitted_at, ana.attempt.lease_until) == (None, None)
    assert ana.attempt.error is not None
    assert SECRET_KEY not in ana.attempt.error

    world.parts = replace(world.parts, gateway=world.gateway)
    world.live(hours=1)
    assert ana.outcomes == ["succeeded"], "with the trouble gone the same attempt goes on"
    assert world.collected() == [50_000]


@pytest.mark.parametrize("broken", ["_receive_response_headers", "_receive_response_body", "_send_request_body"])
def test_what_fails_after_the_first_byte_may_have_been_done(
    world: World, ana: Subscriber, xendit: LocalServer, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(f"httpcore._sync.http11.HTTP11Connection.{broken}", raising(httpcore.ReadError("gone")))

    charge_over_http(world, xendit.url)

    assert ana.outcomes == ["in_doubt"]


def test_a_client_that_cannot_be_made_keeps_everything_planned_and_explain_says_why(
    world: World, ana: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of a process that runs already does not change; where it does, nothing is begun."""
    begun: list[object] = []
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy.example")
    monkeypatch.setattr(XenditGateway, "charge", lambda *request: begun.append(request))

    charge_over_http(world, "https://xendit.example")

    assert begun == [], "it was found before the attempt was written down as submitted"
    assert ana.outcomes == ["scheduled"]
    with world.parts.reading() as session:
        told = explain.explain(session, ana.subscription, world.now)
    assert "HTTPS_PROXY" in told["next"]["why"]
    assert world.all_attempts()[0].status == AttemptStatus.SCHEDULED
