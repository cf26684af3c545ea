"""The programmable Xendit: a request in, an answer out; no I/O, no thread, no clock of its own.

`serve.py` puts it behind HTTP, `transport.py` behind an httpx client in the same process.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from functools import lru_cache, partial

from billing.sandbox.simulator import (
    charges,
    control,
    customers,
    ledger,
    pages,
    refunds,
    sessions,
    tokens,
    transactions,
)
from billing.sandbox.simulator.answers import Answer, ApiError, ConnectionDropped, Reply, finish, validation_error
from billing.sandbox.simulator.calls import Call
from billing.sandbox.simulator.clock import SettableClock
from billing.sandbox.simulator.config import SimulatorConfig
from billing.sandbox.simulator.quota import Quota
from billing.sandbox.simulator.state import Ids, World
from billing.sandbox.simulator.webhooks import Delivery, WebhookQueue

API_VERSION = "2024-11-11"
_PRODUCTION_PREFIX = "xnd_production_"
_DEVELOPMENT_PREFIX = "xnd_development_"

View = Callable[[World, Call], Reply | Answer]


class Surface(Enum):
    API = auto()  # key, quota, faults
    CONTROL = auto()
    PAGE = auto()


@dataclass(frozen=True, slots=True)
class Route:
    endpoint: str  # "POST /v3/payment_requests/{id}/cancel"
    view: View
    surface: Surface = Surface.API

    @property
    def needs_version(self) -> bool:
        return " /v3/" in self.endpoint


_API: dict[str, View] = {
    "POST /v3/payment_requests": charges.create,
    "GET /v3/payment_requests/{id}": charges.get,
    "POST /v3/payment_requests/{id}/cancel": charges.cancel,
    "POST /v3/payment_requests/{id}/simulate": charges.simulate,
    "GET /v3/payments/{id}": charges.get_payment,
    "POST /v3/payments/{id}/capture": charges.capture,
    "POST /v3/payments/{id}/cancel": charges.cancel_payment,
    "POST /v3/payment_tokens": tokens.create,
    "GET /v3/payment_tokens/{id}": tokens.get,
    "POST /v3/payment_tokens/{id}/cancel": tokens.cancel,
    "POST /sessions": sessions.create,
    "GET /sessions/{id}": sessions.get,
    "POST /sessions/{id}/cancel": sessions.cancel,
    "POST /refunds": refunds.create,
    "GET /refunds/{id}": refunds.get,
    "GET /transactions": transactions.search,
    "GET /transactions/{id}": transactions.get,
    "POST /customers": customers.create,
    "GET /customers": customers.search,
    "GET /customers/{id}": customers.get,
}
_CONTROL: dict[str, View] = {
    "POST /_simulator/sessions/{id}/complete": control.complete_session,
    "POST /_simulator/sessions/{id}/fail": control.fail_session,
    "POST /_simulator/sessions/{id}/expire": control.expire_session,
    "POST /_simulator/tokens": control.create_tokens,
    "POST /_simulator/tokens/{id}/script": control.script_token,
    "POST /_simulator/tokens/{id}/activate": control.activate_token,
    "POST /_simulator/tokens/{id}/expire": control.expire_token,
    "POST /_simulator/tokens/{id}/cancel": control.cancel_token,
    "GET /_simulator/webhooks": control.list_webhooks,
    "POST /_simulator/webhooks/config": control.configure_webhooks,
    "POST /_simulator/webhooks/resend": control.resend_webhooks,
    "POST /_simulator/refunds/config": control.configure_refunds,
    "POST /_simulator/payments/{id}/capture": control.capture_payment,
    "POST /_simulator/payments/{id}/refund": control.refund_payment,
    "POST /_simulator/payment_requests/{id}/resolve": control.resolve_request,
    "GET /_simulator/ledger": ledger.show,
    "GET /_simulator/requests": control.count_calls,
}
_PAGES: dict[str, View] = {
    "GET /": pages.index,
    "POST /sessions/{id}/checkout": pages.submit,
    "POST /sessions/{id}/challenge": pages.answer_challenge,
    "GET /actions/{id}": pages.action,
    "POST /actions/{id}": pages.act,
    "GET /components": pages.components,
    "GET /components.js": pages.components_script,
}


class Simulator:
    """Deterministic: same calls, instants and seed give the same answers, byte for byte."""

    def __init__(self, now: Callable[[], datetime], *, seed: int = 0, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self.now = now
        self.world = World(self.config, Ids(seed), WebhookQueue(self.config.business_id, seed))
        self._quota = Quota(self.config.requests_per_minute, self.config.monotonic)
        clock = now if isinstance(now, SettableClock) else None
        special: dict[str, View] = {
            "POST /_simulator/faults": partial(_inject_fault, endpoints=tuple(_API)),
            "POST /_simulator/clock": partial(_move_clock, clock=clock),
            "GET /_simulator/quota": partial(_show_quota, quota=self._quota),
        }
        self._exact, self._patterns = _compile(special)
        self._session_page = Route("GET /sessions/{id} (page)", pages.checkout, Surface.PAGE)

    def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """`query` is the raw query string; header names are lower-case."""
        now = self.now()
        self.world.agenda.advance(now)
        route, params = self._route(method, path, headers)
        if route is None:
            reply = ApiError(404, "NOT_FOUND", f"{method} {path} is not part of this API").reply()
            return finish(reply, ())
        call = Call(now, params, query, headers, body)
        answer = (
            self._answer_api(route, call) if route.surface is Surface.API else _answer_open(self.world, route, call)
        )
        self.world.calls[route.endpoint, 0 if answer.drop else answer.status] += 1
        return answer

    def due_deliveries(self, now: datetime, limit: int | None = None) -> list[Delivery]:
        """Webhooks to send at `now`; each is reported back with `delivery_result`."""
        self.world.agenda.advance(now)
        return self.world.webhooks.take_due(now, limit)

    def delivery_result(self, delivery: Delivery, status: int | None, now: datetime | None = None) -> None:
        """`status` None: no answer at all. Anything but 2xx climbs the retry ladder."""
        self.world.webhooks.settle(delivery, status, now or self.now())

    def next_due_at(self) -> datetime | None:
        """The next expiry, resolution or webhook that comes by itself. None: nothing is waiting."""
        waiting = [at for at in (self.world.agenda.next_at(), self.world.webhooks.next_at()) if at is not None]
        return min(waiting, default=None)

    def _route(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[Route | None, dict[str, str]]:
        route = self._exact.get(f"{method} {path}")
        if route is not None:
            return route, {}
        wanted = f"{method} {path}"
        for pattern, candidate in self._patterns:
            found = pattern.fullmatch(wanted)
            if found is not None:
                page = candidate.endpoint == "GET /sessions/{id}" and _is_browser(headers)
                return (self._session_page if page else candidate), found.groupdict()
        return None, {}

    def _answer_api(self, route: Route, call: Call) -> Answer:
        try:
            reply = self._reply(route, call)
        except ConnectionDropped:
            return Answer(0, drop=True)
        except ApiError as error:
            reply = error.reply()
        return finish(reply, self._quota.headers(route.endpoint))

    def _reply(self, route: Route, call: Call) -> Reply:
        _check_key(call.headers.get("authorization", ""), self.config.secret_keys)
        if not self._quota.take(route.endpoint):
            raise ApiError(429, "RATE_LIMIT_EXCEEDED")
        if route.needs_version and call.headers.get("api-version") != API_VERSION:
            raise validation_error("/headers/api-version", f"must be equal to {API_VERSION}")
        fault = self.world.take_fault(route.endpoint)
        if fault is None:
            return _api_reply(self.world, route, call)
        fault.refuse()
        return replace(_attempted(self.world, route, call), disturbance=fault.disturbance)


def _compile(special: dict[str, View]) -> tuple[dict[str, Route], list[tuple[re.Pattern[str], Route]]]:
    tables = ((_API, Surface.API), (_CONTROL | special, Surface.CONTROL), (_PAGES, Surface.PAGE))
    routes = [Route(endpoint, view, surface) for table, surface in tables for endpoint, view in table.items()]
    exact = {route.endpoint: route for route in routes if "{id}" not in route.endpoint}
    patterns = [
        (re.compile(re.escape(route.endpoint).replace(r"\{id\}", "(?P<id>[^/]+)")), route)
        for route in routes
        if "{id}" in route.endpoint
    ]
    return exact, patterns


def _inject_fault(world: World, call: Call, *, endpoints: tuple[str, ...]) -> Reply:
    return control.inject_fault(world, call, endpoints)


def _move_clock(world: World, call: Call, *, clock: SettableClock | None) -> Reply:
    return control.move_clock(world, call, clock)


def _show_quota(world: World, call: Call, *, quota: Quota) -> Reply:
    return control.show_quota(world, call, quota)


def _is_browser(headers: Mapping[str, str]) -> bool:
    return "authorization" not in headers and "text/html" in headers.get("accept", "")


@lru_cache(maxsize=256)
def _basic_user(authorization: str) -> str:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(encoded, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _check_key(authorization: str, accepted: tuple[str, ...]) -> None:
    key = _basic_user(authorization)
    if key.startswith(_PRODUCTION_PREFIX):
        raise ApiError(401, "INVALID_API_KEY", "This is a simulator: it takes no production key")
    if key not in accepted if accepted else not key.startswith(_DEVELOPMENT_PREFIX):
        raise ApiError(401, "INVALID_API_KEY")


def _api_reply(world: World, route: Route, call: Call) -> Reply:
    reply = route.view(world, call)
    if isinstance(reply, Answer):
        raise TypeError(f"{route.endpoint} must return a Reply")
    return reply


def _answer_open(world: World, route: Route, call: Call) -> Answer:
    """Control calls and pages: no key, no quota, no faults."""
    try:
        reply = route.view(world, call)
    except ApiError as error:
        reply = error.reply()
    return reply if isinstance(reply, Answer) else finish(reply, ())


def _attempted(world: World, route: Route, call: Call) -> Reply:
    """An answer that gets lost is lost whatever it says, a refusal too."""
    try:
        return _api_reply(world, route, call)
    except ApiError as error:
        return error.reply()
