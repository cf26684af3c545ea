"""On a copy of the database commands that charge are refused with one line, those that read work; `billing adopt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from billing.store.engine import make_engine
from tests.cli.terminal import Terminal, Xendit


@pytest.fixture
def copy(shop: Terminal, xendit: Xendit, database_url: str, copy_database: Callable[[str], str]) -> Terminal:
    """A terminal at a copy of a shop in which Ana has saved a card and owes her first period."""
    session = shop.json("subscribe", "ana", "gold", "--via", "save", "--reference", "ana-gold")["session"]
    xendit.complete(session)
    shop.json("session", "refresh", session["id"])
    return Terminal(shop.environment | {"BILLING_DATABASE_URL": copy_database(database_url)})


def test_what_reaches_outside_is_refused_with_one_line(copy: Terminal) -> None:
    token = copy.json("token", "list", "--customer", "ana")[0]["id"]
    refused = {
        copy.refused(*words)
        for words in (
            ("run",),
            ("run", "--wait", "--json"),
            ("subscribe", "ana", "gold", "--via", "save", "--again"),
            ("subscribe", "ana", "gold", "--token", token, "--again"),
            ("session", "create", "ana"),
            ("token", "cancel", token),
        )
    }
    assert len(refused) == 1
    assert "this database is a copy" in refused.pop()
    assert copy.json("subscription", "list") == [copy.json("subscription", "show", "ana-gold")]
    assert copy.json("invoice", "list") == []


def test_what_only_reads_works_and_tells_of_it(copy: Terminal) -> None:
    assert copy.json("run", "--dry-run")["opened"] == 1
    assert copy.json("explain", "ana-gold")["next"]["what"] == "charge"
    ended = copy("doctor", "--json")
    (check,) = [check for check in ended.document["checks"] if check["name"] == "this_is_the_database"]
    assert (ended.status, check["ok"], check["count"]) == (1, False, 1)
    assert "this_is_the_database" in ended.err
    migrated = copy("migrate", "--json")
    assert migrated.status == 0
    assert migrated.err.startswith("warning: this database is a copy")


def test_adopted_it_charges_and_says_what_has_changed(copy: Terminal) -> None:
    adopted: dict[str, Any] = copy.json("adopt")
    assert (adopted["adopted"], adopted["changed"]) == (True, True)
    assert adopted["before"]["database_oid"] != adopted["now"]["database_oid"]
    assert adopted["before"]["system_identifier"] == adopted["now"]["system_identifier"]

    assert copy.json("run")["succeeded"] == 1
    assert copy.json("doctor")["ok"]
    again = copy.json("adopt")
    assert (again["adopted"], again["changed"], again["now"]) == (True, False, adopted["now"])
    assert copy("adopt").out.startswith("Nothing to change: this is the database")


def test_an_invoice_is_not_paid_from_a_copy(copy: Terminal) -> None:
    copy.json("adopt")
    copy.json("run")
    engine = make_engine(copy.environment["BILLING_DATABASE_URL"], pool_size=2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_identity SET system_identifier = '1'"))
    engine.dispose()
    assert "is a copy" in copy.refused("invoice", "pay", "ana-gold-1")
    adopted = copy("adopt")
    assert (adopted.status, adopted.err.count("\n")) == (0, 1)
    assert "cluster 1" in adopted.out
