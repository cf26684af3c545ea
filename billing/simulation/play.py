"""One world and its year: schedulers, workers, web and people around one database, one Xendit and one clock.

    Play(seed, engine).live_through()    lives the year and raises Failed, with its history, if a promise was broken

Time stands still while anybody has something to do and jumps to the next instant at which somebody will.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import count

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from billing.app import work_on
from billing.domain.gateway import EventKind
from billing.errors import BillingError
from billing.quota import Unlimited
from billing.services import dispatch, webhooks
from billing.services import guards as runs_of_the_day
from billing.services.parts import Parts, Rules
from billing.simulation import guards, oracle
from billing.simulation.fate import Fate
from billing.simulation.line import Line
from billing.simulation.people import People, Subscriber, draw_subscriber
from billing.simulation.stage import ConnectionLost, Process, Stage, SteppedParts
from billing.store.clock import machine_time
from billing.store.engine import make_sessions
from billing.store.models import ids_from
from billing.xendit.client import XenditGateway
from billing.xendit.simulator import Simulator, SimulatorConfig
from billing.xendit.simulator.webhooks import Delivery
from billing.xendit.webhook import read_event, read_payload

BEGINS = datetime(2027, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NO_LIMIT = 1_000_000_000
WORKER_THREADS = 3
LOOK_AGAIN = timedelta(seconds=2)  # a scheduler's tick
COMPARED_AT = time(3, 17)  # each day with Xendit's list
NOBODY_LOOKS = timedelta(minutes=5)  # all are down or busy
SHOWN = 60  # lines of history under a failure
STEPS_AT_ONE_INSTANT = 20_000  # more than that, and something goes round in circles

# When a scheduler would find something to do, after some instant. One statement: it is asked at every standstill.
_NEXT_DUE = text("""
SELECT min(due) FROM (
    SELECT min(next_billing_at) AS due FROM subscriptions WHERE next_billing_at > :after
        AND status IN ('trialing', 'active', 'past_due') AND hold_reason IS NULL
    UNION ALL SELECT min(greatest(scheduled_at, lease_until)) FROM charge_attempts
        WHERE status = 'scheduled' AND greatest(scheduled_at, lease_until) > :after
    UNION ALL SELECT min(lease_until) FROM charge_attempts WHERE status = 'submitted' AND lease_until > :after
    UNION ALL SELECT min(greatest(next_check_at, lease_until)) FROM charge_attempts
        WHERE greatest(next_check_at, lease_until) > :after AND next_check_at IS NOT NULL
    UNION ALL SELECT min(grace_ends_at) FROM invoices WHERE status = 'open' AND grace_ends_at > :after
    UNION ALL SELECT min(next_check_at) FROM payment_sessions WHERE next_check_at > :after
    UNION ALL SELECT min(next_check_at) FROM payment_tokens WHERE next_check_at > :after
    UNION ALL SELECT min(greatest(next_try_at, lease_until)) FROM webhook_events
        WHERE greatest(next_try_at, lease_until) > :after AND next_try_at IS NOT NULL
    UNION ALL SELECT min(greatest(next_try_at, lease_until)) FROM refunds
        WHERE greatest(next_try_at, lease_until) > :after AND next_try_at IS NOT NULL
) AS dues
""")


class Failed(AssertionError):
    """A promise was broken; the text says which, and what led to it."""


@dataclass(frozen=True, slots=True)
class Year:
    """What one world went through."""

    seed: int
    subscribers: int
    steps: int
    charges: int
    collected: int
    refunded: int
    faults: Counter[str]


class Play:
    def __init__(
        self, seed: int, engine: Engine, *, subscribers: int = 2, days: int = 365, gentle: bool = False
    ) -> None:
        self.fate = Fate(seed, gentle=gentle)
        start = BEGINS + timedelta(hours=self.fate.between(0, 24))
        self.stage = Stage(self.fate, start)
        self.end = start + timedelta(days=days)
        self.calm_from = start + timedelta(days=days * 2 / 3)
        self.engine = engine
        self._database = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.simulator = Simulator(self._xendits_time, seed=seed, config=self._simulator_config())
        self.simulator.world.webhooks.faults.without_payment_failure = self.fate.no_failure_webhooks
        self.line = Line(self.stage, self.simulator, engine)
        self.parts = SteppedParts(
            sessions=make_sessions(engine),
            clock=self,
            gateway=XenditGateway(
                base_url="https://xendit.example", secret_key="xnd_development_simulated", timeout_seconds=30,
                transport=self.line,
            ),
            quota=Unlimited(),
            rules=Rules(hold_in_doubt=self.fate.coin(0.1), refund_overpayments=not self.fate.coin(0.1)),
            stage=self.stage,
        )  # fmt: skip
        self.has_redis = not self.fate.coin(0.2)
        self.people = People(self.fate, self.simulator, self._send)
        self.subscribers = [draw_subscriber(self.fate, number, start) for number in range(subscribers)]
        self._cast()
        self._sequence = count()
        self._queue: list[tuple[datetime, int, str, str]] = []  # Redis
        self._on_the_way: list[tuple[datetime, int, Delivery]] = []
        self._plans: list[tuple[datetime, int, Callable[[], None]]] = []
        self._ticks_at = start
        self._rest_until: datetime | None = None  # a scheduler found nothing to do before then
        self._runs_watched = start.date()
        self._days_compared = start.date()
        self._chance = random.Random(f"ids:{seed}")

    def now(self) -> datetime:
        """The clock of billing, which is that of our machines."""
        return self.stage.machine()

    def _xendits_time(self) -> datetime:
        return self.stage.now

    def _simulator_config(self) -> SimulatorConfig:
        # How soon a payment shows up in Xendit's list is not documented: at once in some worlds, in others hours later.
        lag = self.fate.between(60, 20 * 3600) if self.fate.coin(0.3) else 0
        return SimulatorConfig(requests_per_minute=NO_LIMIT, decide=self.fate.decide, transactions_lag_seconds=lag)

    def _cast(self) -> None:
        self.schedulers = [Process("scheduler-1"), Process("scheduler-2")]
        self.workers = [Process("worker-1"), Process("worker-2")]
        self.webs = [Process("web-1"), Process("web-2")]
        self.terminal = Process("terminal")

    # The year ------------------------------------------------------------------------------------------------

    def live_through(self) -> Year:
        """Raises Failed."""
        with ExitStack() as world:
            world.enter_context(machine_time(self.stage.machine, self.stage.uptime))
            world.enter_context(ids_from(self._new_id))
            world.callback(self.parts.gateway.close)  # type: ignore[attr-defined]
            try:
                self._plan_the_year()
                self._live(self.calm_from)
                self._calm()
                self._live(self.end)
                self._check(oracle.judge(self))
            except Failed:
                raise
            except BaseException as error:
                raise Failed(self._history(f"{error.__class__.__name__}: {error}")) from error
        return self._year()

    def _new_id(self) -> str:
        """As uuid7: by time, then by chance."""
        milliseconds = int(self.stage.machine().timestamp() * 1000)
        return f"{milliseconds:012x}7{next(self._sequence):07x}{self._chance.getrandbits(48):012x}"

    def _plan_the_year(self) -> None:
        given = self.parts
        plain = Parts(given.sessions, given.clock, given.gateway, given.quota, given.rules)  # before the first fault
        for who in self.subscribers:
            self.people.create(plain, who)
            self._at(self.stage.now, partial(self._come_in, who))
        for at, kind in self.fate.happenings(self.stage.now, self.calm_from):
            self._at(at, getattr(self, f"_{kind}"))

    def _at(self, instant: datetime, act: Callable[[], None]) -> None:
        heapq.heappush(self._plans, (instant, next(self._sequence), act))

    def _calm(self) -> None:
        """Nothing goes wrong any more; whoever was down is up, and a paused subscriber comes back."""
        self.stage.note("from here on nothing goes wrong")
        self.fate.calm = True
        self.stage.skew = timedelta()
        self.simulator.world.webhooks.faults.without_payment_failure = False
        for process in self._processes():
            process.alive, process.leaving, process.back_at = True, False, None
        for who in self.subscribers:
            self._by_hand(partial(self.people.resume_if_paused, who=who))

    def _processes(self) -> list[Process]:
        return [*self.schedulers, *self.workers, *self.webs, self.terminal]

    def _live(self, until: datetime) -> None:
        stage, quiet_since, steps = self.stage, self.stage.now, 0
        while stage.now < until:
            self._begin_what_is_due()
            runnable = stage.runnable()
            if runnable:
                stage.step(runnable)
                self._check(stage.violations)
                steps += 1
                if steps > STEPS_AT_ONE_INSTANT and stage.now - quiet_since < DAY:
                    raise Failed(self._history("work goes round in circles"))
                continue
            if stage.now - quiet_since >= DAY:
                quiet_since, steps = stage.now, 0
            stage.pass_until(min(self._next_instant(), until))

    def _next_instant(self) -> datetime:
        waiting = [self._ticks_at, self.stage.next_waking(), self.simulator.next_due_at()]
        waiting += [heap[0][0] for heap in (self._queue, self._on_the_way, self._plans) if heap]
        waiting += [process.back_at for process in self._processes()]
        later = [at for at in waiting if at is not None and at > self.stage.now]
        return min(later, default=self.end)

    # Who begins what -----------------------------------------------------------------------------------------

    def _begin_what_is_due(self) -> None:
        now = self.stage.now
        for process in self._processes():
            if process.back_at is not None and process.back_at <= now:
                process.alive, process.back_at = True, None
                self.stage.tell(process.name, "is started again")
            if process.leaving and not process.tasks:
                process.leaving = False  # the old version has left, this is the new one
        while self._plans and self._plans[0][0] <= now:
            heapq.heappop(self._plans)[2]()
        self._deliver_webhooks(now)
        self._hand_out_messages(now)
        self._tick(now)

    def _tick(self, now: datetime) -> None:
        """Schedulers look every two seconds. Those of their ticks that would find nothing are left out."""
        if now < self._ticks_at:
            return
        ready = [s for s in self.schedulers if s.alive and not s.tasks and not s.leaving]
        if not ready:
            self._ticks_at = now + NOBODY_LOOKS
            return
        self._compare_yesterday(ready[0])
        due = self._next_due(after=_LONG_AGO)
        if due > now:
            self._ticks_at = due
            return
        self._ticks_at = now + LOOK_AGAIN
        for scheduler in ready if self.fate.coin(0.2) else [self.fate.choose(ready)]:
            self._begin(scheduler, "tick", partial(self._one_tick, scheduler))

    def _one_tick(self, scheduler: Process) -> None:
        send = self._send if self.has_redis else partial(self._do_each, scheduler)
        done = dispatch.tick(self.parts, send)
        if self.now().date() > self._runs_watched:  # the real ones look every two seconds
            self._runs_watched = self.now().date()
            runs_of_the_day.watch(self.parts)
        if done:
            self.stage.note(f"tick: opened {done.opened}, handed out {done.handed_out}")
        else:
            self._rest_until = self._next_due(after=self.now())  # what is due has to wait for something else

    def _next_due(self, *, after: datetime) -> datetime:
        """In the world's time."""
        with self._database.connect() as connection:
            found: datetime | None = connection.scalar(_NEXT_DUE, {"after": after})
        due = self.end if found is None else found - self.stage.skew + timedelta(seconds=1)
        moved = self.simulator.world.transactions
        if self._compares_days and moved and self.stage.now - moved[-1].created_at < 4 * DAY:
            tomorrow = datetime.combine(self.stage.now.date(), COMPARED_AT, tzinfo=UTC) + DAY
            due = min(due, tomorrow)
        return due

    @property
    def _compares_days(self) -> bool:
        """Every merchant does. Where no webhook is ever lost the comparison finds nothing, and is left out."""
        return self.fate.rates["webhook_lost"] > 0

    def _compare_yesterday(self, scheduler: Process) -> None:
        """The daily comparison with Xendit's list; days on which nothing moved there are left out to save time."""
        today = self.now().date()
        if today <= self._days_compared or not self._compares_days:
            return
        self._days_compared = today
        recent = {row.created_at.date() for row in self.simulator.world.transactions[-8:]}
        days = [day for back in (1, 2, 3) if (day := today - back * DAY) in recent]
        if days:
            names = [day.isoformat() for day in days]
            self._begin(scheduler, "compare days", lambda: self._do_each(scheduler, dispatch.DAY, names))

    def _begin(self, process: Process, label: str, work: Callable[[], object]) -> None:
        self.stage.begin(process, label, lambda: self._carefully(process, label, work))

    def _carefully(self, process: Process, label: str, work: Callable[[], object]) -> None:
        """As the edges of the real processes do: refusals and a lost database end this unit of work, nothing else
        may come out of it. Whatever happened, the schedulers look again."""
        try:
            work()
        except BillingError as error:
            self.stage.note(f"{label}: {error}")
        except ConnectionLost:
            self.stage.note(f"{label}: put off, the database was away")
        except DBAPIError as error:
            self.stage.violations.append(guards.broken(error) or f"{process.name}, {label}: {error!r}")
        except Exception as error:  # noqa: BLE001 - a traceback in a log: the play ends with it
            self.stage.violations.append(f"{process.name}, {label}: {error.__class__.__name__}: {error}")
        finally:
            rest, self._rest_until = self._rest_until, None
            self._ticks_at = rest or min(self._ticks_at, self.stage.now + LOOK_AGAIN)

    # Redis -------------------------------------------------------------------------------------------------

    def _send(self, kind: str, ids: Sequence[str]) -> None:
        for identity in ids:
            if self.fate.happens("message_lost"):
                continue
            at = self.stage.now
            if self.fate.happens("message_late"):
                at += timedelta(seconds=self.fate.between(60, 12 * 3600))
            for _ in range(2 if self.fate.happens("message_doubled") else 1):
                heapq.heappush(self._queue, (at, next(self._sequence), kind, identity))

    def _hand_out_messages(self, now: datetime) -> None:
        while self._queue and self._queue[0][0] <= now:
            idle = [w for w in self.workers if w.alive and not w.leaving and len(w.tasks) < WORKER_THREADS]
            if not idle:
                return
            _, _, kind, identity = heapq.heappop(self._queue)
            worker = self.fate.choose(idle)
            self._begin(worker, f"{kind} {identity}", partial(work_on, self.parts, kind, identity))

    def _do_each(self, process: Process, kind: str, ids: Sequence[str]) -> None:
        """Without Redis: whoever found the work does it."""
        for identity in ids:
            self._carefully(process, f"{kind} {identity}", partial(work_on, self.parts, kind, identity))

    # Webhooks ----------------------------------------------------------------------------------------------

    def _deliver_webhooks(self, now: datetime) -> None:
        for delivery in self.simulator.due_deliveries(now):
            if self.fate.happens("webhook_lost"):
                self.stage.note(f"{delivery.event}: lost for good")
                self.simulator.delivery_result(delivery, 200)
                continue
            at = now
            if self.fate.happens("webhook_late"):
                at += timedelta(seconds=self.fate.between(60, 3 * 86400))
            elif self.fate.happens("webhook_reordered"):
                at += timedelta(seconds=self.fate.between(0, 60))
            for _ in range(2 if self.fate.happens("webhook_doubled") else 1):
                heapq.heappush(self._on_the_way, (at, next(self._sequence), delivery))
        while self._on_the_way and self._on_the_way[0][0] <= now:
            delivery = heapq.heappop(self._on_the_way)[2]
            up = [web for web in self.webs if web.alive and not web.leaving]
            if up:
                web = self.fate.choose(up)
                self._begin(web, f"receive {delivery.event}", partial(self._receive, delivery))
            else:
                self.simulator.delivery_result(delivery, None)

    def _receive(self, delivery: Delivery) -> None:
        """As billing/web.py: store, answer, then apply or hand on."""
        payload = read_payload(delivery.body)
        event = read_event(payload)
        answered = False
        try:
            with self.parts.transaction() as session:
                stored = webhooks.record_event(session, event, payload, self.now())
            answered = True
        finally:
            self.simulator.delivery_result(delivery, 200 if answered else None)
        if stored is not None and event.kind != EventKind.OTHER:
            if self.has_redis:
                self._send(dispatch.EVENT, [stored])
            else:
                webhooks.apply_stored_event(self.parts, stored, read_event)

    # By hand -----------------------------------------------------------------------------------------------

    def _by_hand(self, act: Callable[[SteppedParts], object]) -> None:
        self.terminal.alive = True  # the next command is a new process
        self._begin(self.terminal, "by hand", lambda: act(self.parts))

    def _come_in(self, who: Subscriber) -> None:
        """Whoever does not get in, or whose terminal dies, comes again."""
        if oracle.has_come_in(self.engine, who.reference):
            return
        self._by_hand(lambda parts: self.people.come_in(parts, who))
        self._at(self.stage.now + timedelta(hours=self.fate.between(1, 30)), partial(self._come_in, who))

    # What befalls the world ----------------------------------------------------------------------------------

    def _redis_wiped(self) -> None:
        self.stage.note(f"FLUSHALL: {len(self._queue)} message(s) gone")
        self._queue.clear()

    def _clock_jumps(self) -> None:
        seconds = self.fate.choose((-1, 1)) * self.fate.between(1, 900)
        self.stage.skew = timedelta() if self.stage.skew else timedelta(seconds=seconds)
        self.stage.note(f"the machines' clocks are off by {self.stage.skew.total_seconds():.0f} s now")

    def _token_dies(self) -> None:
        tokens = list(self.simulator.world.tokens)
        if tokens:
            token_id = self.fate.choose(tokens)
            how = self.fate.choose(("expire", "cancel"))
            self.stage.note(f"token {token_id[:7]}...: {how} at Xendit")
            self.people.control(f"/tokens/{token_id}/{how}")

    def _deploy(self) -> None:
        """The old ones finish what they have in hand while the new ones work already."""
        self.stage.note("a deploy: old and new processes at once")
        for processes in (self.schedulers, self.workers, self.webs):
            processes[0].leaving = True

    def _outage(self) -> None:
        """Everything is down for hours."""
        seconds = self.fate.between(600, 4 * 86400)
        self.stage.note(f"everything is down for {seconds / 3600:.1f} hours")
        for process in self._processes():
            self.stage.kill(process, back_in_seconds=seconds)
        self.stage.bury()

    def _person_acts(self) -> None:
        who = self.fate.choose(self.subscribers)
        self._by_hand(lambda parts: self.stage.note(self.people.act(parts, who)))

    def _doctor_repairs(self) -> None:
        self.stage.note("billing doctor --repair")
        self._by_hand(self.people.repair)

    def _somebody_reconciles(self) -> None:
        self.stage.note("billing reconcile")
        self._by_hand(self.people.reconcile)

    def _somebody_runs_billing(self) -> None:
        self.stage.note("billing run")
        self._by_hand(lambda parts: self.people.run_billing(parts, partial(self._do_each, self.terminal)))

    # The end -------------------------------------------------------------------------------------------------

    def _check(self, violations: Sequence[str]) -> None:
        if violations:
            raise Failed(self._history("; ".join(violations)))

    def _history(self, why: str) -> str:
        lines = [f"{at:%Y-%m-%d %H:%M:%S} {who:<12} {what}" for at, who, what in self.stage.told]
        head = f"seed {self.fate.seed}: {why}"
        kinds = ", ".join(sorted(kind for kind, rate in self.fate.rates.items() if rate))
        more = [f"  ... {len(lines) - SHOWN} lines before"] if len(lines) > SHOWN else []
        return "\n".join([head, f"  faults of this seed: {kinds}", *more, *(f"  {line}" for line in lines[-SHOWN:])])

    def _year(self) -> Year:
        payments = self.simulator.world.payments.values()
        return Year(
            seed=self.fate.seed,
            subscribers=len(self.subscribers),
            steps=self.stage.steps,
            charges=len(self.simulator.world.requests),
            collected=sum(1 for payment in payments if payment.captured),
            refunded=sum(1 for payment in payments if payment.refunded),
            faults=self.fate.happened,
        )
