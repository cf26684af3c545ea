"""A large file is taken many rows at a time, and every row fares as it would alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import TokenStatus
from billing.errors import RequestRejected
from billing.parts import Parts
from billing.store.models import Customer, Fact, PaymentToken, Subscription
from billing.subscribing import import_rows as importing
from billing.subscribing.import_rows import import_rows
from tests.factories import make_customer, make_plan, make_subscription, make_token
from tests.services.stand_ins import Gateway
from tests.services.test_importing import row


def of(name: str, /, **changes: Any) -> str:
    """A row of somebody of that name, with a token of his own."""
    members = {"customer_reference": name, "subscription_reference": f"{name}-gold", "payment_token_id": f"pt-{name}"}
    return row(**members | changes)


def take(parts: Parts, *lines: str, **how: Any) -> dict[str, Any]:
    return import_rows(parts, lines, **{"dry_run": False, "verify_with_gateway": False} | how)


def references(session: Session) -> list[str]:
    session.rollback()
    return sorted(session.scalars(select(Subscription.reference)))


@pytest.fixture(autouse=True)
def gold(session: Session) -> None:
    make_plan(session, code="gold")
    session.commit()


@pytest.fixture
def statements(parts: Parts) -> list[str]:
    """What is sent to the database from here on."""
    sent: list[str] = []
    engine = parts.sessions.kw["bind"]
    assert isinstance(engine, Engine)
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: sent.append(statement))
    return sent


def test_a_thousand_rows_cost_a_handful_of_statements(parts: Parts, session: Session, statements: list[str]) -> None:
    report = take(parts, *[of(f"c{number}") for number in range(1_000)])

    assert report == {"created": 1_000, "unchanged": 0, "refused": []}
    assert len(statements) < 50
    statements.clear()

    assert take(parts, *[of(f"c{number}") for number in range(1_000)])["unchanged"] == 1_000
    assert len(statements) < 50
    assert session.scalar(select(func.count()).select_from(Fact)) == 1_000


def test_rows_lean_on_rows_of_the_batch_before(parts: Parts, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH", 2)
    lines = [
        of("ana"),
        of("ben"),
        of("ana", subscription_reference="ana-2", xendit_customer_id="cust-ana"),
        of("ana"),
        of("ben", subscription_reference="ben-2", payment_token_id="pt-ana"),
        of("ben", email="other@example.com", subscription_reference="ben-3"),
    ]

    report = take(parts, *lines)

    assert (report["created"], report["unchanged"]) == (3, 1)
    assert [(refused["line"], refused["reason"][:40]) for refused in report["refused"]] == [
        (5, "line 1 gives this token to customer ana"),
        (6, "line 2 describes customer ben otherwise;"),
    ]
    assert references(session) == ["ana-2", "ana-gold", "ben-gold"]
    assert session.scalar(select(Customer.xendit_customer_id).where(Customer.reference == "ana")) == "cust-ana"


def test_two_new_tokens_of_one_customer_keep_the_order_of_the_file(parts: Parts, session: Session) -> None:
    ana = make_customer(session, reference="ana")
    make_token(session, ana, payment_token_id="pt-0", rank=7)
    session.commit()

    take(parts, of("ana", payment_token_id="pt-1"), of("ana", subscription_reference="b", payment_token_id="pt-2"))

    ranked = session.scalars(select(PaymentToken.payment_token_id).order_by(PaymentToken.rank)).all()
    assert ranked == ["pt-0", "pt-1", "pt-2"]


def test_a_batch_that_another_import_is_in_the_way_of_is_done_row_by_row(
    parts: Parts, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another import commits one of the rows, and another customer takes one of the tokens, between look and write."""
    write = importing.imports.write

    def after_the_others(*arguments: Any) -> None:
        monkeypatch.setattr(importing.imports, "write", write)
        take(parts, of("ben"))
        with parts.transaction() as other:
            make_token(other, make_customer(other, reference="dan"), payment_token_id="pt-cyd")
        write(*arguments)

    monkeypatch.setattr(importing.imports, "write", after_the_others)

    report = take(parts, of("ana"), of("ben"), of("cyd"), of("eve"))

    assert (report["created"], report["unchanged"]) == (2, 1)
    assert report["refused"] == [{"line": 3, "reason": "payment_token_id belongs to customer dan already"}]
    assert references(session) == ["ana-gold", "ben-gold", "eve-gold"]
    assert session.scalar(select(func.count()).where(Customer.reference == "cyd")) == 0


