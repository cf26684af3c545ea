"""What the person who starts a simulator may choose. Built by `run_simulator`, the demo and the tests."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

# Asked for each charge that no script and no magic amount decides: (token as GET shows it, amount, now).
Decide = Callable[[Mapping[str, Any], Decimal, datetime], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    business_id: str = "661f87c614802d6c402cd82d"
    business_name: str = "Simulated Merchant"
    base_url: str = "http://127.0.0.1:8100"  # start of payment_link_url and of 3DS links
    secret_keys: tuple[str, ...] = ()  # empty: any xnd_development_ key is let in

    requests_per_minute: int = 60  # per endpoint, as Xendit's test mode
    monotonic: Callable[[], float] = time.monotonic  # the quota lives in real time, whatever the test clock says

    decide: Decide | None = None
    pending_seconds: float = 60  # how long "PENDING:..." stays pending
    action_seconds: float = 86_400  # how long a REQUIRES_ACTION request waits for its customer
    refund_seconds: float = 5
    transactions_lag_seconds: float = 0  # before a row shows up in GET /transactions
    session_max_seconds: float = 86_400  # the real maximum is unpublished; 24 h were seen accepted

    skip_three_ds_allowed: bool = True  # the "Optional 3DS" permission
    unique_session_references: bool = True  # seen in the field, not in the reference
    tokens_expire: bool = True
    authorization_spelling: Literal["reference", "guide"] = "reference"
    refund_events_nested: bool = False  # True: data.data, as the refund page prints it
    send_webhook_id: bool = True
