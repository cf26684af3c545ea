"""`billing.subscriptions`: the standing agreements, and their pauses and ends; `subscribe` is how one begins.

What moves one (moves, payment sessions, and below them the rooms that charge) is imported by what moves one: reading is
the most frequent, and needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session as DatabaseSession

from billing.api import arguments
from billing.api.arguments import Via
from billing.api.opening import Entries, Opened, Operations, read_one
from billing.domain.gateway import SessionMode, SessionType
from billing.domain.lifecycle import SubscriptionStatus
from billing.domain.names import check_reference
from billing.errors import InvalidArgument
from billing.reading import lists, views
from billing.shapes import Subscribed, Subscription
from billing.store import models
from billing.subscribing import catalog

Move = Callable[[DatabaseSession, models.Subscription, datetime], None]


class Subscriptions(Operations):
    def list(
        self,
        *,
        status: str | None = None,
        customer: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Entries[Subscription]:
        """All subscriptions, the oldest first; those with this `status`, of this `customer`. Raises NotFound."""
        wanted = arguments.maybe_one_of("--status", SubscriptionStatus, status)
        found = lists.list_subscriptions(self._opened.parts, status=wanted, customer=customer)
        return self._opened.shown(found, Subscription, limit, after)

    def show(self, name: str) -> Subscription:
        """One subscription, by reference or id. Raises NotFound."""
        return read_one(
            self._opened.parts,
            Subscription,
            lambda session: views.show_subscription(session, catalog.find_subscription(session, name)),
        )

    def pause(self, name: str) -> Subscription:
        """Stop billing until it is resumed; planned retries end, too. Raises NotFound, IllegalTransition."""
        from billing.subscriptions import moves

        return self._move(name, moves.pause)

    def resume(self, name: str) -> Subscription:
        """Go on with the next period (after a pause), or release one that is on hold. Raises NotFound,
        IllegalTransition."""
        return self._move(name, _resume)

    def cancel(self, name: str, *, now: bool = False) -> Subscription:
        """Cancel at the end of the running period, or with `now` at once. A canceled one never comes back. Raises
        NotFound, IllegalTransition."""

        from billing.subscribing import session_results
        from billing.subscriptions import moves

        def move(session: DatabaseSession, subscription: models.Subscription, at: datetime) -> None:
            moves.cancel(session, subscription, at, at_once=now, reason="by request")

        canceled = self._move(name, move)
        if canceled.status == SubscriptionStatus.CANCELED and self._opened.settings.secret_key:
            session_results.cancel_open_sessions(self._opened.parts, canceled.id)
        return canceled

    def uncancel(self, name: str) -> Subscription:
        """Take back a cancellation planned for the end of the period. Raises NotFound, IllegalTransition."""
        return self._move(name, _uncancel)

    def _move(self, name: str, move: Move) -> Subscription:
        """Find, lock, move, show: one transaction."""
        from billing.subscriptions import moves

        now = self._opened.parts.clock.now()
        with self._opened.parts.transaction() as session:
            found = catalog.find_subscription(session, name)
            subscription = moves.lock_subscription(session, found.id)
            move(session, subscription, now)
            session.flush()
            view = views.show_subscription(session, subscription)
        return Subscription.model_validate(view)


def _resume(session: DatabaseSession, subscription: models.Subscription, now: datetime) -> None:
    from billing.subscriptions import moves

    moves.resume(session, subscription, session.get_one(models.Plan, subscription.plan_id), now)


def _uncancel(session: DatabaseSession, subscription: models.Subscription, now: datetime) -> None:
    from billing.subscriptions import moves

    moves.uncancel(session, subscription, session.get_one(models.Plan, subscription.plan_id), now)


# ------------------------------------------------------------------------------------------------ subscribing


def subscribe(
    opened: Opened,
    customer: str,
    plan: str,
    *,
    via: str | None,
    token: str | None,
    mode: str,
    start_at: datetime | None,
    reference: str | None,
    again: bool,
) -> Subscribed:
    """`Billing.subscribe`: with a page, or on a saved payment method."""
    if reference is not None:
        check_reference("subscription reference", reference)
    chosen_mode = arguments.gateway_mode(mode)
    start = arguments.maybe_instant("--start-at", start_at)
    if via is not None and token is None:
        chosen_via = SessionType(arguments.one_of("--via", Via, via).upper())
        return _with_a_page(opened, customer, plan, chosen_via, chosen_mode, start, reference, again=again)
    if token is not None and via is None:
        return _with_token(opened, customer, plan, token, start, reference, again=again)
    wrong = "--via and --token exclude each other" if via else "how does it begin?"
    raise InvalidArgument(f"{wrong}; give --via save, --via pay, or --token with a saved payment method")


def _with_a_page(
    opened: Opened,
    customer: str,
    plan: str,
    via: SessionType,
    mode: SessionMode,
    start_at: datetime | None,
    reference: str | None,
    *,
    again: bool,
) -> Subscribed:
    from billing.subscribing import payment_sessions

    parts = opened.with_gateway()
    opened.require_origins(mode)
    payer, wanted = _find(opened, customer, plan)
    subscription, row = payment_sessions.subscribe(
        parts, payer, wanted, via=via, mode=mode, start_at=start_at, reference=reference, again=again
    )
    opened.warn_of_missing_return_urls(mode)
    return _subscribed(subscription, payer, wanted, row)


def _with_token(
    opened: Opened,
    customer: str,
    plan: str,
    token: str,
    start_at: datetime | None,
    reference: str | None,
    *,
    again: bool,
) -> Subscribed:
    from billing.subscribing import payment_sessions

    payer, wanted = _find(opened, customer, plan)
    with opened.parts.reading() as session:
        saved = catalog.find_token(session, token)
    subscription = payment_sessions.subscribe_with_token(
        opened.parts, payer, wanted, saved, start_at=start_at, reference=reference, again=again
    )
    return _subscribed(subscription, payer, wanted, None)


def _find(opened: Opened, customer: str, plan: str) -> tuple[models.Customer, models.Plan]:
    with opened.parts.reading() as session:
        return catalog.find_customer(session, customer), catalog.find_plan(session, plan)


def _subscribed(
    subscription: models.Subscription, payer: models.Customer, plan: models.Plan, row: models.PaymentSession | None
) -> Subscribed:
    view = views.subscription_view(subscription, payer.reference, plan.code, subscription.payment_token_id)
    return Subscribed.model_validate(
        {"subscription": view, "session": None if row is None else views.session_view(row)}
    )
