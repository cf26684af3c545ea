"""What POST /sessions refuses, in the order a caller would meet it. Used by sessions.py only."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from billing.sandbox.simulator import catalogue
from billing.sandbox.simulator.answers import ApiError, Json, validation_error
from billing.sandbox.simulator.catalogue import Channel
from billing.sandbox.simulator.checks import (
    Shape,
    check_card_properties,
    check_customer,
    check_customer_id,
    check_items,
    unsettled,
)

_MEMBERS = frozenset({
    "reference_id", "session_type", "mode", "currency", "country", "amount", "customer_id", "customer",
    "allow_save_payment_method", "capture_method", "channel_properties", "allowed_payment_channels",
    "expires_at", "locale", "metadata", "description", "items", "notification_channels",
    "success_return_url", "cancel_return_url", "components_configuration", "payment_link_configuration",
    "cards_session_js", "subscription",
})  # fmt: skip
_SOONEST_END = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class SessionOrder:
    channels: list[Channel]
    expires_at: datetime | None


def check_session(body: Json, *, now: datetime, longest: timedelta) -> SessionOrder:
    _check_shape(body)
    _check_kind(body)
    _check_amount(body)
    _check_customer_rule(body)
    _check_urls(body)
    return SessionOrder(_channels(body), _expiry(body, now, longest))


def _check_shape(body: Json) -> None:
    shape = Shape(body)
    shape.only(_MEMBERS)
    shape.string("reference_id", maximum=64, required=True)
    for name in ("session_type", "mode", "currency", "country"):
        shape.string(name, maximum=64, required=True)
    shape.number("amount", required=True)
    shape.choice("allow_save_payment_method", {"DISABLED", "OPTIONAL", "FORCED"})
    shape.choice("capture_method", {"AUTOMATIC", "MANUAL"})
    shape.string("expires_at", maximum=64)
    shape.string("locale", minimum=2, maximum=2)
    shape.string("description", maximum=1000)
    for name in ("success_return_url", "cancel_return_url"):
        shape.string(name, maximum=2048)
    shape.strings("allowed_payment_channels")
    if any(channel != "EMAIL" for channel in shape.strings("notification_channels") or []):
        shape.breach("notification_channels", "must be equal to one of the allowed values")
    shape.metadata(error_code="INVALID_METADATA")
    _check_nested(shape)
    shape.refuse_breaches()


def _check_nested(shape: Shape) -> None:
    check_customer_id(shape)
    customer = shape.nested("customer")
    if customer is not None:
        check_customer(customer)
        if shape.has("customer_id"):
            unsettled("POST /sessions with customer and customer_id; the id is used")
    check_items(shape, metadata_error="INVALID_ITEM_METADATA")
    properties = shape.nested("channel_properties")
    cards = properties.nested("cards") if properties is not None else None
    if cards is not None:
        if cards.has("card_details"):
            cards.breach("card_details", "is not allowed")
        check_card_properties(cards)
    components = shape.nested("components_configuration")
    if components is not None:
        components.strings("origins")
        components.string("return_url", maximum=2048)
    link = shape.nested("payment_link_configuration")
    if link is not None:
        link.strings("primary_payment_channels")


def _check_kind(body: Json) -> None:
    kind, mode = body["session_type"], body["mode"]
    if kind not in {"SAVE", "PAY"}:  # SUBSCRIPTION is Xendit's own product: not simulated
        raise ApiError(400, "SESSION_TYPE_NOT_SUPPORTED", f"session_type {kind} is not supported for now")
    if mode not in {"PAYMENT_LINK", "COMPONENTS"}:
        raise ApiError(400, "MODE_NOT_SUPPORTED", f"mode {mode} is not supported for now")
    if body["country"] not in catalogue.SESSION_COUNTRIES:
        raise ApiError(400, "INVALID_COUNTRY", f"Country {body['country']} is not supported")
    if body["currency"] not in catalogue.SESSION_CURRENCIES:
        raise ApiError(400, "INVALID_CURRENCY", f"Currency {body['currency']} is not supported")
    if kind == "SAVE" and "capture_method" in body:
        raise ApiError(400, "DISALLOWED_CAPTURE_METHOD", "Capture method is not supported for session type SAVE")
    if kind == "SAVE" and "allow_save_payment_method" in body:
        raise validation_error("/body/allow_save_payment_method", "is for session type PAY only")
    if kind != "PAY" and body.get("items") is not None:
        raise ApiError(400, "ITEMS_NOT_SUPPORTED", "Items are allowed for session type PAY only")
    if mode == "COMPONENTS" and not body.get("components_configuration", {}).get("origins"):
        raise validation_error("/body/components_configuration", "must have required property 'origins'")


def _check_amount(body: Json) -> None:
    amount = Decimal(body["amount"])
    if body["session_type"] == "SAVE":
        if amount != 0:
            raise ApiError(400, "INVALID_AMOUNT", "Amount must be zero for session type SAVE")
        return
    if amount <= 0:
        raise ApiError(400, "INVALID_AMOUNT", "Amount must be greater than zero")
    if not catalogue.decimals_ok(body["currency"], amount):
        raise ApiError(400, "INVALID_AMOUNT", f"Amount has too many decimal places for {body['currency']}")


def _check_customer_rule(body: Json) -> None:
    customer_id = body.get("customer_id")
    if customer_id is not None and not customer_id.startswith("cust-"):
        raise ApiError(400, "INVALID_CUSTOMER_ID", 'Customer ID must start with "cust-"')
    needed = body["session_type"] == "SAVE" or body.get("allow_save_payment_method") in {"FORCED", "OPTIONAL"}
    if needed and customer_id is None and "customer" not in body:
        raise ApiError(400, "MISSING_CUSTOMER", "Customer object or customer_id is required")


def _check_urls(body: Json) -> None:
    components = body.get("components_configuration", {})
    urls = [body.get("success_return_url"), body.get("cancel_return_url"), components.get("return_url")]
    urls += components.get("origins", [])
    if any(url is not None and not _is_https(url) for url in urls):
        raise ApiError(400, "INVALID_URL", "Please provide a valid HTTPS URL")


def _is_https(url: str) -> bool:
    host = url.removeprefix("https://").partition("/")[0]
    return url.startswith("https://") and bool(host) and not any(letter.isspace() for letter in url)


def _channels(body: Json) -> list[Channel]:
    saving = body["session_type"] == "SAVE" or body.get("allow_save_payment_method") == "FORCED"
    offered = catalogue.session_channels(body["country"], body["currency"], saving=saving)
    if body.get("capture_method") == "MANUAL":
        offered = [channel for channel in offered if channel.category == "CARDS"]
    wanted = body.get("allowed_payment_channels")
    if wanted is not None:
        missing = [code for code in wanted if code not in {channel.code for channel in offered}]
        if missing or not wanted:
            raise _unavailable(missing)
        offered = [channel for channel in offered if channel.code in wanted]
    if not offered:
        raise _unavailable([])
    for code in body.get("payment_link_configuration", {}).get("primary_payment_channels", []):
        if code not in {channel.code for channel in offered}:
            raise ApiError(
                400,
                "INVALID_PRIMARY_PAYMENT_CHANNEL",
                f"Primary channel {code} is not included in the requested channels",
            )
    return offered


def _unavailable(codes: list[str]) -> ApiError:
    return ApiError(
        400,
        "INVALID_PAYMENT_CHANNEL",
        f"Channel(s) {', '.join(codes)} are not available. "
        "Please ensure that you have activated the necessary channels",
    )


def _expiry(body: Json, now: datetime, longest: timedelta) -> datetime | None:
    if "expires_at" not in body:
        return None
    try:
        expires_at = datetime.fromisoformat(body["expires_at"])
    except ValueError:
        raise validation_error("/body/expires_at", 'must match format "date-time"') from None
    if expires_at.tzinfo is None:
        raise validation_error("/body/expires_at", 'must match format "date-time"')
    if expires_at < now + _SOONEST_END:
        raise ApiError(400, "INVALID_EXPIRY_DATE", "expires_at must be at least 10 minutes in the future")
    if expires_at > now + longest:
        raise ApiError(400, "INVALID_EXPIRY_DATE", "expires_at is too far in the future")
    return expires_at
