"""Why a charge was declined and what that allows: every code Xendit can send, in one class, with its source.

Called when an attempt fails (charging/settle.py) and by `billing explain`. Up to three codes describe one
decline: Xendit's failure code (always), the card network's response code (cards, often later), and
Mastercard's advice code. `classify` joins them. Rules that hold for the tables and for the joining:

* a network code makes precise the failure code that Xendit maps it to; against any other, the stricter
  counts;
* advice to stop beats everything except a doubt whether money moved; advice to wait moves a retry later, and
  never turns a refusal into a retry;
* an unknown code is a soft decline, tried twice at most, and reported (`known` is False).

To add a code: one row in the table it belongs to, with its source. A test fails on a code of the published
lists that has no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType


class DeclineClass(StrEnum):
    RETRY_LATER = "retry_later"  # soft: days later, by the ladder
    RETRY_AFTER = "retry_after"  # technical: hours later
    NEEDS_CUSTOMER = "needs_customer"  # this token may live, but not without the customer
    DEAD_TOKEN = "dead_token"  # never this token again  # noqa: S105 - a class, not a secret
    OUR_FAULT = "our_fault"  # stop and alert: no customer can cure it
    UNKNOWN_FIRST = "unknown_first"  # money may have moved: look it up before anything else


# What says that a payment method was declined, not a channel that was down, nor a request of ours.
DECLINES = frozenset(
    {DeclineClass.RETRY_LATER, DeclineClass.NEEDS_CUSTOMER, DeclineClass.DEAD_TOKEN, DeclineClass.UNKNOWN_FIRST}
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one code allows.

    `wait`: no attempt before. `max_tries`: failed attempts with this code, the first included, after which it
    is not tried again. `blocks_card`: no token of the same card either, until the customer enters a card
    again. `revoked`: the cardholder told the bank to stop; another card of the same customer is not charged
    unasked.
    """

    cls: DeclineClass
    source: str
    wait: timedelta | None = None
    max_tries: int | None = None
    blocks_card: bool = False
    revoked: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Classified:
    """One decline, judged. `code` decided: `INSUFFICIENT_BALANCE`, `network 05` or `advice 03`."""

    cls: DeclineClass
    wait: timedelta | None
    max_tries: int | None
    blocks_card: bool
    code: str
    source: str
    known: bool
    revoked: bool = False
    note: str = ""


_C = DeclineClass
_FEW = 3  # attempts with a decline that says little
_ONCE_MORE = 2
_DAY = timedelta(days=1)

XENDIT_CODES = "Xendit 'Card declines and error codes', April 2026"
XENDIT_API = "Xendit API reference, payment requests, April 2026; the class is our judgement"
XENDIT_COMPONENTS = "Xendit Components web SDK wording, March 2026; the class is our judgement"
XENDIT_DELAYED = "Xendit 'Delayed webhooks': a reported failure can turn into money for about 24 hours"
XENDIT_OLDER = "Xendit's older error lists; the class is our judgement"
XENDIT_TOKENS = "Xendit API reference, payment tokens, April 2026; the class is our judgement"
XENDIT_REFUNDS = "Xendit API reference, refunds, April 2026; the class is our judgement"
XENDIT_ADVICE = "Xendit 'Card declines and error codes', merchant advice codes, April 2026"
VISA_NEVER = "Visa category 1, the issuer will never approve (Payway, TabaPay, Worldpay)"
MASTERCARD_STOP = "Mastercard advice codes: every retry within 30 days is charged for (TabaPay)"
OURS = "our judgement"


def _soft(source: str, note: str, *, tries: int | None = None, wait: timedelta | None = None) -> Rule:
    return Rule(_C.RETRY_LATER, source, wait=wait, max_tries=tries, note=note)


def _technical(source: str, note: str, *, tries: int | None = None, wait: timedelta | None = None) -> Rule:
    return Rule(_C.RETRY_AFTER, source, wait=wait, max_tries=tries, note=note)


