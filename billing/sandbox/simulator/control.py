"""/_simulator: what a test or a demo does to the simulator. No key, JSON in and out; no part of Xendit."""

from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing.sandbox.simulator import catalogue, customers, outcomes, refunds, sessions, settlement, tokens
from billing.sandbox.simulator.answers import ApiError, Json, Reply, iso
from billing.sandbox.simulator.calls import Call, look_up
from billing.sandbox.simulator.checkout import attempt
from billing.sandbox.simulator.clock import SettableClock
from billing.sandbox.simulator.outcomes import SUCCESS, Outcome
from billing.sandbox.simulator.quota import WINDOW_SECONDS, Quota
from billing.sandbox.simulator.state import Card, Checkout, Session, Token, World, touch
from billing.sandbox.simulator.webhooks import WebhookFaults

DEFAULT_CARD = "4000000000001000"
_CARD_YEARS = 3
_LISTED_EVENTS = 200


def complete_session(world: World, call: Call) -> Reply:
    """The customer pays or saves; a challenge counts as passed."""
    body, session = call.json_or_empty(), sessions.find(world, call)
    channel = _chosen_channel(session, body.get("channel_code"))
    card = _card(body, session.document["country"], Decimal(session.document["amount"]), call.now)
    outcome = _outcome(body["outcome"]) if "outcome" in body else None
    save = bool(body.get("save", True))
    checkout = Checkout(channel, card if channel.category == "CARDS" else None, save, outcome)
    code = attempt(world, session, checkout, call.now)
    return Reply(200, {"session": session.document, "failure_code": code})


def fail_session(world: World, call: Call) -> Reply:
    body, session = call.json_or_empty(), sessions.find(world, call)
    channel = _chosen_channel(session, body.get("channel_code"))
    card = _card(body, session.document["country"], Decimal(session.document["amount"]), call.now)
    outcome = _outcome(body.get("failure_code", "CARD_DECLINED"))
    checkout = Checkout(channel, card if channel.category == "CARDS" else None, outcome=outcome)
    code = attempt(world, session, checkout, call.now)
    return Reply(200, {"session": session.document, "failure_code": code})


def expire_session(world: World, call: Call) -> Reply:
    session = sessions.find(world, call)
    sessions.expire(world, session, call.now)
    return Reply(200, {"session": session.document})


def create_tokens(world: World, call: Call) -> Reply:
    """ACTIVE tokens without a session or a webhook, for imports and benchmarks."""
    body = call.json_or_empty()
    count = body.get("count")
    if count is None:
        return Reply(201, _new_token(world, body, call.now).document)
    if not isinstance(count, int) or count < 1:
        raise ApiError(400, "API_VALIDATION_ERROR", "count must be a positive integer")
    made = [_new_token(world, body, call.now).document["payment_token_id"] for _ in range(count)]
    return Reply(201, {"payment_token_ids": made})


def script_token(world: World, call: Call) -> Reply:
    token = _token(world, call)
    texts = call.json().get("outcomes")
    if not isinstance(texts, list):
        raise ApiError(400, "API_VALIDATION_ERROR", "outcomes must be a list")
    script = [_outcome(text) for text in texts]
    token.script.clear()
    token.script.extend(script)
    return Reply(200, {"payment_token_id": token.document["payment_token_id"], "outcomes": len(script)})


def activate_token(world: World, call: Call) -> Reply:
    """The customer finishes linking a token that POST /v3/payment_tokens left in REQUIRES_ACTION."""
    token = _token(world, call)
    if token.status not in {"REQUIRES_ACTION", "PENDING"}:
        raise ApiError(409, "INELIGIBLE_TRANSACTION_STATUS")
    tokens.activate(world, token, call.now)
    return Reply(200, token.document)


def expire_token(world: World, call: Call) -> Reply:
    token = _token(world, call)
    tokens.expire(world, token, call.now)
    return Reply(200, token.document)


def cancel_token(world: World, call: Call) -> Reply:
    """The customer unlinks the token at the provider: like a cancel of ours, no webhook tells of it."""
    token = _token(world, call)
    touch(token.document, call.now, status="CANCELED")
    return Reply(200, token.document)


