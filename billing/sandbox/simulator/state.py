"""What the simulator remembers: the JSON documents the API shows, next to what it never shows.

`World` is handed to every API function; nothing here knows HTTP.
"""

import hashlib
import heapq
import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from billing.sandbox.simulator.answers import Json, iso
from billing.sandbox.simulator.catalogue import Channel
from billing.sandbox.simulator.config import SimulatorConfig
from billing.sandbox.simulator.outcomes import Outcome
from billing.sandbox.simulator.webhooks import WebhookQueue

_SUFFIX_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SUFFIX_LENGTH = 10
_DECEMBER = 12


class Ids:
    """Ids that look like Xendit's, in an order fixed by the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"ids:{seed}")  # noqa: S311 - reproducible on purpose, guards nothing

    def uuid(self, prefix: str) -> str:
        text = f"{self._random.getrandbits(128):032x}"
        return f"{prefix}-{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"

    def object_id(self, prefix: str) -> str:
        return f"{prefix}-{self.hexadecimal(24)}"

    def hexadecimal(self, length: int) -> str:
        return f"{self._random.getrandbits(4 * length):0{length}x}"

    def digits(self, length: int) -> str:
        return f"{self._random.randrange(10**length):0{length}d}"

    def suffix(self) -> str:
        return "".join(self._random.choices(_SUFFIX_ALPHABET, k=_SUFFIX_LENGTH))


class Agenda:
    """What happens by itself as the simulated clock moves: expiry, resolution, late captures."""

    def __init__(self) -> None:
        self._entries: list[tuple[datetime, int, Callable[[datetime], None]]] = []
        self._order = itertools.count()

    def at(self, due_at: datetime, act: Callable[[datetime], None]) -> None:
        heapq.heappush(self._entries, (due_at, next(self._order), act))

    def next_at(self) -> datetime | None:
        return self._entries[0][0] if self._entries else None

    def advance(self, now: datetime) -> None:
        """Each entry acts at its own instant: a jump over months leaves the record of living through them."""
        while self._entries and self._entries[0][0] <= now:
            due_at, _, act = heapq.heappop(self._entries)
            act(due_at)


@dataclass(frozen=True, slots=True)
class Card:
    """A card without its number: masked digits and a fingerprint are all that is kept."""

    masked: str
    fingerprint: str
    network: str
    challenge: bool
    expiry_month: int
    expiry_year: int
    issuer: str
    country: str
    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None

    def expired_by(self, now: datetime) -> bool:
        return (self.expiry_year, self.expiry_month) < (now.year, now.month)

    def ends_at(self) -> datetime:
        if self.expiry_month == _DECEMBER:
            return datetime(self.expiry_year + 1, 1, 1, tzinfo=UTC)
        return datetime(self.expiry_year, self.expiry_month + 1, 1, tzinfo=UTC)

    def details(self) -> Json:
        return {
            "masked_card_number": self.masked,
            "expiry_month": f"{self.expiry_month:02d}",
            "expiry_year": str(self.expiry_year),
            "fingerprint": self.fingerprint,
            "type": "CREDIT",
            "network": self.network,
            "country": self.country,
            "issuer": self.issuer,
            "cardholder_first_name": self.first_name,
            "cardholder_last_name": self.last_name,
            "cardholder_email": self.email,
            "cardholder_phone_number": None,
        }


def fingerprint(number: str) -> str:
    return hashlib.sha256(f"simulated-card:{number}".encode()).hexdigest()[:24]


def masked(number: str) -> str:
    return number[:6] + "X" * (len(number) - 10) + number[-4:]


@dataclass(slots=True)
class Token:
    document: Json
    channel: Channel
    card: Card | None = None
    script: deque[Outcome] = field(default_factory=deque)
    charges: int = 0

    @property
    def status(self) -> str:
        return str(self.document["status"])


@dataclass(slots=True)
class Payment:
    document: Json
    request: "PaymentRequest"
    captured: Decimal = Decimal(0)
    captured_at: datetime | None = None
    refunded: Decimal = Decimal(0)  # pending refunds included
    refund_pending: bool = False

    @property
    def status(self) -> str:
        return str(self.document["status"])


@dataclass(slots=True)
class PaymentRequest:
    document: Json
    channel: Channel
    amount: Decimal
    card: Card | None = None
    payment: Payment | None = None
    webhook: bool = True
    when_paid: Callable[[datetime], None] | None = None  # a session waits for this request

    @property
    def status(self) -> str:
        return str(self.document["status"])


@dataclass(slots=True)
class Session:
    document: Json
    channels: list[Channel]
    customer: Json | None = None
    awaiting: "Checkout | None" = None  # stopped at a 3DS challenge

    @property
    def status(self) -> str:
        return str(self.document["status"])


@dataclass(frozen=True, slots=True)
class Checkout:
    """What the customer chose on the hosted page. `outcome` None: magic amounts decide."""

    channel: Channel
    card: Card | None = None
    save: bool = True
    outcome: Outcome | None = None


@dataclass(slots=True)
class Refund:
    document: Json
    payment: Payment
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Transaction:
    """One row of GET /transactions; its status is read from the payment or refund it stands for."""

    id: str
    kind: str
    product: Payment | Refund
    created_at: datetime


@dataclass(slots=True)
class World:
    config: SimulatorConfig
    ids: Ids
    webhooks: WebhookQueue
    agenda: Agenda = field(default_factory=Agenda)
    customers: dict[str, Json] = field(default_factory=dict)
    customer_ids: dict[str, str] = field(default_factory=dict)  # by reference
    customer_calls: dict[str, tuple[datetime, bytes, str]] = field(default_factory=dict)  # by idempotency key
    sessions: dict[str, Session] = field(default_factory=dict)
    session_references: set[str] = field(default_factory=set)
    tokens: dict[str, Token] = field(default_factory=dict)
    requests: dict[str, PaymentRequest] = field(default_factory=dict)
    card_references: set[str] = field(default_factory=set)
    payments: dict[str, Payment] = field(default_factory=dict)
    refunds: dict[str, Refund] = field(default_factory=dict)
    refund_failure: str | None = None
    transactions: list[Transaction] = field(default_factory=list)
    transactions_by_reference: dict[str, list[Transaction]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[str, deque[Outcome]] = field(default_factory=lambda: defaultdict(deque))
    calls: Counter[tuple[str, int]] = field(default_factory=Counter)

    def take_fault(self, endpoint: str) -> Outcome | None:
        waiting = self.faults.get(endpoint) or self.faults.get("*")
        return waiting.popleft() if waiting else None

    def add_transaction(self, kind: str, product: Payment | Refund, now: datetime) -> None:
        row = Transaction(f"txn_{self.ids.uuid('')[1:]}", kind, product, now)
        self.transactions.append(row)
        reference = product.document.get("reference_id")
        if reference:
            self.transactions_by_reference[reference].append(row)


def touch(document: Json, now: datetime, **changes: object) -> None:
    document.update(changes)
    document["updated"] = iso(now)
