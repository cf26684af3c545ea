"""What follows a failed attempt: when to try again, with which token, when to ask, when to stop.

Called by charging/after_failure.py with the judged decline and the invoice's progress. Policies are data; a plan
names one (`--dunning NAME`). The ladder counts days from the first failure and is climbed by scheduled
attempts only: what a person tries by hand neither uses it up nor shortens it. Network caps and the choice of
a token are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import assert_never

from billing.domain.declines import Classified, DeclineClass
from billing.errors import InvalidInput

# A late answer can make several rungs overdue at once; they must not become a burst of attempts.
MIN_GAP = timedelta(hours=1)

_DAY = timedelta(days=1)


class FinalAction(StrEnum):
    """What becomes of the subscription when the invoice is given up."""

    CANCEL = "cancel"
    PAUSE = "pause"
    PAST_DUE = "past_due"


@dataclass(frozen=True, slots=True)
class DunningPolicy:
    """`ladder`: after the first failure. `technical_waits`: each after the technical failure it answers.
    `grace`: how long after the first failure the customer has, before the final action."""

    name: str
    ladder: tuple[timedelta, ...]
    technical_waits: tuple[timedelta, ...]
    grace: timedelta
    final_action: FinalAction


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an invoice stands on its ladder.

    `step`: rungs planned so far (store `RetryAt.step` when a retry is planned). `soft_tries_of_code`: failed
    attempts of this invoice with the code of the failure at hand, that failure included.
    """

    step: int = 0
    technical_step: int = 0
    first_failed_at: datetime | None = None
    soft_tries_of_code: int = 0


@dataclass(frozen=True, slots=True)
class RetryAt:
    """One scheduled attempt; `step` and `technical_step` are the progress once it is planned."""

    at: datetime
    step: int
    technical_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class NextToken:
    """Try another payment method of this customer now (as soon as the network caps allow)."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskCustomer:
    """Nothing more is tried unasked; the final action follows at `until`."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The invoice is uncollectible, and the policy's final action is due."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A person on the merchant's side has to act. The customer is not bothered."""

    reason: str


Next = RetryAt | NextToken | AskCustomer | GiveUp | Hold


def _days(*days: int) -> tuple[timedelta, ...]:
    return tuple(timedelta(days=day) for day in days)


_HOURS = (timedelta(hours=1), timedelta(hours=4), timedelta(hours=12))

# 1, 3, 5, 7, 14 with grace to day 21: six attempts in all, inside every cap of the card networks.
_STANDARD_LADDER = _days(1, 3, 5, 7, 14)

DEFAULT_POLICY = "standard"

POLICIES: Mapping[str, DunningPolicy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            DunningPolicy(DEFAULT_POLICY, _STANDARD_LADDER, _HOURS, 21 * _DAY, FinalAction.CANCEL),
            DunningPolicy("gentle", _days(2, 5, 9, 14, 21, 28), _HOURS, 45 * _DAY, FinalAction.PAST_DUE),
            DunningPolicy("strict", _days(1, 3), _HOURS, 7 * _DAY, FinalAction.CANCEL),
            DunningPolicy("pause", _STANDARD_LADDER, _HOURS, 21 * _DAY, FinalAction.PAUSE),
            # Whoever retries elsewhere decides elsewhere what becomes of the subscription.
            DunningPolicy("none", (), (), timedelta(0), FinalAction.PAST_DUE),
        )
    }
)


def policy(name: str) -> DunningPolicy:
    """The policy of this name, or InvalidInput with the list of names."""
    found = POLICIES.get(name)
    if found is None:
        raise InvalidInput(f"no dunning policy {name[:40]!r}; write one of {' '.join(POLICIES)}")
    return found


