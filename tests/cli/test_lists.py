"""Lists of any length: read in pages, written as they are read, cut by --limit and gone on with by --after."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from billing.app import App, build
from billing.cli import output
from billing.parts import Parts
from billing.reading import explain, lists
from billing.reading import pages as paging
from billing.reading.timeline import Json, Story
from billing.settings import load_settings
from billing.store.clock import real_now
from billing.store.engine import make_engine
from billing.store.models import BillingRun, new_id
from tests.cli.terminal import Ended, Terminal
from tests.factories import (
    NOW,
    make_attempt,
    make_customer,
    make_event,
    make_invoice,
    make_payment_session,
    make_plan,
    make_subscription,
    make_token,
)

SEVEN = 7
LISTS = {
    "plan": ("plan", "list"),
    "customer": ("customer", "list"),
    "subscription": ("subscription", "list"),
    "session": ("session", "list"),
    "token": ("token", "list", "--customer", "ana"),
    "invoice": ("invoice", "list"),
    "events": ("events", "list"),
    "runs": ("runs", "list"),
}
NAMES = {
    "plan": ("code", "id"),
    "customer": ("reference", "id"),
    "subscription": ("reference", "id"),
    "session": ("reference_id", "id"),
    "token": ("payment_token_id", "id"),
    "invoice": ("number", "id"),
    "events": ("id",),
    "runs": ("run_id",),
}


@pytest.fixture
def seven(billing: Terminal) -> Terminal:
    """Seven of everything."""
    engine = make_engine(billing.environment["BILLING_DATABASE_URL"], pool_size=2)
    with Session(engine) as session, session.begin():
        ana = make_customer(session, reference="ana")
        plans = [make_plan(session) for _ in range(SEVEN)]
        for number, plan in enumerate(plans):
            token = make_token(session, ana)
            of_ana = {"customer": ana, "token": token} if number == 0 else {}
            subscription = make_subscription(session, plan=plan, **of_ana)
            make_payment_session(session, subscription)
            make_attempt(session, make_invoice(session, subscription))
            make_event(session)
            session.add(BillingRun(id=new_id("run"), at=NOW, started_at=real_now(), waived=[]))
    engine.dispose()
    return billing


@pytest.mark.parametrize("noun", LISTS)
def test_limit_and_after_walk_through_a_list(seven: Terminal, noun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seven.json(*LISTS[noun])
    assert len(whole) == SEVEN
    monkeypatch.setattr(paging, "PAGE", 2)
    assert seven.json(*LISTS[noun]) == whole
    assert seven.json(*LISTS[noun], "--limit", "3") == whole[:3]
    for member in NAMES[noun]:
        assert seven.json(*LISTS[noun], "--limit", "3", "--after", whole[2][member]) == whole[3:6]
        assert seven.json(*LISTS[noun], "--after", whole[-1][member]) == []


@pytest.mark.parametrize("noun", LISTS)
def test_an_unknown_place_to_go_on_from_is_refused(seven: Terminal, noun: str) -> None:
    assert "nobody" in seven.refused(*LISTS[noun], "--json", "--after", "nobody")
    seven.refused(*LISTS[noun], "--limit", "0", status=2)


def test_a_table_shows_the_first_hundred_and_says_how_many_more(
    seven: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "FIRST_ROWS", 4)
    whole = seven.json("subscription", "list")
    lines = seven("subscription", "list").out.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[-1] == (f"... and 3 more; `--after {whole[3]['reference']}` goes on from there, --json lists them all")
    assert "more;" not in seven("subscription", "list", "--limit", "5").out
    monkeypatch.setattr(output, "FIRST_ROWS", SEVEN)
    assert "more;" not in seven("subscription", "list").out


def test_filters_hold_over_pages(seven: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE", 1)
    last = seven.json("subscription", "list")[-1]
    mine = seven.json("invoice", "list", "--subscription", last["reference"])
    assert [row["subscription_id"] for row in mine] == [last["id"]]
    assert seven.json("invoice", "list", "--status", "void") == []
    assert len(seven.json("events", "list", "--state", "received")) == SEVEN


def test_an_empty_list_is_an_empty_array(billing: Terminal) -> None:
    assert billing("invoice", "list", "--json").out == "[]\n"


def test_a_document_is_written_as_it_was(seven: Terminal) -> None:
    ended: Ended = seven("customer", "list", "--json")
    assert ended.out == json.dumps(ended.document, indent=2) + "\n"


# --------------------------------------------------------------------------------------------- at size


MANY = 4_000


@pytest.fixture
def many(database_url: str) -> Iterator[App]:
    """One invoice with its attempt, 4,000 times."""
    engine = make_engine(database_url, pool_size=2)
    with Session(engine) as session, session.begin():
        subscription = make_subscription(session)
        make_attempt(session, make_invoice(session, subscription))
        copy(session, "invoices", "'id', 'inv-x'||g, 'number', 'no-'||g, 'period_key', 'k'||g")
        copy(session, "charge_attempts", "'id', 'att-x'||g, 'reference_id', 'ref-'||g, 'invoice_id', 'inv-x'||g")
    engine.dispose()
    app = build(load_settings(database_url=database_url))
    yield app
    app.close()


def copy(session: Session, table: str, values: str) -> None:
    session.execute(
        text(
            f"INSERT INTO {table} SELECT r.* FROM (SELECT to_jsonb(t) AS one FROM {table} t LIMIT 1) s,"
            f" generate_series(1, {MANY}) g,"
            f" LATERAL jsonb_populate_record(NULL::{table}, s.one || jsonb_build_object({values})) r"
        )
    )


def test_a_list_is_read_in_pages_with_no_transaction_open_between_them(many: App) -> None:
    statements: list[str] = []
    event.listen(many.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    read = 0
    for _view in lists.list_invoices(many.parts).entries():
        read += 1
        assert many.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert read == MANY + 1
    pages = MANY // paging.PAGE + 1
    assert len([sql for sql in statements if "FROM invoices" in sql and "refunds" not in sql]) == pages
    assert len([sql for sql in statements if "FROM refunds" in sql]) <= pages
    assert len([sql for sql in statements if "FROM charge_attempts" in sql]) == pages  # all of a page in one


def test_memory_does_not_grow_with_the_list(many: App) -> None:
    def peak(limit: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        output.stream_json(lists.list_invoices(many.parts).entries(limit), Nowhere())
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak(paging.PAGE)  # what is loaded once
        assert peak(MANY) < 1.5 * peak(2 * paging.PAGE)
    finally:
        tracemalloc.stop()


class Nowhere(io.StringIO):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


def test_a_long_story_is_told_without_a_transaction(seven: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten years of a daily plan: telling them takes longer than the database waits for an idle transaction."""
    open_reads: list[str] = []
    reading, tell = Parts.reading, explain.tell

    @contextmanager
    def watched(parts: Parts) -> Iterator[Session]:
        open_reads.append("a read")
        with reading(parts) as session:
            yield session
        open_reads.pop()

    def told(found: Story) -> Json:
        assert open_reads == []
        return tell(found)

    monkeypatch.setattr(Parts, "reading", watched)
    monkeypatch.setattr(explain, "tell", told)
    reference = seven.json("subscription", "list", "--limit", "1")[0]["reference"]
    assert seven.json("explain", reference)["events"] != []
