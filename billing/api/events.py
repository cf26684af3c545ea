"""`billing.events`: stored webhook events; `replay` applies one again."""

from __future__ import annotations

from billing.api import arguments
from billing.api.opening import Entries, Opened, Operations, read_one
from billing.domain.lifecycle import EventState
from billing.inbox import apply
from billing.reading import lists, views
from billing.shapes import Event
from billing.subscribing import catalog
from billing.xendit.webhook import read_event


class Events(Operations):
    def list(self, *, state: str | None = None, limit: int | None = None, after: str | None = None) -> Entries[Event]:
        """Stored webhook events, the newest first; those in this `state`."""
        wanted = arguments.maybe_one_of("--state", EventState, state)
        return self._opened.shown(lists.list_events(self._opened.parts, state=wanted), Event, limit, after)


def replay(opened: Opened, webhook_event: str) -> Event:
    """`Billing.replay`."""
    parts = opened.parts
    with parts.reading() as session:
        event = catalog.find_event(session, webhook_event)
    apply.apply_stored_event(parts, event.id, read_event, again=True)
    found = read_one(parts, Event, lambda session: views.event_view(catalog.find_event(session, event.id)))
    if found.state == EventState.PARKED or (found.state == EventState.APPLIED and found.error):
        found.told(f"event {found.id} could not be applied: {found.error}")
    if found.state == EventState.UNMATCHED:
        opened.warn("nothing here belongs to this event yet; it is tried again by itself")
    return found
