"""What a chaos run came to: the bank's own ledger and a calendar of the test's own, against the database.

How many periods are owed is computed here from the anchor alone; what was collected is what the simulator says it
collected. The code under test is asked only for what the two cannot know: which invoice stands for which period.
"""

from __future__ import annotations

import calendar
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, text

PRICE = 50_000
EVERY = {"every 1:month": 0, "every 1:week": 7, "every 3:day": 3}  # days; 0: by the calendar month
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """What the run promised: from when on, how often, and with which token, which is nobody else's."""

    id: str
    payment_token_id: str
    schedule: str
    anchor: datetime
    zone: str

    def periods(self, until: datetime) -> Iterator[datetime]:
        """The instants at which a period is due, up to and including `until`."""
        index = 0
        while (start := self._start(index)) <= until:
            yield start
            index += 1

    def _start(self, index: int) -> datetime:
        local = self.anchor.astimezone(ZoneInfo(self.zone)).replace(tzinfo=None)
        days = EVERY[self.schedule]
        if days == 0:
            months = local.month - 1 + index
            year, month = local.year + months // 12, months % 12 + 1
            day = min(local.day, calendar.monthrange(year, month)[1])
            local = local.replace(year=year, month=month, day=day)
        else:
            local += timedelta(days=days * index)
        return local.replace(tzinfo=ZoneInfo(self.zone)).astimezone(UTC)


@dataclass(slots=True)
class Verdict:
    """Every figure that must be 0, with what stands behind it, and the figures that say how much was tried."""

    wrong: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    suspects: list[str] = field(default_factory=list)  # subscriptions to explain
    given_up: list[str] = field(default_factory=list)  # with the reason that is on record

    @property
    def ok(self) -> bool:
        return not any(self.wrong.values())


# What nobody but a person could move on, and what nothing will ever take up again.
_NEEDS_A_HUMAN = """
    SELECT 'invoice ' || id || ' is held: ' || hold_reason, subscription_id FROM invoices
        WHERE status = 'open' AND hold_reason IS NOT NULL
    UNION ALL SELECT 'billing is held: ' || hold_reason, id FROM subscriptions WHERE hold_reason IS NOT NULL
    UNION ALL SELECT 'refund ' || r.id || ' is ' || r.status || ': ' || coalesce(r.error, ''), i.subscription_id
        FROM refunds r JOIN captures c ON c.id = r.capture_id JOIN invoices i ON i.id = c.invoice_id
        WHERE r.status <> 'succeeded'
    UNION ALL SELECT 'event ' || id || ' is ' || state || ': ' || coalesce(error, ''), subscription_id
        FROM webhook_events WHERE state IN ('parked', 'unmatched')
    UNION ALL SELECT 'charging is stopped: ' || reason, NULL FROM charging_stop
"""
_STUCK = """
    SELECT 'attempt ' || id || ' is ' || status || ', lease ' || coalesce(lease_until::text, 'none'), subscription_id
        FROM charge_attempts WHERE status IN ('submitted', 'pending', 'requires_action', 'in_doubt')
        OR (status = 'scheduled' AND (scheduled_at <= :now OR lease_until IS NOT NULL))
    UNION ALL SELECT 'event ' || id || ' is ' || state, subscription_id FROM webhook_events WHERE state = 'received'
    UNION ALL SELECT 'refund ' || id || ' keeps its lease', NULL FROM refunds
        WHERE lease_until IS NOT NULL AND status = 'requested'
"""
_INVOICES = """
    SELECT i.id, i.subscription_id, i.period_start, i.status, s.status AS subscription_status, s.canceled_at,
        (SELECT f.detail ->> 'reason' FROM facts f
            WHERE f.subscription_id = i.subscription_id AND f.kind = 'invoice.' || i.status
            AND f.detail ->> 'invoice' = i.number ORDER BY f.id DESC LIMIT 1) AS reason
    FROM invoices i JOIN subscriptions s ON s.id = i.subscription_id
"""


