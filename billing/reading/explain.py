"""One subscriber's story, and why the next charge is when it is. Called by `billing explain`. Read only.

The past is told by reading/timeline.py. This file answers for the future: what happens next, when, and for what reason,
with the command that changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from billing.charging.after_failure import ACTION_WINDOW
from billing.charging.begin import preference
from billing.charging.look_up import PRESUME_LOST
from billing.charging.tokens import not_charged_because
from billing.domain import dunning
from billing.domain.lifecycle import (
    BILLABLE,
    AttemptStatus,
    HoldKind,
    InvoiceStatus,
    SessionStatus,
    SubscriptionStatus,
    TokenStatus,
)
from billing.domain.schedule import Every, Unit, describe, schedule_from_text
from billing.parts import Rules
from billing.reading.timeline import Json, Story, read, tell_events
from billing.reading.views import instant, subscription_view
from billing.store.models import ChargeAttempt, Fact, Invoice, Subscription
from billing.subscriptions.moves import cycles_left

SHORTEST_MONTH = 28
ASKED_DAILY = "Xendit is asked again every day, and billing goes on by itself when it knows it"


@dataclass(frozen=True, slots=True)
class Next:
    """`what`: charge, look-up, customer (has to act), person (of the merchant), end, or nothing."""

    what: str
    at: datetime | None
    why: str


def explain(session: Session, subscription: Subscription, now: datetime, *, rules: Rules | None = None) -> Json:
    """{"subscription", "events": [{"at", "kind", "what", "detail"}], "next": {"what", "at", "why"}, "then"}.

    `then` is the charge that is planned after that, else null.
    """
    return tell(read(session, subscription, now, rules or Rules()))


def tell(story: Story) -> Json:
    """As `explain`, of what has been read: the story of ten years takes its time, and no transaction waits for it."""
    upcoming = next_of(story)
    charges = [charge for charge in (_planned_attempt(story), _next_period(story)) if charge is not None]
    ends = _given_up_at(story) if upcoming.what == "customer" else None
    later = (charge for charge in charges if charge != upcoming and (ends is None or _at(charge) < ends))
    then = min(later, key=_at, default=None)
    return {
        "subscription": subscription_view(
            story.subscription, story.customer.reference, story.plan.code, _first_token(story)
        ),
        "events": tell_events(story),
        "next": _view(story, upcoming),
        "then": _view(story, then) if then is not None else None,
    }


def next_of(story: Story) -> Next:
    """The first of these that applies. Money under way comes first: until it is known nothing else happens."""
    rules: Sequence[Callable[[Story], Next | None]] = (
        _under_way,
        _over,
        _incomplete,
        _paused,
        _parked_charge,
        _soonest_charge,
        _held_subscription,
        _held_invoice,
        _waiting_for_customer,
        _next_period,
    )
    for rule in rules:
        found = rule(story)
        if found is not None:
            return found
    return Next("nothing", None, "no date is planned, which must not be: see `billing doctor`")


def _view(story: Story, upcoming: Next) -> Json:
    why = upcoming.why
    if upcoming.what == "charge" and story.stop is not None:
        why += (
            f". But all charging is stopped since {story.when(story.stop.at)}: {story.stop.reason};"
            " put it right, then `billing charging resume`"
        )
    return {"what": upcoming.what, "at": instant(upcoming.at), "why": story.localised(why)}


# ------------------------------------------------------------------------------------- money under way


def _under_way(story: Story) -> Next | None:
    for attempt in story.attempts.values():
        found = _of_attempt(story, attempt)
        if found is not None:
            return found
    return None


def _of_attempt(story: Story, attempt: ChargeAttempt) -> Next | None:
    name = story.attempt_name(attempt)
    match AttemptStatus(attempt.status):
        case AttemptStatus.SUBMITTED:
            why = f"{name} is being sent since {story.when(attempt.submitted_at)}; without an answer it goes into doubt"
            return Next("look-up", attempt.lease_until, why)
        case AttemptStatus.IN_DOUBT:
            return Next("look-up", attempt.next_check_at, _doubt(story, attempt, name))
        case AttemptStatus.PENDING if attempt.origin != "session":
            since = story.when(attempt.submitted_at)
            why = f"{name} is pending at Xendit since {since}; it is looked up then, or by `billing reconcile` now"
            return Next("look-up", attempt.next_check_at, why)
        case AttemptStatus.REQUIRES_ACTION:
            until = (attempt.submitted_at or story.now) + ACTION_WINDOW
            where = f" at {attempt.action_url}" if attempt.action_url else ""
            why = f"{name} waits for the customer to confirm it{where}; it is canceled after {story.when(until)}"
            return Next("customer", attempt.next_check_at, why)
        case _:
            return None


def _doubt(story: Story, attempt: ChargeAttempt, name: str) -> str:
    since = attempt.doubt_since or story.now
    lost = f"a person decides: {PRESUME_LOST}" if story.rules.hold_in_doubt else "a new attempt follows"
    return (
        f"{name} is in doubt since {story.when(since)} ({attempt.error or 'no answer'}): money may have moved, so"
        f" nothing else is charged. Looked up {attempt.checks} times, again {story.when(attempt.next_check_at)};"
        f" no trace by {story.when(since + story.rules.settlement_window)} means it never arrived, and {lost}"
    )


# --------------------------------------------------------------------------------- what stops everything


def _over(story: Story) -> Next | None:
    if story.subscription.status != SubscriptionStatus.CANCELED:
        return None
    return Next(
        "nothing", None, f"canceled {story.when(story.subscription.canceled_at)}, for good{_told_reason(story)}"
    )


def _told_reason(story: Story) -> str:
    told = _last(story, lambda fact: fact.kind == "subscription.canceled")
    return f": {told.detail.get('reason')}" if told else ""


def _incomplete(story: Story) -> Next | None:
    if story.subscription.status != SubscriptionStatus.INCOMPLETE:
        return None
    waiting = [row for row in story.sessions if row.status == SessionStatus.ACTIVE]
    if not waiting:
        again = f"`billing session create {story.customer.reference}` starts again"
        return Next("customer", None, f"incomplete: it has no payment method and no open payment session; {again}")
    row = waiting[-1]
    link = f"its link is {row.payment_link_url}" if row.payment_link_url else "it is embedded in the merchant's page"
    until = story.when(row.expires_at)
    why = f"incomplete: waits for the customer in payment session {row.id}; {link}; it expires {until}"
    return Next("customer", row.expires_at, why)


def _paused(story: Story) -> Next | None:
    if story.subscription.status != SubscriptionStatus.PAUSED:
        return None
    told = _last(story, lambda fact: fact.kind == "subscription.paused")
    reason = f" ({told.detail.get('reason')})" if told else ""
    since = story.when(story.subscription.paused_at)
    return Next("person", None, f"paused since {since}{reason}; `billing subscription resume {_name(story)}` goes on")


def _held_subscription(story: Story) -> Next | None:
    reason = story.subscription.hold_reason
    if reason is None:
        return None
    if story.subscription.hold_kind == HoldKind.TOKEN_UNKNOWN:
        return Next("person", None, f"billing is on hold: {reason}; {ASKED_DAILY}")
    command = "run approve" if story.subscription.hold_kind == HoldKind.CATCH_UP else "subscription resume"
    release = f"`billing {command} {_name(story)}` bills what was missed and goes on"
    return Next("person", None, f"billing is on hold: {reason}; {release}")


def _held_invoice(story: Story) -> Next | None:
    for invoice in _open(story):
        if invoice.hold_reason is not None:
            release = f"`billing invoice pay {invoice.number}` tries again"
            return Next("person", None, f"invoice {invoice.number} is on hold: {invoice.hold_reason}; {release}")
    return None


# ---------------------------------------------------------------------------------------- planned attempts


def _soonest_charge(story: Story) -> Next | None:
    """A short period may begin before the retry of the one before."""
    attempt, period = _planned_attempt(story), _next_period(story)
    return attempt if attempt is None or period is None else min(attempt, period, key=_at)


def _at(upcoming: Next) -> datetime:
    return upcoming.at or datetime.max.replace(tzinfo=UTC)


def _planned_attempt(story: Story) -> Next | None:
    planned = [row for row in _scheduled(story) if row.parked_by is None]
    if not planned:
        return None
    attempt = min(planned, key=lambda row: row.scheduled_at)
    reasons = [f"{story.attempt_name(attempt)}: {_reason(story, attempt)}"]
    postponed = _last(story, lambda fact: fact.kind == "attempt.postponed" and fact.detail.get("attempt") == attempt.id)
    if postponed is not None:
        reasons.append(f"put off {story.when(postponed.at)}: {postponed.detail.get('reason')}")
    if attempt.error is not None:
        reasons.append(f"last time nothing was sent: {attempt.error}")
    if attempt.scheduled_at <= story.now:
        reasons.append("it is due: the scheduler's next tick or `billing run` sends it")
    reasons.append(_charged_with(story, attempt.payment_token_id))
    return Next("charge", attempt.scheduled_at, "; ".join(reasons))


def _scheduled(story: Story) -> list[ChargeAttempt]:
    return [row for row in story.attempts.values() if row.status == AttemptStatus.SCHEDULED]


def _parked_charge(story: Story) -> Next | None:
    """It has a time, and that is not all it waits for: no date can be given."""
    attempt = next((row for row in _scheduled(story) if row.parked_by is not None), None)
    if attempt is None:
        return None
    name, (kind, _, what) = story.attempt_name(attempt), (attempt.parked_by or "").partition(":")
    if kind == "run":
        why = attempt.error or f"billing run {what} does not go on; `billing runs resume {what}` goes on"
        return Next("person", None, f"{name} waits: {why} (`billing runs show {what}` says how it stands)")
    if kind == "token":  # `what` is the customer: the payment method is named by why it waits
        return _held_subscription(story) or Next("person", None, f"{name} waits: {attempt.error}; {ASKED_DAILY}")
    down = attempt.error or f"channel {what} is down"
    return Next("charge", None, f"{name} {down}; it is sent by itself when {what} is back, nothing needs to be done")


def _reason(story: Story, attempt: ChargeAttempt) -> str:
    invoice = story.invoices[attempt.invoice_id]
    match attempt.origin:
        case "schedule" if attempt.number == 1:
            return f"the period began {story.when(invoice.period_start)} and is charged when it begins"
        case "schedule":
            return "the attempt before never reached Xendit, so the same step is made again"
        case "dunning":
            return _retry_reason(story, attempt)
        case "operator":
            return "an operator asked for it"
        case "new_token":
            return "the customer has a new payment method"
        case "resume":
            return "the subscription was resumed with this invoice unpaid"
        case origin:
            return f"planned by {origin}"


def _retry_reason(story: Story, attempt: ChargeAttempt) -> str:
    policy = story.plan.dunning
    failed = _last(story, lambda fact: fact.kind == "attempt.failed" and _same_invoice(story, fact, attempt))
    if failed is None or not failed.detail.get("next"):
        return f"a retry by the dunning policy {policy}"
    return f"by the dunning policy {policy}, {failed.detail['next']}"


def _same_invoice(story: Story, fact: Fact, attempt: ChargeAttempt) -> bool:
    other = story.attempts.get(fact.detail.get("attempt", ""))
    return other is not None and other.invoice_id == attempt.invoice_id


def _charged_with(story: Story, named: str | None) -> str:
    first = story.tokens.get(_first_token(story, named) or "")
    if first is None:
        ask = f"`billing session create {story.customer.reference}`"
        none = f"no payment method may be charged, so the customer will be asked for one ({ask} makes a link)"
        return "; ".join([none, *_set_aside(story)])
    unverified = " once Xendit confirms it" if first.status == TokenStatus.PENDING else ""
    return f"charged with {story.token_name(first.id)}{unverified}"


def _first_token(story: Story, named: str | None = None) -> str | None:
    """The same order as charging/begin.py, without the network caps, which are looked at when it begins."""
    own = story.subscription.payment_token_id
    usable = [
        token
        for token in story.tokens.values()
        if token.blocked_reason is None
        and token.unknown_since is None
        and token.replaced_at is None
        and token.status in (TokenStatus.ACTIVE, TokenStatus.PENDING)
    ]
    order = sorted(usable, key=lambda token: (token.status != TokenStatus.ACTIVE, *preference(token, named, own)))
    return order[0].id if order else None


def _set_aside(story: Story) -> list[str]:
    """Payment methods that would work, perhaps, and that we do not charge: with the command that changes it."""
    return [
        f"{story.token_name(token.id)} is not charged by itself ({why}); `billing token unblock {token.id}` undoes that"
        for token in story.tokens.values()
        if token.status == TokenStatus.ACTIVE and (why := not_charged_because(token)) is not None
    ]


def _waiting_for_customer(story: Story) -> Next | None:
    """Nothing more is tried unasked: a new payment method, or the end of the grace period."""
    waiting = [row for row in _open(story) if row.grace_ends_at is not None]
    if not waiting:
        return None
    invoice = min(waiting, key=lambda row: row.grace_ends_at or story.now)
    final = dunning.policy(story.plan.dunning).final_action
    becomes = {
        dunning.FinalAction.CANCEL: "and the subscription is canceled",
        dunning.FinalAction.PAUSE: "and the subscription is paused",
        dunning.FinalAction.PAST_DUE: "and the subscription stays past due",
    }[final]
    asked = _last(story, lambda fact: fact.kind == "customer.asked" and fact.detail.get("invoice") == invoice.number)
    reason = f" ({asked.detail.get('reason')})" if asked else ""
    why = (
        f"invoice {invoice.number} waits for the customer{reason}: a new payment method"
        f" (`billing session create {story.customer.reference}`) is charged at once; otherwise, at"
        f" {story.when(invoice.grace_ends_at)}, it becomes uncollectible {becomes}"
    )
    return Next("customer", invoice.grace_ends_at, "; ".join([why, *_set_aside(story)]))


def _given_up_at(story: Story) -> datetime | None:
    """When nothing is charged any more unless the customer acts; None when the policy goes on with the next period."""
    if dunning.policy(story.plan.dunning).final_action == dunning.FinalAction.PAST_DUE:
        return None
    return min((row.grace_ends_at for row in _open(story) if row.grace_ends_at is not None), default=None)


# -------------------------------------------------------------------------------------------- the calendar


def _next_period(story: Story) -> Next | None:
    subscription, plan = story.subscription, story.plan
    at = subscription.next_billing_at
    if subscription.status not in BILLABLE or subscription.hold_reason is not None:
        return None
    ends_at = subscription.ends_at or at
    if subscription.cancel_at_period_end and (at is None or ends_at is None or at >= ends_at):
        return Next("end", ends_at, "canceled for the end of the period that is running")
    if at is None or cycles_left(subscription, plan) == 0:
        return _last_period(story)
    of = f" of {plan.cycles}" if plan.cycles is not None else ""
    # Of a plan with an end the billed ones count: what was skipped is none of them.
    number = subscription.next_index + 1 if plan.cycles is None else subscription.billed_cycles + 1
    reasons = [f"period {number}{of} begins then: {_calendar(story)}"]
    if subscription.status == SubscriptionStatus.TRIALING:
        reasons.append(f"the {plan.trial_days} free days are over then")
    if at <= story.now:
        waits = "" if story.now - at < timedelta(minutes=1) else f" since {story.when(at)}, treated as {plan.catch_up}"
        reasons.append(f"it is due{waits}: the scheduler's next tick or `billing run` opens it")
    reasons.append(_charged_with(story, None))
    return Next("charge", at, "; ".join(reasons))


def _last_period(story: Story) -> Next | None:
    cycles, ends_at = story.plan.cycles, story.subscription.ends_at or story.subscription.next_billing_at
    if ends_at is None:
        return None
    if ends_at > story.now:
        return Next("end", ends_at, f"all {cycles} periods of the plan are billed: it ends with the last one")
    return Next("end", None, f"all {cycles} periods of the plan are over: it ends when nothing is open any more")


def _calendar(story: Story) -> str:
    subscription = story.subscription
    schedule = schedule_from_text(story.plan.schedule)
    where = f"{describe(schedule)}, wall clock of {subscription.timezone}"
    if not isinstance(schedule, Every) or subscription.anchor_local is None:
        return where
    anchored = f"{where}, counted from {subscription.anchor_local.isoformat(' ', 'minutes')}"
    day = subscription.anchor_day or 0
    if schedule.unit in (Unit.MONTH, Unit.YEAR) and day > SHORTEST_MONTH:
        return f"{anchored} on day {day}, or the last of a shorter month"
    return anchored


# ------------------------------------------------------------------------------------------------- pieces


def _open(story: Story) -> list[Invoice]:
    return [row for row in story.invoices.values() if row.status == InvoiceStatus.OPEN]


def _last(story: Story, wanted: Callable[[Fact], bool]) -> Fact | None:
    return next((fact for fact in reversed(story.facts) if wanted(fact)), None)


def _name(story: Story) -> str:
    return story.subscription.reference
