"""What was done and did not go well: the `problem` of a result, and the warnings beside it, are the command's lines.

A run and a payment cannot be made twice with the same end, so the command is handed the result that the script had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from billing import Billing
from billing.api.invoices import Invoices
from billing.app import App
from billing.parts import Send
from billing.shapes import InvoiceDetails, RunReport
from billing.store.clock import real_now
from tests.api.shop import Shop, open_shop, printed
from tests.cli.terminal import Terminal, Xendit
from tests.factories import make_event


@pytest.fixture
def two(shop: Shop) -> Shop:
    """Two whose first periods are due."""
    shop.subscriber()
    shop.subscriber("budi")
    return shop


def check_command(shop: Shop, found: RunReport | InvoiceDetails, *words: str) -> None:
    """Prints the same, then exits with the problem as its one line."""
    group, method = (Billing, "run") if isinstance(found, RunReport) else (Invoices, "pay")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, method, lambda *_args, **_options: found)
        ended = shop.terminal(*words, "--json")
    assert ended.document == printed(found)
    assert ended.status == (0 if found.problem is None else 1)
    assert ended.err == ("" if found.problem is None else f"billing: {found.problem}\n")


def check_run(shop: Shop, report: RunReport, expected: str | None) -> None:
    check_command(shop, report, "run")
    doubts = f"{report.in_doubt} charge(s) in doubt: nobody knows yet whether money moved; "
    assert [warning.startswith(doubts) for warning in shop.warnings] == [True] * (report.in_doubt > 0)
    assert (report.problem is None) == (expected is None)
    assert (expected or "") in (report.problem or "")


@pytest.mark.parametrize(
    ("outcome", "count", "expected"),
    [
        ("HTTP:400:API_VALIDATION_ERROR", 2, "2 charge(s) were refused by Xendit for a reason on our side"),
        ("HTTP:429:RATE_LIMIT_EXCEEDED", 1, "did not leave: "),
        ("HTTP:401:INVALID_API_KEY", 1, "charging is stopped: "),
        ("TIMEOUT_AFTER", 1, None),
        ("INSUFFICIENT_BALANCE", 2, None),
    ],
)
def test_how_a_run_went(two: Shop, outcome: str, count: int, expected: str | None) -> None:
    for customer in ("ana", "budi")[:count]:
        two.xendit.script(next(two.billing.tokens.list(customer)).payment_token_id, outcome)
    check_run(two, two.billing.run(), expected)


def test_a_run_in_which_nobody_can_be_charged(two: Shop) -> None:
    two.billing.run()
    for customer in ("ana", "budi"):
        two.billing.tokens.cancel(next(two.billing.tokens.list(customer)).id)
    two.warnings.clear()
    two.month()
    check_run(two, two.billing.run(), "2 charge(s) could not be made: ")


def test_a_run_that_a_guard_has_stopped(two: Shop) -> None:
    check_run(two, two.billing.run(expect="IDR 1"), " is stopped: ")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("INSUFFICIENT_BALANCE", "attempt 3 was declined: INSUFFICIENT_BALANCE"),
        ("HTTP:400:API_VALIDATION_ERROR", "attempt 3 was refused by Xendit, and invoice ana-gold-1 is held: "),
        ("HTTP:429:RATE_LIMIT_EXCEEDED", "attempt 3 has not left: "),
        ("TIMEOUT_AFTER", None),
        ("PENDING", None),
        ("REQUIRES_ACTION", None),
        ("SUCCEEDED", None),
    ],
)
def test_how_a_payment_by_hand_went(shop: Shop, outcome: str, expected: str | None) -> None:
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE", outcome))
    shop.billing.run()
    paid = shop.billing.invoices.pay("ana-gold-1")
    check_command(shop, paid, "invoice", "pay", "ana-gold-1")
    assert (paid.problem is None) == (expected is None)
    assert (paid.problem or "").startswith(expected or "")
    warned = WARNED_OF.get(outcome)
    assert len(shop.warnings) == (warned is not None)
    assert all(warning.startswith(warned or "") for warning in shop.warnings)
    assert ("attempt 3 succeeded" in shop.notes) == (outcome == "SUCCEEDED") == (paid.status == "paid")


WARNED_OF = {
    "TIMEOUT_AFTER": "attempt 3 is in doubt: nobody knows yet whether money moved, and nothing else is charged",
    "PENDING": "attempt 3 is pending: not paid yet; its webhook or a look-up brings the end, `billing invoice show ",
    "REQUIRES_ACTION": "attempt 3 is requires_action: not paid yet; its webhook or a look-up brings the end, ",
}


def test_the_rest_say_what_their_commands_say(shop: Shop) -> None:
    billing, terminal = shop.billing, shop.terminal
    billing.charging.stop(reason="bank holiday")
    for repair in (False, True):
        command = terminal("doctor", "--json", *(("--repair",) if repair else ()))
        assert command.err == f"billing: {billing.doctor(repair=repair).problem}\n"
    assert terminal("import", "-", "--json", stdin="{}").err == f"billing: {billing.import_(['{}']).problem}\n"
    with billing._opened.parts.transaction() as session:
        event = make_event(session, received_at=real_now(), payload={"event": 7, "data": []}).id
    told = billing.replay(event)
    replayed = terminal("replay", event, "--json")
    assert (told.problem is None) == (replayed.status == 0)
    assert told.problem is None or replayed.err == f"billing: {told.problem}\n"


# With Redis


@contextmanager
def handing_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Workers are told, and none works."""
    sent: list[tuple[str, str]] = []

    def send(kind: str, ids: object) -> None:
        assert isinstance(ids, list | tuple)
        sent.extend((kind, identity) for identity in ids)

    found: Send = send
    monkeypatch.setattr("billing.work.find_sender", lambda _settings: found)
    yield sent


