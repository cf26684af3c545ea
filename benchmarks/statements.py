"""SQL statements and commits of one renewal, from claim to settled, its webhook included (the claim by its share)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import httpx
from sqlalchemy import event

from benchmarks.world import Result, database, environment, fill, make_app, simulator, simulator_tokens
from billing.app import App
from billing.services import charging, dispatch, webhooks
from billing.xendit.webhook import read_event

RENEWALS = 200
MOST_STATEMENTS, MOST_COMMITS = 14, 5


@dataclass(slots=True)
class Counted:
    statements: int = 0
    commits: int = 0


def main() -> list[Result]:
    with database() as database_url:
        os.environ.update(environment(database_url))
        with simulator(latency_ms=0) as url:
            app = make_app(database_url, BILLING_XENDIT_BASE_URL=url)
            fill(app, subscriptions=RENEWALS, due=RENEWALS, tokens=simulator_tokens(url, RENEWALS))
            dispatch.open_all_due(app.parts, app.parts.clock.now())
            counted = _count(app, url)
    statements, commits = counted.statements / RENEWALS, counted.commits / RENEWALS
    return [
        Result(
            "SQL statements of a renewal", f"{statements:.1f}", f"<= {MOST_STATEMENTS}", statements <= MOST_STATEMENTS
        ),
        Result("commits of a renewal", f"{commits:.1f}", f"<= {MOST_COMMITS}", commits <= MOST_COMMITS),
    ]


def _count(app: App, url: str) -> Counted:
    counted = Counted()

    def statement(*_: object) -> None:
        counted.statements += 1

    def commit(*_: object) -> None:
        counted.commits += 1

    event.listen(app.engine, "before_cursor_execute", statement)
    event.listen(app.engine, "commit", commit)
    ids: list[str] = []
    dispatch.hand_out_charges(app.parts, lambda _kind, batch: ids.extend(batch))
    for attempt_id in ids:
        charging.charge(app.parts, attempt_id)
    for payment in httpx.get(f"{url}/_simulator/ledger", timeout=30).json()["payments"]:
        payload = {"event": "payment.capture", "data": {**payment, "status": "SUCCEEDED", "request_amount": 50000}}
        _receive(app, payload)
    return counted


def _receive(app: App, payload: dict[str, object]) -> None:
    """What the web process and then a worker do with one delivery."""
    with app.parts.transaction() as session:
        stored = webhooks.record_event(session, read_event(payload), payload, app.parts.clock.now())
    if stored is None:
        raise SystemExit("the event was known already")
    webhooks.apply_stored_event(app.parts, stored, read_event)


if __name__ == "__main__":
    for result in main():
        print(result)
