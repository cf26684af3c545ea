"""Whether the address of a server can be used at all: PostgreSQL's, Redis's, a web address. Called by settings.py.

Judged without connecting to anything, by the libraries that will connect: they know their options best. What is said
holds no part of an address: wherever it is malformed, that part may be the password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POSTGRES = "postgresql+psycopg://"

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::([0-9]*))?")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_LAST_PORT = 65_535
_QUOTE_THEM = (
    "user, password, host and name cannot be told apart: write special characters in the password as %XX"
    " (@ is %40, : is %3A, / is %2F, # is %23, ? is %3F, % is %25)"
)
_PORTS = f"its port must be a number from 1 to {_LAST_PORT}"

# A folder without a socket: libpq judges all options, then finds nobody there and asks no network for anything.
_NOBODY = "/nobody-listens-here"
# Judged by libpq only when it speaks TCP, or by psycopg.
_WHOLE_NUMBERS = (
    "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
)  # fmt: skip
_FILES = ("sslrootcert", "sslcert", "sslkey")
_NOT_A_FILE = "system"  # sslrootcert: the machine's own
# Of where to connect, or meant for TCP alone: not judged on the way to nobody.
_LEFT_OUT = ("host", "hostaddr", "gssencmode")
# Read by this software (store/engine.py), not by libpq.
_OURS = ("prepare_threshold",)


def refuse_strays(url: str) -> None:
    if _CONTROL.search(url) or url != url.strip():
        raise ValueError("holds a line end or control character, or a blank at an end; copy it once more")


# ----------------------------------------------------------------------------------------------- PostgreSQL


def check_database_url(url: str) -> None:
    """Raises ValueError, whose text shows nothing of it."""
    if not url.startswith(POSTGRES):
        raise ValueError("must start with postgresql+psycopg:// (PostgreSQL is the only database)")
    refuse_strays(url)
    _refuse_split(url.removeprefix(POSTGRES))
    _refuse_options_of_libpq(url)


def _refuse_split(text: str) -> None:
    """A special character that is not quoted has split it: a part of the password would be taken for the host, the
    port or the name, and shown wherever those are."""
    user_and_password, _, address = text.rpartition("@")
    address, _, _options = address.partition("?")
    host_and_port, _, name = address.partition("/")
    found = _HOST_AND_PORT.fullmatch(host_and_port)
    too_many = text.partition(":")[2].count("@") > 1  # a user name may hold one
    if too_many or found is None or "/" in user_and_password.partition(":")[0] or re.search(r"[@:/#\s]", name):
        raise ValueError(_QUOTE_THEM)
    _refuse_port(found[2])


def _refuse_port(digits: str | None) -> None:
    if digits is not None and not 1 <= int(digits[:9] or 0) <= _LAST_PORT:
        raise ValueError(_PORTS)


def _refuse_options_of_libpq(url: str) -> None:
    from psycopg import ProgrammingError  # noqa: PLC0415 - only where a database is set
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415
    from sqlalchemy import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        address, options = make_url(url), _as_libpq_gets_them(url)
    except (ArgumentError, ValueError):
        raise ValueError("its hosts and ports cannot be read; write one port for each host") from None
    for name, value in address.query.items():
        if not isinstance(value, str) and name not in ("host", "port"):
            raise ValueError(f"sets {_if_known(name)} twice")
    try:
        make_conninfo("", **options)
    except ProgrammingError:
        unknown = next((name for name in options if name not in _known_options()), "")
        near = get_close_matches(unknown, _known_options(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"holds an option that PostgreSQL's client library does not know{hint}") from None
    for name in _WHOLE_NUMBERS:
        if name in options and re.fullmatch(r"-?[0-9]{1,9}", options[name]) is None:
            raise ValueError(f"{name} must be a whole number")
    for name in _FILES:
        if options.get(name, _NOT_A_FILE) != _NOT_A_FILE and not Path(options[name]).is_file():
            raise ValueError(f"{name} names a file that is not there")
    if (said := _refused_by_libpq(options)) is not None:
        alone = (name for name, value in options.items() if name != "port" and _refused_by_libpq({name: value}))
        where = next(alone, None)
        raise ValueError(f"{where} has a value that cannot be used" if where else said)


def _as_libpq_gets_them(url: str) -> dict[str, str]:
    from sqlalchemy import make_url  # noqa: PLC0415
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg  # noqa: PLC0415

    address = make_url(url).difference_update_query(_OURS)
    dialect: Any = PGDialect_psycopg  # untyped
    _, options = dialect().create_connect_args(address)
    return {name: str(value) for name, value in options.items() if name != "context" or name in address.query}


def _known_options() -> list[str]:
    from psycopg import pq  # noqa: PLC0415

    return [option.keyword.decode() for option in pq.Conninfo.get_defaults()]


def _if_known(name: str) -> str:
    return name if name in _known_options() else "an option"


def _refused_by_libpq(options: Mapping[str, str]) -> str | None:
    """What it says, without the values in it; None when it would connect."""
    from psycopg import pq  # noqa: PLC0415
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    hosts = ",".join([_NOBODY] * (options.get("host", "").count(",") + 1))
    judged = {name: value for name, value in options.items() if name not in _LEFT_OUT}
    tried = pq.PGconn.connect_start(make_conninfo("", **judged, host=hosts).encode())
    said = tried.error_message.decode("utf-8", "replace").strip()
    tried.finish()
    if not said or _NOBODY in said:
        return None
    return re.sub(r':? *"[^"]*"', "", said.splitlines()[0])


# ---------------------------------------------------------------------------------------------------- Redis


def check_redis_url(url: str) -> None:
    """Raises ValueError, whose text shows nothing of it."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    refuse_strays(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_QUOTE_THEM) from None
    if parts.fragment or "@" in parts.path + parts.query:
        raise ValueError(_QUOTE_THEM)
    if parts.scheme != "unix":
        found = _HOST_AND_PORT.fullmatch(parts.netloc.rpartition("@")[2])
        if found is None:
            raise ValueError(_QUOTE_THEM)
        _refuse_port(found[2])
        if re.fullmatch(r"/?[0-9]*/?", parts.path) is None:
            raise ValueError("after its host and port comes the number of a database, such as /0, and nothing else")
    _refuse_options_of_redis(url)