def test_a_run_with_redis_hands_its_work_over_and_says_so(two: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with handing_over(monkeypatch) as sent:
        report = two.billing.run()
    assert (report.opened, report.handed_out, report.attempted, report.problem) == (2, 2, 0, None)
    assert len([kind for kind, _ in sent if kind.startswith("charge")]) == 2
    assert "2 charge(s) handed to the workers" in two.notes[-1]


def test_a_payment_that_no_worker_takes_up_has_not_left(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE",) * 2)
    shop.billing.run()
    monkeypatch.setattr("billing.api.invoices.WORKERS_ANSWER_SECONDS", 0.1)
    with handing_over(monkeypatch):
        waits = shop.billing.invoices.pay("ana-gold-1")
    assert waits.problem == (
        "attempt 3 has not left: no worker has taken it up; it stays planned, and the next run or worker sends it"
    )


# Messages beside a result


def test_without_a_listener_warnings_go_to_pythons_log(
    terminal: Terminal, xendit: Xendit, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.api.shop import settings_of

    with open_shop(terminal, xendit) as shop:
        shop.plan()
        shop.subscriber()
    with Billing.open(settings_of(terminal.environment)) as billing:
        billing.tokens.cancel(next(billing.tokens.list("ana")).id)
    assert [record.levelname for record in caplog.records if record.name == "billing"] == ["WARNING"]
    assert "no payment method is left for ana-gold" in caplog.text


def test_a_log_that_somebody_has_set_up_stays_as_it_is(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script inside a larger program: its log is that program's."""
    import structlog

    from tests.api.shop import settings_of

    theirs = structlog.get_config()["logger_factory"]

    def reconfigure(*_args: object, **_options: object) -> None:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory())

    monkeypatch.setattr("billing.log.configure", reconfigure)
    made: list[App] = []
    with Billing.open(settings_of(terminal.environment)) as billing:
        made.append(billing._opened.app)
        assert structlog.get_config()["logger_factory"] is theirs
