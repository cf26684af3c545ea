"""Settings are checked when a process starts: one line that names the variable, and never a part of a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from billing.errors import InvalidSetting
from billing.settings import Settings, load_settings

STRAYS = {
    "a carriage return at its end": "{}\r",
    "a line end at its end": "{}\n",
    "a blank before it": " {}",
    "a blank after it": "{} ",
    "a blank in it": "{} x",
    "a tab": "{}\t",
    "a blank that does not break": "{}\u00a0",
    "quotes around it": '"{}"',
    "one quote": "{}'",
    "typographic quotes": "\u201c{}\u201d",
    "letters that are not ASCII": "{}é",
    "a mark of the byte order": "\ufeff{}",
    "a blank of no width": "{}\u200b",
    "a control character": "{}\x01",
    "an escape": "\x1b[0m{}",
    "the example's dots": "{}...",
    "the example's dots as one": "{}…",
    "bytes that are no UTF-8": "{}\udcff",
}
PASSWORD = "hunter2Secret"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BILLING_")]:
        monkeypatch.delenv(name)


def refusal(variable: str, value: str, *secrets: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        with pytest.raises(InvalidSetting) as caught:
            load_settings()
    line = str(caught.value)
    assert line.startswith(f"{variable}: ")
    assert "\n" not in line
    assert "; for example BILLING_" in line
    for secret in secrets:
        assert secret not in line
    return line


def accepted(variable: str, value: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        return load_settings()


# Keys and tokens


@pytest.mark.parametrize("stray", STRAYS)
def test_a_key_with_something_in_it_that_keys_do_not_have_is_refused(stray: str) -> None:
    key = "xnd_production_k3yThatMustNeverShow"
    refusal("BILLING_XENDIT_SECRET_KEY", STRAYS[stray].format(key), "k3yThat")


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("place", ["{}", "older,{}", "{} , older"])
def test_each_callback_token_is_checked_by_itself(stray: str, place: str) -> None:
    token = STRAYS[stray].format("t0kenThatMustNeverShow")
    if (stray, place) in {("a blank after it", "{} , older"), ("a blank before it", "older,{}")}:  # around the comma
        taken = accepted("BILLING_XENDIT_CALLBACK_TOKEN", place.format(token)).callback_tokens
        assert {*taken} == {"older", "t0kenThatMustNeverShow"}
        return
    refusal("BILLING_XENDIT_CALLBACK_TOKEN", place.format(token), "t0kenThat")


def test_the_line_says_what_is_wrong_with_a_key() -> None:
    assert "a line end" in refusal("BILLING_XENDIT_SECRET_KEY", "xnd_development_abc\r")
    assert "the dots of the example" in refusal("BILLING_XENDIT_SECRET_KEY", "xnd_development_...")
    assert "a quotation mark" in refusal("BILLING_XENDIT_SECRET_KEY", "'xnd_development_abc'")
    assert "holds no token" in refusal("BILLING_XENDIT_CALLBACK_TOKEN", " , ,")


def test_whole_keys_and_tokens_are_taken() -> None:
    key = "xnd_production_aB3+/=_-.~9"
    assert accepted("BILLING_XENDIT_SECRET_KEY", key).secret_key == key
    assert accepted("BILLING_XENDIT_CALLBACK_TOKEN", "old , new,newest").callback_tokens == ("old", "new", "newest")


def test_a_file_of_settings_from_windows_is_read_and_a_stray_in_it_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"BILLING_XENDIT_SECRET_KEY=xnd_development_abc\r\nBILLING_LOG_FORMAT=json\r\n")
    assert load_settings().secret_key == "xnd_development_abc"
    (tmp_path / ".env").write_text('BILLING_XENDIT_SECRET_KEY="xnd_development_abc\\r"\n')
    with pytest.raises(InvalidSetting, match="BILLING_XENDIT_SECRET_KEY: holds a line end"):
        load_settings()


# Addresses with passwords

SPLIT = [
    f"{PASSWORD}@{PASSWORD}",
    f"@{PASSWORD}",
    f"{PASSWORD}@x:{PASSWORD}",
    f"{PASSWORD}@x/{PASSWORD}",
    f"{PASSWORD}@x?{PASSWORD}",
    f"{PASSWORD}@x#{PASSWORD}",
    f"{PASSWORD}\r",
]


@pytest.mark.parametrize("password", SPLIT, ids=range(len(SPLIT)))
def test_a_password_that_splits_the_databases_url_is_refused_and_not_shown(password: str) -> None:
    url = f"postgresql+psycopg://billing:{password}@localhost:5432/billing"
    line = refusal("BILLING_DATABASE_URL", url, PASSWORD, "hunter2")
    assert "%40" in line or "control character" in line


@pytest.mark.parametrize(
    "address",
    [
        f"bill/ing:{PASSWORD}@localhost/billing",
        f"billing:{PASSWORD}/localhost",
        f"billing:{PASSWORD}",
        f"localhost:5432/{PASSWORD}:x",
        f"localhost:543210/{PASSWORD}",
    ],
)
def test_a_databases_url_in_which_things_are_in_the_wrong_place_is_refused(address: str) -> None:
    refusal("BILLING_DATABASE_URL", f"postgresql+psycopg://{address}", PASSWORD)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://billing:secret@localhost:5432/billing",
        "postgresql+psycopg://billing:a%40b%2Fc%3Ad%23e%3Ff%25g@db.example.com/billing",
        "postgresql+psycopg://billing:a/b:c#d?e@localhost/billing",  # read as it is meant
        "postgresql+psycopg://billing@server:secret@server.postgres.example.com:5432/billing",
        "postgresql+psycopg://localhost/billing",
        "postgresql+psycopg://u:p@[::1]:5432/billing",
        "postgresql+psycopg://billing:secret@/billing?host=/var/run/postgresql&sslmode=require",
        "postgresql+psycopg:///billing",
        "",
    ],
)
def test_a_databases_url_that_is_whole_is_taken(url: str) -> None:
    assert accepted("BILLING_DATABASE_URL", url).database == url


@pytest.mark.parametrize("special", ["#", "/", "?", "@x/", "@x#", "[", ":x#", "\r", " /"])
def test_a_password_that_splits_the_url_of_redis_is_refused_and_not_shown(special: str) -> None:
    refusal("BILLING_REDIS_URL", f"redis://:{PASSWORD}{special}{PASSWORD}@localhost:6379/0", PASSWORD)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://:secret@localhost:6379",
        "rediss://user:a%23b%2Fc@redis.example.com:6380/1?ssl_cert_reqs=none",
        "redis://:a@b:c@10.0.0.1/0",
        "unix:///run/valkey.sock?db=1",
        "unix://user:secret@/run/valkey.sock",
        "redis://[::1]:6379/0",
        "",
    ],
)
def test_a_url_of_redis_that_is_whole_is_taken(url: str) -> None:
    assert accepted("BILLING_REDIS_URL", url).redis == url


@pytest.mark.parametrize("variable", ["BILLING_XENDIT_BASE_URL", "BILLING_PUBLIC_URL"])
@pytest.mark.parametrize("url", ["https://x.example\r", "https://x .example", " https://x.example", "https://", "x"])
def test_an_address_with_strays_is_refused(variable: str, url: str) -> None:
    refusal(variable, url)