def _customer(source: str, note: str) -> Rule:
    return Rule(_C.NEEDS_CUSTOMER, source, note=note)


def _dead(source: str, note: str, *, blocks: bool = False, revoked: bool = False) -> Rule:
    return Rule(_C.DEAD_TOKEN, source, blocks_card=blocks, revoked=revoked, note=note)


def _ours(source: str, note: str) -> Rule:
    return Rule(_C.OUR_FAULT, source, note=note)


def _doubt(source: str, note: str) -> Rule:
    return Rule(_C.UNKNOWN_FIRST, source, note=note)


# The 33 values of the v3 reference.
_V3_CODES = {
    "INSUFFICIENT_BALANCE": _soft(XENDIT_CODES, "not enough funds"),
    "DECLINED_BY_ISSUER": _soft(XENDIT_CODES, "the issuer said no without saying why"),
    "CARD_DECLINED": _soft(XENDIT_CODES, "declined without a reason", tries=_FEW),
    "DECLINED_BY_PROCESSOR": _soft(XENDIT_CODES, "the processor said no", tries=_FEW),
    "PROCESSOR_ERROR": _technical(XENDIT_CODES, "trouble at the processor", tries=_FEW),
    "ISSUER_UNAVAILABLE": _technical(XENDIT_CODES, "the customer's bank does not answer"),
    "CHANNEL_UNAVAILABLE": _technical(XENDIT_API, "the payment channel does not answer"),
    "PARTNER_TIMEOUT_ERROR": _doubt(XENDIT_DELAYED, "the partner did not answer in time"),
    "TIMEOUT_ERROR": _doubt(XENDIT_DELAYED, "no answer in time"),
    "SERVER_ERROR": _doubt(XENDIT_DELAYED, "trouble at Xendit"),
    "FAILURE_DETAILS_UNAVAILABLE": _soft(XENDIT_API, "no reason known", tries=_FEW),
    "USER_DEVICE_UNREACHABLE": _soft(XENDIT_COMPONENTS, "the customer's phone was not reachable", tries=_FEW),
    "PAYMENT_AMOUNT_LIMITS_EXCEEDED": _soft(XENDIT_COMPONENTS, "over the customer's limit", wait=_DAY),
    "PAYMENT_ATTEMPT_COUNTS_EXCEEDED": _soft(XENDIT_COMPONENTS, "too many tries", tries=2, wait=_DAY),
    "EXPIRED_CARD": _dead(XENDIT_CODES, "the card has expired"),
    "STOLEN_CARD": _dead(XENDIT_CODES, "the card is reported lost or stolen", blocks=True),
    "SUSPECTED_FRAUDULENT": _dead(XENDIT_CODES, "refused as suspicious"),
    "INACTIVE_OR_UNAUTHORIZED_CARD": _dead(XENDIT_CODES, "the card is not active or not allowed to pay this"),
    "INVALID_CVV": _customer(XENDIT_CODES, "the card is not suitable without its security code"),
    "AUTHENTICATION_FAILED": _customer(XENDIT_CODES, "the customer has to authenticate"),
    "USER_DECLINED_PAYMENT": _customer(XENDIT_COMPONENTS, "the customer said no"),
    "USER_DID_NOT_AUTHORIZE": _customer(XENDIT_COMPONENTS, "the customer did not confirm in time"),
    "PAYMENT_REQUEST_EXPIRED": _customer(XENDIT_API, "the customer did not act in time"),
    "EXPIRED_OTP": _customer(XENDIT_COMPONENTS, "the one-time code had expired"),
    "INVALID_OTP": _customer(XENDIT_COMPONENTS, "the one-time code was wrong"),
    "OTP_ATTEMPT_COUNTS_EXCEEDED": _customer(XENDIT_COMPONENTS, "too many one-time codes"),
    "INVALID_TOKEN": _dead(XENDIT_API, "the saved payment method is no longer valid"),
    "ACCOUNT_ACCESS_BLOCKED": _dead(XENDIT_API, "the provider blocked the account"),
    "ACCOUNT_NOT_ACTIVATED": _customer(XENDIT_COMPONENTS, "the customer's account is not activated"),
    "INVALID_ACCOUNT_DETAILS": _dead(XENDIT_API, "the account is wrong or closed"),
    "INVALID_MERCHANT_SETTINGS": _ours(XENDIT_API, "the merchant's set-up at the provider"),
    "INVALID_MERCHANT_CREDENTIALS": _ours(XENDIT_API, "the merchant's credentials at the provider"),
    "CAPTURE_AMOUNT_EXCEEDED": _ours(XENDIT_API, "captured more than authorised"),
}

