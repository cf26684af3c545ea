"""The installed `billing`, and `python -m billing`: it takes a second or two to import the command line, and Ctrl-C
may come before that is done."""

import sys


def main() -> None:
    try:
        from billing.cli import main as run  # noqa: PLC0415 - so that Ctrl-C is met
    except KeyboardInterrupt:
        sys.stderr.write("billing: interrupted; nothing was begun\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
