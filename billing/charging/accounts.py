"""Does the key in use belong to the account that our payment methods were saved with? Asked when Xendit denies one.

A key of another account, or of the other mode, is told by the same answers as a dead payment method: `INVALID_TOKEN` to
a charge, 404 to a look. So until this process has seen the account know one of ours, such an answer proves nothing: the
payment method is asked about by itself, and so is one that was charged before. What is denied all the same waits, and
nobody is dunned; after a handful all charging stops, because the key is the likelier fault.

What was denied to a key is in the database (`denied_tokens`), because every run of a crontab is a process of its own.
A payment method that Xendit calls ACTIVE and refuses to charge is tried once more, by whatever process; then that is
taken at its word (`INVALID_TOKEN` blocks the token and asks the customer, a 404 holds the invoice). Once the account
has known one of ours, what was denied before is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import structlog

from billing.charging.tokens import RIGHT_KEY, read_token
from billing.domain.lifecycle import DEAD_TOKENS
from billing.errors import GatewayError
from billing.parts import Parts
from billing.store import queries

HANDFUL = 5  # denials of one key, each of another payment method, before the key itself is doubted

log = structlog.get_logger()


class Denied(Enum):
    """Why an answer is not taken at its word."""

    UNKNOWN = "Xendit does not know the payment method at all"
    UNCLEAR = "Xendit refused the payment method, and does not say why; it is tried again"


def _nobody_waits() -> None:
    """For whoever holds nothing while Xendit is asked."""


def is_in_doubt(
    parts: Parts, payment_token_id: str, before_asking: Callable[[], None] = _nobody_waits
) -> Denied | None:
    """A charge was refused because of its payment method. None: it is to be taken at its word, because the account of
    our key knows us. Where Xendit cannot be asked, nothing is learned by a second refusal either. `before_asking` is
    called before each question: it may take as long as any call."""
    if parts.acquaintance.is_made:
        return None
    before = _was_denied(parts, payment_token_id)
    before_asking()
    try:
        report = read_token(parts.gateway, payment_token_id)
    except GatewayError:
        _count(parts, payment_token_id)
        return Denied.UNCLEAR
    if report.unknown:
        return Denied.UNKNOWN if note_unknown(parts, payment_token_id, before_asking) else None
    if report.status in DEAD_TOKENS or before:
        make_acquaintance(parts)
        return None
    if _knows_another(parts, payment_token_id, before_asking):
        return None
    _count(parts, payment_token_id)
    return Denied.UNCLEAR


def note_unknown(parts: Parts, payment_token_id: str, before_asking: Callable[[], None] = _nobody_waits) -> bool:
    """Xendit has no such payment method. False: it knows others of ours, so this one is at fault and not the key."""
    if parts.acquaintance.is_made or _knows_another(parts, payment_token_id, before_asking):
        return False
    _count(parts, payment_token_id)
    return True


def _knows_another(parts: Parts, payment_token_id: str, before_asking: Callable[[], None]) -> bool:
    """The one that was charged last."""
    with parts.reading() as session:
        charged = queries.last_charged_token(session, but=payment_token_id)
    if charged is None:
        return False
    before_asking()
    try:
        known = not read_token(parts.gateway, charged).unknown
    except GatewayError:
        return False
    if known:
        make_acquaintance(parts)
    return known


def make_acquaintance(parts: Parts) -> None:
    """The account of our key knows us. Called beside a transaction, never in one."""
    if parts.acquaintance.make():
        with parts.transaction() as session:
            queries.forget_denied(session, parts.key_fingerprint)


def _was_denied(parts: Parts, payment_token_id: str) -> bool:
    with parts.reading() as session:
        return payment_token_id in queries.denied_tokens(session, parts.key_fingerprint)


def _count(parts: Parts, payment_token_id: str) -> None:
    """Different ones that were denied to our key, whoever asked. Whoever lets charging go on after a handful of them is
    asked after another."""
    reason = f"Xendit does not know the first {HANDFUL} payment methods that were to be charged: {RIGHT_KEY}"
    with parts.transaction() as session:
        if queries.note_denied(session, parts.key_fingerprint, payment_token_id) < HANDFUL:
            return
        queries.forget_denied(session, parts.key_fingerprint)
        queries.stop_charging(session, reason, parts.clock.now(), refused_key=parts.key_fingerprint)
    log.error("charging.stopped", error=reason)
