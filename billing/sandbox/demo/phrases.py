"""A subscriber's facts in a few words, for the demo's ticker and its one story. `billing explain` has the long form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from billing.domain.declines import classify
from billing.domain.money import Money, format_money
from billing.sandbox.demo.cast import HOME

GOOD, BAD, NEWS, QUIET = "green", "red", "yellow", "dim"
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z)")
_SOURCES = {"answer": "", "webhook": " (as a webhook says)", "lookup": " (found by asking Xendit)"}


def phrase(kind: str, detail: Mapping[str, Any], currency: str) -> tuple[str, str] | None:
    """(words, style), or None for what another line says already."""
    match kind:
        case "subscription.created":
            return f"subscribes to {detail['plan']}, through a {detail['via']} session", ""
        case "session.try_failed":
            return f"a try on the payment page fails ({note(detail['failure_code'])}); the page stays open", NEWS
        case "session.expired":
            return "lets the payment page expire; is sent a new one", NEWS
        case "token.saved":
            return f"the payment method is saved as a token ({detail['channel']})", GOOD
        case "subscription.trialing":
            return f"the free trial begins; first charge on {_day_in(detail['next_billing_at'])}", ""
        case "invoice.paid":
            money = format_money(Money.parse(detail["amount"], currency))
            paid = f"renewal paid: {money}" if renews(detail) else f"{money} paid"
            return f"{paid}{_SOURCES[detail['source']]}", GOOD
        case "attempt.failed":
            declined = "renewal declined" if renews(detail) else "declined"
            return f"{declined}: {note(detail['failure_code'])}; {_what_next(detail['next'])}", BAD
        case "attempt.in_doubt":
            return "charged or not? The answer is lost: in doubt, nothing else is tried", NEWS
        case "attempt.never_arrived":
            return f"no trace at Xendit in {detail['look_ups']} look-ups: it never arrived, and is charged anew", NEWS
        case "customer.asked" if "payment token" in detail["reason"]:
            return f"the payment method has expired; asked for another until {_day_in(detail['until'])}", BAD
        case _:
            return _of_life(kind, detail)


def _of_life(kind: str, detail: Mapping[str, Any]) -> tuple[str, str] | None:
    match kind:
        case "customer.new_method":
            return "saves a new card; the open invoice is charged with it", NEWS
        case "subscription.recovered":
            return "nothing is overdue any more: active again", GOOD
        case "subscription.paused":
            return "pauses; nothing is billed", QUIET
        case "subscription.resumed":
            return f"goes on; {detail['skipped']} period(s) recorded as skipped", QUIET
        case "subscription.cancel_planned":
            return f"leaves, with the end of the period on {_day_in(detail['at'])}", QUIET
        case "subscription.canceled":
            return f"canceled: {detail['reason']}", QUIET
        case "invoice.uncollectible":
            return "nothing came in time: the invoice is given up, on purpose", BAD
        case _:
            return None


def renews(detail: Mapping[str, Any]) -> bool:
    """Whether a fact's invoice is for a period after the first: `ana-3` is her third."""
    number = str(detail.get("invoice", "")).rpartition("-")[2]
    return number.isdigit() and int(number) > 1


def note(failure_code: str | None) -> str:
    """`not enough funds` for INSUFFICIENT_BALANCE."""
    verdict = classify(failure_code=failure_code)
    return verdict.note or verdict.code


def day(at: datetime) -> str:
    return at.astimezone(HOME).strftime("%d %b").removeprefix("0")


def _what_next(told: str) -> str:
    word = told.partition(" ")[0]
    match word:
        case "retry":
            return f"tried again on {_day_in(told)}"
        case "the":
            return f"asked for another payment method until {_day_in(told)}"
        case "next":
            return "the next payment method is tried"
        case _:
            return told


def _day_in(text: str) -> str:
    found = _INSTANT.search(text)
    return day(datetime.fromisoformat(found[0])) if found else "a later day"