def test_a_row_refused_after_a_conflict_is_no_row_that_others_contradict(
    parts: Parts, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = importing.imports.write

    def after_dan(*arguments: Any) -> None:
        monkeypatch.setattr(importing.imports, "write", write)
        with parts.transaction() as other:
            make_token(other, make_customer(other, reference="dan"), payment_token_id="pt-cyd")
        write(*arguments)

    monkeypatch.setattr(importing.imports, "write", after_dan)

    report = take(parts, of("cyd"), of("cyd", email="other@example.com", payment_token_id="pt-other"))

    assert [refused["line"] for refused in report["refused"]] == [1]
    assert session.scalars(select(PaymentToken.payment_token_id)).all() == ["pt-cyd", "pt-other"]


def test_two_imports_of_the_same_file_at_once_make_each_subscription_once(parts: Parts, session: Session) -> None:
    lines = [of(f"c{number}") for number in range(300)]
    reports: list[dict[str, Any]] = []
    ways = (lines, lines[::-1])
    threads = [threading.Thread(target=lambda way=way: reports.append(take(parts, *way))) for way in ways]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(report["created"] for report in reports) == 300
    assert sum(report["unchanged"] for report in reports) == 300
    assert len(references(session)) == 300


def test_an_import_that_dies_leaves_whole_rows_and_goes_on(
    parts: Parts, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH", 3)
    lines = [of(f"c{number}") for number in range(8)]

    def cut(done: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(parts, *lines, progress=cut)

    for table in (Customer, PaymentToken, Subscription, Fact):
        assert session.scalar(select(func.count()).select_from(table)) == 6, table
    assert take(parts, *lines) == {"created": 2, "unchanged": 6, "refused": []}


def test_a_refused_key_keeps_all_rows_before_and_none_after(parts: Parts, session: Session, gateway: Gateway) -> None:
    for name in ("ana", "ben", "cyd"):
        gateway.tokens[f"pt-{name}"] = TokenReport(f"pt-{name}", "ACTIVE")
    gateway.tokens["pt-ben"] = RequestRejected("401 INVALID_API_KEY", http_status=401, stops_account=True)

    with pytest.raises(RequestRejected):
        take(parts, of("ana"), of("ben"), of("cyd"), verify_with_gateway=True)

    assert references(session) == ["ana-gold"]


def test_to_verify_asks_once_about_each_token_and_tells_of_every_row(
    parts: Parts, session: Session, gateway: Gateway
) -> None:
    make_subscription(session, reference="other")
    session.commit()
    gateway.tokens = {f"pt-c{number}": TokenReport(f"pt-c{number}", "ACTIVE") for number in range(40)}
    gateway.tokens["pt-c7"] = TokenReport("pt-c7", "EXPIRED")
    told: list[int] = []

    lines = [of(f"c{number}") for number in range(40)] + [of("c3", subscription_reference="second")]
    report = take(parts, *lines, verify_with_gateway=True, progress=told.append)

    assert report["created"] == 40
    assert [refused["line"] for refused in report["refused"]] == [8]
    assert sorted(gateway.asked) == sorted(gateway.tokens)
    assert told == sorted(told)
    assert told[-1] == 41
    statuses = session.scalars(select(PaymentToken.status).distinct()).all()
    assert statuses.count(TokenStatus.ACTIVE) == 1


def test_to_verify_a_file_that_says_the_same_twice(parts: Parts, gateway: Gateway) -> None:
    gateway.tokens["pt-ana"] = TokenReport("pt-ana", "ACTIVE")

    report = take(parts, of("ana"), of("ana"), verify_with_gateway=True)

    assert report == {"created": 1, "unchanged": 1, "refused": []}
    assert gateway.asked == ["pt-ana"]


def test_to_verify_refuses_a_new_subscription_on_a_token_that_is_here_and_unknown(
    parts: Parts, session: Session, gateway: Gateway
) -> None:
    take(parts, of("ana"))

    report = take(parts, of("ana"), of("ana", subscription_reference="second"), verify_with_gateway=True)

    assert report["created"] == 0
    assert [refused["line"] for refused in report["refused"]] == [1, 2]
    assert references(session) == ["ana-gold"]
    assert gateway.asked == ["pt-ana"]


def test_names_are_kept_as_they_are_written(parts: Parts, session: Session) -> None:
    names = ["None", "NULL", '"\\N"', "O'Hara, {1,2}", "สมชาย ใจดี", "Nguyễn \U0001f600"]

    take(parts, *[of(f"c{number}", name=name) for number, name in enumerate(names)])

    assert session.scalars(select(Customer.name).order_by(Customer.reference)).all() == names
    assert session.scalars(select(Customer.xendit_customer_id).distinct()).all() == [None]


def test_a_dry_run_sends_no_statement_that_writes(parts: Parts, statements: list[str]) -> None:
    assert take(parts, *[of(f"c{number}") for number in range(10)], dry_run=True)["created"] == 10

    assert [statement for statement in statements if "INSERT" in statement or "UPDATE" in statement] == []
