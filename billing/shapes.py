"""What operations answer with: frozen, typed models with exactly the members that `--json` prints, in their order.

Made from the dicts of reading/views.py and its neighbours by billing/api/. A member that a view has and its model has
not is refused: an answer that silently leaves something out would be found by nobody.

Amounts are `Decimal` in major units with the currency's decimals, instants aware `datetime` in UTC. In JSON they are
the strings that commands print: "50000", "99.50", "2026-01-31T02:00:00Z". Sequences are tuples, so that a model is
frozen all the way down but for the dicts, which are typed as Mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from billing.domain.catch_up import CatchUp
from billing.domain.gateway import SessionMode, SessionType
from billing.domain.lifecycle import (
    AttemptStatus,
    EventState,
    InvoiceStatus,
    RefundState,
    SessionStatus,
    SubscriptionStatus,
)


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC)


def _instant_text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _amount_text(amount: Decimal) -> str:
    return format(amount, "f")


def _is_none(value: object) -> bool:
    return value is None


Amount = Annotated[Decimal, PlainSerializer(_amount_text, return_type=str, when_used="json")]
Instant = Annotated[
    AwareDatetime, AfterValidator(_in_utc), PlainSerializer(_instant_text, return_type=str, when_used="json")
]
Sums = Mapping[str, Amount]  # by currency


class Shape(BaseModel):
    """The base of all. `model_dump_json()` gives what `--json` prints."""

    # A model is built when it is first used: all of them take longer than most commands run.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Outcome(Shape):
    """The base of what says how something went, when that may have been badly although it was done."""

    _problem: str | None = PrivateAttr(default=None)

    @property
    def problem(self) -> str | None:
        """The line for which the command would exit with status 1, after printing this; None when all is well. It is
        no member: it is not in the JSON."""
        return self._problem

    def told(self, problem: str | None) -> None:
        """For the operation that made it, before anybody else has it."""
        self._problem = problem


# ------------------------------------------------------------------------------------------ plans, customers


class Plan(Shape):
    id: str
    code: str
    name: str
    amount: Amount
    currency: str
    schedule: str
    timezone: str
    trial_days: int
    cycles: int | None
    catch_up: CatchUp
    dunning: str
    created_at: Instant


class Token(Shape):
    """A saved payment method. `status` is Xendit's word: ACTIVE, PENDING, FAILED, EXPIRED, CANCELED ..."""

    id: str
    payment_token_id: str
    customer: str
    status: str
    channel_code: str
    card_last4: str | None
    card_expiry: str | None
    network: str | None
    card_type: str | None
    issuer: str | None
    rank: int
    failure_code: str | None
    blocked_reason: str | None
    unknown_since: Instant | None
    verified: bool
    replaced_at: Instant | None
    created_at: Instant


class Customer(Shape):
    """`tokens`: the first to be charged on top."""

    id: str
    reference: str
    name: str
    email: str
    country: str
    mobile: str | None
    timezone: str
    xendit_customer_id: str | None
    created_at: Instant
    tokens: tuple[Token, ...]


# ----------------------------------------------------------------------------------- subscriptions, sessions


class Subscription(Shape):
    """`customer` and `plan` are references; `payment_token_id` is the method that would be charged now."""

    id: str
    reference: str
    customer: str
    plan: str
    status: SubscriptionStatus
    amount: Amount
    currency: str
    timezone: str
    current_period_start: Instant | None
    current_period_end: Instant | None
    next_billing_at: Instant | None
    cancel_at_period_end: bool
    ends_at: Instant | None
    canceled_at: Instant | None
    payment_token_id: str | None
    anchor_day: int | None
    billed_cycles: int
    hold_reason: str | None
    hold_kind: str | None
    created_at: Instant


class Session(Shape):
    """A payment session: a page at Xendit (`payment_link_url`) or a form in a page of one's own."""

    id: str
    xendit_session_id: str | None
    reference_id: str
    type: SessionType
    mode: SessionMode
    status: SessionStatus
    amount: Amount
    currency: str
    payment_link_url: str | None
    components_sdk_key: str | None
    expires_at: Instant
    subscription_id: str | None
    customer_id: str
    payment_token_id: str | None
    payment_id: str | None
    created_at: Instant


class Subscribed(Shape):
    """`session` is None for one that began on a saved payment method."""

    subscription: Subscription
    session: Session | None


# -------------------------------------------------------------------------------------------------- invoices


class Attempt(Shape):
    """One try at one invoice with one payment method."""

    id: str
    number: int
    reference_id: str
    status: AttemptStatus
    origin: str
    amount: Amount
    payment_token_id: str | None
    payment_request_id: str | None
    payment_id: str | None
    failure_code: str | None
    network_code: str | None
    advice_code: str | None
    decline_class: str | None
    error: str | None
    run_id: str | None
    parked_by: str | None
    action_url: str | None
    scheduled_at: Instant
    submitted_at: Instant | None
    settled_at: Instant | None
    next_check_at: Instant | None


