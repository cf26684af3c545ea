"""Where the simulated processes run: one step at a time, in an order out of the seed, until one of them is stopped.

A process is a name, whether it is alive, and its tasks. A task is a greenlet: ordinary code of the product that
runs until it reaches a *pause*. There is a pause after every commit and around every call to the gateway, which is
where two processes can get in each other's way: a transaction itself is PostgreSQL's business, and tests with threads
and real processes are about that. At a pause the task may be told to die, to sleep, or to wait while others go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn

import greenlet
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from billing.parts import Parts
from billing.sandbox.simulation.fate import Fate


class Killed(BaseException):
    """SIGKILL: nothing of this process runs after this line. Not an Exception: no code of ours may survive it."""


class Unsafe(AssertionError):
    """Something that must never happen has happened."""


@dataclass(eq=False, slots=True)
class Process:
    """A scheduler, a worker, a web process, an operator's terminal."""

    name: str
    alive: bool = True
    back_at: datetime | None = None  # when whoever watches over it starts it again
    leaving: bool = False  # told to stop in a deploy: finishes what it has, takes nothing new
    tasks: list[Task] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Task:
    """One thread of a process, on one unit of work."""

    process: Process
    label: str
    greenlet: greenlet.greenlet
    wakes_at: datetime | None = None
    killed: bool = False
    in_transaction: bool = False


