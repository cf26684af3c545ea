"""The key of another account, or of the other mode, for a while: Xendit denies what is ours, and nothing follows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from billing.charging import key, look_up, send
from billing.domain.gateway import SessionType, TokenReport
from billing.domain.lifecycle import HoldKind
from billing.parts import Acquaintance, Parts
from billing.reading.views import Json
from billing.runs import run as runs
from billing.store import queries
from billing.store.models import ChargeAttempt, PaymentToken
from billing.work import work_on
from tests.world import CHARGE, OTHER_VISA, Subscriber, World

GET_TOKEN = "GET /v3/payment_tokens/{id}"


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


# Charges


def refuses_as_unknown(world: World, subscribers: int) -> list[Subscriber]:
    """ACTIVE payment methods of the right account, and a month later the key of another one."""
    return [world.subscribe_save(f"customer{number}") for number in range(subscribers)]


def with_key(world: World, name: str) -> Parts:
    """What a process that starts with this key has: it knows nothing of the account yet."""
    parts = replace(world.parts, key_fingerprint=key.fingerprint(name), acquaintance=Acquaintance())
    key.lift_stop_of_another_key(parts, lambda _: None)
    return parts


def run(parts: Parts) -> Json:
    def send(kind: str, ids: Sequence[str]) -> None:
        for identity in ids:
            work_on(parts, kind, identity)

    return runs.run_here(parts, send, None, lambda _totals: None)


def nobody_is_blocked_or_dunned(subscribers: Sequence[Subscriber]) -> None:
    for ana in subscribers:
        assert [(token.status, token.blocked_reason) for token in ana.tokens] == [("ACTIVE", None)]
        assert (ana.status, ana.outcomes) == ("active", ["scheduled"])
        assert ana.invoice.first_failed_at is None
        assert ana.invoice.hold_reason is None


def test_after_a_handful_of_unknown_methods_charging_stops_and_the_right_key_goes_on(world: World) -> None:
    """Contract "Where people run it" 4. Wrong before: every token was blocked for good, every customer asked."""
    subscribers = refuses_as_unknown(world, 12)

    with world.another_accounts_key():
        report = run(with_key(world, "the key of another account"))

    assert report["succeeded"] == 0
    assert "Xendit does not know the first 5 payment methods" in report["stopped"]
    assert "BILLING_XENDIT_SECRET_KEY" in report["stopped"]
    assert world.calls(CHARGE) <= 8, "a handful, and what was on its way"
    nobody_is_blocked_or_dunned(subscribers)

    references = {ana.attempt.reference_id for ana in subscribers}
    report = run(with_key(world, "the right key"))

    assert report["stopped"] is None
    assert world.collected() == [50_000] * 12
    assert {ana.attempt.reference_id for ana in subscribers} == references


def test_a_few_are_held_and_go_on_with_the_right_key_at_once(world: World) -> None:
    subscribers = refuses_as_unknown(world, 3)
    with world.another_accounts_key():
        report = run(with_key(world, "the key of another account"))

    assert (report["stopped"], report["attempted"], report["parked"]) == (None, 0, 3)
    nobody_is_blocked_or_dunned(subscribers)
    assert {ana.subscription.hold_kind for ana in subscribers} == {HoldKind.TOKEN_UNKNOWN}

    run(with_key(world, "the right key"))

    assert world.collected() == [50_000] * 3


def test_the_same_key_lifts_nothing_by_itself_and_a_person_may(world: World) -> None:
    refuses_as_unknown(world, 6)
    with world.another_accounts_key():
        run(with_key(world, "the key of another account"))
    calls = world.calls(CHARGE)

    assert run(with_key(world, "the key of another account"))["stopped"]
    assert world.calls(CHARGE) == calls
    with world.parts.transaction() as session:
        queries.lift_charging_stop(session)
        queries.ask_unknown_tokens_now(session, world.now)
    run(with_key(world, "the key of another account"))

    assert world.collected() == [50_000] * 6, "the account was put right, the key is what it was"


@pytest.mark.parametrize("refusal", ["HTTP:400:INVALID_TOKEN", "HTTP:404:DATA_NOT_FOUND"])
def test_what_contradicts_what_xendit_says_of_the_token_is_asked_once_more(world: World, refusal: str) -> None:
    """It is ACTIVE there, and a charge is refused as if it were not: nothing follows from that alone."""
    subscribers = refuses_as_unknown(world, 7)
    world.break_calls(refusal, count=20)

    report = run(with_key(world, "a key"))

    assert report["stopped"]
    nobody_is_blocked_or_dunned(subscribers)
    world.break_calls(refusal, count=0)
    world.advance(minutes=2)
    run(with_key(world, "another key"))
    assert world.collected() == [50_000] * 7


def test_while_xendit_cannot_be_asked_about_a_refused_method_nothing_is_final(world: World) -> None:
    """However often, and whichever process: it says neither that it knows the payment method nor that it does not."""
    (ana,) = refuses_as_unknown(world, 1)
    world.break_calls("HTTP:400:INVALID_TOKEN", count=100)
    world.break_calls("500_BEFORE", endpoint=GET_TOKEN, count=100)
    the_same_process = with_key(world, "a key")

    for each in (the_same_process, the_same_process, with_key(world, "a key"), with_key(world, "a key")):
        report = run(each)
        assert (report["stopped"], report["failed"], report["unsent"]) == (None, 0, 1)
        nobody_is_blocked_or_dunned([ana])
        world.advance(minutes=2)

    assert world.calls(CHARGE) == world.calls(GET_TOKEN) == 4
    world.break_calls("HTTP:400:INVALID_TOKEN", count=0)
    world.break_calls("500_BEFORE", endpoint=GET_TOKEN, count=0)
    run(with_key(world, "a key"))
    assert world.collected() == [50_000]


def test_a_conflict_in_the_database_repeats_no_question_to_xendit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ana,) = refuses_as_unknown(world, 1)
    world.break_calls("HTTP:400:INVALID_TOKEN")
    set_aside, met = send._set_aside, []

    def in_the_way_of_another(parts: Parts, *rest: Any) -> None:
        if len(met) < 2:
            met.append(1)
            with parts.transaction() as session:
                session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '40001'; END $$"))
        set_aside(parts, *rest)

    monkeypatch.setattr(send, "_set_aside", in_the_way_of_another)
    asked = world.calls(GET_TOKEN)

    run(with_key(world, "a key"))

    assert len(met) == 2
    assert (world.calls(CHARGE), world.calls(GET_TOKEN) - asked) == (1, 1)
    nobody_is_blocked_or_dunned([ana])


def test_questions_that_take_long_put_no_charge_in_doubt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four are charged together, three are refused. Each question takes nearly as long as a call may take, and others
    look for charges whose process is gone. Wrong before: the lease ran out over the questions, and what Xendit had
    refused was in doubt for a day."""
    subscribers = refuses_as_unknown(world, 4)
    for ana in subscribers[:3]:
        world.script(ana.tokens[0].payment_token_id, ["HTTP:400:INVALID_TOKEN"])
    subscribers[3].script("429")
    world.open_due()
    parts = with_key(world, "a key")
    standing: list[list[str]] = []
    ask = world.gateway.get_token

    def slow(payment_token_id: str) -> TokenReport:
        standing.append(sorted(attempt.status for attempt in world.all_attempts()))
        with world.parts.transaction() as session:
            passed = ChargeAttempt.lease_until - timedelta(seconds=100)
            session.execute(update(ChargeAttempt).where(ChargeAttempt.status == "submitted").values(lease_until=passed))
        look_up.doubt_expired_submissions(world.parts, 100)
        return ask(payment_token_id)

    monkeypatch.setattr(world.gateway, "get_token", slow)
    with ThreadPoolExecutor(8) as callers:
        send.charge(replace(parts, callers=callers), [attempt.id for attempt in world.all_attempts()])

    assert standing[0] == ["scheduled", "submitted", "submitted", "submitted"], "the others are settled first"
    assert len(standing) == 3
    nobody_is_blocked_or_dunned(subscribers)


