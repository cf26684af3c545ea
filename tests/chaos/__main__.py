"""`make chaos`: a storm over real processes, then calm, then the books are compared with the bank's.

    python -m tests.chaos [--seconds 300] [--subscribers 200] [--seed 1] [--hurry] [--keep-logs FOLDER]

The storm kills, stops, cuts and wipes whatever the site has, but never the simulator: it is the bank. The same seed
deals the same blows in the same order; what they hit is up to the machine. Exit status 1 when a figure is not 0.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import redis
import typer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from billing import log
from billing.app import build
from billing.charging.look_up import compare_day
from billing.domain.dunning import POLICIES
from billing.sandbox.processes import signals_end_us
from billing.settings import Settings, load_settings
from tests.chaos import oracle
from tests.chaos.oracle import PRICE, Subscriber, Verdict
from tests.chaos.proxy import Network
from tests.chaos.site import SCHEDULERS, SUBMITTED_LEASE_SECONDS, WEB, WORKERS, Site, set_up
from tests.factories import NOW, make_customer, make_plan, make_subscription, make_token

T = TypeVar("T")
ZONE = "Asia/Jakarta"
# Those that can be refunded for months: a refund that is late by minutes here is late by weeks of the clock.
WALLETS = ("SHOPEEPAY", "GOPAY_RECURRING")
CHARGES = "POST /v3/payment_requests"
GATEWAY_FAULTS = {
    CHARGES: (
        "500_AFTER", "500_BEFORE", "502_AFTER", "TIMEOUT_AFTER", "TIMEOUT_BEFORE", "GARBAGE", "429", "SLOW:3",
        "HTTP:503:CHANNEL_UNAVAILABLE", "HTTP:500:SERVER_ERROR",
    ),
    "GET /transactions": ("500_BEFORE", "GARBAGE", "429", "TIMEOUT_BEFORE", "HTTP:503:CHANNEL_UNAVAILABLE"),
    "GET /v3/payments/{id}": ("500_BEFORE", "GARBAGE", "429"),
    "POST /refunds": ("500_AFTER", "TIMEOUT_AFTER", "429"),
}  # fmt: skip
ODD_OUTCOMES = (
    "LATE_CAPTURE:TIMEOUT_ERROR:3600", "LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "INSUFFICIENT_BALANCE",
    "PENDING:SUCCEEDED", "PENDING:INSUFFICIENT_BALANCE", "NO_WEBHOOK:PENDING:SUCCEEDED", "NO_WEBHOOK:SUCCEEDED",
)  # fmt: skip
WEBHOOKS = {"duplicate_rate": 0.05, "loss_rate": 0.03, "reorder": True}
SETTLEMENT_HOURS = 26
BUSY = 4  # charges under way: then a worker is stopped in the middle of some
ASLEEP_AFTER_SECONDS = 4.5
TOO_LATE = "stopped too long before sending"
# Billing stops by itself beyond twelve missed periods; a storm must not look like a year's outage.
FURTHEST_BEHIND = timedelta(days=9)

_ROWS_IN_HAND = """
    SELECT id, coalesce(lease_until::text, '') FROM charge_attempts
        WHERE status = 'submitted' OR (lease_until IS NOT NULL AND (status = 'scheduled' OR next_check_at IS NOT NULL))
    UNION ALL SELECT id, coalesce(lease_until::text, '') FROM webhook_events WHERE state = 'received'
    UNION ALL SELECT id, coalesce(lease_until::text, '') FROM refunds WHERE lease_until IS NOT NULL
"""
_DUE = """SELECT
    (SELECT count(*) FROM charge_attempts WHERE status = 'submitted'
        OR (status = 'scheduled' AND scheduled_at <= :now) OR next_check_at <= :now)
    + (SELECT count(*) FROM webhook_events WHERE state = 'received' OR next_try_at <= :now)
    + (SELECT count(*) FROM refunds WHERE next_try_at <= :now)
    + (SELECT count(*) FROM subscriptions WHERE next_billing_at <= :now AND hold_reason IS NULL
        AND status IN ('active', 'trialing', 'past_due'))
    + (SELECT count(*) FROM invoices WHERE status = 'open' AND grace_ends_at <= :now AND hold_reason IS NULL)
