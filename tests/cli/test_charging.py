"""What is due is charged: run, invoice, clock, explain, and the ends of a subscription."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.cli.terminal import Terminal, Xendit


@pytest.fixture
def ana(shop: Terminal, xendit: Xendit) -> Terminal:
    """Ana has subscribed and saved a card; her first period is due."""
    session = shop.json("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    return shop


def _token(terminal: Terminal) -> str:
    return str(terminal.json("token", "list", "--customer", "ana")[0]["payment_token_id"])


def _statuses(terminal: Terminal) -> list[str]:
    return [invoice["status"] for invoice in terminal.json("invoice", "list", "--subscription", "ana-gold")]


# ------------------------------------------------------------------------------------------------------- run


def test_a_run_charges_what_is_due_and_a_second_one_finds_nothing(ana: Terminal) -> None:
    report = ana.json("run")
    assert {name: report[name] for name in ("opened", "attempted", "succeeded", "failed", "in_doubt", "pending")} == {
        "opened": 1,
        "attempted": 1,
        "succeeded": 1,
        "failed": 0,
        "in_doubt": 0,
        "pending": 0,
    }
    assert report["skipped"] == []
    assert report["run_id"].startswith("run-")
    again = ana.json("run")
    assert (again["opened"], again["attempted"]) == (0, 0)
    assert _statuses(ana) == ["paid"]


def test_a_dry_run_says_who_would_be_charged_and_writes_nothing(ana: Terminal) -> None:
    report = ana.json("run", "--dry-run")
    assert (report["run_id"], report["opened"], report["totals"]) == (None, 1, {"IDR": "99000"})
    assert report["planned"][0]["payment_token_id"] == _token(ana)
    assert ana.json("invoice", "list") == []
    text = ana("run", "--dry-run").out
    assert "1 charge(s), IDR 99,000" in text


def test_a_dry_run_looks_ahead_without_a_test_clock(ana: Terminal) -> None:
    ana.json("run")
    due = ana.json("subscription", "show", "ana-gold")["next_billing_at"]
    ahead = ana.json("run", "--dry-run", "--at", due, BILLING_TEST_CLOCK="false")
    assert ahead["opened"] == 1


def test_a_run_at_another_time_needs_the_test_clock(ana: Terminal) -> None:
    line = ana.refused("run", "--at", "2030-01-31T09:00:00+07:00", status=2, BILLING_TEST_CLOCK="false")
    assert line.startswith("BILLING_TEST_CLOCK")
    assert _statuses(ana) == []


def test_a_run_in_the_future_takes_the_test_clock_there(ana: Terminal) -> None:
    ana.json("run")
    due = ana.json("subscription", "show", "ana-gold")["next_billing_at"]
    report = ana.json("run", "--at", due)
    assert (report["at"], report["succeeded"]) == (due, 1)
    assert ana.json("clock", "show")["now"] >= due
    assert _statuses(ana) == ["paid", "paid"]


def test_a_run_in_the_past_finds_only_what_was_due_then(ana: Terminal) -> None:
    assert ana.json("run", "--at", "2020-01-01T00:00:00Z")["opened"] == 0
    assert ana.json("run")["opened"] == 1


def test_people_read_the_totals_and_who_was_skipped(ana: Terminal) -> None:
    ana.json("run")
    due = ana.json("subscription", "cancel", "ana-gold")["ends_at"]
    ended = ana("run", "--at", due)
    assert "succeeded  0" in ended.out
    assert "the period it was canceled for is over" in ended.out


def test_a_run_that_can_send_nothing_is_no_success(ana: Terminal) -> None:
    ended = ana("run", "--json", BILLING_XENDIT_BASE_URL="http://127.0.0.1:1")
    assert ended.status == 1
    assert (ended.document["attempted"], ended.document["waiting"]) == (0, 1)
    assert ended.err.startswith("billing: 1 charge(s) did not leave: the charge was not sent: no connection to ")
    until = ended.document["unsent_until"][:19].replace("T", " ")
    assert ended.err.endswith(
        f"; 0 charge(s) sent; the first of them waits until {until} UTC; a run after that sends it, or the scheduler"
        " does\n"
    )


def test_a_refused_account_stops_charging_until_somebody_resumes_it(ana: Terminal, xendit: Xendit) -> None:
    xendit.fail("POST /v3/payment_requests", "HTTP:401:INVALID_API_KEY")
    ended = ana("run", "--json")
    assert ended.status == 1
    assert ended.document["attempted"] == 0
    assert "billing charging resume" in ended.err
    assert ana.json("charging", "show")["stopped"] is True
    ended = ana("run", "--json")
    assert (ended.status, ended.document["attempted"]) == (1, 0)
    assert ended.err.startswith("billing: charging is stopped: ")
    assert ana.json("charging", "resume") == {"stopped": False, "reason": None, "at": None}
    assert ana.json("run")["succeeded"] == 1


def test_a_run_with_another_key_lifts_the_stop_that_the_refused_one_left(ana: Terminal, xendit: Xendit) -> None:
    xendit.fail("POST /v3/payment_requests", "HTTP:401:INVALID_API_KEY")
    assert ana("run").status == 1
    again = ana("run")
    assert (again.status, "charging is stopped" in again.err) == (1, True), "the same key again changes nothing"

    ended = ana("run", "--json", BILLING_XENDIT_SECRET_KEY="xnd_development_another")

    assert (ended.status, ended.document["succeeded"]) == (0, 1)
    assert "charging goes on" in ended.err
    assert "xnd_" not in ended.err


def test_a_refresh_of_a_token_that_xendit_denies_says_what_to_check(ana: Terminal, xendit: Xendit) -> None:
    [token] = ana.json("token", "list", "--customer", "ana")
    assert token["unknown_since"] is None
    xendit.fail("GET /v3/payment_tokens/{id}", "HTTP:404:DATA_NOT_FOUND")

    denied = ana("token", "refresh", token["id"], "--json")

    assert (denied.status, denied.document["status"]) == (0, "ACTIVE")
    assert denied.document["unknown_since"] is not None
    assert "BILLING_XENDIT_SECRET_KEY" in denied.err
    assert "does not know payment token" in ana.json("explain", "ana-gold")["next"]["why"]
    assert ana.json("token", "refresh", token["id"])["unknown_since"] is None
    assert ana.json("run")["succeeded"] == 1


# --------------------------------------------------------------------------------------------------- invoice


def test_an_invoice_is_shown_with_every_attempt(ana: Terminal) -> None:
    ana.json("run")
    [listed] = ana.json("invoice", "list", "--status", "paid")
    shown = ana.json("invoice", "show", listed["number"])
    assert shown | {"attempts": [], "lines": [], "captures": []} == listed | {
        "attempts": [],
        "lines": [],
        "captures": [],
    }
    [attempt] = shown["attempts"]
    assert (attempt["number"], attempt["status"]) == (1, "succeeded")
    assert attempt["reference_id"].startswith("att-")
    assert ana.json("invoice", "list", "--status", "void") == []
    assert "Collected IDR 99,000" in ana("invoice", "show", listed["number"]).out


def test_an_operator_can_charge_a_declined_invoice_by_hand(ana: Terminal, xendit: Xendit) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE")
    assert ana.json("run")["failed"] == 1
    ended = ana("invoice", "pay", "ana-gold-1", "--json")
    assert ended.status == 0
    assert ended.document["status"] == "paid"
    assert "succeeded" in ended.err
    assert "it is paid" in ana.refused("invoice", "pay", "ana-gold-1")


def test_a_decline_by_hand_exits_1_and_says_what_to_do(ana: Terminal, xendit: Xendit) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE", "INSUFFICIENT_BALANCE")
    ana.json("run")
    ended = ana("invoice", "pay", "ana-gold-1", "--token", _token(ana), "--json")
    assert (ended.status, ended.document["status"]) == (1, "open")
    assert ended.err.startswith("billing: attempt 3 was declined: INSUFFICIENT_BALANCE; `billing invoice pay")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("PENDING", "is pending"), ("REQUIRES_ACTION", "is requires_action"), ("TIMEOUT_AFTER", "is in doubt")],
)
def test_an_attempt_by_hand_that_may_still_bring_the_money_exits_0_and_says_so(
    ana: Terminal, xendit: Xendit, outcome: str, status: str
) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE", outcome)
    ana.json("run")
    ended = ana("invoice", "pay", "ana-gold-1", "--json")
    assert (ended.status, ended.document["status"]) == (0, "open")
    assert f"attempt 3 {status}" in ended.err
    assert "billing invoice show ana-gold-1" in ended.err


def test_an_attempt_by_hand_that_did_not_leave_exits_1(ana: Terminal, xendit: Xendit) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE")
    ana.json("run")
    ended = ana("invoice", "pay", "ana-gold-1", "--json", BILLING_XENDIT_BASE_URL="http://127.0.0.1:1")
    assert (ended.status, ended.document["attempts"][-1]["status"]) == (1, "scheduled")
    assert "has not left: " in ended.err


def test_an_attempt_by_hand_without_a_payment_method_exits_1(ana: Terminal, xendit: Xendit) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE")
    ana.json("run")
    ana.json("token", "cancel", ana.json("token", "list", "--customer", "ana")[0]["id"])
    ended = ana("invoice", "pay", "ana-gold-1", "--json")
    assert (ended.status, ended.document["status"]) == (1, "open")
    assert "no payment token that may be charged" in ended.err


def test_a_refusal_by_hand_that_is_our_fault_exits_1_and_says_that_the_invoice_is_held(
    ana: Terminal, xendit: Xendit
) -> None:
    xendit.script(_token(ana), "INSUFFICIENT_BALANCE")
    ana.json("run")
    xendit.fail("POST /v3/payment_requests", "HTTP:400:API_VALIDATION_ERROR")
    ended = ana("invoice", "pay", "ana-gold-1", "--json")
    assert ended.status == 1
    assert "refused by Xendit, and invoice ana-gold-1 is held: API_VALIDATION_ERROR" in ended.err


def test_an_attempt_in_doubt_blocks_paying_by_hand(ana: Terminal, xendit: Xendit) -> None:
    xendit.script(_token(ana), "TIMEOUT_AFTER")
    assert ana.json("run")["in_doubt"] == 1
    assert "not known yet" in ana.refused("invoice", "pay", "ana-gold-1")


def test_paying_needs_an_invoice_and_a_token_that_exist(ana: Terminal) -> None:
    ana.json("run")
    assert "no invoice 'x'" in ana.refused("invoice", "pay", "x")
    assert "no token 'x'" in ana.refused("invoice", "pay", "ana-gold-1", "--token", "x")


# ------------------------------------------------------------------------------------------------ subscription


def test_pause_resume_and_both_kinds_of_cancel(ana: Terminal) -> None:
    ana.json("run")
    assert ana.json("subscription", "pause", "ana-gold")["status"] == "paused"
    assert "paused" in ana.refused("subscription", "pause", "ana-gold")
    assert ana.json("subscription", "resume", "ana-gold")["status"] == "active"
    planned = ana.json("subscription", "cancel", "ana-gold")
    assert (planned["status"], planned["cancel_at_period_end"]) == ("active", True)
    assert "--now" in ana.refused("subscription", "cancel", "ana-gold")
    assert ana.json("subscription", "cancel", "ana-gold", "--now")["status"] == "canceled"
    assert [row["status"] for row in ana.json("subscription", "list", "--status", "canceled")] == ["canceled"]
    assert ana.json("subscription", "list", "--status", "active") == []


def test_a_planned_cancellation_is_taken_back(ana: Terminal) -> None:
    ana.json("run")
    before = ana.json("subscription", "show", "ana-gold")
    assert "no cancellation is planned" in ana.refused("subscription", "uncancel", "ana-gold")
    end = ana.json("subscription", "cancel", "ana-gold")["ends_at"]
    assert "`billing subscription uncancel ana-gold`" in ana.refused("subscription", "resume", "ana-gold")
    ana.json("subscription", "pause", "ana-gold")
    resumed = ana("subscription", "resume", "ana-gold").out
    assert "next billing" not in resumed
    assert f"ana-gold is active again until it ends {end[:10]}" in resumed
    assert ana.json("explain", "ana-gold")["next"]["what"] == "end"
    assert "the next period to bill begins" not in ana("explain", "ana-gold").out.split("canceled for the end")[1]
    assert end[:10] not in ana("subscription", "list").out

    after = ana.json("subscription", "uncancel", "ana-gold")
    assert after == before
    story = ana.json("explain", "ana-gold")
    assert story["next"] == {"what": "charge", "at": before["next_billing_at"], "why": story["next"]["why"]}
    assert story["events"][-1]["kind"] == "subscription.cancel_taken_back"


def test_canceling_closes_the_link_that_is_still_open(shop: Terminal) -> None:
    shop.json("subscribe", "ana", "gold", "--via", "pay", "--reference", "ana-gold")
    shop.json("subscription", "cancel", "ana-gold")
    assert [row["status"] for row in shop.json("session", "list")] == ["CANCELED"]


def test_people_are_told_in_one_line_what_they_did(ana: Terminal) -> None:
    ana.json("run")
    assert ana("subscription", "pause", "ana-gold").out.startswith("ana-gold is paused;")
    assert ana("subscription", "resume", "ana-gold").out.startswith("ana-gold is active again; next billing 20")
    assert "is not charged again" in ana("subscription", "cancel", "ana-gold").out
    assert ana("subscription", "cancel", "ana-gold", "--now").out == "ana-gold is canceled.\n"


def test_explain_tells_the_story_and_why_the_next_charge_is_when_it_is(ana: Terminal) -> None:
    ana.json("run")
    story = ana.json("explain", "ana-gold")
    due = ana.json("subscription", "show", "ana-gold")["next_billing_at"]
    assert story["subscription"]["reference"] == "ana-gold"
    assert "invoice.paid" in [event["kind"] for event in story["events"]]
    assert story["next"]["at"] == due
    there = datetime.fromisoformat(due).astimezone(ZoneInfo("Asia/Jakarta"))
    assert f"Next: charge, {there:%Y-%m-%d %H:%M}+07:00" in ana("explain", "ana-gold").out
    assert "no subscription 'x'" in ana.refused("explain", "x")


# ---------------------------------------------------------------------------------------------------- clock


def _now(terminal: Terminal) -> Any:
    return terminal.json("clock", "show")["now"]


def test_the_clock_is_set_and_advanced_for_everybody(billing: Terminal) -> None:
    assert billing.json("clock", "set", "2026-01-31T09:00:00+07:00")["now"].startswith("2026-01-31T02:00:0")
    assert billing.json("clock", "advance", "31d")["now"].startswith("2026-03-03T02:00:0")
    assert billing.json("clock", "advance", "1d12h")["now"].startswith("2026-03-04T14:00:0")
    assert billing.as_process("clock", "show", "--json").document["now"].startswith("2026-03-04T14:00:")
    assert billing.json("clock", "set", "2025-01-01T00:00:00Z")["now"].startswith("2025-01-01T00:00:0")


@pytest.mark.parametrize("words", [("show",), ("set", "2026-01-31T09:00:00Z"), ("advance", "1d")], ids=str)
def test_without_the_test_clock_time_is_not_ours_to_move(billing: Terminal, words: tuple[str, ...]) -> None:
    line = billing.refused("clock", *words, status=2, BILLING_TEST_CLOCK="false")
    assert line.startswith("BILLING_TEST_CLOCK: not set")


@pytest.mark.parametrize("duration", ["-1d", "0.5d", "month", "1y", "40000d", ""])
def test_durations_that_are_none(billing: Terminal, duration: str) -> None:
    before = _now(billing)
    billing.refused("clock", "advance", duration, status=2)
    assert _now(billing)[:10] == before[:10]


def test_the_clock_ends_somewhere(billing: Terminal) -> None:
    billing.json("clock", "set", "2199-12-01T00:00:00Z")
    assert "2200" in billing.refused("clock", "advance", "36500d")
