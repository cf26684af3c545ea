"""Webhooks on their way: the retry ladder, and what may go wrong with them."""

from __future__ import annotations

from datetime import timedelta

import simplejson

from tests.simulator.desk import START, Desk


def test_the_retry_ladder_is_climbed_and_then_given_up(desk: Desk) -> None:
    desk.charge(desk.new_token())
    tried_after: list[timedelta] = []
    while (due_at := desk.simulator.next_due_at()) is not None and due_at < START + timedelta(days=3):
        desk.now = due_at
        if desk.received(status=500):
            tried_after.append(desk.now - START)

    minutes = [after.total_seconds() / 60 for after in tried_after]
    assert minutes == [0, 15, 60, 180, 360, 720, 1440]
    assert desk.get("/_simulator/webhooks")["events"][0]["status"] == "GIVEN_UP"
    assert desk.post("/_simulator/webhooks/resend")["resent"] == 1
    assert desk.event_names() == ["payment.capture"]


def test_a_jump_of_the_clock_does_not_burn_the_ladder(desk: Desk) -> None:
    desk.charge(desk.new_token())
    desk.received(status=None)

    desk.later(days=60)
    assert len(desk.received(status=None)) == 1
    assert desk.received() == []
    desk.later(minutes=45)
    assert len(desk.received()) == 1
    desk.later(days=60)
    assert desk.received() == []


def test_only_the_envelope_changes_between_tries(desk: Desk) -> None:
    desk.charge(desk.new_token())
    [first] = desk.due()
    desk.simulator.delivery_result(first, 503)
    desk.later(minutes=15)
    [second] = desk.due()

    before, after = simplejson.loads(first.body), simplejson.loads(second.body)
    assert before["created"] != after["created"]
    assert before["data"] == after["data"]
    assert first.webhook_id == second.webhook_id
    assert (first.attempt, second.attempt) == (1, 2)


def _configure(desk: Desk, **faults: object) -> None:
    desk.post("/_simulator/webhooks/config", faults, status=200)


def test_every_event_can_come_twice(desk: Desk) -> None:
    _configure(desk, duplicate_rate=1)
    desk.charge(desk.new_token())

    assert desk.event_names() == ["payment.capture", "payment.capture"]


def test_a_lost_event_never_comes_until_it_is_resent(desk: Desk) -> None:
    _configure(desk, loss_rate=1)
    request = desk.charge(desk.new_token())
    desk.later(days=5)
    assert desk.received() == []

    desk.post("/_simulator/webhooks/resend", {"payment_id": request["latest_payment_id"]})

    assert desk.event_names() == ["payment.capture"]


def test_events_can_be_late_and_in_another_order(desk: Desk) -> None:
    _configure(desk, delay_seconds=600, reorder=True)
    token = desk.new_token()
    wanted = [desk.charge(token)["reference_id"] for _ in range(12)]
    assert desk.received() == []

    desk.later(seconds=610)

    came = [data["reference_id"] for _, data in desk.received()]
    assert sorted(came) == sorted(wanted)
    assert came != wanted


def test_events_wait_while_webhooks_are_paused(desk: Desk) -> None:
    _configure(desk, paused=True)
    desk.charge(desk.new_token())
    desk.later(days=1)
    assert desk.received() == []

    _configure(desk, paused=False)
    assert desk.event_names() == ["payment.capture"]


def test_a_channel_that_tells_no_failures(desk: Desk) -> None:
    _configure(desk, without_payment_failure=True)
    token = desk.new_token()
    desk.script(token, "CARD_DECLINED")
    desk.charge(token)

    assert desk.received() == []


def test_an_unknown_fault_is_refused(desk: Desk) -> None:
    assert desk.refusal("/_simulator/webhooks/config", {"colour": 1})[0] == 400
    assert desk.refusal("/_simulator/webhooks/config", {"paused": 1})[0] == 400


def test_everything_since_a_moment_is_sent_again(desk: Desk) -> None:
    token = desk.new_token()
    desk.charge(token)
    desk.later(hours=1)
    desk.charge(token)
    desk.received()

    desk.post("/_simulator/webhooks/resend", {"since": "2026-01-15T09:30:00Z"})

    assert [data["reference_id"] for _, data in desk.received()] == ["att-2"]
