"""What mypy has to refuse, each line by itself."""

from __future__ import annotations

from billing import Billing, Nonsense  # E: attr-defined


def mistakes(billing: Billing) -> None:
    billing.plans.create("f", name="F", amount=0.1, currency="PHP", every="month")  # E: arg-type
    billing.plans.show("gold").price  # E: attr-defined
    billing.invoices.list("ana")  # E: call-arg
    billing.pay()  # E: attr-defined
