"""A billing run as an object: paused, resumed, aborted, taken up again, shared, and stopped by its guards."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import OperationalError

from billing.charging import send
from billing.errors import IllegalTransition, NotFound
from billing.parts import Parts, Rules
from billing.reading import explain
from billing.reading.views import Json
from billing.runs import control, limits, tick
from billing.runs import report as progress
from billing.runs import run as runs
from billing.store.clock import real_now
from billing.store.models import BillingRun, ChargeAttempt, PaymentToken
from tests.world import CHARGE, Subscriber, World

NewWorld = Callable[..., World]


class Gone(BaseException):
    """The process that drove the run was killed."""


def renewals(world: World, count: int, *, named: str = "customer", **wanted: Any) -> list[Subscriber]:
    """Subscribers whose period is due and nobody waits for it, unlike the first charge of who has just subscribed."""
    return [world.subscribe_save(f"{named}{number}", start_at=world.now, **wanted) for number in range(count)]


def run_with(world: World, before_charge: Callable[[int], object], *, first: Subscriber | None = None) -> Json:
    """A run that sends one charge after the other, of those handed out together that of `first` before the others;
    `before_charge` is told how many were sent."""
    sent = 0

    def is_not_the_first(identity: str) -> bool:
        return first is None or identity not in {attempt.id for attempt in first.attempts}

    def send(kind: str, ids: Sequence[str]) -> None:
        nonlocal sent
        for identity in sorted(ids, key=is_not_the_first):
            if kind.startswith("charge"):
                before_charge(sent)
                sent += 1
            world.send(kind, [identity])

    return runs.run_here(world.parts, send, None, lambda _totals: None)


def the_run(world: World) -> BillingRun:
    """The one that was begun last."""
    return world.all(select(BillingRun).order_by(BillingRun.started_at))[-1]


def shown(world: World, run_id: str) -> Json:
    with world.parts.reading() as session:
        return progress.run_view(session, session.get_one(BillingRun, run_id), world.now, world.parts.rules)


def pause_after(world: World, charges: int) -> Json:
    def pause(sent: int) -> None:
        if sent == charges:
            control.pause_run(world.parts, the_run(world).id)

    return run_with(world, pause)


def open_for_the_day(world: World) -> str:
    """What is due is opened under the scheduler's run of today; nothing is handed out yet."""
    with world.parts.transaction() as session:
        day, _ = tick.take_daily_run(session, world.now)
    tick.open_all_due(world.parts, world.now, run_id=day)
    return day


def heart_stops(world: World) -> None:
    """A minute passes without a sign of the process that drove a run."""
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).values(heartbeat_at=real_now() - timedelta(seconds=61)))


# ----------------------------------------------------------------------------------- pause, resume, abort


def test_a_pause_stops_charging_at_once_even_what_was_handed_out(world: World) -> None:
    subscribers = renewals(world, 6)

    report = pause_after(world, 2)

    assert world.collected() == [50_000] * 2
    assert (report["state"], report["succeeded"], report["waiting"]) == ("paused", 2, 4)
    assert "billing runs resume" in report["how_to_go_on"]
    world.leases_run_out()
    world.settle_down()
    assert world.collected() == [50_000] * 2, "the scheduler does not charge them either"
    assert {one.status for one in subscribers} == {"active"}


def test_the_state_alone_holds_whoever_was_cut_short_before_parking(world: World) -> None:
    renewals(world, 3)
    day = open_for_the_day(world)
    handed_out: list[str] = []
    tick.hand_out_charges(world.parts, lambda _kind, ids: handed_out.extend(ids), run_id=day)
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).values(state="paused"))

    world.send("charge", handed_out)

    assert world.calls(CHARGE) == 0
    assert {attempt.parked_by for attempt in world.all_attempts()} == {f"run:{day}"}


