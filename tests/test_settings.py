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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("?sslmode=wat", "sslmode has a value"),
        ("?target_session_attrs=no", "target_session_attrs has a value"),
        ("?connect_timeout=abc", "connect_timeout must be a whole number"),
        ("?keepalives_idle=soon", "keepalives_idle must be a whole number"),
        ("?tcp_user_timeout=3s", "tcp_user_timeout must be a whole number"),
        ("?bogus=1", "an option that PostgreSQL's client library does not know"),
        ("?sslmod=require", "did you mean sslmode?"),
        ("?sslmode=require&sslmode=prefer", "sets sslmode twice"),
        ("?sslmode=prefer&sslnegotiation=direct", "sslnegotiation"),
        ("?sslmode=verify-full&sslrootcert=/no/such/file", "sslrootcert names a file that is not there"),
        ("?service=nobodys", "service has a value"),
        ("?host=a,b&port=1,2,3", "port"),
        ("?host=a&port=99999", "port"),
        ("?autocommit=true", "does not know"),
    ],
)
def test_an_option_in_the_databases_url_that_cannot_work_is_named(options: str, said: str) -> None:
    line = refusal("BILLING_DATABASE_URL", f"postgresql+psycopg://u:{PASSWORD}@/billing{options}", PASSWORD)
    assert said in line


@pytest.mark.parametrize("query", [f"?sslmode={PASSWORD}", f"?{PASSWORD}=1", f"?password=a&{PASSWORD}=b"])
def test_what_may_be_a_password_is_not_shown_though_it_stands_among_the_options(query: str) -> None:
    refusal("BILLING_DATABASE_URL", f"postgresql+psycopg://u@localhost/billing{query}", PASSWORD)


@pytest.mark.parametrize("port", ["0", "99999", "543210", "", "99999999999999999999"])
def test_a_port_that_is_none_is_said_to_be_the_port(port: str) -> None:
    ports = "its port must be a number from 1 to 65535"
    url = f"u:{PASSWORD}@localhost:{port}"
    assert ports in refusal("BILLING_DATABASE_URL", f"postgresql+psycopg://{url}/billing", PASSWORD)
    assert ports in refusal("BILLING_REDIS_URL", f"redis://{url}/0", PASSWORD)


@pytest.mark.parametrize(
    "options",
    [
        "?sslmode=require&sslnegotiation=direct",
        "?sslmode=verify-full&sslrootcert=system",
        "?host=a:5432&host=b:5433&target_session_attrs=primary",
        "?host=10.0.0.1,10.0.0.2&port=5432,5433&load_balance_hosts=random",
        "?hostaddr=10.0.0.1&connect_timeout=3",
        "?host=/var/run/postgresql&port=6432&prepare_threshold=0",
        "?options=-c%20search_path%3Dbilling",
        "?gssencmode=require",
        "?application_name=shop&tcp_user_timeout=5000&keepalives=0",
    ],
)
def test_options_that_libpq_knows_are_taken(options: str) -> None:
    url = f"postgresql+psycopg://billing:secret@/billing{options}"
    assert accepted("BILLING_DATABASE_URL", url).database == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost", "must start with redis://, rediss:// or unix://"),
        ("localhost:6379", "must start with redis://, rediss:// or unix://"),
        ("redis://localhost/abc", "the number of a database"),
        ("redis://localhost/0/1", "the number of a database"),
        ("redis://localhost?db=one", "db has a value"),
        ("unix:///run/valkey.sock?db=one", "db has a value"),
        ("redis://localhost/0?socket_timeout=soon", "socket_timeout has a value"),
        ("redis://localhost/0?bogus=1", "an option that Redis's client library does not know"),
        ("rediss://localhost/0?ssl_cert_reqs=wat", "an option that Redis's client library does not know or cannot use"),
    ],
)
def test_a_url_of_redis_says_what_is_wrong_with_it(url: str, said: str) -> None:
    assert said in refusal("BILLING_REDIS_URL", url)


