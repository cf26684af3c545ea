"""Answers that get lost, come late, or never come; keys, versions and quotas."""

from __future__ import annotations

from base64 import b64encode
from decimal import Decimal

import httpx
import pytest
import simplejson

from billing.sandbox.simulator import SettableClock, Simulator, SimulatorConfig, SimulatorTransport
from tests.simulator.desk import HEADERS, KEY, START, Desk

CHARGES = "/v3/payment_requests"


@pytest.mark.parametrize(
    ("outcome", "dropped", "status"),
    [
        ("TIMEOUT_AFTER", True, 201),
        ("500_AFTER", False, 500),
        ("502_AFTER", False, 502),
        ("GARBAGE", False, 201),
    ],
)
def test_a_charge_is_done_although_its_answer_is_lost(desk: Desk, outcome: str, *, dropped: bool, status: int) -> None:
    token = desk.new_token()
    desk.script(token, outcome)

    answer = desk.raw("POST", CHARGES, desk.charge_body(token))

    assert (answer.drop, answer.status) == (dropped, status)
    assert not answer.body.endswith(b"}") or status >= 500
    assert desk.event_names() == ["payment.capture"]
    assert desk.collected() == 50_000


@pytest.mark.parametrize(
    ("outcome", "status", "page"),
    [
        ("PROXY_403_AFTER", 403, True), ("EMPTY_403_AFTER", 403, False), ("EMPTY_302_AFTER", 302, False),
        ("PROXY_200_AFTER", 200, True),
    ],
)  # fmt: skip
def test_a_proxy_answers_although_the_charge_is_done(desk: Desk, outcome: str, *, status: int, page: bool) -> None:
    token = desk.new_token()
    desk.script(token, outcome)

    answer = desk.raw("POST", CHARGES, desk.charge_body(token))

    assert answer.status == status
    assert answer.body.startswith(b"<html>") if page else answer.body == b""
    assert not [name for name, _ in answer.headers if name.startswith("rate-limit")], "nothing of Xendit's"
    assert desk.collected() == 50_000


@pytest.mark.parametrize(
    "outcome",
    [
        "TIMEOUT_BEFORE", "500_BEFORE", "504_BEFORE", "429", "HTTP:400:INVALID_TOKEN", "PROXY_403_BEFORE",
        "EMPTY_401_BEFORE",
    ],
)  # fmt: skip
def test_nothing_is_done_when_the_call_fails_before(desk: Desk, outcome: str) -> None:
    token = desk.new_token()
    desk.script(token, outcome)

    answer = desk.raw("POST", CHARGES, desk.charge_body(token))

    assert answer.drop or answer.status >= 400
    assert desk.received() == []
    assert desk.get("/transactions")["data"] == []


def test_a_lost_answer_may_hide_a_decline(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "TIMEOUT_AFTER:INSUFFICIENT_BALANCE")

    assert desk.raw("POST", CHARGES, desk.charge_body(token)).drop
    assert desk.event_names() == ["payment.failure"]


def test_a_slow_answer_and_a_result_without_webhook(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "SLOW:2.5", "NO_WEBHOOK:SUCCEEDED")

    assert desk.raw("POST", CHARGES, desk.charge_body(token)).delay_seconds == 2.5
    desk.charge(token)

    assert len(desk.received()) == 1
    assert desk.collected() == 100_000


def test_faults_hit_any_endpoint_and_then_stop(desk: Desk) -> None:
    desk.post("/_simulator/faults", {"endpoint": "POST /sessions", "outcome": "500_BEFORE", "count": 2}, status=200)
    desk.post("/_simulator/faults", {"endpoint": "GET /transactions", "outcome": "TIMEOUT_BEFORE"}, status=200)

    assert [desk.raw("POST", "/sessions", {}).status for _ in range(3)] == [500, 500, 400]
    assert desk.raw("GET", "/transactions").drop
    assert desk.raw("GET", "/transactions").status == 200