def judge(engine: Engine, subscribers: list[Subscriber], ledger: list[Json], now: datetime) -> Verdict:
    with engine.connect() as connection:
        rows = connection.execute(text(_INVOICES)).mappings().all()
        ours = set(connection.scalars(text("SELECT payment_request_id FROM captures")))
        human = connection.execute(text(_NEEDS_A_HUMAN)).all()
        stuck = connection.execute(text(_STUCK), {"now": now}).all()
    verdict = Verdict()
    verdict.wrong = {name: [] for name in ("charged twice", "periods missed", "not owed")}
    invoices: dict[tuple[str, datetime], Any] = {(r["subscription_id"], r["period_start"]): r for r in rows}
    payments = _by_invoice(ledger)
    tally: Counter[str] = Counter()
    for subscriber in subscribers:
        _judge_one(subscriber, invoices, payments, _net_by_token(ledger), now, verdict, tally)
    for (owner, start), row in invoices.items():
        verdict.wrong["not owed"].append(f"{owner}: invoice {row['id']} for {start}")
        verdict.suspects.append(owner)
    verdict.wrong["rows that need a human"] = [str(row[0]) for row in human]
    verdict.wrong["stuck leases"] = [str(row[0]) for row in stuck]
    verdict.suspects += [str(row[1]) for row in (*human, *stuck) if row[1]]
    captured = [row for row in ledger if int(row["captured"])]
    verdict.wrong["captures unknown to us"] = [
        f"{row['payment_id']} for {row['reference_id']}" for row in captured if row["payment_request_id"] not in ours
    ]
    theirs = {row["payment_request_id"] for row in captured}
    verdict.wrong["captures unknown to the bank"] = [str(one) for one in ours - theirs]
    verdict.counts = {
        "periods due": tally["due"],
        "paid": tally["paid"],
        "given up by the dunning policy": tally["given up"],
        "captures": len(captured),
        "captured again and refunded": sum(1 for row in captured if int(row["refunded"])),
    }
    verdict.suspects = list(dict.fromkeys(verdict.suspects))
    return verdict


def _judge_one(
    subscriber: Subscriber,
    invoices: dict[tuple[str, datetime], Any],
    payments: Mapping[str, int],
    net_by_token: Mapping[str, int],
    now: datetime,
    verdict: Verdict,
    tally: Counter[str],
) -> None:
    """Takes the invoices it finds out of `invoices`: what is left there was owed by nobody."""
    problems, paid, ended_at = 0, 0, None
    for start in subscriber.periods(now):
        row = invoices.pop((subscriber.id, start), None)
        if row is None and ended_at is not None and start > ended_at:
            break
        tally["due"] += 1
        collected = payments.get(row["id"], 0) if row is not None else 0
        kind, why = _what_became_of(row, collected)
        tally[kind] += 1
        if row is not None and row["subscription_status"] == "canceled":
            ended_at = row["canceled_at"]
        paid += collected
        if kind == "given up":
            verdict.given_up.append(f"{subscriber.id}, period of {start:%Y-%m-%d}: {why}")
        if kind in verdict.wrong:
            problems += 1
            verdict.wrong[kind].append(f"{subscriber.id}, period of {start:%Y-%m-%d}: {why}")
    # The same once more without any invoice: what this token's owner has paid in all.
    in_all = net_by_token.get(subscriber.payment_token_id, 0)
    if in_all != paid:
        problems += 1
        kind = "charged twice" if in_all > paid else "periods missed"
        verdict.wrong[kind].append(f"{subscriber.id}: the bank took {in_all} of its token, its periods say {paid}")
    if problems:
        verdict.suspects.append(subscriber.id)


def _what_became_of(row: Json | None, collected: int) -> tuple[str, str]:
    if collected > PRICE:
        return "charged twice", f"the bank collected {collected} for it and gave nothing back"
    if row is None:
        return "periods missed", "it has no invoice"
    if row["status"] == "paid" and collected == PRICE:
        return "paid", ""
    if row["status"] in ("uncollectible", "void") and row["reason"] and collected == 0:
        return "given up", str(row["reason"])
    return "periods missed", f"its invoice {row['id']} is {row['status']}, the bank has collected {collected}"


def _by_invoice(ledger: list[Json]) -> Mapping[str, int]:
    """What is left of the captures after refunds, by the invoice named in each payment's metadata."""
    net: defaultdict[str, int] = defaultdict(int)
    for row in ledger:
        net[str((row["metadata"] or {}).get("invoice_id"))] += int(row["captured"]) - int(row["refunded"])
    return net


def _net_by_token(ledger: list[Json]) -> Mapping[str, int]:
    net: defaultdict[str, int] = defaultdict(int)
    for row in ledger:
        net[str(row["payment_token_id"])] += int(row["captured"]) - int(row["refunded"])
    return net
