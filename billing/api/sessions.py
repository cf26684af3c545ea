"""`billing.sessions`: Xendit-hosted (or embedded) pages on which a customer saves a payment method or pays."""

from __future__ import annotations

from billing.api import arguments
from billing.api.arguments import Mode, Via
from billing.api.opening import Entries, Operations, read_one
from billing.domain.gateway import SessionType
from billing.errors import InvalidArgument
from billing.reading import lists, views
from billing.shapes import Session
from billing.subscribing import catalog, payment_sessions, session_results


class Sessions(Operations):
    def create(
        self,
        customer: str,
        *,
        mode: str = Mode.PAYMENT_LINK,
        subscription: str | None = None,
        via: str = Via.SAVE,
    ) -> Session:
        """Make a link (or form) through which a customer adds a payment method; with `subscription` one that starts
        this incomplete subscription again, by saving only or by paying the first period (`via="pay"`).

        Raises NotFound, Conflict, GatewayError.
        """
        chosen = arguments.gateway_mode(mode)
        session_type = SessionType(arguments.one_of("--via", Via, via).upper())
        parts = self._opened.with_gateway()
        self._opened.require_origins(chosen)
        with parts.reading() as session:
            payer = catalog.find_customer(session, customer)
            started = catalog.find_subscription(session, subscription) if subscription else None
        if started is not None and started.customer_id != payer.id:
            raise InvalidArgument(f"subscription {subscription} belongs to another customer")
        row = payment_sessions.open_session(parts, payer, mode=chosen, subscription=started, via=session_type)
        self._opened.warn_of_missing_return_urls(chosen)
        return Session.model_validate(views.session_view(row))

    def list(
        self,
        *,
        customer: str | None = None,
        subscription: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Entries[Session]:
        """Payment sessions, the oldest first; of this `customer`, of this `subscription`. Raises NotFound."""
        found = lists.list_sessions(self._opened.parts, subscription=subscription, customer=customer)
        return self._opened.shown(found, Session, limit, after)

    def show(self, name: str) -> Session:
        """One payment session as we know it, by our id or Xendit's; `refresh` asks Xendit. Raises NotFound."""
        return read_one(
            self._opened.parts, Session, lambda session: views.session_view(catalog.find_session(session, name))
        )

    def refresh(self, name: str) -> Session:
        """Read the session from Xendit and apply what it says, as its webhook would. Raises NotFound, GatewayError."""
        parts = self._opened.with_gateway()
        return Session.model_validate(views.session_view(session_results.refresh_session(parts, self._id(name))))

    def cancel(self, name: str) -> Session:
        """End the session at Xendit: nobody can pay through its link any more. Raises NotFound, Conflict,
        GatewayError."""
        parts = self._opened.with_gateway()
        return Session.model_validate(views.session_view(session_results.cancel_session(parts, self._id(name))))

    def _id(self, name: str) -> str:
        with self._opened.parts.reading() as session:
            return catalog.find_session(session, name).id
