"""Whatever stops by itself can be let go by a person, with a command that is named where it is told.

The same table is in docs/operations.md ("What stops by itself").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from billing import quota
from billing.charging import send as charging
from billing.domain.gateway import CHARGE_ENDPOINT
from billing.parts import Acquaintance, Rules
from billing.runs import control
from billing.runs.forecast import DECLINES, FORECAST
from billing.store.models import BillingRun, Capture, ChannelBreaker, ChargingStop, Invoice, Subscription, WebhookEvent
from billing.subscriptions import open_periods
from tests.typing_in_a_world import typed
from tests.world import CHARGE, OTHER_VISA, VISA, Subscriber, World

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
Provoked = dict[str, str]
"""What the words of a command or a text stand for: `{token}`, `{invoice}`, `{run}`."""


@dataclass(frozen=True)
class Stop:
    """`told`: the command whose output names `lift`. `goes_on`: what is true again afterwards."""

    name: str
    provoke: Callable[[World], Provoked]
    told: str
    lift: str
    goes_on: Callable[[World], object]
    by_itself: str
    rules: Rules = field(default_factory=Rules)
    ends: int = 0  # exit status of the command that tells


def of(ana: Subscriber) -> Provoked:
    return {"token": ana.tokens[0].id, "invoice": ana.invoice.number, "subscription": ana.subscription.reference}


def paid(*amounts: int) -> Callable[[World], object]:
    """After the next run Xendit has collected this."""

    def check(world: World) -> object:
        world.run()
        world.deliver_webhooks()
        return world.collected() == list(amounts)

    return check


def charge(*outcomes: str) -> Callable[[World], Provoked]:
    def provoke(world: World) -> Provoked:
        ana = world.subscribe_save()
        ana.script(*outcomes)
        world.run()
        world.deliver_webhooks()
        return of(ana)

    return provoke


def a_replaced_method(world: World) -> Provoked:
    ana = world.subscribe_save(card=VISA)
    ana.script("INSUFFICIENT_BALANCE")
    world.run()
    new = ana.adds_card(OTHER_VISA)
    world.control("POST", f"/tokens/{new.payment_token_id}/expire")
    world.live(days=2)
    return of(ana)


def with_another_accounts_key(subscribers: int) -> Callable[[World], Provoked]:
    def provoke(world: World) -> Provoked:
        everybody = [world.subscribe_save(f"c{number}") for number in range(subscribers)]
        world.parts = replace(world.parts, acquaintance=Acquaintance())
        with world.another_accounts_key():
            world.run()
        return of(everybody[0])

    return provoke


def refused(outcome: str) -> Callable[[World], Provoked]:
    def provoke(world: World) -> Provoked:
        ana = world.subscribe_save()
        world.break_calls(outcome)
        world.run()
        return of(ana)

    return provoke


def a_channel_that_is_down(world: World) -> Provoked:
    ana = world.subscribe_save()
    world.break_calls("HTTP:400:PAYMENT_REQUEST_RATE_LIMITED")
    world.run()
    world.advance(minutes=5)
    return of(ana)


def an_endpoint_that_is_closed(world: World) -> Provoked:
    quota.make_quota(world.parts.sessions, 60, adapt=True).pause(CHARGE_ENDPOINT, 600)
    return {}


def a_run_stopped_by_its_cap(world: World) -> Provoked:
    for name in ("ana", "ben"):
        world.subscribe_save(name, start_at=world.now + timedelta(days=1))
    world.advance(days=1)
    return {"run": world.run()["run_id"]}


def a_run_stopped_by(guard: str, reason: str) -> Callable[[World], Provoked]:
    """The guards themselves: tests/stories/test_guards.py."""

    def provoke(world: World) -> Provoked:
        ana = world.subscribe_save()
        world.tick_with_workers_that_die()
        (run,) = world.all(select(BillingRun))
        control.stop_run(world.parts, run.id, guard, reason)
        world.leases_run_out()
        return of(ana) | {"run": run.id}

    return provoke


def more_than_a_day_allows(world: World) -> Provoked:
    world.subscribe_save()
    world.run()
    silver = world.subscribe_save(plan=world.plan("silver", amount="20000"))
    world.run()
    return of(silver)


def a_week_of_silence(world: World) -> Provoked:
    ana = world.subscribe_save()
    ana.script("NO_WEBHOOK:PENDING")
    world.run()
    world.live(days=8)
    request = ana.attempt.payment_request_id
    world.control("POST", f"/payment_requests/{request}/resolve", {"outcome": "SUCCEEDED"})
    return of(ana)


def a_doubt_without_end(world: World) -> Provoked:
    ana = world.subscribe_save()
    world.break_calls("TIMEOUT_BEFORE")
    world.run()
    world.live(days=3)
    return of(ana)


def a_row_that_cannot_be_read(world: World) -> Provoked:
    ana = world.subscribe_save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_periods, "calendar_of", lambda *_: {}["anchor"])
        world.tick()
    return of_subscription(ana)


def an_invoice_that_cannot_be_read(world: World) -> Provoked:
    ana = world.subscribe_save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charging, "begin_attempts", lambda *_, **__: {}["invoice"])
        world.run()
    return of(ana)


def missed_periods(world: World) -> Provoked:
    ana = world.subscribe_save(plan=world.plan(catch_up="hold"), start_at=world.now + timedelta(days=1))
    world.advance(days=70)
    world.run()
    return of_subscription(ana)


def dunning_that_pauses(world: World) -> Provoked:
    ana = world.subscribe_save(plan=world.plan(dunning="pause"))
    ana.script(*["INSUFFICIENT_BALANCE"] * 12)
    world.live(days=60)
    assert ana.status == "paused"
    world.script(ana.tokens[0].payment_token_id, [])
    return of_subscription(ana)


def of_subscription(ana: Subscriber) -> Provoked:
    return {"subscription": ana.subscription.reference}


def an_event_that_could_not_be_applied(world: World) -> Provoked:
    world.subscribe_save()
    (event, *_) = world.events()
    with world.parts.transaction() as session:
        session.execute(update(WebhookEvent).where(WebhookEvent.id == event.id).values(state="parked"))
    return {"event": event.id}


def nothing(table: type) -> Callable[[World], object]:
    return lambda world: world.all(select(table)) == []


def no_endpoint_is_closed(world: World) -> object:
    with world.parts.reading() as session:
        return not quota.standing(session).paused


def everything_is_paid(world: World) -> object:
    world.deliver_webhooks()
    return {invoice.status for invoice in world.all(select(Invoice))} == {"paid"}


def nobody_is_paused(world: World) -> object:
    return {row.status for row in world.all(select(Subscription))}.isdisjoint({"paused"})


def no_event_is_parked(world: World) -> object:
    return {event.state for event in world.events()} == {"applied"}


ONCE, LESS = 50_000, 20_000
STOPS = (
    Stop("token blocked after a decline", charge("STOLEN_CARD"), "explain {subscription}",
         "billing token unblock {token}", paid(ONCE), "the customer saves a method again"),
    Stop("token replaced by the customer", a_replaced_method, "explain {subscription}",
         "billing token unblock {token}", paid(ONCE), "the customer saves it again"),
    Stop("token that Xendit does not know", with_another_accounts_key(1), "explain {subscription}",
         "billing token refresh {token}", paid(ONCE), "asked daily, and at once when another key starts"),
    Stop("channel down", a_channel_that_is_down, "charging show",
         "billing charging resume", nothing(ChannelBreaker), "one charge is tried every few minutes"),
    Stop("endpoint closed by a 429", an_endpoint_that_is_closed, "charging show",
         "billing charging resume", no_endpoint_is_closed, "when the time that Xendit named is over"),
    Stop("account refused", refused("HTTP:401:INVALID_API_KEY"), "charging show",
         "billing charging resume", paid(ONCE), "a process starts with another key"),
    Stop("key of another account suspected", with_another_accounts_key(6), "charging show",
         "billing charging resume", paid(*[ONCE] * 6), "a process starts with another key"),
    Stop("run at its spending cap", a_run_stopped_by_its_cap, "runs show {run}",
         "billing runs resume {run}", lambda world: world.run()["whole_run"]["succeeded"] == 2, "never",
         rules=Rules(run_spending_cap={"IDR": 75_000})),
    Stop("run with unusual declines", a_run_stopped_by(DECLINES, "70% of 900 charges were declined, and 9% is usual"),
         "runs show {run}", "billing runs resume {run}", paid(ONCE), "never"),
    Stop("run that leaves its forecast", a_run_stopped_by(FORECAST, "it opens IDR 90,000 more than was planned"),
         "runs show {run}", "billing runs resume {run}", paid(ONCE), "never",
         rules=Rules(run_forecast_share=0.5)),
    Stop("invoice beyond the daily cap", more_than_a_day_allows, "explain {subscription}",
         "billing invoice pay {invoice}", lambda world: world.collected() == [ONCE, LESS], "never",
         rules=Rules(subscriber_daily_cap={"IDR": 60_000})),
    Stop("invoice whose charge Xendit rejected", refused("HTTP:400:API_VALIDATION_ERROR"), "explain {subscription}",
         "billing invoice pay {invoice}", paid(ONCE), "never"),
    Stop("invoice declined by our fault", charge("INVALID_MERCHANT_SETTINGS"), "explain {subscription}",
         "billing invoice pay {invoice}", paid(ONCE), "never"),
    Stop("invoice paid in part", charge("PARTIAL:20000"), "explain {subscription}",
         "billing invoice pay {invoice}", paid(LESS, 30_000), "never"),
    Stop("invoice paid in another currency", charge("CURRENCY:PHP"), "explain {subscription}",
         "billing invoice pay {invoice}", everything_is_paid, "never"),
    Stop("invoice that cannot be read", an_invoice_that_cannot_be_read, "explain {subscription}",
         "billing invoice pay {invoice}", paid(ONCE), "never"),
    Stop("invoice pending for a week", a_week_of_silence, "invoice show {invoice}",
         "billing reconcile", paid(ONCE), "its event, or a look-up"),
    Stop("invoice in doubt for good", a_doubt_without_end, "invoice show {invoice}",
         "billing reconcile", paid(ONCE), "its event, or a look-up", rules=Rules(hold_in_doubt=True)),
    Stop("subscription that cannot be billed", a_row_that_cannot_be_read, "explain {subscription}",
         "billing subscription resume {subscription}", paid(ONCE), "never"),
    Stop("subscription with missed periods", missed_periods, "explain {subscription}",
         "billing run approve {subscription}", paid(ONCE, ONCE, ONCE), "never"),
    Stop("subscription paused by its dunning", dunning_that_pauses, "explain {subscription}",
         "billing subscription resume {subscription}", nobody_is_paused, "never"),
    Stop("event that could not be applied", an_event_that_could_not_be_applied, "doctor",
         "billing replay", no_event_is_parked, "never", ends=1),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    return None


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name.replace(" ", "-"))
def test_what_stops_by_itself_is_let_go_by_the_command_it_names(stop: Stop, new_world: Callable[..., World]) -> None:
    world = new_world(rules=stop.rules)
    words = stop.provoke(world)

    with typed(world) as billing:
        told = billing(*stop.told.format(**words).split())
        assert told.status == stop.ends, told.err
        lift = stop.lift.format(**words)
        assert f"{lift}`" in told.out, told.out
        typed_words = [*lift.split()[1:], *([words["event"]] if "event" in words else [])]
        if typed_words[:2] == ["run", "approve"]:
            typed_words.append("--yes")
        lifted = billing(*typed_words)
        assert lifted.status == 0, lifted.err

    assert stop.goes_on(world)


def test_money_that_waits_for_a_person_is_settled_in_the_dashboard_as_the_doctor_says(
    new_world: Callable[..., World],
) -> None:
    """The one that has no command: whether money goes back is not typed here yet."""
    world = new_world(rules=Rules(refund_overpayments=False))
    ana = world.subscribe_save()
    ana.script("LATE_CAPTURE:INSUFFICIENT_BALANCE:172800", "SUCCEEDED")
    world.live(days=4)
    with typed(world) as billing:
        assert "refund in Xendit's dashboard" in billing("doctor", "--json").out
        with world.parts.reading() as session:
            twice = session.scalars(select(Capture.payment_id).where(Capture.overpayment)).one()
        world.control("POST", f"/payments/{twice}/refund")
        world.advance(minutes=1)
        world.deliver_webhooks()
        checks = {check["name"]: check for check in billing("doctor", "--json").document["checks"]}

    assert checks["no_refund_is_stuck"]["ok"]


def test_the_table_of_the_documentation_is_this_one() -> None:
    written = DOCS.read_text(encoding="utf-8")
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    told = {
        stop.name: [row for row in rows if row.startswith(f"| {stop.name} |") and command_of(stop) in row]
        for stop in STOPS
    }
    assert [name for name, found in told.items() if len(found) != 1] == []


def command_of(stop: Stop) -> str:
    """Without what it is called with."""
    return stop.lift.partition(" {")[0]


def test_a_person_may_stop_the_charging_of_a_world_and_lift_it(world: World) -> None:
    with typed(world) as billing:
        assert billing("charging", "stop", "--reason", "bank holiday").status == 0
        assert "`billing charging resume`" in billing("charging", "show").out
        billing("charging", "resume")

    assert world.all(select(ChargingStop)) == []
    assert world.calls(CHARGE) == 0