# In Xendit's network table or on its test page, but not in the enum.
_UNLISTED_CODES = {
    "INVALID_CARD": _dead(VISA_NEVER, "no such card", blocks=True),
    "ISSUER_SUSPECT_FRAUD": _dead(XENDIT_CODES, "the issuer refused it as suspicious"),
    "TRANSACTION_BLOCKED": _dead(VISA_NEVER, "the cardholder withdrew", blocks=True, revoked=True),
    "PARTIAL_APPROVAL": _ours(OURS, "approved in part: to be settled by hand"),
    "PROCESS_ERROR": _technical(XENDIT_CODES, "trouble at the processor", tries=_FEW),
    "SUCCESS": _doubt(OURS, "reported as failed with the code of a success"),
}

# 4xx answers that are declines: the token or the card is refused, the request was right.
_REFUSALS = {
    "CARD_EXPIRED": _dead(XENDIT_API, "the card has expired"),
    "INVALID_PAYMENT_DETAILS": _customer(XENDIT_API, "the payment details are not valid"),
    "BLOCKED_TOKEN": _dead(XENDIT_OLDER, "the provider refuses the saved payment method"),
}

_OLDER_CODES = {
    "MAX_AMOUNT_LIMIT_ERROR": _soft(XENDIT_OLDER, "over a limit", wait=_DAY),
    "MAXIMUM_LIMIT_REACHED": _soft(XENDIT_OLDER, "over a limit", wait=_DAY),
    "CUSTOMER_NOT_FOUND_ERROR": _ours(XENDIT_OLDER, "no such customer"),
    "CHANNEL_NOT_ACTIVATED": _ours(XENDIT_OLDER, "the channel is not activated for the merchant"),
    "OTP_DELIVERY_ERROR": _customer(XENDIT_OLDER, "the one-time code could not be delivered"),
    "MAX_ACCOUNT_LINKING": _customer(XENDIT_OLDER, "the account is linked too often"),
    "INVALID_PAYMENT_METHOD": _dead(XENDIT_OLDER, "the saved payment method is no longer valid"),
    "PARTNER_CHANNEL_ERROR": _technical(XENDIT_OLDER, "trouble at the payment channel"),
    "DUPLICATE_TRANSACTION_ERROR": _doubt(XENDIT_OLDER, "a duplicate: the other may have been paid"),
    "CALLBACK_URL_NOT_FOUND": _ours(XENDIT_OLDER, "no callback address is set at Xendit"),
    "UNSUPPORTED_CONTENT_TYPE": _ours(XENDIT_OLDER, "the request has the wrong content type"),
    "REFUND_FAILED": _ours(XENDIT_OLDER, "a refund failed: to be settled by hand"),
}

FAILURE_CODES: Mapping[str, Rule] = MappingProxyType(_V3_CODES | _UNLISTED_CODES | _REFUSALS | _OLDER_CODES)


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """A card network's response code: the failure code Xendit maps it to, and what it allows."""

    failure_code: str
    rule: Rule


