"""Surroundings that nobody planned: told to end in the middle, no stdin, no stderr. Others reported them in public."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType

import pytest
from sqlalchemy import inspect, text

from billing.__main__ import main as begin
from billing.cli import _end_like_ctrl_c, main
from billing.store.clock import machine_time, real_now
from billing.store.engine import make_engine
from billing.xendit.client import XenditGateway
from tests.cli.terminal import Terminal, Xendit

# ------------------------------------------------------------------------------------------------ ended from outside


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """And while the test runs, a signal that nobody handles fails it rather than ending pytest."""

    def unhandled(number: int, _frame: object) -> None:
        raise AssertionError(f"signal {number} ended the process in the middle of its work")

    before = {number: signal.signal(number, unhandled) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("signals_as_they_were")
def test_a_run_that_is_told_to_end_finishes_the_charge_it_has_sent(
    shop: Terminal,
    xendit: Xendit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    """`timeout 55 billing run` in a crontab, a container that is stopped, a terminal that is closed."""
    session = shop.json("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    send = XenditGateway.charge
    sent: list[object] = []

    def told_to_end_while_sending(gateway: XenditGateway, request: object) -> object:
        if not sent:
            os.kill(os.getpid(), number)
        sent.append(request)
        return send(gateway, request)  # type: ignore[arg-type]

    monkeypatch.setattr(XenditGateway, "charge", told_to_end_while_sending)
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["billing", "run"])
    capsys.readouterr()

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 128 + number
    told = capsys.readouterr().err
    assert told == "billing: interrupted; nothing is lost, what was under way is taken up again\n"
    [invoice] = shop.json("invoice", "list")
    assert invoice["status"] == "paid"
    assert len(sent) == 1


@pytest.mark.usefixtures("signals_as_they_were")
def test_what_nohup_has_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _end_like_ctrl_c()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ctrl_c_before_everything_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Importing(ModuleType):
        def __getattr__(self, _name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "billing.cli", Importing("billing.cli"))
    with pytest.raises(SystemExit) as ended:
        begin()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "billing: interrupted; nothing was begun\n"


# ------------------------------------------------------------------------------------------------------ wrong clocks


@pytest.mark.parametrize("off", [timedelta(days=365), timedelta(days=-1)])
def test_a_machine_with_a_wrong_clock_charges_nobody(shop: Terminal, xendit: Xendit, off: timedelta) -> None:
    session = shop.json("subscribe", "ana", "gold", "--via", "save")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    wrong = real_now() + off
    with machine_time(lambda: wrong, time.monotonic):
        line = shop.refused("run")
    assert line.startswith("the clock of this machine says ")
    assert line.endswith("nothing is billed until they agree; set the wrong one (NTP)")
    assert shop.json("invoice", "list") == []

    assert shop.json("run")["succeeded"] == 1


# -------------------------------------------------------------------------------------------- settings and databases


@pytest.mark.parametrize(
    "name", ["BILLING_TEST_CLOCK", "BILLING_RUN_THREADS", "BILLING_LOG_FORMAT", "BILLING_XENDIT_REQUESTS_PER_MINUTE"]
)
def test_a_setting_that_is_set_to_nothing_is_not_set(billing: Terminal, name: str) -> None:
    """Compose writes `NAME: ${NAME:-}` for whatever nobody has set."""
    assert billing.json("plan", "list", **{name: ""}) == []


@pytest.mark.parametrize("name", ["BILLING_XENDIT_BASE_URL", "BILLING_PUBLIC_URL"])
def test_but_an_address_that_got_lost_is_not_replaced_by_the_real_one(billing: Terminal, name: str) -> None:
    assert billing.refused("plan", "list", status=2, **{name: ""}).startswith(f"{name}: must start with http")


@pytest.mark.parametrize("table", ["customers", "alembic_version"])
def test_a_database_of_another_program_is_left_alone(bare: Terminal, empty_database_url: str, table: str) -> None:
    bare.environment["BILLING_DATABASE_URL"] = empty_database_url
    engine = make_engine(empty_database_url, pool_size=2)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text(f"INSERT INTO {table} VALUES ('1975ea83b712')"))

    assert "for this software alone" in bare.refused("migrate")

    with engine.connect() as connection:
        assert inspect(connection).get_table_names() in ([table], ["alembic_version", table])
    engine.dispose()


# ------------------------------------------------------------------------------------------ streams that are closed


def test_without_stdin_or_stderr_a_command_does_its_work(billing: Terminal) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -m billing import - <&- 2>&-'],
        env=billing.full_environment({}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Created 0, unchanged 0, refused 0.\n")
