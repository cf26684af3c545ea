"""GET /_simulator/ledger: what really was collected, the truth a client's books are compared with.

`?summary` leaves the payments out; `?reference_id=R` shows those of one reference, without totals.
"""

from decimal import Decimal

from billing.sandbox.simulator import catalogue
from billing.sandbox.simulator.answers import Json, Reply, iso
from billing.sandbox.simulator.calls import Call
from billing.sandbox.simulator.state import Payment, World


def show(world: World, call: Call) -> Reply:
    wanted = call.query().get("reference_id")
    if wanted is not None:
        rows = world.transactions_by_reference.get(wanted[-1], ())
        return Reply(200, {"payments": [_ledger_row(row.product) for row in rows if isinstance(row.product, Payment)]})
    totals: dict[str, dict[str, Decimal | int]] = {}
    for payment in world.payments.values():
        if payment.captured:
            total = totals.setdefault(
                payment.document["currency"], {"captured": Decimal(0), "refunded": Decimal(0), "count": 0}
            )
            total["captured"] += payment.captured
            total["refunded"] += payment.refunded
            total["count"] += 1
    shown = {
        currency: {
            name: _plain(currency, value) if isinstance(value, Decimal) else value for name, value in total.items()
        }
        for currency, total in totals.items()
    }
    if "summary" in call.query():
        return Reply(200, {"totals": shown})
    return Reply(200, {"totals": shown, "payments": [_ledger_row(payment) for payment in world.payments.values()]})


def _plain(currency: str, amount: Decimal) -> str:
    return f"{amount:.0f}" if currency in catalogue.WHOLE_UNIT_CURRENCIES else f"{amount:.2f}"


def _ledger_row(payment: Payment) -> Json:
    document, currency = payment.document, payment.document["currency"]
    return {
        **{
            name: document.get(name)
            for name in (
                "payment_id",
                "payment_request_id",
                "reference_id",
                "payment_token_id",
                "customer_id",
                "status",
            )
        },
        "currency": currency,
        "amount": _plain(currency, payment.request.amount),
        "captured": _plain(currency, payment.captured),
        "refunded": _plain(currency, payment.refunded),
        "captures": len(document["captures"]),
        "failure_code": document.get("failure_code"),
        "created": document["created"],
        "captured_at": iso(payment.captured_at) if payment.captured_at else None,
        "metadata": document.get("metadata"),
    }
