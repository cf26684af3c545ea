"""POST and GET /customers: the one Xendit API here that has an idempotency key."""

from datetime import datetime, timedelta

from billing.sandbox.simulator.answers import REFERENCE_USED, ApiError, Json, Reply, iso, validation_error
from billing.sandbox.simulator.calls import Call, look_up
from billing.sandbox.simulator.checks import Shape, check_customer
from billing.sandbox.simulator.state import World

_VERSIONS = frozenset({"2020-10-31", "2020-05-19"})
_BARE_LIST_VERSION = "2020-05-19"
_KEY_LIFETIME = timedelta(hours=24)
_KEY_LENGTH = 100


def create(world: World, call: Call) -> Reply:
    _check_version(call)
    key = call.headers.get("idempotency-key")
    if key is not None and (known := _earlier(world, call, key)) is not None:
        return Reply(201, known)
    body = call.json()
    shape = Shape(body)
    check_customer(shape)
    shape.metadata()
    shape.refuse_breaches()
    customer = add(world, body, call.now)
    if key is not None:
        world.customer_calls[key] = (call.now, call.body, customer["id"])
    return Reply(201, customer)


def search(world: World, call: Call) -> Reply:
    _check_version(call)
    references = call.query().get("reference_id")
    if not references:
        raise validation_error("/query", "must have required property 'reference_id'")
    customer_id = world.customer_ids.get(references[-1])
    found = [world.customers[customer_id]] if customer_id else []
    if call.headers.get("api-version") == _BARE_LIST_VERSION:
        return Reply(200, found)
    return Reply(200, {"data": found, "has_more": False})


def get(world: World, call: Call) -> Reply:
    _check_version(call)
    return Reply(200, look_up(world.customers, call.params["id"]))


def add(world: World, body: Json, now: datetime, *, prefix: str = "") -> Json:
    """Also for the customer object of a session, whose 409 names the member it is about (`prefix`)."""
    reference = body["reference_id"]
    if reference in world.customer_ids:
        raise ApiError(409, "DUPLICATE_ERROR", prefix + REFERENCE_USED)
    customer = {"id": world.ids.uuid("cust"), **body, "created": iso(now), "updated": iso(now)}
    world.customers[customer["id"]] = customer
    world.customer_ids[reference] = customer["id"]
    return customer


def _earlier(world: World, call: Call, key: str) -> Json | None:
    if not 1 <= len(key) <= _KEY_LENGTH:
        raise validation_error("/headers/idempotency-key", f"must have 1 to {_KEY_LENGTH} characters")
    used = world.customer_calls.get(key)
    if used is None or call.now - used[0] >= _KEY_LIFETIME:
        return None
    _, body, customer_id = used
    if body != call.body:
        raise ApiError(409, "IDEMPOTENCY_ERROR")
    return world.customers[customer_id]


def _check_version(call: Call) -> None:
    version = call.headers.get("api-version")
    if version is not None and version not in _VERSIONS:
        raise validation_error("/headers/api-version", "must be equal to one of the allowed values")
