"""`billing dev`: everything in one terminal, and a second terminal that needs no settings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from billing.sandbox import processes
from billing.settings import DEV_ENV_FILE
from tests.cli.terminal import Terminal

SECONDS = 90.0  # starting five processes on a busy machine


@contextmanager
def _running(terminal: Terminal, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "billing", "dev", *words],
            env=terminal.full_environment({}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(timeout=60)


def _wait(until: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _processes_in(session_of: int) -> list[str]:
    """What descends from a process, by its environment's folder: nothing may be left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"BILLING_DEV_TEST={session_of}\0".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc for what is left running")
@pytest.mark.timeout(300)
def test_a_second_terminal_needs_nothing_and_nothing_is_left_running(
    bare: Terminal, servers: object, tmp_path: Path
) -> None:
    del servers  # skips where there are no embedded servers
    log, mark = tmp_path / "log", os.getpid()
    bare.environment["BILLING_DEV_TEST"] = str(mark)
    port, simulator_port = processes.free_port(), processes.free_port()
    ports = ("--port", str(port), "--simulator-port", str(simulator_port))
    with _running(bare, log, *ports) as dev:
        _wait(lambda: "Ready" in log.read_text(), dev, log)
        _nothing_is_complained_of(log)
        assert DEV_ENV_FILE.stat().st_mode & 0o777 == 0o600
        assert DEV_ENV_FILE.read_text().startswith(f"# pid {dev.pid}\n")
        assert "runs in this folder already" in bare.refused("dev")

        bare.json(
            "plan", "create", "gold", "--name", "Gold", "--amount", "99000", "--currency", "IDR", "--every", "month"
        )
        bare.json("customer", "create", "ana", "--name", "Ana", "--email", "ana@example.com", "--country", "ID")
        words = ("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold", "--mode", "components")
        session = bare.json(*words)["session"]
        simulator = f"http://127.0.0.1:{simulator_port}/_simulator/sessions/{session['xendit_session_id']}"
        httpx.post(f"{simulator}/complete", json={}, timeout=30).raise_for_status()

        # The webhook starts the subscription, the scheduler opens its first period, a worker charges it.
        _wait(lambda: _paid(bare) == 1, dev, log)
        bare.json("clock", "advance", "31d")
        _wait(lambda: _paid(bare) == 2, dev, log)
        assert bare.json("run", "--wait")["waiting"] == 0
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200

        dev.send_signal(signal.SIGINT)
        assert dev.wait(timeout=60) == 0
    _nothing_is_complained_of(log)
    assert not DEV_ENV_FILE.exists()
    assert _processes_in(mark) == []
    assert "Traceback" not in log.read_text()


def _nothing_is_complained_of(log: Path) -> None:
    """Each process finds the ones it needs: they were started before it."""
    told = log.read_text().lower()
    assert [line for line in told.splitlines() if "warning" in line or "error" in line] == []
    order = [
        line.partition("|")[0].strip()
        for line in told.splitlines()
        if "ready for action" in line or "scheduler.started" in line
    ]
    assert order == ["workers", "scheduler"]


def _paid(terminal: Terminal) -> int:
    return len(terminal.json("invoice", "list", "--status", "paid"))


def test_a_port_in_use_is_one_line(bare: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}" in bare.refused("dev", "--port", port)
        line = bare.refused("dev", "--port", str(processes.free_port()), "--simulator-port", port)
        assert line.endswith("--simulator-port")


def test_the_two_ports_differ(bare: Terminal) -> None:
    assert "must differ" in bare.refused("dev", "--port", "8100", status=2)


def test_a_production_key_is_not_played_with(bare: Terminal) -> None:
    line = bare.refused("dev", status=2, BILLING_XENDIT_SECRET_KEY="xnd_production_x")
    assert line.startswith("BILLING_XENDIT_SECRET_KEY: a production key")


def test_the_file_of_a_dead_dev_does_not_count(bare: Terminal) -> None:
    DEV_ENV_FILE.parent.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    DEV_ENV_FILE.write_text(f"# pid {ended.pid}\nBILLING_DATABASE_URL='postgresql+psycopg://gone/x'\n")
    assert bare.refused("plan", "list", status=2).startswith("BILLING_DATABASE_URL: not set")


def test_nor_when_its_process_number_is_somebody_elses_by_now(bare: Terminal) -> None:
    """After a reboot, or in a container that was killed and started again."""
    DEV_ENV_FILE.parent.mkdir()
    DEV_ENV_FILE.write_text(f"# pid {os.getpid()}\nBILLING_DATABASE_URL='postgresql+psycopg://gone/x'\n")
    assert bare.refused("plan", "list", status=2).startswith("BILLING_DATABASE_URL: not set")
