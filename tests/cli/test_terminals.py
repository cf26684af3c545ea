"""Whatever the terminal can show, whatever a name holds, and whether or not anybody reads: no command fails by it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from billing.cli import run_command
from billing.store.models import Fact
from billing.streams import readable
from tests.cli.terminal import Ended, Terminal
from tests.factories import NOW, make_attempt, make_customer, make_invoice, make_plan, make_subscription, make_token
from tests.odd_names import NAMES, NO_NAMES

STEERING = "\x1b]0;owned\x07\x1b[31mAna\x9b2J\u202eavE\u2028\x7f\u200b"
ODD = [*NAMES, *(name for name in NO_NAMES if "\0" not in name), STEERING]
COMMANDS = (
    ("customer", "list"),
    ("customer", "show", "odd-0"),
    ("customer", "show", "steering"),
    ("plan", "list"),
    ("plan", "show", "gold"),
    ("subscription", "list"),
    ("subscription", "show", "steering"),
    ("invoice", "list"),
    ("invoice", "show", "steering-1"),
    ("explain", "steering"),
    ("token", "list", "--customer", "steering"),
    ("charging", "show"),
    ("doctor",),
)


@pytest.fixture
def rows_of_long_ago(billing: Terminal, database_url: str) -> Terminal:
    """What earlier releases took: every name there is, and texts of Xendit's that steer a terminal."""
    engine = create_engine(database_url)
    with Session(engine) as session:
        for number, name in enumerate(ODD):
            make_customer(session, reference=f"odd-{number}", name=name, email=f"odd-{number}@example.com")
        plan = make_plan(session, code="gold", name=STEERING)
        customer = make_customer(session, reference="steering", name=STEERING, email=f"{STEERING}@example.com")
        token = make_token(session, customer, issuer=STEERING, network=STEERING)
        subscription = make_subscription(
            session, reference="steering", customer=customer, plan=plan, token=token, hold_reason=STEERING
        )
        invoice = make_invoice(session, subscription, number="steering-1", hold_reason=STEERING)
        make_attempt(session, invoice, payment_token_id=token.id, status="failed", failure_code=STEERING)
        session.add(
            Fact(subscription_id=subscription.id, at=NOW, kind="subscription.held", detail={"reason": STEERING})
        )
        session.commit()
    engine.dispose()
    return billing


def on_a_stream(billing: Terminal, encoding: str, *words: str) -> Ended:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in billing.environment.items():
            patch.setenv(name, value)
        status = run_command(words)
        out.flush(), err.flush()
    return Ended(status, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err)))  # type: ignore[attr-defined]


def test_every_name_is_shown_on_every_terminal_and_steers_none(rows_of_long_ago: Terminal) -> None:
    tried = [("latin-1", words) for words in COMMANDS] + [(encoding, COMMANDS[0]) for encoding in ("ascii", "utf-8")]
    for encoding, words in tried:
        ended = on_a_stream(rows_of_long_ago, encoding, *words)
        assert "internal error" not in ended.err, words
        assert ended.status == (words == ("doctor",)), (words, ended.err)
        assert ended.out
        for text in (ended.out, ended.err):
            assert readable(text, io.StringIO(), keep="\n") == text, words


def test_json_gives_every_name_back_and_escapes_what_steers(rows_of_long_ago: Terminal) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        ended = on_a_stream(rows_of_long_ago, encoding, "customer", "list", "--json")
        assert sorted(row["name"] for row in ended.document) == sorted([*ODD, STEERING])
        assert readable(ended.out, io.StringIO(), keep="\n") == ended.out
    for words in (("explain", "steering"), ("invoice", "show", "steering-1"), ("subscription", "list")):
        ended = on_a_stream(rows_of_long_ago, "utf-8", *words, "--json")
        assert "owned" in ended.out
        assert readable(ended.out, io.StringIO(), keep="\n") == ended.out, words


def test_a_table_is_straight_and_whole_though_letters_are_spelled_out(rows_of_long_ago: Terminal) -> None:
    lines = on_a_stream(rows_of_long_ago, "ascii", "customer", "list", "--limit", "500").out.splitlines()
    assert len(lines) > len(ODD)
    place = lines[0].index("email")
    assert all(line[place:].startswith(("email", "odd-", r"\x1b]0;owned")) for line in lines)
    named = {line.split()[0]: line for line in lines}
    for number, name in enumerate(ODD):
        assert readable(name, io.TextIOWrapper(io.BytesIO(), "ascii")).strip() in named[f"odd-{number}"]


def test_an_error_line_steers_nothing_either(rows_of_long_ago: Terminal) -> None:
    ended = on_a_stream(rows_of_long_ago, "latin-1", "plan", "show", STEERING)
    assert ended.refusal.isprintable()
    refused = rows_of_long_ago.refused("charging", "stop", "--reason", STEERING)
    assert refused.startswith("--reason: character 1 is U+001B (a control character)")


# ------------------------------------------------------------------------------------------ nobody reads


def without_a_reader(billing: Terminal, stream: str, *words: str) -> Ended:
    """What is left on the other stream of a command that nobody reads on this one."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    with (
        os.fdopen(writer, "w", encoding="utf-8") as broken,
        redirect_stdout(broken if stream == "stdout" else streams["stdout"]),
        redirect_stderr(broken if stream == "stderr" else streams["stderr"]),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in billing.environment.items():
            patch.setenv(name, value)
        status = run_command(words)
    return Ended(status, streams["stdout"].getvalue(), streams["stderr"].getvalue())


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_result_that_nobody_reads_ends_the_command_quietly(rows_of_long_ago: Terminal, form: tuple[str, ...]) -> None:
    ended = without_a_reader(rows_of_long_ago, "stdout", "customer", "list", *form)
    assert (ended.status, ended.err) == (141, "")


def test_messages_that_nobody_reads_change_nothing(billing: Terminal) -> None:
    assert without_a_reader(billing, "stderr", "plan", "list") == Ended(0, "", "")
    assert without_a_reader(billing, "stderr", "plan", "show", "nope") == Ended(1, "", "")


def in_a_shell(billing: Terminal, command: str) -> subprocess.CompletedProcess[str]:
    """A real process; `$B` is billing."""
    environment = billing.full_environment({}) | {"B": f"{sys.executable} -m billing"}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_closed_streams_hurt_nobody(billing: Terminal) -> None:
    """The work is done: a cron entry may close what it does not want to read."""
    create = "$B plan create gold --name Gold --amount 99000 --currency IDR --every month"
    done = in_a_shell(billing, f"{create} >&- 2>&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [plan["code"] for plan in billing.json("plan", "list")] == ["gold"]


def test_a_pipe_is_left_quietly(rows_of_long_ago: Terminal) -> None:
    done = in_a_shell(rows_of_long_ago, "$B customer list | true; echo ${PIPESTATUS[0]}")
    assert done.stderr == ""
    assert done.stdout == "141\n"


def test_letters_typed_in_a_container_that_knows_only_ascii_arrive(billing: Terminal) -> None:
    words = '--name "สมชาย" --email s@example.com --country TH --json'
    settings = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    done = in_a_shell(billing, f"{settings} $B customer create somchai {words}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["name"] == "สมชาย"
