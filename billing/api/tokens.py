"""`billing.tokens`: saved payment methods."""

from __future__ import annotations

from billing.api.opening import Entries, Operations, read_one
from billing.charging import tokens
from billing.reading import lists
from billing.shapes import Token
from billing.store import models, queries
from billing.subscribing import catalog


class Tokens(Operations):
    def list(self, customer: str, *, limit: int | None = None, after: str | None = None) -> Entries[Token]:
        """The saved payment methods of a customer, the first to be charged on top. Raises NotFound."""
        return self._opened.shown(lists.list_tokens(self._opened.parts, customer), Token, limit, after)

    def refresh(self, name: str) -> Token:
        """Read the token (our id, or Xendit's) from Xendit and store what it says. Raises NotFound, GatewayError."""
        parts = self._opened.with_gateway()
        token = self._find(name)
        tokens.refresh_token(parts, token.payment_token_id)
        found = self._show(token)
        if found.unknown_since is not None:
            self._opened.warn(tokens.unknown_in_words(token))
        return found

    def cancel(self, name: str) -> Token:
        """Cancel the token at Xendit: it can never be charged again. Raises NotFound, Conflict, GatewayError."""
        parts = self._opened.with_gateway()
        token = self._find(name)
        tokens.cancel_token(parts, token.id)
        canceled = self._show(token)
        with parts.reading() as session:
            left = queries.without_token(session, token.customer_id)
        if left:
            self._opened.warn(
                f"no payment method is left for {', '.join(left)};"
                f" `billing session create {canceled.customer}` makes a link for another"
            )
        return canceled

    def unblock(self, name: str) -> Token:
        """Undo what keeps us from charging it: a block after a decline, a replacement, an unknown token. What Xendit
        itself has ended stays ended. Raises NotFound, Conflict."""
        with self._opened.parts.transaction() as session:
            token = catalog.find_token(session, name)
            undone = tokens.unblock(session, token, self._opened.parts.clock.now())
            session.flush()
            view = lists.show_token(session, token.id)
        self._opened.note(f"undone: {'; '.join(undone)}")
        return Token.model_validate(view)

    def prefer(self, name: str) -> Token:
        """Make it the first to be charged, for all of the customer's subscriptions. Raises NotFound, Conflict."""
        with self._opened.parts.transaction() as session:
            token = catalog.find_token(session, name)
            tokens.make_first(session, token, self._opened.parts.clock.now())
            session.flush()
            view = lists.show_token(session, token.id)
        return Token.model_validate(view)

    def _find(self, name: str) -> models.PaymentToken:
        with self._opened.parts.reading() as session:
            return catalog.find_token(session, name)

    def _show(self, token: models.PaymentToken) -> Token:
        return read_one(self._opened.parts, Token, lambda session: lists.show_token(session, token.id))
