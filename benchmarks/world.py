"""What every benchmark needs: an embedded PostgreSQL, a migrated database, rows in bulk, a simulator process."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from sqlalchemy import text

from billing.app import App, build
from billing.embedded import postgres
from billing.settings import load_settings
from billing.store import migrate

CALLBACK_TOKEN = "benchmark-callback-token"
NOW = datetime(2027, 1, 15, 3, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Result:
    measure: str
    figure: str
    goal: str
    met: bool


def environment(database_url: str, **more: str) -> dict[str, str]:
    return {
        "BILLING_DATABASE_URL": database_url,
        "BILLING_REDIS_URL": "",
        "BILLING_XENDIT_SECRET_KEY": "xnd_development_benchmark",
        "BILLING_XENDIT_CALLBACK_TOKEN": CALLBACK_TOKEN,
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": "1000000",
        "BILLING_TEST_CLOCK": "false",
        "BILLING_LOG_FORMAT": "json",
        **more,
    }


@contextmanager
def database() -> Iterator[str]:
    with postgres() as server:
        migrate.upgrade(server.url)
        yield server.url


def make_app(database_url: str, **more: str) -> App:
    os.environ.update(environment(database_url, **more))
    return build(load_settings("database_url"))


def fill(app: App, *, subscriptions: int, due: int, tokens: list[str] | None = None) -> None:
    """`subscriptions` active monthly ones of as many customers, the first `due` of them due now, the rest within a
    month. `tokens`: token ids of the simulator, one a customer."""
    values = {"n": subscriptions, "due": due, "now": datetime.now(UTC) - timedelta(minutes=1)}
    with app.parts.transaction() as session:
        session.execute(
            text(
                "INSERT INTO plans (id, code, name, amount_minor, currency, schedule, timezone, trial_days, catch_up,"
                " dunning, created_at) VALUES ('plan-b', 'bench', 'Bench', 50000, 'IDR', 'every 1:month',"
                " 'Asia/Jakarta', 0, 'all', 'standard', :now)"
            ),
            values,
        )
        session.execute(
            text(
                "INSERT INTO customers (id, reference, name, email, country, timezone, created_at)"
                " SELECT 'cus-'||i, 'c'||i, 'Customer', 'c@example.com', 'ID', 'Asia/Jakarta', :now"
                " FROM generate_series(1, :n) i"
            ),
            values,
        )
        session.execute(
            text(
                "INSERT INTO payment_tokens (id, payment_token_id, customer_id, status, channel_code, fingerprint,"
                " rank, created_at) SELECT 'tok-'||i, 'pt-'||i, 'cus-'||i, 'ACTIVE', 'CARDS', 'fp-'||i, 1, :now"
                " FROM generate_series(1, :n) i"
            ),
            values,
        )
        session.execute(
            text(
                "INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency,"
                " timezone, payment_token_id, anchor_local, anchor_day, next_index, next_local, next_billing_at,"
                " billed_cycles, cancel_at_period_end, open_failures, created_at)"
                " SELECT 'sub-'||i, 's'||i, 'cus-'||i, 'plan-b', 'active', 50000, 'IDR', 'Asia/Jakarta', 'tok-'||i,"
                " due AT TIME ZONE 'Asia/Jakarta', extract(day FROM due AT TIME ZONE 'Asia/Jakarta')::int, 0,"
                " due AT TIME ZONE 'Asia/Jakarta', due, 0, false, 0, CAST(:now AS timestamptz)"
                " FROM (SELECT i, CASE WHEN i <= :due THEN CAST(:now AS timestamptz) - interval '1 minute' ELSE"
                " CAST(:now AS timestamptz) + interval '1 hour' + random() * interval '27 days' END AS due"
                " FROM generate_series(1, :n) i) x"
            ),
            values,
        )
        for number, token_id in enumerate(tokens or [], start=1):
            session.execute(
                text("UPDATE payment_tokens SET payment_token_id = :t WHERE id = 'tok-'||:i"),
                {"t": token_id, "i": number},
            )
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def simulator(*, latency_ms: int, jitter_ms: int = 0, webhook_url: str = "") -> Iterator[str]:
    """The simulator in a process of its own, without a rate limit."""
    port = free_port()
    command = [sys.executable, "-m", "billing", "simulator", "--port", str(port), "--latency-ms", str(latency_ms)]
    command += ["--jitter-ms", str(jitter_ms), "--requests-per-minute", "1000000000"]
    command += ["--webhook-url", webhook_url]  # empty: none are sent
    environment_here = {**os.environ, "BILLING_XENDIT_CALLBACK_TOKEN": CALLBACK_TOKEN}
    for name in ("BILLING_DATABASE_URL", "BILLING_TEST_CLOCK"):
        environment_here.pop(name, None)
    with subprocess.Popen(command, env=environment_here) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, process)
            yield url
        finally:
            process.terminate()


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"a server for {url} ended at once, status {process.returncode}")
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nothing answers at {url}")


def simulator_tokens(url: str, count: int) -> list[str]:
    """Ids of as many ACTIVE card tokens as asked for."""
    made = httpx.post(f"{url}/_simulator/tokens", json={"channel_code": "CARDS", "count": count}, timeout=60)
    ids: list[str] = made.raise_for_status().json()["payment_token_ids"]
    return ids


def peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
