"""The cast of a chaos run: every process real, each of which may be killed and comes back where it was.

PostgreSQL and Valkey are started as the demo starts them; once killed, the same command is run again under the same
guard (billing/sandbox/embedded.py), so they come back with their data and at their address. Linux only: /proc names the
command.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import psycopg
import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from billing.errors import ServiceUnavailable
from billing.sandbox import embedded
from billing.sandbox.demo.stage import HOST, NO_QUOTA, RemoteSimulator
from billing.sandbox.processes import Child, Children, answers, children, free_port, wait_until
from billing.store.clock import real_now, set_test_clock
from billing.store.engine import make_engine
from tests.chaos.proxy import Proxy, proxy_to
from tests.databases.pgbouncer import find_pgbouncer, pgbouncer
from tests.databases.replicated import Pair, primary_and_standby

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 2
SUBMITTED_LEASE_SECONDS = 3 * TIMEOUT_SECONDS + 30
LATENCY_MS = 200
BACK_WITHIN_SECONDS = 30.0
SIMULATOR, WEB = "simulator", "web"
SCHEDULERS, WORKERS = ("scheduler-1", "scheduler-2"), ("worker-1", "worker-2")


@dataclass(slots=True)
class Server:
    """PostgreSQL or Valkey. The first start is embedded's; later ones run the same command."""

    name: str
    pid: Callable[[], int]
    is_ready: Callable[[], bool]
    command: list[str] = field(default_factory=list)  # that of its guard (billing/sandbox/embedded.py)
    _guards: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def kill(self, number: signal.Signals) -> None:
        """Returns when it is gone."""
        pid = self.pid()
        self.command = self.command or _guards_command(pid)
        os.kill(pid, number)
        deadline = time.monotonic() + BACK_WITHIN_SECONDS
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{self.name} does not end on {number.name}")
            time.sleep(0.02)

    def start(self) -> None:
        """Until it answers. A killed PostgreSQL's last backends may keep the next one from starting for a moment."""
        deadline = time.monotonic() + BACK_WITHIN_SECONDS
        while time.monotonic() < deadline:
            guard = self._guarded()
            while guard.poll() is None and time.monotonic() < deadline:
                if self.is_ready():
                    self._guards.append(guard)
                    return
                time.sleep(0.02)
            time.sleep(0.1)
        raise ServiceUnavailable(f"{self.name} does not come back")

    def close(self) -> None:
        for guard in self._guards:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(timeout=BACK_WITHIN_SECONDS)

    def _guarded(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )


def _guards_command(pid: int) -> list[str]:
    """The guard is the server's parent and of our own making; the server itself may have overwritten its arguments."""
    status = Path(f"/proc/{pid}/status").read_text()
    guard = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
    return Path(f"/proc/{guard}/cmdline").read_text().rstrip("\0").split("\0")


