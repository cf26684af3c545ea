"""What is true of every command: exit statuses, one line on stderr, JSON that is only JSON, help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup

from billing import __version__
from billing.cli import COMMANDS, PANELS, load
from billing.reading import lists
from tests.cli.terminal import Terminal, Xendit

NOBODY_THERE = "postgresql+psycopg://billing:hunter2@127.0.0.1:1/billing"


def _commands() -> Iterator[tuple[str, ...]]:
    for name in COMMANDS:
        yield (name,)
        command = load(name)
        if isinstance(command, TyperGroup):
            yield from ((name, inner) for inner in command.commands)


ALL = sorted(_commands())
WITH_OUTPUT = [words for words in ALL if words[0] not in ("dev", "simulator") and (len(words) > 1 or words[0] in (
    "migrate", "import", "subscribe", "run", "explain", "doctor", "reconcile", "replay", "demo"
))]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- help


def test_version(bare: Terminal) -> None:
    assert bare("--version").out == f"billing {__version__}\n"


def test_help_groups_the_commands_from_set_up_to_trying_it_out(bare: Terminal) -> None:
    text = bare("--help").out
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_that_needs_no_settings(bare: Terminal, words: tuple[str, ...]) -> None:
    ended = bare(*words, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert f"billing {' '.join(words)}" in ended.out


@pytest.mark.parametrize("words", WITH_OUTPUT, ids=" ".join)
def test_every_command_that_prints_takes_json(bare: Terminal, words: tuple[str, ...]) -> None:
    assert "--json" in bare(*words, "--help").out


@pytest.mark.parametrize("words", [(), ("plan",), ("charging",)], ids=str)
def test_nothing_asked_shows_the_help(bare: Terminal, words: tuple[str, ...]) -> None:
    ended = bare(*words)
    assert ended.status == 2
    assert "Usage: billing" in ended.out
    assert ended.err == ""


# --------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("plans",), "Did you mean 'plan'"),
        (("plan", "create", "gold"), "Missing option '--name'"),
        (("subscribe", "ana"), "Missing argument 'PLAN'"),
        (("subscription", "list", "--status", "dead"), "'dead' is not one of 'incomplete', 'trialing', 'active'"),
        (("invoice", "list", "--status", "open!"), "'draft', 'open', 'paid', 'uncollectible', 'void'"),
        (("run", "--at", "2026-01-31T09:00:00"), "has no offset"),
        (("run", "--at", "tomorrow"), "2026-01-31T09:00:00+07:00"),
        (("reconcile", "--date", "31.1.2026"), "2026-01-31"),
        (("clock", "advance", "1 month"), "1d12h"),
        (("demo", "--months", "0"), "--months"),
        (("run", "--now"), "No such option"),
        (("plan", "show", "\udcff"), "not UTF-8"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_status_2(bare: Terminal, words: tuple[str, ...], reason: str) -> None:
    assert reason in bare.refused(*words, status=2)


def test_the_line_of_wrong_usage_says_where_the_help_is(bare: Terminal) -> None:
    assert bare.refused("plan", "create", status=2).endswith("; see `billing plan create --help`")


# ------------------------------------------------------------------------------------------------- settings


def test_a_missing_database_is_a_setting_that_is_missing(bare: Terminal) -> None:
    line = bare.refused("plan", "list", status=2)
    assert line.startswith("BILLING_DATABASE_URL: not set; for example BILLING_DATABASE_URL=postgresql+psycopg://")


@pytest.mark.parametrize("words", [("run",), ("reconcile",), ("session", "create", "ana"), ("token", "refresh", "x")])
def test_whatever_talks_to_xendit_needs_its_key(billing: Terminal, words: tuple[str, ...]) -> None:
    assert billing.refused(*words, status=2).startswith("BILLING_XENDIT_SECRET_KEY: not set")


def test_whatever_does_not_talk_to_xendit_needs_no_key(billing: Terminal) -> None:
    assert billing("run", "--dry-run").status == 0
    assert billing("doctor").status == 0


def test_a_malformed_setting_stops_every_command_and_its_value_is_not_shown(bare: Terminal) -> None:
    key = "sk_live_do_not_show"
    line = bare.refused("plan", "list", status=2, BILLING_DATABASE_URL=NOBODY_THERE, BILLING_XENDIT_SECRET_KEY=key)
    assert line.startswith("BILLING_XENDIT_SECRET_KEY: must start with xnd_development_")
    assert key not in line


def test_a_test_clock_and_a_production_key_do_not_go_together(billing: Terminal) -> None:
    line = billing.refused("plan", "list", status=2, BILLING_XENDIT_SECRET_KEY="xnd_production_x")
    assert "BILLING_TEST_CLOCK" in line


# -------------------------------------------------------------------------------------------- lost services


def test_a_database_that_does_not_answer(bare: Terminal) -> None:
    line = bare.refused("plan", "list", BILLING_DATABASE_URL=NOBODY_THERE)
    assert "does not answer" in line
    assert "hunter2" not in line


def test_a_database_without_a_schema(bare: Terminal, empty_database_url: str) -> None:
    assert "run `billing migrate`" in bare.refused("plan", "list", BILLING_DATABASE_URL=empty_database_url)


def test_a_database_url_that_makes_no_sense(bare: Terminal) -> None:
    line = bare.refused("migrate", status=2, BILLING_DATABASE_URL="postgresql+psycopg://u:hunter2@host:port/db")
    assert line.startswith("BILLING_DATABASE_URL")
    assert "hunter2" not in line


def test_xendit_that_does_not_answer(shop: Terminal) -> None:
    words = ("subscribe", "ana", "gold", "--via", "save")
    line = shop.refused(*words, BILLING_XENDIT_BASE_URL="http://127.0.0.1:1")
    assert "127.0.0.1:1" in line
    assert shop.json("subscription", "list") == []  # nothing half done


@pytest.fixture
def due(shop: Terminal, xendit: Xendit) -> Terminal:
    """One subscriber whose first period is due."""
    session = shop.json("subscribe", "ana", "gold", "--via", "save")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    return shop


def test_redis_that_does_not_answer(due: Terminal) -> None:
    ended = due.as_process("run", BILLING_REDIS_URL="redis://127.0.0.1:1/0")
    assert ended.status == 1
    assert ended.refusal.startswith("1 period(s) opened, 0 charge(s) handed to workers; then Redis does not answer")


def test_with_redis_the_work_is_handed_to_the_workers(due: Terminal, redis_url: str) -> None:
    ended = due.as_process("run", "--json", BILLING_REDIS_URL=redis_url)
    assert ended.status == 0
    assert (ended.document["opened"], ended.document["attempted"], ended.document["waiting"]) == (1, 0, 1)
    assert "billing run --wait" in ended.err


# ------------------------------------------------------------------------------------------- as real processes


def test_stdout_holds_the_document_and_nothing_else(billing: Terminal) -> None:
    words = (
        "plan",
        "create",
        "gold",
        "--name",
        "Vàng ☕",
        "--amount",
        "50000",
        "--currency",
        "VND",
        "--every",
        "month",
    )
    ended = billing.as_process(*words, "--timezone", "Asia/Ho_Chi_Minh", "--json")
    assert ended.status == 0
    assert ended.document["name"] == "Vàng ☕"
    assert ended.err == ""
    narrow = billing.as_process("plan", "list", "--json", PYTHONIOENCODING="ascii", COLUMNS="20")
    assert narrow.document == [ended.document]


def test_lists_in_a_pipe_have_whole_ids_and_no_colours(billing: Terminal) -> None:
    reference = "a-very-long-reference-" + "x" * 60
    billing.json("customer", "create", reference, "--name", "A", "--email", "a@example.com", "--country", "PH")
    ended = billing.as_process("customer", "list", COLUMNS="40")
    assert reference in ended.out
    assert "\x1b" not in ended.out
    assert len(ended.out.splitlines()) == 2
    assert not any(line.endswith(" ") for line in ended.out.splitlines())


def test_a_reader_that_leaves_early_gets_no_traceback(billing: Terminal) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "billing", "plan", "list", "--json"],
        env=billing.full_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    process.wait(timeout=30)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk to try")
def test_a_full_disk_is_one_line(billing: Terminal) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "billing", "plan", "list", "--json"],
            env=billing.full_environment({}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "billing: the operating system refused: No space left on device\n")


def test_refusals_of_a_real_process(bare: Terminal) -> None:
    assert bare.as_process("plan", "list").status == 2
    ended = bare.as_process("plan", "list", BILLING_DATABASE_URL=NOBODY_THERE)
    assert ended.status == 1
    assert "does not answer" in ended.refusal


# --------------------------------------------------------------------------------------------------- our bugs


def test_a_bug_of_ours_is_one_line_without_its_text(billing: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_session: object) -> None:
        raise KeyError("pt-0000-secret")

    monkeypatch.setattr(lists, "list_plans", broken)
    line = billing.refused("plan", "list")
    assert line.startswith("internal error: KeyError at test_edges.py:")
    assert "BILLING_DEBUG=1" in line
    assert "pt-0000-secret" not in line
    shown = billing("plan", "list", BILLING_DEBUG="1")
    assert "Traceback" in shown.err
    assert shown.status == 1


def test_ctrl_c_is_one_line(billing: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_session: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lists, "list_plans", interrupted)
    assert "interrupted" in billing.refused("plan", "list", status=130)


def test_settings_are_read_from_a_dotenv_file_in_the_folder(bare: Terminal, database_url: str) -> None:
    Path(".env").write_text(f"BILLING_DATABASE_URL={database_url}\n", encoding="utf-8")
    assert bare.json("plan", "list") == []
