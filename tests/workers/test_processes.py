"""Workers and scheduler as they run in production: what is due is charged once, and they stop when told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import redis

from billing.domain.schedule import last_tick
from billing.sandbox import embedded
from tests.workers.conftest import KEY, Site
from workers.scheduler import JOBS


def test_what_is_due_is_charged_once_and_everybody_stops_in_order(site: Site) -> None:
    """Two schedulers on purpose (D11): any number may run."""
    site.subscribers(5)
    workers, *schedulers = site.start_workers(), site.start_scheduler(), site.start_scheduler()

    site.wait_until(lambda: site.statuses() == ["succeeded"] * 5)

    assert [scheduler.stop() for scheduler in schedulers] == [0, 0]
    assert workers.stop() == 0
    assert site.collected() == site.charges() == 5
    for process in (workers, *schedulers):
        output = process.output
        assert KEY not in output
        assert "Traceback" not in output


def test_without_redis_the_scheduler_does_the_work_itself(site: Site) -> None:
    site.subscribers(3)
    scheduler = site.start_scheduler(without="BILLING_REDIS_URL")

    site.wait_until(lambda: site.statuses() == ["succeeded"] * 3)

    assert scheduler.stop() == 0
    assert site.collected() == 3


def test_what_a_killed_worker_had_in_hand_is_never_charged_twice(site: Site) -> None:
    """D2, D13: SIGKILL in mid-burst; then its work is handed out again, next to the messages still there."""
    site.subscribers(60)
    site.environment["BILLING_XENDIT_REQUESTS_PER_MINUTE"] = "1800"  # groups of three
    workers, scheduler = site.start_workers(), site.start_scheduler()
    site.wait_until(lambda: site.collected() >= 10)
    workers.kill()
    site.leases_run_out()

    successors = site.start_workers()
    site.wait_until(lambda: len(site.statuses()) == 60 and set(site.statuses()) <= {"succeeded", "in_doubt"})

    assert [scheduler.stop(), successors.stop()] == [0, 0]
    # Of what was in hand when it was killed some never left, and half a request may have.
    assert site.collected() <= site.charges() <= 60, "nothing was sent twice"
    assert site.statuses().count("succeeded") >= 60 - 4 * 3, "in doubt is what four threads had in hand"


def test_a_worker_whose_redis_is_gone_finishes_what_it_has_in_hand_and_ends(site: Site) -> None:
    """It could never tell Redis what is done, and waits for that no longer than some seconds."""
    with embedded.valkey() as redis_server:
        site.environment["BILLING_REDIS_URL"] = redis_server.url
        site.subscribers(1)
        fault = b'{"endpoint": "POST /v3/payment_requests", "outcome": "SLOW:3"}'
        site.simulator.answer("POST", "/_simulator/faults", "", {}, fault)
        workers, scheduler = site.start_workers(), site.start_scheduler()
        site.wait_until(lambda: site.charges() == 1)

    assert workers.stop() == 0
    scheduler.stop()
    assert site.statuses() == ["succeeded"]
    assert site.collected() == 1


def test_losing_everything_in_redis_loses_nothing(site: Site) -> None:
    """Redis is the doorbell: its messages are hints, the rows are the truth."""
    site.subscribers(5)
    scheduler = site.start_scheduler()
    site.wait_until(lambda: site.statuses() == ["scheduled"] * 5)
    with redis.Redis.from_url(site.environment["BILLING_REDIS_URL"]) as broker:
        broker.flushdb()
    assert scheduler.stop() == 0

    successor = site.start_scheduler(without="BILLING_REDIS_URL")
    site.leases_run_out()
    site.wait_until(lambda: site.statuses() == ["succeeded"] * 5)

    assert successor.stop() == 0
    assert site.charges() == 5


def test_each_job_has_its_slots() -> None:
    """Six fields, seconds last: a field too far to the left and a daily job runs every second of one day a month."""
    midnight = datetime(2027, 3, 3, tzinfo=UTC)

    def slots(job: str, seconds: range) -> list[datetime]:
        found = {last_tick(JOBS[job].cron, midnight + timedelta(seconds=second)) for second in seconds}
        return sorted(at for at in found if at >= midnight)

    assert len(slots("bill", range(120))) == 120, "every second"
    assert slots("compare-days", range(0, 86_400, 10)) == [midnight + timedelta(hours=3, minutes=17)]
    assert len(slots("forget-ticks", range(0, 86_400, 10))) == 24


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["workers.scheduler"], "BILLING_DATABASE_URL"),
        (["workers.scheduler"], "BILLING_XENDIT_SECRET_KEY"),
        (["dramatiq", "workers", "--processes", "1"], "BILLING_REDIS_URL"),
        (["dramatiq", "workers", "--processes", "1"], "BILLING_DATABASE_URL"),
        (["dramatiq", "workers", "--processes", "1"], "BILLING_XENDIT_SECRET_KEY"),
    ],
)
def test_a_missing_setting_stops_the_process_with_one_line(site: Site, command: list[str], missing: str) -> None:
    process = site.start(*command, without=missing)

    assert process.running.wait(timeout=30) == 2
    ours = [line for line in process.output.splitlines() if line.startswith("billing:")]
    assert len(ours) == 1
    assert ours[0].startswith(f"billing: {missing}: not set; for example {missing}=")


@pytest.mark.parametrize("command", [["workers.scheduler"], ["dramatiq", "workers", "--processes", "1"]])
def test_a_malformed_setting_stops_the_process_and_shows_no_secret(site: Site, command: list[str]) -> None:
    site.environment["BILLING_XENDIT_SECRET_KEY"] = "public_key_hushhush"
    process = site.start(*command)

    assert process.running.wait(timeout=30) == 2
    output = process.output
    assert "BILLING_XENDIT_SECRET_KEY" in output
    assert "hushhush" not in output
    assert "Traceback" not in output
