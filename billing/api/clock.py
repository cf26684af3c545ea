"""`billing.clock`: the test clock, one for every process on this database. Refused without BILLING_TEST_CLOCK=true."""

from __future__ import annotations

from datetime import datetime, timedelta

from billing.api import arguments
from billing.api.opening import Operations
from billing.errors import InvalidArgument, InvalidInput
from billing.parts import Parts
from billing.shapes import Now
from billing.store.clock import advance_test_clock, require_test_clock, set_test_clock


class Clock(Operations):
    def show(self) -> Now:
        """What time it is for billing."""
        return Now(now=self._parts().clock.now())

    def set(self, to: datetime) -> Now:
        """Set the test clock, forwards or backwards; from there it runs on at its normal pace."""
        parts = self._parts()
        target = arguments.instant("the time", to)
        with parts.transaction() as session:
            set_test_clock(session, target)
        return self.show()

    def advance(self, by: timedelta) -> Now:
        """Move the test clock forward."""
        parts = self._parts()
        if by < timedelta():
            raise InvalidArgument(f"{by} is no way forward; `billing clock set` goes back")
        with parts.transaction() as session:
            try:
                beyond = (parts.clock.now() + by).year > arguments.LAST_YEAR
            except OverflowError:
                beyond = True
            if beyond:
                raise InvalidInput(f"that is beyond the year {arguments.LAST_YEAR}; `billing clock set` goes back")
            advance_test_clock(session, by)
        return self.show()

    def _parts(self) -> Parts:
        require_test_clock(self._opened.settings.test_clock)
        return self._opened.parts
