"""The web process: webhooks in, health, metrics, and the two small pages a customer may see. Holds no rule of its own.

`uvicorn billing.web:create_app --factory`
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from billing import metrics
from billing.app import App, build, find_sender
from billing.domain.gateway import GatewayEvent, SessionMode
from billing.domain.lifecycle import SessionStatus
from billing.errors import BillingError, WebhookRejected
from billing.services import sessions, webhooks
from billing.services.parts import Send
from billing.settings import Settings, load_settings
from billing.store.models import PaymentSession
from billing.xendit.masking import mask_payload
from billing.xendit.webhook import check_callback_token, read_event

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(default=True)
)

_SESSION_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

log = structlog.get_logger()


def create_app() -> FastAPI:
    """Reads the settings. A malformed or missing one: one line on stderr, exit status 2."""
    try:
        settings = load_settings("database_url", "xendit_callback_token")
        return make_web(build(settings), settings, find_sender(settings))
    except BillingError as error:
        print(f"billing: {error}", file=sys.stderr)  # noqa: T201 - before uvicorn has a log
        raise SystemExit(error.exit_status) from None


def make_web(app: App, settings: Settings, send: Send | None) -> FastAPI:
    web = FastAPI(title="billing", docs_url=None, redoc_url=None, openapi_url=None)

    @web.post("/webhooks/xendit")
    async def receive_webhook(request: Request) -> Response:
        try:
            check_callback_token(request.headers.get("x-callback-token"), settings.callback_tokens)
            payload = _parse(await _read_body(request, settings.webhook_max_bytes))
            event = read_event(payload)
            stored_id = await run_in_threadpool(_store, app, event, payload)
        except WebhookRejected as error:
            return PlainTextResponse(f"{error}\n", error.status)
        except SQLAlchemyError as error:
            log.error("webhook.not_stored", error=error.__class__.__name__)
            return PlainTextResponse("not stored, send it again\n", 503)
        if stored_id is None:
            return PlainTextResponse("stored\n")
        return PlainTextResponse("stored\n", background=BackgroundTask(_apply_afterwards, app, send, stored_id))

    @web.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @web.get("/readyz")
    def readyz() -> Response:
        problems = _problems(app, settings)
        return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)

    @web.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.exposition(app.parts), media_type=metrics.CONTENT_TYPE)

    @web.get("/return/{session_id}")
    def return_page(session_id: str) -> Response:
        return _return_page(app, settings, session_id)

    @web.get("/checkout/{session_id}")
    def checkout_page(session_id: str) -> Response:
        return _checkout_page(app, settings, session_id)

    @web.exception_handler(SQLAlchemyError)
    async def database_is_away(_request: Request, error: SQLAlchemyError) -> Response:
        log.error("web.database_is_away", error=error.__class__.__name__)
        return PlainTextResponse("not available at the moment, try again\n", 503)

    return web


# --------------------------------------------------------------------------------------------------- inbox


async def _read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes, whatever Content-Length says: a sender may leave it out or lie."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise WebhookRejected(413, f"body too large: at most {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise WebhookRejected(413, f"body too large: at most {limit} bytes")
    return bytes(body)


def _parse(body: bytes) -> Mapping[str, Any]:
    """The JSON object, masked and fit for PostgreSQL's jsonb (no NUL characters, no lone surrogates, no NaN)."""
    try:
        payload = simplejson.loads(body, use_decimal=True, parse_constant=_no_constant)
    except (ValueError, RecursionError, UnicodeError):
        raise WebhookRejected(400, "not JSON") from None
    if not isinstance(payload, dict):
        raise WebhookRejected(400, "not a JSON object with an event")
    masked = _storable(mask_payload(payload))
    assert isinstance(masked, dict)  # noqa: S101 - masking keeps types
    return masked


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _storable(value: object) -> object:
    if isinstance(value, str):
        return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {str(_storable(key)): _storable(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_storable(member) for member in value]
    return value


def _store(app: App, event: GatewayEvent, payload: Mapping[str, Any]) -> str | None:
    try:
        with app.parts.transaction() as session:
            return webhooks.record_event(session, event, payload, app.parts.clock.now())
    except DataError:
        raise WebhookRejected(400, "holds a value that cannot be stored, such as a number without end") from None


def _apply_afterwards(app: App, send: Send | None, event_id: str) -> None:
    """By a worker; without Redis, or when it does not answer, here. What fails is taken up by the scheduler."""
    if send is not None:
        try:
            send("event", [event_id])
        except BillingError as error:
            log.warning("webhook.not_handed_on", event_id=event_id, error=str(error))
        return
    try:
        webhooks.apply_stored_event(app.parts, event_id, read_event)
    except SQLAlchemyError as error:
        log.warning("webhook.not_applied_yet", event_id=event_id, error=error.__class__.__name__)


def _problems(app: App, settings: Settings) -> list[str]:
    problems = []
    try:
        with app.parts.sessions() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        problems.append("the database does not answer")
    if settings.redis:
        try:
            with Redis.from_url(settings.redis, socket_connect_timeout=2, socket_timeout=2) as redis:
                redis.ping()
        except RedisError:
            problems.append("Redis does not answer")
    return problems


# --------------------------------------------------------------------------------------------------- pages


def _return_page(app: App, settings: Settings, session_id: str) -> Response:
    """Where Xendit sends the customer back to. The webhook may be late: ask Xendit, as `billing session refresh`."""
    row = _session(app, session_id)
    if row is None:
        return _page("return.html", 404, state="unknown")
    if row.status == SessionStatus.ACTIVE and settings.secret_key:
        try:
            row = sessions.refresh_session(app.parts, row.id)
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
    with app.parts.sessions() as session:
        return session.get(PaymentSession, session_id)


def _page(template: str, status: int, **values: object) -> Response:
    return HTMLResponse(TEMPLATES.get_template(template).render(**values), status)
