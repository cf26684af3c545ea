"""`billing simulator`: the built-in Xendit over HTTP, for trying things out without an account."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from billing.cli import output
from billing.errors import Conflict
from billing.sandbox.simulator import SimulatorConfig, run_simulator
from billing.settings import Settings, load_settings
from billing.store.clock import DatabaseTestClock, real_now
from billing.store.engine import make_engine, make_sessions

READ_AGAIN_SECONDS = 0.1
READ_AFTER_ERROR_SECONDS = 2.0


def simulator(
    *,
    port: Annotated[int, typer.Option(help="Where it listens.", min=1, max=65_535)] = 8100,
    host: Annotated[str, typer.Option(help="Interface; 0.0.0.0 for all.")] = "127.0.0.1",
    public_url: Annotated[
        str | None, typer.Option(help="Start of the links it hands out, if browsers reach it elsewhere.")
    ] = None,
    requests_per_minute: Annotated[int, typer.Option(help="Quota per endpoint, as Xendit's test mode.", min=1)] = 60,
    latency_ms: Annotated[float, typer.Option(help="How long an answer takes.", min=0, max=60_000)] = 0,
    jitter_ms: Annotated[float, typer.Option(help="Give or take.", min=0, max=60_000)] = 0,
    webhook_url: Annotated[
        str, typer.Option(help="Where events are sent; empty: nowhere.")
    ] = "http://localhost:8000/webhooks/xendit",
    seed: Annotated[int, typer.Option(help="The same seed makes the same ids.", min=0)] = 0,
) -> None:
    """Run the Xendit simulator: payment sessions, tokens, charges and webhooks, but no money.

    Point the other processes at it with BILLING_XENDIT_BASE_URL=http://localhost:8100 and any xnd_development_ key.
    With BILLING_TEST_CLOCK=true it follows the test clock of the database.

    Example: billing simulator --port 8100 --latency-ms 200
    """
    settings = load_settings()
    refuse_port_in_use(host, port)
    tokens = settings.callback_tokens
    link_host = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    base_url = (public_url or f"http://{link_host}:{port}").rstrip("/")
    output.note(f"Xendit simulator on {base_url} (overview in a browser), webhooks to {webhook_url or 'nobody'}")
    if not tokens:
        output.warn("BILLING_XENDIT_CALLBACK_TOKEN is not set: its webhooks carry no token, so web refuses them")
    run_simulator(
        host,
        port,
        webhook_url=webhook_url or None,
        callback_token=tokens[0] if tokens else None,
        now=_clock(settings),
        seed=seed,
        config=replace(SimulatorConfig(), base_url=base_url, requests_per_minute=requests_per_minute),
        latency_ms=latency_ms,
        jitter_ms=jitter_ms,
    )


def refuse_port_in_use(host: str, port: int, option: str = "--port") -> None:
    """One line now instead of a server's own words later."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(f"cannot listen on {host}:{port} ({error.strerror}); choose another with {option}") from None


def _clock(settings: Settings) -> Callable[[], datetime] | None:
    """The database's test clock if there is one; else the simulator's own, which its control API can move."""
    if not (settings.test_clock and settings.database):
        return None
    return FollowedClock(settings.database)


class FollowedClock:
    """The shared test clock, read at most ten times a second. While the database is away the last offset holds."""

    def __init__(self, database_url: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._engine = make_engine(database_url, pool_size=2)
        self._clock = DatabaseTestClock(make_sessions(self._engine))
        self._monotonic = monotonic
        self._offset = timedelta()
        self._read_again = -math.inf

    def __call__(self) -> datetime:
        if self._monotonic() >= self._read_again:
            self._read()
        return real_now() + self._offset

    def close(self) -> None:
        self._engine.dispose()

    def _read(self) -> None:
        wait = READ_AGAIN_SECONDS
        try:
            self._offset = self._clock.now() - real_now()
        except SQLAlchemyError:
            wait = READ_AFTER_ERROR_SECONDS
        self._read_again = self._monotonic() + wait
