"""`billing simulator`: over HTTP, on the shared test clock, and refused where it cannot listen."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from sqlalchemy import text

from billing.sandbox import processes
from billing.sandbox.commands.simulator import FollowedClock
from billing.store.clock import real_now
from billing.store.engine import make_engine
from tests.cli.terminal import Terminal


def test_it_serves_and_ends_in_order(bare: Terminal) -> None:
    port = processes.free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "billing", "simulator", "--port", str(port)],
        env=bare.full_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(port)
        page = httpx.get(f"http://127.0.0.1:{port}/", headers={"accept": "text/html"}, timeout=10)
        assert page.status_code == 200
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert f"http://localhost:{port}" in err
    assert "warning: BILLING_XENDIT_CALLBACK_TOKEN is not set" in err


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the simulator does not listen")


def test_a_port_in_use_is_one_line(bare: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert bare.refused("simulator", "--port", port).endswith("choose another with --port")


@dataclass
class Stopwatch:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_its_time_is_the_test_clock_of_the_database(billing: Terminal) -> None:
    stopwatch = Stopwatch()
    with closing(FollowedClock(billing.environment["BILLING_DATABASE_URL"], monotonic=stopwatch)) as clock:
        assert abs(clock() - real_now()) < timedelta(seconds=5)
        billing.json("clock", "set", "2030-01-31T09:00:00Z")
        stopwatch.seconds = 0.15
        assert abs(clock() - datetime(2030, 1, 31, 9, tzinfo=UTC)) < timedelta(seconds=30)


def test_its_time_goes_on_while_the_database_is_away(billing: Terminal) -> None:
    billing.json("clock", "set", "2030-01-31T09:00:00Z")
    stopwatch = Stopwatch()
    with closing(FollowedClock(billing.environment["BILLING_DATABASE_URL"], monotonic=stopwatch)) as clock:
        before = clock()
        engine = make_engine(billing.environment["BILLING_DATABASE_URL"], pool_size=2)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE test_clock"))
        engine.dispose()
        stopwatch.seconds = 60
        assert timedelta() <= clock() - before < timedelta(seconds=30)