@pytest.mark.parametrize(
    "fault",
    [
        {"endpoint": "POST /nowhere", "outcome": "429"},
        {"endpoint": "*", "outcome": "SUCCEEDED"},
        {"endpoint": "*", "outcome": "what?"},
        {"endpoint": "*", "outcome": "429", "count": -1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(desk: Desk, fault: dict[str, object]) -> None:
    assert desk.refusal("/_simulator/faults", fault)[0] == 400


def _basic(user: str) -> str:
    return "Basic " + b64encode(f"{user}:".encode()).decode()


@pytest.mark.parametrize(
    "authorization", ["", "Bearer x", "Basic ???", _basic("xnd_public_development_x"), _basic("xnd_production_x")]
)
def test_only_development_keys_are_let_in(desk: Desk, authorization: str) -> None:
    answer = desk.raw("GET", "/transactions", authorization=authorization)

    assert answer.status == 401
    assert simplejson.loads(answer.body)["error_code"] == "INVALID_API_KEY"


def test_a_production_key_is_told_where_it_is() -> None:
    answer = Desk().raw("GET", "/transactions", authorization=_basic("xnd_production_x"))

    assert "simulator" in simplejson.loads(answer.body)["message"]


def test_a_configured_key_shuts_out_all_others() -> None:
    desk = Desk(SimulatorConfig(secret_keys=("xnd_development_mine",)))

    assert desk.raw("GET", "/transactions").status == 401
    assert desk.raw("GET", "/transactions", authorization=_basic("xnd_development_mine")).status == 200


def test_v3_needs_its_version_and_sessions_do_not(desk: Desk) -> None:
    token = desk.new_token()

    assert desk.raw("GET", f"/v3/payment_tokens/{token}", api_version="2020-10-31").status == 400
    assert desk.simulator.answer("GET", f"/v3/payment_tokens/{token}", "", {"authorization": KEY}).status == 400
    assert desk.simulator.answer("GET", "/transactions", "", {"authorization": KEY}).status == 200


def test_the_quota_is_a_sliding_minute_per_endpoint() -> None:
    seconds = [0.0]
    desk = Desk(SimulatorConfig(requests_per_minute=2, monotonic=lambda: seconds[0]))

    first = desk.raw("GET", "/transactions")
    seconds[0] = 30
    second, third = desk.raw("GET", "/transactions"), desk.raw("GET", "/transactions")

    assert [first.status, second.status, third.status] == [200, 200, 429]
    assert dict(first.headers)["rate-limit-remaining"] == "1"
    refused = dict(third.headers)
    assert (refused["rate-limit-limit"], refused["rate-limit-remaining"]) == ("2", "0")
    assert refused["rate-limit-reset"] == "30.00"
    assert simplejson.loads(third.body)["error_code"] == "RATE_LIMIT_EXCEEDED"
    assert desk.raw("GET", "/customers?reference_id=x", api_version="2020-10-31").status == 200
    seconds[0] = 60.5
    assert desk.raw("GET", "/transactions").status == 200
    assert desk.raw("GET", "/transactions").status == 429


def test_the_simulator_tells_what_the_quota_let_in_and_what_it_refused() -> None:
    seconds = [0.0]
    desk = Desk(SimulatorConfig(requests_per_minute=2, monotonic=lambda: seconds[0]))
    for at in (0.5, 20, 30, 60.5, 61, 200):
        seconds[0] = at
        desk.raw("GET", "/transactions")

    shown = desk.get("/_simulator/quota", {"arrivals": "GET /transactions"})

    # 0.5 has just left the minute that ends at 60.5; at 61 two are still in it.
    assert shown["arrivals"] == [Decimal(at) for at in ("0.5", "20", "60.5", "200")]
    assert shown["endpoints"]["GET /transactions"] == {"accepted": 4, "refused": 2, "fullest_window": 2}
    assert "arrivals" not in desk.get("/_simulator/quota")


def test_a_body_that_is_not_json(desk: Desk) -> None:
    answer = desk.simulator.answer("POST", "/sessions", "", {"authorization": KEY}, b"{nonsense")

    assert simplejson.loads(answer.body)["error_code"] == "API_VALIDATION_ERROR"


def test_an_httpx_client_meets_the_same_faults() -> None:
    desk = Desk()
    token = desk.new_token()
    desk.script(token, "TIMEOUT_AFTER")
    headers = {"authorization": KEY, "api-version": "2024-11-11"}

    with httpx.Client(transport=SimulatorTransport(desk.simulator), base_url="http://simulator") as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHARGES, json=desk.charge_body(token), headers=headers)
        rows = client.get("/transactions", params={"reference_id": "att-1"}, headers=headers).json()["data"]

    assert [row["status"] for row in rows] == ["SUCCESS"]


def test_the_same_seed_tells_the_same_story() -> None:
    def story() -> list[bytes]:
        desk = Desk()
        token = desk.new_token()
        desk.raw("POST", CHARGES, desk.charge_body(token))
        desk.later(days=1)
        return [delivery.body for delivery in desk.due()]

    assert story() == story()


def test_the_control_api_moves_the_simulators_own_clock() -> None:
    clock = SettableClock(lambda: START)
    simulator = Simulator(clock)

    answer = simulator.answer("POST", "/_simulator/clock", "", {}, b'{"now": "2027-03-01T00:00:00Z"}')

    assert simplejson.loads(answer.body) == {"now": "2027-03-01T00:00:00.000Z"}
    assert simulator.answer("POST", "/_simulator/clock", "", {}, b'{"offset_seconds": 60}').status == 200
    assert (clock() - START).total_seconds() == 60


def test_an_external_clock_is_not_moved_from_here(desk: Desk) -> None:
    assert desk.refusal("/_simulator/clock", {"offset_seconds": 60})[0] == 409


def test_calls_are_counted_per_endpoint_and_status(desk: Desk) -> None:
    desk.charge(desk.new_token())
    desk.raw("POST", CHARGES, {})

    assert desk.get("/_simulator/requests")["POST /v3/payment_requests"] == {"201": 1, "400": 1}


def test_an_answer_slower_than_the_clients_patience_is_a_timeout() -> None:
    desk = Desk()
    token = desk.new_token()
    desk.script(token, "SLOW:31", "SLOW:29")
    slept: list[float] = []
    transport = SimulatorTransport(desk.simulator, sleep=slept.append)

    with httpx.Client(transport=transport, base_url="http://simulator", timeout=30, headers=HEADERS) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHARGES, json=desk.charge_body(token))
        assert client.post(CHARGES, json=desk.charge_body(token)).status_code == 201

    assert slept == [31, 29]
