"""Who lives in a simulated world: everything the contract allows, each option with its own share.

One table for each choice. A seed draws a few options of each, never all: where everything is unusual at once, little
happens at all. To add an option, add a row; the table of what was drawn (coverage.py) then has a row for it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulation.periods import LAST_DAY, CronRule, Rhythm, instant_of

Option = TypeVar("Option")
Shares = Sequence[tuple[Option, int]]


@dataclass(frozen=True, slots=True)
class Market:
    """A country, what is paid there and how. `amount` is no test amount of Xendit's that means a decline."""

    country: str
    currency: str
    amount: str
    minor: int
    zone: str
    wallets: tuple[str, ...] = ()


IDR = Market("ID", "IDR", "50000", 50_000, "Asia/Jakarta", ("OVO", "DANA", "SHOPEEPAY", "GOPAY_RECURRING"))
MARKETS: Shares[Market] = (
    (IDR, 60),
    (Market("PH", "PHP", "499.50", 49_950, "Asia/Manila", ("GRABPAY", "PAYMAYA", "SHOPEEPAY")), 14),
    (Market("MY", "MYR", "29.90", 2_990, "Asia/Kuala_Lumpur", ("GRABPAY", "TOUCHNGO", "SHOPEEPAY")), 10),
    (Market("TH", "THB", "199.25", 19_925, "Asia/Bangkok"), 6),
    (Market("VN", "VND", "120000", 120_000, "Asia/Ho_Chi_Minh"), 6),
    (Market("SG", "SGD", "15.80", 1_580, "Asia/Singapore"), 4),
)
# Most pay by the month, many by the quarter or the year. Short rhythms cost many charges: few, and not for long.
RHYTHMS: Shares[Rhythm] = (
    (Rhythm("every 1:month", months=1), 26),
    (Rhythm("every 2:month", months=2), 5),
    (Rhythm("every 3:month", months=3), 20),
    (Rhythm("every 6:month", months=6), 12),
    (Rhythm("every 1:year", months=12), 12),
    (Rhythm("every 3:week", days=21), 3),
    (Rhythm("every 1:week", days=7), 5),
    (Rhythm("every 1:day", days=1), 4),
    (Rhythm("every 10:day", days=10), 2),
    (Rhythm("cron 0 9 1 * *", cron=CronRule(9, 0, days=(1,))), 4),
    (Rhythm("cron 30 2 L * *", cron=CronRule(2, 30, days=(LAST_DAY,))), 4),
    (Rhythm("cron 0 12 15 1,4,7,10 *", cron=CronRule(12, 0, days=(15,), months=(1, 4, 7, 10))), 2),
    (Rhythm("cron 0 8 * * 1", cron=CronRule(8, 0, weekdays=(0,))), 1),
)
ZONES: Shares[str | None] = (  # None: that of the market
    (None, 70), ("America/New_York", 10), ("Australia/Lord_Howe", 8), ("Asia/Kolkata", 6), ("Europe/Berlin", 6),
)  # fmt: skip
CYCLES: Shares[int | None] = ((None, 62), (1, 8), (2, 10), (3, 10), (6, 10))
CYCLES_OF_SHORT: Shares[int | None] = ((None, 15), (1, 15), (2, 20), (3, 25), (6, 25))
TRIALS: Shares[int] = ((0, 76), (3, 8), (14, 8), (45, 8))
VIAS: Shares[str] = (("save", 50), ("pay", 25), ("import", 25))
CATCH_UPS: Shares[str] = (("all", 40), ("latest", 20), ("skip", 20), ("hold", 20))
DUNNINGS: Shares[str] = (("standard", 36), ("strict", 18), ("gentle", 18), ("pause", 16), ("none", 12))
# When the first period was asked to begin, and when the customer follows the link.
STARTS: Shares[str] = (
    ("now", 40),  # no date was given
    ("later", 30),
    ("the 31st", 8),
    ("has passed", 12),  # the date was given, and the payment method comes weeks after it
    ("comes back", 10),  # nothing was saved in the first session; weeks later there is a new one
)
IMPORTED: Shares[str] = (
    ("later", 40),
    ("the 31st", 15),
    ("anchor day 31", 15),
    ("has just passed", 10),
    ("on a busy day", 20),
)
VERIFIED: Shares[bool] = ((True, 50), (False, 50))
NEIGHBOURS: Shares[str] = (("a stranger", 80), ("the same customer, the same card", 20))
LEAVES: Shares[str | None] = ((None, 88), ("cancels at the end of the period", 8), ("cancels at once", 4))
BEFORE_ANY_METHOD = "cancels before a payment method is there"
# What somebody does at an awkward moment, beside what people do at any time (people.py).
MOMENTS: Shares[str] = (
    ("none", 80),
    ("pauses before the first charge", 6),  # and comes back before it
    ("pauses when past due", 5),
    (BEFORE_ANY_METHOD, 3),
    ("cancels while it is paused", 6),
)
CARDS = ("4000000000001091", "4000000000001000", "5200000000001096")

