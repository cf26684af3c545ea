"""/v3/payment_tokens: create, get, cancel; and how a token comes to life and ends."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from billing.sandbox.simulator import catalogue, customers
from billing.sandbox.simulator.answers import ApiError, Json, Reply, iso
from billing.sandbox.simulator.calls import Call, find
from billing.sandbox.simulator.catalogue import Channel
from billing.sandbox.simulator.checks import Shape, check_card_properties, check_customer, check_customer_id
from billing.sandbox.simulator.state import Card, Token, World, fingerprint, masked, touch

_MEMBERS = frozenset({
    "reference_id", "country", "currency", "channel_code", "channel_properties", "customer_id", "customer",
    "description", "metadata",
})  # fmt: skip
_CARD_NUMBER = re.compile(r"\d{12,19}")
_LAST_MONTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOrder:
    """What a new token is made of, whoever asks: the API, a session, the control API."""

    reference_id: str
    channel: Channel
    currency: str
    customer_id: str | None
    status: str
    card: Card | None = None
    channel_properties: Json = field(default_factory=dict)
    description: str | None = None
    metadata: Json | None = None
    token_id: str | None = None


def create(world: World, call: Call) -> Reply:
    body = call.json()
    _check(body)
    channel = catalogue.CHANNELS.get((body["country"], body["channel_code"]))
    if channel is None or not channel.saves or body["currency"] not in channel.currencies:
        raise ApiError(400, "INVALID_VALUE_ERROR", "channel_code, country and currency do not match")
    properties = {name: value for name, value in body["channel_properties"].items() if name != "card_details"}
    card = _card_of(body, call.now) if channel.category == "CARDS" else None
    order = TokenOrder(
        reference_id=body["reference_id"], channel=channel, currency=body["currency"],
        customer_id=_customer_id(world, body, call.now), card=card, channel_properties=properties,
        status="REQUIRES_ACTION" if card is None or card.challenge else "ACTIVE",
        description=body.get("description"), metadata=body.get("metadata"),
    )  # fmt: skip
    token = add(world, order, call.now)
    if token.status == "ACTIVE":
        activate(world, token, call.now)
    return Reply(201, token.document)


def get(world: World, call: Call) -> Reply:
    return Reply(200, find(world.tokens, call, prefix="pt-", name="payment_token_id").document)


def cancel(world: World, call: Call) -> Reply:
    """No webhook tells of it: the documents name none."""
    token = find(world.tokens, call, prefix="pt-", name="payment_token_id")
    if token.status not in {"ACTIVE", "REQUIRES_ACTION", "PENDING"}:
        raise ApiError(400, "INACTIVE_PAYMENT_REQUEST", "The payment token is already inactive.")
    touch(token.document, call.now, status="CANCELED")
    return Reply(200, token.document)


def add(world: World, order: TokenOrder, now: datetime) -> Token:
    token_id = order.token_id or world.ids.uuid("pt")
    properties = dict(order.channel_properties)
    if order.card is not None:
        properties = {"card_details": order.card.details(), **properties}
    document: Json = {
        "payment_token_id": token_id,
        "business_id": world.config.business_id,
        "reference_id": order.reference_id,
        "customer_id": order.customer_id,
        "country": order.channel.country,
        "currency": order.currency,
        "channel_code": order.channel.code,
        "channel_properties": properties,
        "actions": _actions(world, order, token_id),
        "status": order.status,
        "token_details": {} if order.card else {"account_name": "Simulated Customer", "account_balance": "1000000"},
        "description": order.description,
        "metadata": order.metadata,
        "created": iso(now),
        "updated": iso(now),
    }
    token = Token({name: value for name, value in document.items() if value is not None}, order.channel, order.card)
    world.tokens[token_id] = token
    return token


def activate(world: World, token: Token, now: datetime, *, webhook: bool = True) -> None:
    touch(token.document, now, status="ACTIVE", actions=[])
    if webhook:
        world.webhooks.emit("payment_token.activation", token.document, now)
    ends_at = _ends_at(token, now)
    if ends_at is not None and world.config.tokens_expire:
        world.agenda.at(ends_at, partial(expire, world, token))


def fail(world: World, token: Token, failure_code: str, now: datetime, *, webhook: bool) -> None:
    touch(token.document, now, status="FAILED", actions=[], failure_code=failure_code)
    if webhook:
        world.webhooks.emit("payment_token.failure", token.document, now)


def expire(world: World, token: Token, now: datetime) -> None:
    if token.status == "ACTIVE":
        touch(token.document, now, status="EXPIRED")
        world.webhooks.emit("payment_token.expiry", token.document, now)


def read_card(details: Json, *, country: str, amount: Decimal, now: datetime) -> Card:
    """Takes what may be kept from a card and forgets the number here."""
    number = str(details.get("card_number", "")).replace(" ", "")
    month, year = str(details.get("expiry_month", "")), str(details.get("expiry_year", ""))
    if not _CARD_NUMBER.fullmatch(number) or not month.isdecimal() or not year.isdecimal():
        raise ApiError(400, "INVALID_PAYMENT_DETAILS")
    if not 1 <= int(month) <= _LAST_MONTH:
        raise ApiError(400, "INVALID_PAYMENT_DETAILS")
    product = catalogue.card_product(number, country=country, amount=amount)
    card = Card(
        masked=masked(number), fingerprint=fingerprint(number), network=product.network,
        challenge=product.challenge, expiry_month=int(month), expiry_year=int(year),
        issuer=catalogue.ISSUERS.get(country, "SIMULATED BANK"), country=country,
        first_name=details.get("cardholder_first_name"), last_name=details.get("cardholder_last_name"),
        email=details.get("cardholder_email"),
    )  # fmt: skip
    if card.expired_by(now):
        raise ApiError(400, "CARD_EXPIRED")
    return card


def _check(body: Json) -> None:
    shape = Shape(body)
    shape.only(_MEMBERS)
    shape.string("reference_id", maximum=255, required=True)
    shape.choice("country", catalogue.COUNTRIES, required=True)
    shape.choice("currency", catalogue.CURRENCIES, required=True)
    shape.string("channel_code", maximum=64, required=True)
    shape.string("description", maximum=1000)
    shape.metadata()
    properties = shape.nested("channel_properties", required=True)
    if properties is not None:
        check_card_properties(properties)
    check_customer_id(shape)
    customer = shape.nested("customer")
    if customer is not None:
        check_customer(customer)
    shape.refuse_breaches()


def _card_of(body: Json, now: datetime) -> Card:
    details = body["channel_properties"].get("card_details")
    if not isinstance(details, dict):
        raise ApiError(400, "INVALID_PAYMENT_DETAILS")
    return read_card(details, country=body["country"], amount=Decimal(0), now=now)


def _customer_id(world: World, body: Json, now: datetime) -> str | None:
    if "customer" in body:
        return str(customers.add(world, body["customer"], now)["id"])
    customer_id = body.get("customer_id")
    if customer_id is not None and customer_id not in world.customers:
        raise ApiError(400, "INVALID_VALUE_ERROR", "The customer ID provided in the request does not exist")
    return customer_id


def _actions(world: World, order: TokenOrder, token_id: str) -> list[Json]:
    if order.status != "REQUIRES_ACTION":
        return []
    url = f"{world.config.base_url}/actions/{token_id}"
    return [{"type": "REDIRECT_CUSTOMER", "descriptor": "WEB_URL", "value": url}]


def _ends_at(token: Token, now: datetime) -> datetime | None:
    if token.card is not None:
        return token.card.ends_at()
    days = token.channel.validity_days
    return None if days is None else now + timedelta(days=days)
