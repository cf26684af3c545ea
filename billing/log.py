"""Log lines: one event word plus ids. Secrets and full tokens never get here: they are not in the arguments.

While something we need is away, many threads find that out every second. The same complaint is written a few times a
minute; the next one of its kind says how many were left out.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import TextIO, cast

import structlog

from billing.domain.names import visible
from billing.streams import Unbreakable

COMPLAINTS_A_MINUTE = 3
_MINUTE = 60.0
_MOST_KINDS = 500  # known at once; complaints that differ each time are none of a kind
# What our processes say over and over while the database, Redis or Xendit is away. Lines about one subscriber's
# money are not among them: each of those is written.
_SOMETHING_IS_AWAY = frozenset({
    "quota.not_learned", "return_page.not_refreshed", "scheduler.waiting", "web.database_is_away",
    "webhook.not_applied_yet", "webhook.not_handed_on", "webhook.not_stored", "work.put_off",
})  # fmt: skip
# Of libraries: what they say with a traceback while a server is away, or has become a replica.
_EXPECTED = ("redis.exceptions", "sqlalchemy.exc", "psycopg.errors", "psycopg", "dramatiq.errors")


@dataclass(slots=True)
class _Kind:
    began: float
    written: int = 0
    left_out: int = 0


@dataclass(slots=True)
class FewOfAKind:
    """Whether one more complaint of a kind is written, and how many were left out before it."""

    clock: Callable[[], float] = time.monotonic
    _kinds: dict[Hashable, _Kind] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, kind: Hashable) -> tuple[bool, int]:
        now = self.clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is None or now - known.began >= _MINUTE:
                if known is None and len(self._kinds) >= _MOST_KINDS:
                    self._kinds.clear()
                self._kinds[kind] = _Kind(now, written=1)
                return True, known.left_out if known is not None else 0
            if known.written < COMPLAINTS_A_MINUTE:
                known.written += 1
                return True, 0
            known.left_out += 1
            return False, 0


class Complaints:
    """As a structlog processor for our own lines, and as a filter for those of libraries. A kind is an event with its
    error, whatever rows it names."""

    def __init__(self, few: FewOfAKind | None = None) -> None:
        self._few = few or FewOfAKind()

    def __call__(self, _logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if line["event"] not in _SOMETHING_IS_AWAY or "error" not in line:
            return line
        write, left_out = self._few.ask((line["event"], str(line["error"])))
        if not write:
            raise structlog.DropEvent
        return {**line, "more_like_it": left_out} if left_out else line

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("billing."):  # the simulator's, each about another request
            return True
        if record.levelno < logging.WARNING and not record.name.startswith("dramatiq.worker"):
            return True
        error = record.exc_info[1] if record.exc_info else None
        write, left_out = self._few.ask((record.name.partition("(")[0], record.msg, error.__class__.__name__))
        if error is not None and error.__class__.__module__.startswith(_EXPECTED):
            record.msg, record.args = f"{record.getMessage()} ({error.__class__.__name__})", ()
            record.exc_info = record.exc_text = None
        if left_out:
            record.msg, record.args = f"{record.getMessage()} [{left_out} more like it]", ()
        return write


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}

_complaints = Complaints()
# One list, filled again in place, the level included: loggers keep the list and the class that they met first.
_processors: list[structlog.typing.Processor] = []


def configure(log_format: str, *, level: int = logging.INFO) -> None:
    """`console` for people, `json` for machines; on stderr, so that stdout holds only what was asked for."""
    stderr = Unbreakable(sys.stderr)
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [_spell_out, structlog.dev.ConsoleRenderer(colors=stderr.isatty())]
    )
    _processors[:] = [
        partial(_drop_below, level),
        structlog.contextvars.merge_contextvars,
        _complaints,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *renderers,
    ]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, stderr)),
        cache_logger_on_first_use=True,
    )
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_complaints)  # a second time changes nothing


def _drop_below(
    level: int, _logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if _LEVELS.get(method, logging.ERROR) < level:
        raise structlog.DropEvent
    return event


def _spell_out(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Words of others reach a log as text; only a traceback has lines."""
    lines = {"exception": "\n"}
    return {
        name: visible(value, keep=lines.get(name, "")) if isinstance(value, str) else value
        for name, value in event.items()
    }
