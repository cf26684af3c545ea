"""The limit (d): nothing but the requests. No database, no queue, no record of anything.

    python -m benchmarks.bare VARIANT CONNECTIONS     ids of tokens on stdin, one charge for each
    uvicorn benchmarks.bare:sink                      answers every webhook with 200

VARIANT: `threads` (an httpx.Client each), `asyncio` (one httpx.AsyncClient), `sockets` (asyncio streams, HTTP written
by hand: what is left when even the client library is taken away).
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from benchmarks.world import AMOUNT, KEY, as_bytes

PATH = "/v3/payment_requests"
HEADERS = {"api-version": "2024-11-11", "content-type": "application/json"}


def body(token: str) -> bytes:
    document: dict[str, Any] = {
        "reference_id": f"bare-{token}",
        "type": "PAY",
        "payment_token_id": token,
        "country": "ID",
        "currency": "IDR",
        "request_amount": AMOUNT,
        "description": "Your subscription",
        "metadata": {"subscription_id": token},
        "channel_properties": {
            "card_on_file_type": "RECURRING",
            "skip_three_ds": True,
            "recurring_configuration": {"recurring_frequency": 30, "recurring_expiry": "2030-12-31"},
        },
    }
    return as_bytes(document)


def with_threads(url: str, tokens: list[str], connections: int) -> None:
    waiting, lock = iter(tokens), threading.Lock()

    def work() -> None:
        with httpx.Client(base_url=url, auth=(KEY, ""), headers=HEADERS, timeout=30) as client:
            while True:
                with lock:
                    token = next(waiting, None)
                if token is None:
                    return
                client.post(PATH, content=body(token)).raise_for_status()

    workers = [threading.Thread(target=work) for _ in range(connections)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def with_asyncio(url: str, tokens: list[str], connections: int) -> None:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(base_url=url, auth=(KEY, ""), headers=HEADERS, timeout=30, limits=limits) as client:

        async def work(waiting: Iterator[str]) -> None:
            for token in waiting:
                (await client.post(PATH, content=body(token))).raise_for_status()

        waiting = iter(tokens)
        await asyncio.gather(*(work(waiting) for _ in range(connections)))


async def with_sockets(url: str, tokens: list[str], connections: int) -> None:
    address = httpx.URL(url)
    key = base64.b64encode(f"{KEY}:".encode()).decode()
    lines = [f"POST {PATH} HTTP/1.1", f"host: {address.host}", f"authorization: Basic {key}"]
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in HEADERS.items()), "content-length: "])

    async def work(waiting: Iterator[str]) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        for token in waiting:
            sent = body(token)
            writer.write(f"{head}{len(sent)}\r\n\r\n".encode() + sent)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 201 " not in answer[:16]:
                raise SystemExit(answer.partition(b"\r\n")[0].decode())
            length = answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    waiting = iter(tokens)
    await asyncio.gather(*(work(waiting) for _ in range(connections)))


async def sink(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def main(variant: str, connections: int) -> None:
    url, tokens = os.environ["BILLING_XENDIT_BASE_URL"], sys.stdin.read().split()
    match variant:
        case "threads":
            with_threads(url, tokens, connections)
        case "asyncio":
            asyncio.run(with_asyncio(url, tokens, connections))
        case _:
            import uvloop  # noqa: PLC0415 - where there is one (it comes with uvicorn)

            uvloop.run(with_sockets(url, tokens, connections))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
