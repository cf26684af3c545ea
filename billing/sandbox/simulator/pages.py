"""The pages a person can click through: hosted checkout, 3DS challenge, customer actions, and the index.

A card number typed here is read once, turned into a masked Card and forgotten: no page shows it again.
"""

from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader

from billing.sandbox.simulator import catalogue, sessions, settlement, tokens
from billing.sandbox.simulator.answers import HTML_TYPE, Answer, ApiError, Json
from billing.sandbox.simulator.calls import Call, look_up
from billing.sandbox.simulator.checkout import attempt
from billing.sandbox.simulator.outcomes import SUCCESS, Outcome, failure
from billing.sandbox.simulator.state import Checkout, PaymentRequest, Session, Token, World

_RECENT = 15
_CARD_YEARS = 3
_DECLINES = (
    "INSUFFICIENT_BALANCE", "DECLINED_BY_ISSUER", "CARD_DECLINED", "EXPIRED_CARD", "STOLEN_CARD",
    "SUSPECTED_FRAUDULENT", "AUTHENTICATION_FAILED", "ISSUER_UNAVAILABLE",
)  # fmt: skip
_WALLET_DECLINES = (
    "USER_DECLINED_PAYMENT", "INSUFFICIENT_BALANCE", "ACCOUNT_ACCESS_BLOCKED", "USER_DID_NOT_AUTHORIZE",
    "PAYMENT_AMOUNT_LIMITS_EXCEEDED", "CHANNEL_UNAVAILABLE",
)  # fmt: skip
_TOLD = {
    "INSUFFICIENT_BALANCE": "There is not enough money on this account.",
    "EXPIRED_CARD": "This card has expired.",
    "CARD_EXPIRED": "This card has expired.",
    "AUTHENTICATION_FAILED": "Your bank could not confirm that it is you.",
    "ISSUER_UNAVAILABLE": "Your bank does not answer at the moment.",
    "USER_DECLINED_PAYMENT": "You declined the payment.",
    "INVALID_PAYMENT_DETAILS": "Please check the card number and the expiry date.",
}


def money(document: Json, name: str = "amount") -> str:
    amount, currency = document[name], document["currency"]
    places = 0 if currency in catalogue.WHOLE_UNIT_CURRENCIES else 2
    return f"{catalogue.CURRENCY_SIGNS.get(currency, currency)} {Decimal(amount):,.{places}f}"


def index(world: World, call: Call) -> Answer:
    return _page(
        "index.html",
        world,
        now=call.now,
        sessions=_newest(world.sessions),
        payments=_newest(world.payments),
        events=_newest(world.webhooks.events),
        counts={
            "sessions": len(world.sessions), "tokens": len(world.tokens), "payments": len(world.payments),
            "webhooks": len(world.webhooks.events),
        },
        cards=catalogue.TEST_CARDS,
    )  # fmt: skip


def checkout(world: World, call: Call) -> Answer:
    session = world.sessions.get(call.params["id"])
    if session is None:
        return _page("result.html", world, status=404, session=None, state="UNKNOWN", embed=False)
    query = call.query()
    embed = "embed" in query
    if session.status != "ACTIVE":
        return _page("result.html", world, session=session.document, state=session.status, embed=embed)
    if "left" in query:
        return _page("result.html", world, session=session.document, state="LEFT", embed=embed)
    if session.awaiting is not None:
        return _challenge_page(world, session, embed=embed)
    return _checkout_page(world, session, call.now, failed=query.get("failed", [""])[-1], embed=embed)


def submit(world: World, call: Call) -> Answer:
    session, form = sessions.find(world, call), call.form()
    outcome: Outcome | None = None
    if session.status != "ACTIVE":
        return _back(session, form)
    match form.get("action"):
        case "expire":
            sessions.expire(world, session, call.now)
            return _back(session, form)
        case "cancel":
            return _back(session, form, "left=1")
        case "decline":
            outcome = failure(form.get("failure_code") or "CARD_DECLINED")
    try:
        chosen = _chosen(session, form, call.now, outcome)
    except ApiError as error:
        return _back(session, form, f"failed={quote(error.error_code)}")
    if chosen.card is not None and chosen.card.challenge and outcome is None:
        session.awaiting = chosen
        return _back(session, form)
    return _tried(world, session, chosen, form, call.now)


def answer_challenge(world: World, call: Call) -> Answer:
    session, form = sessions.find(world, call), call.form()
    chosen, session.awaiting = session.awaiting, None
    if chosen is None or session.status != "ACTIVE" or form.get("result") == "BACK":
        return _back(session, form)
    if form.get("result") != "AUTHENTICATED":
        chosen = Checkout(chosen.channel, chosen.card, chosen.save, failure("AUTHENTICATION_FAILED"))
    return _tried(world, session, chosen, form, call.now)


def action(world: World, call: Call) -> Answer:
    """Where `actions[].value` of a payment request or token leads."""
    return _action_page(world, _waiting(world, call))


