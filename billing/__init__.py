"""A recurring billing scheduler on saved payment tokens.

The floors, each importing only those below it (import-linter holds them apart):

    sandbox/             the simulator of Xendit, demo, simulation, embedded servers; nothing else imports it
    cli/                 roof: what people type
    workers/             (top level) the only place that knows dramatiq
    web.py, sandbox/demo/        webhooks and health; the demonstration
    app.py               composition root: settings -> App(sessions, gateway, quota, clock)
    services/            the steps: onboarding, invoicing, charging (the heart), webhooks, reconciling, runs ...
    store/ xendit/       what is remembered; the outside world
    quota.py             the shared request budget
    ratelimit.py         how often a stranger may do something
    streams.py           output that fails on no terminal and in no pipe
    domain/              rules: money, schedule, lifecycle, declines, dunning, the gateway port
    settings.py errors.py

Start reading at services/charging.py.
"""

__version__ = "0.1.0"
