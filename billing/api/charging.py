"""`billing.charging`: the stop of all charging: show it, make it, lift it."""

from __future__ import annotations

from billing import quota
from billing.api.opening import Operations, read_one
from billing.charging import parking
from billing.domain.names import LONGEST_TEXT, check_text
from billing.reading import lists
from billing.reading.views import instant
from billing.runs.report import channels_down
from billing.shapes import Charging as Stop
from billing.shapes import ChargingStanding
from billing.store import breaker, queries


class Charging(Operations):
    def show(self) -> ChargingStanding:
        """Whether charging is stopped, and why; and where the gateway has told us to wait or to go slower."""
        with self._opened.parts.reading() as session:
            found = quota.standing(session)
            view = lists.show_charging_stop(session) | {
                "paused": [{"endpoint": name, "until": instant(until)} for name, until in found.paused.items()],
                "learned_limits": [
                    {"endpoint": name, "requests_per_minute": limit} for name, limit in found.learned_limits.items()
                ],
                "channels_down": channels_down(session),
            }
        return ChargingStanding.model_validate(view)

    def stop(self, *, reason: str) -> Stop:
        """Charge nobody until `resume`. What is under way is still followed; nothing is lost. Raises InvalidInput."""
        reason = check_text("--reason", reason, longest=LONGEST_TEXT)
        parts = self._opened.parts
        with parts.transaction() as session:
            queries.stop_charging(session, f"by an operator: {reason}", parts.clock.now())
        return self._shown()

    def resume(self) -> Stop:
        """Charge again, after what stopped it has been put right. Endpoints that the gateway has closed are opened, the
        limits it has told are forgotten, and channels that were down are tried again."""
        parts = self._opened.parts
        with parts.transaction() as session:
            lifted = queries.lift_charging_stop(session)
            opened_again = quota.lift(session)
            channels = breaker.lift(session)
            queries.ask_unknown_tokens_now(session, parts.clock.now())
        for channel in channels:
            parking.let_go(parts, breaker.waits_for(channel))
        text = "Charging goes on with the next run or tick." if lifted else "Charging was not stopped."
        if opened_again:
            text += f" Pauses and limits of {opened_again} endpoint(s) are lifted."
        if channels:
            text += f" Tried again: {', '.join(channels)}."
        self._opened.note(text)
        return self._shown()

    def _shown(self) -> Stop:
        return read_one(self._opened.parts, Stop, lists.show_charging_stop)