def _network() -> Iterator[tuple[str, NetworkRule]]:
    """Xendit's table by failure code, which is how it is read: a group, then the codes in it."""
    by, few = XENDIT_CODES, _FEW
    groups: dict[str, dict[str, Rule]] = {
        "DECLINED_BY_ISSUER": {
            "01": _soft(by, "refer to the issuer", tries=few),
            "02": _soft(by, "refer to the issuer", tries=few),
            "03": _ours(by, "invalid merchant"),
            "05": _soft(by, "do not honor", tries=few),
            "06": _soft(by, "try a different card", tries=few),
            "21": _customer(by, "payment cancellation"),
            "58": _ours(by, "transaction not permitted"),
            "62": _customer(by, "restricted card"),
            "63": _customer(by, "security violation"),
            "65": _soft(by, "limit exceeded", tries=few),
            "70": _customer(by, "contact the issuer"),
            "72": _customer(by, "account not yet active"),
            "75": _soft(by, "too many PIN tries", tries=few),
            "84": _ours(by, "invalid authorization life cycle"),
            "93": _customer(by, "cannot be completed by law"),
            "5C": _customer(by, "not supported or blocked by the issuer"),
            "N3": _technical(by, "issuer not available"),
            "R0": _dead(VISA_NEVER, "stop payment order", blocks=True, revoked=True),
            "R2": _ours(by, "does not qualify for Visa PIN"),
            "R3": _dead(VISA_NEVER, "authorization revoked", blocks=True, revoked=True),
            "Z3": _customer(by, "not available online"),
        },
        "STOLEN_CARD": {
            "04": _dead(VISA_NEVER, "capture card", blocks=True),
            "07": _dead(VISA_NEVER, "pick up card", blocks=True),
            "41": _dead(VISA_NEVER, "stolen card", blocks=True),
            "43": _dead(VISA_NEVER, "stolen card", blocks=True),
        },
        "INACTIVE_OR_UNAUTHORIZED_CARD": {
            "12": _dead(VISA_NEVER, "invalid transaction", blocks=True),
            "13": _ours(by, "invalid amount"),
            "46": _dead(VISA_NEVER, "closed account", blocks=True),
            "55": _customer(by, "invalid PIN"),
            "57": _dead(VISA_NEVER, "not permitted to the cardholder", blocks=True),
            "78": _customer(by, "no such account"),
            "92": _technical(by, "temporary system error"),
        },
        "INVALID_CARD": {
            "14": _dead(VISA_NEVER, "invalid card number", blocks=True),
            "15": _dead(VISA_NEVER, "invalid issuer", blocks=True),
        },
        "PROCESSOR_ERROR": {
            "19": _technical(by, "re-enter the transaction"),
            "25": _technical(by, "record not found", tries=_ONCE_MORE),
            "28": _technical(by, "file not available"),
            "30": _ours(by, "format error"),
            "52": _customer(by, "no checking account"),
            "53": _customer(by, "no savings account"),
            "80": _technical(by, "issuer unavailable"),
            "89": _ours(by, "not eligible for this information"),
            "1Z": _technical(by, "temporary system error"),
            "N0": _technical(by, "force STIP"),
            "N5": _dead(by, "ineligible for resubmission"),
            "Q1": _customer(by, "authentication failed"),
        },
        "INVALID_CVV": {
            "39": _customer(by, "no credit account"),
            "82": _customer(by, "security code refused"),
            "N7": _customer(by, "security code refused"),
        },
        "INSUFFICIENT_BALANCE": {
            "51": _soft(by, "insufficient funds"),
            "61": _soft(by, "limit exceeded"),
            "N4": _soft(by, "limit exceeded"),
        },
        "EXPIRED_CARD": {"54": _dead(by, "expired card")},
        "ISSUER_SUSPECT_FRAUD": {
            "59": _dead(by, "refused as suspicious"),
            "83": _dead(by, "refused as suspicious"),
        },
        "DECLINED_BY_PROCESSOR": {
            "64": _soft(by, "card declined", tries=few),
            "74": _customer(by, "invalid PIN"),
            "79": _dead(by, "life cycle"),
            "81": _dead(by, "refused as suspicious"),
            "86": _customer(by, "invalid PIN"),
            "94": _doubt(by, "duplicated transaction: the other one may have been paid"),
            "B1": _ours(by, "surcharge not permitted"),
            "B2": _ours(by, "surcharge not supported"),
            "N8": _ours(by, "preauthorized amount exceeded"),
        },
        "CARD_DECLINED": {
            "71": _customer(by, "PIN not changed"),
            "87": _ours(by, "purchase amount only"),
            "88": _technical(by, "cryptographic failure", tries=_ONCE_MORE),
            "90": _technical(by, "cut-off in progress"),
            "9G": _customer(by, "blocked by the cardholder"),
            "P6": _customer(by, "denied PIN"),
        },
        "ISSUER_UNAVAILABLE": {
            "91": _technical(by, "temporary system error"),
            "96": _technical(by, "system error"),
        },
        "PROCESS_ERROR": {"42": _technical(by, "processor error")},
        "AUTHENTICATION_FAILED": {"1A": _customer(by, "authentication required")},
        "TRANSACTION_BLOCKED": {"R1": _dead(VISA_NEVER, "authorization revoked", blocks=True, revoked=True)},
        "PARTIAL_APPROVAL": {"10": _ours(OURS, "approved in part: to be settled by hand")},
        "SUCCESS": {
            "11": _doubt(OURS, "approved, yet reported as failed"),
            "85": _doubt(OURS, "approved, yet reported as failed"),
        },
    }
    for failure_code, rules in groups.items():
        for code, rule in rules.items():
            yield code, NetworkRule(failure_code, rule)


