"""The command line: `billing COMMAND ...`, one file per noun. `main` is the entry point of the installed program.

    output.py   how results, messages and progress leave         values.py   what people type
    opening.py  settings and parts for one command               the rest    one noun each

Exit status: 0 done; 1 refused or failed, one line on stderr says why; 2 usage or settings. Never a traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from billing import __version__
from billing.cli import (
    clock,
    customer,
    demo,
    dev,
    explain,
    invoice,
    ops,
    output,
    plan,
    run,
    runs,
    session,
    simulate,
    simulator,
    subscribe,
    subscription,
    token,
)
from billing.cli.opening import debugging
from billing.errors import BillingError
from billing.processes import end_like_ctrl_c
from billing.store.trouble import database_errors_in_one_line, first_line
from billing.streams import drop, make_safe

FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

PANELS = {
    "Set-up": ("migrate", "adopt", "import"),
    "Catalog": ("plan", "customer"),
    "Subscribers": ("subscribe", "subscription", "session", "token"),
    "Billing": ("run", "runs", "invoice", "explain"),
    "Operations": ("doctor", "reconcile", "replay", "events", "charging"),
    "Try it": ("demo", "simulate", "dev", "simulator", "clock"),
}
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}


class InPanels(TyperGroup):
    """Lists commands in the order of PANELS, whatever kind they are."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        return list(PANEL_OF)


app = typer.Typer(
    cls=InPanels,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"billing {__version__}")
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


def _assemble() -> None:
    commands: dict[str, tuple[Callable[..., None], str]] = {
        "migrate": (ops.migrate, "Create the schema, or bring it up to date."),
        "adopt": (ops.adopt, "Say that this database is the one now: a restored backup, a move."),
        "import": (ops.import_, "Bring in existing subscribers with existing tokens."),
        "subscribe": (subscribe.subscribe, "Subscribe a customer to a plan."),
        "explain": (explain.explain, "One subscription's story, and why the next charge is when it is."),
        "doctor": (ops.doctor, "Check that nothing is charged twice, forgotten or miscounted."),
        "reconcile": (ops.reconcile, "Ask Xendit about what is in doubt; compare a day's money."),
        "replay": (ops.replay, "Apply a stored webhook event again."),
        "demo": (demo.demo, "Live through months of billing in a minute."),
        "simulate": (simulate.simulate, "Live through seeded years in which everything goes wrong."),
        "dev": (dev.dev, "Run everything in this terminal."),
        "simulator": (simulator.simulator, "Run the built-in Xendit alone."),
    }
    groups: dict[str, tuple[typer.Typer, str]] = {
        "plan": (plan.app, "What is sold, at what price, and when."),
        "customer": (customer.app, "Who pays."),
        "subscription": (subscription.app, "List, show, pause, resume, cancel, uncancel."),
        "run": (run.app, "Open what is due and charge it; approve what waits."),
        "runs": (runs.app, "Billing runs: list, show, pause, resume, abort."),
        "session": (session.app, "Pages on which customers save a payment method or pay."),
        "token": (token.app, "Saved payment methods."),
        "invoice": (invoice.app, "What each period owes; pay one now."),
        "events": (ops.events, "Stored webhook events."),
        "charging": (ops.charging, "The stop of all charging: show it, lift it."),
        "clock": (clock.app, "Move the test clock: a year in a minute."),
    }
    for name, (command, text) in commands.items():
        app.command(name, short_help=text, rich_help_panel=PANEL_OF[name])(command)
    for name, (group, text) in groups.items():
        app.add_typer(group, name=name, help=text, rich_help_panel=PANEL_OF[name])


_assemble()


# -------------------------------------------------------------------------------------------------- the edge


def main() -> NoReturn:
    """The installed `billing`. A `timeout`, a container or systemd that ends it does no more harm than Ctrl-C."""
    ended_by = end_like_ctrl_c()
    status = run_command([_typed(argument) for argument in sys.argv[1:]])
    sys.exit(128 + ended_by[0] if ended_by and status == INTERRUPTED else status)


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
        with database_errors_in_one_line():
            status = app(list(arguments), prog_name="billing", standalone_mode=False)
        sys.stdout.flush()
        # Typer has made an exit status of Ctrl-C by then.
        return _interrupted() if status == INTERRUPTED else int(status or 0)
    except BillingError as error:
        return _complain(str(error), error.exit_status)
    except TyperException as error:
        return _usage(error)
    except SQLAlchemyError as error:
        return _complain(_database_said(error), FAILED)
    except RedisError as error:
        reason = f"Redis does not answer ({error.__class__.__name__}); check BILLING_REDIS_URL"
        return _complain(reason, FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except (SystemExit, BrokenPipeError):  # typer makes the first of the second
        drop(sys.stdout)
        return PIPE_CLOSED  # whoever read us has seen enough: nothing to say, and no failure
    except OSError as error:
        drop(sys.stdout)
        return _complain(f"the operating system refused: {error.strerror or error.__class__.__name__}", FAILED)
    except Exception as error:  # noqa: BLE001 - the edge: an unknown error is our bug, and still one line
        return _complain(_our_bug(error), FAILED)


def _refuse_bytes(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise typer.BadParameter(f"{argument!r} is not UTF-8 text")


def _complain(text: str, status: int) -> int:
    if debugging():
        traceback.print_exc()
    output.complain(text)
    return status


def _interrupted() -> int:
    return _complain("interrupted; nothing is lost, what was under way is taken up again", INTERRUPTED)


def _usage(error: TyperException) -> int:
    """What is wrong with the command line, and where its help is; the help itself when nothing was asked."""
    context = getattr(error, "ctx", None)
    if error.__class__.__name__ == "NoArgsIsHelpError":
        return USAGE
    where = f"; see `{context.command_path} --help`" if context is not None else ""
    text = error.format_message().replace("Value error, ", "").rstrip(". ")  # typer shows how it checks
    output.complain(text + where)
    return USAGE


def _database_said(error: SQLAlchemyError) -> str:
    """Never the statement or its parameters: only the server's own first line."""
    if isinstance(error, IntegrityError):
        return f"somebody else changed the same thing at the same time ({first_line(error)}); run the command again"
    if isinstance(error, DBAPIError):
        return f"the database refused: {first_line(error)}; check BILLING_DATABASE_URL and its user's rights"
    return f"the database could not be used ({error.__class__.__name__}); check BILLING_DATABASE_URL and its load"


def _our_bug(error: Exception) -> str:
    """Where it happened rather than its text, which could hold what must not be shown."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (
        f"internal error: {error.__class__.__name__}{place}; please report it with the command you ran"
        " (BILLING_DEBUG=1 shows the whole traceback)"
    )
