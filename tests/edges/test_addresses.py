"""No address out of a payload is ever fetched, and nothing out of a payload changes where a call goes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import simplejson

from billing.domain.gateway import ChargeRequest, NewCustomer, SessionMode, SessionRequest, SessionType
from billing.domain.money import Money
from billing.errors import BillingError, NotFound
from billing.store.clock import real_now
from billing.web import TEMPLATES
from billing.xendit import wire
from billing.xendit.client import XenditGateway
from tests.edges.local_server import Answer, LocalServer, local_server
from tests.world import World

SAMPLES = sorted((Path(__file__).parents[1] / "xendit" / "samples").glob("*.json"))
ID_MEMBERS = {"reference_id", "payment_id", "payment_request_id", "payment_token_id", "payment_session_id", "id"}
ID = "pr-0123456789abcdef"
KNOWN_PATHS = re.compile(
    r"(GET|POST) (/customers|/sessions|/v3/payment_tokens|/v3/payment_requests|/v3/payments|/transactions|/refunds)"
    r"(/pr-0123456789abcdef)?(/cancel)?(\?.*)?"
)


@pytest.fixture
def evil() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


def gateway_at(url: str) -> XenditGateway:
    return XenditGateway(base_url=url, secret_key="xnd_development_x", timeout_seconds=5)


CALLS: list[Callable[[XenditGateway], object]] = [
    lambda gateway: gateway.create_customer(NewCustomer("ana", "Ana", "ana@example.com", "ID", None)),
    lambda gateway: gateway.create_session(
        SessionRequest(
            reference_id="ses-1", type=SessionType.SAVE, mode=SessionMode.PAYMENT_LINK, customer_id="cust-1",
            amount=Money.zero("IDR"), country="ID", expires_at=real_now(), description="x", allowed_channels=["CARDS"],
            metadata={},
        )
    ),
    lambda gateway: gateway.get_session(ID),
    lambda gateway: gateway.cancel_session(ID),
    lambda gateway: gateway.get_token(ID),
    lambda gateway: gateway.cancel_token(ID),
    lambda gateway: gateway.charge(charge()),
    lambda gateway: gateway.get_charge(ID),
    lambda gateway: gateway.cancel_charge(ID),
    lambda gateway: gateway.get_payment(ID),
    lambda gateway: gateway.find_transactions("att-1"),
    lambda gateway: gateway.list_transactions(created_from=real_now(), created_to=real_now()),
    lambda gateway: gateway.refund(
        reference_id="ref-1", payment_request_id=ID, amount=Money(1, "IDR"), reason="DUPLICATE"
    ),
]  # fmt: skip


def charge() -> ChargeRequest:
    return ChargeRequest(
        reference_id="att-1", payment_token_id="pt-1", channel_code="CARDS", amount=Money(50_000, "IDR"),
        country="ID", description="x", metadata={}, recurring=None,
    )  # fmt: skip


def poisoned(url: str, value: Any, name: str = "") -> Any:
    """Every text that is no id and no status replaced by an address."""
    if isinstance(value, dict):
        return {key: poisoned(url, entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(url, entry, name) for entry in value]
    return value if not isinstance(value, str) or name in ID_MEMBERS | {"event", "status", "currency"} else url


# What we are told


@pytest.mark.parametrize("how", ["everywhere", "as ids too"])
def test_no_address_in_a_webhook_is_fetched(database_url: str, evil: LocalServer, how: str) -> None:
    with World(database_url) as world:
        world.waive("payment_requests_used_once")  # the samples all name the same one
        ana = world.subscribe_save()
        world.open_due()
        for sample in SAMPLES:
            payload = poisoned(evil.url, json.loads(sample.read_bytes()))
            payload["data"] |= {"reference_id": ana.attempt.reference_id, "payment_token_id": evil.url}
            for name in ("callback_url", "url", "href", "next", "links", "success_return_url", "webhook_url"):
                payload["data"][name] = payload[name] = evil.url
            if how == "as ids too":
                for name in ID_MEMBERS & payload["data"].keys():
                    payload["data"][name] = f"{evil.url}/{name}"
            world.receive(simplejson.dumps(payload).encode())
        world.live(days=3)
        assert world.events()
    assert evil.requests == []


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_no_address_in_an_answer_is_fetched(evil: LocalServer, call: Callable[[XenditGateway], object]) -> None:
    def answer(_method: str, _path: str, _body: bytes) -> Answer:
        addresses = dict.fromkeys(
            ("next", "url", "href", "location", "links", "payment_link_url", "action_url", "after_id"), evil.url
        )
        ids = dict.fromkeys(ID_MEMBERS, ID)
        body = addresses | ids | {
            "reference_id": "att-1", "status": "SUCCEEDED", "type": "PAYMENT", "currency": "IDR", "amount": 1,
            "actions": [{"descriptor": "WEB_URL", "value": evil.url}], "has_more": False,
        }  # fmt: skip
        return (
            200,
            {"link": f'<{evil.url}>; rel="next"', "content-location": evil.url, "refresh": f"0; url={evil.url}"},
            (json.dumps(body | {"data": [body], "links": [{"href": evil.url, "rel": "next"}]}).encode()),
        )

    outcome = ended(call, answer)

    assert outcome.paths
    assert all(KNOWN_PATHS.fullmatch(path) for path in outcome.paths), outcome.paths
    assert evil.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_no_redirect_is_followed(evil: LocalServer, call: Callable[[XenditGateway], object], status: int) -> None:
    """It would take the key and the body along, and a charge would be sent twice."""
    outcome = ended(call, lambda _method, path, _body: (status, {"location": f"{evil.url}{path}"}, b""))
    assert len(outcome.requests) == 1
    assert evil.requests == []


def ended(call: Callable[[XenditGateway], object], answers: Callable[[str, str, bytes], Answer]) -> LocalServer:
    with local_server(answers) as xendit:
        gateway = gateway_at(xendit.url)
        try:
            call(gateway)
        except BillingError:
            pass
        finally:
            gateway.close()
        return xendit


# Ids

NO_IDS = [
    "../refunds", "..", ".", "a/b", "//evil.example/x", "\\\\evil.example", "%2e%2e%2frefunds", "%2F", "a%00", "a\x00",
    "a\nb", "a\r\nhost: evil.example", "pr-1\n", "a?b=c", "a#b", "a;b", "@evil.example", "http://evil.example/", " ",
    "", "pr-1 ", "é", "\uff0e\uff0e\uff0fx", "\u2215", "x" * 65,
]  # fmt: skip


@pytest.mark.parametrize("identity", NO_IDS)
def test_what_is_no_id_never_becomes_a_path(identity: str) -> None:
    with local_server() as xendit:
        gateway = gateway_at(xendit.url)
        for call in (gateway.get_session, gateway.cancel_session, gateway.get_token, gateway.cancel_token,
                     gateway.get_charge, gateway.cancel_charge, gateway.get_payment):  # fmt: skip
            with pytest.raises(NotFound):
                call(identity)
        gateway.close()
    assert xendit.requests == []


@pytest.mark.parametrize("identity", [each for each in NO_IDS if each.isprintable() and each.strip()])
def test_the_next_page_is_asked_for_by_one_parameter(identity: str) -> None:
    row = {"id": identity, "type": "PAYMENT", "status": "SUCCESS"}
    pages = [{"has_more": True, "data": [row]}, {"has_more": False, "data": []}]
    with local_server(lambda *_request: (200, {}, json.dumps(pages.pop(0)).encode())) as xendit:
        gateway = gateway_at(xendit.url)
        gateway.find_transactions("att-1")
        gateway.close()
    first, second = xendit.paths
    assert re.fullmatch(re.escape(first) + r"&after_id=[A-Za-z0-9%._~+-]*", second)


# What our pages and documents show


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", "JavaScript://%0aalert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd",
     "//evil.example", "/x", "x", "https://", "http:///x", " javascript:alert(1)", "java\tscript:alert(1)", "blob:https://x/y"],
)  # fmt: skip
def test_a_link_that_a_browser_would_run_is_no_link(link: str) -> None:
    session = wire.session_report({"payment_session_id": "ps-1", "status": "ACTIVE", "payment_link_url": link})
    assert session is not None
    assert session.payment_link_url is None
    for descriptor in ("WEB_URL", "DEEPLINK_URL"):
        actions = [{"descriptor": descriptor, "value": link}]
        report = wire.charge_report({"payment_request_id": "pr-1", "status": "REQUIRES_ACTION", "actions": actions})
        assert report is not None
        if not link.startswith("http") or descriptor == "WEB_URL":
            assert report.action_url is None, descriptor


def test_links_of_web_pages_and_apps_are_links() -> None:
    def action(descriptor: str, value: str) -> str | None:
        actions = [{"descriptor": descriptor, "value": value}]
        report = wire.charge_report({"payment_request_id": "pr-1", "status": "REQUIRES_ACTION", "actions": actions})
        return report.action_url if report else None

    assert action("WEB_URL", "https://link.example/x?y#z") == "https://link.example/x?y#z"
    assert action("DEEPLINK_URL", "gojek://pay/1") == "gojek://pay/1"
    assert action("WEB_URL", "gojek://pay/1") is None
    session = wire.session_report({"payment_session_id": "ps-1", "payment_link_url": "https://checkout.example/1"})
    assert session is not None
    assert session.payment_link_url == "https://checkout.example/1"


@pytest.mark.parametrize("name", TEMPLATES.list_templates())
def test_our_pages_escape_what_they_show(name: str) -> None:
    hostile = "\"'><script>alert(1)</script>"
    values = dict.fromkeys(("state", "type", "sdk_key", "script_url", "return_url"), hostile)
    assert TEMPLATES.autoescape is True or TEMPLATES.autoescape(name)  # type: ignore[operator]
    assert "<script>alert" not in TEMPLATES.get_template(name).render(values)
    source, _, _ = TEMPLATES.loader.get_source(TEMPLATES, name)  # type: ignore[union-attr]
    assert not re.search(r"\|\s*safe|autoescape false|Markup", source)
    assert not re.search(r"<[^>]*(href|src|action)\s*=\s*.?\{\{(?! script_url )", source), (
        "a link out of a payload: only http and https"
    )
