"""/v3/payment_requests and /v3/payments: token charges, and what can be asked about them afterwards.

`create` is the hot path: one pass over the body, a few dictionary look-ups, no models.
"""

import re
from datetime import datetime
from decimal import Decimal
from functools import partial

from billing.sandbox.simulator import catalogue, outcomes
from billing.sandbox.simulator.answers import DUPLICATE_CHARGE, ApiError, Json, Reply, iso, json_amount
from billing.sandbox.simulator.calls import Call, find
from billing.sandbox.simulator.checks import Shape, check_card_properties, check_customer_id, check_items, unsettled
from billing.sandbox.simulator.outcomes import SUCCESS, Outcome, Result
from billing.sandbox.simulator.settlement import capture as capture_payment
from billing.sandbox.simulator.settlement import resolve, settle
from billing.sandbox.simulator.state import Payment, PaymentRequest, Token, World, touch

_MEMBERS = frozenset({
    "reference_id", "type", "payment_token_id", "country", "currency", "request_amount", "channel_code",
    "channel_properties", "capture_method", "description", "customer_id", "customer", "items",
    "shipping_information", "metadata",
})  # fmt: skip
_TOKEN_ID = re.compile(r"pt-.{36}")
_OPEN = frozenset({"REQUIRES_ACTION", "ACCEPTING_PAYMENTS", "PENDING"})
SIMULATED = (
    "A simulated payment for the specified payment request id is being processed. "
    "You will be informed of the result via a webhook."
)


def create(world: World, call: Call) -> Reply:
    body = call.json()
    amount = _check_body(body)
    token = _chargeable_token(world, body, call.now)
    _check_against_token(world, token, body, amount)
    outcome = _decide(world, token, body, amount, call.now)
    outcome.refuse()
    request = _open_request(world, token, body, amount, call.now)
    settle(world, request, outcome, call.now)
    return Reply(201, request.document, outcome.disturbance)


def get(world: World, call: Call) -> Reply:
    return Reply(200, _request(world, call).document)


def cancel(world: World, call: Call) -> Reply:
    request = _request(world, call)
    if request.status == "PENDING":
        raise ApiError(400, "INELIGIBLE_TRANSACTION_STATUS")
    if request.status not in _OPEN:
        raise ApiError(400, "INACTIVE_PAYMENT_REQUEST")
    touch(request.document, call.now, status="CANCELED", actions=[])
    return Reply(200, request.document)


def simulate(world: World, call: Call) -> Reply:
    """500 is the only error the reference names for this call."""
    request = _request(world, call)
    shape = Shape(call.json())
    shape.number("amount", required=True)
    shape.refuse_breaches()
    if request.status not in _OPEN:
        raise ApiError(500, "SERVER_ERROR")
    world.agenda.at(call.now, partial(resolve, world, request, SUCCESS))
    return Reply(200, {"status": "PENDING", "message": SIMULATED})


def get_payment(world: World, call: Call) -> Reply:
    return Reply(200, _payment(world, call).document)


def capture(world: World, call: Call) -> Reply:
    payment = _payment(world, call)
    shape = Shape(call.json())
    amount = shape.number("capture_amount", required=True)
    shape.refuse_breaches()
    if payment.status != "AUTHORIZED":
        raise ApiError(400, "INELIGIBLE_TRANSACTION_STATUS")
    if amount is None or amount <= 0:
        raise ApiError(400, "INVALID_VALUE_ERROR")
    if amount > payment.request.amount:
        raise ApiError(400, "CAPTURE_AMOUNT_EXCEEDED")
    capture_payment(world, payment, amount, call.now)
    return Reply(200, payment.document)


def cancel_payment(world: World, call: Call) -> Reply:
    payment = _payment(world, call)
    if payment.status != "AUTHORIZED":
        raise ApiError(400, "INELIGIBLE_TRANSACTION_STATUS")
    touch(payment.document, call.now, status="CANCELED")
    return Reply(200, payment.document)


def _request(world: World, call: Call) -> PaymentRequest:
    return find(world.requests, call, prefix="pr-", name="payment_request_id")


def _payment(world: World, call: Call) -> Payment:
    return find(world.payments, call, prefix="py-", name="payment_id")


def _check_body(body: Json) -> Decimal:
    shape = Shape(body)
    shape.only(_MEMBERS)
    shape.string("reference_id", maximum=255, required=True)
    # PAY_AND_SAVE and REUSABLE_PAYMENT_CODE need a card number or a code: not simulated, sessions do that.
    shape.choice("type", {"PAY"}, required=True)
    shape.string("payment_token_id", maximum=39, required=True, pattern=_TOKEN_ID)
    shape.choice("country", catalogue.COUNTRIES, required=True)
    shape.choice("currency", catalogue.CURRENCIES, required=True)
    amount = shape.number("request_amount", required=True)
    shape.choice("capture_method", {"AUTOMATIC", "MANUAL"})
    shape.string("channel_code", maximum=64)
    shape.string("description", maximum=1000)
    shape.metadata()
    check_customer_id(shape)
    shape.nested("customer")
    shape.nested("shipping_information")
    check_items(shape)
    properties = shape.nested("channel_properties")
    if properties is not None:
        check_card_properties(properties)
        properties.string("network_transaction_id", maximum=64)
    shape.refuse_breaches()
    return amount if amount is not None else Decimal(0)