def test_a_resumed_run_goes_on_where_it_was_under_its_own_id(world: World) -> None:
    renewals(world, 6)
    paused = pause_after(world, 2)

    control.resume_run(world.parts, paused["run_id"])
    done = world.run()

    assert done["run_id"] == paused["run_id"]
    assert (done["state"], done["opened"], done["succeeded"]) == ("finished", 0, 4), "what this command did"
    assert (done["whole_run"]["attempted"], done["whole_run"]["succeeded"]) == (6, 6)
    assert shown(world, done["run_id"])["opened"] == 6
    assert done["against_plan"] == {"charges": 0, "totals": {"IDR": "0"}}
    assert world.collected() == [50_000] * 6


def test_what_falls_due_later_is_not_held_up_by_a_paused_run(world: World) -> None:
    renewals(world, 2)
    pause_after(world, 0)
    renewals(world, 3, named="later")

    report = world.run()

    assert (report["opened"], report["succeeded"]) == (3, 3)


def test_a_customer_who_pays_now_is_not_held_up_by_a_paused_run(world: World) -> None:
    ana, _ = renewals(world, 2)
    pause_after(world, 0)

    ana.pay_invoice()

    assert world.collected() == [50_000]
    assert ana.invoice.status == "paid"


@pytest.mark.parametrize("move", [control.pause_run, control.abort_run])
def test_a_first_charge_goes_through_whatever_becomes_of_the_days_run(
    world: World, move: Callable[[Parts, str], object]
) -> None:
    walks_in = world.subscribe_save("walks-in")
    renewals(world, 2)
    day = open_for_the_day(world)

    move(world.parts, day)
    world.settle_down()

    assert world.collected() == [50_000]
    assert walks_in.invoice.status == "paid"


def test_pausing_resuming_and_aborting_twice_changes_nothing_more(world: World) -> None:
    renewals(world, 2)
    run_id = pause_after(world, 1)["run_id"]

    control.pause_run(world.parts, run_id)
    assert shown(world, run_id)["state"] == "paused"
    control.resume_run(world.parts, run_id)
    control.resume_run(world.parts, run_id)
    assert shown(world, run_id)["state"] == "running"
    assert control.abort_run(world.parts, run_id) == 1
    assert control.abort_run(world.parts, run_id) == 0
    assert shown(world, run_id)["state"] == "aborted"


def test_an_aborted_run_charges_nothing_more_and_says_so_in_every_story(world: World) -> None:
    subscribers = renewals(world, 4)
    run_id = pause_after(world, 1)["run_id"]

    withdrawn = control.abort_run(world.parts, run_id)
    world.live(days=2)

    assert withdrawn == 3
    assert world.calls(CHARGE) == 1
    held = [one for one in subscribers if one.invoice.hold_reason]
    assert len(held) == 3
    for one in held:
        assert (one.outcomes, one.status) == (["canceled"], "active")
        assert run_id in (one.invoice.hold_reason or "")
        assert one.story[-2:] == ["attempt.canceled", "invoice.held"]


def test_approving_an_aborted_run_charges_what_it_left(world: World) -> None:
    renewals(world, 4)
    run_id = pause_after(world, 1)["run_id"]
    control.abort_run(world.parts, run_id)

    approved = control.approve(world.parts, control.waiting_for_approval(world.parts, [run_id]))

    assert [line["amount"] for line in approved] == ["50000"] * 3
    assert world.run()["succeeded"] == 3
    assert world.collected() == [50_000] * 4
    with pytest.raises(IllegalTransition, match="left nothing that waits"):
        control.waiting_for_approval(world.parts, [run_id])


def test_a_run_that_is_over_cannot_be_steered(world: World) -> None:
    renewals(world, 1)
    run_id = world.run()["run_id"]
    for move in (control.pause_run, control.resume_run, control.abort_run):
        with pytest.raises(IllegalTransition, match="it is finished"):
            move(world.parts, run_id)
        with pytest.raises(NotFound, match="billing runs list"):
            move(world.parts, "run-of-nobody")


