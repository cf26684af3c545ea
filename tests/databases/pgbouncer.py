"""A real PgBouncer in front of the tests' PostgreSQL, as Debian ships it: 1.18 knows no prepared statements."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
from sqlalchemy.engine import make_url

PORT = 6432  # only names the socket file
LONGEST_START_SECONDS = 15


def find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


@contextmanager
def pgbouncer(database_url: str, folder: Path, **settings: str) -> Iterator[str]:
    """The URL of the same database behind a PgBouncer that gives each transaction any of six connections."""
    program = find_pgbouncer()
    assert program is not None, "no pgbouncer here; apt-get install pgbouncer"
    behind = make_url(database_url)
    host, password = behind.host or behind.query.get("host"), behind.password
    server = f"host={host} port={behind.port or 5432} user={behind.username or 'postgres'}"
    configuration = {
        "unix_socket_dir": str(folder),
        "listen_port": str(PORT),
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": "6",
        "max_client_conn": "500",
        "server_login_retry": "1",
        **settings,
    }
    lines = ["[databases]", f"* = {server} {f'password={password}' if password else ''}", "[pgbouncer]"]
    file = folder / "pgbouncer.ini"
    file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in configuration.items())]) + "\n")
    _give_away(folder, file)
    with (folder / "pgbouncer.log").open("wb") as log:
        user = ["--user", "nobody"] if os.geteuid() == 0 else []
        running = subprocess.Popen([program, *user, str(file)], stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"postgresql+psycopg://postgres@/{behind.database}?host={quote(str(folder), safe='/')}&port={PORT}"
        _wait_for(url, running, folder)
        yield url
    finally:
        running.terminate()
        running.wait(timeout=LONGEST_START_SECONDS)


def _wait_for(url: str, running: subprocess.Popen[bytes], folder: Path) -> None:
    give_up = time.monotonic() + LONGEST_START_SECONDS
    while True:
        try:
            psycopg.connect(url.replace("postgresql+psycopg", "postgresql")).close()
            return
        except psycopg.Error:
            if running.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"PgBouncer: {(folder / 'pgbouncer.log').read_text()[-500:]}") from None
            time.sleep(0.05)


def _give_away(*paths: Path) -> None:
    """It will not run as root, and is then another user."""
    if os.geteuid() == 0:
        for path in paths:
            shutil.chown(path, "nobody")
