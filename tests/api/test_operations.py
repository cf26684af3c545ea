"""Each operation, on a real PostgreSQL and a simulated Xendit: what it does, and that errors are the command's."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing import (
    Billing,
    Conflict,
    IllegalTransition,
    InvalidArgument,
    InvalidInput,
    InvalidMoney,
    InvalidSetting,
    NotFound,
    ServiceUnavailable,
)
from billing.shapes import RunProgress
from billing.store.clock import real_now
from tests.api.shop import Shop, environment, open_shop, settings_of
from tests.cli.terminal import Terminal, Xendit
from tests.factories import make_event, make_plan, make_subscription

ROW = {
    "customer_reference": "dewi",
    "name": "Dewi",
    "email": "dewi@example.com",
    "country": "ID",
    "plan": "gold",
    "subscription_reference": "dewi-gold",
    "channel_code": "CARDS",
}


def row(token: str, **changes: Any) -> str:
    soon = (real_now() + timedelta(days=3)).isoformat()
    return json.dumps(ROW | {"payment_token_id": token, "next_billing_at": soon} | changes)


# ------------------------------------------------------------------------------------------------------ plans


def test_a_plan_is_created_listed_and_shown(shop: Shop) -> None:
    plan = shop.billing.plans.create("silver", name="Silver", amount=Decimal("499.5"), currency="PHP", every="2:week")
    assert (plan.amount, plan.schedule, plan.trial_days, plan.catch_up) == (
        Decimal("499.50"),
        "every 2 weeks",
        0,
        "all",
    )
    assert plan.created_at.tzinfo is UTC
    assert shop.billing.plans.show("silver") == shop.billing.plans.show(plan.id) == plan
    assert [each.code for each in shop.billing.plans.list()] == ["gold", "silver"]
    cron = shop.billing.plans.create("c", name="C", amount=50000, currency="IDR", cron="0 9 1 * *", catch_up="HOLD")
    assert (cron.amount, cron.catch_up) == (Decimal(50_000), "hold")


def test_a_price_that_is_a_float_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidMoney, match="a float is not exact"):
        shop.billing.plans.create("f", name="F", amount=0.1, currency="PHP", every="month")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- customers


def test_a_customer_is_created_changed_listed_and_shown(shop: Shop) -> None:
    ana = shop.billing.customers.create("ana", name="Ana", email="ana@example.com", country="ID")
    assert (ana.timezone, ana.tokens) == ("Asia/Jakarta", ())
    changed = shop.billing.customers.update("ana", email="putri@example.com")
    assert (changed.email, changed.name) == ("putri@example.com", "Ana")
    assert shop.billing.customers.show(ana.id) == changed
    assert list(shop.billing.customers.list()) == [changed]
    with pytest.raises(InvalidArgument, match="nothing to change"):
        shop.billing.customers.update("ana")


# ----------------------------------------------------------------------------------- subscriptions, sessions


def test_a_subscriber_begins_on_a_page_and_goes_through_pauses_to_an_end(shop: Shop) -> None:
    billing = shop.billing
    assert shop.subscriber().status == "active"
    billing.run()
    assert billing.subscriptions.pause("ana-gold").status == "paused"
    assert billing.subscriptions.resume("ana-gold").status == "active"
    ending = billing.subscriptions.cancel("ana-gold")
    assert (ending.status, ending.cancel_at_period_end) == ("active", True)
    assert billing.subscriptions.uncancel("ana-gold").cancel_at_period_end is False
    assert billing.subscriptions.cancel("ana-gold", now=True).status == "canceled"
    assert [each.reference for each in billing.subscriptions.list(status="canceled", customer="ana")] == ["ana-gold"]
    assert list(billing.subscriptions.list(status="ACTIVE")) == []


def test_canceling_at_once_ends_open_pages(shop: Shop) -> None:
    shop.customer()
    begun = shop.billing.subscribe("ana", "gold", via="pay")
    assert begun.session is not None
    shop.billing.subscriptions.cancel(begun.subscription.id, now=True)
    assert shop.billing.sessions.show(begun.session.id).status == "CANCELED"


def test_a_second_subscription_begins_on_the_saved_method(shop: Shop) -> None:
    shop.subscriber()
    shop.plan("silver")
    token = next(shop.billing.tokens.list("ana"))
    start = real_now() + timedelta(days=10)
    begun = shop.billing.subscribe("ana", "silver", token=token.id, start_at=start)
    assert begun.session is None
    assert begun.subscription.next_billing_at == start
    with pytest.raises(Conflict):
        shop.billing.subscribe("ana", "silver", token=token.id)
    assert shop.billing.subscribe("ana", "silver", token=token.id, again=True).subscription.status == "active"
    with pytest.raises(InvalidArgument, match="exclude each other"):
        shop.billing.subscribe("ana", "silver", via="save", token=token.id)
    with pytest.raises(InvalidArgument, match="how does it begin"):
        shop.billing.subscribe("ana", "silver")


def test_a_page_is_made_listed_looked_up_and_ended(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber()
    page = billing.sessions.create("ana")
    assert (page.type, page.mode, page.status, page.amount) == ("SAVE", "PAYMENT_LINK", "ACTIVE", Decimal(0))
    assert page.payment_link_url
    assert billing.sessions.refresh(page.id) == billing.sessions.show(page.xendit_session_id or "") == page
    assert billing.sessions.cancel(page.id).status == "CANCELED"
    assert [each.status for each in billing.sessions.list(customer="ana")] == ["COMPLETED", "CANCELED"]
    assert len(list(billing.sessions.list(subscription="ana-gold"))) == 1
    shop.customer("budi")
    with pytest.raises(InvalidArgument, match="belongs to another customer"):
        billing.sessions.create("budi", subscription="ana-gold")


def test_a_page_without_return_urls_is_warned_of(terminal: Terminal, xendit: Xendit) -> None:
    with open_shop(terminal, xendit, public_url="http://localhost:8000") as shop:
        shop.plan()
        shop.subscriber()
        shop.billing.sessions.create("ana")
        assert any("BILLING_PUBLIC_URL is not https" in line for line in shop.warnings)
        with pytest.raises(InvalidSetting, match="BILLING_COMPONENTS_ORIGINS"):
            shop.billing.sessions.create("ana", mode="components")


# ------------------------------------------------------------------------------------------------------ tokens


def test_saved_methods_are_listed_preferred_refreshed_unblocked_and_canceled(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber()
    shop.xendit.complete({"xendit_session_id": (page := billing.sessions.create("ana")).xendit_session_id})
    billing.sessions.refresh(page.id)
    first, second = billing.tokens.list("ana")
    assert billing.tokens.prefer(second.id).rank < first.rank
    assert [token.id for token in billing.tokens.list("ana")] == [second.id, first.id]
    assert billing.tokens.refresh(first.payment_token_id).status == "ACTIVE"
    shop.execute(f"UPDATE payment_tokens SET blocked_reason = 'stolen' WHERE id = '{first.id}'")
    assert billing.tokens.unblock(first.id).blocked_reason is None
    assert any(line.startswith("undone: ") for line in shop.notes)
    assert billing.tokens.cancel(first.id).status == "CANCELED"
    assert shop.warnings == []
    billing.tokens.cancel(second.id)
    assert "no payment method is left for ana-gold" in shop.warnings[0]


# ---------------------------------------------------------------------------------------------- runs, invoices


def test_a_run_charges_what_is_due(shop: Shop) -> None:
    shop.subscriber()
    told: list[RunProgress] = []
    report = shop.billing.run(wait=True, progress=told.append)
    assert (report.opened, report.attempted, report.succeeded, report.problem) == (1, 1, 1, None)
    assert report.collected == {"IDR": Decimal(99_000)}
    assert told[-1].run_id == report.run_id
    invoice = next(shop.billing.invoices.list(subscription="ana-gold", status="paid"))
    shown = shop.billing.invoices.show(invoice.number)
    assert shown.captures[0].amount == shown.amount == shown.lines[0].amount == Decimal(99_000)
    assert shop.billing.run().opened == 0


def test_a_dry_run_looks_ahead(shop: Shop) -> None:
    shop.subscriber()
    ahead = shop.billing.run(dry_run=True, at=real_now() + timedelta(days=40), expect={"IDR": 1})
    assert (ahead.attempted, ahead.totals) == (2, {"IDR": Decimal(198_000)})
    assert [line.missed for line in ahead.planned] == [True, False]
    assert ahead.guards[0].guard == "forecast"
    assert list(shop.billing.invoices.list()) == []


def test_a_run_that_is_not_as_expected_stops_and_goes_on_when_told(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber()
    stopped = billing.run(expect="IDR 1")
    assert (stopped.state, stopped.attempted) == ("stopped", 0)
    assert stopped.problem is not None
    assert stopped.problem.startswith(f"{stopped.run_id} is stopped: ")
    with pytest.raises(InvalidArgument, match="write what you expect"):
        billing.run(expect="")
    assert billing.runs.resume(stopped.run_id).state == "running"
    assert billing.runs.pause(stopped.run_id).state == "paused"
    billing.runs.resume(stopped.run_id)
    assert billing.run().succeeded == 1
    assert [run.state for run in billing.runs.list()] == ["finished"]


def test_what_an_aborted_run_left_is_charged_after_all(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber()
    done = billing.run()
    with pytest.raises(IllegalTransition, match="it is finished"):
        billing.runs.abort(done.run_id)
    shop.month()
    billing.charging.stop(reason="bank holiday")
    left = billing.run()
    aborted = billing.runs.abort(left.run_id)
    assert (aborted.state, aborted.withdrawn) == ("aborted", 1)
    billing.charging.resume()
    assert billing.run().attempted == 0
    approved = billing.runs.approve(left.run_id)
    assert [line.amount for line in approved.approved] == [Decimal(99_000)]
    assert billing.run().succeeded == 1
    assert billing.runs.approve().approved == ()


def test_following_a_run_returns_when_it_has_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.api.runs.POLL_SECONDS", 0.01)
    billing = shop.billing
    shop.subscriber()
    stopped = billing.run(expect="IDR 1")
    watched = threading.Event()
    ended: list[str] = []
    follower = threading.Thread(
        target=lambda: ended.append(
            billing.runs.show(stopped.run_id, follow=True, watch=lambda _run: watched.set()).state
        )
    )
    follower.start()
    assert watched.wait(10)
    billing.runs.abort(stopped.run_id)
    follower.join(10)
    assert ended == ["aborted"]
    assert billing.runs.show().run_id == stopped.run_id


def test_an_invoice_is_paid_by_hand(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE", "INSUFFICIENT_BALANCE"))
    billing.run()
    invoice = next(billing.invoices.list(status="open"))
    declined = billing.invoices.pay(invoice.id)
    assert declined.status == "open"
    assert declined.problem is not None
    assert declined.problem.startswith("attempt 3 was declined: INSUFFICIENT_BALANCE; ")
    paid = billing.invoices.pay(invoice.number, token=next(billing.tokens.list("ana")).id)
    assert (paid.status, paid.problem) == ("paid", None)
    with pytest.raises(IllegalTransition, match="it is paid"):
        billing.invoices.pay(invoice.id)


def test_a_payment_in_doubt_is_warned_of_and_looked_up(shop: Shop) -> None:
    billing = shop.billing
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE", "TIMEOUT_AFTER"))
    billing.run()
    invoice = billing.invoices.pay(next(billing.invoices.list()).id)
    assert invoice.problem is None
    assert "is in doubt: nobody knows yet" in shop.warnings[-1]
    done: list[tuple[int, int]] = []
    found = billing.reconcile(date=real_now().date(), progress=lambda *seen: done.append(seen))
    assert (found.resolved, found.still_in_doubt, found.problem) == (1, 0, None)
    assert done == [(1, 1)]
    assert billing.invoices.show(invoice.id).status == "paid"


def test_without_a_network_nothing_leaves_and_the_report_says_so(
    terminal: Terminal, xendit: Xendit, shop: Shop
) -> None:
    shop.subscriber()
    with open_shop(terminal, xendit, xendit_base_url="http://127.0.0.1:1") as cut_off:
        report = cut_off.billing.run()
    assert (report.attempted, report.waiting) == (0, 1)
    assert report.problem is not None
    assert report.problem.startswith("1 charge(s) did not leave: ")


# ------------------------------------------------------------------------------------------- story, upkeep


def test_a_story_is_told(shop: Shop) -> None:
    shop.subscriber()
    shop.billing.run()
    told = shop.billing.explain("ana-gold")
    assert told.subscription.reference == "ana-gold"
    assert told.next.what == "charge"
    assert told.next.at == told.subscription.next_billing_at
    assert "invoice.paid" in [event.kind for event in told.events]


def test_events_are_listed_and_applied_again(shop: Shop) -> None:
    with shop.billing._opened.parts.transaction() as session:
        identity = make_event(session).id
    assert [event.state for event in shop.billing.events.list(state="received")] == ["received"]
    again = shop.billing.replay(identity)
    assert again.id == identity
    if again.state == "parked":
        assert again.problem == f"event {identity} could not be applied: {again.error}"


def test_charging_is_stopped_shown_and_resumed(shop: Shop) -> None:
    assert shop.billing.charging.show().stopped is False
    stopped = shop.billing.charging.stop(reason="bank holiday")
    assert (stopped.stopped, stopped.reason) == (True, "by an operator: bank holiday")
    assert shop.billing.run().problem == (
        "charging is stopped: by an operator: bank holiday; put it right, then `billing charging resume`"
    )
    shop.execute("INSERT INTO channel_breakers VALUES ('CARDS', 3, 'down', now(), now(), now(), 0)")
    assert shop.billing.charging.show().channels_down[0].channel_code == "CARDS"
    assert shop.billing.charging.resume().stopped is False
    assert "Tried again: CARDS." in shop.notes[-1]


def test_the_doctor_finds_and_says_so(shop: Shop) -> None:
    assert shop.billing.doctor().problem is None
    shop.billing.charging.stop(reason="bank holiday")
    found = shop.billing.doctor(repair=True)
    assert found.ok is False
    assert [check.name for check in found.checks if not check.ok] == ["charging_is_allowed"]
    assert found.problem == "1 check(s) failed: charging_is_allowed"


def test_rows_are_imported_from_a_file_from_stdin_and_from_lines(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    billing = shop.billing
    token = shop.xendit.new_token()
    file = tmp_path / "rows.jsonl"
    file.write_text(row(token) + "\n{}\n")
    tried = billing.import_(file, dry_run=True)
    assert (tried.created, len(tried.refused)) == (1, 1)
    seen: list[int] = []
    taken = billing.import_(str(file), verify=True, progress=seen.append)
    assert (taken.created, taken.refused[0].line, seen[-1]) == (1, 2, 2)
    assert taken.problem == "1 row(s) refused; mend them and import the file again"
    monkeypatch.setattr("sys.stdin", io.StringIO(row(token)))
    assert billing.import_("-").unchanged == 1
    assert billing.import_([row(token)], verify=False).unchanged == 1
    assert billing.import_([]).problem is None
    assert shop.warnings[-1] == "the input holds no row; is it the file you mean?"


def test_the_clock_moves(shop: Shop) -> None:
    clock = shop.billing.clock
    assert clock.set(datetime(2030, 1, 31, 9, tzinfo=UTC)).now.year == 2030
    assert clock.advance(timedelta(days=31)).now.month == 3
    assert clock.show().now.tzinfo is UTC
    for wrong in (timedelta(days=-1), timedelta(days=400 * 365), timedelta.max):
        with pytest.raises(InvalidInput):
            clock.advance(wrong)
    with pytest.raises(InvalidArgument, match="no offset"):
        clock.set(datetime(2030, 1, 31))  # noqa: DTZ001 - that is what is refused


def test_a_database_is_migrated_and_adopted(empty_database_url: str, xendit: Xendit) -> None:
    with Billing.open(settings_of(environment(empty_database_url, xendit))) as billing:
        with pytest.raises(ServiceUnavailable, match="run `billing migrate`"):
            next(billing.plans.list())
        first = billing.migrate()
        assert billing.migrate() == first
        adopted = billing.adopt()
        assert (adopted.adopted, adopted.changed) == (True, False)
        assert adopted.now == adopted.before


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: b.plans.show("x"), ("plan", "show", "x")),
        (lambda b: b.plans.create("gold", name="G", amount="1", currency="IDR", every="month"),
         ("plan", "create", "gold", "--name", "G", "--amount", "1", "--currency", "IDR", "--every", "month")),
        (lambda b: b.plans.create("g", name="G", amount="1", currency="IDR", every="month", trial_days=-1),
         ("plan", "create", "g", "--name", "G", "--amount", "1", "--currency", "IDR", "--every", "month",
          "--trial-days", "-1")),
        (lambda b: b.customers.show("x"), ("customer", "show", "x")),
        (lambda b: b.customers.update("x", name="X"), ("customer", "update", "x", "--name", "X")),
        (lambda b: b.subscriptions.show("x"), ("subscription", "show", "x")),
        (lambda b: b.subscriptions.uncancel("ana-gold"), ("subscription", "uncancel", "ana-gold")),
        (lambda b: b.subscriptions.list(customer="x"), ("subscription", "list", "--customer", "x")),
        (lambda b: b.subscriptions.list(after="x"), ("subscription", "list", "--after", "x")),
        (lambda b: b.subscribe("ana", "gold", via="save"), ("subscribe", "ana", "gold", "--via", "save")),
        (lambda b: b.sessions.refresh("x"), ("session", "refresh", "x")),
        (lambda b: b.tokens.list("x"), ("token", "list", "--customer", "x")),
        (lambda b: b.tokens.prefer("x"), ("token", "prefer", "x")),
        (lambda b: b.invoices.pay("x"), ("invoice", "pay", "x")),
        (lambda b: b.runs.show("x"), ("runs", "show", "x")),
        (lambda b: b.runs.pause("x"), ("runs", "pause", "x")),
        (lambda b: b.runs.approve("ana-gold"), ("run", "approve", "ana-gold")),
        (lambda b: b.explain("x"), ("explain", "x")),
        (lambda b: b.replay("x"), ("replay", "x")),
        (lambda b: b.import_("missing.jsonl"), ("import", "missing.jsonl")),
        (lambda b: b.charging.stop(reason=" "), ("charging", "stop", "--reason", " ")),
    ],
)  # fmt: skip
def test_an_error_is_the_line_that_the_command_prints(shop: Shop, call: Any, words: tuple[str, ...]) -> None:
    shop.subscriber()
    with pytest.raises((NotFound, Conflict, IllegalTransition, InvalidInput)) as refused:
        call(shop.billing)
    assert shop.terminal.refused(*words) == str(refused.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: b.plans.create("p", name="P", amount="1", currency="IDR"),
         ("plan", "create", "p", "--name", "P", "--amount", "1", "--currency", "IDR")),
        (lambda b: b.customers.update("ana"), ("customer", "update", "ana")),
        (lambda b: b.subscribe("ana", "gold"), ("subscribe", "ana", "gold")),
        (lambda b: b.run(expect="IDR"), ("run", "--expect", "IDR")),
    ],
)  # fmt: skip
def test_what_is_usage_to_a_command_says_the_same(shop: Shop, call: Any, words: tuple[str, ...]) -> None:
    """The command adds where its help is."""
    shop.subscriber()
    with pytest.raises(InvalidArgument) as refused:
        call(shop.billing)
    assert refused.value.exit_status == 2
    assert str(refused.value).rstrip(". ") in shop.terminal.refused(*words, status=2)


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.subscriptions.list(status="gone"),
        lambda b: b.invoices.list(status="gone"),
        lambda b: b.events.list(state="gone"),
        lambda b: b.plans.list(limit=0),
        lambda b: b.sessions.create("ana", via="post"),
        lambda b: b.plans.create("p", name="P", amount="1", currency="IDR", every="month", catch_up="perhaps"),
        lambda b: b.run(at=datetime(1990, 1, 1, tzinfo=UTC)),
    ],
)
def test_what_cannot_be_is_refused_at_once(shop: Shop, call: Any) -> None:
    shop.customer()
    with pytest.raises(InvalidArgument):
        call(shop.billing)


# ------------------------------------------------------------------------------------------- opening, closing


def test_opening_without_settings_is_refused_as_by_a_command() -> None:
    with pytest.raises(InvalidSetting) as refused:
        Billing.open()
    assert str(refused.value) == Terminal().refused("plan", "list", status=2)
    assert refused.value.exit_status == 2


def test_opening_reads_the_environment(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in terminal.environment.items():
        monkeypatch.setenv(name, value)
    with Billing.open() as billing:
        assert list(billing.plans.list()) == []


def test_what_talks_to_xendit_needs_its_key(terminal: Terminal, xendit: Xendit) -> None:
    with open_shop(terminal, xendit, xendit_secret_key="") as shop:
        shop.plan()
        shop.customer()
        del terminal.environment["BILLING_XENDIT_SECRET_KEY"]
        with pytest.raises(InvalidSetting) as refused:
            shop.billing.run()
        assert str(refused.value) == terminal.refused("run", status=2)
        assert shop.billing.import_([]).created == 0
        with pytest.raises(InvalidSetting):
            shop.billing.subscribe("ana", "gold", via="save")


def test_time_is_moved_with_the_test_clock_only(terminal: Terminal, xendit: Xendit) -> None:
    terminal.environment["BILLING_TEST_CLOCK"] = "false"
    with open_shop(terminal, xendit) as shop:
        with pytest.raises(InvalidSetting) as refused:
            shop.billing.clock.show()
        assert str(refused.value) == terminal.refused("clock", "show", status=2)
        with pytest.raises(InvalidSetting) as refused:
            shop.billing.run(at=datetime(2030, 1, 1, tzinfo=UTC))
        assert str(refused.value) == terminal.refused("run", "--at", "2030-01-01T00:00:00Z", status=2)


def test_a_database_that_is_away_is_one_line(terminal: Terminal, xendit: Xendit) -> None:
    terminal.environment["BILLING_DATABASE_URL"] = "postgresql+psycopg://nobody:secret@127.0.0.1:1/none"
    with open_shop(terminal, xendit) as shop:
        for call in (lambda: next(shop.billing.plans.list()), shop.billing.doctor, shop.billing.migrate):
            with pytest.raises(ServiceUnavailable) as refused:
                call()
            assert "secret" not in str(refused.value)
        assert str(refused.value) == terminal.refused("migrate")


def test_closing_closes_and_what_is_closed_does_nothing_more(terminal: Terminal, xendit: Xendit) -> None:
    with open_shop(terminal, xendit) as shop:
        shop.plan()
        entries = shop.billing.plans.list()
        app = shop.billing._opened.app
    assert app.engine.pool.checkedin() == app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    shop.billing.close()
    with pytest.raises(Conflict, match="is closed"):
        shop.billing.plans.show("gold")
    with pytest.raises(Conflict, match="is closed"):
        next(entries)


def test_it_closes_after_an_error_too(terminal: Terminal) -> None:
    billing = Billing.open(settings_of(terminal.environment))
    with pytest.raises(NotFound), billing:
        billing.plans.show("gold")
    with pytest.raises(Conflict, match="is closed"):
        billing.plans.show("gold")


def test_a_race_is_a_conflict(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that create the same plan at once: the second finds none, and the table refuses it."""
    with shop.billing._opened.parts.transaction() as session:
        make_subscription(session, plan=make_plan(session, code="other"))
    monkeypatch.setattr("sqlalchemy.orm.Session.scalar", lambda *_args, **_options: None)
    with pytest.raises(Conflict, match="somebody else changed the same thing at the same time"):
        shop.plan("other")
