"""The line to Xendit: everything that can happen to a request on its way, and what must never travel on it.

An httpx transport, so that the client of billing/xendit is the real one down to its last error. What arrives at the
simulator is checked against what PostgreSQL has committed by then and against what arrived before. `Gateway` is that
client on a machine on which, for a while, none can be made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import simplejson
from sqlalchemy import Engine, text

from billing.domain.gateway import ChargeReport, ChargeRequest
from billing.errors import NotSent
from billing.runs.tick import KIND_OF_LANE
from billing.sandbox.simulation.stage import Stage
from billing.sandbox.simulator import Simulator, SimulatorTransport
from billing.xendit.client import XenditGateway

CHARGES = "/v3/payment_requests"
TOKENS = "/v3/payment_tokens/"
CHARGE_KINDS = tuple(KIND_OF_LANE.values())  # how work that charges is called
TIMEOUT_SECONDS = 30
LONGEST_WITHOUT_CLIENT = 2 * 3600  # seconds
ASKED_WITHIN = timedelta(hours=3)  # a retry asks about the try before it, and may then stand still for a while
ERRORS = (500, 502, 503, 504)
GARBAGE = b"<html>upstream connect error</html>"
# What a proxy or a firewall answers in Xendit's place: (status, headers, body).
STRANGERS: tuple[tuple[int, dict[str, str], bytes], ...] = (
    (403, {"content-type": "text/html"}, b"<html>blocked by the firewall</html>"),
    (403, {}, b""),
    (404, {"content-type": "text/html"}, b"<html>no such page</html>"),
    (302, {"location": "https://proxy.example/sign-in"}, b""),
)
RESETS = ("20", "20", "0", "-5", "1795737600", "soon", "86400")  # Rate-Limit-Reset, right and mad
UNSENDABLE_IN = frozenset({"scheduled", "succeeded", "failed", "canceled", "pending", "requires_action"})

_ATTEMPT = text(
    "SELECT a.status, a.amount_minor, a.invoice_id, i.amount_minor - i.amount_paid_minor AS owed, i.period_start"
    " FROM charge_attempts a JOIN invoices i ON i.id = a.invoice_id WHERE a.reference_id = :reference"
)


# Another token of the customer that could be charged right away; none when a person has named the one that is asked of.
_BETTER_TOKEN = text("""
    SELECT other.id FROM payment_tokens asked JOIN payment_tokens other ON other.customer_id = asked.customer_id
    WHERE asked.payment_token_id = :token AND asked.status = 'PENDING'
        AND other.status = 'ACTIVE' AND other.blocked_reason IS NULL
        AND NOT EXISTS (
            SELECT 1 FROM charge_attempts a WHERE a.status = 'failed'
                AND (a.payment_token_id = other.id OR a.fingerprint = other.fingerprint))
        AND NOT EXISTS (
            SELECT 1 FROM charge_attempts a WHERE a.status = 'scheduled' AND a.payment_token_id = asked.id)
    LIMIT 1