class Invoice(Shape):
    """What one period owes, with every attempt to collect it: as lists have it."""

    id: str
    number: str
    subscription_id: str
    period_start: Instant
    period_end: Instant
    amount: Amount
    amount_paid: Amount
    refunded: Amount
    currency: str
    status: InvoiceStatus
    hold_reason: str | None
    hold_kind: str | None
    grace_ends_at: Instant | None
    opened_at: Instant | None
    closed_at: Instant | None
    attempts: tuple[Attempt, ...]


class InvoiceLine(Shape):
    description: str
    amount: Amount


class Refund(Shape):
    reference_id: str
    refund_id: str | None
    amount: Amount
    currency: str
    status: RefundState
    made_elsewhere: bool
    reason: str | None
    error: str | None
    created_at: Instant


class Capture(Shape):
    """Money that came in. `refund` is the first of `refunds`."""

    payment_id: str | None
    amount: Amount
    currency: str
    captured_at: Instant
    overpayment: bool
    refund: Refund | None
    refunds: tuple[Refund, ...]


class InvoiceDetails(Invoice, Outcome):
    """One invoice with its lines and the money that came in; of `invoices.pay` with the `problem` of its attempt."""

    lines: tuple[InvoiceLine, ...]
    captures: tuple[Capture, ...]


# ------------------------------------------------------------------------------------------------------ runs


class SubscriptionSkipped(Shape):
    subscription_id: str
    reason: str


class PlannedByChannel(Shape):
    channel_code: str | None
    currency: str
    charges: int
    amount: Amount


class RunPlan(Shape):
    """What a run was to charge, as counted when it began. Runs of earlier releases counted less: what is not there is
    not printed, and what a later release counts is kept as it is."""

    model_config = ConfigDict(extra="allow")

    charges: int = 0
    opened: int = 0
    missed: int = 0
    totals: Sums = Field(default_factory=dict)
    by_channel: tuple[PlannedByChannel, ...] = ()
    skipped: int = 0
    held: int = 0
    expected_seconds: int | None = None
    complete: bool = True
    opening: Sums = Field(default_factory=dict)
    facts: int = 0

    @model_serializer(mode="wrap")
    def _only_what_was_counted(self, print_all: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in print_all(self).items() if name in self.model_fields_set}


class Declines(Shape):
    failure_code: str | None
    decline_class: str | None
    count: int


class ResultsOfChannel(Shape):
    channel_code: str | None
    currency: str
    charges: int
    succeeded: int
    failed: int
    collected: Amount


class _RunBegun(Shape):
    """What every answer about a run begins with. `state`: running, finished, paused, stopped, aborted."""

    run_id: str
    kind: str
    state: str
    at: Instant
    started_at: Instant
    finished_at: Instant | None
    reason: str | None
    guard: str | None
    waived: tuple[str, ...]
    how_to_go_on: str | None
    plan: RunPlan | None
    opened: int


class RunSummary(_RunBegun):
    """A run as lists have it."""

    attempted: int
    succeeded: int
    failed: int
    waiting: int


class Quota(Shape):
    """Requests to Xendit a minute, by all processes together; `use` is the share of the limit, None without one."""

    limit: float | None
    used_in_last_minute: int
    use: float | None


class ChannelDown(Shape):
    channel_code: str
    reason: str | None
    since: Instant | None


class GuardNear(Shape):
    """`used`: of what the guard allows, 1 is all."""

    guard: str
    currency: str
    used: float


class AgainstPlan(Shape):
    """What was charged, less what was planned."""

    charges: int
    totals: Sums


class Run(_RunBegun):
    """Everything there is to know of one run."""

    attempted: int
    succeeded: int
    failed: int
    in_doubt: int
    pending: int
    waiting: int
    parked: int
    collected: Sums
    charging_stopped: str | None
    rate_per_minute: int
    quota: Quota
    eta_seconds: int | None
    eta_at: Instant | None
    declines: tuple[Declines, ...]
    by_channel: tuple[ResultsOfChannel, ...]
    channels_down: tuple[ChannelDown, ...]
    guards_near: tuple[GuardNear, ...]
    against_plan: AgainstPlan | None


class AbortedRun(Run):
    """`withdrawn`: charges that had not begun."""

    withdrawn: int


class RunProgress(Shape):
    """What a run is told of while it goes on."""

    run_id: str
    opened: int
    attempted: int
    succeeded: int
    failed: int
    in_doubt: int
    pending: int
    waiting: int
    parked: int
    collected: Sums


