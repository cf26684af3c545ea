"""A customer who waits while a run of 10,000 goes on at 600 a minute: how long until her charge is at the gateway.

Two kinds: `billing invoice pay` on an overdue invoice, and a new payment method that arrives by webhook and is tried
at once. Their invoices are overdue because a small run before was declined.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from typing import Any

import psycopg

from benchmarks.world import (
    BenchmarkFailed,
    Result,
    Site,
    expect,
    fill,
    plain,
    servers,
    site,
    sleep_until,
    soon,
    start_ours,
)

A_MINUTE = 600
PROCESSES, THREADS = 2, 8
GOAL_SECONDS = 2.0
PAUSE_SECONDS = 6.0
LOOKED_SECONDS = 60
DECLINED_LATER, DECLINED_FOR_GOOD = "INSUFFICIENT_BALANCE", "CARD_EXPIRED"


@dataclass(frozen=True, slots=True)
class Waited:
    since_asked: float  # the command's start, the customer's click; infinite: not sent while we looked
    since_written: float  # the attempt in our database


def main(*, quick: bool = False) -> list[Result]:
    rate, crowd, times = (120, 600, 2) if quick else (A_MINUTE, 10_000, 10)
    waiting = 2 * times
    with servers() as shared:
        url = shared.new_ours("waiting")
        with site(shared, url) as here:
            start_ours(here, processes=PROCESSES, threads=THREADS, rate=rate)
            tokens = here.gateway.new_tokens(waiting + crowd)
            for index, token in enumerate(tokens[:waiting]):
                here.gateway.post(
                    f"/_simulator/tokens/{token}/script",
                    {"outcomes": [DECLINED_LATER if index < times else DECLINED_FOR_GOOD]},
                )
            first, then = soon(waiting + crowd), soon(waiting + crowd) + timedelta(seconds=25)
            fill(url, subscriptions=waiting + crowd, due={first: waiting, then: crowd}, tokens=tokens)
            here.wait(lambda: _overdue(url) >= waiting, f"{waiting} declined charges", seconds=60)
            sleep_until(then)
            here.run("billing", "run", seconds=60)
            here.wait(lambda: here.gateway.captured() > crowd / 100, "the run", seconds=60)
            paid = _each(range(1, times + 1), partial(_pay, here, url))
            came = _each(range(times + 1, waiting + 1), partial(_save_card, here, url))
            left = crowd - here.gateway.captured()
            refused = here.gateway.quota()["refused"]
    expect(left > 0, "the run was over before the last customer waited")
    return [
        _result(f"`billing invoice pay` during a run of {crowd:,} at {rate}/min, {times} times", paid),
        _result("a new payment method's first charge, from its saving at Xendit", came),
        Result("answered with 429", str(refused), "0", refused == 0),
    ]


def _result(measure: str, waits: list[Waited]) -> Result:
    asked = sorted(wait.since_asked for wait in waits)
    if math.isinf(asked[-1]):
        figure = f"customer {len(waits)}: not within {LOOKED_SECONDS} s"
    else:
        written = max(wait.since_written for wait in waits)
        figure = f"median {median(asked):.2f} s, longest {asked[-1]:.2f} s; from the attempt {written:.2f} s"
    return Result(f"{measure}, sent after", figure, f"< {GOAL_SECONDS:g} s", asked[-1] < GOAL_SECONDS)


# ------------------------------------------------------------------------------------------------ one customer


def _each(customers: Iterable[int], wait: Callable[[str], Waited]) -> list[Waited]:
    """One after the other, with rests; who is not served at all ends it."""
    waits: list[Waited] = []
    for number in customers:
        time.sleep(PAUSE_SECONDS)
        waits.append(wait(f"sub-{number}"))
        if math.isinf(waits[-1].since_asked):
            break
    return waits


def _pay(here: Site, url: str, subscription: str) -> Waited:
    with psycopg.connect(plain(url)) as connection:
        (number,) = _one(connection, "SELECT number FROM invoices WHERE subscription_id = %s", subscription)
    before = _attempts(url, subscription)
    asked = datetime.now(UTC)
    command = [sys.executable, "-m", "billing", "invoice", "pay", str(number)]
    with subprocess.Popen(command, env={**os.environ, **here.environment}, stdout=here.log, stderr=here.log) as paying:
        try:
            return _next_charge(here, url, subscription, before, asked)
        finally:
            paying.terminate()


def _save_card(here: Site, url: str, subscription: str) -> Waited:
    """The customer opens a payment session and saves a card there. What counts is the time from the saving on."""
    customer = subscription.replace("sub-", "c")
    opened = subprocess.run(
        [sys.executable, "-m", "billing", "session", "create", customer, "--json"],
        env={**os.environ, **here.environment}, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expect(opened.returncode == 0, f"session create: {opened.stderr.strip()}")
    session: dict[str, Any] = json.loads(opened.stdout)
    before = _attempts(url, subscription)
    asked = datetime.now(UTC)
    here.gateway.post(f"/_simulator/sessions/{session['xendit_session_id']}/complete", {})
    return _next_charge(here, url, subscription, before, asked)


def _next_charge(here: Site, url: str, subscription: str, before: Mapping[str, datetime], asked: datetime) -> Waited:
    """Until an attempt beyond those `before` has come to the gateway."""
    deadline = time.monotonic() + LOOKED_SECONDS
    while time.monotonic() < deadline:
        for reference, created in _attempts(url, subscription).items():
            arrived = here.gateway.arrived_at(reference) if reference not in before else None
            if arrived is not None:
                return Waited((arrived - asked).total_seconds(), (arrived - created).total_seconds())
        time.sleep(0.25)
    return Waited(math.inf, math.inf)


def _overdue(url: str) -> int:
    with psycopg.connect(plain(url)) as connection:
        (count,) = _one(connection, "SELECT count(*) FROM subscriptions WHERE status = %s", "past_due")
    return int(count)


def _attempts(url: str, subscription: str) -> dict[str, datetime]:
    with psycopg.connect(plain(url)) as connection:
        query = "SELECT reference_id, created_at FROM charge_attempts WHERE subscription_id = %s"
        return dict(connection.execute(query, [subscription]).fetchall())


def _one(connection: psycopg.Connection[Any], query: str, value: str) -> tuple[Any, ...]:
    found = connection.execute(query, [value]).fetchone()
    if found is None:
        raise BenchmarkFailed(f"nothing found by: {query}")
    return tuple(found)
