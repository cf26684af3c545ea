"""Webhooks accepted a second: our inbox against a bare endpoint with one insert. Same load, every event new."""

from __future__ import annotations

import asyncio
import itertools
import time
from urllib.parse import urlsplit

from benchmarks.world import CALLBACK_TOKEN, Result, Servers, as_bytes, expect, plain, servers, site
from billing.sandbox.processes import free_port

CONNECTIONS = 16
GOAL = 0.7


def main(*, quick: bool = False) -> list[Result]:
    seconds = 3.0 if quick else 15.0
    with servers() as shared:
        bare = _measure(shared, "bare", "benchmarks.bare_inbox:app", (), seconds)
        ours = _measure(shared, "inbox", "billing.web:create_app", ("--factory",), seconds)
    ratio = ours / bare
    return [
        Result(f"webhooks accepted a second, {CONNECTIONS} connections: bare endpoint with one insert", f"{bare:.0f}"),
        Result("ours", f"{ours:.0f} ({ratio:.2f} x)", f">= {GOAL} x", ratio >= GOAL),
    ]


def _measure(shared: Servers, name: str, app: str, options: tuple[str, ...], seconds: float) -> float:
    url = shared.new_ours(name)
    with site(shared, url, BARE_INBOX_DATABASE=plain(url)) as here:
        port = free_port()
        here.start_web(app, port, *options)
        address = f"http://127.0.0.1:{port}"
        here.wait_for_http(address)
        asyncio.run(_deliver(address, 1.0))
        return asyncio.run(_deliver(address, seconds))


async def _deliver(address: str, seconds: float) -> float:
    """Accepted a second, each connection sending its next when the last was answered."""
    parts = urlsplit(address)
    head = (
        f"POST /webhooks/xendit HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"x-callback-token: {CALLBACK_TOKEN}\r\ncontent-length: "
    )
    numbers, until = itertools.count(), time.monotonic() + seconds

    async def send() -> int:
        accepted = 0
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while time.monotonic() < until:
            body = as_bytes(_event(f"{time.time_ns():x}", next(numbers)))
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            expect(b" 200 " in answer[:16], f"the endpoint answered {answer[:40]!r}")
            length = answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            accepted += 1
        writer.close()
        return accepted

    return sum(await asyncio.gather(*(send() for _ in range(CONNECTIONS)))) / seconds


def _event(stamp: str, number: int) -> dict[str, object]:
    identity = f"{stamp}{number:016x}".rjust(32, "0")
    return {
        "event": "payment.capture",
        "business_id": "0123456789abcdef01234567",
        "created": "2027-01-15T03:00:00.000Z",
        "data": {
            "payment_id": f"py-{identity}",
            "payment_request_id": f"pr-{identity}",
            "payment_token_id": f"pt-{identity}",
            "reference_id": f"att-{identity}",
            "status": "SUCCEEDED",
            "type": "PAY",
            "country": "ID",
            "currency": "IDR",
            "request_amount": 50000,
            "capture_method": "AUTOMATIC",
            "channel_code": "CARDS",
            "captures": [
                {"capture_id": f"cptr-{identity}", "capture_amount": 50000,
                 "capture_timestamp": "2027-01-15T03:00:00.000Z"}
            ],
            "payment_details": {"authorization_data": {"network_response_code": "00", "authorization_code": "123456"}},
            "metadata": {"attempt_id": f"att-{identity}"},
            "created": "2027-01-15T03:00:00.000Z",
            "updated": "2027-01-15T03:00:00.000Z",
        },
    }  # fmt: skip
