"""The scene every benchmark is set in: embedded servers, real processes, rows in bulk, and what /proc says of them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import redis

from billing.app import App, build
from billing.errors import BillingError
from billing.sandbox.embedded import postgres, valkey
from billing.sandbox.processes import Children, children, free_port, wait_until
from billing.settings import load_settings
from billing.store import migrate

KEY = "xnd_development_benchmark"
CALLBACK_TOKEN = "benchmark-callback-token"
AMOUNT = 50_000
CHARGE = "POST /v3/payment_requests"
UNLIMITED = 1_000_000  # requests a minute
ESTABLISHED = "01"  # in /proc/net/tcp
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

Json = dict[str, Any]


class BenchmarkFailed(Exception):
    """One line: what did not come about."""


@dataclass(frozen=True, slots=True)
class Result:
    measure: str
    figure: str
    goal: str = ""  # empty: a figure without a goal
    met: bool = True


def expect(truth: bool, what: str) -> None:
    if not truth:
        raise BenchmarkFailed(what)


@contextmanager
def nowhere() -> Iterator[Path]:
    """Works in an empty folder, without the caller's settings: neither .env nor BILLING_ variables are ours."""
    before, taken = Path.cwd(), {name: value for name, value in os.environ.items() if name.startswith("BILLING_")}
    for name in taken:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            os.environ.update(taken)


# ------------------------------------------------------------------------------------------- servers, databases


