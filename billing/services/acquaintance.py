"""Whether Xendit's account and ours know each other, as far as this process has seen (services/accounts.py).

What was denied meanwhile is in the database, by key: a crontab's run is a process of its own, and would begin to count
anew each time.
"""

from __future__ import annotations

HANDFUL = 5


class Acquaintance:
    """A key belongs to one account for ever, so once it is made it stays."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self) -> bool:
        """True the first time: what was denied before is to be forgotten (queries.forget_denied)."""
        is_news = not self.is_made
        self.is_made = True
        return is_news
