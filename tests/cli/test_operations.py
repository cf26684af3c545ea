"""The operator's commands: migrate, doctor, reconcile, replay, import, events."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from billing.reading.views import instant
from billing.store.clock import real_now
from billing.store.engine import make_engine
from billing.store.migrate import newest
from tests.cli.terminal import Terminal, Xendit


def _execute(terminal: Terminal, statement: str) -> None:
    engine = make_engine(terminal.environment["BILLING_DATABASE_URL"], pool_size=2)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


# ---------------------------------------------------------------------------------------------------- migrate


def test_migrate_makes_the_schema_and_may_be_repeated(bare: Terminal, empty_database_url: str) -> None:
    for _ in range(2):
        assert bare.json("migrate", BILLING_DATABASE_URL=empty_database_url) == {"revision": newest()}
    assert bare.json("plan", "list", BILLING_DATABASE_URL=empty_database_url) == []


def test_a_schema_of_a_newer_version_is_refused_in_one_line(billing: Terminal) -> None:
    _execute(billing, "UPDATE alembic_version SET version_num = '9999'")
    assert "another version" in billing.refused("migrate")


# ----------------------------------------------------------------------------------------------------- doctor


def test_a_sound_database_passes(billing: Terminal) -> None:
    report = billing.json("doctor")
    assert report["ok"] is True
    assert {"name", "ok", "count", "detail"} <= set(report["checks"][0])
    assert "checks passed" in billing("doctor").out


def test_a_finding_is_exit_status_1_after_the_report(billing: Terminal) -> None:
    stop = "INSERT INTO charging_stop (id, reason, at) VALUES (1, 'key refused', now())"
    _execute(billing, stop)
    ended = billing("doctor", "--json")
    assert ended.status == 1
    assert ended.document["ok"] is False
    assert ended.err.startswith("billing: 1 check(s) failed: ")
    assert ended.err.count("\n") == 1
    people = billing("doctor")
    assert people.status == 1
    assert "charging" in people.out


def test_an_operator_can_stop_all_charging_and_let_it_go_on(shop: Terminal) -> None:
    stopped = shop.json("charging", "stop", "--reason", "bank holiday")
    assert stopped["stopped"] is True
    assert "bank holiday" in stopped["reason"]

    refused = shop("run", "--json")
    assert refused.status == 1
    assert "bank holiday" in refused.err
    assert "billing charging resume" in refused.err

    assert shop.json("charging", "resume")["stopped"] is False
    assert shop.json("run")["attempted"] == 0


# ------------------------------------------------------------------------------------------------- reconcile


@pytest.fixture
def ana(shop: Terminal, xendit: Xendit) -> Terminal:
    session = shop.json("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    return shop


def _script(terminal: Terminal, xendit: Xendit, *outcomes: str) -> None:
    [token] = terminal.json("token", "list", "--customer", "ana")
    xendit.script(token["payment_token_id"], *outcomes)


def test_reconcile_finds_the_money_of_an_attempt_in_doubt(ana: Terminal, xendit: Xendit) -> None:
    _script(ana, xendit, "TIMEOUT_AFTER")
    assert ana.json("run")["in_doubt"] == 1
    assert ana.json("reconcile") == {"resolved": 1, "still_in_doubt": 0, "differences": []}
    assert [invoice["status"] for invoice in ana.json("invoice", "list")] == ["paid"]


def test_reconcile_changes_nothing_when_there_is_no_trace(ana: Terminal, xendit: Xendit) -> None:
    _script(ana, xendit, "TIMEOUT_BEFORE")
    ana.json("run")
    assert ana.json("reconcile") == {"resolved": 0, "still_in_doubt": 1, "differences": []}


def test_reconcile_that_gets_no_answer_is_no_success(ana: Terminal, xendit: Xendit) -> None:
    _script(ana, xendit, "TIMEOUT_AFTER")
    ana.json("run")
    ended = ana("reconcile", "--json", BILLING_XENDIT_BASE_URL="http://127.0.0.1:1")
    assert ended.status == 1
    assert ended.document["still_in_doubt"] == 1
    assert ended.err.startswith("billing: 1 look-up(s) brought no answer")


def test_a_day_is_compared_with_xendits_list(ana: Terminal) -> None:
    ana.json("run")
    day = ana.json("invoice", "list")[0]["attempts"][0]["settled_at"][:10]
    differences = ana.json("reconcile", "--date", day)["differences"]
    ours = ana.json("invoice", "list")[0]["attempts"][0]["payment_id"]
    assert ours not in [row["payment_id"] for row in differences]
    _execute(ana, "UPDATE captures SET amount_minor = 98000")
    found = {row["payment_id"]: row for row in ana.json("reconcile", "--date", day)["differences"]}
    assert found[ours]["kind"] == "amount"
    assert "ask Xendit" in ana("reconcile", "--date", day).out


# ----------------------------------------------------------------------------------------------------- events

EVENT = """
INSERT INTO webhook_events (id, dedupe_key, event, payload, state, received_at, next_try_at)
VALUES ('evt-1', 'key-1', '{event}', '{payload}', 'received', now(), now())
"""


def _store_event(terminal: Terminal, event: str, data: dict[str, Any]) -> None:
    payload = json.dumps({"event": event, "business_id": "b", "created": "2026-01-31T02:00:00Z", "data": data})
    _execute(terminal, EVENT.format(event=event, payload=payload.replace(":", "\\:")))


def test_an_event_that_belongs_to_nothing_is_listed_and_replayed(billing: Terminal) -> None:
    data = {"payment_id": "py-1", "reference_id": "att-nobody", "status": "SUCCEEDED", "currency": "IDR"}
    _store_event(billing, "payment.capture", data | {"request_amount": 99000, "payment_request_id": "pr-1"})
    assert [row["id"] for row in billing.json("events", "list", "--state", "received")] == ["evt-1"]
    ended = billing("replay", "evt-1", "--json")
    assert (ended.status, ended.document["state"]) == (0, "unmatched")
    assert "nothing here belongs" in ended.err
    assert billing.json("events", "list", "--state", "received") == []


def test_an_event_that_cannot_be_applied_says_so(billing: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    _store_event(billing, "payment.capture", {"payment_id": "py-1"})

    def broken(*_args: object, **_options: object) -> None:
        raise KeyError("reference_id")

    monkeypatch.setattr("billing.inbox.apply._apply", broken)
    ended = billing("replay", "key-1", "--json")
    assert (ended.status, ended.document["state"]) == (1, "parked")
    assert ended.err.startswith("billing: event evt-1 could not be applied: KeyError")
    assert ended.err.count("\n") == 1
    assert "no webhook event" in billing.refused("replay", "nope")


# ----------------------------------------------------------------------------------------------------- import


def _row(**changes: Any) -> str:
    row = {
        "customer_reference": "bea",
        "name": "Bea",
        "email": "bea@example.com",
        "country": "ID",
        "plan": "gold",
        "subscription_reference": "bea-gold",
        "payment_token_id": "pt-11111111-2222-3333-4444-555555555555",
        "channel_code": "CARDS",
        "next_billing_at": "2027-01-31T09:00:00+07:00",
    }
    return json.dumps(row | changes)


@pytest.fixture
def keyless(billing: Terminal) -> Terminal:
    words = ("--name", "Gold", "--amount", "99000", "--currency", "IDR", "--every", "month")
    billing.json("plan", "create", "gold", *words)
    return billing


def test_import_from_a_file_is_safe_to_repeat(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.jsonl"
    file.write_text(_row() + "\n", encoding="utf-8")
    assert keyless.json("import", str(file), "--dry-run")["created"] == 1
    assert keyless.json("subscription", "list") == []
    assert keyless.json("import", str(file)) == {"created": 1, "unchanged": 0, "refused": []}
    assert keyless.json("import", str(file)) == {"created": 0, "unchanged": 1, "refused": []}
    assert [row["reference"] for row in keyless.json("subscription", "list")] == ["bea-gold"]


def test_refused_rows_are_reported_and_the_others_are_in(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.jsonl"
    latin1 = _row(name="Andr", customer_reference="and", subscription_reference="and-gold").encode()
    file.write_bytes(b"{not json\n" + _row().encode() + b"\n" + latin1.replace(b"Andr", b"Andr\xe9") + b"\n")
    ended = keyless("import", str(file), "--json")
    assert ended.status == 1
    assert ended.document["created"] == 1
    assert [refused["line"] for refused in ended.document["refused"]] == [1, 3]
    assert ended.err.startswith("billing: 2 row(s) refused")
    assert "Refused rows" in keyless("import", str(file)).out


def test_import_reads_stdin(keyless: Terminal) -> None:
    ended = keyless("import", "-", "--json", stdin=_row())
    assert ended.document["created"] == 1
    piped = keyless.as_process("import", "-", "--json", stdin=_row(name="Béa"))
    assert piped.document["refused"][0]["line"] == 1


@pytest.mark.parametrize("file", ["nowhere.jsonl", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_one_line(keyless: Terminal, file: str) -> None:
    assert "cannot read" in keyless.refused("import", file)


def test_a_file_in_another_form_is_one_line_and_nothing_is_read(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.txt"
    for content, said in (
        (
            _row().encode("utf-16"),
            f"{file} is UTF-16 text; convert it: `iconv -f UTF-16 -t UTF-8 {file} | billing import -`",
        ),
        (
            f"[{_row()}]".encode(),
            f"{file} is a JSON list; write one object a line: `jq -c '.[]' {file} | billing import -`",
        ),
    ):
        file.write_bytes(content)
        assert keyless.refused("import", str(file), "--json") == said
    assert keyless.json("customer", "list") == []


def test_an_empty_file_is_taken_and_told(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.jsonl"
    file.write_bytes(b"\n")
    ended = keyless("import", str(file), "--json")
    assert (ended.status, ended.document) == (0, {"created": 0, "unchanged": 0, "refused": []})
    assert ended.err == f"warning: {file} holds no row; is it the file you mean?\n"


def test_two_files_joined_with_their_marks(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "joined.jsonl"
    second = _row(customer_reference="x", subscription_reference="x-1", payment_token_id="pt-x")
    file.write_bytes(b"".join(b"\xef\xbb\xbf" + row.encode() + b"\n" for row in (_row(), second)))
    ended = keyless("import", str(file), "--json")
    assert ended.document["created"] == 1
    (refused,) = ended.document["refused"]
    assert refused["line"] == 2
    assert r"sed 's/\xEF\xBB\xBF/\n/g' FILE" in refused["reason"]


def test_a_year_mistyped_is_no_dozen_charges(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.jsonl"
    file.write_text(_row(next_billing_at="2020-01-31T09:00:00+07:00"), encoding="utf-8")
    ended = keyless("import", str(file), "--json")
    assert ended.status == 1
    assert "12 would be billed at once" in ended.document["refused"][0]["reason"]
    assert keyless.json("subscription", "list") == []
    file.write_text(_row(next_billing_at="2020-01-31T09:00:00+07:00", catch_up=True), encoding="utf-8")
    assert keyless.json("import", str(file))["created"] == 1


def test_a_year_far_ahead_is_asked_about(keyless: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "subscribers.jsonl"
    file.write_text(_row(next_billing_at="2126-01-31T09:00:00+07:00"), encoding="utf-8")
    ended = keyless("import", str(file), "--json")
    assert ended.document["created"] == 1
    assert ended.err == "warning: line 1: nothing is charged before 2126-01-31; is that year meant?\n"


def test_tokens_are_verified_at_once_where_that_is_asked_for(shop: Terminal, xendit: Xendit, tmp_path: Path) -> None:
    token = xendit.new_token(country="ID", currency="IDR", channel_code="CARDS")
    file = tmp_path / "subscribers.jsonl"
    file.write_text(_row(payment_token_id=token) + "\n" + _row(customer_reference="x", subscription_reference="x-1"))
    ended = shop("import", str(file), "--verify", "--json")
    assert ended.document["created"] == 1
    assert [refused["line"] for refused in ended.document["refused"]] == [2]
    assert [row["status"] for row in shop.json("token", "list", "--customer", "bea")] == ["ACTIVE"]


@pytest.mark.parametrize("flags", [(), ("--no-verify",)])
def test_else_the_next_run_verifies_them_and_the_file_tells_what_it_found(
    shop: Terminal, xendit: Xendit, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    token = xendit.new_token(country="ID", currency="IDR", channel_code="CARDS")
    file = tmp_path / "subscribers.jsonl"
    unknown = _row(customer_reference="x", subscription_reference="x-1", payment_token_id="pt-9" + "0" * 35)
    file.write_text(_row(payment_token_id=token) + "\n" + unknown)
    assert shop.json("import", str(file), *flags) == {"created": 2, "unchanged": 0, "refused": []}
    assert [row["verified"] for row in shop.json("token", "list", "--customer", "bea")] == [False]

    shop("run")

    (bea,), (stranger,) = (shop.json("token", "list", "--customer", name) for name in ("bea", "x"))
    assert (bea["status"], bea["verified"]) == ("ACTIVE", True)
    assert (stranger["verified"], stranger["unknown_since"] is None) == (False, False)
    ended = shop("import", str(file), *flags, "--json")
    assert ended.status == 1
    assert ended.document["unchanged"] == 1
    assert [refused["line"] for refused in ended.document["refused"]] == [2]


def test_asking_to_verify_needs_the_key(keyless: Terminal) -> None:
    assert keyless.refused("import", "-", "--verify", status=2).startswith("BILLING_XENDIT_SECRET_KEY: not set")


def test_endpoints_that_the_gateway_closed_are_shown_and_opened_by_resume(billing: Terminal, database_url: str) -> None:
    none = billing.json("charging", "show")
    assert (none["stopped"], none["paused"], none["learned_limits"]) == (False, [], [])
    until = real_now() + timedelta(minutes=50)
    columns = "(endpoint, next_slot, paused_until, learned_limit)"
    budget = f"INSERT INTO quota_budgets {columns} VALUES (:name, now(), :at, :most)"
    engine = make_engine(database_url, pool_size=2)
    with engine.begin() as connection:
        connection.execute(text(budget), {"name": "POST /v3/payment_requests", "at": until, "most": None})
        connection.execute(text(budget), {"name": "GET /transactions", "at": None, "most": 30})

    shown = billing.json("charging", "show")
    assert shown["paused"] == [{"endpoint": "POST /v3/payment_requests", "until": instant(until)}]
    assert shown["learned_limits"] == [{"endpoint": "GET /transactions", "requests_per_minute": 30}]
    people = billing("charging", "show").out
    assert f"until {until:%Y-%m-%d %H:%M} UTC: POST /v3/payment_requests" in people
    assert "30 requests a minute: GET /transactions" in people

    assert "2 endpoint(s)" in billing("charging", "resume").out
    assert billing.json("charging", "show") == none
    engine.dispose()
