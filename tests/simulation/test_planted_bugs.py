"""A simulation that finds nothing is worth nothing: each bug here is one that somebody's billing system has had, and
the seed beside it is a year that does not survive it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from billing.domain import schedule
from billing.domain.gateway import Lane
from billing.domain.lifecycle import AttemptStatus
from billing.services import (
    charging,
    dispatch,
    invoicing,
    paying,
    reconciling,
    refunding,
    retrying,
    settling,
    subscriptions,
)
from billing.services.parts import Parts
from billing.simulation import fate, people
from billing.simulation.fate import Fate
from billing.simulation.runner import play_seed
from billing.store import queries
from billing.store.models import ChargeAttempt

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, tuple[Plant, int, dict[str, float], dict[str, int]]] = {}
YEARS = 60  # to try before a bug counts as not found


def plant(name: str, acts: dict[str, int] | None = None, *, first: int = 0, **often: float) -> Callable[[Plant], Plant]:
    """`often`: faults under which the bug shows, more frequent here than a seed would have them, so that a few years
    are enough; `acts`: what people then do; `first`: the seed to begin with, which saves years that find nothing."""

    def remember(put: Plant) -> Plant:
        PLANTS[name] = (put, first, often, acts or {})
        return put

    return remember


@plant("a charge is sent again after a time-out (D7)", lost_after=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    def set_back(session: Any, attempt_id: str, now: Any, *_: Any, **__: Any) -> None:
        again = update(ChargeAttempt).where(ChargeAttempt.id == attempt_id, ChargeAttempt.status == "submitted")
        session.execute(again.values(status="scheduled", scheduled_at=now, lease_until=None, submitted_at=None))

    patch.setattr(charging, "doubt_attempt", set_back)


@plant("a capture is settled twice (D4)", webhook_doubled=0.3)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settling, "_known_capture", lambda _found, _report: None)


@plant("days are compared in UTC (D10)")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subscriptions, "parse_zone", lambda _name: schedule.parse_zone("UTC"))


@plant("an unknown outcome is taken for lost at once (D9)", lost_after=0.3, webhook_lost=0.5)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retrying, "window_is_over", lambda *_: True)


@plant("nobody follows what a dead process had sent (D13)", death=0.05, webhook_lost=0.5)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconciling, "doubt_expired_submissions", lambda _parts, _limit: 0)


@plant("a lock without an end (D15)", message_lost=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queries, "CLAIM_LEASE", timedelta(days=1000))


@plant("due means: today is the day (M1)", first=46)
def _(patch: pytest.MonkeyPatch) -> None:
    claim = queries.claim_due_subscriptions

    def only_today(session: Any, now: Any, limit: int) -> Any:
        return [row for row in claim(session, now, limit) if row[0].next_billing_at.date() == now.date()]

    patch.setattr(queries, "claim_due_subscriptions", only_today)
    patch.setattr(invoicing.queries, "claim_due_subscriptions", only_today)


@plant(
    "a paused subscription keeps its planned retries, and begin does not look (U2)",
    {"pauses": 1, "resumes": 1},
    first=35,
    decline=0.5,
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subscriptions, "_withdraw_planned_attempts", lambda *_: None)
    patch.setattr(charging, "_why_not_chargeable", lambda _found: None)


@plant("any token will do", decline=0.5)
def _(patch: pytest.MonkeyPatch) -> None:
    def first(found: Any, *, by_hand: bool) -> retrying.Choice:  # noqa: ARG001 - the signature
        every = retrying._in_order(found)
        return retrying.Choice(token=every[0].token) if every else retrying.Choice()

    patch.setattr(retrying, "choose_token", first)


@plant("the gateway is called inside the transaction (D1)")
def _(patch: pytest.MonkeyPatch) -> None:
    def in_one(parts: Parts, attempt_ids: Sequence[str], _lane: Lane) -> None:
        now = parts.clock.now()
        with parts.transaction() as session:
            for begun in charging.begin_attempts(session, attempt_ids, now, parts.rules).begun:
                report = parts.gateway.charge(begun.request)
                settling.settle_attempt(session, begun.attempt_id, report, now, parts.rules, source="answer")

    patch.setattr(charging, "charge", in_one)


@plant("what was collected twice is kept", late_capture=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(refunding, "give_back", lambda *_: None)


@plant("a refund whose answer was lost is asked for again", first=47, late_capture=0.4, lost_after=0.3)
def _(patch: pytest.MonkeyPatch) -> None:
    send = refunding._send

    def send_again(parts: Parts, refund_id: str) -> None:
        send(parts, refund_id)
        with parts.transaction() as session:
            refund = session.get_one(refunding.Refund, refund_id, with_for_update=True)
            if refunding._nobody_knows(refund):
                refund.status = "requested"

    patch.setattr(refunding, "_send", send_again)


@plant("a webhook that is stored counts as applied", late_capture=0.2)
def _(patch: pytest.MonkeyPatch) -> None:
    from billing.services import webhooks

    patch.setattr(webhooks, "_apply", lambda *_: (True, None))
    patch.setattr(dispatch, "DAYS_COMPARED_AGAIN", 0)


@plant(
    "an operator pays beside an attempt in doubt (D3)",
    {"pays the newest invoice by hand": 1},
    first=29,
    lost_after=0.4,
    webhook_lost=0.8,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def another(session: Any, invoice: Any) -> bool:
        session.execute(
            update(ChargeAttempt)
            .where(ChargeAttempt.invoice_id == invoice.id, ChargeAttempt.status == AttemptStatus.IN_DOUBT)
            .values(status=AttemptStatus.FAILED, settled_at=ChargeAttempt.submitted_at)
        )
        return False

    patch.setattr(paying, "may_still_move_money", another)


@plant("a planned retry survives the payment by another way", late_capture=0.4)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retrying, "withdraw_other_attempts", lambda *_: None)
    patch.setattr(charging, "_why_not_chargeable", lambda _found: None)


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float], dict[str, int]], None]:
    def make(often: dict[str, float], acts: dict[str, int]) -> None:
        draw = Fate._draw_rates
        monkeypatch.setattr(Fate, "_draw_rates", lambda self: draw(self) | often)
        if acts:
            monkeypatch.setattr(people, "ACTS", acts)
            monkeypatch.setitem(fate.HAPPENINGS, "person_acts", 60)

    return make


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, unlucky: Callable[..., None], name: str
) -> None:
    put, first, often, acts = PLANTS[name]
    unlucky(often, acts)
    put(monkeypatch)

    seeds = range(first, first + YEARS)
    assert any(isinstance(play_seed(engine, seed), str) for seed in seeds), f"none of {seeds} found it"


@pytest.mark.parametrize("name", PLANTS)
def test_without_the_bug_the_same_misfortune_is_survived(
    engine: Engine, unlucky: Callable[..., None], name: str
) -> None:
    """Otherwise it might be the misfortune that was found."""
    _, first, often, acts = PLANTS[name]
    unlucky(often, acts)

    for seed in range(first, first + 3):
        lived = play_seed(engine, seed)
        assert not isinstance(lived, str), lived