_NETWORK = dict(_network())
NETWORK_CODES: Mapping[str, Rule] = MappingProxyType({code: row.rule for code, row in _NETWORK.items()})

# Mastercard's merchant advice codes, two digits.
ADVICE_CODES: Mapping[str, Rule] = MappingProxyType(
    {
        "01": _customer(XENDIT_ADVICE, "update card information"),
        "02": _technical(XENDIT_ADVICE, "retry after 72 hours", wait=timedelta(hours=72)),
        "03": _dead(MASTERCARD_STOP, "do not retry", blocks=True),
        "04": _ours(XENDIT_ADVICE, "technical token issue: contact Xendit"),
        "08": _ours(XENDIT_ADVICE, "blocked by the processor: contact Xendit"),
        "21": _dead(MASTERCARD_STOP, "the cardholder stopped the series", blocks=True, revoked=True),
        "22": _ours(XENDIT_ADVICE, "the merchant does not qualify for this product"),
        "24": _technical(XENDIT_ADVICE, "retry after 1 hour", wait=timedelta(hours=1)),
        "25": _technical(XENDIT_ADVICE, "retry after 24 hours", wait=timedelta(hours=24)),
        "26": _technical(XENDIT_ADVICE, "retry after 2 days", wait=timedelta(days=2)),
        "27": _technical(XENDIT_ADVICE, "retry after 4 days", wait=timedelta(days=4)),
        # Xendit's own sample shows 28 with "retry after 6 days", and so does its table.
        "28": _technical(XENDIT_ADVICE, "retry after 6 days", wait=timedelta(days=6)),
        "29": _technical(XENDIT_ADVICE, "retry after 8 days", wait=timedelta(days=8)),
        "30": _technical(XENDIT_ADVICE, "retry after 10 days", wait=timedelta(days=10)),
        # Xendit: no action required. Prepaid and single-use cards cannot carry a series, hence the class.
        "40": _customer(OURS, "non-reloadable prepaid card"),
        "41": _customer(OURS, "single-use virtual card"),
        "42": _customer(OURS, "sanctions score"),
        "43": _customer(OURS, "multi-use virtual card"),
        "99": _dead(XENDIT_ADVICE, "no action possible: do not retry", blocks=True),
    }
)

