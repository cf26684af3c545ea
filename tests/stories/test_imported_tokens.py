"""Imported payment methods are verified with Xendit in the background, before they are first due."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import simplejson
from sqlalchemy import select

from billing.checks import doctor
from billing.domain.gateway import Lane
from billing.domain.lifecycle import HoldKind
from billing.runs import run, tick
from billing.store.models import Customer, PaymentToken, Subscription
from billing.subscribing import import_rows
from tests.world import CHARGE, World

GET_TOKEN = "GET /v3/payment_tokens/{id}"


@dataclass
class Moving:
    """Rows of a file, each of another subscriber with a token of Xendit's."""

    world: World
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, name: str, *, due_in: float = 30, token: str | None = None, **members: Any) -> str:
        token = token or self.world.control("POST", "/tokens", {})["payment_token_id"]
        row = {"customer_reference": name, "name": "Old", "email": "old@example.com", "country": "ID", "plan": "gold"}
        row |= {"subscription_reference": f"{name}-gold", "payment_token_id": token, "channel_code": "CARDS"}
        row |= {"next_billing_at": (self.world.now + timedelta(days=due_in)).isoformat()} | members
        self.rows.append(row)
        return token

    def take(self, *, verify: bool = False) -> dict[str, Any]:
        lines = [simplejson.dumps(row) for row in self.rows]
        return import_rows.import_rows(self.world.parts, lines, dry_run=False, verify_with_gateway=verify)

    def statuses(self) -> dict[str, str]:
        with self.world.parts.reading() as session:
            found = select(Customer.reference, PaymentToken.status).join(
                PaymentToken, PaymentToken.customer_id == Customer.id
            )
            return {row[0]: row[1] for row in session.execute(found)}

    def subscription(self, name: str) -> Subscription:
        with self.world.parts.reading() as session:
            return session.scalars(select(Subscription).where(Subscription.reference == f"{name}-gold")).one()


@pytest.fixture
def moving(world: World) -> Moving:
    world.plan()
    return Moving(world)


def is_at_xendit(world: World, token: str, status: str) -> None:
    world.simulator.world.tokens[token].document["status"] = status


def found_by_the_doctor(world: World, name: str) -> dict[str, Any]:
    return next(check for check in doctor.examine(world.parts)["checks"] if check["name"] == name)


def test_an_import_asks_nobody_and_a_tick_asks_about_every_token(world: World, moving: Moving) -> None:
    for number in range(3):
        moving.row(f"c{number}")

    assert moving.take()["created"] == 3
    assert world.calls(GET_TOKEN) == 0
    assert set(moving.statuses().values()) == {"PENDING"}
    assert found_by_the_doctor(world, "imported_tokens_are_verified")["count"] == 3

    world.settle_down()

    assert world.calls(GET_TOKEN) == 3
    assert set(moving.statuses().values()) == {"ACTIVE"}
    assert found_by_the_doctor(world, "imported_tokens_are_verified")["count"] == 0


def test_those_that_are_due_first_are_asked_about_first_whichever_file_they_came_with(
    world: World, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick, "VERIFIED_AT_ONCE", 2)
    order: list[str] = []
    refresh = world.gateway.get_token
    monkeypatch.setattr(world.gateway, "get_token", lambda token: (order.append(token), refresh(token))[1])
    late, soon, later = (moving.row(name, due_in=days) for name, days in (("a", 20), ("b", 3), ("c", 40)))
    moving.take()
    world.advance(hours=1)
    sooner = moving.row("d", due_in=1)
    moving.take()

    world.settle_down()

    assert order[:2] in ([sooner, soon], [soon, sooner])
    assert set(order[2:]) == {late, later}
    assert len(order) == 4


def test_a_large_import_does_not_keep_back_a_token_that_xendit_did_not_know(
    world: World, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick, "VERIFIED_AT_ONCE", 1)
    stranger = moving.row("ana", token="pt-unknown")
    moving.take()
    world.settle_down()
    moving.rows.clear()
    for number in range(5):
        moving.row(f"c{number}")
    moving.take()
    world.advance(days=1)
    asked: list[str] = []
    monkeypatch.setattr(world.gateway, "get_token", lambda token: asked.append(token) or pytest.fail("enough"))

    with pytest.raises(pytest.fail.Exception):
        world.tick()

    assert asked == [stranger]


def test_a_run_without_redis_verifies_for_a_bounded_time(
    world: World, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick, "VERIFIED_AT_ONCE", 2)
    for number in range(9):
        moving.row(f"c{number}", due_in=number + 1)
    moving.take()

    monkeypatch.setattr(run, "VERIFY_SECONDS", 0.0)
    world.run()
    assert world.calls(GET_TOKEN) == 2, "one portion in any case"

    monkeypatch.setattr(run, "VERIFY_SECONDS", 60.0)
    world.run()
    assert world.calls(GET_TOKEN) == 9
    assert set(moving.statuses().values()) == {"ACTIVE"}


