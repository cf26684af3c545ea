"""What a command costs before and while it does its work: CPU time, beside the imports that none can do without.

Each is run several times in turns with the yardstick, and the least of each counts: what is above it is other people's
work on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from benchmarks.world import Result, expect, fill, servers, site

YARDSTICK = ("-c", "import typer, sqlalchemy.orm, psycopg")
ROUNDS = 7
MOST = {
    ("--help",): 0.5,
    ("--version",): 0.5,
    ("subscription", "show", "s1"): 1.6,
    ("run",): 2.0,
}


def main(*, quick: bool = False) -> list[Result]:
    with servers() as shared:
        url = shared.new_ours("commands")
        with site(shared, url) as here:
            here.start_simulator(webhook_url="")
            environment = {**os.environ, **here.environment, "BILLING_REDIS_URL": ""}
            fill(url, subscriptions=1, due={datetime.now(UTC) + timedelta(days=30): 1})
            least = dict.fromkeys([YARDSTICK, *MOST], float("inf"))
            for _ in range(2 if quick else ROUNDS):
                for words in least:
                    arguments = words if words is YARDSTICK else ("-m", "billing", *words)
                    least[words] = min(least[words], _cpu_seconds(arguments, environment))
    yardstick = least.pop(YARDSTICK)
    return [
        Result(
            f"CPU of `billing {' '.join(words)}`, in imports of typer, sqlalchemy.orm and psycopg ({yardstick:.2f} s)",
            f"{seconds / yardstick:.2f}", f"<= {MOST[words]}", seconds / yardstick <= MOST[words],
        )
        for words, seconds in least.items()
    ]  # fmt: skip


def _cpu_seconds(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    before = os.times()
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    expect(ended.returncode == 0, f"{' '.join(arguments)}: exit status {ended.returncode}: {ended.stderr[-300:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system
