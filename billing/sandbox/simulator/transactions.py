"""GET /transactions: the documented way to find a payment by our reference; newest first, paged by id."""

from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation

from billing.sandbox.simulator.answers import ApiError, Json, Reply, iso, json_amount, validation_error
from billing.sandbox.simulator.calls import Call
from billing.sandbox.simulator.checks import unsettled
from billing.sandbox.simulator.state import Payment, Transaction, World

_STATUSES = {
    "PENDING": "PENDING", "AUTHORIZED": "PENDING", "SUCCEEDED": "SUCCESS", "FAILED": "FAILED",
    "CANCELED": "VOIDED", "EXPIRED": "VOIDED",
}  # fmt: skip
_TYPES = frozenset({
    "PAYMENT", "REFUND", "DISBURSEMENT", "TRANSFER", "WITHDRAWAL", "TOPUP", "CONVERSION", "CHARGEBACK",
})  # fmt: skip
_LISTS = {
    "types": _TYPES,
    "statuses": frozenset({"PENDING", "SUCCESS", "FAILED", "VOIDED", "REVERSED"}),
    "channel_categories": None,
}
_EXACT = ("reference_id", "product_id", "account_identifier", "currency")
_RANGES = ("created[gte]", "created[lte]", "updated[gte]", "updated[lte]")
_MEMBERS = {"types": "type", "statuses": "status", "channel_categories": "channel_category"}
_DEFAULT_LIMIT, _MAXIMUM_LIMIT = 10, 50
_SETTLEMENT = timedelta(days=2)


def search(world: World, call: Call) -> Reply:
    query = _checked(call.query())
    limit = _limit(query)
    rows = _paged(_visible(world, query, call.now), query)
    found: list[Json] = []
    for row in rows:
        document = _document(world, row)
        if _matches(document, query):
            found.append(document)
        if len(found) > limit:
            break
    page, has_more = found[:limit], len(found) > limit
    if "before_id" in query:
        page.reverse()
    return Reply(200, {"has_more": has_more, "data": page, "links": _links(page, has_more)})


def get(world: World, call: Call) -> Reply:
    wanted = call.params["id"]
    row = next((row for row in world.transactions if row.id == wanted), None)
    if row is None or row.created_at > _shown_until(world, call.now):
        raise ApiError(404, "DATA_NOT_FOUND")
    return Reply(200, _document(world, row))


def _checked(query: dict[str, list[str]]) -> dict[str, list[str]]:
    query = {name.removesuffix("[]"): values for name, values in query.items()}
    known = {*_LISTS, *_EXACT, *_RANGES, "amount", "limit", "after_id", "before_id"}
    for name, values in query.items():
        if name not in known:
            unsettled("GET /transactions with a parameter that is not listed; it changes nothing")
        allowed = _LISTS.get(name)
        if allowed is None or allowed.issuperset(values):
            continue
        if name != "types":
            raise validation_error(f"/query/{name}", "must be equal to one of the allowed values")
        unsettled("GET /transactions with a type that is not listed; the list is printed with more to come")
    for name in _RANGES:
        if name in query and not _is_instant(query[name][-1]):
            raise validation_error(f"/query/{name}", "must be an ISO 8601 date-time")
    return query


def _limit(query: dict[str, list[str]]) -> int:
    text = query.get("limit", [str(_DEFAULT_LIMIT)])[-1]
    if not text.isdecimal() or int(text) < 1:
        raise validation_error("/query/limit", "must be >= 1")
    if int(text) > _MAXIMUM_LIMIT:
        unsettled(f"GET /transactions with a limit above {_MAXIMUM_LIMIT}, which is used instead: none is published")
    return min(int(text), _MAXIMUM_LIMIT)


def _visible(world: World, query: dict[str, list[str]], now: datetime) -> list[Transaction]:
    if "reference_id" in query:
        rows = world.transactions_by_reference.get(query["reference_id"][-1], [])
    else:
        rows = world.transactions
    shown_until = _shown_until(world, now)
    return [row for row in reversed(rows) if row.created_at <= shown_until]


def _shown_until(world: World, now: datetime) -> datetime:
    return now - timedelta(seconds=world.config.transactions_lag_seconds)


def _paged(rows: list[Transaction], query: dict[str, list[str]]) -> list[Transaction]:
    for name in ("after_id", "before_id"):
        if name not in query:
            continue
        wanted = query[name][-1]
        position = next((index for index, row in enumerate(rows) if row.id == wanted), None)
        if position is None:
            raise validation_error(f"/query/{name}", "is not a known transaction")
        return rows[position + 1 :] if name == "after_id" else rows[:position][::-1]
    return rows


def _matches(document: Json, query: dict[str, list[str]]) -> bool:
    for name, member in _MEMBERS.items():
        if name in query and document[member] not in query[name]:
            return False
    for name in _EXACT:
        if name in query and document[name] != query[name][-1]:
            return False
    if "amount" in query and not _same_amount(document["amount"], query["amount"][-1]):
        return False
    return all(_in_range(document, name, query[name][-1]) for name in _RANGES if name in query)


def _same_amount(amount: int | Decimal, text: str) -> bool:
    try:
        return Decimal(text) == amount
    except InvalidOperation:
        return False


def _in_range(document: Json, name: str, bound: str) -> bool:
    member, _, side = name.removesuffix("]").partition("[")
    instant, limit = datetime.fromisoformat(document[member]), datetime.fromisoformat(bound)
    return instant >= limit if side == "gte" else instant <= limit


def _is_instant(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _document(world: World, row: Transaction) -> Json:
    product = row.product.document
    is_payment = isinstance(row.product, Payment)
    request = row.product.request if isinstance(row.product, Payment) else row.product.payment.request
    amount = json_amount(request.amount) if is_payment else product["amount"]
    return {
        "id": row.id,
        "product_id": product["payment_id"] if is_payment else product["id"],
        "type": row.kind,
        "status": _STATUSES[product["status"]],
        "channel_category": request.channel.category,
        "channel_code": request.channel.code,
        "reference_id": product.get("reference_id"),
        "account_identifier": request.card.masked if request.card else None,
        "currency": product["currency"],
        "amount": amount,
        "net_amount": amount,
        "cashflow": "MONEY_IN" if is_payment else "MONEY_OUT",
        "settlement_status": "PENDING",
        "estimated_settlement_time": iso(row.created_at + _SETTLEMENT),
        "business_id": world.config.business_id,
        "fee": {
            "xendit_fee": 0,
            "value_added_tax": 0,
            "xendit_withholding_tax": 0,
            "third_party_withholding_tax": 0,
        },
        "created": iso(row.created_at),
        "updated": product["updated"],
    }


def _links(page: list[Json], has_more: bool) -> list[Json]:
    if not has_more:
        return []
    return [{"href": f"/transactions?after_id={page[-1]['id']}", "rel": "next", "method": "GET"}]
