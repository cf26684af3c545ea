"""Nobody knows whether money moved: what is done to find out, and what is not done until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from billing.charging import look_up
from billing.domain.lifecycle import UNFINISHED
from billing.errors import Conflict
from billing.parts import Rules
from tests.world import CHARGE, OTHER_VISA, START, VISA, World

ARRIVED = ["TIMEOUT_AFTER", "500_AFTER", "502_AFTER", "504_AFTER", "GARBAGE"]
STRANGERS_BEFORE = [
    "PROXY_403_BEFORE",
    "EMPTY_404_BEFORE",
    "PROXY_407_BEFORE",
    "HTTP:403:A_CODE_OF_NOBODY",
]  # no answer of Xendit's
NEVER_ARRIVED = ["TIMEOUT_BEFORE", "500_BEFORE", "504_BEFORE"]


@pytest.mark.parametrize("fault", [*ARRIVED, *NEVER_ARRIVED])
def test_an_answer_that_is_lost_makes_the_attempt_in_doubt(world: World, fault: str) -> None:
    """D9, D13: an unknown outcome keeps its identity; nothing is sent again."""
    ana = world.subscribe_save()
    world.break_calls(fault)

    report = world.run()

    assert (report["in_doubt"], report["failed"], report["succeeded"]) == (1, 0, 0)
    assert ana.outcomes == ["in_doubt"]
    assert world.run()["attempted"] == 0
    assert world.calls(CHARGE) == 1


@pytest.mark.parametrize("fault", ARRIVED)
def test_the_webhook_ends_the_doubt(world: World, fault: str) -> None:
    ana = world.subscribe_save()
    world.break_calls(fault)
    world.run()

    world.deliver_webhooks()

    assert ana.outcomes == ["succeeded"]
    assert (ana.status, ana.invoice.status) == ("active", "paid")
    assert world.collected() == [50_000]


@pytest.mark.parametrize("fault", ARRIVED)
def test_without_a_webhook_the_list_of_transactions_ends_it(world: World, fault: str) -> None:
    ana = world.subscribe_save()
    ana.script(f"NO_WEBHOOK:{fault}")
    world.break_calls(fault)
    world.run()
    world.deliver_webhooks(lose=["payment.capture"])
    assert ana.outcomes == ["in_doubt"]

    world.live(minutes=2)

    assert ana.outcomes == ["succeeded"]
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000]
    assert world.calls(CHARGE) == 1


def test_a_decline_whose_answer_was_lost_is_found_too(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_AFTER:INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()
    assert ana.outcomes == ["in_doubt"]

    world.live(days=2)

    assert ana.outcomes == ["failed", "succeeded"]
    assert world.collected() == [50_000]


def test_the_list_may_be_hours_behind(new_world: Callable[..., World]) -> None:
    """No row soon after a call proves nothing."""
    world = new_world(transactions_lag_seconds=5 * 3600)
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    world.deliver_webhooks(lose=["payment.capture"])

    world.live(hours=4)
    assert ana.outcomes == ["in_doubt"]
    world.live(hours=4)

    assert ana.outcomes == ["succeeded"]
    assert world.calls(CHARGE) == 1


@pytest.mark.parametrize("fault", [*NEVER_ARRIVED, *STRANGERS_BEFORE])
def test_what_never_arrived_is_charged_once_more_after_the_window(world: World, fault: str) -> None:
    """No trace anywhere for 26 hours: it was never received. The new attempt has a new reference and costs no step."""
    ana = world.subscribe_save()
    world.break_calls(fault)
    world.run()

    world.live(hours=25, minutes=50)
    assert ana.outcomes == ["in_doubt"]
    assert world.calls(CHARGE) == 1
    world.live(hours=1)

    first, second = ana.attempts
    assert (first.status, second.status) == ("failed", "succeeded")
    assert first.reference_id != second.reference_id
    assert second.submitted_at is not None
    assert second.submitted_at >= START + timedelta(hours=26)
    assert world.collected() == [50_000]
    assert ana.invoice.dunning_step == 0, "it was no decline"


def test_what_is_pending_in_the_list_has_arrived_and_is_never_presumed_lost(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_AFTER:PENDING")
    world.run()

    world.live(days=4)

    assert ana.outcomes == ["pending"]
    assert world.calls(CHARGE) == 1
    world.control("POST", f"/payment_requests/{ana.attempt.payment_request_id}/resolve", {"outcome": "SUCCEEDED"})
    world.live(days=1)
    assert ana.invoice.status == "paid"
    assert world.collected() == [50_000]


def test_a_merchant_may_choose_to_hold_instead(new_world: Callable[..., World]) -> None:
    world = new_world(rules=Rules(hold_in_doubt=True))
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()

    world.live(days=10)

    assert ana.outcomes == ["in_doubt"]
    assert ana.invoice.hold_reason
    assert world.calls(CHARGE) == 1


def test_while_in_doubt_nobody_may_charge(world: World) -> None:
    """D3: not the scheduler, not dunning, not a new card, not an operator."""
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()

    with pytest.raises(Conflict, match="not known yet"):
        ana.pay_invoice()
    ana.adds_card()
    world.live(hours=20)

    assert ana.outcomes == ["in_doubt"]
    assert world.calls(CHARGE) == 1


def test_a_pause_does_not_end_the_doubt(world: World) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    ana.pause()

    world.live(hours=1)

    assert ana.outcomes == ["succeeded"]
    assert (ana.status, ana.invoice.status) == ("paused", "paid")


def test_what_never_arrived_is_not_sent_for_a_paused_subscription(world: World) -> None:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()
    ana.pause()

    world.live(days=3)

    assert ana.outcomes == ["failed"]
    assert world.calls(CHARGE) == 1


def test_a_failure_that_can_still_turn_into_money_is_a_doubt(world: World) -> None:
    """W4: a failure reported with a time-out code; settlement reports may find the money later."""
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:TIMEOUT_ERROR:18000")
    world.run()
    world.deliver_webhooks()
    assert ana.outcomes == ["in_doubt"]

    world.live(days=3)

    assert ana.outcomes == ["succeeded"]
    assert world.collected() == [50_000]
    assert world.calls(CHARGE) == 1


def test_a_time_out_that_stays_one_goes_on_with_the_ladder_after_the_window(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("TIMEOUT_ERROR", "SUCCEEDED")
    world.run()

    world.live(hours=25)
    assert ana.outcomes == ["in_doubt"]
    world.live(days=3)

    assert ana.outcomes == ["failed", "succeeded"]
    assert world.collected() == [50_000]


# Processes that die


def test_killed_after_the_call_the_payment_is_found(world: World) -> None:
    """D2: the restart charges nothing again."""
    ana = world.subscribe_save()
    world.open_due()
    ana.charged_by_a_process_that_dies()
    world.run()
    assert ana.outcomes == ["submitted"], "its lease stands: it may still be at work"

    world.leases_run_out()
    world.run()
    assert ana.outcomes == ["in_doubt"]
    world.live(minutes=2)

    assert ana.outcomes == ["succeeded"]
    assert world.collected() == [50_000]
    assert world.calls(CHARGE) == 1


def test_killed_before_the_call_nothing_is_lost(world: World) -> None:
    ana = world.subscribe_save()
    world.open_due()
    ana.charged_by_a_process_that_dies(before_the_call=True)
    world.leases_run_out()

    world.live(hours=20)
    assert ana.outcomes == ["in_doubt"]
    world.live(hours=8)

    assert ana.outcomes == ["failed", "succeeded"]
    assert world.collected() == [50_000]


def test_killed_between_claim_and_begin_another_takes_it_up(world: World) -> None:
    """M2: every claim is a lease with an end."""
    ana = world.subscribe_save()
    world.tick_with_workers_that_die()
    assert ana.outcomes == ["scheduled"]
    assert world.run()["attempted"] == 0

    world.leases_run_out()

    assert world.run()["succeeded"] == 1
    assert world.collected() == [50_000]


def test_a_doubled_message_charges_once(world: World) -> None:
    """D6, D12: a message may be lost, doubled or late."""
    ana = world.subscribe_save()
    world.open_due()
    world.in_two_threads(lambda: world.send("charge", [ana.attempt.id] * 3))

    assert world.calls(CHARGE) == 1
    assert ana.outcomes == ["succeeded"]


def test_two_runs_at_once_charge_everybody_once(world: World) -> None:
    """D11, D14: two schedulers overlap in a rolling deploy."""
    for number in range(20):
        world.subscribe_save(f"customer{number}")

    world.in_two_threads(world.run)

    assert world.collected() == [50_000] * 20
    assert world.calls(CHARGE) == 20


def test_two_schedulers_open_a_period_once(world: World) -> None:
    ana = world.subscribe_save()

    world.in_two_threads(world.open_due)

    assert len(ana.invoices) == len(ana.attempts) == 1


def test_an_operator_and_the_scheduler_at_once_charge_once(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", *["SUCCEEDED"] * 3)
    world.run()
    world.advance(days=1)

    first_to_come: Iterator[Callable[[], object]] = iter([ana.pay_invoice, world.run])
    with suppress(Conflict):  # the operator came second and was told
        world.in_two_threads(lambda: next(first_to_come)())  # noqa: PLW0108 - each thread takes its own

    assert world.collected() == [50_000]


def test_a_cancel_and_the_scheduler_at_once_agree(world: World) -> None:
    """Either the charge was first and counts, or the cancel was and nothing is sent."""
    ana = world.subscribe_save()
    world.open_due()

    deeds: Iterator[Callable[[], object]] = iter([lambda: ana.cancel(at_once=True), world.run])
    world.in_two_threads(lambda: next(deeds)())  # noqa: PLW0108

    end = (world.collected(), ana.invoice.status, ana.outcomes)
    assert end in (([50_000], "paid", ["succeeded"]), ([], "void", ["canceled"]))


def test_a_new_card_and_the_scheduler_at_once_charge_once(world: World) -> None:
    ana = world.subscribe_save(card=VISA)
    ana.script("INSUFFICIENT_BALANCE", *["SUCCEEDED"] * 3)
    world.run()
    world.deliver_webhooks()
    world.advance(days=1)

    deeds: Iterator[Callable[[], object]] = iter([lambda: ana.adds_card(OTHER_VISA), world.run])
    world.in_two_threads(lambda: next(deeds)())  # noqa: PLW0108
    world.settle_down()

    assert world.collected() == [50_000]


# Looking things up


def test_pending_is_followed_by_the_webhook(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("PENDING:SUCCEEDED")
    world.run()
    assert ana.outcomes == ["pending"]
    assert ana.status == "active", "pending is no failure"

    world.live(minutes=2)

    assert ana.outcomes == ["succeeded"]
    assert world.collected() == [50_000]


def test_pending_whose_webhook_is_lost_is_asked_about(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:PENDING:SUCCEEDED")
    world.run()

    world.live(minutes=10)

    assert ana.outcomes == ["succeeded"]
    assert ana.invoice.status == "paid"


def test_a_gateway_that_is_down_is_asked_again(world: World) -> None:
    """W3: nothing is concluded from an error."""
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_AFTER")
    world.run()
    world.deliver_webhooks(lose=["payment.capture"])
    world.break_calls("500_BEFORE", endpoint="GET /transactions", count=3)

    world.live(minutes=30)

    assert ana.outcomes == ["succeeded"]


def test_a_gateway_that_is_down_at_the_end_of_the_window_concludes_nothing(world: World) -> None:
    """The last look-up has to be answered before a request is called lost."""
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()
    world.break_calls("500_BEFORE", endpoint="GET /transactions", count=1_000)

    world.live(hours=30)

    assert ana.outcomes == ["in_doubt"]
    assert world.calls(CHARGE) == 1


def test_asking_never_charges(world: World) -> None:
    """U5: look-ups and replays move nothing by themselves."""
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    before = world.calls(CHARGE)

    for attempt in ana.attempts:
        look_up.check_attempt(world.parts, attempt.id)
    world.deliver_webhooks(double=True)

    assert world.calls(CHARGE) == before
    assert len([status for status in ana.outcomes if status in UNFINISHED]) == 1


# ------------------------------------------------------------------------------------------ pending for weeks


def test_what_is_pending_for_a_week_is_shown_to_a_person_and_looked_up_ever_more_rarely(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:PENDING")
    world.run()
    world.live(days=6)
    assert ana.invoice.hold_reason is None

    world.live(days=9)
    assert ana.outcomes == ["pending"]
    assert "pending for more than 7 days" in (ana.invoice.hold_reason or "")
    asked = world.calls("GET /v3/payment_requests/{id}")
    world.live(days=60)
    assert 5 <= world.calls("GET /v3/payment_requests/{id}") - asked <= 40, "not given up, and less than daily"


@pytest.mark.parametrize(("end", "outcomes"), [("SUCCEEDED", "succeeded"), ("INSUFFICIENT_BALANCE", "failed")])
def test_the_hold_ends_with_the_result(world: World, end: str, outcomes: str) -> None:
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:PENDING")
    world.run()
    world.live(days=9)
    assert ana.invoice.hold_reason is not None

    world.control("POST", f"/payment_requests/{ana.attempt.payment_request_id}/resolve", {"outcome": end})
    world.live(days=3)

    assert ana.outcomes[0] == outcomes
    assert ana.invoice.hold_reason is None
    assert ana.outcomes[1:] == ([] if outcomes == "succeeded" else ["succeeded"]), "dunning goes on"


# Another account's key


def test_a_charge_that_xendit_denies_is_never_presumed_lost(world: World) -> None:
    """Xendit gave it an id, so the request did arrive: the key in use must be another account's."""
    ana = world.subscribe_save()
    ana.script("TIMEOUT_ERROR")
    world.run()
    assert ana.outcomes == ["in_doubt"]

    with world.another_accounts_key():
        world.live(days=5)
        assert ana.outcomes == ["in_doubt"]
        assert "BILLING_XENDIT_SECRET_KEY" in (ana.attempt.error or "")
        assert world.calls(CHARGE) == 1

    world.live(days=3)

    assert ana.outcomes[0] == "failed"
    assert world.collected() == [50_000]
