"""`billing ...` typed into a World: the commands of people, on its database, its clock and its Xendit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from billing.app import App
from billing.settings import Settings
from tests.cli.terminal import Terminal
from tests.world import SECRET_KEY, World


class _Borrowed(App):
    """The world's own: it lives on when the command has ended."""

    def close(self) -> None:
        pass


@contextmanager
def typed(world: World) -> Iterator[Terminal]:
    """Which attempts count as lost is the command's own setting, as in a process of its own."""

    def build(settings: Settings) -> App:
        rules = replace(world.parts.rules, hold_in_doubt=settings.in_doubt_policy == "hold")
        return _Borrowed(settings, world.engine, replace(world.parts, rules=rules))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("billing.app.build", build)
        patch.setattr("billing.log.configure", lambda *_args, **_options: None)
        address = world.engine.url.render_as_string(hide_password=False)
        yield Terminal(
            {"BILLING_DATABASE_URL": address, "BILLING_XENDIT_SECRET_KEY": SECRET_KEY, "BILLING_TEST_CLOCK": "true"}
        )
