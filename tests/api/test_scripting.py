"""The scripts of docs/scripting.md, run out of that page, and what comes of each."""

from __future__ import annotations

import csv
import io
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from billing.store.clock import real_now
from tests.api.shop import Shop
from tests.api.test_operations import row
from tests.api.test_parity import find, methods
from tests.cli.terminal import Xendit, simulated_xendit

PAGE = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text(encoding="utf-8")
SCRIPTS = {
    match[1]: match[0].removeprefix("```python\n").removesuffix("```")
    for match in re.finditer(r"```python\n# (\w+\.py).*?```", PAGE, re.DOTALL)
}


@pytest.fixture
def xendit() -> Iterator[Xendit]:
    """Its own for each: what others have paid there would be money that only Xendit knows."""
    with simulated_xendit() as running:
        yield running


Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def run(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one as `python NAME ARGUMENTS` would: (exit status, stdout, stderr)."""
    for name, value in shop.terminal.environment.items():
        monkeypatch.setenv(name, value)

    def python(name: str, *arguments: str, stdin: str = "") -> Ran:
        script = tmp_path / name
        script.write_text(SCRIPTS[name], encoding="utf-8")
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [name, *arguments])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            try:
                runpy.run_path(str(script), run_name="__main__")
                status = 0
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
                if isinstance(left.code, str):
                    err.write(left.code)
        return status, out.getvalue(), err.getvalue()

    return python


def test_the_page_has_a_first_script_and_ten_more_each_run_here() -> None:
    assert len(SCRIPTS) == 11
    mine = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in SCRIPTS if f'run("{name}"' not in mine] == []


def test_the_page_names_every_operation() -> None:
    table = PAGE.partition("| group | methods |")[2].partition("Nothing is asked")[0]
    named = set()
    for group, verbs in re.findall(r"^\| (\S+) \| `([\w ]+)` \|$", table, re.MULTILINE):
        named |= {verb if group == "none" else f"{group.strip('`')}.{verb}" for verb in verbs.split()}
    assert named == set(methods())


def test_first(shop: Shop, run: Run) -> None:
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE",))
    shop.billing.run()
    due = shop.billing.subscriptions.show("ana-gold").next_billing_at
    assert run("first.py") == (0, f"ana-gold 99000 {due}\n", "")


def test_who_is_past_due(shop: Shop, run: Run) -> None:
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE",))
    shop.subscriber("budi")
    shop.billing.run()
    status, out, _ = run("past_due.py")
    (line,) = csv.DictReader(io.StringIO(out))
    assert status == 0
    today = f"{shop.billing.invoices.show('ana-gold-1').period_start:%Y-%m-%d}"
    assert line == {
        "subscription": "ana-gold",
        "customer": "Ana",
        "mail": "ana@example.com",
        "owed": "99000",
        "currency": "IDR",
        "since": today,
        "reason": "INSUFFICIENT_BALANCE",
    }


def test_many_are_paused(shop: Shop, run: Run) -> None:
    shop.subscriber()
    shop.subscriber("budi")
    status, out, err = run("pause_many.py", stdin="ana-gold\nnobody\n\nbudi-gold\n")
    assert (status, out) == (1, "ana-gold is paused\nbudi-gold is paused\n")
    assert err.startswith("nobody: no subscription 'nobody'")
    assert [each.status for each in shop.billing.subscriptions.list()] == ["paused", "paused"]


def test_expiring_cards_get_a_link(shop: Shop, run: Run) -> None:
    shop.plan("silver")
    for customer, plan in (("ana", "gold"), ("budi", "gold"), ("citra", "silver")):
        shop.subscriber(customer, plan)
    token = next(shop.billing.tokens.list("ana"))
    assert token.card_expiry is not None
    soon = "2027-03"
    assert re.fullmatch(r"\d{4}-\d{2}", token.card_expiry)
    shop.execute(f"UPDATE payment_tokens SET card_expiry = '{soon}' WHERE rank = 1 AND customer_id IN"
                 " (SELECT id FROM customers WHERE reference IN ('ana', 'citra'))")  # fmt: skip
    status, out, _ = run("expiring_cards.py", "gold", soon)
    page = list(shop.billing.sessions.list(customer="ana"))[-1]
    assert status == 0
    assert page.status == "ACTIVE"
    assert out == f"ana@example.com,{token.card_last4},{page.payment_link_url}\n"


def test_open_invoices_are_tried_again_after_a_call(shop: Shop, run: Run) -> None:
    shop.plan("silver")
    shop.subscriber(outcomes=("INSUFFICIENT_BALANCE",) * 3)
    shop.subscriber("ana", "silver", outcomes=("INSUFFICIENT_BALANCE",) * 3)
    shop.billing.run()
    owed = list(shop.billing.invoices.list(status="open"))
    assert owed
    for token in shop.billing.tokens.list("ana"):
        shop.xendit.script(token.payment_token_id, "SUCCEEDED", "INSUFFICIENT_BALANCE")
    status, out, err = run("after_a_call.py", "ana")
    paid = [each for each in owed if shop.billing.invoices.show(each.id).status == "paid"]
    assert paid
    assert {f"{each.number} paid 99000 IDR" for each in paid} <= set(out.splitlines())
    assert status == int(len(paid) < len(owed))
    assert len(err.splitlines()) == len(owed) - len(paid)
    assert run("after_a_call.py", "ana")[0] == 0
    assert list(shop.billing.invoices.list(status="open")) == []


def test_the_morning_is_silent_until_there_is_something(shop: Shop, run: Run) -> None:
    shop.subscriber()
    shop.billing.run()
    today = real_now().date().isoformat()
    assert run("morning.py", today) == (0, "", "")
    shop.billing.charging.stop(reason="bank holiday")
    status, out, _ = run("morning.py", today)
    assert status == 1
    assert out.startswith(f"Billing, {today}: 0 resolved, 0 still in doubt\ncharging_is_allowed: ")
    assert out.endswith("; `billing doctor --repair` puts right what can be\n")


def test_a_month_of_paid_invoices(shop: Shop, run: Run) -> None:
    shop.subscriber()
    shop.billing.run()
    shop.month()
    shop.billing.run()
    first, _second = shop.billing.invoices.list()
    shop.execute(f"UPDATE invoices SET closed_at = '2027-01-31T18:30:00Z' WHERE id = '{first.id}'")
    shop.execute("UPDATE invoices SET closed_at = '2027-03-05T00:00:00Z' WHERE number = 'ana-gold-2'")
    status, out, _ = run("paid_invoices.py", "2027-02", "Asia/Jakarta")
    assert status == 0
    assert list(csv.DictReader(io.StringIO(out))) == [
        {
            "number": "ana-gold-1",
            "paid at": "2027-02-01 01:30+07:00",
            "amount": "99000",
            "refunded": "0",
            "currency": "IDR",
            "payment": first.attempts[0].payment_id,
        }
    ]
    assert "ana-gold-1,2027-01-31 18:30+00:00," in run("paid_invoices.py", "2027-01", "UTC")[1]
    assert len(run("paid_invoices.py", "2027-02", "UTC")[1].splitlines()) == 1


def test_what_is_held_after_a_run(shop: Shop, run: Run) -> None:
    shop.plan("asks", catch_up="hold")
    shop.subscriber("ana", "asks")
    shop.subscriber("budi")
    shop.billing.run()
    shop.month(70)
    shop.execute("UPDATE invoices SET hold_reason = 'less was captured', hold_kind = 'amount', status = 'open'"
                 " WHERE number = 'budi-gold-1'")  # fmt: skip
    status, out, _ = run("held.py")
    ana = shop.billing.subscriptions.show("ana-asks")
    assert status == 0
    assert f"skipped {ana.id}: " in out
    assert f"held ana-asks: {ana.hold_reason}" in out
    assert "held budi-gold-1 over 99000 IDR: less was captured" in out


def test_refused_rows_come_back_with_their_reason(shop: Shop, run: Run, tmp_path: Path) -> None:
    good = row(shop.xendit.new_token())
    bad = row(shop.xendit.new_token(), country="XX", customer_reference="x", subscription_reference="x")
    (tmp_path / "subscribers.jsonl").write_text(f"{good}\n\n{bad}\n")
    status, out, _ = run("move_in.py", "subscribers.jsonl", "refused.jsonl")
    assert (status, out) == (1, "created 1, unchanged 0, refused 1\n")
    (refused,) = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert refused["row"] == bad
    assert "XX" in refused["reason"]
    (tmp_path / "mended.jsonl").write_text(refused["row"].replace("XX", "ID"))
    assert run("move_in.py", "mended.jsonl", "refused.jsonl")[:2] == (0, "created 1, unchanged 0, refused 0\n")


def test_a_branch_ends_with_its_periods(shop: Shop, run: Run) -> None:
    shop.plan("bandung-gold")
    shop.subscriber("ana", "bandung-gold")
    shop.subscriber("budi", "gold")
    shop.billing.run()
    status, out, err = run("close_branch.py", "bandung-")
    ending = shop.billing.subscriptions.show("ana-bandung-gold")
    assert (status, err) == (0, "")
    assert out == f"ana-bandung-gold ends {ending.ends_at}\n1 end, 0 could not be canceled\n"
    assert ending.cancel_at_period_end
    assert not shop.billing.subscriptions.show("budi-gold").cancel_at_period_end
    assert run("close_branch.py", "bandung-")[1] == "0 end, 0 could not be canceled\n"


def test_a_run_is_compared_with_its_forecast(shop: Shop, run: Run) -> None:
    assert run("as_forecast.py") == (1, "", "nothing is due")
    shop.subscriber()
    shop.subscriber("budi", outcomes=("INSUFFICIENT_BALANCE",))
    assert run("as_forecast.py") == (
        0,
        "forecast 2 charges, sent 2, paid 1\nIDR: planned 198000, collected 99000, missing 99000\n"
        "declined 1: INSUFFICIENT_BALANCE\n",
        "",
    )


def test_help_says_of_every_operation_what_it_does() -> None:
    assert [name for name in methods() if not find(name).__doc__] == []