@dataclass(slots=True)
class Site:
    """Everything of a run, and what a supervisor, an operator and the bank can do to it."""

    environment: dict[str, str]
    modules: dict[str, list[str]]
    folder: Path
    crew: Children
    simulator: RemoteSimulator
    proxy: Proxy
    pair: Pair
    postgres: Server  # whichever is the primary
    standby: Server
    valkey: Server
    engine: Engine
    offset: timedelta
    running: dict[str, Child] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    ended_by_themselves: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------- processes

    def start(self, name: str) -> None:
        """From the main thread only: see billing/sandbox/processes.py."""
        environment = self.environment
        if name == SIMULATOR:  # a clock of its own, as Xendit has one
            environment = environment | {"BILLING_TEST_CLOCK": "false"}
        with self.log(name).open("ab") as output:
            child = self.crew.start(name, self.modules[name], environment=environment, output=output)
        self.running[name] = child

    def kill(self, name: str) -> None:
        """The whole process group, as the kernel or a container's end does."""
        child = self.running.pop(name, None)
        if child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        self.crew.running.remove(child)

    def freeze(self, name: str) -> None:
        self.stopped.add(name)
        os.killpg(self.running[name].process.pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.stopped.discard(name)
        with suppress(ProcessLookupError):
            os.killpg(self.running[name].process.pid, signal.SIGCONT)

    def supervise(self) -> list[str]:
        """Whoever ended without having been killed is started again, as a supervisor would. Returns who."""
        ended = [name for name, child in self.running.items() if child.process.poll() is not None]
        for name in ended:
            self.ended_by_themselves.append(f"{name} (exit status {self.running[name].process.returncode})")
            self.kill(name)
            self.start(name)
        return ended

    def fail_over(self) -> None:
        """The primary is fenced off: killed, and never started again. Its standby takes its place and its address."""
        self.postgres.kill(signal.SIGKILL)
        self.pair.promote_standby()
        self.pair.move_address()
        self.postgres = self.standby

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`billing ...`, as an operator types it."""
        return subprocess.run(
            [sys.executable, "-m", "billing", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    # ------------------------------------------------------------------------------------------- the clock

    def now(self) -> datetime:
        return real_now() + self.offset

    def move_clocks(self, by: timedelta) -> None:
        """Xendit's first: an answer dated before its question would look like a fault. Ours follows by `keep_time`."""
        self.offset += by
        self.simulator.post("/_simulator/clock", {"now": self.now().isoformat()})

    def keep_time(self) -> bool:
        """Billing's clock to where ours is. False while the database is away."""
        try:
            with Session(self.engine) as session, session.begin():
                set_test_clock(session, self.now())
        except DBAPIError:
            return False
        return True


@contextmanager
def set_up(start: datetime, folder: Path) -> Iterator[Site]:
    """Yields when everybody is ready. Everything is gone afterwards but the logs, which are in `folder`."""
    with ExitStack() as stack:
        pair = stack.enter_context(primary_and_standby(_short_folder(stack), durable=True))
        memory = stack.enter_context(embedded.valkey()).url
        web_port, simulator_port = free_port(), free_port()
        proxy = stack.enter_context(proxy_to(simulator_port))
        environment = _environment(_behind_a_pooler(pair.url, stack), memory, web_port, proxy.port)
        engine = make_engine(pair.url, pool_size=2)
        stack.callback(engine.dispose)
        postgres, standby, valkey = _postgres(pair.old), _postgres(pair.new), _valkey(memory)
        stack.callback(postgres.close)
        stack.callback(standby.close)
        stack.callback(valkey.close)
        site = Site(
            environment=environment,
            modules=_modules(web_port, simulator_port),
            folder=folder,
            crew=stack.enter_context(children()),
            simulator=RemoteSimulator(simulator_port),
            proxy=proxy,
            pair=pair,
            postgres=postgres,
            standby=standby,
            valkey=valkey,
            engine=engine,
            offset=start - real_now(),
        )
        site.start(SIMULATOR)
        wait_until(lambda: answers(simulator_port, "/_simulator/requests"), "the simulator", site.crew)
        site.move_clocks(timedelta())
        site.keep_time()
        for name in (WEB, *SCHEDULERS, *WORKERS):
            site.start(name)
        wait_until(lambda: answers(web_port, "/readyz"), "web", site.crew)
        yield site


def _behind_a_pooler(database: str, stack: ExitStack) -> str:
    """The processes' way to PostgreSQL leads through PgBouncer in transaction mode, where there is one."""
    if find_pgbouncer() is None:
        return database
    return stack.enter_context(pgbouncer(database, _short_folder(stack)))


def _short_folder(stack: ExitStack) -> Path:
    """Sockets need short paths, and servers a folder that they can reach."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="billing-", dir="/tmp")))
    folder.chmod(0o755)
    return folder


def _environment(database: str, memory: str, web_port: int, gateway_port: int) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BILLING_", "PG"))}
    return ours | {
        "BILLING_DATABASE_URL": database,
        "BILLING_REDIS_URL": memory,
        "BILLING_XENDIT_SECRET_KEY": f"xnd_development_{secrets.token_hex(16)}",
        "BILLING_XENDIT_CALLBACK_TOKEN": secrets.token_hex(16),
        "BILLING_XENDIT_BASE_URL": f"http://{HOST}:{gateway_port}",
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": NO_QUOTA,
        "BILLING_XENDIT_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "BILLING_PUBLIC_URL": f"http://{HOST}:{web_port}",
        "BILLING_TEST_CLOCK": "true",
        "BILLING_LOG_FORMAT": "json",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def _modules(web_port: int, simulator_port: int) -> dict[str, list[str]]:
    simulator = ["billing", "simulator", "--port", str(simulator_port), "--requests-per-minute", NO_QUOTA]
    simulator += ["--latency-ms", str(LATENCY_MS), "--webhook-url", f"http://{HOST}:{web_port}/webhooks/xendit"]
    web = ["uvicorn", "billing.web:create_app", "--factory", "--host", HOST, "--port", str(web_port)]
    worker = ["dramatiq", "workers", "--processes", "1", "--threads", "8"]
    return {
        SIMULATOR: simulator,
        WEB: [*web, "--no-access-log", "--log-level", "warning"],
        **{name: ["workers.scheduler"] for name in SCHEDULERS},
        **dict.fromkeys(WORKERS, worker),
    }


def _postgres(url: str) -> Server:
    folder = Path(unquote(url.rpartition("host=")[2]))
    plain = url.replace("postgresql+psycopg", "postgresql")

    def is_ready() -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(plain, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
        return False

    return Server("PostgreSQL", lambda: int((folder / ".s.PGSQL.5432.lock").read_text().split()[0]), is_ready)


def _valkey(url: str) -> Server:
    client = redis.Redis.from_url(url)

    def is_ready() -> bool:
        with suppress(redis.RedisError):
            return bool(client.ping())
        return False

    return Server("Valkey", lambda: int(client.info("server")["process_id"]), is_ready)
