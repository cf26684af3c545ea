"""A programmable Xendit, written from Xendit's documents, apart from our own client: it can contradict it.

    core.py        Simulator: answer(), due_deliveries(), delivery_result(); routing, key, quota, faults
    serve.py       the same over HTTP, sending the webhooks     transport.py  the same behind an httpx client
    charges.py     token charges and payments                   settlement.py what becomes of them
    outcomes.py    the words for results                        sessions.py, session_checks.py  /sessions
    tokens.py, refunds.py, transactions.py, customers.py        the other resources
    pages.py       hosted checkout in a browser                 control.py    /_simulator, for tests and demos
    webhooks.py    the outgoing queue                           state.py, ledger.py  what is remembered
    catalogue.py   channels, test cards, magic amounts          checks.py     strict reading of bodies
    answers.py     errors, JSON, amounts                        calls.py, quota.py, clock.py, config.py, post.py

Imports nothing else of the product.
"""

from billing.sandbox.simulator.clock import SettableClock
from billing.sandbox.simulator.config import SimulatorConfig
from billing.sandbox.simulator.core import Simulator
from billing.sandbox.simulator.serve import create_simulator_app, run_simulator
from billing.sandbox.simulator.transport import SimulatorTransport

__all__ = [
    "SettableClock",
    "Simulator",
    "SimulatorConfig",
    "SimulatorTransport",
    "create_simulator_app",
    "run_simulator",
]
