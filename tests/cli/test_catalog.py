"""Plans and customers."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from tests.cli.terminal import Terminal

GOLD = ("plan", "create", "gold", "--name", "Gold", "--amount", "99000", "--currency", "IDR", "--every", "month")
ANA = ("customer", "create", "ana", "--name", "Ana Putri", "--email", "ana@example.com", "--country", "ID")


def test_a_plan_is_created_listed_and_shown_by_code_and_by_id(billing: Terminal) -> None:
    plan = billing.json(*GOLD)
    assert plan | {"id": "", "created_at": ""} == {
        "id": "",
        "code": "gold",
        "name": "Gold",
        "amount": "99000",
        "currency": "IDR",
        "schedule": "every month",
        "timezone": "Asia/Jakarta",
        "trial_days": 0,
        "cycles": None,
        "catch_up": "all",
        "dunning": "standard",
        "created_at": "",
    }
    assert billing.json("plan", "list") == [plan]
    assert billing.json("plan", "show", "gold") == billing.json("plan", "show", plan["id"]) == plan


def test_every_option_of_a_plan_is_kept(billing: Terminal) -> None:
    words = ("--timezone", "Asia/Manila", "--trial-days", "14", "--cycles", "12", "--catch-up", "latest")
    cron = ("plan", "create", "p", "--name", "P", "--amount", "499.5", "--currency", "PHP", "--cron", "0 9 1 * *")
    plan = billing.json(*cron, *words, "--dunning", "gentle")
    assert (plan["amount"], plan["schedule"], plan["timezone"]) == ("499.50", "cron 0 9 1 * *", "Asia/Manila")
    assert (plan["trial_days"], plan["cycles"], plan["catch_up"], plan["dunning"]) == (14, 12, "latest", "gentle")


def test_a_plan_is_billed_by_period_or_by_cron_but_not_by_both(billing: Terminal) -> None:
    neither = GOLD[:-2]
    assert "exactly one of" in billing.refused(*neither, status=2)
    assert "exactly one of" in billing.refused(*GOLD, "--cron", "0 9 1 * *", status=2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"--amount": "99000.50"}, "IDR has no decimals"),
        ({"--amount": "1,000"}, "no separators"),
        ({"--amount": "50.000"}, "IDR has no decimals; write the whole amount in digits only"),
        ({"--amount": "0"}, "must cost something"),
        ({"--currency": "XXX"}, "currency"),
        ({"--every": "fortnight"}, "2:week"),
        ({"--timezone": "Jakarta"}, "Asia/Jakarta"),
        ({"--dunning": "brutal"}, "standard"),
        ({"--trial-days": "-1"}, "--trial-days"),
    ],
)
def test_bad_values_are_refused_with_what_to_write(billing: Terminal, changes: dict[str, str], reason: str) -> None:
    words = dict(zip(GOLD[3::2], GOLD[4::2], strict=True)) | changes
    status = 2 if {"--amount", "--currency"} & changes.keys() else 1
    line = billing.refused("plan", "create", "gold", *(word for pair in words.items() for word in pair), status=status)
    assert reason in line
    assert billing.json("plan", "list") == []


def test_cron_that_skips_short_months_is_refused_with_advice(billing: Terminal) -> None:
    assert "L" in billing.refused(*GOLD[:-2], "--cron", "0 9 31 * *")


@pytest.mark.parametrize(
    ("cron", "advice"),
    [
        ("*/5 * * * *", "more often than once a day"),
        ("0 9,21 * * *", "more often than once a day"),
        ("0 9 1 * MON", "'0 9 1 * *' or '0 9 * * MON'"),
    ],
)
def test_cron_that_surprises_is_refused_with_advice(billing: Terminal, cron: str, advice: str) -> None:
    assert advice in billing.refused(*GOLD[:-2], "--cron", cron)
    assert billing.json("plan", "list") == []


def test_a_plan_of_an_earlier_release_that_fires_twice_a_day_goes_on(billing: Terminal, database_url: str) -> None:
    billing.json(*GOLD)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE plans SET schedule = 'cron 0 9,21 1 * MON', timezone = 'Factory'"))
    engine.dispose()
    assert billing.json("plan", "show", "gold")["schedule"] == "cron 0 9,21 1 * MON"


def test_names_that_steer_a_terminal_are_refused_everywhere(billing: Terminal) -> None:
    name = "Gold\x1b]0;owned\x07"
    said = "character 5 is U+001B (a control character), which is no text; leave it out"
    assert billing.refused("plan", "create", "p", "--name", name, *GOLD[5:]) == f"name: {said}"
    assert billing.refused("customer", "create", "a", "--name", name, *ANA[5:]) == f"name: {said}"
    line = billing.refused("subscribe", "ana", "gold", "--via", "save", "--reference", name)
    assert line.startswith(r"subscription reference 'Gold\x1b]0;owned\x07': use 1 to 100 letters")


def test_a_code_is_used_once(billing: Terminal) -> None:
    billing.json(*GOLD)
    assert "exists already" in billing.refused(*GOLD)


def test_people_see_money_with_its_currency(billing: Terminal) -> None:
    assert billing(*GOLD).out == "Plan gold created: IDR 99,000, every month (Asia/Jakarta).\n"
    assert "IDR 99,000" in billing("plan", "list").out
    assert "amount      IDR 99,000" in billing("plan", "show", "gold").out


def test_a_customer_is_created_listed_and_shown(billing: Terminal) -> None:
    customer = billing.json(*ANA)
    assert customer | {"id": "", "created_at": ""} == {
        "id": "",
        "reference": "ana",
        "name": "Ana Putri",
        "email": "ana@example.com",
        "country": "ID",
        "mobile": None,
        "timezone": "Asia/Jakarta",
        "xendit_customer_id": None,
        "created_at": "",
        "tokens": [],
    }
    assert billing.json("customer", "list") == [customer]
    assert billing.json("customer", "show", "ana") == billing.json("customer", "show", customer["id"]) == customer


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--email", "nobody"), "ana@example.com"),
        (("--country", "XX"), "not supported"),
        (("--mobile", "0812"), "+628123456789"),
        (("--timezone", "Mars"), "IANA"),
    ],
)
def test_a_customer_with_a_bad_value_is_refused(billing: Terminal, words: tuple[str, str], reason: str) -> None:
    assert reason in billing.refused(*ANA, *words)
    assert billing.json("customer", "list") == []


def test_an_update_changes_what_is_given_and_nothing_else(billing: Terminal) -> None:
    before = billing.json(*ANA)
    changed = billing.json("customer", "update", "ana", "--email", "ana.putri@example.com", "--mobile", "+628123456789")
    assert changed == before | {"email": "ana.putri@example.com", "mobile": "+628123456789"}
    moved = billing.json("customer", "update", before["id"], "--country", "PH")
    assert moved == changed | {"country": "PH"}, "the zone stays"
    assert billing.json("customer", "show", "ana") == moved


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--email", "nobody"), "ana@example.com"),
        (("--name", " "), "1 to 100 characters"),
        (("--country", "XX"), "not supported"),
        (("--mobile", "0812"), "+628123456789"),
        (("--timezone", "Mars"), "IANA"),
    ],
)
def test_an_update_with_a_bad_value_changes_nothing(billing: Terminal, words: tuple[str, str], reason: str) -> None:
    before = billing.json(*ANA)
    assert reason in billing.refused("customer", "update", "ana", "--name", "Ana P.", *words)
    assert billing.json("customer", "show", "ana") == before


def test_an_update_of_nothing_says_what_can_be_changed(billing: Terminal) -> None:
    billing.json(*ANA)
    assert "--email" in billing.refused("customer", "update", "ana", status=2)
    assert "no customer 'bea'" in billing.refused("customer", "update", "bea", "--name", "Bea")


def test_what_is_not_there_is_said_with_where_to_look(billing: Terminal) -> None:
    assert billing.refused("plan", "show", "nope") == "no plan 'nope'; see `billing plan list`"
    assert "billing customer list" in billing.refused("customer", "show", "nope")


def test_empty_lists_are_empty_arrays_and_a_hint_beside_stdout(billing: Terminal) -> None:
    assert billing.json("plan", "list") == []
    ended = billing("plan", "list")
    assert (ended.status, ended.out) == (0, "")
    assert "billing plan create --help" in ended.err
