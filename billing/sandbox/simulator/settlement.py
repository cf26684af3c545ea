"""What becomes of a payment request: its payment, captures, declines, and the webhook each of them sends.

Called by charges.py (token charges), sessions.py (hosted page) and control.py (late truths).
"""

from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from billing.sandbox.simulator import catalogue
from billing.sandbox.simulator.answers import Json, iso, json_amount
from billing.sandbox.simulator.outcomes import SUCCESS, Outcome, Result
from billing.sandbox.simulator.state import Payment, PaymentRequest, World, touch

_CLOSED = frozenset({"SUCCEEDED", "AUTHORIZED"})
_COPIED = (
    "business_id", "reference_id", "payment_request_id", "payment_token_id", "customer_id", "type",
    "country", "currency", "request_amount", "capture_method", "channel_code", "channel_properties",
    "description", "metadata",
)  # fmt: skip


def settle(world: World, request: PaymentRequest, outcome: Outcome, now: datetime) -> None:
    request.webhook = outcome.webhook
    match outcome.result:
        case Result.REQUIRES_ACTION:
            _await_customer(world, request, now)
        case Result.PENDING:
            _open_payment(world, request, now)
            touch(request.document, now, status="PENDING")
            if outcome.resolution is not None:
                due_at = now + timedelta(seconds=world.config.pending_seconds)
                world.agenda.at(due_at, partial(_resolve_pending, world, request, outcome.resolution))
        case Result.SUCCEEDED:
            _pay(world, request, outcome, now)
        case Result.FAILED:
            _decline(world, request, outcome, now)


def resolve(world: World, request: PaymentRequest, outcome: Outcome, now: datetime) -> None:
    """The final word on a request that was open, failed or expired; a paid one stays paid."""
    if request.status not in _CLOSED:
        settle(world, request, outcome, now)


def capture(world: World, payment: Payment, amount: Decimal, now: datetime) -> None:
    request = payment.request
    payment.document.setdefault("captures", []).append({
        "capture_timestamp": iso(now),
        "capture_id": world.ids.uuid("cptr"),
        "capture_amount": json_amount(amount),
    })  # fmt: skip
    payment.captured += amount
    payment.captured_at = payment.captured_at or now
    for document in (payment.document, request.document):
        document.pop("failure_code", None)
        touch(document, now, status="SUCCEEDED")
    request.document["actions"] = []
    payment.document["payment_details"] = _payment_details(world, request, SUCCESS)
    world.webhooks.emit("payment.capture", payment.document, now, lost=not request.webhook)
    if request.when_paid is not None:
        request.when_paid(now)


def _pay(world: World, request: PaymentRequest, outcome: Outcome, now: datetime) -> None:
    payment = _open_payment(world, request, now)
    if outcome.currency is not None:
        payment.document["currency"] = outcome.currency
    if request.document["capture_method"] == "AUTOMATIC":
        capture(world, payment, request.amount if outcome.captured is None else outcome.captured, now)
        return
    payment.document["payment_details"] = _payment_details(world, request, SUCCESS)
    touch(payment.document, now, status="AUTHORIZED")
    touch(request.document, now, status="AUTHORIZED", actions=[])
    world.webhooks.emit("payment.authorization", payment.document, now, lost=not request.webhook)
    if request.when_paid is not None:
        request.when_paid(now)


def _decline(world: World, request: PaymentRequest, outcome: Outcome, now: datetime) -> None:
    payment = _open_payment(world, request, now)
    payment.document["payment_details"] = _payment_details(world, request, outcome)
    touch(payment.document, now, status="FAILED", failure_code=outcome.failure_code)
    touch(request.document, now, status="FAILED", failure_code=outcome.failure_code, actions=[])
    world.webhooks.emit("payment.failure", payment.document, now, lost=not request.webhook)
    if outcome.late_capture_seconds is not None:
        due_at = now + timedelta(seconds=outcome.late_capture_seconds)
        world.agenda.at(due_at, partial(resolve, world, request, SUCCESS))


def _open_payment(world: World, request: PaymentRequest, now: datetime) -> Payment:
    if request.payment is not None:
        return request.payment
    copied = {name: request.document[name] for name in _COPIED if name in request.document}
    document: Json = {
        "payment_id": world.ids.uuid("py"),
        **copied,
        "captures": [],
        "status": "PENDING",
        "created": iso(now),
        "updated": iso(now),
    }
    payment = Payment(document, request)
    request.payment = payment
    request.document["latest_payment_id"] = document["payment_id"]
    world.payments[document["payment_id"]] = payment
    world.add_transaction("PAYMENT", payment, now)
    return payment


def _await_customer(world: World, request: PaymentRequest, now: datetime) -> None:
    url = f"{world.config.base_url}/actions/{request.document['payment_request_id']}"
    action = {"type": "REDIRECT_CUSTOMER", "descriptor": "WEB_URL", "value": url}
    touch(request.document, now, status="REQUIRES_ACTION", actions=[action])
    world.agenda.at(now + timedelta(seconds=world.config.action_seconds), partial(_expire, world, request))


def _expire(world: World, request: PaymentRequest, now: datetime) -> None:
    if request.status == "REQUIRES_ACTION":
        touch(request.document, now, status="EXPIRED", actions=[])
        world.webhooks.emit("payment_request.expiry", request.document, now, lost=not request.webhook)


def _resolve_pending(world: World, request: PaymentRequest, outcome: Outcome, now: datetime) -> None:
    if request.status == "PENDING":
        settle(world, request, outcome, now)


def _payment_details(world: World, request: PaymentRequest, outcome: Outcome) -> Json:
    """Where the network's answer is told: GET /v3/payments and webhooks, never the synchronous 201."""
    if request.channel.category != "CARDS":
        return {"receipt_id": world.ids.digits(12), "issuer_name": request.channel.label}
    code = outcome.network_code or catalogue.DEFAULT_NETWORK_CODES.get(outcome.failure_code or "", None)
    if outcome.result is Result.SUCCEEDED:
        code = "00"
    data: Json = {} if code is None else _network_answer(world, code)
    if outcome.advice_code is not None:
        advice = f"{int(outcome.advice_code):02d}"
        data["merchant_advice_code"] = advice
        data["merchant_advice_descriptor"] = catalogue.ADVICE_DESCRIPTORS.get(advice, "No action possible")
    if code == "00":
        data["authorization_code"] = world.ids.digits(6)
    data["retrieval_reference_number"] = world.ids.digits(12)
    data["reconciliation_id"] = world.ids.digits(22)
    # Alphanumeric, as test mode returns it: sent back with a charge it fails (charges.py).
    data["network_transaction_id"] = f"test{world.ids.hexadecimal(12)}x"
    return {"authorization_data": data}


def _network_answer(world: World, code: str) -> Json:
    text = catalogue.NETWORK_DESCRIPTORS.get(code, "Declined")
    if world.config.authorization_spelling == "guide":
        return {"card_network_response_code": code, "card_network_descriptor": text}
    return {"network_response_code": code, "network_response_code_descriptor": text}
