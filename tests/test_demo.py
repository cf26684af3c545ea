"""`billing demo`: it tells the truth, touches nothing of the person's own, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.domain.lifecycle import SubscriptionStatus
from billing.domain.money import Money
from billing.sandbox.demo import figures
from billing.sandbox.demo.cast import Fate, card_number, cast, end_of, sign_up_days
from billing.sandbox.demo.figures import Proof
from billing.sandbox.demo.phrases import phrase
from billing.sandbox.demo.screen import Ticker
from billing.store.engine import make_engine
from billing.store.models import ChargeAttempt, Fact
from tests.factories import NOW, make_invoice, make_paid_invoice, make_subscription

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 100.0  # a demo of some people and two months, on a machine that is busy with other tests

pytestmark = pytest.mark.timeout(240)


# ------------------------------------------------------------------------------------------- the whole thing


@pytest.fixture
def somebodys_folder(tmp_path: Path) -> Path:
    """With settings that would be fatal to use: another database, a production key, ports that are taken."""
    (tmp_path / ".env").write_text(
        "BILLING_DATABASE_URL=postgresql+psycopg://nobody@127.0.0.1:1/production\n"
        "BILLING_XENDIT_SECRET_KEY=xnd_production_somebodys\n"
        "BILLING_IN_DOUBT_POLICY=hold\n"
    )
    return tmp_path


def test_two_months_end_with_both_ledgers_equal(somebodys_folder: Path) -> None:
    with _port_taken(8000), _port_taken(8100):
        done = _demo(somebodys_folder, "--customers", "12", "--months", "2", "--seed", "3", "--json")

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["customers"], told["months"], told["seed"]) == (12, 2, 3)
    assert told["ledger_agrees"], told
    assert told["doctor_ok"], told
    assert told["charged_twice"] == told["periods_missed"] == 0
    assert told["paid"] == told["payments"] > 12
    assert 0 < told["renewals"] < told["attempts"]
    assert told["retried"] >= told["recovered"] >= 1
    assert set(told["collected"]) >= {"IDR"}
    assert told["in_doubt"] == told["in_doubt_resolved"]
    assert sum(told["subscriptions"].values()) == 12
    assert {"uncollectible", "owed", "canceled", "seconds"} <= set(told)
    assert sorted(path.name for path in somebodys_folder.iterdir()) == [".env"]


def test_in_a_pipe_it_is_plain_text_a_person_can_read(somebodys_folder: Path) -> None:
    done = _demo(somebodys_folder, "--customers", "10", "--months", "1", PYTHONIOENCODING="ascii", LC_ALL="C")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    for heading in ("a month, lived through", "Money by month", "The proof", "What next"):
        assert heading in done.stdout
    ledgers = re.findall(r"gateway ledger (\S+ \S+)  =  our ledger (\S+ \S+)", done.stdout)
    assert ledgers
    assert all(theirs == ours for theirs, ours in ledgers)
    assert "renewals" in done.stdout
    assert str(somebodys_folder) not in done.stdout
    assert str(ROOT) not in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_however_it_is_ended_nothing_is_left_running_or_lying_around(
    number: signal.Signals, status: int, somebodys_folder: Path
) -> None:
    mark = f"demo-test-{uuid.uuid4().hex}"
    demo = subprocess.Popen(
        [sys.executable, "-m", "billing", "demo", "--customers", "30", "--months", "12"],
        cwd=somebodys_folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test runner in the background may have Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert demo.stdout is not None
    while "everything is running" not in (line := demo.stdout.readline()):
        assert line, demo.communicate()[1]
    running = _processes_with(mark)
    assert len(running) >= 5
    database, redis_port = _servers_of(running)
    assert database.exists()

    demo.send_signal(number)

    _out, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == status
    assert "Traceback" not in err
    _wait_until(lambda: not _processes_with(mark))
    _wait_until(lambda: not database.exists())
    _wait_until(lambda: not _answers(redis_port))


def _demo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"BILLING_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/other", "BILLING_RUN_THREADS": "none"}
    return subprocess.run(
        [sys.executable, "-m", "billing", "demo", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:1", **settings, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


@contextmanager
def _port_taken(port: int) -> Iterator[None]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            pass  # taken by somebody else: just as well
        else:
            server.listen()
        yield


def _processes_with(mark: str) -> list[int]:
    """Processes that were started with this word in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def _servers_of(processes: list[int]) -> tuple[Path, int]:
    """The folder of the demo's PostgreSQL and the port of its Valkey, as its children are told."""
    told = b"\0".join(Path("/proc", str(pid), "environ").read_bytes() for pid in processes).decode()
    folder = re.search(r"BILLING_DATABASE_URL=\S+?host=([^\0]+)", told)
    port = re.search(r"BILLING_REDIS_URL=redis://127\.0\.0\.1:(\d+)", told)
    assert folder is not None
    assert port is not None
    return Path(folder[1]), int(port[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "still there after 30 seconds"
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------- the cast


def test_the_same_seed_makes_the_same_cast() -> None:
    assert cast(60, 12, 7) == cast(60, 12, 7)
    assert cast(60, 12, 7) != cast(60, 12, 8)


@pytest.mark.parametrize("customers", [1, 2, 7, 30, 300])
def test_a_cast_has_as_many_as_asked_for_and_somebody_steady(customers: int) -> None:
    people = cast(customers, 12, 1)

    assert len(people) == customers
    assert len({person.card_number for person in people}) == customers
    assert customers < 3 or any(person.fate == Fate.STEADY for person in people)


def test_in_a_cast_of_some_size_every_fate_is_met() -> None:
    fates = Counter(person.fate for person in cast(120, 12, 7))

    assert set(fates) == set(Fate)
    assert 0.65 < fates[Fate.STEADY] / 120 < 0.85


def test_whoever_is_short_in_the_last_month_has_paid_until_then() -> None:
    lately = [person for person in cast(300, 12, 7) if person.fate == Fate.LATELY_SHORT]

    assert lately
    for person in lately:
        assert person.script.count("SUCCEEDED") in (10, 11)
        assert "INSUFFICIENT_BALANCE/51" in person.script


def test_people_sign_up_on_mondays_long_before_the_end() -> None:
    for months in (1, 2, 12):
        days = sign_up_days(months)
        assert days
        assert all(day.weekday() == 0 for day in days)
        assert days[-1] + timedelta(days=3) < end_of(months)


def test_card_numbers_are_real_enough_for_a_payment_page() -> None:
    assert card_number(1) == "4000100000000018"
    digits = [int(digit) for digit in card_number(123)]
    doubled = [digit if place % 2 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(digits)]
    assert sum(doubled) % 10 == 0


# ------------------------------------------------------------------------------------------------- the proof


AGREED: dict[str, Any] = {
    "theirs": {"IDR": Money(5, "IDR")},
    "ours": {"IDR": Money(5, "IDR")},
    "payments": 1,
    "differences": 0,
    "charged_twice": 0,
    "periods": 1,
    "periods_missed": 0,
    "checks": 30,
    "failed_checks": [],
}


def test_a_proof_holds_only_if_everything_holds() -> None:
    assert Proof(**AGREED).holds
    for flaw in (
        {"theirs": {"IDR": Money(6, "IDR")}},
        {"differences": 1},
        {"charged_twice": 1},
        {"periods_missed": 1},
        {"failed_checks": ["leases"]},
    ):
        assert not Proof(**AGREED | flaw).holds, flaw


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = make_engine(database_url)
    with Session(engine, expire_on_commit=False) as opened:
        yield opened
    engine.dispose()


def test_a_period_without_invoice_or_reason_is_missed(session: Session) -> None:
    subscription = make_subscription(session)
    make_invoice(session, subscription)
    later = NOW + timedelta(days=70)  # three monthly periods have begun, one has an invoice

    assert figures._periods(session, later) == (3, 2)


def test_nothing_is_due_after_the_end(session: Session) -> None:
    subscription = make_subscription(session)
    make_invoice(session, subscription)
    subscription.status, subscription.canceled_at = SubscriptionStatus.CANCELED, NOW + timedelta(days=5)
    session.flush()

    assert figures._periods(session, NOW + timedelta(days=70)) == (1, 0)


def test_two_captures_of_one_invoice_are_a_double_charge(session: Session) -> None:
    invoice = make_paid_invoice(session)
    attempt = session.scalars(select(ChargeAttempt).where(ChargeAttempt.invoice_id == invoice.id)).one()
    once = {"reference_id": attempt.reference_id, "captures": 1}
    from_a_session = {"reference_id": f"{attempt.reference_id}_s0meSuff1x", "captures": 1}

    assert figures._charged_twice(session, [once]) == 0
    assert figures._charged_twice(session, [once, from_a_session]) == 1
    assert figures._charged_twice(session, [{**once, "captures": 2}]) == 1


# ------------------------------------------------------------------------------------------------- the ticker


def _fact(kind: str, **detail: Any) -> Fact:
    return Fact(kind=kind, detail=detail, at=datetime(2027, 3, 1, tzinfo=UTC))


def test_the_ticker_tells_the_first_of_each_kind_and_follows_it_to_its_end() -> None:
    ticker = Ticker()
    declined, paid = _fact("attempt.failed", failure_code="INSUFFICIENT_BALANCE"), _fact("invoice.paid")

    assert not ticker.wants("Ana", paid)
    assert ticker.wants("Ana", declined)
    assert not ticker.wants("Budi", declined)
    assert ticker.wants("Ana", declined)
    assert ticker.wants("Ana", paid)
    assert not ticker.wants("Ana", paid)


def test_facts_are_told_in_a_few_words() -> None:
    retry = "retry at 2027-03-02T03:00:00+00:00: INSUFFICIENT_BALANCE: step 1 of 5, day 1"
    failed = phrase("attempt.failed", {"failure_code": "INSUFFICIENT_BALANCE", "next": retry}, "IDR")
    found = phrase("invoice.paid", {"amount": "99000", "source": "lookup"}, "IDR")

    assert failed is not None
    assert failed[0] == "declined: not enough funds; tried again on 2 Mar"
    assert found is not None
    assert found[0] == "IDR 99,000 paid (found by asking Xendit)"
    assert phrase("subscription.past_due", {}, "IDR") is None


@pytest.mark.parametrize(("invoice", "renewal"), [("ana-1", False), ("ana-2", True), ("ana-gold-12", True)])
def test_charges_after_the_first_are_called_renewals(invoice: str, renewal: bool) -> None:
    failed = {"failure_code": "INSUFFICIENT_BALANCE", "next": "gave up", "invoice": invoice}
    told = phrase("attempt.failed", failed, "IDR")
    paid = phrase("invoice.paid", {"amount": "99000", "source": "answer", "invoice": invoice}, "IDR")

    assert told is not None
    assert told[0].startswith("renewal declined" if renewal else "declined")
    assert paid is not None
    assert paid[0] == ("renewal paid: IDR 99,000" if renewal else "IDR 99,000 paid")
