"""Each model prints what its command prints, member by member, on a database in which much has happened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from sqlalchemy import event

from billing import Billing, shapes
from billing.domain.lifecycle import AttemptStatus
from billing.reading import pages as paging
from billing.reading.views import instant, plan_view
from billing.shapes import RunPlan, Shape
from billing.store.models import Plan, Subscription
from tests.api.shop import Shop, open_shop, printed, same
from tests.cli.terminal import Terminal, Xendit
from tests.factories import (
    make_attempt,
    make_capture,
    make_event,
    make_invoice,
    make_paid_invoice,
    make_plan,
    make_refund,
    make_subscription,
)

AT = datetime(2026, 1, 31, 2, 0, 0, 123_000, tzinfo=UTC)


@pytest.fixture
def lived(shop: Shop) -> Shop:
    """Paid, declined, in doubt, held, missed, refunded, imported; runs that finished, stopped and were aborted."""
    billing = shop.billing
    shop.plan("silver", amount="99.50", currency="PHP", cycles=3, trial_days=1, catch_up="hold")
    shop.subscriber()
    shop.subscriber("budi", outcomes=("INSUFFICIENT_BALANCE", "DECLINED_BY_ISSUER/05/24"))
    shop.subscriber("citra", outcomes=("TIMEOUT_AFTER",))
    shop.subscriber("fe", "silver", country="PH")
    billing.run()
    billing.sessions.create("ana")
    shop.month(100)
    billing.run()
    billing.run(expect="IDR 1")
    billing.subscriptions.cancel("ana-gold")
    billing.charging.stop(reason="bank holiday")
    shop.execute("INSERT INTO channel_breakers VALUES ('CARDS', 3, 'down', now(), now(), now(), 0)")
    with billing._opened.parts.transaction() as session:
        make_event(session, error="odd", tries=3, state="parked")
        subscription = make_subscription(session, plan=make_plan(session, amount_minor=99_50, currency="PHP"))
        subscription.reference = "eka"
        paid = make_paid_invoice(session, subscription)
        paid.number = "eka-1"
        attempt = make_attempt(session, make_invoice(session, subscription), status=AttemptStatus.FAILED)
        capture = make_capture(session, attempt, overpayment=True)
        make_refund(session, capture, status="succeeded", xendit_refund_id="rfd-1")
        make_refund(session, capture, status="failed", error="no", made_elsewhere=True)
        make_subscription(session, status="incomplete")
    return shop


Case = tuple[Callable[[Billing], Shape], tuple[str, ...]]

ONE: dict[str, Case] = {
    "plan": (lambda b: b.plans.show("silver"), ("plan", "show", "silver")),
    "customer": (lambda b: b.customers.show("ana"), ("customer", "show", "ana")),
    "subscription": (lambda b: b.subscriptions.show("budi-gold"), ("subscription", "show", "budi-gold")),
    "explain": (lambda b: b.explain("budi-gold"), ("explain", "budi-gold")),
    "charging": (lambda b: b.charging.show(), ("charging", "show")),
    "invoice": (lambda b: b.invoices.show("ana-gold-1"), ("invoice", "show", "ana-gold-1")),
    "refunds": (lambda b: b.invoices.show("eka-1"), ("invoice", "show", "eka-1")),
    "adopt": (lambda b: b.adopt(), ("adopt",)),
    "migrate": (lambda b: b.migrate(), ("migrate",)),
    "approve": (lambda b: b.runs.approve(), ("run", "approve")),
    "replay": (lambda b: b.replay(next(b.events.list()).id), ("replay", "EVENT")),
}

LISTS: dict[str, tuple[Callable[[Billing], Iterator[Shape]], tuple[str, ...]]] = {
    "plans": (lambda b: b.plans.list(), ("plan", "list")),
    "customers": (lambda b: b.customers.list(), ("customer", "list")),
    "subscriptions": (lambda b: b.subscriptions.list(), ("subscription", "list")),
    "sessions": (lambda b: b.sessions.list(), ("session", "list")),
    "tokens": (lambda b: b.tokens.list("ana"), ("token", "list", "--customer", "ana")),
    "invoices": (lambda b: b.invoices.list(), ("invoice", "list")),
    "runs": (lambda b: b.runs.list(), ("runs", "list")),
    "events": (lambda b: b.events.list(), ("events", "list")),
}


def test_what_is_shown_is_what_the_command_shows(lived: Shop) -> None:
    for name, (call, words) in ONE.items():
        if name == "approve":
            continue  # once approved nothing waits: below
        mine = printed(call(lived.billing))
        typed = ("replay", mine["id"]) if name == "replay" else words
        theirs = lived.terminal(*typed, "--json").document
        if name in ("explain", "replay"):  # told as of now
            theirs, mine = without_now(theirs), without_now(mine)
        same(mine, theirs)
    for invoice in lived.billing.invoices.list():
        same(printed(lived.billing.invoices.show(invoice.id)), lived.terminal.json("invoice", "show", invoice.id))
    for page in lived.billing.sessions.list():
        same(printed(lived.billing.sessions.show(page.id)), lived.terminal.json("session", "show", page.id))


def without_now(document: Any) -> Any:
    return document | {"tries": 0, "applied_at": None} if "tries" in document else document


def test_what_is_listed_is_what_the_command_lists(lived: Shop) -> None:
    for name, (call, words) in LISTS.items():
        mine = [printed(each) for each in call(lived.billing)]
        assert mine, name
        same(mine, lived.terminal.json(*words))


def test_a_run_is_shown_steered_and_ended_as_by_the_command(lived: Shop) -> None:
    billing, terminal = lived.billing, lived.terminal
    for run in billing.runs.list():
        as_of(printed(billing.runs.show(run.run_id)), terminal.json("runs", "show", run.run_id))
    stopped = next(run.run_id for run in billing.runs.list() if run.state == "stopped")
    as_of(printed(billing.runs.resume(stopped)), terminal.json("runs", "resume", stopped))
    as_of(printed(billing.runs.pause(stopped)), terminal.json("runs", "pause", stopped))
    as_of(printed(billing.runs.abort(stopped)), terminal.json("runs", "abort", stopped, "--yes"))


def as_of(mine: Any, theirs: Any) -> None:
    """Seconds may pass between the two."""
    moving = ("eta_at", "eta_seconds", "rate_per_minute", "quota")
    same(mine | dict.fromkeys(moving), theirs | dict.fromkeys(moving))


def test_reports_have_the_members_of_the_command(lived: Shop) -> None:
    """What is done can be done once only: the members are compared, nested ones too, and values that hold still."""
    billing, terminal = lived.billing, lived.terminal
    same(skeleton(printed(billing.run())), skeleton(terminal("run", "--json").document))
    dry = {"at": (later := datetime.now(UTC) + timedelta(days=400))}  # noqa: TID251 - far ahead
    same(printed(billing.run(dry_run=True, **dry)), terminal.json("run", "--dry-run", "--at", instant(later) or ""))
    assert any("catch_up" in each for each in printed(billing.run(dry_run=True, **dry))["planned"])
    same(printed(billing.doctor()), terminal("doctor", "--json").document)
    same(printed(billing.reconcile()), terminal.json("reconcile"))
    row = json.dumps({"customer_reference": "x"})
    same(printed(billing.import_([row])), terminal("import", "-", "--json", stdin=row).document)
    same(skeleton(printed(billing.clock.show())), skeleton(terminal.json("clock", "show")))
    billing.charging.resume()
    same(printed(billing.charging.resume()), terminal.json("charging", "resume"))
    stopped = (printed(billing.charging.stop(reason="x")), terminal.json("charging", "stop", "--reason", "x"))
    same(*({**each, "at": None} for each in stopped))


def test_what_is_moved_prints_as_by_the_command(lived: Shop) -> None:
    billing, terminal = lived.billing, lived.terminal
    same(printed(billing.subscriptions.uncancel("ana-gold")), terminal.json("subscription", "show", "ana-gold"))
    token = next(billing.tokens.list("ana")).id
    same(printed(billing.tokens.prefer(token)), terminal.json("token", "prefer", token))
    same(printed(billing.tokens.refresh(token)), terminal.json("token", "refresh", token))
    update = ("customer", "update", "ana", "--name", "Ana P")
    same(printed(billing.customers.update("ana", name="Ana P")), terminal.json(*update))
    waits = printed(billing.runs.approve())
    assert waits["approved"]
    same(skeleton(terminal.json("run", "approve")), {"approved": []})


def test_who_subscribes_gets_what_the_command_prints(shop: Shop) -> None:
    shop.subscriber()
    begun = shop.billing.subscribe("ana", "gold", via="pay", again=True)
    assert begun.session is not None
    theirs = shop.terminal.json("subscribe", "ana", "gold", "--via", "pay", "--again")
    same(skeleton(printed(begun)), skeleton(theirs))
    same(printed(begun.session), shop.terminal.json("session", "show", begun.session.id))
    same(
        printed(shop.billing.sessions.cancel(begun.session.id)), shop.terminal.json("session", "show", begun.session.id)
    )


def skeleton(document: Any) -> Any:
    """Members and kinds of values, without the values; lists by their first entry."""
    if isinstance(document, dict):
        return {name: skeleton(value) for name, value in document.items()}
    if isinstance(document, list):
        return [skeleton(document[0])] if document else []
    return None if document is None else type(document).__name__


# --------------------------------------------------------------------------------------------- the models


def models() -> list[type[Shape]]:
    found, left = [], [Shape]
    while left:
        kind = left.pop()
        found.append(kind)
        left += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == shapes.__name__]


@pytest.mark.parametrize("kind", models(), ids=lambda kind: kind.__name__)
def test_a_model_is_frozen_and_takes_no_member_it_does_not_know(kind: type[Shape]) -> None:
    assert kind.model_config["frozen"] is True
    assert kind.model_config["extra"] == ("allow" if kind is RunPlan else "forbid")
    for name, field in kind.model_fields.items():
        assert list not in (field.annotation, *get_args(field.annotation)), name  # tuples stay as they are


def test_a_member_that_a_view_has_gained_is_noticed(shop: Shop) -> None:
    with shop.billing._opened.parts.reading() as session:
        view = plan_view(session.query(Plan).one())
    with pytest.raises(ValidationError, match="surprise"):
        shapes.Plan.model_validate(view | {"surprise": 1})


def test_the_plan_of_a_run_is_known_whole(shop: Shop) -> None:
    """Runs of other releases may have counted other things; this one's counts all have a name."""
    shop.subscriber()
    plan = shop.billing.run().plan
    assert plan is not None
    assert plan.model_extra == {}
    assert plan.model_fields_set == set(RunPlan.model_fields)