"""
_UNFINISHED = """SELECT
    (SELECT count(*) FROM charge_attempts
        WHERE status IN ('scheduled', 'submitted', 'pending', 'requires_action', 'in_doubt'))
    + (SELECT count(*) FROM invoices WHERE status = 'open' AND hold_reason IS NULL)
    + (SELECT count(*) FROM refunds WHERE status IN ('requested', 'pending'))
    + (SELECT count(*) FROM webhook_events WHERE state IN ('received', 'unmatched'))
"""
_NEXT = """SELECT min(at) FROM (
    SELECT scheduled_at AS at FROM charge_attempts WHERE status = 'scheduled'
    UNION ALL SELECT next_check_at FROM charge_attempts UNION ALL SELECT next_try_at FROM webhook_events
    UNION ALL SELECT next_try_at FROM refunds UNION ALL SELECT grace_ends_at FROM invoices WHERE status = 'open') x
"""
_END_CLAIMS = "UPDATE charge_attempts SET lease_until = now() WHERE status = 'scheduled' AND lease_until > now()"
_SUBMITTED = "SELECT count(*) FROM charge_attempts WHERE status = 'submitted'"
# No call lasts that long: whoever sent them is asleep, or dead.
_ASLEEP = f"""{_SUBMITTED}
    AND lease_until < now() + interval '{SUBMITTED_LEASE_SECONDS - 4} seconds'"""
_STATE = """SELECT status, count(*) FROM charge_attempts GROUP BY status"""
_WAITING = "SELECT count(*) FROM charge_attempts WHERE status = 'scheduled' AND scheduled_at <= :now"
_OLDEST_DUE = "SELECT min(next_billing_at) FROM subscriptions WHERE status <> 'canceled' AND hold_reason IS NULL"


@dataclass(frozen=True, slots=True)
class Options:
    seconds: float
    subscribers: int
    seed: int
    hurry: bool
    keep_logs: Path | None


@dataclass(slots=True)
class Run:
    """What every act of the play needs: the site, the dice, the agenda and what has been done so far."""

    site: Site
    options: Options
    chance: random.Random
    subscribers: list[Subscriber] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    last_fault: float = 0.0
    clock_rests_until: float = 0.0
    leases_over_at: float = float("inf")  # of the worker that is stopped
    ends_of_postgres: Iterator[signal.Signals] = field(init=False)
    gateway_faults: Iterator[tuple[str, str]] = field(init=False)
    odd_outcomes: Iterator[str] = field(init=False)
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.ends_of_postgres = _dealt(self.chance, (signal.SIGKILL, signal.SIGQUIT, signal.SIGINT))
        pairs = [(endpoint, outcome) for endpoint, outcomes in GATEWAY_FAULTS.items() for outcome in outcomes]
        self.gateway_faults = _dealt(self.chance, pairs)
        self.odd_outcomes = _dealt(self.chance, ODD_OUTCOMES)

    def say(self, words: str) -> None:
        elapsed = time.monotonic() - self.began
        typer.echo(f"{elapsed:6.1f} s  {self.site.now():%Y-%m-%d %H:%M}  {words}")

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._order), act))

    def live(self, seconds: float, *, whole_agenda: bool = False) -> None:
        """Let time pass, doing what comes due: everything happens in this one thread, which is the supervisor's."""
        until = time.monotonic() + seconds
        while time.monotonic() < until or (whole_agenda and self._agenda):
            while self._agenda and self._agenda[0][0] <= time.monotonic():
                heapq.heappop(self._agenda)[2]()
            for name in self.site.supervise():
                self.say(f"{name} ended by itself: started again")
            time.sleep(0.05)

    def struck(self, kind: str, words: str = "") -> None:
        self.faults[kind] += 1
        self.last_fault = time.monotonic()
        self.say(words or kind)

    def ask(self, query: str) -> Any:
        """One figure, or None while the database is away."""
        try:
            with self.site.engine.connect() as connection:
                values = {"now": self.site.now()} if ":now" in query else {}
                return connection.scalar(text(query), values)
        except DBAPIError:
            return None


