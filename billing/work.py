"""The kinds of background work, and the one way to do each: in a dramatiq worker, or in this process without Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import date
from importlib.metadata import entry_points

import structlog

from billing.charging import look_up, refunds, send, tokens
from billing.domain.gateway import Lane
from billing.errors import Conflict, GatewayError, NotFound, ServiceUnavailable
from billing.inbox import apply
from billing.parts import Parts, Send, in_lane
from billing.runs import tick
from billing.settings import Settings
from billing.store.trouble import in_words
from billing.subscribing import session_results
from billing.xendit.webhook import read_event

EVENTS_AT_ONCE = 20


def work_on(parts: Parts, kind: str, *identities: str) -> None:
    """One unit of work, by kind and ids: several charges may be one. The same for a dramatiq worker and for
    `billing run` without Redis."""
    lane = tick.LANE_OF_KIND.get(kind, Lane.UPKEEP)
    with in_lane(lane):
        if kind in tick.LANE_OF_KIND:
            send.charge(parts, identities, lane)
            return
        for identity in identities:
            _follow(parts, kind, identity)


def _follow(parts: Parts, kind: str, identity: str) -> None:
    if kind != tick.EVENT:  # what has arrived is applied; nothing else is asked for by itself
        parts.refuse_a_copy()
    match kind:
        case tick.CHECK:
            look_up.check_attempt(parts, identity)
        case tick.EVENT:
            apply.apply_stored_event(parts, identity, read_event)
        case tick.SESSION_CHECK:
            _check_session(parts, identity)
        case tick.REFUND:
            refunds.follow_refund(parts, identity)
        case tick.TOKEN_CHECK:
            tokens.follow_token(parts, identity)
        case tick.DAY:
            _compare_day(parts, identity)
        case _:
            raise ValueError(f"no such kind of work: {kind}")


def work_on_and_log(parts: Parts, kind: str, *identities: str) -> None:
    """As `work_on`, for many at once: what fails is logged and stays due (its lease ends), the rest goes on (M3).

    Raises ServiceUnavailable when the database is away: then nothing else would work either.
    """
    log = structlog.get_logger()
    try:
        work_on(parts, kind, *identities)
    except ServiceUnavailable:
        raise
    except Exception as error:
        if (words := in_words(error)) is not None:
            raise ServiceUnavailable(words) from None
        log.exception("work.failed", kind=kind, ids=identities, error=str(error))


def units(kind: str, ids: Sequence[str], charges_at_once: int) -> Iterator[Sequence[str]]:
    """The ids of each unit of work: charges and events go in groups, everything else one by one."""
    size = charges_at_once if kind in tick.LANE_OF_KIND else EVENTS_AT_ONCE if kind == tick.EVENT else 1
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _check_session(parts: Parts, session_id: str) -> None:
    try:
        session_results.follow_session(parts, session_id)
    except (GatewayError, Conflict, NotFound) as error:
        structlog.get_logger().warning("session.check_failed", session=session_id, error=str(error))


def _compare_day(parts: Parts, day: str) -> None:
    log = structlog.get_logger()
    try:
        for found in look_up.differences_of_day(parts, date.fromisoformat(day)):
            why = found.explanation
            log.warning("reconcile.difference", day=day, kind=found.kind, payment=found.payment_id, why=why)
    except look_up.Interrupted:
        log.info("reconcile.day_interrupted", day=day)
    except (GatewayError, NotFound) as error:
        log.warning("reconcile.day_failed", day=day, error=str(error))


class InProcess:
    """`send` for a process without Redis: a pool of threads does the work."""

    def __init__(self, parts: Parts, threads: int) -> None:
        self._parts = replace(parts, stopping=threading.Event())
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="billing")
        self._days = ThreadPoolExecutor(max_workers=1, thread_name_prefix="billing-days")

    def __call__(self, kind: str, ids: Sequence[str]) -> None:
        """Returns when the work is done, so that claims never run ahead of it. Comparing days takes as long as it
        takes: nobody waits for that."""
        pool = self._days if kind == tick.DAY else self._pool
        begun = [
            pool.submit(copy_context().run, work_on_and_log, self._parts, kind, *unit)
            for unit in units(kind, ids, self._parts.rules.charges_at_once)
        ]
        if kind != tick.DAY:
            for future in begun:
                future.result()

    def close(self) -> None:
        """What has begun is finished, but not the comparison of a day; what waits stays due (Ctrl-C does not wait for
        a whole batch)."""
        self._parts.stopping.set()
        for pool in (self._pool, self._days):
            pool.shutdown(wait=True, cancel_futures=True)


def find_sender(settings: Settings) -> Send | None:
    """The workers' `send`, found through its entry point (only workers/ knows dramatiq); None without Redis."""
    if not settings.redis:
        return None
    for entry_point in entry_points(group="billing.send"):
        send: Callable[[str, Sequence[str]], None] = entry_point.load()
        return send
    return None