# The merchant: what is set, and how a world differs from the next one.
IN_DOUBT: Shares[bool] = ((False, 90), (True, 10))  # hold_in_doubt
OVERPAID: Shares[bool] = ((True, 90), (False, 10))  # refund_overpayments
GUARDS: Shares[str] = (
    ("none", 70), ("run spending cap", 8), ("subscriber daily cap", 8), ("small samples", 14),
)  # fmt: skip
GROUPS: Shares[int] = ((1, 75), (4, 25))  # charges at once
QUOTAS: Shares[int | None] = ((None, 85), (2, 15))  # charges in ten minutes


def draw(fate: Fate, kind: str, shares: Shares[Option]) -> Option:
    """One option by its share; what was drawn is counted under `kind`."""
    option = fate.choose([option for option, share in shares for _ in range(share)])
    fate.drawn[kind, _name(option)] += 1
    return option


def _name(option: object) -> str:
    if isinstance(option, Rhythm):
        return option.told
    return option.currency if isinstance(option, Market) else str(option)


# Every choice that the table of what was drawn has a row for.
CHOICES: dict[str, Shares[Any]] = {
    "market": MARKETS, "rhythm": RHYTHMS, "zone": ZONES, "cycles": CYCLES, "trial days": TRIALS, "via": VIAS,
    "catch-up": CATCH_UPS, "dunning": DUNNINGS, "start": STARTS, "import": IMPORTED, "import verified": VERIFIED,
    "second subscriber": NEIGHBOURS, "moment": MOMENTS, "leaves": LEAVES, "hold in doubt": IN_DOUBT,
    "overpayments go back": OVERPAID, "guards": GUARDS, "charges at once": GROUPS, "quota": QUOTAS,
}  # fmt: skip


def options() -> list[tuple[str, str]]:
    return [(kind, _name(option)) for kind, shares in CHOICES.items() for option, _ in shares]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """One subscription to be, and its customer. `start_at`: when the first period was asked to begin (an import's: the
    next billing date); None: when the payment method comes. `comes_at`: when the link is followed."""

    reference: str
    customer: str
    market: Market
    rhythm: Rhythm
    zone: str
    via: str
    catch_up: str
    dunning: str
    cycles: int | None
    trial_days: int
    start_at: datetime | None
    created_at: datetime
    comes_at: datetime
    wallet: str | None
    card: str
    verify: bool = True
    anchor_day: int | None = None
    leaves_at: datetime | None = None
    leaves: str = ""
    moments: tuple[tuple[datetime, str], ...] = ()  # (when, which of people.ACTS)
    pauses_when_past_due: bool = False

    def in_words(self) -> str:
        """For the head of a history."""
        start = "" if self.start_at is None else f", from {self.start_at:%Y-%m-%d %H:%M}"
        end = "" if self.cycles is None else f", {self.cycles} cycle(s)"
        trial = f", {self.trial_days} days free" if self.trial_days else ""
        return (
            f"{self.reference} of {self.customer}: {self.rhythm.told} in {self.zone}, {self.market.amount}"
            f" {self.market.currency} by {self.wallet or 'card'}, {self.via} at {self.comes_at:%Y-%m-%d %H:%M}"
            f"{start}{trial}{end}, catch-up {self.catch_up}, dunning {self.dunning}"
        )


