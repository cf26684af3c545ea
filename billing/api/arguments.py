"""What scripts hand over, read as strictly as what people type. Raises InvalidArgument, which a command reports as
usage, with the option's name as it is on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from billing.domain.gateway import SessionMode
from billing.domain.money import Money, parse_amounts
from billing.domain.schedule import Schedule, parse_cron, parse_every
from billing.errors import InvalidArgument, InvalidMoney

FIRST_YEAR, LAST_YEAR = 2000, 2200

AmountGiven = Decimal | int | str
"""Major units: "499.50", Decimal("499.50"), 50000. A float is refused: 0.1 is not a tenth."""


class Mode(StrEnum):
    """A page at Xendit, or a form inside your own page."""

    PAYMENT_LINK = "payment_link"
    COMPONENTS = "components"


class Via(StrEnum):
    """Save a payment method only, or pay the first period and save it."""

    SAVE = "save"
    PAY = "pay"


Choice = TypeVar("Choice", bound=StrEnum)


def one_of(option: str, choices: type[Choice], given: str) -> Choice:
    for choice in choices:
        if choice.casefold() == given.casefold():
            return choice
    raise InvalidArgument(f"{option} {given[:40]}: must be one of {', '.join(each.lower() for each in choices)}")


def maybe_one_of(option: str, choices: type[Choice], given: str | None) -> Choice | None:
    return None if given is None else one_of(option, choices, given)


def gateway_mode(given: str) -> SessionMode:
    return SessionMode(one_of("--mode", Mode, given).upper())


def instant(option: str, given: datetime) -> datetime:
    """A time without an offset means another instant on every machine."""
    if given.tzinfo is None:
        raise InvalidArgument(
            f"{option} {given.isoformat()} has no offset; write one, as in"
            " datetime(2026, 1, 31, 9, tzinfo=ZoneInfo('Asia/Jakarta'))"
        )
    if not FIRST_YEAR <= given.year <= LAST_YEAR:
        raise InvalidArgument(f"{option} {given.isoformat()}: write a year from {FIRST_YEAR} to {LAST_YEAR}")
    return given.astimezone(UTC)


def maybe_instant(option: str, given: datetime | None) -> datetime | None:
    return None if given is None else instant(option, given)


def amount_text(given: AmountGiven) -> str:
    """As it would be typed. Raises InvalidMoney for a float, whatever the type checker was told."""
    if isinstance(given, bool) or not isinstance(given, Decimal | int | str):
        raise InvalidMoney(f"amount {given!r}: give text or a Decimal, such as '499.50'; a float is not exact")
    return format(given, "f") if isinstance(given, Decimal) else str(given)


def expected(given: str | Mapping[str, AmountGiven]) -> Mapping[str, int]:
    """Minor units by currency, of 'IDR 50000000, PHP 10000' or {"IDR": "50000000"}."""
    try:
        if isinstance(given, str):
            amounts = parse_amounts(given)
        else:
            amounts = {
                currency: Money.parse(amount_text(amount), currency).amount_minor for currency, amount in given.items()
            }
    except InvalidMoney as error:
        raise InvalidArgument(str(error)) from None
    if not amounts:
        raise InvalidArgument("write what you expect to be charged, such as 'IDR 50000000'")
    return amounts


def schedule(every: str | None, cron: str | None) -> Schedule:
    if every is not None and cron is None:
        return parse_every(every)
    if cron is not None and every is None:
        return parse_cron(cron)
    raise InvalidArgument("give exactly one of --every month and --cron '0 9 1 * *'")