class WholeRun(Shape):
    """What a run came to, whoever did it."""

    opened: int
    attempted: int
    succeeded: int
    failed: int
    in_doubt: int
    pending: int
    waiting: int
    parked: int
    collected: Sums
    declines: tuple[Declines, ...]
    by_channel: tuple[ResultsOfChannel, ...]


class RunReport(Run, Outcome):
    """What `billing.run` did: its counts are of this call, `whole_run` has the run's."""

    whole_run: WholeRun
    skipped: tuple[SubscriptionSkipped, ...]
    stopped: str | None
    unsent: int
    not_sent: str | None
    unsent_until: Instant | None
    put_off: int
    why_put_off: str | None
    put_off_until: Instant | None
    withdrawn: int
    why_withdrawn: str | None
    unknown_tokens: int
    handed_out: int
    not_handed_out: str | None
    taken_up: bool


class PlannedCharge(Shape):
    """`catch_up` is there for a missed period, `attempt` for a charge that is planned already."""

    subscription_id: str
    customer: str
    amount: Amount
    currency: str
    period_start: Instant
    payment_token_id: str | None
    channel_code: str | None
    card_last4: str | None
    note: str | None
    missed: bool
    catch_up: CatchUp | None = Field(default=None, exclude_if=_is_none)
    attempt: int | None = Field(default=None, exclude_if=_is_none)


class Guard(Shape):
    guard: str
    reason: str


class DryRun(Shape):
    """What a run would do. `planned` lists the first charges, `not_listed` counts the rest; the totals cover all."""

    run_id: None
    at: Instant
    opened: int
    attempted: int
    succeeded: int
    failed: int
    in_doubt: int
    pending: int
    skipped: tuple[SubscriptionSkipped, ...]
    planned: tuple[PlannedCharge, ...]
    not_listed: int
    missed: int
    totals: Sums
    by_channel: tuple[PlannedByChannel, ...]
    expected_seconds: int | None
    guards: tuple[Guard, ...]
    dry_run: bool


class ApprovedCharge(Shape):
    subscription_id: str
    periods: int
    amount: Amount
    currency: str


class WaitsForApproval(ApprovedCharge):
    """What a person's yes would bill, and why it waits."""

    reference: str
    reason: str


class Approved(Shape):
    approved: tuple[ApprovedCharge, ...]


# ------------------------------------------------------------------------------------------------- the story


class StoryEvent(Shape):
    at: Instant
    kind: str
    what: str
    detail: Mapping[str, JsonValue]


class Upcoming(Shape):
    """`what`: charge, look-up, customer, person, end or nothing."""

    what: str
    at: Instant | None
    why: str


class Explanation(Shape):
    """`next` is what happens next, `then` the charge that is planned after that."""

    subscription: Subscription
    events: tuple[StoryEvent, ...]
    next: Upcoming
    then: Upcoming | None


# ---------------------------------------------------------------------------------------------------- events


class Event(Outcome):
    """A stored webhook event; of `billing.replay` with the `problem` of applying it."""

    id: str
    event: str
    state: EventState
    deliveries: int
    tries: int
    error: str | None
    subscription_id: str | None
    received_at: Instant
    applied_at: Instant | None


# ---------------------------------------------------------------------------------------------- looking after


class Check(Shape):
    name: str
    ok: bool
    count: int
    detail: str
    repair: str | None
    invariant: int | None


class Diagnosis(Outcome):
    ok: bool
    checks: tuple[Check, ...]


class Difference(Shape):
    kind: str
    payment_id: str | None
    reference_id: str | None
    ours: str | None
    theirs: str | None
    explanation: str


class Reconciliation(Outcome):
    resolved: int
    still_in_doubt: int
    differences: tuple[Difference, ...]


class RefusedRow(Shape):
    line: int
    reason: str


class Imported(Outcome):
    created: int
    unchanged: int
    refused: tuple[RefusedRow, ...]


class Charging(Shape):
    """The stop of all charging."""

    stopped: bool
    reason: str | None
    at: Instant | None


class ClosedEndpoint(Shape):
    endpoint: str
    until: Instant


class LearnedLimit(Shape):
    endpoint: str
    requests_per_minute: int


class ChargingStanding(Charging):
    """The stop of all charging, and where the gateway has told us to wait or to go slower."""

    paused: tuple[ClosedEndpoint, ...]
    learned_limits: tuple[LearnedLimit, ...]
    channels_down: tuple[ChannelDown, ...]


class Migrated(Shape):
    revision: str


class NotedDatabase(Shape):
    system_identifier: str
    database_oid: int
    noted_at: Instant


class Adopted(Shape):
    adopted: bool
    changed: bool
    before: NotedDatabase | None
    now: NotedDatabase | None


class Now(Shape):
    now: Instant
