"""The billing run: what it reports, what it shows beforehand, and how it works with and without workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import select

from billing import metrics
from billing.cli import live
from billing.errors import ServiceUnavailable
from billing.runs import control, run, tick
from billing.store.models import BillingRun
from billing.work import InProcess
from tests.world import World

REPORTED = {"run_id", "at", "opened", "attempted", "succeeded", "failed", "in_doubt", "pending", "skipped"}


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url) as world:
        yield world


def nothing_to_show(_totals: dict[str, Any]) -> None:
    pass


def test_the_report_counts_every_ending(world: World) -> None:
    outcomes = ["SUCCEEDED", "INSUFFICIENT_BALANCE", "TIMEOUT_BEFORE", "PENDING", "REQUIRES_ACTION", "SUCCEEDED"]
    for number, outcome in enumerate(outcomes):
        world.subscribe_save(f"customer{number}").script(outcome)

    report = world.run()

    assert report.keys() >= REPORTED
    assert report["at"] == "2026-01-31T02:00:00Z"
    assert {name: report[name] for name in ("opened", "attempted", "succeeded", "failed", "in_doubt", "pending")} == {
        "opened": 6, "attempted": 6, "succeeded": 2, "failed": 1, "in_doubt": 1, "pending": 2,
    }  # fmt: skip


def test_a_run_is_on_record(world: World) -> None:
    world.subscribe_save()
    report = world.run()

    (row,) = world.all(select(BillingRun))
    assert (row.id, row.opened) == (report["run_id"], 1)
    assert row.finished_at is not None
    assert [attempt.run_id for attempt in world.all_attempts()] == [row.id]


def test_a_run_counts_the_retries_it_makes(world: World) -> None:
    ana = world.subscribe_save()
    ana.script("INSUFFICIENT_BALANCE", "SUCCEEDED")
    world.run()
    world.deliver_webhooks()
    world.advance(days=1)

    report = world.run()

    assert (report["opened"], report["attempted"], report["succeeded"]) == (0, 1, 1)


def test_nothing_due_is_a_run_too(world: World) -> None:
    report = world.run()
    assert (report["opened"], report["attempted"], report["skipped"]) == (0, 0, [])


def test_who_is_skipped_is_told_with_the_reason(world: World) -> None:
    held = world.subscribe_save("held", plan=world.plan("held", catch_up="hold"))
    ended = world.subscribe_save("ended", plan=world.plan("once", cycles=1))
    world.run()
    world.advance(days=100)

    reasons = {line["subscription_id"]: line["reason"] for line in world.run()["skipped"]}

    assert "hold" in reasons[held.id]
    assert "cycles" in reasons[ended.id]
    assert reasons.keys() == {held.id, ended.id}
    assert {line["subscription_id"] for line in world.run()["skipped"]} == {held.id}, "a hold is told every time"


# The dry run


def test_the_dry_run_foretells_the_run(world: World) -> None:
    for number in range(3):
        world.subscribe_save(f"customer{number}")
    retried = world.subscribe_save("retried")
    retried.script("INSUFFICIENT_BALANCE")
    world.run()
    world.deliver_webhooks()
    world.advance(days=29)

    foretold = run.dry_run(world.parts, None)
    done = world.run()

    assert foretold["dry_run"] is True
    assert foretold["opened"] == done["opened"] == 4
    assert foretold["totals"] == {"IDR": str(50_000 * len(foretold["planned"]))}
    assert foretold["attempted"] == done["attempted"] == 5
    assert {line["customer"] for line in foretold["planned"]} == {"customer0", "customer1", "customer2", "retried"}


def test_the_dry_run_asks_nobody_and_writes_nothing(world: World) -> None:
    ana = world.subscribe_save()
    before = asked_of_xendit(world)

    run.dry_run(world.parts, world.now + timedelta(days=400))

    assert asked_of_xendit(world) == before
    assert ana.invoices == []
    assert world.all(select(BillingRun)) == []


def test_the_dry_run_of_a_later_day_shows_what_would_be_due_then(world: World) -> None:
    world.subscribe_save()
    planned = run.dry_run(world.parts, world.now + timedelta(days=60))["planned"]
    assert [line["period_start"][:10] for line in planned] == ["2026-01-31", "2026-02-28", "2026-03-31"]


def test_the_dry_run_says_who_has_nothing_to_be_charged_with(world: World) -> None:
    ana = world.subscribe_save()
    world.control("POST", f"/tokens/{ana.tokens[0].payment_token_id}/expire")
    world.deliver_webhooks()
    (line,) = run.dry_run(world.parts, None)["planned"]
    assert line["payment_token_id"] is None
    assert "customer would be asked" in line["note"]


# Threads and workers


def test_a_pool_of_threads_charges_everybody_once(world: World) -> None:
    for number in range(30):
        world.subscribe_save(f"customer{number}")
    pool = InProcess(world.parts, 8)

    report = run.run_here(world.parts, pool, None, nothing_to_show)
    pool.close()

    assert report["succeeded"] == 30
    assert world.collected() == [50_000] * 30


def test_with_workers_it_hands_out_and_returns(world: World) -> None:
    world.subscribe_save()
    handed: list[tuple[str, Sequence[str]]] = []

    report = run.run_on_workers(
        world.parts, lambda kind, ids: handed.append((kind, ids)), None, nothing_to_show, wait=False
    )

    assert (report["opened"], report["attempted"]) == (1, 0)
    assert [(kind, len(ids)) for kind, ids in handed] == [("charge_now", 1)]


def test_with_workers_it_follows_the_work_to_its_end(world: World) -> None:
    for number in range(5):
        world.subscribe_save(f"customer{number}")
    at_work: list[threading.Thread] = []

    def workers(kind: str, ids: Sequence[str]) -> None:
        at_work.append(threading.Thread(target=world.send, args=(kind, ids)))
        at_work[-1].start()

    report = run.run_on_workers(world.parts, workers, None, nothing_to_show, wait=True)
    for thread in at_work:
        thread.join()

    assert report["succeeded"] == 5


def test_without_a_worker_waiting_ends_with_advice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STALLED_SECONDS", 0)
    monkeypatch.setattr(run, "POLL_SECONDS", 0)
    world.subscribe_save()

    with pytest.raises(ServiceUnavailable, match="start `dramatiq workers`"):
        run.run_on_workers(world.parts, lambda _kind, _ids: None, None, nothing_to_show, wait=True)


def test_redis_away_leaves_the_work_due(world: World) -> None:
    ana = world.subscribe_save()

    def away(_kind: str, _ids: Sequence[str]) -> None:
        raise ServiceUnavailable("Redis does not answer")

    with pytest.raises(ServiceUnavailable):
        run.run_on_workers(world.parts, away, None, nothing_to_show, wait=False)
    assert ana.outcomes == ["scheduled"]

    world.leases_run_out()
    assert world.run()["succeeded"] == 1


def test_progress_is_told(world: World) -> None:
    world.subscribe_save()
    seen: list[dict[str, Any]] = []
    run.run_here(world.parts, world.send, None, seen.append)
    assert seen[-1]["succeeded"] == 1


def asked_of_xendit(world: World) -> dict[str, Any]:
    calls = world.control("GET", "/requests")
    return {endpoint: counts for endpoint, counts in calls.items() if "/_simulator" not in endpoint}


# As metrics


def test_the_metrics_tell_of_the_run_that_goes_on_and_of_those_that_wait(world: World) -> None:
    for number in range(3):
        world.subscribe_save(f"customer{number}", start_at=world.now)
    with world.parts.transaction() as session:
        day, _ = tick.take_daily_run(session, world.now)
    tick.open_all_due(world.parts, world.now, run_id=day)
    world.send("charge", [world.all_attempts()[0].id])

    page = metrics.exposition(world.parts).decode()

    assert 'billing_run_charges{run="daily",status="succeeded"} 1.0' in page
    assert 'billing_run_waiting{run="daily"} 2.0' in page
    assert 'billing_run_rate_per_minute{run="daily"} 1.0' in page
    assert 'billing_runs_stopped{state="stopped"} 0.0' in page
    control.stop_run(world.parts, day, "decline_jump", "too many declines")
    assert 'billing_runs_stopped{state="stopped"} 1.0' in metrics.exposition(world.parts).decode()


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_its_terminal(world: World, width: int) -> None:
    world.subscribe_save("ana").script("INSUFFICIENT_BALANCE")
    world.subscribe_save("ben")
    shown = world.run() | {
        "channels_down": [{"channel_code": "ID_OVO", "reason": "CHANNEL_UNAVAILABLE", "since": None}]
    }
    terminal = Console(width=width, record=True, file=StringIO())

    terminal.print(live.draw(shown))

    lines = terminal.export_text().splitlines()
    assert max(map(len, lines)) <= width
    for words in ("finished", "2 of 2  100%", "INSUFFICIENT_BALANCE", "IDR 50,000", "ID_OVO is down"):
        assert any(words in line for line in lines), words
