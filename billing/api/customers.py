"""`billing.customers`: who pays."""

from __future__ import annotations

from billing.api.opening import Entries, Operations, read_one
from billing.errors import InvalidArgument
from billing.reading import lists, views
from billing.shapes import Customer
from billing.subscribing import catalog


class Customers(Operations):
    def create(
        self,
        reference: str,
        *,
        name: str,
        email: str,
        country: str,
        mobile: str | None = None,
        timezone: str | None = None,
    ) -> Customer:
        """Create a customer here; Xendit learns of them with the first payment session. Without `timezone` it is that
        of the country's capital.

        Raises InvalidInput for a bad value, Conflict for a reference in use.
        """
        with self._opened.parts.transaction() as session:
            customer = catalog.create_customer(
                session,
                reference=reference,
                name=name,
                email=email,
                country=country,
                mobile=mobile,
                timezone=timezone,
                now=self._opened.parts.clock.now(),
            )
            view = views.show_customer(session, customer)
        return Customer.model_validate(view)

    def update(
        self,
        reference: str,
        *,
        name: str | None = None,
        email: str | None = None,
        country: str | None = None,
        mobile: str | None = None,
        timezone: str | None = None,
    ) -> Customer:
        """Change what is given, and nothing else. Subscriptions keep the time zone they began with.

        Raises NotFound; InvalidInput for a bad value or when nothing is given.
        """
        if all(value is None for value in (name, email, country, mobile, timezone)):
            raise InvalidArgument("nothing to change: give --name, --email, --country, --mobile or --timezone")
        with self._opened.parts.transaction() as session:
            customer = catalog.update_customer(
                session,
                catalog.find_customer(session, reference),
                name=name,
                email=email,
                country=country,
                mobile=mobile,
                timezone=timezone,
            )
            view = views.show_customer(session, customer)
        changed = Customer.model_validate(view)
        if changed.xendit_customer_id is not None and (name, email, mobile) != (None, None, None):
            self._opened.note(
                f"at Xendit, {changed.xendit_customer_id} keeps the name, mail and mobile number it was made with"
            )
        return changed

    def list(self, *, limit: int | None = None, after: str | None = None) -> Entries[Customer]:
        """All customers with their saved payment methods, by their references."""
        return self._opened.shown(lists.list_customers(self._opened.parts), Customer, limit, after)

    def show(self, reference: str) -> Customer:
        """One customer, by reference, id or Xendit's id. Raises NotFound."""
        return read_one(
            self._opened.parts,
            Customer,
            lambda session: views.show_customer(session, catalog.find_customer(session, reference)),
        )
