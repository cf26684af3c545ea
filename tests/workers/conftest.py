"""Real processes: workers and scheduler, with PostgreSQL, Valkey and the simulator behind sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from billing.sandbox.simulator import Simulator, SimulatorConfig, create_simulator_app
from billing.store.clock import real_now
from billing.store.engine import make_engine
from billing.store.models import ChargeAttempt
from tests.factories import make_customer, make_plan, make_subscription, make_token

LONGEST_WAIT_SECONDS = 60
KEY = "xnd_development_processes"


@dataclass
class Process:
    running: subprocess.Popen[str]

    def stop(self) -> int:
        """SIGTERM, as an init system or a container would; the exit status."""
        self.running.terminate()
        return self.running.wait(timeout=LONGEST_WAIT_SECONDS)

    def kill(self) -> None:
        """As the kernel would when memory is short."""
        with suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait(timeout=LONGEST_WAIT_SECONDS)

    @property
    def output(self) -> str:
        assert self.running.stdout is not None
        return self.running.stdout.read()


@dataclass
class Site:
    """One database, one Valkey, one Xendit; processes are started and stopped at will."""

    environment: dict[str, str]
    folder: Path
    simulator: Simulator
    database_url: str
    _stack: ExitStack = field(repr=False)
    _started: list[Process] = field(default_factory=list, repr=False)

    def start(self, *command: str, without: str = "") -> Process:
        environment = {name: value for name, value in self.environment.items() if name != without}
        running = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(_end, running)
        self._started.append(Process(running))
        return self._started[-1]

    def start_workers(self) -> Process:
        return self.start("dramatiq", "workers", "--processes", "1", "--threads", "4")

    def start_scheduler(self, *, without: str = "") -> Process:
        return self.start("workers.scheduler", without=without)

    def subscribers(self, count: int) -> None:
        """Whose first period is due now."""
        answer = self.simulator.answer("POST", "/_simulator/tokens", "", {}, b'{"count": %d}' % count)
        tokens = answer.body.decode().split('"')[3::2]
        engine = make_engine(self.database_url, pool_size=2)
        with Session(engine) as session, session.begin():
            plan = make_plan(session)
            for token_id in tokens[:count]:
                customer = make_customer(session)
                token = make_token(session, customer, payment_token_id=token_id)
                make_subscription(session, customer=customer, plan=plan, token=token, start_at=real_now())
        engine.dispose()

    def statuses(self) -> list[str]:
        engine = make_engine(self.database_url, pool_size=2)
        with Session(engine) as session:
            statuses = list(session.scalars(select(ChargeAttempt.status)))
        engine.dispose()
        return statuses

    def leases_run_out(self) -> None:
        """Leases live in real time: as if the minutes had passed."""
        engine = make_engine(self.database_url, pool_size=2)
        with Session(engine) as session, session.begin():
            over = real_now() - timedelta(seconds=1)
            session.execute(
                update(ChargeAttempt).where(ChargeAttempt.lease_until.is_not(None)).values(lease_until=over)
            )
        engine.dispose()

    def collected(self) -> int:
        """How many payments Xendit collected."""
        return sum(len(payment.document["captures"]) for payment in self.simulator.world.payments.values())

    def charges(self) -> int:
        """How many charges Xendit was asked for."""
        calls = self.simulator.world.calls
        return sum(count for (endpoint, _), count in calls.items() if endpoint == "POST /v3/payment_requests")

    def wait_until(self, done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + LONGEST_WAIT_SECONDS
        while not done():
            if time.monotonic() > give_up:
                for process in self._started:
                    process.kill()
                told = [process.output[-2000:] for process in self._started]
                pytest.fail("\n".join([f"not within {LONGEST_WAIT_SECONDS} s: {self.statuses()}", *told]))
            time.sleep(0.05)


@pytest.fixture
def site(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    simulator = Simulator(real_now, config=SimulatorConfig(requests_per_minute=1_000_000))
    with ExitStack() as stack:
        address = _serve(simulator, stack)
        environment = {
            "PATH": os.environ["PATH"],
            "BILLING_DATABASE_URL": database_url,
            "BILLING_REDIS_URL": redis_url,
            "BILLING_XENDIT_BASE_URL": address,
            "BILLING_XENDIT_SECRET_KEY": KEY,
            "BILLING_XENDIT_REQUESTS_PER_MINUTE": "1000000",
            "BILLING_XENDIT_TIMEOUT_SECONDS": "5",
            "BILLING_LOG_FORMAT": "json",
            "PYTHONWARNINGS": "ignore",
        }
        yield Site(environment, tmp_path, simulator, database_url, stack)


def _serve(simulator: Simulator, stack: ExitStack) -> str:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    app = create_simulator_app(simulator, webhook_url=None, callback_token=None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=LONGEST_WAIT_SECONDS)
        listening.close()

    stack.callback(stop)
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def _end(running: subprocess.Popen[str]) -> None:
    """Whatever a test left running, its children included."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(timeout=LONGEST_WAIT_SECONDS)
    if running.stdout is not None:
        running.stdout.close()
