"""Whether Xendit's account and ours know each other, as far as this process has seen (services/accounts.py)."""

from __future__ import annotations

import threading

HANDFUL = 5


class Acquaintance:
    """What this process knows of the account. A key belongs to one account for ever, so once made it stays."""

    def __init__(self) -> None:
        self.is_made = False
        self._denied: set[str] = set()
        self._lock = threading.Lock()

    def make(self) -> None:
        self.is_made = True

    def has_denied(self, payment_token_id: str) -> bool:
        return payment_token_id in self._denied

    def denies(self, payment_token_id: str) -> bool:
        """True when that makes a handful of different ones; whoever lets charging go on is asked after another."""
        with self._lock:
            self._denied.add(payment_token_id)
            handful = len(self._denied) >= HANDFUL
            if handful:
                self._denied.clear()
        return handful
