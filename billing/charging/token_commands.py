"""`billing token cancel`: ending a saved payment method at Xendit."""

from __future__ import annotations

from billing.charging.tokens import apply_token, has_ended
from billing.errors import Conflict
from billing.parts import Parts
from billing.store.models import Customer, PaymentToken


def cancel_token(parts: Parts, token_id: str) -> PaymentToken:
    """Cancel it at Xendit and store what Xendit says. Raises Conflict when it is dead already, GatewayError."""
    with parts.reading() as session:
        token = session.get_one(PaymentToken, token_id)
    if has_ended(token):
        raise Conflict(f"token {token.id} is {token.status} already; nothing to cancel")
    report = parts.gateway.cancel_token(token.payment_token_id)
    now = parts.clock.now()
    with parts.transaction() as session:
        customer = session.get_one(Customer, token.customer_id)
        return apply_token(session, customer, report, now, asked=True, key=parts.key_fingerprint)
