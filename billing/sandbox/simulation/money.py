"""Captures that are not what was asked for: less than that, or in another currency; and refunds nobody is told of.

Xendit's queue of webhooks is where every capture passes, whatever made it (a charge, a page, a late truth): there the
money is changed, in the simulator's books and in what it tells, before anybody hears of it.
"""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_DOWN, Decimal

from billing.sandbox.simulation.fate import Fate
from billing.sandbox.simulator.answers import Json, json_amount
from billing.sandbox.simulator.catalogue import WHOLE_UNIT_CURRENCIES
from billing.sandbox.simulator.state import Payment, World
from billing.sandbox.simulator.webhooks import WebhookQueue

ANOTHER_CURRENCY = "USD"
LESS = Decimal("0.4")


class MoneyOfAnotherKind(WebhookQueue):
    """The simulator's queue of webhooks, with fate at the till."""

    __slots__ = ("fate", "world")

    fate: Fate
    world: World

    def emit(self, name: str, document: Json, now: datetime, *, lost: bool = False) -> None:
        if name == "payment.capture":
            self._change(self.world.payments[document["payment_id"]])
        super().emit(name, document, now, lost=lost or document.get("id") in self.fate.unheard)

    def _change(self, payment: Payment) -> None:
        if self.fate.happens("partial_capture"):
            self._capture_less(payment)
        elif payment.request.when_paid is None and self.fate.happens("other_currency"):  # a page shows its currency
            payment.document["currency"] = ANOTHER_CURRENCY

    def _capture_less(self, payment: Payment) -> None:
        capture = payment.document["captures"][-1]
        asked = Decimal(str(capture["capture_amount"]))
        less = part_of(asked, payment.document["currency"])
        if less <= 0:
            return
        capture["capture_amount"] = json_amount(less)
        payment.captured -= asked - less
        payment.request.amount = payment.captured  # what Xendit's list of transactions shows


def part_of(amount: Decimal, currency: str) -> Decimal:
    unit = Decimal(1) if currency in WHOLE_UNIT_CURRENCIES else Decimal("0.01")
    return (amount * LESS).quantize(unit, ROUND_DOWN)


def put_between(world: World, fate: Fate) -> None:
    """Every capture of this world passes here from now on."""
    before = world.webhooks
    queue = MoneyOfAnotherKind(before.business_id, before.seed, before.faults)
    queue.fate, queue.world = fate, world
    world.webhooks = queue
