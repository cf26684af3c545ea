"""Refunds, the list of transactions, and the ledger they are compared with."""

from __future__ import annotations

from typing import Any

import pytest

from billing.sandbox.simulator import SimulatorConfig
from tests.simulator.desk import Desk


def _refund(request: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {"payment_request_id": request["payment_request_id"], "reason": "DUPLICATE", **changes}


def test_a_full_refund_is_pending_first_and_decided_by_webhook(desk: Desk) -> None:
    request = desk.charge(desk.new_token())
    desk.received()

    refund = desk.post("/refunds", _refund(request, reference_id="ref-1"), status=200)
    assert (refund["status"], refund["amount"]) == ("PENDING", 50_000)

    desk.later(seconds=10)
    [(event, done)] = desk.received()
    assert (event, done["id"], done["status"]) == ("refund.succeeded", refund["id"], "SUCCEEDED")
    ledger = desk.get("/_simulator/ledger")
    assert ledger["totals"]["IDR"] == {"captured": "50000", "refunded": "50000", "count": 1}
    assert ledger["payments"][0]["refunded"] == "50000"


def test_a_failed_refund_leaves_the_money_refundable(desk: Desk) -> None:
    request = desk.charge(desk.new_token())
    desk.post("/_simulator/refunds/config", {"failure_code": "INSUFFICIENT_BALANCE"})
    desk.post("/refunds", _refund(request), status=200)
    desk.later(minutes=1)

    failed = dict(desk.received())["refund.failed"]
    assert failed["failure_code"] == "INSUFFICIENT_BALANCE"
    desk.post("/_simulator/refunds/config", {})
    assert desk.post("/refunds", _refund(request), status=200)["amount"] == 50_000


def test_partial_refunds_stop_at_what_is_left(desk: Desk) -> None:
    request = desk.charge(desk.new_token())
    desk.post("/refunds", _refund(request, amount=30_000), status=200)
    assert desk.refusal("/refunds", _refund(request, amount=1_000)) == (400, "REFUND_IN_PROGRESS")
    desk.later(minutes=1)
    desk.received()

    assert desk.refusal("/refunds", _refund(request, amount=20_001)) == (400, "REFUND_AMOUNT_EXCEEDED")
    assert desk.post("/refunds", _refund(request), status=200)["amount"] == 20_000
    desk.later(minutes=1)
    desk.received()
    assert desk.refusal("/refunds", _refund(request)) == (400, "REFUND_AMOUNT_EXCEEDED")


def test_refunds_that_cannot_be(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "CARD_DECLINED")
    failed, paid = desk.charge(token), desk.charge(token)
    thai = {"country": "TH", "currency": "THB", "channel_code": "SCB_DIRECT_DEBIT"}
    bank = desk.charge(desk.new_token(**thai), request_amount=100, channel_properties=None, **thai)
    bri = {"channel_code": "BRI_DIRECT_DEBIT"}
    whole = desk.charge(desk.new_token(**bri), channel_properties=None, **bri)

    def refused(request: dict[str, Any], **changes: object) -> tuple[int, str]:
        return desk.refusal("/refunds", _refund(request, **changes))

    assert refused(failed) == (400, "INELIGIBLE_TRANSACTION_STATUS")
    assert refused(paid, reason="BECAUSE") == (400, "API_VALIDATION_ERROR")
    assert refused(paid, currency="PHP") == (400, "INVALID_VALUE_ERROR")
    assert refused(paid, amount=0) == (400, "INVALID_VALUE_ERROR")
    assert refused({"payment_request_id": "pr-" + "0" * 36}) == (404, "DATA_NOT_FOUND")
    assert refused(bank) == (403, "REFUND_NOT_SUPPORTED")
    assert refused(whole, amount=10) == (403, "PARTIAL_REFUND_NOT_SUPPORTED")
    desk.later(days=366)
    assert refused(paid) == (400, "INELIGIBLE_TRANSACTION_STATUS")


def test_a_refund_event_nested_as_the_reference_prints_it() -> None:
    desk = Desk(SimulatorConfig(refund_events_nested=True))
    desk.post("/refunds", _refund(desk.charge(desk.new_token())), status=200)
    desk.later(minutes=1)

    assert dict(desk.received())["refund.succeeded"]["data"]["status"] == "SUCCEEDED"


def test_a_payment_is_found_by_our_reference_whatever_became_of_it(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "SUCCEEDED", "CARD_DECLINED", "PENDING")
    requests = [desk.charge(token) for _ in range(3)]

    found = [desk.get("/transactions", {"reference_id": request["reference_id"]})["data"] for request in requests]

    assert [[row["status"] for row in rows] for rows in found] == [["SUCCESS"], ["FAILED"], ["PENDING"]]
    assert found[0][0]["product_id"] == requests[0]["latest_payment_id"]
    assert (found[0][0]["type"], found[0][0]["cashflow"]) == ("PAYMENT", "MONEY_IN")
    assert desk.get("/transactions", {"reference_id": "att-nobody"})["data"] == []
    assert desk.get(f"/transactions/{found[0][0]['id']}")["amount"] == 50_000


def test_pages_cover_a_day_once(desk: Desk) -> None:
    token = desk.new_token()
    for _ in range(23):
        desk.charge(token)
        desk.later(minutes=1)
    desk.later(days=1)
    desk.charge(token)
    day = {"types": "PAYMENT", "created[gte]": "2026-01-15T00:00:00Z", "created[lte]": "2026-01-15T23:59:59Z"}

    page = desk.get("/transactions", day)
    seen = [row["reference_id"] for row in page["data"]]
    assert (len(seen), page["has_more"]) == (10, True)
    while page["has_more"]:
        page = desk.get("/transactions", day | {"after_id": page["data"][-1]["id"]})
        seen += [row["reference_id"] for row in page["data"]]

    assert seen == [f"att-{number}" for number in range(23, 0, -1)]
    back = desk.get("/transactions", day | {"before_id": page["data"][-1]["id"], "limit": 3})
    assert [row["reference_id"] for row in back["data"]] == ["att-4", "att-3", "att-2"]


def test_rows_are_filtered_by_kind_status_channel_and_amount(desk: Desk) -> None:
    card, wallet = desk.new_token(), desk.new_token(channel_code="DANA")
    request = desk.charge(card)
    desk.charge(wallet, channel_properties=None, request_amount=20105)
    desk.post("/refunds", _refund(request, amount=10_000), status=200)
    desk.later(minutes=1)

    def kinds(**query: object) -> list[str]:
        return [row["type"] for row in desk.get("/transactions", query)["data"]]

    assert kinds() == ["REFUND", "PAYMENT", "PAYMENT"]
    assert kinds(types=["REFUND", "CHARGEBACK"]) == ["REFUND"]
    assert kinds(statuses="FAILED") == ["PAYMENT"]
    assert kinds(channel_categories="EWALLET") == ["PAYMENT"]
    assert kinds(amount=10_000) == ["REFUND"]
    assert kinds(product_id=request["latest_payment_id"]) == ["PAYMENT"]


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "ten"}, {"statuses": "PAID"}, {"created[gte]": "monday"}, {"after_id": "txn_no"}]
)
def test_a_query_that_the_documents_exclude_is_refused(desk: Desk, query: dict[str, object]) -> None:
    assert desk.get("/transactions", query, status=400)["error_code"] == "API_VALIDATION_ERROR"


