"""SIGKILL at every commit of the charge, onboarding and webhook paths: nothing is charged twice, nothing is lost.

For each commit that tests/kills/points.py finds in the code, a real process on the real PostgreSQL is killed just
before its COMMIT is sent and just after it was acknowledged. Then the world goes on: leases run out, Xendit delivers
again what nobody answered, schedulers tick. In the end the simulator's ledger must show what it shows when nobody dies.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from itertools import cycle

import pytest

from tests.kills.points import all_points, numbered_commits
from tests.kills.process import Kill, Moment
from tests.kills.scenarios import SCENARIOS, Otherwise, Scenario
from tests.kills.served import ServedWorld

# Commits that are not on those paths, by name or by room, each with its reason.
LEFT_OUT = {
    "app.refusing_a_copy.refuse#1": "ends a look at the database: writes nothing",
    "payment_sessions.subscribe_with_token#1": "one transaction; repeated, the command names what it has made",
    "sandbox.*": "the demo's own database; the simulation steps through the commits of the others",
    "api.[!s]*": "one transaction for one command; whoever sees it fail repeats it",
    "doctor.*": "repairs: idempotent, one row each, run again by whoever ran them (tests/services/test_doctor.py)",
    "tick.send_charges#1": "gives back leases, which end by themselves",
    "parking.*": "parks or lets go a portion; the state it follows is elsewhere, a look goes on (test_parked.py)",
    "endings.close_overdue_invoices#2": "holds an invoice that raised an error; the next tick meets it again",
    "endings.end_subscriptions#2": "holds a subscription that raised an error (stories/test_one_bad_row.py); as above",
    "limits._finish#1": "closes a run of which nothing is left; the next look does it again",
    "limits._let_end#1": "closes a stopped run of which nothing is left; the next look does it again",
    "run._Run.beat#1": "a heart beat",
    "run._take_up#1": "a heart beat, of a run whose process has ended",
    "run._start#1": "what a run taken up plans more: figures to compare with, nothing is charged by them",
    "run._Run.sending.watched#1": "gives back leases, which end by themselves",
    "run._leave#1": "stops the heart; without it the heart stops by itself",
    "control.pause_run#1": "the state alone holds a run, parking is a hint (stories/test_runs.py); safe to repeat",
    "control.stop_run#1": "as above, by a guard, which looks again",
    "control.resume_run#1": "one transaction; safe to repeat",
    "control.abort_run#*": "a second abort takes up what the first has left, and so does the scheduler (test_runs.py)",
    "control.withdraw_rest#1": "as above",
    "control.approve#1": "one subscription a transaction; what was approved waits no more; safe to repeat",
    "key.lift_stop_of_another_key#1": "one row; the next process that starts does it again",
    "import_rows.*": "an import goes on where it stopped (tests/services/test_importing.py)",
    "quota.SharedQuota.outlook#1": "ends a look at the database: writes nothing",
    "quota.SharedQuota.learn#1": "what the gateway's headers say, the next answer says again",
    "quota.SharedQuota._forget_unconfirmed#1": "as above: what is not forgotten now is by a later answer",
    "store.breaker.Breakers.known#1": "ends a look at the database: writes nothing",
    "accounts._count#1": "counts what was denied and stops charging; whoever is refused next does it again",
    "accounts.make_acquaintance#1": "forgets what was denied; the next process that the account knows does it again",
    "send._forget_denied#1": "as above",
    "send._renew#1": "renews leases, which end by themselves",
    "look_up._record_from_list#1": "a refund of the list; the next comparison of that day finds it again",
    "send._hold_unreadable#1": "holds an invoice that raised an error; the next claim meets it again",
    "send._note_channel#1": "releases what waits for a channel; the next answer does it again",
    "send._not_behind_a_breaker#1": "parks what waits for a channel; begin does it again",
    "apply.confirm_events#1": "marks events as applied that bring no news; the scheduler's try does it again",
    "parts.Parts.reading#1": "ends a look at the database: writes nothing",
    "refunds.follow_refund#1": "clears a date that the first release left; tests/upgrade/test_what_they_leave.py",
    "session_results.follow_session#1": "a session Xendit has forgotten is asked about again (test_first_month.py)",
    "store.clock.DatabaseTestClock.__init__#1": "AUTOCOMMIT for one SELECT: writes nothing",
    "store.migrate.*": "the schema (tests/test_migrations.py)",
}
MOMENTS: tuple[Moment, Moment] = ("before", "after")


def _cases() -> Iterator[object]:
    """With KILLS=by-turns (as CI has it, for time) one at each commit, before it and after it by turns."""
    turns = cycle(MOMENTS) if os.environ.get("KILLS") == "by-turns" else None
    for name, scenario in SCENARIOS.items():
        for wanted in scenario.kills:
            for moment in MOMENTS if turns is None else (next(turns),):
                yield pytest.param(scenario, wanted, moment, id=f"{name}:{wanted}-{moment}")


def test_every_commit_has_its_cases() -> None:
    killed_at = {_point(kill) for scenario in SCENARIOS.values() for kill in scenario.kills}

    missing = [str(point) for name, point in all_points().items() if name not in killed_at and not _left_out(name)]

    assert not missing, (
        f"commits at which no process is killed: {', '.join(missing)}. Name each in the kills of a scenario that comes"
        " by it (tests/kills/scenarios.py), or in LEFT_OUT (tests/kills/test_kills.py) with the reason"
    )


def test_no_case_is_of_a_commit_that_is_gone() -> None:
    names = all_points()
    killed_at = {_point(kill) for scenario in SCENARIOS.values() for kill in scenario.kills}

    assert sorted(killed_at - set(names)) == []
    assert [pattern for pattern in LEFT_OUT if not fnmatch.filter(names, pattern)] == []
    assert sorted(name for name in killed_at if _left_out(name)) == []


def _left_out(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def test_what_commits_is_found_in_the_code() -> None:
    source = """
