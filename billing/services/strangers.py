"""Who answers our charges: Xendit, or something in its place. Told by charging after every answer.

A proxy or a firewall that answers for Xendit leaves each charge in doubt, which is looked up and costs a day. One is an
accident. Some in a row are a fault of the network or of a setting, and somebody should look: said once, in one line.
"""

from __future__ import annotations

import threading

import structlog

from billing.domain.gateway import ChargeReport
from billing.errors import GatewayError, NotSent, OutcomeUnknown

TELL_AFTER = 5  # in a row

log = structlog.get_logger()


class Strangers:
    """How many charges of this process in a row were answered by something that is not Xendit."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._lock = threading.Lock()

    def note(self, answer: ChargeReport | GatewayError) -> None:
        if isinstance(answer, NotSent) or (isinstance(answer, OutcomeUnknown) and answer.http_status is None):
            return  # nobody answered
        with self._lock:
            stranger = isinstance(answer, OutcomeUnknown) and answer.from_stranger
            self._in_a_row = self._in_a_row + 1 if stranger else 0
            tell = self._in_a_row == TELL_AFTER
        if tell:
            log.error(
                "charges.answered_by_a_stranger",
                in_a_row=TELL_AFTER,
                error=str(answer),
                check="BILLING_XENDIT_BASE_URL, and any proxy or firewall between this machine and Xendit",
            )
