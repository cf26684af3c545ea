"""Who takes part in the demo: plans, subscribers, and what life has in store for each. The same seed, the same cast.

Nothing here is known to the billing side: what is to happen to a card is told to the simulator only, as a script of
outcomes for its token (billing/sandbox/simulator/outcomes.py has the words).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from billing.domain.gateway import SessionType
from billing.domain.schedule import Every, Schedule, parse_cron, parse_every

HOME = ZoneInfo("Asia/Jakarta")
OPENING_DAY = datetime(2027, 1, 1, tzinfo=HOME)  # fixed: the same story whenever it is told
SIGN_UP_HOUR = timedelta(hours=10)
MONDAY = 0
MONTH_END = datetime(2027, 1, 31, 10, tzinfo=HOME)


# ----------------------------------------------------------------------------------------------- the plans


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSheet:
    code: str
    name: str
    country: str
    amount: str
    currency: str
    schedule: Schedule
    zone: str
    weight: int  # how many of a hundred subscribers of its country take it
    trial_days: int = 0
    start_at: datetime | None = None

    @property
    def is_monthly(self) -> bool:
        return self.weight >= _POPULAR

    @property
    def charges_once_a_month(self) -> bool:
        """From the month of the sign-up on."""
        return self.is_monthly and not self.trial_days and isinstance(self.schedule, Every)


_POPULAR = 10
_MONTHLY = parse_every("1:month")


def _plan(code: str, name: str, amount: str, schedule: Schedule, weight: int, *, trial_days: int = 0) -> PlanSheet:
    return PlanSheet(
        code=code, name=name, country="ID", amount=amount, currency="IDR", schedule=schedule, zone="Asia/Jakarta",
        weight=weight, trial_days=trial_days, start_at=MONTH_END if code == "month-end" else None,
    )  # fmt: skip


def _abroad(country: str, amount: str, currency: str, zone: str) -> PlanSheet:
    return PlanSheet(
        code=f"club-{country.lower()}", name=f"Coffee club {country}", country=country, amount=amount,
        currency=currency, schedule=_MONTHLY, zone=zone, weight=100,
    )  # fmt: skip


PLANS: Sequence[PlanSheet] = (
    _plan("club", "Coffee club", "99000", _MONTHLY, 48),
    _plan("club-plus", "Coffee club plus, 14 days free", "149000", _MONTHLY, 14, trial_days=14),
    _plan("month-end", "Office coffee, every 31st", "450000", _MONTHLY, 12),
    _plan("workshop", "Workshops, on the 1st at 9", "250000", parse_cron("0 9 1 * *"), 14),
    _plan("club-year", "Coffee club, a year at once", "990000", parse_every("1:year"), 8),
    _plan("beans", "Fresh beans every two weeks", "85000", parse_every("2:week"), 4),
    _abroad("PH", "499.00", "PHP", "Asia/Manila"),
    _abroad("MY", "29.90", "MYR", "Asia/Kuala_Lumpur"),
    _abroad("TH", "299.00", "THB", "Asia/Bangkok"),
)


# ---------------------------------------------------------------------------------------------- the people


class Fate(StrEnum):
    STEADY = "steady"
    SHORT = "short of money for some days"
    LATELY_SHORT = "short of money since the last month"
    BANK_AWAY = "the bank does not answer"
    REFUSED = "declined without a reason"
    CARD_EXPIRES = "the card expires, a new one follows"
    NEW_CARD = "the card is stolen, a new one follows"
    STOLEN = "the card is stolen, nothing follows"
    BROKE = "never again enough money"
    ANSWER_LOST = "charged, but the answer is lost"
    ANSWER_AND_EVENT_LOST = "charged, but the answer and the webhook are lost"
    NEVER_ARRIVED = "the request never arrives"
    LATE_CAPTURE = "reported as failed, then captured"
    PAUSES = "pauses for a while"
    LEAVES = "leaves at the end of a period"
    LEAVES_NOW = "leaves at once"


# In how many of a thousand. A small cast still has one of each, in this order, as far as it goes.
PER_THOUSAND = {
    Fate.SHORT: 75,
    Fate.LATELY_SHORT: 14,
    Fate.CARD_EXPIRES: 30,
    Fate.ANSWER_LOST: 16,
    Fate.STOLEN: 12,
    Fate.BANK_AWAY: 25,
    Fate.PAUSES: 16,
    Fate.LEAVES: 30,
    Fate.ANSWER_AND_EVENT_LOST: 8,
    Fate.REFUSED: 16,
    Fate.BROKE: 10,
    Fate.NEW_CARD: 12,
    Fate.NEVER_ARRIVED: 4,
    Fate.LATE_CAPTURE: 8,
    Fate.LEAVES_NOW: 8,
}
_IGNORES_US = frozenset({Fate.STOLEN, Fate.BROKE, Fate.LATELY_SHORT})
_SMALL_SHARE = 0.6  # of a small cast has a fate: somebody must stay steady


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One subscriber, and what will happen to them."""

    number: int
    name: str
    country: str
    plan: PlanSheet
    via: SessionType
    joins_at: datetime
    channel: str
    card_number: str
    card_expiry: tuple[int, int] | None  # year, month; None: beyond the demo
    failed_tries: int  # on the payment page, before it works
    abandons_first: bool  # lets the first session expire and starts again the next day
    fate: Fate
    script: tuple[str, ...]  # what becomes of the charges of the first token
    answers_after: timedelta | None  # brings a new card so long after being asked; None: never
    changes_mind_at: datetime | None  # pauses or leaves

    @property
    def reference(self) -> str:
        """Of the customer and of the subscription."""
        return f"{self.name.split()[0].lower()}-{self.number}"

    @property
    def email(self) -> str:
        return f"{self.name.lower().replace(' ', '.')}{self.number}@example.com"


