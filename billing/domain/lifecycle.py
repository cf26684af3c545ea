"""Every status there is, its named sets, and every legal move. The words are those of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from billing.errors import IllegalTransition


class SubscriptionStatus(StrEnum):
    INCOMPLETE = "incomplete"  # no usable token yet
    TRIALING = "trialing"  # token there, first period not due yet
    ACTIVE = "active"
    PAST_DUE = "past_due"  # a charge failed and is being retried; access is the merchant's choice
    PAUSED = "paused"
    CANCELED = "canceled"  # the end: never a new attempt


class InvoiceStatus(StrEnum):
    DRAFT = "draft"  # waits for the payment session that collects it
    OPEN = "open"
    PAID = "paid"
    UNCOLLECTIBLE = "uncollectible"
    VOID = "void"


class AttemptStatus(StrEnum):
    SCHEDULED = "scheduled"
    SUBMITTED = "submitted"  # written down; the call may be under way
    PENDING = "pending"  # Xendit has it and has not decided
    REQUIRES_ACTION = "requires_action"  # waits for the customer
    IN_DOUBT = "in_doubt"  # nobody knows whether money moved
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class SessionStatus(StrEnum):
    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"


class TokenStatus(StrEnum):
    REQUIRES_ACTION = "REQUIRES_ACTION"
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"


class RefundState(StrEnum):
    HELD = "held"  # an overpayment waits for a person
    REQUESTED = "requested"  # to be sent
    PENDING = "pending"  # Xendit has it
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class EventState(StrEnum):
    """Where a stored webhook event stands."""

    RECEIVED = "received"
    APPLIED = "applied"
    UNMATCHED = "unmatched"  # its parent is not known yet; tried again
    IGNORED = "ignored"  # nothing of ours
    PARKED = "parked"  # applying it failed (our bug); blocks no other, `billing replay` after the fix


class EndKind(StrEnum):
    """Who ended a subscription. An open invoice becomes void only when a person ended it at once."""

    NOW = "now"  # `cancel --now`
    PERIOD = "period_end"  # a cancellation planned for the end of the period
    CYCLES = "cycles"  # the last period is over and everything owed is settled
    DUNNING = "dunning"  # the final action of the dunning policy


class RunKind(StrEnum):
    """Of a billing run: somebody asked for it, or the scheduler's, one a day."""

    ASKED = "asked"
    DAILY = "daily"


class RunState(StrEnum):
    """Of a billing run. One that is finished is `running` with a time at which it finished."""

    RUNNING = "running"
    PAUSED = "paused"  # by a person
    STOPPED = "stopped"  # by one of its limits
    ABORTED = "aborted"  # for good


class HoldKind(StrEnum):
    """Why billing of a subscription (the first three) or of an invoice waits; the words are stored beside it."""

    CATCH_UP = "catch_up"  # the catch-up policy asks a person: `billing run approve`
    ERROR = "error"  # it could not be opened
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105 - Xendit does not know its payment method; ends when it does

    RUN_ABORTED = "run_aborted"  # left by an aborted run: `billing run approve RUN`
    AMOUNT = "amount"  # less was captured than asked
    CURRENCY = "currency"  # captured in another currency
    REJECTED = "rejected"  # Xendit refused our request
    DECLINE = "decline"  # a decline that is the merchant's fault
    LIMIT = "limit"  # beyond a channel's limits or the merchant's own cap
    DOUBT = "doubt"  # in doubt beyond the settlement window
    PENDING = "pending"  # pending for days


# A subscription in one of these is billed when next_billing_at comes.
BILLABLE = frozenset({SubscriptionStatus.TRIALING, SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE})
LIVE = BILLABLE | {SubscriptionStatus.PAUSED}  # billed now, or after a pause

# At most one of these per invoice (partial UNIQUE index): nobody may try again before it ends.
UNFINISHED = frozenset(
    {
        AttemptStatus.SCHEDULED,
        AttemptStatus.SUBMITTED,
        AttemptStatus.PENDING,
        AttemptStatus.REQUIRES_ACTION,
        AttemptStatus.IN_DOUBT,
    }
)

