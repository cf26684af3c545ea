"""Two hosts on one machine: `python -m benchmarks.hosts`. Linux and root only, and no part of `make bench`.

Each host is a network namespace with one worker process and one scheduler. PostgreSQL, Valkey, web and the simulator
stay on the machine; a host reaches them by TCP over a veth pair, through forwarders that count what it sends to the
gateway. Where the kernel has netem it delays each packet by 1 ms, else the forwarders hold everything that long. In
two of the runs host b is cut off for 20 s in the middle.

`python -m benchmarks.hosts inside NAMESPACE MODULE...` is a process in a host.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.quota import fullest_window
from benchmarks.world import (
    UNLIMITED,
    BenchmarkFailed,
    Servers,
    Site,
    fill,
    nowhere,
    plain,
    servers,
    site,
    sleep_until,
    soon,
    wait_for_workers,
)
from billing.errors import BillingError
from billing.sandbox.processes import free_port, signals_end_us

A_MINUTE = 600
THREADS = 32
MAX_IN_FLIGHT = 2_000
LATENCY_MS, JITTER_MS = 150, 50
DELAY_SECONDS = 0.001
CUT_SECONDS = 20.0
CUT_AFTER_SHARE = 0.3  # of the charges
LONGEST_SECONDS = 420  # a lost message is handed out again after 120 s, a lost call is in doubt after 120
DOUBT_SECONDS = 90  # the first look-up follows after a minute
CHARGE_LINE = b"POST /v3/payment_requests HTTP/"


# ------------------------------------------------------------------------------------------------ the network


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    network: int

    @property
    def namespace(self) -> str:
        return f"billing-{self.name}"

    @property
    def cable(self) -> str:
        """The machine's end; the host's is called the same with an h."""
        return f"billing-{self.name}"

    @property
    def machine_address(self) -> str:
        return f"10.77.{self.network}.1"


HOSTS = (Host("a", 1), Host("b", 2))


def ip(*words: str, check: bool = True) -> bool:
    return _run("ip", *words, check=check)


def _run(*command: str, check: bool) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise BenchmarkFailed(f"{' '.join(command)}: {(done.stderr.strip() or 'refused').splitlines()[0]}")
    return done.returncode == 0


@contextmanager
def network() -> Iterator[bool]:
    """Both hosts; whether netem delays their packets."""
    _take_down()
    try:
        for host in HOSTS:
            _connect(host)
        yield all(_delay(host) for host in HOSTS)
    finally:
        _take_down()


def _connect(host: Host) -> None:
    inside, far_end = ("netns", "exec", host.namespace, "ip"), f"{host.cable}h"
    subnet = f"10.77.{host.network}.0/24"
    ip("netns", "add", host.namespace)
    ip("link", "add", host.cable, "type", "veth", "peer", "name", far_end)
    ip("link", "set", far_end, "netns", host.namespace)
    ip("addr", "add", f"{host.machine_address}/24", "dev", host.cable)
    ip("link", "set", host.cable, "up")
    ip(*inside, "addr", "add", f"10.77.{host.network}.2/24", "dev", far_end)
    ip(*inside, "link", "set", far_end, "up")
    ip(*inside, "link", "set", "lo", "up")
    ip("route", "add", "blackhole", subnet, "metric", "9999")  # while the cable is cut: not to the internet


def _delay(host: Host) -> bool:
    netem = ("qdisc", "add", "dev", "{}", "root", "netem", "delay", f"{DELAY_SECONDS * 1_000:g}ms")
    ours = ("tc", *(word.format(host.cable) for word in netem))
    theirs = ("ip", "netns", "exec", host.namespace, "tc", *(word.format(f"{host.cable}h") for word in netem))
    try:
        return _run(*ours, check=False) and _run(*theirs, check=False)
    except FileNotFoundError:
        return False


def _take_down() -> None:
    """Ours, and what a killed run has left."""
    for host in HOSTS:
        ip("link", "del", host.cable, check=False)
        ip("netns", "del", host.namespace, check=False)
        ip("route", "del", "blackhole", f"10.77.{host.network}.0/24", check=False)


# --------------------------------------------------------------------------------------------- the forwarders

Connect = Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(slots=True)
class Doors:
    """Where the hosts reach the machine's servers, and how many charges each has sent."""

    delay_seconds: float
    charges: Counter[str] = field(default_factory=Counter)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def open(self, host: Host, target: str | tuple[str, int]) -> int:
        """The port at which `host` finds it. `target`: a Unix socket, or address and port."""

        def connect() -> Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
            return asyncio.open_unix_connection(target) if isinstance(target, str) else asyncio.open_connection(*target)

        return self._wait_for(self._listen(host, connect))

    def start(self) -> None:
        threading.Thread(target=self._loop.run_forever, name="doors", daemon=True).start()

    def stop(self) -> None:
        self._wait_for(self._end_connections())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait_for(self, work: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self, host: Host, connect: Connect) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await self._forward(host, connect, reader, writer)
            finally:
                self._connections.discard(task)

        listener = await asyncio.start_server(accept, host.machine_address, 0)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    async def _end_connections(self) -> int:
        ending = list(self._connections)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        return len(ending)

    async def _forward(
        self, host: Host, connect: Connect, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, asyncio.CancelledError):
            there_reader, there_writer = await connect()
            await asyncio.gather(self._pass_on(reader, there_writer, host), self._pass_on(there_reader, writer, None))
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: Host | None) -> None:
        """Until one side ends, which ends the other. Timers of one length fire in the order they were set."""
        try:
            while part := await reader.read(65_536):
                if sender is not None:
                    self.charges[sender.name] += part.count(CHARGE_LINE)
                if self.delay_seconds:
                    self._loop.call_later(self.delay_seconds, writer.write, part)
                else:
                    writer.write(part)
        finally:
            self._loop.call_later(2 * self.delay_seconds, writer.close)


