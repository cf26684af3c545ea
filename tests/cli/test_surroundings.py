"""Surroundings that nobody planned: told to end in the middle, no stdin, no stderr. Others reported them in public."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from billing import processes
from billing.cli import main
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
    processes.end_like_ctrl_c()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


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