def test_explain_says_what_a_parked_charge_waits_for_and_names_no_date(world: World) -> None:
    _, ben = renewals(world, 2)
    run_id = pause_after(world, 0)["run_id"]

    with world.parts.reading() as session:
        upcoming = explain.explain(session, ben.subscription, world.now)["next"]

    assert (upcoming["what"], upcoming["at"]) == ("person", None)
    assert f"billing runs resume {run_id}" in upcoming["why"]


# ----------------------------------------------------------------------------------------- dying, sharing


def test_a_run_whose_process_died_goes_on_under_its_own_id(world: World) -> None:
    renewals(world, 5)

    def die(sent: int) -> None:
        if sent == 2:
            raise Gone

    with pytest.raises(Gone):
        run_with(world, die)
    died = the_run(world)
    assert died.finished_at is None
    heart_stops(world)
    world.leases_run_out()

    report = world.run()

    assert (report["run_id"], report["taken_up"]) == (died.id, True)
    assert (report["opened"], report["succeeded"], report["state"]) == (0, 3, "finished"), "the other had done two"
    assert (shown(world, died.id)["opened"], shown(world, died.id)["succeeded"]) == (5, 5)
    assert report["plan"]["charges"] == 5, "what it had planned is not planned once more"
    assert world.collected() == [50_000] * 5


def test_what_the_command_before_could_not_send_or_make_is_none_of_the_next_ones_counts(world: World) -> None:
    """One run, two commands: both report it, each its own."""
    without, _, _, _ = renewals(world, 4)
    with world.parts.transaction() as session:
        token = session.get_one(PaymentToken, without.tokens[0].id)
        token.status = "CANCELED"
    world.break_calls("HTTP:429:RATE_LIMIT_EXCEEDED")

    def die(sent: int) -> None:
        if sent == 3:
            raise Gone

    with pytest.raises(Gone):
        run_with(world, die, first=without)
    assert sorted(attempt.status for attempt in world.all_attempts()) == [
        "canceled", "scheduled", "scheduled", "succeeded",
    ]  # fmt: skip
    heart_stops(world)
    world.leases_run_out()

    report = world.run()

    assert report["taken_up"]
    assert (report["succeeded"], report["withdrawn"], report["unsent"], report["put_off"]) == (1, 0, 0, 1)
    assert without.story[-1] == "customer.asked"


def test_a_run_that_is_taken_up_plans_what_has_become_due_meanwhile(world: World) -> None:
    renewals(world, 3)

    def die(sent: int) -> None:
        if sent == 1:
            raise Gone

    with pytest.raises(Gone):
        run_with(world, die)
    renewals(world, 2, named="later")
    heart_stops(world)
    world.leases_run_out()

    report = world.run()

    assert (report["plan"]["charges"], report["plan"]["totals"]) == (5, {"IDR": "250000"})
    assert (report["opened"], report["succeeded"]) == (2, 4)
    assert report["whole_run"]["succeeded"] == 5


def test_a_run_that_lives_is_not_taken_over(world: World) -> None:
    renewals(world, 2)
    others: list[str] = []

    def start_another(sent: int) -> None:
        if sent == 0:
            others.append(world.run()["run_id"])

    first = run_with(world, start_another)

    assert others != [first["run_id"]]


def test_two_runs_at_once_share_the_work(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(max_in_flight=4))
    renewals(world, 16)
    reports: list[Json] = []

    world.in_two_threads(lambda: reports.append(world.run()))

    assert world.collected() == [50_000] * 16
    for name in ("opened", "attempted", "succeeded"):
        assert sum(report[name] for report in reports) == 16, f"each counts what itself has {name}"
    views = [shown(world, report["run_id"]) for report in reports]
    assert sum(view["succeeded"] for view in views) == 16
    assert sum(view["opened"] for view in views) == 16
    limits.watch(world.parts)
    assert {shown(world, report["run_id"])["state"] for report in reports} == {"finished"}


