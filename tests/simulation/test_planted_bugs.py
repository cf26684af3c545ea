"""A simulation that finds nothing is worth nothing: each bug here is one that somebody's billing system has had, and
the seed beside it is a year that does not survive it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from billing.charging import after_failure, begin, look_up, pay_by_hand, refunds, send, settle
from billing.domain import schedule
from billing.domain.gateway import ChargeReport, Lane
from billing.domain.lifecycle import AttemptStatus, InvoiceStatus, SubscriptionStatus, TokenStatus
from billing.domain.money import Money
from billing.parts import Parts
from billing.runs import tick as dispatch
from billing.sandbox.simulation import fate, people, population
from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulation.periods import Rhythm
from billing.sandbox.simulation.runner import play_seed
from billing.store import queries
from billing.store.models import Capture, ChargeAttempt
from billing.subscriptions import moves, open_periods
from billing.xendit import error_mapping

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Planted:
    """`often`: faults under which the bug shows, more frequent here than a seed would have them, so that a few years
    are enough; `acts`: what people then do; `drawn`: choices of the population (or what the bank says) that are made
    more often than by their shares; `first`: the seed to begin with, which saves years that find nothing; `says`: words
    of the finding, where another finding would prove nothing."""

    put: Plant
    first: int
    often: dict[str, float]
    acts: dict[str, int]
    drawn: dict[str, Any]
    says: str


# The late money comes when a retry has been paid: the invoice is paid twice.
AFTER_THE_RETRY = {"LATE": ("LATE_CAPTURE:INSUFFICIENT_BALANCE:200000",)}
PLANTS: dict[str, Planted] = {}
YEARS = 60  # to try before a bug counts as not found


def plant(
    name: str,
    acts: dict[str, int] | None = None,
    *,
    first: int = 0,
    drawn: dict[str, Any] | None = None,
    says: str = "",
    **often: float,
) -> Callable[[Plant], Plant]:
    def remember(put: Plant) -> Plant:
        PLANTS[name] = Planted(put, first, often, acts or {}, drawn or {}, says)
        return put

    return remember


def _begin_does_not_look(patch: pytest.MonkeyPatch) -> None:
    """At the subscription, the invoice and what is due of it."""
    to_begin = begin.to_begin

    def as_it_was_planned(*given: Any) -> list[begin.ToBegin]:
        fine = {"subscription_status": SubscriptionStatus.ACTIVE, "invoice_status": InvoiceStatus.OPEN}
        return [replace(found, due_minor=found.amount_minor, **fine) for found in to_begin(*given)]

    patch.setattr(begin, "to_begin", as_it_was_planned)


@plant("a charge is sent again after a time-out (D7)", first=15, says="is sent again", lost_after=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    def set_back(session: Any, attempt_id: str, now: Any, *_: Any, **__: Any) -> None:
        again = update(ChargeAttempt).where(ChargeAttempt.id == attempt_id, ChargeAttempt.status == "submitted")
        session.execute(again.values(status="scheduled", scheduled_at=now, lease_until=None, submitted_at=None))

    patch.setattr(send, "doubt_attempt", set_back)


@plant("a charge is begun before it is known that it can be sent", says="though it cannot be sent", no_client=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    begin_attempts = send.begin_attempts

    def unprepared(*given: Any, prepare: Any, **more: Any) -> Any:  # noqa: ARG001 - that is the bug
        return begin_attempts(*given, **more)

    patch.setattr(send, "begin_attempts", unprepared)


@plant("a capture is settled twice (D4)", says="UniqueViolation", webhook_doubled=0.3)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settle, "_known_capture", lambda _found, _report: None)


@plant("days are compared in UTC (D10)", says="was forgotten")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "stored_zone", lambda _name: schedule.parse_zone("UTC"))


@plant(
    "an unknown outcome is taken for lost at once (D9)",
    first=74,
    says="has been paid",
    lost_after=0.3,
    webhook_lost=0.5,
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(after_failure, "window_is_over", lambda *_: True)


@plant("nobody follows what a dead process had sent (D13)", first=2, death=0.06, webhook_lost=1.0, decline=0.5)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(look_up, "doubt_expired_submissions", lambda _parts, _limit: 0)


@plant("a lock without an end (D15)", message_lost=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queries, "CLAIM_LEASE", timedelta(days=1000))


@plant("due means: today is the day (M1)", first=48, says="was forgotten")
def _(patch: pytest.MonkeyPatch) -> None:
    claim = queries.claim_due_subscriptions

    def only_today(session: Any, now: Any, limit: int, **how: Any) -> Any:
        return [row for row in claim(session, now, limit, **how) if row[0].next_billing_at.date() == now.date()]

    patch.setattr(queries, "claim_due_subscriptions", only_today)
    patch.setattr(open_periods.queries, "claim_due_subscriptions", only_today)


@plant(
    "a paused subscription keeps its planned retries, and begin does not look (U2)",
    {"pauses": 1, "resumes": 1},
    first=44,
    says="for a subscription that is paused",
    decline=0.5,
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "withdraw_all", lambda *_, **__: None)
    _begin_does_not_look(patch)


@plant("any token will do", first=2, says="with a token that is not ACTIVE", decline=0.5)
def _(patch: pytest.MonkeyPatch) -> None:
    def first(found: Any, *, by_hand: bool) -> begin.Choice:  # noqa: ARG001 - the signature
        every = begin._in_order(found)
        return begin.Choice(token=every[0]) if every else begin.Choice()

    patch.setattr(begin, "choose_token", first)


@plant("the gateway is called inside the transaction (D1)", says="a transaction is open")
def _(patch: pytest.MonkeyPatch) -> None:
    def in_one(parts: Parts, attempt_ids: Sequence[str], _lane: Lane) -> None:
        now = parts.clock.now()
        with parts.transaction() as session:
            for begun in begin.begin_attempts(session, attempt_ids, now, parts.rules).begun:
                report = parts.gateway.charge(begun.request)
                settle.settle_attempt(session, begun.attempt_id, report, now, parts.rules, source="answer")

    patch.setattr(send, "charge", in_one)


@plant("what was collected twice is kept", first=2, drawn=AFTER_THE_RETRY, says="collected and kept", late_capture=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(refunds, "give_back", lambda *_: None)


@plant("a webhook that is stored counts as applied", first=11, late_capture=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    from billing.inbox import apply as webhooks

    patch.setattr(webhooks, "_apply", lambda *_: (True, None))
    patch.setattr(dispatch, "days_to_compare", lambda _parts: [])


@plant(
    "an operator pays beside an attempt in doubt (D3)",
    {"pays the newest invoice by hand": 1},
    first=44,
    says="has been paid",
    lost_after=0.8,
    webhook_lost=1.0,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def another(session: Any, invoice: Any) -> bool:
        session.execute(
            update(ChargeAttempt)
            .where(ChargeAttempt.invoice_id == invoice.id, ChargeAttempt.status == AttemptStatus.IN_DOUBT)
            .values(status=AttemptStatus.FAILED, settled_at=ChargeAttempt.submitted_at)
        )
        return False

    patch.setattr(pay_by_hand, "may_still_move_money", another)


@plant("a planned retry survives the payment by another way", first=2, late_capture=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settle, "withdraw_all", lambda *_, **__: None)
    _begin_does_not_look(patch)


# ------------------------------------------------------------------------------- at the edges of a plan's life


_OVER = """
    SELECT s.id FROM subscriptions s JOIN plans p ON p.id = s.plan_id
    WHERE s.billed_cycles >= p.cycles AND s.current_period_end <= :now
        AND s.status IN ('trialing', 'active', 'past_due')
        AND EXISTS (SELECT 1 FROM invoices i WHERE i.subscription_id = s.id AND i.status = 'open')
