"""Retries climb the ladder rung by rung, stop where they must, and never burst (field notes U1, U2, U5, U7)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.domain.declines import (
    ADVICE_CODES,
    FAILURE_CODES,
    NETWORK_CODES,
    Classified,
    DeclineClass,
    classify,
)
from billing.domain.dunning import (
    MIN_GAP,
    POLICIES,
    AskCustomer,
    DunningPolicy,
    FinalAction,
    GiveUp,
    Hold,
    Next,
    NextToken,
    Progress,
    RetryAt,
    next_step,
    policy,
)
from billing.errors import InvalidInput

FIRST = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
STANDARD = policy("standard")

SOFT = classify(failure_code="INSUFFICIENT_BALANCE")
TECHNICAL = classify(failure_code="ISSUER_UNAVAILABLE")
EXPIRED = classify(failure_code="EXPIRED_CARD")
NEEDS_3DS = classify(failure_code="AUTHENTICATION_FAILED")


def after(
    decline: Classified,
    *,
    day: float = 0,
    step: int = 0,
    technical_step: int = 0,
    tries: int = 1,
    other: bool = False,
    by_hand: bool = False,
    rules: DunningPolicy = STANDARD,
) -> Next:
    progress = Progress(step, technical_step, FIRST if day else None, tries)
    now = FIRST + timedelta(days=day)
    return next_step(rules, decline, progress, now, has_other_token=other, counts=not by_hand)


def live_through(decline: Classified, rules: DunningPolicy = STANDARD) -> tuple[list[datetime], Next]:
    """Fail every attempt the moment it is due; return when they were, and how it ended."""
    progress, now, at = Progress(soft_tries_of_code=1), FIRST, list[datetime]()
    for _ in range(100):
        upcoming = next_step(rules, decline, progress, now, has_other_token=False, counts=True)
        if not isinstance(upcoming, RetryAt):
            return at, upcoming
        progress = Progress(upcoming.step, upcoming.technical_step, FIRST, progress.soft_tries_of_code + 1)
        now = upcoming.at
        at.append(now)
    raise AssertionError("dunning does not end")


# ---------------------------------------------------------------------------------------------- the ladder


def test_a_soft_decline_is_tried_on_days_1_3_5_7_and_14_and_then_the_customer_is_asked() -> None:
    tries, end = live_through(SOFT)
    assert [(at - FIRST) / DAY for at in tries] == [1, 3, 5, 7, 14]
    assert isinstance(end, AskCustomer)
    assert end.until == FIRST + 21 * DAY


def test_the_first_rung_follows_the_first_failure() -> None:  # U5
    first = after(SOFT)
    assert isinstance(first, RetryAt)
    assert (first.at, first.step, first.technical_step) == (FIRST + DAY, 1, 0)
    assert "step 1 of 5" in first.reason


def test_the_last_rung_is_climbed_and_nothing_after_it() -> None:  # U1, U5
    last = after(SOFT, day=7, step=4)
    assert isinstance(last, RetryAt)
    assert (last.at, last.step) == (FIRST + 14 * DAY, 5)
    assert isinstance(after(SOFT, day=14, step=5), AskCustomer)
    assert isinstance(after(SOFT, day=14, step=5, other=True), NextToken)


def test_overdue_rungs_do_not_become_a_burst() -> None:  # U1
    late = after(SOFT, day=10, step=1)
    assert isinstance(late, RetryAt)
    assert late.at == FIRST + 10 * DAY + MIN_GAP


def test_advice_moves_a_rung_later_but_never_sooner() -> None:
    in_an_hour = after(classify(failure_code="INSUFFICIENT_BALANCE", advice_code="24"))
    in_ten_days = after(classify(failure_code="INSUFFICIENT_BALANCE", advice_code="30"))
    assert isinstance(in_an_hour, RetryAt)
    assert isinstance(in_ten_days, RetryAt)
    assert in_an_hour.at == FIRST + DAY
    assert in_ten_days.at == FIRST + 10 * DAY


def test_a_retry_that_grace_does_not_reach_is_not_planned() -> None:
    advised = classify(failure_code="INSUFFICIENT_BALANCE", advice_code="30")
    assert isinstance(after(advised, day=11, step=2), RetryAt)
    assert isinstance(after(advised, day=11.01, step=2), AskCustomer)


def test_a_code_is_not_tried_more_often_than_it_allows() -> None:
    unknown = classify(failure_code="A_CODE_OF_TOMORROW")
    assert isinstance(after(unknown, tries=1), RetryAt)
    assert isinstance(after(unknown, day=1, step=1, tries=2), AskCustomer)
    assert isinstance(after(unknown, day=1, step=1, tries=2, other=True), NextToken)


def test_when_grace_is_over_the_invoice_is_given_up() -> None:
    assert isinstance(after(SOFT, day=20.99, step=5), AskCustomer)
    assert isinstance(after(SOFT, day=21, step=5), GiveUp)
    assert isinstance(after(EXPIRED, day=21), GiveUp)


# ---------------------------------------------------------------------------------------------- other classes


def test_a_technical_failure_is_tried_after_hours_three_times_and_then_like_a_soft_one() -> None:
    tries, end = live_through(TECHNICAL)
    assert [(at - FIRST) / HOUR for at in tries[:3]] == [1, 5, 17]
    assert [(at - FIRST) / DAY for at in tries[3:]] == [1, 3, 5, 7, 14]
    assert isinstance(end, AskCustomer)


def test_a_technical_failure_leaves_the_ladder_where_it_was() -> None:
    again = after(TECHNICAL, day=3, step=2)
    assert isinstance(again, RetryAt)
    assert (again.at, again.step, again.technical_step) == (FIRST + 3 * DAY + HOUR, 2, 1)


def test_a_technical_retry_waits_as_long_as_advised() -> None:
    again = after(classify(failure_code="ISSUER_UNAVAILABLE", advice_code="25"))
    assert isinstance(again, RetryAt)
    assert again.at == FIRST + DAY


@pytest.mark.parametrize("decline", [EXPIRED, NEEDS_3DS])
def test_a_hard_decline_ends_this_token_not_the_search(decline: Classified) -> None:  # U7
    assert isinstance(after(decline, other=True), NextToken)
    asked = after(decline)
    assert isinstance(asked, AskCustomer)
    assert asked.until == FIRST + 21 * DAY


def test_who_told_the_bank_to_stop_is_asked_and_not_charged_on_another_card() -> None:
    stopped = classify(failure_code="INSUFFICIENT_BALANCE", advice_code="21")
    assert isinstance(after(stopped, other=True), AskCustomer)


def test_our_own_fault_bothers_no_customer() -> None:
    fault = classify(failure_code="INVALID_MERCHANT_SETTINGS")
    for rules in POLICIES.values():
        assert isinstance(after(fault, other=True, rules=rules), Hold)


def test_a_doubt_whose_window_is_over_is_a_soft_decline() -> None:
    doubt = classify(failure_code="TIMEOUT_ERROR")
    again = after(doubt, day=1.2)
    assert isinstance(again, RetryAt)
    assert again.at == FIRST + 1.2 * DAY + MIN_GAP


def test_a_doubt_on_a_blocked_card_does_not_charge_it_again() -> None:
    blocked = classify(failure_code="TIMEOUT_ERROR", advice_code="03")
    assert blocked.cls == DeclineClass.UNKNOWN_FIRST
    assert isinstance(after(blocked, day=1.2), AskCustomer)


# ---------------------------------------------------------------------------------------------- by hand


def test_a_try_by_hand_gives_back_the_rung_it_displaced() -> None:  # U1
    planned = after(SOFT, day=1, step=1)
    by_hand = after(SOFT, day=2, step=2, by_hand=True)
    assert isinstance(planned, RetryAt)
    assert isinstance(by_hand, RetryAt)
    assert (by_hand.at, by_hand.step) == (planned.at, planned.step) == (FIRST + 3 * DAY, 2)


def test_a_try_by_hand_after_the_ladder_starts_nothing_new() -> None:
    assert isinstance(after(SOFT, day=15, step=5, by_hand=True), AskCustomer)
    assert isinstance(after(SOFT, day=15, step=5, by_hand=True, other=True), AskCustomer)


def test_a_dead_token_tried_by_hand_sets_off_no_charge_at_once() -> None:
    goes_on = after(EXPIRED, day=2, step=2, by_hand=True, other=True)
    assert isinstance(goes_on, RetryAt)
    assert (goes_on.at, goes_on.step) == (FIRST + 3 * DAY, 2)
    assert isinstance(after(EXPIRED, day=2, step=2, by_hand=True), AskCustomer)


def test_a_technical_failure_by_hand_uses_nothing_up() -> None:
    again = after(TECHNICAL, day=2, step=2, by_hand=True)
    assert isinstance(again, RetryAt)
    assert (again.at, again.step, again.technical_step) == (FIRST + 3 * DAY, 2, 0)


# ---------------------------------------------------------------------------------------------- policies


def test_policies_end_as_they_say() -> None:
    assert {name: rules.final_action for name, rules in POLICIES.items()} == {
        "standard": FinalAction.CANCEL,
        "gentle": FinalAction.PAST_DUE,
        "strict": FinalAction.CANCEL,
        "pause": FinalAction.PAUSE,
        "none": FinalAction.PAST_DUE,
    }
    assert POLICIES["pause"] == replace(STANDARD, name="pause", final_action=FinalAction.PAUSE)


@pytest.mark.parametrize("rules", POLICIES.values(), ids=POLICIES)
def test_a_policy_climbs_and_stays_within_grace(rules: DunningPolicy) -> None:
    assert list(rules.ladder) == sorted(set(rules.ladder))
    assert all(rung >= DAY for rung in rules.ladder)  # one automatic attempt a day and card
    assert all(rung < rules.grace for rung in rules.ladder)
    assert len(rules.ladder) <= 7  # eight attempts in 30 days for one invoice


def test_none_gives_up_at_once() -> None:
    for decline in (SOFT, TECHNICAL, EXPIRED):
        assert isinstance(after(decline, rules=policy("none"), other=True), GiveUp)


def test_an_unknown_policy_is_refused_with_the_names() -> None:
    with pytest.raises(InvalidInput, match="standard gentle strict pause none"):
        policy("harsh")


# ---------------------------------------------------------------------------------------------- always

declines = st.builds(
    lambda code, network, advice: classify(failure_code=code, network_code=network, advice_code=advice),
    st.sampled_from(sorted(FAILURE_CODES)) | st.just("A_CODE_OF_TOMORROW"),
    st.none() | st.sampled_from(sorted(NETWORK_CODES)),
    st.none() | st.sampled_from(sorted(ADVICE_CODES)),
)


@given(declines, st.sampled_from(list(POLICIES.values())))
def test_dunning_always_ends_and_never_in_a_burst(decline: Classified, rules: DunningPolicy) -> None:
    tries, end = live_through(decline, rules)
    assert isinstance(end, AskCustomer | GiveUp | Hold)
    gaps = [following - at for at, following in zip([FIRST, *tries], tries, strict=False)]
    assert all(gap >= MIN_GAP for gap in gaps)
    assert all(gap >= decline.wait for gap in gaps if decline.wait)
    assert len(tries) <= len(rules.ladder) + len(rules.technical_waits)
    if decline.blocks_card or decline.cls in (DeclineClass.DEAD_TOKEN, DeclineClass.NEEDS_CUSTOMER):
        assert tries == []
    if decline.max_tries:
        assert len(tries) < decline.max_tries


@given(declines, st.sampled_from(list(POLICIES.values())), st.booleans(), st.booleans())
def test_every_decision_says_why(decline: Classified, rules: DunningPolicy, other: bool, by_hand: bool) -> None:
    upcoming = after(decline, day=2, step=1, rules=rules, other=other, by_hand=by_hand)
    assert decline.code in upcoming.reason
    assert "\n" not in upcoming.reason
    if by_hand:
        assert not isinstance(upcoming, NextToken)
