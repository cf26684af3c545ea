"""`billing dev`: the whole system in one terminal, with nothing to install or to set.

Embedded PostgreSQL and Valkey, the simulator, web, workers and scheduler, each a child process. While it runs,
`.billing/dev.env` tells every other command in this folder where everything is.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.text import Text

from billing.cli import output
from billing.errors import Conflict, InvalidSetting, ServiceUnavailable
from billing.sandbox import embedded, processes
from billing.sandbox.commands.simulator import refuse_port_in_use
from billing.sandbox.processes import Children
from billing.settings import DEV_ENV_FILE, Settings, dev_is_running, load_settings
from billing.store.engine import make_engine
from billing.store.migrate import upgrade

HOST = "127.0.0.1"
REQUESTS_PER_MINUTE = 6_000  # the simulator's quota here: nobody wants to wait for a quota while trying things out
POLL_SECONDS = 0.2
SAID_WHEN_READY = {"workers": "ready for action", "scheduler": "scheduler.started"}
COLOURS = ("cyan", "magenta", "green", "yellow")


def dev(
    port: Annotated[int, typer.Option(help="Where web listens.", min=1, max=65_535)] = 8000,
    simulator_port: Annotated[int, typer.Option(help="Where the Xendit simulator listens.", min=1, max=65_535)] = 8100,
) -> None:
    """Run everything in this terminal: database, broker, simulator, web, workers, scheduler. Ctrl-C ends it.

    In a second terminal in this folder every command works without settings. The test clock is on, no money can move,
    and what was made is forgotten at the end (unless BILLING_DATABASE_URL names a database of yours).
    """
    settings = load_settings()
    _refuse_what_cannot_work(settings, port, simulator_port)
    with suppress(KeyboardInterrupt, SystemExit), processes.signals_end_us():  # Ctrl-C, SIGTERM: how it is meant to end
        _run(settings, port, simulator_port)


def _run(settings: Settings, port: int, simulator_port: int) -> None:
    with ExitStack() as running:
        env = _environment(settings, running, port, simulator_port)
        output.note(f"schema at revision {upgrade(env['BILLING_DATABASE_URL'])}")
        running.enter_context(_told_to_others(env))
        children = running.enter_context(processes.children())
        _start(children, env, port, simulator_port)
        _welcome(port, simulator_port)
        _watch(children)


def _refuse_what_cannot_work(settings: Settings, port: int, simulator_port: int) -> None:
    if dev_is_running():
        raise Conflict("`billing dev` runs in this folder already; use it, or end it with Ctrl-C in its terminal first")
    if settings.is_production:
        raise InvalidSetting(
            "BILLING_XENDIT_SECRET_KEY: a production key; `billing dev` only plays: unset it, for example with"
            " env -u BILLING_XENDIT_SECRET_KEY billing dev"
        )
    if port == simulator_port:
        raise typer.BadParameter("--port and --simulator-port must differ")
    refuse_port_in_use(HOST, port)
    refuse_port_in_use(HOST, simulator_port, "--simulator-port")


# --------------------------------------------------------------------------------------------- surroundings


def _environment(settings: Settings, running: ExitStack, port: int, simulator_port: int) -> dict[str, str]:
    """Every setting the children and the second terminal need. What is set already is kept, but Xendit is simulated."""
    database, redis = settings.database, settings.redis
    if database:
        make_engine(database).dispose()  # a URL that cannot be used is refused in one line
    else:
        output.note("starting an embedded PostgreSQL")
        database = running.enter_context(embedded.postgres()).url
    redis = redis or running.enter_context(embedded.valkey()).url
    public_url = settings.public_url
    if "public_url" not in settings.model_fields_set:
        public_url = f"http://localhost:{port}"
    return {
        "BILLING_DATABASE_URL": database,
        "BILLING_REDIS_URL": redis,
        "BILLING_XENDIT_SECRET_KEY": settings.secret_key or f"xnd_development_{secrets.token_hex(16)}",
        "BILLING_XENDIT_CALLBACK_TOKEN": ",".join(settings.callback_tokens) or secrets.token_hex(16),
        "BILLING_XENDIT_BASE_URL": f"http://localhost:{simulator_port}",
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": str(_quota(settings)),
        "BILLING_PUBLIC_URL": public_url,
        # The simulator only looks whether it is https.
        "BILLING_COMPONENTS_ORIGINS": ",".join(settings.components_origins) or f"https://localhost:{port}",
        "BILLING_COMPONENTS_SCRIPT_URL": settings.components_script_url
        or f"http://localhost:{simulator_port}/components.js",
        "BILLING_TEST_CLOCK": "true",
    }


def _quota(settings: Settings) -> int:
    return max(1, int(settings.xendit_requests_per_minute or REQUESTS_PER_MINUTE))


@contextmanager
def _told_to_others(env: Mapping[str, str]) -> Iterator[None]:
    """The file from which a second terminal learns all this. It holds a key, so only we may read it."""
    lines = [f"# pid {os.getpid()}", *(f"{name}='{_quoted(value)}'" for name, value in env.items())]
    DEV_ENV_FILE.parent.mkdir(exist_ok=True)
    DEV_ENV_FILE.unlink(missing_ok=True)
    descriptor = os.open(DEV_ENV_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)  # how others see that we live
            yield
    finally:
        DEV_ENV_FILE.unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps something there
            DEV_ENV_FILE.parent.rmdir()


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


# ------------------------------------------------------------------------------------------------- children


@dataclass(frozen=True, slots=True)
class _Printer:
    """Lines of one child, with its name in front; one line at a time for all of them."""

    prefix: Text
    out: Console
    lock: threading.Lock
    awaited: str  # what it says when it is ready
    heard: threading.Event = field(default_factory=threading.Event)

    def relay(self, lines: IO[bytes]) -> None:
        with suppress(ValueError, OSError):  # closed while we read, or nobody reads us any more
            for line in lines:
                text = line.decode("utf-8", errors="replace").rstrip("\n")
                with self.lock:
                    self.out.print(Text.assemble(self.prefix, text), soft_wrap=True)
                if self.awaited and self.awaited in text:
                    self.heard.set()


def _modules(port: int, simulator_port: int, requests_per_minute: str) -> dict[str, list[str]]:
    webhooks = f"http://localhost:{port}/webhooks/xendit"
    return {
        "simulator": [
            *("billing", "simulator", "--port", str(simulator_port)),
            *("--webhook-url", webhooks, "--requests-per-minute", requests_per_minute),
        ],
        "web": [
            *("uvicorn", "billing.web:create_app", "--factory"),
            *("--host", HOST, "--port", str(port), "--no-access-log", "--log-level", "warning"),
        ],
        "workers": ["dramatiq", "workers", "--processes", "1", "--threads", "8"],
        "scheduler": ["workers.scheduler"],
    }


def _start(children: Children, env: Mapping[str, str], port: int, simulator_port: int) -> None:
    """One after the other, each when the one before answers: who finds the next one missing would warn of it."""
    out, lock = output.console(), threading.Lock()
    environment = {**os.environ, **env, "PYTHONUNBUFFERED": "1"}
    modules = _modules(port, simulator_port, env["BILLING_XENDIT_REQUESTS_PER_MINUTE"])
    for (name, module), colour in zip(modules.items(), COLOURS, strict=True):
        child = children.start(name, module, environment=environment, output=subprocess.PIPE)
        printer = _Printer(Text(f"{name:<9} | ", style=colour), out, lock, SAID_WHEN_READY.get(name, ""))
        threading.Thread(target=printer.relay, args=(child.process.stdout,), daemon=True).start()
        listens = {"simulator": simulator_port, "web": port}.get(name)
        ready = printer.heard.is_set if listens is None else partial(_answers, listens)
        processes.wait_until(ready, name, children)


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _watch(children: Children) -> None:
    """Until a signal ends it; or a child dies, and then the rest is not worth having."""
    while (child := children.dead()) is None:
        time.sleep(POLL_SECONDS)
    raise ServiceUnavailable(
        f"{child.name} ended by itself (exit status {child.process.returncode}), so the rest was stopped, too;"
        " its last lines above say why"
    )


def _welcome(port: int, simulator_port: int) -> None:
    output.say(f"""
Ready. Ctrl-C ends it.

  web        http://localhost:{port}   (webhooks, /readyz, /metrics)
  simulator  http://localhost:{simulator_port}   (sessions, payments, test cards)

In a second terminal in this folder:

  billing plan create gold --name Gold --amount 99000 --currency IDR --every month
  billing customer create ana --name "Ana Putri" --email ana@example.com --country ID
  billing subscribe ana gold --via save --reference ana-gold

Open the link it prints and save a test card. Then let a month pass, and see what happened:

  billing clock advance 31d
  billing explain ana-gold
""")
