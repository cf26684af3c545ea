"""What an operator does about the whole: migrate, adopt, doctor, reconcile, import. Called by `Billing`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date
from os import PathLike
from pathlib import Path

from billing.api.opening import Opened
from billing.charging import look_up
from billing.checks import doctor as checks
from billing.checks import reconcile as resolving
from billing.errors import InvalidArgument, InvalidInput, ServiceUnavailable
from billing.reading.views import Json, instant
from billing.shapes import Adopted, Diagnosis, Imported, Migrated, Reconciliation
from billing.store import which_database
from billing.store.clock import real_now
from billing.subscribing import import_files, import_rows

Rows = str | PathLike[str] | Iterable[str]
"""A file's name, `-` for stdin, or lines."""


def migrate(opened: Opened) -> Migrated:
    from alembic.util.exc import CommandError

    from billing.store.migrate import upgrade

    try:
        revision = upgrade(opened.settings.database)
    except CommandError as error:
        raise ServiceUnavailable(
            f"the database was made by another version of this software ({error});"
            " install that version or a newer one; or, if it is another program's, name a database in"
            " BILLING_DATABASE_URL that is for this software alone"
        ) from None
    with opened.parts.reading() as session:
        wrong = which_database.standing(session).wrong
    if wrong is not None:
        opened.warn(wrong)
    return Migrated(revision=revision)


def adopt(opened: Opened) -> Adopted:
    with opened.parts.transaction() as session:
        before = which_database.adopt(session, real_now())
        here = which_database.standing(session)
    if before.noted is not None and not before.is_the_one:
        opened.warn(
            "what the other database has charged since this copy was made, or still charges, is unknown here and is"
            " charged again: docs/operations.md, 'The database was restored from a backup'"
        )
    return Adopted.model_validate(
        {
            "adopted": True,
            "changed": not before.is_the_one,
            "before": _noted(before.noted),
            "now": _noted(here.noted),
        }
    )


def _noted(noted: which_database.Noted | None) -> Json | None:
    if noted is None:
        return None
    return {
        "system_identifier": noted.system_identifier,
        "database_oid": noted.database_oid,
        "noted_at": instant(noted.noted_at),
    }


def doctor(opened: Opened, *, repair: bool) -> Diagnosis:
    found = Diagnosis.model_validate(checks.examine(opened.parts, repair=repair))
    failed = [check.name for check in found.checks if not check.ok]
    if failed:
        advice = "" if repair else "; `billing doctor --repair` puts right what can be"
        found.told(f"{len(failed)} check(s) failed: {', '.join(failed)}{advice}")
    return found


def reconcile(opened: Opened, day: date | None, progress: Callable[[int, int], None]) -> Reconciliation:
    parts = opened.with_gateway()
    if day is not None and day > (today := parts.clock.now().astimezone(UTC).date()):
        raise InvalidArgument(f"--date {day}: that day has not begun, today is {today} (UTC); give one that has")
    outcome = resolving.resolve_open(parts, progress)
    differences = [asdict(row) for row in look_up.compare_day(parts, day)] if day else []
    found = Reconciliation.model_validate(
        {"resolved": outcome.resolved, "still_in_doubt": outcome.still_in_doubt, "differences": differences}
    )
    if outcome.unanswered:
        found.told(f"{outcome.unanswered} look-up(s) brought no answer ({outcome.error}); run it again later")
    return found


# ---------------------------------------------------------------------------------------------------- import


def import_(opened: Opened, file: Rows, *, dry_run: bool, verify: bool, progress: Callable[[int], None]) -> Imported:
    parts = opened.with_gateway() if verify else opened.parts
    with _lines(file) as lines:
        report = import_rows.import_rows(
            parts,
            lines,
            dry_run=dry_run,
            verify_with_gateway=verify,
            progress=progress,
            warn=opened.warn,
        )
    if not any(report.values()):
        name = file if isinstance(file, str | PathLike) else "the input"
        opened.warn(f"{name} holds no row; is it the file you mean?")
    found = Imported.model_validate(report)
    if found.refused:
        found.told(f"{len(found.refused)} row(s) refused; mend them and import the file again")
    return found


@contextmanager
def _lines(file: Rows) -> Iterator[Iterable[str]]:
    if not isinstance(file, str | PathLike):
        yield file
        return
    if file == "-":
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None:  # text already
            yield sys.stdin
            return
        with import_files.lines_of("-", stdin) as lines:
            yield lines
        return
    name = str(file)
    try:
        stream = Path(name).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"cannot read {name}: {reason}; name a file of JSON lines, or - for stdin") from None
    with stream, import_files.lines_of(name, stream) as lines:
        yield lines
