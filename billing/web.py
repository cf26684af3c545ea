"""The web process: webhooks in, health, metrics, and the two small pages a customer may see. Holds no rule of its own.

`uvicorn billing.web:create_app --factory`
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from jinja2 import Environment, FileSystemLoader, select_autoescape
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from billing import metrics
from billing.app import App, build_process
from billing.domain.gateway import EventKind, SessionMode
from billing.domain.lifecycle import SessionStatus
from billing.errors import BillingError, WebhookRejected
from billing.inbox import apply
from billing.inbox.receive import Inbox
from billing.parts import Send
from billing.ratelimit import RateLimit
from billing.runs import tick
from billing.settings import Settings, load_settings
from billing.store import which_database
from billing.store.models import PaymentSession
from billing.store.trouble import Trouble, in_words, trouble_of
from billing.subscribing import session_results
from billing.work import find_sender
from billing.xendit.webhook import check_callback_token, read_event, read_payload

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(default=True)
)

BODY_SECONDS = 10.0  # for a whole webhook body; Xendit sends a few kilobytes at once

# How often, in a minute. Who has the callback token is never counted.
WRONG_TOKENS_OF_AN_ADDRESS = 20
PAGES_OF_AN_ADDRESS = 120  # many customers of one mobile network come from one address
LOOK_UPS_OF_A_SESSION = 6

# A payment method or a payment has just been given: applied here, at once, rather than by a worker in a second.
SOMEBODY_WAITS = frozenset({EventKind.TOKEN, EventKind.SESSION})

_SESSION_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_LENGTH = re.compile(r"[0-9]{1,18}")
_NETWORK_BITS = 64  # of an IPv6 address: one household has all of the other half

# Refused like any other write, and changes nothing.
_WRITES_NOTHING = text("UPDATE test_clock SET id = id WHERE false")
_REDIS_PROBE = "billing:can-be-written"
_PROBLEMS = {
    Trouble.READ_ONLY: "the database takes no writes: it is a standby or was made read-only",
    Trouble.NO_SCHEMA: "the database has no current schema; run `billing migrate`",
    Trouble.FORBIDDEN: "the database refuses our user",
    Trouble.CROWDED: "the database has no connection left for us",
    Trouble.DISK_FULL: "the database's disk is full",
}

log = structlog.get_logger()


def create_app() -> Starlette:
    """Reads the settings. A malformed or missing one: one line on stderr, exit status 2."""
    try:
        settings = load_settings("database_url", "xendit_callback_token")
        app = build_process(settings)
        return make_web(app, settings, find_sender(settings))
    except BillingError as error:
        print(f"billing: {error}", file=sys.stderr)  # noqa: T201 - before uvicorn has a log
        raise SystemExit(error.exit_status) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may do in a minute, so that none uses up this process or the quota at Xendit."""

    wrong_tokens: RateLimit
    pages: RateLimit
    look_ups_of_session: RateLimit
    look_ups: RateLimit

    @classmethod
    def of(cls, settings: Settings, clock: Callable[[], float]) -> Limits:
        return cls(
            wrong_tokens=RateLimit(WRONG_TOKENS_OF_AN_ADDRESS, 60, clock=clock),
            pages=RateLimit(PAGES_OF_AN_ADDRESS, 60, clock=clock),
            look_ups_of_session=RateLimit(LOOK_UPS_OF_A_SESSION, 60, clock=clock),
            # The other half is for the scheduler's own look-ups.
            look_ups=RateLimit(max(1, int(settings.requests_per_minute / 2)), 60, clock=clock),
        )

    def may_look_up(self, session_id: str) -> bool:
        return not self.look_ups_of_session.wait(session_id) and not self.look_ups.wait("")


