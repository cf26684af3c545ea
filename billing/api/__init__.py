"""Everything this software does for people, as Python: `Billing` is the one list of operations.

    from billing import Billing

    with Billing.open() as billing:
        for subscription in billing.subscriptions.list(status="past_due"):
            print(subscription.reference, subscription.amount, subscription.next_billing_at)

Groups are the command line's nouns in the plural, methods its verbs, arguments its options with the same names and
defaults; one file of this folder per group, imported when the group is used: all of them take longer to import than
most operations run. What comes back are the models of billing/shapes.py. docs/scripting.md has
ten whole scripts.

An error (billing/errors.py) means that nothing was done; its text is the line that the command prints. What was done
and did not go well comes back all the same, and its `problem` is that line.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, overload

from billing.api.arguments import AmountGiven, Mode
from billing.api.opening import Opened, Operations, Say, build_quietly, note, warn

if TYPE_CHECKING:
    from billing.api.charging import Charging
    from billing.api.clock import Clock
    from billing.api.customers import Customers
    from billing.api.events import Events
    from billing.api.invoices import Invoices
    from billing.api.plans import Plans
    from billing.api.runs import Progress, Runs
    from billing.api.sessions import Sessions
    from billing.api.subscriptions import Subscriptions
    from billing.api.tokens import Tokens
    from billing.api.upkeep import Rows
    from billing.app import App
    from billing.settings import Settings
    from billing.shapes import (
        Adopted,
        Diagnosis,
        DryRun,
        Event,
        Explanation,
        Imported,
        Migrated,
        Reconciliation,
        RunReport,
        Subscribed,
    )

__all__ = ["Billing"]

Expected = str | Mapping[str, AmountGiven]
"""'IDR 50000000, PHP 10000' or {"IDR": "50000000", "PHP": "10000"}."""


class Billing(Operations):
    """One opened billing engine. Use it as a context manager, or `close()` it."""

    def __init__(
        self, app: App, *, warn: Say = warn, note: Say = note, close: Callable[[], None] = lambda: None
    ) -> None:
        """On an application that somebody else has built, and closes. `warn` and `note` take the lines that a command
        prints beside its result."""
        super().__init__(Opened(app, warn=warn, note=note))
        self._close = close

    @staticmethod
    def open(settings: Settings | None = None, *, warn: Say = warn, note: Say = note) -> Billing:
        """With these settings, else with those of the environment and `.env`. Connects to nothing yet.

        `warn` and `note` take the lines that a command prints beside its result; without them they go to Python's
        logger "billing", which shows warnings on stderr. Raises InvalidSetting.
        """
        from billing.settings import load_settings, require

        settings = load_settings() if settings is None else settings
        require(settings, "database_url")
        app = build_quietly(settings)
        return Billing(app, warn=warn, note=note, close=app.close)

    @property
    def settings(self) -> Settings:
        """Those it was opened with."""
        return self._opened.settings

    def close(self) -> None:
        """Close what was opened. A second time changes nothing."""
        if not self._opened.closed:
            self._opened.closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The groups ------------------------------------------------------------------------------------------------

    @cached_property
    def plans(self) -> Plans:
        """What is sold, at what price, and when it is billed."""
        from billing.api.plans import Plans

        return Plans(self._opened)

    @cached_property
    def customers(self) -> Customers:
        """Who pays."""
        from billing.api.customers import Customers

        return Customers(self._opened)

    @cached_property
    def subscriptions(self) -> Subscriptions:
        """The standing agreements, and their pauses and ends."""
        from billing.api.subscriptions import Subscriptions

        return Subscriptions(self._opened)

    @cached_property
    def sessions(self) -> Sessions:
        """Pages on which a customer saves a payment method or pays."""
        from billing.api.sessions import Sessions

        return Sessions(self._opened)

    @cached_property
    def tokens(self) -> Tokens:
        """Saved payment methods."""
        from billing.api.tokens import Tokens

        return Tokens(self._opened)

    @cached_property
    def invoices(self) -> Invoices:
        """What each period owes, with every attempt to collect it."""
        from billing.api.invoices import Invoices

        return Invoices(self._opened)

    @cached_property
    def runs(self) -> Runs:
        """The billing runs there are."""
        from billing.api.runs import Runs

        return Runs(self._opened)

    @cached_property
    def events(self) -> Events:
        """Stored webhook events."""
        from billing.api.events import Events

        return Events(self._opened)

    @cached_property
    def charging(self) -> Charging:
        """The stop of all charging."""
        from billing.api.charging import Charging

        return Charging(self._opened)

    @cached_property
    def clock(self) -> Clock:
        """The test clock."""
        from billing.api.clock import Clock

        return Clock(self._opened)

    # Subscribers ----------------------------------------------------------------------------------------------

    def subscribe(
        self,
        customer: str,
        plan: str,
        *,
        via: str | None = None,
        token: str | None = None,
        mode: str = Mode.PAYMENT_LINK,
        start_at: dt.datetime | None = None,
        reference: str | None = None,
        again: bool = False,
    ) -> Subscribed:
        """Subscribe a customer to a plan: `via="save"` or `"pay"` creates a payment session, through which it starts;
        with a saved payment method (`token`) it starts at once, and the next run charges the first period.

        Raises NotFound, Conflict (the customer has this plan already, unless `again`), InvalidInput, GatewayError.
        """
        from billing.api import subscriptions

        return subscriptions.subscribe(
            self._opened,
            customer,
            plan,
            via=via,
            token=token,
            mode=mode,
            start_at=start_at,
            reference=reference,
            again=again,
        )

    def explain(self, subscription: str) -> Explanation:
        """Everything that happened to a subscription, and why the next charge is when it is. Raises NotFound."""
        from billing.reading import explain, timeline
        from billing.shapes import Explanation
        from billing.subscribing import catalog

        parts = self._opened.parts
        with parts.reading() as session:
            found = catalog.find_subscription(session, subscription)
            read = timeline.read(session, found, parts.clock.now(), parts.rules)
        return Explanation.model_validate(explain.tell(read))

    def import_(
        self,
        file: Rows,
        *,
        dry_run: bool = False,
        verify: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Imported:
        """Bring in existing subscribers with existing payment tokens, from a file of JSON lines (`-` is stdin) or from
        lines. All or nothing per row, safe to repeat; `refused` says which rows and why, and is a `problem`.

        `verify` waits until Xendit was asked about each token, and refuses what it does not know or calls dead; without
        it that is done in the background, before the first charge. `progress` is told the lines done so
        far. Raises InvalidInput for a file that is not JSON lines, GatewayError.
        """
        from billing.api import upkeep

        return upkeep.import_(self._opened, file, dry_run=dry_run, verify=verify, progress=progress)

    # Billing --------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        *,
        at: dt.datetime | None = None,
        dry_run: Literal[False] = False,
        wait: bool = False,
        expect: Expected | None = None,
        progress: Progress | None = None,
    ) -> RunReport: ...

    @overload
    def run(
        self,
        *,
        at: dt.datetime | None = None,
        dry_run: Literal[True],
        wait: bool = False,
        expect: Expected | None = None,
        progress: Progress | None = None,
    ) -> DryRun: ...

    @overload
    def run(
        self,
        *,
        at: dt.datetime | None = None,
        dry_run: bool,
        wait: bool = False,
        expect: Expected | None = None,
        progress: Progress | None = None,
    ) -> RunReport | DryRun: ...

    def run(
        self,
        *,
        at: dt.datetime | None = None,
        dry_run: bool = False,
        wait: bool = False,
        expect: Expected | None = None,
        progress: Progress | None = None,
    ) -> RunReport | DryRun:
        """Open what is due and charge it. Safe to start twice at once, and as often as you like.

        Without Redis it does the work here and returns when nothing is due; with Redis workers do, and `wait` follows
        them. `dry_run` only says who would be charged. `at` needs it, or the test clock, which it moves forward.
        `expect` begins only if what is planned is about this much. `progress` is told how far it is.

        The report's `problem` says that charges did not leave or could not be made (all charging is stopped, a guard
        has stopped the run ...). Raises InvalidSetting, CopyOfDatabase, ServiceUnavailable.
        """
        from billing.api import runs

        if dry_run:
            return runs.dry_run(self._opened, at, expect)
        return runs.run(self._opened, at, expect, wait=wait, progress=progress)

    # Operations -----------------------------------------------------------------------------------------------

    def doctor(self, *, repair: bool = False) -> Diagnosis:
        """Check the invariants on the live database; with `repair` put right what can safely be put right. Checks that
        fail are a `problem`."""
        from billing.api import upkeep

        return upkeep.doctor(self._opened, repair=repair)

    def reconcile(
        self, *, date: dt.date | None = None, progress: Callable[[int, int], None] = lambda _done, _of: None
    ) -> Reconciliation:
        """Ask Xendit about every attempt whose end is not known; with `date` compare that day's money (UTC), too. Never
        sends a charge. Look-ups without an answer are a `problem`. Raises GatewayError."""
        from billing.api import upkeep

        return upkeep.reconcile(self._opened, date, progress)

    def replay(self, webhook_event: str) -> Event:
        """Apply a stored webhook event again; applying twice changes nothing. One that cannot be applied is a
        `problem`. Raises NotFound."""
        from billing.api import events

        return events.replay(self._opened, webhook_event)

    def migrate(self) -> Migrated:
        """Create the schema, or bring it up to date. Safe to repeat. Raises ServiceUnavailable, Conflict."""
        from billing.api import upkeep

        return upkeep.migrate(self._opened)

    def adopt(self) -> Adopted:
        """Say that this database is the one to charge from now on: a restored backup, or one that has moved."""
        from billing.api import upkeep

        return upkeep.adopt(self._opened)
