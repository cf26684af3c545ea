"""Scripts outside are checked against what they import: the package says that it is typed, and what its types are."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.api.test_parity import methods
from tests.api.test_scripting import SCRIPTS

TYPED = Path(__file__).with_name("typed")
ROOT = TYPED.parents[2]


@pytest.mark.timeout(600)
def test_scripts_outside_are_checked_by_mypy_strict(tmp_path: Path) -> None:
    """Those of docs/scripting.md as well."""
    for name, script in SCRIPTS.items():
        (tmp_path / name).write_text(script, encoding="utf-8")
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            *("--config-file", "", "--cache-dir", str(tmp_path / "cache"), "--no-pretty", "--show-error-codes"),
            *(str(path) for path in sorted((*TYPED.glob("*.py"), *tmp_path.glob("*.py")))),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {(Path(name).name, int(line), code) for name, line, code in ERROR.findall(checked.stdout)}
    wanted = {
        ("mistakes.py", number, match[1])
        for number, line in enumerate((TYPED / "mistakes.py").read_text().splitlines(), start=1)
        if (match := re.search(r"# E: ([a-z-]+)", line))
    }
    assert found == wanted, checked.stdout + checked.stderr


ERROR = re.compile(r"^(\S+\.py):(\d+): error: .*\[([a-z-]+)\]$", re.MULTILINE)


def test_that_script_uses_every_operation() -> None:
    script = (TYPED / "every_operation.py").read_text()
    assert [name for name in methods() if f"billing.{name}(" not in script] == []


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    assert (ROOT / "billing" / "py.typed").read_bytes() == b""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"billing/py.typed", "billing/api/__init__.py", "billing/shapes.py"} <= names


def test_importing_the_package_loads_nothing_of_it() -> None:
    """The command line imports it before it can say anything, and Ctrl-C before that would be a traceback."""
    heavy = ("pydantic", "sqlalchemy", "httpx", "typer", "alembic")
    script = (
        "import sys, billing; from billing import __version__, NotFound;"
        f" print(sorted(name for name in sys.modules if name.startswith(('billing', *{heavy!r}))))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "['billing', 'billing.errors']"


def test_the_package_gives_billing_and_every_error() -> None:
    import billing
    from billing import api, errors

    assert billing.Billing is api.Billing
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.BillingError)
    }
    assert set(billing.__all__) == {"Billing", *kinds}
    assert all(getattr(billing, name) is getattr(errors, name) for name in kinds)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        billing.Nonsense  # type: ignore[attr-defined]  # noqa: B018
