"""How requests reach Xendit: connections, headers, and which transport errors leave the outcome open. Called
by client.py.

Every request is sent once, and nothing here repeats one: a repeated charge is a second charge. Whatever goes wrong
before its first byte is written is NotSent.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypedDict, Unpack

import httpx

from billing.domain.gateway import LONGEST_PAUSE_SECONDS
from billing.errors import GatewayError, InvalidSetting, NotFound, NotSent, OutcomeUnknown, Unavailable
from billing.xendit import network
from billing.xendit.codes import is_xendits, says_not_there
from billing.xendit.wire import dump_json, parse_json

# httpx logs every URL, and the URL of a token holds the token.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)

API_VERSION = "2024-11-11"
LONGEST_CONNECT_SECONDS = 10.0
_SHORT_ENOUGH = 12

# Raised before a byte of the request is written. Any other error may come after Xendit has it all, unless `_Watched`
# knows better.
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_NOT_MADE = (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeEncodeError)

_SENDING = (".send_request_headers.started", ".send_request_body.started")

OnResponse = Callable[[str, int, Mapping[str, str], float], None]
BeforeRequest = Callable[[str], None]
Body = Callable[[], Mapping[str, Any]]  # made in here, so that a body that cannot be made is one that was not sent


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of request. `what` begins its messages, `route` names the quota it counts against."""

    what: str
    method: str
    route: str
    names_a_record: bool = True  # a 404 then means that record, not a wrong address
    moves_money: bool = False

    @property
    def is_read(self) -> bool:
        return self.method == "GET"

    @property
    def is_charge(self) -> bool:
        return self.endpoint == "POST /v3/payment_requests"

    @property
    def endpoint(self) -> str:
        return f"{self.method} {self.route}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `payload` is None when it is not JSON; it stays out of every repr and message."""

    status: int
    headers: Mapping[str, str]
    payload: object | None = field(repr=False)

    @property
    def is_success(self) -> bool:
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def error_code(self) -> str | None:
        found = self.payload.get("error_code") if isinstance(self.payload, Mapping) else None
        cleaned = found.strip() if isinstance(found, str) else ""
        return cleaned if re.fullmatch(r"[A-Z0-9_]{1,64}", cleaned) else None

    @property
    def from_stranger(self) -> bool:
        """Not from Xendit: a success that is no JSON object, anything else without a code that Xendit documents."""
        if self.is_success:
            return not isinstance(self.payload, Mapping)
        return not is_xendits(self.error_code)

    @property
    def not_there(self) -> bool:
        """Xendit itself says that it has no such record."""
        return says_not_there(self.status, self.error_code)

    @property
    def request_id(self) -> str | None:
        found = self.headers.get("request-id") or self.headers.get("x-request-id") or ""
        return found if re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", found) else None

    @property
    def invalid_members(self) -> str:
        """Where a validation error points to, such as `/body/session_type`. Never what was there."""
        errors = self.payload.get("errors") if isinstance(self.payload, Mapping) else None
        paths = (
            [entry.get("path") for entry in errors if isinstance(entry, Mapping)] if isinstance(errors, list) else []
        )
        return ", ".join(
            path for path in paths[:3] if isinstance(path, str) and re.fullmatch(r"[a-z0-9_./]{1,60}", path)
        )


class Content(TypedDict, total=False):
    """Of one request: which record, and what goes with it."""

    record_id: str | None
    body: Body | None
    params: Mapping[str, str | Sequence[str]] | None
    headers: Mapping[str, str] | None


