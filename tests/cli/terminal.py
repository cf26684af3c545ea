"""A terminal to type `billing ...` into, and a simulated Xendit beside it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from billing.cli import run_command
from billing.sandbox.simulator import Simulator, SimulatorConfig, create_simulator_app
from billing.store.clock import real_now

NO_LIMIT = "1000000"
KEY = "xnd_development_cli"


@dataclass(frozen=True, slots=True)
class Ended:
    """What one command left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it is to be."""
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one line on stderr of a command that was refused, and nothing on stdout."""
        assert self.out == ""
        assert self.err.startswith("billing: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("billing: ").rstrip("\n")


@dataclass(slots=True)
class Terminal:
    """Runs commands in this process (fast) or as real processes (for the edges)."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, stdin: str = "", **settings: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in (self.environment | settings).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            status = run_command(words)
        return Ended(status, out.getvalue(), err.getvalue())

    def json(self, *words: str, **settings: str) -> Any:
        """A command that is expected to work, and its document."""
        ended = self(*words, "--json", **settings)
        assert ended.status == 0, ended.err
        return ended.document

    def refused(self, *words: str, status: int = 1, **settings: str) -> str:
        """A command that is expected to be refused, and why."""
        ended = self(*words, **settings)
        assert ended.status == status, ended.err
        return ended.refusal

    def as_process(self, *words: str, stdin: str | None = None, **settings: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "billing", *words],
            env=self.full_environment(settings),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def full_environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BILLING_")}
        return inherited | self.environment | settings


@dataclass(slots=True)
class Xendit:
    """The simulator over HTTP, in real time."""

    url: str
    client: httpx.Client

    def complete(self, session: Mapping[str, Any], **choices: object) -> None:
        """The customer goes through the page."""
        path = f"/_simulator/sessions/{session['xendit_session_id']}/complete"
        self.client.post(path, json=choices).raise_for_status()

    def script(self, payment_token_id: str, *outcomes: str) -> None:
        """What comes of the next charges of a token."""
        path = f"/_simulator/tokens/{payment_token_id}/script"
        self.client.post(path, json={"outcomes": outcomes}).raise_for_status()

    def new_token(self, **members: object) -> str:
        answer = self.client.post("/_simulator/tokens", json=members)
        answer.raise_for_status()
        return str(answer.json()["payment_token_id"])

    def fail(self, endpoint: str, outcome: str, count: int = 1) -> None:
        fault = {"endpoint": endpoint, "outcome": outcome, "count": count}
        self.client.post("/_simulator/faults", json=fault).raise_for_status()


@contextmanager
def simulated_xendit() -> Iterator[Xendit]:
    config = SimulatorConfig(requests_per_minute=int(NO_LIMIT))
    app = create_simulator_app(Simulator(real_now, config=config), webhook_url=None, callback_token=None)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=10) as client:
            yield Xendit(url, client)
        server.should_exit = True
        thread.join(timeout=10)