def make_web(
    app: App, settings: Settings, send: Send | None, *, clock: Callable[[], float] = time.monotonic
) -> Starlette:
    limits = Limits.of(settings, clock)
    inbox = Inbox(app.parts, partial(_hand_on, send) if send is not None else None)

    @asynccontextmanager
    async def living(_web: Starlette) -> AsyncIterator[None]:
        yield
        await inbox.close()

    async def receive_webhook(request: Request) -> Response:
        try:
            check_callback_token(request.headers.get("x-callback-token"), settings.callback_tokens)
        except WebhookRejected as error:
            return _refused(error, wait_seconds=limits.wrong_tokens.wait(_address(request)))
        try:
            payload = read_payload(await _read_body(request, settings.webhook_max_bytes))
            event = read_event(payload)
            event_id = await inbox.store(event, payload)
        except WebhookRejected as error:
            return _refused(error)
        except SQLAlchemyError as error:
            log.error("webhook.not_stored", error=in_words(error) or error.__class__.__name__)
            return PlainTextResponse("not stored, send it again\n", 503)
        if event_id is not None and (send is None or event.kind in SOMEBODY_WAITS):
            return PlainTextResponse("stored\n", background=BackgroundTask(_apply, app, event_id))
        if event_id is not None:
            inbox.follow(event_id, event)
        return PlainTextResponse("stored\n")

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    # What is not async runs in a thread: it may wait for the database.
    def readyz(_request: Request) -> Response:
        problems = _problems(app, settings)
        return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)

    def show_metrics(_request: Request) -> Response:
        return Response(metrics.exposition(app.parts), media_type=metrics.CONTENT_TYPE)

    def return_page(request: Request) -> Response:
        session_id = request.path_params["session_id"]
        return _too_many(limits.pages, request) or _return_page(app, settings, limits, session_id)

    def checkout_page(request: Request) -> Response:
        session_id = request.path_params["session_id"]
        return _too_many(limits.pages, request) or _checkout_page(app, settings, session_id)

    async def database_is_away(_request: Request, error: Exception) -> Response:
        log.error("web.database_is_away", error=in_words(error) or error.__class__.__name__)
        return PlainTextResponse("not available at the moment, try again\n", 503)

    web = Starlette(
        routes=[
            *_with_and_without_slash("/webhooks/xendit", receive_webhook, methods=["POST"]),
            *_with_and_without_slash("/healthz", healthz),
            *_with_and_without_slash("/readyz", readyz),
            *_with_and_without_slash("/metrics", show_metrics),
            *_with_and_without_slash("/return/{session_id}", return_page),
            *_with_and_without_slash("/checkout/{session_id}", checkout_page),
        ],
        exception_handlers={SQLAlchemyError: database_is_away},
        lifespan=living,
    )
    web.router.redirect_slashes = False
    return web


def _with_and_without_slash(
    path: str, endpoint: Callable[[Request], object], *, methods: list[str] | None = None
) -> Sequence[Route]:
    """A redirect from one to the other would lose a webhook: behind a proxy it leads to http."""
    return Route(path, endpoint, methods=methods), Route(f"{path}/", endpoint, methods=methods)


# ------------------------------------------------------------------------------------------------- refusals


def _refused(error: WebhookRejected, *, wait_seconds: int = 0) -> Response:
    """Nothing more is read from this connection: a body that never ends ends here. Who guesses tokens has to wait."""
    headers = {"connection": "close"} | ({"retry-after": str(wait_seconds)} if wait_seconds else {})
    return PlainTextResponse(f"{error}\n", error.status, headers)


def _too_many(limit: RateLimit, request: Request) -> Response | None:
    seconds = limit.wait(_address(request))
    if not seconds:
        return None
    headers = {"retry-after": str(seconds), "connection": "close"}
    return PlainTextResponse(f"too many requests: try again in {seconds} s\n", 429, headers)