def test_what_a_scheduler_beside_it_charges_is_none_of_its_counts(world: World) -> None:
    renewals(world, 4)

    def scheduler_takes_one(sent: int) -> None:
        if sent == 0:
            another_process = contextvars.Context()
            another_process.run(send.charge, world.parts, [world.all_attempts()[-1].id])

    report = run_with(world, scheduler_takes_one)

    assert (report["opened"], report["attempted"], report["succeeded"]) == (4, 3, 3)
    assert report["collected"] == {"IDR": "150000"}
    assert report["whole_run"]["succeeded"] == 4
    assert world.collected() == [50_000] * 4


# ---------------------------------------------------------------------------------------- the spending cap


def test_the_spending_cap_is_not_exceeded_by_a_single_charge(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 175_000}))
    renewals(world, 10)

    report = world.run()

    assert world.collected() == [50_000] * 3
    assert (report["state"], report["guard"], report["parked"]) == ("stopped", "spending_cap", 7)
    assert "IDR 175,000" in report["reason"]
    assert "waives" in report["how_to_go_on"]


def test_resuming_a_stopped_run_waives_its_guard_for_this_run_only(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 175_000}))
    renewals(world, 5)
    stopped = world.run()

    control.resume_run(world.parts, stopped["run_id"])
    resumed = world.run()

    assert (resumed["run_id"], resumed["waived"]) == (stopped["run_id"], ["spending_cap"])
    assert world.collected() == [50_000] * 5
    renewals(world, 5, named="next")
    assert world.run()["guard"] == "spending_cap"


def test_the_cap_holds_for_two_processes_that_claim_at_once(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 450_000}, max_in_flight=6))
    renewals(world, 30)

    world.in_two_threads(world.settle_down)

    assert world.collected() == [50_000] * 9
    assert the_run(world).guard == "spending_cap"


def test_a_claim_waits_for_the_one_before_it_to_know_what_that_took(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 100_000}))
    renewals(world, 4)
    day = open_for_the_day(world)
    ids = [attempt.id for attempt in world.all_attempts()]
    lease = update(ChargeAttempt).values(lease_until=real_now() + timedelta(minutes=2))

    with world.parts.sessions() as first, world.parts.sessions() as second:
        first.execute(lease.where(ChargeAttempt.id.in_(ids[:2])))
        second.execute(lease.where(ChargeAttempt.id.in_(ids[2:])))
        assert limits.hold_to_caps(first, day, ids[:2], world.parts.rules) == ids[:2]
        second.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            limits.hold_to_caps(second, day, ids[2:], world.parts.rules)
        second.rollback()
        first.commit()
        second.execute(lease.where(ChargeAttempt.id.in_(ids[2:])))
        assert limits.hold_to_caps(second, day, ids[2:], world.parts.rules) == []
        second.commit()


def test_the_cap_counts_what_may_have_been_charged(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 150_000}, max_in_flight=1))
    for outcome, one in zip(("TIMEOUT_AFTER", "PENDING", "INSUFFICIENT_BALANCE"), renewals(world, 6), strict=False):
        one.script(outcome)

    report = world.run()

    assert (report["in_doubt"], report["pending"], report["failed"], report["succeeded"]) == (1, 1, 1, 1)
    assert report["guard"] == "spending_cap"


def test_the_scheduler_is_held_to_the_cap_as_well(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 100_000}))
    renewals(world, 4)

    world.settle_down()

    assert world.collected() == [50_000] * 2
    day = the_run(world)
    assert (day.id, day.kind, day.state) == ("run-2026-01-31", "daily", "stopped")


