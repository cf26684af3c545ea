"""`python -m billing` is `billing`."""

from billing.cli import main

main()
