"""Log lines: one event word plus ids. Secrets and full tokens never get here: they are not in the arguments."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog

from billing.domain.names import visible
from billing.streams import Unbreakable


def configure(log_format: str, *, level: int = logging.INFO) -> None:
    """`console` for people, `json` for machines; on stderr, so that stdout holds only what was asked for."""
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [_spell_out, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unbreakable(sys.stderr))),
        cache_logger_on_first_use=True,
    )


def _spell_out(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Words of others reach a log as text; only a traceback has lines."""
    lines = {"exception": "\n"}
    return {
        name: visible(value, keep=lines.get(name, "")) if isinstance(value, str) else value
        for name, value in event.items()
    }
