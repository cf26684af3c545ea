"""Charges a second, side by side: the naive script, a day's dramatiq, ours, and the limit.

Same machine, same PostgreSQL, the quota lifted, the gateway at 150 ms give or take 50, webhooks on for everybody and
taken in by each contestant's own receiver. From the start of the command to the last webhook; the simulator counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
from sqlalchemy import create_engine, insert

from benchmarks import fanout, naive
from benchmarks.world import (
    AMOUNT,
    Result,
    Servers,
    Site,
    connections_to,
    expect,
    fill,
    machine_cpu_seconds,
    plain,
    servers,
    site,
    sleep_until,
    soon,
    start_ours,
    wait_for_workers,
)
from billing.sandbox.processes import free_port

LATENCY_MS, JITTER_MS = 150, 50
PROCESSES = 2
THREADS = 32  # of a worker process, ours and the opponent's
MAX_IN_FLIGHT = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    charges: int
    seconds: float  # from the start of the command to the last webhook
    sending_rate: float  # between the first and the last request at the gateway
    connections: int  # most that were open to the gateway
    cpu: dict[str, float]  # seconds by process kind
    others: float  # cores that anything else on this machine kept busy meanwhile
    duplicates: int

    @property
    def rate(self) -> float:
        return self.charges / self.seconds

    @property
    def cpu_of_1000(self) -> str:
        shares = {name: seconds * 1_000 / self.charges for name, seconds in self.cpu.items()}
        parts = ", ".join(f"{name} {share:.1f}" for name, share in shares.items() if share >= 0.05)
        return f"{sum(shares.values()):.1f} s ({parts})"


def main(*, quick: bool = False) -> list[Result]:
    few, many = (30, 600) if quick else (150, 6_000)
    with servers() as shared:
        a = run_naive(shared, few)
        b = run_fanout(shared, many)
        c = run_ours(shared, many)
        limits = {
            variant: run_bare(shared, many, variant, c.connections) for variant in ("threads", "asyncio", "sockets")
        }
    # The limit of an HTTP client, in the library we use ourselves; what raw sockets do is said beside it.
    best = max(("threads", "asyncio"), key=lambda variant: limits[variant].rate)
    d = limits[best]
    others = ", ".join(f"{name} {run.rate:.0f}/s" for name, run in limits.items())
    setting = f"{PROCESSES} x {THREADS} threads"
    return [
        Result("charges/s (a) naive cron script", f"{a.rate:.1f}"),
        Result(f"charges/s (b) a day's dramatiq, {setting}", f"{b.rate:.0f}"),
        Result(
            f"charges/s (c) ours, {setting}, BILLING_MAX_IN_FLIGHT={MAX_IN_FLIGHT}",
            f"{c.rate:.0f} (sent at {c.sending_rate:.0f}/s over {c.connections} connections)", ">= 300", c.rate >= 300,
        ),
        Result(f"charges/s (d) the limit: httpx in {best}, {c.connections} connections", f"{d.rate:.0f} ({others})"),
        _ratio("ours against (a)", c, a, 45),
        _ratio("ours against (b)", c, b, 1.0),
        _ratio("ours against (d)", c, d, 0.4),
        Result("ours against raw sockets, no HTTP library", f"{c.rate / limits['sockets'].rate:.2f} x"),
        *(
            Result(f"CPU seconds per 1,000 charges, {name}", run.cpu_of_1000)
            for name, run in (("(a)", a), ("(b)", b), ("ours", c), ("(d)", d))
        ),
        Result(
            "cores busy with anything else meanwhile: (a), (b), ours, (d)",
            ", ".join(f"{run.others:.2f}" for run in (a, b, c, d)),
        ),
        Result("charged twice: (a), (b)", f"{a.duplicates}, {b.duplicates}"),
        Result("charged twice: ours", str(c.duplicates), "0", c.duplicates == 0),
    ]  # fmt: skip


def _ratio(measure: str, ours: Run, theirs: Run, goal: float) -> Result:
    ratio = ours.rate / theirs.rate
    return Result(measure, f"{ratio:.2f} x", f">= {goal:g} x", ratio >= goal)


# ------------------------------------------------------------------------------------------------ contestants


def run_ours(shared: Servers, charges: int, *, threads: int = THREADS) -> Run:
    url = shared.new_ours("ours")
    settings = {"BILLING_MAX_IN_FLIGHT": str(MAX_IN_FLIGHT), "BILLING_DATABASE_POOL_SIZE": str(threads)}
    with site(shared, url, **settings) as here:
        start_ours(here, processes=PROCESSES, threads=threads, latency_ms=LATENCY_MS, jitter_ms=JITTER_MS)
        tokens = here.gateway.new_tokens(charges)
        due_at = soon(charges)
        fill(url, subscriptions=charges, due={due_at: charges}, tokens=tokens)
        sleep_until(due_at)
        return _timed(
            here, charges, partial(here.run, "billing", "run", seconds=_longest(charges)), partial(all_settled, url)
        )


def _longest(charges: int) -> float:
    return 30 + charges / 20


def all_settled(url: str, charges: int) -> bool:
    """Every invoice paid and every event applied."""
    with psycopg.connect(plain(url)) as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM invoices WHERE status = 'paid'),"
            " (SELECT count(*) FROM webhook_events WHERE state = 'applied')"
        ).fetchone()
    return found is not None and min(found) >= charges


def run_naive(shared: Servers, charges: int) -> Run:
    with site(shared, shared.new_database("naive")) as here:
        _start_opponent(here, "benchmarks.naive:web", charges)
        command = partial(here.run, "benchmarks.naive", seconds=_longest(charges))
        return _timed(here, charges, command, partial(_all_recorded, here.environment["BILLING_DATABASE_URL"]))


def run_fanout(shared: Servers, charges: int) -> Run:
    with site(shared, shared.new_database("fanout")) as here:
        _start_opponent(here, "benchmarks.fanout:web", charges)
        here.start(
            "worker", "dramatiq", "benchmarks.fanout",
            "--processes", str(PROCESSES), "--threads", str(fanout.THREADS),
        )  # fmt: skip
        wait_for_workers(here, PROCESSES)
        command = partial(here.run, "benchmarks.fanout", seconds=_longest(charges))
        return _timed(here, charges, command, partial(_all_recorded, here.environment["BILLING_DATABASE_URL"]))


def _start_opponent(here: Site, web: str, charges: int) -> None:
    port = free_port()
    here.start_simulator(
        webhook_url=f"http://127.0.0.1:{port}/webhooks/xendit", latency_ms=LATENCY_MS, jitter_ms=JITTER_MS
    )
    engine = create_engine(here.environment["BILLING_DATABASE_URL"])
    naive.Base.metadata.create_all(engine)
    due = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=1)
    with engine.begin() as connection:
        rows = [
            {"payment_token_id": token, "country": "ID", "currency": "IDR", "amount": AMOUNT, "status": "active",
             "next_billing_at": due}
            for token in here.gateway.new_tokens(charges)
        ]  # fmt: skip
        connection.execute(insert(naive.Subscription), rows)
    engine.dispose()
    here.start_web(web, port)
    here.wait_for_http(f"http://127.0.0.1:{port}")


def _all_recorded(url: str, charges: int) -> bool:
    with psycopg.connect(plain(url)) as connection:
        found = connection.execute("SELECT count(*) FROM payments").fetchone()
    return found is not None and found[0] >= charges


def run_bare(shared: Servers, charges: int, variant: str, connections: int) -> Run:
    """With as many connections as ours had open."""
    with site(shared, shared.postgres_url) as here:
        port = free_port()
        here.start_simulator(
            webhook_url=f"http://127.0.0.1:{port}/webhooks/xendit", latency_ms=LATENCY_MS, jitter_ms=JITTER_MS
        )
        here.start_web("benchmarks.bare:sink", port, "--lifespan", "off")
        here.wait_for_http(f"http://127.0.0.1:{port}")
        tokens = here.gateway.new_tokens(charges)
        command = partial(
            here.run_all,
            [("benchmarks.bare", variant, str(max(1, connections // PROCESSES)))] * PROCESSES,
            ["\n".join(tokens[index::PROCESSES]) for index in range(PROCESSES)],
            seconds=_longest(charges),
        )
        return _timed(here, charges, command, lambda _charges: True)


# ------------------------------------------------------------------------------------------------ the stopwatch


def _timed(here: Site, charges: int, command: Callable[[], float], is_done: Callable[[int], bool]) -> Run:
    """From the start of `command` until the simulator has collected and told of every charge and `is_done`."""
    before, machine, started = here.cpu(), machine_cpu_seconds(), time.perf_counter()
    cpu_of_command = command()
    connections = [0]

    def is_over() -> bool:
        connections.append(connections_to(here.gateway.url))
        return here.gateway.delivered() >= charges and is_done(charges)

    here.wait(is_over, f"the end of {charges} charges", seconds=_longest(charges))
    seconds = time.perf_counter() - started
    after, machine = here.cpu(), machine_cpu_seconds() - machine
    arrivals = here.gateway.quota()["arrivals"]
    expect(here.gateway.captured() == charges, f"{here.gateway.captured()} of {charges} charges were collected")
    spent = {"command": cpu_of_command} | {name: after[name] - before[name] for name in after}
    others = max(0.0, machine - sum(spent.values())) / seconds
    return Run(
        charges=charges,
        seconds=seconds,
        sending_rate=charges / (arrivals[-1] - arrivals[0]),
        connections=max(connections),
        cpu=spent,
        others=others,
        duplicates=here.gateway.duplicates(),
    )
