"""What each kind of database error is taken for, and what a person is told."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from billing.errors import ServiceUnavailable
from billing.store.trouble import CONFLICT_TRIES, database_errors_in_one_line, is_databases_trouble, repeat_conflicts


def error(state: str, said: str = "as the server put it") -> DBAPIError:
    made = DBAPIError.instance("SELECT secret", {}, psycopg.errors.lookup(state)(said), psycopg.Error)
    assert isinstance(made, DBAPIError)
    return made


def told(wrong: Exception) -> str:
    with pytest.raises(ServiceUnavailable) as refused, database_errors_in_one_line():
        raise wrong
    return str(refused.value)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("25006", "takes no writes"),
        ("40P01", "other transactions are in the way"),
        ("40001", "other transactions are in the way"),
        ("55P03", "other transactions are in the way"),
        ("53100", "disk is full"),
        ("53300", "no connection left"),
        ("57014", "took too long"),
        ("42501", "the rights on its tables"),
        ("42P01", "run `billing migrate`"),
        ("42703", "run `billing migrate`"),
        ("57P01", "was lost"),
        ("57P02", "was lost"),
        ("57P03", "was lost"),
        ("08006", "was lost"),
        ("26000", "was lost"),
        ("53200", "does not answer"),
        ("58030", "does not answer"),
    ],
)
def test_each_trouble_of_the_database_has_words_of_its_own(state: str, words: str) -> None:
    line = told(error(state))

    assert words in line
    assert "secret" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("connection failed: FATAL:  sorry, too many clients already", "no connection left"),
        ("FATAL:  remaining connection slots are reserved for roles with SUPERUSER", "no connection left"),
        ("FATAL: no more connections allowed (max_client_conn)", "no connection left"),
        ("connection refused", "does not answer (connection refused)"),
    ],
)
def test_a_connection_that_is_refused_says_why(said: str, words: str) -> None:
    assert words in told(OperationalError("SELECT secret", {}, psycopg.OperationalError(said)))


def test_waiting_for_a_connection_of_our_own_is_told_as_well() -> None:
    assert "all connections of this process are in use" in told(PoolTimeout("QueuePool limit"))


@pytest.mark.parametrize("state", ["23505", "22P02", "54000", "42601"])
def test_what_a_statement_or_its_row_did_is_not_the_databases_trouble(state: str) -> None:
    assert not is_databases_trouble(error(state))


def test_what_meets_a_deadlock_is_tried_again_at_once() -> None:
    met = [error("40P01"), error("40001")]

    def transaction() -> str:
        if met:
            raise met.pop()
        return "done"

    assert repeat_conflicts(transaction) == "done"


def test_but_not_for_ever_and_nothing_else_is() -> None:
    tried: list[str] = []

    def always(state: str) -> None:
        tried.append(state)
        raise error(state)

    with pytest.raises(DBAPIError):
        repeat_conflicts(lambda: always("40P01"))
    with pytest.raises(DBAPIError):
        repeat_conflicts(lambda: always("57P01"))

    assert tried == ["40P01"] * CONFLICT_TRIES + ["57P01"]