@contextmanager
def doors(delay_seconds: float) -> Iterator[Doors]:
    opened = Doors(delay_seconds)
    opened.start()
    try:
        yield opened
    finally:
        opened.stop()


# ------------------------------------------------------------------------------------------------ the processes


def _settings_of(host: Host, here: Site, ways: Doors) -> dict[str, str]:
    """How that host finds the machine's servers."""
    address = host.machine_address
    database = here.environment["BILLING_DATABASE_URL"]
    name = urlsplit(database).path
    socket_path = str(here.servers.postgres_log.with_name(".s.PGSQL.5432"))
    broker, gateway = urlsplit(here.servers.valkey_url), urlsplit(here.gateway.url)
    return {
        "BILLING_DATABASE_URL": f"postgresql+psycopg://postgres@{address}:{ways.open(host, socket_path)}{name}",
        "BILLING_REDIS_URL": f"redis://{address}:{ways.open(host, _place(broker.hostname, broker.port))}/0",
        "BILLING_XENDIT_BASE_URL": f"http://{address}:{ways.open(host, _place(gateway.hostname, gateway.port))}",
        "NO_PROXY": "*",
    }


def _place(address: str | None, port: int | None) -> tuple[str, int]:
    assert address is not None
    assert port is not None
    return address, port


def _start(here: Site, ways: Doors, *, rate: int) -> None:
    """Simulator and web on the machine, a worker process and a scheduler on each host."""
    here.environment["BILLING_XENDIT_REQUESTS_PER_MINUTE"] = str(rate)
    port = free_port()
    here.start_simulator(
        webhook_url=f"http://127.0.0.1:{port}/webhooks/xendit", requests_per_minute=rate,
        latency_ms=LATENCY_MS, jitter_ms=JITTER_MS,
    )  # fmt: skip
    here.start_web("billing.web:create_app", port, "--factory")
    here.wait_for_http(f"http://127.0.0.1:{port}/healthz")
    settings = {host: _settings_of(host, here, ways) for host in HOSTS}
    for host in HOSTS:
        worker = ("dramatiq", "workers", "--processes", "1", "--threads", str(THREADS))
        _start_inside(here, host, settings[host], f"worker {host.name}", worker)
    wait_for_workers(here, len(HOSTS))
    for host in HOSTS:
        _start_inside(here, host, settings[host], f"scheduler {host.name}", ("workers.scheduler",))