def configure_webhooks(world: World, call: Call) -> Reply:
    body, faults = call.json_or_empty(), world.webhooks.faults
    known = {entry.name: type(getattr(faults, entry.name)) for entry in fields(WebhookFaults)}
    for name, value in body.items():
        fits = isinstance(value, bool) if known.get(name) is bool else _is_number(value)
        if name not in known or not fits:
            raise ApiError(400, "API_VALIDATION_ERROR", f"{name}: known are {', '.join(sorted(known))}")
        setattr(faults, name, value if isinstance(value, bool) else float(value))
    return Reply(200, {name: getattr(faults, name) for name in known})


def resend_webhooks(world: World, call: Call) -> Reply:
    body = call.json_or_empty()
    since = _instant(body["since"]) if "since" in body else None
    subject = next((str(value) for name, value in body.items() if name != "since"), None)
    return Reply(200, {"resent": world.webhooks.resend(call.now, since=since, subject=subject)})


def list_webhooks(world: World, call: Call) -> Reply:
    """Newest first; the newest ones only. `?summary` leaves them out."""
    counts = [{"event": name, "status": status, "count": n} for (name, status), n in world.webhooks.statuses.items()]
    if "summary" in call.query():
        return Reply(200, {"counts": counts})
    newest = list(world.webhooks.events.values())[-_LISTED_EVENTS:]
    rows = [
        {
            "webhook_id": event.webhook_id,
            "event": event.name,
            "status": event.status.value,
            "attempts": event.attempts,
            "last_answer": event.last_answer,
            "subjects": sorted(event.subjects),
            "created": iso(event.created_at),
        }
        for event in reversed(newest)
    ]
    return Reply(200, {"counts": counts, "events": rows})


def configure_refunds(world: World, call: Call) -> Reply:
    world.refund_failure = call.json_or_empty().get("failure_code")
    return Reply(200, {"failure_code": world.refund_failure})


def inject_fault(world: World, call: Call, endpoints: Iterable[str]) -> Reply:
    body = call.json()
    endpoint, count = str(body.get("endpoint", "*")), body.get("count", 1)
    if endpoint != "*" and endpoint not in endpoints:
        raise ApiError(400, "API_VALIDATION_ERROR", f"endpoint: * or one of {', '.join(sorted(endpoints))}")
    if not isinstance(count, int) or count < 0:
        raise ApiError(400, "API_VALIDATION_ERROR", "count must be an integer from 0; 0 removes what is waiting")
    waiting = world.faults[endpoint]
    if count == 0:
        waiting.clear()
        return Reply(200, {"endpoint": endpoint, "waiting": 0})
    outcome = _outcome(body.get("outcome"))
    if not outcome.is_fault:
        raise ApiError(
            400, "API_VALIDATION_ERROR", "a fault is an HTTP error, 429, GARBAGE, SLOW:n, PROXY_ or a TIMEOUT_"
        )
    waiting.extend([outcome] * count)
    return Reply(200, {"endpoint": endpoint, "waiting": len(waiting)})


def capture_payment(world: World, call: Call) -> Reply:
    """A late capture after FAILED; with {"again": true} a second capture of a paid one."""
    payment = look_up(world.payments, call.params["id"])
    if payment.status == "SUCCEEDED" and not call.json_or_empty().get("again"):
        raise ApiError(409, "INELIGIBLE_TRANSACTION_STATUS", 'Already captured; {"again": true} captures twice')
    payment.request.webhook = True
    settlement.capture(world, payment, payment.request.amount, call.now)
    return Reply(200, payment.document)


def refund_payment(world: World, call: Call) -> Reply:
    """A person gives money back in the dashboard: {"amount": 10000}, or all that is left. It has no reference."""
    payment, body = look_up(world.payments, call.params["id"]), call.json_or_empty()
    if payment.status != "SUCCEEDED":
        raise ApiError(409, "INELIGIBLE_TRANSACTION_STATUS")
    wanted = Decimal(str(body["amount"])) if "amount" in body else None
    reason = {"reason": str(body.get("reason", "REQUESTED_BY_CUSTOMER"))}
    return Reply(200, refunds.give_back(world, payment, wanted, reason, call.now))


def resolve_request(world: World, call: Call) -> Reply:
    request = look_up(world.requests, call.params["id"])
    body = call.json_or_empty()
    outcome = _outcome(body["outcome"]) if "outcome" in body else SUCCESS
    settlement.resolve(world, request, outcome, call.now)
    return Reply(200, request.document)


