"""Composition root: settings in, everything a process needs out. Nobody else wires rooms together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import date, timedelta
from importlib.metadata import entry_points

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from billing import log
from billing.domain.gateway import CHARGE_ENDPOINT, Lane, PaymentGateway, Quota
from billing.domain.money import parse_amounts
from billing.errors import (
    BillingError,
    Conflict,
    CopyOfDatabase,
    GatewayError,
    InvalidMoney,
    InvalidSetting,
    NotFound,
    NotSent,
    ServiceUnavailable,
)
from billing.quota import NO_LIMIT, make_quota
from billing.services import charging, dispatch, key, reconciling, refunding, sessions, tokens, webhooks
from billing.services.parts import Parts, Rules, Send, in_lane, lane_of_this_work
from billing.settings import Settings
from billing.store.clock import make_clock
from billing.store.engine import Sessions, make_engine, make_sessions, refuse_unusable
from billing.store.trouble import database_errors_in_one_line
from billing.store.which_database import refuse_a_copy
from billing.xendit.client import XenditGateway
from billing.xendit.rates import Rates
from billing.xendit.webhook import read_event

QUOTA_WAIT_SECONDS = 10
EVENTS_AT_ONCE = 20
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class App:
    settings: Settings
    engine: Engine
    parts: Parts

    def ready(self) -> App:
        """For whoever talks to Xendit: before any work is taken up, all is there that a request needs of this machine
        (proxies, certificates). Raises InvalidSetting."""
        if isinstance(self.parts.gateway, XenditGateway):
            self.parts.gateway.ready()
        return self

    def close(self) -> None:
        if self.parts.callers is not None:
            self.parts.callers.shutdown(wait=True)
        gateway = self.parts.gateway
        if isinstance(gateway, XenditGateway):
            gateway.close()
        self.engine.dispose()


def build(settings: Settings, *, gateway: PaymentGateway | None = None) -> App:
    """Opens nothing yet: connections are made on first use, so a dead server is found by what needs it."""
    log.configure(settings.log_format)
    engine = make_engine(settings.database, pool_size=settings.database_pool_size)
    sessions = make_sessions(engine)
    adapt = settings.xendit_requests_per_minute is None
    quota = make_quota(sessions, settings.requests_per_minute, adapt=adapt)
    parts = Parts(
        sessions=sessions,
        clock=make_clock(sessions, test_clock=settings.test_clock),
        gateway=gateway or make_gateway(settings, quota, before_request=refusing_a_copy(sessions)),
        quota=quota,
        rules=_rules(settings),
        callers=ThreadPoolExecutor(settings.charge_threads, thread_name_prefix="billing-call"),
        key_fingerprint=_key_fingerprint(settings),
    )
    return App(settings, engine, parts)


def build_process(settings: Settings) -> App:
    """For a process that lives on: refuses at its start what can never work, and leaves nothing open then. Raises
    InvalidSetting."""
    app = build(settings)
    try:
        if settings.secret_key:  # web works without it
            app.ready()
        refuse_unusable(app.engine)
    except BillingError:
        app.close()
        raise
    return app


def make_gateway(
    settings: Settings, quota: Quota, *, before_request: Callable[[str], None] = lambda _endpoint: None
) -> XenditGateway:
    """Every request is paid for out of the budget before it is sent, and a 429 closes its endpoint for all."""

    def pay_for(endpoint: str) -> None:
        before_request(endpoint)
        # A charge has its permit already: it is taken before the attempt begins, so that none waits while submitted.
        if endpoint != CHARGE_ENDPOINT and not quota.acquire(
            endpoint, lane_of_this_work(), wait_seconds=QUOTA_WAIT_SECONDS
        ):
            raise NotSent("the request quota to Xendit is used up for the moment; try again in a minute")

    def learn(endpoint: str, status: int, headers: Mapping[str, str], _seconds: float) -> None:
        rates = Rates.of(headers)
        try:
            if status == TOO_MANY_REQUESTS:
                quota.pause(endpoint, rates.wait_or())
            else:
                quota.learn(endpoint, limit=rates.limit, remaining=rates.remaining)
        except SQLAlchemyError as error:  # the answer counts, whatever becomes of its headers
            structlog.get_logger().warning("quota.not_learned", error=error.__class__.__name__)

    return XenditGateway(
        base_url=settings.xendit_base_url,
        secret_key=settings.secret_key,
        timeout_seconds=settings.xendit_timeout_seconds,
        before_request=pay_for,
        on_response=learn,
    )


def refusing_a_copy(sessions: Sessions) -> Callable[[str], None]:
    """Before a request: what changes anything at Xendit does not leave a copy of the database, whoever asks for it."""

    def refuse(endpoint: str) -> None:
        # A charge is refused before it is written down as submitted (services/charging.py).
        if endpoint == CHARGE_ENDPOINT or endpoint.startswith("GET "):
            return
        try:
            with sessions.begin() as session:
                refuse_a_copy(session)
        except CopyOfDatabase as error:
            raise NotSent(str(error)) from None

    return refuse


def _key_fingerprint(settings: Settings) -> str | None:
    return key.fingerprint(settings.secret_key, settings.xendit_base_url) if settings.secret_key else None


def _rules(settings: Settings) -> Rules:
    return Rules(
        settlement_window=timedelta(hours=settings.settlement_window_hours),
        hold_in_doubt=settings.in_doubt_policy == "hold",
        refund_overpayments=settings.overpayment_policy == "refund",
        call_limit=timedelta(seconds=settings.xendit_timeout_seconds),
        return_base=settings.return_base,
        components_origins=settings.components_origins,
        max_in_flight=settings.max_in_flight,
        requests_per_minute=None if settings.requests_per_minute >= NO_LIMIT else settings.requests_per_minute,
        run_spending_cap=_amounts("BILLING_RUN_SPENDING_CAP", settings.run_spending_cap),
        subscriber_daily_cap=_amounts("BILLING_SUBSCRIBER_DAILY_CAP", settings.subscriber_daily_cap),
        run_decline_jump=settings.run_decline_jump,
        run_decline_sample=settings.run_decline_sample,
        run_forecast_share=settings.run_forecast_share,
        charges_at_once=settings.charges_at_once,
    )


def _amounts(variable: str, text: str) -> Mapping[str, int]:
    try:
        return parse_amounts(text)
    except InvalidMoney as error:
        raise InvalidSetting(f"{variable}: {error}; for example {variable}=IDR 500000000, PHP 1000000") from None


# ------------------------------------------------------------------------------------------ doing the work


def work_on(parts: Parts, kind: str, *identities: str) -> None:
    """One unit of work, by kind and ids: several charges may be one. The same for a dramatiq worker and for
    `billing run` without Redis."""
    lane = dispatch.LANE_OF_KIND.get(kind, Lane.UPKEEP)
    with in_lane(lane):
        if kind in dispatch.LANE_OF_KIND:
            charging.charge(parts, identities, lane)
            return
        for identity in identities:
            _follow(parts, kind, identity)


def _follow(parts: Parts, kind: str, identity: str) -> None:
    if kind != dispatch.EVENT:  # what has arrived is applied; nothing else is asked for by itself
        parts.refuse_a_copy()
    match kind:
        case dispatch.CHECK:
            reconciling.check_attempt(parts, identity)
        case dispatch.EVENT:
            webhooks.apply_stored_event(parts, identity, read_event)
        case dispatch.SESSION_CHECK:
            _check_session(parts, identity)
        case dispatch.REFUND:
            refunding.follow_refund(parts, identity)
        case dispatch.TOKEN_CHECK:
            tokens.follow_token(parts, identity)
        case dispatch.DAY:
            _compare_day(parts, identity)
        case _:
            raise ValueError(f"no such kind of work: {kind}")


def work_on_and_log(parts: Parts, kind: str, *identities: str) -> None:
    """As `work_on`, for many at once: what fails is logged and stays due (its lease ends), the rest goes on (M3).

    Raises ServiceUnavailable when the database is away: then nothing else would work either.
    """
    log = structlog.get_logger()
    try:
        with database_errors_in_one_line():
            work_on(parts, kind, *identities)
    except ServiceUnavailable:
        raise
    except Exception as error:
        log.exception("work.failed", kind=kind, ids=identities, error=str(error))


def units(kind: str, ids: Sequence[str], charges_at_once: int) -> Iterator[Sequence[str]]:
    """The ids of each unit of work: charges and events go in groups, everything else one by one."""
    size = charges_at_once if kind in dispatch.LANE_OF_KIND else EVENTS_AT_ONCE if kind == dispatch.EVENT else 1
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _check_session(parts: Parts, session_id: str) -> None:
    try:
        sessions.follow_session(parts, session_id)
    except (GatewayError, Conflict, NotFound) as error:
        structlog.get_logger().warning("session.check_failed", session=session_id, error=str(error))


def _compare_day(parts: Parts, day: str) -> None:
    log = structlog.get_logger()
    try:
        for found in reconciling.differences_of_day(parts, date.fromisoformat(day)):
            why = found.explanation
            log.warning("reconcile.difference", day=day, kind=found.kind, payment=found.payment_id, why=why)
    except reconciling.Interrupted:
        log.info("reconcile.day_interrupted", day=day)
    except (GatewayError, NotFound) as error:
        log.warning("reconcile.day_failed", day=day, error=str(error))


class InProcess:
    """`send` for a process without Redis: a pool of threads does the work."""

    def __init__(self, parts: Parts, threads: int) -> None:
        self._parts = replace(parts, stopping=threading.Event())
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="billing")
        self._days = ThreadPoolExecutor(max_workers=1, thread_name_prefix="billing-days")

    def __call__(self, kind: str, ids: Sequence[str]) -> None:
        """Returns when the work is done, so that claims never run ahead of it. Comparing days takes as long as it
        takes: nobody waits for that."""
        pool = self._days if kind == dispatch.DAY else self._pool
        begun = [
            pool.submit(copy_context().run, work_on_and_log, self._parts, kind, *unit)
            for unit in units(kind, ids, self._parts.rules.charges_at_once)
        ]
        if kind != dispatch.DAY:
            for future in begun:
                future.result()

    def close(self) -> None:
        """What has begun is finished, but not the comparison of a day; what waits stays due (Ctrl-C does not wait for
        a whole batch)."""
        self._parts.stopping.set()
        for pool in (self._pool, self._days):
            pool.shutdown(wait=True, cancel_futures=True)


def find_sender(settings: Settings) -> Send | None:
    """The workers' `send`, found through its entry point (only workers/ knows dramatiq); None without Redis."""
    if not settings.redis:
        return None
    for entry_point in entry_points(group="billing.send"):
        send: Callable[[str, Sequence[str]], None] = entry_point.load()
        return send
    return None