def test_what_is_due_is_charged_before_a_run_verifies_the_others(world: World, moving: Moving) -> None:
    moving.row("due", due_in=0)
    moving.row("later", due_in=30)
    moving.take()

    world.run()

    assert world.calls(CHARGE) == 1
    assert moving.statuses() == {"due": "ACTIVE", "later": "ACTIVE"}
    assert world.calls(GET_TOKEN) == 2, "each once: the charge has asked about the one, the run about the other"


def test_it_is_asked_in_the_lane_of_look_ups(world: World, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    from billing.parts import lane_of_this_work

    lanes: list[Lane] = []
    ask = world.gateway.get_token
    monkeypatch.setattr(world.gateway, "get_token", lambda token: (lanes.append(lane_of_this_work()), ask(token))[1])
    moving.row("ana")
    moving.take()

    world.settle_down()

    assert lanes == [Lane.UPKEEP]


def test_an_unknown_token_holds_its_subscription_and_the_file_says_so_the_next_time(
    world: World, moving: Moving
) -> None:
    moving.row("ana", token="pt-unknown")
    moving.row("ben")
    assert moving.take()["created"] == 2
    assert moving.take()["unchanged"] == 2, "nobody has found out yet"

    world.settle_down()

    assert moving.subscription("ana").hold_kind == HoldKind.TOKEN_UNKNOWN
    report = moving.take()
    assert (report["created"], report["unchanged"]) == (0, 1)
    (refused,) = report["refused"]
    assert refused["line"] == 1
    assert refused["reason"].startswith("payment_token_id: Xendit does not know this token with the key in use")
    assert "subscription ana-gold is here and cannot be charged" in refused["reason"]
    assert found_by_the_doctor(world, "no_subscription_is_held")["count"] == 1
    world.waive("no_subscription_is_held")


def test_a_dead_token_is_told_by_the_file_and_by_the_doctor_before_anything_is_due(
    world: World, moving: Moving
) -> None:
    is_at_xendit(world, moving.row("ana"), "EXPIRED")
    moving.take()

    world.settle_down()

    assert moving.statuses() == {"ana": "EXPIRED"}
    (refused,) = moving.take()["refused"]
    assert "Xendit says the token is EXPIRED; subscription ana-gold is here" in refused["reason"]
    news = found_by_the_doctor(world, "subscriptions_have_a_payment_method")
    assert (news["ok"], news["count"]) == (True, 1)


def test_a_customer_with_another_method_is_no_refusal(world: World, moving: Moving) -> None:
    is_at_xendit(world, moving.row("ana"), "EXPIRED")
    moving.row("ana", subscription_reference="ana-2")
    moving.take()

    world.settle_down()

    assert moving.take() == {"created": 0, "unchanged": 2, "refused": []}
    assert found_by_the_doctor(world, "subscriptions_have_a_payment_method")["count"] == 0


def test_a_token_of_another_customer_at_xendit_is_not_charged(world: World, moving: Moving) -> None:
    """The row says whose it must be; at Xendit it is somebody else's, as --verify would have found."""
    token = moving.row("ana", due_in=0, xendit_customer_id="cust-ana")
    world.simulator.world.tokens[token].document["customer_id"] = "cust-ben"
    moving.take()

    world.live(days=1)

    assert world.calls(CHARGE) == 0
    (refused,) = moving.take()["refused"]
    assert "ANOTHER_CUSTOMER" in refused["reason"]


def test_what_xendit_could_not_say_is_asked_again_within_the_hour(
    world: World, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from billing.errors import NotSent

    moving.row("ana")
    moving.take()
    ask = world.gateway.get_token

    def away(_token: str) -> None:
        raise NotSent("no line")

    monkeypatch.setattr(world.gateway, "get_token", away)
    world.settle_down()
    assert moving.statuses() == {"ana": "PENDING"}
    monkeypatch.setattr(world.gateway, "get_token", ask)

    world.live(hours=1)

    assert moving.statuses() == {"ana": "ACTIVE"}


def test_to_verify_later_asks_about_those_that_nobody_has_asked_about(world: World, moving: Moving) -> None:
    moving.row("ana")
    moving.row("ben", token="pt-unknown")
    assert moving.take()["created"] == 2

    report = moving.take(verify=True)

    assert (report["unchanged"], [refused["line"] for refused in report["refused"]]) == (1, [2])
    assert moving.statuses() == {"ana": "ACTIVE", "ben": "PENDING"}
    assert moving.subscription("ben").hold_kind == HoldKind.TOKEN_UNKNOWN
    world.waive("no_subscription_is_held")


def test_a_file_verified_at_once_leaves_nothing_to_ask(world: World, moving: Moving) -> None:
    moving.row("ana")
    moving.row("ben", token="pt-unknown")

    report = moving.take(verify=True)
    asked = world.calls(GET_TOKEN)
    world.settle_down()

    assert (report["created"], [refused["line"] for refused in report["refused"]]) == (1, [2])
    assert moving.statuses() == {"ana": "ACTIVE"}
    assert world.calls(GET_TOKEN) == asked
