"""The webhooks on their way out: due times, retry ladder, and the faults a receiver has to survive.

Knows no URL and sends nothing: a driver asks for what is due, posts it, and reports the receiver's status.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from billing.sandbox.simulator.answers import Json, encode, iso

# From the first try: +15 min, 1 h, 3 h, 6 h, 12 h, 24 h; then Xendit gives up.
RETRY_LADDER = tuple(timedelta(minutes=minutes) for minutes in (15, 60, 180, 360, 720, 1440))
_JITTER_SECONDS = 5.0
_SUBJECT_IDS = ("payment_id", "payment_request_id", "payment_token_id", "payment_session_id", "id")


class EventStatus(StrEnum):
    QUEUED = "QUEUED"
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"
    LOST = "LOST"


@dataclass(slots=True)
class WebhookFaults:
    """Changed while running, through POST /_simulator/webhooks/config."""

    delay_seconds: float = 0
    duplicate_rate: float = 0
    loss_rate: float = 0
    reorder: bool = False
    without_payment_failure: bool = False
    paused: bool = False


@dataclass(slots=True)
class Event:
    webhook_id: str
    name: str
    payload: bytes  # data as it was when the event happened; the envelope is written per delivery
    subjects: frozenset[str]
    created_at: datetime
    status: EventStatus = EventStatus.QUEUED
    attempts: int = 0
    first_tried_at: datetime | None = None
    last_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    event: str
    body: bytes
    attempt: int
    webhook_id: str
    copy: bool = False  # a provider's duplicate: never retried


@dataclass(slots=True)
class WebhookQueue:
    business_id: str
    seed: int
    faults: WebhookFaults = field(default_factory=WebhookFaults)
    events: dict[str, Event] = field(default_factory=dict)
    statuses: Counter[tuple[str, EventStatus]] = field(default_factory=Counter)
    _due: list[tuple[datetime, int, Event, bool]] = field(default_factory=list)
    _sequence: int = 0  # keeps first in, first out among equal due times
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        # Apart from the ids' generator: switching a fault on must not change the ids of a seeded run.
        self._chance = random.Random(f"webhooks:{self.seed}")  # noqa: S311 - reproducible on purpose

    def emit(self, name: str, document: Json, now: datetime, *, lost: bool = False) -> None:
        if self.faults.without_payment_failure and name == "payment.failure":
            return
        subjects = frozenset(str(document[key]) for key in _SUBJECT_IDS if document.get(key))
        webhook_id = f"whk-{len(self.events):08d}-{self._chance.getrandbits(64):016x}"
        event = Event(webhook_id, name, encode(document), subjects, now)
        self.events[webhook_id] = event
        self.statuses[name, event.status] += 1
        if lost or self._happens(self.faults.loss_rate):
            self._mark(event, EventStatus.LOST)
            return
        self._push(event, self._departure(now))
        if self._happens(self.faults.duplicate_rate):
            self._push(event, self._departure(now), copy=True)

    def take_due(self, now: datetime, limit: int | None = None) -> list[Delivery]:
        deliveries: list[Delivery] = []
        while self._due and self._due[0][0] <= now and not self.faults.paused:
            if limit is not None and len(deliveries) >= limit:
                break
            _, _, event, copy = heapq.heappop(self._due)
            deliveries.append(self._delivery(event, now, copy=copy))
        return deliveries

    def settle(self, delivery: Delivery, answer: int | None, now: datetime) -> None:
        event = self.events[delivery.webhook_id]
        event.last_answer = answer
        if answer is not None and 200 <= answer < 300:  # noqa: PLR2004 - "any 2xx"
            self._mark(event, EventStatus.DELIVERED)
        elif not delivery.copy and event.status is EventStatus.QUEUED:
            self._retry_or_give_up(event, delivery.attempt, now)

    def resend(self, now: datetime, *, since: datetime | None = None, subject: str | None = None) -> int:
        """The dashboard's manual resend. Without a filter: whatever never arrived."""
        chosen = [event for event in self.events.values() if _chosen(event, since, subject)]
        for event in chosen:
            if event.status is not EventStatus.QUEUED:
                self._mark(event, EventStatus.QUEUED)
                event.attempts, event.first_tried_at = 0, None
                self._push(event, now)
        return len(chosen)

    def next_at(self) -> datetime | None:
        return self._due[0][0] if self._due and not self.faults.paused else None

    def _delivery(self, event: Event, now: datetime, *, copy: bool) -> Delivery:
        if not copy:
            event.attempts += 1
        event.first_tried_at = event.first_tried_at or now
        head = {
            "event": event.name,
            "business_id": self.business_id,
            "created": iso(now),
            "api_version": "v3",
        }
        body = encode(head)[:-1] + b',"data":' + event.payload + b"}"
        return Delivery(event.name, body, event.attempts, event.webhook_id, copy)

    def _retry_or_give_up(self, event: Event, attempt: int, now: datetime) -> None:
        if attempt > len(RETRY_LADDER):
            self._mark(event, EventStatus.GIVEN_UP)
            return
        step = RETRY_LADDER[attempt - 1]
        gap = step - (RETRY_LADDER[attempt - 2] if attempt > 1 else timedelta())
        # The gap is kept when the clock jumped past the step: a jump must not burn all retries in a second.
        self._push(event, max((event.first_tried_at or now) + step, now + gap))

    def _departure(self, now: datetime) -> datetime:
        seconds = self.faults.delay_seconds
        if self.faults.reorder:
            seconds += self._chance.uniform(0, _JITTER_SECONDS)
        return now + timedelta(seconds=seconds) if seconds else now

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._chance.random() < rate

    def _push(self, event: Event, due_at: datetime, *, copy: bool = False) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due_at, self._sequence, event, copy))

    def _mark(self, event: Event, status: EventStatus) -> None:
        self.statuses[event.name, event.status] -= 1
        self.statuses[event.name, status] += 1
        event.status = status


def _chosen(event: Event, since: datetime | None, subject: str | None) -> bool:
    if since is None and subject is None:
        return event.status in {EventStatus.LOST, EventStatus.GIVEN_UP}
    if since is not None and event.created_at < since:
        return False
    return subject is None or subject in event.subjects or subject == event.webhook_id
