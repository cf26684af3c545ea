"""The vocabulary of what a charge (or any call) comes to, as written in scripts, magic amounts and faults.

SUCCEEDED                              paid
PARTIAL:20000, CURRENCY:PHP            paid, but only so much was captured, or in that currency
INSUFFICIENT_BALANCE                   declined; DECLINED_BY_ISSUER/05/24 adds network and advice code
PENDING, PENDING:SUCCEEDED             open; with a result it resolves by itself
REQUIRES_ACTION                        the customer must act
LATE_CAPTURE:TIMEOUT_ERROR:3600        declined now, captured an hour later
HTTP:503:CHANNEL_UNAVAILABLE, 429      refused, nothing done
500_BEFORE, 502_BEFORE, TIMEOUT_BEFORE fails before anything is done
500_AFTER, 502_AFTER, TIMEOUT_AFTER, GARBAGE   done, but the answer is lost; ":RESULT" may follow
PROXY_403_BEFORE, EMPTY_302_BEFORE     a page, or nothing, of a proxy in Xendit's place; nothing done
PROXY_403_AFTER, EMPTY_403_AFTER       the same after it was done; ":RESULT" may follow
SLOW:2.5                               answers late; ":RESULT" may follow
NO_WEBHOOK:RESULT                      the result's webhook is never sent
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import lru_cache

from billing.sandbox.simulator.answers import AnsweredByStranger, ApiError, ConnectionDropped, Disturbance


class Result(StrEnum):
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    PENDING = "PENDING"
    REQUIRES_ACTION = "REQUIRES_ACTION"


@dataclass(frozen=True, slots=True)
class Outcome:
    result: Result = Result.SUCCEEDED
    failure_code: str | None = None
    network_code: str | None = None
    advice_code: str | None = None
    resolution: "Outcome | None" = None
    late_capture_seconds: float | None = None
    captured: Decimal | None = None  # instead of what was asked for
    currency: str | None = None
    refusal: tuple[int, str] | None = None
    dropped_before: bool = False
    stranger_before: tuple[int, bytes] | None = None
    disturbance: Disturbance | None = None
    webhook: bool = True

    def refuse(self) -> None:
        """Raises when nothing is to be done at all."""
        if self.dropped_before:
            raise ConnectionDropped
        if self.stranger_before:
            raise AnsweredByStranger(*self.stranger_before)
        if self.refusal:
            raise ApiError(*self.refusal)

    @property
    def is_fault(self) -> bool:
        return bool(self.refusal or self.dropped_before or self.stranger_before or self.disturbance)


SUCCESS = Outcome()
_DEFAULT_LATE_SECONDS = 3600.0
_FAILURE = re.compile(r"(?P<code>[A-Z][A-Z0-9_]+)(/(?P<network>[0-9A-Z]{2})?(/(?P<advice>\d{1,2}))?)?")
_SERVER_FAULT = re.compile(r"(?P<status>5\d\d)_(?P<when>BEFORE|AFTER)")
_STRANGER = re.compile(r"(?P<what>PROXY|EMPTY)_(?P<status>[2345]\d\d)_(?P<when>BEFORE|AFTER)")
_PAGES = {"PROXY": b"<html><title>Attention required</title>blocked by the proxy</html>", "EMPTY": b""}


def failure(code: str) -> Outcome:
    return Outcome(Result.FAILED, failure_code=code)


@lru_cache(maxsize=4096)
def parse(text: str) -> Outcome:
    """ValueError when the text is not in the vocabulary."""
    word, _, rest = text.partition(":")
    match word:
        case "SUCCEEDED" | "REQUIRES_ACTION":
            return Outcome(Result(word))
        case "PARTIAL":
            return Outcome(captured=_amount(rest))
        case "CURRENCY":
            return Outcome(currency=rest)
        case "PENDING":
            return Outcome(Result.PENDING, resolution=parse(rest) if rest else None)
        case "NO_WEBHOOK":
            return replace(_followed_by(rest), webhook=False)
        case "LATE_CAPTURE":
            return _late_capture(rest)
        case "429":
            return Outcome(refusal=(429, "RATE_LIMIT_EXCEEDED"))
        case "HTTP":
            status, _, code = rest.partition(":")
            return Outcome(refusal=(int(status), code or "SERVER_ERROR"))
        case _:
            return _fault(word, rest) or _decline(text)


def _fault(word: str, rest: str) -> Outcome | None:
    match word:
        case "TIMEOUT_BEFORE":
            return Outcome(dropped_before=True)
        case "TIMEOUT_AFTER":
            return replace(_followed_by(rest), disturbance=Disturbance(drop=True))
        case "GARBAGE":
            return replace(_followed_by(rest), disturbance=Disturbance(garbage=True))
        case "SLOW":
            seconds, _, then = rest.partition(":")
            return replace(_followed_by(then), disturbance=Disturbance(delay_seconds=float(seconds)))
    found = _SERVER_FAULT.fullmatch(word)
    if found is None:
        return _stranger(word, rest)
    status = int(found["status"])
    if found["when"] == "BEFORE":
        return Outcome(refusal=(status, "SERVER_ERROR"))
    return replace(_followed_by(rest), disturbance=Disturbance(status=status))


def _stranger(word: str, rest: str) -> Outcome | None:
    found = _STRANGER.fullmatch(word)
    if found is None:
        return None
    status, page = int(found["status"]), _PAGES[found["what"]]
    if found["when"] == "BEFORE":
        return Outcome(stranger_before=(status, page))
    return replace(_followed_by(rest), disturbance=Disturbance(status=status, stranger=page))


def _followed_by(rest: str) -> Outcome:
    return parse(rest) if rest else SUCCESS


def _amount(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"PARTIAL:{text}: write an amount, such as PARTIAL:20000") from None


def _late_capture(rest: str) -> Outcome:
    code, _, seconds = rest.partition(":")
    return replace(_decline(code), late_capture_seconds=float(seconds) if seconds else _DEFAULT_LATE_SECONDS)


def _decline(text: str) -> Outcome:
    found = _FAILURE.fullmatch(text)
    if found is None:
        raise ValueError(f"unknown outcome {text!r}")
    return Outcome(
        Result.FAILED, failure_code=found["code"], network_code=found["network"], advice_code=found["advice"]
    )