@dataclass(frozen=True, slots=True)
class Merchant:
    """The settings of one world."""

    hold_in_doubt: bool
    refund_overpayments: bool
    guards: str
    charges_at_once: int
    charges_in_ten_minutes: int | None

    def in_words(self) -> str:
        """For the head of a history: what is set."""
        doubt = ", holds what is in doubt" if self.hold_in_doubt else ""
        overpaid = "" if self.refund_overpayments else ", holds overpayments"
        quota = f", {self.charges_in_ten_minutes} charges in ten minutes" if self.charges_in_ten_minutes else ""
        return f"guards: {self.guards}, {self.charges_at_once} charge(s) at once{doubt}{overpaid}{quota}"


def draw_merchant(fate: Fate) -> Merchant:
    return Merchant(
        hold_in_doubt=draw(fate, "hold in doubt", IN_DOUBT),
        refund_overpayments=draw(fate, "overpayments go back", OVERPAID),
        guards=draw(fate, "guards", GUARDS),
        charges_at_once=draw(fate, "charges at once", GROUPS),
        charges_in_ten_minutes=draw(fate, "quota", QUOTAS),
    )


def draw_subscribers(fate: Fate, how_many: int, start: datetime, calm_from: datetime) -> list[Subscriber]:
    """A world's subscribers; some of them are one customer with two subscriptions on one card."""
    found: list[Subscriber] = []
    for number in range(how_many):
        neighbour = found[-1] if found else None
        same = neighbour is not None and draw(fate, "second subscriber", NEIGHBOURS) != NEIGHBOURS[0][0]
        found.append(_draw_subscriber(fate, number, start, calm_from, neighbour, same_customer=same))
    return found


def _draw_subscriber(
    fate: Fate, number: int, start: datetime, calm_from: datetime, neighbour: Subscriber | None, *, same_customer: bool
) -> Subscriber:
    same_as = neighbour if same_customer else None
    rhythm = draw(fate, "rhythm", RHYTHMS)
    # Whoever is a customer already saves again; cron plans begin at a tick, so nothing is paid before it.
    via = "save" if same_as or rhythm.cron else draw(fate, "via", VIAS)
    market = same_as.market if same_as else draw(fate, "market", MARKETS)
    cycles = draw(fate, "cycles", CYCLES_OF_SHORT if rhythm.is_short else CYCLES)
    created_at = start
    if rhythm.is_short and cycles is None:
        # Every day for a year is too many charges: half of this one's life lies in the time of faults.
        created_at = calm_from - timedelta(days=rhythm.days * 6 or 42)
    zone = draw(fate, "zone", ZONES) or market.zone
    begins = _draw_beginning(fate, via, rhythm, created_at, zone, neighbour)
    trial_days = draw(fate, "trial days", TRIALS) if via == "save" else 0
    moment = draw(fate, "moment", MOMENTS)
    if moment == BEFORE_ANY_METHOD:
        begins = replace(begins, comes_at=max(begins.comes_at, begins.created_at + timedelta(days=2)))
    leaves_at, leaves = _draw_leaving(fate, rhythm, cycles, begins.comes_at, calm_from)
    return Subscriber(
        reference=f"sub-{number}",
        customer=same_as.customer if same_as else f"cus-{number}",
        market=market,
        rhythm=rhythm,
        zone=zone,
        via=via,
        catch_up=draw(fate, "catch-up", CATCH_UPS),
        dunning=draw(fate, "dunning", DUNNINGS),
        cycles=cycles,
        trial_days=trial_days,
        start_at=begins.asked,
        created_at=begins.created_at,
        comes_at=begins.comes_at,
        wallet=None if same_as or not market.wallets or fate.coin() else fate.choose(market.wallets),
        card=same_as.card if same_as else fate.choose(CARDS),
        verify=draw(fate, "import verified", VERIFIED) if via == "import" else True,
        anchor_day=begins.day,
        leaves_at=leaves_at,
        leaves=leaves,
        moments=_moments(moment, begins, trial_days),
        pauses_when_past_due=moment == "pauses when past due",
    )


