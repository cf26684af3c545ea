"""Months in which everything goes wrong that can: declines, time-outs, lost and doubled webhooks, killed processes.

Seeded: a failure names its seed, and the same seed fails again. Nothing may be charged twice while it lasts (safety),
and once the faults stop every period reaches an end (liveness, M4).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from billing.charging import look_up
from billing.domain.gateway import ChargeReport, ChargeRequest
from billing.domain.lifecycle import UNFINISHED
from billing.errors import BillingError
from billing.store.models import Invoice
from billing.work import work_on
from tests.world import OTHER_VISA, VISA, Subscriber, World

OUTCOMES = [
    "INSUFFICIENT_BALANCE", "DECLINED_BY_ISSUER/05/24", "CARD_DECLINED", "ISSUER_UNAVAILABLE", "STOLEN_CARD",
    "HTTP:503:CHANNEL_UNAVAILABLE", "429", "TIMEOUT_BEFORE", "TIMEOUT_AFTER", "500_BEFORE", "500_AFTER", "GARBAGE",
    "TIMEOUT_AFTER:INSUFFICIENT_BALANCE", "TIMEOUT_ERROR", "LATE_CAPTURE:TIMEOUT_ERROR:18000", "REQUIRES_ACTION",
    "LATE_CAPTURE:INSUFFICIENT_BALANCE:90000", "PENDING:SUCCEEDED", "PENDING:INSUFFICIENT_BALANCE",
    "NO_WEBHOOK:PENDING:SUCCEEDED", "NO_WEBHOOK:TIMEOUT_AFTER", "HTTP:400:PAYMENT_REQUEST_RATE_LIMITED",
]  # fmt: skip
PEOPLE = 4


class Killed(BaseException):
    """The process is gone: nothing after this line runs."""


class Fate:
    """Decides what goes wrong, out of one seed; `calm` ends it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.calm = False

    def happens(self, rate: float) -> bool:
        return not self.calm and self.chance.random() < rate

    def decide(self, _token: Mapping[str, Any], _amount: Decimal, _now: datetime) -> str | None:
        return self.chance.choice(OUTCOMES) if self.happens(0.5) else None


def haunt(world: World, fate: Fate) -> None:
    """Messages get lost or doubled, and processes die around the call to the gateway."""
    charge = world.gateway.charge

    def charge_or_die(request: ChargeRequest) -> ChargeReport:
        if fate.happens(0.05):
            raise Killed
        report = charge(request)
        if fate.happens(0.05):
            raise Killed
        return report

    def send(kind: str, ids: Sequence[str]) -> None:
        for identity in ids:
            if fate.happens(0.05):
                continue
            for _ in range(2 if fate.happens(0.1) else 1):
                try:
                    work_on(world.parts, kind, identity)
                except Killed:
                    continue

    world.gateway.charge = charge_or_die  # type: ignore[method-assign]
    world.send = send  # type: ignore[method-assign]


def meddle(fate: Fate, person: Subscriber) -> None:
    """What people do in between; a refusal is an answer too."""
    deeds: list[Callable[[], object]] = [
        person.pay_invoice,
        person.pause,
        person.resume,
        lambda: person.adds_card(fate.chance.choice([VISA, OTHER_VISA])),
    ]
    try:
        fate.chance.choice(deeds)()
    except (BillingError, Killed, IndexError):
        return


def reconcile_the_days(world: World) -> None:
    """`billing reconcile --date` of the days since the last time: what a merchant's nightly cron does. A late capture
    whose webhook was lost for good is found by nothing else."""
    for days_ago in range(15):
        look_up.compare_day(world.parts, (world.now - timedelta(days=days_ago)).date())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_nobody_pays_twice_and_everything_ends(new_world: Callable[..., World], seed: int) -> None:
    fate = Fate(seed)
    world = new_world(decide=fate.decide)
    people = [world.subscribe_save(f"customer{number}") for number in range(PEOPLE)]
    haunt(world, fate)
    world.control("POST", "/webhooks/config", {"loss_rate": 0.2, "duplicate_rate": 0.2, "reorder": True})

    for _ in range(8):
        world.live(days=fate.chance.uniform(1, 12))
        world.leases_run_out()
        meddle(fate, fate.chance.choice(people))
        reconcile_the_days(world)
        world.check_promises()

    fate.calm = True
    world.control("POST", "/webhooks/config", {"loss_rate": 0, "duplicate_rate": 0, "reorder": False})
    for person in people:
        if person.status == "paused":
            person.resume()
    for _ in range(3):
        world.leases_run_out()
        world.live(days=25)
    reconcile_the_days(world)

    now = world.now
    for invoice in world.all(select(Invoice).where(Invoice.status == "open")):
        attempts = [attempt for attempt in world.all_attempts() if attempt.invoice_id == invoice.id]
        under_way = [attempt for attempt in attempts if attempt.status in UNFINISHED]
        young = (now - invoice.opened_at).days < 30
        assert young or invoice.hold_reason, f"seed {seed}: {invoice.number} never ended: {under_way}"