@pytest.mark.parametrize(
    "stored",
    [
        {"charges": 1, "totals": {"IDR": "50000"}, "by_channel": []},
        {"charges": 1, "totals": {}, "by_channel": [], "counted_later": {"deep": ["1", None]}},
    ],
)
def test_the_plan_of_another_release_is_printed_as_it_is(stored: dict[str, Any]) -> None:
    assert printed(RunPlan.model_validate(stored)) == stored


def test_amounts_and_instants_print_as_they_do_in_commands() -> None:
    refused = {"charges": 0, "totals": {"IDR": "-50000", "PHP": "99.50", "X": "0.00"}}
    totals = shapes.AgainstPlan.model_validate(refused).totals
    assert totals == {"IDR": Decimal(-50000), "PHP": Decimal("99.50"), "X": Decimal(0)}
    assert printed(shapes.AgainstPlan.model_validate(refused)) == refused
    for text in ("2026-01-31T02:00:00Z", "2026-01-31T02:00:00.123000Z"):
        now = shapes.Now.model_validate({"now": text})
        assert now.now.utcoffset() == timedelta()
        assert printed(now) == {"now": text}
    assert printed(shapes.Now(now=AT)) == {"now": instant(AT)}
    with pytest.raises(ValidationError):
        shapes.Now(now=AT.replace(tzinfo=None))


# --------------------------------------------------------------------------------------------- reading lists


def test_a_list_is_read_a_page_at_a_time(terminal: Terminal, xendit: Xendit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE", 10)
    with open_shop(terminal, xendit) as shop:
        parts, engine = shop.billing._opened.parts, shop.billing._opened.app.engine
        with parts.transaction() as session:
            plan = make_plan(session)
            made = [make_subscription(session, plan=plan).id for _ in range(35)]
        pages: list[str] = []
        event.listen(
            engine,
            "before_cursor_execute",
            lambda *args: pages.append(args[2]) if "FROM subscriptions JOIN" in args[2] else None,
        )
        loaded: list[str] = []
        event.listen(Subscription, "load", lambda row, _context: loaded.append(row.id))
        entries = shop.billing.subscriptions.list()
        assert (len(pages), len(loaded)) == (0, 0)
        read = []
        for each in entries:
            read.append(each.id)
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            assert len(loaded) <= len(read) + 10
            assert len(pages) == (len(read) - 1) // 10 + 1
        assert read == made
        assert [each.id for each in shop.billing.subscriptions.list(limit=3, after=made[4])] == made[5:8]
