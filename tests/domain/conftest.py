"""The same examples on every machine: a red test here is a change of behaviour, never luck."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("domain", derandomize=True, database=None, deadline=None, max_examples=150)
settings.load_profile("domain")
