"""POST /refunds: answered PENDING at once, decided a little later by webhook. GET /refunds/{id} is of the older API."""

from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from billing.sandbox.simulator import catalogue
from billing.sandbox.simulator.answers import ApiError, Json, Reply, iso, json_amount
from billing.sandbox.simulator.calls import Call, look_up
from billing.sandbox.simulator.checks import Shape
from billing.sandbox.simulator.state import Payment, Refund, World, touch

_MEMBERS = frozenset({"payment_request_id", "reason", "reference_id", "amount", "currency", "metadata"})
_REASONS = frozenset({"FRAUDULENT", "DUPLICATE", "REQUESTED_BY_CUSTOMER", "CANCELLATION", "OTHERS"})
_METHOD_TYPES = {"CARDS": "CARD", "EWALLET": "EWALLET", "DIRECT_DEBIT": "DIRECT_DEBIT"}


def create(world: World, call: Call) -> Reply:
    body = call.json()
    wanted = _check(body)
    request = look_up(world.requests, body["payment_request_id"])
    payment = request.payment
    if payment is None or payment.status != "SUCCEEDED":
        raise ApiError(400, "INELIGIBLE_TRANSACTION_STATUS")
    if "currency" in body and body["currency"] != payment.document["currency"]:
        raise ApiError(400, "INVALID_VALUE_ERROR", "currency does not match the payment")
    return Reply(200, give_back(world, payment, wanted, body, call.now))


def get(world: World, call: Call) -> Reply:
    refund = world.refunds.get(call.params["id"])
    if refund is None:
        raise ApiError(404, "NOT_FOUND")
    return Reply(200, refund.document)


def give_back(world: World, payment: Payment, wanted: Decimal | None, body: Json, now: datetime) -> Json:
    """Without an amount all that is left. A copy: it says PENDING even when the refund ends within the same instant."""
    amount = _refundable(payment, wanted, now)
    refund = _open_refund(world, payment, amount, body, now)
    world.agenda.at(now + timedelta(seconds=world.config.refund_seconds), partial(_finish, world, refund))
    return dict(refund.document)


def _check(body: Json) -> Decimal | None:
    shape = Shape(body)
    shape.only(_MEMBERS)
    shape.string("payment_request_id", maximum=39, minimum=39, required=True)
    shape.choice("reason", _REASONS, required=True)
    shape.string("reference_id", maximum=255)
    shape.choice("currency", catalogue.CURRENCIES)
    amount = shape.number("amount")
    shape.metadata()
    shape.refuse_breaches()
    return amount


def _refundable(payment: Payment, wanted: Decimal | None, now: datetime) -> Decimal:
    channel, left = payment.request.channel, payment.captured - payment.refunded
    if not channel.refunds:
        raise ApiError(403, "REFUND_NOT_SUPPORTED")
    if payment.refund_pending:
        raise ApiError(400, "REFUND_IN_PROGRESS")
    amount = left if wanted is None else wanted
    if amount <= 0 or not catalogue.decimals_ok(payment.document["currency"], amount):
        raise ApiError(400, "INVALID_VALUE_ERROR" if left > 0 else "REFUND_AMOUNT_EXCEEDED")
    if amount > left:
        raise ApiError(400, "REFUND_AMOUNT_EXCEEDED")
    if amount < payment.captured and not channel.partial_refunds:
        raise ApiError(403, "PARTIAL_REFUND_NOT_SUPPORTED")
    if payment.captured_at is not None and now - payment.captured_at > timedelta(days=channel.refund_days):
        raise ApiError(400, "INELIGIBLE_TRANSACTION_STATUS")
    return amount


def _open_refund(world: World, payment: Payment, amount: Decimal, body: Json, now: datetime) -> Refund:
    document: Json = {
        "id": world.ids.uuid("rfd"),
        "payment_request_id": payment.document["payment_request_id"],
        "payment_id": payment.document["payment_id"],
        "invoice_id": None,
        "payment_method_type": _METHOD_TYPES.get(payment.request.channel.category, "EWALLET"),
        "reference_id": body.get("reference_id"),
        "channel_code": payment.request.channel.code,
        "currency": payment.document["currency"],
        "amount": json_amount(amount),
        "status": "PENDING",
        "reason": body["reason"],
        "failure_code": None,
        "refund_fee_amount": None,
        "metadata": body.get("metadata"),
        "created": iso(now),
        "updated": iso(now),
    }
    refund = Refund(document, payment, amount)
    payment.refunded += amount
    payment.refund_pending = True
    world.refunds[document["id"]] = refund
    world.add_transaction("REFUND", refund, now)
    return refund


def _finish(world: World, refund: Refund, now: datetime) -> None:
    failure = world.refund_failure
    refund.payment.refund_pending = False
    if failure:
        refund.payment.refunded -= refund.amount
        touch(refund.document, now, status="FAILED", failure_code=failure)
    else:
        touch(refund.document, now, status="SUCCEEDED")
    name = "refund.failed" if failure else "refund.succeeded"
    document = refund.document
    if world.config.refund_events_nested:
        document = {
            "event": name,
            "business_id": world.config.business_id,
            "created": iso(now),
            "data": document,
        }
    world.webhooks.emit(name, document, now)
