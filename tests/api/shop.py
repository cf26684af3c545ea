"""A shop that is run from Python: one database, a simulated Xendit, `Billing`, and a terminal beside it to compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from billing import Billing
from billing.settings import Settings, load_settings
from billing.shapes import Shape, Subscription
from billing.store.engine import make_engine
from tests.cli.terminal import KEY, NO_LIMIT, Terminal, Xendit


@dataclass
class Shop:
    billing: Billing
    terminal: Terminal
    xendit: Xendit
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def plan(self, code: str = "gold", *, amount: str = "99000", currency: str = "IDR", **wanted: Any) -> None:
        self.billing.plans.create(code, name="Gold", amount=amount, currency=currency, **{"every": "month"} | wanted)

    def customer(self, reference: str = "ana", country: str = "ID") -> None:
        name, email = reference.title(), f"{reference}@example.com"
        self.billing.customers.create(reference, name=name, email=email, country=country)

    def subscriber(self, customer: str = "ana", plan: str = "gold", **page: Any) -> Subscription:
        """Has saved a card, which `outcomes` come to; the first period is due."""
        outcomes, country = page.pop("outcomes", ()), page.pop("country", "ID")
        known = {each.reference for each in self.billing.customers.list()}
        if customer not in known:
            self.customer(customer, country)
        begun = self.billing.subscribe(customer, plan, via="save", reference=f"{customer}-{plan}")
        assert begun.session is not None
        self.xendit.complete({"xendit_session_id": begun.session.xendit_session_id}, **page)
        self.billing.sessions.refresh(begun.session.id)
        if outcomes:
            self.xendit.script(next(self.billing.tokens.list(customer)).payment_token_id, *outcomes)
        return self.billing.subscriptions.show(begun.subscription.id)

    def month(self, days: int = 31) -> None:
        self.billing.clock.advance(timedelta(days=days))

    def execute(self, statement: str) -> None:
        engine = make_engine(self.terminal.environment["BILLING_DATABASE_URL"], pool_size=2)
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()


def environment(database_url: str, xendit: Xendit) -> dict[str, str]:
    return {
        "BILLING_DATABASE_URL": database_url,
        "BILLING_TEST_CLOCK": "true",
        "BILLING_XENDIT_BASE_URL": xendit.url,
        "BILLING_XENDIT_SECRET_KEY": KEY,
        "BILLING_XENDIT_REQUESTS_PER_MINUTE": NO_LIMIT,
        "BILLING_PUBLIC_URL": "https://shop.example.com",
    }


def settings_of(environment: dict[str, str], **changes: Any) -> Settings:
    values = {name.removeprefix("BILLING_").lower(): value for name, value in environment.items()}
    return load_settings(**values | changes)


@contextmanager
def open_shop(terminal: Terminal, xendit: Xendit, **changes: Any) -> Iterator[Shop]:
    warnings: list[str] = []
    notes: list[str] = []
    settings = settings_of(terminal.environment, **changes)
    with Billing.open(settings, warn=warnings.append, note=notes.append) as billing:
        yield Shop(billing, terminal, xendit, warnings, notes)


def printed(shape: Shape) -> Any:
    """What `--json` prints of it."""
    return json.loads(shape.model_dump_json())


def same(mine: Any, theirs: Any) -> None:
    """Member by member, in the same order; but for what comes out of a jsonb column, which keeps no order."""
    assert mine == theirs
    if isinstance(mine, dict):
        if "how_to_go_on" in mine:
            mine, theirs = ({k: v for k, v in each.items() if k != "plan"} for each in (mine, theirs))
        assert list(mine) == list(theirs)
        for name in mine:
            same(mine[name], theirs[name])
    if isinstance(mine, list):
        for one, other in zip(mine, theirs, strict=True):
            same(one, other)
