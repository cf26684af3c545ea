"""A recurring billing scheduler on saved payment tokens.

The rooms, each importing only those below it (import-linter holds them apart):

    sandbox/             the simulator of Xendit, demo, simulation, embedded servers; nothing else imports it
    cli/                 roof: what people type
    workers/             (top level) the only place that knows dramatiq
    web.py               webhooks and health
    api/ shapes.py       Billing, the one list of operations, and the models it answers with
    work.py              the kinds of background work, and the one router for them
    app.py               composition root: settings -> App(sessions, gateway, quota, clock)
    runs/                the tick, billing runs, their limits, forecast and report
    inbox/               what Xendit sends: receive, apply
    checks/              invariants, doctor, reconcile
    reading/             what people and scripts are shown
    subscribing/         plans and customers, payment sessions, import
    charging/            the money path: begin, send, settle, after_failure, look_up, refunds
    subscriptions/       the moves of a subscription, its invoices, the periods that are opened
    parts.py quota.py    what every step is handed; the shared request budget
    store/ xendit/       what is remembered; the outside world
    ratelimit.py         how often a stranger may do something
    streams.py           output that fails on no terminal and in no pipe
    domain/              rules: money, schedule, lifecycle, declines, dunning, the gateway port
    settings.py errors.py

The path of a charge: runs/tick.py, subscriptions/open_periods.py, charging/begin.py, charging/send.py,
xendit/client.py, charging/settle.py, charging/after_failure.py; docs/architecture.md has it in ten lines.

`from billing import Billing` is for scripts (docs/scripting.md); it is loaded when asked for, because the command line
imports this package before anything else.
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