@pytest.mark.parametrize("variable", ["BILLING_XENDIT_BASE_URL", "BILLING_PUBLIC_URL"])
@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (f"//u:{PASSWORD}@x.example", "a user or password"),
        ("//x.example?y=1", "a query or fragment"),
        ("//x.example/#y", "a query or fragment"),
        ("//x.example:99999", "port"),
        ("//x.example:0", "not a web address"),
        ("//x.example:", "not a web address"),
        ("//x_\N{SNOWMAN}!.example", "not a web address"),
        ("//https://x.example", "not a web address"),
        ("//x.example//y", "a path"),
    ],
)
def test_an_address_with_more_or_less_than_it_needs_is_refused(variable: str, rest: str, said: str) -> None:
    assert said in refusal(variable, f"https:{rest}", PASSWORD)


def test_only_our_own_pages_may_lie_under_a_path() -> None:
    assert accepted("BILLING_PUBLIC_URL", "https://x.example/billing/").public_url == "https://x.example/billing"
    assert "a path" in refusal("BILLING_XENDIT_BASE_URL", "https://x.example/billing")
    assert accepted("BILLING_XENDIT_BASE_URL", "http://[::1]:8100/").xendit_base_url == "http://[::1]:8100"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "Infinity", "1e400"])
@pytest.mark.parametrize(
    "variable",
    [
        "BILLING_XENDIT_TIMEOUT_SECONDS",
        "BILLING_XENDIT_REQUESTS_PER_MINUTE",
        "BILLING_RUN_FORECAST_SHARE",
        "BILLING_RUN_DECLINE_JUMP",
        "BILLING_SETTLEMENT_WINDOW_HOURS",
    ],
)
def test_a_number_is_a_finite_one(variable: str, number: str) -> None:
    refusal(variable, number)


def test_a_very_large_quota_is_a_number() -> None:
    assert accepted("BILLING_XENDIT_REQUESTS_PER_MINUTE", "1e300").charges_at_once > 1


@pytest.mark.parametrize("kind", ["xnd_development_", "xnd_production_"])
def test_a_key_that_ends_after_its_first_words_is_refused(kind: str) -> None:
    assert "the whole of it" in refusal("BILLING_XENDIT_SECRET_KEY", kind)


# Variables that are none


def warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    monkeypatch.setattr("billing.settings._warned", set())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    load_settings()
    load_settings()
    return capsys.readouterr().err.splitlines()


def test_a_misspelled_variable_is_told_once_with_the_name_it_resembles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BILLING_XENDIT_CALLBACK_TOKENS=abc\n")
    told = warnings(capsys, monkeypatch, BILLING_XENDIT_SECRET=PASSWORD, BILLING_DATABSE_URL=f"x{PASSWORD}")
    assert told == [
        "billing: warning: BILLING_DATABSE_URL is no setting and changes nothing; did you mean BILLING_DATABASE_URL?",
        "billing: warning: BILLING_XENDIT_CALLBACK_TOKENS is no setting and changes nothing;"
        " did you mean BILLING_XENDIT_CALLBACK_TOKEN?",
        "billing: warning: BILLING_XENDIT_SECRET is no setting and changes nothing;"
        " did you mean BILLING_XENDIT_SECRET_KEY?",
    ]


def test_variables_of_later_versions_and_of_platforms_are_nobodys_concern(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes = {"BILLING_PORT": "tcp://10.0.0.1:80", "BILLING_SERVICE_HOST": "10.0.0.1", "BILLING_PORT_80_TCP": "x"}
    later = {"BILLING_SMTP_URL": "x", "BILLING_MAIL_FROM": "x", "BILLING_TEMPLATES": "x", "BILLING_OIDC_ISSUER": "x"}
    ours = {"BILLING_DEBUG": "1", "BILLING_TEST_DATABASE_URL": "x", "billing_log_format": "json"}
    assert warnings(capsys, monkeypatch, **kubernetes, **later, **ours) == []