def _start_inside(here: Site, host: Host, settings: dict[str, str], name: str, module: Sequence[str]) -> None:
    child = here.crew.start(
        name, ("benchmarks.hosts", "inside", host.namespace, *module),
        environment={**os.environ, **here.environment, **settings}, output=here.log,
    )  # fmt: skip
    here.pids[name] = child.process.pid


def _become(namespace: str, module: Sequence[str]) -> None:
    os.execvp("ip", ["ip", "netns", "exec", namespace, sys.executable, "-m", *module])


# ------------------------------------------------------------------------------------------------ the runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    title: str
    charges: int
    rate: int  # the quota, requests a minute
    seconds: float  # from the due time until every charge is settled and every webhook applied
    sent_in: float  # from the first to the last at the gateway
    sent: Counter[str]  # by host
    while_cut: Counter[str]
    captured: int
    duplicates: int
    refused: int
    fullest: int  # of all sliding minutes
    doubts: int  # that came up at any time
    statuses: Counter[str]  # of the attempts, at the end


def _measure(shared: Servers, title: str, *, charges: int, rate: int, cut: bool, delay_seconds: float) -> Run:
    url = shared.new_ours("hosts")
    tuned = {"BILLING_MAX_IN_FLIGHT": str(MAX_IN_FLIGHT), "BILLING_DATABASE_POOL_SIZE": str(THREADS)}
    with doors(delay_seconds) as ways, site(shared, url, **tuned) as here:
        _start(here, ways, rate=rate)
        due_at = soon(charges)
        fill(url, subscriptions=charges, due={due_at: charges}, tokens=here.gateway.new_tokens(charges))
        sleep_until(due_at)
        started = time.monotonic()
        while_cut = _cut_off(here, ways, charges) if cut else Counter()
        here.wait(lambda: _is_over(here, url, charges), f"the end of {charges} charges", seconds=LONGEST_SECONDS)
        seconds = time.monotonic() - started
        _wait_for_look_ups(url)
        quota = here.gateway.quota()
        arrivals: list[float] = quota["arrivals"]
        return Run(
            title=title,
            charges=charges,
            rate=rate,
            seconds=seconds,
            sent_in=arrivals[-1] - arrivals[0],
            sent=ways.charges,
            while_cut=while_cut,
            captured=here.gateway.captured(),
            duplicates=here.gateway.duplicates(),
            refused=quota["refused"],
            fullest=fullest_window(arrivals),
            doubts=Path(here.log.name).read_text().count('"charge.in_doubt"'),
            statuses=_statuses(url),
        )


def _cut_off(here: Site, ways: Doors, charges: int) -> Counter[str]:
    """Host b, in the middle of the run. What each host got through to the gateway meanwhile."""
    here.wait(lambda: here.gateway.captured() >= charges * CUT_AFTER_SHARE, "the middle", seconds=LONGEST_SECONDS)
    cable = HOSTS[1].cable
    before = ways.charges.copy()
    ip("link", "set", cable, "down")
    try:
        time.sleep(CUT_SECONDS)
        return ways.charges - before
    finally:
        ip("link", "set", cable, "up")


def _is_over(here: Site, url: str, charges: int) -> bool:
    """Nothing is under way: each is charged and its event applied, or in doubt."""
    found = _statuses(url)
    if found["succeeded"] + found["in_doubt"] < charges:
        return False
    captured = here.gateway.captured()
    with psycopg.connect(plain(url)) as connection:
        row = connection.execute("SELECT count(*) FROM webhook_events WHERE state = 'applied'").fetchone()
    return row is not None and row[0] >= captured


def _statuses(url: str) -> Counter[str]:
    with psycopg.connect(plain(url)) as connection:
        return Counter(dict(connection.execute("SELECT status, count(*) FROM charge_attempts GROUP BY 1").fetchall()))


def _wait_for_look_ups(url: str) -> None:
    deadline = time.monotonic() + DOUBT_SECONDS
    while _statuses(url)["in_doubt"] and time.monotonic() < deadline:
        time.sleep(1)