"""
_FORGIVE = (
    f"UPDATE charge_attempts SET status = 'canceled', settled_at = :now, lease_until = NULL"
    f" WHERE status = 'scheduled' AND subscription_id IN ({_OVER})",
    f"UPDATE invoices SET status = 'void', closed_at = :now, grace_ends_at = NULL"
    f" WHERE status = 'open' AND subscription_id IN ({_OVER})",
)
WITH_AN_END = {"CYCLES": ((1, 1), (2, 1)), "CYCLES_OF_SHORT": ((1, 1), (2, 1))}


@plant(
    "an end by cycles voids what is open", first=7, drawn=WITH_AN_END, says="only `cancel --now` forgives", decline=0.6
)
def _(patch: pytest.MonkeyPatch) -> None:
    tick = dispatch.tick

    def forgiving(parts: Parts, send: Any) -> Any:
        with parts.transaction() as session:
            for statement in _FORGIVE:
                session.execute(text(statement), {"now": parts.clock.now()})
        return tick(parts, send)

    patch.setattr(dispatch, "tick", forgiving)


@plant("the start in the past is billed", drawn={"STARTS": (("has passed", 1),)}, says="its first period begins at")
def _(patch: pytest.MonkeyPatch) -> None:
    def anchored_in_the_past(subscription: Any, plan: Any, begins: Any) -> None:
        zone = schedule.parse_zone(subscription.timezone)
        local = schedule.to_local(subscription.start_at or begins, zone) + timedelta(days=plan.trial_days)
        subscription.anchor_local, subscription.anchor_day = local, local.day

    patch.setattr(moves, "set_anchor", anchored_in_the_past)


@plant(
    "the first page-paid period begins when we hear of it",
    drawn={"VIAS": (("pay", 1),), "STARTS": (("now", 1),)},
    says="its first period begins at",
    webhook_lost=0.5,
)
def _(patch: pytest.MonkeyPatch) -> None:
    begin = settle.prepaid_first_period

    def from_now_on(session: Any, subscription: Any, plan: Any, _captured_at: Any, now: Any) -> Any:
        return begin(session, subscription, plan, now, now)

    patch.setattr(settle, "prepaid_first_period", from_now_on)


@plant("HTML with status 403 counts as refused", first=7, says="nobody knows what became of it", stranger_after=0.3)
def _(patch: pytest.MonkeyPatch) -> None:
    refusal = error_mapping.refusal

    def taken_for_xendits(call: Any, answer: Any, subject: str) -> Any:
        if call.is_charge and answer.error_code is None and 300 <= answer.status < 500:
            return error_mapping._rejected(call, answer)
        return refusal(call, answer, subject)

    def stops_all(call: Any, *_: Any) -> bool:
        return bool(call.is_charge)

    patch.setattr(error_mapping, "refusal", taken_for_xendits)
    patch.setattr(error_mapping, "_stops_account", stops_all)
    patch.setattr("billing.xendit.client.refusal", taken_for_xendits, raising=False)


@plant(
    "a period that is skipped counts as a cycle",
    drawn={
        "CYCLES": ((6, 1),),
        "CATCH_UPS": (("latest", 1), ("skip", 1)),
        "RHYTHMS": ((Rhythm("every 1:month", months=1), 1),),
        "HAPPENINGS": {"nobody_at_work": 2},
    },
    says="was forgotten",
)
def _(patch: pytest.MonkeyPatch) -> None:
    move = open_periods._move

    def counting_all(subscription: Any, plan: Any, last: Any, following: Any, decision: Any) -> Any:
        return move(subscription, plan, last, following, replace(decision, bill=decision.bill + decision.skip))

    patch.setattr(open_periods, "_move", counting_all)


@plant("a partial capture counts as paid in full", first=1, says="collected and kept", partial_capture=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    record = settle._record_capture

    def in_full(session: Any, found: Any, report: ChargeReport, *more: Any, **named: Any) -> Any:
        return record(session, found, replace(report, amount=None), *more, **named)

    patch.setattr(settle, "_record_capture", in_full)
    patch.setattr(settle, "_told_again", lambda *_: None)


@plant("another currency pays", first=1, says="another currency", other_currency=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    succeeded = settle._succeeded

    def whatever_it_is(session: Any, found: Any, report: ChargeReport, *more: Any, **named: Any) -> Any:
        owed = Money(found.attempt.amount_minor, found.attempt.currency)
        return succeeded(session, found, replace(report, amount=report.amount and owed), *more, **named)

    patch.setattr(settle, "_succeeded", whatever_it_is)


@plant(
    "a token that is not verified goes first",
    {"adds a payment method": 1},
    drawn={"VIAS": (("import", 1),), "VERIFIED": ((False, 1),)},
    first=10,
    says="though",
)
def _(patch: pytest.MonkeyPatch) -> None:
    choose_token = begin.choose_token

    def unverified_first(found: Any, *, by_hand: bool) -> begin.Choice:
        pending = [token for token in found.tokens if token.status == TokenStatus.PENDING and not token.unknown]
        return begin.Choice(unverified=pending) if pending else choose_token(found, by_hand=by_hand)

    patch.setattr(begin, "choose_token", unverified_first)


# -------------------------------------------------------------------------------- what people do at Xendit itself

ALWAYS_REFUNDED = {"REFUNDED_ELSEWHERE": 1.0}


@plant("a refund made in the dashboard is nobody's", drawn=ALWAYS_REFUNDED, says="was made in Xendit's dashboard")
def _(patch: pytest.MonkeyPatch) -> None:
    apply = refunds.apply_refund

    def only_ours(session: Any, report: Any, now: Any) -> str | None:
        known = refunds.find_refund(session, report.refund_id, report.reference_id)
        return None if known is None else apply(session, report, now)

    patch.setattr(refunds, "apply_refund", only_ours)


@plant("what was refunded in the dashboard is owed again", first=10, drawn=ALWAYS_REFUNDED, says="has been paid")
def _(patch: pytest.MonkeyPatch) -> None:
    tell = refunds._tell_success

    def owed_again(session: Any, subscription_id: str, refund: Any, invoice: Any, now: Any) -> None:
        tell(session, subscription_id, refund, invoice, now)
        if refund.made_elsewhere:
            invoice.status, invoice.closed_at = "open", None
            session.execute(update(Capture).where(Capture.invoice_id == invoice.id).values(overpayment=True))
            pay_by_hand.schedule_attempt(session, invoice, now, origin="dunning")

    patch.setattr(refunds, "_tell_success", owed_again)


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> Callable[[Planted], None]:
    def make(planted: Planted) -> None:
        draw = Fate._draw_rates
        monkeypatch.setattr(Fate, "_draw_rates", lambda self: draw(self) | planted.often)
        for name, shares in planted.drawn.items():
            monkeypatch.setattr(population if hasattr(population, name) else fate, name, shares)
        if planted.acts:
            monkeypatch.setattr(people, "ACTS", planted.acts)
            monkeypatch.setitem(fate.HAPPENINGS, "person_acts", 60)

    return make


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, unlucky: Callable[..., None], name: str
) -> None:
    planted = PLANTS[name]
    unlucky(planted)
    planted.put(monkeypatch)

    seeds = range(planted.first, planted.first + YEARS)
    lives = (play_seed(engine, seed, subscribers=1) for seed in seeds)
    found = (life.splitlines()[0] for life in lives if isinstance(life, str))
    assert any(planted.says in finding for finding in found), f"none of {seeds} found it"


@pytest.mark.parametrize("name", PLANTS)
def test_without_the_bug_the_same_misfortune_is_survived(
    engine: Engine, unlucky: Callable[..., None], name: str
) -> None:
    """Otherwise it might be the misfortune that was found."""
    planted = PLANTS[name]
    unlucky(planted)

    lived = play_seed(engine, planted.first, subscribers=1)
    assert not isinstance(lived, str), lived
