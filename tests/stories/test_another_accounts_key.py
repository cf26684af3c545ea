"""The key of another account, or of the other mode, for a while: Xendit denies what is ours, and nothing follows."""

from __future__ import annotations

import pytest

from billing.domain.gateway import SessionType
from tests.world import CHARGE, World


def lose_webhooks(world: World) -> None:
    while world.simulator.due_deliveries(world.now):
        pass


@pytest.mark.parametrize("via", [SessionType.SAVE, SessionType.PAY])
def test_a_session_that_was_denied_is_asked_about_again(world: World, via: SessionType) -> None:
    """Its end is our guess: the customer may have completed it."""
    ana = world.subscribe(via=via)
    ana.completes_session()
    lose_webhooks(world)
    with world.another_accounts_key():
        world.advance(hours=25)
        world.tick()
        assert ana.session.status == "EXPIRED"

    for _ in range(2):  # the session; then the payment it names
        world.advance(days=1)
        world.settle_down()

    assert ana.session.status == "COMPLETED"
    assert ana.status == "active"
    assert world.collected() == [50_000]


def test_a_session_that_nobody_knows_for_a_week_is_over(world: World) -> None:
    ana = world.subscribe()
    with world.another_accounts_key():
        for _ in range(10):
            world.advance(days=1, minutes=1)
            world.tick()

    assert world.calls("GET /sessions/{id}") <= 8
    assert (ana.session.status, ana.session.next_check_at) == ("EXPIRED", None)


def test_a_cancellation_that_is_denied_ends_nothing(world: World) -> None:
    """3DS was wanted; the customer has saved another card, so that is to be canceled at Xendit: which denies it now."""
    ana = world.subscribe_save()
    ana.script("REQUIRES_ACTION")
    world.run()
    ana.adds_card()
    with world.another_accounts_key():
        for _ in range(15):
            world.advance(minutes=2)
            world.tick()
    assert ana.outcomes == ["requires_action"]
    assert ana.attempt.cancel_wanted
    assert world.calls("POST /v3/payment_requests/{id}/cancel") <= 3, "not every minute"

    world.advance(hours=1)
    world.settle_down()

    assert ana.outcomes == ["canceled", "succeeded"]


@pytest.mark.parametrize("fault", ["TIMEOUT_AFTER", "TIMEOUT_BEFORE"])
def test_silence_of_another_account_does_not_end_a_doubt(world: World, fault: str) -> None:
    """Its list has no trace of ours, whether it was done or not: presumed lost, it would be charged twice."""
    ana = world.subscribe_save()
    ana.script(f"NO_WEBHOOK:{fault}" if fault == "TIMEOUT_AFTER" else fault)
    world.run()
    with world.another_accounts_key():
        for _ in range(6):
            world.advance(hours=12)
            world.tick()
        assert ana.outcomes == ["in_doubt"]
        assert "BILLING_XENDIT_SECRET_KEY" in (ana.attempt.error or "")

    world.live(days=3)

    assert world.collected() == [50_000]
    assert ana.outcomes == (["succeeded"] if fault == "TIMEOUT_AFTER" else ["failed", "succeeded"])


def test_a_retry_waits_while_the_try_before_it_is_denied(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()
    world.deliver_webhooks()
    requests = world.simulator.world.requests
    known = dict(requests)
    requests.clear()

    world.advance(hours=24, minutes=5)
    world.tick()
    assert ana.outcomes == ["failed", "scheduled"]
    assert "BILLING_XENDIT_SECRET_KEY" in (ana.attempt.error or "")
    requests.update(known)
    world.advance(hours=1)
    world.tick()

    assert ana.outcomes == ["failed", "succeeded"]
    assert world.calls(CHARGE) == 2