def next_step(
    policy: DunningPolicy,
    classified: Classified,
    progress: Progress,
    now: datetime,
    *,
    has_other_token: bool,
    counts: bool,
) -> Next:
    """Decide what follows a failure that is definite. `counts` is false for an attempt made by hand."""
    ladder = _Ladder(policy, classified, progress, now, has_other_token=has_other_token, counts=counts)
    if classified.cls == DeclineClass.OUR_FAULT:
        return Hold(f"{classified.code}: {classified.note}; look at it before anything is charged")
    if not policy.ladder and not policy.technical_waits:
        return GiveUp(f"{classified.code}: the dunning policy {policy.name} tries nothing again")
    if classified.blocks_card or classified.revoked:
        return ladder.without_this_token()
    match classified.cls:
        case DeclineClass.NEEDS_CUSTOMER | DeclineClass.DEAD_TOKEN:
            return ladder.without_this_token()
        case DeclineClass.RETRY_AFTER:
            return ladder.soon()
        case DeclineClass.RETRY_LATER | DeclineClass.UNKNOWN_FIRST:
            # A doubt comes here only after the settlement window, which makes it a decline like any other.
            return ladder.next_rung()
        case _:
            assert_never(classified.cls)


class _Ladder:
    """The decision for one failure: its arguments, named once."""

    __slots__ = ("classified", "counts", "has_other_token", "now", "policy", "progress", "started_at")

    def __init__(
        self,
        policy: DunningPolicy,
        classified: Classified,
        progress: Progress,
        now: datetime,
        *,
        has_other_token: bool,
        counts: bool,
    ) -> None:
        self.policy, self.classified, self.progress, self.now = policy, classified, progress, now
        self.has_other_token, self.counts = has_other_token, counts
        self.started_at = progress.first_failed_at or now

    def soon(self) -> Next:
        """A technical failure: hours later, a few times, then like a soft decline."""
        step, waits = self.progress.technical_step, self.policy.technical_waits
        if self._tried_enough() or step >= len(waits) or not self.counts:
            return self.next_rung()
        at = self.now + max(waits[step], self.classified.wait or timedelta(0))
        if at > self._grace_end():
            return self._over("the next try would come after the grace period")
        reason = f"{self.classified.code}: technical, try {step + 1} of {len(waits)} after some hours"
        return RetryAt(at, self.progress.step, step + 1, reason)

    def next_rung(self) -> Next:
        """A soft decline: the next rung, later if the code says so."""
        if self._tried_enough():
            return self._over(f"tried {self.progress.soft_tries_of_code} times with this answer")
        rung = self._rung()
        if rung is None:
            return self._over("the retry ladder is used up")
        not_before = self.now + max(MIN_GAP, self.classified.wait or timedelta(0))
        at = max(self.started_at + self.policy.ladder[rung], not_before)
        if at > self._grace_end():
            return self._over("the next try would come after the grace period")
        days = self.policy.ladder[rung] // _DAY
        reason = f"{self.classified.code}: step {rung + 1} of {len(self.policy.ladder)}, day {days}"
        return RetryAt(at, rung + 1, self.progress.technical_step, reason)

    def without_this_token(self) -> Next:
        """This token is out. Another one is charged unless the cardholder told the bank to stop."""
        if self.classified.revoked or not self.has_other_token:
            return self._ask("this payment method cannot be charged")
        # What a person tried by hand must not set off another charge at once: the ladder goes on.
        rung = None if self.counts else self._rung()
        if rung is None:
            return self._over("this payment method cannot be charged")
        at = max(self.started_at + self.policy.ladder[rung], self.now + MIN_GAP)
        reason = f"{self.classified.code}: tried by hand; the ladder goes on with another payment method"
        return RetryAt(at, rung + 1, self.progress.technical_step, reason)

    def _rung(self) -> int | None:
        """The index of the rung to plan. An attempt by hand gives the rung it displaced back: the first one,
        from the last planned on, whose time has not come."""
        ladder, step = self.policy.ladder, self.progress.step
        if self.counts:
            return step if step < len(ladder) else None
        rungs = range(max(step - 1, 0), len(ladder))
        return next((rung for rung in rungs if self.started_at + ladder[rung] > self.now), None)

    def _over(self, why: str) -> Next:
        if self.has_other_token and self.counts:
            return NextToken(f"{self.classified.code}: {why}; another payment method is there")
        return self._ask(why)

    def _ask(self, why: str) -> Next:
        until = self._grace_end()
        if until <= self.now:
            return GiveUp(f"{self.classified.code}: {why}, and the grace period is over")
        return AskCustomer(until, f"{self.classified.code}: {why}; the customer has to act")

    def _tried_enough(self) -> bool:
        most = self.classified.max_tries
        return most is not None and self.progress.soft_tries_of_code >= most

    def _grace_end(self) -> datetime:
        return self.started_at + self.policy.grace
