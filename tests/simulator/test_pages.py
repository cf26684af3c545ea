"""The hosted pages, as a browser meets them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from billing.sandbox.simulator.answers import Answer
from tests.simulator.desk import Desk

BROWSER = {"accept": "text/html,application/xhtml+xml"}
FORM = {
    "channel": "CARDS", "card_number": "4000 0000 0000 1000", "expiry": "12 / 29", "cvn": "987",
    "name": "Siti Rahma", "action": "pay",
}  # fmt: skip


def _look(desk: Desk, path: str) -> str:
    path, _, query = path.partition("?")
    answer = desk.simulator.answer("GET", path, query, BROWSER)
    assert dict(answer.headers)["content-type"].startswith("text/html")
    return answer.body.decode()


def _path(session: dict[str, Any]) -> str:
    return f"/sessions/{session['payment_session_id']}"


def _send(desk: Desk, path: str, **fields: str) -> str:
    """Sends the form and follows the redirect."""
    answer: Answer = desk.simulator.answer("POST", path, "", BROWSER, urlencode(fields).encode())
    assert answer.status == 303
    return _look(desk, dict(answer.headers)["location"])


def test_the_same_address_is_a_page_for_people_and_json_for_programs(desk: Desk) -> None:
    session = desk.open_session(session_type="PAY", amount=50_000, description="Kopi Club")

    page = _look(desk, _path(session))

    assert "Rp 50,000" in page
    assert "Kopi Club" in page
    assert desk.session(session)["status"] == "ACTIVE"


def test_a_person_pays_and_saves(desk: Desk) -> None:
    session = desk.open_session(session_type="PAY", amount=50_000, allow_save_payment_method="FORCED")

    page = _send(desk, _path(session) + "/checkout", **FORM)

    assert "Payment successful" in page
    assert "https://shop.example/ok" in page
    assert len(desk.received()) == 3


def test_the_box_decides_when_saving_is_optional(desk: Desk) -> None:
    session = desk.open_session(session_type="PAY", amount=50_000, allow_save_payment_method="OPTIONAL")
    assert 'name="save"' in _look(desk, _path(session))

    _send(desk, _path(session) + "/checkout", **FORM)

    assert desk.session(session)["payment_token_id"] is None


def test_a_declined_try_can_be_repeated_with_another_method(desk: Desk) -> None:
    session = desk.open_session()

    page = _send(desk, _path(session) + "/checkout", **FORM | {"action": "decline", "failure_code": "CARD_DECLINED"})
    assert "CARD_DECLINED" in page
    page = _send(desk, _path(session) + "/checkout", channel="DANA", action="pay")

    assert "Payment method saved" in page


def test_a_wrong_card_is_told_and_not_shown_again(desk: Desk) -> None:
    session = desk.open_session()

    page = _send(desk, _path(session) + "/checkout", **FORM | {"card_number": "4000 0000 0000"[:10]})
    assert "check the card number" in page
    page = _send(desk, _path(session) + "/checkout", **FORM | {"expiry": "12 / 20"})
    assert "This card has expired" in page


def test_a_challenge_card_asks_and_its_number_is_nowhere(desk: Desk) -> None:
    session, number = desk.open_session(), "4111222233334444"
    challenge = "5123450000000008"
    typed = FORM | {"card_number": challenge}

    page = _send(desk, _path(session) + "/checkout", **typed)
    assert "Confirm it is you" in page
    assert challenge not in page
    page = _send(desk, _path(session) + "/challenge", result="UNAUTHENTICATED")
    assert "AUTHENTICATION_FAILED" in page
    _send(desk, _path(session) + "/checkout", **typed)
    assert "Payment method saved" in _send(desk, _path(session) + "/challenge", result="AUTHENTICATED")

    other = desk.open_session(reference_id="ses-2", customer=None, customer_id=session["customer_id"])
    page = _send(desk, _path(other) + "/checkout", **FORM | {"card_number": number})
    assert number not in page
    assert not any(number.encode() in delivery.body for delivery in desk.due())


def test_expire_cancel_and_unknown_pages(desk: Desk) -> None:
    session = desk.open_session()

    assert "You left the checkout" in _send(desk, _path(session) + "/checkout", action="cancel")
    assert desk.session(session)["status"] == "ACTIVE"
    assert "expired" in _send(desk, _path(session) + "/checkout", action="expire")
    assert desk.event_names() == ["payment_session.expired"]
    assert "Page not found" in _look(desk, "/sessions/ps-nobody")


def test_a_customer_approves_a_charge_that_waits_for_them(desk: Desk) -> None:
    token = desk.new_token()
    desk.script(token, "REQUIRES_ACTION")
    page = desk.charge(token)["actions"][0]["value"].removeprefix(desk.config.base_url)
    assert "Approve Rp 50,000" in _look(desk, page)

    desk.simulator.answer("POST", page, "", BROWSER, b"result=AUTHENTICATED")

    assert desk.event_names() == ["payment.capture"]


def test_components_show_the_page_of_their_session_in_a_frame(desk: Desk) -> None:
    session = desk.open_session(mode="COMPONENTS", components_configuration={"origins": ["https://shop.example"]})
    script = desk.simulator.answer("GET", "/components.js", "", {})
    assert b"XenditComponents" in script.body

    frame = desk.simulator.answer("GET", "/components", urlencode({"key": session["components_sdk_key"]}), BROWSER)

    location = dict(frame.headers)["location"]
    assert location == f"{_path(session)}?embed=1"
    page = _send(desk, _path(session) + "/checkout", **FORM, embed="1")
    assert "session-complete" in page


def test_the_index_lists_what_happened(desk: Desk) -> None:
    desk.complete(desk.open_session(session_type="PAY", amount=50_000))
    desk.received()

    page = _look(desk, "/")

    assert "ses-1" in page
    assert "DELIVERED" in page
    assert "4000000000001000" in page


def test_what_people_type_is_escaped(desk: Desk) -> None:
    session = desk.open_session(description="<script>alert(1)</script>")

    assert "<script>alert" not in _look(desk, _path(session))
