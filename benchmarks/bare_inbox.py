"""What a webhook endpoint costs at the least: the JSON into one table, committed, 200.

uvicorn benchmarks.bare_inbox:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

pool = AsyncConnectionPool(os.environ.get("BARE_INBOX_DATABASE", ""), min_size=8, max_size=8, open=False)


async def receive(request: Request) -> PlainTextResponse:
    payload = await request.json()
    async with pool.connection() as connection:
        await connection.execute("INSERT INTO inbox (payload) VALUES (%s)", [Jsonb(payload)])
    return PlainTextResponse("stored\n")


@asynccontextmanager
async def opened(_app: Starlette) -> AsyncIterator[None]:
    async with pool:
        async with pool.connection() as connection:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS inbox"
                " (id bigserial PRIMARY KEY, payload jsonb, received_at timestamptz DEFAULT now())"
            )
        yield


app = Starlette(routes=[Route("/webhooks/xendit", receive, methods=["POST"])], lifespan=opened)