def test_a_message_that_comes_late_does_not_slip_past_the_cap(new_world: NewWorld) -> None:
    """Its worker slept until the lease was over; what was claimed meanwhile had counted it in."""
    world = new_world(rules=Rules(run_spending_cap={"IDR": 100_000}, max_in_flight=2))
    renewals(world, 4)
    day = open_for_the_day(world)
    late: list[str] = []
    tick.hand_out_charges(world.parts, lambda _kind, ids: late.extend(ids), run_id=day)
    world.leases_run_out()
    first = late[0]
    with world.parts.transaction() as session:
        others = update(ChargeAttempt).where(ChargeAttempt.id == first)
        session.execute(others.values(scheduled_at=world.now + timedelta(seconds=1)))

    world.settle_down()
    world.advance(seconds=1)
    world.send("charge", [first])
    world.settle_down()

    assert world.collected() == [50_000] * 2


def test_a_cap_speaks_of_its_currency_only(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"PHP": 1}))
    renewals(world, 3)
    assert world.run()["succeeded"] == 3


# --------------------------------------------------------------------------------------- the other guards


def test_a_subscriber_is_not_charged_beyond_the_daily_cap(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(subscriber_daily_cap={"IDR": 120_000}))
    weekly = world.plan("weekly", every="every 1:week")
    ana = world.subscribe_save("ana", plan=weekly, start_at=world.now)
    ben = world.subscribe_save("ben", plan=weekly, start_at=world.now + timedelta(days=21))
    world.advance(days=22)

    world.run()

    assert [invoice.status for invoice in ana.invoices] == ["paid", "paid", "open", "open"]
    assert "daily cap of IDR 120,000" in (ana.invoices[2].hold_reason or "")
    assert [invoice.status for invoice in ben.invoices] == ["paid"], "others are charged"

    ana.pay_invoice()
    assert ana.invoice.status == "paid", "a person may charge him all the same"


def test_declines_that_are_usual_stop_nothing(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_decline_sample=5, run_decline_jump=0.5, max_in_flight=5))
    for number, one in enumerate(renewals(world, 10)):
        one.script("INSUFFICIENT_BALANCE" if number % 2 else "SUCCEEDED")
    assert world.run()["failed"] == 5
    world.advance(days=2)
    for number, one in enumerate(renewals(world, 10, named="next")):
        one.script("INSUFFICIENT_BALANCE" if number % 5 else "SUCCEEDED")

    report = world.run()

    assert report["failed"] == 8, "80 % is not 50 points above the usual 50 %"
    assert report["guard"] is None


def test_a_guard_of_zero_is_off(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_decline_sample=2, run_decline_jump=0, run_forecast_share=0, max_in_flight=2))
    for one in renewals(world, 6):
        one.script("INSUFFICIENT_BALANCE")
    report = run_with(world, lambda sent: renewals(world, 9, named="more") if sent == 1 else None)
    assert (report["state"], report["failed"]) == ("finished", 6)


def test_a_plan_nobody_expected_is_not_begun(world: World) -> None:
    renewals(world, 4)

    report = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 100_000})

    assert (report["state"], report["guard"], report["opened"]) == ("stopped", "forecast", 0)
    assert "IDR 200,000 are planned and IDR 100,000 were expected" in report["reason"]
    assert world.calls(CHARGE) == 0
    expected = runs.run_here(world.parts, world.send, None, lambda _totals: None, expect={"IDR": 220_000})
    assert expected["succeeded"] == 4


# ------------------------------------------------------------------------------ nobody drives it: the watch


def test_the_scheduler_has_one_run_a_day(world: World) -> None:
    renewals(world, 2)
    world.live(days=29)

    days = world.all(select(BillingRun).order_by(BillingRun.id))

    assert [(day.id, day.kind) for day in days] == [("run-2026-01-31", "daily"), ("run-2026-02-28", "daily")]
    assert {attempt.run_id for attempt in world.all_attempts()} == {day.id for day in days}
    assert days[0].plan is not None
    assert (days[0].plan["charges"], days[0].plan["totals"]) == (2, {"IDR": "100000"})


def test_the_day_is_over_when_its_day_is_and_nothing_is_left(world: World) -> None:
    renewals(world, 2)
    world.settle_down()

    limits.watch(world.parts)
    assert the_run(world).finished_at is None, "more may come due today"
    world.advance(days=1)
    limits.watch(world.parts)

    assert shown(world, "run-2026-01-31")["state"] == "finished"


