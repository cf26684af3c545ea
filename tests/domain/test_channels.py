"""What may be offered for renewal, and which amounts Xendit would refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing.domain.channels import (
    CHANNELS,
    CURRENCIES_OF_COUNTRY,
    Channel,
    check_amount,
    check_country,
    off_session_channels,
)
from billing.domain.money import Money
from billing.errors import InvalidInput, InvalidMoney


@pytest.mark.parametrize(
    ("country", "currency", "channels"),
    [
        ("ID", "IDR", "CARDS BRI_DIRECT_DEBIT DANA GOPAY_RECURRING OVO SHOPEEPAY"),
        ("PH", "PHP", "CARDS BPI_RECURRING GRABPAY PAYMAYA SHOPEEPAY UBP_EADA"),
        ("PH", "USD", "CARDS"),
        ("MY", "MYR", "CARDS GRABPAY SHOPEEPAY TOUCHNGO"),
        ("TH", "THB", "CARDS BBL_DIRECT_DEBIT KRUNGSRI_DIRECT_DEBIT KTB_DIRECT_DEBIT SCB_DIRECT_DEBIT"),
        ("VN", "VND", "CARDS"),
        ("SG", "SGD", "CARDS"),
        ("ID", "PHP", ""),
    ],
)
def test_only_channels_that_work_without_the_customer_are_offered(country: str, currency: str, channels: str) -> None:
    assert off_session_channels(country, currency) == channels.split()


def test_every_country_has_a_channel_in_each_of_its_currencies() -> None:
    for country, currencies in CURRENCIES_OF_COUNTRY.items():
        assert check_country(country) == country
        assert all(off_session_channels(country, currency) for currency in currencies)


@pytest.mark.parametrize(("country", "advice"), [("id", "write ID"), ("DE", "ID PH VN TH SG MY"), ("", "ID PH")])
def test_another_country_is_refused(country: str, advice: str) -> None:
    with pytest.raises(InvalidInput, match=advice):
        check_country(country)


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=lambda channel: f"{channel.country}-{channel.code}")
def test_both_limits_of_a_channel_can_be_charged_and_nothing_outside(channel: Channel) -> None:
    least, one = Money.parse(channel.minimum, channel.currency), Money(1, channel.currency)
    check_amount(channel.country, channel.code, least)
    with pytest.raises(InvalidMoney, match="too little"):
        check_amount(channel.country, channel.code, least - one)
    if channel.maximum is not None:
        most = Money.parse(channel.maximum, channel.currency)
        check_amount(channel.country, channel.code, most)
        with pytest.raises(InvalidMoney, match="too much"):
            check_amount(channel.country, channel.code, most + one)


def test_a_refusal_names_the_limit() -> None:
    with pytest.raises(InvalidMoney, match="IDR 4,999 is too little for CARDS in ID: at least IDR 5,000"):
        check_amount("ID", "CARDS", Money(4999, "IDR"))


def test_what_is_not_known_is_not_judged() -> None:
    check_amount("ID", "BRAND_NEW", Money(1, "IDR"))
    check_amount("PH", "CARDS", Money(1, "USD"))  # no limits published in dollars
    check_amount("VN", "CARDS", Money(10**12, "VND"))  # no maximum to rely on


def test_a_channel_is_charged_in_its_own_currency() -> None:
    with pytest.raises(InvalidMoney, match="charged in IDR, not in PHP"):
        check_amount("ID", "DANA", Money(100_00, "PHP"))


def test_an_account_may_have_limits_and_channels_of_its_own() -> None:
    key = ("SG", "CARDS")
    raised = {key: replace(CHANNELS[key], maximum="5000"), ("SG", "NEW"): replace(CHANNELS[key], code="NEW")}
    amount = Money.parse("4000", "SGD")
    with pytest.raises(InvalidMoney):
        check_amount("SG", "CARDS", amount)
    check_amount("SG", "CARDS", amount, raised)
    assert off_session_channels("SG", "SGD", raised) == ["CARDS", "NEW"]


def test_tokens_that_end_soon_are_known() -> None:
    assert CHANNELS["PH", "BPI_RECURRING"].validity_days == 91
    assert CHANNELS["ID", "CARDS"].validity_days is None
