"""Log lines: one event word plus ids. Secrets and full tokens never get here: they are not in the arguments."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(log_format: str, *, level: int = logging.INFO) -> None:
    """`console` for people, `json` for machines; on stderr, so that stdout holds only what was asked for."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
