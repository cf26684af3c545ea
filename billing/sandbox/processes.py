"""Child processes that never outlive us: web, workers, scheduler and simulator for `billing demo` and `billing dev`.

Each child leads a process group of its own, so Ctrl-C reaches only us and we stop the others in order. Should we be
killed, the kernel tells them to stop (Linux). Call `start` from the main thread: that signal follows the thread.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from billing.errors import ServiceUnavailable

STOP_SECONDS = 10.0
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1

# Loaded before any fork: between fork and exec as little as possible should happen.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]


@dataclass(slots=True)
class Children:
    """Use through `children()`, which stops them whatever happens."""

    running: list[Child] = field(default_factory=list)

    def start(
        self, name: str, module: Sequence[str], *, environment: Mapping[str, str], output: int | IO[bytes]
    ) -> Child:
        """`python -m module...`, its stdout and stderr to `output`."""
        parent = os.getpid()
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=lambda: _end_with(parent),  # noqa: PLW1509 - one call into libc, which is loaded
        )
        child = Child(name, process)
        self.running.append(child)
        return child

    def dead(self) -> Child | None:
        """The first that ended by itself; None while all run."""
        return next((child for child in self.running if child.process.poll() is not None), None)

    def stop(self) -> None:
        """SIGTERM to all at once; whoever is left after some seconds is killed, with all it has started."""
        for child in self.running:
            with suppress(ProcessLookupError):
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self.running:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(deadline - time.monotonic(), 0.1))
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        self.running.clear()


@contextmanager
def children() -> Iterator[Children]:
    started = Children()
    try:
        yield started
    finally:
        started.stop()


def wait_until(ready: Callable[[], bool], what: str, children: Children, *, seconds: float = 60.0) -> None:
    """Raises ServiceUnavailable when `what` is not there in time, or a child has ended."""
    deadline = time.monotonic() + seconds
    while not ready():
        child = children.dead()
        if child is not None:
            raise ServiceUnavailable(f"{child.name} ended by itself (exit status {child.process.returncode})")
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"{what} was not ready in {seconds:.0f} seconds")
        time.sleep(0.02)


def answers(port: int, path: str) -> bool:
    """Whether a server on this machine answers a GET with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def signals_end_us() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, and only once: an impatient second one must not leave half of
    the children running. What `nohup` has ignored stays ignored."""
    heard = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]

    def leave(number: int, _frame: FrameType | None) -> None:
        for stop in heard:
            signal.signal(stop, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """Runs in the child, between fork and exec."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM.value)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
