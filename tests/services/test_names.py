"""A name, a mail address or a reference is the same for every way in: `customer create` and `import` agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.domain.names import check_reference
from billing.errors import InvalidInput
from billing.parts import Parts
from billing.store.models import Customer, new_id
from billing.subscribing.catalog import create_customer, find_customer
from billing.subscribing.import_rows import import_rows
from tests.factories import NOW, make_customer, make_plan
from tests.odd_names import EMAILS, NAMES, NO_EMAILS, NO_NAMES, NO_REFERENCES, REFERENCES


def _people() -> list[tuple[dict[str, str], bool]]:
    """Ana, each time with one odd value, and whether she can be called so."""
    cases = (
        *(("name", NAMES, True), ("name", NO_NAMES, False), ("email", EMAILS, True), ("email", NO_EMAILS, False)),
        *(("reference", REFERENCES, True), ("reference", NO_REFERENCES, False)),
    )
    odd = [({member: value}, taken) for member, values, taken in cases for value in values]
    ana = {"name": "Ana", "email": "ana@example.com", "country": "ID"}
    return [(ana | {"reference": f"person-{number}"} | values, taken) for number, (values, taken) in enumerate(odd)]


PEOPLE = _people()
TAKEN = [person["name"] for person, taken in PEOPLE if taken]


def _row(number: int, person: dict[str, str]) -> str:
    members: dict[str, Any] = {name: value for name, value in person.items() if name != "reference"}
    members |= {"customer_reference": person["reference"], "subscription_reference": f"sub-{number}", "plan": "gold"}
    members |= {"payment_token_id": f"pt-{number}", "channel_code": "CARDS"}
    return json.dumps(members | {"next_billing_at": "2026-02-28T09:00:00+07:00"})


@pytest.fixture(autouse=True)
def gold(session: Session) -> None:
    make_plan(session, code="gold")
    session.commit()


def _stored(session: Session) -> list[str]:
    return list(session.scalars(select(Customer.name).order_by(Customer.created_at, Customer.id)))


def test_the_table_is_of_a_hundred_values() -> None:
    assert len(PEOPLE) > 150


def test_customer_create_takes_and_refuses_them(session: Session) -> None:
    for person, taken in PEOPLE:
        try:
            create_customer(session, **person, mobile=None, timezone=None, now=NOW)
        except InvalidInput:
            assert not taken, ascii(person)
        else:
            assert taken, ascii(person)
    assert sorted(_stored(session)) == sorted(TAKEN)


def test_import_takes_and_refuses_the_same(parts: Parts, session: Session) -> None:
    lines = [_row(number, person) for number, (person, _) in enumerate(PEOPLE)]

    report = import_rows(parts, lines, dry_run=False, verify_with_gateway=False)

    refused = {row["line"] - 1: row["reason"] for row in report["refused"]}
    assert sorted(refused) == [number for number, (_, taken) in enumerate(PEOPLE) if not taken]
    assert all(reason.isprintable() for reason in refused.values())
    assert sorted(_stored(session)) == sorted(TAKEN)


def test_an_id_is_never_taken_for_a_reference(session: Session) -> None:
    """A reference of this form is refused; what an earlier release has stored does not win over the id."""
    first, second = make_customer(session), make_customer(session)
    first.reference = second.id
    session.flush()
    assert find_customer(session, second.id) is second
    assert find_customer(session, first.id) is first


def test_every_kind_of_id_has_a_form_that_references_may_not_have() -> None:
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "billing").rglob("*.py")]
    kinds = {kind for source in sources for kind in re.findall(r"""new_id\("([a-z_]+)"\)""", source)}
    assert kinds
    for kind in kinds:
        with pytest.raises(InvalidInput, match="has the form of an id"):
            check_reference("plan code", new_id(kind))
