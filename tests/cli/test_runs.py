"""`billing runs` and `billing run approve`: what they show, what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from billing.store.clock import real_now
from tests.cli.terminal import Terminal, Xendit

CAP = {"BILLING_RUN_SPENDING_CAP": "IDR 150000"}


@pytest.fixture
def two(shop: Terminal, xendit: Xendit) -> Terminal:
    """Two subscribers whose first period is due on a day that was agreed: nobody waits for it."""
    subscribe(shop, xendit, "ana", "gold")
    shop.json("customer", "create", "ben", "--name", "Ben", "--email", "ben@example.com", "--country", "ID")
    subscribe(shop, xendit, "ben", "gold")
    shop.json("clock", "advance", "2d")
    return shop


def subscribe(shop: Terminal, xendit: Xendit, customer: str, plan: str) -> None:
    """Billed from tomorrow on."""
    start = (real_now() + timedelta(days=1)).isoformat(timespec="seconds")
    words = ("--via", "save", "--reference", f"{customer}-{plan}", "--start-at", start)
    session = shop.json("subscribe", customer, plan, *words)["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])


@pytest.fixture
def stopped(two: Terminal) -> str:
    """The id of a run that its spending cap has stopped after the first of two charges."""
    ended = two("run", "--json", **CAP)
    assert ended.status == 1
    return str(ended.document["run_id"])


def test_a_stopped_run_says_why_and_how_to_go_on(two: Terminal) -> None:
    ended = two("run", "--json", **CAP)
    report = ended.document
    assert (ended.status, report["state"], report["guard"]) == (1, "stopped", "spending_cap")
    assert (report["succeeded"], report["waiting"], report["collected"]) == (1, 1, {"IDR": "99000"})
    assert ended.err.count("\n") == 1
    assert f"billing runs resume {report['run_id']}" in ended.err
    assert "spending cap of IDR 150,000" in ended.err
    shown = two("runs", "show").out
    assert "Stopped: the next charge would exceed its spending cap of IDR 150,000." in shown


def test_resuming_it_waives_the_guard_and_the_next_run_goes_on(two: Terminal, stopped: str) -> None:
    assert "Waived for it: spending_cap" in two("runs", "resume", stopped).out
    ended = two("run", "--json", **CAP)
    assert (ended.status, ended.document["run_id"], ended.document["succeeded"]) == (0, stopped, 1)
    assert ended.document["whole_run"]["succeeded"] == 2
    assert "goes on with" in ended.err
    assert two.json("runs", "show", stopped)["state"] == "finished"


def test_an_aborted_run_holds_its_invoices_until_they_are_approved(two: Terminal, stopped: str) -> None:
    assert two.json("runs", "abort", stopped)["withdrawn"] == 1
    [held] = two.json("invoice", "list", "--status", "open")
    assert stopped in held["hold_reason"]
    assert two.json("run")["attempted"] == 0
    approved = two.json("run", "approve", stopped)["approved"]
    assert approved == [
        {"subscription_id": held["subscription_id"], "periods": 1, "amount": "99000", "currency": "IDR"}
    ]
    assert two.json("run")["succeeded"] == 1
    assert "waits for approval" in two.refused("run", "approve", stopped)


def test_runs_are_listed_the_latest_first(two: Terminal, stopped: str) -> None:
    two.json("runs", "resume", stopped)
    two.json("run")
    later = two.json("run")["run_id"]
    listed = two.json("runs", "list")
    assert [(row["run_id"], row["state"]) for row in listed] == [(later, "finished"), (stopped, "finished")]
    assert (listed[1]["attempted"], listed[1]["succeeded"], listed[1]["plan"]["charges"]) == (2, 2, 2)
    assert len(two.json("runs", "list", "--limit", "1")) == 1
    assert stopped in two("runs", "list").out


def test_a_run_is_shown_with_all_that_scripts_want(two: Terminal) -> None:
    run_id = two.json("run")["run_id"]
    shown = two.json("runs", "show", run_id)
    assert shown == two.json("runs", "show") | {"rate_per_minute": shown["rate_per_minute"]}
    expected = {
        "run_id", "kind", "state", "at", "started_at", "finished_at", "reason", "guard", "how_to_go_on", "plan",
        "opened", "attempted", "succeeded", "failed", "in_doubt", "pending", "waiting", "parked", "collected",
        "rate_per_minute", "quota", "eta_seconds", "eta_at", "declines", "by_channel", "against_plan",
    }  # fmt: skip
    assert expected <= shown.keys()
    assert shown["by_channel"] == [
        {"channel_code": "CARDS", "currency": "IDR", "charges": 2, "succeeded": 2, "failed": 0, "collected": "198000"}
    ]
    assert two.json("runs", "show", run_id, "--follow")["state"] == "finished"


def test_people_read_the_report_beside_the_plan(two: Terminal, xendit: Xendit) -> None:
    token = two.json("token", "list", "--customer", "ana")[0]["payment_token_id"]
    xendit.script(token, "INSUFFICIENT_BALANCE")
    text = two("run").out
    assert "Planned:   2 charge(s), IDR 198,000" in text
    assert "Sent:      2 charge(s), 1 failed" in text
    assert "Collected: IDR 99,000" in text
    assert "INSUFFICIENT_BALANCE" in text


def test_a_dry_run_adds_up_and_says_how_long(two: Terminal) -> None:
    report = two.json("run", "--dry-run", BILLING_XENDIT_REQUESTS_PER_MINUTE="60", **CAP)
    assert report["by_channel"] == [{"channel_code": "CARDS", "currency": "IDR", "charges": 2, "amount": "198000"}]
    assert report["expected_seconds"] == 2
    assert [found["guard"] for found in report["guards"]] == ["spending_cap"]
    ended = two("run", "--dry-run", BILLING_XENDIT_REQUESTS_PER_MINUTE="60", **CAP)
    assert "At today's quota that takes about 2 s." in ended.out
    assert "warning: spending cap: IDR 198,000 are planned" in ended.err


def test_a_run_begins_only_with_about_what_is_expected(two: Terminal) -> None:
    line = two("run", "--expect", "IDR 10000000").err
    assert "IDR 198,000 are planned and IDR 10,000,000 were expected" in line
    assert two.json("invoice", "list") == []
    assert two.json("run", "--expect", "IDR 200000")["succeeded"] == 2


def test_missed_periods_of_a_hold_plan_are_approved_by_name_or_all_at_once(shop: Terminal, xendit: Xendit) -> None:
    words = ("plan", "create", "careful", "--name", "C", "--amount", "1000000", "--currency", "IDR", "--every", "month")
    shop.json(*words, "--catch-up", "hold")
    subscribe(shop, xendit, "ana", "careful")
    shop.json("clock", "advance", "70d")
    assert "billing run approve ana-careful" in shop.json("run", "--dry-run")["skipped"][0]["reason"]
    assert shop.json("run")["attempted"] == 0

    approved = shop.json("run", "approve", "ana-careful")["approved"]

    assert [(row["periods"], row["amount"], row["currency"]) for row in approved] == [(3, "3000000", "IDR")]
    assert shop.json("run")["opened"] == 3
    assert "waits for no approval" in shop.refused("run", "approve", "ana-careful")
    assert shop.json("run", "approve") == {"approved": []}


# ------------------------------------------------------------------------------------- refused in one line


def _refusals() -> list[Any]:
    return [
        pytest.param(("runs", "show", "run-x"), 1, "billing runs list", id="no such run"),
        pytest.param(("runs", "pause", "run-x"), 1, "no billing run 'run-x'", id="pause none"),
        pytest.param(("runs", "resume", "run-x"), 1, "no billing run 'run-x'", id="resume none"),
        pytest.param(("runs", "abort", "run-x"), 1, "no billing run 'run-x'", id="abort none"),
        pytest.param(("runs", "list", "--limit", "0"), 2, "--limit", id="no list"),
        pytest.param(("run", "approve", "x"), 1, "no subscription or billing run 'x'", id="approve none"),
        pytest.param(("run", "aprove"), 2, "aprove", id="no such command"),
        pytest.param(("run", "--dry-run", "approve"), 2, "do not go with", id="options of another command"),
        pytest.param(("run", "--expect", "50000"), 2, "IDR 50000000", id="no currency"),
        pytest.param(("run", "--expect", "IDR 50.5"), 2, "no decimals", id="decimals"),
        pytest.param(("run", "--expect", "IDR 5, IDR 6"), 2, "named twice", id="twice"),
        pytest.param(("run", "--expect", ""), 2, "IDR 50000000", id="nothing expected"),
    ]


@pytest.mark.parametrize(("words", "status", "why"), _refusals())
def test_what_cannot_be_is_refused_in_one_line(shop: Terminal, words: tuple[str, ...], status: int, why: str) -> None:
    assert why in shop.refused(*words, status=status)
    assert shop.json("runs", "list") == []


def test_without_any_run_there_is_nothing_to_show(billing: Terminal) -> None:
    assert "no billing run yet" in billing.refused("runs", "show")
    assert billing.json("runs", "list") == []


def test_a_finished_run_is_steered_no_more(two: Terminal) -> None:
    run_id = two.json("run")["run_id"]
    for word in ("pause", "resume", "abort"):
        assert "it is finished" in two.refused("runs", word, run_id)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BILLING_RUN_SPENDING_CAP", "lots"),
        ("BILLING_RUN_SPENDING_CAP", "IDR 100.5"),
        ("BILLING_RUN_SPENDING_CAP", "XXX 100"),
        ("BILLING_RUN_SPENDING_CAP", "IDR 1, IDR 2"),
        ("BILLING_SUBSCRIBER_DAILY_CAP", "5000000"),
        ("BILLING_RUN_DECLINE_JUMP", "2"),
        ("BILLING_RUN_DECLINE_SAMPLE", "0"),
        ("BILLING_RUN_FORECAST_SHARE", "-1"),
    ],
)
def test_a_malformed_guard_stops_the_command(shop: Terminal, name: str, value: str) -> None:
    line = shop.refused("run", status=2, **{name: value})
    assert line.startswith(f"{name}: ")
    assert "for example" in line
