"""What a file of subscribers says, line by line: checked as far as that is possible without the database.

Called by subscribing/import_rows.py. Every refusal is one line and does not repeat the line it refuses.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field, fields
from datetime import datetime
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

from billing.domain.names import check_reference, check_xendit_id, refuse_no_text
from billing.errors import InvalidInput

LONGEST_LINE = 20_000
LONGEST_VALUE = 200
YEARS = range(2000, 2201)
NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file, its values as written and of the right type."""

    customer_reference: str
    name: str
    email: str
    country: str
    plan: str
    subscription_reference: str
    payment_token_id: str
    channel_code: str
    next_billing_at: datetime
    timezone: str | None = None
    anchor_day: int | None = None
    xendit_customer_id: str | None = None
    catch_up: bool = False  # periods that have passed by more than one may be billed

    @property
    def person(self) -> tuple[str, str, str]:
        return self.name.strip(), self.email, self.country


REQUIRED = (
    *("customer_reference", "name", "email", "country", "plan"),
    *("subscription_reference", "payment_token_id", "channel_code", "next_billing_at"),
)
MEMBERS = tuple(member.name for member in fields(Row))
WITHOUT_QUOTES = ("anchor_day", "catch_up")


def parse_row(text: str) -> Row:
    """Raises InvalidInput, in words that do not repeat the line: nobody knows what stands in it."""
    members = _members_of(text)
    for name in members:
        if name not in MEMBERS:
            close = get_close_matches(name, MEMBERS, n=1)
            advice = f"did you mean {close[0]}?" if close else f"the members are {', '.join(MEMBERS)}"
            raise InvalidInput(f"unknown member {name[:40]!r}; {advice}")
    members = {name: value for name, value in members.items() if value not in (None, "")}
    missing = [name for name in REQUIRED if name not in members]
    if missing:
        raise InvalidInput(f"{', '.join(missing)} missing; every row needs {', '.join(REQUIRED)}")
    values: dict[str, Any] = {name: _text(name, value) for name, value in members.items() if name not in WITHOUT_QUOTES}
    values["next_billing_at"] = _instant(values["next_billing_at"])
    values["anchor_day"] = _day(members.get("anchor_day"))
    values["catch_up"] = _flag("catch_up", members.get("catch_up"))
    row = Row(**values)
    _check_references(row)
    return row


def _members_of(text: str) -> dict[str, Any]:
    if NOT_UTF_8.search(text):
        raise InvalidInput("not UTF-8 text; convert the file, from Windows with `iconv -f WINDOWS-1252 -t UTF-8 FILE`")
    if BYTE_ORDER_MARK in text:
        raise InvalidInput(
            "a byte order mark stands in this line, where another file was joined on; take it out with"
            r" `sed 's/\xEF\xBB\xBF/\n/g' FILE`"
        )
    if len(text) > LONGEST_LINE:
        raise InvalidInput(f"the line has {len(text)} characters; write one row of at most {LONGEST_LINE} on a line")
    try:
        members = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"not JSON ({error.msg} at column {error.colno}); write one JSON object a line") from None
    except (ValueError, RecursionError):
        raise InvalidInput("not JSON that can be read; write one JSON object a line") from None
    if not isinstance(members, dict):
        raise InvalidInput("not a JSON object; write one object a line, not a list around them")
    return members


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise InvalidInput("a member is there twice; leave one of them out")
    return members


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text in quotes, not {_kind(value)}")
    if len(value) > LONGEST_VALUE:
        raise InvalidInput(f"{name} has {len(value)} characters; at most {LONGEST_VALUE} are kept")
    refuse_no_text(name, value)
    return value


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "null"


def _instant(written: str) -> datetime:
    example = "2026-01-31T09:00:00+07:00"
    try:
        instant = datetime.fromisoformat(written)
    except ValueError:
        raise InvalidInput(f"next_billing_at is not a time; write it like {example}") from None
    if instant.tzinfo is None:
        raise InvalidInput(f"next_billing_at has no offset; write it like {example}")
    if instant.year not in YEARS:
        raise InvalidInput(f"next_billing_at: the year {instant.year} cannot be meant; write it like {example}")
    return instant


