"""Every status has its moves, and what is final stays final (contract, section 5)."""

from __future__ import annotations

from itertools import product

import pytest

from billing.domain.lifecycle import (
    ATTEMPT_MOVES,
    BILLABLE,
    DEAD_TOKENS,
    INVOICE_MOVES,
    SUBSCRIPTION_MOVES,
    UNFINISHED,
    AttemptStatus,
    InvoiceStatus,
    SubscriptionStatus,
    TokenStatus,
    attempt_may_become,
    check_subscription_move,
)
from billing.errors import IllegalTransition


def test_every_status_has_an_entry() -> None:
    assert set(SUBSCRIPTION_MOVES) == set(SubscriptionStatus)
    assert set(INVOICE_MOVES) == set(InvoiceStatus)
    assert set(ATTEMPT_MOVES) == set(AttemptStatus)


def test_no_status_moves_to_itself() -> None:
    tables: tuple[dict[str, frozenset[str]], ...] = tuple(
        {str(status): frozenset(map(str, moves)) for status, moves in table.items()}
        for table in (SUBSCRIPTION_MOVES, INVOICE_MOVES, ATTEMPT_MOVES)
    )
    assert not [status for table in tables for status, moves in table.items() if status in moves]


def test_paid_succeeded_and_canceled_never_move() -> None:
    # Paid opens again only when Xendit corrects what its answer said (tests/stories/test_less_or_other_money.py).
    assert INVOICE_MOVES[InvoiceStatus.PAID] == {InvoiceStatus.OPEN}
    assert ATTEMPT_MOVES[AttemptStatus.SUCCEEDED] == frozenset()
    assert SUBSCRIPTION_MOVES[SubscriptionStatus.CANCELED] == frozenset()


def test_money_found_late_is_never_refused() -> None:  # W4
    for attempt in set(AttemptStatus) - {AttemptStatus.SUCCEEDED}:
        assert attempt_may_become(attempt, AttemptStatus.SUCCEEDED)
    for invoice in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE):
        assert InvoiceStatus.PAID in INVOICE_MOVES[invoice]
    # For a void one nothing is owed: the capture is recorded as an overpayment and given back.
    assert INVOICE_MOVES[InvoiceStatus.VOID] == frozenset()


def test_nothing_returns_to_scheduled_once_the_outcome_could_be_unknown() -> None:  # D9
    back = {old for old, moves in ATTEMPT_MOVES.items() if AttemptStatus.SCHEDULED in moves}
    assert back == {AttemptStatus.SUBMITTED}


def test_unfinished_attempts_can_end_and_ended_ones_are_not_unfinished() -> None:
    ended = {AttemptStatus.SUCCEEDED, AttemptStatus.FAILED, AttemptStatus.CANCELED}
    assert set(AttemptStatus) - UNFINISHED == ended
    for status in UNFINISHED:
        assert ended <= ATTEMPT_MOVES[status]
    for status in ended:
        assert ATTEMPT_MOVES[status] <= {AttemptStatus.SUCCEEDED}


def test_a_new_or_stopped_subscription_is_not_billed() -> None:
    not_billed = {SubscriptionStatus.INCOMPLETE, SubscriptionStatus.PAUSED, SubscriptionStatus.CANCELED}
    assert set(SubscriptionStatus) - BILLABLE == not_billed


def test_every_subscription_can_be_canceled_once() -> None:
    for status in set(SubscriptionStatus) - {SubscriptionStatus.CANCELED}:
        check_subscription_move(status, SubscriptionStatus.CANCELED, "sub-1")


def test_a_move_the_table_does_not_list_is_refused_in_one_line() -> None:
    unlisted = [
        (old, new) for old, new in product(SubscriptionStatus, SubscriptionStatus) if new not in SUBSCRIPTION_MOVES[old]
    ]
    assert (SubscriptionStatus.CANCELED, SubscriptionStatus.ACTIVE) in unlisted
    for old, new in unlisted:
        with pytest.raises(IllegalTransition, match=f"it is {old}, and {old} cannot become {new}"):
            check_subscription_move(old, new, "resume sub-1")


def test_an_active_token_is_not_dead() -> None:
    assert TokenStatus.ACTIVE not in DEAD_TOKENS
    assert {TokenStatus.FAILED, TokenStatus.EXPIRED, TokenStatus.CANCELED} == DEAD_TOKENS
