"""Which channels can be stored and charged without the customer, and their limits, as data.

Called before a session is opened (what to offer) and before a charge is sent (an amount out of range is a
request error at Xendit, not a decline). Source of every row: Xendit "Available payment channels" and the
channel pages, April 2026. Where two pages differ the permissive value stands here, with the stricter one in
the comment: Xendit's refusal is visible, ours would stop a charge that works. Limits also differ per account,
so every function takes `overrides`, rows that replace or add to `CHANNELS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from billing.domain.money import Money, format_money
from billing.errors import InvalidInput, InvalidMoney

ChannelKey = tuple[str, str]  # country, channel code


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to pay. Limits are decimal strings in `currency`, None where Xendit gives none to rely on.

    `off_session`: a stored token is charged without redirect. `validity_days`: how long a token lives; None
    means until the card expires, without end, or not stated. `refund_days`: None means it cannot be refunded.
    """

    code: str
    country: str
    currency: str
    minimum: str
    maximum: str | None
    off_session: bool = True
    validity_days: int | None = None
    refund_days: int | None = None
    also_currencies: tuple[str, ...] = ()

    @property
    def currencies(self) -> tuple[str, ...]:
        return (self.currency, *self.also_currencies)


_YEAR = 365
_QUARTER = 91

_ROWS = (
    # Indonesia
    Channel("CARDS", "ID", "IDR", "5000", "200000000", refund_days=365),
    # Channel page: at most 999,999.
    Channel("BRI_DIRECT_DEBIT", "ID", "IDR", "1", "50000000", refund_days=120),
    Channel("DANA", "ID", "IDR", "100", "20000000", validity_days=10 * _YEAR, refund_days=30),
    # The table marks GOPAY for merchant-initiated charges but gives no flow without redirect; its page says
    # one-time only.
    Channel("GOPAY", "ID", "IDR", "1", "50000000", off_session=False, refund_days=45),
    # Has to be activated with the partner.
    Channel("GOPAY_RECURRING", "ID", "IDR", "1", "50000000", refund_days=45),
    Channel("OVO", "ID", "IDR", "100", "20000000", refund_days=14),
    Channel("SHOPEEPAY", "ID", "IDR", "1", "20000000", validity_days=5 * _YEAR, refund_days=365),
    Channel("NEXCASH", "ID", "IDR", "1", "20000000", off_session=False),
    # Philippines
    Channel("CARDS", "PH", "PHP", "20", "700000", refund_days=365, also_currencies=("USD",)),
    # A quarter of a year is all a BPI token lives. Channel page: at most 100,000.
    Channel("BPI_RECURRING", "PH", "PHP", "1", "500000", validity_days=_QUARTER, refund_days=30),
    Channel("GRABPAY", "PH", "PHP", "1", "100000", validity_days=10 * _YEAR, refund_days=365),
    Channel("PAYMAYA", "PH", "PHP", "1", "100000", refund_days=365),
    Channel("SHOPEEPAY", "PH", "PHP", "1", "100000", validity_days=5 * _YEAR, refund_days=90),
    Channel("UBP_EADA", "PH", "PHP", "1", "100000", validity_days=_YEAR, refund_days=30),
    Channel(
        "BPI_DIRECT_DEBIT",
        "PH",
        "PHP",
        "1",
        "500000",
        off_session=False,
        validity_days=_QUARTER,
        refund_days=30,
    ),
    Channel(
        "CHINABANK_DIRECT_DEBIT",
        "PH",
        "PHP",
        "1",
        "50000",
        off_session=False,
        validity_days=_QUARTER,
        refund_days=30,
    ),
    Channel("RCBC_DIRECT_DEBIT", "PH", "PHP", "1", "50000", off_session=False, refund_days=30),
    Channel("UBP_DIRECT_DEBIT", "PH", "PHP", "1", "100000", off_session=False, validity_days=_YEAR, refund_days=30),
    # Malaysia
    Channel("CARDS", "MY", "MYR", "1", "5000", refund_days=365),
    Channel("GRABPAY", "MY", "MYR", "1", "1500", validity_days=10 * _YEAR, refund_days=365),
    Channel("SHOPEEPAY", "MY", "MYR", "1", "4999", validity_days=5 * _YEAR, refund_days=365),
    Channel("TOUCHNGO", "MY", "MYR", "1", "20000", refund_days=30),
    # Thailand: direct debits cannot be refunded.
    Channel("CARDS", "TH", "THB", "1", "700000", refund_days=365),
    Channel("BBL_DIRECT_DEBIT", "TH", "THB", "20", "700000"),
    Channel("KRUNGSRI_DIRECT_DEBIT", "TH", "THB", "20", "700000"),
    Channel("KTB_DIRECT_DEBIT", "TH", "THB", "20", "700000"),
    Channel("SCB_DIRECT_DEBIT", "TH", "THB", "20", "700000"),
    # Vietnam: the table says at most 100,000 VND, yet Xendit's own test amounts are above 400,000. Taken as
    # unknown.
    Channel("CARDS", "VN", "VND", "1000", None, refund_days=365),
    # Singapore: not in the table of merchant-initiated channels, but on its card page. The maximum can be
    # raised.
    Channel("CARDS", "SG", "SGD", "1", "1000", refund_days=180, also_currencies=("USD",)),
)