class Stage:
    """The clock, the tasks, and who is next. `told` is the history: (when, who, what)."""

    def __init__(self, fate: Fate, now: datetime) -> None:
        self.fate = fate
        self.now = now  # the world's time, which is Xendit's
        self.skew = timedelta()  # how wrong the clock of our machines is
        self.uptime_seconds = 0.0
        self.violations: list[str] = []
        self.told: list[tuple[datetime, str, str]] = []
        self.tasks: list[Task] = []
        self.steps = 0
        self._order = random.Random(f"order:{fate.seed}")
        self._hub = greenlet.getcurrent()
        self._current: Task | None = None

    # Time ------------------------------------------------------------------------------------------------------

    def machine(self) -> datetime:
        """What our machines take for the time."""
        return self.now + self.skew

    def uptime(self) -> float:
        return self.uptime_seconds

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.uptime_seconds += seconds

    def pass_until(self, instant: datetime) -> None:
        self.pass_time(max(0.0, (instant - self.now).total_seconds()))

    # Tasks -----------------------------------------------------------------------------------------------------

    def begin(self, process: Process, label: str, work: Callable[[], object]) -> None:
        """A thread of the process starts on something. Its errors are the play's business (`work` catches them)."""
        task = Task(process, label, greenlet.greenlet(lambda: self._run(work), parent=self._hub))
        process.tasks.append(task)
        self.tasks.append(task)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Killed:
            return

    def runnable(self) -> list[Task]:
        return [task for task in self.tasks if task.wakes_at is None or task.wakes_at <= self.now]

    def next_waking(self) -> datetime | None:
        return min((task.wakes_at for task in self.tasks if task.wakes_at is not None), default=None)

    def step(self, runnable: list[Task]) -> None:
        """One of them goes on to its next pause."""
        task = runnable[0] if len(runnable) == 1 else self._order.choice(runnable)
        self.steps += 1
        self.pass_time(self._order.random() * 0.04)
        task.wakes_at = None
        self._resume(task)
        self.bury()

    def _resume(self, task: Task) -> None:
        before, self._current = self._current, task
        try:
            task.greenlet.switch()
        finally:
            self._current = before
            if task.greenlet.dead:
                self._forget(task)

    def _forget(self, task: Task) -> None:
        self.tasks.remove(task)
        task.process.tasks.remove(task)

    def kill(self, process: Process, *, back_in_seconds: float) -> None:
        """All its threads are gone where they stand. What PostgreSQL had not committed is rolled back."""
        process.alive = False
        process.back_at = self.now + timedelta(seconds=back_in_seconds)
        self.tell(process.name, f"killed with {len(process.tasks)} thread(s) at work")
        for task in process.tasks:
            task.killed = True

    def bury(self) -> None:
        """The threads of killed processes end here, at their pauses, before anybody else does anything."""
        while killed := [task for task in self.tasks if task.killed]:
            for task in killed:
                if task.greenlet:
                    self._resume(task)
                else:
                    self._forget(task)  # it had not begun

    # What tasks meet -------------------------------------------------------------------------------------------

    def tell(self, who: str, what: str) -> None:
        self.told.append((self.now, who, what))

    @contextmanager
    def doing(self, label: str) -> Iterator[None]:
        """For the time of the block the task at work does this."""
        task = self._current
        if task is None:
            yield
            return
        before, task.label = task.label, label
        try:
            yield
        finally:
            task.label = before

    @property
    def work(self) -> str:
        """What the task at work does, in words."""
        return self._current.label if self._current else ""

    def note(self, what: str) -> None:
        """Told by the task that runs (or by the play)."""
        self.tell(self._current.process.name if self._current else "-", what)

    def pause(self, where: str) -> None:
        """Others go on; the process may be killed meanwhile. Outside of a task nothing happens."""
        task = self._current
        if task is None:
            return
        if not task.killed and self.fate.happens("death"):
            self.note(f"dies {where}")
            self.kill(task.process, back_in_seconds=self.fate.between(1, 120))
        if not task.killed:
            if self.fate.happens("stall"):
                self.sleep_quietly(task, self.fate.between(1, 1200), where)
            self._hub.switch()
        if task.killed:
            raise Killed

    def sleep_quietly(self, task: Task, seconds: float, where: str) -> None:
        """SIGSTOP, a long garbage collection, a slow answer: this thread stands still, the world does not."""
        self.note(f"stands still for {seconds:.0f} s {where}")
        task.wakes_at = self.now + timedelta(seconds=seconds)

    def sleep(self, seconds: float, where: str) -> None:
        """A call that takes its time."""
        if self._current is None:
            return
        self.sleep_quietly(self._current, seconds, where)
        self._hub.switch()
        if self._current.killed:
            raise Killed

    def check_alive(self) -> None:
        """Unwinding from a kill, code may reach for the database once more: it is not there any more."""
        if self._current is not None and self._current.killed:
            raise Killed

    @contextmanager
    def transaction_of_task(self) -> Iterator[None]:
        task = self._current
        if task is not None:
            task.in_transaction = True
        try:
            yield
        finally:
            if task is not None:
                task.in_transaction = False

    def check_no_transaction(self) -> None:
        if self._current is not None and self._current.in_transaction:
            self.unsafe("a transaction is open while the gateway is called")

    def unsafe(self, what: str) -> NoReturn:
        """Remembered as well as raised: whatever code of ours does with the exception, the play ends."""
        self.violations.append(what)
        raise Unsafe(what)


class ConnectionLost(OperationalError):
    def __init__(self) -> None:
        super().__init__("COMMIT", None, Exception("server closed the connection unexpectedly"))


@dataclass(frozen=True, slots=True)
class SteppedParts(Parts):
    """Parts whose every commit is a pause, and may be the last thing the process does, or the first it does not."""

    stage: Stage

    def __post_init__(self) -> None:
        object.__setattr__(self, "transaction", self._stepped)

    @contextmanager
    def _stepped(self) -> Iterator[Session]:
        stage = self.stage
        stage.check_alive()
        with stage.transaction_of_task(), self.sessions.begin() as session:
            yield session
            if stage.fate.happens("database_lost_before"):
                stage.note("the database is lost before the commit")
                raise ConnectionLost
        if stage.fate.happens("database_lost_after"):
            stage.note("the database is lost right after the commit")
            raise ConnectionLost
        stage.pause("after a commit")
