"""The command line: `billing COMMAND ...`, one file per noun. `main` is the entry point of the installed program.

    output.py   how results, messages and progress leave         values.py   what people type
    opening.py  `Billing` for one command                        the rest    one noun each, thin on top of `Billing`

Exit status: 0 done; 1 refused or failed, one line on stderr says why; 2 usage or settings. Never a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn, cast

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from billing import __version__
from billing.errors import BillingError
from billing.streams import drop, make_safe

FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141


class Command(NamedTuple):
    """Where a command is, which is imported when it is used: importing all of them takes longer than most of them run.

    `place` is "module:function", or "module" for one whose `app` has commands of its own.
    """

    place: str
    text: str


PANELS: dict[str, dict[str, Command]] = {
    "Set-up": {
        "migrate": Command("billing.cli.ops:migrate", "Create the schema, or bring it up to date."),
        "adopt": Command("billing.cli.ops:adopt", "Say that this database is the one now: a restored backup, a move."),
        "import": Command("billing.cli.ops:import_", "Bring in existing subscribers with existing tokens."),
    },
    "Catalog": {
        "plan": Command("billing.cli.plan", "What is sold, at what price, and when."),
        "customer": Command("billing.cli.customer", "Who pays."),
    },
    "Subscribers": {
        "subscribe": Command("billing.cli.subscribe:subscribe", "Subscribe a customer to a plan."),
        "subscription": Command("billing.cli.subscription", "List, show, pause, resume, cancel, uncancel."),
        "session": Command("billing.cli.session", "Pages on which customers save a payment method or pay."),
        "token": Command("billing.cli.token", "Saved payment methods."),
    },
    "Billing": {
        "run": Command("billing.cli.run", "Open what is due and charge it; approve what waits."),
        "runs": Command("billing.cli.runs", "Billing runs: list, show, pause, resume, abort."),
        "invoice": Command("billing.cli.invoice", "What each period owes; pay one now."),
        "explain": Command(
            "billing.cli.explain:explain", "One subscription's story, and why the next charge is when it is."
        ),
    },
    "Operations": {
        "doctor": Command("billing.cli.ops:doctor", "Check that nothing is charged twice, forgotten or miscounted."),
        "reconcile": Command("billing.cli.ops:reconcile", "Ask Xendit about what is in doubt; compare a day's money."),
        "replay": Command("billing.cli.ops:replay", "Apply a stored webhook event again."),
        "events": Command("billing.cli.ops:events", "Stored webhook events."),
        "charging": Command("billing.cli.ops:charging", "The stop of all charging: show it, lift it."),
    },
    "Try it": {
        "demo": Command("billing.sandbox.commands.demo:demo", "Live through months of billing in a minute."),
        "simulate": Command(
            "billing.sandbox.commands.simulate:simulate", "Live through seeded years in which everything goes wrong."
        ),
        "dev": Command("billing.sandbox.commands.dev:dev", "Run everything in this terminal."),
        "simulator": Command("billing.sandbox.commands.simulator:simulator", "Run the built-in Xendit alone."),
        "clock": Command("billing.cli.clock", "Move the test clock: a year in a minute."),
    },
}
COMMANDS = {name: command for commands in PANELS.values() for name, command in commands.items()}
_SETTINGS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}


def load(name: str) -> TyperCommand | TyperGroup:
    """Imports the command and what it needs."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    found = getattr(import_module(module), attribute or "app")
    around = typer.Typer(**_SETTINGS)
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name, help=COMMANDS[name].text)
    else:
        around.command(name, short_help=COMMANDS[name].text)(found)
    return cast(TyperCommand | TyperGroup, typer.main.get_group(around).commands[name])


class Commands(TyperGroup):
    """Lists commands by their names and texts, in the order of PANELS, and loads only the one that is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            name: TyperCommand(name, short_help=command.text, rich_help_panel=panel)
            for panel, commands in PANELS.items()
            for name, command in commands.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known, rest = super().resolve_command(ctx, args)
        return name, load(str(name)) if known is not None else None, rest


app = typer.Typer(
    cls=Commands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, **_SETTINGS
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"billing {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Recurring billing on saved Xendit payment tokens.

    New here? `billing demo` shows it all in a minute; `billing dev` runs it all in one terminal.
    """