def test_the_watch_finishes_what_a_dead_process_left_done(world: World) -> None:
    renewals(world, 1)
    world.run()
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).values(finished_at=None, heartbeat_at=real_now()))
    limits.watch(world.parts)
    assert the_run(world).finished_at is None, "its process may be alive"

    heart_stops(world)
    limits.watch(world.parts)

    assert the_run(world).finished_at is not None


def test_the_watch_lets_go_what_waits_for_nothing_any_more(world: World) -> None:
    ana, ben = renewals(world, 2)
    world.open_due()
    with world.parts.transaction() as session:
        for one, cause in ((ana, "run:gone"), (ben, "channel:CARDS")):
            session.execute(update(ChargeAttempt).where(ChargeAttempt.id == one.attempt.id).values(parked_by=cause))
    world.settle_down()
    assert world.collected() == []

    limits.watch(world.parts)
    world.settle_down()

    assert world.collected() == [50_000] * 2


def test_what_comes_due_on_an_aborted_day_waits_for_approval(world: World) -> None:
    renewals(world, 1)
    world.settle_down()
    control.abort_run(world.parts, "run-2026-01-31")
    (late,) = renewals(world, 1, named="late")

    world.settle_down()
    limits.watch(world.parts)

    assert late.outcomes == ["canceled"]
    assert late.invoice.hold_reason
    waiting = control.waiting_for_approval(world.parts, ["run-2026-01-31"])
    assert [each.subscription_id for each in waiting] == [late.id]


def test_an_idle_watch_asks_two_questions_and_writes_nothing(world: World) -> None:
    renewals(world, 3)
    world.run()
    asked: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    limits.watch(world.parts)

    assert len(asked) == 2
    assert not any(word in statement.upper() for statement in asked for word in ("UPDATE ", "INSERT ", "DELETE "))


# ------------------------------------------------------------------------------------------------ approval


def after_three_months(world: World, catch_up: str) -> Subscriber:
    ana = world.subscribe_save(plan=world.plan(catch_up=catch_up))
    world.run()
    world.deliver_webhooks()
    world.advance(days=95)
    return ana


def test_missed_periods_of_a_hold_plan_wait_for_a_yes(world: World) -> None:
    ana = after_three_months(world, "hold")
    world.run()
    assert "billing run approve" in world.run()["skipped"][0]["reason"]

    approved = control.approve(world.parts, control.waiting_for_approval(world.parts, ()))

    assert approved == [{"subscription_id": ana.id, "periods": 3, "amount": "150000", "currency": "IDR"}]
    world.live(days=3)
    assert world.collected() == [50_000] * 4
    assert control.waiting_for_approval(world.parts, ()) == []


def test_approving_what_does_not_wait_changes_nothing(world: World) -> None:
    ana = after_three_months(world, "hold")
    ben = world.subscribe_save("ben")
    world.run()
    for names, why in (([ana.subscription.reference, "nobody"], "no subscription or billing run 'nobody'"),
                       ([ana.id, ben.id], "waits for no approval")):  # fmt: skip
        with pytest.raises((NotFound, IllegalTransition), match=why):
            control.waiting_for_approval(world.parts, names)
    assert ana.subscription.hold_reason is not None


# ---------------------------------------------------------------------------------------------- the dry run


def test_the_dry_run_counts_by_currency_and_channel_and_says_how_long(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(requests_per_minute=60))
    renewals(world, 5)
    renewals(world, 2, named="pesos", country="PH", plan=world.plan("peso", currency="PHP", amount="499.50"))

    foretold = runs.dry_run(world.parts, None)

    assert foretold["totals"] == {"IDR": "250000", "PHP": "999.00"}
    assert foretold["by_channel"] == [
        {"channel_code": "CARDS", "currency": "IDR", "charges": 5, "amount": "250000"},
        {"channel_code": "CARDS", "currency": "PHP", "charges": 2, "amount": "999.00"},
    ]
    assert (foretold["attempted"], foretold["expected_seconds"]) == (7, 7)


