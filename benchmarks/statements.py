"""SQL statements and commits of one renewal, everything included: claim, begin, settle, webhook, and its share of the
ticks. Counted in PostgreSQL's own log, over real processes."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psycopg

from benchmarks.throughput import all_settled
from benchmarks.world import Result, fill, plain, servers, site, sleep_until, soon, start_ours

PROCESSES, THREADS = 2, 16
MOST_STATEMENTS, MOST_COMMITS = 14, 5
_LINE = re.compile(
    r"LOG:  (?:statement|execute [^:]*):\s*(?:/\*.*?\*/\s*)?\(?(\w+)"
)  # a statement may begin on the next line
_AROUND = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "SET", "SHOW", "DEALLOCATE"})


def main(*, quick: bool = False) -> list[Result]:
    renewals = 200 if quick else 1_000
    with servers() as shared:
        url = shared.new_ours("statements")
        with site(shared, url, BILLING_MAX_IN_FLIGHT="1000") as here:
            start_ours(here, processes=PROCESSES, threads=THREADS, latency_ms=150, jitter_ms=50)
            due_at = soon(renewals) + timedelta(seconds=2)
            fill(url, subscriptions=renewals, due={due_at: renewals}, tokens=here.gateway.new_tokens(renewals))
            _log_statements(url)
            sleep_until(due_at)
            before = shared.postgres_log.stat().st_size
            here.wait(lambda: all_settled(url, renewals), f"{renewals} renewals", seconds=120)
            counted = _count(shared.postgres_log, before)
    statements = sum(count for verb, count in counted.items() if verb not in _AROUND) / renewals
    commits = counted["COMMIT"] / renewals
    verbs = ", ".join(f"{verb} {count / renewals:.1f}" for verb, count in counted.most_common() if verb not in _AROUND)
    return [
        Result(
            f"SQL statements of a renewal, over {renewals:,}", f"{statements:.1f} ({verbs})",
            f"<= {MOST_STATEMENTS}", statements <= MOST_STATEMENTS,
        ),
        Result("commits of a renewal", f"{commits:.1f}", f"<= {MOST_COMMITS}", commits <= MOST_COMMITS),
    ]  # fmt: skip


def _log_statements(url: str) -> None:
    """For every session of this database, those that are open too."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")


def _count(log: Path, start: int) -> Counter[str]:
    with log.open("rb") as lines:
        lines.seek(start)
        return Counter(verb.upper() for verb in _LINE.findall(lines.read().decode(errors="replace")))
