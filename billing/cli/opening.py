"""Opening the application for one command: settings, then parts; closed again whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from billing import log
from billing.app import App, build
from billing.cli import debugging, output
from billing.parts import Send
from billing.settings import Settings, load_settings

GATEWAY = "xendit_secret_key"  # what a command needs that talks to Xendit


@contextmanager
def opened(*needs: str, settings: Settings | None = None, log_level: int = logging.CRITICAL) -> Iterator[App]:
    """The database is needed by all who call this; `needs` names what else. Raises InvalidSetting.

    Commands say themselves what went wrong, so their log is silent; `billing run` is read by operators and is not.
    """
    app = build(settings or load_settings("database_url", *needs))
    log.configure(app.settings.log_format, level=logging.DEBUG if debugging() else log_level)
    try:
        if GATEWAY in needs:
            from billing.charging.key import lift_stop_of_another_key  # noqa: PLC0415 - as below

            app.ready()
            lift_stop_of_another_key(app.parts, output.warn)
        yield app
    finally:
        app.close()


@contextmanager
def sender(app: App) -> Iterator[tuple[Send, bool]]:
    """(send, whether workers do the work). Without Redis the work is done in this process."""
    from billing.work import InProcess, find_sender  # noqa: PLC0415 - most commands do no work, and need not wait for it

    to_workers = find_sender(app.settings)
    if to_workers is not None:
        yield to_workers, True
        return
    in_process = InProcess(app.parts, app.settings.run_threads)
    try:
        yield in_process, False
    finally:
        in_process.close()
