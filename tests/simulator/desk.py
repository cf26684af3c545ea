"""A simulator on a clock the test owns, with the calls a merchant makes written short."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import simplejson

from billing.sandbox.simulator import Simulator, SimulatorConfig
from billing.sandbox.simulator.answers import Answer
from billing.sandbox.simulator.webhooks import Delivery

KEY = "Basic " + b64encode(b"xnd_development_test:").decode()
START = datetime(2026, 1, 15, 9, 0, tzinfo=UTC)
HEADERS = {"authorization": KEY, "api-version": "2024-11-11", "content-type": "application/json"}
PERSON = {
    "type": "INDIVIDUAL",
    "reference_id": "subscriber-1",
    "individual_detail": {"given_names": "Siti", "surname": "Rahma"},
}


def session_body(**changes: object) -> dict[str, Any]:
    body: dict[str, Any] = {
        "reference_id": "ses-1",
        "session_type": "SAVE",
        "mode": "PAYMENT_LINK",
        "amount": 0,
        "currency": "IDR",
        "country": "ID",
        "customer": PERSON,
        "success_return_url": "https://shop.example/ok",
        "cancel_return_url": "https://shop.example/cancel",
    }
    return without_none(body | changes)


def without_none(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


@dataclass
class Desk:
    config: SimulatorConfig = field(default_factory=lambda: SimulatorConfig(requests_per_minute=1_000_000))
    now: datetime = START
    charges: int = 0

    def __post_init__(self) -> None:
        self.simulator = Simulator(lambda: self.now, seed=7, config=self.config)

    def raw(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        path, _, query = path.partition("?")
        payload = b"" if body is None else simplejson.dumps(body, use_decimal=True).encode()
        sent = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.simulator.answer(method, path, query, sent, payload)

    def post(self, path: str, body: object = None, *, status: int | None = None) -> Any:
        return self._read(self.raw("POST", path, body), status)

    def get(self, path: str, query: Mapping[str, object] | None = None, *, status: int = 200) -> Any:
        return self._read(self.raw("GET", f"{path}?{urlencode(query or {}, doseq=True)}"), status)

    def refusal(self, path: str, body: object) -> tuple[int, str]:
        answer = self.raw("POST", path, body)
        return answer.status, simplejson.loads(answer.body).get("error_code", "")

    def open_session(self, **changes: object) -> Any:
        return self.post("/sessions", session_body(**changes), status=201)

    def complete(self, session: dict[str, Any], **body: object) -> Any:
        return self.post(f"/_simulator/sessions/{session['payment_session_id']}/complete", body, status=200)

    def session(self, session: dict[str, Any]) -> Any:
        return self.get(f"/sessions/{session['payment_session_id']}", status=200)

    def new_token(self, **body: object) -> str:
        return str(self.post("/_simulator/tokens", body, status=201)["payment_token_id"])

    def script(self, token: str, *outcomes: str) -> None:
        self.post(f"/_simulator/tokens/{token}/script", {"outcomes": outcomes}, status=200)

    def charge_body(self, token: str, **changes: object) -> dict[str, Any]:
        self.charges += 1
        body: dict[str, Any] = {
            "reference_id": f"att-{self.charges}",
            "type": "PAY",
            "payment_token_id": token,
            "country": "ID",
            "currency": "IDR",
            "request_amount": 50_000,
            "channel_properties": {
                "card_on_file_type": "RECURRING",
                "skip_three_ds": True,
                "recurring_configuration": {"recurring_frequency": 30, "recurring_expiry": "2028-12-31"},
            },
        }
        return without_none(body | changes)

    def charge(self, token: str, **changes: object) -> Any:
        return self.post("/v3/payment_requests", self.charge_body(token, **changes), status=201)

    def payment_of(self, request: dict[str, Any]) -> Any:
        return self.get(f"/v3/payments/{request['latest_payment_id']}", status=200)

    def later(self, **time: float) -> None:
        self.now += timedelta(**time)

    def due(self) -> list[Delivery]:
        return self.simulator.due_deliveries(self.now)

    def received(self, status: int | None = 200) -> list[tuple[str, dict[str, Any]]]:
        """Takes every due webhook and answers each with `status`."""
        events = []
        for delivery in self.due():
            body = simplejson.loads(delivery.body, use_decimal=True)
            events.append((body["event"], body["data"]))
            self.simulator.delivery_result(delivery, status)
        return events

    def event_names(self) -> list[str]:
        return [name for name, _ in self.received()]

    def collected(self, currency: str = "IDR") -> Decimal:
        totals = self.get("/_simulator/ledger", {"summary": 1})["totals"]
        return Decimal(totals[currency]["captured"]) if currency in totals else Decimal(0)

    def _read(self, answer: Answer, status: int | None) -> Any:
        assert not answer.drop, "the connection was dropped"
        assert status is None or answer.status == status, (answer.status, answer.body)
        return simplejson.loads(answer.body, use_decimal=True)