# Given names and family names that go together.
_NAMES = {
    "ID": (
        "Siti Budi Dewi Agus Putri Andi Rina Joko Wulan Bayu Lestari Dimas Ayu Hendra Nur Fajar Maya Rizky Indah Eko",
        "Rahayu Santoso Utomo Wijaya Wibowo Saputra Handayani Nugroho Siregar Hidayat Pratama Kusuma Utami Setiawan",
    ),
    "PH": ("Maria Jose Angel Mark Grace Paolo Liza Carlo Joy Miguel", "Santos Reyes Cruz Bautista Garcia Mendoza"),
    "MY": ("Aisyah Ahmad Farid Nurul Hafiz Zainab Azlan Salmah", "Rahman Abdullah Ismail Hassan Yusof Othman"),
    "TH": ("Somchai Malee Niran Ploy Anan Kanya Prasert", "Srisuk Chaiyaporn Wongsa Rattana Boonmee"),
}
_COUNTRIES = {"ID": 72, "PH": 14, "MY": 7, "TH": 7}
_WALLETS = {
    "ID": ("DANA", "OVO", "SHOPEEPAY"),
    "PH": ("PAYMAYA", "GRABPAY"),
    "MY": ("GRABPAY", "TOUCHNGO"),
    "TH": ("SCB_DIRECT_DEBIT",),
}
_NEEDS_CARD = frozenset({Fate.CARD_EXPIRES, Fate.NEW_CARD, Fate.STOLEN, Fate.REFUSED, Fate.LATE_CAPTURE})


