"""How deliveries get into the database when many come at once. Used by billing/web.py, on its event loop.

Deliveries that arrive while a transaction runs go into the next one together: each is answered after its commit, and
a burst costs a few commits. What a capture's event says the answer to our call has usually said before: a moment later
those are marked as applied, many in one statement, and only what brings news is handed on to be applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from billing.domain.gateway import ChargeReport, ChargeStatus, GatewayEvent
from billing.inbox import apply
from billing.inbox.apply import Confirmation
from billing.parts import Parts
from billing.store.trouble import is_databases_trouble, repeat_conflicts

MOST_AT_ONCE = 200
# Until then the answer to our own call is expected to be settled; a few times what that takes.
CONFIRM_AFTER_SECONDS = 0.25

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Delivery:
    event: GatewayEvent
    payload: Mapping[str, Any]
    stored: asyncio.Future[str | None]


class Inbox:
    """`hand_on` is given the ids of stored events that are to be applied; it is called in a thread. Without it nothing
    may be handed to `follow`."""

    def __init__(self, parts: Parts, hand_on: Callable[[Sequence[str]], None] | None) -> None:
        self._parts = parts
        self._hand_on = hand_on
        self._waiting: list[_Delivery] = []
        self._writing: asyncio.Task[None] | None = None
        self._young: list[Confirmation] = []
        self._confirming: asyncio.Task[None] | None = None
        self._handing_on: set[asyncio.Task[None]] = set()

    async def store(self, event: GatewayEvent, payload: Mapping[str, Any]) -> str | None:
        """Returns when it is committed: the id of a new event that is to be applied, else None. Raises
        SQLAlchemyError: then it is to be sent again."""
        stored: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Delivery(event, payload, stored))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await stored

    def follow(self, event_id: str, event: GatewayEvent) -> None:
        """Have a new event applied; what probably brings no news, a moment later and with others."""
        confirmation = _confirmation(event_id, event)
        if confirmation is None:
            self._begin(asyncio.to_thread(self._pass, [event_id]))
            return
        self._young.append(confirmation)
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm())

    async def close(self) -> None:
        """What is on its way is finished; what is only stored, the scheduler takes up."""
        for task in (self._writing, self._confirming):
            if task is not None:
                await task
        await asyncio.gather(*self._handing_on)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._handing_on.add(task)
        task.add_done_callback(self._handing_on.discard)

    # ---------------------------------------------------------------------------------------------- storing

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            try:
                results: Sequence[str | Exception | None] = await asyncio.to_thread(self._store_all, batch)
            except Exception as error:
                # A bug of ours: whoever sent these is told now, and sends them again.
                results = [error for _ in batch]
                log.exception("webhook.not_stored", events=len(batch))
            for delivery, result in zip(batch, results, strict=True):
                if delivery.stored.done():
                    continue  # whoever sent it is gone
                if isinstance(result, Exception):
                    delivery.stored.set_exception(result)
                else:
                    delivery.stored.set_result(result)

    def _store_all(self, batch: Sequence[_Delivery]) -> Sequence[str | SQLAlchemyError | None]:
        try:
            return repeat_conflicts(partial(self._store, batch))
        except DBAPIError as error:
            if len(batch) == 1 or is_databases_trouble(error):
                return [error] * len(batch)
            # One of them cannot be stored, and the others must not suffer for it.
            return [self._store_all([delivery])[0] for delivery in batch]
        except SQLAlchemyError as error:
            return [error] * len(batch)

    def _store(self, batch: Sequence[_Delivery]) -> Sequence[str | None]:
        deliveries = [(delivery.event, delivery.payload) for delivery in batch]
        with self._parts.transaction() as session:
            return apply.record_events(session, deliveries, self._parts.clock.now())

    # --------------------------------------------------------------------------------------------- applying

    async def _confirm(self) -> None:
        old: list[Confirmation] = []
        while old or self._young:
            await asyncio.sleep(CONFIRM_AFTER_SECONDS)
            if old:
                await asyncio.to_thread(self._confirm_all, old)
            old, self._young = self._young, []

    def _confirm_all(self, confirmations: Sequence[Confirmation]) -> None:
        try:
            news = apply.confirm_events(self._parts, confirmations)
        except SQLAlchemyError as error:
            log.warning("webhook.not_applied_yet", events=len(confirmations), error=error.__class__.__name__)
            return
        if news:
            self._pass(news)

    def _pass(self, event_ids: Sequence[str]) -> None:
        assert self._hand_on is not None  # noqa: S101 - said above
        self._hand_on(event_ids)


def _confirmation(event_id: str, event: GatewayEvent) -> Confirmation | None:
    report = event.report
    if not isinstance(report, ChargeReport) or report.status != ChargeStatus.SUCCEEDED or report.payment_id is None:
        return None
    captured = report.amount if report.amount_is_captured else None
    return Confirmation(event_id, report.payment_id, captured)