@dataclass(frozen=True, slots=True)
class Beginning:
    """`asked`: the date that was asked for; `comes_at`: when the link is followed; `day`: an import's own anchor."""

    asked: datetime | None
    created_at: datetime
    comes_at: datetime
    day: int | None = None


def _draw_beginning(
    fate: Fate, via: str, rhythm: Rhythm, created_at: datetime, zone: str, neighbour: Subscriber | None
) -> Beginning:
    how = draw(fate, "import", IMPORTED) if via == "import" else draw(fate, "start", STARTS)
    soon = created_at + timedelta(hours=int(fate.between(1, 24)), minutes=30)
    later = soon + timedelta(days=fate.choose((0, 0, 1, 2, 3)) * 7 + (3 if fate.coin(0.2) else 0))
    if how == "the 31st" and not rhythm.is_short:
        later = datetime(created_at.year, 1, 31, 2, 30, tzinfo=created_at.tzinfo)
    match how:
        case "now":
            return Beginning(None, created_at, created_at)
        case "comes back":
            return Beginning(None, created_at, created_at + timedelta(days=fate.between(2, 40)))
        case "has passed":
            return Beginning(later, created_at, later + timedelta(days=fate.between(1, 100)))
        case "has just passed":
            return Beginning(created_at - timedelta(hours=fate.between(1, 20)), created_at, created_at)
        case "on a busy day" if neighbour is not None and neighbour.comes_at >= created_at:
            # The run of this day has begun, with a plan of its own; what comes now is no deviation from it.
            begins = max(neighbour.start_at or neighbour.comes_at, neighbour.comes_at) + timedelta(minutes=30)
            return Beginning(begins + timedelta(hours=2), begins, begins)
        case "anchor day 31" if rhythm.months:
            # The last of February where the customer lives: the date of somebody who pays on the 31st.
            end = instant_of(datetime(created_at.year, 2, 28, 2, 30), zone)  # noqa: DTZ001 - local on purpose
            return Beginning(end, created_at, created_at, 31)
        case _:
            return Beginning(later, created_at, created_at)


def _moments(moment: str, begins: Beginning, trial_days: int) -> tuple[tuple[datetime, str], ...]:
    """When that is, and what is done then."""
    came = begins.comes_at
    first_charge = max(begins.asked or came, came) + timedelta(days=trial_days)
    match moment:
        case "pauses before the first charge":
            wait = first_charge - came
            return ((came + wait * 0.4, "pauses"), (came + wait * 0.7, "resumes"))
        case _ if moment == BEFORE_ANY_METHOD:
            return ((begins.created_at + timedelta(minutes=5), "cancels at once"),)
        case "cancels while it is paused":
            pauses_at = first_charge + timedelta(days=40)
            return ((pauses_at, "pauses"), (pauses_at + timedelta(days=20), "cancels at the end of the period"))
        case _:
            return ()


def _draw_leaving(
    fate: Fate, rhythm: Rhythm, cycles: int | None, comes_at: datetime, calm_from: datetime
) -> tuple[datetime | None, str]:
    """When and how somebody leaves. Whoever has a short rhythm without an end does, soon after the faults are over."""
    how = draw(fate, "leaves", LEAVES)
    if rhythm.is_short and cycles is None:
        return calm_from + timedelta(days=fate.between(5, 25)), how or "cancels at the end of the period"
    if how is None:
        return None, ""
    return comes_at + (calm_from - comes_at) * fate.between(0.05, 1), how
