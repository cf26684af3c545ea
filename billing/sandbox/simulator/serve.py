"""The simulator over HTTP: one event loop answers calls and sends the webhooks that are due.

Used by `billing simulator` and `billing dev` (run_simulator), tests and benchmarks (create_simulator_app).
"""

import asyncio
import logging
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from billing.sandbox.simulator.answers import Answer
from billing.sandbox.simulator.clock import SettableClock
from billing.sandbox.simulator.config import SimulatorConfig
from billing.sandbox.simulator.core import Simulator
from billing.sandbox.simulator.post import Line, Target, read_target
from billing.sandbox.simulator.webhooks import Delivery

_log = logging.getLogger(__name__)
_API_PATHS = ("/v3/", "/sessions", "/refunds", "/transactions", "/customers")
_SENDERS = 16
_WEBHOOK_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.075


@dataclass(slots=True)
class Courier:
    """Sends due webhooks, at most 16 at a time, and lets simulated time pass while nobody calls."""

    simulator: Simulator
    target: Target
    callback_token: str | None
    poll_seconds: float
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect())
            for _ in range(_SENDERS):
                group.create_task(self._send_forever())

    async def _collect(self) -> None:
        while True:
            if self.simulator.next_due_at() is not None:
                for delivery in self.simulator.due_deliveries(self.simulator.now()):
                    self._waiting.put_nowait(delivery)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_seconds):
                    await self._woken.wait()
            self._woken.clear()

    async def _send_forever(self) -> None:
        line = Line(self.target, _WEBHOOK_TIMEOUT_SECONDS)
        try:
            while True:
                delivery = await self._waiting.get()
                status = await line.post(self._headers(delivery), delivery.body)
                self.simulator.delivery_result(delivery, status)
        finally:
            line.close()

    def _headers(self, delivery: Delivery) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.callback_token is not None:
            headers["x-callback-token"] = self.callback_token
        if self.simulator.config.send_webhook_id:
            headers["webhook-id"] = delivery.webhook_id
        return headers


def create_simulator_app(
    simulator: Simulator,
    *,
    webhook_url: str | None,
    callback_token: str | None,
    latency_ms: float = 0,
    jitter_ms: float = 0,
    poll_seconds: float = _POLL_SECONDS,
) -> Starlette:
    """Without a webhook URL events wait in the queue; GET /_simulator/webhooks lists them."""
    courier = Courier(simulator, read_target(webhook_url), callback_token, poll_seconds) if webhook_url else None
    chance = random.Random(0)  # noqa: S311 - jitter

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if latency_ms and scope["path"].startswith(_API_PATHS):
            await asyncio.sleep((latency_ms + chance.uniform(-jitter_ms, jitter_ms)) / 1000)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        answer = simulator.answer(scope["method"], scope["path"], query, headers, body)
        if courier is not None:
            courier.wake()
        if answer.delay_seconds:
            await asyncio.sleep(answer.delay_seconds)
        await (_drop(receive) if answer.drop else _send_answer(answer, send))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(courier.run()) if courier is not None else None
        if task is not None:
            task.add_done_callback(_report_end)
        yield
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    return Starlette(routes=[Mount("/", app=endpoint)], lifespan=lifespan)


def run_simulator(
    host: str = "127.0.0.1",
    port: int = 8100,
    *,
    webhook_url: str | None = None,
    callback_token: str | None = None,
    now: Callable[[], datetime] | None = None,
    seed: int = 0,
    config: SimulatorConfig | None = None,
    latency_ms: float = 0,
    jitter_ms: float = 0,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then returns. Without `now` the control API may move the clock."""
    config = config or replace(SimulatorConfig(), base_url=f"http://{host}:{port}")
    simulator = Simulator(now or SettableClock(), seed=seed, config=config)
    app = create_simulator_app(
        simulator,
        webhook_url=webhook_url,
        callback_token=callback_token,
        latency_ms=latency_ms,
        jitter_ms=jitter_ms,
    )
    with _quiet_signals():
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            # The default of 5 s closes idle connections just as a client takes them up again: a fault nobody ordered.
            timeout_keep_alive=75,
        )


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signal again after its shutdown: that would kill a process that stopped in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _report_end(task: asyncio.Task[None]) -> None:
    """A clock that fails (its database is gone) ends the courier: say so instead of going quiet."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the simulator sends no more webhooks", exc_info=task.exception())


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _send_answer(answer: Answer, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _drop(receive: Receive) -> None:
    """Cuts the connection. Only uvicorn lets us at the socket; elsewhere the call just fails."""
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionResetError("dropped by the simulator")
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
