"""Opening `Billing` for one command: settings, then parts; closed again whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from billing.api import Billing
from billing.api.opening import Say
from billing.cli import debugging, output
from billing.errors import InvalidArgument


@contextmanager
def opened(*, note: Say = output.note, warn: Say = output.warn, log_level: int = logging.CRITICAL) -> Iterator[Billing]:
    """What an operation says beside its result goes to stderr, unless `note` or `warn` take it. Raises InvalidSetting;
    BadParameter for an argument that the operation refuses.

    Commands say themselves what went wrong, so their log is silent; `billing run` is read by operators and is not.
    """
    from billing import app, log
    from billing.settings import load_settings

    built = app.build(load_settings("database_url"))
    log.configure(built.settings.log_format, level=logging.DEBUG if debugging() else log_level)
    with Billing(built, warn=warn, note=note, close=built.close) as billing:
        try:
            yield billing
        except InvalidArgument as error:
            raise typer.BadParameter(str(error)) from None
