"""Charging that stopped because of a key goes on by itself once a process starts with another: Xendit had refused the
key, or did not know our payment methods with it. What was unknown to it is asked about at once.

That is what was put right, so nobody has to say it once more. Called where a process begins: workers, scheduler, and
every command that talks to Xendit. A stop by a person stays until that person lifts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from billing.parts import Parts
from billing.store import queries

_LENGTH = 16

log = structlog.get_logger()


def fingerprint(secret_key: str, base_url: str = "") -> str:
    """Tells two keys apart and cannot be turned back into one. The same words at another address are another key."""
    return hashlib.sha256(f"{base_url}{secret_key}".encode()).hexdigest()[:_LENGTH]


def _log(message: str) -> None:
    log.warning("charging.resumed", why=message)


def lift_stop_of_another_key(parts: Parts, tell: Callable[[str], None] = _log) -> bool:
    """False when the database could not be asked (it is away, or not migrated yet): whoever needs it will say so."""
    if parts.key_fingerprint is None:
        return True
    try:
        with parts.reading() as session:
            if not queries.has_waited_for_another_key(session, parts.key_fingerprint):
                return True
        with parts.transaction() as session:
            reason = queries.lift_stop_of_another_key(session, parts.key_fingerprint)
            queries.ask_unknown_tokens_now(session, parts.clock.now(), key=parts.key_fingerprint)
    except SQLAlchemyError:
        return False
    if reason is not None:
        tell(
            f"charging goes on: it was stopped ({reason}), and this process has another secret key than the refused;"
            " restart the processes that still have the old key, or they stop it again"
        )
    return True