def _chargeable_token(world: World, body: Json, now: datetime) -> Token:
    token = world.tokens.get(body["payment_token_id"])
    # A token nobody knows: POST lists no 404, its documented error about tokens is INVALID_TOKEN.
    if token is None:
        raise ApiError(400, "INVALID_TOKEN")
    if token.status in {"ACTIVE", "EXPIRED"} and token.card is not None and token.card.expired_by(now):
        raise ApiError(400, "CARD_EXPIRED")
    if token.status != "ACTIVE":
        raise ApiError(400, "INVALID_TOKEN")
    return token


def _check_against_token(world: World, token: Token, body: Json, amount: Decimal) -> None:
    channel, document = token.channel, token.document
    currency = body["currency"]
    for name in ("country", "channel_code"):
        if name in body and body[name] != document[name]:
            raise ApiError(400, "INVALID_VALUE_ERROR", f"{name} does not match the payment token")
    if currency not in channel.currencies:
        raise ApiError(400, "INVALID_VALUE_ERROR", "currency does not match the payment token")
    if currency != document["currency"]:
        unsettled("a charge in another currency of the channel than the token was made in")
    if body.get("customer_id", document.get("customer_id")) != document.get("customer_id"):
        unsettled("a charge with another customer_id than the token's")
    if not catalogue.decimals_ok(currency, amount):
        raise ApiError(400, "INVALID_VALUE_ERROR", f"request_amount has too many decimals for {currency}")
    # The printed limits are in the country's own currency.
    if currency == channel.currencies[0] and not channel.minimum <= amount <= channel.maximum:
        limits = f"{channel.minimum} and {channel.maximum} {currency}"
        raise ApiError(400, "INVALID_VALUE_ERROR", f"request_amount must be between {limits} for {channel.code}")
    if channel.category != "CARDS":
        if body.get("capture_method") == "MANUAL":
            raise ApiError(400, "INVALID_VALUE_ERROR", "capture_method MANUAL is for cards only")
        return
    if body.get("channel_properties", {}).get("skip_three_ds") and not world.config.skip_three_ds_allowed:
        raise ApiError(403, "SKIP_3DS_FORBIDDEN")
    if body["reference_id"] in world.card_references:
        raise ApiError(409, "DATA_NOT_FOUND", DUPLICATE_CHARGE)


def _decide(world: World, token: Token, body: Json, amount: Decimal, now: datetime) -> Outcome:
    if token.script:
        return token.script.popleft()
    network = token.card.network if token.card else None
    text = catalogue.magic_outcome(token.channel, amount=amount, network=network)
    if text is None and world.config.decide is not None:
        text = world.config.decide(token.document, amount, now)
    return outcomes.parse(text) if text is not None else _undisturbed(token, body)


def _undisturbed(token: Token, body: Json) -> Outcome:
    """A charge nobody meddles with: paid, unless the channel or the card insists on its customer."""
    if not token.channel.merchant_initiated:
        return Outcome(Result.REQUIRES_ACTION)
    properties = body.get("channel_properties", {})
    if not properties.get("network_transaction_id", "0").isdecimal():
        return outcomes.parse("PROCESSOR_ERROR/30")
    present = properties.get("card_on_file_type", "CUSTOMER_UNSCHEDULED") == "CUSTOMER_UNSCHEDULED"
    if present and token.card is not None and token.card.challenge and not properties.get("skip_three_ds"):
        return Outcome(Result.REQUIRES_ACTION)
    return SUCCESS


def _open_request(world: World, token: Token, body: Json, amount: Decimal, now: datetime) -> PaymentRequest:
    created = iso(now)
    document: Json = {
        "business_id": world.config.business_id,
        "payment_request_id": world.ids.uuid("pr"),
        "reference_id": body["reference_id"],
        "payment_token_id": token.document["payment_token_id"],
        "customer_id": token.document.get("customer_id"),
        "type": "PAY",
        "country": body["country"],
        "currency": body["currency"],
        "request_amount": json_amount(amount),
        "capture_method": body.get("capture_method", "AUTOMATIC"),
        "channel_code": token.channel.code,
        "channel_properties": _channel_properties(token, body),
        "actions": [],
        "status": "PENDING",
    }
    for name in ("description", "metadata", "items", "shipping_information"):
        if name in body:
            document[name] = body[name]
    document["created"] = document["updated"] = created
    request = PaymentRequest(document, token.channel, amount, token.card)
    world.requests[document["payment_request_id"]] = request
    if token.card is not None:
        world.card_references.add(body["reference_id"])
    token.charges += 1
    return request


def _channel_properties(token: Token, body: Json) -> Json:
    sent: Json = body.get("channel_properties", {})
    if token.card is None:
        return sent
    return {
        "card_on_file_type": "CUSTOMER_UNSCHEDULED",
        "transaction_sequence": "SUBSEQUENT" if token.charges else "INITIAL",
        **sent,
        "card_details": token.document["channel_properties"].get("card_details"),
    }