# Why a token could not be made. Nobody is charged, so the classes say who has to act.
TOKEN_FAILURE_CODES: Mapping[str, Rule] = MappingProxyType(
    {
        "ACCOUNT_ALREADY_LINKED": _customer(XENDIT_TOKENS, "this account is saved already: use that one"),
        "INVALID_ACCOUNT_DETAILS": _customer(XENDIT_TOKENS, "the account details are wrong"),
        "AUTHENTICATION_FAILED": _customer(XENDIT_TOKENS, "the customer did not authenticate"),
        "CARD_DECLINED": _customer(XENDIT_TOKENS, "the card was declined"),
        "CAPTURE_AMOUNT_EXCEEDED": _ours(XENDIT_TOKENS, "captured more than authorised"),
        "INSUFFICIENT_BALANCE": _customer(XENDIT_TOKENS, "not enough funds for the first charge"),
        "ISSUER_UNAVAILABLE": _technical(XENDIT_TOKENS, "the customer's bank does not answer"),
        "CHANNEL_UNAVAILABLE": _technical(XENDIT_TOKENS, "the payment channel does not answer"),
        "INVALID_MERCHANT_SETTINGS": _ours(XENDIT_TOKENS, "the merchant's set-up at the provider"),
    }
)

REFUND_FAILURE_CODES: Mapping[str, Rule] = MappingProxyType(
    {
        "ACCOUNT_ACCESS_BLOCKED": _customer(XENDIT_REFUNDS, "the account is blocked: refund another way"),
        "ACCOUNT_NOT_FOUND": _customer(XENDIT_REFUNDS, "the account is gone: refund another way"),
        "DUPLICATE_ERROR": _doubt(XENDIT_REFUNDS, "called a duplicate: the other one may have gone through"),
        "INSUFFICIENT_BALANCE": _ours(XENDIT_REFUNDS, "the merchant's balance is too low: top it up"),
        "REFUND_FAILED": _ours(XENDIT_REFUNDS, "refused by the channel: refund another way"),
    }
)

UNKNOWN_CODE = _soft(OURS, "a code that is new to this software", tries=_ONCE_MORE)
NO_CODE = "FAILURE_DETAILS_UNAVAILABLE"

# Who wins when two codes disagree. A doubt stands apart: `_stricter` never gives it up.
_STRICTNESS = (
    _C.RETRY_AFTER,
    _C.RETRY_LATER,
    _C.NEEDS_CUSTOMER,
    _C.DEAD_TOKEN,
    _C.OUR_FAULT,
    _C.UNKNOWN_FIRST,
)
_MAY_BE_RETRIED = frozenset({_C.RETRY_AFTER, _C.RETRY_LATER, _C.UNKNOWN_FIRST})


def classify(
    *, failure_code: str | None, network_code: str | None = None, advice_code: str | None = None
) -> Classified:
    """Judge one decline by everything that is known of it."""
    code = normalise_code(failure_code) or NO_CODE
    rule = FAILURE_CODES.get(code)
    verdict = _verdict(rule or UNKNOWN_CODE, code, known=rule is not None)
    network = normalise_network_code(network_code)
    if network:
        verdict = _refined(verdict, code, network)
    advice = normalise_advice_code(advice_code)
    return _advised(verdict, advice) if advice else verdict


def normalise_code(code: str | None) -> str | None:
    """Upper case without blanks around: the reference itself prints one code with a trailing blank."""
    return (code or "").strip().upper() or None


def normalise_network_code(code: str | None) -> str | None:
    cleaned = normalise_code(code)
    return cleaned.zfill(2) if cleaned else None


