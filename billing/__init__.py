"""A recurring billing scheduler on saved payment tokens.

The floors, each importing only those below it (import-linter holds them apart):

    sandbox/             the simulator of Xendit, demo, simulation, embedded servers; nothing else imports it
    cli/                 roof: what people type
    workers/             (top level) the only place that knows dramatiq
    web.py               webhooks and health
    api/ shapes.py       Billing, the one list of operations, and the models it answers with
    app.py               composition root: settings -> App(sessions, gateway, quota, clock)
    services/            the steps: onboarding, invoicing, charging (the heart), webhooks, reconciling, runs ...
    store/ xendit/       what is remembered; the outside world
    quota.py             the shared request budget
    ratelimit.py         how often a stranger may do something
    streams.py           output that fails on no terminal and in no pipe
    domain/              rules: money, schedule, lifecycle, declines, dunning, the gateway port
    settings.py errors.py

Start reading at charging/charge.py. `from billing import Billing` is for scripts (docs/scripting.md); it is loaded
when asked for, because the command line imports this package before anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing.api import Billing
    from billing.errors import (
        BillingError,
        Conflict,
        CopyOfDatabase,
        EmbeddedServerFailed,
        GatewayError,
        IllegalTransition,
        InvalidArgument,
        InvalidInput,
        InvalidMoney,
        InvalidSchedule,
        InvalidSetting,
        NotFound,
        NotSent,
        OutcomeUnknown,
        RateLimited,
        RequestRejected,
        ServiceUnavailable,
        Unavailable,
        WebhookRejected,
    )

__version__ = "0.1.0"
__all__ = [
    "Billing",
    "BillingError",
    "InvalidSetting",
    "InvalidInput",
    "InvalidMoney",
    "InvalidSchedule",
    "InvalidArgument",
    "NotFound",
    "Conflict",
    "IllegalTransition",
    "ServiceUnavailable",
    "EmbeddedServerFailed",
    "CopyOfDatabase",
    "WebhookRejected",
    "GatewayError",
    "NotSent",
    "RateLimited",
    "Unavailable",
    "OutcomeUnknown",
    "RequestRejected",
]


if not TYPE_CHECKING:  # else a type checker would believe that every name is here

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("billing.api" if name == "Billing" else "billing.errors"), name)
