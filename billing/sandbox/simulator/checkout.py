"""What a customer on the hosted page makes of a session: pays, saves, fails. For pages.py and control.py."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing.sandbox.simulator import catalogue, sessions, tokens
from billing.sandbox.simulator.answers import Json, iso
from billing.sandbox.simulator.outcomes import SUCCESS, Outcome, Result, failure, parse
from billing.sandbox.simulator.settlement import settle
from billing.sandbox.simulator.state import Checkout, PaymentRequest, Session, Token, World, touch


@dataclass(frozen=True, slots=True)
class _Try:
    session: Session
    checkout: Checkout
    reference_id: str  # the session's own with a suffix, as payment and token events carry it
    now: datetime

    @property
    def shown(self) -> Json:
        return self.session.document


def attempt(world: World, session: Session, checkout: Checkout, now: datetime) -> str | None:
    """One try of the customer; the failure code when it fails, which leaves the session ACTIVE."""
    sessions.expect_active(session)
    session.awaiting = None
    reference_id = f"{session.document['reference_id']}_{world.ids.suffix()}"
    one_try = _Try(session, checkout, reference_id, now)
    return _link(world, one_try) if session.document["session_type"] == "SAVE" else _pay(world, one_try)


def _link(world: World, one_try: _Try) -> str | None:
    outcome = one_try.checkout.outcome or SUCCESS
    token = _new_token(world, one_try)
    if outcome.result is Result.SUCCEEDED:
        _activate_and_complete(world, one_try.session, token, one_try.now)
        return None
    code = outcome.failure_code or "AUTHENTICATION_FAILED"
    tokens.fail(world, token, code, one_try.now, webhook=outcome.webhook)
    return code


def _pay(world: World, one_try: _Try) -> str | None:
    outcome = one_try.checkout.outcome or _magic(one_try)
    token = _new_token(world, one_try) if _saves(one_try) else None
    request = _new_request(world, one_try, token)
    request.when_paid = _when_paid(world, one_try.session, request, token)
    settle(world, request, outcome, one_try.now)
    if request.status != "FAILED":
        return None
    if token is not None:
        tokens.fail(world, token, outcome.failure_code or "CARD_DECLINED", one_try.now, webhook=False)
    return outcome.failure_code


def _saves(one_try: _Try) -> bool:
    if not one_try.checkout.channel.saves:
        return False
    wanted = one_try.shown["allow_save_payment_method"]
    return wanted == "FORCED" or (wanted == "OPTIONAL" and one_try.checkout.save)


def _magic(one_try: _Try) -> Outcome:
    checkout = one_try.checkout
    network = checkout.card.network if checkout.card else None
    amount = Decimal(one_try.shown["amount"])
    text = catalogue.magic_outcome(checkout.channel, amount=amount, network=network)
    if text is None:
        return SUCCESS
    outcome = parse(text)
    # The page shows the refusal of a channel as a failed try: there is no API answer to carry it.
    return failure(outcome.refusal[1]) if outcome.refusal else outcome


def _new_token(world: World, one_try: _Try) -> Token:
    order = tokens.TokenOrder(
        reference_id=one_try.reference_id,
        channel=one_try.checkout.channel,
        currency=one_try.shown["currency"],
        customer_id=one_try.shown["customer_id"],
        status="PENDING",
        card=one_try.checkout.card,
        channel_properties=_card_properties(one_try),
    )
    token = tokens.add(world, order, one_try.now)
    token.charges = int(one_try.shown["session_type"] == "PAY")
    return token


def _card_properties(one_try: _Try) -> Json:
    if one_try.checkout.card is None:
        return {}
    wanted = one_try.shown.get("channel_properties", {}).get("cards", {})
    return {"card_on_file_type": "CUSTOMER_UNSCHEDULED", "transaction_sequence": "INITIAL", **wanted}


def _new_request(world: World, one_try: _Try, token: Token | None) -> PaymentRequest:
    shown, channel = one_try.shown, one_try.checkout.channel
    manual = channel.category == "CARDS" and shown["capture_method"] == "MANUAL"
    document: Json = {
        "business_id": world.config.business_id,
        "payment_request_id": world.ids.uuid("pr"),
        "reference_id": one_try.reference_id,
        "payment_token_id": token.document["payment_token_id"] if token else None,
        "customer_id": shown["customer_id"],
        "type": "PAY_AND_SAVE" if token else "PAY",
        "country": shown["country"],
        "currency": shown["currency"],
        "request_amount": shown["amount"],
        "capture_method": "MANUAL" if manual else "AUTOMATIC",
        "channel_code": channel.code,
        "channel_properties": _properties_with_card(one_try),
        "actions": [],
        "status": "PENDING",
        "description": shown.get("description"),
        "created": iso(one_try.now),
        "updated": iso(one_try.now),
    }
    document = {name: value for name, value in document.items() if value is not None}
    request = PaymentRequest(document, channel, Decimal(shown["amount"]), one_try.checkout.card)
    world.requests[document["payment_request_id"]] = request
    return request


def _properties_with_card(one_try: _Try) -> Json:
    card = one_try.checkout.card
    return _card_properties(one_try) | ({"card_details": card.details()} if card else {})


def _when_paid(
    world: World, session: Session, request: PaymentRequest, token: Token | None
) -> Callable[[datetime], None]:
    def finish(now: datetime) -> None:
        ids = {"payment_request_id": str(request.document["payment_request_id"])}
        if request.payment is not None:
            ids["payment_id"] = str(request.payment.document["payment_id"])
        _activate_and_complete(world, session, token, now, **ids)

    return finish


def _activate_and_complete(world: World, session: Session, token: Token | None, now: datetime, **ids: str) -> None:
    if token is not None and token.status != "ACTIVE":
        token.document.pop("failure_code", None)
        tokens.activate(world, token, now)
    if session.status != "ACTIVE":
        return  # paid after the session had ended: only the payment tells
    if token is not None:
        ids["payment_token_id"] = str(token.document["payment_token_id"])
    touch(session.document, now, status="COMPLETED", **ids)
    world.webhooks.emit("payment_session.completed", session.document, now)
