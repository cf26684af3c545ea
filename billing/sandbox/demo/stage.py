"""The demo's own PostgreSQL, Valkey, simulator, web, workers and scheduler: real processes, gone when it ends.

Nothing of the person's own is read or touched: settings of theirs are taken out of the environment for the time
being, and there is no `.env` where we work.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from redis import Redis

from billing import log
from billing.app import App, build
from billing.errors import ServiceUnavailable
from billing.parts import Parts, Send
from billing.sandbox import embedded
from billing.sandbox.processes import Children, answers, children, free_port, wait_until
from billing.settings import load_settings
from billing.store.clock import set_test_clock
from billing.store.migrate import upgrade
from billing.work import find_sender

HOST = "127.0.0.1"
NO_QUOTA = "1000000"  # requests a minute
LATENCY_MS, JITTER_MS = "20", "10"
THREADS = "8"
WORKER_POLL_MS = "40"  # of an idle queue; dramatiq's second is nothing in a day, but our days are shorter
LOG_CHARACTERS_SHOWN = 200

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the year is played with."""

    app: App
    send: Send
    simulator: RemoteSimulator
    children: Children
    logs: IO[bytes]

    @property
    def parts(self) -> Parts:
        return self.app.parts

    def move_clocks(self, instant: datetime) -> None:
        """Xendit's first: an answer dated before its question would look like a fault."""
        self.simulator.post("/_simulator/clock", {"now": instant.isoformat()})
        with self.parts.transaction() as session:
            set_test_clock(session, instant)

    def check_alive(self) -> None:
        child = self.children.dead()
        if child is not None:
            status = child.process.returncode
            raise ServiceUnavailable(f"{child.name} ended by itself (exit status {status}){_end_of(self.logs)}")


class RemoteSimulator:
    """What only a customer, a bank or Xendit itself could do: the simulator's control calls. One connection a call:
    threads share it."""

    def __init__(self, port: int) -> None:
        self._port = port

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        return self._ask("POST", path, json.dumps(body or {}))

    def get(self, path: str) -> Json:
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, body: str | None) -> Json:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=30)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            document: Json = json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServiceUnavailable(f"the simulator does not answer ({error.__class__.__name__})") from None
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise ServiceUnavailable(f"the simulator refuses {method} {path}: {document.get('message')}")
        return document


@contextmanager
def set_up() -> Iterator[Stage]:
    """Yields when everybody is ready. Should somebody fail, the end of their log is part of the message."""
    with ExitStack() as stack:
        # Unlinked files: nothing to clean up, however we end.
        logs = stack.enter_context(tempfile.TemporaryFile())
        database = stack.enter_context(embedded.postgres()).url
        redis = stack.enter_context(embedded.valkey()).url
        web_port, simulator_port = free_port(), free_port()
        settings = _settings(database, redis, web_port, simulator_port)
        stack.enter_context(_only_our_settings(settings))
        upgrade(database)
        crew = stack.enter_context(children())
        _start(crew, logs, web_port, simulator_port)
        app = build(load_settings("database_url", "redis_url", "xendit_secret_key", "xendit_callback_token"))
        stack.callback(app.close)
        log.configure("json", level=logging.CRITICAL)  # what goes wrong on purpose is the story, not a log line
        send = find_sender(app.settings)
        if send is None:
            raise ServiceUnavailable("the workers are not installed: run `make setup` first")
        try:
            wait_until(lambda: answers(simulator_port, "/_simulator/requests"), "the simulator", crew)
            wait_until(lambda: answers(web_port, "/readyz"), "web", crew)
            # A signal that reaches dramatiq while it starts its processes would be lost on them.
            wait_until(lambda: _workers_fetch(redis), "the workers", crew)
        except ServiceUnavailable as error:
            raise ServiceUnavailable(f"{error}{_end_of(logs)}") from None
        yield Stage(app, send, RemoteSimulator(simulator_port), crew, logs)


def _workers_fetch(redis_url: str) -> bool:
    from workers.broker import NAMESPACE  # noqa: PLC0415 - importing workers reads the settings, which are ours by now

    with Redis.from_url(redis_url) as redis:
        return bool(redis.exists(f"{NAMESPACE}:__heartbeats__"))


def _settings(database: str, redis: str, web_port: int, simulator_port: int) -> dict[str, str]:
    return {
        "BILLING_DATABASE_URL": database,
        "BILLING_REDIS_URL": redis,
        "BILLING_XENDIT_SECRET_KEY": f"xnd_development_{secrets.token_hex(16)}",
        "BILLING_XENDIT_CALLBACK_TOKEN": secrets.token_hex(16),
        "BILLING_XENDIT_BASE_URL": f"http://{HOST}:{simulator_port}",
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": NO_QUOTA,
        "BILLING_XENDIT_TIMEOUT_SECONDS": "10",
        "BILLING_PUBLIC_URL": f"http://{HOST}:{web_port}",
        "BILLING_TEST_CLOCK": "true",
        "BILLING_LOG_FORMAT": "json",
        "NO_PROXY": "*",
        "no_proxy": "*",
        # Where this software is, also when it was started from its folder without being installed.
        "PYTHONPATH": os.pathsep.join(
            path for path in (str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")) if path
        ),
    }


@contextmanager
def _only_our_settings(settings: Mapping[str, str]) -> Iterator[None]:
    """For this process and all it starts: our BILLING_ variables and no other, no .env, no libpq variables."""
    before, folder = dict(os.environ), Path.cwd()
    for name in before:
        if name.startswith(("BILLING_", "PG")):
            del os.environ[name]
    os.environ.update(settings)
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)


def _start(crew: Children, logs: IO[bytes], web_port: int, simulator_port: int) -> None:
    """The simulator keeps a clock of its own, as Xendit does; the demo moves both."""
    ours = dict(os.environ)
    simulator = ["billing", "simulator", "--port", str(simulator_port), "--requests-per-minute", NO_QUOTA]
    simulator += ["--latency-ms", LATENCY_MS, "--jitter-ms", JITTER_MS]
    simulator += ["--webhook-url", f"http://{HOST}:{web_port}/webhooks/xendit"]
    crew.start("the simulator", simulator, environment=ours | {"BILLING_TEST_CLOCK": "false"}, output=logs)
    web = ["uvicorn", "billing.web:create_app", "--factory", "--host", HOST, "--port", str(web_port)]
    crew.start("web", [*web, "--no-access-log", "--log-level", "warning"], environment=ours, output=logs)
    workers = ["dramatiq", "workers", "--processes", "1", "--threads", THREADS]
    crew.start("workers", workers, environment=ours | {"dramatiq_worker_timeout": WORKER_POLL_MS}, output=logs)
    crew.start("the scheduler", ["workers.scheduler"], environment=ours, output=logs)


def _end_of(logs: IO[bytes]) -> str:
    """The last thing anybody said, cut to what fits a line."""
    logs.seek(0)
    lines = [line.strip() for line in logs.read().decode(errors="replace").splitlines() if line.strip()]
    return f"; last log line: {lines[-1][:LOG_CHARACTERS_SHOWN]}" if lines else ""