@dataclass(frozen=True, slots=True)
class Servers:
    """One PostgreSQL and one Valkey, used by one contestant after the other."""

    postgres_url: str
    valkey_url: str
    postgres_pid: int
    valkey_pid: int

    def new_database(self, name: str) -> str:
        """Its SQLAlchemy URL. Valkey forgets everything as well."""
        with psycopg.connect(plain(self.postgres_url), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
            connection.execute("CHECKPOINT")
        redis.Redis.from_url(self.valkey_url).flushall()
        return self.postgres_url.replace("@/postgres?", f"@/{name}?")

    def new_ours(self, name: str) -> str:
        url = self.new_database(name)
        migrate.upgrade(url)
        return url

    @property
    def postgres_log(self) -> Path:
        return Path(parse_qs(urlsplit(self.postgres_url).query)["host"][0], "log")


@contextmanager
def servers() -> Iterator[Servers]:
    with postgres() as database, valkey() as broker:
        with psycopg.connect(plain(database.url)) as connection:
            postmaster = _parent(connection.info.backend_pid)
        pid = int(redis.Redis.from_url(broker.url).info("server")["process_id"])
        yield Servers(database.url, broker.url, postmaster, pid)


def plain(url: str) -> str:
    """As psycopg and libpq want it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def environment(database_url: str, **more: str) -> dict[str, str]:
    return {
        "BILLING_DATABASE_URL": database_url,
        "BILLING_REDIS_URL": "",
        "BILLING_XENDIT_SECRET_KEY": KEY,
        "BILLING_XENDIT_CALLBACK_TOKEN": CALLBACK_TOKEN,
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": str(UNLIMITED),
        "BILLING_TEST_CLOCK": "false",
        "BILLING_LOG_FORMAT": "json",
        **more,
    }


def make_app(database_url: str, **more: str) -> App:
    """Our parts in this process, on a migrated database."""
    values = {name.removeprefix("BILLING_").lower(): value for name, value in environment(database_url, **more).items()}
    return build(load_settings("database_url", **values))


# ------------------------------------------------------------------------------------------------ the rows


def fill(url: str, *, subscriptions: int, due: Mapping[datetime, int], tokens: Sequence[str] = ()) -> None:
    """`subscriptions` active monthly ones of as many customers, billed once before: what is due is a renewal.

    `due`: how many of them, in order, at which instants; the rest within a month of the last. `tokens`: ids of the
    simulator's, one a customer.
    """
    steps, seen = [], 0
    for instant, count in due.items():
        seen += count
        steps.append(f"WHEN i <= {seen} THEN timestamptz '{instant.isoformat()}'")
    rest = f"timestamptz '{max(due).isoformat()}' + interval '1 day' + random() * interval '26 days'"
    with psycopg.connect(plain(url), autocommit=True) as connection:
        for statement in _ROWS.format(n=subscriptions, due=f"CASE {' '.join(steps)} ELSE {rest} END").split(";"):
            connection.execute(statement)
        connection.execute(
            "UPDATE payment_tokens SET payment_token_id = given.id"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS given (id, i) WHERE payment_tokens.id = 'tok-'||given.i",
            [list(tokens)],
        )
        connection.execute("VACUUM ANALYZE")


_ROWS = """
INSERT INTO plans (id, code, name, amount_minor, currency, schedule, timezone, trial_days, catch_up, dunning,
  created_at)
VALUES ('plan-b', 'bench', 'Bench', 50000, 'IDR', 'every 1:month', 'Asia/Jakarta', 0, 'all', 'standard', now())
;
INSERT INTO customers (id, reference, name, email, country, timezone, created_at)
SELECT 'cus-'||i, 'c'||i, 'Customer', 'c@example.com', 'ID', 'Asia/Jakarta', now() FROM generate_series(1, {n}) i
;
INSERT INTO payment_tokens (id, payment_token_id, customer_id, status, channel_code, fingerprint, rank, created_at)
SELECT 'tok-'||i, 'pt-'||i, 'cus-'||i, 'ACTIVE', 'CARDS', 'fp-'||i, 1, now() FROM generate_series(1, {n}) i
;
INSERT INTO subscriptions (id, reference, customer_id, plan_id, status, amount_minor, currency, timezone,
  payment_token_id, anchor_local, anchor_day, next_index, next_local, next_billing_at, billed_cycles,
  cancel_at_period_end, open_failures, created_at)
SELECT 'sub-'||i, 's'||i, 'cus-'||i, 'plan-b', 'active', 50000, 'IDR', 'Asia/Jakarta', 'tok-'||i,
  anchor, extract(day FROM anchor)::int, 1, due AT TIME ZONE 'Asia/Jakarta', due, 1, false, 0, due - interval '1 month'
FROM (
  SELECT i, due, due AT TIME ZONE 'Asia/Jakarta' - interval '1 month' AS anchor
  FROM (SELECT i, {due} AS due FROM generate_series(1, {n}) i) x
) y
"""


def soon(rows: int) -> datetime:
    """When so many rows will be filled in, with seconds to spare."""
    return datetime.now(UTC) + timedelta(seconds=4 + rows / 5_000)


def sleep_until(instant: datetime) -> None:
    left = (instant - datetime.now(UTC)).total_seconds()
    expect(left > 0, "filling the database took longer than planned: this machine is too busy")
    time.sleep(left)


# ------------------------------------------------------------------------------------------- the gateway


@dataclass(frozen=True, slots=True)
class Gateway:
    """The simulator's control calls: it does the counting."""

    url: str

    def new_tokens(self, count: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < count:
            batch = min(10_000, count - len(ids))
            ids += self.post("/_simulator/tokens", {"channel_code": "CARDS", "count": batch})["payment_token_ids"]
        return ids

    def captured(self) -> int:
        return int(self.get("/_simulator/ledger?summary=1")["totals"].get("IDR", {}).get("count", 0))

    def duplicates(self) -> int:
        """Captures beyond the first of a token: every benchmark gives a subscription a token of its own."""
        rows = self.get("/_simulator/ledger")["payments"]
        captures = sum(int(row["captures"]) for row in rows)
        return captures - len({row["payment_token_id"] for row in rows if row["captures"]})

    def delivered(self) -> int:
        counts = self.get("/_simulator/webhooks?summary")["counts"]
        return sum(row["count"] for row in counts if row["status"] == "DELIVERED")

    def quota(self) -> Json:
        """Of the charges: accepted, refused, fullest_window, and arrivals in seconds."""
        shown = self.get("/_simulator/quota", arrivals=CHARGE)
        nothing = {"accepted": 0, "refused": 0, "fullest_window": 0}
        return {**shown["endpoints"].get(CHARGE, nothing), "arrivals": shown["arrivals"]}

    def arrived_at(self, reference: str) -> datetime | None:
        """When the charge with this reference came in."""
        found = self.get("/_simulator/ledger", reference_id=reference)["payments"]
        return datetime.fromisoformat(found[0]["created"]) if found else None

    def get(self, path: str, **params: str) -> Json:
        answer = httpx.get(f"{self.url}{path}", params=params or None, timeout=120)
        return dict(answer.raise_for_status().json())

    def post(self, path: str, body: Json) -> Json:
        return dict(httpx.post(f"{self.url}{path}", json=body, timeout=120).raise_for_status().json())


# ----------------------------------------------------------------------------------------- the processes


@dataclass(slots=True)
class Site:
    """Real processes around one database; `cpu` and `peak_mib` read /proc, children of theirs included."""

    servers: Servers
    environment: dict[str, str]
    crew: Children
    log: IO[bytes]
    pids: dict[str, int] = field(default_factory=dict)
    gateway: Gateway = field(default_factory=lambda: Gateway(""))

    def start(self, name: str, *module: str) -> None:
        child = self.crew.start(name, module, environment={**os.environ, **self.environment}, output=self.log)
        self.pids[name] = child.process.pid

    def start_simulator(
        self, *, webhook_url: str, requests_per_minute: int = UNLIMITED, latency_ms: int = 0, jitter_ms: int = 0
    ) -> None:
        port = free_port()
        self.start(
            "simulator", "billing", "simulator", "--port", str(port), "--webhook-url", webhook_url,
            "--requests-per-minute", str(requests_per_minute),
            "--latency-ms", str(latency_ms), "--jitter-ms", str(jitter_ms),
        )  # fmt: skip
        self.gateway = Gateway(f"http://127.0.0.1:{port}")
        self.environment["BILLING_XENDIT_BASE_URL"] = self.gateway.url
        self.wait_for_http(self.gateway.url)

    def start_web(self, app: str, port: int, *options: str) -> None:
        """uvicorn, without a line of log per request: the same for every contestant."""
        quiet = ("--no-access-log", "--log-level", "warning")
        self.start("web", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), *quiet, *options)

    def run(self, *module: str, seconds: float) -> float:
        """`python -m module...` until it ends; the CPU seconds it took."""
        return self.run_all([module], [""], seconds=seconds)

    def run_all(self, modules: Sequence[Sequence[str]], inputs: Sequence[str], *, seconds: float) -> float:
        """Several at once, each with its stdin."""
        before, deadline = os.times(), time.monotonic() + seconds
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="billing-bench-")))
            running: list[subprocess.Popen[bytes]] = []
            for number, (module, text) in enumerate(zip(modules, inputs, strict=True)):
                path = folder / str(number)
                path.write_text(text)
                process = subprocess.Popen(
                    [sys.executable, "-m", *module], env={**os.environ, **self.environment},
                    stdin=stack.enter_context(path.open("rb")), stdout=self.log, stderr=self.log,
                )  # fmt: skip
                stack.callback(process.kill)
                running.append(process)
            for process in running:
                self._finish(process, max(0.1, deadline - time.monotonic()))
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def _finish(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        name = " ".join(str(word) for word in list(process.args)[2:5])  # type: ignore[arg-type]
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkFailed(f"{name} took longer than it may") from None
        expect(status == 0, f"{name}: exit status {status}: {self.last_words()}")

    def wait_for_http(self, url: str) -> None:
        self.wait(lambda: _answers(url), f"an answer from {url}", seconds=60)

    def wait(self, ready: Callable[[], bool], what: str, *, seconds: float) -> None:
        """BenchmarkFailed when it does not come about in time, or a process has ended."""

        def look() -> bool:
            done = ready()
            if not done:
                time.sleep(0.2)
            return done

        try:
            wait_until(look, what, self.crew, seconds=seconds)
        except BillingError as error:
            raise BenchmarkFailed(f"{error}: {self.last_words()}") from None

    def cpu(self) -> dict[str, float]:
        roots = {**self.pids, "PostgreSQL": self.servers.postgres_pid, "Valkey": self.servers.valkey_pid}
        return {name: cpu_seconds(pid) for name, pid in roots.items()}

    def last_words(self) -> str:
        lines = Path(self.log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no output"


@contextmanager
def site(servers: Servers, database_url: str, **settings: str) -> Iterator[Site]:
    values = environment(database_url, BILLING_REDIS_URL=servers.valkey_url, **settings)
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="billing-bench-", suffix=".log"))
        yield Site(servers, values, stack.enter_context(children()), log)


