"""Whoever may be a customer here is one at Xendit too: what our client sends of a name is taken by the simulator."""

from __future__ import annotations

from billing.domain.gateway import NewCustomer
from billing.xendit.wire import customer_body
from tests.odd_names import EMAILS, NAMES
from tests.simulator.desk import Desk


def test_every_name_and_every_mail_address_is_taken_by_xendit() -> None:
    desk = Desk()
    people = [(name, "ana@example.com") for name in NAMES] + [("Ana", email) for email in EMAILS]
    for number, (name, email) in enumerate(people):
        body = customer_body(NewCustomer(f"cus{number}", name, email, "ID", "+6281234567890"))
        answer = desk.raw("POST", "/customers", body, api_version="2020-10-31")
        assert answer.status == 201, (name, email, answer.body)