# -------------------------------------------------------------------------------------------------- the edge


def main() -> NoReturn:
    """The installed `billing`. A `timeout`, a container or systemd that ends it does no more harm than Ctrl-C."""
    ended_by = _end_like_ctrl_c()
    status = run_command([_typed(argument) for argument in sys.argv[1:]])
    # Who is told to end in the middle may find a pipe of his own closed, which says nothing about our reader.
    sys.exit(128 + ended_by[0] if ended_by and status in (INTERRUPTED, PIPE_CLOSED) else status)


def _end_like_ctrl_c() -> list[int]:
    """From now on SIGTERM and SIGHUP end this process as Ctrl-C does, finishing what is in hand. Returns a list that
    the first of them will be in. What `nohup` has ignored stays ignored."""
    heard: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if not heard:  # who sends it again and again gets no half-finished clean-up
            heard.append(number)
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    return heard


def debugging() -> bool:
    """BILLING_DEBUG=1: tracebacks and all log lines, for whoever writes a bug report."""
    return os.environ.get("BILLING_DEBUG", "") not in ("", "0", "false")


def _typed(argument: str) -> str:
    """UTF-8 is UTF-8 also where the locale knows only ASCII, as in many containers."""
    try:
        return argument if argument.isprintable() else os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument


def run_command(arguments: Sequence[str]) -> int:
    """One command to its exit status. Every way it can end has its own line; none shows a traceback."""
    make_safe()
    try:
        _refuse_bytes(arguments)
        status = app(list(arguments), prog_name="billing", standalone_mode=False)
        sys.stdout.flush()
        # Typer has made an exit status of Ctrl-C by then.
        return _interrupted() if status == INTERRUPTED else int(status or 0)
    except BillingError as error:
        return _complain(str(error), error.exit_status)
    except TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except (SystemExit, BrokenPipeError) as ended:  # typer makes the first of the second, with status 1
        drop(sys.stdout)
        status = getattr(ended, "code", None)
        # Whoever read us has seen enough: nothing to say, and no failure. Unless a signal has ended us.
        return status if isinstance(status, int) and status > FAILED else PIPE_CLOSED
    except OSError as error:
        drop(sys.stdout)
        return _complain(f"the operating system refused: {error.strerror or error.__class__.__name__}", FAILED)
    except Exception as error:  # noqa: BLE001 - the edge: an unknown error is our bug, and still one line
        return _complain(_of_a_server(error) or _our_bug(error), FAILED)


def _refuse_bytes(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise typer.BadParameter(f"{argument!r} is not UTF-8 text")


def _complain(text: str, status: int) -> int:
    if debugging():
        error = sys.exception()
        if error is not None:
            error.__suppress_context__ = False  # with the error that it tells of in one line
        traceback.print_exc()
    _say(text)
    return status


def _say(text: str) -> None:
    from billing.cli.output import complain

    complain(text)


def _interrupted() -> int:
    return _complain("interrupted; nothing is lost, what was under way is taken up again", INTERRUPTED)


def _usage(error: TyperException) -> int:
    """What is wrong with the command line, and where its help is; the help itself when nothing was asked."""
    context = getattr(error, "ctx", None)
    if error.__class__.__name__ == "NoArgsIsHelpError":
        return USAGE
    where = f"; see `{context.command_path} --help`" if context is not None else ""
    text = error.format_message().replace("Value error, ", "").rstrip(". ")  # typer shows how it checks
    _say(text + where)
    return USAGE


def _of_a_server(error: Exception) -> str | None:
    """For commands that are no operation of `Billing` (demo, simulate, dev), which tells this by itself."""
    from billing.api.opening import of_a_server

    told = of_a_server(error)
    return None if told is None else str(told)


def _our_bug(error: Exception) -> str:
    """Where it happened rather than its text, which could hold what must not be shown."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (
        f"internal error: {error.__class__.__name__}{place}; please report it with the command you ran"
        " (BILLING_DEBUG=1 shows the whole traceback)"
    )
