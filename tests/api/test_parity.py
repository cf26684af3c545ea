"""Nothing can be done on the command line that cannot be done here, and the other way round."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import pytest
import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from billing import cli
from billing.api import Billing
from billing.api.opening import Operations
from billing.app import App

# Commands that make no sense in a script.
NOT_HERE = {"demo", "dev", "simulate", "simulator"}
# `billing NOUN` -> the group here; no entry: the noun in the plural.
GROUPS = {"run": "runs", "runs": "runs", "events": "events", "charging": "charging", "clock": "clock"}
# Of every command: how it prints, and whether it asks. A script means what it says.
NOT_ARGUMENTS = {"help", "json", "yes"}
# Of methods: what only Python has, and why.
ONLY_HERE = {
    "run": {"progress"},  # what the live view of the command shows
    "import_": {"progress"},
    "reconcile": {"progress"},
    "runs.show": {"watch"},
    "runs.approve": {"ask"},  # the command shows what waits before it asks
}
# Required in both.
REQUIRED = {
    ("plans.create", "name"),
    ("plans.create", "amount"),
    ("plans.create", "currency"),
    ("customers.create", "name"),
    ("customers.create", "email"),
    ("customers.create", "country"),
    ("charging.stop", "reason"),
    ("tokens.list", "customer"),
}  # fmt: skip


def commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """(path, command) of all of them."""
    for name in cli.COMMANDS:
        command = cli.load(name)
        if isinstance(command, TyperGroup):
            if command.invoke_without_command:
                yield name, command  # type: ignore[misc]
            for verb, below in command.commands.items():
                yield f"{name} {verb}", below  # type: ignore[misc]
        else:
            yield name, command


def method_name(path: str) -> str:
    noun, _, verb = path.partition(" ")
    if not verb:
        return {"import": "import_"}.get(noun, noun)
    return f"{GROUPS.get(noun, f'{noun}s')}.{verb}"


def group_kinds() -> dict[str, type]:
    """Each group's class, which is imported when the group is used."""
    billing = Billing(cast(App, None))
    return {
        name: type(getattr(billing, name)) for name, kind in vars(Billing).items() if isinstance(kind, cached_property)
    }


def find(name: str) -> Any:
    group, _, method = name.rpartition(".")
    return getattr(group_kinds()[group] if group else Billing, method)


COMMANDS = dict(commands())


def test_every_command_is_here() -> None:
    assert set(cli.COMMANDS) >= NOT_HERE
    assert len(COMMANDS) > 40
    assert set(methods()) == {method_name(path) for path in COMMANDS if path not in NOT_HERE}


def methods() -> Iterator[str]:
    def public(kind: type) -> Iterator[str]:
        return (name for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_")

    yield from (name for name in public(Billing) if name != "close")
    for group, kind in group_kinds().items():
        assert issubclass(kind, Operations)
        yield from (f"{group}.{name}" for name in public(kind))


@pytest.mark.parametrize("path", sorted(path for path in COMMANDS if path not in NOT_HERE))
def test_a_method_takes_what_its_command_takes(path: str) -> None:
    name = method_name(path)
    parameters = dict(inspect.signature(find(name)).parameters)
    del parameters["self"]
    typed = [each for each in COMMANDS[path].params if isinstance(each, TyperArgument)]
    options = [
        each for each in COMMANDS[path].params if isinstance(each, TyperOption) and long_name(each) not in NOT_ARGUMENTS
    ]
    positional = list(parameters.values())[: len(typed)]
    assert [each.name for each in positional] == [each.name for each in typed]
    for mine, theirs in zip(positional, typed, strict=True):
        required = mine.default is inspect.Parameter.empty and mine.kind is not mine.VAR_POSITIONAL
        assert required == theirs.required
    named = set(parameters) - {each.name for each in positional} - ONLY_HERE.get(name, set())
    assert named == {long_name(each) for each in options}
    for option in options:
        mine = parameters[long_name(option)]
        if option.required:
            assert (name, mine.name) in REQUIRED
            assert mine.default is inspect.Parameter.empty
        else:
            assert mine.default == option.default, mine.name


def long_name(option: TyperOption) -> str:
    name = next(each for each in option.opts if each.startswith("--"))
    return name.removeprefix("--").replace("-", "_")