def test_an_unknown_method_that_a_person_names_is_withdrawn_and_holds_nothing(world: World) -> None:
    """The other one may be known, and its retry keeps its time."""
    ana = world.subscribe_save()
    lost = ana.adds_card(OTHER_VISA)
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()
    world.deliver_webhooks()
    assert ana.outcomes == ["failed", "scheduled"]
    planned = ana.attempt.scheduled_at
    del world.simulator.world.tokens[lost.payment_token_id]
    world.parts = with_key(world, "a key")

    ana.pay_invoice(token=lost)
    world.run()

    assert ana.outcomes == ["failed", "canceled", "canceled", "scheduled"]
    assert "Xendit does not know this payment method" in str(ana.attempts[2].error)
    assert ana.subscription.hold_kind is None
    assert ana.attempt.scheduled_at == planned
    world.live(days=2)
    assert world.collected() == [50_000]


@pytest.mark.parametrize(
    ("refusal", "follows"),
    [("HTTP:400:INVALID_TOKEN", "customer.asked"), ("HTTP:404:DATA_NOT_FOUND", "invoice.held")],
)
def test_a_contradiction_is_not_tried_for_ever_though_every_run_is_a_process_of_its_own(
    world: World, refusal: str, follows: str
) -> None:
    """A crontab. Wrong before: each process had to find out for itself, so each charged it once more."""
    (ana,) = refuses_as_unknown(world, 1)
    world.break_calls(refusal, count=100)

    for _ in range(10):
        run(with_key(world, "the only key"))
        world.advance(hours=1)

    assert world.calls(CHARGE) == 2, "once, and once more"
    assert ana.outcomes == ["failed"]
    assert follows in ana.story
    assert (ana.tokens[0].blocked_reason == "INVALID_TOKEN") == (follows == "customer.asked")