def cast(customers: int, months: int, seed: int) -> list[Person]:
    """In the order of their coming."""
    chance = random.Random(f"demo:{seed}")  # noqa: S311 - reproducible on purpose, guards nothing
    days = sign_up_days(months)
    fates = _fates(customers, chance)
    people = [
        _person(number, fate, days[(number - 1) * len(days) // customers], months, chance)
        for number, fate in enumerate(fates, start=1)
    ]
    return sorted(people, key=lambda person: (person.joins_at, person.number))


def sign_up_days(months: int) -> list[datetime]:
    """The first Mondays. Billing days are spread like sign-ups: enough for a life-like month, few for a short demo."""
    weeks = min(4, months * 2)
    days = (OPENING_DAY + timedelta(days=day) for day in range(7 * weeks + 3))
    return [day + SIGN_UP_HOUR for day in days if day.weekday() == MONDAY][:weeks]


def end_of(months: int) -> datetime:
    """Midnight at home after the last month."""
    years, month = divmod(OPENING_DAY.month - 1 + months, 12)
    return OPENING_DAY.replace(year=OPENING_DAY.year + years, month=month + 1)


def _fates(customers: int, chance: random.Random) -> list[Fate]:
    wanted = [fate for fate, share in PER_THOUSAND.items() for _ in range(max(1, round(share * customers / 1000)))]
    room = max(1, int(customers * _SMALL_SHARE))
    if len(wanted) > room:
        wanted = list(dict.fromkeys(wanted))[:room]
    fates = wanted + [Fate.STEADY] * (customers - len(wanted))
    chance.shuffle(fates)
    return fates


def _person(number: int, fate: Fate, joins_at: datetime, months: int, chance: random.Random) -> Person:
    plan = _choose_plan(fate, chance)
    country = plan.country
    given, family = (chance.choice(names.split()) for names in _NAMES[country])
    cards_only = fate in _NEEDS_CARD
    channel = "CARDS" if cards_only or chance.random() < 0.6 else chance.choice(_WALLETS[country])  # noqa: PLR2004
    free_start = plan.trial_days or plan.start_at
    via = SessionType.SAVE if free_start or chance.random() < 0.4 else SessionType.PAY  # noqa: PLR2004
    by_token = months - (via == SessionType.PAY)
    moves = fate in (Fate.PAUSES, Fate.LEAVES, Fate.LEAVES_NOW)
    return Person(
        number=number,
        name=f"{given} {family}",
        country=country,
        plan=plan,
        via=via,
        joins_at=joins_at,
        channel=channel,
        card_number=card_number(number),
        card_expiry=_expiry(joins_at, months, chance) if fate == Fate.CARD_EXPIRES else None,
        failed_tries=chance.choices((0, 1, 2), (91, 7, 2))[0],
        abandons_first=chance.random() < 0.03,  # noqa: PLR2004
        fate=fate,
        script=tuple(_script(fate, by_token, chance)),
        answers_after=None if fate in _IGNORES_US else timedelta(days=chance.randint(1, 4), hours=chance.randint(0, 9)),
        changes_mind_at=joins_at + timedelta(days=chance.randint(20, max(21, 30 * months - 70))) if moves else None,
    )


def _choose_plan(fate: Fate, chance: random.Random) -> PlanSheet:
    """Whatever is to happen to a card needs charges for it to happen to: those are on a monthly plan."""
    country = chance.choices(tuple(_COUNTRIES), tuple(_COUNTRIES.values()))[0]
    offered = [
        plan
        for plan in PLANS
        if plan.country == country
        and (plan.is_monthly or fate == Fate.STEADY)
        and (fate != Fate.LATELY_SHORT or plan.charges_once_a_month)
    ]
    return chance.choices(offered, [plan.weight for plan in offered])[0]


def _script(fate: Fate, charges: int, chance: random.Random) -> Iterator[str]:
    """Some good months, then what the fate says; after the script every charge succeeds."""
    good = charges - 1 if fate == Fate.LATELY_SHORT else chance.randint(0 if charges < 4 else 1, max(1, charges - 2))  # noqa: PLR2004
    yield from ["SUCCEEDED"] * good
    match fate:
        case Fate.SHORT:
            yield from ["INSUFFICIENT_BALANCE/51"] * chance.choice((1, 1, 2, 2, 3, 4))
        case Fate.BANK_AWAY:
            yield from ["HTTP:503:ISSUER_UNAVAILABLE"] * chance.choice((1, 2, 3))
        case Fate.REFUSED:
            yield from ["DECLINED_BY_ISSUER/05"] * chance.choice((1, 2))
        case Fate.NEW_CARD | Fate.STOLEN:
            yield "STOLEN_CARD/43"
        case Fate.BROKE | Fate.LATELY_SHORT:
            yield from ["INSUFFICIENT_BALANCE/51"] * 100
        case Fate.ANSWER_LOST:
            yield "TIMEOUT_AFTER"
        case Fate.ANSWER_AND_EVENT_LOST:
            yield "NO_WEBHOOK:TIMEOUT_AFTER"
        case Fate.NEVER_ARRIVED:
            yield "TIMEOUT_BEFORE"
        case Fate.LATE_CAPTURE:
            yield "LATE_CAPTURE:TIMEOUT_ERROR:3600"
        case _:
            return


def _expiry(joins_at: datetime, months: int, chance: random.Random) -> tuple[int, int]:
    month = joins_at.month - 1 + chance.randint(1, max(1, months - 4))
    return joins_at.year + month // 12, month % 12 + 1


def card_number(number: int) -> str:
    """Everybody has a card of their own: the networks' caps count declines per card. Luhn digit included."""
    digits = f"40001{number:010d}"
    total = sum(_luhn(int(digit), position) for position, digit in enumerate(reversed(digits)))
    return f"{digits}{-total % 10}"


def _luhn(digit: int, position: int) -> int:
    doubled = digit * 2 if position % 2 == 0 else digit
    return doubled - 9 if doubled > 9 else doubled  # noqa: PLR2004 - two digits are added up
