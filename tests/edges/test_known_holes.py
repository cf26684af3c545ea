"""`make check` asks whether a locked version has a published vulnerability, and lives without an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.edges.local_server import Answer, local_server

ROOT = Path(__file__).parents[2]
LOCK = "anyio==4.9.0 \\\n    --hash=sha256:00\ncolorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:01\n"


def osv(holes: Mapping[str, Sequence[str]], asked: list[str] | None = None) -> Answer:
    """What OSV says when these are asked about."""
    names = list(holes) if asked is None else asked
    results = [{"vulns": [{"id": one} for one in holes[name]]} if name in holes else {} for name in names]
    return 200, {"content-type": "application/json"}, json.dumps({"results": results}).encode()


def check(folder: Path, url: str, *, accepted: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "lock").write_text(LOCK)
    (folder / "accepted.toml").write_text(f"[accepted]\n{accepted}\n")
    command = [ROOT / ".ci/check_known_holes.py", "--lock", "lock", "--accepted", "accepted.toml", "--url", url]
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


HOLES = {"anyio": ["GHSA-1"], "colorama": ["PYSEC-2", "GHSA-3"]}


def test_a_known_hole_fails_and_is_named(tmp_path: Path) -> None:
    with local_server(lambda *_request: osv(HOLES)) as server:
        checked = check(tmp_path, server.url)
    assert checked.returncode == 1
    assert "anyio 4.9.0: https://osv.dev/vulnerability/GHSA-1" in checked.stdout
    assert "3 in 2 packages" in checked.stdout
    assert len(server.requests) == 1
    assert [query["version"] for query in json.loads(server.requests[0][2])["queries"]] == ["4.9.0", "0.4.6"]


def test_without_holes_it_passes(tmp_path: Path) -> None:
    with local_server(lambda *_request: osv({}, ["anyio", "colorama"])) as server:
        checked = check(tmp_path, server.url)
    assert (checked.returncode, checked.stdout) == (0, "known holes: 0 in 2 packages, 0 accepted\n")


def test_a_hole_is_accepted_with_a_reason_only(tmp_path: Path) -> None:
    with local_server(lambda *_request: osv({"anyio": ["GHSA-1"]}, ["anyio", "colorama"])) as server:
        assert check(tmp_path, server.url, accepted='GHSA-1 = "not reachable"').returncode == 0
        assert check(tmp_path, server.url, accepted='GHSA-1 = " "').returncode == 1
        assert check(tmp_path, server.url, accepted='GHSA-2 = "another"').returncode == 1


def test_an_acceptance_that_is_not_needed_any_more_is_told(tmp_path: Path) -> None:
    with local_server(lambda *_request: osv({}, ["anyio", "colorama"])) as server:
        checked = check(tmp_path, server.url, accepted='GHSA-1 = "not reachable"')
    assert checked.returncode == 0
    assert "GHSA-1 is accepted and no longer there" in checked.stdout


def test_without_a_network_it_says_so_in_one_line_and_passes(tmp_path: Path) -> None:
    checked = check(tmp_path, "http://127.0.0.1:9/v1/querybatch")
    assert checked.returncode == 0
    assert checked.stdout.startswith("known holes: not checked")
    assert (checked.stdout.count("\n"), checked.stderr) == (1, "")


@pytest.mark.parametrize(
    "answer",
    [
        (503, {}, b"later"), (403, {}, b"proxy says no"), (200, {}, b"<html>log in</html>"), (200, {}, b"[]"),
        (200, {}, b'{"results": [{}]}'), (200, {}, b'{"results": [1, 2]}'),
    ],
)  # fmt: skip
def test_an_answer_of_somebody_else_is_no_answer(tmp_path: Path, answer: Answer) -> None:
    with local_server(lambda *_request: answer) as server:
        checked = check(tmp_path, server.url)
    assert (checked.returncode, checked.stdout.count("\n"), checked.stderr) == (0, 1, "")


def test_it_is_part_of_make_check() -> None:
    shown = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".ci/check_known_holes.py" in shown.stdout