# The token will never be chargeable again.
DEAD_TOKENS = frozenset({TokenStatus.FAILED, TokenStatus.EXPIRED, TokenStatus.CANCELED})

_S, _I, _A = SubscriptionStatus, InvoiceStatus, AttemptStatus

SUBSCRIPTION_MOVES: Mapping[SubscriptionStatus, frozenset[SubscriptionStatus]] = {
    _S.INCOMPLETE: frozenset({_S.TRIALING, _S.ACTIVE, _S.CANCELED}),
    _S.TRIALING: frozenset({_S.ACTIVE, _S.PAST_DUE, _S.PAUSED, _S.CANCELED}),
    _S.ACTIVE: frozenset({_S.PAST_DUE, _S.PAUSED, _S.CANCELED}),
    _S.PAST_DUE: frozenset({_S.ACTIVE, _S.PAUSED, _S.CANCELED}),
    _S.PAUSED: frozenset({_S.TRIALING, _S.ACTIVE, _S.PAST_DUE, _S.CANCELED}),
    _S.CANCELED: frozenset(),
}

# `uncollectible` becomes `paid` when money turns up after all; money for a `void` one goes back. `paid` opens again in
# one case: Xendit's event says that less was captured than its answer had let us believe.
INVOICE_MOVES: Mapping[InvoiceStatus, frozenset[InvoiceStatus]] = {
    _I.DRAFT: frozenset({_I.OPEN, _I.PAID, _I.VOID}),
    _I.OPEN: frozenset({_I.PAID, _I.UNCOLLECTIBLE, _I.VOID}),
    _I.PAID: frozenset({_I.OPEN}),
    _I.UNCOLLECTIBLE: frozenset({_I.OPEN, _I.PAID}),
    _I.VOID: frozenset(),
}

# `succeeded` never moves. Everything else may become `succeeded`, because the gateway can find money late;
# nothing else comes back from an end, and nothing returns to `scheduled` once the outcome could be unknown.
ATTEMPT_MOVES: Mapping[AttemptStatus, frozenset[AttemptStatus]] = {
    _A.SCHEDULED: frozenset({_A.SUBMITTED, _A.SUCCEEDED, _A.FAILED, _A.CANCELED}),
    _A.SUBMITTED: frozenset(
        {_A.SCHEDULED, _A.PENDING, _A.REQUIRES_ACTION, _A.IN_DOUBT, _A.SUCCEEDED, _A.FAILED, _A.CANCELED}
    ),
    _A.PENDING: frozenset({_A.REQUIRES_ACTION, _A.IN_DOUBT, _A.SUCCEEDED, _A.FAILED, _A.CANCELED}),
    _A.REQUIRES_ACTION: frozenset({_A.PENDING, _A.IN_DOUBT, _A.SUCCEEDED, _A.FAILED, _A.CANCELED}),
    _A.IN_DOUBT: frozenset({_A.PENDING, _A.REQUIRES_ACTION, _A.SUCCEEDED, _A.FAILED, _A.CANCELED}),
    _A.SUCCEEDED: frozenset(),
    _A.FAILED: frozenset({_A.SUCCEEDED}),
    _A.CANCELED: frozenset({_A.SUCCEEDED}),
}


def check_subscription_move(old: SubscriptionStatus, new: SubscriptionStatus, what: str) -> None:
    """Refuse a move the table does not list. `what` names the subscription and the wish, for the message."""
    if new not in SUBSCRIPTION_MOVES[old]:
        raise IllegalTransition(f"{what}: it is {old}, and {old} cannot become {new}")


def check_invoice_move(old: InvoiceStatus, new: InvoiceStatus, what: str) -> None:
    if new not in INVOICE_MOVES[old]:
        raise IllegalTransition(f"{what}: it is {old}, and {old} cannot become {new}")


def check_attempt_move(old: AttemptStatus, new: AttemptStatus, what: str) -> None:
    if not attempt_may_become(old, new):
        raise IllegalTransition(f"{what}: it is {old}, and {old} cannot become {new}")


def attempt_may_become(old: AttemptStatus, new: AttemptStatus) -> bool:
    return new in ATTEMPT_MOVES[old]