class Connection:
    """To one address with one key, for all threads of a process."""

    def __init__(
        self,
        *,
        base_url: str,
        secret_key: str,
        timeout_seconds: float,
        on_response: OnResponse | None,
        before_request: BeforeRequest | None,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._auth = httpx.BasicAuth(secret_key, "")
        self._timeout_seconds = timeout_seconds
        self._on_response = on_response
        self._before_request = before_request
        self._transport = transport
        # Keyed by thread id: an id that is used again takes over the client of the dead thread.
        self._clients: dict[int, httpx.Client] = {}
        self._lock = threading.Lock()
        self._ssl_context: ssl.SSLContext | None = None
        self._checked = False

    def __repr__(self) -> str:
        return f"Connection({self.address!r})"

    def ready(self) -> None:
        """All that a request needs of this machine is there. Raises InvalidSetting."""
        self._client()

    @property
    def address(self) -> str:
        """Without a user and password that somebody may have put into it."""
        port = f":{self.base_url.port}" if self.base_url.port else ""
        return f"{self.base_url.scheme}://{self.base_url.host}{port}"

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def send(self, call: Call, **content: Unpack[Content]) -> Answer:
        """Raises NotSent; without an answer, Unavailable for a read and OutcomeUnknown for all the rest."""
        client, request = self._make(call, **content)
        if self._before_request is not None:
            self._before_request(call.endpoint)
        watched = _Watched()
        if self._transport is None:
            request.extensions["trace"] = watched
        started = time.perf_counter()
        try:
            response = client.send(request)
        except Exception as error:
            if isinstance(error, _NOT_CONNECTED):
                raise self._not_sent(call, error) from None
            if isinstance(error, _NOT_MADE) or (self._transport is None and watched.nothing_left(error)):
                raise _not_made(call, error) from None
            if isinstance(error, httpx.RequestError):
                raise self._no_answer(call, error) from None
            raise
        self._tell(call, response, seconds=time.perf_counter() - started)
        return _answer(response)

    def prepare(self, call: Call, body: Body) -> None:
        """All of a request that could fail on this machine. Raises NotSent."""
        self._make(call, body=body)

    def _make(
        self,
        call: Call,
        *,
        record_id: str | None = None,
        body: Body | None = None,
        params: Mapping[str, str | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[httpx.Client, httpx.Request]:
        path = call.route if record_id is None else call.route.replace("{id}", _path_segment(record_id))
        try:
            client = self._client()
            content = None if body is None else dump_json(body())
            return client, client.build_request(
                call.method, path, params=params, content=content, headers=_headers(call, headers)
            )
        except InvalidSetting as error:
            raise NotSent(f"{call.what} was not sent: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing has left
            raise _not_made(call, error) from None

    def _tell(self, call: Call, response: httpx.Response, *, seconds: float) -> None:
        if self._on_response is not None:
            rates = {name: value for name, value in response.headers.items() if name in HEADERS}
            self._on_response(call.endpoint, response.status_code, rates, seconds)

    def _not_sent(self, call: Call, error: Exception) -> NotSent:
        return NotSent(
            f"{call.what} was not sent: no connection to {self.address}"
            f" ({_reason(error)}); check the network and BILLING_XENDIT_BASE_URL"
        )

    def _no_answer(self, call: Call, error: Exception) -> GatewayError:
        if isinstance(error, httpx.TimeoutException):
            happened = f"no answer within {self._timeout_seconds:g} s"
        else:
            happened = "the connection was lost before the answer"
        if call.is_read:
            return Unavailable(f"{call.what} failed: {happened}; it can be repeated")
        return OutcomeUnknown(f"{call.what}: {happened}, so whether it was done is unknown")

    def _client(self) -> httpx.Client:
        """One per thread: threads that share one spend their time in the lock of its pool."""
        return self._clients.get(threading.get_ident()) or self._open_client()

    def _open_client(self) -> httpx.Client:
        connect_seconds = min(self._timeout_seconds, LONGEST_CONNECT_SECONDS)
        beside_proxies = self._transport is not None or _is_this_machine(self.base_url.host)
        with self._lock:
            if not self._checked:
                # A transport of the caller's own brings its own security, and plain HTTP has none.
                if self._transport is None and self.base_url.scheme == "https":
                    self._ssl_context = network.tls_context()
                if not beside_proxies:
                    network.check_proxies()
                self._checked = True
            try:
                client = httpx.Client(
                    base_url=self.base_url,
                    auth=self._auth,
                    verify=self._ssl_context or False,
                    timeout=httpx.Timeout(self._timeout_seconds, connect=connect_seconds),
                    limits=httpx.Limits(max_connections=2, max_keepalive_connections=1),
                    trust_env=not beside_proxies,  # a proxy cannot reach our own simulator
                    transport=self._transport,
                )
            except Exception as error:  # noqa: BLE001 - of this machine, whatever it is
                raise network.not_made(error) from None
            self._clients[threading.get_ident()] = client
        return client


class _Watched:
    """Told by httpx of every step. A proxy that is asked for a way to Xendit has nothing of the request yet."""

    def __init__(self) -> None:
        self._begun: set[str] = set()

    def __call__(self, step: str, about: Mapping[str, Any]) -> None:
        if step.endswith(_SENDING) and about["request"].method != b"CONNECT":
            self._begun.add(step.rpartition("send_request_")[2])

    def nothing_left(self, error: Exception) -> bool:
        """Headers that HTTP does not allow are found when they are put together."""
        return not self._begun or (isinstance(error, httpx.LocalProtocolError) and len(self._begun) == 1)


def _not_made(call: Call, error: Exception) -> NotSent:
    """Without the error's text, which may hold what was to be sent, the key included."""
    return NotSent(
        f"{call.what} was not sent: the request could not be made on this machine ({error.__class__.__name__});"
        " please report it with the version of billing"
    )


def _answer(response: httpx.Response) -> Answer:
    payload: object | None = None
    with suppress(ValueError):
        payload = parse_json(response.content)
    return Answer(status=response.status_code, headers=response.headers, payload=payload)


def _headers(call: Call, extra: Mapping[str, str] | None) -> dict[str, str]:
    headers = {"accept": "application/json", "content-type": "application/json"}
    if call.route.startswith("/v3/"):
        headers["api-version"] = API_VERSION
    return headers | dict(extra or {})


def _path_segment(record_id: str) -> str:
    """What no id of Xendit's can look like must not become a path, where `..` would be another address."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", record_id):
        raise NotFound(f"Xendit has no record {shortened(record_id)!r}: that is not one of its ids")
    return record_id


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _checked_url(base_url: str) -> httpx.URL:
    url = network.web_address(base_url, ("http", "https"))
    if url is None or url.query or url.fragment:
        raise InvalidSetting("BILLING_XENDIT_BASE_URL: not a web address; for example https://api.xendit.co")
    return url


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def shortened(record_id: str) -> str:
    return record_id if len(record_id) <= _SHORT_ENOUGH else f"{record_id[:7]}...{record_id[-4:]}"


# ------------------------------------------------------------------------------------ what headers say of the quota


WINDOW_SECONDS = 60.0  # of Xendit's quota: what is waited when no header says more
SHORTEST_WAIT_SECONDS = 1.0
HEADERS = ("rate-limit-limit", "rate-limit-remaining", "rate-limit-reset", "retry-after")
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rates:
    """`limit` and `remaining` of the window, None when they are not told.

    Others write these headers: a proxy, a gateway with a wrong clock, a mistake. What is not a plain number is as good
    as nothing, and no wait is longer than an hour.
    """

    limit: int | None
    remaining: int | None
    wait_seconds: float | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Rates:
        named = (_number(headers.get(name)) for name in ("rate-limit-reset", "retry-after"))
        wait = next((seconds for seconds in named if seconds is not None), None)
        return cls(
            limit=_whole(headers.get("rate-limit-limit")),
            remaining=_whole(headers.get("rate-limit-remaining")),
            wait_seconds=None if wait is None else min(max(wait, SHORTEST_WAIT_SECONDS), LONGEST_PAUSE_SECONDS),
        )

    def wait_or(self, default: float = WINDOW_SECONDS) -> float:
        """Seconds until the gateway takes requests again."""
        return default if self.wait_seconds is None else self.wait_seconds


def _number(header: str | None) -> float | None:
    """`58.37`. An instant (`1795737600`, a date), a sign, an exponent, a list or nothing is None."""
    return float(header) if header is not None and _NUMBER.fullmatch(header.strip()) else None


def _whole(header: str | None) -> int | None:
    number = _number(header)
    return int(number) if number is not None and number.is_integer() else None