def test_a_handful_is_counted_over_all_processes(world: World) -> None:
    """Each run has one that Xendit does not know, and nothing was ever charged with this key."""
    stopped = [one_more_is_due(world, number)["stopped"] for number in range(5)]

    assert stopped[:4] == [None] * 4
    assert "Xendit does not know the first 5 payment methods" in stopped[4]


def test_what_was_denied_before_the_account_knew_us_counts_no_more(world: World) -> None:
    assert [one_more_is_due(world, number)["stopped"] for number in range(4)] == [None] * 4
    world.advance(days=1)
    assert run(with_key(world, "the key of another account"))["succeeded"] == 4, "the account was put right"

    assert one_more_is_due(world, 4)["stopped"] is None


def one_more_is_due(world: World, number: int) -> Json:
    """One more payment method is to be charged, by a process of its own and with the key of another account."""
    world.subscribe_save(f"one{number}")
    with world.another_accounts_key():
        return run(with_key(world, "the key of another account"))


def test_one_dead_token_among_working_ones_is_blocked_as_ever(world: World) -> None:
    """Wherever it stands: Xendit knows it, and says that it is canceled."""
    subscribers = refuses_as_unknown(world, 3)
    world.control("POST", f"/tokens/{subscribers[0].tokens[0].payment_token_id}/cancel")

    report = run(with_key(world, "the right key"))

    dead = subscribers[0]
    assert (report["stopped"], report["succeeded"], report["failed"]) == (None, 2, 1)
    assert dead.tokens[0].blocked_reason == "INVALID_TOKEN"
    assert dead.status == "past_due"
    assert "token.blocked" in dead.story


def test_an_account_that_knows_what_was_charged_before_is_ours(world: World) -> None:
    """Six tokens are gone at Xendit, and the key is right: nothing stops."""
    subscribers = refuses_as_unknown(world, 8)
    world.live(minutes=5)
    for ana in subscribers[:6]:
        del world.simulator.world.tokens[ana.tokens[0].payment_token_id]
    world.advance(days=31)

    report = run(with_key(world, "the right key"))

    assert (report["stopped"], report["succeeded"], report["failed"]) == (None, 2, 6)
    assert [ana.status for ana in subscribers] == ["past_due"] * 6 + ["active"] * 2


def test_imported_tokens_that_nobody_knows_stop_it_too(world: World) -> None:
    """Before their first charge they are asked about: that storm ends after a handful as well."""
    subscribers = refuses_as_unknown(world, 12)
    with world.parts.transaction() as session:
        session.execute(update(PaymentToken).values(status="PENDING"))

    with world.another_accounts_key():
        report = run(with_key(world, "the key of another account"))

    assert report["stopped"]
    assert world.calls(CHARGE) == 0
    assert world.calls("GET /v3/payment_tokens/{id}") <= 8
    run(with_key(world, "the right key"))
    assert world.collected() == [50_000] * 12
    assert {ana.status for ana in subscribers} == {"active"}