def move_clock(world: World, call: Call, clock: SettableClock | None) -> Reply:
    if clock is None:
        raise ApiError(409, "EXTERNAL_CLOCK", "This simulator follows an external clock: move that one")
    body = call.json()
    if "now" in body:
        clock.set_to(_instant(body["now"]))
    else:
        seconds: Any = body.get("offset_seconds")
        if not _is_number(seconds):
            raise ApiError(400, "API_VALIDATION_ERROR", "offset_seconds must be a number, or send now")
        clock.set_offset(float(seconds))
    world.agenda.advance(clock())
    return Reply(200, {"now": iso(clock())})


def count_calls(world: World, _call: Call) -> Reply:
    counts: dict[str, dict[str, int]] = {}
    for (endpoint, status), count in sorted(world.calls.items()):
        counts.setdefault(endpoint, {})[str(status)] = count
    return Reply(200, counts)


def show_quota(_world: World, call: Call, quota: Quota) -> Reply:
    """What was let in and refused, by endpoint; `?arrivals=ENDPOINT` adds when its calls were let in, on the clock
    the quota is kept with (of this machine, not the simulated one)."""
    document: Json = {
        "limit": quota.limit,
        "window_seconds": int(WINDOW_SECONDS),
        "endpoints": {
            endpoint: {
                "accepted": len(quota.accepted[endpoint]),
                "refused": quota.refused[endpoint],
                "fullest_window": quota.fullest[endpoint],
            }
            for endpoint in sorted({*quota.accepted, *quota.refused})
        },
    }
    wanted = call.query().get("arrivals")
    if wanted is not None:
        arrivals = quota.accepted.get(wanted[-1], ())
        document["arrivals"] = [Decimal(f"{at:.6f}") for at in arrivals]
    return Reply(200, document)


def _card(body: Json, country: str, amount: Decimal, now: datetime) -> Card:
    details: Json = {
        "card_number": body.get("card_number", DEFAULT_CARD),
        "expiry_month": body.get("expiry_month", 12),
        "expiry_year": body.get("expiry_year", now.year + _CARD_YEARS),
    }
    return tokens.read_card(details, country=country, amount=amount, now=now)


def _chosen_channel(session: Session, code: str | None) -> catalogue.Channel:
    offered = {channel.code: channel for channel in session.channels}
    if code is None:
        return offered.get("CARDS", session.channels[0])
    if code not in offered:
        raise ApiError(400, "INVALID_PAYMENT_CHANNEL", f"This session offers {', '.join(offered)}")
    return offered[code]


def _new_token(world: World, body: Json, now: datetime) -> Token:
    country = body.get("country", "ID")
    channel = catalogue.CHANNELS.get((country, body.get("channel_code", "CARDS")))
    if channel is None or not channel.saves:
        raise ApiError(400, "INVALID_PAYMENT_CHANNEL", f"No channel of {country} with this code can be saved")
    number = f"imported-{len(world.tokens) + 1}"
    customer_id = body.get("customer_id")
    if customer_id is None:
        person = {
            "reference_id": number,
            "type": "INDIVIDUAL",
            "individual_detail": {"given_names": "Imported"},
        }
        customer_id = customers.add(world, person, now)["id"]
    order = tokens.TokenOrder(
        reference_id=body.get("reference_id", number),
        channel=channel,
        currency=body.get("currency", channel.currencies[0]),
        customer_id=customer_id,
        status="PENDING",
        card=_card(body, country, Decimal(0), now) if channel.category == "CARDS" else None,
        token_id=body.get("payment_token_id"),
    )
    token = tokens.add(world, order, now)
    tokens.activate(world, token, now, webhook=False)
    return token


def _token(world: World, call: Call) -> Token:
    return look_up(world.tokens, call.params["id"])


def _outcome(text: object) -> Outcome:
    try:
        return outcomes.parse(str(text))
    except ValueError as problem:
        raise ApiError(400, "API_VALIDATION_ERROR", str(problem)) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _instant(text: object) -> datetime:
    try:
        instant = datetime.fromisoformat(str(text))
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ApiError(400, "API_VALIDATION_ERROR", "a time is ISO 8601 with an offset, 2026-12-01T00:00:00Z")
    return instant
