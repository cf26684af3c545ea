"""The webhook endpoint under fire: no 500, nothing accepted that is not stored, nothing stored that cannot be applied.

    python -m tests.edges.fuzz --inputs 100000 --seed 1        the long run, with a PostgreSQL of its own
    python -m tests.edges.fuzz --seed 1 --only 4711            one input again

The web application is called in this process, without sockets; everything behind it is the real thing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, func, select
from starlette.applications import Starlette

from billing import log
from billing.app import App
from billing.checks import doctor
from billing.errors import WebhookRejected
from billing.inbox import apply
from billing.sandbox import embedded
from billing.settings import Settings
from billing.store.migrate import upgrade
from billing.store.models import ChargeAttempt, Customer, PaymentSession, PaymentToken, WebhookEvent
from billing.web import make_web
from billing.xendit.webhook import read_event, read_payload
from tests.edges.hostile import Hostile, Ours, hostile
from tests.world import NO_PERIOD_TWICE, World

TOKEN = "fuzz-callback-token"
ALLOWED = {200, 400, 401, 413}
NEW_CAST_EVERY = 1_000


@dataclass
class Target:
    """The web process on a database in which something is under way, and what has been sent to it."""

    world: World
    web: Starlette
    statuses: Counter[int] = field(default_factory=Counter)
    deliveries: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    casts: int = 0

    # What it aims at -------------------------------------------------------------------------------------------

    def new_cast(self) -> Ours:
        """Subscribers in every state that an event can change; the ids an attacker would need to know."""
        self.casts += 1
        name, world = f"c{self.casts}", self.world
        before = self._newest_event()
        world.subscribe(f"{name}-link")
        world.subscribe_pay(f"{name}-paid")
        for outcome in ("SUCCEEDED", "DECLINED_BY_ISSUER", "TIMEOUT_BEFORE", "TIMEOUT_AFTER"):
            world.subscribe_save(f"{name}-{outcome}".lower().replace("_", "-")).script(outcome)
        world.tick()  # charges them; the webhooks of these charges never come
        world.subscribe_save(f"{name}-due")
        world.open_due()
        with world.parts.sessions() as session:  # what Xendit itself has told
            known = select(WebhookEvent.dedupe_key, WebhookEvent.deliveries).where(WebhookEvent.id > before)
            self.deliveries.update({row[0]: row[1] for row in session.execute(known)})
        return self._ids()

    def _newest_event(self) -> str:
        with self.world.parts.sessions() as session:
            return session.scalar(select(func.max(WebhookEvent.id))) or ""

    def _ids(self) -> Ours:
        wanted = {
            "reference_id": (ChargeAttempt.reference_id, PaymentSession.reference_id),
            "payment_request_id": (ChargeAttempt.payment_request_id, PaymentSession.payment_request_id),
            "payment_id": (ChargeAttempt.payment_id,),
            "payment_token_id": (PaymentToken.payment_token_id,),
            "payment_session_id": (PaymentSession.xendit_session_id,),
            "customer_id": (Customer.xendit_customer_id,),
        }
        with self.world.parts.sessions() as session:
            return {
                name: [
                    found
                    for column in columns
                    for found in session.scalars(
                        select(column).where(column.is_not(None)).order_by(column.class_.id.desc()).limit(8)
                    )
                ]
                for name, columns in wanted.items()
            }

    # Firing ----------------------------------------------------------------------------------------------------

    def fire(self, one: Hostile) -> None:
        status = asyncio.run(self._post(one))
        self.note(one, status)

    async def fire_all(self, seed: int, numbers: range) -> None:
        ours: Ours = {}
        for number in numbers:
            if not ours or number % NEW_CAST_EVERY == 0:
                ours = self.new_cast()
            one = hostile(seed, number, ours)
            self.note(one, await self._post(one))

    async def _post(self, one: Hostile) -> int:
        """Ends when what the web process does after its answer is done. 500 for an exception that got through."""
        token = one.token(TOKEN)
        headers = [*one.headers, *([(b"x-callback-token", token)] if token is not None else [])]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/webhooks/xendit", "raw_path": b"/webhooks/xendit", "query_string": b"", "root_path": "",
            "headers": headers, "client": ("192.0.2.7", 1), "server": ("billing.example", 80),
        }  # fmt: skip
        unread, answered = list(one.chunks), []

        async def receive() -> MutableMapping[str, Any]:
            if not unread:
                return {"type": "http.disconnect"}
            chunk = unread.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(unread)}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])

        try:
            await self.web(scope, receive, send)
        except Exception:  # noqa: BLE001 - whatever gets through is what is looked for
            self.failures.append(f"input {one.number}: {traceback.format_exc(limit=-3)}")
            return 500
        return int(answered[0])

    # Judging ---------------------------------------------------------------------------------------------------

    def note(self, one: Hostile, status: int) -> None:
        self.statuses[status] += 1
        trusted = one.token(TOKEN) == TOKEN.encode()
        if status not in ALLOWED or trusted != (status != 401):
            self.fails(one, f"answered {status} to a {'right' if trusted else 'wrong'} token")
        if status == 200:
            self._judge_accepted(one)

    def _judge_accepted(self, one: Hostile) -> None:
        try:
            payload = read_payload(one.body)
            event = read_event(payload)
        except WebhookRejected as error:
            return self.fails(one, f"accepted, though {error}")
        self.deliveries[event.dedupe_key] += 1
        with self.world.parts.sessions() as session:
            row = session.scalar(select(WebhookEvent).where(WebhookEvent.dedupe_key == event.dedupe_key))
        if row is None:
            return self.fails(one, "accepted and not stored")
        if row.deliveries != self.deliveries[event.dedupe_key]:
            self.fails(one, f"accepted and not counted: {row.deliveries} deliveries")
        if self.deliveries[event.dedupe_key] == 1 and row.payload != payload:
            self.fails(one, "stored as something else")
        if row.state not in ("applied", "unmatched", "ignored"):
            self.fails(one, f"{row.state}: {row.error}")
        return None

    def fails(self, one: Hostile, why: str) -> None:
        self.failures.append(f"input {one.number}: {why}\n    {one.body[:600]!r}")

    def unapplicable(self) -> list[str]:
        """Every stored event once more, as `billing replay` does it: which park or keep an error."""
        with self.world.parts.sessions() as session:
            ids = list(session.scalars(select(WebhookEvent.id)))
        for event_id in ids:
            apply.apply_stored_event(self.world.parts, event_id, read_event, again=True)
        with self.world.parts.sessions() as session:
            bad = select(WebhookEvent.id, WebhookEvent.event, WebhookEvent.error).where(
                (WebhookEvent.state == "parked") | WebhookEvent.error.is_not(None)
            )
            return [f"{row.id} {row.event}: {row.error}" for row in session.execute(bad)]

    def states(self) -> dict[str, int]:
        with self.world.parts.sessions() as session:
            query = select(WebhookEvent.state, func.count()).group_by(WebhookEvent.state).order_by(WebhookEvent.state)
            return {row[0]: row[1] for row in session.execute(query)}


# What only Xendit can keep apart, and a stranger who knows the token can mix up.
CONTRADICTED = ("payment_requests_used_once", "tokens_belong_to_the_payer", "no_event_is_parked")


@contextmanager
def target(database_url: str) -> Iterator[Target]:
    """Hostile events contradict Xendit's ledger on purpose; all other promises hold."""
    with World(database_url) as world:
        world.waive(NO_PERIOD_TWICE, *CONTRADICTED)
        settings = Settings(
            _env_file=None,
            database_url=database_url,
            xendit_secret_key="xnd_development_fuzz",
            xendit_callback_token=TOKEN,
        )
        engine: Engine = world.engine
        yield Target(world, make_web(App(settings, engine, world.parts), settings, None))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--start", type=int, default=0, help="the number of the first input")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", type=int, help="the number of one input to send again")
    options.add_argument("--verbose", action="store_true", help="show what the web process logs")
    chosen = options.parse_args()
    log.configure("json", level=logging.INFO if chosen.verbose else logging.CRITICAL)
    first, inputs = (chosen.start, chosen.inputs) if chosen.only is None else (chosen.only, 1)
    numbers = range(first, first + inputs)
    with embedded.postgres() as server:
        upgrade(server.url)
        with target(server.url) as aim:
            started = time.perf_counter()
            asyncio.run(aim.fire_all(chosen.seed, numbers))
            seconds = time.perf_counter() - started
            states, replayed = aim.states(), aim.unapplicable()
            found = [check["detail"] for check in doctor.examine(aim.world.parts)["checks"] if not check["ok"]]
    print(f"{len(numbers):,} inputs in {seconds:,.0f} s ({len(numbers) / seconds:,.0f} a second), seed {chosen.seed}")
    print("answers:", ", ".join(f"{status} {count:,}" for status, count in sorted(aim.statuses.items())))
    print("stored events:", ", ".join(f"{state} {count:,}" for state, count in states.items()))
    print(f"failures: {len(aim.failures)}; fail when replayed: {len(replayed)}")
    for line in (*aim.failures[:20], *replayed[:20]):
        print(" ", line)
    for line in found:
        print("  billing doctor afterwards:", line)
    return 1 if aim.failures or replayed else 0


if __name__ == "__main__":
    sys.exit(main())
