"""Many seeds on all cores: a database for each process, and in it one year after the other. For `billing simulate`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.engine import make_url

from billing import log
from billing.errors import ServiceUnavailable
from billing.sandbox import embedded
from billing.sandbox.simulation import guards
from billing.sandbox.simulation.play import Failed, Play, Year
from billing.store.engine import make_engine
from billing.store.migrate import upgrade
from billing.store.models import Base, DatabaseIdentity

SUBSCRIBERS = 2  # in a world: enough to get in each other's way, few enough to read the history


@dataclass(slots=True)
class Totals:
    """Of all years that were lived through. `failures`: the histories of those that were not."""

    years: int = 0
    subscriber_years: int = 0
    steps: int = 0
    charges: int = 0
    collected: int = 0
    refunded: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, year: Year | str) -> None:
        if isinstance(year, str):
            self.failures.append(year)
            return
        self.years += 1
        self.subscriber_years += year.subscribers
        self.steps += year.steps
        self.charges += year.charges
        self.collected += year.collected
        self.refunded += year.refunded
        self.faults += year.faults
        self.coverage += year.coverage


def simulate(
    seeds: Sequence[int], *, subscribers: int, processes: int | None, progress: Callable[[Totals], None]
) -> Totals:
    """Live through every seed, on a PostgreSQL of our own. `progress` is told after each."""
    totals, started = Totals(), time.monotonic()
    count = min(processes or os.cpu_count() or 1, len(seeds))
    with embedded.postgres() as server:
        databases = [_create_database(server.url, f"simulation_{number}") for number in range(count)]
        for year in _on_all_cores(databases, seeds, subscribers):
            totals.add(year)
            totals.seconds = time.monotonic() - started
            progress(totals)
    return totals


def _on_all_cores(databases: Sequence[str], seeds: Sequence[int], subscribers: int) -> Iterator[Year | str]:
    if len(databases) == 1:
        with simulated_database(databases[0]) as engine:
            for seed in seeds:
                yield play_seed(engine, seed, subscribers=subscribers)
        return
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    children = [
        context.Process(
            target=_play_share,
            args=(url, list(seeds[number :: len(databases)]), subscribers, results),
            daemon=True,
        )
        for number, url in enumerate(databases)
    ]
    for child in children:
        child.start()
    try:
        for _ in seeds:
            yield _next(results, children)
    finally:
        for child in children:
            child.terminate()
            child.join()


def _next(results: Any, children: Sequence[BaseProcess]) -> Year | str:
    while True:
        try:
            found: Year | str = results.get(timeout=5)
        except queue.Empty:
            if all(child.exitcode is not None for child in children):
                raise ServiceUnavailable("the simulating processes ended; see what they printed") from None
        else:
            return found


def _play_share(url: str, seeds: Sequence[int], subscribers: int, results: Any) -> None:
    with simulated_database(url) as engine:
        for seed in seeds:
            results.put(play_seed(engine, seed, subscribers=subscribers))


def play_seed(engine: Engine, seed: int, *, subscribers: int = SUBSCRIBERS) -> Year | str:
    """The year, or the history of its failure."""
    empty(engine)
    try:
        return Play(seed, engine, subscribers=subscribers).live_through()
    except Failed as failure:
        return str(failure)


@contextmanager
def simulated_database(url: str) -> Iterator[Engine]:
    """An engine on an empty database of our own, with the schema and the guards."""
    log.configure("json", level=logging.CRITICAL)  # what goes wrong on purpose is history, not a log line
    upgrade(url)
    engine = make_engine(url, pool_size=8)
    try:
        with engine.begin() as connection:
            guards.install(connection)
        yield engine
    finally:
        engine.dispose()


def empty(engine: Engine) -> None:
    """As new: the same seed finds the same rows in the same places. Which database this is stays noted."""
    tables = [table.name for table in Base.metadata.sorted_tables if table.name != DatabaseIdentity.__tablename__]
    names = ", ".join([*tables, guards.MOVES_TABLE])
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))


def _create_database(server_url: str, name: str) -> str:
    server = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=pool.NullPool)
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        # Tiny tables, the same statements a million times: planning them again costs more than running them.
        connection.execute(text(f"ALTER DATABASE {name} SET plan_cache_mode = force_generic_plan"))
        connection.execute(text(f"ALTER DATABASE {name} SET jit = off"))
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)