def act(world: World, call: Call) -> Answer:
    subject, approved = _waiting(world, call), call.form().get("result") == "AUTHENTICATED"
    if subject.status == "REQUIRES_ACTION":
        if isinstance(subject, Token):
            _link(world, subject, call.now, approved=approved)
        else:
            outcome = SUCCESS if approved else failure("AUTHENTICATION_FAILED")
            settlement.resolve(world, subject, outcome, call.now)
    return _action_page(world, subject)


def components(world: World, call: Call) -> Answer:
    """What our stand-in for the Components SDK frames: the hosted page of the session with this key."""
    key = call.query().get("key", [""])[-1]
    for session in world.sessions.values():
        if key and session.document["components_sdk_key"] == key:
            return Answer(303, (("location", f"/sessions/{session.document['payment_session_id']}?embed=1"),))
    return _page("result.html", world, status=404, session=None, state="UNKNOWN", embed=True)


def components_script(world: World, _call: Call) -> Answer:
    text = _templates().get_template("components.js").render(base_url=world.config.base_url)
    return Answer(200, (("content-type", "text/javascript; charset=utf-8"),), text.encode())


def _checkout_page(world: World, session: Session, now: datetime, *, failed: str, embed: bool) -> Answer:
    shown = session.document
    return _page(
        "checkout.html",
        world,
        session=shown,
        holder=_holder(session),
        channels=session.channels,
        bought=shown.get("items") or [],
        total=money(shown),
        paying=shown["session_type"] == "PAY",
        saving=shown["session_type"] == "SAVE" or shown.get("allow_save_payment_method") == "FORCED",
        optional=shown.get("allow_save_payment_method") == "OPTIONAL",
        failed=_TOLD.get(failed, "The payment was declined. Please try another method.") if failed else "",
        failed_code=failed,
        cards=catalogue.TEST_CARDS,
        declines=_DECLINES,
        wallet_declines=_WALLET_DECLINES,
        expiry=f"12 / {(now.year + _CARD_YEARS) % 100:02d}",
        embed=embed,
    )


def _holder(session: Session) -> str:
    detail = (session.customer or {}).get("individual_detail", {})
    return " ".join(detail[name] for name in ("given_names", "surname") if detail.get(name)) or "Test Customer"


def _challenge_page(world: World, session: Session, *, embed: bool) -> Answer:
    chosen = session.awaiting
    return _page(
        "challenge.html",
        world,
        session=session.document,
        card=chosen.card if chosen else None,
        total=money(session.document),
        paying=session.document["session_type"] == "PAY",
        results=catalogue.CHALLENGE_RESULTS,
        embed=embed,
    )


def _action_page(world: World, subject: PaymentRequest | Token) -> Answer:
    linking = isinstance(subject, Token)
    return _page(
        "action.html",
        world,
        subject=subject.document,
        linking=linking,
        total="" if linking else money(subject.document, "request_amount"),
        channel=subject.channel,
        return_url=subject.document["channel_properties"].get("success_return_url"),
    )


def _chosen(session: Session, form: dict[str, str], now: datetime, outcome: Outcome | None) -> Checkout:
    offered = {channel.code: channel for channel in session.channels}
    channel = offered.get(form.get("channel", ""), session.channels[0])
    save = "save" in form
    if channel.category != "CARDS":
        return Checkout(channel, None, save, outcome)
    month, _, year = form.get("expiry", "").replace(" ", "").partition("/")
    first, _, last = form.get("name", "").partition(" ")
    details: Json = {
        "card_number": form.get("card_number", ""),
        "expiry_month": month,
        "expiry_year": f"20{year}" if len(year) == 2 else year,  # noqa: PLR2004 - "YY"
        "cardholder_first_name": first or None,
        "cardholder_last_name": last or None,
    }
    shown = session.document
    card = tokens.read_card(details, country=shown["country"], amount=Decimal(shown["amount"]), now=now)
    return Checkout(channel, card, save, outcome)


def _tried(world: World, session: Session, chosen: Checkout, form: dict[str, str], now: datetime) -> Answer:
    code = attempt(world, session, chosen, now)
    return _back(session, form, f"failed={quote(code)}" if code else "")


def _link(world: World, token: Token, now: datetime, *, approved: bool) -> None:
    if approved:
        tokens.activate(world, token, now)
    else:
        tokens.fail(world, token, "AUTHENTICATION_FAILED", now, webhook=True)


def _waiting(world: World, call: Call) -> PaymentRequest | Token:
    wanted = call.params["id"]
    return world.tokens[wanted] if wanted in world.tokens else look_up(world.requests, wanted)


def _back(session: Session, form: dict[str, str], query: str = "") -> Answer:
    parts = [part for part in (query, "embed=1" if form.get("embed") else "") if part]
    location = f"/sessions/{session.document['payment_session_id']}"
    return Answer(303, (("location", f"{location}?{'&'.join(parts)}" if parts else location),))


def _newest(objects: dict[str, Any]) -> list[Any]:
    return list(objects.values())[: -_RECENT - 1 : -1]


def _page(template: str, world: World, *, status: int = 200, **values: object) -> Answer:
    text = (
        _templates()
        .get_template(template)
        .render(merchant=world.config.business_name, base_url=world.config.base_url, money=money, **values)
    )
    return Answer(status, (HTML_TYPE,), text.encode())


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