@pytest.mark.parametrize(("query", "found"), [({"limit": 51}, 1), ({"types": "PAYOUT"}, 0), ({"page": 2}, 1)])
def test_a_query_that_the_documents_leave_open_is_answered_with_a_warning(
    desk: Desk, query: dict[str, object], found: int, caplog: pytest.LogCaptureFixture
) -> None:
    desk.charge(desk.new_token())

    assert len(desk.get("/transactions", query)["data"]) == found
    assert "let through" in caplog.text


def test_a_row_can_lag_behind_the_payment() -> None:
    desk = Desk(SimulatorConfig(transactions_lag_seconds=300))
    request = desk.charge(desk.new_token())

    assert desk.get("/transactions", {"reference_id": request["reference_id"]})["data"] == []
    desk.later(minutes=5)
    assert len(desk.get("/transactions", {"reference_id": request["reference_id"]})["data"]) == 1


def test_amounts_are_exact_numbers_in_json(desk: Desk) -> None:
    where = {"country": "PH", "currency": "PHP"}
    body = desk.charge_body(desk.new_token(**where), **where, channel_properties=None)

    answer = desk.raw("POST", "/v3/payment_requests", body | {"request_amount": 1234.1})

    assert b'"request_amount":1234.1,' in answer.body
    assert desk.get("/_simulator/ledger")["totals"]["PHP"]["captured"] == "1234.10"


def test_the_ledger_can_leave_its_rows_out(desk: Desk) -> None:
    desk.charge(desk.new_token())

    assert list(desk.get("/_simulator/ledger", {"summary": 1})) == ["totals"]
    assert desk.get("/_simulator/ledger")["payments"][0]["amount"] == "50000"


def test_the_ledger_shows_one_reference(desk: Desk) -> None:
    desk.charge(desk.new_token())
    charged = desk.charge(desk.new_token())

    shown = desk.get("/_simulator/ledger", {"reference_id": charged["reference_id"]})

    assert [(row["payment_id"], row["created"]) for row in shown["payments"]] == [
        (charged["latest_payment_id"], charged["created"])
    ]
    assert desk.get("/_simulator/ledger", {"reference_id": "nobody"}) == {"payments": []}


def test_a_person_gives_money_back_in_the_dashboard(desk: Desk) -> None:
    request = desk.charge(desk.new_token())
    desk.received()
    payment = request["latest_payment_id"]

    made = desk.post(f"/_simulator/payments/{payment}/refund", {"amount": 20_000}, status=200)
    desk.later(minutes=1)

    assert (made["status"], made["reference_id"], made["amount"]) == ("PENDING", None, 20_000)
    [(event, done)] = desk.received()
    assert (event, done["id"], done["payment_id"]) == ("refund.succeeded", made["id"], payment)
    assert desk.get(f"/refunds/{made['id']}")["status"] == "SUCCEEDED"
    rows = desk.get("/transactions", {"types": ["PAYMENT", "REFUND"]})["data"]
    assert [(row["type"], row["product_id"]) for row in rows] == [("REFUND", made["id"]), ("PAYMENT", payment)]