def test_the_totals_cover_what_is_not_listed(world: World) -> None:
    renewals(world, 5)
    foretold = runs.dry_run(world.parts, None, limit=2)
    assert (len(foretold["planned"]), foretold["not_listed"]) == (2, 3)
    assert (foretold["attempted"], foretold["totals"]) == (5, {"IDR": "250000"})


@pytest.mark.parametrize(
    ("catch_up", "charges", "missed"),
    [("all", 3, [True, True, False]), ("latest", 1, [False]), ("skip", 0, []), ("hold", 0, [])],
)
def test_missed_periods_are_shown_before_they_are_charged(
    world: World, catch_up: str, charges: int, missed: list[bool]
) -> None:
    after_three_months(world, catch_up)

    foretold = runs.dry_run(world.parts, None)

    assert foretold["attempted"] == charges == len(foretold["planned"])
    assert [line["missed"] for line in foretold["planned"]] == missed
    assert foretold["missed"] == sum(missed)
    assert all(line["catch_up"] == catch_up for line in foretold["planned"] if line["missed"])
    assert world.run()["attempted"] == charges, "and so it comes"


def test_the_dry_run_names_the_guards_that_would_stop_it(new_world: NewWorld) -> None:
    world = new_world(rules=Rules(run_spending_cap={"IDR": 100_000}, subscriber_daily_cap={"IDR": 40_000}))
    renewals(world, 3)
    foretold = runs.dry_run(world.parts, None, expect={"IDR": 1_000_000})
    assert [found["guard"] for found in foretold["guards"]] == [
        "spending_cap", "forecast", "subscriber_daily_cap", "subscriber_daily_cap", "subscriber_daily_cap",
    ]  # fmt: skip


def test_the_report_is_compared_with_the_plan(world: World) -> None:
    ana, *_ = renewals(world, 3)
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/expire")

    def expires(sent: int) -> None:
        if sent == 0:
            world.deliver_webhooks()

    report = run_with(world, expires)

    assert report["plan"]["charges"] == 3
    assert report["against_plan"] == {"charges": -1, "totals": {"IDR": "-50000"}}
    assert report["collected"] == {"IDR": "100000"}


def test_what_is_set_back_after_an_abort_is_withdrawn_like_the_rest(world: World) -> None:
    """Sent as the run was aborted, and refused with a 429: it comes back to a run that is over."""
    (ana,) = renewals(world, 1)
    world.break_calls("429")

    def abort(_sent: int) -> None:
        pass

    run_with(world, abort)
    run = the_run(world)
    with world.parts.transaction() as session:
        session.execute(update(BillingRun).values(finished_at=None, state="running"))
    control.abort_run(world.parts, run.id)
    with world.parts.transaction() as session:  # as a worker that was under way then would leave it
        session.execute(
            update(ChargeAttempt).values(status="scheduled", settled_at=None, error=None, scheduled_at=world.now)
        )
        session.execute(text("UPDATE invoices SET hold_reason = NULL"))
    before = world.calls(CHARGE)

    world.settle_down()
    limits.watch(world.parts)

    assert world.calls(CHARGE) == before
    assert ana.attempt.status == "canceled"
    assert "was aborted" in (ana.invoice.hold_reason or ""), "and `billing run approve` finds it"


def test_approving_what_an_aborted_day_left_charges_it_the_same_day(world: World) -> None:
    (ana,) = renewals(world, 1)
    world.tick_with_workers_that_die()
    day = the_run(world).id
    control.abort_run(world.parts, day)
    assert ana.invoice.hold_reason is not None

    control.approve(world.parts, control.waiting_for_approval(world.parts, [day]))
    world.settle_down()
    limits.watch(world.parts)

    assert ana.invoice.status == "paid"
