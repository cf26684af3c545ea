"""What cannot be sent stops a command before it begins; what did not leave is told, and is no success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from billing.settings import load_settings
from tests.cli.terminal import KEY, Ended, Terminal, Xendit
from workers import actors

SOMEWHERE_ELSE = {"BILLING_XENDIT_BASE_URL": "https://xendit.example", "BILLING_XENDIT_SECRET_KEY": KEY}
TALKING = [("run",), ("invoice", "pay", "x"), ("reconcile",), ("subscribe", "ana", "gold", "--via", "save"),
           ("session", "refresh", "x"), ("token", "refresh", "x"), ("import", "x", "--verify")]  # fmt: skip


@pytest.fixture
def two(shop: Terminal, xendit: Xendit) -> Terminal:
    """Two subscribers whose first periods are due."""
    shop.json("customer", "create", "budi", "--name", "Budi", "--email", "budi@example.com", "--country", "ID")
    for customer in ("ana", "budi"):
        words = ("subscribe", customer, "gold", "--via", "save", "--reference", f"{customer}-gold")
        session = shop.json(*words)["session"]
        xendit.complete(session)
        shop.json("session", "refresh", session["id"])
    return shop


def token_of(terminal: Terminal, customer: str) -> str:
    return str(terminal.json("token", "list", "--customer", customer)[0]["payment_token_id"])


# What cannot be sent from here


@pytest.mark.parametrize("words", TALKING, ids=" ".join)
def test_whatever_talks_to_xendit_stops_at_start_when_no_client_can_be_made(
    billing: Terminal, words: tuple[str, ...]
) -> None:
    line = billing.refused(*words, status=2, HTTPS_PROXY="ftp://u:hunter2@proxy.example", **SOMEWHERE_ELSE)
    assert line.startswith("HTTPS_PROXY: ")
    assert "hunter2" not in line


def test_whatever_does_not_talk_to_xendit_goes_on(billing: Terminal) -> None:
    trouble = SOMEWHERE_ELSE | {"HTTPS_PROXY": "ftp://proxy.example", "SSL_CERT_FILE": "/no/such/file"}
    for words in (("plan", "list"), ("doctor",), ("run", "--dry-run"), ("invoice", "list"), ("runs", "list")):
        assert billing(*words, **trouble).status == 0


def test_a_run_that_cannot_begin_leaves_everything_as_it_was(two: Terminal) -> None:
    line = two.refused("run", status=2, **SOMEWHERE_ELSE, SSL_CERT_FILE="/no/such/file")
    assert line.startswith("SSL_CERT_FILE: ")
    assert two.json("invoice", "list") == []
    assert two.json("run")["succeeded"] == 2


@pytest.mark.parametrize("module", ["workers.scheduler", "dramatiq"])
def test_the_processes_stop_at_start_as_well(billing: Terminal, module: str, redis_url: str) -> None:
    """In this process: what they call first."""
    settings = billing.environment | SOMEWHERE_ELSE | {"HTTPS_PROXY": "ftp://x", "BILLING_REDIS_URL": redis_url}
    settings |= {"BILLING_TEST_CLOCK": "false"}
    from workers import broker, scheduler

    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        if module == "dramatiq":
            broker.app.cache_clear()
            with pytest.raises(SystemExit) as ended:
                broker.app()
            assert ended.value.code == 2
        else:
            assert scheduler.main() == 2


def test_web_stops_at_start_when_it_has_a_key_and_no_client(
    billing: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    from billing.web import create_app

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (billing.environment | SOMEWHERE_ELSE | {"HTTPS_PROXY": "ftp://x"}).items():
            patch.setenv(name, value)
        patch.setenv("BILLING_XENDIT_CALLBACK_TOKEN", "token")
        with pytest.raises(SystemExit) as ended:
            create_app()
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("billing: HTTPS_PROXY: ")
        patch.delenv("BILLING_XENDIT_SECRET_KEY")
        patch.setenv("BILLING_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/nowhere")  # may come later
        assert create_app().routes


# What a run says of itself


def test_charges_that_did_not_leave_are_no_success_though_others_did(two: Terminal, xendit: Xendit) -> None:
    xendit.fail("POST /v3/payment_requests", "HTTP:429:RATE_LIMIT_EXCEEDED")
    ended = two("run", "--json", BILLING_CHARGE_THREADS="1")
    assert (ended.status, ended.document["succeeded"], ended.document["unsent"]) == (1, 1, 1)
    assert "1 charge(s) did not leave: " in ended.err
    assert "; 1 charge(s) sent; " in ended.err


def nobody_listens(terminal: Terminal) -> Ended:
    return terminal("run", "--json", BILLING_XENDIT_BASE_URL="http://127.0.0.1:1")


def test_a_run_a_moment_later_does_not_pass_over_what_did_not_leave(two: Terminal) -> None:
    """Contract "Where people run it" 3. Wrong before: put off by a minute, it was not due."""
    assert nobody_listens(two).status == 1

    ended = two("run", "--json")

    report = ended.document
    assert ended.status == 1
    assert (report["attempted"], report["unsent"], report["put_off"]) == (0, 0, 2)
    until = report["put_off_until"][:19].replace("T", " ")
    assert "2 charge(s) that did not leave before still wait: the charge was not sent: no connection" in ended.err
    assert f"the first of them waits until {until} UTC" in ended.err

    two.json("clock", "advance", "2m")
    assert two.json("run")["succeeded"] == 2
    assert (two.json("run")["put_off"], two.json("run")["unsent"]) == (0, 0)


def test_a_token_that_could_not_be_asked_about_is_not_passed_over(
    shop: Terminal, xendit: Xendit, tmp_path: Path
) -> None:
    row = {
        "customer_reference": "dewi", "name": "Dewi", "email": "dewi@example.com", "country": "ID", "plan": "gold",
        "subscription_reference": "dewi-gold", "payment_token_id": xendit.new_token(), "channel_code": "CARDS",
        "next_billing_at": shop.json("clock", "show")["now"],
    }  # fmt: skip
    (tmp_path / "rows").write_text(json.dumps(row))
    shop.json("import", str(tmp_path / "rows"), "--no-verify")
    xendit.fail("GET /v3/payment_tokens/{id}", "500_BEFORE", count=1)

    first, second = shop("run", "--json"), shop("run", "--json")

    assert (first.status, second.status) == (1, 1)
    assert [(each.document["unsent"], each.document["put_off"]) for each in (first, second)] == [(1, 0), (0, 1)]
    assert "1 charge(s) that did not leave before still wait: Xendit could not be asked about the token" in second.err
    shop.json("clock", "advance", "2m")
    assert shop.json("run")["succeeded"] == 1


def test_as_planned_is_not_said_over_failures(two: Terminal, xendit: Xendit) -> None:
    xendit.script(token_of(two, "ana"), "TIMEOUT_AFTER")
    ended = two("run")
    assert "Sent:      2 charge(s), 1 in doubt" in ended.out
    assert "1 charge(s) in doubt" in ended.err
    assert ended.status == 0
    assert "as planned" not in ended.out + ended.err


def test_customers_who_were_declined_make_an_ordinary_run(two: Terminal, xendit: Xendit) -> None:
    for customer in ("ana", "budi"):
        xendit.script(token_of(two, customer), "INSUFFICIENT_BALANCE")
    ended = two("run", "--json")
    assert (ended.status, ended.document["failed"], ended.err) == (0, 2, "")


def test_a_run_of_which_xendit_refused_everything_is_none(two: Terminal, xendit: Xendit) -> None:
    xendit.fail("POST /v3/payment_requests", "HTTP:400:API_VALIDATION_ERROR", count=2)
    ended = two("run", "--json")
    assert (ended.status, ended.document["failed"]) == (1, 2)
    assert "2 charge(s) were refused by Xendit" in ended.err
    assert "API_VALIDATION_ERROR" in ended.err


def test_a_run_in_which_nobody_has_a_payment_method_says_so(two: Terminal) -> None:
    two.json("run")
    for customer in ("ana", "budi"):
        two.json("token", "cancel", two.json("token", "list", "--customer", customer)[0]["id"])
    due = max(row["next_billing_at"] for row in two.json("subscription", "list"))
    ended = two("run", "--at", due, "--json")
    assert (ended.status, ended.document["opened"], ended.document["attempted"]) == (1, 2, 0)
    assert "2 charge(s) could not be made: no payment token that may be charged" in ended.err


def test_one_that_xendit_refused_for_a_reason_of_ours_is_no_success_though_another_was_paid(
    two: Terminal, xendit: Xendit
) -> None:
    xendit.fail("POST /v3/payment_requests", "HTTP:400:API_VALIDATION_ERROR")
    ended = two("run", "--json", BILLING_CHARGE_THREADS="1")
    assert (ended.status, ended.document["failed"], ended.document["succeeded"]) == (1, 1, 1)
    assert "1 charge(s) were refused by Xendit for a reason on our side" in ended.err
    assert two("run", "--json").status == 0, "what is held waits for a person, and no run is to blame"


def test_one_that_was_withdrawn_is_no_success_though_another_was_paid(two: Terminal) -> None:
    two.json("run")
    two.json("token", "cancel", two.json("token", "list", "--customer", "ana")[0]["id"])
    due = max(row["next_billing_at"] for row in two.json("subscription", "list"))
    ended = two("run", "--at", due, "--json")
    assert (ended.status, ended.document["withdrawn"], ended.document["succeeded"]) == (1, 1, 1)
    assert "1 charge(s) could not be made: no payment token that may be charged" in ended.err
    assert two("run", "--json").status == 0, "the customer has been asked"


def test_nothing_due_is_done_well(two: Terminal) -> None:
    two.json("run")
    ended = two("run", "--json")
    assert (ended.status, ended.document["attempted"], ended.err) == (0, 0, "")


# With Redis


@contextmanager
def with_workers(redis_url: str) -> Iterator[None]:
    """The command is told to hand its work to workers, of which none runs. One broker serves this process."""
    from workers import broker

    made = broker.make_broker(load_settings(redis_url=redis_url))
    with pytest.MonkeyPatch.context() as patch:
        for actor in (actors.charge, actors.charge_now, actors.charge_again, actors.follow):
            patch.setattr(actor, "broker", made)
            made.declare_actor(actor)
        patch.setattr(actors.broker, "max_in_flight", lambda: 1_000)
        patch.setattr(actors.broker, "charges_at_once", lambda: 1)
        patch.setattr("billing.work.find_sender", lambda _settings: actors.send)
        yield


def test_a_run_hands_its_work_to_workers_and_says_so(two: Terminal, redis_url: str) -> None:
    with with_workers(redis_url):
        ended = two("run", "--json")
    assert (ended.status, ended.document["opened"], ended.document["handed_out"]) == (0, 2, 2)
    assert "2 charge(s) handed to the workers" in ended.err


def test_a_run_whose_work_nobody_fetches_is_no_success(
    two: Terminal, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors._ToWorkers, "takes_more", lambda *_: False)
    with with_workers(redis_url):
        ended = two("run", "--json")
    assert (ended.status, ended.document["opened"], ended.document["handed_out"]) == (1, 2, 0)
    assert "2 charge(s) wait and none was handed out: no worker fetches what lies in Redis" in ended.err


def test_a_redis_that_takes_no_writes_is_named_with_what_was_done_before(two: Terminal, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client, with_workers(redis_url):
        client.replicaof("127.0.0.1", "1")
        try:
            line = two.refused("run", "--json")
            paid = two.refused("invoice", "pay", two.json("invoice", "list")[0]["number"])
        finally:
            client.replicaof("NO", "ONE")
    assert line.startswith("2 period(s) opened, 0 charge(s) handed to workers; then Redis takes no writes")
    assert paid.startswith("the attempt is planned and has not left: Redis takes no writes")
    assert two.json("run")["succeeded"] == 2, "nothing is lost, and nobody waits for a lease"
