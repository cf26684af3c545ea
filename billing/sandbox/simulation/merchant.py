"""The merchant's side of a world: the rules that are set, and a quota that can run out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from billing.domain.gateway import CHARGE_ENDPOINT, Lane
from billing.parts import Rules
from billing.sandbox.simulation.population import Merchant, Subscriber
from billing.sandbox.simulation.stage import Stage

WINDOW = timedelta(minutes=10)
SMALL_SAMPLE = 1
_KNOWN = frozenset(field.name for field in fields(Rules))


def rules_of(merchant: Merchant, subscribers: Sequence[Subscriber]) -> Rules:
    """What is set, and nothing else: what nobody sets must be as harmless as the product promises."""
    values: dict[str, Any] = {
        "hold_in_doubt": merchant.hold_in_doubt,
        "refund_overpayments": merchant.refund_overpayments,
        "charges_at_once": merchant.charges_at_once,
    }
    amounts = {who.market.currency: who.market.minor for who in subscribers}
    match merchant.guards:
        case "run spending cap":
            values["run_spending_cap"] = {currency: minor * 3 // 2 for currency, minor in amounts.items()}
        case "subscriber daily cap":
            values["subscriber_daily_cap"] = {currency: minor * 3 // 2 for currency, minor in amounts.items()}
        case "small samples":
            # Guards that judge by a sample judge a world of two subscribers as well: those that are on unless set.
            values["run_decline_sample"] = SMALL_SAMPLE
    return Rules(**{name: value for name, value in values.items() if name in _KNOWN})


class SmallBudget:
    """billing.domain.gateway.Quota for charges: so many in ten minutes of the world's time, or without a limit."""

    def __init__(self, stage: Stage, most: int | None) -> None:
        self._stage, self._most = stage, most
        self._given: list[datetime] = []

    def acquire(self, endpoint: str, lane: Lane, wanted: int = 1, *, wait_seconds: float) -> int:  # noqa: ARG002 - the port's signature
        if self._most is None or endpoint != CHARGE_ENDPOINT:
            return wanted
        self._given = [at for at in self._given if at > self._stage.now - WINDOW]
        permits = max(0, min(wanted, self._most - len(self._given)))
        self._given += [self._stage.now] * permits
        return permits

    def give_back(self, endpoint: str, permits: int) -> None:
        if self._most is not None and endpoint == CHARGE_ENDPOINT and permits > 0:
            del self._given[-permits:]

    def next_permit_at(self) -> datetime | None:
        """When there is one again; None when there is no limit, or one now."""
        used = [at for at in self._given if at > self._stage.now - WINDOW]
        return min(used) + WINDOW if self._most is not None and len(used) >= self._most else None

    def outlook(self, endpoint: str, seconds: float) -> int | None:
        """Whoever asks finds out when there is none left."""

    def learn(self, endpoint: str, *, limit: int | None, remaining: int | None) -> None:
        """Told of the gateway's own count."""

    def pause(self, endpoint: str, seconds: float) -> None:
        """Told of a 429."""
