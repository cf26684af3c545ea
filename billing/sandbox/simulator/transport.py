"""The simulator behind an httpx client in the same process: for tests and simulations that own the clock."""

from collections.abc import Callable

import httpx

from billing.sandbox.simulator.core import Simulator


class SimulatorTransport(httpx.BaseTransport):
    """`httpx.Client(transport=SimulatorTransport(simulator))`; delays are skipped unless `sleep` is given."""

    def __init__(self, simulator: Simulator, *, sleep: Callable[[float], None] | None = None) -> None:
        self._simulator = simulator
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._simulator.answer(
            request.method,
            request.url.path,
            request.url.query.decode(),
            {name.lower(): value for name, value in request.headers.items()},
            request.read(),
        )
        if answer.delay_seconds and self._sleep is not None:
            self._sleep(answer.delay_seconds)
        patience = request.extensions.get("timeout", {}).get("read")
        if answer.drop or (patience is not None and answer.delay_seconds > patience):
            raise httpx.ReadTimeout("no answer from the simulator", request=request)
        return httpx.Response(answer.status, headers=list(answer.headers), content=answer.body, request=request)