def normalise_advice_code(code: str | None) -> str | None:
    """Two digits: Xendit prints `1` in its table and `01` in its samples."""
    return normalise_network_code(code)


def explain_for_people(classified: Classified, *, is_last: bool = False) -> str:
    """One sentence for the merchant, about what was said and what follows, which is no other try when this was the
    last one. Not written for payers."""
    said = f"{classified.code}: {classified.note}" if classified.note else classified.code
    new = "" if classified.known else "; Xendit sent a code this software does not know yet"
    if is_last and classified.cls in (DeclineClass.RETRY_LATER, DeclineClass.RETRY_AFTER):
        return f"{said}{new}"
    return f"{said}; {_what_follows(classified)}{new}"


def _what_follows(classified: Classified) -> str:
    match classified.cls:
        case DeclineClass.RETRY_LATER:
            tries = f", {classified.max_tries} tries in all" if classified.max_tries else ""
            return f"the same payment method is tried again in some days{tries}{_not_before(classified)}"
        case DeclineClass.RETRY_AFTER:
            return f"a technical failure, tried again after some hours{_not_before(classified)}"
        case DeclineClass.NEEDS_CUSTOMER:
            return "only the customer can help: by confirming the payment or with another payment method"
        case DeclineClass.DEAD_TOKEN:
            card = " nor any other token of the same card" if classified.blocks_card else ""
            return f"this payment method is not charged again{card}; ask the customer for another one"
        case DeclineClass.OUR_FAULT:
            return "nothing the customer can do: the merchant's set-up or the request has to be looked at"
        case DeclineClass.UNKNOWN_FIRST:
            return "it may still turn into money, so it is looked up before anything else is tried"


def _not_before(classified: Classified) -> str:
    return f", not before {classified.wait} from the failure" if classified.wait else ""


def _verdict(rule: Rule, code: str, *, known: bool) -> Classified:
    return Classified(
        cls=rule.cls,
        wait=rule.wait,
        max_tries=rule.max_tries,
        blocks_card=rule.blocks_card,
        code=code,
        source=rule.source,
        known=known,
        revoked=rule.revoked,
        note=rule.note,
    )


def _refined(verdict: Classified, failure_code: str, network_code: str) -> Classified:
    row = _NETWORK.get(network_code)
    if row is None:
        return replace(verdict, known=False)
    precise = _verdict(row.rule, f"network {network_code}", known=verdict.known)
    # A code that is new to us says nothing, so what the network said is all there is.
    if row.failure_code == failure_code or not verdict.known:
        return precise
    return _stricter(verdict, precise)


def _advised(verdict: Classified, advice_code: str) -> Classified:
    rule = ADVICE_CODES.get(advice_code)
    if rule is None:
        return replace(verdict, known=False)
    advised = _verdict(rule, f"advice {advice_code}", known=verdict.known)
    if advised.cls in _MAY_BE_RETRIED:
        return _later(verdict, advised) if verdict.cls in _MAY_BE_RETRIED else verdict
    if verdict.cls == DeclineClass.UNKNOWN_FIRST:
        return _stricter(verdict, advised)
    return _marked(advised, verdict)


def _stricter(one: Classified, other: Classified) -> Classified:
    first, second = sorted((one, other), key=lambda found: _STRICTNESS.index(found.cls), reverse=True)
    return _marked(first, second)


def _marked(winner: Classified, other: Classified) -> Classified:
    """A block or a withdrawn permission stays, whichever code it came with."""
    return replace(winner, blocks_card=winner.blocks_card or other.blocks_card, revoked=winner.revoked or other.revoked)


def _later(verdict: Classified, advised: Classified) -> Classified:
    """The same retry, but not before the advised time. A soft decline stays on its ladder: sooner is no
    advice."""
    if advised.wait is None or (verdict.wait or timedelta(0)) >= advised.wait:
        return verdict
    return replace(verdict, wait=advised.wait, code=advised.code, source=advised.source, note=advised.note)