def _address(request: Request) -> str:
    """Whom a request is counted for. Behind a proxy it is the proxy's unless uvicorn is told to believe its headers."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a Unix socket, or what a trusted proxy made up
        return host[:64]
    if isinstance(address, ipaddress.IPv4Address) or address.ipv4_mapped:  # mapped: we listen on `::`
        return host
    return str(ipaddress.IPv6Network((int(address), _NETWORK_BITS), strict=False))


# --------------------------------------------------------------------------------------------------- inbox


async def _read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes, whatever Content-Length says (a sender may leave it out or lie), and not for ever."""
    too_large = WebhookRejected(413, f"body too large: at most {limit} bytes")
    if _LENGTH.fullmatch(declared := request.headers.get("content-length", "")) and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise WebhookRejected(408, f"body too slow: not here after {BODY_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise WebhookRejected(400, "the body ended early") from None
    return bytes(body)


def _hand_on(send: Send, event_ids: Sequence[str]) -> None:
    """To a worker. When Redis does not answer, or nobody fetches what lies there, the scheduler takes them up."""
    try:
        if tick.takes_more(send, tick.EVENT):
            send(tick.EVENT, event_ids)
    except BillingError as error:
        log.warning("webhook.not_handed_on", events=len(event_ids), error=str(error))


def _apply(app: App, event_id: str) -> None:
    """Here. What fails is taken up by the scheduler, or by the next `billing run`."""
    try:
        apply.apply_stored_event(app.parts, event_id, read_event)
    except SQLAlchemyError as error:
        log.warning("webhook.not_applied_yet", event_id=event_id, error=error.__class__.__name__)


def _problems(app: App, settings: Settings) -> list[str]:
    problems = []
    try:
        with app.parts.reading() as session:
            session.execute(_WRITES_NOTHING)
            wrong = which_database.standing(session).wrong
            problems += [wrong] if wrong else []
    except SQLAlchemyError as error:
        problems.append(_PROBLEMS.get(trouble_of(error) or Trouble.AWAY, "the database does not answer"))
    if settings.redis:
        try:
            with Redis.from_url(settings.redis, socket_connect_timeout=2, socket_timeout=2) as redis:
                redis.set(_REDIS_PROBE, "", px=1)
        except (RedisConnectionError, RedisTimeout):
            problems.append("Redis does not answer")
        except RedisError as error:
            problems.append(f"Redis takes no writes ({error.__class__.__name__})")
    return problems


# --------------------------------------------------------------------------------------------------- pages


def _return_page(app: App, settings: Settings, limits: Limits, session_id: str) -> Response:
    """Where Xendit sends the customer back to. The webhook may be late: ask Xendit, as `billing session refresh`.
    Who reloads faster than we like to ask sees what is known."""
    row = _session(app, session_id)
    if row is None:
        return _page("return.html", 404, state="unknown")
    if row.status == SessionStatus.ACTIVE and settings.secret_key and limits.may_look_up(row.id):
        try:
            row = session_results.refresh_session(app.parts, row.id)
        except BillingError as error:
            log.warning("return_page.not_refreshed", session=row.id, error=str(error))
    return _page("return.html", 200, state=row.status, type=row.type)


def _checkout_page(app: App, settings: Settings, session_id: str) -> Response:
    """A minimal page that embeds Xendit Components: an example to copy into one's own site."""
    row = _session(app, session_id)
    if row is None or row.mode != SessionMode.COMPONENTS or row.components_sdk_key is None:
        return _page("return.html", 404, state="unknown")
    if row.status != SessionStatus.ACTIVE:
        return _page("return.html", 200, state=row.status, type=row.type)
    return _page(
        "checkout.html",
        200,
        sdk_key=row.components_sdk_key,
        script_url=settings.components_script_url,
        return_url=f"/return/{row.id}",
    )


def _session(app: App, session_id: str) -> PaymentSession | None:
    if not _SESSION_ID.fullmatch(session_id):
        return None
    with app.parts.reading() as session:
        return session.get(PaymentSession, session_id)


def _page(template: str, status: int, **values: object) -> Response:
    return HTMLResponse(TEMPLATES.get_template(template).render(**values), status)