class Shop:
    def sell(self):
        with self._parts.transaction() as session, open(path):
            with session.begin_nested():
                pass
        with closing(engine.begin()) as connection:
            connection.commit()

        async def later():
            async with sessions.begin():
                pass
engine.execution_options(isolation_level="AUTOCOMMIT")
"""
    found = [(function, number, node.lineno) for function, number, node in numbered_commits(source)]

    assert found == [
        ("Shop.sell", 1, 4),
        ("Shop.sell", 2, 7),
        ("Shop.sell", 3, 8),
        ("Shop.sell.later", 1, 11),
        ("", 1, 13),
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_nobody_dies(world: ServedWorld, name: str) -> None:
    """What the others are compared with; and the scenario really comes by the commits it is named for."""
    scenario = SCENARIOS[name]
    scenario.arrange(world)

    ended = world.in_a_process(
        scenario.work, nobody_listens=scenario.nobody_listens, quota_used_up=scenario.quota_used_up
    )

    assert ended.error is None, ended.error
    unseen = [commit for commit in ended.commits if commit not in all_points()]
    assert not unseen, f"a commit that tests/kills/points.py does not find in the code: {unseen[0]}"
    assert [kill for kill in scenario.kills if ended.commits.count(_point(kill)) < _hit(kill)] == [], ended.commits
    _live_on(world, scenario)
    _check(world, Otherwise("nobody died", scenario.ends, scenario.person))


@pytest.mark.parametrize(("scenario", "wanted", "moment"), [*_cases()])
def test_killed_at(world: ServedWorld, scenario: Scenario, wanted: str, moment: Moment) -> None:
    scenario.arrange(world)
    ended = world.in_a_process(
        scenario.work,
        kill=Kill(_point(wanted), moment, _hit(wanted)),
        nobody_listens=scenario.nobody_listens,
        quota_used_up=scenario.quota_used_up,
    )

    assert ended.killed, f"never reached {wanted}: it ended with {ended.status} after {ended.commits}; {ended.error}"
    world.leases_run_out()
    _live_on(world, scenario)
    _check(
        world,
        scenario.otherwise.get(f"{wanted}-{moment}")
        or Otherwise("as if nobody had died", scenario.ends, scenario.person),
    )


def _live_on(world: ServedWorld, scenario: Scenario) -> None:
    """Schedulers tick and Xendit delivers; after an hour people do what they would do."""
    world.live(hours=1)
    scenario.afterwards(world)
    world.live(days=scenario.days)


def _check(world: ServedWorld, right: Otherwise) -> None:
    assert world.what_came_of_it() == list(right.ends), right.why
    assert world.sent_again() == 0
    assert world.left_behind() == []
    assert world.waits_for_a_person() == right.person


def _point(kill: str) -> str:
    return kill.partition("@")[0]


def _hit(kill: str) -> int:
    return int(kill.partition("@")[2] or 1)