def start_ours(
    here: Site, *, processes: int = 2, threads: int, webhooks: bool = True, rate: int = UNLIMITED,
    latency_ms: int = 0, jitter_ms: int = 0,
) -> None:  # fmt: skip
    """Simulator, web, workers and scheduler as docs/operations.md starts them; returns when the workers have booted."""
    here.environment["BILLING_XENDIT_REQUESTS_PER_MINUTE"] = str(rate)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    here.start_simulator(
        webhook_url=f"{url}/webhooks/xendit" if webhooks else "",
        requests_per_minute=rate, latency_ms=latency_ms, jitter_ms=jitter_ms,
    )  # fmt: skip
    here.start_web("billing.web:create_app", port, "--factory")
    here.start("worker", "dramatiq", "workers", "--processes", str(processes), "--threads", str(threads))
    here.wait_for_http(f"{url}/healthz")
    wait_for_workers(here, processes)
    here.start("scheduler", "workers.scheduler")


def wait_for_workers(here: Site, processes: int) -> None:
    """dramatiq says so of each process."""
    log = Path(here.log.name)
    here.wait(lambda: log.read_text().count("Worker process is ready for action") >= processes, "a worker", seconds=60)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=1)
    except httpx.TransportError:
        return False
    return True


# ----------------------------------------------------------------------------------------- /proc


def cpu_seconds(root: int) -> float:
    """Of a process and all it ever started, those that have ended included (their parents have waited for them)."""
    return sum(sum(_stat(pid)[11:15]) for pid in tree(root)) / TICKS_A_SECOND


def connections_to(url: str) -> int:
    """How many are open at the server's end."""
    port = f":{httpx.URL(url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == ESTABLISHED for row in rows)


def machine_cpu_seconds() -> float:
    """Of everything on this machine since it was started: who else was at work while we measured."""
    user, nice, system, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    return sum(int(ticks) for ticks in (user, nice, system, *interrupts)) / TICKS_A_SECOND


def peak_mib(root: int) -> float:
    """Of the largest process of the tree, since it began."""
    return max(_status(pid, "VmHWM") for pid in tree(root)) / 1024


def own_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tree(root: int) -> list[int]:
    offspring: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                offspring.setdefault(fields[1], []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += offspring.get(pid, [])
    return [pid for pid in found if _stat(pid)]


def _stat(pid: int) -> list[int]:
    """From the state on, which is given as 0; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return [0, *(int(word) for word in text.rpartition(")")[2].split()[1:])]


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _parent(pid: int) -> int:
    return _status(pid, "PPid")


def as_bytes(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
