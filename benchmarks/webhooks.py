"""How fast the webhook endpoint answers: 100 deliveries a second, each a new event, against `uvicorn billing.web`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles

import httpx

from benchmarks.world import CALLBACK_TOKEN, Result, database, environment, free_port, wait_until_up

PER_SECOND = 100
SECONDS = 20
GOAL_MS = 20


def main() -> list[Result]:
    with database() as database_url:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "billing.web:create_app", "--factory", "--port", str(port)]
        command += ["--log-level", "warning"]
        with subprocess.Popen(command, env={**os.environ, **environment(database_url)}) as web:
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until_up(url, web)
                _deliver(url, 2)
                times = _deliver(url, SECONDS)
            finally:
                web.terminate()
    middle = median(times) * 1_000
    late = quantiles(times, n=100)[98] * 1_000
    return [
        Result(
            f"webhook answered, median at {PER_SECOND} a second",
            f"{middle:.1f} ms",
            f"< {GOAL_MS} ms",
            middle < GOAL_MS,
        ),
        Result("webhook answered, 99th percentile", f"{late:.1f} ms", "", met=True),
    ]


def _deliver(url: str, seconds: int) -> list[float]:
    times: list[float] = []
    here = threading.local()

    def deliver(number: int) -> None:
        client: httpx.Client = getattr(here, "client", None) or httpx.Client(base_url=url)
        here.client = client
        started = time.perf_counter()
        answer = client.post("/webhooks/xendit", json=_event(number), headers={"x-callback-token": CALLBACK_TOKEN})
        times.append(time.perf_counter() - started)
        if answer.status_code != httpx.codes.OK:
            raise SystemExit(f"the webhook endpoint answered {answer.status_code}")

    with ThreadPoolExecutor(16) as pool:
        started = time.perf_counter()
        for number in range(PER_SECOND * seconds):
            time.sleep(max(0.0, started + number / PER_SECOND - time.perf_counter()))
            pool.submit(deliver, number)
    return times


def _event(number: int) -> dict[str, object]:
    identity = f"{time.monotonic_ns():032x}"
    return {
        "event": "payment.capture",
        "business_id": "0123456789abcdef01234567",
        "created": "2027-01-15T03:00:00.000Z",
        "data": {
            "payment_id": f"py-{identity}-{number}",
            "payment_request_id": f"pr-{identity}-{number}",
            "reference_id": f"att-{identity}{number}",
            "status": "SUCCEEDED",
            "type": "PAY",
            "country": "ID",
            "currency": "IDR",
            "request_amount": 50000,
            "channel_code": "CARDS",
            "captures": [{"capture_id": f"cptr-{identity}", "capture_amount": 50000}],
            "updated": "2027-01-15T03:00:00.000Z",
        },
    }


if __name__ == "__main__":
    for result in main():
        print(result)
