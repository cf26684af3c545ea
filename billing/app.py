"""Composition root: settings in, everything a process needs out. Nobody else wires rooms together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from billing import log
from billing.charging import key
from billing.domain.gateway import CHARGE_ENDPOINT, PaymentGateway, Quota
from billing.domain.money import parse_amounts
from billing.errors import (
    BillingError,
    CopyOfDatabase,
    InvalidMoney,
    InvalidSetting,
    NotSent,
)
from billing.parts import Parts, Rules, lane_of_this_work
from billing.quota import NO_LIMIT, make_quota
from billing.settings import Settings
from billing.store.clock import make_clock
from billing.store.engine import Sessions, make_engine, make_sessions, refuse_unusable
from billing.store.which_database import refuse_a_copy
from billing.xendit.client import XenditGateway
from billing.xendit.connection import Rates

QUOTA_WAIT_SECONDS = 10

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
        # A charge is refused before it is written down as submitted (charging/begin.py).
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
