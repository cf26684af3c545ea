"""Real sockets: what a broken network does to a charge. Nothing here waits longer than a short time-out."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from billing.domain.gateway import ChargeRequest
from billing.errors import NotSent, OutcomeUnknown, Unavailable
from billing.xendit.client import XenditGateway

Renewal = Callable[..., ChargeRequest]


@contextmanager
def server(behaviour: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """Accepts connections one after another, reads one request from each, and then behaves badly."""
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                received.append(read_request(connection))
                if received[-1]:
                    behaviour(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)


def read_request(connection: socket.socket) -> bytes:
    """Headers and body; or the first bytes of whatever is no HTTP."""
    request = connection.recv(65536)
    while request.startswith((b"POST", b"GET")) and not is_complete(request):
        request += connection.recv(65536)
    return request


def is_complete(request: bytes) -> bool:
    head, blank_line, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head.lower())
    return bool(blank_line) and len(body) >= (int(length[1]) if length else 0)


@contextmanager
def gateway_at(base_url: str) -> Iterator[XenditGateway]:
    gateway = XenditGateway(base_url=base_url, secret_key="xnd_development_k3y", timeout_seconds=0.2)
    yield gateway
    gateway.close()


def expect_outcome_unknown(url: str, request: ChargeRequest) -> None:
    with gateway_at(url) as gateway, pytest.raises(OutcomeUnknown):
        gateway.charge(request)


def test_a_refused_connection_names_the_address_and_the_setting(renewal: Renewal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with gateway_at(f"http://127.0.0.1:{port}") as gateway, pytest.raises(NotSent) as caught:
        gateway.charge(renewal())
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "BILLING_XENDIT_BASE_URL" in str(caught.value)


def test_a_name_that_does_not_exist_is_not_sent(renewal: Renewal) -> None:
    with gateway_at("https://no-such-host.invalid") as gateway, pytest.raises(NotSent):
        gateway.charge(renewal())


def test_a_server_that_speaks_no_tls_is_not_sent(renewal: Renewal) -> None:
    with server(lambda connection: connection.sendall(b"hello, I am no TLS server\r\n")) as (url, _):
        secure = url.replace("http://", "https://")
        with gateway_at(secure) as gateway, pytest.raises(NotSent):
            gateway.charge(renewal())


def test_silence_after_the_request_leaves_the_outcome_unknown(renewal: Renewal) -> None:
    patience = threading.Event()
    with server(lambda _: patience.wait(5) and None) as (url, received), gateway_at(url) as gateway:
        with pytest.raises(OutcomeUnknown, match=r"0\.2 s"):
            gateway.charge(renewal())
        patience.set()
    assert b"att-01K9ZQ4T7M2V5C8D1E3F6G7H8J" in received[0]
    assert len(received) == 1


def test_silence_to_a_read_can_be_repeated() -> None:
    patience = threading.Event()
    with server(lambda _: patience.wait(5) and None) as (url, _), gateway_at(url) as gateway:
        with pytest.raises(Unavailable):
            gateway.get_payment("py-1")
        patience.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage that is no HTTP\r\n\r\n",
        b"HTTP/1.1 201 Created\r\ncontent-length: 500\r\n\r\n{",
        b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\ncontent-encoding: gzip\r\n\r\nnope",
        b"HTTP/1.1 201 Created\r\ncontent-length: 6\r\n\r\n<html>",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_a_dropped_or_damaged_answer_leaves_the_outcome_unknown(renewal: Renewal, answer: bytes) -> None:
    with server(lambda connection: connection.sendall(answer)) as (url, received):
        expect_outcome_unknown(url, renewal())
    assert len(received) == 1


def test_a_redirect_is_not_followed(renewal: Renewal) -> None:
    """The key must not travel to an address somebody else chose."""
    answer = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    refused = pytest.raises(OutcomeUnknown, match="BILLING_XENDIT_BASE_URL")
    with server(lambda connection: connection.sendall(answer)) as (url, received), gateway_at(url) as gateway, refused:
        gateway.charge(renewal())
    assert len(received) == 1


def test_the_simulator_is_never_asked_through_a_proxy(renewal: Renewal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
    with server(lambda connection: connection.sendall(answer)) as (url, received):
        expect_outcome_unknown(url, renewal())
    assert len(received) == 1
