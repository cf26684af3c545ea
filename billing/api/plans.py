"""`billing.plans`: what is sold, at what price, and when it is billed."""

from __future__ import annotations

from billing.api import arguments
from billing.api.arguments import AmountGiven
from billing.api.opening import Entries, Operations, read_one
from billing.domain.catch_up import CatchUp
from billing.domain.dunning import DEFAULT_POLICY
from billing.reading import lists, views
from billing.shapes import Plan
from billing.subscribing import catalog


class Plans(Operations):
    def create(
        self,
        code: str,
        *,
        name: str,
        amount: AmountGiven,
        currency: str,
        every: str | None = None,
        cron: str | None = None,
        timezone: str = "Asia/Jakarta",
        trial_days: int = 0,
        cycles: int | None = None,
        catch_up: str = CatchUp.ALL,
        dunning: str = DEFAULT_POLICY,
    ) -> Plan:
        """Create a plan, billed either `every` so often ("month", "2:week") or by a `cron` line.

        Raises InvalidInput for a bad value, Conflict for a code in use.
        """
        schedule = arguments.schedule(every, cron)
        chosen = arguments.one_of("--catch-up", CatchUp, catch_up)
        with self._opened.parts.transaction() as session:
            plan = catalog.create_plan(
                session,
                code=code,
                name=name,
                amount=arguments.amount_text(amount),
                currency=currency,
                schedule=schedule,
                timezone=timezone,
                trial_days=trial_days,
                cycles=cycles,
                catch_up=chosen,
                dunning=dunning,
                now=self._opened.parts.clock.now(),
            )
            view = views.plan_view(plan)
        return Plan.model_validate(view)

    def list(self, *, limit: int | None = None, after: str | None = None) -> Entries[Plan]:
        """All plans, by their codes."""
        return self._opened.shown(lists.list_plans(self._opened.parts), Plan, limit, after)

    def show(self, code: str) -> Plan:
        """One plan, by code or id. Raises NotFound."""
        return read_one(self._opened.parts, Plan, lambda session: views.plan_view(catalog.find_plan(session, code)))
