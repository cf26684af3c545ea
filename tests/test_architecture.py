"""What holds the house together, checked instead of promised."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.domain.declines import ADVICE_CODES, FAILURE_CODES, NETWORK_CODES, DeclineClass, classify
from billing.domain.dunning import POLICIES
from billing.domain.lifecycle import (
    ATTEMPT_MOVES,
    INVOICE_MOVES,
    SUBSCRIPTION_MOVES,
    AttemptStatus,
    InvoiceStatus,
    SubscriptionStatus,
)
from billing.settings import _EXAMPLES, Settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("billing", "workers") for path in (ROOT / folder).rglob("*.py"))

# The 33 failure codes of the v3 reference.
DOCUMENTED_FAILURE_CODES = {
    "ACCOUNT_ACCESS_BLOCKED", "ACCOUNT_NOT_ACTIVATED", "AUTHENTICATION_FAILED", "CAPTURE_AMOUNT_EXCEEDED",
    "CARD_DECLINED", "CHANNEL_UNAVAILABLE", "DECLINED_BY_ISSUER", "DECLINED_BY_PROCESSOR", "EXPIRED_CARD",
    "EXPIRED_OTP", "FAILURE_DETAILS_UNAVAILABLE", "INACTIVE_OR_UNAUTHORIZED_CARD", "INSUFFICIENT_BALANCE",
    "INVALID_ACCOUNT_DETAILS", "INVALID_CVV", "INVALID_MERCHANT_CREDENTIALS", "INVALID_MERCHANT_SETTINGS",
    "INVALID_OTP", "INVALID_TOKEN", "ISSUER_UNAVAILABLE", "OTP_ATTEMPT_COUNTS_EXCEEDED", "PARTNER_TIMEOUT_ERROR",
    "PAYMENT_AMOUNT_LIMITS_EXCEEDED", "PAYMENT_ATTEMPT_COUNTS_EXCEEDED", "PAYMENT_REQUEST_EXPIRED", "PROCESSOR_ERROR",
    "SERVER_ERROR", "STOLEN_CARD", "SUSPECTED_FRAUDULENT", "TIMEOUT_ERROR", "USER_DECLINED_PAYMENT",
    "USER_DEVICE_UNREACHABLE", "USER_DID_NOT_AUTHORIZE",
}  # fmt: skip


def test_a_floor_imports_only_the_floors_below_it() -> None:
    """pyproject.toml has the contracts; a planted import of workers in billing breaks them."""
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-2000:]


def test_there_is_a_table_row_for_every_documented_failure_code() -> None:
    """U8: a code without a class would be dunned like any soft decline."""
    assert len(DOCUMENTED_FAILURE_CODES) == 33
    assert FAILURE_CODES.keys() >= DOCUMENTED_FAILURE_CODES
    assert all(classify(failure_code=code).known for code in DOCUMENTED_FAILURE_CODES)


def test_every_code_has_a_class_and_a_source() -> None:
    for table in (FAILURE_CODES, NETWORK_CODES, ADVICE_CODES):
        for code, rule in table.items():
            assert rule.cls in DeclineClass, code
            assert rule.source, code


def test_every_status_has_its_moves() -> None:
    assert SUBSCRIPTION_MOVES.keys() == set(SubscriptionStatus)
    assert INVOICE_MOVES.keys() == set(InvoiceStatus)
    assert ATTEMPT_MOVES.keys() == set(AttemptStatus)


def test_every_setting_has_an_example_a_person_can_copy() -> None:
    """In the one-line refusals, or as a default."""
    for name, field in Settings.model_fields.items():
        assert name in _EXAMPLES or field.default is not None, name
        assert _EXAMPLES.get(name, f"BILLING_{name.upper()}=").startswith(f"BILLING_{name.upper()}=")


def test_every_setting_is_documented() -> None:
    example = (ROOT / ".env.example").read_text()
    documents = [path for path in (ROOT / "docs" / "operations.md",) if path.exists()]
    for name in Settings.model_fields:
        variable = f"BILLING_{name.upper()}"
        assert re.search(rf"^#?{variable}=", example, re.MULTILINE), f"{variable} is not in .env.example"
        for document in documents:
            assert variable in document.read_text(), f"{variable} is not in {document.name}"


def test_every_dunning_policy_fits_the_limits_of_the_card_networks() -> None:
    for policy in POLICIES.values():
        assert 1 + len(policy.ladder) <= 8, "eight attempts in 30 days for one invoice"
        assert list(policy.ladder) == sorted(set(policy.ladder))


def test_the_clock_is_read_in_one_place() -> None:
    """`now` is an argument: a simulated year is as exact as a lived one."""
    reading = {"now", "utcnow", "today"}
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in reading and _is_name(node.value, "datetime")
    }
    assert readers == {"billing/store/clock.py"}


def test_a_charge_is_in_no_retry_loop() -> None:
    """D7, D13: `gateway.charge` is called in one place, and not in a loop."""
    places = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        if "simulator" not in path.parts
        for name, body in _functions(ast.parse(path.read_text()))
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute) and node.attr == "charge" and _ends_with(node.value, "gateway")
    ]
    assert places == [("billing/charging/send.py", "_call")]
    tree = ast.parse((ROOT / "billing/charging/send.py").read_text())
    sender = dict(_functions(tree))["_call"]
    assert not [node for node in ast.walk(sender) if isinstance(node, ast.For | ast.While)]


def test_actors_are_never_retried_by_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """D13: a retry of delivery belongs to the lease, a retry of money to dunning."""
    monkeypatch.setenv("BILLING_REDIS_URL", "redis://127.0.0.1:9/0")
    from workers import actors

    for actor in (actors.charge, actors.follow):
        assert actor.options["max_retries"] == 0
    names = {type(middleware).__name__ for middleware in actors.charge.broker.middleware}
    assert not names & {"TimeLimit", "ShutdownNotifications"}


def _functions(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _ends_with(node: ast.AST, name: str) -> bool:
    return _is_name(node, name) or (isinstance(node, ast.Attribute) and node.attr == name)
