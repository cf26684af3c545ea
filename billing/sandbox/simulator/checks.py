"""Reads request bodies as strictly as Xendit's validator: all breaches collected, worded, refused at once.

Used by the API modules, which check what depends on stored objects (a token's state, a channel's limits). What the
documents do not forbid is let through with a line in the log (`unsettled`): a simulator that refuses more than Xendit
keeps real customers out.
"""

import logging
import re
import unicodedata
from collections.abc import Collection
from decimal import Decimal
from typing import Any, TypeVar

from billing.sandbox.simulator import catalogue
from billing.sandbox.simulator.answers import ApiError, Json, decode, validation_error

Kind = TypeVar("Kind")
_REFERENCE = re.compile(r"[A-Za-z0-9_-]+")
_MOBILE = re.compile(r"\+[1-9][0-9]{1,14}")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_COUNTRY = re.compile(r"[A-Z]{2}")
_CUSTOMER_ID_LENGTH = 41
_METADATA_KEYS, _METADATA_KEY, _METADATA_VALUE = 20, 40, 80
_JOINERS = "\u200c\u200d"
_log = logging.getLogger(__name__)


def unsettled(what: str) -> None:
    """Xendit may take this or refuse it: its documents say neither."""
    _log.warning("let through, though Xendit's documents do not say that it is taken: %s", what)


def json_object(body: bytes) -> Json:
    try:
        document = decode(body)
    except ValueError:
        raise ApiError(400, "API_VALIDATION_ERROR", "request/body is not valid JSON") from None
    if not isinstance(document, dict):
        raise validation_error("/body", "must be object")
    return document