""")


@dataclass(slots=True)
class Sent:
    """A charge that reached Xendit."""

    reference: str
    request: dict[str, Any]  # the simulator's own document: always as it is now
    failed_once: bool = False  # Xendit said "failed" before it said anything else


@dataclass(slots=True)
class Seen:
    """What has arrived, by invoice; and the references whose outcome we could not know."""

    by_invoice: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    unknown: set[str] = field(default_factory=set)


class Line(httpx.BaseTransport):
    def __init__(self, stage: Stage, simulator: Simulator, engine: Engine) -> None:
        self._stage, self._simulator = stage, simulator
        self._inner = SimulatorTransport(simulator)
        self._database = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.seen = Seen()
        self.answered: set[str] = set()  # references whose answer has arrived here
        self.tokens_unknown_until: datetime | None = None  # under the key of another account
        self.key_refused_at: datetime | None = None
        self.no_client_until: datetime | None = None
        self._prepared: set[str] = set()  # references whose request was ready before they were submitted
        self.asks_customer: Callable[[str], None] = lambda _request_id: None

    def prepare(self, reference: str) -> None:
        """Everything that a charge needs of this machine. Raises NotSent."""
        self._check_client()
        self._prepared.add(reference)

    def check_prepared(self, reference: str) -> None:
        """Asked when a charge is made. Raises NotSent; and the play ends if nobody had looked before it was begun."""
        if reference in self._prepared:
            self._prepared.remove(reference)
            return
        try:
            self._check_client()
        except NotSent:
            self._stage.unsafe(f"charge {reference} is submitted though it cannot be sent")

    def _check_client(self) -> None:
        stage = self._stage
        if self.no_client_until is None or self.no_client_until <= stage.now:
            if not stage.fate.happens("no_client"):
                return
            self.no_client_until = stage.now + timedelta(seconds=stage.fate.between(60, LONGEST_WITHOUT_CLIENT))
            stage.note(f"no HTTP client can be made until {self.no_client_until:%d %H:%M}")
        raise NotSent("no HTTP client can be made")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        stage, fate = self._stage, self._stage.fate
        stage.check_alive()
        stage.check_no_transaction()
        what = f"{request.method} {request.url.path}"
        is_charge = request.method == "POST" and request.url.path == CHARGES
        self._check_question(request)
        stage.pause(f"before {what}")
        if fate.happens("refused_connection"):
            stage.note(f"{what}: connection refused")
            raise httpx.ConnectError("connection refused", request=request)
        if fate.happens("too_many_requests"):
            stage.note(f"{what}: 429")
            reset = {"rate-limit-reset": fate.choose(RESETS)}
            return httpx.Response(429, headers=reset, json=_RATE_LIMITED, request=request)
        if is_charge and fate.happens("refused_key"):
            stage.note(f"{what}: 401 INVALID_API_KEY")
            self.key_refused_at = stage.now
            return httpx.Response(401, json=_KEY_REFUSED, request=request)
        if fate.happens("stranger_before"):
            self._outcome_unknown(request, is_charge)
            return self._stranger(request, f"{what}: nothing done")
        if self._is_of_an_unknown_token(request):
            stage.note(f"{what}: 404, not a token of this account")
            return httpx.Response(404, json=_NOT_KNOWN, request=request)
        if fate.happens("error_before"):
            status = fate.choose(ERRORS)
            stage.note(f"{what}: {status}, nothing done")
            self._outcome_unknown(request, is_charge)
            return httpx.Response(status, json=_SERVER_ERROR, request=request)
        if fate.happens("lost_before"):
            self._outcome_unknown(request, is_charge)
            self._no_answer(request, f"{what}: lost on the way")
        response = self._arrive(request, what, is_charge)
        if fate.happens("lost_after"):
            self._outcome_unknown(request, is_charge)
            self._no_answer(request, f"{what}: done ({response.status_code}), the answer is lost")
        if fate.happens("stranger_after"):
            self._outcome_unknown(request, is_charge)
            return self._stranger(request, f"{what}: done ({response.status_code})")
        if fate.happens("error_after"):
            self._outcome_unknown(request, is_charge)
            stage.note(f"{what}: done ({response.status_code}), the answer is unreadable")
            status = fate.choose((200, *ERRORS))
            return httpx.Response(status, content=GARBAGE, request=request)
        if fate.happens("slow_answer"):
            stage.sleep(fate.between(1, 3600), f"while the answer to {what} trickles in")
        stage.pause(f"with the answer to {what}")
        if is_charge:
            self.answered.add(simplejson.loads(request.read())["reference_id"])
        return response

    def _stranger(self, request: httpx.Request, what: str) -> httpx.Response:
        """An answer, and not Xendit's."""
        status, headers, body = self._stage.fate.choose(STRANGERS)
        self._stage.note(f"{what}, and somebody on the way answers {status} {body.decode()!r}")
        return httpx.Response(status, headers=headers, content=body, request=request)

    def _is_of_an_unknown_token(self, request: httpx.Request) -> bool:
        until = self.tokens_unknown_until
        is_token = request.method == "GET" and request.url.path.startswith(TOKENS)
        return is_token and until is not None and self._stage.now < until

    def _no_answer(self, request: httpx.Request, what: str) -> None:
        self._stage.note(what)
        if self._stage.fate.coin():
            raise httpx.ReadError("connection reset", request=request)
        self._stage.sleep(TIMEOUT_SECONDS, "until the time-out")
        raise httpx.ReadTimeout("no answer", request=request)

    def _outcome_unknown(self, request: httpx.Request, is_charge: bool) -> None:
        if is_charge:
            self.seen.unknown.add(simplejson.loads(request.read())["reference_id"])

    def _check_question(self, request: httpx.Request) -> None:
        """A charge does not wait for a token nobody has seen ACTIVE while there is another that is."""
        if request.method != "GET" or not request.url.path.startswith(TOKENS):
            return
        if not self._stage.work.startswith(CHARGE_KINDS):
            return
        token = request.url.path.removeprefix(TOKENS)
        with self._database.connect() as connection:
            better = connection.scalar(_BETTER_TOKEN, {"token": token})
        if better is not None:
            self._stage.unsafe(f"a charge asks about a token that is not verified, though {better} is ACTIVE")

    # At Xendit ---------------------------------------------------------------------------------------------

    def _arrive(self, request: httpx.Request, what: str, is_charge: bool) -> httpx.Response:
        before = len(self._simulator.world.requests)
        body = simplejson.loads(request.read()) if is_charge else {}
        if is_charge:
            self._check_charge(body)
        try:
            response = self._inner.handle_request(request)
        except httpx.ReadTimeout:
            self._outcome_unknown(request, is_charge)
            self._remember(body, before)
            self._stage.note(f"{what}: done, no answer")
            raise
        self._remember(body, before)
        if is_charge:
            said = response.json()
            result = said.get("status") or said.get("error_code")
            self._stage.note(f"{what} {body['reference_id']}: {response.status_code} {result}")
        return response

    def _remember(self, body: dict[str, Any], before: int) -> None:
        requests = self._simulator.world.requests
        if body and len(requests) > before:
            document = next(reversed(requests.values())).document
            sent = Sent(body["reference_id"], document, failed_once=document["status"] == "FAILED")
            self.seen.by_invoice[body["metadata"]["invoice_id"]].append(sent)
            if document["status"] == "REQUIRES_ACTION":
                self.asks_customer(document["payment_request_id"])

    def _check_charge(self, body: dict[str, Any]) -> None:
        """Before Xendit looks at it: what was committed here, and what has arrived there for the same invoice."""
        reference = body["reference_id"]
        with self._database.connect() as connection:
            row = connection.execute(_ATTEMPT, {"reference": reference}).first()
        if row is None:
            self._stage.unsafe(f"charge {reference} was sent before it was committed")
        if row.status in UNSENDABLE_IN:
            self._stage.unsafe(f"charge {reference} arrives while its attempt is {row.status}")
        if row.period_start > self._stage.now + self._slack:
            self._stage.unsafe(f"charge {reference} arrives before its period begins")
        if row.amount_minor != row.owed and not self.seen.by_invoice[row.invoice_id]:
            self._stage.unsafe(f"charge {reference} is of {row.amount_minor}, owed are {row.owed}")
        if reference in self.seen.unknown:
            self._stage.unsafe(f"charge {reference} is sent again though nobody knows what became of it")
        for earlier in self.seen.by_invoice[row.invoice_id]:
            status = earlier.request["status"]
            if earlier.reference == reference:
                self._stage.unsafe(f"charge {reference} arrives a second time")
            if status in ("PENDING", "REQUIRES_ACTION", "ACCEPTING_PAYMENTS"):
                self._stage.unsafe(f"charge {reference} arrives while {earlier.reference} is {status}")
            if status == "SUCCEEDED" and self._paid_in_full(earlier) and not self._too_fresh_to_know(earlier):
                self._stage.unsafe(f"charge {reference} arrives though {earlier.reference} has been paid")

    def _paid_in_full(self, earlier: Sent) -> bool:
        payment = self._simulator.world.payments[earlier.request["latest_payment_id"]]
        asked = Decimal(str(earlier.request["request_amount"]))
        return payment.document["currency"] == earlier.request["currency"] and payment.captured >= asked

    def _too_fresh_to_know(self, earlier: Sent) -> bool:
        """Called failed first, and paid only since this retry asked about it."""
        paid_at = datetime.fromisoformat(earlier.request["updated"])
        return earlier.failed_once and self._stage.now - paid_at < ASKED_WITHIN

    @property
    def _slack(self) -> Any:
        return abs(self._stage.skew)


class Gateway(XenditGateway):
    def __init__(self, line: Line) -> None:
        super().__init__(
            base_url="https://xendit.example",
            secret_key="xnd_development_simulated",
            timeout_seconds=TIMEOUT_SECONDS,
            transport=line,
        )
        self._line = line

    def prepare(self, request: ChargeRequest) -> None:
        self._line.prepare(request.reference_id)
        super().prepare(request)

    def charge(self, request: ChargeRequest) -> ChargeReport:
        self._line.check_prepared(request.reference_id)
        return super().charge(request)


_RATE_LIMITED = {"error_code": "RATE_LIMIT_EXCEEDED", "message": "Rate limit exceeded"}
_SERVER_ERROR = {"error_code": "SERVER_ERROR", "message": "An unexpected error occured"}
_KEY_REFUSED = {"error_code": "INVALID_API_KEY", "message": "The API key is not valid"}
_NOT_KNOWN = {"error_code": "DATA_NOT_FOUND", "message": "Payment token not found"}