CHANNELS: Mapping[ChannelKey, Channel] = MappingProxyType({(row.country, row.code): row for row in _ROWS})

# The countries payment sessions accept, and what can be charged there.
CURRENCIES_OF_COUNTRY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ID": ("IDR",),
        "PH": ("PHP", "USD"),
        "VN": ("VND",),
        "TH": ("THB",),
        "SG": ("SGD", "USD"),
        "MY": ("MYR",),
    }
)

NO_OVERRIDES: Mapping[ChannelKey, Channel] = MappingProxyType({})


def check_country(country: str) -> str:
    """The two-letter code, or InvalidInput with what to write."""
    if country in CURRENCIES_OF_COUNTRY:
        return country
    if country.upper() in CURRENCIES_OF_COUNTRY:
        raise InvalidInput(f"country {country!r}: write {country.upper()}")
    known = " ".join(CURRENCIES_OF_COUNTRY)
    raise InvalidInput(f"country {country[:20]!r} is not supported; write one of {known}")


def off_session_channels(
    country: str, currency: str, overrides: Mapping[ChannelKey, Channel] = NO_OVERRIDES
) -> list[str]:
    """What we offer to a customer who will be charged later without being there; cards first."""
    return [
        channel.code
        for channel in _rows(overrides)
        if channel.country == country and channel.off_session and currency in channel.currencies
    ]


def check_amount(
    country: str,
    channel_code: str,
    money: Money,
    overrides: Mapping[ChannelKey, Channel] = NO_OVERRIDES,
) -> None:
    """Raise InvalidMoney when Xendit would refuse the amount. An unknown channel is not judged."""
    key = (country, channel_code)
    channel = overrides.get(key) or CHANNELS.get(key)
    if channel is None:
        return
    if money.currency not in channel.currencies:
        accepted = " or ".join(channel.currencies)
        raise InvalidMoney(f"{channel_code} in {country} is charged in {accepted}, not in {money.currency}")
    if money.currency != channel.currency:
        return  # Xendit gives no limits in a second currency
    minimum, maximum = _limits(channel)
    where = f"for {channel_code} in {country}"
    if money.amount_minor < minimum.amount_minor:
        raise InvalidMoney(f"{format_money(money)} is too little {where}: at least {format_money(minimum)}")
    if maximum is not None and money.amount_minor > maximum.amount_minor:
        raise InvalidMoney(f"{format_money(money)} is too much {where}: at most {format_money(maximum)}")


@lru_cache(maxsize=256)
def _limits(channel: Channel) -> tuple[Money, Money | None]:
    maximum = None if channel.maximum is None else Money.parse(channel.maximum, channel.currency)
    return Money.parse(channel.minimum, channel.currency), maximum


def _rows(overrides: Mapping[ChannelKey, Channel]) -> Iterator[Channel]:
    for key, channel in CHANNELS.items():
        yield overrides.get(key, channel)
    for key, channel in overrides.items():
        if key not in CHANNELS:
            yield channel