class Shape:
    """One JSON object under check. Reading a member returns it, or None with the breach noted."""

    __slots__ = ("_breaches", "_members", "_path")

    def __init__(self, members: Json, path: str = "/body", breaches: list[tuple[str, str, str]] | None = None) -> None:
        self._members = members
        self._path = path
        self._breaches: list[tuple[str, str, str]] = [] if breaches is None else breaches

    def breach(self, name: str, message: str) -> None:
        self._breaches.append((f"request{self._path}/{name} {message}", f"{self._path}/{name}", message))

    def refuse_breaches(self) -> None:
        if self._breaches:
            errors = [{"message": message, "path": path} for _, path, message in self._breaches]
            raise ApiError(400, "API_VALIDATION_ERROR", ", ".join(line for line, _, _ in self._breaches), errors)

    def only(self, allowed: Collection[str]) -> None:
        for name in self._members:
            if name not in allowed:
                self._breaches.append(
                    (f"request{self._path} must NOT have additional properties", f"{self._path}/{name}",
                     "must NOT have additional properties")
                )  # fmt: skip

    def has(self, name: str) -> bool:
        return self._members.get(name) is not None

    def string(
        self,
        name: str,
        *,
        maximum: int,
        minimum: int = 1,
        required: bool = False,
        pattern: re.Pattern[str] | None = None,
    ) -> str | None:
        value = self._member(name, (str,), "string", required=required)
        if value is None:
            return None
        if len(value) < minimum:
            self.breach(name, f"must NOT have fewer than {minimum} characters")
        elif len(value) > maximum:
            self.breach(name, f"must NOT have more than {maximum} characters")
        elif pattern is not None and not pattern.fullmatch(value):
            self.breach(name, f'must match pattern "{pattern.pattern}"')
        return value

    def choice(self, name: str, allowed: Collection[str], *, required: bool = False) -> str | None:
        value = self._member(name, (str,), "string", required=required)
        if value is not None and value not in allowed:
            self.breach(name, "must be equal to one of the allowed values")
        return value

    def number(self, name: str, *, required: bool = False, minimum: int | None = 0) -> Decimal | None:
        value: Any = self._member(name, (int, Decimal), "number", required=required)
        if value is None:
            return None
        if minimum is not None and value < minimum:
            self.breach(name, f"must be >= {minimum}")
        return Decimal(value)

    def integer(self, name: str, *, required: bool = False, minimum: int = 1) -> int | None:
        value = self._member(name, (int,), "integer", required=required)
        if value is not None and value < minimum:
            self.breach(name, f"must be >= {minimum}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self._members.get(name)
        if name in self._members and not isinstance(value, bool):
            self.breach(name, "must be boolean")
            return None
        return value

    def nested(self, name: str, *, required: bool = False) -> "Shape | None":
        value = self._member(name, (dict,), "object", required=required)
        return None if value is None else Shape(value, f"{self._path}/{name}", self._breaches)

    def array(self, name: str, *, nullable: bool = False) -> list[Any] | None:
        if nullable and self._members.get(name, ...) is None:
            return None
        value = self._member(name, (list,), "array", required=False)
        return None if value is None else list(value)

    def strings(self, name: str) -> list[str] | None:
        values = self.array(name)
        if values is not None and not all(isinstance(value, str) for value in values):
            self.breach(name, "must be array of string")
            return None
        return values

    def entries(self, name: str, *, nullable: bool = False) -> "list[Shape]":
        shapes = []
        for index, value in enumerate(self.array(name, nullable=nullable) or []):
            if isinstance(value, dict):
                shapes.append(Shape(value, f"{self._path}/{name}/{index}", self._breaches))
            else:
                self.breach(f"{name}/{index}", "must be object")
        return shapes

    def metadata(self, *, error_code: str = "API_VALIDATION_ERROR") -> Json | None:
        """Limits of the error text (20 keys, 40, 80), the smaller of the two documented sets."""
        if self._members.get("metadata") is None:
            return None
        value = self._member("metadata", (dict,), "object", required=False)
        problem = _metadata_problem(value) if value else None
        if problem and error_code != "API_VALIDATION_ERROR":
            raise ApiError(400, error_code, problem)
        if problem:
            self.breach("metadata", problem)
        return value

    def _member(self, name: str, kind: tuple[type[Kind], ...], title: str, *, required: bool) -> Kind | None:
        value = self._members.get(name, ...)
        if value is ...:
            if required:
                message = f"must have required property '{name}'"
                self._breaches.append((f"request{self._path} {message}", f"{self._path}/{name}", message))
            return None
        if not isinstance(value, kind) or isinstance(value, bool):
            self.breach(name, f"must be {title}")
            return None
        return value


def _metadata_problem(metadata: Json) -> str | None:
    if len(metadata) > _METADATA_KEYS:
        return f"Metadata must have at most {_METADATA_KEYS} keys"
    if any(len(key) > _METADATA_KEY for key in metadata):
        return f"Metadata key must have at most {_METADATA_KEY} characters"
    if not all(isinstance(value, str) for value in metadata.values()):
        return "Metadata value must be a string"
    if any(len(value) > _METADATA_VALUE for value in metadata.values()):
        return f"Metadata value must have at most {_METADATA_VALUE} characters"
    return None


def check_customer(shape: Shape) -> None:
    """The customer object of sessions, payment tokens and POST /customers."""
    shape.choice("type", {"INDIVIDUAL"}, required=True)
    shape.string("reference_id", maximum=255, required=True, pattern=_REFERENCE)
    shape.string("email", minimum=4, maximum=50)
    shape.string("mobile_number", maximum=50, pattern=_MOBILE)
    detail = shape.nested("individual_detail", required=True)
    if detail is None:
        return
    given_names = detail.string("given_names", maximum=50, required=True)
    if given_names is not None and not all(map(_is_alphanumeric, given_names)):
        detail.breach("given_names", "must be alphanumeric")
    detail.string("surname", maximum=50)
    detail.string("nationality", maximum=2, pattern=_COUNTRY)
    detail.string("place_of_birth", maximum=60)
    detail.string("date_of_birth", maximum=10, pattern=_DATE)
    detail.choice("gender", {"MALE", "FEMALE", "OTHER"})


def _is_alphanumeric(letter: str) -> bool:
    """The reference's word, taken to forbid symbols and controls, not what names are made of: letters of any script
    with their marks (Thai vowels, Vietnamese tones), digits, blanks and the punctuation of names."""
    return unicodedata.category(letter)[0] in "LMN" or letter in " .,'\u2019()-\u00a0\u3000" or letter in _JOINERS


def check_customer_id(shape: Shape) -> str | None:
    customer_id = shape.string("customer_id", maximum=_CUSTOMER_ID_LENGTH)
    if customer_id is not None and len(customer_id) != _CUSTOMER_ID_LENGTH and customer_id.startswith("cust-"):
        shape.breach("customer_id", f"must NOT have fewer than {_CUSTOMER_ID_LENGTH} characters")
    return customer_id


def check_items(shape: Shape, *, metadata_error: str = "API_VALIDATION_ERROR") -> None:
    for item in shape.entries("items", nullable=True):
        item.string("reference_id", maximum=255, required=True)
        item.choice("type", catalogue.ITEM_TYPES)
        item.string("name", maximum=255, required=True)
        item.number("net_unit_amount", required=True, minimum=None)
        item.integer("quantity", required=True)
        item.string("category", maximum=255, required=True)
        item.string("description", maximum=255)
        item.metadata(error_code=metadata_error)


def check_card_properties(shape: Shape) -> None:
    """`card_on_file_type` and its companion, in sessions (under `cards`) and in token charges."""
    kind = shape.choice("card_on_file_type", catalogue.CARD_ON_FILE_TYPES)
    shape.flag("skip_three_ds")
    shape.choice("transaction_sequence", {"INITIAL", "SUBSEQUENT"})
    recurring = shape.nested("recurring_configuration", required=kind in catalogue.MERCHANT_INITIATED)
    if recurring is not None:
        recurring.integer("recurring_frequency", required=True)
        recurring.string("recurring_expiry", maximum=10, required=True, pattern=_DATE)
