"""The law of conservation without any fault of machines: whatever the plan is, whoever pauses, cancels or approves, and
whatever the bank says, every due period has exactly one fate (sandbox/simulation/oracle.py judges).

Hypothesis draws a plan and what happens to it; three months are lived through with nothing else going wrong. The
examples are the same on every machine. A failure prints the example and the history that led to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from billing.sandbox.simulation.periods import LAST_DAY, CronRule, Rhythm
from billing.sandbox.simulation.play import Failed, Play
from billing.sandbox.simulation.population import CARDS, IDR, Subscriber
from billing.sandbox.simulation.runner import empty

DAYS = 110  # two thirds of them with events, then nothing more happens
EXAMPLES = 12
SEED = 1  # of ids and of the order of processes

RHYTHMS = (
    Rhythm("every 1:week", days=7),
    Rhythm("every 10:day", days=10),
    Rhythm("every 2:week", days=14),
    Rhythm("every 1:month", months=1),
    Rhythm("cron 30 2 L * *", cron=CronRule(2, 30, days=(LAST_DAY,))),
    Rhythm("cron 0 9 1,15 * *", cron=CronRule(9, 0, days=(1, 15))),
)
CATCH_UPS = ("all", "latest", "skip", "hold")
DUNNINGS = ("standard", "gentle", "strict", "pause", "none")
DECLINES = ("INSUFFICIENT_BALANCE", "CARD_DECLINED", "ISSUER_UNAVAILABLE", "DECLINED_BY_ISSUER/14/03", "STOLEN_CARD")
EVENTS = (
    "everything is down", "charging is stopped", "pause", "resume", "cancel at the end", "cancel now", "approve",
    "pay by hand", "add a card",
)  # fmt: skip


@dataclass(frozen=True)
class Life:
    """One example. `events`: (day, what, for how many days); `bank`: what it says to one charge after the other."""

    rhythm: str
    cycles: int | None = None
    trial_days: int = 0
    start_day: int | None = None  # after the beginning; None: when the card is saved
    card_day: int = 0
    via: str = "save"
    catch_up: str = "all"
    dunning: str = "standard"
    events: tuple[tuple[int, str, int], ...] = ()
    bank: tuple[str | None, ...] = ()


@st.composite
def lives(draw: st.DrawFn) -> Life:
    rhythm = draw(st.sampled_from(RHYTHMS))
    via = "save" if rhythm.cron else draw(st.sampled_from(("save", "save", "pay")))
    event = st.tuples(st.integers(1, 75), st.sampled_from(EVENTS), st.integers(1, 25))
    return Life(
        rhythm=rhythm.told,
        cycles=draw(st.sampled_from((1, 2, 3, 6, None))),
        trial_days=draw(st.sampled_from((0, 0, 0, 5))) if via == "save" else 0,
        start_day=draw(st.sampled_from((None, None, 3, 10))),
        card_day=draw(st.sampled_from((0, 0, 0, 25))),
        via=via,
        catch_up=draw(st.sampled_from(CATCH_UPS)),
        dunning=draw(st.sampled_from(DUNNINGS)),
        events=tuple(draw(st.lists(event, max_size=4))),
        bank=tuple(draw(st.lists(st.sampled_from((None, None, *DECLINES)), max_size=12))),
    )


def subscriber_of(life: Life, start: datetime) -> Subscriber:
    return Subscriber(
        reference="ana",
        customer="ana",
        market=IDR,
        rhythm=next(rhythm for rhythm in RHYTHMS if rhythm.told == life.rhythm),
        zone=IDR.zone,
        via=life.via,
        catch_up=life.catch_up,
        dunning=life.dunning,
        cycles=life.cycles,
        trial_days=life.trial_days,
        start_at=None if life.start_day is None else start + timedelta(days=life.start_day, minutes=30),
        created_at=start,
        comes_at=start + timedelta(days=life.card_day),
        wallet=None,
        card=CARDS[0],
    )


def act_of(play: Play, what: str, days: int) -> Callable[[], None]:
    """One event of a life, as something that can be planned."""
    people, (ana,) = play.people, play.subscribers
    match what:
        case "everything is down":
            return partial(play.everything_is_down, days * 86_400.0)
        case "charging is stopped":
            return partial(play.stop_charging, days * 24.0)
        case "approve":
            return partial(play.by_hand, people.approve_holds)
        case _:
            return partial(play.by_hand, lambda parts: people.do(parts, ana, BY_HAND[what]))


BY_HAND = {
    "pause": "pauses", "resume": "resumes", "cancel at the end": "cancels at the end of the period",
    "cancel now": "cancels at once", "pay by hand": "pays the newest invoice by hand",
    "add a card": "adds a payment method",
}  # fmt: skip


def live(engine: Engine, life: Life) -> None:
    """Raises Failed, with the history, when a period has no fate, or two, or the wrong one."""
    empty(engine)
    play = Play(SEED, engine, subscribers=lambda start: [subscriber_of(life, start)], days=DAYS, gentle=True)
    play.fate.script.extend(life.bank)
    for day, what, days in life.events:
        play.later(day, act_of(play, what, days))
    play.live_through()


@pytest.mark.timeout(300)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a life of three months takes too long to be made smaller
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(life=lives())
# What the law was written for.
@example(life=Life("every 1:month", cycles=2, events=((2, "everything is down", 70),)))
@example(life=Life("every 1:month", cycles=2, catch_up="skip", events=((2, "everything is down", 70),)))
@example(life=Life("every 1:week", cycles=3, bank=(None, None, *["INSUFFICIENT_BALANCE"] * 6)))
@example(life=Life("every 1:week", cycles=3, events=((13, "charging is stopped", 10),)))
@example(
    life=Life(
        "every 1:month",
        dunning="gentle",
        events=((40, "cancel at the end", 1),),
        bank=(None, *["INSUFFICIENT_BALANCE"] * 9),
    )
)
@example(life=Life("every 10:day", cycles=2, dunning="gentle", bank=(None, *["INSUFFICIENT_BALANCE"] * 9)))
@example(life=Life("every 10:day", start_day=3, card_day=50))
@example(life=Life("every 1:month", via="pay", card_day=2, events=((2, "everything is down", 3),)))
@example(
    life=Life("every 1:week", cycles=6, catch_up="hold", events=((9, "everything is down", 20), (40, "approve", 1)))
)
def test_every_due_period_has_exactly_one_fate(engine: Engine, life: Life) -> None:
    try:
        live(engine, life)
        broken = None
    except Failed as failure:
        broken = f"{life}\n{failure}"
    if broken is not None:
        pytest.fail(broken, pytrace=False)
