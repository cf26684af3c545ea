"""What goes wrong, out of one seed.

Every seed has faults of its own: some kinds never happen in it, some rarely, some all the time (a run in which
everything fails at once finds less than many in which something else fails each time). `calm` ends all of them.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

Choice = TypeVar("Choice")

# How likely each is where it can happen: at its mildest and at its worst.
AT_A_PAUSE = {
    "death": (0.001, 0.02),
    "stall": (0.0005, 0.01),
    "database_lost_before": (0.001, 0.02),
    "database_lost_after": (0.001, 0.02),
}
AT_A_CALL = {
    "refused_connection": (0.01, 0.2),
    "lost_before": (0.01, 0.2),
    "lost_after": (0.01, 0.3),
    "error_before": (0.01, 0.2),
    "error_after": (0.01, 0.2),
    "too_many_requests": (0.01, 0.2),
    "slow_answer": (0.01, 0.1),
    "stranger_before": (0.01, 0.1),  # HTML of a firewall, an empty 403, a redirect: nothing was done
    "stranger_after": (0.01, 0.1),  # the same, and it was done behind it
    "refused_key": (0.002, 0.01),  # Xendit's own 401
}
# Before a call. Drawn by a chance of its own: the years of the seeds in which it never happens stay what they were.
OF_THE_MACHINE = {"no_client": (0.005, 0.05)}  # for a while no HTTP client can be made: a proxy, a certificate
ON_THE_WAY = {
    "message_lost": (0.01, 0.3),
    "message_doubled": (0.01, 0.3),
    "message_late": (0.01, 0.2),
    "webhook_lost": (0.01, 0.4),
    "webhook_doubled": (0.01, 0.4),
    "webhook_late": (0.01, 0.3),
    "webhook_reordered": (0.05, 0.5),
}
OF_THE_CUSTOMER = {"decline": (0.02, 0.6), "pending": (0.02, 0.3), "late_capture": (0.01, 0.15)}
OF_THE_MONEY = {"partial_capture": (0.01, 0.1), "other_currency": (0.01, 0.05)}
# How many of each befall a world in its year.
HAPPENINGS = {
    "redis_wiped": 6,
    "clock_jumps": 6,
    "token_dies": 2,
    "deploy": 5,
    "outage": 2,
    "person_acts": 10,
    "doctor_repairs": 3,
    "somebody_reconciles": 4,
    "somebody_runs_billing": 6,
    "charging_is_stopped": 2,
    "run_is_steered": 4,
    "holds_are_approved": 4,
}
# The same, in fewer worlds: each of them changes a whole year.
SELDOM = {"channel_is_down": 2, "wrong_key": 1, "zone_rules_change": 1, "nobody_at_work": 1}
OFTEN = 0.35  # of the seeds have a given kind of fault at all
# Of the seeds have refunds that a person makes in Xendit's dashboard. Drawn by a chance of its own, as what is of the
# machine: the years of all other seeds stay what they were.
REFUNDED_ELSEWHERE = 0.2
MOST_REFUNDS_ELSEWHERE = 4

DECLINES = (
    "INSUFFICIENT_BALANCE", "DECLINED_BY_ISSUER/05/24", "CARD_DECLINED", "ISSUER_UNAVAILABLE", "STOLEN_CARD",
    "HTTP:503:CHANNEL_UNAVAILABLE", "HTTP:400:PAYMENT_REQUEST_RATE_LIMITED", "REQUIRES_ACTION", "TIMEOUT_ERROR",
    "DECLINED_BY_ISSUER/14/03", "HTTP:403:INVALID_MERCHANT_SETTINGS",
)  # fmt: skip
PENDINGS = (
    "PENDING:SUCCEEDED", "PENDING:INSUFFICIENT_BALANCE", "NO_WEBHOOK:PENDING:SUCCEEDED", "NO_WEBHOOK:SUCCEEDED",
    "PENDING:TIMEOUT_ERROR", "PENDING:REQUIRES_ACTION",
)  # fmt: skip
LATE = ("LATE_CAPTURE:TIMEOUT_ERROR:18000", "LATE_CAPTURE:INSUFFICIENT_BALANCE:90000", "LATE_CAPTURE:CARD_DECLINED:200")


CHANNEL_DOWN = "HTTP:400:PAYMENT_REQUEST_RATE_LIMITED"  # "wait": the breaker opens at once


class Fate:
    """Asked at every point where something could go wrong. `happened` counts what did."""

    def __init__(self, seed: int, *, gentle: bool = False) -> None:
        self.seed = seed
        self.calm = gentle
        self.happened: Counter[str] = Counter()
        self.drawn: Counter[tuple[str, str]] = Counter()  # (choice, option): what this world is made of
        self._chance = random.Random(f"fate:{seed}")
        self.rates = self._draw_rates()
        self.script: deque[str | None] = deque()  # what the bank says to the next charges, before chance has a word
        self.channels_down: dict[str, datetime] = {}  # until when
        self.no_failure_webhooks = self._chance.random() < OFTEN / 2
        self.dashboard = random.Random(f"dashboard:{seed}")
        self.unheard: set[str] = set()  # refunds made in the dashboard whose webhook never leaves Xendit

    def _draw_rates(self) -> dict[str, float]:
        rates: dict[str, float] = {}
        for name, (mild, bad) in {**AT_A_PAUSE, **AT_A_CALL, **ON_THE_WAY, **OF_THE_CUSTOMER, **OF_THE_MONEY}.items():
            drawn, worst = self._chance.random() < OFTEN, self._chance.random() < OFTEN
            rates[name] = (bad if worst else mild) if drawn else 0.0
        apart = random.Random(f"machine:{self.seed}")
        for name, (mild, bad) in OF_THE_MACHINE.items():
            rates[name] = apart.choice((mild, bad)) if apart.random() < OFTEN else 0.0
        return rates

    def happens(self, kind: str) -> bool:
        rate = 0.0 if self.calm else self.rates[kind]
        if rate == 0.0 or self._chance.random() >= rate:
            return False
        self.happened[kind] += 1
        return True

    def between(self, low: float, high: float) -> float:
        """More often near `low`: most troubles are short."""
        return low + (high - low) * self._chance.random() ** 3

    def choose(self, of: Sequence[Choice]) -> Choice:
        return self._chance.choice(of)

    def coin(self, rate: float = 0.5) -> bool:
        return self._chance.random() < rate

    def happenings(self, start: datetime, end: datetime) -> list[tuple[datetime, str]]:
        """What befalls this world, and when; oldest first."""
        seconds = (end - start).total_seconds()
        planned = [
            (start + timedelta(seconds=self._chance.random() * seconds), kind)
            for happenings, share in ((HAPPENINGS, OFTEN * 2), (SELDOM, OFTEN))
            for kind, most in happenings.items()
            if not self.calm and self._chance.random() < share
            for _ in range(self._chance.randint(1, most))
        ]
        if not self.calm and self.dashboard.random() < REFUNDED_ELSEWHERE:
            planned += [
                (start + timedelta(seconds=self.dashboard.random() * seconds), "refund_elsewhere")
                for _ in range(self.dashboard.randint(1, MOST_REFUNDS_ELSEWHERE))
            ]
        return sorted(planned)

    def decide(self, token: Mapping[str, Any], _amount: Decimal, now: datetime) -> str | None:
        """What the bank says to a charge; the simulator asks (billing/sandbox/simulator/outcomes.py has the words)."""
        if self.script:
            return self.script.popleft()
        down = self.channels_down.get(str(token.get("channel_code")))
        if down is not None and now < down and not self.calm:
            return CHANNEL_DOWN
        for kind, words in (("decline", DECLINES), ("pending", PENDINGS), ("late_capture", LATE)):
            if self.happens(kind):
                return self._chance.choice(words)
        return None