def _day(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 31:  # noqa: PLR2004
        raise InvalidInput("anchor_day must be a whole number from 1 to 31, without quotes")
    return value


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false, without quotes")
    return value is True


def _check_references(row: Row) -> None:
    check_reference("customer_reference", row.customer_reference)
    check_reference("subscription_reference", row.subscription_reference)
    if row.payment_token_id.startswith("pm-"):
        raise InvalidInput("payment_token_id: an id of Xendit's older API; the same token is named pt-... now")
    if not re.fullmatch(r"pt-[A-Za-z0-9-]{1,57}", row.payment_token_id):
        raise InvalidInput("payment_token_id: Xendit's token ids are pt- and letters, digits and dashes")
    if row.xendit_customer_id is not None:
        check_xendit_id(row.xendit_customer_id, "cust-", "xendit_customer_id")


_VALUES = attrgetter(*MEMBERS)
_DIGEST = struct.Struct(f"<Iq{len(MEMBERS)}I")  # line, hash of the row, hash of each member


@dataclass(slots=True)
class FileSoFar:
    """Rows taken so far. The database would refuse most clashes by itself, but not in a dry run, and not by line.

    Of a row its hashes are kept, not its text: some 500 bytes, which is all that grows with a file.
    """

    rows: dict[int, bytes] = field(default_factory=dict)
    people: dict[str, tuple[int, int]] = field(default_factory=dict)  # the hash of the person, line
    owners: dict[int, tuple[str, int]] = field(default_factory=dict)

    def holds(self, row: Row) -> bool:
        """Whether the same row came before. Raises InvalidInput when the two contradict each other."""
        same = self.rows.get(hash(row.subscription_reference))
        if same is not None:
            line, digest, *members = _DIGEST.unpack(same)
            if digest != hash(row):
                found = zip(MEMBERS, members, _of_each(row), strict=True)
                differing = ", ".join(name for name, before, now in found if before != now)
                raise InvalidInput(f"line {line} has the same subscription_reference and differs in {differing}")
        person = self.people.get(row.customer_reference)
        if person is not None and person[0] != hash(row.person):
            raise InvalidInput(
                f"line {person[1]} describes customer {row.customer_reference} otherwise;"
                " make name, email and country agree"
            )
        for what, value in (("token", row.payment_token_id), ("xendit_customer_id", row.xendit_customer_id)):
            owner = self.owners.get(hash(value)) if value is not None else None
            if owner is not None and owner[0] != row.customer_reference:
                raise InvalidInput(f"line {owner[1]} gives this {what} to customer {owner[0]}")
        return same is not None

    def remember(self, row: Row, line: int) -> None:
        subscription, token = hash(row.subscription_reference), hash(row.payment_token_id)
        if subscription not in self.rows:
            self.rows[subscription] = _DIGEST.pack(line, hash(row), *_of_each(row))
        if row.customer_reference not in self.people:
            self.people[row.customer_reference] = (hash(row.person), line)
        if token not in self.owners:
            self.owners[token] = (row.customer_reference, line)
        if row.xendit_customer_id is not None:
            self.owners.setdefault(hash(row.xendit_customer_id), (row.customer_reference, line))

    def forget(self, row: Row, line: int) -> None:
        """This row was not taken after all. Those behind it are forgotten before it."""
        subscription = hash(row.subscription_reference)
        if subscription in self.rows and _DIGEST.unpack(self.rows[subscription])[0] == line:
            del self.rows[subscription]
        if self.people.get(row.customer_reference, (0, 0))[1] == line:
            del self.people[row.customer_reference]
        for value in (row.payment_token_id, row.xendit_customer_id):
            if value is not None and self.owners.get(hash(value), ("", 0))[1] == line:
                del self.owners[hash(value)]


def _of_each(row: Row) -> list[int]:
    return [hash(value) & 0xFFFFFFFF for value in _VALUES(row)]
