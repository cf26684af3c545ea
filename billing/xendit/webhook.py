"""Webhooks: check who sends, and turn a body into one of our events. Called by billing/web.py and
inbox/apply.py.

Whatever is wrong with a body ends in WebhookRejected or in an event of kind OTHER, which is stored and
never applied.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import simplejson

from billing.domain.gateway import (
    ChargeReport,
    ChargeStatus,
    EventKind,
    GatewayEvent,
    RefundReport,
    RefundStatus,
    SessionReport,
    TokenReport,
)
from billing.errors import WebhookRejected
from billing.xendit import wire
from billing.xendit.masking import mask_payload
from billing.xendit.wire import Payload, code, identifier, member, parse_json, text

Report = ChargeReport | TokenReport | SessionReport | RefundReport

# Names printed in guides, and older names, for events of the reference.
_ALIASES: Mapping[str, str] = {
    "payment.succeeded": "payment.capture",
    "payment.failed": "payment.failure",
    "payment_token.activated": "payment_token.activation",
    "recurring_plan.activated": "recurring.plan.activated",
    "recurring.plan.activation": "recurring.plan.activated",
    "recurring_cycle.succeeded": "recurring.cycle.succeeded",
}

# What the dashboard's "Test and save" sends are the samples of the reference, which name objects of nobody.
_SAMPLE_REFERENCES = frozenset(
    {
        "example_reference_id",
        "order_12345_PAY",
        "subscription_12345",
        "90392f42-d98a-49ef-a7f3-abcezas123",
        "b2756a1e-e6cd-4352-9a68-0483aa2b6a2",
        "97ba0a32-b996-4abf-8a7b-6184a6644676_b8d18f2f-3",
    }
)
_SAMPLE_IDS = frozenset({"py-37e924ed-d7eb-4d32-bcb7-111c7863cb22"})  # of samples without a reference

_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class _Known:
    """How to read one event: the member that names its record, and the reader of its data."""

    kind: EventKind
    id_member: str
    read: Callable[[Payload], Report | None]


def _payment(status: ChargeStatus) -> _Known:
    return _Known(EventKind.PAYMENT, "payment_id", partial(wire.charge_report, fallback=status))


def _token(status: str) -> _Known:
    return _Known(EventKind.TOKEN, "payment_token_id", partial(wire.token_report, fallback=status))


def _session(status: str) -> _Known:
    return _Known(EventKind.SESSION, "payment_session_id", partial(wire.session_report, fallback=status))


def _refund(status: RefundStatus) -> _Known:
    return _Known(EventKind.REFUND, "id", partial(wire.refund_report, fallback=status))


_EVENTS: Mapping[str, _Known] = {
    "payment.capture": _payment(ChargeStatus.SUCCEEDED),
    "payment.authorization": _payment(ChargeStatus.PENDING),
    "payment.failure": _payment(ChargeStatus.FAILED),
    "payment.expiry": _payment(ChargeStatus.EXPIRED),
    "payment_request.expiry": _Known(
        EventKind.PAYMENT_REQUEST,
        "payment_request_id",
        partial(wire.charge_report, fallback=ChargeStatus.EXPIRED),
    ),
    "payment_token.activation": _token("ACTIVE"),
    "payment_token.failure": _token("FAILED"),
    "payment_token.expiry": _token("EXPIRED"),
    "payment_session.completed": _session("COMPLETED"),
    "payment_session.expired": _session("EXPIRED"),
    "refund.succeeded": _refund(RefundStatus.SUCCEEDED),
    "refund.failed": _refund(RefundStatus.FAILED),
}


def check_callback_token(received: str | None, accepted: Sequence[str]) -> None:
    """Compare with every accepted token, in constant time. Raises WebhookRejected(401)."""
    given = (received or "").encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(given, token.encode("utf-8", "surrogatepass")) for token in accepted if token]
    if not given or not any(matches):
        raise WebhookRejected(401, "x-callback-token is missing or wrong: check BILLING_XENDIT_CALLBACK_TOKEN")


def read_payload(body: bytes) -> Payload:
    """The JSON object in a body, masked and fit to be stored. Raises WebhookRejected(400), and nothing else."""
    try:
        payload = mask_payload(parse_json(body))
    except ValueError:
        raise WebhookRejected(HTTPStatus.BAD_REQUEST, "not JSON") from None
    if not isinstance(payload, dict):
        raise WebhookRejected(HTTPStatus.BAD_REQUEST, "not a JSON object with an event")
    return payload


def read_event(payload: object) -> GatewayEvent:
    """Of a payload as read_payload gives it, or as it was stored. Raises WebhookRejected(400) when it is no event, and
    nothing else."""
    if not isinstance(payload, Mapping):
        raise WebhookRejected(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    printed = text(payload, "event", longest=100)
    if printed is None:
        raise WebhookRejected(HTTPStatus.BAD_REQUEST, "the body names no event")
    if not isinstance(payload.get("data"), Mapping):
        raise WebhookRejected(HTTPStatus.BAD_REQUEST, "the event has no data object")
    name = _ALIASES.get(printed.lower(), printed.lower())
    known = _EVENTS.get(name)
    return (known and _known_event(name, known, payload["data"])) or _other_event(name, payload)


def _known_event(name: str, known: _Known, data: Payload) -> GatewayEvent | None:
    """None when its record or its state cannot be told."""
    # The reference's sample of refunds holds a second envelope inside the first.
    if known.id_member not in data:
        data = member(data, "data")
    primary_id = identifier(data, known.id_member)
    report = known.read(data)
    if primary_id is None or report is None:
        return None
    status = code(data, "status") or report.status
    return GatewayEvent(
        name=name,
        kind=known.kind,
        dedupe_key=_key(name, primary_id, status, *wire.capture_ids(data)),
        primary_id=primary_id,
        report=report,
        is_sample=report.reference_id in _SAMPLE_REFERENCES or primary_id in _SAMPLE_IDS,
    )


def _other_event(name: str, payload: Payload) -> GatewayEvent:
    """Its key is its content, without `created` of the envelope, which changes with every delivery."""
    content = {key: value for key, value in payload.items() if key not in ("created", "event")}
    written = simplejson.dumps(content, use_decimal=True, sort_keys=True, ignore_nan=True, default=repr)
    digest = hashlib.sha256(written.encode("ascii", "replace")).hexdigest()
    return GatewayEvent(
        name=name,
        kind=EventKind.OTHER,
        dedupe_key=_key(name, digest),
        primary_id=identifier(member(payload, "data"), "id"),
        report=None,
    )


def _key(*parts: str) -> str:
    key = ":".join(parts)
    return key if len(key) <= _LONGEST_KEY else f"{parts[0]}:{hashlib.sha256(key.encode()).hexdigest()}"
