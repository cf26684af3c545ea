"""A process of its own that works on the database until it is killed at a commit, as SIGKILL would: no clean-up runs.

It is built by the product's own composition root, talks HTTP to the simulator in the test's process, and is forked off
a server that has imported everything once (multiprocessing's forkserver), so one takes some 50 ms.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, NoReturn

from pydantic import SecretStr
from sqlalchemy.engine.default import DefaultDialect

import billing.app
import billing.work
from billing.cli import run_command
from billing.domain.gateway import Lane
from billing.parts import Parts
from billing.quota import Unlimited
from billing.runs import tick as dispatch
from billing.settings import Settings, load_settings
from billing.web import make_web
from tests.kills.points import all_points, point_of
from tests.world import StoppedClock

CALLBACK_TOKEN = "kills-callback-token"
LONGEST_SECONDS = 60

Moment = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Kill:
    """Just before the COMMIT is sent, or just after PostgreSQL has acknowledged it; at its first hit or a later one."""

    point: str
    moment: Moment
    hit: int = 1


@dataclass(frozen=True, slots=True)
class Order:
    """What one process is to do. Travels to it by pickle: `work` is a function of a module."""

    environment: Mapping[str, str]
    now: datetime
    work: Callable[[Process], object]
    deliveries: Sequence[bytes] = ()
    kill: Kill | None = None
    quota_used_up: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """What is known of it from outside: its exit status, the webhooks it answered, the commits of one that lived."""

    status: int | None
    answered: Mapping[int, int]
    commits: Sequence[str]
    error: str | None

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def run_process(order: Order) -> Ended:
    """Until it has done its work or is dead."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_live, args=(order, theirs), daemon=True)
    process.start()
    theirs.close()
    told: dict[str, Any] = {"commits": [], "error": None}
    answered: dict[int, int] = {}
    with ours:
        try:
            while ours.poll(LONGEST_SECONDS):
                kind, value = ours.recv()
                if kind == "answered":
                    answered[value[0]] = value[1]
                else:
                    told[kind] = value
        except EOFError:  # its end of the pipe is closed: it has ended
            process.join(LONGEST_SECONDS)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    process.close()
    return Ended(status, answered, told["commits"], told["error"])


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "tests.kills.scenarios"])
    return context


_CONTEXT = _context()


def _warm_up() -> None:
    """What every process needs, once, before it is forked off: drivers, schemas, and the code as it was loaded."""
    settings = Settings(_env_file=None, database_url=SecretStr("postgresql+psycopg://nobody@localhost/nowhere"))
    make_web(billing.app.build(settings), settings, None)
    all_points()


_warm_up()


# ------------------------------------------------------------------------------------------ inside the process


class UsedUpOnce(Unlimited):
    """A budget that has nothing for who asks first."""

    def __init__(self) -> None:
        self._asked = False

    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:
        first, self._asked = not self._asked, True
        return 0 if first else super().acquire(endpoint, lane, wanted, wait_seconds=wait_seconds)


@dataclass(slots=True)
class Process:
    """What the work of a scenario is handed."""

    app: billing.app.App
    deliveries: Sequence[bytes]
    _answers: Connection = field(repr=False)

    @property
    def parts(self) -> Parts:
        return self.app.parts

    def send(self, kind: str, ids: Sequence[str]) -> None:
        """The work is done here and now, as by a worker that is quick."""
        for identity in ids:
            billing.work.work_on(self.parts, kind, identity)

    def tick(self) -> None:
        while dispatch.tick(self.parts, self.send):
            pass

    def command(self, *arguments: str) -> None:
        """`billing ...`: must succeed."""
        status = run_command(arguments)
        assert status == 0, f"billing {' '.join(arguments)} ended with {status}"

    def receive_webhooks(self) -> None:
        """Each is posted to the real web application; what it answered is known outside before it goes on."""
        for number, body in enumerate(self.deliveries):
            headers = {"x-callback-token": CALLBACK_TOKEN, "content-type": "application/json"}
            tell = partial(self._tell_answer, number)
            self.ask_web("POST", "/webhooks/xendit", body, headers, tell)

    def _tell_answer(self, number: int, status: int) -> None:
        self._answers.send(("answered", (number, status)))

    def ask_web(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        answered: Callable[[int], None] = lambda _status: None,
    ) -> None:
        """One request, straight into the ASGI application: returns when its background work is done as well."""
        web = make_web(self.app, self.app.settings, None)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "server": ("billing.example", 80),
            "client": ("127.0.0.1", 1),
        }
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            elif not message.get("more_body"):
                answered(statuses[0])

        asyncio.run(web(scope, receive, send))
        assert statuses[0] == 200, f"{method} {path} was answered {statuses[0]}"


def _live(order: Order, answers: Connection) -> None:
    """The whole life of the process. Nothing of it reaches the test's output but what goes through the pipe."""
    _keep_quiet()
    os.chdir("/")  # no .env of whoever runs the tests
    os.environ.update(order.environment)
    billing.app.make_clock = lambda _sessions, *, test_clock: StoppedClock(order.now)  # type: ignore[assignment,attr-defined] # noqa: ARG005
    commits = _watch_commits(order.kill)
    app = billing.app.build(load_settings("database_url"))
    if order.quota_used_up:
        app = replace(app, parts=replace(app.parts, quota=UsedUpOnce()))
    try:
        order.work(Process(app, order.deliveries, answers))
    except BaseException:
        answers.send(("error", traceback.format_exc()))
        raise
    answers.send(("commits", commits))


def _keep_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _watch_commits(kill: Kill | None) -> list[str]:
    """Every COMMIT of this process, by the block it ends; the one that is meant is the last thing it does."""
    commits: list[str] = []
    send_commit = DefaultDialect.do_commit

    def do_commit(dialect: DefaultDialect, connection: Any) -> None:
        point = point_of(sys._getframe(1))
        commits.append(point.name if point else f"unknown: {''.join(traceback.format_stack()[-12:])}")
        meant = kill is not None and commits[-1] == kill.point and commits.count(kill.point) == kill.hit
        if meant and kill is not None and kill.moment == "before":
            _die()
        send_commit(dialect, connection)  # type: ignore[no-untyped-call]
        if meant:
            _die()

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]
    return commits


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