def _ping_ms(shared: Servers, delay_seconds: float) -> float:
    """One round trip through a door, with whatever the doors add."""
    broker = urlsplit(shared.valkey_url)
    with doors(delay_seconds) as ways:
        port = ways.open(HOSTS[0], _place(broker.hostname, broker.port))
        client = redis.Redis(host=HOSTS[0].machine_address, port=port)
        client.ping()
        started = time.perf_counter()
        for _ in range(50):
            client.ping()
        client.close()
        return (time.perf_counter() - started) * 1_000 / 50


# ------------------------------------------------------------------------------------------------ the table


def _table(runs: Sequence[Run], network_words: str) -> Table:
    table = Table(title=f"two hosts, {network_words}, {os.cpu_count()} cores in all, {datetime.now(UTC):%d %b %Y}")
    table.add_column("")
    for run in runs:
        table.add_column(run.title, overflow="fold")
    rows: dict[str, Callable[[Run], str]] = {
        "until all is settled": lambda run: f"{run.seconds:.1f} s, {run.charges / run.seconds:.0f}/s",
        "first to last at the gateway": lambda run: f"{run.sent_in:.1f} s, {run.charges / run.sent_in:.0f}/s",
        "sent by host a, b": lambda run: f"{run.sent['a']}, {run.sent['b']}",
        "of that while b was cut off": lambda run: f"{run.while_cut['a']}, {run.while_cut['b']}",
        "use of an evenly spent quota": _use,
        "fullest sliding minute": lambda run: str(run.fullest),
        "answered with 429": lambda run: str(run.refused),
        "captured, charged twice": lambda run: f"{run.captured} of {run.charges}, {run.duplicates}",
        "in doubt at any time, at the end": lambda run: f"{run.doubts}, {run.statuses['in_doubt']}",
        "attempts": lambda run: ", ".join(f"{count} {status}" for status, count in run.statuses.items()),
    }
    for words, show in rows.items():
        table.add_row(words, *(show(run) for run in runs))
    return table


def _use(run: Run) -> str:
    return "" if run.rate == UNLIMITED else f"{run.charges / (run.rate / 60 * run.sent_in):.0%}"


def _went_well(run: Run) -> bool:
    return run.duplicates == 0 and run.refused == 0 and run.captured == run.charges == run.statuses["succeeded"]


def main(*, quick: bool = False) -> int:
    few, many = (90, 300) if quick else (300, 2_000)
    wanted = (
        (f"{few} due at {A_MINUTE}/min", few, A_MINUTE, False),
        (f"{few} due at {A_MINUTE}/min, b cut off", few, A_MINUTE, True),
        (f"{many:,} due", many, UNLIMITED, False),
        (f"{many:,} due, b cut off", many, UNLIMITED, True),
    )
    console = Console(width=150)
    with ExitStack() as stack:
        stack.enter_context(signals_end_us())
        stack.enter_context(nowhere())
        netem = stack.enter_context(network())
        delay_seconds = 0.0 if netem else DELAY_SECONDS
        if not netem:
            console.print("this kernel has no netem: the forwarders hold everything for 1 ms each way", style="dim")
        shared = stack.enter_context(servers())
        words = f"a round trip takes {_ping_ms(shared, delay_seconds):.1f} ms"
        runs = []
        for title, charges, rate, cut in wanted:
            console.print(f"{title} ...", style="dim")
            runs.append(_measure(shared, title, charges=charges, rate=rate, cut=cut, delay_seconds=delay_seconds))
        console.print(_table(runs, words))
    return 0 if all(_went_well(run) for run in runs) else 1


def _refusal() -> str | None:
    if sys.platform != "linux":
        return "network namespaces are Linux's; run it there"
    if os.geteuid() != 0:
        return "making network namespaces needs root; run it as root"
    try:
        ip("netns", "list")
    except (BenchmarkFailed, FileNotFoundError):
        return "`ip netns` does not work here; install iproute2"
    return None


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        _become(sys.argv[2], sys.argv[3:])
    if refusal := _refusal():
        print(f"benchmarks.hosts: {refusal}", file=sys.stderr)
        sys.exit(1)
    try:
        sys.exit(main(quick="--quick" in sys.argv))
    except (BenchmarkFailed, BillingError, httpx.HTTPError, psycopg.Error) as error:
        print(f"benchmarks.hosts: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(1)
