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

from billing.domain.gateway import EventKind
from billing.errors import BillingError
from billing.inbox import apply
from billing.parts import Parts
from billing.runs import limits as runs_of_the_day
from billing.runs import tick
from billing.sandbox.simulation import coverage, guards, oracle
from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulation.line import Gateway, Line
from billing.sandbox.simulation.merchant import SmallBudget, rules_of
from billing.sandbox.simulation.money import put_between
from billing.sandbox.simulation.people import People
from billing.sandbox.simulation.population import Merchant, Subscriber, draw_merchant, draw_subscribers
from billing.sandbox.simulation.stage import ConnectionLost, Process, Stage, SteppedParts
from billing.sandbox.simulator import Simulator, SimulatorConfig
from billing.sandbox.simulator.webhooks import Delivery
from billing.store.clock import machine_time
from billing.store.engine import make_sessions
from billing.store.models import ids_from
from billing.work import units, work_on
from billing.xendit.webhook import read_event, read_payload

BEGINS = datetime(2027, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NO_LIMIT = 1_000_000_000
WORKER_THREADS = 3
LOOK_AGAIN = timedelta(seconds=2)  # a scheduler's tick
COMPARED_AT = time(3, 17)  # each day with Xendit's list
LOOK_ANYWAY = timedelta(hours=1)
NOBODY_LOOKS = timedelta(minutes=5)  # all are down or busy
SHOWN = 60  # lines of history under a failure
WEEKS_OF_NOBODY = (5, 9, 13, 18)  # long enough that the catch-up policies have something to decide
PENDING_FOR = (60, 60, 3 * 3600, 30 * 3600)  # seconds that a bank takes to decide
ANSWERED_WITHIN = 30 * 3600  # a customer who is asked by his bank; after a day it is too late
LOOKED_AFTER_EVERY = 4  # days
OF_A_CHARGE = frozenset({"payment.capture", "payment.failure"})
# The guards of a run (runs/limits.py) that a merchant's settings put in place, by the name of the choice.
GUARDS_THAT_ARE_SET = {"run spending cap": frozenset({"spending_cap"})}
STEPS_AT_ONE_INSTANT = 20_000  # more than that, and something goes round in circles

# When a scheduler would find something to do: first of all, and after some instant. One statement: it is asked at
# every standstill.
_NEXT_DUE = text("""
SELECT min(due), min(due) FILTER (WHERE due > :after) FROM (
    SELECT next_billing_at AS due FROM subscriptions
        WHERE status IN ('trialing', 'active', 'past_due') AND hold_reason IS NULL
    UNION ALL SELECT greatest(scheduled_at, lease_until) FROM charge_attempts WHERE status = 'scheduled'
    UNION ALL SELECT lease_until FROM charge_attempts WHERE status = 'submitted'
    UNION ALL SELECT greatest(next_check_at, lease_until) FROM charge_attempts WHERE next_check_at IS NOT NULL
    UNION ALL SELECT grace_ends_at FROM invoices WHERE status = 'open'
    UNION ALL SELECT next_check_at FROM payment_sessions WHERE next_check_at IS NOT NULL
    UNION ALL SELECT next_check_at FROM payment_tokens WHERE next_check_at IS NOT NULL
    UNION ALL SELECT ends_at FROM subscriptions
        WHERE NOT calendar_over AND status IN ('trialing', 'active', 'past_due')
    UNION ALL SELECT probe_at FROM channel_breakers
    UNION ALL SELECT greatest(next_try_at, lease_until) FROM webhook_events WHERE next_try_at IS NOT NULL
    UNION ALL SELECT greatest(next_try_at, lease_until) FROM refunds WHERE next_try_at IS NOT NULL
) AS dues
""")
_STANDS_STILL = text("""
SELECT (SELECT min(reason) FROM charging_stop), (SELECT array_agg(guard) FROM billing_runs WHERE state = 'stopped')
""")
_SHIFT = text("""
WITH shifted AS (
    UPDATE subscriptions SET next_billing_at = next_billing_at + :by, current_period_end = current_period_end + :by
    WHERE reference = :reference AND next_billing_at > :after RETURNING id, next_billing_at
)
UPDATE invoices SET period_end = period_end + :by FROM shifted
WHERE subscription_id = shifted.id AND period_end + :by = next_billing_at
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
    coverage: Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Rest:
    """A scheduler has found nothing to do before `until`, as things stood after so many units of work."""

    until: datetime
    units_done: int


class Play:
    def __init__(
        self,
        seed: int,
        engine: Engine,
        *,
        subscribers: int | Callable[[datetime], Sequence[Subscriber]] = 2,
        days: int = 365,
        gentle: bool = False,
    ) -> None:
        """`subscribers`: how many to draw, or those there are, by the instant at which the world begins. `gentle`:
        nothing goes wrong but what is planned with `later`."""
        self.fate: Fate = Fate(seed, gentle=gentle)
        self._gentle = gentle
        start = BEGINS + timedelta(hours=self.fate.between(0, 24))
        self.stage = Stage(self.fate, start)
        self.end = start + timedelta(days=days)
        self.calm_from = start + timedelta(days=days * 2 / 3)
        self.engine = engine
        self._database = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.simulator = Simulator(self._xendits_time, seed=seed, config=self._simulator_config())
        self.simulator.world.webhooks.faults.without_payment_failure = self.fate.no_failure_webhooks
        put_between(self.simulator.world, self.fate)
        self.line = Line(self.stage, self.simulator, engine)
        self.line.asks_customer = self._customer_is_asked
        self.merchant: Merchant = draw_merchant(self.fate)
        if isinstance(subscribers, int):
            self.subscribers = draw_subscribers(self.fate, subscribers, start, self.calm_from)
        else:
            self.subscribers = list(subscribers(start))
        self.budget = SmallBudget(self.stage, self.merchant.charges_in_ten_minutes)
        self.parts = SteppedParts(
            sessions=make_sessions(engine),
            clock=self,
            gateway=Gateway(self.line),
            quota=self.budget,
            rules=rules_of(self.merchant, self.subscribers),
            stage=self.stage,
        )
        self.has_redis = not self.fate.coin(0.2)
        self.people = People(self.fate, self.simulator, self._send, self.subscribers)
        self._cast()
        self._sequence = count()
        self._queue: list[tuple[datetime, int, str, tuple[str, ...]]] = []  # Redis
        self._on_the_way: list[tuple[datetime, int, Delivery]] = []
        self._plans: list[tuple[datetime, int, Callable[[], None]]] = []
        self._ticks_at = start
        self._rests: dict[str, Rest] = {}  # of schedulers that found nothing to do
        self._units_done = 0
        self._units_looked_at = -1
        self._runs_watched = start.date()
        self._days_compared = start.date()
        self._chance = random.Random(f"ids:{seed}")
        self.heard: Counter[str] = Counter()  # in which order answers and webhooks came
        self.wrong: list[str] = []  # seen on the way, judged at the end of the year
        self.shifted: set[str] = set()  # subscribers whose time zone has changed its rules
        self._stopped_by_hand = False
        self._to_resume = False

    def now(self) -> datetime:
        """The clock of billing, which is that of our machines."""
        return self.stage.machine()

    def _xendits_time(self) -> datetime:
        return self.stage.now

    def _simulator_config(self) -> SimulatorConfig:
        # How soon a payment shows up in Xendit's list is not documented: at once in some worlds, in others hours later.
        lag = self.fate.between(60, 20 * 3600) if self.fate.coin(0.3) else 0
        return SimulatorConfig(
            requests_per_minute=NO_LIMIT,
            decide=self.fate.decide,
            transactions_lag_seconds=lag,
            pending_seconds=random.Random(f"pending:{self.fate.seed}").choice(PENDING_FOR),
        )

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
                self._check([*dict.fromkeys(self.wrong), *oracle.judge(self)])
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
            self._at(max(who.created_at, self.stage.now), partial(self._come_in, who))
            if who.leaves_at is not None:
                self._at(who.leaves_at, partial(self._leaves, who))
            for at, what in who.moments:
                self._at(at, partial(self._acts, who, what))
        for at, kind in self.fate.happenings(self.stage.now, self.calm_from):
            self._at(at, getattr(self, f"_{kind}"))
        for look in range(3, (self.calm_from - self.stage.now).days, LOOKED_AFTER_EVERY):
            self._at(self.stage.now + timedelta(days=look), self._somebody_looks)

    def later(self, days: float, act: Callable[[], None]) -> None:
        """Planned before the year is lived through: what happens so many days after its beginning."""
        self._at(self.stage.now + timedelta(days=days), act)

    def _at(self, instant: datetime, act: Callable[[], None]) -> None:
        heapq.heappush(self._plans, (instant, next(self._sequence), act))

    def _calm(self) -> None:
        """Nothing goes wrong any more; whoever was down is up, and a paused subscriber comes back."""
        self.stage.note("from here on nothing goes wrong")
        self.fate.calm = True
        self.stage.skew = timedelta()
        self.simulator.world.webhooks.faults.without_payment_failure = False
        self.line.tokens_unknown_until = self.line.no_client_until = None
        for process in self._processes():
            process.alive, process.leaving, process.back_at = True, False, None
        for who in self.subscribers:
            self.by_hand(partial(self.people.resume_if_paused, who=who))
        # Whatever waits for a person's word gets it; half a day later again, for what was still under way.
        for hours in (1, 12, 36):
            self._at(self.stage.now + timedelta(hours=hours), self._tidy_up)

    def _tidy_up(self) -> None:
        self._somebody_looks()
        for act in (self.people.approve_aborted_runs, self.people.approve_holds, self.people.pay_what_is_held):
            self.by_hand(act)

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
            gone = [s.back_at for s in self.schedulers if not s.alive and s.back_at is not None]
            nobody_is_left = len(gone) == len(self.schedulers)  # for weeks, perhaps
            self._ticks_at = max(min(gone), now) if nobody_is_left else now + NOBODY_LOOKS
            return
        self._compare_yesterday(ready[0])
        due, _ = self._next_dues(after=now)
        if due > now:
            self._ticks_at = due
            return
        self._ticks_at = now + LOOK_AGAIN
        for scheduler in ready if self.fate.coin(0.2) else [self.fate.choose(ready)]:
            self._begin(scheduler, "tick", partial(self._one_tick, scheduler))

    def _one_tick(self, scheduler: Process) -> None:
        send = self._send if self.has_redis else partial(self._do_each, scheduler)
        units_done = self._units_done
        done = tick.tick(self.parts, send)
        # The real ones look every two seconds. Without a guard nothing can come of it but the end of a run.
        if self.now().date() > self._runs_watched or (done and self.merchant.guards != "none"):
            self._runs_watched = self.now().date()
            runs_of_the_day.watch(self.parts)
        if done:
            self.stage.note(f"tick: opened {done.opened}, handed out {done.handed_out}")
        else:
            # What is due has to wait for something else.
            due, until = self._next_dues(after=self.now())
            until = min(until, self.budget.next_permit_at() or self.end)
            if due <= self.stage.now:
                # It is due still, and time alone may help it: the longer that lasts, the rarer it is looked at.
                until = min(until, self.stage.now + max(LOOK_ANYWAY, min((self.stage.now - due) / 2, DAY)))
            self._rests[scheduler.name] = Rest(until, units_done)

    def _next_dues(self, *, after: datetime) -> tuple[datetime, datetime]:
        """What is due first of all, and first after that instant. In the world's time."""
        with self._database.connect() as connection:
            first, later = connection.execute(_NEXT_DUE, {"after": after}).one()
        return self._in_the_worlds_time(first), self._in_the_worlds_time(later)

    def _in_the_worlds_time(self, found: datetime | None) -> datetime:
        due = self.end if found is None else found - self.stage.skew + timedelta(seconds=1)
        moved = self.simulator.world.transactions
        if self._compares_days and moved and self.stage.now - moved[-1].created_at < 4 * DAY:
            tomorrow = datetime.combine(self.stage.now.date(), COMPARED_AT, tzinfo=UTC) + DAY
            due = min(due, tomorrow)
        return due

    @property
    def _compares_days(self) -> bool:
        """Every merchant does. Where no webhook is ever lost the comparison finds nothing, and is left out."""
        return self.fate.rates["webhook_lost"] > 0 or bool(self.fate.unheard)

    def _compare_yesterday(self, scheduler: Process) -> None:
        """The daily comparison with Xendit's list; days on which nothing moved there are left out to save time."""
        today = self.now().date()
        if today <= self._days_compared or not self._compares_days:
            return
        self._days_compared = today
        moved = {row.created_at.date() for row in self.simulator.world.transactions}
        names = [day.isoformat() for day in tick.days_to_compare(self.parts) if day in moved]
        if names:
            self._begin(scheduler, "compare days", lambda: self._do_each(scheduler, tick.DAY, names))

    def _begin(self, process: Process, label: str, work: Callable[[], object]) -> None:
        self.stage.begin(process, label, lambda: self._carefully(process, label, work))

    def _carefully(self, process: Process, label: str, work: Callable[[], object]) -> None:
        """As the edges of the real processes do: refusals and a lost database end this unit of work, nothing else
        may come out of it. Whatever happened, the schedulers look again."""
        try:
            with self.stage.doing(label):
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
            self._units_done += 1
            self._ticks_at = min(self._ticks_at, self.stage.now + LOOK_AGAIN)
            rest = self._rests.pop(process.name, None)
            if rest is not None and rest.units_done == self._units_done - 1:  # nobody has changed anything meanwhile
                self._ticks_at = rest.until

    # Redis -------------------------------------------------------------------------------------------------

    def _send(self, kind: str, ids: Sequence[str]) -> None:
        for unit in units(kind, ids, self.parts.rules.charges_at_once):
            if self.fate.happens("message_lost"):
                continue
            at = self.stage.now
            if self.fate.happens("message_late"):
                at += timedelta(seconds=self.fate.between(60, 12 * 3600))
            for _ in range(2 if self.fate.happens("message_doubled") else 1):
                heapq.heappush(self._queue, (at, next(self._sequence), kind, tuple(unit)))

    def _hand_out_messages(self, now: datetime) -> None:
        while self._queue and self._queue[0][0] <= now:
            idle = [w for w in self.workers if w.alive and not w.leaving and len(w.tasks) < WORKER_THREADS]
            if not idle:
                return
            _, _, kind, unit = heapq.heappop(self._queue)
            worker = self.fate.choose(idle)
            self._begin(worker, f"{kind} {' '.join(unit)}", partial(work_on, self.parts, kind, *unit))

    def _do_each(self, process: Process, kind: str, ids: Sequence[str]) -> None:
        """Without Redis: whoever found the work does it."""
        for unit in units(kind, ids, self.parts.rules.charges_at_once):
            self._carefully(process, f"{kind} {' '.join(unit)}", partial(work_on, self.parts, kind, *unit))

    # Webhooks ----------------------------------------------------------------------------------------------

    def _deliver_webhooks(self, now: datetime) -> None:
        for delivery in self.simulator.due_deliveries(now):
            if self.fate.happens("webhook_lost"):
                self.stage.note(f"{delivery.event}: lost for good")
                if delivery.event in OF_A_CHARGE:
                    self.heard["webhook lost"] += 1
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
                stored = apply.record_event(session, event, payload, self.now())
            answered = True
        finally:
            self.simulator.delivery_result(delivery, 200 if answered else None)
        if stored is not None and delivery.event in OF_A_CHARGE:
            answered_before = str(payload["data"].get("reference_id")) in self.line.answered
            self.heard["answer before webhook" if answered_before else "webhook before answer"] += 1
        if stored is not None and event.kind != EventKind.OTHER:
            if self.has_redis:
                self._send(tick.EVENT, [stored])
            else:
                apply.apply_stored_event(self.parts, stored, read_event)

    # By hand -----------------------------------------------------------------------------------------------

    def by_hand(self, act: Callable[[SteppedParts], object]) -> None:
        self.terminal.alive = True  # the next command is a new process
        self._begin(self.terminal, "by hand", lambda: act(self.parts))

    def _come_in(self, who: Subscriber) -> None:
        """Whoever does not get in, or whose terminal dies, comes again; a link is followed when its time has come."""
        status = oracle.status_of(self.engine, who.reference)
        if status not in (None, "incomplete"):
            return
        if status == "incomplete" and self.now() < who.comes_at:
            self._at(who.comes_at + timedelta(minutes=16), partial(self._come_in, who))  # whatever our clocks say
            return
        self.by_hand(lambda parts: self.people.come_in(parts, who))
        self._at(self.stage.now + timedelta(hours=self.fate.between(1, 30)), partial(self._come_in, who))

    def _acts(self, who: Subscriber, what: str) -> None:
        self.by_hand(lambda parts: self.stage.note(self.people.do(parts, who, what)))

    def _customer_is_asked(self, request_id: str) -> None:
        """A charge waits for the customer at his bank: half of them answer."""
        if self.fate.coin():
            at = self.stage.now + timedelta(seconds=self.fate.between(60, ANSWERED_WITHIN))
            self._at(at, partial(self.people.answer_bank, request_id))

    def _leaves(self, who: Subscriber) -> None:
        self.by_hand(partial(self.people.leave, who=who))

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
        self.everything_is_down(self.fate.between(600, 4 * 86400))

    def _nobody_at_work(self) -> None:
        """For weeks: nothing runs, and nobody notices."""
        self.everything_is_down(self.fate.choose(WEEKS_OF_NOBODY) * 7 * 86_400.0)

    def everything_is_down(self, seconds: float) -> None:
        self.stage.note(f"everything is down for {seconds / 3600:.1f} hours")
        for process in self._processes():
            self.stage.kill(process, back_in_seconds=seconds)
        self.stage.bury()

    def _person_acts(self) -> None:
        who = self.fate.choose(self.subscribers)
        self.by_hand(lambda parts: self.stage.note(self.people.act(parts, who)))

    def _doctor_repairs(self) -> None:
        self.stage.note("billing doctor --repair")
        self.by_hand(self.people.repair)

    def _somebody_reconciles(self) -> None:
        self.stage.note("billing reconcile")
        self.by_hand(self.people.reconcile)

    def _somebody_runs_billing(self) -> None:
        self.stage.note("billing run")
        self.by_hand(lambda parts: self.people.run_billing(parts, partial(self._do_each, self.terminal)))

    def _charging_is_stopped(self) -> None:
        self.stop_charging(hours=self.fate.between(1, 20 * 24))

    def stop_charging(self, hours: float) -> None:
        self.stage.note("billing charging stop")
        self._stopped_by_hand, self._to_resume = True, False
        self.by_hand(self.people.stop_charging)
        self._at(self.stage.now + timedelta(hours=hours), self._charging_resumes)

    def _charging_resumes(self) -> None:
        """Again in an hour, when it could not be done."""

        def resume(parts: Parts) -> None:
            self.people.resume_charging(parts)
            self._stopped_by_hand, self._to_resume, self.line.key_refused_at = False, False, None

        def look_whether_it_did() -> None:
            if self._to_resume:
                self._charging_resumes()

        self.stage.note("billing charging resume")
        self._to_resume = True
        self.by_hand(resume)
        self._at(self.stage.now + timedelta(hours=1), look_whether_it_did)

    def _run_is_steered(self) -> None:
        self.by_hand(lambda parts: self.stage.note(self.people.steer_run(parts)))
        for days in (self.fate.between(0, 4), 10):
            self._at(self.stage.now + timedelta(days=days, hours=1), self._runs_go_on)

    def _runs_go_on(self) -> None:
        self.stage.note("billing runs resume; billing run approve of what was aborted")
        self.by_hand(self.people.resume_runs)
        self.by_hand(self.people.approve_aborted_runs)

    def _holds_are_approved(self) -> None:
        self.stage.note("billing run approve")
        self.by_hand(self.people.approve_holds)

    def _refund_elsewhere(self) -> None:
        """Not while everything is down for long: days further back than that are never compared (dispatch.py)."""
        longest_away = self.stage.now + tick.LONGEST_COMPARED_LATE - 10 * DAY
        if all(not s.alive and (s.back_at or self.end) > longest_away for s in self.schedulers):
            return
        self.stage.note(self.people.refund_in_the_dashboard())
        self._ticks_at = min(self._ticks_at, self.stage.now + LOOK_AGAIN)  # tomorrow this day is compared

    def _channel_is_down(self) -> None:
        channels = sorted({str(token.document["channel_code"]) for token in self.simulator.world.tokens.values()})
        if channels:
            channel, hours = self.fate.choose(channels), self.fate.between(0.5, 30)
            self.stage.note(f"{channel} is down for {hours:.1f} hours")
            self.fate.channels_down[channel] = self.stage.now + timedelta(hours=hours)

    def _wrong_key(self) -> None:
        hours = self.fate.between(1, 60)
        self.stage.note(f"the key of another account for {hours:.1f} hours: it knows none of the tokens")
        self.line.tokens_unknown_until = self.stage.now + timedelta(hours=hours)

    def _zone_rules_change(self) -> None:
        """The instants that are stored were computed with the rules of yesterday: an hour beside those of today."""
        who, hours = self.fate.choose(self.subscribers), self.fate.choose((-1, 1))
        self.stage.note(f"the time zone of {who.reference} changes its rules by {hours:+d} h")
        self.shifted.add(who.reference)
        values = {"reference": who.reference, "by": timedelta(hours=hours), "after": self.now() + timedelta(hours=3)}
        with self.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # nobody of ours does this
            connection.execute(_SHIFT, values)

    def _somebody_looks(self) -> None:
        """Every few days somebody looks at what stands still: a run that was stopped, or charging."""
        if self._units_done == self._units_looked_at:
            return  # nothing has been done since the last look
        self._units_looked_at = self._units_done
        with self._database.connect() as connection:
            stop, guards_at_work = connection.execute(_STANDS_STILL).one()
        if stop is not None and not self._stopped_by_hand and not self._to_resume:
            if self.line.key_refused_at is None:
                self.wrong.append(f"all charging was stopped though Xendit had not refused the account: {stop}")
            self._charging_resumes()
        for who in self.subscribers:
            if who.pauses_when_past_due and oracle.status_of(self.engine, who.reference) == "past_due":
                self._acts(who, "pauses")
                self._at(self.stage.now + timedelta(days=2), partial(self._acts, who, "resumes"))
        unset = set(guards_at_work or ()) - GUARDS_THAT_ARE_SET.get(self.merchant.guards, frozenset())
        self.wrong += [
            f"a billing run was stopped by the guard {guard}, which nobody has set" for guard in sorted(unset)
        ]
        if guards_at_work:
            self._runs_go_on()

    # The end -------------------------------------------------------------------------------------------------

    def _check(self, violations: Sequence[str]) -> None:
        if violations:
            raise Failed(self._history("; ".join(violations)))

    def _history(self, why: str) -> str:
        lines = [f"{at:%Y-%m-%d %H:%M:%S} {who:<12} {what}" for at, who, what in self.stage.told]
        head = f"seed {self.fate.seed}: {why}"
        kinds = "none" if self._gentle else ", ".join(sorted(kind for kind, rate in self.fate.rates.items() if rate))
        who = [f"  {subscriber.in_words()}" for subscriber in self.subscribers]
        more = [f"  ... {len(lines) - SHOWN} lines before"] if len(lines) > SHOWN else []
        head += f"\n  faults of this seed: {kinds}\n  the merchant: {self.merchant.in_words()}"
        return "\n".join([head, *who, *more, *(f"  {line}" for line in lines[-SHOWN:])])

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
            coverage=coverage.of_year(self),
        )