# ------------------------------------------------------------------------------------------------ subscribers


def enrol(run: Run) -> None:
    """Half cards, half wallets; months, weeks and three days; the anchors over the last days of January and after."""
    plans: dict[str, Any] = {}
    with Session(run.site.engine) as session, session.begin():
        for schedule in oracle.EVERY:
            plans[schedule] = make_plan(session, schedule=schedule, timezone=ZONE, amount_minor=PRICE)
        for number in range(run.options.subscribers):
            schedule = list(oracle.EVERY)[number % len(oracle.EVERY)]
            card = number % 2 == 0
            wanted: dict[str, Any] = {"channel_code": "CARDS" if card else WALLETS[number // 2 % len(WALLETS)]}
            if card:
                wanted["card_number"] = f"4{number:015d}"
            made = run.site.simulator.post("/_simulator/tokens", wanted)
            customer = make_customer(session)
            details: dict[str, Any] = {"channel_code": wanted["channel_code"]}
            if not card:
                details |= {"card_last4": None, "card_expiry": None, "network": None, "fingerprint": None}
            token = make_token(session, customer, payment_token_id=made["payment_token_id"], **details)
            start = NOW + timedelta(hours=number % 7 * 17)
            subscription = make_subscription(
                session, customer=customer, plan=plans[schedule], token=token, start_at=start
            )
            run.subscribers.append(Subscriber(subscription.id, token.payment_token_id, schedule, start, ZONE))


# ------------------------------------------------------------------------------------------------ the storm


def storm(run: Run) -> None:
    run.site.simulator.post("/_simulator/webhooks/config", WEBHOOKS)
    seconds = max(run.options.seconds, SUBMITTED_LEASE_SECONDS + 10)  # room for one worker's sleep
    ends = time.monotonic() + seconds
    run.later(1.0, lambda: _stop_a_worker(run, ends))
    run.later(1.0, lambda: _strike_on(run, _deck(run), ends))
    run.later(0.5, lambda: _time_goes_on(run, ends))
    run.later(5.0, lambda: _report(run, ends))
    run.later(seconds / 2, lambda: _fail_over(run))
    run.live(seconds, whole_agenda=True)


def _deck(run: Run) -> Iterator[Callable[[Run], None]]:
    """Every kind of blow once, in any order, then again: a short run has them all, too."""
    blows = [
        *(_killing(name) for name in (*SCHEDULERS, *WORKERS, WEB)),
        *(_cutting(network) for network in Network if network is not Network.OPEN),
        _flush, _kill_valkey, _restart_postgres, _gateway_faults, _gateway_faults, _odd_outcomes, _odd_outcomes,
    ]  # fmt: skip
    return _dealt(run.chance, blows)


def _dealt(chance: random.Random, values: Iterable[T]) -> Iterator[T]:
    cards = list(values)
    while True:
        chance.shuffle(cards)
        yield from cards


def _strike_on(run: Run, deck: Iterator[Callable[[Run], None]], ends: float) -> None:
    if time.monotonic() < ends:
        next(deck)(run)
        run.later(run.chance.uniform(0.8, 2.5), lambda: _strike_on(run, deck, ends))


def _killing(name: str) -> Callable[[Run], None]:
    def kill(run: Run) -> None:
        if name in run.site.stopped or name not in run.site.running:
            return
        run.site.kill(name)
        back = run.chance.uniform(0.2, 2.0)
        run.struck(f"kill -9 of a {name.partition('-')[0]}", f"kill -9 {name}, back in {back:.1f} s")
        run.later(back, lambda: run.site.start(name))

    return kill


def _cutting(network: Network) -> Callable[[Run], None]:
    def cut(run: Run) -> None:
        if run.site.proxy.network is not Network.OPEN:
            return
        seconds = run.chance.uniform(1.5, 4.0)
        run.site.proxy.cut(network)
        if network is Network.SILENT:
            # What is held back for seconds must not be days old by the clock when it arrives: no network does that.
            run.clock_rests_until = max(run.clock_rests_until, time.monotonic() + seconds + 2)
        run.struck(f"network: {network}", f"network to Xendit: {network} for {seconds:.1f} s")
        run.later(seconds, lambda: run.site.proxy.cut(Network.OPEN))
        if network is Network.SWALLOWED:
            # Whoever asked dies before it can notice: only the leases of its rows know that it ever asked.
            for name in WORKERS:
                run.later(1.0, partial(_killing(name), run))

    return cut


def _flush(run: Run) -> None:
    try:
        with redis.Redis.from_url(run.site.environment["BILLING_REDIS_URL"]) as client:
            client.flushall()
    except redis.RedisError:
        return
    run.struck("FLUSHALL")


def _kill_valkey(run: Run) -> None:
    if not run.site.valkey.is_ready():
        return
    run.struck("kill -9 of Valkey")
    run.site.valkey.kill(signal.SIGKILL)
    run.later(run.chance.uniform(0.1, 1.5), run.site.valkey.start)


def _restart_postgres(run: Run) -> None:
    if not run.site.postgres.is_ready():
        return
    number = next(run.ends_of_postgres)
    run.struck(f"PostgreSQL restarted ({number.name})")
    run.site.postgres.kill(number)
    run.later(run.chance.uniform(0.1, 1.5), run.site.postgres.start)


def _fail_over(run: Run) -> None:
    """Once in a storm: there is one standby."""
    if not run.site.postgres.is_ready():  # it is being restarted
        run.later(0.5, lambda: _fail_over(run))
        return
    run.struck("fail-over of PostgreSQL", "the primary is gone for good: its standby takes over")
    run.site.fail_over()


def _gateway_faults(run: Run) -> None:
    endpoint, outcome = next(run.gateway_faults)
    count = run.chance.randint(1, 6)
    run.site.simulator.post("/_simulator/faults", {"endpoint": endpoint, "outcome": outcome, "count": count})
    run.faults[f"{outcome.partition(':')[0]} answers"] += count - 1
    run.struck(f"{outcome.partition(':')[0]} answers", f"{endpoint}: {count} x {outcome}")


def _odd_outcomes(run: Run) -> None:
    outcome = next(run.odd_outcomes)
    chosen = run.chance.sample(run.subscribers, max(1, len(run.subscribers) // 25))
    for subscriber in chosen:
        path = f"/_simulator/tokens/{subscriber.payment_token_id}/script"
        run.site.simulator.post(path, {"outcomes": [outcome]})
    kind = outcome.partition(":")[0]
    run.faults[f"{kind} outcomes"] += len(chosen) - 1
    run.struck(f"{kind} outcomes", f"next charge of {len(chosen)} tokens: {outcome}")


def _stop_a_worker(run: Run, ends: float) -> None:
    """For longer than its leases. The clock rests from when they are over until it is awake: in life nobody sleeps
    through the settlement window of 26 hours between writing an attempt down and sending it."""
    name = run.chance.choice(WORKERS)
    if name not in run.site.running or (run.ask(_SUBMITTED) or 0) < BUSY:
        run.later(0.1, lambda: _stop_a_worker(run, ends))
        return
    run.site.freeze(name)
    run.leases_over_at = time.monotonic() + SUBMITTED_LEASE_SECONDS - 2
    run.later(ASLEEP_AFTER_SECONDS, lambda: _let_sleep(run, name, ends))


def _let_sleep(run: Run, name: str, ends: float) -> None:
    sleepers = run.ask(_ASLEEP)
    if not sleepers:  # stopped between two charges: that proves nothing
        _wake(run, name)
        run.later(0.5, lambda: _stop_a_worker(run, ends))
        return
    seconds = SUBMITTED_LEASE_SECONDS + run.chance.uniform(3.0, 6.0) - ASLEEP_AFTER_SECONDS
    run.faults["charges asleep with their worker"] += sleepers
    run.struck("SIGSTOP of a worker", f"SIGSTOP {name} amid {sleepers} charges, for {seconds:.0f} s more")
    run.later(seconds, lambda: _wake(run, name))
    again = seconds + run.chance.uniform(5.0, 30.0)
    if time.monotonic() + again + SUBMITTED_LEASE_SECONDS < ends:
        run.later(again, lambda: _stop_a_worker(run, ends))


def _wake(run: Run, name: str) -> None:
    run.site.thaw(name)
    run.leases_over_at = float("inf")
    run.clock_rests_until = max(run.clock_rests_until, time.monotonic() + 4)
    run.last_fault = time.monotonic()
    run.say(f"SIGCONT {name}")


def _time_goes_on(run: Run, ends: float) -> None:
    oldest = run.ask(_OLDEST_DUE)
    rests = time.monotonic() < run.clock_rests_until or time.monotonic() >= run.leases_over_at
    waiting = run.ask(_WAITING)
    behind = oldest is None or waiting is None or run.site.now() - oldest > FURTHEST_BEHIND
    if not rests and not behind and waiting < 2 * len(run.subscribers):
        run.site.move_clocks(timedelta(hours=run.chance.uniform(8, 20)))
    if not rests:
        _claims_end(run)
    run.site.keep_time()
    if time.monotonic() < ends or "SIGSTOP of a worker" not in run.faults:
        run.later(1.5, lambda: _time_goes_on(run, ends))


def _claims_end(run: Run) -> None:
    """Leases of what was claimed and not begun last two minutes of real time, in which the clock here moves on by a
    month: whatever lost its message would be seen by nothing of the storm."""
    with suppress(DBAPIError), run.site.engine.begin() as connection:
        connection.execute(text(_END_CLAIMS))


def _report(run: Run, ends: float) -> None:
    run.say(_figures(run))
    if time.monotonic() + 5.0 < ends:
        run.later(5.0, lambda: _report(run, ends))


def _figures(run: Run) -> str:
    try:
        with run.site.engine.connect() as connection:
            rows = connection.execute(text(_STATE)).all()
    except DBAPIError:
        return "  the database is away"
    return "  attempts: " + ", ".join(f"{count} {status}" for status, count in sorted(rows, key=lambda row: -row[1]))


# ------------------------------------------------------------------------------------------------- the calm


@dataclass(frozen=True, slots=True)
class Healing:
    last_row_taken_up: float  # real seconds after the last fault
    rows_in_hand: int
    finished: bool
    seconds: float
    clock: timedelta


def calm(run: Run) -> Healing:
    _all_is_well_again(run)
    began = run.site.now()
    rows = _rows_in_hand(run)
    run.say(f"calm: everything is up; {len(rows)} rows were in somebody's hand, perhaps of the dead")
    taken_up = _until_taken_up(run, set(rows))
    run.say(f"the last of them was taken up again {taken_up:.0f} s after the last fault")
    finished = _until_finished(run, began)
    if _reconcile_every_day(run):
        finished = _until_finished(run, began)
    seconds = time.monotonic() - run.last_fault
    return Healing(taken_up, len(rows), finished, seconds, run.site.now() - began)


def _all_is_well_again(run: Run) -> None:
    for endpoint in GATEWAY_FAULTS:
        run.site.simulator.post("/_simulator/faults", {"endpoint": endpoint, "outcome": "429", "count": 0})
    for subscriber in run.subscribers:
        path = f"/_simulator/tokens/{subscriber.payment_token_id}/script"
        run.site.simulator.post(path, {"outcomes": []})
    run.site.simulator.post("/_simulator/webhooks/config", dict.fromkeys(("duplicate_rate", "loss_rate"), 0))
    while not run.site.keep_time():
        run.live(0.2)


def _rows_in_hand(run: Run) -> set[tuple[str, str]]:
    with run.site.engine.connect() as connection:
        return {(row[0], row[1]) for row in connection.execute(text(_ROWS_IN_HAND))}


def _until_taken_up(run: Run, rows: set[tuple[str, str]]) -> float:
    """Seconds from the last fault until no row is as it was then: done, or under a new lease."""
    deadline = time.monotonic() + 240
    hurried = not run.options.hurry
    while rows and time.monotonic() < deadline:
        run.live(0.5)
        rows &= _rows_in_hand(run)
        if not hurried and time.monotonic() > run.last_fault + 6:
            hurried = True
            run.say(f"--hurry: {len(rows)} leases end now, as if their two minutes had passed")
            _end_leases(run, [row[0] for row in rows])
    return time.monotonic() - run.last_fault


def _end_leases(run: Run, ids: list[str]) -> None:
    with run.site.engine.begin() as connection:
        for table in ("charge_attempts", "webhook_events", "refunds"):
            statement = f"UPDATE {table} SET lease_until = now() WHERE id = ANY(:ids) AND lease_until > now()"
            connection.execute(text(statement), {"ids": ids})


def _until_finished(run: Run, began: datetime) -> bool:
    """Small steps over the settlement window, then from one date to the next, until nothing is open."""
    step = timedelta(hours=9 if run.options.hurry else 2)
    latest = began + POLICIES["standard"].grace + timedelta(days=4)
    while _until_nothing_is_due(run):
        past_the_window = run.site.now() > began + timedelta(hours=SETTLEMENT_HOURS + 1)
        unfinished = run.ask(_UNFINISHED)
        if past_the_window and unfinished == 0:
            return True
        if run.site.now() > latest:
            run.say(f"{unfinished} rows have no end after {run.site.now() - began}")
            return False
        following = run.ask(_NEXT) if past_the_window else None
        wait = step if following is None else following - run.site.now() + timedelta(minutes=1)
        run.site.move_clocks(min(max(wait, step), timedelta(days=1)))
        run.site.keep_time()
        run.say(f"{_figures(run)}; {unfinished} unfinished")
    return False


def _reconcile_every_day(run: Run) -> int:
    """What the operator's cron does each night (docs/operations.md): an event that Xendit gave up on, or lost, after
    a failure it had reported before, is found by nothing else. How many differences there were."""
    given = {name.removeprefix("BILLING_").lower(): value for name, value in run.site.environment.items()}
    app = build(load_settings(**{name: given[name] for name in given if name in Settings.model_fields}))
    log.configure("json", level=logging.CRITICAL)  # what it mends is our line below
    day, last = NOW.date(), run.site.now().date()
    found = 0
    while day <= last:
        differences = compare_day(app.parts, day)
        for difference in differences:
            run.say(f"billing reconcile --date {day}: {difference.kind} {difference.reference_id}")
        found += len(differences)
        day += timedelta(days=1)
    app.close()
    run.faults["found by reconcile --date"] += found
    return found


def _until_nothing_is_due(run: Run) -> bool:
    """Twice in a row, as the scheduler looks every two seconds. False when it does not come to rest."""
    deadline = time.monotonic() + 200
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        run.live(0.4)
        quiet = quiet + 1 if run.ask(_DUE) == 0 else 0
    if quiet < 2:
        run.say(f"{run.ask(_DUE)} rows stay due and are not worked on")
    return quiet == 2


# ------------------------------------------------------------------------------------------------ the verdict


def verdict_of(run: Run) -> Verdict:
    _until_nothing_is_due(run)  # an event that came this very moment is applied a moment later, with others
    ledger = run.site.simulator.get("/_simulator/ledger")["payments"]
    verdict = oracle.judge(run.site.engine, run.subscribers, ledger, run.site.now())
    verdict.wrong["findings of billing doctor"] = _findings(run.site)
    verdict.wrong["tracebacks in logs"] = list(_tracebacks(run.site.folder))
    calls = run.site.simulator.get("/_simulator/requests").get(CHARGES, {})
    verdict.counts = {"attempts sent": sum(calls.values())} | verdict.counts
    return verdict


def _findings(site: Site) -> list[str]:
    """Every check must be ok: nothing of a storm is legitimately left when it is over."""
    doctor = site.command("doctor", "--json")
    if not doctor.stdout:
        return [doctor.stderr.strip() or f"exit status {doctor.returncode}"]
    checks = json.loads(doctor.stdout)["checks"]
    return [f"{check['name']}: {check['count']} {check['detail']}" for check in checks if not check["ok"]]


def _tracebacks(folder: Path) -> Iterator[str]:
    """One line for each traceback: whose, and how it ended."""
    for path in sorted(folder.glob("*.log")):
        words = path.read_text(errors="replace").replace("\\n", "\n")
        for part in words.split("Traceback (most recent call last)")[1:]:
            ending = next((line for line in part.splitlines()[1:] if line and not line.startswith(" ")), "")
            yield f"{path.stem}: {ending[:160]}"


def _said(run: Run, words: str) -> int:
    return sum(run.site.log(name).read_text(errors="replace").count(words) for name in WORKERS)


def show(run: Run, verdict: Verdict, healing: Healing) -> None:
    site = run.site
    typer.echo("")
    for name, evidence in verdict.wrong.items():
        typer.echo(f"  {name:<34} {len(evidence):>6}")
    typer.echo("")
    for name, count in verdict.counts.items():
        typer.echo(f"  {name:<34} {count:>6}")
    typer.echo("")
    for name, count in sorted(run.faults.items()):
        typer.echo(f"  {name:<34} {count:>6}")
    typer.echo(f"  {'answers lost on the way':<34} {site.proxy.answers_lost:>6}")
    typer.echo(f"  {'questions delivered late':<34} {site.proxy.delivered_late:>6}")
    typer.echo(f"  {'questions swallowed':<34} {site.proxy.swallowed:>6}")
    typer.echo(f"  {'woke up too late and did not send':<34} {_said(run, TOO_LATE):>6}")
    typer.echo(f"  {'ended by themselves':<34} {len(site.ended_by_themselves):>6}")
    typer.echo("")
    hurried = " (leases cut short: --hurry)" if run.options.hurry else ""
    typer.echo(
        f"  healing: all {healing.rows_in_hand} rows in dead hands taken up {healing.last_row_taken_up:.0f} s after the"
        f" last fault{hurried};\n  nothing open after {healing.seconds:.0f} s and"
        f" {healing.clock.total_seconds() / 3600:.0f} h of the clock"
    )

    for line in verdict.given_up:
        typer.echo(f"  given up: {line}")


def show_evidence(run: Run, verdict: Verdict) -> None:
    for name, evidence in verdict.wrong.items():
        if evidence:
            typer.echo(f"\n{name}:")
            for line, count in itertools.islice(Counter(evidence).most_common(), 20):
                typer.echo(f"  {f'{count} x ' if count > 1 else ''}{line}")
    for subscription in verdict.suspects[:3]:
        typer.echo(f"\n$ billing explain {subscription}")
        typer.echo(run.site.command("explain", subscription).stdout)
    for line in run.site.ended_by_themselves:
        typer.echo(f"ended by itself: {line}")


def play(options: Options, folder: Path) -> int:
    with set_up(NOW - timedelta(minutes=1), folder) as site:
        run = Run(site, options, random.Random(options.seed))
        run.say(f"{options.subscribers} subscribers, seed {options.seed}, {options.seconds:.0f} s of storm")
        enrol(run)
        storm(run)
        healing = calm(run)
        verdict = verdict_of(run)
        show(run, verdict, healing)
        ok = verdict.ok and healing.finished
        if not ok:
            show_evidence(run, verdict)
        typer.echo(f"\n{'OK' if ok else 'NOT OK'}  (seed {options.seed})")
        return 0 if ok else 1


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where the logs are, and where we work: no .env of anybody's is near."""
    path = Path(tempfile.mkdtemp(prefix="billing-chaos-"))
    before = Path.cwd()
    os.chdir(path)
    try:
        yield path
    finally:
        os.chdir(before)
        if kept is not None:
            shutil.copytree(path, kept, dirs_exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--subscribers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hurry", action="store_true", help="do not wait out the leases of the dead")
    parser.add_argument("--keep-logs", type=lambda path: Path(path).resolve(), metavar="FOLDER")
    options = Options(**vars(parser.parse_args()))
    with signals_end_us(), _folder(options.keep_logs) as folder:
        return play(options, folder)


if __name__ == "__main__":
    sys.exit(main())
