"""Tables on a terminal: whole ids, amounts and times on every width."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest

from billing.cli import output

COLUMNS = {"reference": "reference", "amount": "amount", "at": "opened_at", "why": "reason"}
ROW = {
    "reference": "sub-0123456789abcdef",
    "amount": "1234567",
    "currency": "IDR",
    "opened_at": "2026-01-31T02:00:00.123456Z",
    "reason": "a long reason that people read, which may well take more than one line of a terminal",
}


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def _on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    with redirect_stdout(screen):
        output.table([ROW], COLUMNS, empty="")
    return screen.getvalue()


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_nothing_that_must_stay_whole_is_cut(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    text = _on_a_terminal(columns, monkeypatch)
    for whole in ("sub-0123456789abcdef", "IDR 1,234,567", "2026-01-31 02:00 UTC"):
        assert whole in text


def test_a_wide_terminal_has_a_table_and_a_narrow_one_has_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "─" in _on_a_terminal(200, monkeypatch)
    narrow = _on_a_terminal(40, monkeypatch)
    assert "─" not in narrow
    assert "reference  " in narrow


def test_a_long_side_list_says_how_much_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.some_of([ROW] * 50, COLUMNS, title="Rows")
    out = capsys.readouterr().out
    assert out.count("sub-0123456789abcdef") == output.MANY
    assert "... and 30 more; --json lists them all" in out


def test_a_refusal_is_one_line_whatever_the_reason_holds(capsys: pytest.CaptureFixture[str]) -> None:
    output.complain("first line\n  second\tline")
    assert capsys.readouterr().err == "billing: first line second line\n"