def _refuse_options_of_redis(url: str) -> None:
    from redis.connection import ConnectionPool  # noqa: PLC0415 - only where Redis is set

    try:
        ConnectionPool.from_url(url).make_connection()  # which opens nothing
    except ValueError as error:
        named = re.search(r"'([a-z_]+)'", str(error))
        raise ValueError(f"{named[1]} has a value that cannot be used" if named else "cannot be read") from None
    except Exception:  # noqa: BLE001 - redis-py has a kind of its own for each option
        raise ValueError("holds an option that Redis's client library does not know or cannot use") from None


# ------------------------------------------------------------------------------------------------ the web's


def check_web_address(url: str, *, path: bool) -> str:
    """Without the slash at its end. Raises ValueError."""
    if not url.startswith(("http://", "https://")) or len(url.split("://", 1)[1]) == 0:
        raise ValueError("must start with http:// or https://")
    if re.search(r"\s", url) or _CONTROL.search(url):
        raise ValueError("holds a blank, a line end or a control character")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # of the port, the brackets, or a label of the host
        raise ValueError(f"is not a web address; {_PORTS}") from None
    if "@" in parts.netloc:
        raise ValueError("holds a user or password, which would be sent to nobody; leave them out")
    if "?" in url or "#" in url:
        raise ValueError("holds a query or fragment; end it before that")
    if _HOST.fullmatch(host) is None or port == 0 or parts.netloc.endswith(":"):
        raise ValueError("is not a web address")
    if parts.path.strip("/") and (not path or parts.path.startswith("//")):
        raise ValueError("holds a path; end it after the host and port")
    return url.rstrip("/")
