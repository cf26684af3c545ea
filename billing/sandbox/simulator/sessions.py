"""/sessions: create, get, cancel, expire. What a customer makes of one is in checkout.py."""

from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from billing.sandbox.simulator import customers
from billing.sandbox.simulator.answers import REFERENCE_USED, ApiError, Json, Reply, iso, json_amount
from billing.sandbox.simulator.calls import Call
from billing.sandbox.simulator.session_checks import SessionOrder, check_session
from billing.sandbox.simulator.state import Session, World, touch

_ECHOED = (
    "capture_method", "channel_properties", "allowed_payment_channels", "metadata", "description", "items",
    "success_return_url", "cancel_return_url", "notification_channels", "components_configuration",
    "payment_link_configuration",
)  # fmt: skip
_LIFETIME = timedelta(minutes=30)


def create(world: World, call: Call) -> Reply:
    body = call.json()
    order = check_session(body, now=call.now, longest=timedelta(seconds=world.config.session_max_seconds))
    if world.config.unique_session_references and body["reference_id"] in world.session_references:
        raise ApiError(400, "DUPLICATE_ERROR", REFERENCE_USED)
    customer = _customer(world, body, call.now)
    session = _open(world, body, order, customer, call.now)
    return Reply(201, session.document)


def get(world: World, call: Call) -> Reply:
    return Reply(200, find(world, call).document)


def cancel(world: World, call: Call) -> Reply:
    session = find(world, call)
    expect_active(session)
    touch(session.document, call.now, status="CANCELED")
    return Reply(200, session.document)


def find(world: World, call: Call) -> Session:
    session = world.sessions.get(call.params["id"])
    if session is None:
        raise ApiError(404, "NOT_FOUND", "Session not found")
    return session


def expire(world: World, session: Session, now: datetime) -> None:
    if session.status == "ACTIVE":
        touch(session.document, now, status="EXPIRED")
        world.webhooks.emit("payment_session.expired", session.document, now)


def expect_active(session: Session) -> None:
    if session.status != "ACTIVE":
        raise ApiError(422, "INVALID_SESSION_STATUS", f"Session status is {session.status}, expecting ACTIVE")


def _customer(world: World, body: Json, now: datetime) -> Json | None:
    customer_id = body.get("customer_id")
    if customer_id is None:
        return customers.add(world, body["customer"], now, prefix="customer: ") if "customer" in body else None
    if customer_id not in world.customers:
        raise ApiError(404, "DATA_NOT_FOUND", "The customer ID provided in the request does not exist")
    return world.customers[customer_id]


def _open(world: World, body: Json, order: SessionOrder, customer: Json | None, now: datetime) -> Session:
    expires_at = order.expires_at or now + _LIFETIME
    session_id = world.ids.object_id("ps")
    is_link = body["mode"] == "PAYMENT_LINK"
    document: Json = {
        "payment_session_id": session_id,
        "created": iso(now),
        "updated": iso(now),
        "status": "ACTIVE",
        "reference_id": body["reference_id"],
        "customer_id": customer["id"] if customer else None,
        "session_type": body["session_type"],
        "currency": body["currency"],
        "amount": json_amount(Decimal(body["amount"])),
        "country": body["country"],
        "mode": body["mode"],
        "expires_at": iso(expires_at),
        "locale": body.get("locale", "en"),
        "business_id": world.config.business_id,
        "payment_link_url": f"{world.config.base_url}/sessions/{session_id}" if is_link else None,
        "components_sdk_key": None if is_link else f"session-{world.ids.hexadecimal(32)}-{session_id}",
        "payment_token_id": None,
        "payment_request_id": None,
    }
    if body["session_type"] == "PAY":
        document |= {
            "payment_id": None,
            "capture_method": "AUTOMATIC",
            "allow_save_payment_method": body.get("allow_save_payment_method", "DISABLED"),
        }
    document |= {name: body[name] for name in _ECHOED if name in body}
    session = Session(document, order.channels, customer)
    world.sessions[session_id] = session
    world.session_references.add(body["reference_id"])
    world.agenda.at(expires_at, partial(expire, world, session))
    return session
