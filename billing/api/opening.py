"""What all operations share: the application they work on, how they speak, and how errors leave. Used by every file of
this folder; `Billing` (billing/api/__init__.py) is the list of what there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from billing.domain.gateway import SessionMode
from billing.domain.names import visible
from billing.errors import BillingError, Conflict, InvalidArgument, InvalidSetting, ServiceUnavailable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session as DatabaseSession

    from billing.app import App
    from billing.parts import Parts, Send
    from billing.reading.pages import Listing
    from billing.settings import Settings
    from billing.shapes import Shape

GATEWAY = "xendit_secret_key"  # what an operation needs that talks to Xendit
Say = Callable[[str], None]
Found = TypeVar("Found", bound="Shape")

_messages = logging.getLogger("billing")


def warn(text: str) -> None:
    """Where warnings go when nobody says otherwise: Python's own log, which shows them on stderr."""
    _messages.warning("%s", visible(text))


def note(text: str) -> None:
    _messages.info("%s", visible(text))


class Opened:
    """One application, for as long as somebody works on it."""

    def __init__(self, app: App, *, warn: Say, note: Say) -> None:
        self.app = app
        self.warn = warn
        self.note = note
        self.closed = False
        self._has_called = False

    @property
    def parts(self) -> Parts:
        return self.app.parts

    @property
    def settings(self) -> Settings:
        return self.app.settings

    def with_gateway(self) -> Parts:
        """For what talks to Xendit. Raises InvalidSetting without its key, or without what a request needs of this
        machine. The first time, a stop of charging because of another key is lifted."""
        from billing.charging.key import lift_stop_of_another_key
        from billing.settings import require

        require(self.settings, GATEWAY)
        if not self._has_called:
            self.app.ready()
            lift_stop_of_another_key(self.parts, self.warn)
            self._has_called = True
        return self.parts

    def shown(self, listing: Listing, shape: type[Found], limit: int | None, after: str | None) -> Entries[Found]:
        """A list's entries. Raises NotFound for an unknown `after` at once."""
        if limit is not None and limit < 1:
            raise InvalidArgument(f"--limit {limit}: must be 1 or more; leave it out for all")
        return Entries(self, listing.behind(after), shape, limit)

    @contextmanager
    def sender(self) -> Iterator[tuple[Send, bool]]:
        """(send, whether workers do the work). Without Redis the work is done in this process."""
        from billing.work import InProcess, find_sender

        to_workers = find_sender(self.settings)
        if to_workers is not None:
            yield to_workers, True
            return
        in_process = InProcess(self.parts, self.settings.run_threads)
        try:
            yield in_process, False
        finally:
            in_process.close()

    def require_origins(self, mode: SessionMode) -> None:
        """Xendit's form works only on pages it was told of, and those must be https. Raises InvalidSetting."""
        pages = (*self.settings.components_origins, self.settings.public_url)
        if mode == SessionMode.COMPONENTS and not any(url.startswith("https://") for url in pages):
            raise InvalidSetting(
                "BILLING_COMPONENTS_ORIGINS: not set; name the https pages that hold the form, for example"
                " BILLING_COMPONENTS_ORIGINS=https://shop.example.com"
            )

    def warn_of_missing_return_urls(self, mode: SessionMode) -> None:
        if mode == SessionMode.PAYMENT_LINK and self.settings.return_base is None:
            self.warn(
                "BILLING_PUBLIC_URL is not https, which Xendit insists on: the session has no return URLs,"
                " so customers are not sent back to your site"
            )

    def refuse_if_closed(self) -> None:
        if self.closed:
            raise Conflict("this Billing is closed; open another: with Billing.open() as billing")


class Entries(Iterator[Found], Generic[Found]):
    """A list's entries, read a page at a time while they are taken."""

    def __init__(self, opened: Opened, listing: Listing, shape: type[Found], limit: int | None) -> None:
        self._opened = opened
        self._listing = listing
        self._shape = shape
        self._views = listing.entries(limit)

    def __next__(self) -> Found:
        with in_one_line():
            self._opened.refuse_if_closed()
            view = next(self._views)
        return self._shape.model_validate(view)

    def count(self) -> int:
        """How many there are behind `after`, whatever the limit and however many have been taken."""
        with in_one_line():
            self._opened.refuse_if_closed()
            return self._listing.count()


class Operations:
    """The base of `Billing` and its groups: whatever breaks in a public method leaves as a class of billing.errors,
    with the line that the command prints."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def __init_subclass__(cls) -> None:
        for name, member in list(vars(cls).items()):
            if isfunction(member) and not name.startswith("_") and name != "close":
                setattr(cls, name, _operation(member))


def _operation(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def operation(self: Operations, *arguments: Any, **options: Any) -> Any:
        self._opened.refuse_if_closed()
        with in_one_line():
            return method(self, *arguments, **options)

    return operation


@contextmanager
def in_one_line() -> Iterator[None]:
    """The trouble of servers is an error with one line, as at every edge."""
    try:
        yield
    except (BillingError, StopIteration):
        raise
    except Exception as error:
        told = of_a_server(error)
        if told is None:
            raise
        raise told from None


def of_a_server(error: Exception) -> BillingError | None:
    """What the database or Redis has said, which nobody expected; None for any other error. Never the statement or its
    parameters."""
    from redis.exceptions import RedisError
    from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

    from billing.store.trouble import first_line, in_words

    kind = error.__class__.__name__
    if (words := in_words(error)) is not None:
        return ServiceUnavailable(words)
    match error:
        case RedisError():
            return ServiceUnavailable(f"Redis does not answer ({kind}); check BILLING_REDIS_URL")
        case IntegrityError():
            return Conflict(
                f"somebody else changed the same thing at the same time ({first_line(error)}); run the command again"
            )
        case DBAPIError():
            return ServiceUnavailable(
                f"the database refused: {first_line(error)}; check BILLING_DATABASE_URL and its user's rights"
            )
        case SQLAlchemyError():
            return ServiceUnavailable(
                f"the database could not be used ({kind}); check BILLING_DATABASE_URL and its load"
            )
        case _:
            return None


def build_quietly(settings: Settings) -> App:
    """The application for a script. Its log is the script's where there is one already; else warnings go to stderr."""
    import structlog

    from billing import log
    from billing.app import build

    theirs = structlog.get_config() if structlog.is_configured() else None
    app = build(settings)
    if theirs is None:
        log.configure(settings.log_format, level=logging.WARNING)
    else:
        structlog.configure(**theirs)
    return app


def read_one(parts: Parts, shape: type[Found], view: Callable[[DatabaseSession], Mapping[str, Any]]) -> Found:
    """One thing, read in a short transaction."""
    with parts.reading() as session:
        found = view(session)
    return shape.model_validate(found)
