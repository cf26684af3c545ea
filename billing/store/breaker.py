"""The circuit breaker per channel code: when a wallet or a bank is down, its charges wait and others go on.

Some technical failures in a row open it. From then on attempts on that channel are parked before they begin, so they
spend neither quota nor retries; their time and their place stay. Now and then one of them is let through to see whether
the channel is back; any answer that is not a technical failure closes the breaker and releases them all.

Rows exist for channels in trouble only, so a run without trouble pays nothing for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing.store.clock import uptime
from billing.store.engine import Sessions
from billing.store.models import ChannelBreaker, ChargeAttempt

OPENS_AFTER = 5  # technical failures in a row
IN_A_ROW = timedelta(minutes=10)  # failures further apart than this are not
FIRST_PROBE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)  # between two probes
DOUBLINGS = 5  # reach it
LOOK_AGAIN_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trouble:
    """A channel that fails. Open once `probe_at` is set."""

    channel_code: str
    reason: str
    probe_at: datetime | None

    def waits(self) -> str:
        at = f"; the next charge is tried at {self.probe_at.isoformat(timespec='seconds')}" if self.probe_at else ""
        lift = "; `billing charging resume` tries all of them now"
        return f"waits for {self.channel_code}, which is down ({self.reason}){at}{lift if at else ''}"


def waits_for(channel_code: str) -> str:
    return f"channel:{channel_code}"


class Breakers:
    """What this process knows of channels in trouble: asked again every second, and after its own changes."""

    def __init__(self) -> None:
        self._known: dict[str, Trouble] = {}
        self._good_until = 0.0

    def known(self, sessions: Sessions) -> dict[str, Trouble]:
        if uptime() >= self._good_until:
            with sessions() as session:
                rows = session.execute(
                    select(ChannelBreaker.channel_code, ChannelBreaker.reason, ChannelBreaker.probe_at)
                ).all()
                session.commit()
            self._known = {row[0]: Trouble(*row) for row in rows}
            self._good_until = uptime() + LOOK_AGAIN_SECONDS
        return self._known

    def forget(self) -> None:
        self._good_until = 0.0


def note_failure(session: Session, channel_code: str, reason: str, now: datetime, *, opens: bool = False) -> None:
    """One more technical failure. `opens`: the channel itself told us to wait, no need to count."""
    row = session.get(ChannelBreaker, channel_code, with_for_update=True, populate_existing=True)
    if row is None:
        first = insert(ChannelBreaker).values(channel_code=channel_code, failures=0, reason=reason, failed_at=now)
        session.execute(first.on_conflict_do_nothing())
        row = session.get_one(ChannelBreaker, channel_code, with_for_update=True, populate_existing=True)
    row.failures = row.failures + 1 if now - row.failed_at <= IN_A_ROW else 1
    row.failed_at, row.reason = now, reason
    if row.opened_at is None and (opens or row.failures >= OPENS_AFTER):
        row.opened_at, row.probe_at = now, now + FIRST_PROBE
        log.warning("channel.down", channel=channel_code, reason=reason)


def note_answer(session: Session, channel_code: str) -> None:
    """The channel has answered, be it with a decline: it is back. The caller lets go what waited for it."""
    session.execute(delete(ChannelBreaker).where(ChannelBreaker.channel_code == channel_code))


def lift(session: Session) -> list[str]:
    """By hand: every channel counts as up. Returns those that were down; the caller lets go what waited for them."""
    gone = session.execute(delete(ChannelBreaker).returning(ChannelBreaker.channel_code, ChannelBreaker.opened_at))
    return sorted(channel for channel, opened_at in gone if opened_at is not None)


def take_probe(session: Session, trouble: Trouble, now: datetime) -> bool:
    """Whether this charge may go out to see if the channel is back: one may, then nobody until the next time."""
    if trouble.probe_at is None:
        return True
    if trouble.probe_at > now:
        return False
    row = session.get(ChannelBreaker, trouble.channel_code, with_for_update=True, populate_existing=True)
    if row is None:
        return True
    if row.probe_at is None or row.probe_at > now:
        return False
    row.probes += 1
    row.probe_at = now + min(FIRST_PROBE * 2 ** min(row.probes, DOUBLINGS), LONGEST_PAUSE)
    return True


def release_probes(session: Session, now: datetime) -> None:
    """The oldest attempt behind every breaker whose time for a probe has come; begin lets one of them through."""
    due = select(ChannelBreaker.channel_code).where(ChannelBreaker.probe_at <= now)
    for channel_code in session.scalars(due):
        oldest = (
            select(ChargeAttempt.id)
            .where(ChargeAttempt.parked_by == waits_for(channel_code))
            .order_by(ChargeAttempt.scheduled_at)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        session.execute(
            update(ChargeAttempt)
            .where(ChargeAttempt.id == oldest)
            .values(parked_by=None, error=None)
            .execution_options(synchronize_session=False)
        )
